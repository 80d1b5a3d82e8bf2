"""`read`: events to files and pipes. What it writes is what `append` reads (cli/append.py)."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO, Literal, NamedTuple

import click

from kimberlite._fast import events
from kimberlite.cli.common import (
    COUNT,
    addresses_option,
    cluster_option,
    connect,
    json_option,
    run,
    timeout_option,
)
from kimberlite.cli.sources import LENGTH
from kimberlite.client.aio import Log
from kimberlite.client.answers import Event
from kimberlite.errors import UsageError
from kimberlite.types import Bytes, ClusterId


def start_of(value: object) -> int | Literal["end"]:
    """A position, or the word `end`."""
    if value == "end":
        return "end"
    try:
        position = int(str(value))
    except ValueError:
        raise click.BadParameter(f"{value} is neither a position nor `end`.") from None
    return COUNT.convert(position, None, None)


def columns_of(value: object) -> tuple[str, ...]:
    """Names of columns, separated by commas."""
    names = tuple(str(value).split(","))
    if not set(names) <= {"time", "position"} or len(set(names)) < len(names):
        raise click.BadParameter(f"{value} is none of: time, position, time,position, position,time.")
    return names


@click.command(short_help="Print events exactly as they were appended.")
@addresses_option
@cluster_option
@click.option(
    "--from",
    "start",
    type=start_of,
    default=0,
    show_default=True,
    metavar="POSITION|end",
    help="Position of the first event; `end`: where the next one comes.",
)
@click.option("--only", is_flag=True, help="Read from these addresses alone, not from the members that they tell of.")
@click.option("--last", type=COUNT, help="Begin so many events before the end of the log.")
@click.option("--limit", type=COUNT, help="The most events to print; all there are when not given.")
@click.option("--follow", is_flag=True, help="Go on with events as they are committed, until Ctrl-C.")
@click.option("--binary", is_flag=True, help="A 32-bit little-endian length before each event, instead of lines.")
@click.option("--no-trailing-newline", is_flag=True, help="Newlines between events only, none after the last.")
@click.option(
    "--with",
    "columns",
    type=columns_of,
    metavar="time,position",
    help="What to print before each event, and a tab behind it: `time` of its operation (UTC), `position`, or both.",
)
@timeout_option(30.0, "How long to wait for an answer of any replica.")
@json_option
def read(
    addresses: tuple[str, ...],
    cluster: ClusterId | None,
    start: int | Literal["end"],
    only: bool,
    last: int | None,
    limit: int | None,
    follow: bool,
    binary: bool,
    no_trailing_newline: bool,
    columns: tuple[str, ...] | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Print events exactly as they were appended.

    The primary answers, or another replica, with what it knows to be committed; one address is
    enough to find them. With --json each event is an object with its position and its text, or its bytes as
    base64 when they are not UTF-8; --with time adds its time.
    """
    if last is not None and (start != 0 or limit is not None):
        raise UsageError("--last stands for a start and a limit of its own: give it without --from and --limit")
    if columns and (binary or no_trailing_newline):
        raise UsageError("--with prints lines for people: it does not go with --binary and --no-trailing-newline")
    log = connect(addresses, cluster, timeout, only)
    wanted = Wanted(start, last, limit, follow, timeout)
    if columns:
        pieces = event_by_event(log, wanted, choose_line(columns, as_json))
    else:
        pieces = batch_by_batch(log, wanted, choose_writer(binary, no_trailing_newline, as_json))
    run(print_all(log, pieces, follow))
    sys.stdout.buffer.flush()


Writer = Callable[[int, int, Bytes], bytes]


def choose_writer(binary: bool, no_trailing_newline: bool, as_json: bool) -> Writer:
    """A function from (position, count, batch body) to the bytes to print."""
    if as_json:
        return write_json
    if binary:
        return write_frames
    if no_trailing_newline:
        return BetweenNewlines()
    return write_lines


def write_lines(position: int, count: int, body: Bytes) -> bytes:
    return events.join(body, b"\n")


class BetweenNewlines:
    """Lines of which the last has no newline: each batch begins with the one owed by the batch before."""

    def __init__(self) -> None:
        self._owed = b""

    def __call__(self, position: int, count: int, body: Bytes) -> bytes:
        text = self._owed + events.join(body, b"\n")[:-1]
        self._owed = b"\n"
        return text


def write_frames(position: int, count: int, body: Bytes) -> bytes:
    return b"".join(LENGTH.pack(len(event)) + event for event in events.slice(body, 0, count))


def write_json(position: int, count: int, body: Bytes) -> bytes:
    return b"".join(
        json_line({"position": position + index}, event) for index, event in enumerate(events.slice(body, 0, count))
    )


def json_line(fields: Mapping[str, object], event: bytes) -> bytes:
    try:
        shown = {"event": event.decode()}
    except UnicodeDecodeError:
        shown = {"event_base64": base64.b64encode(event).decode()}
    return json.dumps({**fields, **shown}, ensure_ascii=False).encode() + b"\n"


def choose_line(columns: tuple[str, ...], as_json: bool) -> Callable[[Event], bytes]:
    """A function from an event to the line to print."""

    def line(event: Event) -> bytes:
        shown = {"time": time_text(event.timestamp), "position": str(event.position)}
        return "".join(shown[column] + "\t" for column in columns).encode() + event.data + b"\n"

    def line_of_json(event: Event) -> bytes:
        time = {"time": time_text(event.timestamp)} if "time" in columns else {}
        return json_line({"position": event.position, **time}, event.data)

    return line_of_json if as_json else line


def time_text(timestamp: int) -> str:
    """Nanoseconds since 1970 as ISO 8601, with all of them."""
    seconds, nanoseconds = divmod(timestamp, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def write_all(out: BinaryIO, data: Bytes) -> None:
    """Write everything. With PYTHONUNBUFFERED standard output is a bare file, whose `write` may stop half-way
    (a signal, a reader that goes away) and only says so."""
    rest = memoryview(data)
    while rest:
        rest = rest[out.write(rest) :]


class Wanted(NamedTuple):
    """Which events, and how long to wait for them."""

    start: int | Literal["end"]
    last: int | None
    limit: int | None
    follow: bool
    timeout: float


async def print_all(log: Log, pieces: AsyncIterator[bytes], follow: bool) -> None:
    """Print what comes, piece by piece; at once when somebody watches the log."""
    out = sys.stdout.buffer
    async with log:
        async for piece in pieces:
            write_all(out, piece)
            if follow:
                out.flush()


async def batch_by_batch(log: Log, wanted: Wanted, writer: Writer) -> AsyncIterator[bytes]:
    """The bytes of the events, as they come from the cluster."""
    async for position, count, body in log.read_batches(**wanted._asdict()):
        yield writer(position, count, body)


async def event_by_event(log: Log, wanted: Wanted, line: Callable[[Event], bytes]) -> AsyncIterator[bytes]:
    """With more than the bytes of each event."""
    start, last, limit, follow, timeout = wanted
    if follow:
        source = log.follow(start, last=last, timeout=timeout)
    elif start == "end":
        return
    else:
        source = log.read(start, last=last, limit=limit, timeout=timeout)
    left = limit
    while left != 0 and (found := await source.take()) is not None:
        lines = [line(event) for event in islice(found, left)]
        left = None if left is None else left - len(lines)
        yield b"".join(lines)
