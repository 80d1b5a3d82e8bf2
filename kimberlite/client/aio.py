"""The asyncio client: connections, timers and futures around one sans-I/O Session.

    async with kimberlite.connect(["h1:7100", "h2:7100", "h3:7100"]) as log:
        position = await log.append([b"one", b"two"], timeout=2.0)
        async for event in log.read(start=position): ...

Appends made at the same time travel together. They go to the primary, wherever it is by
now; what reads is in client.reading. Thread rules: one event loop.
May import: errors, types, config (addresses), _fast, net, client.reading, client.session.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import Any

from kimberlite._fast import framing
from kimberlite.client.reading import Reader, Reading
from kimberlite.client.session import Session
from kimberlite.config import parse_address, parse_cluster_id
from kimberlite.errors import (
    KimberliteError,
    OutcomeUnknownError,
    UnavailableError,
    UsageError,
    WrongClusterError,
)
from kimberlite.net.peers import keep_alive
from kimberlite.net.transport import FrameConnection
from kimberlite.types import ZERO16, Bytes, ClientId, Command, Header, Message, Reason

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
PRIMARY_WAIT_S = 0.2  # once a replica has greeted, so long for the primary to do so, too
DIAL_FIRST_S = 0.02
DIAL_MAX_S = 0.5


class Log(Reading):
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
        self._futures: dict[int, asyncio.Future[int]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._flush_scheduled = False
        self._ready: asyncio.Event | None = None
        self._refusal: KimberliteError | None = None
        self._reader = Reader(
            connections=self._replicas,
            make_frame=self._frame,
            primary=self._primary,
            random=self._random,
            names=self._names,
            timeout=timeout,
        )
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
        self._reader.close()

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
        self._reader.on_lost(connection)

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
            if self._reader.on_frame(header, body):
                continue
            if header.command == Command.REJECT and self._session is None:
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
        if self._primary() in self._replicas or met + len(self._failed) >= len(self._addresses):
            ready.set()
        elif met == 1:
            self._loop.call_later(PRIMARY_WAIT_S, ready.set)

    def _primary(self) -> int | None:
        """The replica that leads, as far as known."""
        return None if self._session is None else self._session.view % self._session.replica_count

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
                    self._reader.end = max(self._reader.end, outcome.position + outcome.count)
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
