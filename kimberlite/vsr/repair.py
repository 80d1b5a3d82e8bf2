"""Repair: headers and entries that this replica misses or holds damaged.

Entries are asked for by identity, so a wrong or corrupt answer is merely ignored. Headers
come from a replica in normal status of the same view: its log is a prefix of the one
canonical log of that view, as ours is.

Who is asked: replicas that were heard lately and, as far as they said, have it; the quickest
first, with one request in ten to another. How much: lowest first, a window of ops and bytes ahead
of the durable prefix; in all so many requests; to each peer as many as it answers, half of that
after a request that it did not answer in time. When: as soon as answers come, once a round; the
jittered timer is for what is not answered. How often: what brings nothing is asked for less and less (vsr.pacing),
whether nobody answers, the answer says nothing new, or what came could not be kept.

What is asked for by identity stays wanted when the view changes, and committed entries are taken
and asked for in the middle of a view change too: a replica that is far behind comes nearer
whatever the others do meanwhile.
Imports errors, types and vsr only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kimberlite.types import Command, Header, Message, Status
from kimberlite.vsr import bounds, conflict, verdict
from kimberlite.vsr.codec import decode_chain, encode_headers, follows
from kimberlite.vsr.events import DropReason, EventKind
from kimberlite.vsr.state import HeadersRequest, Peer, RepairRequest
from kimberlite.vsr.work import ServeHeaders, ServePrepare

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica

WINDOW_MIN = 4  # requests in flight to a peer that lets them expire
HEADERS_REQUESTS_MAX = 4
ENTRY, HEADERS = "entry", "headers"  # kinds of questions, for r.pacing
REST_EXPIRIES = 2  # a peer that did not answer is left alone for so many times the expiry, if another can be asked


def wake(r: Replica) -> None:
    """Something may be missing: look soon. What is under way usually arrives meanwhile."""
    if r.peers:
        r.repair_timer.start_if_idle(r.now + r.prng.jitter(r.config.repair_ns))


def on_installed(r: Replica) -> None:
    """Another log may have taken the place of what was asked for, or of what came early: keep what is part of it."""
    r.pacing.clear()
    for op, request in list(r.repairs.items()):
        known = r.log.headers.get(op)
        if known is None or known.checksum != request.header.checksum or r.log.holds(op):
            _forget(r, op)
    for op, message in list(r.stash.items()):
        known = r.log.headers.get(op)
        if known is None or known.checksum != message.header.checksum:
            del r.stash[op]


def _forget(r: Replica, op: int) -> RepairRequest:
    request = r.repairs.pop(op)
    r.peers[request.peer].repairs -= 1
    return request


def tick(r: Replica) -> None:
    if not r.repair_timer.due(r.now):
        return
    if r.status in (Status.NORMAL, Status.VIEW_CHANGE) and r.view_token is None:
        _plan(r)
    if _is_wanting(r):
        wake(r)


def _is_wanting(r: Replica) -> bool:
    log = r.log
    return log.durable < log.op or r.scope.known_head > log.op or bool(log.faulty) or bool(r.repairs)


def _plan(r: Replica) -> None:
    """Expire what took too long, then ask for the lowest missing things within the budget."""
    _expire(r)
    if r.status == Status.NORMAL:
        _truncate_divergent(r)
        _request_headers(r)
    _request_entries(r)


def go_on(r: Replica) -> None:
    """Answers came in this round: ask for what follows."""
    r.repair_due = False
    if r.view_token is None and r.status in (Status.NORMAL, Status.VIEW_CHANGE):
        if r.status == Status.NORMAL:
            _request_headers(r)
        _request_entries(r)
    wake(r)


# Who did not answer


def _expire(r: Replica) -> None:
    silent: set[int] = set()
    for op in [op for op, request in r.repairs.items() if _is_overdue(r, request.peer, request.sent_at)]:
        request = _forget(r, op)
        silent.add(request.peer)
        r.pacing.brought_nothing((ENTRY, op), r.now)
        r.emit(EventKind.REPAIR_EXPIRED, op, request.peer)
    overdue = [
        request for request in r.scope.headers_requests.values() if _is_overdue(r, request.peer, request.sent_at)
    ]
    if overdue:  # those behind it do not continue what is known here, when they are answered
        silent.add(overdue[0].peer)
        r.pacing.brought_nothing((HEADERS, overdue[0].first), r.now)
        r.emit(EventKind.REPAIR_EXPIRED, overdue[0].first, overdue[0].peer)
        r.scope.headers_overdue = r.scope.headers_requests
        r.scope.headers_requests = {}
    for replica in silent:
        _note_expired(r, r.peers[replica])


def _is_overdue(r: Replica, replica: int, sent_at: int) -> bool:
    """Four times what its answers took lately, and some; a peer that fell silent is not waited for longer."""
    usual = r.peers[replica].repair_latency
    patience = min(max(4 * usual, 2 * r.config.repair_ns), r.config.repair_expiry_ns) if usual else None
    return r.now - sent_at > (patience or r.config.repair_expiry_ns)


def _note_expired(r: Replica, peer: Peer) -> None:
    """It did not answer: others are asked first from now on, and it is asked for less."""
    peer.repair_latency = max(peer.repair_latency, r.config.repair_expiry_ns)
    peer.window = max(peer.window // 2, WINDOW_MIN)
    peer.rests_until = r.now + REST_EXPIRIES * r.config.repair_expiry_ns


def _note_answered(r: Replica, replica: int, sent_at: int) -> None:
    peer = r.peers[replica]
    peer.repair_latency += (r.now - sent_at - peer.repair_latency) // 4
    peer.window = min(peer.window + 1, r.config.repairs_per_peer_max)
    peer.rests_until = 0


# What is asked for


def _truncate_divergent(r: Replica) -> None:
    """A header shows that the journal holds another log's entries from there on."""
    above = r.log.divergence()
    if above is not None:
        r.log.drop_candidates()
        r.persist_view(truncate_to=above)


