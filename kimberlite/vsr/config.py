"""Bounds and timeouts of the core. Times in nanoseconds; every queue has its bound here.

Imports errors and types only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kimberlite.errors import ConfigError
from kimberlite.types import REPLICAS_MAX, ClusterId

MS = 1_000_000
CONTACT_MIN_NS = 1000 * MS  # a busy machine is not a dead one
PIPELINE_LIMIT = 32  # hard bound: view-change frames and the superblock hold this many headers


@dataclass(frozen=True, slots=True)
class Timing:
    """Timeouts."""

    heartbeat_ns: int = 50 * MS
    commit_linger_ns: int = 5 * MS  # how long backups may wait to hear of a commit on an idle log
    suspect_min_ns: int = 300 * MS  # silence of the primary before a backup votes to leave its view
    suspect_max_ns: int = 2000 * MS
    vote_resend_ns: int = 100 * MS
    vote_window_ns: int = 1500 * MS  # a vote older than this no longer counts
    view_change_ns: int = 500 * MS  # a view change that takes longer is voted out, with back-off
    view_change_max_ns: int = 5000 * MS
    do_view_change_resend_ns: int = 100 * MS
    prepare_resend_ns: int = 150 * MS
    repair_ns: int = 20 * MS
    ping_ns: int = 250 * MS  # how often replicas that have nothing to say to each other give a sign of life
    repair_expiry_ns: int = 250 * MS
    repair_pause_ns: int = 4000 * MS  # what brings nothing is asked for again as seldom as that, in the end
    abdicate_ns: int = 2000 * MS  # a primary that cannot commit for this long stops leading

    @property
    def contact_ns(self) -> int:
        """Silence of a replica after which it no longer counts as live."""
        return max(CONTACT_MIN_NS, 4 * self.heartbeat_ns)


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What a Replica must know: who it is, its timeouts, its bounds. See kimberlite.config for the user's view of the
    same knobs."""

    cluster: ClusterId
    replica: int
    replica_count: int
    timing: Timing = Timing()
    # Bounds
    pipeline_max: int = 8  # uncommitted prepares; more hides latency, less bounds a view change
    queue_max: int = 1024  # requests waiting for a place in the pipeline
    queue_bytes_max: int = 64 << 20
    prepare_bytes_max: int = 1 << 20  # body of a prepare made of several requests
    prepare_requests_max: int = 512
    request_bytes_max: int = 2 << 20
    sessions_max: int = 1024
    repairs_max: int = 256  # repair requests in flight in all
    repairs_per_peer_max: int = 128
    repair_window: int = 512  # entries asked for or held ahead of the durable prefix,
    repair_bytes: int = 8 << 20  # and their bytes
    backlog_bytes: int = 0  # of entries that wait for the own disk, or to be executed; 0: twice pipeline_bytes
    headers_per_message: int = 256
    headers_ahead: int = 1024  # headers asked for ahead of the durable prefix
    apply_per_round: int = 256
    forfeit_gap: int = 1024  # a candidate this many ops behind leaves the view to another that has the log
    # Room in the journal that requests of clients leave to what the protocol itself must append on a full disk.
    room_kept_bytes: int = 32 << 10

    # Derived, for they are asked for with every op.
    pipeline_bytes: int = field(init=False)  # what a full pipeline of the largest entries takes, about
    # Bytes of entries that wait for the own disk, or to be executed: above, a primary prepares no more, and a backup
    # leaves what comes to repair.
    held_bytes_max: int = field(init=False)

    def __post_init__(self) -> None:
        pipeline = self.pipeline_max * (max(self.prepare_bytes_max, self.request_bytes_max) + (64 << 10))
        object.__setattr__(self, "pipeline_bytes", pipeline)
        object.__setattr__(self, "held_bytes_max", self.backlog_bytes or 2 * pipeline)
        if not 1 <= self.replica_count <= REPLICAS_MAX:
            raise ConfigError(f"replica_count is {self.replica_count}: it must be from 1 to {REPLICAS_MAX}")
        if not 0 <= self.replica < self.replica_count:
            raise ConfigError(f"replica is {self.replica}: it must be below replica_count, {self.replica_count}")
        if not 1 <= self.pipeline_max <= PIPELINE_LIMIT:
            raise ConfigError(f"pipeline_max is {self.pipeline_max}: it must be from 1 to {PIPELINE_LIMIT}")
        if len(self.cluster) != 16:
            raise ConfigError(f"a cluster id has 16 bytes, this one {len(self.cluster)}")
