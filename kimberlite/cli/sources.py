"""What `append` reads: lines, or events with their lengths, cut into batches.

May import: errors, _fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from kimberlite._fast import events
from kimberlite.errors import EventTooLargeError, UsageError

EVENT_BYTES_MAX = 1 << 20  # the default of limits.event_bytes_max; the cluster has the last word
BATCH_BYTES = (1 << 20) + (64 << 10)  # room for the largest event and its place in the table of offsets
BATCH_EVENTS = 65_536
CHUNK_BYTES = 8 << 20
PIPE_BYTES = 1 << 20
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A request body, its number of events, how many bytes of input it took, and the number of its first event: of
    its line, from 1."""

    body: bytes
    count: int
    consumed: int
    number: int


class LineSource:
    """Cuts lines into batches. `terminated` is False when the last line had no newline.

    feed: the input, piece by piece; gives every whole line of it. end: after the last piece.
    """

    noun = "line"

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
            except EventTooLargeError as error:
                number = self._lines + 1 + (error.index or 0)
                raise too_large(self.noun, number, error.size or 0, self._event_bytes_max) from None
            yield EncodedBatch(body, count, end - start, self._lines + 1)
            self._lines += count
            start = end
        self._rest = data[start:]
        if len(self._rest) > self._event_bytes_max:
            newline = self._rest.find(b"\n")
            size = newline if newline >= 0 else len(self._rest)
            raise too_large(self.noun, self._lines + 1, size, self._event_bytes_max, whole=newline >= 0)

    def end(self) -> Iterator[EncodedBatch]:
        if self._rest:
            self.terminated = False
            yield EncodedBatch(events.build([self._rest]), 1, len(self._rest), self._lines + 1)

    def check(self, file: BinaryIO) -> None:
        """Look for a line above the limit before anything is sent, in a file that can be read twice.

        From the start of a line it looks for the last newline within the limit, so that it
        touches the file once and not every line of it.
        """
        limit = self._event_bytes_max
        window = b""
        offset = 0  # of the window in the file
        start = 0
        at_end = False
        while True:
            if len(window) - start > limit:
                newline = window.rfind(b"\n", start, start + limit + 1)
                if newline < 0:
                    raise too_large(self.noun, *locate(file, offset + start), limit)
                start = newline + 1
            elif at_end:
                break
            else:
                chunk = file.read(CHUNK_BYTES)
                at_end = not chunk
                window = window[start:] + chunk
                offset += start
                start = 0
        file.seek(0)


def locate(file: BinaryIO, offset: int) -> tuple[int, int]:
    """Number and size of the line that begins at that offset. Leaves the file somewhere."""
    file.seek(0)
    number = 1
    left = offset
    while left and (chunk := file.read(min(left, CHUNK_BYTES))):
        number += chunk.count(b"\n")
        left -= len(chunk)
    file.seek(offset)
    size = 0
    while chunk := file.read(CHUNK_BYTES):
        newline = chunk.find(b"\n")
        if newline >= 0:
            return number, size + newline
        size += len(chunk)
    return number, size


class FrameSource:
    """Cuts length-prefixed events into batches; used like LineSource."""

    noun = "event"
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
                raise too_large(self.noun, self._events + 1, length, self._event_bytes_max)
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
        number = self._events + 1
        for event in self._take(chunk):
            if batch and (size + len(event) > BATCH_BYTES or len(batch) >= BATCH_EVENTS):
                yield EncodedBatch(events.build(batch), len(batch), size, number)
                number += len(batch)
                batch, size = [], 0
            batch.append(event)
            size += len(event) + LENGTH.size
        if batch:
            yield EncodedBatch(events.build(batch), len(batch), size, number)

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


def too_large(noun: str, number: int, size: int, limit: int, whole: bool = True) -> EventTooLargeError:
    """number: from 1. whole: else it is longer than `size`, which has come so far."""
    bytes_text = f"{size} bytes" if whole else f"at least {size} bytes"
    return EventTooLargeError(
        f"{noun} {number} has {bytes_text}, above the limit of {limit} bytes for an event (limits.event_bytes_max)",
        index=number - 1,
        size=size,
        limit=limit,
    )


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
