"""What `kimberlite status` shows of a replica: docs/status.md describes the fields.

May import: types, vsr, node.
"""

from __future__ import annotations

import os
import time

from kimberlite import __version__
from kimberlite.node.assembly import Parts
from kimberlite.storage.scrub import Scrubber
from kimberlite.types import Status
from kimberlite.vsr.work import PeerSnapshot, Snapshot


def status(parts: Parts) -> dict[str, object]:
    """What `kimberlite status` shows of a replica."""
    now = time.monotonic_ns()
    core = parts.driver.core
    core.set_now(now)
    snapshot = core.snapshot()
    queues = snapshot.queues
    free = parts.disk.free_bytes()
    return {
        "replica": snapshot.replica,
        "cluster": parts.config.cluster.id,
        "version": __version__,
        "pid": os.getpid(),
        "status": Status(snapshot.status).name.lower(),
        "role": "primary" if snapshot.is_primary else "backup",
        "primary": snapshot.primary,
        "view": snapshot.view,
        "log_view": snapshot.log_view,
        "op": snapshot.op,
        "commit": snapshot.commit,
        "applied": snapshot.applied,
        "positions": snapshot.positions,
        "replica_count": snapshot.replica_count,
        "quorum": snapshot.quorum,
        "quorum_margin": snapshot.quorum_margin,
        "contact_s": core.state.config.timing.contact_ns / 1e9,
        "can_commit": not snapshot.cannot_commit,
        "cannot_commit": list(snapshot.cannot_commit),
        "stuck_op": snapshot.stuck_op,
        "pipeline": {"depth": queues.pipeline.used, "limit": queues.pipeline.limit},
        "queue": {"depth": queues.requests.used, "limit": queues.requests.limit},
        "backlog": {"bytes": queues.backlog.used, "limit": queues.backlog.limit},
        "connections": {
            "clients": parts.server.connections,
            "limit": parts.share.clients,
            "descriptors": parts.share.limit,
        },
        "sessions": {"active": queues.sessions.used, "limit": queues.sessions.limit},
        "faulty": snapshot.disk.faulty,
        "repairs_in_flight": queues.repairs.used,
        "storage": _storage(parts, snapshot, free),
        "scrub": _scrub(parts.scrubber, now),
        "clock": parts.retention.clock.document(),
        "peers": [_peer(peer, now) for peer in snapshot.peers],
        "refused": str(core.refusal) if core.refusal is not None else None,
        "telemetry": parts.metrics.status(),
        "unhealthy": _unhealthy(parts, snapshot, free, now),
    }


def _storage(parts: Parts, snapshot: Snapshot, free: int) -> dict[str, object]:
    disk, store = parts.disk, parts.store
    stats = disk.stats()
    return {
        "mode": disk.mode,
        "unsafe": parts.config.storage.unsafe,
        "inline": bool(stats["inline_now"]),
        "write_latency_us": stats["latency_ns"] // 1000,
        "wait_s": round(snapshot.disk.waits / 1e9, 3),
        "bytes": store.bytes_used,
        "free_bytes": free,
        "free_bytes_min": parts.config.storage.free_bytes_min,
        "room_bytes": store.room.bytes,
        "full": snapshot.disk.is_full,
        "checkpoint_op": store.checkpoint_op,
        "first_op": store.first_op,
        "first_position": store.first_position,
    }


def _scrub(scrub: Scrubber, now: int) -> dict[str, object]:
    return {
        "tours": scrub.tours,
        "last_tour_s": round((now - scrub.ended_at) / 1e9, 3) if scrub.ended_at else None,
        "fraction": round(scrub.fraction, 4),
        "bytes": scrub.bytes,
        "damage": {what.value: count for what, count in scrub.damage.items()},
    }


def _peer(peer: PeerSnapshot, now: int) -> dict[str, object]:
    return {
        "replica": peer.replica,
        "last_heard_s": round((now - peer.last_heard) / 1e9, 3) if peer.last_heard else None,
        "op": peer.op,
        "round_trip_us": peer.round_trip // 1000,
    }


def _unhealthy(parts: Parts, snapshot: Snapshot, free: int, now: int) -> str:
    """Everything that keeps this replica from being well, as sentences; empty when it is."""
    reasons = (
        snapshot.unhealthy,
        str(parts.store.disk_full or ""),
        parts.space.reason(free),
        parts.retention.reason(now),
        *(f"replica {index}: {refusal}" for index, refusal in sorted(parts.peers.refusals.items())),
    )
    return "; ".join(filter(None, reasons))
