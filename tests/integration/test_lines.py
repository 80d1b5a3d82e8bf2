"""A large file of lines goes in and comes back byte for byte, from every replica."""

from __future__ import annotations

import filecmp
import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

LINES = 1_000_000
PIPE_BYTES = 64 << 10  # what a pipe holds


def test_a_million_lines(
    start_cluster: Any, kimberlite_command: Any, settled: Callable[[Any], None], mixed_lines: Any, tmp_path: Path
) -> None:
    source = tmp_path / "lines"
    with source.open("wb") as file:
        file.writelines(mixed_lines(LINES, seed=7))
    cluster = start_cluster()
    done = kimberlite_command("append", "--json", source, addresses=cluster.addresses)
    row = json.loads(done.stdout)
    assert row == {
        "events": LINES,
        "bytes": source.stat().st_size,
        "first": 0,
        "last": LINES - 1,
        "terminated": True,
    }
    assert done.stderr == b""
    settled(cluster)
    copy = tmp_path / "copy"
    for index, address in enumerate(cluster.addresses):
        kimberlite_command("read", "--addresses", address, output=copy)
        assert filecmp.cmp(source, copy, shallow=False), f"replica {index} gave other bytes"


@pytest.fixture(scope="module")
def small_lines(tmp_path_factory: pytest.TempPathFactory, mixed_lines: Any) -> Path:
    path = tmp_path_factory.mktemp("lines") / "small"
    path.write_bytes(b"".join(mixed_lines(5_000, seed=11)))
    return path


def test_ranges_and_json(start_cluster: Any, kimberlite_command: Any, small_lines: Path) -> None:
    cluster = start_cluster(1)
    lines = small_lines.read_bytes().split(b"\n")[:-1]
    assert kimberlite_command("append", small_lines, addresses=cluster.addresses).stdout == b"0 4999\n"
    for first, limit in ((0, 1), (0, 0), (17, 100), (4_999, 10), (4_990, 10), (5_000, 1)):
        got = kimberlite_command(
            "read", "--from", str(first), "--limit", str(limit), addresses=cluster.addresses
        ).stdout
        assert got == b"".join(line + b"\n" for line in lines[first : first + limit])
    rows = kimberlite_command("read", "--json", "--limit", "50", addresses=cluster.addresses).stdout.splitlines()
    assert [json.loads(row)["position"] for row in rows] == list(range(50))


def test_the_last_ones_what_comes_next_and_columns(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1)

    def read(*options: str) -> list[bytes]:
        lines: list[bytes] = kimberlite_command("read", *options, addresses=cluster.addresses).stdout.splitlines()
        return lines

    assert read("--last", "5") == read("--from", "end") == []
    before = time.time_ns()
    kimberlite_command("append", addresses=cluster.addresses, input=b"one\ntwo\nthree\n")
    assert read("--last", "2") == [b"two", b"three"]
    assert read("--last", "9", "--with", "position") == [b"0\tone", b"1\ttwo", b"2\tthree"]
    assert read("--from", "end", "--with", "time") == []
    (row,) = read("--limit", "1", "--from", "1", "--with", "time,position")
    moment, position, event = row.decode().split("\t")
    assert (position, event) == ("1", "two")
    seconds, _, nanoseconds = moment.rstrip("Z").partition(".")
    appended = int(datetime.fromisoformat(seconds + "+00:00").timestamp()) * 10**9 + int(nanoseconds)
    assert before <= appended <= time.time_ns() and len(nanoseconds) == 9
    rows = [json.loads(row) for row in read("--last", "1", "--with", "time", "--json")]
    assert rows == [{"position": 2, "time": moment, "event": "three"}]
    for options in (
        ("--limit", "1", "--with", "x"),
        ("--last", "1", "--limit", "1"),
        ("--from", "-1"),
        ("--from", "x"),
    ):
        kimberlite_command("read", *options, addresses=cluster.addresses, code=2)
    kimberlite_command("read", "--with", "time", "--binary", addresses=cluster.addresses, code=2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--last", "1"), b"three\nfour\nfive\n"),
        (("--last", "1", "--with", "position"), b"2\tthree\n3\tfour\n4\tfive\n"),
        (("--from", "2", "--limit", "3", "--with", "position"), b"2\tthree\n3\tfour\n4\tfive\n"),
    ],
)
def test_following_from_the_last_ones(
    options: tuple[str, ...],
    expected: bytes,
    start_cluster: Any,
    kimberlite_command: Any,
    environment: dict[str, str],
) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", addresses=cluster.addresses, input=b"one\ntwo\nthree\n")
    command = [sys.executable, "-P", "-m", "kimberlite", "read", "--follow", *options]
    with subprocess.Popen(
        [*command, "--addresses", ",".join(cluster.addresses)], env=environment, stdout=subprocess.PIPE
    ) as follower:
        assert follower.stdout is not None
        try:
            found = follower.stdout.readline()
            kimberlite_command("append", addresses=cluster.addresses, input=b"four\nfive\n")
            found += follower.stdout.readline() + follower.stdout.readline()
        finally:
            follower.terminate()
    assert found == expected


