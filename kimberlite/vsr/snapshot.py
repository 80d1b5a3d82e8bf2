"""The state of a core for status and gauges.

Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.vsr import verdict
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.work import Bounded, DiskSnapshot, PeerSnapshot, Queues, Snapshot

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


def of(s: State) -> Snapshot:
    """State for status and gauges."""
    leading = s.role if isinstance(s.role, Leading) else None
    oldest = leading.pipeline[0] if leading is not None and leading.pipeline else None
    return Snapshot(
        replica=s.index,
        replica_count=s.config.replica_count,
        status=s.status,
        is_primary=leading is not None,
        primary=s.primary,
        view=s.view,
        log_view=s.log_view,
        op=s.log.op,
        commit=s.commit,
        applied=s.execution.applied,
        positions=s.execution.positions,
        quorum=s.membership.quorums.replication,
        quorum_margin=s.quorum_margin,
        queues=_queues(s, leading),
        oldest_uncommitted_votes=oldest.acks.bit_count() if oldest is not None else 0,
        oldest_uncommitted_at=oldest.prepared_at if oldest is not None else 0,
        known_commit=max(s.commit_max, s.scope.commit_heard),
        draining=s.draining,
        disk=DiskSnapshot(len(s.log.faulty), s.is_disk_full, s.outbox.waits(s.now)),
        peers=tuple(
            PeerSnapshot(replica, peer.last_heard, peer.said.op, peer.commit, peer.round_trip, peer.repair_latency)
            for replica, peer in s.peers.items()
        ),
        stuck_op=s.role.stuck_op,
        unhealthy=verdict.unhealthy(s),
        cannot_commit=verdict.cannot_commit(s),
    )


def _queues(s: State, leading: Leading | None) -> Queues:
    config = s.config
    return Queues(
        pipeline=Bounded(len(leading.pipeline) if leading is not None else 0, config.pipeline_max),
        requests=Bounded(len(leading.requests) if leading is not None else 0, config.queue_max),
        sessions=Bounded(len(s.sessions), config.sessions_max),
        repairs=Bounded(len(s.repairs.requests), config.repairs_max),
        backlog=Bounded(s.log.held_bytes, config.held_bytes_max),
    )