def _request_headers(r: Replica) -> None:
    log, waiting = r.log, r.scope.headers_requests
    unknown = _unknown_identity(r, r.now)
    if unknown is not None:
        if not waiting:
            _ask_for_headers(r, unknown)
        return
    first = max((request.last + 1 for request in waiting.values()), default=log.linked + 1)
    # So many are known ahead of what is on disk: memory stays bounded.
    end = min(max(log.op, r.scope.known_head), log.durable + r.config.headers_ahead)
    while first <= end and len(waiting) < HEADERS_REQUESTS_MAX and _ask_for_headers(r, first):
        first += r.config.headers_per_message


def _ask_for_headers(r: Replica, first: int) -> bool:
    """Ask for headers from `first` on; False when there is nobody to ask, or not now."""
    if not r.pacing.may_ask((HEADERS, first), r.now):
        return False
    # What may have been acknowledged under a lost identity exists if the primary knows it.
    peer: int | None = r.primary
    if r.log.op not in r.log.faulty or r.log.op in r.log.headers:
        peer = _choose_peer(r, first)
    if peer is None or peer == r.index or not verdict.is_heard(r, peer):
        return False
    nonce = r.next_nonce()
    last = first + r.config.headers_per_message - 1
    r.scope.headers_requests[nonce] = HeadersRequest(peer, first, last, r.now)
    r.send(peer, r.make(Command.REQUEST_HEADERS, op=first, position=last, nonce=nonce))
    return True


def _unknown_identity(r: Replica, now: int | None = None) -> int | None:
    """The lowest op at or below `linked` whose entry and witness are both damaged; with `now`, of those that may be
    asked for: what nobody tells must not keep the rest of the log away."""
    if not r.log.faulty:
        return None
    unknown = (op for op in r.log.faulty if op not in r.log.headers)
    return min((op for op in unknown if now is None or r.pacing.may_ask((HEADERS, op), now)), default=None)


def _request_entries(r: Replica) -> None:
    if r.view_token is not None:
        return
    for op in [op for op in r.stash if op <= r.log.durable]:
        del r.stash[op]
    end = r.repair_end = r.log.window_end(r.config.repair_window, r.config.repair_bytes)
    for header in r.log.missing(end):
        if len(r.repairs) >= r.config.repairs_max:
            return
        if header.op in r.repairs or not r.pacing.may_ask((ENTRY, header.op), r.now):
            continue
        if r.status != Status.NORMAL and header.op > r.log.committed:
            continue  # the next view may have another entry there
        early = r.stash.pop(header.op, None)
        if early is not None and early.header.checksum == header.checksum:
            r.log.keep(early)
            continue
        if r.log.is_waiting_for_room and header.op > r.log.journal_head:
            continue  # it could not be written
        if is_damage_put_off(r, header.op):
            continue
        peer = _choose_peer(r, header.op)
        if peer is None:
            return
        r.peers[peer].repairs += 1
        r.repairs[header.op] = RepairRequest(header, peer, r.now, r.now)
        r.emit(EventKind.REPAIR_REQUESTED, header.op, peer)
        r.send(peer, r.make(Command.REQUEST_PREPARE, op=header.op, context=header.checksum))


def is_damage_put_off(r: Replica, op: int) -> bool:
    """Damage below has no window of its own: when the disk does not keep up with what is held already, it waits. But
    for the lowest: its place, and so all that is held of those above it, may wait for that."""
    is_below = op <= r.log.durable and op != r.applied + 1
    return is_below and r.log.held_bytes >= r.config.held_bytes_max and op > min(r.log.faulty)


def is_worth_asking(r: Replica, replica: int) -> bool:
    """Who is silent does not answer; what it is asked for would wait for that."""
    return verdict.is_heard(r, replica)


