"""Whether a round would find anything to do: asked before each, so that none is made for nothing.

Almost every input is done with in one round; a second one that only looks would cost as much as the first. What is at
rest waits for an input: a frame, a request, the disk, the time. Cheap and cautious: a replica of which it can not be
told at a glance, in a view change for one, or with damage, is not at rest, and one more round finds out.

Pure. Imports vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


def is_at_rest(s: State) -> bool:
    """Whether `Replica.take_work` would change nothing and ask for nothing."""
    log, done, outbox = s.log, s.execution, s.outbox
    work = outbox.work
    return (
        s.role.is_at_rest(s)
        and is_written(s)
        and done.emitted >= min(s.commit_max, log.durable)
        and s.commit_max >= s.scope.commit_heard
        and log.committed >= s.commit_max
        and done.recover_to is None
        and not s.repairs.is_due
        and not s.disk.wants_room
        and not (work.send or work.persist or work.apply or work.serve or work.refused)
        and outbox.promise is None
    )


def is_written(s: State) -> bool:
    """Whether the journal has been handed all of this log: each entry is on the disk, or under way to it."""
    log = s.log
    return (
        log.op == log.journal_head
        and log.op == log.linked
        and log.durable + len(log.writing) == log.op
        and not log.faulty
        and not log.is_waiting_for_room
    )
