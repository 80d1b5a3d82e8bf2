"""`kimberlite inspect`: what is on the disk, beside a running replica and without one, and never a byte changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kimberlite import config as configuration
from kimberlite.cli.inspect import JOURNAL_COLUMNS

SECTOR = 4096


def digests(directory: Path) -> dict[str, tuple[str, int]]:
    """Content and modification time of every file below a directory."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def inspect(kimberlite_command: Any) -> Callable[..., list[dict[str, Any]]]:
    """Run `inspect ... --json` and give its lines."""

    def run(what: str, data: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        done = kimberlite_command("inspect", what, *arguments, "--json", data, code=code)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def test_beside_a_running_replica(start_cluster: Any, kimberlite_command: Any, inspect: Any) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\n")
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"three\n")
    data = cluster.replicas[0].data
    (block,) = inspect("superblock", data)
    assert block["cluster"] == configuration.load(data / "node.toml").cluster.id
    assert (block["replica"], block["replica_count"]) == (0, 1)
    assert [copy["state"] for copy in block["copies"]] == ["intact"] * 4
    entries = inspect("journal", data)
    assert [entry["op"] for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry["parent"] for entry in entries[1:]] == [entry["checksum"] for entry in entries[:-1]]
    assert {(entry["entry"], entry["witness"]) for entry in entries} == {("good", "good")}
    appended = [entry for entry in entries if entry["operation"] == "apply"]
    assert [(entry["position"], entry["events"]) for entry in appended] == [(0, 2), (2, 1)]
    assert inspect("journal", data, "--from", "2", "--limit", "1") == entries[1:2]
    assert kimberlite_command("append", "-", addresses=cluster.addresses, input=b"x\n").stdout == b"3 3\n"


def test_text_for_people(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\n")
    data = cluster.replicas[0].data
    shown = kimberlite_command("inspect", "superblock", data).stdout.decode()
    assert "replica count" in shown and shown.count("intact") == 4
    done = kimberlite_command("inspect", "journal", data)
    header, *lines = done.stdout.decode().splitlines()
    assert tuple(header.split()) == JOURNAL_COLUMNS
    assert all(len(line.split()) == len(header.split()) for line in lines)
    assert f"{len(lines)} entries".encode() in done.stderr


def test_damage_is_shown_and_left_alone(start_cluster: Any, kimberlite_command: Any, inspect: Any) -> None:
    cluster = start_cluster(1, settings=("storage.ring=false",))  # else the ring would have them
    for text in (b"one\n", b"two\n", b"three\n"):
        kimberlite_command("append", "-", addresses=cluster.addresses, input=text)
    cluster.stop()
    data = cluster.replicas[0].data
    entries = inspect("journal", data)
    assert len(entries) == 6
    flip(data / "journal-00000000", entries[1]["offset"] + 300)  # a body
    flip(data / "witness-00000000", 3 * 512 + 10)
    os.utime(data / "journal-00000000")
    before = digests(data)
    found = inspect("journal", data)
    states = [(entry["entry"], entry["witness"]) for entry in found]
    assert states == [
        ("good", "good"),
        ("damaged", "good"),
        ("good", "good"),
        ("good", "damaged"),
        ("good", "good"),
        ("good", "good"),
    ]
    assert found[3]["op"] == 4  # known from the entry
    flip(data / "superblock", 100)
    flip(data / "superblock", 2 * 4 * SECTOR + 100)
    changed = digests(data)
    (block,) = inspect("superblock", data)
    assert [copy["state"] for copy in block["copies"]] == ["damaged", "intact", "damaged", "intact"]
    flip(data / "superblock", 4 * SECTOR + 100)
    (block,) = inspect("superblock", data, code=14)
    assert [copy["state"] for copy in block["copies"]] == ["damaged", "damaged", "damaged", "intact"]
    assert [entry["op"] for entry in inspect("journal", data)] == [1, 2, 3, 4, 5, 6]
    after = digests(data)
    for name, digest in after.items():
        if name != "superblock":
            assert digest == before[name] == changed[name], name


def test_metrics_of_a_replica_that_runs_and_of_one_that_was_killed(
    start_cluster: Any, kimberlite_command: Any, inspect: Any
) -> None:
    cluster = start_cluster(1, telemetry=True)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\n")
    replica = cluster.replicas[0]
    (seen,) = inspect("metrics", replica.data)
    assert (seen["running"], seen["pid"]) == (True, replica.pid)
    values = {row["name"]: row for row in seen["metrics"] if not row["labels"]}
    committed = "vsr_events_total"
    assert values[committed]["value"] == 2
    shown = kimberlite_command("inspect", "metrics", replica.data).stdout.decode()
    assert f"{committed} " in shown and "p99 " in shown
    cluster.kill(0)
    before = digests(replica.data)
    (after,) = inspect("metrics", replica.data)
    assert after["running"] is False
    assert {row["name"]: row for row in after["metrics"] if not row["labels"]}[committed]["value"] == 2
    assert digests(replica.data) == before
    cluster.start(0)
    cluster.wait_ready()
    cluster.stop()
    done = kimberlite_command("inspect", "metrics", replica.data, code=12)
    assert b"ended in order" in done.stderr


def test_where_there_is_no_replica(kimberlite_command: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for what in ("superblock", "journal", "metrics"):
        for directory in ("empty", "none"):
            done = kimberlite_command("inspect", what, tmp_path / directory, code=12)
            assert directory.encode() in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "none").exists()
