"""The asyncio client: connections, timers and futures around one sans-I/O Session.

    async with kimberlite.connect(["h1:7100", "h2:7100", "h3:7100"]) as log:
        position = await log.append([b"one", b"two"], timeout=2.0)
        async for event in log.read(start=position): ...

Appends made at the same time travel together. They go to the primary, wherever it is by
now; reads are served by any replica, by the primary when it can be reached. Invariant: a read
does not end before what this client knows to be in the log, because it was acknowledged to it
or because a replica said so. Thread rules: one event loop.
May import: errors, types, config (addresses), _fast, net, client.session.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from random import Random
from types import TracebackType
from typing import Any, NamedTuple

from kimberlite._fast import events as event_batches
from kimberlite._fast import framing
from kimberlite.client.session import Session
from kimberlite.config import parse_address, parse_cluster_id
from kimberlite.errors import (
    KimberliteError,
    OutcomeUnknownError,
    PositionError,
    UnavailableError,
    UsageError,
    WrongClusterError,
)
from kimberlite.net import READ_WAIT
from kimberlite.net.peers import keep_alive
from kimberlite.net.transport import FrameConnection
from kimberlite.types import ZERO16, Bytes, ClientId, Command, Header, Message, Reason

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
PRIMARY_WAIT_S = 0.2  # once a replica has greeted, so long for the primary to do so, too
DIAL_FIRST_S = 0.02
DIAL_MAX_S = 0.5
READ_BYTES = 1 << 20
READ_RETRY_S = 0.05
ANSWER_TIMEOUT_S = 5.0  # a replica that says nothing for so long: ask another
FOLLOW_WAIT_NS = 2_000_000_000


class Log:
    """A connection to a cluster. Use `async with`; see connect()."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        cluster: str | None = None,
        timeout: float = TIMEOUT_S,
        request_bytes_max: int = 2 << 20,
        events_max: int = 65_536,
    ) -> None:
        if not addresses:
            raise UsageError("connect needs the address of at least one replica")
        self._addresses = [parse_address(address) for address in addresses]
        self._names = list(addresses)
        self._cluster = parse_cluster_id(cluster) if cluster is not None else ZERO16
        self._timeout = timeout
        self._request_bytes_max = request_bytes_max
        self._events_max = events_max
        self._client_id: ClientId = secrets.token_bytes(16)
        self._random = Random(secrets.randbits(64))
        self._session: Session | None = None
        self._replicas: dict[int, FrameConnection] = {}
        self._failed: set[int] = set()  # indexes of the addresses that can not be reached
        self._end = 0  # so many events are in the log at least
        self._futures: dict[int, asyncio.Future[int]] = {}
        self._answers: dict[bytes, asyncio.Future[Message]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._flush_scheduled = False
        self._ready: asyncio.Event | None = None
        self._refusal: KimberliteError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # Life

    async def __aenter__(self) -> Log:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._tasks = [asyncio.create_task(self._dial(index)) for index in range(len(self._addresses))]
        try:
            async with asyncio.timeout(self._timeout):
                await self._ready.wait()
        except TimeoutError:
            await self._stop()
            raise UnavailableError(
                f"none of {', '.join(self._names)} answered within {self._timeout} s; check that the cluster runs "
                "and that these are its client addresses",
                addresses=self._names,
            ) from None
        if self._session is None:
            await self._stop()
            raise self._refusal or UnavailableError("no replica let this client in")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._timer is not None:
            self._timer.cancel()
        for connection in self._replicas.values():
            connection.close()
        self._replicas.clear()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(
                    OutcomeUnknownError("the client was closed while the append was under way: its outcome is unknown")
                )
                future.exception()  # nobody has to look at it any more
        self._futures.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(UnavailableError("the client was closed before the answer came"))
        self._answers.clear()

    async def _dial(self, index: int) -> None:
        """Keep a connection to one address; the name is resolved on every attempt."""
        loop = asyncio.get_running_loop()
        host, port = self._addresses[index]
        delay = DIAL_FIRST_S
        while True:
            closed: asyncio.Future[None] = loop.create_future()

            def finish(_: FrameConnection, error: Exception | None, closed: asyncio.Future[None] = closed) -> None:
                if not closed.done():
                    closed.set_result(None)

            try:
                # Not wait_for: in Python 3.11 that loses a cancellation in the moment when the attempt ends.
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    _, connection = await loop.create_connection(
                        lambda finish=finish: FrameConnection(  # type: ignore[misc]
                            on_frames=self._on_frames, on_open=keep_alive, on_closed=finish
                        ),
                        host,
                        port,
                    )
            except OSError:
                self._failed.add(index)
                self._look_for_primary()
            else:
                self._failed.discard(index)
                connection.send(self._frame(Command.HELLO))
                try:
                    await closed
                finally:
                    connection.close()  # when we are stopped before it has greeted us, nobody else knows it
                self._on_lost(connection)
                if connection.received_bytes:
                    delay = DIAL_FIRST_S
            await asyncio.sleep(delay * (0.5 + self._random.random()))
            delay = min(2 * delay, DIAL_MAX_S)

    def _on_lost(self, connection: FrameConnection) -> None:
        for replica, known in list(self._replicas.items()):
            if known is connection:
                del self._replicas[replica]
                if self._session is not None:
                    self._session.disconnected(replica, time.monotonic_ns())
                    self._pump()
        for key, answer in list(self._answers.items()):
            if getattr(answer, "connection", None) is connection:
                self._answers.pop(key, None)
                if not answer.done():
                    answer.set_exception(ConnectionResetError())

    def _frame(self, command: Command, **fields: Any) -> Message:
        return Message(framing.make_header(cluster=self._cluster, command=command, client=self._identity, **fields))

    @property
    def _identity(self) -> ClientId:
        return self._session.client_id if self._session is not None else self._client_id

    # Frames

    def _on_frames(self, connection: FrameConnection, frames: Sequence[tuple[Header, memoryview]]) -> None:
        now = time.monotonic_ns()
        for header, body in frames:
            if header.command == Command.HELLO:
                self._on_hello(connection, header, now)
                continue
            answer = self._answers.pop(header.context, None)
            if answer is not None:
                if not answer.done():
                    answer.set_result(Message(header, body))
            elif header.command == Command.REJECT and self._session is None:
                self._refuse(header)
            elif self._session is not None:
                self._session.step(Message(header, body), now)
        self._pump()

    def _on_hello(self, connection: FrameConnection, header: Header, now: int) -> None:
        if self._session is None:
            self._cluster = header.cluster
            self._session = Session(
                make_header=framing.make_header,
                cluster=header.cluster,
                client_id=self._client_id,
                replica_count=header.count,
                seed=self._random.getrandbits(64),
                request_bytes_max=self._request_bytes_max,
                events_max=self._events_max,
                new_client_id=lambda: secrets.token_bytes(16),
            )
        elif header.cluster != self._cluster:
            connection.close()
            return
        connection.cluster = self._cluster
        self._replicas[header.replica] = connection
        self._session.step(Message(header), now)
        self._session.connected(header.replica, now)
        self._look_for_primary()

    def _look_for_primary(self) -> None:
        """Ready is who has met the primary, or whoever there is. Another replica may not have applied yet
        what was acknowledged a moment ago, and the first read shall find that."""
        session, ready = self._session, self._ready
        if session is None or ready is None or ready.is_set() or self._loop is None:
            return
        met = len(self._replicas)
        if session.view % session.replica_count in self._replicas or met + len(self._failed) >= len(self._addresses):
            ready.set()
        elif met == 1:
            self._loop.call_later(PRIMARY_WAIT_S, ready.set)

    def _refuse(self, header: Header) -> None:
        """A replica did not let us in."""
        reason = Reason(header.reason)
        if reason == Reason.WRONG_CLUSTER:
            self._refusal = WrongClusterError(
                f"these replicas are of cluster {header.cluster.hex()}, not of {self._cluster.hex()}: nothing was sent",
                cluster=header.cluster.hex(),
            )
        else:
            self._refusal = UnavailableError(f"a replica refused the connection: {reason.name.lower()}")
        if self._ready is not None:
            self._ready.set()

    def _pump(self) -> None:
        """Carry out what the session asks for, and set its timer."""
        session = self._session
        if session is None or self._loop is None:
            return
        sends, done = session.take_output()
        for replica, message in sends:
            connection = self._replicas.get(replica)
            if connection is not None:
                connection.send(message)
        for outcome in done:
            future = self._futures.pop(outcome.handle, None)
            if future is not None and not future.done():
                if outcome.error is not None:
                    future.set_exception(outcome.error)
                else:
                    self._end = max(self._end, outcome.position + outcome.count)
                    future.set_result(outcome.position)
        deadline = session.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            delay = max(deadline - time.monotonic_ns(), 0) / 1e9
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._session is not None:
            self._session.tick(time.monotonic_ns())
            self._pump()

    # Appending

    def append(self, events: Sequence[Bytes], *, timeout: float | None = None) -> asyncio.Future[int]:
        """Append events, all or none, one after another; gives the position of the first.

        Await the future. Raises EventTooLargeError and BusyError at once; the future gives
        UnavailableError (nothing was sent), OutcomeUnknownError (a TimeoutError: it may be in the
        log), SessionEvictedError, NoSpaceError (disks were full until the timeout; nothing was
        appended), RejectedError. timeout: seconds, 10 when None.
        """
        session = self._running()
        now = time.monotonic_ns()
        handle = session.append(events, now, now + int(self._seconds(timeout) * 1e9))
        return self._await(handle)

    def append_batch(self, body: Bytes, count: int, *, timeout: float | None = None) -> asyncio.Future[int]:
        """Append a batch made by kimberlite.events.build; otherwise like `append`."""
        session = self._running()
        now = time.monotonic_ns()
        handle = session.append_batch(body, count, now, now + int(self._seconds(timeout) * 1e9))
        return self._await(handle)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def _running(self) -> Session:
        if self._session is None:
            raise UsageError("the client is not connected: use `async with kimberlite.connect(...) as log`")
        return self._session

    def _await(self, handle: int) -> asyncio.Future[int]:
        loop = self._loop or asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._futures[handle] = future
        if not self._flush_scheduled:
            # At the end of this turn of the loop: what is appended meanwhile goes along.
            self._flush_scheduled = True
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._session is not None:
            self._session.flush(time.monotonic_ns())
            self._pump()

    # Reading

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
            piece = await self._read_once(position, wanted, follow, self._seconds(timeout))
            if piece.events:
                if piece.position != position:
                    raise UnavailableError(f"asked for position {position}, got {piece.position}")
                yield position, piece.events, piece.body
                position += piece.events
            if not follow and position >= self._end:
                return

    async def _read_once(self, position: int, count: int, follow: bool, timeout: float) -> _Piece:
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
            request = self._frame(
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
                self._end = max(self._end, header.timestamp)
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
                log_end = self._end = max(self._end, answer.header.position)
                if position == log_end and not follow:
                    return _Piece(position, 0, b"")
                problem = f"the log has at least {log_end} events, replica {replica} {answer.header.position} by now"
                if position > log_end and len(avoid) + 1 >= len(self._replicas) and not follow:
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
        candidates = [replica for replica in self._replicas if replica not in avoid]
        if not candidates:
            return None
        session = self._session
        if session is not None and session.view % session.replica_count in candidates:
            return session.view % session.replica_count
        return self._random.choice(candidates)

    async def _ask(self, replica: int, request: Message, timeout: float) -> Message | None:
        connection = self._replicas.get(replica)
        if connection is None or self._loop is None:
            return None
        answer = _Answer(loop=self._loop)
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

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """What the primary, or else any replica, says of itself: see docs for the fields."""
        deadline = time.monotonic() + self._seconds(timeout)
        while time.monotonic() < deadline:
            replica = self._choose_replica(set())
            if replica is not None:
                request = self._frame(Command.STATUS, nonce=self._random.getrandbits(63))
                answer = await self._ask(replica, request, min(ANSWER_TIMEOUT_S, self._seconds(timeout)))
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


def connect(
    addresses: Sequence[str],
    *,
    cluster: str | None = None,
    timeout: float = TIMEOUT_S,
    request_bytes_max: int = 2 << 20,
    events_max: int = 65_536,
) -> Log:
    """A client of the cluster whose client addresses these are (any number of them).

    cluster: refuse any other cluster than this one. timeout: seconds, the default for
    every operation. request_bytes_max, events_max: what one request may carry.
    """
    return Log(addresses, cluster=cluster, timeout=timeout, request_bytes_max=request_bytes_max, events_max=events_max)
