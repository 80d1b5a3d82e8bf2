"""Whether this replica's cluster can commit, as far as this replica knows.

Derived from what is heard, not from what is asked for, so that it is true on an idle cluster too: a primary
whose backups have been silent for CoreConfig.contact_ns can not commit, a backup that has not heard its
primary for as long can not either. A backup takes the word of a primary that it hears.
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Status
from kimberlite.vsr.events import GaveUp
from kimberlite.vsr.work import CannotCommit

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


def is_short_of_room(r: Replica) -> bool:
    """Whether full disks of others keep this replica from a commit: a quorum is heard, and those of it whose disks are
    not full are none. Where no quorum is heard, nobody knows what those that are silent have room for."""
    if not r.scope.full_peers or quorum_margin(r) < 0:
        return False
    with_room = 1 + sum(is_heard(r, replica) for replica in r.peers if replica not in r.scope.full_peers)
    return with_room < r.quorums.replication


def cannot_commit(r: Replica) -> tuple[CannotCommit, ...]:
    """Every reason why a request that came now would not be committed; empty when it would be."""
    found: list[CannotCommit] = []
    if r.status == Status.NORMAL and r.is_primary:
        found += _of_primary(r)
    elif r.status == Status.NORMAL:
        if r.scope.suspecting or not is_heard(r, r.primary):
            found.append(CannotCommit.NO_PRIMARY)
    else:
        found.append(CannotCommit.VIEW_CHANGE if r.status == Status.VIEW_CHANGE else CannotCommit.RECOVERING)
        if r.stuck_op:
            found.append(CannotCommit.STUCK)
        if is_disk_stalled(r):
            found.append(CannotCommit.DISK_STALLED)
    if quorum_margin(r) < 0:
        found.append(CannotCommit.NO_QUORUM)
    if r.conflict is not None:
        found.append(CannotCommit.IDENTITY_CONFLICT)
    return tuple(found)


def is_disk_stalled(r: Replica) -> bool:
    """Whether the disk has completed nothing for contact_ns, though more was asked of it."""
    return r.disk_waits > r.config.contact_ns


def is_held_up(r: Replica) -> bool:
    """Whether this primary has not executed for contact_ns what the others committed: see vsr/abdication.py."""
    return bool(r.scope.lag.op) and r.now - r.scope.lag.since > r.config.contact_ns


def of_view_change(r: Replica) -> list[str]:
    """Sentences that say why a view change takes long, as far as this replica knows."""
    found: list[str] = []
    if r.stuck_op:
        found.append(
            f"op {r.stuck_op} is damaged or missing on every replica whose log is known ({len(r.scope.evidence)} of "
            f"{r.config.replica_count}), and may have been acknowledged: it is waited for, and never skipped"
        )
    if is_disk_stalled(r):
        found.append(f"the view can not be made durable: {_of_disk(r)}")
    if r.gave_up is not None:
        view, why = r.gave_up
        found.append(f"this replica would not lead view {view} any more: {_GAVE_UP[why]}")
    return found


_GAVE_UP = {
    GaveUp.ABDICATED: "it could not commit",
    GaveUp.DRAINED: "it is being stopped",
    GaveUp.BEHIND: "it is too far behind, and another has the log",
    GaveUp.DISK_FULL: "it lacks entries, and its disk has no room for them",
    GaveUp.LAGGING: "it did not execute what the others had committed",
}


def _of_disk(r: Replica) -> str:
    return f"the disk has completed nothing for {r.disk_waits / 1e9:.1f} s"


def _of_primary(r: Replica) -> list[CannotCommit]:
    is_stalled = bool(r.pipeline) and r.now - r.pipeline[0].prepared_at > r.config.contact_ns
    # A backup is not needed for a commit as long as others are; a primary executes it, or nobody is answered.
    is_slow = is_held_up(r) and r.log.durable < r.scope.lag.op
    answers = (
        (CannotCommit.CATCHING_UP, not r.scope.ready or (is_held_up(r) and not is_slow)),
        (CannotCommit.STALLED, is_stalled),
        (CannotCommit.DISK_FULL, not r.can_journal),
        (CannotCommit.DISK_STALLED, is_slow or is_disk_stalled(r)),
        (CannotCommit.DRAINING, r.draining),
    )
    return [reason for reason, holds in answers if holds]


# In words


def unhealthy(r: Replica) -> str:
    """Why nothing is committed here, or not everything can be written; or the empty string."""
    silent = [
        f"replica {replica} unheard for {(r.now - peer.last_heard) / 1e9:.1f} s"
        if peer.last_heard
        else f"replica {replica} never heard"
        for replica, peer in r.peers.items()
        if not is_heard(r, replica)
    ]
    if r.conflict is not None:
        return (
            f"{r.conflict}: nothing from that op on is executed, its headers are asked of all others; compare "
            "the logs with `kimberlite inspect journal`, and let nobody write to the data directories"
        )
    if r.status != Status.NORMAL:
        why = f"{r.status.name.lower()} in view {r.view} for {(r.now - r.view_left_at) / 1e9:.1f} s"
        return "; ".join([why, *of_view_change(r), *silent])
    if r.is_primary and not r.can_journal:
        full = sorted([*([r.index] if r.is_disk_full else []), *r.scope.full_peers])
        why = f"disk full on replica {', '.join(map(str, full))}: appends are refused, reads go on"
        return "; ".join([why, *silent])
    if r.is_primary and is_held_up(r):
        return "; ".join([_of_lag(r), *silent])
    if r.is_primary and r.pipeline:
        oldest = r.pipeline[0]
        if r.now - oldest.prepared_at > 4 * r.config.heartbeat_ns:
            acks, quorum = oldest.acks.bit_count(), r.quorums.replication
            return "; ".join([f"op {oldest.header.op} has {acks} of {quorum} acks", *silent])
    if r.is_primary and not r.scope.ready:
        return f"primary of view {r.view} is committing what the last view left, up to op {r.scope.ready_at_op}"
    if not r.is_primary and r.scope.trimmed_by_primary > r.log.linked + 1:
        return (
            f"this replica has the log up to op {r.log.linked}, the primary's begins with op "
            f"{r.scope.trimmed_by_primary}: what is between was trimmed while this disk was new or replaced, and "
            "can not be had any more"
        )
    if r.scope.suspecting:
        return "; ".join([f"the primary, replica {r.primary}, is silent", *silent])
    if r.log.held_bytes >= r.config.held_bytes_max:
        return (
            f"the disk does not keep up: {r.log.held_bytes} bytes of entries wait here, and no more are taken; this "
            f"replica has the log up to op {r.log.durable} of {max(r.log.op, r.scope.known_head)}"
        )
    if is_disk_stalled(r):
        return (
            f"{_of_disk(r)}: this replica has the log up to op {r.log.durable} of {max(r.log.op, r.scope.known_head)}"
        )
    if r.is_disk_full:
        waiting = r.log.op - r.log.journal_head
        return f"disk full: the journal has room for {r.room.bytes} more bytes; {waiting} ops wait for more"
    return ""


def _of_lag(r: Replica) -> str:
    """Why a primary does not execute what the others have committed."""
    took = (r.now - r.scope.lag.since) / 1e9
    what = f"the others have committed op {r.scope.lag.op}, and this primary has not executed it for {took:.1f} s"
    if r.log.durable >= r.scope.lag.op:
        return f"{what}: op {r.applied + 1} is damaged here, and being repaired"
    why = f"; {_of_disk(r)}" if r.disk_waits else ""
    return f"{what}: its disk has the log up to op {r.log.durable}{why}"
