"""The primary of a view: requests into prepares, acknowledgements into commits, replies, heartbeats.

VRR section 4.1 with these differences: requests that wait share the next prepare; the primary counts itself only when
its own write is durable; acknowledgements are cumulative. A primary answers nothing before it is `ready`: before it
has committed and executed all that the last view left, it does not know what has been answered.
When it gives its view up is said by vsr.abdication. Imports types and vsr only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kimberlite.errors import invariant
from kimberlite.types import (
    FLAG_PREPARED,
    HEADER_SIZE,
    ZERO16,
    Bytes,
    Checksum,
    Command,
    Message,
    Operation,
    Reason,
    Room,
    Status,
)
from kimberlite.vsr import abdication, evidence, round_trips
from kimberlite.vsr.abdication import Lag
from kimberlite.vsr.codec import ClientRequest, encode_headers, encode_trim
from kimberlite.vsr.config import MS
from kimberlite.vsr.events import DropReason, EventKind, GaveUp, ViewChangeCause
from kimberlite.vsr.execution import trimmable_op
from kimberlite.vsr.journaling import acknowledged_op
from kimberlite.vsr.requests import Requests, is_newer
from kimberlite.vsr.role import Role, Story, Transition, note_disk
from kimberlite.vsr.round_trips import Timed
from kimberlite.vsr.sessions import Result, Session
from kimberlite.vsr.state import Peer, Prepared
from kimberlite.vsr.timers import Timer
from kimberlite.vsr.work import Admission, ServePrepare

if TYPE_CHECKING:
    from kimberlite.vsr.state import State

REQUEST_RECORD_BYTES = 72  # what a request adds to a prepare of several beside its body, or more
REQUESTED = (Operation.APPLY, Operation.REGISTER)  # what a client may ask for
# What a client is told to wait, at least and at most, when the queue is full.
BUSY_WAIT_MIN_MS = 1
BUSY_WAIT_MAX_MS = 1000
# For every op: a name of the module is looked up in a quarter of the time that a member of an enum takes.
PREPARE, REGISTER = Command.PREPARE, Operation.REGISTER
PREPARED, PREPARE_ACKED, REPLIED = EventKind.PREPARED, EventKind.PREPARE_ACKED, EventKind.REPLIED


class Leading(Role):
    """See the module docstring."""

    __slots__ = (
        "committing",
        "full_peers",
        "gave_up",
        "heartbeat_timer",
        "lag",
        "left_at",
        "pipeline",
        "prepare_timer",
        "ready",
        "ready_at_op",
        "requests",
        "timed",
    )

    status = Status.NORMAL
    is_leading = True

    def __init__(self, left_at: int, full_peers: set[int]) -> None:
        """left_at: when this replica left the last view that had begun. full_peers: who said in its evidence that its
        disk is full."""
        self.heartbeat_timer = Timer()
        self.prepare_timer = Timer()  # until the oldest prepare is sent again
        super().__init__(self.heartbeat_timer, self.prepare_timer)
        self.left_at = left_at
        self.requests = Requests()
        self.pipeline: deque[Prepared] = deque()  # uncommitted
        self.committing: dict[int, Prepared] = {}  # op -> committed, and not yet executed here
        self.ready = False
        self.ready_at_op = 0  # what the last view left ends there
        self.gave_up: GaveUp | None = None  # it is silent, and asks to be replaced
        self.full_peers = full_peers
        self.lag = Lag()
        self.timed = Timed()

    def begin(self, s: State, nonces: dict[int, int]) -> None:
        """This replica is the primary of its view now. nonces: of the evidence that others gave."""
        s.emit(EventKind.PRIMARY, 1)
        self.ready_at_op = s.log.op
        for op in range(s.commit_max + 1, s.log.op + 1):
            self.pipeline.append(Prepared(s.log.headers[op], s.now))
        for replica in s.peers:  # who has given no evidence asks for the log when it hears of this
            s.send(replica, _start_view_message(s, nonces.get(replica, 0)))
        self.heartbeat_timer.start(s.now)
        if self.pipeline:
            self.prepare_timer.start(s.now + s.prng.jitter(s.config.timing.prepare_resend_ns))
        self.on_entries_durable(s)

    def leave(self, s: State) -> None:
        s.emit(EventKind.PRIMARY, 0)

    def dismiss(self, s: State) -> None:
        """Send waiting clients to the next primary: they resend under the same request number."""
        if self.pipeline:
            s.emit(EventKind.ABANDONED, self.pipeline[0].header.op, len(self.pipeline))
        for prepared in (*self.pipeline, *self.committing.values()):
            for request, _ in prepared.requests:
                s.reject(request, Reason.NOT_PRIMARY, flags=FLAG_PREPARED)
        for request in self.requests:
            s.reject(request, Reason.NOT_PRIMARY)
        s.pace.since = None

    def story(self, s: State) -> Story:
        return Story(s.now, gave_up=(s.view, self.gave_up) if self.gave_up is not None else None)

    @property
    def sends_heartbeats(self) -> bool:
        return self.gave_up is None

    def cause(self, s: State) -> ViewChangeCause:
        return ViewChangeCause.PRIMARY_SILENT if self.gave_up is None else ViewChangeCause.ABDICATED

    # Requests

    def propose(self, s: State, message: Message) -> Admission:
        header = message.header
        if not self.takes_requests:
            return self.refuse(s, message, Reason.NOT_PRIMARY)
        if s.draining:
            return self.refuse(s, message, Reason.DRAINING)
        if len(message.body) > s.config.request_bytes_max:
            return self.refuse(s, message, Reason.TOO_LARGE)
        if not self.ready:
            if not self.can_journal(s):  # this copy is taken by nobody; what became of others, the client knows to ask
                return self.refuse(s, message, Reason.DISK_FULL)
            return self.hold(s, message)
        session = s.sessions.get(header.client)
        if header.operation == REGISTER:
            if session is not None:
                _send_reply(s, message, session.number, session.number, 0, 0, b"")
                return _duplicate(s, message)
        else:
            if session is None or session.number != header.session:
                return self.refuse(s, message, Reason.NO_SESSION)
            if header.request == session.request:
                self.resend_reply(s, message, session)
                return _duplicate(s, message)
            if header.request < session.request:
                return _duplicate(s, message)  # the client has its reply: it sent a later request since
            if header.request > session.request + 1:
                return self.refuse(s, message, Reason.REQUEST_TOO_NEW)
        if self.requests.is_in_flight(message):
            return _duplicate(s, message)
        if not self.can_journal(s):
            return self.refuse(s, message, Reason.DISK_FULL)
        if self.requests.is_full(s.config, message):
            return self._refuse_busy(s, message)
        self.requests.put(message, s.now)
        return Admission.ACCEPTED

    @property
    def takes_requests(self) -> bool:
        """Not of who asks to be replaced: its clients find the next primary, whom it may not hear of for long."""
        return self.gave_up is None

    def hold(self, s: State, message: Message) -> Admission:
        """Keep a request until sessions are up to date: what has been answered before can not be told yet. Of a
        client its newest one, and that once: it goes on only when it has been answered, by the last primary perhaps."""
        client = message.header.client
        held = self.requests.held(client)
        if held is not None:
            if not is_newer(message.header, held.header):
                return _duplicate(s, message)
            self.requests.let_go(client)
        if self.requests.is_full(s.config, message):
            return self._refuse_busy(s, message)
        self.requests.hold(message, s.now)
        return Admission.ACCEPTED

    def refuse(self, s: State, message: Message, reason: Reason) -> Admission:
        s.reject(message, reason)
        return Admission.REJECTED

    def _refuse_busy(self, s: State, message: Message) -> Admission:
        """The queue is full: the client may come back when half of it should have been committed, or, before this
        primary is ready, when it has been on the way for twice as long as now."""
        unready = max(s.now - self.left_at, s.config.timing.heartbeat_ns)
        wait = s.pace.wait(len(self.requests.queue) // 2, s.now) if self.ready else unready
        s.reject(message, Reason.BUSY_QUEUE, wait_ms=min(max(wait // MS, BUSY_WAIT_MIN_MS), BUSY_WAIT_MAX_MS))
        return Admission.REJECTED

    def refuse_all(self, s: State) -> None:
        """There is no room for what waits, and no more can be had."""
        for message in self.requests.refused():
            s.reject(message, Reason.DISK_FULL)

    def resend_reply(self, s: State, message: Message, session: Session) -> None:
        """What its client was answered, or should have been."""
        _send_reply(s, message, session.number, session.op, session.position, session.count, session.body)

    def can_journal(self, s: State) -> bool:
        """Whether this replica and a quorum have room for more, as far as is known: else a request would neither be
        committed nor answered until somebody makes some."""
        return not s.is_disk_full and not self.is_short_of_room(s)

    def is_short_of_room(self, s: State) -> bool:
        """Whether full disks of others keep this replica from a commit: a quorum is heard, and those of it whose disks
        are not full are none. Where no quorum is heard, nobody knows what those that are silent have room for."""
        if not self.full_peers or s.quorum_margin < 0:
            return False
        with_room = 1 + sum(s.is_heard(replica) for replica in s.peers if replica not in self.full_peers)
        return with_room < s.membership.quorums.replication

    # Prepares

    def flush(self, s: State) -> None:
        """Turn waiting requests into prepares, as far as the pipeline has room."""
        requests, pipeline = self.requests, self.pipeline
        if not self.ready and self.is_caught_up(s):
            self.ready = True
            for message in requests.take_waiting():
                self.propose(s, message)
        if requests and not self.can_journal(s):
            self.refuse_all(s)
        if not requests.queue or len(pipeline) >= s.config.pipeline_max:
            return
        room = _room_ahead(s)
        while requests.queue and len(pipeline) < s.config.pipeline_max and not s.is_backed_up:
            batch = requests.take_batch(s.config)
            room = room and room.after(_entry_bytes_max(batch))
            if room is None or room.bytes < s.config.room_kept_bytes:
                requests.put_back(batch)
                if s.disk.room.is_exhausted:
                    self.refuse_all(s)
                else:
                    s.disk.wants_room = True
                break
            self.prepare(s, batch)

    def is_at_rest(self, s: State) -> bool:
        return self.ready and not self.requests.queue

    def is_caught_up(self, s: State) -> bool:
        """Whether everything that the last view left is committed and applied here."""
        return s.execution.applied >= self.ready_at_op and s.outbox.promise is None

    def propose_trim(self, s: State, first_op: int, first_position: int) -> bool:
        """Prepare a TRIM, unless that can not be done now."""
        if not self.ready or s.draining or len(self.pipeline) >= s.config.pipeline_max:
            return False
        if not s.log.first_op < first_op <= min(trimmable_op(s), s.execution.applied):
            return False
        body = encode_trim(first_op, first_position)
        room = _room_ahead(s)
        if room is None or room.after(HEADER_SIZE + len(body)) is None:
            return False
        self._send_prepare(s, body, [], operation=Operation.TRIM)
        return True

    def prepare(self, s: State, batch: list[tuple[Message, int]]) -> None:
        """Make one prepare of these requests."""
        first = batch[0][0].header
        body: Bytes
        if len(batch) == 1:
            body = batch[0][0].body
            operation, client, session, request = first.operation, first.client, first.session, first.request
            context, checksum_body, count = first.checksum, first.checksum_body, first.count
        else:
            body = s.codec.pack_requests(
                [
                    ClientRequest(
                        m.header.client, m.header.session, m.header.request, m.header.operation, m.header.count, m.body
                    )
                    for m, _ in batch
                ]
            )
            operation, client, session, request = int(Operation.BATCH), ZERO16, 0, 0
            context, checksum_body = ZERO16, None
            count = sum(m.header.count for m, _ in batch)
        s.emit(EventKind.QUEUED, s.now - batch[0][1])
        self._send_prepare(
            s,
            body,
            batch,
            operation=operation,
            client=client,
            session=session,
            request=request,
            count=count,
            context=context,
            checksum_body=checksum_body,
        )

    def _send_prepare(
        self, s: State, body: Bytes, batch: list[tuple[Message, int]], **fields: int | Checksum | None
    ) -> None:
        """Make the next prepare of these fields, send it to all backups and to the journal."""
        previous = s.log.headers[s.log.op]
        header = s.codec.make_header(
            body,
            cluster=s.config.cluster,
            command=PREPARE,
            replica=s.index,
            view=s.view,
            op=previous.op + 1,
            commit=s.commit_max,
            parent=previous.checksum,
            timestamp=s.clock.stamp(s.now, previous.timestamp),
            position=previous.position + previous.count,
            checkpoint_op=s.execution.checkpoint_op,
            **fields,  # type: ignore[arg-type]
        )
        message = Message(header, body)
        s.log.append(message)
        self.pipeline.append(Prepared(header, s.now, 0, batch))
        s.scope.entered[header.op] = s.now
        for replica in s.peers:
            s.pass_on(replica, message)
        s.emit(PREPARED, header.op, header.count, header.size)
        timing = s.config.timing
        self.prepare_timer.start_if_idle(s.now + s.prng.jitter(timing.prepare_resend_ns))
        self.heartbeat_timer.start(s.now + timing.heartbeat_ns)
        round_trips.begin(s, timing, self.timed, header.op)

    # Acknowledgements and commits

    def on_entries_durable(self, s: State) -> None:
        """Entries written in this view reached the disk: they count as acknowledged."""
        self.count(s, s.index, acknowledged_op(s))

    def on_prepare_ok(self, s: State, message: Message) -> Transition | None:
        """Count a backup's acknowledgement for its op and everything below."""
        header = message.header
        if header.op > s.log.op or header.checkpoint_op > s.log.op:
            s.refuse(message, DropReason.OUT_OF_BOUNDS)  # a backup of this view has nothing that its primary has not
            return None
        peer = s.peers[header.replica]
        round_trips.on_prepare_ok(s, self.timed, header)
        known = s.log.headers.get(header.op)
        if known is not None and known.checksum != header.context:
            s.drop(message, DropReason.BROKEN_CHAIN)
            return None
        if header.op > (peer.said.op or 0):
            peer.said.progress_at, peer.said.is_awaited = s.now, False
        peer.says(header.op)
        peer.commit = header.commit
        peer.checkpoint = header.checkpoint_op
        note_disk(self.full_peers, header)
        if known is not None:  # else far behind: nothing in the pipeline is concerned
            self.count(s, header.replica, header.op)
        return None

    def count(self, s: State, replica: int, op: int) -> None:
        """`replica` has everything up to `op`: advance the commit number as far as quorums allow."""
        bit = 1 << replica
        for prepared in self.pipeline:
            if prepared.header.op > op:
                break
            prepared.acks |= bit
        before = s.commit_max
        requests = 0
        while self.pipeline and self.may_commit(s, self.pipeline[0]):
            prepared = self.pipeline.popleft()
            requests += len(prepared.requests)
            s.commit_max = max(s.commit_max, prepared.header.op)
            self.committing[prepared.header.op] = prepared
            s.emit(PREPARE_ACKED, prepared.header.op, s.now - prepared.prepared_at, replica)
        if s.commit_max > before:
            s.pace.committed(requests, s.now, bool(self.pipeline or self.requests.queue))
            abdication.on_committed(s, self)
            if self.pipeline:
                self.prepare_timer.start(s.now + s.prng.jitter(s.config.timing.prepare_resend_ns))
            else:
                self.prepare_timer.stop()
                self.heartbeat_timer.start_no_later_than(s.now + s.config.timing.commit_linger_ns)

    def may_commit(self, s: State, prepared: Prepared) -> bool:
        """A replication quorum of distinct replicas has it durable, by acknowledgements of this view."""
        return s.membership.committed(prepared.acks)

    def take_committed(self, op: int) -> Prepared | None:
        return self.committing.pop(op, None)

    def answer(self, s: State, prepared: Prepared, results: Sequence[Result]) -> None:
        op = prepared.header.op
        header = s.log.headers.get(op)
        invariant(
            header is not None and header.checksum == prepared.header.checksum,
            "what is applied is what was committed",
            op=op,
        )
        for (request, received_at), result in zip(prepared.requests, results, strict=False):
            self.requests.in_flight.pop(request.header.client, None)
            number = op if result.operation == REGISTER else result.session
            if result.operation == REGISTER:
                session = s.sessions.get(result.client)
                number = session.number if session is not None else op
            _send_reply(s, request, number, op, result.position, result.events, result.body)
            s.emit(REPLIED, op, s.now - received_at, 1000 * request.header.latency_us)

    # Timers

    def tick(self, s: State) -> Transition | None:
        """Heartbeats, retransmission of the oldest prepare, and whether this view is to be given up."""
        why = None
        if self.heartbeat_timer.due(s.now) and self.gave_up is None:
            if s.peers:
                _heartbeat(s)
            self.heartbeat_timer.start(s.now + s.config.timing.heartbeat_ns)
        if self.prepare_timer.due(s.now) and self.pipeline:
            self._resend_oldest(s)
            self.prepare_timer.start(s.now + s.prng.jitter(s.config.timing.prepare_resend_ns))
            why = abdication.look_at_pipeline(s, self)
        lagging = abdication.look_at_lag(s, self)
        why = lagging if why is None else why
        left = self.abdicate(s, why) if why is not None else None
        return left if left is not None else self.tick_votes(s)

    def abdicate(self, s: State, why: GaveUp) -> Transition | None:
        """A primary that is of no use falls silent and asks for another."""
        self.gave_up = why
        s.emit(EventKind.ABDICATED, s.view, why)
        for message in self.requests.refused():
            s.reject(message, Reason.NOT_PRIMARY)
        return self.suspect(s)

    def on_returned(self, s: State, peer: Peer) -> None:
        if not peer.said.is_awaited:
            super().on_returned(s, peer)
            abdication.on_returned(s, self)

    def _resend_oldest(self, s: State) -> None:
        """To every replica that has not acknowledged it; the rest follows by repair."""
        oldest = self.pipeline[0]
        op = oldest.header.op
        message = s.log.bodies.get(op)
        for replica in s.peers:
            if oldest.acks >> replica & 1:
                continue
            if message is not None:
                s.pass_on(replica, message)
            elif s.log.holds(op):
                s.serve(ServePrepare(replica, op, oldest.header.checksum))

    # View changes

    def on_do_view_change(self, s: State, message: Message) -> Transition | None:
        """A replica is in this view but has not installed its log."""
        s.send(message.header.replica, _start_view_message(s, message.header.nonce))
        return None


