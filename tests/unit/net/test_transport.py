"""One connection: frames out of any cut of the byte stream, refusals, buffers, and the order of what is sent."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.errors import FrameError
from kimberlite.net import transport
from kimberlite.net.transport import (
    CHUNK_BYTES,
    CHUNK_BYTES_FIRST,
    FRAMES_PER_TURN,
    POOL_CHUNKS,
    ChunkPool,
    FrameConnection,
)
from kimberlite.types import HEADER_SIZE, Command, FrameReason, Message

CLUSTER = b"t" * 16


class Counted:
    def __init__(self) -> None:
        self.taken: list[int] = []
        self.bytes = 0
        self.refused: list[int] = []
        self.told: list[str] = []
        self.turns: list[str] = []
        self.sent: list[tuple[int, int]] = []
        self.dropped: list[str] = []

    def receiving(self) -> None:
        self.turns.append("receiving")

    def received(self, frames: Sequence[tuple[Any, memoryview]], size: int) -> None:
        self.taken += [header.command for header, _ in frames]
        self.bytes += size

    def handled(self) -> None:
        self.turns.append("handled")

    def request_rejected(self, reason: int) -> None:
        raise AssertionError("a connection knows no requests")

    def connection_refused(self, address: str, reason: str) -> None:
        self.told.append(reason)

    def frame_refused(self, reason: int) -> None:
        self.refused.append(reason)

    def message_sent(self, command: int, size: int) -> None:
        self.sent.append((command, size))

    def message_dropped(self, reason: str) -> None:
        self.dropped.append(reason)


class Wire:
    """A transport that never reaches a socket."""

    def __init__(self) -> None:
        self.closed = self.aborted = self.paused = False
        self.written: list[bytes] = []

    def get_extra_info(self, name: str) -> Any:
        return None

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.written))

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.written += [bytes(part) for part in parts]


class Receiver:
    """A connection whose bytes come from a test; it keeps what it was given."""

    def __init__(self, **options: Any) -> None:
        self.batches: list[list[tuple[Any, memoryview]]] = []
        self.errors: list[Exception | None] = []
        self.counters = Counted()
        self.connection = FrameConnection(
            on_frames=lambda connection, frames: self.batches.append(list(frames)),
            on_closed=lambda connection, error: self.errors.append(error),
            counters=self.counters,
            **options,
        )
        self.wire = Wire()
        self.connection.connection_made(self.wire)  # type: ignore[arg-type]

    def feed(self, data: bytes, piece: int | None = None) -> None:
        """As the event loop does: into get_buffer, then buffer_updated."""
        at = 0
        while at < len(data) and not self.wire.is_closing():
            buffer = self.connection.get_buffer(-1)
            assert len(buffer) > 0
            count = min(len(buffer), len(data) - at, piece or len(data))
            buffer[:count] = data[at : at + count]
            self.connection.buffer_updated(count)
            at += count

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        return [(header.op, bytes(body)) for batch in self.batches for header, body in batch]


def frame(op: int, body: bytes = b"", **fields: Any) -> bytes:
    fields = {"cluster": CLUSTER, "command": Command.PREPARE, "op": op, **fields}
    return bytes(make_header(body, **fields).raw) + body


# Receiving


def test_a_frame_is_found_however_it_is_cut() -> None:
    data = frame(1, b"x" * 300) + frame(2) + frame(3, b"y" * 17)
    expected = [(1, b"x" * 300), (2, b""), (3, b"y" * 17)]
    for cut in range(len(data) + 1):
        receiver = Receiver()
        receiver.feed(data[:cut])
        receiver.feed(data[cut:])
        assert receiver.frames == expected, cut


@pytest.mark.parametrize("piece", [1, 7, 255, 256, 257, 1000])
def test_frames_come_in_order_out_of_pieces_of_any_size(piece: int) -> None:
    rng = random.Random(piece)
    bodies = [rng.randbytes(rng.choice([0, 1, 100, 3000])) for _ in range(12)]
    receiver = Receiver()
    receiver.feed(b"".join(frame(op, body) for op, body in enumerate(bodies)), piece)
    assert receiver.frames == list(enumerate(bodies))
    assert receiver.connection.received_bytes == sum(HEADER_SIZE + len(body) for body in bodies)


def test_all_frames_of_one_wake_up_are_handed_over_together() -> None:
    receiver = Receiver()
    receiver.feed(b"".join(frame(op, b"b" * op) for op in range(100)))
    assert [len(batch) for batch in receiver.batches] == [100]
    assert receiver.counters.taken == [Command.PREPARE] * 100
    assert receiver.counters.bytes == sum(HEADER_SIZE + op for op in range(100))
    assert receiver.counters.turns == ["receiving", "handled"]


@pytest.mark.parametrize("size", [CHUNK_BYTES - HEADER_SIZE, CHUNK_BYTES, 3 * CHUNK_BYTES + 1, 3 << 20])
def test_a_frame_larger_than_a_chunk_gets_the_room_it_needs(size: int) -> None:
    body = random.Random(size).randbytes(size)
    receiver = Receiver()
    receiver.feed(frame(1, b"before") + frame(2, body) + frame(3, b"after"), 100_000)
    assert receiver.frames == [(1, b"before"), (2, body), (3, b"after")]


def test_bodies_stay_as_they_were_while_somebody_holds_them() -> None:
    """They are views of the receive buffer, which is used again only when no view is left."""
    rng = random.Random(5)
    receiver = Receiver()
    bodies = [rng.randbytes(40_000) for _ in range(60)]
    for op, body in enumerate(bodies):
        receiver.feed(frame(op, body), 16_000)
    assert receiver.frames == list(enumerate(bodies))
    assert all(body.readonly for batch in receiver.batches for _, body in batch)


def test_chunks_are_used_again_once_free() -> None:
    pool = ChunkPool()
    first = pool.take(100)
    identity = id(first)
    view = memoryview(first)
    pool.retire(first)
    del first
    assert id(pool.take(100)) != identity, "a view is left"
    del view
    assert id(pool.take(100)) == identity
    for _ in range(3 * POOL_CHUNKS):
        pool.retire(bytearray(10))
    assert len(pool._chunks) <= POOL_CHUNKS
    assert len(pool.take(11)) == 11, "too small ones are passed over"


# Refusals


@pytest.mark.parametrize("piece", [None, 1], ids=["at once", "byte by byte"])
def test_a_damaged_frame_closes_and_what_came_before_is_kept(piece: int | None) -> None:
    for at in range(HEADER_SIZE + 8):
        bad = bytearray(frame(2, b"damaged!"))
        bad[at] ^= 0x40
        receiver = Receiver()
        receiver.feed(frame(1, b"good") + bytes(bad) + frame(3), piece)
        assert receiver.frames == [(1, b"good")], at
        assert receiver.wire.closed
        receiver.connection.connection_lost(None)
        (error,) = receiver.errors
        assert isinstance(error, FrameError)
        assert receiver.counters.refused == [error.details["reason"]]
        assert receiver.counters.told == [FrameReason(error.details["reason"]).name.lower()]
        assert receiver.counters.bytes == HEADER_SIZE + 4


def test_a_frame_above_the_limit_is_refused_by_its_header_alone() -> None:
    receiver = Receiver(frame_max=1000)
    receiver.feed(frame(1, b"x" * (1000 - HEADER_SIZE)))
    receiver.feed(frame(2, b"x" * (1001 - HEADER_SIZE))[:HEADER_SIZE])
    assert receiver.frames == [(1, b"x" * (1000 - HEADER_SIZE))]
    receiver.connection.connection_lost(None)
    assert isinstance(receiver.errors[0], FrameError)
    assert receiver.errors[0].details["reason"] == FrameReason.BAD_SIZE


def test_a_frame_of_another_cluster_is_refused() -> None:
    receiver = Receiver(cluster=CLUSTER)
    receiver.feed(frame(1) + frame(2, cluster=b"u" * 16))
    assert receiver.frames == [(1, b"")]
    receiver.connection.connection_lost(None)
    assert isinstance(receiver.errors[0], FrameError)
    assert receiver.errors[0].details["reason"] == FrameReason.WRONG_CLUSTER


def test_nothing_is_taken_after_a_refusal() -> None:
    receiver = Receiver()
    receiver.feed(frame(1)[:-1] + b"\xff" + frame(2))
    buffer = receiver.connection.get_buffer(-1)
    data = frame(3)
    buffer[: len(data)] = data
    receiver.connection.buffer_updated(len(data))
    assert receiver.frames == []


def test_what_the_first_frame_allows_counts_for_the_second_in_the_same_wake_up() -> None:
    """A greeting lifts the limit; what comes with it may be large already."""
    receiver = Receiver(frame_max=1000)
    take = receiver.connection._on_frames

    def greeting(connection: FrameConnection, frames: Any) -> None:
        take(connection, frames)
        connection.frame_max = 100_000
        connection.cluster = CLUSTER

    receiver.connection._on_frames = greeting
    receiver.feed(frame(1) + frame(2, b"x" * 5000) + frame(3, cluster=b"u" * 16))
    assert receiver.frames == [(1, b""), (2, b"x" * 5000)]
    assert receiver.wire.closed, "the third is of another cluster"


def test_a_closed_connection_tells_its_owner_once_and_why() -> None:
    receiver = Receiver()
    problem = ConnectionResetError()
    assert not receiver.connection.eof_received(), "the transport closes itself"
    receiver.connection.connection_lost(problem)
    assert receiver.errors == [problem]
    assert not receiver.connection.is_open
    assert receiver.connection.queued_bytes == 0
    receiver.connection.send(Message(make_header(cluster=CLUSTER, command=Command.PING)))
    receiver.connection.close()
    receiver.connection.abort()
    assert receiver.counters.sent == []


# Sending, over a real socket pair


async def pair(**options: Any) -> tuple[FrameConnection, socket.socket, Counted]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    theirs.setblocking(False)
    counters = Counted()
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: FrameConnection(on_frames=lambda *_: None, counters=counters, **options), sock=ours
    )
    return connection, theirs, counters


def test_a_frame_leaves_at_once_when_the_socket_takes_it() -> None:
    async def main() -> None:
        connection, theirs, counters = await pair()
        connection.send(Message(make_header(b"body", cluster=CLUSTER, command=Command.PREPARE, op=1), b"body"))
        assert theirs.recv(1000) == frame(1, b"body")  # before the loop turns
        assert counters.sent == [(Command.PREPARE, HEADER_SIZE + 4)]
        connection.close()
        theirs.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_frames_keep_their_order_through_a_full_socket_and_nothing_is_lost() -> None:
    async def main() -> None:
        rng = random.Random(3)
        bodies = [rng.randbytes(rng.choice([0, 10, 5000, 200_000])) for _ in range(40)]
        connection, theirs, _ = await pair()
        expected = b""
        received = bytearray()
        loop = asyncio.get_running_loop()
        full = False
        for op, body in enumerate(bodies):
            connection.send(Message(make_header(body, cluster=CLUSTER, command=Command.PREPARE, op=op), body))
            expected += frame(op, body)
            full |= connection.queued_bytes > 0
            if op % 3 == 0:
                await asyncio.sleep(0)
            if op % 7 == 0:
                received += await loop.sock_recv(theirs, 1 << 16)
        assert full
        while len(received) < len(expected):
            received += await loop.sock_recv(theirs, 1 << 20)
        assert received == expected
        assert connection.queued_bytes == 0
        connection.close()
        theirs.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_what_is_queued_leaves_before_a_close() -> None:
    async def main() -> None:
        connection, theirs, _ = await pair()
        body = b"z" * 500_000
        connection.send(Message(make_header(body, cluster=CLUSTER, command=Command.PREPARE, op=1), body))
        connection.close()
        received = b""
        while data := await asyncio.get_running_loop().sock_recv(theirs, 1 << 20):
            received += data
        assert received == frame(1, body)
        theirs.close()

    asyncio.run(main())


def test_a_peer_that_is_gone_is_an_end_and_no_exception() -> None:
    async def main() -> None:
        connection, theirs, _ = await pair()
        theirs.close()
        for op in range(3):
            connection.send(Message(make_header(cluster=CLUSTER, command=Command.PREPARE, op=op)))
        while connection.transport is not None:
            await asyncio.sleep(0)
        assert not connection.is_open

    asyncio.run(main())


# Turns


class Turned(Receiver):
    """Its owner handles `allowed` frames of a turn and keeps the rest."""

    def __init__(self, allowed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.allowed = allowed
        self.connection._on_frames = self._take

    def _take(self, connection: FrameConnection, frames: Sequence[tuple[Any, memoryview]]) -> None:
        count = len(frames) if self.allowed is None else self.allowed
        self.batches.append(list(frames[:count]))
        if frames[count:]:
            connection.keep(frames[count:])


def test_of_what_comes_at_once_a_part_is_handled_in_a_turn_and_nothing_is_read_meanwhile() -> None:
    async def test() -> None:
        receiver = Turned(chunk_first=1 << 20)
        count = 2 * FRAMES_PER_TURN + 10
        receiver.feed(b"".join(frame(op) for op in range(count)))
        assert [len(batch) for batch in receiver.batches] == [FRAMES_PER_TURN]
        assert receiver.wire.paused
        await asyncio.sleep(0)
        assert [len(batch) for batch in receiver.batches] == [FRAMES_PER_TURN] * 2
        await asyncio.sleep(0)
        assert [op for op, _ in receiver.frames] == list(range(count))
        assert not receiver.wire.paused

    asyncio.run(test())


def test_large_frames_are_counted_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BYTES_PER_TURN", 100_000)

    async def test() -> None:
        receiver = Turned(chunk_first=1 << 20)
        receiver.feed(b"".join(frame(op, bytes(size)) for op, size in enumerate((200_000, 40_000, 40_000, 40_000))))
        for _ in range(4):
            await asyncio.sleep(0)
        assert [len(batch) for batch in receiver.batches] == [1, 2, 1]

    asyncio.run(test())


def test_what_the_owner_keeps_waits_for_it_and_stays_in_order() -> None:
    receiver = Turned(2)
    receiver.feed(b"".join(frame(op) for op in range(5)) + frame(5)[:100])
    assert receiver.connection.kept == 3
    receiver.feed(frame(5)[100:] + frame(6))  # what was on its way when reading was paused
    assert len(receiver.frames) == 2
    assert not receiver.connection.is_within_frame, "it is ours to go on"
    for _ in range(4):
        receiver.connection.go_on()
    assert [op for op, _ in receiver.frames] == list(range(7))
    assert not receiver.wire.paused


def test_bytes_that_are_no_frame_are_refused_after_what_is_kept() -> None:
    receiver = Turned(1)
    receiver.feed(frame(0) + frame(1) + bytes(300))
    assert receiver.counters.refused == []
    receiver.connection.go_on()
    assert [op for op, _ in receiver.frames] == [0, 1]
    assert receiver.counters.refused
    assert receiver.wire.closed


def test_nothing_is_handled_after_an_abort() -> None:
    receiver = Turned(1)
    receiver.feed(frame(0) + frame(1))
    receiver.connection.abort()
    receiver.connection.go_on()
    assert [op for op, _ in receiver.frames] == [0]


def test_what_goes_wrong_in_a_later_turn_breaks_the_connection_alone() -> None:
    async def test() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        receiver = Turned(1)
        receiver.feed(frame(0) + frame(1))

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        receiver.connection._on_frames = fail
        receiver.connection.go_on()
        assert receiver.wire.aborted
        assert "protocol" in told[0]

    asyncio.run(test())


# Memory


def test_announcing_a_large_frame_takes_no_more_than_twice_what_comes() -> None:
    receiver = Receiver(chunk_first=CHUNK_BYTES_FIRST, chunk_min=CHUNK_BYTES_FIRST)
    data = frame(1, bytes(4_000_000))
    held = [receiver.connection.memory_bytes]
    at = 0
    for piece in (256, 70_000, 300_000, 1_000_000):
        receiver.feed(data[at : at + piece], 60_000)
        at += piece
        held.append(receiver.connection.memory_bytes)
        assert held[-1] <= max(2 * at + 2 * CHUNK_BYTES_FIRST, CHUNK_BYTES_FIRST), held
    assert held[0] <= held[1] <= 32 << 10, "before and just after the announcement"
    receiver.feed(data[at:])
    assert [op for op, _ in receiver.frames] == [1]


def test_receive_buffers_grow_with_what_comes_at_a_time_and_shrink_when_idle() -> None:
    receiver = Receiver(chunk_first=CHUNK_BYTES_FIRST, chunk_min=CHUNK_BYTES_FIRST)
    for op in range(1000):  # one after the other
        receiver.feed(frame(op))
        receiver.batches.clear()
    assert receiver.connection.memory_bytes <= 4 * CHUNK_BYTES_FIRST
    receiver.feed(b"".join(frame(op) for op in range(8000)), 100_000)
    assert receiver.connection.get_buffer(-1).nbytes <= CHUNK_BYTES
    assert len(receiver.connection._chunk) == CHUNK_BYTES
    receiver.batches.clear()
    receiver.connection.shrink()
    assert receiver.connection.memory_bytes == CHUNK_BYTES_FIRST
    receiver.feed(frame(9000))
    assert receiver.frames == [(9000, b"")]


def test_a_closed_connection_holds_nothing() -> None:
    receiver = Receiver()
    receiver.feed(frame(1, bytes(1000))[:-1])
    receiver.connection.connection_lost(None)
    assert receiver.connection.memory_bytes == 0


def test_memory_is_looked_at_when_enough_has_come_together() -> None:
    looks: list[None] = []
    memory = transport.Memory(1000, lambda: looks.append(None))
    for _ in range(5):
        memory.grow(400)
    assert len(looks) == 1
