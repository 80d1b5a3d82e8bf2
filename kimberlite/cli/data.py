"""`append` and `read`: events from files and to pipes.

A line of text is an event without its newline. `read` puts a newline after every event,
so that a file of terminated lines comes back byte for byte. A file whose last line has
no newline holds the same events as one whose last line has one; `append` says so, and
`read --no-trailing-newline` gives such a file back. Events that contain newlines need
--binary: each event with its length before it, a little-endian 32-bit number.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import stat
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO, Literal

import click

import kimberlite
from kimberlite._fast import events
from kimberlite.cli.common import (
    CONNECT_TIMEOUT_S,
    COUNT,
    ProgressBar,
    addresses_option,
    bytes_text,
    json_option,
    note,
    print_json,
    run,
    timeout_option,
)
from kimberlite.client.reading import Event
from kimberlite.errors import EventTooLargeError, KimberliteError, UsageError
from kimberlite.types import Bytes

EVENT_BYTES_MAX = 1 << 20  # the default of limits.event_bytes_max; the cluster has the last word
BATCH_BYTES = (1 << 20) + (64 << 10)  # room for the largest event and its place in the table of offsets
BATCH_EVENTS = 65_536
CHUNK_BYTES = 8 << 20
PIPE_BYTES = 1 << 20
BATCHES_IN_FLIGHT = 8  # enough for one to be built and one to be on its way while others wait
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A request body, its number of events, and how many bytes of input it took."""

    body: bytes
    count: int
    consumed: int


@dataclass(slots=True)
class Appended:
    """What has been acknowledged so far."""

    events: int = 0
    bytes: int = 0
    first: int | None = None
    last: int | None = None


