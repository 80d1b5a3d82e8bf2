"""The mesh between replicas.

Every replica dials every other one and sends on the connection it dialled; it receives on the
connections it accepted. So there is no race over who keeps a connection when both dial, and
a link that is cut one way looks like what it is. Host names are resolved again on every
attempt; attempts back off with jitter. What cannot be sent is dropped and counted: the
protocol repairs, no queue grows.

Identity: the first frame is HELLO with cluster and replica index; until it has come a
connection is read for HELLO_BYTES_MAX bytes and HELLO_SECONDS at most. A peer that is not the one
that the configuration speaks of is refused, by either side, and the owner is told once.

One connection speaks for a replica. A second one waits, one for each replica, while the first is asked whether it
lives (HELLO again, which the side that dialled answers with HELLO): it takes the place when nothing came
within PROBE_S. So nobody takes the place of a peer that is there, and one that came back is not kept out.

A peer is gone when the connection to it, which had lasted, is closed, another one is refused, and nothing more comes
from it: its process has ended, and the kernel says so at once. (A listener that comes and goes says so once.)

A link that takes nothing for SILENCE_MS is given up and dialled anew, for the kernel waits longer and longer between
two attempts to get something through.
May import: errors, types, _fast, net.sockets, net.transport.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from kimberlite.net.sockets import Listener, bind, connect, show
from kimberlite.net.transport import CHUNK_BYTES, CHUNK_BYTES_FIRST, Counters, FrameConnection, NullCounters
from kimberlite.types import (
    KNOWN_COMMANDS,
    ZERO16,
    Bytes,
    ClusterId,
    Command,
    Dropped,
    Header,
    HeaderFactory,
    Message,
    Reason,
)

HELLO_SECONDS = 3.0
HELLO_BYTES_MAX = 16 << 10
SEND_QUEUE_MAX = 16 << 20  # bytes queued for a peer that does not read
DIAL_FIRST_S = 0.02
DIAL_MAX_S = 0.5
LASTED_S = 1.0  # a connection that was there for so long is dialled again at once when it ends
QUICK_DIALS, QUICK_DIAL_S = 4, 0.002  # so often: its listener may end a moment later
CONNECT_TIMEOUT_S = 1.5  # the kernel sends its request again after one second
STRANGERS_MAX = 32  # accepted on the peer port that have not said who they are
PROBE_S = 0.5
SILENCE_MS = 3_000
# Refusals that say that one of the two is not who the other one looks for; others may pass.
STRANGER = frozenset({Reason.WRONG_CLUSTER, Reason.WRONG_SIZE, Reason.WRONG_REPLICA})
# Every reason for which a peer is refused, here or there, and what it counts as.
DROPPED = {
    Reason.WRONG_CLUSTER: Dropped.WRONG_CLUSTER,
    Reason.WRONG_SIZE: Dropped.WRONG_SIZE,
    Reason.WRONG_REPLICA: Dropped.WRONG_REPLICA,
    Reason.MALFORMED: Dropped.MALFORMED,
    Reason.CONNECTIONS: Dropped.CONNECTION_LIMIT,
    Reason.VERSION: Dropped.VERSION,
    Reason.UNBORN: Dropped.UNBORN,
    Reason.REPLACED: Dropped.REPLACED,
    Reason.REMOVED: Dropped.REMOVED,
}
NO_MEMBER = frozenset({Reason.UNBORN, Reason.REPLACED, Reason.REMOVED})  # the other one knows another disk


def keep_alive(connection: FrameConnection, silence_ms: int | None = None) -> None:
    """No delay; another side that vanished without a word is noticed within about 10 s while nothing waits for it.

    silence_ms: within that, and whatever waits; also when it is there and takes nothing for so long.
    """
    sock = connection.transport.get_extra_info("socket") if connection.transport is not None else None
    if sock is None:
        return
    first, interval, count = (5, 2, 3) if silence_ms is None else (1, 1, 2)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, first),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count),
        *(((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms),) if silence_ms is not None else ()),
    ):
        sock.setsockopt(level, option, value)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the process at the address of a replica is not that replica: what it said of itself. reason: of STRANGER."""

    reason: Reason
    host: str
    port: int
    cluster: ClusterId
    replica: int
    replica_count: int

    def __str__(self) -> str:
        where = show(self.host, self.port)
        if self.reason == Reason.WRONG_CLUSTER:
            return f"{where} belongs to cluster {self.cluster.hex()}"
        if self.reason == Reason.WRONG_SIZE:
            return f"{where} belongs to a cluster of {self.replica_count} replicas"
        return f"{where} is replica {self.replica}"


