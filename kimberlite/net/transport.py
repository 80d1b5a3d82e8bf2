"""One TCP connection that carries frames: bytes in, verified frames out, and back.

Receiving: the socket writes straight into a chunk; one call parses and verifies every whole frame
in it; bodies are views of the chunk, so nothing is copied. A chunk is used again only when
no view of it is left. Sending: frames are written at once while the socket takes them, and
queued by the transport when it does not; the queue is bounded by the caller's choice.

Thread rules: one event loop. May import: errors, types, _fast.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from kimberlite._fast import framing
from kimberlite.errors import FrameError
from kimberlite.types import HEADER_SIZE, Bytes, ClusterId, Header, Message

CHUNK_BYTES = 256 << 10
CHUNK_BYTES_MAX = 8 << 20
POOL_CHUNKS = 16  # enough for what a peer that lags keeps in its send queue
POOL_BYTES = 32 << 20
READ_MIN = 16 << 10  # room below which the socket gets another chunk


def _references(chunks: list[bytearray], index: int) -> int:
    chunk = chunks[index]
    return sys.getrefcount(chunk)


# References to a chunk that nobody views: measured, for it depends on the interpreter.
_UNSHARED = _references([bytearray()], 0)


class Counters(Protocol):
    """Where a connection counts; see telemetry. Numbers are exact, calls are cheap.

    Around what one wake-up brings: `receiving` before parsing, `received` with all its frames
    and their bytes, `handled` after they have been handed on.
    """

    def receiving(self) -> None: ...
    def received(self, frames: Sequence[tuple[Header, memoryview]], size: int) -> None: ...
    def handled(self) -> None: ...
    def message_sent(self, command: int, size: int) -> None: ...
    def message_dropped(self, reason: str) -> None: ...
    def request_rejected(self, reason: int) -> None:
        """A client was refused by its listener; `reason` is a types.Reason."""

    def frame_refused(self, reason: int) -> None:
        """Bytes that are no frame; `reason` is a types.FrameReason."""


class NullCounters:
    """Counts nothing: clients, tests."""

    def receiving(self) -> None:
        return None

    def received(self, frames: Sequence[tuple[Header, memoryview]], size: int) -> None:
        return None

    def handled(self) -> None:
        return None

    def message_sent(self, command: int, size: int) -> None:
        return None

    def message_dropped(self, reason: str) -> None:
        return None

    def request_rejected(self, reason: int) -> None:
        return None

    def frame_refused(self, reason: int) -> None:
        return None


class ChunkPool:
    """Receive buffers of one connection. Retired chunks wait until their views are gone."""

    def __init__(self) -> None:
        self._chunks: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """A chunk of at least `size` bytes; its content is arbitrary."""
        for index in range(len(self._chunks)):  # enumerate would keep a reference of its own
            if len(self._chunks[index]) >= size and _references(self._chunks, index) <= _UNSHARED:
                return self._chunks.pop(index)
        return bytearray(size)

    def retire(self, chunk: bytearray) -> None:
        self._chunks.append(chunk)
        while len(self._chunks) > POOL_CHUNKS or sum(map(len, self._chunks)) > POOL_BYTES:
            self._chunks.pop(0)  # freed when its last view goes


class FrameConnection(asyncio.BufferedProtocol):
    """See the module docstring.

    on_frames(connection, frames): all frames of one wake-up, verified.
    on_closed(connection, error): once, with the FrameError when the peer broke the protocol.
    """

    def __init__(
        self,
        *,
        on_frames: Callable[[FrameConnection, Sequence[tuple[Header, memoryview]]], None],
        on_open: Callable[[FrameConnection], None] | None = None,
        on_closed: Callable[[FrameConnection, Exception | None], None] | None = None,
        cluster: ClusterId | None = None,
        frame_max: int = 4 << 20,
        counters: Counters | None = None,
    ) -> None:
        self._on_frames = on_frames
        self._on_open = on_open
        self._on_closed = on_closed
        self.cluster = cluster
        self.frame_max = frame_max
        self.counters = counters or NullCounters()
        self.transport: asyncio.Transport | None = None
        self.peer = "?"
        self._fd = -1
        self._error: Exception | None = None
        self._pool = ChunkPool()
        self._chunk = bytearray(CHUNK_BYTES)
        self._view = memoryview(self._chunk)
        self._start = 0  # of the first frame not yet parsed
        self._end = 0  # of what has been received
        self._need = 0  # size of the incomplete frame at _start, 0 when unknown
        self.received_bytes = 0
        self._deferred = False  # bytes were given to the transport in this turn of the loop

    # Receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._fd = socket.fileno()
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = f"{name[0]}:{name[1]}"
        if self._on_open is not None:
            self._on_open(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        room = len(self._chunk) - self._end
        if room < READ_MIN or (self._need and self._start + self._need > len(self._chunk)):
            self._next_chunk()
        return self._view[self._end :]

    def _next_chunk(self) -> None:
        """Move the incomplete frame to the head of another chunk."""
        partial = self._end - self._start
        size = max(CHUNK_BYTES, min(4 * self._need, CHUNK_BYTES_MAX), self._need + READ_MIN, len(self._chunk))
        old = self._view[self._start : self._end]
        chunk = self._pool.take(size)
        view = memoryview(chunk)
        view[:partial] = old
        retired, self._chunk, self._view = self._chunk, chunk, view
        del old
        self._pool.retire(retired)
        self._start, self._end = 0, partial

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        self.received_bytes += nbytes
        if self._error is not None or self._end - self._start < max(self._need, HEADER_SIZE):
            return
        self.counters.receiving()
        while self._take_frames():
            pass
        self.counters.handled()
        if self._error is not None:
            self.close()

    def _take_frames(self) -> bool:
        """Hand on all whole frames; true when there may be more: what was refused is allowed by now."""
        limits = self.frame_max, self.cluster
        began = self._start
        refusal: FrameError | None = None
        try:
            frames, self._start, self._need = framing.parse(
                self._chunk, self._start, self._end, self.frame_max, self.cluster
            )
        except FrameError as error:
            frames = cast("list[tuple[framing.Header, memoryview]]", error.details["frames"])
            self._start += sum(header.size for header, _ in frames)
            refusal = error
        self.counters.received(frames, self._start - began)
        if frames:
            self._on_frames(self, frames)
        if refusal is None:
            return False
        if (self.frame_max, self.cluster) != limits and self.is_open:
            return True  # a greeting has lifted the limit for what came behind it
        self._error = refusal
        self.counters.frame_refused(cast(int, refusal.details["reason"]))
        return False

    @property
    def head(self) -> bytes:
        """The first bytes that have arrived and were no frame: what is spoken there instead."""
        return bytes(self._view[self._start : min(self._end, self._start + 16)])

    @property
    def has_unread(self) -> bool:
        """Whether the socket holds something, its end perhaps, that the event loop has not read yet."""
        if self._fd < 0:
            return False
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._fd = -1
        if self._on_closed is not None:
            self._on_closed(self, self._error or exc)

    # Sending

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    @property
    def queued_bytes(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def send(self, message: Message) -> None:
        """Send a frame. The body must not change until it has left."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        header, body = message.header, message.body
        self.counters.message_sent(header.command, header.size)
        parts: list[Bytes] = [header.raw, body] if len(body) else [header.raw]
        if not self._deferred and transport.get_write_buffer_size() == 0 and self._fd >= 0:
            # Straight to the socket: it leaves now, before whatever this turn of the loop still does.
            try:
                written = os.writev(self._fd, parts)
            except BlockingIOError:
                written = 0
            except OSError:
                self.abort()
                return
            if written == header.size:
                return
            if written:
                rest = memoryview(header.raw + bytes(body))[written:] if written < HEADER_SIZE else None
                parts = [rest] if rest is not None else [memoryview(body)[written - HEADER_SIZE :]]
        # The transport writes at the end of this turn of the loop, and until then its buffer size
        # does not count these bytes: what follows must queue behind them.
        if not self._deferred:
            self._deferred = True
            asyncio.get_running_loop().call_soon(self._undefer)
        transport.writelines(parts)

    def _undefer(self) -> None:
        self._deferred = False

    def close(self) -> None:
        """Close when what is queued has left."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
