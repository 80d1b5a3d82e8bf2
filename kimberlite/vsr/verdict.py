"""Whether this replica's cluster can commit, as far as this replica knows.

Derived from what is heard, not from what is asked for, so that it is true on an idle cluster too: a primary
whose backups have been silent for Timing.contact_ns can not commit, a backup that has not heard its
primary for as long can not either. A backup takes the word of a primary that it hears.
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Status, reason_text
from kimberlite.vsr import birth
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.events import GaveUp
from kimberlite.vsr.following import Following
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.work import CannotCommit

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


def cannot_commit(s: State) -> tuple[CannotCommit, ...]:
    """Every reason why a request that came now would not be committed; empty when it would be."""
    found: list[CannotCommit] = []
    if isinstance(s.role, Leading):
        found += _of_primary(s, s.role)
    elif isinstance(s.role, Following):
        if s.role.votes.is_cast or not s.is_heard(s.primary):
            found.append(CannotCommit.NO_PRIMARY)
    elif s.status == Status.UNBORN:
        found.append(CannotCommit.UNBORN)
    else:
        found.append(CannotCommit.VIEW_CHANGE if s.status == Status.VIEW_CHANGE else CannotCommit.RECOVERING)
        if s.role.stuck_op:
            found.append(CannotCommit.STUCK)
        if is_disk_stalled(s):
            found.append(CannotCommit.DISK_STALLED)
    if s.quorum_margin < 0:
        found.append(CannotCommit.NO_QUORUM)
    if s.conflict is not None:
        found.append(CannotCommit.IDENTITY_CONFLICT)
    return tuple(found)


def _of_primary(s: State, leading: Leading) -> list[CannotCommit]:
    pipeline = leading.pipeline
    is_stalled = bool(pipeline) and s.now - pipeline[0].prepared_at > s.config.timing.contact_ns
    # A backup is not needed for a commit as long as others are; a primary executes it, or nobody is answered.
    is_late = is_held_up(s, leading)
    is_slow = is_late and s.log.durable < leading.lag.op
    answers = (
        (CannotCommit.CATCHING_UP, not leading.ready or (is_late and not is_slow)),
        (CannotCommit.STALLED, is_stalled),
        (CannotCommit.DISK_FULL, not leading.can_journal(s)),
        (CannotCommit.DISK_STALLED, is_slow or is_disk_stalled(s)),
        (CannotCommit.DRAINING, s.draining),
    )
    return [reason for reason, holds in answers if holds]


def is_disk_stalled(s: State) -> bool:
    """Whether the disk has completed nothing for contact_ns, though more was asked of it."""
    return s.outbox.waits(s.now) > s.config.timing.contact_ns


def is_held_up(s: State, leading: Leading) -> bool:
    """Whether this primary has not executed for contact_ns what the others committed: see vsr/abdication.py."""
    return bool(leading.lag.op) and s.now - leading.lag.since > s.config.timing.contact_ns


# In words


def unhealthy(s: State) -> str:
    """Why nothing is committed here, or not everything can be written; or the empty string."""
    if s.conflict is not None:
        return (
            f"{s.conflict}: nothing from that op on is executed, its headers are asked of all others; compare "
            "the logs with `kimberlite inspect journal`, and let nobody write to the data directories"
        )
    if s.own.refusals:
        said = ", ".join(
            f"replica {replica} ({reason_text(reason)})" for replica, reason in sorted(s.own.refusals.items())
        )
        return f"this replica counts nowhere at {said}: its disk is not the one that they know, or an older image of it"
    if s.status == Status.UNBORN:
        return birth.waits_for(s)
    silent = [
        f"replica {replica} unheard for {(s.now - peer.last_heard) / 1e9:.1f} s"
        if peer.last_heard
        else f"replica {replica} never heard"
        for replica, peer in s.peers.items()
        if not s.is_heard(replica)
    ]
    if s.status != Status.NORMAL:
        return "; ".join([*_of_view_change(s), *silent])
    waits_for_others = _of_pipeline(s, s.role) if isinstance(s.role, Leading) else ""
    if waits_for_others:
        return "; ".join([waits_for_others, *silent])
    if isinstance(s.role, Leading) and not s.role.ready:
        return f"primary of view {s.view} is committing what the last view left, up to op {s.role.ready_at_op}"
    if isinstance(s.role, Following) and s.role.trimmed_by_primary > s.log.linked + 1:
        return (
            f"this replica has the log up to op {s.log.linked}, the primary's begins with op "
            f"{s.role.trimmed_by_primary}: what is between was trimmed while this disk was new or replaced, and "
            "can not be had any more"
        )
    if s.role.votes.is_cast:
        return "; ".join([f"the primary, replica {s.primary}, is silent", *silent])
    return _of_own_disk(s)


def _of_view_change(s: State) -> list[str]:
    """Why a view change takes long, as far as this replica knows."""
    story = s.role.story(s)
    found = [f"{s.status.name.lower()} in view {s.view} for {(s.now - story.left_at) / 1e9:.1f} s"]
    if isinstance(s.role, ChangingView) and story.stuck_op:
        found.append(
            f"op {story.stuck_op} is damaged or missing on every replica whose log is known ({len(s.role.evidence)} of "
            f"{s.config.replica_count}), and may have been acknowledged: it is waited for, and never skipped"
        )
    if is_disk_stalled(s):
        found.append(f"the view can not be made durable: {_of_disk(s)}")
    if story.gave_up is not None:
        view, why = story.gave_up
        found.append(f"this replica would not lead view {view} any more: {_GAVE_UP[why]}")
    return found


_GAVE_UP = {
    GaveUp.ABDICATED: "it could not commit",
    GaveUp.DRAINED: "it is being stopped",
    GaveUp.BEHIND: "it is too far behind, and another has the log",
    GaveUp.DISK_FULL: "it lacks entries, and its disk has no room for them",
    GaveUp.LAGGING: "it did not execute what the others had committed",
}


def _of_pipeline(s: State, leading: Leading) -> str:
    """Why a primary does not commit, or not execute what is committed; or the empty string."""
    if not leading.can_journal(s):
        full = sorted([*([s.index] if s.is_disk_full else []), *leading.full_peers])
        return f"disk full on replica {', '.join(map(str, full))}: appends are refused, reads go on"
    if is_held_up(s, leading):
        return _of_lag(s, leading)
    if leading.pipeline:
        oldest = leading.pipeline[0]
        if s.now - oldest.prepared_at > 4 * s.config.timing.heartbeat_ns:
            acks, quorum = oldest.acks.bit_count(), s.membership.quorums.replication
            return f"op {oldest.header.op} has {acks} of {quorum} acks"
    return ""


def _of_lag(s: State, leading: Leading) -> str:
    """Why a primary does not execute what the others have committed."""
    took = (s.now - leading.lag.since) / 1e9
    what = f"the others have committed op {leading.lag.op}, and this primary has not executed it for {took:.1f} s"
    if s.log.durable >= leading.lag.op:
        return f"{what}: op {s.execution.applied + 1} is damaged here, and being repaired"
    why = f"; {_of_disk(s)}" if s.outbox.waits(s.now) else ""
    return f"{what}: its disk has the log up to op {s.log.durable}{why}"


def _of_own_disk(s: State) -> str:
    """Why this replica is behind, or soon will be; or the empty string."""
    reached = f"this replica has the log up to op {s.log.durable} of {max(s.log.op, s.scope.known_head)}"
    if s.is_backed_up:
        held = f"{s.log.held_bytes} bytes of entries wait here, and no more are taken"
        return f"the disk does not keep up: {held}; {reached}"
    if is_disk_stalled(s):
        return f"{_of_disk(s)}: {reached}"
    if s.is_disk_full:
        waiting = s.log.op - s.log.journal_head
        return f"disk full: the journal has room for {s.disk.room.bytes} more bytes; {waiting} ops wait for more"
    return ""


def _of_disk(s: State) -> str:
    return f"the disk has completed nothing for {s.outbox.waits(s.now) / 1e9:.1f} s"