def test_standard_input_and_a_last_line_without_newline(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1)
    text = b"one\n\nthree\nlast without newline"
    done = kimberlite_command("append", "-", addresses=cluster.addresses, input=text)
    assert done.stdout == b"0 3\n"
    assert b"--no-trailing-newline" in done.stderr
    assert kimberlite_command("read", addresses=cluster.addresses).stdout == text + b"\n"
    assert kimberlite_command("read", "--no-trailing-newline", addresses=cluster.addresses).stdout == text


def test_a_pipe_that_is_slow(
    start_cluster: Any, kimberlite_command: Any, environment: dict[str, str], tmp_path: Path, wait_until: Any
) -> None:
    """`tail -f | kimberlite append`: lines are in the log while the pipe is still open, and a refusal ends it."""
    cluster = start_cluster(1)
    where = {"KIMBERLITE_ADDRESSES": ",".join(cluster.addresses)}
    for last, code in ((b"", 0), (b"x" * (1 << 20) + b"yz", 3)):
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "kimberlite", "append"],
            env={**environment, **where},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        ) as appender:
            assert appender.stdin is not None and appender.stderr is not None
            appender.stdin.write(b"first\nsecond\nnot yet a l")
            appender.stdin.flush()
            read = ["read", "--from", "0" if code == 0 else "3"]
            wait_until(
                lambda read=read: (
                    kimberlite_command(*read, addresses=cluster.addresses, code=None).stdout == b"first\nsecond\n"
                ),
                "the whole lines are in the log",
            )
            appender.stdin.write(b"ine\n" + last)
            appender.stdin.flush()
            if code == 0:
                appender.stdin.close()
            assert appender.wait(timeout=60) == code
            if code:
                assert b"positions 3 to 5, were appended" in appender.stderr.read()


def test_nothing_to_append(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1)
    done = kimberlite_command("append", "--json", addresses=cluster.addresses)
    assert json.loads(done.stdout) == {"events": 0, "bytes": 0, "first": None, "last": None, "terminated": True}
    assert kimberlite_command("read", addresses=cluster.addresses).stdout == b""


def test_binary_frames(start_cluster: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    cluster = start_cluster(1)
    generator = random.Random(3)
    events = [generator.randbytes(generator.choice([0, 1, 7, 1000, 70_000])) for _ in range(300)] + [b"a\nb\n", b"\n"]
    frames = b"".join(struct.pack("<I", len(event)) + event for event in events)
    source = tmp_path / "frames"
    source.write_bytes(frames)
    assert kimberlite_command("append", "--binary", source, addresses=cluster.addresses).stdout == b"0 301\n"
    assert kimberlite_command("read", "--binary", addresses=cluster.addresses).stdout == frames
    source.write_bytes(frames[:-1])
    done = kimberlite_command("append", "--binary", source, addresses=cluster.addresses, code=2)
    assert b"in the middle of event 302" in done.stderr
    assert kimberlite_command("read", "--binary", addresses=cluster.addresses).stdout == frames


def test_follow_sees_what_is_appended_later(
    start_cluster: Any, kimberlite_command: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    cluster = start_cluster(3)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"before\n")
    follower = subprocess.Popen(
        [sys.executable, "-P", "-m", "kimberlite", "read", "--follow", "--addresses", ",".join(cluster.addresses)],
        stdout=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )
    try:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"before\n"
        kimberlite_command("append", "-", addresses=cluster.addresses, input=b"after\nand after\n")
        assert follower.stdout.readline() == b"after\n"
        assert follower.stdout.readline() == b"and after\n"
    finally:
        follower.terminate()
        follower.wait()
        follower.stdout.close()


def test_read_into_a_pipe_that_closes(
    start_cluster: Any, kimberlite_command: Any, environment: dict[str, str], small_lines: Path, tmp_path: Path
) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", small_lines, addresses=cluster.addresses)
    assert small_lines.stat().st_size > 2 * PIPE_BYTES  # it must block, and then find the pipe broken
    for unbuffered in ("", "1"):
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "kimberlite", "read"],
            env={
                **environment,
                "KIMBERLITE_ADDRESSES": ",".join(cluster.addresses),
                "PYTHONUNBUFFERED": unbuffered,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        ) as reader:
            assert reader.stdout is not None and reader.stderr is not None
            os.read(reader.stdout.fileno(), 1)
            reader.stdout.close()
            assert reader.wait(timeout=60) == 141, f"PYTHONUNBUFFERED={unbuffered}"
            assert reader.stderr.read() == b""


def test_progress_bar_on_a_terminal_only(start_cluster: Any, on_terminal: Any, small_lines: Path) -> None:
    cluster = start_cluster(1)
    code, output, shown = on_terminal("append", small_lines, addresses=cluster.addresses)
    assert (code, output) == (0, b"0 4999\n")
    assert b"appending" in shown
