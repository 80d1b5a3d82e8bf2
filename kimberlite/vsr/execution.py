"""From committed to executed: ops handed to the state machine in order, and what their results mean here.

Executed is what is committed, durable here, and of one identity. The primary answers its clients with the results; a
start executes once more what its disk knew to be committed, in silence. Imports types and vsr only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from kimberlite.errors import invariant
from kimberlite.types import Operation, Status
from kimberlite.vsr import repair
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.sessions import Result
from kimberlite.vsr.work import Apply

if TYPE_CHECKING:
    from kimberlite.vsr.state import State

# For every op: a name of the module is looked up in a quarter of the time that a member of an enum takes.
REPLAYED, COMMITTED = EventKind.REPLAYED, EventKind.COMMITTED
REGISTER, NORMAL = Operation.REGISTER, Status.NORMAL
_apply = partial(tuple.__new__, Apply)  # of its fields, in half of the time


def applicable(s: State) -> int:
    """Ops up to here may be executed: committed, durable here, and of one identity."""
    return min(s.commit_max, s.log.durable, s.trusted)


def is_held_up(s: State, op: int) -> bool:
    """Whether `op`, a committed one, can not be executed here: it is not on this disk, or one before it is damaged."""
    return s.log.durable < op or (s.execution.applied < op and s.execution.applied + 1 in s.log.faulty)


def hand_out(s: State) -> None:
    """Committed ops that are durable here, in order, a bounded number a round."""
    done = s.execution
    if done.emitted >= s.commit_max:
        return
    log = s.log
    last = min(applicable(s), done.emitted + s.config.apply_per_round)
    for op in range(done.emitted + 1, last + 1):
        message = log.bodies.get(op)
        if message is None and op in log.faulty:
            break  # being repaired
        header = message.header if message is not None else log.headers.get(op)
        s.outbox.work.apply.append(_apply((op, header, message)))
        done.emitted = op


def is_waiting(s: State) -> bool:
    """Whether the next round has something to hand out."""
    return s.execution.emitted < applicable(s) and not s.log.faulty


def on_applied(s: State, op: int, results: Sequence[Result]) -> None:
    """Enter committed requests into the sessions; the primary answers its clients."""
    done = s.execution
    if op != done.applied + 1:
        invariant(False, "ops are applied in order", op=op, applied=done.applied)
    done.applied = op
    prepared = s.role.take_committed(op)
    is_replay = op <= done.replay_to
    events = 0
    for result in results:
        evicted = s.sessions.commit(op, result)
        events += result.events
        if result.operation == REGISTER and not is_replay:
            s.emit(EventKind.SESSION_REGISTERED, op)
        if evicted and not is_replay:
            s.emit(EventKind.SESSION_EVICTED, evicted)
    done.positions += events
    entered = s.scope.entered.pop(op, None)
    if is_replay:
        s.emit(REPLAYED, op, events)
    else:
        s.emit(COMMITTED, op, events, s.now - entered if entered is not None else -1)
    if prepared is not None:
        s.role.answer(s, prepared, results)
    s.log.forget(op)


def note_recovered(s: State) -> None:
    """Tell, once, that this start has executed all that its disk knew to be committed."""
    done = s.execution
    if done.recover_to is not None and s.status == NORMAL and done.applied >= done.recover_to:
        done.recover_to = None
        s.emit(EventKind.RECOVERED, s.now - done.started_at)


def trimmable_op(s: State) -> int:
    """Highest op with which the log may begin: what is before is in a durable checkpoint of every
    replica, so that none will ever need it to catch up."""
    return min([s.execution.checkpoint_op, *(peer.checkpoint for peer in s.peers.values())]) + 1


def on_trimmed(s: State, first_op: int) -> None:
    """A committed TRIM was executed: the log begins with `first_op`."""
    s.log.trim(first_op)
    repair.on_trimmed(s, first_op)
    s.emit(EventKind.TRIMMED, first_op)
