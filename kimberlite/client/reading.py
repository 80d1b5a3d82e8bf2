"""Reading: the half of a client that asks and is answered, by any replica.

READs and STATUS questions, each answered by one frame that names it, on the connection on
which it went. Invariant: a read does not end before what this client knows to be in the log,
because it was acknowledged to it or because a replica said so. Thread rules: one event loop.
May import: errors, types, _fast, net.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from kimberlite._fast import events as event_batches
from kimberlite.errors import PositionError, UnavailableError
from kimberlite.net import READ_WAIT
from kimberlite.net.transport import FrameConnection
from kimberlite.types import Bytes, Command, Header, Message, Reason

READ_BYTES = 1 << 20
READ_RETRY_S = 0.05
ANSWER_TIMEOUT_S = 5.0  # a replica that says nothing for so long: ask another
FOLLOW_WAIT_NS = 2_000_000_000


class Reading:
    """The public methods of a client that read."""

    _reader: Reader

    async def read(
        self, start: int = 0, *, limit: int | None = None, timeout: float | None = None
    ) -> AsyncIterator[bytes]:
        """Events from `start` to the end of the log, or `limit` of them. Raises PositionError
        when `start` is beyond the end, or before `first`: retention took what was there.

        The end is that of the replica that answers, and never before what was acknowledged to
        this client or what an earlier read has shown. What other clients were acknowledged is
        there when the primary answers; when it can not be reached, another one may lag behind.
        """
        async for _, count, body in self.read_batches(start=start, limit=limit, timeout=timeout):
            for event in event_batches.slice(body, 0, count):
                yield event

    async def follow(self, start: int = 0, *, timeout: float | None = None) -> AsyncIterator[bytes]:
        """Events from `start` on, for ever: waits for new ones at the end of the log."""
        async for _, count, body in self.read_batches(start=start, follow=True, timeout=timeout):
            for event in event_batches.slice(body, 0, count):
                yield event

    async def read_batches(
        self, *, start: int = 0, limit: int | None = None, follow: bool = False, timeout: float | None = None
    ) -> AsyncIterator[tuple[int, int, Bytes]]:
        """(position, count, batch body) from `start` on: what `read` and `follow` are made of.

        timeout: seconds without any answer after which UnavailableError is raised.
        """
        position = start
        end = None if limit is None else start + limit
        while end is None or position < end:
            wanted = 0 if end is None else min(end - position, 0xFFFFFFFF)
            piece = await self._reader.read_once(position, wanted, follow, self._reader.seconds(timeout))
            if piece.events:
                if piece.position != position:
                    raise UnavailableError(f"asked for position {position}, got {piece.position}")
                yield position, piece.events, piece.body
                position += piece.events
            if not follow and position >= self._reader.end:
                return

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """What the primary, or else any replica, says of itself: see docs for the fields."""
        return await self._reader.status(self._reader.seconds(timeout))


class Reader:
    """Asks replicas and finds the answers' way back."""

    def __init__(
        self,
        *,
        connections: Mapping[int, FrameConnection],
        make_frame: Callable[..., Message],
        primary: Callable[[], int | None],
        random: Random,
        names: Sequence[str],
        timeout: float,
    ) -> None:
        """connections: of the replicas that have greeted, by index; the client keeps it up to date.
        primary: its index as far as known. names: addresses, for messages. timeout: seconds, the default.
        """
        self._connections = connections
        self._make_frame = make_frame
        self._primary = primary
        self._random = random
        self._names = names
        self._timeout = timeout
        self._answers: dict[bytes, _Answer] = {}  # by the checksum of the question
        self.end = 0  # so many events are in the log at least

    def seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def on_frame(self, header: Header, body: Bytes) -> bool:
        """Whether the frame answered one of our questions."""
        answer = self._answers.pop(header.context, None)
        if answer is None:
            return False
        if not answer.done():
            answer.set_result(Message(header, body))
        return True

    def on_lost(self, connection: FrameConnection) -> None:
        for key, answer in list(self._answers.items()):
            if answer.connection is connection:
                self._answers.pop(key, None)
                if not answer.done():
                    answer.set_exception(ConnectionResetError())

    def close(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(UnavailableError("the client was closed before the answer came"))
        self._answers.clear()

    async def read_once(self, position: int, count: int, follow: bool, timeout: float) -> _Piece:
        """One READ answered, by whichever replica can."""
        deadline = time.monotonic() + timeout
        problem = "no replica is connected"
        avoid: set[int] = set()
        while True:
            replica = self._choose_replica(avoid)
            if replica is None:
                avoid.clear()
                if time.monotonic() >= deadline:
                    raise UnavailableError(f"position {position} could not be read within {timeout} s: {problem}")
                await asyncio.sleep(READ_RETRY_S)
                continue
            request = self._make_frame(
                Command.READ,
                position=position,
                count=count,
                session=READ_BYTES,
                flags=READ_WAIT if follow else 0,
                timestamp=FOLLOW_WAIT_NS,
                nonce=self._random.getrandbits(63),
            )
            answer = await self._ask(replica, request, FOLLOW_WAIT_NS / 1e9 + ANSWER_TIMEOUT_S)
            if answer is None:
                problem = f"replica {replica} did not answer"
            elif answer.header.command == Command.READ_REPLY:
                header = answer.header
                self.end = max(self.end, header.timestamp)
                return _Piece(header.position, header.count, answer.body)
            elif answer.header.reason == Reason.POSITION_TRIMMED:
                first = answer.header.position
                raise PositionError(
                    f"position {position} was trimmed: the first position that the log still has is {first}",
                    position=position,
                    first=first,
                    end=None,
                )
            elif answer.header.reason == Reason.POSITION_BEYOND_END:
                log_end = self.end = max(self.end, answer.header.position)
                if position == log_end and not follow:
                    return _Piece(position, 0, b"")
                problem = f"the log has at least {log_end} events, replica {replica} {answer.header.position} by now"
                if position > log_end and len(avoid) + 1 >= len(self._connections) and not follow:
                    raise PositionError(
                        f"position {position} is beyond the end of the log, which has positions 0 to {log_end - 1}"
                        if log_end
                        else f"position {position} is beyond the end of the log, which is empty",
                        position=position,
                        first=0,
                        end=log_end,
                    )
            else:
                problem = f"replica {replica} refused: {Reason(answer.header.reason).name.lower()}"
            avoid.add(replica)

    def _choose_replica(self, avoid: set[int]) -> int | None:
        """The primary as far as known, for it is never behind; then any other."""
        candidates = [replica for replica in self._connections if replica not in avoid]
        if not candidates:
            return None
        primary = self._primary()
        return primary if primary in candidates else self._random.choice(candidates)

    async def _ask(self, replica: int, request: Message, timeout: float) -> Message | None:
        connection = self._connections.get(replica)
        if connection is None:
            return None
        answer = _Answer()
        answer.connection = connection
        self._answers[request.header.checksum] = answer
        connection.send(request)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except (TimeoutError, ConnectionError):
            return None
        finally:
            self._answers.pop(request.header.checksum, None)

    async def status(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            replica = self._choose_replica(set())
            if replica is not None:
                request = self._make_frame(Command.STATUS, nonce=self._random.getrandbits(63))
                answer = await self._ask(replica, request, min(ANSWER_TIMEOUT_S, timeout))
                if answer is not None and answer.header.command == Command.STATUS_REPLY:
                    document = json.loads(bytes(answer.body))
                    if isinstance(document, dict):
                        return document
            await asyncio.sleep(READ_RETRY_S)
        raise UnavailableError("no replica told its status in time", addresses=self._names)


class _Answer(asyncio.Future[Message]):
    """A future answer, and the connection on which it must come."""

    connection: FrameConnection | None = None


class _Piece(NamedTuple):
    """What one READ gave."""

    position: int
    events: int
    body: Bytes
