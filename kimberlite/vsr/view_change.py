"""View changes: votes, evidence, the choice of the log, its installation.

    suspicion --quorum of start_view_change--> view persisted --> do_view_change
    quorum of do_view_change --> choose() --> log_view persisted --> start_view
    start_view --> installed, log_view persisted --> fresh acknowledgements

VRR section 4.2, repaired: a view is left only with a quorum of votes, which expire and are
withdrawn when the primary is heard; do_view_change carries headers of the uncommitted
suffix with what is *present* and what was certainly *never acknowledged* (nack), so
that a damaged entry is told from an absent one (Protocol-Aware Recovery, FAST'18);
old ops commit only by acknowledgements of the new view.
Imports errors, types and vsr only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kimberlite.errors import FrameError, invariant
from kimberlite.types import FLAG_DISK_FULL, FLAG_PREPARED, Command, FrameReason, Header, Message, Reason, Status
from kimberlite.vsr import bounds, normal, repair, verdict
from kimberlite.vsr.codec import (
    SUFFIX_OPS_MAX,
    Evidence,
    decode_chain,
    decode_evidence,
    encode_evidence,
    encode_headers,
    follows,
)
from kimberlite.vsr.events import DropReason, EventKind, GaveUp, ViewChangeCause
from kimberlite.vsr.quorum import Quorums
from kimberlite.vsr.state import LogState, Prepared

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica


# The choice of the log: pure functions of the evidence


@dataclass(frozen=True, slots=True)
class DoViewChange:
    """One replica's evidence."""

    replica: int
    log_view: int
    op: int
    commit: int
    evidence: Evidence
    nonce: int = 0  # for the start_view that answers it

    def header(self, op: int) -> Header | None:
        for header in self.evidence.headers:
            if header.op == op:
                return header
        return None

    def bit(self, bits: int, op: int) -> bool:
        return op >= self.evidence.first and bool(bits >> (op - self.evidence.first) & 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """The canonical log, or why it cannot be chosen yet.

    suffix: headers commit..head when chosen, else empty. stuck_op: the op whose copies
    and nacks are both too few, 0 when chosen. dropped: ops cut by a nack quorum.
    """

    commit: int
    suffix: tuple[Header, ...]
    stuck_op: int = 0
    dropped: int = 0
    log_view: int = 0


def canonical_log_view(messages: Iterable[DoViewChange]) -> int:
    """The newest log wins: one view's log extends that of every view before it."""
    return max(message.log_view for message in messages)


def highest_commit(messages: Iterable[DoViewChange]) -> int:
    """Commit numbers are facts, whoever knows them."""
    return max(message.commit for message in messages)


def never_acknowledged(message: DoViewChange, op: int, header: Header | None, canonical: bool) -> bool:
    """Whether this replica certainly never acknowledged `op` under that identity."""
    if op > message.op:
        return True
    own = message.header(op)
    if own is not None and header is not None and own.checksum != header.checksum:
        return True
    return message.bit(message.evidence.nack, op)


def has_copy(message: DoViewChange, op: int, header: Header) -> bool:
    own = message.header(op)
    return own is not None and own.checksum == header.checksum and message.bit(message.evidence.present, op)


def choose(messages: list[DoViewChange], quorums: Quorums) -> Choice:
    """Choose the log of the new view from at least a view-change quorum of evidence.

    The ops up to the highest known commit number are beyond doubt. Above, lowest first:
    a nack quorum cuts the log there; a known header with a copy keeps the op; anything else
    waits for more evidence (stuck_op), and is never cut.
    """
    log_view = canonical_log_view(messages)
    canonical = [message for message in messages if message.log_view == log_view]
    commit = highest_commit(messages)
    head = max(message.op for message in canonical)
    suffix: list[Header] = []
    for op in range(commit, head + 1):
        header = next((known for m in canonical if (known := m.header(op)) is not None), None)
        if op == commit:
            if header is None:
                return Choice(commit, (), stuck_op=op, log_view=log_view)
            suffix.append(header)
            continue
        nacks = sum(never_acknowledged(m, op, header, m.log_view == log_view) for m in messages)
        if nacks >= quorums.nack:
            return Choice(commit, tuple(suffix), dropped=head - op + 1, log_view=log_view)
        if header is None or not any(has_copy(m, op, header) for m in messages):
            return Choice(commit, (), stuck_op=op, log_view=log_view)
        suffix.append(header)
    if head < commit:
        return Choice(commit, (), stuck_op=head + 1, log_view=log_view)
    return Choice(commit, tuple(suffix), log_view=log_view)


# Votes


def tick(r: Replica) -> None:
    """Suspicion of a silent primary, of a view change that takes too long; resending."""
    view = r.view
    if r.status == Status.NORMAL:
        if not r.is_primary and not r.scope.suspecting and r.now >= r.detector.deadline:
            suspect(r)
    elif r.view_change_timer.due(r.now):
        r.view_changes_failed += 1
        suspect(r)
        if r.view == view:
            _start_view_change_timer(r)
    if r.view != view:
        return
    if r.vote_timer.due(r.now) and r.scope.suspecting:
        _vote(r)
    if r.do_view_change_timer.due(r.now) and r.status == Status.VIEW_CHANGE:
        r.do_view_change_timer.start(r.now + r.prng.jitter(r.config.do_view_change_resend_ns))
        if r.view_token is None:
            _send_evidence(r)


def suspect(r: Replica) -> None:
    """Vote to leave this view."""
    r.scope.suspecting = True
    _vote(r)


def abdicate(r: Replica, why: GaveUp) -> None:
    """A primary that is of no use falls silent and asks for another."""
    if r.is_primary and r.status == Status.NORMAL:
        r.scope.abdicated = True
        _give_up(r, EventKind.ABDICATED, r.view, why)
        suspect(r)


def _give_up(r: Replica, kind: EventKind, *told: int) -> None:
    """Tell why this replica leaves the lead of its view to another. `told`: of the event, the reason last."""
    r.gave_up = (r.view, GaveUp(told[-1]))
    r.emit(kind, *told)


def _vote(r: Replica) -> None:
    r.vote_timer.start(r.now + r.prng.jitter(r.config.vote_resend_ns))
    if r.view_token is None:  # the vote names this view, which must be durable first
        r.broadcast(r.make(Command.START_VIEW_CHANGE))
    _count_vote(r, r.index)


def on_start_view_change(r: Replica, message: Message) -> None:
    """A vote to leave header.view."""
    header = message.header
    _count_vote(r, header.replica)
    # Each vote counts in the view it names: the first one may have been enough to leave it.
    is_asked = r.view == header.view and header.replica == r.primary and r.status != Status.RECOVERING
    if is_asked and not r.scope.suspecting:
        suspect(r)  # the primary itself asks to be replaced, or gives its view up before it begins


def inform(r: Replica, replica: int) -> None:
    """A replica is behind in views: tell it which view this is."""
    if r.view_token is None and replica != r.index:
        r.send(replica, _ping(r))


def _ping(r: Replica) -> Message:
    """This replica's view, and what its log holds on disk."""
    return r.make(Command.PING, op=r.log.durable)


def give_signs_of_life(r: Replica) -> None:
    """To those that hear nothing else of this replica: what one may be asked for, and whether a quorum is there,
    is known by who is heard."""
    if not r.ping_timer.due(r.now):
        return
    r.ping_timer.start(r.now + r.prng.jitter(r.config.ping_ns))
    is_leading = r.status == Status.NORMAL and r.is_primary and not r.scope.abdicated
    if r.view_token is not None or is_leading:
        return
    message = _ping(r)
    for replica in r.peers:
        if replica != r.primary or r.status != Status.NORMAL:
            r.send(replica, message)


def on_ping(r: Replica, message: Message) -> None:
    """A replica tells us its view, and what its log holds."""
    r.peers[message.header.replica].says(message.header.op)


def _count_vote(r: Replica, replica: int) -> None:
    r.scope.votes[replica] = r.now
    fresh = sum(1 for at in r.scope.votes.values() if r.now - at <= r.config.vote_window_ns)
    if enough_votes(r, fresh) and r.may_enter_view:
        cause = ViewChangeCause.ABDICATED if r.scope.abdicated else ViewChangeCause.PRIMARY_SILENT
        enter(r, r.view + 1, cause)


def enough_votes(r: Replica, fresh: int) -> bool:
    """A view is left only by a view-change quorum, whatever one replica believes."""
    return fresh >= r.quorums.view_change


def on_newer_view(r: Replica, view: int) -> None:
    """A frame of a newer view: a quorum has left ours. Passed over while the disk does not follow."""
    if r.may_enter_view:
        enter(r, view, ViewChangeCause.NEWER_VIEW)


def enter(r: Replica, view: int, cause: int) -> None:
    """Leave the present view for `view`: persist it, then give evidence to its primary. What repair has and has
    asked for stays: see there."""
    invariant(view > r.view, "views only increase", view=view, own=r.view)
    leader = r.peers.get(r.primary)
    if leader is not None:
        leader.held = max(leader.held or 0, r.scope.known_head)
    if r.status == Status.NORMAL:
        r.view_left_at = r.now
    if r.is_primary and r.status == Status.NORMAL:
        r.emit(EventKind.PRIMARY, 0)
    r.enter_view(view)
    r.set_status(Status.VIEW_CHANGE)
    r.emit(EventKind.VIEW_CHANGE_STARTED, view, cause)
    _stop_leading(r)
    r.vote_timer.stop()
    r.heartbeat_timer.stop()
    r.prepare_timer.stop()
    r.do_view_change_timer.start(r.now + r.prng.jitter(r.config.do_view_change_resend_ns))
    _start_view_change_timer(r)
    r.persist_view()


def _start_view_change_timer(r: Replica) -> None:
    timeout = min(r.config.view_change_ns << min(r.view_changes_failed, 8), r.config.view_change_max_ns)
    if not verdict.is_heard(r, r.primary):
        timeout //= 4  # who is silent will not lead it either
    r.view_change_timer.start(r.now + timeout + r.prng.below(timeout // 2))


def _stop_leading(r: Replica) -> None:
    """Send waiting clients to the next primary: they resend under the same request number."""
    if r.pipeline:
        r.emit(EventKind.ABANDONED, r.pipeline[0].header.op, len(r.pipeline))
    r.entered.clear()
    for prepared in [*r.pipeline, *r.committing.values()]:
        for request, _ in prepared.requests:
            r.reject(request, Reason.NOT_PRIMARY, flags=FLAG_PREPARED)
    for request, _ in [*r.queue, *r.waiting.values()]:
        r.reject(request, Reason.NOT_PRIMARY)
    r.pipeline.clear()
    r.committing.clear()
    r.queue.clear()
    r.queue_bytes = 0
    r.waiting.clear()
    r.in_flight.clear()
    r.pace.since = None


# Evidence


def own_evidence(r: Replica) -> Evidence:
    """Headers of the uncommitted suffix, what of it is on this disk, and what never was."""
    log = r.log
    first = max(min(r.commit_max, log.op), log.op - SUFFIX_OPS_MAX + 1)
    known = present = nack = 0
    headers: list[Header] = []
    for op in range(first, log.op + 1):
        bit = 1 << (op - first)
        header = log.headers.get(op)
        if header is not None:
            known |= bit
            headers.append(header)
            if log.holds(op):
                present |= bit
        if is_certainly_absent(r, op):
            nack |= bit
    return Evidence(first, known, present, nack, tuple(headers))


def is_certainly_absent(r: Replica, op: int) -> bool:
    """Its header is known, it was never written here, and nothing here is damaged."""
    log = r.log
    return op in log.headers and not log.holds(op) and op not in log.faulty and op not in log.candidates


def _send_evidence(r: Replica) -> None:
    """Give evidence to the primary of this view, and so ask it for the log. Only a start_view with the nonce of that
    is installed: a forged log would be evidence in every later view, and what is sent here only the replica at the
    configured address can read."""
    evidence = own_evidence(r)
    r.scope.evidence_nonce = r.scope.evidence_nonce or r.next_nonce()
    message = r.make(
        Command.DO_VIEW_CHANGE,
        encode_evidence(evidence),
        op=r.log.op,
        log_view=r.log_view,
        count=len(evidence.headers),
        flags=FLAG_DISK_FULL if r.is_disk_full else 0,
        nonce=r.scope.evidence_nonce,
    )
    if r.is_primary:
        on_do_view_change(r, message)
    else:
        r.send(r.primary, message)


def on_view_durable(r: Replica) -> None:
    """The superblock knows `view` (and log_view): what depended on it may go on."""
    if r.status == Status.VIEW_CHANGE and r.log_view < r.view:
        _send_evidence(r)
        if r.scope.suspecting:
            r.vote_timer.start_if_idle(r.now)
    elif r.log_view == r.view and r.status == Status.VIEW_CHANGE:
        if r.is_primary:
            _lead(r)
        else:
            _follow(r)


def on_do_view_change(r: Replica, message: Message) -> None:
    """Evidence for the primary of header.view."""
    header = message.header
    if r.status == Status.NORMAL:
        # It is in this view but has not installed its log.
        if r.view_token is None:
            r.send(header.replica, _start_view_message(r, header.nonce))
        return
    evidence = decode_evidence(r.codec, message.body)
    check_evidence(r, header, evidence)
    if header.replica != r.index:
        r.note_disk(header.replica, header.flags)
    r.scope.evidence[header.replica] = DoViewChange(
        header.replica, header.log_view, header.op, header.commit, evidence, header.nonce
    )
    if r.log_view < r.view and r.view_token is None:
        _try_to_choose(r)


def check_evidence(r: Replica, header: Header, evidence: Evidence) -> None:
    """That the evidence is of the end of one log, of which the frame says the head. Raises FrameError."""
    span = header.op - evidence.first + 1
    bits = evidence.known | evidence.present | evidence.nack
    if not 0 < span <= SUFFIX_OPS_MAX or bits >> span or evidence.present & ~evidence.known:
        raise FrameError(
            f"evidence of ops {evidence.first} to {header.op} speaks of others", reason=FrameReason.BAD_SIZE
        )
    for known in evidence.headers:
        bounds.check_header(r, known, header.log_view)
    for before, after in pairwise(evidence.headers):
        if after.op == before.op + 1 and not follows(before, after):
            raise FrameError(f"evidence of ops {before.op} and {after.op} is no chain", reason=FrameReason.BAD_SIZE)


def enough_evidence(r: Replica) -> bool:
    """Own evidence counts, and arrives here like any other."""
    return len(r.scope.evidence) >= r.quorums.view_change and r.index in r.scope.evidence


def _try_to_choose(r: Replica) -> None:
    if not enough_evidence(r):
        return
    choice = choose(list(r.scope.evidence.values()), r.quorums)
    if not choice.suffix:
        r.stuck_op = choice.stuck_op
        r.emit(EventKind.STUCK, choice.stuck_op, len(r.scope.evidence))
        return
    canonical = min(r.log.linked if r.log_view == choice.log_view else r.log.committed, choice.commit)
    if len(choice.suffix) > SUFFIX_OPS_MAX or not agrees(r, choice.suffix, canonical):
        # Somebody's evidence is forged: all is asked for again, and who sent it honestly does so by itself.
        r.emit(EventKind.DROPPED, Command.DO_VIEW_CHANGE, DropReason.BROKEN_CHAIN)
        r.scope.evidence = {r.index: r.scope.evidence[r.index]}
        return
    gap = ops_behind(r, choice, canonical)
    if is_far_behind(r, choice, gap):
        # Nothing would be answered before it has caught up: whoever has the log leads.
        _give_up(r, EventKind.FORFEITED, choice.commit, gap, GaveUp.BEHIND)
        suspect(r)
        return
    if r.is_disk_full and lacks_entries(r, choice.suffix):
        # It could not answer anybody before somebody makes room on its disk.
        _give_up(r, EventKind.FORFEITED, choice.commit, choice.suffix[-1].op - r.log.durable, GaveUp.DISK_FULL)
        suspect(r)
        return
    if choice.dropped:
        r.emit(EventKind.SUFFIX_DROPPED, choice.suffix[-1].op + 1, choice.dropped)
    r.learn_commit(choice.commit)
    install(r, choice.suffix, canonical)


def ops_behind(r: Replica, choice: Choice, canonical: int) -> int:
    """How much of what is committed this candidate lacks. What it holds of an older view's log is nothing that it
    has, unless the chosen one is known to have it too."""
    return choice.commit - min(r.log.linked, r.log.same_up_to(choice.suffix, canonical))


def is_far_behind(r: Replica, choice: Choice, gap: int) -> bool:
    """Whether this candidate lacks much of what is committed, and another that gave evidence has it. It gives its
    view up at once, and does not have to again: who has the log is not left while others catch up with it."""
    others = (message for message in r.scope.evidence.values() if message.replica != r.index)
    return gap > r.config.forfeit_gap and any(has_copy(m, choice.commit, choice.suffix[0]) for m in others)


def lacks_entries(r: Replica, suffix: tuple[Header, ...]) -> bool:
    """Whether entries of the chosen log would have to be appended here."""
    known = (r.log.headers.get(header.op) for header in suffix)
    held = all(
        own is not None and own.checksum == header.checksum and r.log.holds(header.op)
        for own, header in zip(known, suffix, strict=True)
    )
    return not held


# Installation


def agrees(r: Replica, suffix: Sequence[Header], canonical: int) -> bool:
    """Whether a log that ends with `suffix` can hold all of this one up to `canonical`, and what is committed here."""
    log = r.log
    settled = max(canonical, log.committed)
    if suffix[-1].op < log.committed:
        return False
    for header in suffix:
        own = log.headers.get(header.op)
        if header.op <= settled and own is not None and own.checksum != header.checksum:
            return False
    below = log.headers.get(suffix[0].op - 1) if suffix[0].op - 1 <= settled else None
    return below is None or follows(below, suffix[0])


def install(r: Replica, suffix: tuple[Header, ...], canonical: int) -> None:
    """Make the log of this view ours, and persist that before anything is said of it."""
    invariant(
        suffix[-1].op >= r.log.committed,
        "nothing that was committed is ever dropped",
        head=suffix[-1].op,
        committed=r.log.committed,
        view=r.view,
    )
    truncate_to = r.log.install(suffix, max(canonical, r.log.committed))
    repair.on_installed(r)
    r.note_commit()
    r.apply_emitted = r.applied
    r.log_view = r.view
    r.conflict = None
    doubt = max((op for op in r.log.faulty if op > truncate_to), default=0)
    # What is committed and missing here may have another log's entry in its place: no part of the base.
    base = min(r.log.committed, truncate_to, max(r.log.durable, r.log.rooted))
    r.log_state = LogState(base, suffix[-1].op, suffix, doubt)
    r.persist_view(truncate_to=truncate_to)


def _lead(r: Replica) -> None:
    """This replica is the primary of its view now."""
    nonces = {replica: given.nonce for replica, given in r.scope.evidence.items()}
    _become_normal(r)
    r.emit(EventKind.PRIMARY, 1)
    r.scope.ready_at_op = r.log.op
    for op in range(r.commit_max + 1, r.log.op + 1):
        r.pipeline.append(Prepared(r.log.headers[op], r.now))
    for replica in r.peers:  # who has given no evidence asks for the log when it hears of this
        r.send(replica, _start_view_message(r, nonces.get(replica, 0)))
    r.heartbeat_timer.start(r.now)
    if r.pipeline:
        r.prepare_timer.start(r.now + r.prng.jitter(r.config.prepare_resend_ns))
    normal.on_entries_durable(r)


def _start_view_message(r: Replica, nonce: int) -> Message:
    """The canonical log from the commit number to the head, for who gave evidence with that nonce."""
    log = r.log
    first = max(min(r.commit_max, log.op), log.op - SUFFIX_OPS_MAX + 1)
    suffix = [log.headers[op] for op in range(first, log.op + 1)]
    return r.make(
        Command.START_VIEW, encode_headers(suffix), op=log.op, log_view=r.log_view, count=len(suffix), nonce=nonce
    )


def on_start_view(r: Replica, message: Message) -> None:
    """Install the log of header.view, once, when it answers the own evidence. Another one tells of a view: evidence
    is given there, and answered."""
    header = message.header
    if not is_start_view_wanted(r, message):
        r.drop(message, DropReason.OLD_VIEW)
        return
    suffix = tuple(decode_chain(r.codec, message.body))
    check_suffix(r, header, suffix)
    if not agrees(r, suffix, r.log.committed):
        r.refuse(message, DropReason.BROKEN_CHAIN)
        return
    if header.view > r.view:
        on_newer_view(r, header.view)
    elif is_answer(r, header):
        r.learn_commit(header.commit)
        install(r, suffix, r.log.committed)
    else:
        r.drop(message, DropReason.UNWANTED)
        if r.view_token is None:
            _send_evidence(r)


def is_answer(r: Replica, header: Header) -> bool:
    """Whether a start_view answers the evidence that this replica gave in this view."""
    return header.nonce == r.scope.evidence_nonce != 0


def check_suffix(r: Replica, header: Header, suffix: Sequence[Header]) -> None:
    """That a start_view holds the end of the log that it speaks of, from a committed op on. Raises FrameError."""
    if suffix[-1].op != header.op or len(suffix) > SUFFIX_OPS_MAX or suffix[0].op > header.commit:
        raise FrameError(
            f"ops {suffix[0].op} to {suffix[-1].op} are not the end of a log of {header.op} ops of which "
            f"{header.commit} are committed",
            reason=FrameReason.BAD_SIZE,
        )
    if header.log_view != header.view:
        raise FrameError(f"the log of view {header.log_view} starts none", reason=FrameReason.BAD_SIZE)
    for known in suffix:
        bounds.check_header(r, known, header.view)


def is_start_view_wanted(r: Replica, message: Message) -> bool:
    """Only a log newer than ours is installed. The log of a view only grows, so a start_view
    of the log_view we already have can only be a late one, shorter than what we acknowledged."""
    view = message.header.view
    return view > r.view or r.log_view < view


def _follow(r: Replica) -> None:
    """This replica is a backup of its view now; it acknowledges anew what it has."""
    _become_normal(r)
    r.scope.ack_due = True


def _become_normal(r: Replica) -> None:
    r.set_status(Status.NORMAL)
    r.view_changes_failed = r.stuck_op = 0
    r.gave_up = None
    r.scope.suspecting = False
    r.scope.votes.clear()
    r.scope.evidence.clear()
    r.view_change_timer.stop()
    r.do_view_change_timer.stop()
    r.vote_timer.stop()
    r.detector.reset(r.now)
    r.emit(EventKind.VIEW_CHANGED, r.view, r.now - r.view_left_at)
    repair.wake(r)
