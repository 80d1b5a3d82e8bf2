"""Counters: what happened, from the start of the replica on."""

from __future__ import annotations

from kimberlite.telemetry.catalogue.labels import (
    ACCESS,
    CLIENT_FAILURE,
    CRITICAL_STAGES,
    DIRECTION,
    DROP_REASON,
    ENDED,
    FAILURES,
    LOG_OUTCOMES,
    LOOP_PARTS,
    MESSAGE_TYPE,
    OUTCOMES,
    REJECT_REASON,
    SCRUBBED,
    SINK,
    enum_label,
)
from kimberlite.telemetry.catalogue.metric import Label, Role, Source, Unit, counter
from kimberlite.telemetry.catalogue.scenarios import (
    DAMAGE,
    KILL,
    LOAD,
    REFUSALS,
    REPAIRS,
    STALL,
    WRITE_FAILURE,
)
from kimberlite.vsr.events import GaveUp, ViewChangeCause

COUNTERS = (
    counter(
        "operations",
        "Ops whose fate this replica has learned: committed (applied here) or failed (see operations_failed). What a "
        "start executes again is in operations_replayed.",
        "Throughput in ops; each carries a batch of events. The rate is the same on every replica that keeps up. A "
        "killed replica counts at most one pipeline of ops again.",
        "COMMITTED; ABANDONED, SUFFIX_DROPPED",
        LOAD,
        labels=(Label("outcome", OUTCOMES),),
        essential=True,
    ),
    counter(
        "operations_replayed",
        "Ops that this start executed again, up to the commit number that its disk knew: no new work, and counted "
        "nowhere else.",
        "What a start costs: applied_number minus checkpoint_op at its end. With recovery_latency: ops per second "
        "of a replay.",
        "REPLAYED",
        REPAIRS,
    ),
    counter(
        "operations_failed",
        "Ops that failed here: view_change (prepared by this primary and uncommitted when it left its view; the next "
        "primary may commit them), suffix_dropped (cut by a view change: certainly never acknowledged).",
        "Clients retry and lose nothing. A steady rate means an unstable cluster.",
        "ABANDONED, SUFFIX_DROPPED",
        STALL,
        labels=(Label("reason", FAILURES),),
    ),
    counter(
        "events",
        "Events of committed ops, as applied here; a replay does not count.",
        "Throughput in events: what users call the load.",
        "COMMITTED",
        LOAD,
        essential=True,
    ),
    counter(
        "bytes_written",
        "Bytes of entries, with padding to sectors, of witnesses and of checkpoints handed to the disk.",
        "Above the growth of log_size: witnesses, checkpoints and repairs. Against disk_bytes: what superblocks add.",
        "every append to the journal, every chunk of a checkpoint",
        LOAD,
    ),
    counter(
        "messages_sent",
        "Frames given to the network, by type.",
        "Prepares and acknowledgements follow the load; request_prepare and start_view_change should not.",
        "every frame sent",
        LOAD,
        labels=(MESSAGE_TYPE,),
    ),
    counter(
        "messages_received",
        "Frames received and verified, by type.",
        "As messages_sent; a difference between one replica's sent and another's received is loss.",
        "every frame received",
        LOAD,
        labels=(MESSAGE_TYPE,),
    ),
    counter(
        "messages_dropped",
        "Frames not sent or not acted upon, by reason.",
        "not_connected: a peer is down. queue_full, slow_client: somebody does not read. duplicate, old_view: "
        "harmless. wrong_cluster, malformed, impostor, out_of_bounds: somebody who should not be there.",
        "DROPPED; the transport",
        REFUSALS,
        labels=(DROP_REASON,),
    ),
    counter(
        "client_connections_ended",
        "Client connections that this replica ended, by reason: refused (there were too many), displaced (idle, for "
        "one that was not), slow_frame (one was begun and not finished in time), slow_reply (it was not taken in "
        "time), memory (all together held too much, this one most).",
        "refused, displaced: compare client_connections with its limit; more clients than it was made for, or clients "
        "that do not close their connections. The others: a broken network, or somebody hostile.",
        "the bounds of limits.connections_max, frame_ms, reply_ms, connection_bytes_max",
        REFUSALS,
        labels=(ENDED,),
    ),
    counter(
        "view_changes",
        "Views entered, by cause: primary_silent (a quorum voted), primary_gone (the same, and nothing listened any "
        "more where the primary was), abdicated (this primary could not commit or was stopped), newer_view (heard of "
        "from a peer).",
        "0 in steady state; a few with each restart of a primary. A rate means an unstable network, disk or scheduler.",
        "VIEW_CHANGE_STARTED",
        KILL,
        labels=(enum_label("reason", ViewChangeCause),),
        essential=True,
    ),
    counter(
        "leadership_given_up",
        "Times that this replica left the lead of its view to another: abdicated (it could not commit), drained (it is "
        "being stopped), behind (it lacked much of the log when it was its turn, and another has it), disk_full (it "
        "lacked entries and had no room for them), lagging (it did not execute what the others had committed).",
        "drained follows rolling restarts. abdicated without a lost quorum, and lagging, are a sick disk or network of "
        "this replica.",
        "ABDICATED, FORFEITED",
        STALL,
        labels=(enum_label("reason", GaveUp),),
    ),
    counter(
        "checksum_failures",
        "Data refused because its checksum is wrong: network (frames), journal (entries and witnesses), superblock "
        "(copies).",
        "Any increase of journal or superblock is a failing disk: replace it. Network: a broken device or driver.",
        "FAULTY; frames refused; superblock copies at the start",
        DAMAGE,
        labels=(Label("component", ("network", "journal", "superblock")),),
        essential=True,
    ),
    counter(
        "identity_conflicts",
        "Heartbeats that named another entry for an op than this replica's log has; the first for each op.",
        "Critical. 0 for ever: an increase is a forged frame, or two replicas whose logs differ. Status has both "
        "identities; vsr_cannot_commit has the reason while it lasts.",
        "IDENTITY_CONFLICT",
        KILL,
        essential=True,
    ),
    counter(
        "checkpoints",
        "Checkpoints that have become durable since the start.",
        "Standing still while ops are applied: no checkpoint can be written, and nothing is trimmed.",
        "CHECKPOINTED",
        LOAD,
    ),
    counter(
        "scrub_tours_completed",
        "Tours of the scrubber over everything on the disk that are complete.",
        "One each scrub.tour_interval_s, or fewer where a tour takes longer. See scrub_last_tour.",
        "every completed tour",
        LOAD,
    ),
    counter(
        "scrub",
        "Bytes read by the scrubber.",
        "Its rate is scrub.bytes_per_s during a tour; less means that ticks of the loop are late.",
        "every step of the scrubber",
        LOAD,
        Unit.BYTES,
    ),
    counter(
        "scrub_corruptions_detected",
        "What the scrubber found damaged: entries (repaired from peers), witnesses, copies of the superblock and of "
        "the checkpoint (written again).",
        "Any increase is a failing disk: replace it. See checksum_failures for what was found in other ways.",
        "damage of what is on the disk",
        DAMAGE,
        labels=(SCRUBBED,),
        essential=True,
    ),
    counter(
        "repairs",
        "Entries fetched from peers: requested (asked for), repaired (came), expired (they or headers not in time, "
        "asked elsewhere).",
        "A burst after a restart is normal. Expired: a peer that is asked does not answer.",
        "REPAIR_REQUESTED, REPAIRED, REPAIR_EXPIRED",
        REPAIRS,
        labels=(Label("outcome", ("requested", "repaired", "expired")),),
    ),
    counter(
        "duplicate_requests",
        "Requests that were executed or queued already: deduplicated.",
        "Follows client retries, so that it rises with failovers and loss.",
        "DUPLICATE",
        REFUSALS,
        role=Role.PRIMARY,
    ),
    counter(
        "client_failures",
        "Appends that failed, as their clients saw it and told with a later request that was answered: unknown (it may "
        "or may not be in the log), unavailable (no replica took it in time), busy, no_space, evicted (its session, "
        "again and again), too_large, rejected (for another reason). What a client saw before it went away for good "
        "is not in it.",
        "Errors as users see them, those included that no replica saw. unknown and unavailable rise with failovers "
        "that took longer than the clients' timeout; busy is overload. Against the count of client_latency: the part "
        "of appends that fail.",
        "the next request of a client",
        REFUSALS,
        labels=(CLIENT_FAILURE,),
        essential=True,
        role=Role.PRIMARY,
    ),
    counter(
        "client_sessions_registered",
        "Sessions opened.",
        "High against the number of clients: clients that reconnect for each request.",
        "SESSION_REGISTERED",
        LOAD,
    ),
    counter(
        "client_sessions_evicted",
        "Sessions evicted for new ones.",
        "Clients that are still there get SessionEvictedError: raise limits.sessions_max.",
        "SESSION_EVICTED",
        REFUSALS,
    ),
    counter(
        "requests_rejected",
        "Requests and reads answered with a refusal, by reason.",
        "not_primary is how clients find the primary. busy_queue: overload. The others: clients with a mistake.",
        "REJECTED; refusals of the client listener",
        REFUSALS,
        labels=(REJECT_REASON,),
        essential=True,
    ),
    counter(
        "journal_errors",
        "Reads or writes of the data directory that the system failed. A failed write ends the replica at once.",
        "Any is a reason to replace the disk.",
        "WriteFailedError; an OSError of a read",
        WRITE_FAILURE,
        labels=(ACCESS,),
        essential=True,
    ),
    counter(
        "log_lines",
        "Lines of the log: written; suppressed, because there were too many of their id in a minute; dropped, because "
        "standard error did not take them.",
        "Many suppressed: something happens again and again, and the log says what. Any dropped: look at what reads "
        "standard error.",
        "what docs/logs.md lists",
        KILL,
        labels=(Label("outcome", LOG_OUTCOMES),),
    ),
    counter(
        "journal_mode_switches",
        "Changes between writing in the event loop and on the disk thread.",
        "Many: the disk's latency is about storage.inline_threshold_us.",
        "the write engine",
        KILL,
    ),
    counter(
        "commit_critical_path",
        "Which replica's acknowledgement completed the quorum of each commit; stage journal when it was the primary's "
        "own write, replicate when it was a backup's.",
        "Mostly journal: the primary's disk is the slowest of the quorum. A backup that never appears is slow.",
        "PREPARE_ACKED",
        LOAD,
        labels=(Label("replica", replicas=True), Label("stage", CRITICAL_STAGES)),
        role=Role.PRIMARY,
    ),
    counter(
        "network",
        "Bytes of frames, to and from peers and clients.",
        "Against the capacity of the network interface.",
        "every frame",
        LOAD,
        Unit.BYTES,
        labels=(DIRECTION,),
    ),
    counter(
        "disk",
        "Bytes read from and written to the data directory, in whole sectors; the zeros of new segments are in it.",
        "Reads are recovery, the scrubber, repair of others and clients that read.",
        "every read and write of the data directory",
        LOAD,
        Unit.BYTES,
        labels=(ACCESS,),
    ),
    counter(
        "disk_operations",
        "Reads and writes (system calls) of the data directory.",
        "Divide operations by it: more than one op per write is group commit at work.",
        "every read and write of the data directory",
        LOAD,
        labels=(ACCESS,),
    ),
    counter(
        "event_loop_time",
        "Where the event loop's time goes; the parts sum to the time that passed. poll: waiting, and the loop's own "
        "work. disk_wait: writes and reads in the loop.",
        "1 - rate(poll) is how busy the replica is: near 1 it is saturated, and the largest part says by what.",
        "every wake-up",
        LOAD,
        Unit.SECONDS,
        labels=(Label("part", LOOP_PARTS),),
    ),
    counter(
        "cpu",
        "CPU time of the replica process.",
        "Rate 1 is one processor. The event loop is one thread; the rest is disk thread and kernel.",
        "the process running",
        LOAD,
        Unit.SECONDS,
        labels=(Label("mode", ("user", "system")),),
        source=Source.PROCESS,
    ),
    counter(
        "telemetry_cpu",
        "CPU time of the telemetry process.",
        "What being scraped costs, outside of the replica.",
        "being scraped",
        LOAD,
        Unit.SECONDS,
        source=Source.PROCESS,
    ),
    counter(
        "telemetry_dropped",
        "What did not get out, by sink: answers to a scraper that was refused or did not take them, readings that an "
        "OpenTelemetry collector or a StatsD server did not take, lines of the log that standard error did not take.",
        "Rising: who is to take the metrics is away, refuses them, or is too slow. The replica does not notice.",
        "a sink that does not take what it gets",
        LOAD,
        labels=(SINK,),
        source=Source.PROCESS,
        essential=True,
    ),
)
