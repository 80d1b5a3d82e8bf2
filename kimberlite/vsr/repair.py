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

from kimberlite.types import SLOTS, Command, Header, Message, Status
from kimberlite.vsr import bounds, conflict
from kimberlite.vsr.codec import decode_chain, encode_headers, follows
from kimberlite.vsr.events import DropReason, EventKind
from kimberlite.vsr.state import HeadersRequest, Peer, RepairRequest
from kimberlite.vsr.work import ServeHeaders, ServePrepare

if TYPE_CHECKING:
    from kimberlite.vsr.state import State

WINDOW_MIN = 4  # requests in flight to a peer that lets them expire
HEADERS_REQUESTS_MAX = 4
ENTRY, HEADERS = "entry", "headers"  # kinds of questions, for s.repairs.pacing
REST_EXPIRIES = 2  # a peer that did not answer is left alone for so many times the expiry, if another can be asked


def wake(s: State) -> None:
    """Something may be missing: look soon. What is under way usually arrives meanwhile."""
    if s.peers:
        s.repairs.timer.start_if_idle(s.now + s.prng.jitter(s.config.timing.repair_ns))


def on_installed(s: State) -> None:
    """Another log may have taken the place of what was asked for, or of what came early: keep what is part of it."""
    s.repairs.pacing.clear()
    for op, request in list(s.repairs.requests.items()):
        known = s.log.headers.get(op)
        if known is None or known.checksum != request.header.checksum or s.log.holds(op):
            _forget(s, op)
    for op, message in list(s.repairs.early.items()):
        known = s.log.headers.get(op)
        if known is None or known.checksum != message.header.checksum:
            del s.repairs.early[op]


def on_trimmed(s: State, first_op: int) -> None:
    """Nobody has, and nobody needs, what is below: nothing of it is asked for any more."""
    for op in [op for op in s.repairs.requests if op < first_op]:
        _forget(s, op)


def _forget(s: State, op: int) -> RepairRequest:
    request = s.repairs.requests.pop(op)
    s.peers[request.peer].repairs -= 1
    return request


def tick(s: State) -> None:
    if not s.repairs.timer.due(s.now):
        return
    if s.status in (Status.NORMAL, Status.VIEW_CHANGE) and s.outbox.promise is None:
        _plan(s)
    if _is_wanting(s):
        wake(s)


def _is_wanting(s: State) -> bool:
    log = s.log
    return log.durable < log.op or s.scope.known_head > log.op or bool(log.faulty) or bool(s.repairs.requests)


def _plan(s: State) -> None:
    """Expire what took too long, then ask for the lowest missing things within the budget."""
    _expire(s)
    if s.status == Status.NORMAL:
        _truncate_divergent(s)
        _request_headers(s)
    _request_entries(s)


def go_on(s: State) -> None:
    """Answers came in this round: ask for what follows."""
    s.repairs.is_due = False
    if s.outbox.promise is None and s.status in (Status.NORMAL, Status.VIEW_CHANGE):
        if s.status == Status.NORMAL:
            _request_headers(s)
        _request_entries(s)
    wake(s)


# Who did not answer


def _expire(s: State) -> None:
    silent: set[int] = set()
    for op in [op for op, request in s.repairs.requests.items() if _is_overdue(s, request.peer, request.sent_at)]:
        request = _forget(s, op)
        silent.add(request.peer)
        s.repairs.pacing.brought_nothing((ENTRY, op), s.now)
        s.emit(EventKind.REPAIR_EXPIRED, op, request.peer)
        doubt_identity(s, op)
    overdue = [
        request for request in s.scope.headers_requests.values() if _is_overdue(s, request.peer, request.sent_at)
    ]
    if overdue:  # those behind it do not continue what is known here, when they are answered
        silent.add(overdue[0].peer)
        s.repairs.pacing.brought_nothing((HEADERS, overdue[0].first), s.now)
        s.emit(EventKind.REPAIR_EXPIRED, overdue[0].first, overdue[0].peer)
        s.scope.headers_overdue = s.scope.headers_requests
        s.scope.headers_requests = {}
    for replica in silent:
        _note_expired(s, s.peers[replica])


