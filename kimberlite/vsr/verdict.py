"""Whether this replica's cluster can commit, as far as this replica knows.

Derived from what is heard, not from what is asked for, so that it is true on an idle cluster too: a primary
whose backups have been silent for CoreConfig.contact_ns can not commit, a backup that has not heard its
primary for as long can not either. A backup takes the word of a primary that it hears.
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Status
from kimberlite.vsr.work import CannotCommit, GaveUp

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica


def is_heard(r: Replica, replica: int) -> bool:
    """Whether that replica, or this one itself, gave a sign of life within contact_ns."""
    if replica == r.index:
        return True
    last = r.peers[replica].last_heard
    return last > 0 and r.now - last <= r.config.contact_ns


def quorum_margin(r: Replica) -> int:
    """Replicas heard, this one included, minus those that a commit needs: below 0 nothing can be committed."""
    return sum(is_heard(r, replica) for replica in range(r.config.replica_count)) - r.quorums.replication


def cannot_commit(r: Replica) -> tuple[CannotCommit, ...]:
    """Every reason why a request that came now would not be committed; empty when it would be."""
    found: list[CannotCommit] = []
    if r.status == Status.NORMAL and r.is_primary:
        found += _of_primary(r)
    elif r.status == Status.NORMAL:
        if r.suspecting or not is_heard(r, r.primary):
            found.append(CannotCommit.NO_PRIMARY)
    else:
        found.append(CannotCommit.VIEW_CHANGE if r.status == Status.VIEW_CHANGE else CannotCommit.RECOVERING)
        if r.stuck_op:
            found.append(CannotCommit.STUCK)
    if quorum_margin(r) < 0:
        found.append(CannotCommit.NO_QUORUM)
    if r.conflict is not None:
        found.append(CannotCommit.IDENTITY_CONFLICT)
    return tuple(found)


def of_view_change(r: Replica) -> list[str]:
    """Sentences that say why a view change takes long, as far as this replica knows."""
    found: list[str] = []
    if r.stuck_op:
        found.append(
            f"op {r.stuck_op} is damaged or missing on every replica whose log is known ({len(r.evidence)} of "
            f"{r.config.replica_count}), and may have been acknowledged: it is waited for, and never skipped"
        )
    if r.gave_up is not None:
        view, why = r.gave_up
        found.append(f"this replica would not lead view {view} any more: {_GAVE_UP[why]}")
    return found


_GAVE_UP = {
    GaveUp.ABDICATED: "it could not commit",
    GaveUp.DRAINED: "it is being stopped",
    GaveUp.BEHIND: "it is too far behind, and another has the log",
    GaveUp.DISK_FULL: "it lacks entries, and its disk has no room for them",
}


def _of_primary(r: Replica) -> list[CannotCommit]:
    is_stalled = bool(r.pipeline) and r.now - r.pipeline[0].prepared_at > r.config.contact_ns
    answers = (
        (CannotCommit.CATCHING_UP, not r.ready),
        (CannotCommit.STALLED, is_stalled),
        (CannotCommit.DISK_FULL, not r.can_journal),
        (CannotCommit.DRAINING, r.draining),
    )
    return [reason for reason, holds in answers if holds]