class LineSource:
    """Cuts lines into batches. `terminated` is False when the last line had no newline.

    feed: the input, piece by piece; gives every whole line of it. end: after the last piece.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = b""
        self._lines = 0
        self.terminated = True

    def feed(self, chunk: bytes) -> Iterator[EncodedBatch]:
        data = self._rest + chunk if self._rest else chunk
        start = 0
        while True:
            body, count, end = events.build_lines(data, start, BATCH_EVENTS, BATCH_BYTES)
            if count == 0:
                break
            try:
                events.validate(body, self._event_bytes_max)
            except EventTooLargeError:
                what = f"one of the lines {self._lines + 1} to {self._lines + count}"
                raise too_large(what, self._event_bytes_max) from None
            self._lines += count
            yield EncodedBatch(body, count, end - start)
            start = end
        self._rest = data[start:]
        if len(self._rest) > self._event_bytes_max:
            raise too_large(f"line {self._lines + 1}", self._event_bytes_max)

    def end(self) -> Iterator[EncodedBatch]:
        if self._rest:
            self.terminated = False
            yield EncodedBatch(events.build([self._rest]), 1, len(self._rest))

    def check(self, file: BinaryIO) -> None:
        """Look for a line above the limit before anything is sent, in a file that can be read twice.

        From the start of a line it looks for the last newline within the limit, so that it
        touches the file once and not every line of it.
        """
        limit = self._event_bytes_max
        window = b""
        start = 0
        at_end = False
        while True:
            if len(window) - start > limit:
                newline = window.rfind(b"\n", start, start + limit + 1)
                if newline < 0:
                    raise too_large("a line", limit)
                start = newline + 1
            elif at_end:
                break
            else:
                chunk = file.read(CHUNK_BYTES)
                at_end = not chunk
                window = window[start:] + chunk
                start = 0
        file.seek(0)


class FrameSource:
    """Cuts length-prefixed events into batches; used like LineSource."""

    terminated = True

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = b""
        self._events = 0

    def _take(self, chunk: bytes) -> Iterator[bytes]:
        """Every whole event of what has come."""
        data = self._rest + chunk if self._rest else chunk
        start = 0
        while len(data) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(data, start)
            if length > self._event_bytes_max:
                raise too_large(f"event {self._events + 1}, {length} bytes,", self._event_bytes_max)
            end = start + LENGTH.size + length
            if end > len(data):
                break
            self._events += 1
            yield data[start + LENGTH.size : end]
            start = end
        self._rest = data[start:]

    def feed(self, chunk: bytes) -> Iterator[EncodedBatch]:
        batch: list[bytes] = []
        size = 0
        for event in self._take(chunk):
            if batch and (size + len(event) > BATCH_BYTES or len(batch) >= BATCH_EVENTS):
                yield EncodedBatch(events.build(batch), len(batch), size)
                batch, size = [], 0
            batch.append(event)
            size += len(event) + LENGTH.size
        if batch:
            yield EncodedBatch(events.build(batch), len(batch), size)

    def end(self) -> Iterator[EncodedBatch]:
        if self._rest:
            raise UsageError(f"the input ends in the middle of event {self._events + 1}; is it in the --binary format?")
        return iter(())

    def check(self, file: BinaryIO) -> None:
        """Look through a file that can be read twice before anything is sent."""
        other = FrameSource(self._event_bytes_max)
        while chunk := file.read(CHUNK_BYTES):
            for _ in other._take(chunk):
                pass
        for _ in other.end():
            pass
        file.seek(0)


def too_large(what: str, limit: int) -> EventTooLargeError:
    return EventTooLargeError(
        f"{what} is above the limit of {limit} bytes for an event (limits.event_bytes_max)", limit=limit
    )


@click.command(short_help="Append events from a file, one per line.")
@addresses_option
@click.option("--binary", is_flag=True, help="Events with a 32-bit little-endian length before each, instead of lines.")
@timeout_option(30.0, "How long one batch may take before its outcome is called unknown.")
@json_option
@click.argument("file", type=click.File("rb"), default="-")
def append(addresses: tuple[str, ...], binary: bool, timeout: float, as_json: bool, file: BinaryIO) -> None:
    """Append events from FILE, one per line; `-` is standard input.

    Prints the positions of the first and the last event when the cluster has all of them
    durably. A file is checked against the limits first, so that a refusal appends nothing. When it
    fails in the middle, the message says how many events are known to be in the log.
    """
    source = FrameSource() if binary else LineSource()
    seekable = is_regular(file)
    if seekable:
        source.check(file)
    total = os.fstat(file.fileno()).st_size if seekable else None
    done = Appended()
    try:
        run(append_all(addresses, file, source, timeout, total, done))
    except KimberliteError as error:
        if done.events:
            raise type(error)(
                f"{error}; before that {done.events} events, positions {done.first} to {done.last}, were appended",
                **{**error.details, "appended": done.events},
            ) from None
        raise
    if as_json:
        print_json(
            {
                "events": done.events,
                "bytes": done.bytes,
                "first": done.first,
                "last": done.last,
                "terminated": source.terminated,
            }
        )
    elif done.events:
        click.echo(f"{done.first} {done.last}")
        note(f"{done.events} events, {bytes_text(done.bytes)}: positions {done.first} to {done.last}")
    else:
        note("no events")
    if not source.terminated and not as_json:
        note("the last line had no newline; `read --no-trailing-newline` gives the file back as it was")


async def append_all(
    addresses: tuple[str, ...],
    file: BinaryIO,
    source: LineSource | FrameSource,
    timeout: float,
    total: int | None,
    done: Appended,
) -> None:
    """Send all batches, a few at a time, and count what is acknowledged into `done`."""
    sent: asyncio.Queue[tuple[EncodedBatch, asyncio.Future[int]] | None] = asyncio.Queue()
    slots = asyncio.Semaphore(BATCHES_IN_FLIGHT)
    with ProgressBar("appending", total) as advance:
        async with kimberlite.connect(addresses, timeout=min(timeout, CONNECT_TIMEOUT_S)) as log:

            async def send(batches: Iterator[EncodedBatch]) -> None:
                for batch in batches:
                    await slots.acquire()
                    reply = asyncio.ensure_future(log.append_batch(batch.body, batch.count, timeout=timeout))
                    reply.add_done_callback(
                        lambda reply: reply.cancelled() or reply.exception()
                    )  # seen, if not awaited
                    sent.put_nowait((batch, reply))
                    await asyncio.sleep(0)  # let it leave while the next one is built

            async def send_all() -> None:
                try:
                    async for chunk in read_chunks(file):
                        await send(source.feed(chunk))
                    await send(source.end())
                finally:
                    sent.put_nowait(None)

            # By itself, so that a failure is seen at once, even while the input keeps us waiting.
            sender = asyncio.create_task(send_all())
            try:
                while (item := await sent.get()) is not None:
                    batch, reply = item
                    position = await reply
                    slots.release()
                    done.first = position if done.first is None else done.first
                    done.last = position + batch.count - 1
                    done.events += batch.count
                    done.bytes += batch.consumed
                    advance(batch.consumed)
                await sender
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)


async def read_chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    """The input, piece by piece. A pipe or a terminal gives what it has, and is waited for in the event
    loop, which has replies to read and requests to repeat meanwhile."""
    try:
        descriptor = file.fileno()
        mode = os.fstat(descriptor).st_mode
    except OSError:
        mode = stat.S_IFREG
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)):
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
        return
    if stat.S_ISFIFO(mode):
        with contextlib.suppress(OSError):  # one piece, one batch: as large as we may
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    loop = asyncio.get_running_loop()
    while True:
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(descriptor, readable.set_result, None)
        try:
            await readable
        finally:
            loop.remove_reader(descriptor)
        if not (chunk := os.read(descriptor, PIPE_BYTES)):
            return
        yield chunk


def is_regular(file: BinaryIO) -> bool:
    """Whether the file can be read twice."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.tell() == 0
    except OSError:
        return False


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
@click.option(
    "--from",
    "start",
    type=start_of,
    default=0,
    show_default=True,
    metavar="POSITION|end",
    help="Position of the first event; `end`: where the next one comes.",
)
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
    start: int | Literal["end"],
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

    Any replica answers, with what it knows to be committed. With one address, that replica is
    read. With --json each event is an object with its position and its text, or its bytes as
    base64 when they are not UTF-8; --with time adds its time.
    """
    if last is not None and (start != 0 or limit is not None):
        raise UsageError("--last stands for a start and a limit of its own: give it without --from and --limit")
    if columns and (binary or no_trailing_newline):
        raise UsageError("--with prints lines for people: it does not go with --binary and --no-trailing-newline")
    if columns:
        run(print_events(addresses, start, last, limit, follow, timeout, choose_line(columns, as_json)))
    else:
        writer = choose_writer(binary, no_trailing_newline, as_json)
        run(read_all(addresses, start, last, limit, follow, timeout, writer))
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


async def read_all(
    addresses: tuple[str, ...],
    start: int | Literal["end"],
    last: int | None,
    limit: int | None,
    follow: bool,
    timeout: float,
    writer: Writer,
) -> None:
    """Print batch by batch as they come from the cluster."""
    out = sys.stdout.buffer
    async with kimberlite.connect(addresses, timeout=min(timeout, CONNECT_TIMEOUT_S)) as log:
        batches = log.read_batches(start=start, last=last, limit=limit, follow=follow, timeout=timeout)
        async for position, count, body in batches:
            write_all(out, writer(position, count, body))
            if follow:
                out.flush()


async def print_events(
    addresses: tuple[str, ...],
    start: int | Literal["end"],
    last: int | None,
    limit: int | None,
    follow: bool,
    timeout: float,
    line: Callable[[Event], bytes],
) -> None:
    """Print event by event, with more than its bytes."""
    out = sys.stdout.buffer
    async with kimberlite.connect(addresses, timeout=min(timeout, CONNECT_TIMEOUT_S)) as log:
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
            write_all(out, b"".join(lines))
            if follow:
                out.flush()
