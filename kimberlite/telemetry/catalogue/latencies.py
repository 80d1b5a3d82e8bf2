"""Latencies: histograms, in nanoseconds."""

from __future__ import annotations

from kimberlite.telemetry.catalogue.labels import (
    COMMIT_STAGES,
    PEER,
)
from kimberlite.telemetry.catalogue.metric import Label, Role, histogram
from kimberlite.telemetry.catalogue.scenarios import (
    KILL,
    LOAD,
    REPAIRS,
)

# Buckets, in milliseconds

QUICK = (0.1, 0.5, 1, 2, 5, 10, 25, 50, 100)
SECOND = (*QUICK, 250, 500, 1000)  # what may hang on a sick disk
MICRO = (0.001, 0.005, 0.01, 0.05)  # of a state machine that does little, of a queue that is empty
CLIENT = (0.1, 0.5, 1, 2, 5, 10, 15, 25, 50, 100, 250, 500, 1000)  # 15: the objective for most requests
VIEW_CHANGE = (10, 50, 100, 250, 500, 1000, 5000)
RECOVERY = (100, 500, 1000, 5000, 10_000, 30_000)
REPAIR = (1, 5, 10, 25, 50, 100)

LATENCIES = (
    histogram(
        "prepare_latency",
        QUICK,
        "Primary: from preparing an op to its replication quorum. Backup: from receipt of a prepare to its durability.",
        "The commit path without queue and reply. Compare the replicas: a backup whose own latency is high has a slow "
        "disk; a primary that is slow while all backups are quick waits for its network.",
        "PREPARE_ACKED on the primary, JOURNALED on backups",
        LOAD,
        essential=True,
    ),
    histogram(
        "commit_latency",
        QUICK,
        "From an op's entry into this replica's log until it is applied here.",
        "On the primary what a client waits for after the queue; on a backup how stale its reads are.",
        "COMMITTED",
        LOAD,
        essential=True,
    ),
    histogram(
        "client_latency",
        CLIENT,
        "What clients saw for each append that was answered, from the call to its answer, waits in the client and "
        "retries included, as told with their next request.",
        "The only latency that holds everything, failovers and retries too; the service level objectives are about it. "
        "The last appends of a client that goes away are not in it.",
        "REPLIED; the next request of a client",
        LOAD,
        essential=True,
        role=Role.PRIMARY,
    ),
    histogram(
        "request_latency",
        CLIENT,
        "From receipt of a client's request to its reply.",
        "Subtract from client_latency to see network and client; what is above commit_latency is the queue.",
        "REPLIED",
        LOAD,
        role=Role.PRIMARY,
    ),
    histogram(
        "view_change_latency",
        VIEW_CHANGE,
        "From leaving normal status of a view to normal status in a later one.",
        "How long this replica could not take part; add the time until the primary was suspected for the whole gap.",
        "VIEW_CHANGED",
        KILL,
        essential=True,
    ),
    histogram(
        "recovery_latency",
        RECOVERY,
        "From opening the data until in normal status, with all applied that was known to be committed.",
        "Once for each start. Grows with the log: what a restart costs.",
        "RECOVERED",
        LOAD,
    ),
    histogram(
        "repair_latency",
        REPAIR,
        "From the first request for a missing or damaged entry to its arrival.",
        "High values with few repairs: the peers that are asked are slow.",
        "REPAIRED",
        REPAIRS,
    ),
    histogram(
        "journal_write_latency",
        SECOND,
        "From the submission of a write (entries and witnesses, or superblock) to its durability, queueing included.",
        "Subtract fsync_latency to see waiting for other writes. The most frequent reason for slow commits.",
        "completions of the disk",
        LOAD,
        essential=True,
    ),
    histogram(
        "fsync_latency",
        SECOND,
        "Slowest synchronous write of each group: O_DSYNC write, or write with fdatasync in buffered mode.",
        "The disk alone. A healthy local disk is below 1 ms; more is a sick or shared disk.",
        "completions of the disk",
        LOAD,
        essential=True,
    ),
    histogram(
        "peer_round_trip_latency",
        QUICK,
        "From a heartbeat of the primary, or a prepare when there are no heartbeats for prepares, to its "
        "acknowledgement; one in timing.heartbeat_ms at most.",
        "Network and the peer's event loop; under load with the journal write of the peer. prepare_latency of the peer "
        "tells how much that is.",
        "PEER_ROUND_TRIP",
        LOAD,
        labels=(PEER,),
        role=Role.PRIMARY,
    ),
    histogram(
        "apply_latency",
        (*MICRO, *QUICK),
        "Time of the state machine for the requests of one op, replays aside.",
        "Your code, when a state machine of your own is embedded: it runs on the event loop and delays everything.",
        "execution of a committed op",
        LOAD,
    ),
    histogram(
        "event_loop_turn",
        SECOND,
        "What the event loop did between two waits.",
        "Long turns delay heartbeats. Above timing.suspect_min_ms healthy primaries are suspected.",
        "every wake-up",
        LOAD,
    ),
    histogram(
        "gc_pause",
        SECOND,
        "Pauses of the replica for garbage collection.",
        "Should stay below 5 ms: what lives at the start is exempt from collection.",
        "each collection of the interpreter",
        LOAD,
    ),
    histogram(
        "commit_stage_latency",
        (*MICRO, *SECOND),
        "Where a commit spends its time: queue (waiting for a place in the pipeline), journal (entry into the log to "
        "durable here), replicate (prepared to quorum; at the same time as journal), apply (state machine), reply "
        "(executed to the first reply to a client of that op handed to the network: on the primary only).",
        "Which stage grew when commits got slow. Journal and apply are recorded on backups too.",
        "QUEUED, JOURNALED, PREPARE_ACKED, execution, the reply",
        LOAD,
        labels=(Label("stage", COMMIT_STAGES),),
        essential=True,
    ),
)
