"""The user's configuration as the parts of a replica want it.

May import: config, vsr.config.
"""

from __future__ import annotations

from kimberlite.config import Config
from kimberlite.vsr.config import MS, CoreConfig, Timing


def core_config(config: Config) -> CoreConfig:
    """The core's bounds and timeouts out of the user's configuration."""
    limits = config.limits
    return CoreConfig(
        cluster=config.cluster_id,
        replica=config.cluster.replica,
        replica_count=config.replica_count,
        timing=_timing(config),
        pipeline_max=limits.pipeline_max,
        queue_max=limits.queue_max,
        queue_bytes_max=limits.queue_bytes_max,
        prepare_bytes_max=limits.prepare_bytes_max,
        backlog_bytes=limits.backlog_bytes,
        prepare_requests_max=limits.prepare_requests_max,
        request_bytes_max=limits.request_bytes_max,
        sessions_max=limits.sessions_max,
        repairs_max=limits.repairs_max,
        repairs_per_peer_max=limits.repairs_per_peer_max,
    )


def _timing(config: Config) -> Timing:
    timing = config.timing
    return Timing(
        heartbeat_ns=timing.heartbeat_ms * MS,
        commit_linger_ns=timing.commit_linger_ms * MS,
        suspect_min_ns=timing.suspect_min_ms * MS,
        suspect_max_ns=timing.suspect_max_ms * MS,
        vote_resend_ns=timing.vote_resend_ms * MS,
        vote_window_ns=timing.vote_window_ms * MS,
        view_change_ns=timing.view_change_ms * MS,
        view_change_max_ns=timing.view_change_max_ms * MS,
        do_view_change_resend_ns=timing.do_view_change_resend_ms * MS,
        prepare_resend_ns=timing.prepare_resend_ms * MS,
        repair_ns=timing.repair_ms * MS,
        repair_expiry_ns=timing.repair_expiry_ms * MS,
        abdicate_ns=timing.abdicate_ms * MS,
    )
