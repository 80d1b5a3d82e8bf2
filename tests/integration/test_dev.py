"""`kimberlite dev`: one line when ready, orderly end, same data, what happens when a replica dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kimberlite.cli.local import free_port


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start_dev(
    environment: dict[str, str], settings: tuple[str, ...], tmp_path: Path
) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], dict[str, Any]]]]:
    """Start `dev --json` and read its line."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        items = [item for setting in settings for item in ("--set", setting)]
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "kimberlite",
                "dev",
                "--json",
                "--dir",
                str(tmp_path / "data"),
                *items,
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=tmp_path,
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read().decode() if process.stderr else ""
        return process, json.loads(line)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_ready_line_stop_and_same_data(start_dev: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    port = free_port(3)
    process, ready = start_dev("--port", str(port))
    addresses = [replica["address"] for replica in ready["replicas"]]
    assert addresses == [f"127.0.0.1:{port + index}" for index in range(3)]
    assert [replica["index"] for replica in ready["replicas"]] == [0, 1, 2]
    assert ready["console"] is None
    for replica in ready["replicas"]:
        assert alive(replica["pid"])
        assert (Path(replica["data"]) / "node.toml").stat().st_mode & 0o777 == 0o600
    with urllib.request.urlopen(f"{ready['telemetry']}/metrics", timeout=10) as answer:
        assert b"vsr_view_number" in answer.read()
    assert kimberlite_command("append", "-", addresses=addresses, input=b"kept\n").stdout == b"0 0\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.decode().splitlines()[-1] == "stopped"
    assert not any(alive(replica["pid"]) for replica in ready["replicas"])

    process, ready = start_dev("--port", str(port))
    assert kimberlite_command("read", addresses=addresses).stdout == b"kept\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_no_metrics_are_announced_where_there_are_none(start_dev: Any) -> None:
    process, ready = start_dev("--port", "0", "--replicas", "1", "--set", "telemetry.enabled=false")
    assert ready["telemetry"] is None
    assert [replica["telemetry"] for replica in ready["replicas"]] == [None]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    # The data remembers it, and so does what is said of it.
    process, ready = start_dev("--port", "0", "--replicas", "1")
    assert ready["telemetry"] is None


def test_a_dead_replica_is_reported(start_dev: Any, kimberlite_command: Any) -> None:
    process, ready = start_dev("--port", "0")
    victim = ready["replicas"][1]
    os.kill(victim["pid"], signal.SIGKILL)
    assert process.stderr is not None
    assert process.stderr.readline() == b"replica 1 was killed by signal 9\n"
    addresses = [replica["address"] for replica in ready["replicas"]]
    assert kimberlite_command("append", "-", addresses=addresses, input=b"x\n").stdout == b"0 0\n"
    table = kimberlite_command("status", addresses=addresses, code=35).stdout.decode()
    assert table.splitlines()[2].split()[2] == "unreachable"


def test_a_dead_replica_is_started_again_when_asked(start_dev: Any) -> None:
    process, ready = start_dev("--port", "0", "--restart")
    os.kill(ready["replicas"][2]["pid"], signal.SIGKILL)
    assert process.stderr is not None
    assert process.stderr.readline() == b"replica 2 was killed by signal 9\n"
    again = process.stderr.readline().decode()
    assert again.startswith("replica 2 started again, pid ")
    assert alive(int(again.split()[-1]))


def test_replicas_do_not_outlive_dev(start_dev: Any, wait_until: Callable[..., None]) -> None:
    process, ready = start_dev("--port", "0")
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(replica["pid"]) for replica in ready["replicas"]), "the replicas end")


def test_another_number_of_replicas(start_dev: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    process, _ = start_dev("--port", "0", "--replicas", "1")
    process.terminate()
    process.wait()
    done = kimberlite_command("dev", "--dir", tmp_path / "data", "--replicas", "3", "--port", "0", code=2)
    assert b"--replicas" in done.stderr


def test_ports_in_use(start_dev: Any, kimberlite_command: Any, settings: tuple[str, ...], tmp_path: Path) -> None:
    _, ready = start_dev("--port", "0", "--replicas", "1")
    port = ready["replicas"][0]["address"].rpartition(":")[2]
    items = [item for setting in settings for item in ("--set", setting)]
    done = kimberlite_command("dev", "--dir", tmp_path / "other", "--replicas", "1", "--port", port, *items, code=21)
    assert port.encode() in done.stderr


ROW = {
    "replicas",
    "concurrency",
    "batch",
    "size",
    "seconds",
    "ops_per_s",
    "events_per_s",
    "p50_ms",
    "p99_ms",
    "p999_ms",
    "cpu_s",
    "durable",
}


def test_bench(start_cluster: Any, kimberlite_command: Any, settings: tuple[str, ...]) -> None:
    """Once with a cluster of its own, then with every kind of load on one that is there."""
    items = [item for setting in settings for item in ("--set", setting)]
    cluster = start_cluster(3)
    there = ["--addresses", ",".join(cluster.addresses)]
    for where, concurrency, batch in ((items, 1, 1), (there, 64, 1), (there, 1024, 1), (there, 1, 8192)):
        load = ["--concurrency", str(concurrency), "--batch", str(batch), "--size", "128"]
        done = kimberlite_command("bench", *load, "--seconds", "1", "--warmup", "0.3", *where, "--json")
        (line,) = done.stdout.splitlines()
        row = json.loads(line)
        assert row.keys() >= ROW
        assert (row["replicas"], row["concurrency"], row["batch"], row["size"]) == (3, concurrency, batch, 128)
        assert row["n"] >= concurrency
        assert row["events_per_s"] == pytest.approx(row["ops_per_s"] * batch, rel=1e-2)
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"] <= row["max_ms"]
        assert row["cpu_s"] > 0
        unsafe = "storage.unsafe=true" in settings
        assert row["durable"] in (["no: storage.unsafe"] if unsafe else ["O_DIRECT, O_DSYNC", "fdatasync"])


def test_help_is_quick(environment: dict[str, str], tmp_path: Path) -> None:
    """The best of several runs, in CPU time of the process, so that a busy machine does not matter."""
    costs = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-P", "-m", "kimberlite", "--help"],
            env=environment,
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        after = os.times()
        costs.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(costs) < 0.150
