"""Normal operation: requests into prepares, acknowledgements, commits, heartbeats.

VRR section 4.1 with these differences: an acknowledgement names the entry by identity and
is cumulative (a backup acknowledges n only when everything up to n is durable and
chained, so one frame answers for a whole group); requests that wait share the next
prepare; the primary counts itself only when its own write is durable.
Imports errors, types and vsr only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kimberlite.errors import invariant
from kimberlite.types import (
    FLAG_DISK_FULL,
    HEADER_SIZE,
    ZERO16,
    Bytes,
    Checksum,
    Command,
    Header,
    Message,
    Operation,
    Reason,
    Room,
    Status,
)
from kimberlite.vsr import abdication, conflict, quorum, repair, round_trips
from kimberlite.vsr.codec import ClientRequest, encode_trim, follows
from kimberlite.vsr.config import MS, PIPELINE_LIMIT
from kimberlite.vsr.events import DropReason, EventKind, GaveUp
from kimberlite.vsr.sessions import Result, Session
from kimberlite.vsr.state import Prepared
from kimberlite.vsr.work import Admission, ServePrepare

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica

REQUEST_RECORD_BYTES = 72  # what a request adds to a prepare of several beside its body, or more
REQUESTED = (Operation.APPLY, Operation.REGISTER)  # what a client may ask for
# What a client is told to wait, at least and at most, when the queue is full.
BUSY_WAIT_MIN_MS = 1
BUSY_WAIT_MAX_MS = 1000

# Requests


def propose(r: Replica, message: Message) -> Admission:
    """Accept, answer or refuse a client's request."""
    header = message.header
    if header.operation not in REQUESTED:
        return _refuse(r, message, Reason.MALFORMED)
    if r.status != Status.NORMAL or not r.is_primary:
        return _refuse(r, message, Reason.NOT_PRIMARY)
    if r.draining:
        return _refuse(r, message, Reason.DRAINING)
    if len(message.body) > r.config.request_bytes_max:
        return _refuse(r, message, Reason.TOO_LARGE)
    if not r.scope.ready:
        if not r.can_journal:  # this copy is taken by nobody; what became of others, the client knows to ask
            return _refuse(r, message, Reason.DISK_FULL)
        return _hold(r, message)
    session = r.sessions.get(header.client)
    if header.operation == Operation.REGISTER:
        if session is not None:
            _send_reply(r, message, session.number, session.number, 0, 0, b"")
            return _duplicate(r, message)
    else:
        if session is None or session.number != header.session:
            return _refuse(r, message, Reason.NO_SESSION)
        if header.request == session.request:
            _resend_reply(r, message, session)
            return _duplicate(r, message)
        if header.request < session.request:
            return _duplicate(r, message)  # the client has its reply: it sent a later request since
        if header.request > session.request + 1:
            return _refuse(r, message, Reason.REQUEST_TOO_NEW)
    if is_in_flight(r, message):
        return _duplicate(r, message)
    if not r.can_journal:
        return _refuse(r, message, Reason.DISK_FULL)
    if is_full(r, message):
        return _refuse_busy(r, message)
    r.in_flight[header.client] = header.request
    r.queue.append((message, r.now))
    r.queue_bytes += len(message.body)
    return Admission.ACCEPTED


def _hold(r: Replica, message: Message) -> Admission:
    """Keep a request until sessions are up to date: what has been answered before can not be told yet. Of a client
    its newest one, and that once: it goes on only when it has been answered, by the last primary perhaps."""
    held = r.waiting.get(message.header.client)
    if held is not None and not is_newer(message.header, held[0].header):
        return _duplicate(r, message)
    if held is not None:
        del r.waiting[message.header.client]
        r.queue_bytes -= len(held[0].body)
    if is_full(r, message):
        return _refuse_busy(r, message)
    r.waiting[message.header.client] = message, r.now
    r.queue_bytes += len(message.body)
    return Admission.ACCEPTED


def is_newer(header: Header, held: Header) -> bool:
    """Whether a request of a client comes after another one of it."""
    return (header.session, header.request) > (held.session, held.request)


def is_full(r: Replica, message: Message) -> bool:
    """Whether no place is left for one more request: those that wait for sessions, and those that wait for the
    pipeline, count together."""
    count = len(r.queue) + len(r.waiting)
    return count >= r.config.queue_max or r.queue_bytes + len(message.body) > r.config.queue_bytes_max


