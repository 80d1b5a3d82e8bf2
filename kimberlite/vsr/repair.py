"""Repair: headers and entries that this replica misses or holds damaged.

Entries are asked for by identity, so a wrong or corrupt answer is merely ignored. Headers
come from a replica in normal status of the same view: its log is a prefix of the one
canonical log of that view, as ours is. Lowest first; at most so many in flight in all
and per peer; the quickest peer first, with one request in ten to another; requests
expire and go elsewhere; the timer is jittered.
Imports errors, types and vsr only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kimberlite.types import Command, Header, Message, Status
from kimberlite.vsr.codec import decode_chain, encode_headers
from kimberlite.vsr.state import HeadersRequest, RepairRequest
from kimberlite.vsr.work import DropReason, EventKind, ServeHeaders, ServePrepare

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica


def wake(r: Replica) -> None:
    """Something may be missing: look soon. What is under way usually arrives meanwhile."""
    if r.peers:
        r.repair_timer.start_if_idle(r.now + r.prng.jitter(r.config.repair_ns))


def cancel(r: Replica) -> None:
    """The view is left: answers to what was asked are no longer wanted."""
    r.repairs.clear()
    r.headers_request = None
    for peer in r.peers.values():
        peer.repairs = 0
    r.repair_timer.stop()


def tick(r: Replica) -> None:
    if not r.repair_timer.due(r.now):
        return
    if r.status == Status.NORMAL and r.view_token is None:
        _plan(r)
    if _is_wanting(r):
        wake(r)


def _is_wanting(r: Replica) -> bool:
    log = r.log
    return log.durable < log.op or r.known_head > log.op or bool(log.faulty) or bool(r.repairs)


def _plan(r: Replica) -> None:
    """Expire what took too long, then ask for the lowest missing things within the budget."""
    for op in [op for op, request in r.repairs.items() if r.now - request.sent_at > r.config.repair_expiry_ns]:
        request = r.repairs.pop(op)
        r.peers[request.peer].repairs -= 1
        _note_expired(r, op, request.peer)
    _truncate_divergent(r)
    _request_headers(r)
    _request_entries(r)


def _note_expired(r: Replica, op: int, replica: int) -> None:
    """It did not answer: others are asked first from now on."""
    peer = r.peers[replica]
    peer.repair_latency = max(peer.repair_latency, r.config.repair_expiry_ns)
    r.emit(EventKind.REPAIR_EXPIRED, op, replica)


def _note_answered(r: Replica, replica: int, sent_at: int) -> None:
    peer = r.peers[replica]
    peer.repair_latency += (r.now - sent_at - peer.repair_latency) // 4


def _truncate_divergent(r: Replica) -> None:
    """A header shows that the journal holds another log's entries from there on."""
    above = r.log.divergence()
    if above is not None:
        r.log.drop_candidates()
        r.persist_view(truncate_to=above)


def _request_headers(r: Replica) -> None:
    log = r.log
    unknown = _unknown_identity(r)
    if unknown is None and log.linked >= max(log.op, r.known_head):
        return
    request = r.headers_request
    if request is not None and r.now - request.sent_at <= r.config.repair_expiry_ns:
        return
    first = unknown if unknown is not None else log.linked + 1
    if request is not None:
        r.headers_request = None
        _note_expired(r, first, request.peer)
    if unknown is None and log.linked - log.durable >= r.config.headers_per_message:
        return  # enough known ahead of what is on disk: memory stays bounded
    # What may have been acknowledged under a lost identity exists if the primary knows it.
    peer = r.primary if log.op in log.faulty and log.op not in log.headers else _choose_peer(r, None)
    if peer is not None and peer != r.index:
        r.headers_request = HeadersRequest(peer, r.now)
        last = first + r.config.headers_per_message - 1
        r.send(peer, r.make(Command.REQUEST_HEADERS, op=first, position=last, nonce=r.now))


def _unknown_identity(r: Replica) -> int | None:
    """The lowest op at or below `linked` whose entry and witness are both damaged."""
    return min((op for op in r.log.faulty if op not in r.log.headers), default=None) if r.log.faulty else None


def _request_entries(r: Replica) -> None:
    if r.view_token is not None:
        return
    for header in r.log.missing(r.config.repair_window):
        if len(r.repairs) >= r.config.repairs_max:
            return
        if header.op in r.repairs:
            continue
        if r.log.is_waiting_for_room and header.op > r.log.journal_head:
            continue  # it could not be written
        peer = _choose_peer(r, header)
        if peer is None:
            return
        r.peers[peer].repairs += 1
        r.repairs[header.op] = RepairRequest(header, peer, r.now, r.now)
        r.emit(EventKind.REPAIR_REQUESTED, header.op, peer)
        r.send(peer, r.make(Command.REQUEST_PREPARE, op=header.op, context=header.checksum))


