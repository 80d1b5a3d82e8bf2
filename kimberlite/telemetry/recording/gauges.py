"""How the replica is: gauges of the protocol, of its peers and of its clock, set at a bounded rate."""

from __future__ import annotations

import math
from bisect import bisect_right

from kimberlite._fast.metrics import Kind
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.recording.handles import Handles
from kimberlite.vsr.work import CannotCommit, PeerSnapshot, Snapshot

NAN = math.nan
HISTORY = 1024  # commit numbers remembered, to say for how long a replica has been behind


class Gauges:
    """Of one replica of a cluster."""

    def __init__(self, handles: Handles, replica: int) -> None:
        self._commit = -1
        self._set = {
            metric.name: handles.gauge(metric.name).set
            for metric in catalogue.METRICS
            if metric.kind is Kind.GAUGE and metric.has_cells and not metric.labels
        }
        self._cannot_commit = {reason: handles.gauge("cannot_commit", reason) for reason in CannotCommit}
        self._peers = Peers(handles, replica)

    def update(self, snapshot: Snapshot, now: int, connections: int, connections_limit: int) -> None:
        """Set the gauges of the protocol. now: monotonic nanoseconds."""
        queues, disk = snapshot.queues, snapshot.disk
        values = {
            "replica_status": snapshot.status,
            "is_primary": snapshot.is_primary,
            "view_number": snapshot.view,
            "op_number": snapshot.op,
            "commit_number": snapshot.commit,
            "applied_number": snapshot.applied,
            "log_event_count": snapshot.positions,
            "quorum_size": snapshot.quorum,
            "cluster_size": snapshot.replica_count,
            "quorum_margin": snapshot.quorum_margin,
            "can_commit": not snapshot.cannot_commit,
            "stuck_op": snapshot.stuck_op,
            "prepare_ok_votes": snapshot.oldest_uncommitted_votes,
            "oldest_uncommitted": snapshot.oldest_uncommitted_at,
            "pending_requests": queues.requests.used,
            "pending_requests_limit": queues.requests.limit,
            "pipeline_depth": queues.pipeline.used,
            "pipeline_limit": queues.pipeline.limit,
            "journal_faulty": disk.faulty,
            "draining": snapshot.draining,
            "disk_full": disk.is_full,
            "client_sessions_active": queues.sessions.used,
            "client_sessions_limit": queues.sessions.limit,
            "client_connections": connections,
            "client_connections_limit": connections_limit,
            "repair_budget_available": queues.repairs.limit - queues.repairs.used,
            "repair_inflight_count": queues.repairs.used,
            "journal_backlog": queues.backlog.used,
            "journal_backlog_limit": queues.backlog.limit,
            "journal_wait": now - disk.waits if disk.waits else 0,
        }
        if snapshot.commit != self._commit:
            values["last_commit"] = now if self._commit >= 0 else 0
            self._commit = snapshot.commit
        for name, value in values.items():
            self._set[name](value)
        for reason, gauge in self._cannot_commit.items():
            gauge.set(reason in snapshot.cannot_commit)
        self._peers.update(snapshot, now)

    def update_clock(self, offset_ns: int, ahead_ns: int, is_suspended: bool) -> None:
        """Set the gauges of this machine's clock: by how much it has moved against the time that passed, by how much
        the log is ahead of it, and whether retention by age waits because of it."""
        self._set["clock_offset"](offset_ns)
        self._set["clock_log_ahead"](ahead_ns)
        self._set["retention_suspended"](is_suspended)


class Peers:
    """What is known of each replica, the own one included: above all how far it is behind, and since when."""

    def __init__(self, handles: Handles, replica: int) -> None:
        self._replica = replica
        self._commits: list[int] = []  # commit numbers, ascending, and when each was first seen
        self._commits_at: list[int] = []
        self._behind: dict[int, tuple[int, int]] = {}  # replica -> the last op it has, and since when there is another
        self._view, self._view_commit = -1, 0  # the view, and what was committed when it was first seen
        self._lag_operations = handles.gauges("replica_lag_operations")
        self._lag_seconds = handles.gauges("replica_lag")
        self._last_heard = handles.gauges("peer_last_heard")
        self._repair_ewma = handles.gauges("repair_ewma_latency")
        for gauge in (*self._lag_operations, *self._lag_seconds):
            gauge.set(NAN)

    def update(self, snapshot: Snapshot, now: int) -> None:
        if snapshot.view != self._view:
            self._view, self._view_commit = snapshot.view, snapshot.commit
        lags: dict[int, float] = {self._replica: max(snapshot.known_commit - snapshot.applied, 0)}
        levels = {self._replica: snapshot.applied}
        for peer in snapshot.peers:
            self._last_heard[peer.replica].set(peer.last_heard)
            self._repair_ewma[peer.replica].set(peer.repair_latency)
            level = self._level_of(peer, snapshot)
            lags[peer.replica] = max(snapshot.commit - level, 0) if level is not None else NAN
            levels[peer.replica] = level or 0
        self._note_commit(snapshot.known_commit, now)
        for replica, lag in lags.items():
            self._lag_operations[replica].set(lag)
            since = self._behind_since(replica, levels[replica], now) if lag > 0 else now
            self._lag_seconds[replica].set(lag if math.isnan(lag) else float(now - since))

    def _level_of(self, peer: PeerSnapshot, snapshot: Snapshot) -> int | None:
        """How far the log of a peer goes, as its primary knows it. Who has said nothing in this view has acknowledged
        nothing of it: as a former primary that is dead. How much else it lacks nobody can say."""
        if not snapshot.is_primary or peer.op is not None:
            return peer.op if snapshot.is_primary else None
        return self._view_commit if peer.last_heard and snapshot.commit > self._view_commit else None

    def _note_commit(self, commit: int, now: int) -> None:
        """Remember when the commit number moved, finely for lately and coarsely for long ago."""
        if not self._commits or commit > self._commits[-1]:
            self._commits.append(commit)
            self._commits_at.append(now)
            if len(self._commits) > HISTORY:
                del self._commits[1 : HISTORY // 2 : 2], self._commits_at[1 : HISTORY // 2 : 2]

    def _behind_since(self, replica: int, op: int, now: int) -> int:
        """When something above `op`, the last that a replica has, was first known to be committed."""
        known_op, since = self._behind.get(replica, (-1, 0))
        if op != known_op:
            found = bisect_right(self._commits, op)
            since = self._commits_at[found] if found < len(self._commits) else now
            self._behind[replica] = op, since
        return since
