"""When checkpoints are due: at ops that follow from the log alone.

A checkpoint is due after every op whose number is a multiple of `CheckpointPolicy.ops`, and between two of these as
often as `bytes` of entries were executed since the one before was due. Nothing else counts: neither when the last one
was finished, nor whether one was made at all, nor when this process began. So all replicas of one configuration make
checkpoints of the same ops, and those of one op are the same bytes; a replica whose writer is busy when one is due
leaves that one out, and makes the next.

May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kimberlite.types import Header


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """A checkpoint is due at every multiple of so many ops, and whenever so many bytes of entries were executed since
    one was due."""

    ops: int = 4096
    bytes: int = 64 << 20


USUAL = CheckpointPolicy()


class CheckpointSchedule:
    """Told of every op that is executed, in order; in the beginning a checkpoint was due at the op before."""

    def __init__(self) -> None:
        self._bytes = 0  # of entries, since a checkpoint was due

    def is_due(self, policy: CheckpointPolicy, op: int, size: int) -> bool:
        """Whether a checkpoint is due after `op`, whose entry has that size."""
        self._bytes += size
        if op % policy.ops and self._bytes < policy.bytes:
            return False
        self._bytes = 0
        return True


def schedule_behind(policy: CheckpointPolicy, executed: int, headers: Sequence[Header]) -> CheckpointSchedule:
    """What is due behind an op that a restart begins with, which need not be due itself. headers: of the ops from
    `first_needed` up to that one; when not all of them can be had it is taken for due."""
    schedule = CheckpointSchedule()
    if len(headers) == executed - first_needed(policy, executed) + 1:
        for header in headers:
            schedule.is_due(policy, header.op, header.size)
    return schedule


def first_needed(policy: CheckpointPolicy, executed: int) -> int:
    """The first op that counts for what is due behind `executed`; the op behind that one when none does."""
    return executed - executed % policy.ops + 1