def _duplicate(s: State, message: Message) -> Admission:
    s.emit(EventKind.DUPLICATE, message.header.request)
    return Admission.DUPLICATE


def _send_reply(s: State, request: Message, session: int, op: int, position: int, count: int, body: Bytes) -> None:
    header = request.header
    s.send_client(
        header.client,
        s.make_for_client(
            Command.REPLY,
            body,
            client=header.client,
            session=session,
            request=header.request,
            operation=header.operation,
            op=op,
            position=position,
            count=count,
            context=header.checksum,
        ),
    )


def _room_ahead(s: State) -> Room | None:
    """Room in the journal behind what this log holds already; None when even that does not fit."""
    room: Room | None = s.disk.room
    for op in range(s.log.journal_head + 1, s.log.op + 1):
        room = room and room.after(s.log.headers[op].size)
    return room


def _entry_bytes_max(batch: Sequence[tuple[Message, int]]) -> int:
    """At most so large is the prepare of these requests."""
    return HEADER_SIZE + sum(len(message.body) + REQUEST_RECORD_BYTES for message, _ in batch)


def _heartbeat(s: State) -> None:
    """Tell the backups the head (op), the commit number and the identity of that op, and the first op there is."""
    commit = s.commit
    header = s.log.headers.get(commit)
    s.broadcast(
        s.make(
            Command.COMMIT,
            op=s.log.op,
            position=commit,
            context=header.checksum if header is not None else ZERO16,  # ZERO16: no longer in memory
            request=s.log.first_op,
            nonce=s.now,
        )
    )


def _start_view_message(s: State, nonce: int) -> Message:
    """The canonical log from the commit number to the head, for who gave evidence with that nonce."""
    log = s.log
    suffix = [log.headers[op] for op in range(evidence.suffix_first(s), log.op + 1)]
    return s.make(
        Command.START_VIEW, encode_headers(suffix), op=log.op, log_view=s.log_view, count=len(suffix), nonce=nonce
    )
