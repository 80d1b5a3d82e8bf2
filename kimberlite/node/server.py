"""The client side of a node: HELLO, requests, reads, status.

Requests are checked (event batch, limits) before the core sees them, and handed on together,
all of one turn. Replies go to the connection a client used last. Reads are answered here,
from what this replica has applied; a read that waits for new events is parked until
they come or its time is over: one for each connection.

Whoever has many wants does not make others wait: reads, the status and refusals have their turns (node.turns),
connections their bounds (node.connections). Nothing more of a connection is handled once it is closed.

May import: errors, types, told, _fast, net, node.connections, node.reader, node.turns.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from kimberlite._fast import events
from kimberlite.errors import CorruptEntryError, EventTooLargeError, FrameError, PositionError
from kimberlite.net import CLIENT_VERSION, READ_END, READ_TIMES, READ_WAIT, times
from kimberlite.net.peers import HELLO_BYTES_MAX, HELLO_SECONDS, keep_alive
from kimberlite.net.sockets import Listener, bind
from kimberlite.net.transport import CHUNK_BYTES_FIRST, Counters, FrameConnection, NullCounters
from kimberlite.node.connections import Bounds, Client, Connections
from kimberlite.node.reader import LogReader
from kimberlite.node.turns import BYTE_NS, LATER_NS, READ_NS, REFUSAL_NS, REFUSALS_PER_TURN, STATUS_NS, Turns
from kimberlite.told import TELLS
from kimberlite.types import (
    NO_REPLICA,
    ZERO16,
    ClientId,
    ClusterId,
    Command,
    Dropped,
    Ended,
    Header,
    HeaderFactory,
    Message,
    Operation,
    Reason,
)

REPLY_QUEUE_MAX = 32 << 20  # bytes queued for a client that does not read: then it is disconnected
READ_BYTES_MAX = 2 << 20
WRITE_HIGH, WRITE_LOW = 1 << 20, 256 << 10  # bytes of answers not taken: no more are made, and again
# Refusals that any client may meet: it has to go elsewhere, or to come later.
NO_FAULT = frozenset(
    {
        *(Reason.NOT_PRIMARY, Reason.BUSY_PIPELINE, Reason.BUSY_QUEUE, Reason.NOT_READY, Reason.DISK_FULL),
        *(Reason.DRAINING, Reason.NO_SESSION),
    }
)
READ_WAIT_MAX_NS = 60_000_000_000
TOLD_PER_TURN = 64  # clients that are told of another view in one turn of the loop


class ClientServer:
    """Listens for clients. on_requests gets valid REQUEST frames; status gives the JSON document.

    members: addresses for clients of all replicas, by index. progress: see node.turns. held_elsewhere: bytes that other
    connections hold of bounds.memory."""

    def __init__(
        self,
        *,
        index: int,
        members: Sequence[str],
        listen_on: tuple[str, int],
        cluster: ClusterId,
        make_header: HeaderFactory,
        view: Callable[[], int],
        on_requests: Callable[[list[Message]], None],
        status: Callable[[], dict[str, object]],
        reader: LogReader,
        event_bytes_max: int = 1 << 20,
        request_bytes_max: int = 2 << 20,
        events_max: int = 65_536,
        frame_max: int = 4 << 20,
        bounds: Bounds | None = None,
        progress: Callable[[], int] = lambda: 0,
        held_elsewhere: Callable[[], int] = lambda: 0,
        counters: Counters | None = None,
    ) -> None:
        self._index = index
        self._members = list(members)
        self._listen_on = listen_on
        self._cluster = cluster
        self._make_header = make_header
        self._view = view
        self._on_requests = on_requests
        self._status = status
        self._reader = reader
        self._event_bytes_max = event_bytes_max
        self._request_bytes_max = request_bytes_max
        self._events_max = events_max
        self._frame_max = frame_max
        self._counters = counters or NullCounters()
        self._clients = Connections(
            bounds or Bounds(),
            dismiss=self._dismiss,
            ended=self._on_ended,
            held_elsewhere=held_elsewhere,
        )
        self._turns = Turns(progress)
        self._parked: set[Client] = set()
        self._untold: list[Client] = []  # of the view that has begun
        self._answered = 0  # bytes of answers to reads and status
        self._server: Listener | None = None
        self._stopped = False

    async def start(self) -> None:
        """Raises AddressInUseError."""
        self._server = Listener(
            await bind(*self._listen_on, "for clients"),
            self._accepting,
            has_room=self._clients.has_room,
            refusal=lambda: self._rejection(Reason.CONNECTIONS).header.raw,
            refused=lambda address: self._on_ended(Ended.REFUSED, address),
        )

    async def stop(self) -> None:
        self._stop_listening()
        for connection in self._clients.all():
            connection.close()

    def abort(self) -> None:
        """Cut all clients off: nothing that is queued for them leaves."""
        self._stop_listening()
        for connection in self._clients.all():
            connection.abort()

    def _stop_listening(self) -> None:
        self._stopped = True
        if self._server is not None:
            self._server.close()
        self._clients.stop()

    @property
    def memory_bytes(self) -> int:
        """Of the receive buffers of all connections, and of answers that were not taken."""
        return sum(connection.memory_bytes for connection in self._clients.all())

    @property
    def connections(self) -> int:
        """Without those that are only told that there are too many."""
        return len(self._clients)

    def send_client(self, client: ClientId, message: Message) -> None:
        """To the connection that this client used last; dropped when it has none here."""
        route = self._clients.routes.get(client)
        if route is None:
            self._counters.message_dropped(Dropped.NO_CLIENT)
            return
        connection = route[-1].connection
        if connection.queued_bytes > REPLY_QUEUE_MAX:
            self._counters.message_dropped(Dropped.SLOW_CLIENT)
            connection.abort()
        else:
            if message.header.command == Command.REJECT:
                route[-1].owed += LATER_NS if message.header.reason in NO_FAULT else REFUSAL_NS
            elif route[-1].tells is not None:
                self._hear(route[-1], message)
            connection.send(message)

    def _hear(self, client: Client, answer: Message) -> None:
        """What a client told with a request counts once, when that is answered: who refuses it has not heard it."""
        told = client.tells
        if told is not None and told.checksum == answer.header.context:
            client.tells, client.counted = None, told.checksum
            self._counters.client_told(told)

    def tell_view(self) -> None:
        """Another view has begun: whoever appends need not find out whom to ask now."""
        news = Message(
            self._make_header(
                cluster=self._cluster,
                command=Command.HELLO,
                replica=self._index,
                view=self._view(),
                count=len(self._members),
            )
        )
        self._untold = [client for client in self._clients.regular() if client.appends]
        self._tell(news)

    def _tell(self, news: Message) -> None:
        """Some now, the others in the turns of the loop that follow: all of them are not worth a commit's time."""
        for client in self._untold[-TOLD_PER_TURN:]:
            if client.connection.queued_bytes <= REPLY_QUEUE_MAX:
                client.connection.send(news)
        del self._untold[-TOLD_PER_TURN:]
        if self._untold:
            asyncio.get_running_loop().call_soon(self._tell, news)

    # Connections

    def _accepting(self) -> FrameConnection:
        return FrameConnection(
            on_frames=self._on_frames,
            on_open=self._on_open,
            on_closed=self._on_lost,
            on_writable=self._on_writable,
            frame_max=HELLO_BYTES_MAX,
            chunk_first=CHUNK_BYTES_FIRST,
            chunk_min=CHUNK_BYTES_FIRST,
            memory=self._clients.memory,
            counters=self._counters,
        )

    def _on_open(self, connection: FrameConnection) -> None:
        if self._stopped:  # it was being accepted in that moment
            connection.abort()
            return
        keep_alive(connection)
        if connection.transport is not None:  # room for an answer while the one before is on its way
            connection.transport.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)
        self._clients.add(connection, HELLO_SECONDS)

    def _on_lost(self, connection: FrameConnection, error: Exception | None) -> None:
        client = self._clients.remove(connection)
        if client is not None:
            self._unpark(client)
            self._turns.forget(client)

    def _on_writable(self, connection: FrameConnection) -> None:
        client = self._clients.get(connection)
        if client is not None:
            self._turns.on_writable(client)

    def _on_ended(self, why: Ended, address: str) -> None:
        self._counters.connection_ended(why)
        self._counters.connection_refused(address, why.value)

    def _dismiss(self, client: Client, reason: Reason) -> None:
        client.connection.send(self._rejection(reason))

    # Frames

    def _on_frames(self, connection: FrameConnection, frames: Sequence[tuple[Header, memoryview]]) -> None:
        client = self._clients.get(connection)
        if client is None:
            return
        requests: list[Message] = []
        handled = self._handle(client, frames, requests)
        if handled < len(frames) and connection.is_open:
            connection.keep(frames[handled:])
            self._turns.wait(client)
        if requests:
            self._on_requests(requests)

    def _handle(self, client: Client, frames: Sequence[tuple[Header, memoryview]], requests: list[Message]) -> int:
        """Handle frames as far as this turn allows; how many. Valid requests are added to `requests`."""
        last = len(frames)
        if client.owed:
            if not self._turns.take(client):
                return 0
            last = min(last, REFUSALS_PER_TURN)
        routes, is_served = self._clients.routes, False
        for number, (header, body) in enumerate(frames):
            if number >= last:
                return number
            if not client.is_regular:
                if client.identity is None:
                    if not self._greet(client, header):
                        return number
                    continue
                if header.command != Command.STATUS and not self._clients.admit(client):
                    return number
            if header.replica != NO_REPLICA:
                self._reject(client, header, Reason.MALFORMED)
            elif header.cluster not in (self._cluster, ZERO16):
                self._reject(client, header, Reason.WRONG_CLUSTER)
                client.connection.close()
            elif header.command == Command.REQUEST:
                reason = self._why_not(header, body)
                if reason is Reason.NONE:
                    route = routes.get(header.client)
                    if route is None or route[-1] is not client:
                        self._clients.use(header.client, client)
                    client.appends = True
                    if header.flags & TELLS and header.checksum != client.counted:
                        client.tells = header
                    requests.append(Message(header, body))
                    continue
                self._reject(client, header, reason)
            elif header.command == Command.READ and self._parks(client, header):
                self._park(client, header)
            elif header.command in (Command.READ, Command.STATUS):
                if is_served or not self._turns.take(client):
                    return number
                is_served = True
                self._serve(client, header)
            else:
                self._reject(client, header, Reason.MALFORMED)
            if not client.connection.is_open:
                return number
            if client.owed >= REFUSALS_PER_TURN * REFUSAL_NS:
                last = number + 1
        return len(frames)

    def _greet(self, client: Client, header: Header) -> bool:
        reason = Reason.NONE
        if header.command != Command.HELLO or header.replica != NO_REPLICA:
            reason = Reason.MALFORMED
        elif header.cluster not in (self._cluster, ZERO16):
            reason = Reason.WRONG_CLUSTER
        elif header.count < CLIENT_VERSION:
            reason = Reason.VERSION
        if reason is not Reason.NONE:
            self._reject(client, header, reason)
            self._counters.connection_refused(client.connection.peer, reason.name.lower())
            client.connection.close()
            return False
        self._clients.greeted(client, header.client)
        client.connection.frame_max = self._frame_max
        self._answer(client, Command.HELLO, header, self._greeting(), count=len(self._members))
        return True

    def _greeting(self) -> bytes:
        """What a client needs to find everybody."""
        view = self._view()
        primary = view % len(self._members)  # as clients reckon: see vsr.members, shown
        said = {"members": self._members, "primary": primary, "view": view, "replica": self._index}
        return json.dumps(said, separators=(",", ":")).encode()

    def _why_not(self, header: Header, body: memoryview) -> Reason:
        """Why a request can not enter the log; NONE when it can."""
        if header.cluster != self._cluster:
            return Reason.WRONG_CLUSTER
        if header.operation == Operation.REGISTER:
            return Reason.NONE if not len(body) and not header.count else Reason.MALFORMED
        if header.operation != Operation.APPLY or header.nonce:  # what an extension asks for may not be left out
            return Reason.MALFORMED
        if len(body) > self._request_bytes_max or header.count > self._events_max:
            return Reason.TOO_LARGE
        try:
            count = events.validate(body, self._event_bytes_max)
        except EventTooLargeError:
            return Reason.TOO_LARGE
        except FrameError:
            return Reason.MALFORMED
        return Reason.NONE if count == header.count and count > 0 else Reason.MALFORMED

    def _answer(self, client: Client, command: Command, about: Header, body: bytes = b"", **fields: Any) -> None:
        header = self._make_header(
            body,
            cluster=self._cluster,
            command=command,
            replica=self._index,
            view=self._view(),
            client=about.client,
            request=about.request,
            context=about.checksum,
            **fields,
        )
        self._answered += len(body)
        if client.connection.queued_bytes > REPLY_QUEUE_MAX:
            self._counters.message_dropped(Dropped.SLOW_CLIENT)
            client.connection.abort()
        else:
            client.connection.send(Message(header, body))

    def _reject(self, client: Client, about: Header, reason: Reason, position: int | None = None) -> None:
        """position: the first that can be read, when that is what is wrong; else the end of the log."""
        self._counters.request_rejected(reason)
        client.owed += REFUSAL_NS
        where = position if position is not None else self._reader.end
        self._answer(client, Command.REJECT, about, reason=reason, position=where)

    def _rejection(self, reason: Reason) -> Message:
        """A REJECT of the connection as such."""
        return Message(
            self._make_header(
                cluster=self._cluster,
                command=Command.REJECT,
                replica=self._index,
                view=self._view(),
                reason=reason,
                position=self._reader.end,
            )
        )

    # Reads and the status

    def _serve(self, client: Client, header: Header) -> None:
        """A turn of its own: what it takes is charged."""
        began, before = time.monotonic_ns(), self._answered
        if header.command == Command.READ:
            self._read(client, header)
        else:
            document = json.dumps(self._status(), separators=(",", ":")).encode()
            self._answer(client, Command.STATUS_REPLY, header, document)
        least = READ_NS if header.command == Command.READ else STATUS_NS
        self._turns.charge(max(time.monotonic_ns() - began, least) + BYTE_NS * (self._answered - before))

    def _read(self, client: Client, header: Header) -> None:
        if header.flags & READ_END:
            self._answer_read(client, header)
            return
        if header.flags & READ_WAIT and header.position == self._reader.end:
            self._park(client, header)
            return
        bytes_max = min(header.session or READ_BYTES_MAX, READ_BYTES_MAX)
        try:
            body, count, runs = self._reader.read(header.position, header.count or 1 << 31, bytes_max)
        except PositionError as error:
            if error.first is not None and header.position < error.first:
                self._reject(client, header, Reason.POSITION_TRIMMED, error.first)
            else:
                self._reject(client, header, Reason.POSITION_BEYOND_END)
        except CorruptEntryError:
            self._reject(client, header, Reason.CORRUPT)
        else:
            if header.flags & READ_TIMES:
                self._answer_read(client, header, body + times.encode(runs), count, len(runs))
            else:
                self._answer_read(client, header, body, count)

    def _answer_read(self, client: Client, header: Header, body: bytes = b"", count: int = 0, runs: int = 0) -> None:
        self._answer(
            client,
            Command.READ_REPLY,
            header,
            body,
            position=header.position,
            count=count,
            session=runs,
            timestamp=self._reader.end,
            op=self._reader.applied,
        )

    def _parks(self, client: Client, header: Header) -> bool:
        """Whether a READ waits and costs nothing until there is something for it. One that takes the place of another
        has to wait for its turn, as others do."""
        return (
            bool(header.flags & READ_WAIT)
            and not header.flags & READ_END
            and client.parked is None
            and header.position == self._reader.end
        )

    def _park(self, client: Client, header: Header) -> None:
        """Wait for events. A second READ on the connection takes the place of the first."""
        self._unpark(client)
        wait = min(header.timestamp, READ_WAIT_MAX_NS) / 1e9
        client.parked = header
        client.parked_until = asyncio.get_running_loop().call_later(wait, self._on_parked_too_long, client)
        self._parked.add(client)

    def _unpark(self, client: Client) -> Header | None:
        header, client.parked = client.parked, None
        if client.parked_until is not None:
            client.parked_until.cancel()
            client.parked_until = None
        self._parked.discard(client)
        return header

    def _on_parked_too_long(self, client: Client) -> None:
        header = self._unpark(client)
        if header is not None:
            self._answer_read(client, header)

    def on_applied(self) -> None:
        """The log may have grown: answer the reads that waited for it."""
        if not self._parked:
            return
        end = self._reader.end
        for client in list(self._parked):
            if client.parked is not None and client.parked.position < end:
                header = self._unpark(client)
                if header is not None:
                    self._read(client, header)