def doubt_identity(s: State, op: int) -> None:
    """Nobody gives a damaged entry. What its witness calls it may be left of an older log, by a disk that lost a write,
    and nobody has that. What is executed has one name everywhere: the others are asked for it."""
    is_settled = op in s.log.faulty and op <= s.execution.applied and op < s.log.committed
    if is_settled and s.repairs.pacing.is_barren((ENTRY, op)):
        s.log.headers.pop(op, None)


def _is_overdue(s: State, replica: int, sent_at: int) -> bool:
    """Four times what its answers took lately, and some; a peer that fell silent is not waited for longer."""
    usual = s.peers[replica].repair_latency
    timing = s.config.timing
    patience = min(max(4 * usual, 2 * timing.repair_ns), timing.repair_expiry_ns) if usual else None
    return s.now - sent_at > (patience or timing.repair_expiry_ns)


def _note_expired(s: State, peer: Peer) -> None:
    """It did not answer: others are asked first from now on, and it is asked for less."""
    peer.repair_latency = max(peer.repair_latency, s.config.timing.repair_expiry_ns)
    peer.window = max(peer.window // 2, WINDOW_MIN)
    peer.rests_until = s.now + REST_EXPIRIES * s.config.timing.repair_expiry_ns


def _note_answered(s: State, replica: int, sent_at: int) -> None:
    peer = s.peers[replica]
    peer.repair_latency += (s.now - sent_at - peer.repair_latency) // 4
    peer.window = min(peer.window + 1, s.config.repairs_per_peer_max)
    peer.rests_until = 0


# What is asked for


def _truncate_divergent(s: State) -> None:
    """A header shows that the journal holds another log's entries from there on."""
    above = s.log.divergence()
    if above is not None:
        s.log.drop_candidates()
        s.persist_view(truncate_to=above)


def _request_headers(s: State) -> None:
    log, waiting = s.log, s.scope.headers_requests
    unknown = _unknown_identity(s, s.now)
    if unknown is not None:
        if not waiting:
            _ask_for_headers(s, unknown)
        return
    first = max((request.last + 1 for request in waiting.values()), default=log.linked + 1)
    # So many are known ahead of what is on disk: memory stays bounded.
    end = min(max(log.op, s.scope.known_head), log.durable + s.config.headers_ahead)
    while first <= end and len(waiting) < HEADERS_REQUESTS_MAX and _ask_for_headers(s, first):
        first += s.config.headers_per_message


def _ask_for_headers(s: State, first: int) -> bool:
    """Ask for headers from `first` on; False when there is nobody to ask, or not now."""
    if not s.repairs.pacing.may_ask((HEADERS, first), s.now):
        return False
    # What may have been acknowledged under a lost identity exists if the primary knows it.
    peer: int | None = s.primary
    if s.log.op not in s.log.faulty or s.log.op in s.log.headers:
        peer = _choose_peer(s, first)
    if peer is None or peer == s.index or not s.is_heard(peer):
        return False
    nonce = s.next_nonce()
    last = first + s.config.headers_per_message - 1
    s.scope.headers_requests[nonce] = HeadersRequest(peer, first, last, s.now)
    s.send(peer, s.make(Command.REQUEST_HEADERS, op=first, position=last, nonce=nonce))
    return True


def _unknown_identity(s: State, now: int | None = None) -> int | None:
    """The lowest op at or below `linked` whose entry and witness are both damaged; with `now`, of those that may be
    asked for: what nobody tells must not keep the rest of the log away, and what the others have trimmed nobody can."""
    if not s.log.faulty:
        return None
    least = s.log.gone_below if now is not None else 0
    unknown = (op for op in s.log.faulty if op not in s.log.headers and op >= least)
    return min((op for op in unknown if now is None or s.repairs.pacing.may_ask((HEADERS, op), now)), default=None)


def _request_entries(s: State) -> None:
    if s.outbox.promise is not None:
        return
    if s.is_backed_up:  # by what is written and not executed: more is asked for ahead of what is written
        s.log.let_go_of_written(s.execution.applied)
    for op in [op for op in s.repairs.early if op <= s.log.durable]:
        del s.repairs.early[op]
    end = s.repairs.end = s.log.window_end(s.config.repair_window, s.config.repair_bytes)
    for header in s.log.missing(end):
        if len(s.repairs.requests) >= s.config.repairs_max:
            return
        if header.op in s.repairs.requests or not s.repairs.pacing.may_ask((ENTRY, header.op), s.now):
            continue
        if s.status != Status.NORMAL and header.op > s.log.committed:
            continue  # the next view may have another entry there
        early = s.repairs.early.pop(header.op, None)
        if early is not None and early.header.checksum == header.checksum:
            s.log.keep(early)
            continue
        if s.log.is_waiting_for_room and header.op > s.log.journal_head:
            continue  # it could not be written
        if is_damage_put_off(s, header.op):
            continue
        peer = _choose_peer(s, header.op)
        if peer is None:
            return
        s.peers[peer].repairs += 1
        s.repairs.requests[header.op] = RepairRequest(header, peer, s.now, s.now)
        s.emit(EventKind.REPAIR_REQUESTED, header.op, peer)
        s.send(peer, s.make(Command.REQUEST_PREPARE, op=header.op, context=header.checksum))


def is_damage_put_off(s: State, op: int) -> bool:
    """Damage below has no window of its own: when the disk does not keep up with what is held already, it waits. But
    for the lowest: its place, and so all that is held of those above it, may wait for that."""
    is_below = op <= s.log.durable and op != s.execution.applied + 1
    return is_below and s.log.held_bytes >= s.config.held_bytes_max and op > min(s.log.faulty)


def is_worth_asking(s: State, replica: int) -> bool:
    """Who is silent does not answer; what it is asked for would wait for that."""
    return s.is_heard(replica)


def _says_it_has(s: State, replica: int, op: int) -> bool:
    said = s.peers[replica].held
    return said is None or said >= op or (replica == s.primary and s.scope.known_head >= op)


def _choose_peer(s: State, op: int) -> int | None:
    """Of those heard lately that have `op`, as far as they said: the quickest with room, or in one case of ten
    any with room. None when all are busy, or nobody is heard."""
    heard = [replica for replica in s.peers if is_worth_asking(s, replica)]
    able = [replica for replica in heard if _says_it_has(s, replica, op)] or heard
    able = [replica for replica in able if s.now >= s.peers[replica].rests_until] or able
    free = [replica for replica in able if s.peers[replica].repairs < s.peers[replica].window]
    if not free:
        return None
    if len(free) > 1 and s.prng.below(10) == 0:
        return free[s.prng.below(len(free))]
    return min(free, key=lambda replica: _preference(s, replica))


def _preference(s: State, replica: int) -> tuple[int, bool, int]:
    """Lowest first. Of those that were never asked the primary: it was heard a moment ago."""
    usual = s.peers[replica].repair_latency or s.config.timing.repair_ns
    return usual, replica != s.primary, (replica - s.index) % SLOTS


def on_known_prepare(s: State, message: Message) -> None:
    """A prepare whose header is in the log: a wanted body, or a duplicate."""
    header = message.header
    # What is committed is part of the log of every view.
    if s.status != Status.NORMAL and header.op > s.log.committed:
        s.drop(message, DropReason.WRONG_STATUS)
    elif not on_body(s, message):
        s.drop(message, DropReason.DUPLICATE)
        s.role.on_known_prepare(s, header)


def on_body(s: State, message: Message) -> bool:
    """A prepare whose header is in the log; whether it was wanted."""
    header = message.header
    log = s.log
    if log.holds(header.op) or header.op in log.bodies or header.op in log.writing:
        return False
    request = s.repairs.requests.get(header.op)
    if request is None and header.op > max(s.repairs.end, log.durable + s.config.pipeline_max):
        return False  # nobody asked for it, and so many are not kept
    if request is not None:
        _forget(s, header.op)
        _note_answered(s, request.peer, request.sent_at)
        if header.op in log.faulty:  # if it is soon found damaged again, that was in vain
            s.repairs.pacing.brought_nothing((ENTRY, header.op), s.now)
        s.emit(EventKind.REPAIRED, header.op, s.now - request.first_sent_at)
        s.repairs.is_due = True
    log.keep(message)
    return True


def on_durable(s: State, header: Header) -> None:
    """An entry was written: when it lies below what memory keeps, let go of it. It may tell where its neighbours
    stand, which had no certain place."""
    op = header.op
    if op <= s.execution.applied and op not in s.log.faulty:
        s.log.let_go(op)
        for near in (op - 1, op + 1):
            s.repairs.pacing.brought_something((ENTRY, near))


def on_request_prepare(s: State, message: Message) -> None:
    """A peer wants the entry of that identity; served in any status, for it proves itself."""
    header = message.header
    held = s.log.bodies.get(header.op)
    if held is not None and held.header.checksum == header.context:
        s.pass_on(header.replica, held)
    else:
        s.serve(ServePrepare(header.replica, header.op, header.context))


def on_request_headers(s: State, message: Message) -> None:
    """A peer of this view wants to know the canonical headers from header.op on."""
    header = message.header
    if s.outbox.promise is not None:
        s.drop(message, DropReason.WRONG_STATUS)
        return
    last = min(header.position, s.log.linked, s.log.durable, header.op + s.config.headers_per_message - 1)
    first = min(header.op, last) if s.is_primary else header.op  # the primary's head answers in any case
    if 0 < first <= last:
        s.serve(ServeHeaders(header.replica, first, last, header.nonce))


def headers_message(s: State, headers: Sequence[Header], nonce: int) -> Message | None:
    if not headers or s.status != Status.NORMAL or s.outbox.promise is not None:
        return None  # it is sent at once, and names the view
    return s.make(
        Command.HEADERS,
        encode_headers(headers),
        op=headers[0].op,
        count=len(headers),
        position=s.log.op,
        nonce=nonce,
    )


def on_headers(s: State, message: Message) -> None:
    """Canonical headers of this view, from one of its normal replicas."""
    header = message.header
    headers = decode_chain(s.codec, message.body)
    for learned in headers:
        bounds.check_header(s, learned, header.view)
    if conflict.on_headers(s, header, headers):
        return
    if s.is_primary and s.log.linked == s.log.op and _unknown_identity(s) is None:
        s.drop(message, DropReason.UNWANTED)
        return
    was_asked = is_asked_for(s, header)
    request = s.scope.headers_requests.pop(header.nonce, None)
    if not was_asked:
        s.drop(message, DropReason.UNWANTED)  # what nobody asked for may be forged, and would be taken for the log
        return
    if request is not None and request.peer == header.replica:
        _note_answered(s, request.peer, request.sent_at)
        # Asked in this life and view: had an op above its head existed in this view, the primary would still know it.
        is_settled = request.peer == s.primary and s.log.give_up_above(header.position)
        if is_settled and s.promised.doubt > s.log.op:
            s.promised = replace(s.promised, doubt=s.log.op)
            s.persist_view()
    if _learn_headers(s, headers):
        s.repairs.is_due = True  # else whoever is asked again at once would say the same again
    elif request is not None:
        s.repairs.pacing.brought_nothing((HEADERS, request.first), s.now)
    s.learn_commit(header.commit)
    _take_early(s)
    wake(s)


def is_asked_for(s: State, header: Header) -> bool:
    """Whether the headers answer a question of this replica in this view, if late."""
    return header.nonce in s.scope.headers_requests or s.scope.headers_overdue.pop(header.nonce, None) is not None


def _learn_headers(s: State, headers: Sequence[Header]) -> bool:
    """Whether any of them was news."""
    log = s.log
    head = log.op if s.is_primary else None
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
    _truncate_divergent(s)  # the next answer would say again what can not be linked before that
    return is_news


def _take_early(s: State) -> None:
    """Prepares that came early and come next now; those that are known by their headers wait until it is their turn
    to be asked for."""
    log, early = s.log, s.repairs.early
    for op in sorted(early):
        if op == log.op + 1 and log.linked == log.op and follows(log.headers[log.op], early[op].header):
            message = early.pop(op)
            log.append(message)
            s.learn_commit(message.header.commit)
