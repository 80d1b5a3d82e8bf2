"""The asyncio client: connections, timers and futures around one sans-I/O Session.

    async with kimberlite.connect(["h1:7100", "h2:7100", "h3:7100"]) as log:
        position = await log.append([b"one", b"two"], timeout=2.0)
        async for event in log.read(start=position): ...

Appends made at the same time travel together. They go to the primary, wherever it is by
now; what reads is in client.reading. A client is used once: entered, used, closed. Invariant: every call
ends, in its result or an error; a call on a client that is not open, in a process that was forked from
the one that opened it, or on another event loop raises UsageError and touches nothing.
Thread rules: one event loop. May import: errors, types, config (addresses), _fast, net, the modules of client.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from asyncio import _get_running_loop
from collections.abc import Coroutine, Iterable, Sequence
from enum import Enum
from random import Random
from types import TracebackType
from typing import Any, NoReturn

from kimberlite._fast import framing
from kimberlite.client import arguments
from kimberlite.client.appends import Outcome
from kimberlite.client.arguments import Frozen, coroutine_function
from kimberlite.client.dialing import Dialer
from kimberlite.client.reading import Reader, Reading
from kimberlite.client.session import Session
from kimberlite.client.telling import Told
from kimberlite.config import parse_cluster_id
from kimberlite.errors import KimberliteError, UsageError
from kimberlite.net import CLIENT_VERSION
from kimberlite.net.transport import FrameConnection
from kimberlite.types import ZERO16, Bytes, ClientId, Command, Header, Message

TIMEOUT_S = 10.0
PRIMARY_WAIT_S = 0.3  # once a replica has greeted, so long for the primary and the other addresses to do so, too
ARRIVED_NS = 200_000_000  # at most so long what has arrived is read before a deadline that has passed is judged
REQUEST_BYTES_LEAST = 1024
POSITION, REPLY = map(Outcome._fields.index, ("position", "reply"))


class Forks:
    """How often this process is a fork of the one that imported this module."""

    count = 0


def _forked() -> None:
    Forks.count += 1


os.register_at_fork(after_in_child=_forked)


class Life(Enum):
    """Of a client."""

    NEW = "not connected: use `async with kimberlite.connect(...) as log`"
    OPEN = "open"
    CLOSED = "closed: make another one with kimberlite.connect"


class Log(Reading):
    """A connection to a cluster. Use `async with`; see connect()."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        cluster: str | None = None,
        only: bool = False,
        timeout: float = TIMEOUT_S,
        request_bytes_max: int = 2 << 20,
        events_max: int = 65_536,
    ) -> None:
        names = [] if isinstance(addresses, str | bytes) else list(addresses)
        if isinstance(addresses, str | bytes) or not all(isinstance(name, str) for name in names):
            raise TypeError(f'connect takes a list of addresses, ["host:port", ...], not {arguments.shown(addresses)}')
        if not names:
            raise UsageError("connect needs the address of at least one replica")
        if not isinstance(cluster, str | None):
            raise TypeError(f"cluster is 32 hexadecimal digits, not {arguments.shown(cluster)}")
        self._names = names
        self._timeout = arguments.seconds(timeout)
        self._request_bytes_max = arguments.whole(request_bytes_max, "request_bytes_max", REQUEST_BYTES_LEAST)
        self._events_max = arguments.whole(events_max, "events_max", 1, 0xFFFFFFFF)
        self._client_id: ClientId = secrets.token_bytes(16)
        self._random = Random(secrets.randbits(64))
        self._dialer = Dialer(
            self._names,
            cluster=parse_cluster_id(cluster) if cluster is not None else ZERO16,
            only=only,
            hello=lambda: self._frame(Command.HELLO, count=CLIENT_VERSION),
            on_frames=self._on_frames,
            on_greeting=self._on_greeting,
            on_lost=self._on_lost,
            on_error=self._on_error,
            random=self._random,
        )
        self._replicas = self._dialer.replicas
        self._life = Life.NEW
        self._forks = Forks.count
        self._session: Session | None = None
        self._usable: Session | None = None  # the session, while calls can be made
        self._futures: dict[int, asyncio.Future[Outcome]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._overdue_since = 0  # 0: no deadline waits for what has arrived to be read
        self._flush_scheduled = False
        self._reader = Reader(
            connections=self._replicas,
            make_frame=self._frame,
            primary=self._primary,
            check_usable=self._check,
            random=self._random,
            names=self._names,
            timeout=self._timeout,
        )
        self._told = Told()
        self._loop: asyncio.AbstractEventLoop | None = None

    # Life

    async def __aenter__(self) -> Log:
        if self._life is not Life.NEW:
            already = "open already" if self._life is Life.OPEN else self._life.value
            raise UsageError(f"this client is {already}")
        self._life = Life.OPEN
        self._forks = Forks.count
        self._loop = asyncio.get_running_loop()
        self._dialer.start()
        try:
            await self._be_let_in()
        except BaseException:
            await self._stop()
            raise
        return self

    async def _be_let_in(self) -> None:
        """Until the primary has greeted, and whoever else of the given addresses will. Another replica may not have
        applied yet what was acknowledged a moment ago, and the first read shall find that."""
        dialer = self._dialer
        try:
            async with asyncio.timeout(self._timeout):
                while not self._replicas and not dialer.error and not dialer.is_hopeless:
                    await dialer.changed()
                async with asyncio.timeout(PRIMARY_WAIT_S):
                    while not dialer.error and not self._has_met_all():
                        await dialer.changed()
        except TimeoutError:
            await dialer.read_arrived()
        if dialer.error is not None:
            raise dialer.error
        if self._session is None:
            raise dialer.failure(self._timeout)

    def _has_met_all(self) -> bool:
        dialer = self._dialer
        return dialer.all_settled or (dialer.given_settled and self._primary() in self._replicas)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and close all connections. Appends that were not sent end in UnavailableError, those under
        way in OutcomeUnknownError, reads in an error. In a forked process nothing is touched: the connections are
        those of its parent."""
        if self._forks != Forks.count or self._life is not Life.OPEN:
            return
        if asyncio.get_running_loop() is not self._loop:
            raise UsageError("this client was opened on another event loop: close it there")
        await self._stop()

    async def _stop(self) -> None:
        self._life = Life.CLOSED
        self._usable = None
        if self._timer is not None:
            self._timer.cancel()
        if self._session is not None:
            self._session.close()
            self._pump()
        self._reader.close()
        await self._dialer.stop()

    def _check(self) -> None:
        """Whether this client can be used: here and now. Raises UsageError, WrongClusterError."""
        if self._usable is None or self._forks != Forks.count or _get_running_loop() is not self._loop:
            raise self._why_not()

    def _why_not(self) -> KimberliteError:
        if self._forks != Forks.count:
            return UsageError(
                "this client was opened before the process was forked, and belongs to the parent: connect anew here"
            )
        if self._life is not Life.OPEN:
            return UsageError(f"the client is {self._life.value}")
        if self._dialer.error is not None:
            return self._dialer.error
        if self._session is None:
            return UsageError("the client is not connected yet")
        return UsageError("this client was opened on another event loop: use it there, or connect anew on this one")

    def _on_error(self) -> None:
        self._usable = None

    def _on_lost(self, connection: FrameConnection, replica: int | None = None) -> None:
        if replica is not None and self._session is not None:
            self._session.disconnected(replica, time.monotonic_ns())
            self._pump()
        self._reader.on_lost(connection)

    def _frame(self, command: Command, **fields: Any) -> Message:
        return Message(
            framing.make_header(cluster=self._dialer.cluster, command=command, client=self._identity, **fields)
        )

    @property
    def _identity(self) -> ClientId:
        return self._session.client_id if self._session is not None else self._client_id

    # Frames

    def _on_frames(self, connection: FrameConnection, frames: Sequence[tuple[Header, memoryview]]) -> None:
        now = time.monotonic_ns()
        for header, body in frames:
            if self._reader.on_frame(header, body):
                if self._session is not None:
                    self._session.routing.learn(header.view)
            elif self._session is not None:
                if header.reason:
                    self._told.reason = header.reason
                self._session.step(Message(header, body), now)
        self._pump()

    def _on_greeting(self, connection: FrameConnection, header: Header) -> None:
        now = time.monotonic_ns()
        if self._session is None:
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
            self._usable = self._session
        self._session.step(Message(header), now)
        self._session.connected(header.replica, now)
        self._pump()

    def _primary(self) -> int | None:
        """The replica that leads, as far as known."""
        return None if self._session is None else self._session.routing.leader

    def _pump(self) -> None:
        """Carry out what the session asks for, and set its timer."""
        session = self._session
        if session is None or self._loop is None:
            return
        sends, done = session.take_output()
        for replica, message in sends:
            self._told.sent(replica, message, session.client_id)
            connection = self._replicas.get(replica)
            if connection is not None:
                connection.send(message)
        first = last = None  # of those that were acknowledged; they ascend
        for outcome in done:
            future = self._futures.pop(outcome.handle, None)
            if outcome.error is None:
                first = first or outcome
                last = outcome
            if future is None or future.done():
                continue
            if outcome.error is None:
                future.set_result(outcome)
            else:
                future.set_exception(outcome.error)
        if first is not None and last is not None:
            self._reader.acknowledged(first.position, last.position + last.events - first.position)
        deadline = session.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            delay = max(deadline - time.monotonic_ns(), 0) / 1e9
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        session = self._session
        if session is None or self._loop is None:
            return
        now = time.monotonic_ns()
        if session.is_overdue(now) and self._dialer.has_unread:
            # This process was held up, or stopped: the answer may have arrived before the deadline.
            self._overdue_since = self._overdue_since or now
            if now - self._overdue_since < ARRIVED_NS:
                self._timer_at = now
                self._timer = self._loop.call_later(0, self._on_timer)
                return
        self._overdue_since = 0
        session.tick(now)
        self._pump()

    # Appending

    @coroutine_function
    def append(self, events: Iterable[Bytes], *, timeout: float | None = None) -> Coroutine[Any, Any, int]:
        """Append events, all or none, one after another; gives the position of the first.

        events: a list of bytes, copied when this is called: what is changed afterwards changes nothing. timeout:
        seconds from the moment it is awaited, or its task begins; that of `connect` when None.

        Raises TypeError, UsageError (EventTooLargeError: above a limit), when anything is wrong with the arguments, and
        BusyError, when too much waits already; then nothing was sent. In the end: UnavailableError, NoSpaceError,
        SessionEvictedError, RejectedError: nothing was appended. OutcomeUnknownError, a TimeoutError: it may be
        in the log, or get there yet; calling again may append it twice.
        Cancelled before it was sent, it is not sent. Cost: one copy of the events; one request for all calls made
        while another request is under way.
        """
        try:
            return self._send(arguments.freeze(events, self._events_max), self._seconds(timeout), POSITION)
        except (TypeError, UsageError) as error:
            return _raise(error)

    @coroutine_function
    def append_batch(self, body: Bytes, count: int, *, timeout: float | None = None) -> Coroutine[Any, Any, int]:
        """Append a batch made by kimberlite.events.build, of `count` events; otherwise like `append`."""
        try:
            return self._send(arguments.freeze_batch(body, count, self._events_max), self._seconds(timeout), POSITION)
        except (TypeError, UsageError) as error:
            return _raise(error)

    @coroutine_function
    def apply(self, commands: Iterable[Bytes], *, timeout: float | None = None) -> Coroutine[Any, Any, bytes]:
        """Append commands for the replicas' own state machine, as one batch, and give what it replied to that batch.

        All or none, one after another, in a request of their own: a state machine gives one reply for a batch, so
        nothing else may travel along. (For an answer to each command, let it reply a kimberlite.events.build
        of them.) Empty when the replicas have no machine of their own. Otherwise like `append`, also in its errors.
        Cost: calls made at the same time take a round trip each; give the commands of one call together.
        """
        try:
            return self._send(arguments.freeze(commands, self._events_max), self._seconds(timeout), REPLY)
        except (TypeError, UsageError) as error:
            return _raise(error)

    def _seconds(self, timeout: float | None) -> float:
        if type(timeout) is float and 0 <= timeout <= arguments.SECONDS_MAX:
            return timeout
        return self._timeout if timeout is None else arguments.seconds(timeout)

    async def _send(self, frozen: Frozen, timeout: float, wanted: int) -> Any:
        """Append, with all that is appended in this turn of the event loop; gives that field of the Outcome. When it
        is the reply, in a request of its own."""
        session = self._usable
        loop = self._loop
        if session is None or loop is None or self._forks != Forks.count or _get_running_loop() is not loop:
            raise self._why_not()
        now = time.monotonic_ns()
        body, count = frozen
        handle = session.append_batch(body, count, now, now + int(timeout * 1e9), wanted == REPLY)
        future: asyncio.Future[Outcome]
        future = self._futures[handle] = loop.create_future()
        if not self._flush_scheduled:
            self._flush_scheduled = True
            loop.call_soon(self._flush)
        try:
            return (await future)[wanted]
        finally:
            if handle in self._futures:
                self._let_go(handle)

    def _let_go(self, handle: int) -> None:
        """Nobody waits for that append any more."""
        del self._futures[handle]
        if self._session is not None:
            self._session.cancel(handle)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._session is not None:
            self._session.flush(time.monotonic_ns())
            self._pump()


async def _raise(error: Exception) -> NoReturn:
    """What a call with wrong arguments gives: it is told to whom awaits it, as every coroutine function does."""
    raise error


def connect(
    addresses: Sequence[str],
    *,
    cluster: str | None = None,
    only: bool = False,
    timeout: float = TIMEOUT_S,
    request_bytes_max: int = 2 << 20,
    events_max: int = 65_536,
) -> Log:
    """A client of the cluster whose client addresses these are: any number of them, for those that answer tell of
    the others.

    cluster: refuse any other cluster than this one. only: use these addresses alone, to ask one replica what it has.
    timeout: seconds, the default for every operation. request_bytes_max, events_max: what one request may carry.
    """
    return Log(
        addresses,
        cluster=cluster,
        only=only,
        timeout=timeout,
        request_bytes_max=request_bytes_max,
        events_max=events_max,
    )