class PeerMessage(Message):
    """A frame of a peer, with the connection that it came on."""

    __slots__ = ("connection",)

    def __init__(self, header: Header, body: Bytes, connection: FrameConnection) -> None:
        super().__init__(header, body)
        self.connection = connection


@dataclass(slots=True)
class _Waiting:
    """A second connection of a replica, until it is known whether the first one lives."""

    connection: FrameConnection
    seen: int  # bytes that the first had received when it was asked
    judged: asyncio.TimerHandle


class Doorkeeper(Protocol):
    """Who this replica is, and whom it lets in: what the core knows of that."""

    def greeting(self) -> dict[str, Any]:
        """Fields of its HELLO."""

    def judge_greeting(self, header: Header) -> Reason:
        """Of the HELLO of another one: NONE, or why it is no member."""

    def refused_by(self, header: Header) -> None:
        """Another replica does not let this one in, and says who it is itself."""


class Nobody:
    """A Doorkeeper that lets everybody in."""

    def greeting(self) -> dict[str, Any]:
        return {}

    def judge_greeting(self, header: Header) -> Reason:
        return Reason.NONE

    def refused_by(self, header: Header) -> None:
        return


class PeerNetwork:
    """Connections of one replica to all others. `on_messages` gets every frame that a peer sent."""

    def __init__(
        self,
        *,
        index: int,
        addresses: Sequence[tuple[str, int]],
        listen_on: tuple[str, int],
        cluster: ClusterId,
        make_header: HeaderFactory,
        view: Callable[[], int],
        on_messages: Callable[[list[Message]], None],
        on_refusal: Callable[[int, Refusal], None] | None = None,
        on_gone: Callable[[int], None] | None = None,
        frame_max: int = 4 << 20,
        strangers_max: int = STRANGERS_MAX,
        counters: Counters | None = None,
        doorkeeper: Doorkeeper | None = None,
        seed: int = 0,
    ) -> None:
        """on_refusal: told when the process at the address of a replica turns out to be another
        one, once for each such replica until it has been the right one again. on_gone: told of a peer that is gone,
        after the last of its frames. strangers_max: connections that have
        not said who they are; replicas have places of their own."""
        self.index = index
        self._addresses = addresses
        self._listen_on = listen_on
        self._cluster = cluster
        self._make_header = make_header
        self._view = view
        self._on_messages = on_messages
        self._on_refusal = on_refusal
        self._on_gone = on_gone
        self._frame_max = frame_max
        self._strangers_max = strangers_max
        self._counters = counters or NullCounters()
        self._doorkeeper = doorkeeper or Nobody()
        self._random = Random(seed)
        self._outgoing: dict[int, FrameConnection] = {}
        self._incoming: dict[FrameConnection, Header | None] = {}  # -> its HELLO, None before that was let in
        self._deadlines: dict[FrameConnection, asyncio.TimerHandle] = {}  # of strangers
        self._waiting: dict[int, _Waiting] = {}  # by replica
        self._server: Listener | None = None
        self._stopped = False
        self.diallers: list[asyncio.Task[None]] = []  # one for each peer, for as long as this runs
        self._greeted: set[int] = set()  # replicas that have answered our HELLO on the present connection
        self._refused: set[int] = set()  # replicas whose listener was gone when their connection had just ended
        self.refusals: dict[int, Refusal] = {}  # replica -> why the process at its address is not it
        self.met = False  # whether a peer of this cluster has ever answered

    async def start(self) -> None:
        """Listen and begin to dial. Raises AddressInUseError before anything is sent."""
        if len(self._addresses) > 1:
            self._server = Listener(
                await bind(*self._listen_on, "for peers"),
                self._accepting,
                has_room=lambda opening: len(self._deadlines) + opening < self._strangers_max,
                refusal=lambda: self._reject(Reason.CONNECTIONS).header.raw,
                refused=self._on_too_many,
            )
        self.diallers = [
            asyncio.create_task(self._dial(replica), name=f"dial-{replica}")
            for replica in range(len(self._addresses))
            if replica != self.index
        ]

    async def stop(self) -> None:
        for task in self.diallers:
            task.cancel()
        await asyncio.gather(*self.diallers, return_exceptions=True)
        self._stop_listening()
        for connection in (*self._outgoing.values(), *self._incoming):
            connection.close()

    def abort(self) -> None:
        """Cut all peers off: nothing that is queued for them leaves."""
        for task in self.diallers:
            task.cancel()
        self._stop_listening()
        for connection in (*self._outgoing.values(), *self._incoming):
            connection.abort()

    def _stop_listening(self) -> None:
        self._stopped = True
        if self._server is not None:
            self._server.close()
        for waiting in self._waiting.values():
            waiting.judged.cancel()

    def send(self, replica: int, message: Message) -> None:
        connection = self._outgoing.get(replica)
        if connection is None:
            self._counters.message_dropped(Dropped.NOT_CONNECTED)
        elif connection.queued_bytes > SEND_QUEUE_MAX:
            self._counters.message_dropped(Dropped.QUEUE_FULL)
        else:
            connection.send(message)

    def refuse(self, message: Message) -> None:
        """Close the connection of a frame that no honest replica sends. What came behind it is not looked at."""
        if isinstance(message, PeerMessage):
            self._incoming.pop(message.connection, None)
            message.connection.close()

    @property
    def connected(self) -> set[int]:
        """Replicas that we can send to and that have answered."""
        return set(self._greeted)

    @property
    def memory_bytes(self) -> int:
        """What the connections hold in receive buffers and in what was not taken yet."""
        return sum(connection.memory_bytes for connection in (*self._outgoing.values(), *self._incoming))

    # Dialling

    async def _dial(self, replica: int) -> None:
        loop = asyncio.get_running_loop()
        delay = DIAL_FIRST_S
        quick = 0  # attempts that follow at once
        while True:
            closed: asyncio.Future[None] = loop.create_future()
            host, port = self._addresses[replica]
            try:
                # Not wait_for: in Python 3.11 that loses a cancellation in the moment when the attempt ends.
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    connection = await connect(lambda closed=closed: self._dialled(replica, closed), host, port)  # type: ignore[misc]
            except (OSError, RuntimeError) as error:  # and TimeoutError, which is one; no thread to resolve the name
                if quick and isinstance(error, ConnectionRefusedError):
                    quick = 0
                    self._refused.add(replica)
                    self._note_gone(replica)
            else:
                began = loop.time()
                self._refused.discard(replica)
                self._outgoing[replica] = connection
                connection.send(self._hello())
                await closed
                if replica in self._greeted and loop.time() - began >= LASTED_S:
                    quick = QUICK_DIALS
                if self._outgoing.get(replica) is connection:
                    del self._outgoing[replica]
                    self._greeted.discard(replica)
                if loop.time() - began > DIAL_MAX_S:
                    delay = DIAL_FIRST_S
            if quick:
                quick -= 1
                await asyncio.sleep(QUICK_DIAL_S)
                continue
            await asyncio.sleep(delay * (0.5 + self._random.random()))
            delay = min(delay * 2, DIAL_MAX_S)

    def _note_gone(self, replica: int) -> None:
        """It is gone once its frames have all come, too."""
        if replica in self._refused and self._first(replica) is None:
            self._refused.discard(replica)
            if self._on_gone is not None and not self._stopped:
                self._on_gone(replica)

    def _dialled(self, replica: int, closed: asyncio.Future[None]) -> FrameConnection:
        def finish(_: FrameConnection, error: Exception | None) -> None:
            if not closed.done():
                closed.set_result(None)

        return FrameConnection(
            on_frames=lambda connection, frames: self._on_answer(replica, connection, frames),
            on_open=lambda connection: keep_alive(connection, SILENCE_MS),
            on_closed=finish,
            frame_max=HELLO_BYTES_MAX,
            counters=self._counters,
        )

    def _on_answer(
        self, replica: int, connection: FrameConnection, frames: Sequence[tuple[Header, memoryview]]
    ) -> None:
        """On a connection that we dialled a peer only says HELLO, or why it refuses us."""
        for header, _ in frames:
            reason = Reason.MALFORMED
            if header.cluster != self._cluster:
                reason = Reason.WRONG_CLUSTER
            elif header.command not in KNOWN_COMMANDS:
                self._counters.message_dropped(Dropped.UNKNOWN_COMMAND)
                continue
            elif header.command == Command.REJECT:
                reason = next((reason for reason in (*STRANGER, *NO_MEMBER) if reason == header.reason), reason)
                if reason in NO_MEMBER and header.replica == replica:
                    self._doorkeeper.refused_by(header)
            elif header.command == Command.HELLO and header.replica != replica:
                reason = Reason.WRONG_REPLICA
            elif header.command == Command.HELLO and (judged := self._doorkeeper.judge_greeting(header)):
                reason = judged
            elif header.command == Command.HELLO:
                if replica in self._greeted:  # asked whether we are there
                    connection.send(self._hello())
                self.refusals.pop(replica, None)
                self._greeted.add(replica)
                self.met = True
                continue
            is_full = header.command == Command.REJECT and header.reason == Reason.CONNECTIONS
            self._counters.message_dropped(Dropped.CONNECTION_LIMIT if is_full else DROPPED[reason])
            connection.close()
            known = self.refusals.get(replica)
            if reason in STRANGER and (known is None or known.reason != reason):
                refusal = Refusal(reason, *self._addresses[replica], header.cluster, header.replica, header.count)
                self.refusals[replica] = refusal
                if self._on_refusal is not None:
                    self._on_refusal(replica, refusal)
            return

    def _hello(self) -> Message:
        return Message(
            self._make_header(
                cluster=self._cluster,
                command=Command.HELLO,
                replica=self.index,
                view=self._view(),
                count=len(self._addresses),
                **self._doorkeeper.greeting(),
            )
        )

    # Accepting

    def _accepting(self) -> FrameConnection:
        return FrameConnection(
            on_frames=self._on_frames,
            on_open=self._on_open,
            on_closed=self._on_lost,
            frame_max=HELLO_BYTES_MAX,
            chunk_first=CHUNK_BYTES_FIRST,
            chunk_min=CHUNK_BYTES_FIRST,
            counters=self._counters,
        )

    def _on_open(self, connection: FrameConnection) -> None:
        if self._stopped:  # it was being accepted in that moment
            connection.abort()
            return
        keep_alive(connection, SILENCE_MS)
        self._incoming[connection] = None
        self._deadlines[connection] = asyncio.get_running_loop().call_later(HELLO_SECONDS, connection.abort)
        if len(self._deadlines) > self._strangers_max // 2:  # a peer must find a place: who was silent longest goes
            next(iter(self._deadlines)).abort()

    def _on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        hello = self._incoming.pop(connection, None)
        replica = hello.replica if hello is not None else None
        deadline = self._deadlines.pop(connection, None)
        if deadline is not None:
            deadline.cancel()
        for index, waiting in list(self._waiting.items()):
            if waiting.connection is connection:
                waiting.judged.cancel()
                del self._waiting[index]
            elif replica == index:
                self._judge(index)
        if replica is not None:
            self._note_gone(replica)

    def _on_frames(self, connection: FrameConnection, frames: Sequence[tuple[Header, memoryview]]) -> None:
        hello = self._incoming.get(connection)
        start = 0
        if hello is None:
            if not self._greet(connection, frames):
                return
            hello = frames[0][0]
            start = 1
        peer = hello.replica
        messages: list[Message] = []
        for header, body in frames[start:]:
            if header.cluster != self._cluster:  # it came together with HELLO; later ones do not get this far
                self._counters.message_dropped(Dropped.WRONG_CLUSTER)
                connection.close()
                break
            if header.command == Command.HELLO:
                continue  # it is there, as it was asked
            if header.replica == peer or header.command == Command.PREPARE:
                messages.append(PeerMessage(header, body, connection))
            else:
                self._counters.message_dropped(Dropped.IMPOSTOR)
        if messages:
            self._on_messages(messages)

    def _greet(self, connection: FrameConnection, frames: Sequence[tuple[Header, memoryview]]) -> bool:
        """Let a peer in by its first frame, or say why not and close, or let it wait."""
        if connection not in self._incoming:
            return False
        hello = frames[0][0]
        reason = Reason.NONE
        if hello.command != Command.HELLO:
            reason = Reason.MALFORMED
        elif hello.cluster != self._cluster:
            reason = Reason.WRONG_CLUSTER
        elif hello.count != len(self._addresses):
            reason = Reason.WRONG_SIZE
        elif not 0 <= hello.replica < len(self._addresses) or hello.replica == self.index:
            reason = Reason.WRONG_REPLICA
        elif stranger := self._doorkeeper.judge_greeting(hello):
            reason = stranger
        elif hello.replica in self._waiting:
            reason = Reason.CONNECTIONS
        if reason is not Reason.NONE:
            self._refuse(connection, reason, hello)
            return False
        if (deadline := self._deadlines.pop(connection, None)) is not None:
            deadline.cancel()
        connection.cluster = self._cluster
        connection.frame_max = self._frame_max
        connection.chunk_min = CHUNK_BYTES
        first = self._first(hello.replica)
        if first is not None:
            first.send(self._hello())
            judged = asyncio.get_running_loop().call_later(PROBE_S, self._judge, hello.replica)
            self._waiting[hello.replica] = _Waiting(connection, first.received_bytes, judged)
            connection.keep(frames)  # HELLO with them: then it is greeted
            return False
        self._incoming[connection] = hello
        connection.send(self._hello())
        return True

    def judge_again(self) -> None:
        """This replica has become a member, and knows now who the others are: whom it let in before may be none."""
        for connection, hello in list(self._incoming.items()):
            if hello is not None and (reason := self._doorkeeper.judge_greeting(hello)):
                del self._incoming[connection]
                self._refuse(connection, reason, hello)

    def _first(self, replica: int) -> FrameConnection | None:
        """The connection that speaks for a replica."""
        for connection, hello in self._incoming.items():
            if hello is not None and hello.replica == replica and connection.is_open:
                return connection
        return None

    def _judge(self, replica: int) -> None:
        """The second connection takes the place of the first, unless that one lives."""
        waiting = self._waiting.pop(replica)
        waiting.judged.cancel()
        first = self._first(replica)
        if first is not None and first.received_bytes > waiting.seen:
            self._refuse(waiting.connection, Reason.CONNECTIONS)
            return
        if first is not None:
            self._incoming[first] = None
            first.abort()
        waiting.connection.go_on()

    def _on_too_many(self, address: str) -> None:
        self._counters.message_dropped(Dropped.CONNECTION_LIMIT)
        self._counters.connection_refused(address, Dropped.CONNECTION_LIMIT.value)

    def _refuse(self, connection: FrameConnection, reason: Reason, about: Header | None = None) -> None:
        self._counters.message_dropped(DROPPED[reason])
        self._counters.connection_refused(connection.peer, reason.name.lower())
        connection.send(self._reject(reason, about))
        connection.close()

    def _reject(self, reason: Reason, about: Header | None = None) -> Message:
        return Message(
            self._make_header(
                cluster=self._cluster,
                command=Command.REJECT,
                replica=self.index,
                reason=reason,
                count=len(self._addresses),
                context=about.checksum if about is not None else ZERO16,
                **self._doorkeeper.greeting(),
            )
        )
