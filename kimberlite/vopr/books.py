"""I23: what a core counts, remembers or looks up for speed agrees with what it stands for.

A counter that is not counted down, a table that is not cleared with what it belongs to, a timer that nobody looks at:
each harms only later, and seldom within a run. So the books are gone over now and then, wherever the replica is.

Looks into the core, and changes nothing. May import: types, vsr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kimberlite.types import Status
from kimberlite.vopr.checkers import Violation
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.following import Following
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.log import ENTRY_BYTES, Log
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.role import Between
from kimberlite.vsr.state import State
from kimberlite.vsr.timers import Timer
from kimberlite.vsr.work import Append

_ATTRIBUTES: dict[type, tuple[str, ...]] = {}  # of classes that were looked at


def check(core: Replica) -> None:
    """Raises Violation at the first thing that is wrong."""
    s = core.state
    for what in (*_of_log(s.log), *_of_state(s), *_of_role(s), *_of_timers(core)):
        raise Violation("I23 books", f"replica {s.index}: {what}")
    if core.leading is not None:
        for what in _of_primary(s, core.leading):
            raise Violation("I23 books", f"replica {s.index}, which leads view {s.view}: {what}")


def _of_log(log: Log) -> Iterator[str]:
    for op in log.on_disk:
        if op <= log.durable or op in log.faulty or op > log.journal_head:
            yield (
                f"op {op} counts as on the disk above op {log.durable}, where the journal ends with op "
                f"{log.journal_head}, damaged: {sorted(log.faulty)[:3]}"
            )
    for op in log.candidates:
        if op <= log.linked:
            yield f"op {op} is a candidate though the log is linked up to op {log.linked}"
    kept, headers, held = {op for op, _ in log._applied}, log.headers, 0
    for op, message in log.bodies.items():
        header, known = message.header, headers.get(op)
        if known is not header and known is not None and known.checksum != header.checksum:
            yield f"the body that is kept for op {op} is of another entry"
        if op not in kept:
            held += header.size + ENTRY_BYTES
    if held != log.held_bytes:
        yield f"{log.held_bytes} bytes count as held, {held} are"


def _of_state(s: State) -> Iterator[str]:
    log = s.log
    if log.committed > s.commit_max:
        yield f"op {log.committed} of this log counts as committed, op {s.commit_max} is"
    asked = Counter(request.peer for request in s.repairs.requests.values())
    for replica, peer in s.peers.items():
        if peer.repairs != asked[replica]:
            yield f"{peer.repairs} entries count as asked of replica {replica}, {asked[replica]} are"
    for op, request in s.repairs.requests.items():
        known = log.headers.get(op)
        if known is None or known.checksum != request.header.checksum:
            yield f"op {op} is asked for as an entry of another log"
    owed = {
        entry.header.op
        for _, persist in s.outbox.owed.values()
        if isinstance(persist, Append)
        for entry in persist.entries
    }
    for op in log.writing:
        if op not in owed:
            yield f"op {op} counts as being written, and nothing is"
    for op in (*s.repairs.requests, *log.faulty, *log.bodies):
        if op < log.first_op:
            yield f"op {op} is asked for, damaged or kept, the log begins with op {log.first_op}"
    for op in s.scope.entered:
        if op <= s.execution.applied:
            yield f"op {op} is executed, and counts as under way"


def _of_role(s: State) -> Iterator[str]:
    """What this replica votes for, and what it waits for: for whatever it waits there is a timer."""
    role = s.role
    votes = role.votes
    if s.index in votes.at and not votes.is_cast:
        yield "its own vote counts, and is not cast"
    if votes.is_cast and votes.timer.deadline is None and s.outbox.promise is None:
        yield "it votes, and does not say so again"
    if isinstance(role, Between) and role._timer.deadline is None:
        yield f"{type(role).__name__} in view {s.view}, and its patience has no end"
    if isinstance(role, ChangingView) and role._resend_timer.deadline is None:
        yield f"it gives evidence in view {s.view}, once"
    if isinstance(role, Following) and role.trimmed_by_primary > s.log.gone_below:
        yield f"the log of its primary begins with op {role.trimmed_by_primary}, it waits for op {s.log.gone_below}"
    if s.peers and s.own.ping_timer.deadline is None:
        yield "it gives no sign of life any more"
    is_asked_for = s.peers and s.status == Status.NORMAL
    if is_asked_for and s.repairs.timer.deadline is None and (s.log.faulty or s.repairs.requests):
        yield f"{len(s.log.faulty)} ops are damaged, {len(s.repairs.requests)} asked for, and it looks at none of them"


def _of_timers(core: Replica) -> Iterator[str]:
    """Whoever asks when there is something to do is told of the timer that ends first."""
    s = core.state
    due = core.next_deadline()
    if due is not None and due <= s.now:
        return
    for owner in (s.role, s, s.own, s.repairs):
        for name in _attributes(type(owner)):
            timer = getattr(owner, name, None)
            if isinstance(timer, Timer) and timer.deadline is not None and (due is None or timer.deadline < due):
                yield f"{name} of {type(owner).__name__} ends at {timer.deadline}, nothing is said to before {due}"


def _attributes(kind: type) -> tuple[str, ...]:
    """All that instances of a class may have."""
    known = _ATTRIBUTES.get(kind)
    if known is None:
        names = (name for base in kind.__mro__ for name in getattr(base, "__slots__", ()))
        known = _ATTRIBUTES[kind] = tuple(names)
    return known


def _of_primary(s: State, leading: Leading) -> Iterator[str]:
    ops = [prepared.header.op for prepared in leading.pipeline]
    if ops and ops != list(range(ops[0], s.log.op + 1)):
        yield f"ops {ops} are under way, the log ends with op {s.log.op}"
    if (ops[0] if ops else s.log.op + 1) > s.commit_max + 1:
        yield f"ops {ops} are under way, op {s.commit_max} is committed, the log ends with op {s.log.op}"
    if leading.gave_up is not None and len(leading.requests):
        yield f"it asks to be replaced, and {len(leading.requests)} requests wait for it"
    if leading.pipeline and leading.prepare_timer.deadline is None:
        yield f"ops {ops} are under way, and are not sent again"
    if s.peers and leading.gave_up is None and leading.heartbeat_timer.deadline is None:
        yield "it sends no heartbeats"
    size = sum(len(message.body) for message in leading.requests)
    if size != leading.requests.bytes:
        yield f"{leading.requests.bytes} bytes of requests count as queued, {size} are"
    prepared = [*leading.pipeline, *leading.committing.values()]
    clients = {request.header.client for one in prepared for request, _ in one.requests}
    clients |= {message.header.client for message, _ in leading.requests.queue}
    if clients != leading.requests.in_flight.keys():
        yield f"{len(leading.requests.in_flight)} clients count as having a request in flight, {len(clients)} have one"
