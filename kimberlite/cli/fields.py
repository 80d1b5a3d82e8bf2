"""What the fields of a replica's status document mean: docs/status.md is made of this, and a test compares it with the
document of a real replica.

A name below another is written with a dot, `[]` is every element of a list. What is below a name that stands here by
itself is said in its text.
"""

from __future__ import annotations

FIELDS: dict[str, str] = {
    "replica": "Index of the replica in the list of addresses, from 0.",
    "cluster": "Id of its cluster, 32 hexadecimal digits.",
    "version": "Of the package it runs.",
    "pid": "Of its process.",
    "status": "`normal`, `view_change` or `recovering`.",
    "role": "`primary` or `backup`; it counts while the status is `normal`.",
    "primary": "Index of the primary of its view.",
    "view": "Number of the view it is in; it grows with every change of the primary.",
    "log_view": "The last view in which its status was `normal`.",
    "op": "The last operation of its log.",
    "commit": "The last operation that it knows to be committed and that its log reaches.",
    "applied": "The last operation that its state machine has executed.",
    "positions": "Events in the committed log: the position that the next one gets.",
    "replica_count": "Members of the cluster.",
    "quorum": "Members whose disks must have an operation before it is committed.",
    "quorum_margin": "Members heard within `contact_s`, this one included, minus the quorum. Below 0 nothing is "
    "committed.",
    "contact_s": "Silence, in seconds, after which a member counts as not there: one second, or four times "
    "`timing.heartbeat_ms`.",
    "can_commit": "Whether a request that came now would be committed, as far as this replica knows.",
    "cannot_commit": "Why not, as a list of {reasons}.",
    "stuck_op": "What a view change waits for: an op of which no replica heard has a good copy; 0 when for nothing.",
    "pipeline.depth": "Prepares that are not committed yet.",
    "pipeline.limit": "The most of them: `limits.pipeline_max`.",
    "queue.depth": "Requests that wait for a place in the pipeline.",
    "queue.limit": "The most of them: `limits.queue_max`.",
    "backlog.bytes": "Bytes of entries that wait for its disk, or to be executed.",
    "backlog.limit": "The most of them, about: a backup leaves for later what comes above, a primary prepares no more.",
    "connections.clients": "Client connections that are open.",
    "connections.limit": "The most of them: `limits.connections_max`, or what is left of the descriptors when storage "
    "and peers have theirs.",
    "connections.descriptors": "Files and sockets that this process may have open.",
    "sessions.active": "Client sessions that the cluster remembers.",
    "sessions.limit": "The most of them: `limits.sessions_max`.",
    "faulty": "Entries of its log that are damaged on its disk and not repaired yet.",
    "repairs_in_flight": "Entries it has asked others for.",
    "storage.mode": "How it writes: `direct` (O_DIRECT) or `buffered`.",
    "storage.unsafe": "Whether it was told that a file system without durable writes will do.",
    "storage.inline": "Whether writes are made in the event loop at the moment, because they are fast, or by a thread.",
    "storage.write_latency_us": "Of a durable write, lately, in microseconds.",
    "storage.wait_s": "Seconds since the disk last completed a write, though more was asked of it; 0 when nothing was. "
    "Above `contact_s` it hangs.",
    "storage.bytes": "Bytes that the data directory takes.",
    "storage.free_bytes": "Bytes free in the file system.",
    "storage.free_bytes_min": "Below so many it accepts no appends: `storage.free_bytes_min`.",
    "storage.room_bytes": "Bytes reserved for the log and not used yet.",
    "storage.full": "Whether appends are refused for want of space.",
    "storage.checkpoint_op": "Operation of the last checkpoint; 0 when there is none.",
    "storage.first_op": "The first operation that the log still has.",
    "storage.first_position": "Position of the first event that the log still has.",
    "scrub.tours": "Times that everything on the disk was read and checked since the start.",
    "scrub.fraction": "How much of the present tour is done, from 0 to 1.",
    "scrub.last_tour_s": "Seconds since the last tour ended; null before the first has.",
    "scrub.bytes": "Bytes read for it since the start.",
    "scrub.damage": "Damage found since the start, by what was damaged.",
    "clock.jump_s": "Seconds by which its clock has moved against the time that passed, more than ten minutes: nothing "
    "is trimmed by age then. 0 while the clock is believed.",
    "clock.log_ahead_s": "Seconds by which the last timestamp of the log is ahead of its clock; 0 when it is not. "
    "Minutes or more: a primary had a wrong clock.",
    "peers[].replica": "Index of another member.",
    "peers[].last_heard_s": "Seconds since something came from it; null when nothing has since the start. A primary "
    "hears every backup many times a second.",
    "peers[].op": "The last operation that it is known to have on its disk.",
    "peers[].round_trip_us": "To it and back, in microseconds, as last measured.",
    "refused": "The last number of a frame that was refused for being out of its bounds, in words; null when none was.",
    "telemetry.problem": "Why its metrics are not served; empty when they are, or were not asked for.",
    "telemetry.address": "Where its metrics are served. This and the next three are missing where there are none.",
    "telemetry.running": "Whether the process that serves them runs.",
    "telemetry.pid": "Of that process.",
    "telemetry.restarts": "Times that it was started again.",
    "unhealthy": "In words: why nothing is committed, or what else is wrong; empty when nothing is.",
}

# What `kimberlite status --json` adds to each replica's document.
ADDED: dict[str, str] = {
    "address": "The address that was asked.",
    "reachable": "Whether it answered. If not, there are only `replica`, `address` and `unhealthy`: why not.",
    "lag": "Operations that the most advanced replica that answered knows to be committed, and this one has not "
    "executed.",
}

# And what it says of the cluster.
CLUSTER: dict[str, str] = {
    "verdict": "`healthy`, `degraded`, `no quorum` or `no answer`.",
    "can_commit": "Whether appends are committed now; null when nobody answered.",
    "reasons": "Why it is not healthy, as a list of sentences.",
    "members": "Members of the cluster, as they say; 0 when nobody answered.",
    "quorum": "Members that must have an operation before it is committed.",
    "id": "Of the cluster; null when nobody answered.",
}
