"""The commands of docs/profiling.md, as they stand there, on a replica under load. Only how long they look is cut."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kimberlite import sync
from kimberlite.telemetry import catalogue

PAGE = (Path(__file__).parents[2] / "docs" / "profiling.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
# What was installed beside this interpreter.
TOOLS = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def commands(tool: str) -> list[str]:
    """Those of a tool, for a second instead of ten."""
    found = [line for line in COMMANDS if line.split()[0] == tool]
    assert found
    return [re.sub(r"(--duration|sleep) 10", r"\1 1", line) for line in found]


def run(line: str, place: Path, **variables: str) -> str:
    if line.startswith("perf ") and shutil.which("perf") is None:
        pytest.skip("perf is not installed: it comes with the kernel, not from PyPI")
    environment = os.environ | TOOLS | variables
    done = subprocess.run(
        ["bash", "-euc", line], cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout + done.stderr


@contextmanager
def load(addresses: list[str]) -> Iterator[None]:
    is_over = threading.Event()

    def append() -> None:
        with sync.connect(addresses) as log:
            while not is_over.is_set():
                log.append([b"event"] * 10)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_every_command_belongs_to_a_test() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"kimberlite", "pip", "py-spy", "perf", "memray"}


def test_every_metric_that_is_named_exists() -> None:
    known = {metric.exposed_name("ms") for metric in catalogue.METRICS}
    named = set(re.findall(r"vsr_\w+", PAGE))
    assert named and named <= known


def test_a_replica_that_runs(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(1)
    pid = str(cluster.replicas[0].pid)
    with load(list(cluster.addresses)):
        record, dump = commands("py-spy")
        run(record, tmp_path, PID=pid)
        assert "_run (kimberlite/node/node.py" in (tmp_path / "replica.svg").read_text()
        assert "MainThread" in run(dump, tmp_path, PID=pid)
        said = [run(line, tmp_path, PID=pid) for line in commands("perf")]
        assert "libpython" in said[-1] or "python" in said[-1]


def test_memory(start_cluster: Any, settings: tuple[str, ...], tmp_path: Path, wait_until: Callable[..., None]) -> None:
    cluster = start_cluster(1)
    cluster.stop()
    start, *looks = commands("memray")
    more = " ".join(f"--set '{item}'" for item in (*settings, "telemetry.enabled=false"))
    process = subprocess.Popen(
        ["bash", "-euc", f"exec {start} {more}"],
        cwd=tmp_path,
        env=os.environ | TOOLS | {"DIR": str(cluster.replicas[0].data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with sync.connect(list(cluster.addresses), timeout=60) as log:
            for _ in range(20):
                log.append([b"event"] * 10, timeout=60)
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15, 143)
    for line in looks:
        run(line, tmp_path)
    assert (tmp_path / "leaks.html").stat().st_size > 10_000


def test_what_recording_costs(tmp_path: Path) -> None:
    """Not what it says: that it says it."""
    (line,) = commands("kimberlite")
    words = line.replace("--rounds 8 --seconds 10", "--rounds 2 --seconds 0.2").split()[1:]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kimberlite", *words, "--set", "storage.unsafe=true", "--replicas", "1"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [re.findall(r"(\d+) in flight", row) for row in rows] == [["1"], ["64"]]
    assert all(re.search(r"[-\d.]+ to [-\d.]+ % with 95 % confidence \(2 rounds\)", row) for row in rows)
