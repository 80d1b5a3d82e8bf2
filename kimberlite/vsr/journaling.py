"""This log and the own disk: what is written when, what has become durable, what is found damaged.

Writes are handed out in groups, one for all that waits, and complete in order. A completion counts for the entries that
it wrote in any view, unless a cut of the journal has been asked for since (Outbox.void_writes); it acknowledges
something only in the view in which it was asked for. Imports types and vsr only.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from kimberlite.types import Header
from kimberlite.vsr import repair
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.outbox import WRITES_MAX
from kimberlite.vsr.work import Promise

if TYPE_CHECKING:
    from kimberlite.vsr.role import Transition
    from kimberlite.vsr.state import State

JOURNALED = EventKind.JOURNALED  # for every op: looked up in a quarter of the time


def write(s: State) -> None:
    """Hand entries to the journal, in groups: one for all that waits."""
    if s.outbox.promise is not None:
        return  # the journal must not grow before the superblock says what is void
    if s.outbox.writes >= WRITES_MAX:
        return  # a slow disk: what waits shares the next write
    entries = s.log.take_writes(s.disk.room, is_patient=not s.is_backed_up)
    s.disk.wants_room |= s.log.is_waiting_for_room
    if entries:
        s.outbox.append(tuple(entries), s.view, s.now)


def on_durable(s: State, token: int) -> Transition | None:
    """What was asked under `token` is on the disk: releases what depended on it."""
    view, done = s.outbox.completed(token, s.now)
    if isinstance(done, Promise):
        is_current = view == s.view and done.state.log_view == s.log_view
        return s.role.on_promise_durable(s) if is_current else None
    before, of_primary = s.log.durable, int(s.is_primary)
    for entry in done.entries:
        header = entry.header
        if s.log.mark_durable(header):
            repair.on_durable(s, header)
        entered = s.scope.entered.get(header.op)
        if entered is not None and view == s.view:
            s.emit(JOURNALED, header.op, s.now - entered, of_primary)
    if s.log.durable > before:
        s.disk.progress_at = s.now
    if view == s.view:
        s.role.on_entries_durable(s)
    return None


def acknowledged_op(s: State) -> int:
    """What may be acknowledged: everything up to here is durable and chained, and nothing of it
    that is still to be committed is known to be damaged."""
    log = s.log
    if not log.faulty:
        return log.durable
    damaged = min((op for op in log.faulty if op > s.commit_max), default=log.durable + 1)
    return min(log.durable, damaged - 1)


def on_not_written(s: State, token: int, ops: Collection[int]) -> None:
    """The journal has no certain place for these entries: they are missing as before, and asked for less and less."""
    s.outbox.leave_out(token, ops)
    for op in ops:
        s.log.not_written(op)
        s.repairs.pacing.brought_nothing((repair.ENTRY, op), s.now)
    repair.wake(s)


def on_faulty(s: State, op: int, header: Header | None) -> None:
    """A read found `op` damaged: a peer has it. header: of its witness, None when that is damaged too."""
    if not is_of_log(s, op):
        return
    log, done = s.log, s.execution
    if op in log.bodies:
        header = log.bodies[op].header  # a witness may be left of an older log
    # Above `linked` the journal may hold another log's entry; of what is damaged already it is not asked twice.
    if header is not None and op <= log.linked and op not in log.faulty:
        log.headers.setdefault(op, header)
    log.mark_faulty(op)
    done.emitted = max(done.applied, min(done.emitted, op - 1))
    s.emit(EventKind.FAULTY, op)
    repair.wake(s)


def is_of_log(s: State, op: int) -> bool:
    """Whether this log needs what the journal has under `op`. What was trimmed nobody has and nobody needs, and
    what a view change is about to cut off is another log's: the store forgets both in a while."""
    return s.log.first_op <= op <= s.log.journal_head