def is_in_flight(r: Replica, message: Message) -> bool:
    """A client has one request in flight: another frame of it is the same one again."""
    return message.header.client in r.in_flight


def _refuse(r: Replica, message: Message, reason: Reason) -> Admission:
    r.reject(message, reason)
    return Admission.REJECTED


def _refuse_busy(r: Replica, message: Message) -> Admission:
    """The queue is full: the client may come back when half of it should have been committed, or, before this primary
    is ready, when it has been on the way for twice as long as now."""
    unready = max(r.now - r.view_left_at, r.config.heartbeat_ns)
    wait = r.pace.wait(len(r.queue) // 2, r.now) if r.scope.ready else unready
    r.reject(message, Reason.BUSY_QUEUE, wait_ms=min(max(wait // MS, BUSY_WAIT_MIN_MS), BUSY_WAIT_MAX_MS))
    return Admission.REJECTED


def _duplicate(r: Replica, message: Message) -> Admission:
    r.emit(EventKind.DUPLICATE, message.header.request)
    return Admission.DUPLICATE


def _resend_reply(r: Replica, message: Message, session: Session) -> None:
    _send_reply(r, message, session.number, session.op, session.position, session.count, session.body)


def _send_reply(r: Replica, request: Message, session: int, op: int, position: int, count: int, body: Bytes) -> None:
    header = request.header
    r.send_client(
        header.client,
        r.make(
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


def flush(r: Replica) -> None:
    """Turn waiting requests into prepares, as far as the pipeline has room."""
    if not r.is_primary or r.status != Status.NORMAL:
        return
    if not r.scope.ready and _catch_up_done(r):
        r.scope.ready = True
        waiting, r.waiting, r.queue_bytes = r.waiting, {}, 0
        for message, _ in waiting.values():
            propose(r, message)
    if (r.queue or r.waiting) and not r.can_journal:
        _refuse_queue(r)
    if not r.queue or len(r.pipeline) >= r.config.pipeline_max:
        return
    room = _room_ahead(r)
    while r.queue and len(r.pipeline) < r.config.pipeline_max and not is_backed_up(r):
        batch = _take_batch(r)
        room = room and room.after(_entry_bytes_max(batch))
        if room is None or room.bytes < r.config.room_kept_bytes:
            _put_back(r, batch)
            if r.room.is_exhausted:
                _refuse_queue(r)
            else:
                r.wants_room = True
            break
        _prepare(r, batch)


def _room_ahead(r: Replica) -> Room | None:
    """Room in the journal behind what this log holds already; None when even that does not fit."""
    room: Room | None = r.room
    for op in range(r.log.journal_head + 1, r.log.op + 1):
        room = room and room.after(r.log.headers[op].size)
    return room


def _entry_bytes_max(batch: Sequence[tuple[Message, int]]) -> int:
    """At most so large is the prepare of these requests."""
    return HEADER_SIZE + sum(len(message.body) + REQUEST_RECORD_BYTES for message, _ in batch)


def _put_back(r: Replica, batch: Sequence[tuple[Message, int]]) -> None:
    r.queue.extendleft(reversed(batch))
    r.queue_bytes += sum(len(message.body) for message, _ in batch)


def _refuse_queue(r: Replica) -> None:
    """There is no room for what waits, and no more can be had: none of it was prepared."""
    for message, _ in r.queue:
        del r.in_flight[message.header.client]
    for message, _ in (*r.queue, *r.waiting.values()):
        r.reject(message, Reason.DISK_FULL)
    r.waiting.clear()
    r.queue.clear()
    r.queue_bytes = 0


def propose_trim(r: Replica, first_op: int, first_position: int) -> bool:
    """Prepare a TRIM, unless that is not for this replica to do, or not now."""
    if r.status != Status.NORMAL or not r.is_primary or not r.scope.ready or r.draining:
        return False
    if not r.first_op < first_op <= min(r.trimmable_op, r.applied) or len(r.pipeline) >= r.config.pipeline_max:
        return False
    body = encode_trim(first_op, first_position)
    room = _room_ahead(r)
    if room is None or room.after(HEADER_SIZE + len(body)) is None:
        return False
    _send_prepare(r, body, [], operation=Operation.TRIM)
    return True


def _catch_up_done(r: Replica) -> bool:
    """Whether everything that the last view left is committed and applied here."""
    return r.applied >= r.scope.ready_at_op and r.view_token is None


def _take_batch(r: Replica) -> list[tuple[Message, int]]:
    """As many waiting requests as one prepare may hold, at least one."""
    batch: list[tuple[Message, int]] = []
    size = 0
    while r.queue and len(batch) < r.config.prepare_requests_max:
        length = len(r.queue[0][0].body)
        if batch and size + length > r.config.prepare_bytes_max:
            break
        batch.append(r.queue.popleft())
        size += length
    r.queue_bytes -= size
    return batch


def next_timestamp(r: Replica, previous: int) -> int:
    """Strictly increasing along the log, whatever the clock does."""
    return max(r.now + r.clock_offset, previous + 1, r.last_timestamp + 1)


def _prepare(r: Replica, batch: list[tuple[Message, int]]) -> None:
    """Make one prepare of these requests."""
    first = batch[0][0].header
    body: Bytes
    if len(batch) == 1:
        body = batch[0][0].body
        operation, client, session, request = first.operation, first.client, first.session, first.request
        context, checksum_body, count = first.checksum, first.checksum_body, first.count
    else:
        body = r.codec.pack_requests(
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
    r.emit(EventKind.QUEUED, r.now - batch[0][1])
    _send_prepare(
        r,
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


def _send_prepare(r: Replica, body: Bytes, batch: list[tuple[Message, int]], **fields: int | Checksum | None) -> None:
    """Make the next prepare of these fields, send it to all backups and to the journal."""
    previous = r.log.headers[r.log.op]
    timestamp = r.last_timestamp = next_timestamp(r, previous.timestamp)
    header = r.codec.make_header(
        body,
        cluster=r.config.cluster,
        command=Command.PREPARE,
        replica=r.index,
        view=r.view,
        op=previous.op + 1,
        commit=r.commit_max,
        parent=previous.checksum,
        timestamp=timestamp,
        position=previous.position + previous.count,
        checkpoint_op=r.checkpoint_op,
        **fields,  # type: ignore[arg-type]
    )
    message = Message(header, body)
    r.log.append(message)
    r.pipeline.append(Prepared(header, r.now, 0, batch))
    r.entered[header.op] = r.now
    r.broadcast(message)
    r.emit(EventKind.PREPARED, header.op, header.count, header.size)
    r.prepare_timer.start_if_idle(r.now + r.prng.jitter(r.config.prepare_resend_ns))
    r.heartbeat_timer.start(r.now + r.config.heartbeat_ns)
    round_trips.begin(r, header.op)


# Prepares at a backup


def on_prepare(r: Replica, message: Message) -> None:
    """Accept the next prepare of this view, or keep one that came early."""
    header = message.header
    heard_primary(r)
    r.learn_commit(header.commit)
    r.scope.known_head = max(r.scope.known_head, header.op)
    if is_held_back(r):
        r.drop(message, DropReason.BOUND)  # repair fetches it when there is room
        repair.wake(r)
    elif header.op == r.log.op + 1 and r.log.op in r.log.headers:
        is_next = _accept(r, message)
        while is_next and not is_held_back(r) and (following := r.stash.pop(r.log.op + 1, None)) is not None:
            is_next = _accept(r, following)
    elif header.op > r.log.op:
        _stash(r, message)
        repair.wake(r)
    else:
        r.drop(message, DropReason.DUPLICATE)


def is_held_back(r: Replica) -> bool:
    """A full disk, or one that does not keep up: bodies that can not be written are kept up to a bound."""
    if r.log.is_waiting_for_room and r.log.op - r.log.journal_head >= PIPELINE_LIMIT:
        return True
    if not is_backed_up(r):
        return False
    r.log.let_go_of_written(r.applied)
    return is_backed_up(r)


def is_backed_up(r: Replica) -> bool:
    """Whether so much waits for this disk, or to be executed here, that no more is taken."""
    return r.log.held_bytes >= r.config.held_bytes_max


def on_known_prepare(r: Replica, message: Message) -> None:
    """Its header is already in the log: a wanted body, or a duplicate."""
    header = message.header
    # What is committed is part of the log of every view.
    if r.status != Status.NORMAL and header.op > r.log.committed:
        r.drop(message, DropReason.WRONG_STATUS)
        return
    if not repair.on_body(r, message):
        r.drop(message, DropReason.DUPLICATE)
        is_of_view = header.view == r.view and r.status == Status.NORMAL
        if is_of_view and not r.is_primary and header.op <= r.log.durable:
            heard_primary(r)
            r.scope.ack_due = True  # perhaps the acknowledgement was lost


def _stash(r: Replica, message: Message) -> None:
    """Keep a prepare that came early. When there is no place the one furthest ahead goes: it is wanted last, and
    a number that nobody ever reaches must not keep the place of others."""
    r.stash[message.header.op] = message
    if len(r.stash) > r.config.pipeline_max:
        r.drop(r.stash.pop(max(r.stash)), DropReason.BOUND)


def _accept(r: Replica, message: Message) -> bool:
    """Append the next prepare; False when it does not continue this log: then one of the two is forged."""
    header = message.header
    if not follows(r.log.headers[r.log.op], header):
        r.drop(message, DropReason.BROKEN_CHAIN)
        return False
    r.log.append(message)
    r.entered[header.op] = r.now
    r.learn_commit(header.commit)
    return True


def heard_primary(r: Replica) -> None:
    """A sign of life of the primary of this view: withdraw a vote against it."""
    r.detector.heard(r.now)
    r.scope.suspecting = False
    r.vote_timer.stop()
    peer = r.peers.get(r.primary)
    if peer is not None:
        peer.last_heard = r.now


def may_acknowledge(r: Replica) -> bool:
    """A backup speaks for its log only in normal status of the view it is in."""
    return r.status == Status.NORMAL and r.log_view == r.view and not r.is_primary and r.view_token is None


def acknowledged_op(r: Replica) -> int:
    """What may be acknowledged: everything up to here is durable and chained, and nothing of it
    that is still to be committed is known to be damaged."""
    damaged = min((op for op in r.log.faulty if op > r.commit_max), default=r.log.durable + 1) if r.log.faulty else None
    return r.log.durable if damaged is None else min(r.log.durable, damaged - 1)


def acknowledge(r: Replica) -> None:
    """Send one cumulative acknowledgement when one is due."""
    if not r.scope.ack_due or not may_acknowledge(r):
        return
    r.scope.ack_due = False
    op = acknowledged_op(r)
    header = r.log.headers.get(op)
    if header is None:
        return
    nonce, r.scope.echo_nonce = r.scope.echo_nonce, 0
    flags = FLAG_DISK_FULL if r.is_disk_full else 0
    r.send(r.primary, r.make(Command.PREPARE_OK, op=op, context=header.checksum, nonce=nonce, flags=flags))


# Acknowledgements and commits at the primary


def on_entries_durable(r: Replica) -> None:
    """Entries written in this view reached the disk: they may be acknowledged."""
    if r.status != Status.NORMAL:
        return
    if r.is_primary:
        _count(r, r.index, acknowledged_op(r))
    else:
        r.scope.ack_due = True


def on_prepare_ok(r: Replica, message: Message) -> None:
    """Count a backup's acknowledgement for its op and everything below."""
    header = message.header
    if header.op > r.log.op or header.checkpoint_op > r.log.op:
        r.refuse(message, DropReason.OUT_OF_BOUNDS)  # a backup of this view has nothing that its primary has not
        return
    peer = r.peers[header.replica]
    round_trips.on_prepare_ok(r, header)
    known = r.log.headers.get(header.op)
    if known is not None and known.checksum != header.context:
        r.drop(message, DropReason.BROKEN_CHAIN)
        return
    if header.op > (peer.said.op or 0):
        peer.said.progress_at, peer.said.is_awaited = r.now, False
    peer.says(header.op)
    peer.commit = header.commit
    peer.checkpoint = header.checkpoint_op
    r.note_disk(header.replica, header.flags)
    if known is not None:  # else far behind: nothing in the pipeline is concerned
        _count(r, header.replica, header.op)


def _count(r: Replica, replica: int, op: int) -> None:
    """`replica` has everything up to `op`: advance the commit number as far as quorums allow."""
    bit = 1 << replica
    for prepared in r.pipeline:
        if prepared.header.op > op:
            break
        prepared.acks |= bit
    before = r.commit_max
    requests = 0
    while r.pipeline and may_commit(r, r.pipeline[0]):
        prepared = r.pipeline.popleft()
        requests += len(prepared.requests)
        r.commit_max = max(r.commit_max, prepared.header.op)
        r.committing[prepared.header.op] = prepared
        r.emit(EventKind.PREPARE_ACKED, prepared.header.op, r.now - prepared.prepared_at, replica)
    if r.commit_max > before:
        r.pace.committed(requests, r.now, bool(r.pipeline or r.queue))
        abdication.on_committed(r)
        if r.pipeline:
            r.prepare_timer.start(r.now + r.prng.jitter(r.config.prepare_resend_ns))
        else:
            r.prepare_timer.stop()
            r.heartbeat_timer.start_no_later_than(r.now + r.config.commit_linger_ns)


def may_commit(r: Replica, prepared: Prepared) -> bool:
    """A replication quorum of distinct replicas has it durable, by acknowledgements of this view."""
    return quorum.reached(prepared.acks, r.quorums.replication)


def on_applied(r: Replica, op: int, results: Sequence[Result]) -> None:
    """Enter committed requests into the sessions; the primary answers its clients."""
    prepared = r.committing.pop(op, None)
    is_replay = op <= r.replay_to
    for result in results:
        evicted = r.sessions.commit(op, result)
        if result.operation == Operation.REGISTER and not is_replay:
            r.emit(EventKind.SESSION_REGISTERED, op)
        if evicted and not is_replay:
            r.emit(EventKind.SESSION_EVICTED, evicted)
    header = r.log.headers.get(op)
    events = sum(result.events for result in results)
    r.positions += events
    entered = r.entered.pop(op, None)
    if is_replay:
        r.emit(EventKind.REPLAYED, op, events)
    else:
        r.emit(EventKind.COMMITTED, op, events, r.now - entered if entered is not None else -1)
    if prepared is None:
        return
    invariant(
        header is not None and header.checksum == prepared.header.checksum,
        "what is applied is what was committed",
        op=op,
    )
    for (request, received_at), result in zip(prepared.requests, results, strict=False):
        r.in_flight.pop(request.header.client, None)
        number = op if result.operation == Operation.REGISTER else result.session
        if result.operation == Operation.REGISTER:
            session = r.sessions.get(result.client)
            number = session.number if session is not None else op
        _send_reply(r, request, number, op, result.position, result.events, result.body)
        r.emit(EventKind.REPLIED, op, r.now - received_at, 1000 * request.header.latency_us)


# Heartbeats


def on_commit(r: Replica, message: Message) -> None:
    """The primary's heartbeat: its commit number, its head, and a question we echo."""
    header = message.header
    heard_primary(r)
    conflict.look(r, header)
    # The primary's last word, also when one before said more: that was another's.
    r.scope.commit_heard = header.commit
    r.scope.known_head = header.op
    r.note_committed()
    r.peers[header.replica].says(header.op)
    r.scope.trimmed_by_primary = header.request
    r.scope.echo_nonce = header.nonce
    r.scope.ack_due = True
    if r.scope.known_head > r.log.op or r.log.durable < r.log.op:
        repair.wake(r)


def _heartbeat(r: Replica) -> None:
    """Tell the backups the head (op), the commit number and the identity of that op, and the first op there is."""
    commit = r.commit
    header = r.log.headers.get(commit)
    r.broadcast(
        r.make(
            Command.COMMIT,
            op=r.log.op,
            position=commit,
            context=header.checksum if header is not None else ZERO16,  # ZERO16: no longer in memory
            request=r.first_op,
            nonce=r.now,
        )
    )


def tick(r: Replica) -> GaveUp | None:
    """Heartbeats, retransmission of the oldest prepare. Why this primary is to give its view up; None: it is not."""
    why = None
    if r.heartbeat_timer.due(r.now) and r.is_primary and r.status == Status.NORMAL and not r.scope.abdicated:
        if r.peers and r.view_token is None:
            _heartbeat(r)
        r.heartbeat_timer.start(r.now + r.config.heartbeat_ns)
    if r.prepare_timer.due(r.now) and r.is_primary and r.status == Status.NORMAL and r.pipeline:
        _resend_oldest(r)
        r.prepare_timer.start(r.now + r.prng.jitter(r.config.prepare_resend_ns))
        why = abdication.look_at_pipeline(r)
    lagging = abdication.look_at_lag(r)
    return lagging if why is None else why


def _resend_oldest(r: Replica) -> None:
    """To every replica that has not acknowledged it; the rest follows by repair."""
    oldest = r.pipeline[0]
    op = oldest.header.op
    message = r.log.bodies.get(op)
    for replica in r.peers:
        if oldest.acks >> replica & 1:
            continue
        if message is not None:
            r.send(replica, message)
        elif r.log.holds(op):
            r.serve(ServePrepare(replica, op, oldest.header.checksum))
