"""The connections of clients: how many there may be, what they may hold, how long they may take, where answers go.

Above the limit a connection comes into the waiting room: it may ask for the status; when it appends or reads, the one
that has been idle longest makes place for it; else it is told, after WAIT_S or when others need its place, that
there are too many. Whoever is sent away is told why with a REJECT, as long as it takes what it is sent.

Once a second all are looked at: a frame that was begun must be whole, and what was sent must be taken, within their
time; and what all of them hold together is bounded: the one that holds most goes first.

Thread rules: one event loop. May import: net, types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kimberlite.net.transport import FrameConnection, Memory
from kimberlite.types import ZERO16, Checksum, ClientId, Ended, Header, Reason

LOOK_S = 1.0
WAIT_S = 1.0  # in the waiting room
IDENTITIES_MAX = 1024  # that one connection is remembered for
ROUTES_MAX = 8  # connections that one identity is remembered for
MEMORY_STEPS = 16  # of the bound: what comes together between two looks at least


@dataclass(frozen=True, slots=True)
class Bounds:
    """connections: at a time; waiting: beyond that, for a moment. memory: bytes of all receive buffers and answers not
    taken. frame_s, reply_s: seconds for a frame once begun, and for an answer to be taken."""

    connections: int = 1024
    waiting: int = 64
    memory: int = 256 << 20
    frame_s: float = 30.0
    reply_s: float = 30.0


class Client:
    """A connection and what is known of it."""

    __slots__ = (
        *("connection", "deadline", "identity", "identities", "parked", "parked_until"),
        *(
            "is_waiting",
            "is_regular",
            "appends",
            "tells",
            "counted",
            "owed",
            "has_turn",
            "seen",
            "quiet",
            "parsed",
            "frame_due",
            "reply_mark",
            "reply_due",
        ),
    )

    def __init__(self, connection: FrameConnection) -> None:
        self.connection = connection
        self.identity: ClientId | None = None  # None before HELLO
        self.identities: dict[ClientId, None] = {}  # it has spoken for
        self.deadline: asyncio.TimerHandle | None = None
        self.parked: Header | None = None  # a READ that waits for events
        self.parked_until: asyncio.TimerHandle | None = None
        self.is_waiting = False  # in the waiting room
        self.is_regular = False  # greeted, and not there
        self.appends = False  # it has sent a request
        self.tells: Header | None = None  # a request that tells of appends, and is not answered: kimberlite.told
        self.counted: Checksum = ZERO16  # of the last such request that was: answered once more, it tells nothing
        self.owed = 0  # see node.turns
        self.has_turn = False
        self.seen = -1  # bytes received when it was last looked at
        self.quiet = 0  # looks since it last sent something
        self.parsed = -1
        self.frame_due: float | None = None  # the frame that was begun must be whole by then
        self.reply_mark = 0  # so much must have been taken at reply_due
        self.reply_due: float | None = None


class Connections:
    """The table of them. dismiss: sends a REJECT with this reason. ended: told why a connection was ended, and of whom.
    held_elsewhere: bytes that others hold of `bounds.memory`."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        dismiss: Callable[[Client, Reason], None],
        ended: Callable[[Ended, str], None],
        held_elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        self.bounds = bounds
        self.memory = Memory(bounds.memory // MEMORY_STEPS, self._look_at_memory_soon)
        self.routes: dict[ClientId, list[Client]] = {}  # those of an identity, the one used last at the end
        self._dismiss = dismiss
        self._ended = ended
        self._held_elsewhere = held_elsewhere
        self._clients: dict[FrameConnection, Client] = {}
        self._waiting: dict[Client, None] = {}
        self._idle: list[Client] = []  # at the last look, the one to go first at the end
        self._look_handle: asyncio.TimerHandle | None = None
        self._is_memory_due = False

    def __len__(self) -> int:
        """Without those in the waiting room."""
        return len(self._clients) - len(self._waiting)

    def get(self, connection: FrameConnection) -> Client | None:
        return self._clients.get(connection)

    def all(self) -> Iterable[FrameConnection]:
        return list(self._clients)

    def regular(self) -> Iterable[Client]:
        """Those that have greeted, and are not in the waiting room."""
        return [client for client in self._clients.values() if client.is_regular and client.connection.is_open]

    def stop(self) -> None:
        if self._look_handle is not None:
            self._look_handle.cancel()
            self._look_handle = None

    # Coming and going

    def has_room(self, opening: int) -> bool:
        """Whether one more may be accepted, be it into the waiting room."""
        return len(self._clients) + opening < self.bounds.connections + self.bounds.waiting

    def add(self, connection: FrameConnection, hello_s: float) -> None:
        """A new one. It must say who it is within hello_s."""
        loop = asyncio.get_running_loop()
        client = Client(connection)
        client.is_waiting = len(self) >= self.bounds.connections
        self._clients[connection] = client
        if client.is_waiting:
            self._waiting[client] = None
            client.deadline = loop.call_later(WAIT_S, self.end, client, Reason.CONNECTIONS, Ended.REFUSED)
            if len(self._waiting) > self.bounds.waiting // 2:
                self.end(next(iter(self._waiting)), Reason.CONNECTIONS, Ended.REFUSED)
        else:
            client.deadline = loop.call_later(hello_s, self.end, client, Reason.SLOW, Ended.SLOW_FRAME)
        if self._look_handle is None:
            self._look_handle = loop.call_later(LOOK_S, self._look)

    def greeted(self, client: Client, identity: ClientId) -> None:
        client.identity = identity
        if not client.is_waiting:
            self._settle(client)
        self.use(identity, client)

    def admit(self, client: Client) -> bool:
        """Out of the waiting room, in the place of an idle one if need be; False when all others are busy."""
        if len(self) >= self.bounds.connections:
            idle = self._longest_idle()
            if idle is None:
                self.end(client, Reason.CONNECTIONS, Ended.REFUSED)
                return False
            self.end(idle, Reason.CONNECTIONS, Ended.DISPLACED)
        self._waiting.pop(client, None)
        self._settle(client)
        return True

    def _settle(self, client: Client) -> None:
        client.is_waiting, client.is_regular = False, True
        if client.deadline is not None:
            client.deadline.cancel()

    def _longest_idle(self) -> Client | None:
        while self._idle:
            client = self._idle.pop()
            if client.connection.is_open and client.connection.received_bytes == client.seen:
                return client
        return None

    def remove(self, connection: FrameConnection) -> Client | None:
        client = self._clients.pop(connection, None)
        if client is None:
            return None
        self._waiting.pop(client, None)
        if client.deadline is not None:
            client.deadline.cancel()
        for identity in list(client.identities):
            self._leave(identity, client)
        return client

    def end(self, client: Client, reason: Reason, why: Ended) -> None:
        """Send it away, in words if it takes them."""
        if not client.connection.is_open:
            return
        self._ended(why, client.connection.peer)
        self._waiting.pop(client, None)
        if client.connection.queued_bytes:
            client.connection.abort()
        else:
            self._dismiss(client, reason)
            client.connection.close()

    # Routes

    def use(self, identity: ClientId, client: Client) -> None:
        """Answers for `identity` go to `client` from now on; to one used before when this one is gone."""
        route = self.routes.setdefault(identity, [])
        if client in route:
            route.remove(client)
        route.append(client)
        client.identities[identity] = None
        if len(route) > ROUTES_MAX:
            self._leave(identity, route[0])
        if len(client.identities) > IDENTITIES_MAX:
            self._leave(next(iter(client.identities)), client)

    def _leave(self, identity: ClientId, client: Client) -> None:
        client.identities.pop(identity, None)
        route = self.routes.get(identity, [])
        if client in route:
            route.remove(client)
        if not route:
            self.routes.pop(identity, None)

    # Looking at all

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._look_handle = loop.call_later(LOOK_S, self._look) if self._clients else None
        now = loop.time()
        for client in list(self._clients.values()):
            self._look_at(client, now)
        idle = [client for client in self._clients.values() if client.quiet and client.identity is not None]
        # A read that waits for events is no use of nothing: those go last.
        self._idle = sorted(idle, key=lambda client: (client.parked is None, client.quiet))
        self._look_at_memory()

    def _look_at(self, client: Client, now: float) -> None:
        connection = client.connection
        client.quiet = client.quiet + 1 if connection.received_bytes == client.seen else 0
        client.seen = connection.received_bytes
        if client.quiet > 1:
            connection.shrink()
        if not connection.is_within_frame:
            client.frame_due = None
        elif client.frame_due is None or connection.parsed_bytes != client.parsed:
            client.parsed, client.frame_due = connection.parsed_bytes, now + self.bounds.frame_s
        elif now >= client.frame_due:
            self.end(client, Reason.SLOW, Ended.SLOW_FRAME)
        if not connection.queued_bytes:
            client.reply_due = None
        elif client.reply_due is None or connection.taken_bytes >= client.reply_mark:
            client.reply_mark, client.reply_due = connection.put_bytes, now + self.bounds.reply_s
        elif now >= client.reply_due:
            self.end(client, Reason.SLOW, Ended.SLOW_REPLY)

    def _look_at_memory_soon(self) -> None:
        if not self._is_memory_due:
            self._is_memory_due = True
            asyncio.get_running_loop().call_soon(self._look_at_memory)

    def _look_at_memory(self) -> None:
        """While clients hold too much: buffers that nothing is in go first, then the client that holds most."""
        self._is_memory_due = False
        # Half of it is theirs in any case: they are not to pay for what peers hold.
        allowed = max(self.bounds.memory - self._held_elsewhere(), self.bounds.memory // 2)
        open_ones = [client for client in self._clients.values() if client.connection.is_open]
        if sum(client.connection.memory_bytes for client in open_ones) <= allowed:
            return
        for client in open_ones:
            client.connection.shrink()
        held = {client: client.connection.memory_bytes for client in open_ones}
        total = sum(held.values())
        while total > allowed and held:
            worst = max(held, key=held.__getitem__)
            total -= held.pop(worst)
            self.end(worst, Reason.SLOW, Ended.MEMORY)
