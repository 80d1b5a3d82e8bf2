"""One TCP connection that carries frames: bytes in, verified frames out, and back.

Receiving: the socket writes straight into a chunk; one call parses and verifies every whole frame
in it; bodies are views of the chunk, so nothing is copied. A chunk is used again only when
no view of it is left. A chunk is no larger than what was received asks for: who announces a large frame
gets room for it as it comes. Sending: frames are written at once while the socket takes them, and
queued by the transport when it does not; the queue is bounded by the caller's choice.

Turns: of what one wake-up brings, FRAMES_PER_TURN frames or BYTES_PER_TURN bytes are handed on, one frame at least;
the rest in later turns of the loop, after those of other connections, and nothing is read meanwhile.
The owner may keep frames back in the same way, until it lets the connection `go_on`.

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
from kimberlite.types import HEADER_SIZE, Bytes, ClusterId, Dropped, Ended, FrameReason, Header, Message, Reason

FRAMES_PER_TURN = 512
BYTES_PER_TURN = 4 << 20
CHUNK_BYTES_FIRST = 16 << 10  # of a connection that was accepted, until more comes at a time
CHUNK_BYTES = 256 << 10
CHUNK_BYTES_MAX = 8 << 20
WAKE_UPS_MIN = 4  # a chunk that lasts for fewer is followed by one of twice its size, up to CHUNK_BYTES
POOL_CHUNKS = 16  # enough for what a peer that lags keeps in its send queue
POOL_BYTES = 32 << 20
READ_MIN = 16 << 10  # room below which the socket gets another chunk
READ_MIN_FIRST = 2 << 10  # the same while the chunk is a small one


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
    def message_dropped(self, reason: Dropped) -> None: ...
    def request_rejected(self, reason: Reason) -> None:
        """A client was refused by its listener."""

    def frame_refused(self, reason: FrameReason) -> None:
        """Bytes that are no frame."""

    def connection_ended(self, reason: Ended) -> None:
        """A client was sent away."""

    def client_told(self, request: Header) -> None:
        """A request was answered that tells of appends before it: kimberlite.told."""

    def connection_refused(self, address: str, reason: str) -> None:
        """Whoever is at that address was sent away. For the log: nothing is counted."""


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

    def message_dropped(self, reason: Dropped) -> None:
        return None

    def request_rejected(self, reason: Reason) -> None:
        return None

    def frame_refused(self, reason: FrameReason) -> None:
        return None

    def connection_ended(self, reason: Ended) -> None:
        return None

    def client_told(self, request: Header) -> None:
        return None

    def connection_refused(self, address: str, reason: str) -> None:
        return None


class Memory:
    """What all connections of a process hold in receive buffers and in answers that were not taken yet.

    Only growth is counted as it happens; whoever owns the connections looks at them, with `check`, when `step` bytes
    have come together since it did the last time.
    """

    def __init__(self, step: int, check: Callable[[], None]) -> None:
        self._step = step
        self._check = check
        self._grown = 0

    def grow(self, size: int) -> None:
        self._grown += size
        if self._grown >= self._step:
            self._grown = 0
            self._check()


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

    @property
    def bytes(self) -> int:
        return sum(map(len, self._chunks))

    def retire(self, chunk: bytearray) -> None:
        self._chunks.append(chunk)
        while len(self._chunks) > POOL_CHUNKS or self.bytes > POOL_BYTES:
            self._chunks.pop(0)  # freed when its last view goes


class FrameConnection(asyncio.BufferedProtocol):
    """See the module docstring.

    on_frames(connection, frames): all frames of one wake-up, verified.
    on_closed(connection, error): once, with the FrameError when the peer broke the protocol.
    on_writable(connection): the other side has taken what made `is_congested` true.
    chunk_first: bytes of the first receive buffer, `chunk_min` of those that follow, which grow with what comes at a
    time when it is less than CHUNK_BYTES. memory: told of what is allocated.
    """

    def __init__(
        self,
        *,
        on_frames: Callable[[FrameConnection, Sequence[tuple[Header, memoryview]]], None],
        on_open: Callable[[FrameConnection], None] | None = None,
        on_closed: Callable[[FrameConnection, Exception | None], None] | None = None,
        on_writable: Callable[[FrameConnection], None] | None = None,
        cluster: ClusterId | None = None,
        frame_max: int = 4 << 20,
        chunk_first: int = CHUNK_BYTES,
        chunk_min: int = CHUNK_BYTES,
        memory: Memory | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._on_frames = on_frames
        self._on_open = on_open
        self._on_closed = on_closed
        self._on_writable = on_writable
        self.cluster = cluster
        self.frame_max = frame_max
        self.counters = counters or NullCounters()
        self.transport: asyncio.Transport | None = None
        self.peer = "?"
        self._fd = -1
        self._error: Exception | None = None
        self._memory = memory
        self._pool = ChunkPool()
        self._chunk = bytearray(chunk_first)
        self._view = memoryview(self._chunk)
        self.chunk_min = chunk_min
        self._wake_ups = 0  # since the chunk was begun
        self._read_min = READ_MIN if chunk_first > READ_MIN else READ_MIN_FIRST
        self._start = 0  # of the first frame not yet parsed
        self._end = 0  # of what has been received
        self._need = 0  # size of the incomplete frame at _start, 0 when unknown
        self._largest = 0  # of the frames that came in several pieces
        self.received_bytes = 0
        self._kept: list[tuple[Header, memoryview]] = []  # parsed, to be handed on in a later turn
        self._is_held = False  # there is something kept, or the peer broke the protocol
        self._deferred = False  # bytes were given to the transport in this turn of the loop
        self.is_congested = False  # so much waits for the other side that it should get no more
        self._queued = 0  # bytes that were given to the transport in all, because the socket did not take them

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
        if room < self._read_min or (self._start and self._need and self._start + self._need > len(self._chunk)):
            self._next_chunk()
        return self._view[self._end :]

    def _next_chunk(self) -> None:
        """Move the incomplete frame to the head of another chunk."""
        partial = self._end - self._start
        if self._wake_ups < WAKE_UPS_MIN and self.chunk_min < CHUNK_BYTES:
            self.chunk_min *= 2
        self._wake_ups = 0
        if self._need > self._largest:  # announced, but none of that size has ever come
            size = max(self.chunk_min, min(2 * partial, self._need + self._read_min))
        else:
            several = min(4 * self._need, CHUNK_BYTES_MAX)
            size = max(self.chunk_min, several, self._need + READ_MIN, len(self._chunk))
        old = self._view[self._start : self._end]
        chunk = self._pool.take(size)
        view = memoryview(chunk)
        view[:partial] = old
        retired, self._chunk, self._view = self._chunk, chunk, view
        del old
        self._read_min = READ_MIN if len(chunk) > READ_MIN else READ_MIN_FIRST
        if len(retired) >= len(chunk):  # a smaller one is not taken again
            self._pool.retire(retired)
        if self._memory is not None:
            self._memory.grow(len(chunk))
        self._start, self._end = 0, partial

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        self.received_bytes += nbytes
        self._wake_ups += 1
        if self._is_held or self._end - self._start < max(self._need, HEADER_SIZE):
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
        began, whole = self._start, self._need
        refusal: FrameError | None = None
        try:
            frames, self._start, self._need = framing.parse(
                self._chunk, self._start, self._end, self.frame_max, self.cluster
            )
        except FrameError as error:
            frames = cast("list[tuple[framing.Header, memoryview]]", error.details["frames"])
            self._start += sum(header.size for header, _ in frames)
            refusal = error
        size = self._start - began
        if frames and whole > self._largest:
            self._largest = whole
        self.counters.received(frames, size)
        if len(frames) > FRAMES_PER_TURN or size > BYTES_PER_TURN:
            self._hand_on(frames)
        elif frames:
            self._on_frames(self, frames)
        if refusal is None:
            return False
        if (self.frame_max, self.cluster) != limits and self.is_open and not self._is_held:
            return True  # a greeting has lifted the limit for what came behind it
        if self._kept and self.is_open:
            self._need = 0
            return False  # looked at again behind what is kept
        self._error = refusal
        self._is_held = True
        reason = cast(FrameReason, refusal.details["reason"])
        self.counters.frame_refused(reason)
        self.counters.connection_refused(self.peer, FrameReason(reason).name.lower())
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

    def shrink(self) -> None:
        """Give back receive buffers that an idle connection does not need."""
        if self._end == self._start and not self._is_held and len(self._chunk) > CHUNK_BYTES_FIRST:
            self._chunk, self._pool = bytearray(CHUNK_BYTES_FIRST), ChunkPool()
            self.chunk_min = CHUNK_BYTES_FIRST
            self._view = memoryview(self._chunk)
            self._read_min = READ_MIN_FIRST
            self._start = self._end = 0

    # Turns

    def _hand_on(self, frames: Sequence[tuple[Header, memoryview]]) -> None:
        """As much as one turn of the loop allows. The rest waits for the next, behind other connections."""
        count = size = 0
        for header, _ in frames[:FRAMES_PER_TURN]:
            size += header.size
            if count and size > BYTES_PER_TURN:
                break
            count += 1
        self._on_frames(self, frames[:count])
        if count < len(frames) and self.is_open:
            if not self._kept:
                asyncio.get_running_loop().call_soon(self.go_on)
            self.keep(frames[count:])

    def keep(self, frames: Sequence[tuple[Header, memoryview]]) -> None:
        """Called by the owner while it is handed frames: these are for a later turn, which begins with `go_on`.
        Nothing is read until then."""
        self._kept += frames
        self._is_held = True
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    @property
    def kept(self) -> int:
        """Frames that wait for `go_on`."""
        return len(self._kept)

    def go_on(self) -> None:
        """Hand on what was kept, and read on when that was all."""
        frames, self._kept = self._kept, []
        if not self.is_open or self._error is not None:
            return
        self.counters.receiving()
        try:
            if frames:
                self._hand_on(frames)
            if not self._kept:
                self._is_held = False
                while self._take_frames():
                    pass
        except Exception as error:  # as the loop does it with what is raised while it reads
            context = {"message": "frames were not handled", "exception": error, "protocol": self}
            asyncio.get_running_loop().call_exception_handler(context)
            self.abort()
        self.counters.handled()
        if self._error is not None:
            self.close()
        elif not self._is_held and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._fd = -1
        if self._on_closed is not None:
            self._on_closed(self, self._error or exc)
        # Whoever still knows this connection shall not keep what it held.
        self._chunk, self._pool, self._kept = bytearray(), ChunkPool(), []
        self._view = memoryview(self._chunk)
        self._start = self._end = 0

    # Sending

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    @property
    def queued_bytes(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    @property
    def memory_bytes(self) -> int:
        """Of receive buffers, and of what the socket has not taken."""
        return len(self._chunk) + self._pool.bytes + self.queued_bytes

    @property
    def is_within_frame(self) -> bool:
        """Whether the other side has begun a frame and owes the rest of it."""
        return self._end > self._start and not self._is_held

    @property
    def parsed_bytes(self) -> int:
        """Received and no longer part of an incomplete frame; grows with every frame that gets whole."""
        return self.received_bytes - (self._end - self._start)

    @property
    def put_bytes(self) -> int:
        """Given to the transport in all, because the socket did not take it at once."""
        return self._queued

    @property
    def taken_bytes(self) -> int:
        """Of `put_bytes`: what the socket has taken since."""
        return self._queued - self.queued_bytes

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
        size = sum(map(len, parts))
        self._queued += size
        if self._memory is not None:
            self._memory.grow(size)
        transport.writelines(parts)

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        if self._on_writable is not None:
            self._on_writable(self)

    def _undefer(self) -> None:
        self._deferred = False

    def close(self) -> None:
        """Close when what is queued has left."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
