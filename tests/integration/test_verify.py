"""`kimberlite verify`: real damage of real files is found, named and placed, and never a byte is changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECTOR = 4096
COPY = 4 * SECTOR


def digests(directory: Path) -> dict[str, tuple[str, int]]:
    """Content and modification time of every file below a directory."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


Verify = Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]


@pytest.fixture
def verify(kimberlite_command: Any) -> Verify:
    """Run `verify --json`; gives the findings, and the totals."""

    def run(data: Path, code: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        done = kimberlite_command("verify", "--json", data, code=code)
        *findings, totals = [json.loads(line) for line in done.stdout.splitlines()]
        return findings, totals

    return run


@pytest.fixture
def stopped(start_cluster: Any, kimberlite_command: Any) -> Path:
    """The data of a replica that has stopped: six entries, the first of them a session's, which stand nowhere else."""
    cluster = start_cluster(1, settings=("storage.ring=false",))
    for text in (b"one\n", b"two\n", b"three\n"):
        kimberlite_command("append", "-", addresses=cluster.addresses, input=text)
    cluster.stop()
    data: Path = cluster.replicas[0].data
    return data


def test_beside_a_running_replica(start_cluster: Any, kimberlite_command: Any, verify: Verify, tmp_path: Path) -> None:
    cluster = start_cluster(1)
    data = cluster.replicas[0].data
    lines = tmp_path / "lines"
    lines.write_bytes(b"".join(b"line %d\n" % number for number in range(200_000)))
    writing = subprocess.Popen(
        [sys.executable, "-P", "-m", "kimberlite", "append", lines],
        env={**os.environ, "KIMBERLITE_ADDRESSES": ",".join(cluster.addresses)},
        stdout=subprocess.DEVNULL,
    )
    try:
        seen = 0
        while writing.poll() is None:
            _, totals = verify(data)
            assert totals["damaged"] == 0
            assert totals["entries"] >= seen
            seen = totals["entries"]
    finally:
        writing.wait(60)
    findings, totals = verify(data)
    assert findings == []
    assert totals["entries"] > 0 and totals["segments"] == 1
    assert kimberlite_command("append", "-", addresses=cluster.addresses, input=b"x\n").stdout == b"200000 200000\n"


def test_damage_is_named_and_left_alone(stopped: Path, verify: Verify, kimberlite_command: Any) -> None:
    entries = [
        json.loads(line) for line in kimberlite_command("inspect", "journal", "--json", stopped).stdout.splitlines()
    ]
    assert verify(stopped) == (
        [],
        {"segments": 1, "entries": 6, "entry_bytes": 6 * SECTOR, "damaged": 0, "harmless": 0},
    )
    flip(stopped / "journal-00000000", entries[1]["offset"] + 260)  # a body
    flip(stopped / "journal-00000000", entries[4]["offset"] + 20)  # a header
    flip(stopped / "witness-00000000", 3 * 512 + 10)
    flip(stopped / "superblock", COPY + 1000)
    before = digests(stopped)
    findings, totals = verify(stopped, code=18)
    assert digests(stopped) == before
    assert [(f["cause"], f["file"], f["segment"], f["offset"], f["op"], f["harmless"]) for f in findings] == [
        ("copy-damaged", "superblock", None, COPY, None, True),
        ("entry-body", "journal-00000000", 0, entries[1]["offset"], 2, False),
        ("witness-damaged", "witness-00000000", 0, 3 * 512, 4, True),
        ("entry-header", "journal-00000000", 0, entries[4]["offset"], 5, False),
    ]
    assert (totals["entries"], totals["damaged"], totals["harmless"]) == (4, 2, 2)
    done = kimberlite_command("verify", stopped, code=18)
    lines = done.stdout.decode().splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["harmless", "copy-damaged"],
        ["DAMAGE", "entry-body"],
        ["harmless", "witness-damaged"],
        ["DAMAGE", "entry-header"],
    ]
    assert f"journal-00000000 offset {entries[1]['offset']} (op 2)" in lines[1]
    assert b"4 intact entries" in done.stderr and b"2 findings of damage, the first at journal-00000000" in done.stderr


def test_what_a_restart_repairs_is_no_damage(stopped: Path, verify: Verify) -> None:
    flip(stopped / "witness-00000000", 10)
    flip(stopped / "superblock", 100)
    flip(stopped / "superblock", 2 * COPY + 100)
    findings, totals = verify(stopped)
    assert [finding["cause"] for finding in findings] == ["copy-damaged", "copy-damaged", "witness-damaged"]
    assert (totals["damaged"], totals["harmless"]) == (0, 3)


def test_a_lost_superblock(stopped: Path, verify: Verify, kimberlite_command: Any) -> None:
    for copy in range(3):
        flip(stopped / "superblock", copy * COPY + 100)
    findings, totals = verify(stopped, code=14)
    assert [finding["cause"] for finding in findings] == [*["copy-damaged"] * 3, "superblock-lost"]
    assert totals["damaged"] == 4
    assert b"replace this replica" in kimberlite_command("verify", stopped, code=14).stderr


def test_lost_files(stopped: Path, verify: Verify) -> None:
    (stopped / "witness-00000000").unlink()
    findings, _ = verify(stopped, code=18)
    assert {(finding["cause"], finding["file"]) for finding in findings} == {("file-missing", "witness-00000000")}


def test_where_there_is_no_replica(kimberlite_command: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for directory in ("empty", "none"):
        assert directory.encode() in kimberlite_command("verify", tmp_path / directory, code=12).stderr
    assert list((tmp_path / "empty").iterdir()) == []


def test_progress_is_shown_on_a_terminal_only(stopped: Path, on_terminal: Any, kimberlite_command: Any) -> None:
    code, output, shown = on_terminal("verify", stopped)
    assert (code, output) == (0, b"")
    assert b"verifying" in shown and b"6 intact entries" in shown
    quiet = kimberlite_command("verify", stopped)
    assert b"verifying" not in quiet.stderr