def _choose_peer(r: Replica, header: Header | None) -> int | None:
    """The quickest with room, or in one case of ten any with room."""
    free = [replica for replica, peer in r.peers.items() if peer.repairs < r.config.repairs_per_peer_max]
    if not free:
        return None
    if r.prng.below(10) == 0:
        return free[r.prng.below(len(free))]
    return min(
        free, key=lambda replica: (r.peers[replica].repair_latency, (replica - r.index) % r.config.replica_count)
    )


def on_body(r: Replica, message: Message) -> bool:
    """A prepare whose header is in the log; whether it was wanted."""
    header = message.header
    log = r.log
    if log.holds(header.op) or header.op in log.bodies or header.op in log.writing:
        return False
    if header.op > log.durable + 2 * r.config.repair_window:
        return False
    request = r.repairs.pop(header.op, None)
    if request is not None:
        r.peers[request.peer].repairs -= 1
        _note_answered(r, request.peer, request.sent_at)
        r.emit(EventKind.REPAIRED, header.op, r.now - request.first_sent_at)
    log.bodies[header.op] = message
    if request is not None and r.status == Status.NORMAL:
        _request_headers(r)
        _request_entries(r)
    return True


def on_durable(r: Replica, header: Header) -> None:
    """An entry was written: when it lies below what memory keeps, let go of it."""
    if header.op < r.applied and header.op not in r.log.faulty:
        r.log.bodies.pop(header.op, None)


def on_request_prepare(r: Replica, message: Message) -> None:
    """A peer wants the entry of that identity; served in any status, for it proves itself."""
    header = message.header
    held = r.log.bodies.get(header.op)
    if held is not None and held.header.checksum == header.context:
        r.send(header.replica, held)
    else:
        r.serve(ServePrepare(header.replica, header.op, header.context))


def on_request_headers(r: Replica, message: Message) -> None:
    """A peer of this view wants to know the canonical headers from header.op on."""
    header = message.header
    if header.view != r.view or r.status != Status.NORMAL or r.view_token is not None:
        r.drop(message, DropReason.WRONG_STATUS)
        return
    last = min(header.position, r.log.linked, r.log.durable, header.op + r.config.headers_per_message - 1)
    first = min(header.op, last) if r.is_primary else header.op  # the primary's head answers in any case
    if 0 < first <= last:
        r.serve(ServeHeaders(header.replica, first, last, header.nonce))


def headers_message(r: Replica, headers: Sequence[Header], nonce: int) -> Message | None:
    if not headers or r.status != Status.NORMAL:
        return None
    return r.make(
        Command.HEADERS,
        encode_headers(headers),
        op=headers[0].op,
        count=len(headers),
        position=r.log.op,
        nonce=nonce,
    )


def on_headers(r: Replica, message: Message) -> None:
    """Canonical headers of this view, from one of its normal replicas."""
    header = message.header
    if header.view != r.view or r.status != Status.NORMAL:
        r.drop(message, DropReason.OLD_VIEW)
        return
    if r.is_primary and r.log.linked == r.log.op and _unknown_identity(r) is None:
        r.drop(message, DropReason.UNWANTED)
        return
    request, r.headers_request = r.headers_request, None
    if request is not None and (request.peer, request.sent_at) == (header.replica, header.nonce):
        _note_answered(r, request.peer, request.sent_at)
        # Asked in this life and view: had an op above its head existed in this view, the primary would still know it.
        is_settled = request.peer == r.primary and r.log.give_up_above(header.position)
        if is_settled and r.log_state.doubt > r.log.op:
            r.log_state = replace(r.log_state, doubt=r.log.op)
            r.persist_view()
    head = r.log.op if r.is_primary else None
    for learned in decode_chain(r.codec, message.body):
        if learned.op in r.log.faulty and learned.op not in r.log.headers:
            r.log.headers[learned.op] = learned  # its witness was damaged too
        if learned.op <= r.log.linked or (head is not None and learned.op > head):
            continue
        if not r.log.extend(learned):
            if r.log.divergence() is None:
                break
            _truncate_divergent(r)
            break
    r.learn_commit(header.commit)
    _drain_stash(r)
    if r.view_token is None:
        _request_headers(r)
        _request_entries(r)
    wake(r)


def _drain_stash(r: Replica) -> None:
    """Prepares that came early and are known by their headers now, or come next."""
    for op in sorted(r.stash):
        known = r.log.headers.get(op)
        if known is not None:
            message = r.stash.pop(op)
            if known.checksum == message.header.checksum:
                on_body(r, message)
        elif (
            op == r.log.op + 1
            and r.log.linked == r.log.op
            and r.stash[op].header.parent == r.log.headers[r.log.op].checksum
        ):
            message = r.stash.pop(op)
            r.log.append(message)
            r.learn_commit(message.header.commit)
