"""Connections of a client: to the addresses it was given, and to the members of which these tell.

Every greeting of a replica names all members of its cluster. Members whose address was not given are dialled as
well, once those given had their chance. Each address is dialled again and again with back-off and jitter, its
name resolved anew every time; a replica that is found twice keeps the connection it has. What
keeps an address from being of use is remembered in words, and is the text of the error when nobody lets the client in.

Invariant: replicas of one cluster only. A list of addresses that leads to two is an error for good.
Thread rules: one event loop. May import: errors, types, config (addresses), net, client.telling.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

from kimberlite.client import telling
from kimberlite.config import parse_address
from kimberlite.errors import (
    ClientVersionError,
    ConfigError,
    FrameError,
    KimberliteError,
    UnavailableError,
    WrongClusterError,
)
from kimberlite.net.peers import keep_alive
from kimberlite.net.sockets import connect
from kimberlite.net.transport import FrameConnection
from kimberlite.types import ZERO16, Bytes, ClusterId, Command, Header, Message, Reason, reason_text

CONNECT_TIMEOUT_S = 2.0
GREETING_S = 0.5  # a connection that brought no greeting for so long is called silent; it may yet come
GIVEN_FIRST_S = 0.1  # so long the given addresses have to reach a member before its own address is dialled
PRESENT_S = 1.0  # how often an address that leads to a replica connected otherwise is looked at
DIAL_FIRST_S = 0.02
DIAL_MAX_S = 0.5
DIAL_FULL_S = 1.0  # where there was no place
DIAL_FINAL_S = 5.0  # where trying again should not help
CONNECTED, LOST = "connected", "the connection was lost"
HTTP = (b"HTTP/", b"<!DOCTYPE", b"<html")

Frames: TypeAlias = Sequence[tuple[Header, memoryview]]


@dataclass(slots=True)
class Place:
    """An address, and what came of it."""

    name: str
    host: str
    port: int
    is_given: bool  # by the caller; others were learned
    replica: int | None = None  # that was found there, or is said to be
    greeted: bool = False  # ever, by a replica of this cluster
    settled: bool = False  # something has come of an attempt
    told: bool = False  # the present attempt has said what became of it
    problem: str = "not tried yet"
    final: type[KimberliteError] | None = None  # what it is, when trying again would not help
    is_full: bool = False  # it had no place for this connection


class Dialer:
    """See the module docstring."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        cluster: ClusterId,
        only: bool,
        hello: Callable[[], Message],
        on_frames: Callable[[FrameConnection, Frames], None],
        on_greeting: Callable[[FrameConnection, Header], None],
        on_lost: Callable[[FrameConnection, int | None], None],
        on_error: Callable[[], None],
        random: Random,
    ) -> None:
        """cluster: the one that is wanted, ZERO16 when any will do: the first that greets. only: dial nobody but these.
        on_frames: what is no
        greeting. on_lost: with the replica to which the connection led, when it was in use. on_error: see `error`."""
        self._places = [Place(name, *parse_address(name), is_given=True) for name in names]
        self.cluster = cluster
        self._only = only
        self._hello = hello
        self._on_frames = on_frames
        self._on_greeting = on_greeting
        self._on_lost = on_lost
        self._on_error = on_error
        self._random = random
        self.replicas: dict[int, FrameConnection] = {}  # that have greeted
        self.error: KimberliteError | None = None  # for good: no call can succeed any more
        self._open: dict[FrameConnection, Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    # Life

    def start(self) -> None:
        for place in self._places:
            self._spawn(self._dial(place))

    async def stop(self) -> None:
        """Close all connections; what was sent on them still leaves."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.close()
        self._open.clear()
        self.replicas.clear()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def changed(self) -> None:
        """Until something has come of an attempt to connect."""
        self._changed.clear()
        await self._changed.wait()

    # What has come of it

    @property
    def all_settled(self) -> bool:
        """Something came of every address, the learned ones too."""
        return all(place.settled for place in self._places)

    @property
    def given_settled(self) -> bool:
        return all(place.settled for place in self._places if place.is_given)

    @property
    def is_hopeless(self) -> bool:
        """No address can be of use, however long one waits."""
        return all(place.final for place in self._places)

    def failure(self, timeout: float) -> KimberliteError:
        """Why nobody let the client in, address by address."""
        problems = {place.name: place.problem for place in self._places}
        told = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        within = "" if self.is_hopeless else f" within {timeout:g} s"
        text = f"no replica let this client in{within}: {told}"
        kinds = {place.final or UnavailableError for place in self._places}
        kind = kinds.pop() if len(kinds) == 1 else UnavailableError
        return kind(text, addresses=list(problems), problems=problems)

    @property
    def has_unread(self) -> bool:
        """Whether something has arrived that was not read yet."""
        return any(connection.has_unread for connection in self._open)

    async def read_arrived(self, turns: int = 64) -> None:
        """Let the event loop read what has arrived already, before a deadline that has passed is judged."""
        for _ in range(turns):
            if not self.has_unread:
                return
            await asyncio.sleep(0)

    # Dialling

    async def _dial(self, place: Place) -> None:
        """Keep a connection to one address."""
        delay = DIAL_FIRST_S
        if not place.is_given:
            await self._let_given_go_first()
        while True:
            if place.replica is not None and place.replica in self.replicas:
                self._settle(place, f"it is replica {place.replica}, which is connected by another address")
                await asyncio.sleep(PRESENT_S * (0.5 + self._random.random()))
                continue
            if await self._attempt(place):
                delay = DIAL_FIRST_S
            pause = DIAL_FINAL_S if place.final else DIAL_FULL_S if place.is_full else delay
            await asyncio.sleep(pause * (0.5 + self._random.random()))
            delay = min(2 * delay, DIAL_MAX_S)

    async def _let_given_go_first(self) -> None:
        try:
            async with asyncio.timeout(GIVEN_FIRST_S):
                while not self.given_settled:
                    await self.changed()
        except TimeoutError:
            return

    async def _attempt(self, place: Place) -> bool:
        """One connection from its beginning to its end; whether anything was received on it."""
        loop = asyncio.get_running_loop()
        place.told = place.is_full = False
        ended: asyncio.Future[tuple[Exception | None, bytes]] = loop.create_future()

        def finish(connection: FrameConnection, error: Exception | None) -> None:
            if not ended.done():
                ended.set_result((error, connection.head))

        try:
            # Not wait_for: in Python 3.11 that loses a cancellation in the moment when the attempt ends.
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await connect(
                    lambda: FrameConnection(on_frames=self._receive, on_open=keep_alive, on_closed=finish),
                    place.host,
                    place.port,
                )
        except (OSError, UnicodeError) as error:  # a name that can not be one fails to be encoded
            self._settle(place, _why_not(error))
            return False
        self._open[connection] = place
        connection.send(self._hello())
        silence = loop.call_later(GREETING_S, self._on_silence, place, connection)
        try:
            cause, head = await ended
        finally:
            silence.cancel()
            connection.close()  # when we are stopped before it has greeted us, nobody else knows it
            self._open.pop(connection, None)
        self._lost(place, connection, cause, head)
        return connection.received_bytes > 0

    def _lost(self, place: Place, connection: FrameConnection, error: Exception | None, head: bytes) -> None:
        """head: the first bytes that were no frame."""
        replica = next((index for index, known in self.replicas.items() if known is connection), None)
        if replica is not None:
            del self.replicas[replica]
            telling.disconnected(place.name, replica, error)
            if not place.is_full:
                self._settle(place, LOST)
        elif isinstance(error, FrameError):
            other = f"another protocol is spoken there: {head!r}"
            self._settle(place, _HTTP_PORT if head.startswith(HTTP) else other, UnavailableError)
        elif not place.told:
            self._settle(place, "closed without a greeting: it is stopping, or has as many connections as it takes")
        self._on_lost(connection, replica)

    def _on_silence(self, place: Place, connection: FrameConnection) -> None:
        """It is connected, and says nothing."""
        if connection in self.replicas.values() or not connection.is_open:
            return
        self._settle(
            place,
            f"connected, but no greeting within {GREETING_S:g} s: it is frozen, overloaded, or no Kimberlite replica",
        )
        if not place.greeted:
            self._spawn(self._try_http(place))

    async def _try_http(self, place: Place) -> None:
        """What does not greet may be the port of the metrics, which waits for a line."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(place.host, place.port)
                try:
                    writer.write(b"GET / HTTP/1.0\r\n\r\n")
                    answer = await reader.read(16)
                finally:
                    writer.close()
        except OSError:
            return
        if answer.startswith(HTTP) and not place.greeted:
            self._settle(place, _HTTP_PORT, UnavailableError)

    def _settle(self, place: Place, problem: str, final: type[KimberliteError] | None = None) -> None:
        if problem != place.problem and problem not in (CONNECTED, LOST):
            telling.of_no_use(place.name, problem)
        place.settled = place.told = True
        place.problem = problem
        place.final = final
        self._changed.set()

    # Greetings

    def _receive(self, connection: FrameConnection, frames: Frames) -> None:
        place = self._open.get(connection)
        if place is not None and connection not in self.replicas.values():
            header, body = frames[0]
            if not self._greet(place, connection, header, body):
                connection.close()
                return
            frames = frames[1:]
        if not frames:
            return
        last = frames[-1][0]
        if place is not None and last.command == Command.REJECT and last.context == ZERO16:  # of the connection as such
            self._on_refusal(place, last)
        self._on_frames(connection, frames)

    def _greet(self, place: Place, connection: FrameConnection, header: Header, body: Bytes) -> bool:
        """The first frame on a connection; whether to keep it."""
        if header.command == Command.REJECT:
            self._on_refusal(place, header)
        elif header.command != Command.HELLO:
            self._settle(place, "no Kimberlite replica: its first frame is no greeting", UnavailableError)
        elif self.cluster not in (ZERO16, header.cluster):
            self._on_stranger(place, header.cluster)
        elif (members := parse_members(body, header.count)) is None:
            self._settle(place, _OLD_REPLICA, ClientVersionError)
        elif header.replica in self.replicas:
            place.replica = header.replica
            self._settle(place, f"it is replica {place.replica}, which is connected by another address")
        else:
            self._welcome(place, connection, header, members)
            return True
        return False

    def _welcome(self, place: Place, connection: FrameConnection, header: Header, members: Sequence[str]) -> None:
        self.cluster = connection.cluster = header.cluster
        self.replicas[header.replica] = connection
        place.replica, place.greeted = header.replica, True
        self._learn(members)
        self._on_greeting(connection, header)
        telling.connected(place.name, header.replica)
        self._settle(place, CONNECTED)

    def _learn(self, members: Sequence[str]) -> None:
        """Dial the members whose addresses are new."""
        if self._only:
            return
        for replica, name in enumerate(members):
            host, port = parse_address(name)
            if all((place.host, place.port) != (host, port) for place in self._places):
                place = Place(name, host, port, is_given=False, replica=replica)
                self._places.append(place)
                self._spawn(self._dial(place))

    def _on_stranger(self, place: Place, cluster: ClusterId) -> None:
        """A replica of another cluster. When the caller gave its address, the list is wrong; an address that was
        learned, or that once led to this cluster, is only of no use."""
        problem = f"it belongs to cluster {cluster.hex()}, not to {self.cluster.hex()}"
        self._settle(place, problem, WrongClusterError)
        if place.is_given and not place.greeted:
            self.error = WrongClusterError(
                f"{place.name} belongs to cluster {cluster.hex()}, and this client to {self.cluster.hex()}: give "
                "the addresses of one cluster",
                address=place.name,
                cluster=cluster.hex(),
                wanted=self.cluster.hex(),
            )
            self._on_error()

    def _on_refusal(self, place: Place, header: Header) -> None:
        """It is a replica, and does not let us in."""
        if header.reason == Reason.VERSION:
            self._settle(place, _NEW_REPLICA, ClientVersionError)
        elif header.reason in (Reason.WRONG_SIZE, Reason.WRONG_REPLICA) or (
            header.reason == Reason.WRONG_CLUSTER and header.count
        ):
            # Only a listener for peers speaks of the size of its cluster.
            self._settle(place, _PEER_PORT, UnavailableError)
        elif header.reason == Reason.WRONG_CLUSTER:
            self._on_stranger(place, header.cluster)
        elif header.reason == Reason.CONNECTIONS:
            self._settle(place, "full: it holds as many connections as it can (limits.connections_max)")
            place.is_full = True
        else:
            self._settle(place, f"it let nobody in: {reason_text(header.reason)}")


_HTTP_PORT = "HTTP is spoken there: that is the port of the metrics, not the one for clients"
_PEER_PORT = "that is its port for other replicas: give the one for clients, from cluster.addresses"
_NEW_REPLICA = "the replica asks for a newer version of the client protocol: upgrade this client"
_OLD_REPLICA = (
    "the replica speaks an older version of the client protocol: upgrade it, or use the client of its release"
)


def parse_members(body: Bytes, count: int) -> list[str] | None:
    """The addresses in a replica's greeting; None when it has none, as those of older releases."""
    try:
        members = json.loads(bytes(body))["members"]
        if len(members) != count:
            return None
        for name in members:
            parse_address(name)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, ConfigError):
        return None
    return list(members)


def _why_not(error: OSError | UnicodeError) -> str:
    """An attempt that failed, in the words of a person who looks at a network."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "the host name does not resolve"
    if isinstance(error, TimeoutError):
        return f"timed out: no connection within {CONNECT_TIMEOUT_S:g} s"
    return error.strerror or str(error)
