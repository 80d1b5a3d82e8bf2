"""The state of a core for status and gauges.

Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Status
from kimberlite.vsr import verdict
from kimberlite.vsr.work import PeerSnapshot, Snapshot

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica


def of(r: Replica) -> Snapshot:
    """State for status and gauges."""
    return Snapshot(
        replica=r.index,
        replica_count=r.config.replica_count,
        status=r.status,
        is_primary=r.is_primary and r.status == Status.NORMAL,
        primary=r.primary,
        view=r.view,
        log_view=r.log_view,
        op=r.log.op,
        commit=r.commit,
        applied=r.applied,
        positions=r.positions,
        quorum=r.quorums.replication,
        quorum_margin=verdict.quorum_margin(r),
        pipeline_depth=len(r.pipeline),
        pipeline_limit=r.config.pipeline_max,
        queue_depth=len(r.queue) + len(r.waiting),
        queue_limit=r.config.queue_max,
        sessions=len(r.sessions),
        sessions_limit=r.config.sessions_max,
        faulty=len(r.log.faulty),
        repairs_in_flight=len(r.repairs),
        repair_budget=r.config.repairs_max - len(r.repairs),
        oldest_uncommitted_votes=r.pipeline[0].acks.bit_count() if r.pipeline else 0,
        oldest_uncommitted_at=r.pipeline[0].prepared_at if r.pipeline else 0,
        known_commit=max(r.commit_max, r.scope.commit_heard),
        known_head=max(r.scope.known_head, r.log.op),
        draining=r.draining,
        is_disk_full=r.is_disk_full,
        peers=tuple(
            PeerSnapshot(replica, peer.last_heard, peer.said.op, peer.commit, peer.round_trip, peer.repair_latency)
            for replica, peer in r.peers.items()
        ),
        stuck_op=r.stuck_op,
        unhealthy=verdict.unhealthy(r),
        cannot_commit=verdict.cannot_commit(r),
        held_bytes=r.log.held_bytes,
        held_bytes_limit=r.config.held_bytes_max,
        disk_waits=r.disk_waits,
    )
