"""The benches run, and a gate that does not hold fails the run. What they measure is no matter of a test."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kimberlite import _fast

BENCHES = Path(__file__).parents[2] / "benches"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on the benches in `folder`, as `make bench` calls it but for the options: in a process of its own, also
    when this one is a worker of several, which measure nothing."""
    config = ("-c", str(BENCHES.parent / "pyproject.toml"), "-o", "addopts=--import-mode=importlib")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *config, "-p", "no:cacheprovider", str(folder), *options],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_bench_runs_once(tmp_path: Path) -> None:
    done = run(BENCHES, "--benchmark-disable", f"--basetemp={tmp_path / 'temp'}")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"=+ \d+ passed in .*=+", last), last


def test_every_compiled_module_has_benches() -> None:
    named = {f"bench_{name}" for name in _fast.EXTENSIONS}
    assert {path.stem for path in BENCHES.glob("bench_*.py")} - {
        "bench_beside",
        "bench_commit",
        "bench_reading",
    } == named


@pytest.mark.parametrize(("at_most", "verdict", "code"), [(1e-9, "FAILS", 1), (1e9, "holds", 0)])
def test_a_gate_fails_the_run(tmp_path: Path, at_most: float, verdict: str, code: int) -> None:
    shutil.copy(BENCHES / "conftest.py", tmp_path)
    (tmp_path / "bench_one.py").write_text(
        "work = lambda: sum(range(100))\n"
        "def test_one(gate):\n"
        f"    gate(work, work, at_most={at_most}, operations=(100, 100), rounds=5)\n"
    )
    done = run(tmp_path, "--benchmark-only", "--benchmark-disable-gc")
    assert done.returncode == code, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith(verdict)]
    rounds = 25 if code else 5  # more rounds before it is given up
    assert "test_one: " in line and f"{rounds} rounds" in line


def test_reads_are_measured_on_a_log_that_was_made(tmp_path: Path) -> None:
    """The two commands work, and what they make and read is a sound log."""
    data = tmp_path / "data"
    for arguments in (
        ("make_log.py", str(data), "--events", "300", "--events-per-op", "7", "--event-bytes", "50", "--unsafe"),
        ("reads.py", str(data), "--reads", "20", "--span", "100"),
    ):
        command = [sys.executable, str(BENCHES / arguments[0]), *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["events"] == 300


def test_two_versions_are_compared(tmp_path: Path) -> None:
    """Pair by pair, in alternating order; here by stand-ins that tell their figure and when they were asked."""
    asked = tmp_path / "asked"
    for name, rate in (("old", 100), ("new", 110)):
        stand_in = tmp_path / name
        stand_in.write_text(f"#!/bin/sh\necho {name} >> {asked}\necho '{{\"ops_per_s\": {rate}}}'\n")
        stand_in.chmod(0o755)
    arguments = ("--old", str(tmp_path / "old"), "--new", str(tmp_path / "new"), "--pairs", "3", "64")
    done = subprocess.run(
        [sys.executable, str(BENCHES / "versions.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout == "    64: new 110.0/s, old 100.0/s, ratio 1.1 (1.1 to 1.1), 3 pairs\n", done.stderr
    assert asked.read_text().split() == ["old", "new", "new", "old", "old", "new"]
    done = subprocess.run(
        [sys.executable, str(BENCHES / "versions.py"), *arguments, "65"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "unknown loads: ['65']" in done.stderr


def test_two_simulators_are_compared(tmp_path: Path) -> None:
    """Seed by seed, in alternating order; here by stand-ins that tell what each seed is to have cost."""
    asked = tmp_path / "asked"
    for name, seconds in (("old", 0.3), ("new", 0.2)):
        stand_in = tmp_path / name
        stand_in.write_text(f"#!/bin/sh\nwhile read line; do echo {name} >> {asked}; echo '[{seconds}, 1000]'; done\n")
        stand_in.chmod(0o755)
    arguments = ("--old", str(tmp_path / "old"), "--new", str(tmp_path / "new"), "--seeds")
    command = [sys.executable, str(BENCHES / "simulator.py"), *arguments]
    done = subprocess.run([*command, "5:8"], capture_output=True, text=True, check=False)
    assert done.stdout == (
        "seeds 5:8, plans own: new 200.0 us a message, old 300.0, ratio 1.5 (1.5 to 1.5); 3000 and 3000 messages\n"
    ), done.stderr
    assert asked.read_text().split() == ["old", "new", "new", "old", "old", "new"]
    done = subprocess.run([*command, "5:6"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "at least two seeds" in done.stderr