def _says_it_has(r: Replica, replica: int, op: int) -> bool:
    said = r.peers[replica].held
    return said is None or said >= op or (replica == r.primary and r.scope.known_head >= op)


def _choose_peer(r: Replica, op: int) -> int | None:
    """Of those heard lately that have `op`, as far as they said: the quickest with room, or in one case of ten
    any with room. None when all are busy, or nobody is heard."""
    heard = [replica for replica in r.peers if is_worth_asking(r, replica)]
    able = [replica for replica in heard if _says_it_has(r, replica, op)] or heard
    able = [replica for replica in able if r.now >= r.peers[replica].rests_until] or able
    free = [replica for replica in able if r.peers[replica].repairs < r.peers[replica].window]
    if not free:
        return None
    if len(free) > 1 and r.prng.below(10) == 0:
        return free[r.prng.below(len(free))]
    return min(free, key=lambda replica: _preference(r, replica))


def _preference(r: Replica, replica: int) -> tuple[int, bool, int]:
    """Lowest first. Of those that were never asked the primary: it was heard a moment ago."""
    usual = r.peers[replica].repair_latency or r.config.repair_ns
    return usual, replica != r.primary, (replica - r.index) % r.config.replica_count


def on_body(r: Replica, message: Message) -> bool:
    """A prepare whose header is in the log; whether it was wanted."""
    header = message.header
    log = r.log
    if log.holds(header.op) or header.op in log.bodies or header.op in log.writing:
        return False
    request = r.repairs.get(header.op)
    if request is None and header.op > max(r.repair_end, log.durable + r.config.pipeline_max):
        return False  # nobody asked for it, and so many are not kept
    if request is not None:
        _forget(r, header.op)
        _note_answered(r, request.peer, request.sent_at)
        if header.op in log.faulty:  # if it is soon found damaged again, that was in vain
            r.pacing.brought_nothing((ENTRY, header.op), r.now)
        r.emit(EventKind.REPAIRED, header.op, r.now - request.first_sent_at)
        r.repair_due = True
    log.keep(message)
    return True


def on_durable(r: Replica, header: Header) -> None:
    """An entry was written: when it lies below what memory keeps, let go of it."""
    if header.op <= r.applied and header.op not in r.log.faulty:
        r.log.let_go(header.op)


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
    if r.view_token is not None:
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
    headers = decode_chain(r.codec, message.body)
    for learned in headers:
        bounds.check_header(r, learned, header.view)
    if conflict.on_headers(r, header, headers):
        return
    if r.is_primary and r.log.linked == r.log.op and _unknown_identity(r) is None:
        r.drop(message, DropReason.UNWANTED)
        return
    was_asked = is_asked_for(r, header)
    request = r.scope.headers_requests.pop(header.nonce, None)
    if not was_asked:
        r.drop(message, DropReason.UNWANTED)  # what nobody asked for may be forged, and would be taken for the log
        return
    if request is not None and request.peer == header.replica:
        _note_answered(r, request.peer, request.sent_at)
        # Asked in this life and view: had an op above its head existed in this view, the primary would still know it.
        is_settled = request.peer == r.primary and r.log.give_up_above(header.position)
        if is_settled and r.log_state.doubt > r.log.op:
            r.log_state = replace(r.log_state, doubt=r.log.op)
            r.persist_view()
    if _learn_headers(r, headers):
        r.repair_due = True  # else whoever is asked again at once would say the same again
    elif request is not None:
        r.pacing.brought_nothing((HEADERS, request.first), r.now)
    r.learn_commit(header.commit)
    _drain_stash(r)
    wake(r)


def is_asked_for(r: Replica, header: Header) -> bool:
    """Whether the headers answer a question of this replica in this view, if late."""
    return header.nonce in r.scope.headers_requests or r.scope.headers_overdue.pop(header.nonce, None) is not None


def _learn_headers(r: Replica, headers: Sequence[Header]) -> bool:
    """Whether any of them was news."""
    log = r.log
    head = log.op if r.is_primary else None
    is_news = False
    for learned in headers:
        if learned.op in log.faulty and learned.op not in log.headers:
            log.headers[learned.op] = learned  # its witness was damaged too
            is_news = True
        if learned.op <= log.linked or (head is not None and learned.op > head):
            continue
        if not log.extend(learned):
            break
        is_news = True
    _truncate_divergent(r)  # the next answer would say again what can not be linked before that
    return is_news


def _drain_stash(r: Replica) -> None:
    """Prepares that came early and come next now; those that are known by their headers wait until it is their turn
    to be asked for."""
    for op in sorted(r.stash):
        if op == r.log.op + 1 and r.log.linked == r.log.op and follows(r.log.headers[r.log.op], r.stash[op].header):
            message = r.stash.pop(op)
            r.log.append(message)
            r.learn_commit(message.header.commit)
