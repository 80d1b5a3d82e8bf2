"""The catalogue: every metric there is, declared once.

The shared-memory layout, the recorder's handles, the exposition, the reference page
(docs/metrics.md) and the tests all derive from METRICS. Labels are closed enums, so the
number of series of a cluster of a given size is a constant: `series_count`.

Cells hold integers in one fixed unit (nanoseconds, bytes, counts); what is exposed may be
another unit, chosen by `units`: "ms" gives latencies in milliseconds (vsr_prepare_latency_ms),
"base" gives seconds (vsr_prepare_latency_seconds) and names that follow Prometheus' rules.

May import: errors, types, _fast.metrics, vsr.work. Main invariant: nothing is exposed that is
not declared here, and everything declared here is exposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from kimberlite._fast.metrics import Kind, Series
from kimberlite.types import REPLICAS_MAX, Access, Command, Dropped, Ended, Reason, Status
from kimberlite.vsr.events import DropReason, GaveUp, ViewChangeCause
from kimberlite.vsr.work import CannotCommit

PREFIX = "vsr"
CONSTANT_LABELS = ("cluster", "replica_id")
UNITS = ("ms", "base")
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Unit(Enum):
    """What a value measures; decides suffix and scale of what is exposed."""

    NONE = auto()  # a number or a count
    LATENCY = auto()  # nanoseconds in the cell; milliseconds or, in base units, seconds
    SECONDS = auto()  # nanoseconds in the cell; always seconds
    BYTES = auto()


class Source(Enum):
    """Where the value comes from."""

    REPLICA = auto()  # a cell that the replica writes
    INSTANT = auto()  # a cell with a monotonic instant; exposed is its age, NaN while it is 0
    DERIVED = auto()  # from other cells, by the telemetry process
    PROCESS = auto()  # from /proc of the replica, by the telemetry process
    INFO = auto()  # fixed for the life of the replica; the labels say it


class Role(Enum):
    """On which replicas a metric moves."""

    EVERY = "every replica"
    PRIMARY = "the primary"
    BACKUP = "backups"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its closed set of values; `replicas`: one for each replica of the cluster."""

    name: str
    values: tuple[str, ...] = ()
    replicas: bool = False

    def all(self, replica_count: int) -> tuple[str, ...]:
        return tuple(map(str, range(replica_count))) if self.replicas else self.values


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Names are without prefix and unit: see `exposed_name`.

    moved_by: what makes it move. scenario: where tests/integration/test_telemetry.py shows that it
    does. base_name: name under base units where the default one breaks a rule that promtool checks.
    floating: NaN stands for "not known here".
    """

    name: str
    kind: Kind
    unit: Unit
    help: str
    how_to_use: str
    moved_by: str
    scenario: str
    labels: tuple[Label, ...] = ()
    buckets_ms: tuple[float, ...] = ()
    source: Source = Source.REPLICA
    role: Role = Role.EVERY
    essential: bool = False
    floating: bool = False
    base_name: str = ""

    def exposed_name(self, units: str) -> str:
        """The name in an exposition, without `_bucket`, `_sum` and `_count` of histograms."""
        name = self.base_name if units == "base" and self.base_name else self.name
        suffix = {
            Unit.NONE: "",
            Unit.LATENCY: "_ms" if units == "ms" else "_seconds",
            Unit.SECONDS: "_seconds",
            Unit.BYTES: "_bytes",
        }[self.unit]
        total = "_total" if self.kind is Kind.COUNTER else ""
        return f"{PREFIX}_{name}{suffix}{total}"

    def scale(self, units: str) -> float:
        """What a cell is divided by to be exposed."""
        if self.unit is Unit.LATENCY and units == "ms":
            return NS_PER_MS
        return NS_PER_S if self.unit in (Unit.LATENCY, Unit.SECONDS) else 1

    @property
    def bounds_ns(self) -> tuple[int, ...]:
        return tuple(round(bound * NS_PER_MS) for bound in self.buckets_ms)

    def label_values(self, replica_count: int) -> Iterator[tuple[str, ...]]:
        """Every combination of label values, in order."""

        def combine(labels: tuple[Label, ...]) -> Iterator[tuple[str, ...]]:
            if not labels:
                yield ()
                return
            for value in labels[0].all(replica_count):
                for rest in combine(labels[1:]):
                    yield (value, *rest)

        return combine(self.labels)

    def series_count(self, replica_count: int) -> int:
        """Samples in an exposition: a histogram has its buckets, +Inf, sum and count."""
        each = len(self.buckets_ms) + 3 if self.kind is Kind.HISTOGRAM else 1
        return each * sum(1 for _ in self.label_values(replica_count))

    @property
    def has_cells(self) -> bool:
        return self.source in (Source.REPLICA, Source.INSTANT)


# Buckets, in milliseconds

QUICK = (0.1, 0.5, 1, 2, 5, 10, 25, 50, 100)
SECOND = (*QUICK, 250, 500, 1000)  # what may hang on a sick disk
MICRO = (0.001, 0.005, 0.01, 0.05)  # of a state machine that does little, of a queue that is empty
CLIENT = (0.1, 0.5, 1, 2, 5, 10, 15, 25, 50, 100, 250, 500, 1000)  # 15: the objective for most requests
VIEW_CHANGE = (10, 50, 100, 250, 500, 1000, 5000)
RECOVERY = (100, 500, 1000, 5000, 10_000, 30_000)
REPAIR = (1, 5, 10, 25, 50, 100)

# Labels

OUTCOMES = ("committed", "failed")
FAILURES = ("view_change", "suffix_dropped")
COMMIT_STAGES = ("queue", "journal", "replicate", "apply", "reply")
CRITICAL_STAGES = ("journal", "replicate")
LOOP_PARTS = ("poll", "parse", "protocol", "disk_wait", "send", "other")


def label_value(member: Enum) -> str:
    """What a label says of a member of an enum: its value when that is text, else its name."""
    return member.value if isinstance(member.value, str) else member.name.lower()


def _of(name: str, *enums: type[Enum]) -> Label:
    """A label with a value for each member, and no others: what has no name of its own would be counted nowhere."""
    return Label(name, tuple(dict.fromkeys(label_value(member) for enum in enums for member in enum)))


MESSAGE_TYPE = _of("message_type", Command)
DROP_REASON = _of("reason", DropReason, Dropped)
REJECT_REASON = Label("reason", tuple(label_value(reason) for reason in Reason if reason is not Reason.NONE))
CANNOT_COMMIT = _of("reason", CannotCommit)
ENDED = _of("reason", Ended)
DIRECTION = Label("direction", ("received", "sent"))
ACCESS = _of("operation", Access)
PEER = Label("peer", replicas=True)
STATE = _of("state", Status)

BUILD_LABELS = ("version", "release", "python", "checksum_kernel")
CONFIG_LABELS = (
    "telemetry_units",
    "storage_mode",
    "heartbeat_ms",
    "suspect_min_ms",
    "suspect_max_ms",
    "pipeline_max",
    "queue_max",
    "sessions_max",
    "segment_bytes",
)


def _histogram(
    name: str, buckets: tuple[float, ...], help: str, how: str, moved: str, scenario: str, **more: object
) -> Metric:
    return Metric(name, Kind.HISTOGRAM, Unit.LATENCY, help, how, moved, scenario, buckets_ms=buckets, **more)  # type: ignore[arg-type]


def _counter(
    name: str, help: str, how: str, moved: str, scenario: str, unit: Unit = Unit.NONE, **more: object
) -> Metric:
    return Metric(name, Kind.COUNTER, unit, help, how, moved, scenario, **more)  # type: ignore[arg-type]


def _gauge(name: str, help: str, how: str, moved: str, scenario: str, unit: Unit = Unit.NONE, **more: object) -> Metric:
    return Metric(name, Kind.GAUGE, unit, help, how, moved, scenario, **more)  # type: ignore[arg-type]


# Scenarios, in the order in which tests/integration/test_telemetry.py plays them on one cluster.

LOAD = "load"  # clients append and read
REFUSALS = "refusals"  # duplicates, evictions, clients at the wrong replica, bytes that are no frame
REPAIRS = "repair"  # a backup that was away, and a peer that does not answer its requests
RETENTION = "retention"  # more is appended than is kept
DAMAGE = "damage"  # a flipped byte in a journal and in a superblock
STALL = "stall"  # a primary whose backups are stopped
RECOVERING = "recovering"  # a primary that starts again while its peers are stopped
CLOCK = "clock"  # a replica whose clock is set back by a day
KILL = "kill"  # a killed primary, started again with a disk that counts as slow
DRAIN = "drain"  # SIGTERM
HANG = "hang"  # SIGSTOP
STUCK = "stuck"  # the last op damaged on every replica
FULL = "full"  # file systems with less free space than they should have
WRITE_FAILURE = "write_failure"  # a journal write that the system refuses
FIXED = "fixed"  # what does not move: compared with what is known from elsewhere
SCENARIOS = (
    LOAD,
    REFUSALS,
    REPAIRS,
    DAMAGE,
    RETENTION,
    STALL,
    RECOVERING,
    CLOCK,
    KILL,
    DRAIN,
    HANG,
    STUCK,
    FULL,
    WRITE_FAILURE,
    FIXED,
)

SCRUBBED = Label("what", ("entry", "witness", "superblock", "checkpoint"))

LATENCIES = (
    _histogram(
        "prepare_latency",
        QUICK,
        "Primary: from preparing an op to its replication quorum. Backup: from receipt of a prepare to its durability.",
        "The commit path without queue and reply. Compare the replicas: a backup whose own latency is high has a slow "
        "disk; a primary that is slow while all backups are quick waits for its network.",
        "PREPARE_ACKED on the primary, JOURNALED on backups",
        LOAD,
        essential=True,
    ),
    _histogram(
        "commit_latency",
        QUICK,
        "From an op's entry into this replica's log until it is applied here.",
        "On the primary what a client waits for after the queue; on a backup how stale its reads are.",
        "COMMITTED",
        LOAD,
        essential=True,
    ),
    _histogram(
        "client_latency",
        CLIENT,
        "What clients saw for an append, from the first sending to the reply, as told with their next request.",
        "The only latency that holds everything, failovers and retries too; the service level objectives are about it. "
        "A client's last request before it goes away is not in it.",
        "REPLIED, from the latency_us of the request",
        LOAD,
        essential=True,
        role=Role.PRIMARY,
    ),
    _histogram(
        "request_latency",
        CLIENT,
        "From receipt of a client's request to its reply.",
        "Subtract from client_latency to see network and client; what is above commit_latency is the queue.",
        "REPLIED",
        LOAD,
        role=Role.PRIMARY,
    ),
    _histogram(
        "view_change_latency",
        VIEW_CHANGE,
        "From leaving normal status of a view to normal status in a later one.",
        "How long this replica could not take part; add the time until the primary was suspected for the whole gap.",
        "VIEW_CHANGED",
        KILL,
        essential=True,
    ),
    _histogram(
        "recovery_latency",
        RECOVERY,
        "From opening the data until in normal status, with all applied that was known to be committed.",
        "Once for each start. Grows with the log: what a restart costs.",
        "RECOVERED",
        LOAD,
    ),
    _histogram(
        "repair_latency",
        REPAIR,
        "From the first request for a missing or damaged entry to its arrival.",
        "High values with few repairs: the peers that are asked are slow.",
        "REPAIRED",
        REPAIRS,
    ),
    _histogram(
        "journal_write_latency",
        SECOND,
        "From the submission of a write (entries and witnesses, or superblock) to its durability, queueing included.",
        "Subtract fsync_latency to see waiting for other writes. The most frequent reason for slow commits.",
        "completions of the disk",
        LOAD,
        essential=True,
    ),
    _histogram(
        "fsync_latency",
        SECOND,
        "Slowest synchronous write of each group: O_DSYNC write, or write with fdatasync in buffered mode.",
        "The disk alone. A healthy local disk is below 1 ms; more is a sick or shared disk.",
        "completions of the disk",
        LOAD,
        essential=True,
    ),
    _histogram(
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
    _histogram(
        "apply_latency",
        (*MICRO, *QUICK),
        "Time of the state machine for the requests of one op, replays aside.",
        "Your code, when a state machine of your own is embedded: it runs on the event loop and delays everything.",
        "execution of a committed op",
        LOAD,
    ),
    _histogram(
        "event_loop_turn",
        SECOND,
        "What the event loop did between two waits.",
        "Long turns delay heartbeats. Above timing.suspect_min_ms healthy primaries are suspected.",
        "every wake-up",
        LOAD,
    ),
    _histogram(
        "gc_pause",
        SECOND,
        "Pauses of the replica for garbage collection.",
        "Should stay below 5 ms: what lives at the start is exempt from collection.",
        "each collection of the interpreter",
        LOAD,
    ),
    _histogram(
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

COUNTERS = (
    _counter(
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
    _counter(
        "operations_replayed",
        "Ops that this start executed again, up to the commit number that its disk knew: no new work, and counted "
        "nowhere else.",
        "What a start costs: applied_number minus checkpoint_number at its end. With recovery_latency: ops per second "
        "of a replay.",
        "REPLAYED",
        REPAIRS,
    ),
    _counter(
        "operations_failed",
        "Ops that failed here: view_change (prepared by this primary and uncommitted when it left its view; the next "
        "primary may commit them), suffix_dropped (cut by a view change: certainly never acknowledged).",
        "Clients retry and lose nothing. A steady rate means an unstable cluster.",
        "ABANDONED, SUFFIX_DROPPED",
        STALL,
        labels=(Label("reason", FAILURES),),
    ),
    _counter(
        "events",
        "Events of committed ops, as applied here; a replay does not count.",
        "Throughput in events: what users call the load.",
        "COMMITTED",
        LOAD,
        essential=True,
    ),
    _counter(
        "bytes_written",
        "Bytes of entries, with padding to sectors, of witnesses and of checkpoints handed to the disk.",
        "Above the growth of log_size: witnesses, checkpoints and repairs. Against disk_bytes: what superblocks add.",
        "every append to the journal, every chunk of a checkpoint",
        LOAD,
    ),
    _counter(
        "messages_sent",
        "Frames given to the network, by type.",
        "Prepares and acknowledgements follow the load; request_prepare and start_view_change should not.",
        "every frame sent",
        LOAD,
        labels=(MESSAGE_TYPE,),
    ),
    _counter(
        "messages_received",
        "Frames received and verified, by type.",
        "As messages_sent; a difference between one replica's sent and another's received is loss.",
        "every frame received",
        LOAD,
        labels=(MESSAGE_TYPE,),
    ),
    _counter(
        "messages_dropped",
        "Frames not sent or not acted upon, by reason.",
        "not_connected: a peer is down. queue_full, slow_client: somebody does not read. duplicate, old_view: "
        "harmless. wrong_cluster, malformed, impostor, out_of_bounds: somebody who should not be there.",
        "DROPPED; the transport",
        REFUSALS,
        labels=(DROP_REASON,),
    ),
    _counter(
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
    _counter(
        "view_changes",
        "Views entered, by cause: primary_silent (a quorum voted), abdicated (this primary could not commit or was "
        "stopped), newer_view (heard of from a peer).",
        "0 in steady state; a few with each restart of a primary. A rate means an unstable network, disk or scheduler.",
        "VIEW_CHANGE_STARTED",
        KILL,
        labels=(_of("reason", ViewChangeCause),),
        essential=True,
    ),
    _counter(
        "leadership_given_up",
        "Times that this replica left the lead of its view to another: abdicated (it could not commit), drained (it is "
        "being stopped), behind (it lacked much of the log when it was its turn, and another has it), disk_full (it "
        "lacked entries and had no room for them), lagging (it did not execute what the others had committed).",
        "drained follows rolling restarts. abdicated without a lost quorum, and lagging, are a sick disk or network of "
        "this replica.",
        "ABDICATED, FORFEITED",
        STALL,
        labels=(_of("reason", GaveUp),),
    ),
    _counter(
        "checksum_failures",
        "Data refused because its checksum is wrong: network (frames), journal (entries and witnesses), superblock "
        "(copies).",
        "Any increase of journal or superblock is a failing disk: replace it. Network: a broken device or driver.",
        "FAULTY; frames refused; superblock copies at the start",
        DAMAGE,
        labels=(Label("component", ("network", "journal", "superblock")),),
        essential=True,
    ),
    _counter(
        "identity_conflicts",
        "Heartbeats that named another entry for an op than this replica's log has; the first for each op.",
        "Critical. 0 for ever: an increase is a forged frame, or two replicas whose logs differ. Status has both "
        "identities; vsr_cannot_commit has the reason while it lasts.",
        "IDENTITY_CONFLICT",
        KILL,
        essential=True,
    ),
    _counter(
        "checkpoints",
        "Checkpoints that have become durable since the start.",
        "Standing still while ops are applied: no checkpoint can be written, and nothing is trimmed.",
        "CHECKPOINTED",
        LOAD,
    ),
    _counter(
        "scrub_tours",
        "Tours of the scrubber over everything on the disk that are complete.",
        "One each scrub.tour_interval_s, or fewer where a tour takes longer. See scrub_last_tour.",
        "every completed tour",
        LOAD,
    ),
    _counter(
        "scrub",
        "Bytes read by the scrubber.",
        "Its rate is scrub.bytes_per_s during a tour; less means that ticks of the loop are late.",
        "every step of the scrubber",
        LOAD,
        Unit.BYTES,
    ),
    _counter(
        "scrub_damage",
        "What the scrubber found damaged: entries (repaired from peers), witnesses, copies of the superblock and of "
        "the checkpoint (written again).",
        "Any increase is a failing disk: replace it. See checksum_failures for what was found in other ways.",
        "damage of what is on the disk",
        DAMAGE,
        labels=(SCRUBBED,),
        essential=True,
    ),
    _counter(
        "repairs",
        "Entries fetched from peers: requested (asked for), repaired (came), expired (they or headers not in time, "
        "asked elsewhere).",
        "A burst after a restart is normal. Expired: a peer that is asked does not answer.",
        "REPAIR_REQUESTED, REPAIRED, REPAIR_EXPIRED",
        REPAIRS,
        labels=(Label("outcome", ("requested", "repaired", "expired")),),
    ),
    _counter(
        "duplicate_requests",
        "Requests that were executed or queued already: deduplicated.",
        "Follows client retries, so that it rises with failovers and loss.",
        "DUPLICATE",
        REFUSALS,
        role=Role.PRIMARY,
    ),
    _counter(
        "client_sessions_registered",
        "Sessions opened.",
        "High against the number of clients: clients that reconnect for each request.",
        "SESSION_REGISTERED",
        LOAD,
    ),
    _counter(
        "client_sessions_evicted",
        "Sessions evicted for new ones.",
        "Clients that are still there get SessionEvictedError: raise limits.sessions_max.",
        "SESSION_EVICTED",
        REFUSALS,
    ),
    _counter(
        "requests_rejected",
        "Requests and reads answered with a refusal, by reason.",
        "not_primary is how clients find the primary. busy_queue: overload. The others: clients with a mistake.",
        "REJECTED; refusals of the client listener",
        REFUSALS,
        labels=(REJECT_REASON,),
        essential=True,
    ),
    _counter(
        "journal_errors",
        "Reads or writes of the data directory that the system failed. A failed write ends the replica at once.",
        "Any is a reason to replace the disk.",
        "WriteFailedError; an OSError of a read",
        WRITE_FAILURE,
        labels=(ACCESS,),
        essential=True,
    ),
    _counter(
        "journal_mode_switches",
        "Changes between writing in the event loop and on the disk thread.",
        "Many: the disk's latency is about storage.inline_threshold_us.",
        "the write engine",
        KILL,
    ),
    _counter(
        "commit_critical_path",
        "Which replica's acknowledgement completed the quorum of each commit; stage journal when it was the primary's "
        "own write, replicate when it was a backup's.",
        "Mostly journal: the primary's disk is the slowest of the quorum. A backup that never appears is slow.",
        "PREPARE_ACKED",
        LOAD,
        labels=(Label("replica", replicas=True), Label("stage", CRITICAL_STAGES)),
        role=Role.PRIMARY,
    ),
    _counter(
        "network",
        "Bytes of frames, to and from peers and clients.",
        "Against the capacity of the network interface.",
        "every frame",
        LOAD,
        Unit.BYTES,
        labels=(DIRECTION,),
    ),
    _counter(
        "disk",
        "Bytes read from and written to the data directory, in whole sectors; the zeros of new segments are in it.",
        "Reads are recovery, the scrubber, repair of others and clients that read.",
        "every read and write of the data directory",
        LOAD,
        Unit.BYTES,
        labels=(ACCESS,),
    ),
    _counter(
        "disk_operations",
        "Reads and writes (system calls) of the data directory.",
        "Divide operations by it: more than one op per write is group commit at work.",
        "every read and write of the data directory",
        LOAD,
        labels=(ACCESS,),
    ),
    _counter(
        "event_loop_time",
        "Where the event loop's time goes; the parts sum to the time that passed. poll: waiting, and the loop's own "
        "work. disk_wait: writes and reads in the loop.",
        "1 - rate(poll) is how busy the replica is: near 1 it is saturated, and the largest part says by what.",
        "every wake-up",
        LOAD,
        Unit.SECONDS,
        labels=(Label("part", LOOP_PARTS),),
    ),
    _counter(
        "cpu",
        "CPU time of the replica process.",
        "Rate 1 is one processor. The event loop is one thread; the rest is disk thread and kernel.",
        "the process running",
        LOAD,
        Unit.SECONDS,
        labels=(Label("mode", ("user", "system")),),
        source=Source.PROCESS,
    ),
    _counter(
        "telemetry_cpu",
        "CPU time of the telemetry process.",
        "What being scraped costs, outside of the replica.",
        "being scraped",
        LOAD,
        Unit.SECONDS,
        source=Source.PROCESS,
    ),
)

HEALTH = (
    _gauge(
        "replica_up",
        "1 while the replica process runs, 0 when it has ended: then counters and histograms keep their last values, "
        "can_commit and is_primary are 0, and no other gauge of the replica is served.",
        "Alert on 0, and on an absent series: then the telemetry process is gone too.",
        "end of the process",
        WRITE_FAILURE,
        source=Source.DERIVED,
        essential=True,
    ),
    _gauge(
        "replica_status",
        "0 normal, 1 view change, 2 recovering, 3 state transfer, 4 standby.",
        "For tables; use replica_state in queries.",
        "STATUS",
        RECOVERING,
        essential=True,
    ),
    _gauge(
        "replica_state",
        "1 for the state the replica is in, 0 for the others.",
        'sum(vsr_replica_state{state="normal"}) is the number of replicas that take part.',
        "STATUS",
        RECOVERING,
        labels=(STATE,),
        source=Source.DERIVED,
    ),
    _gauge(
        "is_primary",
        "1 on the replica that is primary and in normal status.",
        "The sum over the cluster is 1; 0 during a view change. A deposed primary may say 1 until it hears of it.",
        "PRIMARY, STATUS",
        KILL,
        essential=True,
    ),
    _gauge(
        "view_number",
        "The view this replica is in; its primary is view modulo cluster_size.",
        "Differs between replicas only for moments; a replica that stays behind is cut off.",
        "VIEW_CHANGE_STARTED",
        KILL,
        essential=True,
    ),
    _gauge(
        "op_number",
        "Highest op of the log.",
        "op_number - commit_number is what waits for a quorum.",
        "PREPARED; a prepare received",
        LOAD,
        essential=True,
    ),
    _gauge(
        "commit_number",
        "Highest op known to be committed.",
        "Its rate is the throughput. Standing still while requests come: commit stalled.",
        "PREPARE_ACKED; a commit number received",
        LOAD,
        essential=True,
    ),
    _gauge(
        "applied_number",
        "Highest op applied to the state machine; reads see up to here.",
        "Behind commit_number: a damaged entry that waits for repair, or replay after a restart.",
        "COMMITTED",
        LOAD,
    ),
    _gauge(
        "log_size",
        "Bytes of the journal.",
        "Against disk_free: how long the disk lasts.",
        "appends",
        LOAD,
        Unit.BYTES,
    ),
    _gauge(
        "log_entry_count",
        "Entries (prepares) in the journal.",
        "log_size divided by it is the mean entry.",
        "appends",
        LOAD,
        base_name="log_entries",
    ),
    _gauge(
        "log_first_event",
        "Position of the first event that can be read: lower ones were trimmed.",
        "A reader whose position comes near it is about to lose events.",
        "a trim",
        RETENTION,
    ),
    _gauge(
        "checkpoint_number",
        "Op of the durable checkpoint: a restart executes what comes after it.",
        "applied_number minus it is what a restart has to do; when it stands still, so does trimming.",
        "CHECKPOINTED",
        LOAD,
    ),
    _gauge(
        "trim_wait",
        "For how long a trim that is due has waited for the checkpoint of a replica; NaN while none waits.",
        "A replica that is down or far behind keeps all logs growing: bring it back before the disks are full.",
        "a trim that is due while a replica is down",
        RETENTION,
        Unit.SECONDS,
        source=Source.INSTANT,
        role=Role.PRIMARY,
    ),
    _gauge(
        "clock_offset",
        "By how much this machine's clock has moved against the time that passed, since it was believed last; at first "
        "since the start. Above 0 it was set forward.",
        "Below a second with a machine that keeps its time. Beyond 600 either way the clock is not believed: see "
        "retention_suspended. A clock that was wrong at the start already shows nothing here: compare timestamp() of "
        "the machines.",
        "a step of the clock",
        CLOCK,
        Unit.SECONDS,
    ),
    _gauge(
        "clock_log_ahead",
        "By how much the log's last timestamp is ahead of this machine's clock; 0 while it is not.",
        "Minutes: this clock is behind, or a primary stamped events by a clock that was ahead; then they are kept "
        "until this clock has caught up with retention.age_max_s.",
        "a step of the clock",
        CLOCK,
        Unit.SECONDS,
    ),
    _gauge(
        "retention_suspended",
        "1 while nothing is trimmed by age, though retention.age_max_s is set, because this machine's clock is not "
        "believed: it has moved by more than 600 s.",
        "Alert on 1 for minutes: the log grows while such a replica is primary. Set the clock right, or restart the "
        "replica when it is.",
        "a step of the clock",
        CLOCK,
        essential=True,
    ),
    _gauge(
        "log_event_count",
        "Events of the applied log: the position that the next event gets.",
        "Equal on replicas that keep up.",
        "COMMITTED",
        LOAD,
        base_name="log_events",
    ),
    _gauge(
        "quorum_size",
        "Replicas that must have an op durable before it commits.",
        "Use it in rules instead of a number.",
        "the size of the cluster",
        FIXED,
        essential=True,
    ),
    _gauge(
        "cluster_size",
        "Voting replicas.",
        "Use it in rules instead of a number.",
        "the size of the cluster",
        FIXED,
        essential=True,
    ),
    _gauge(
        "quorum_margin",
        "Replicas heard lately, this one included, minus quorum_size: so many may still be lost. Below 0 nothing "
        "commits. Said by every replica, in view changes too.",
        "Alert on 0 (no more loss allowed) and below. max without(replica_id) is the view of who hears most.",
        "peers heard or silent",
        STALL,
        essential=True,
    ),
    _gauge(
        "can_commit",
        "1 while a request that came now would be committed, as far as this replica knows; true without traffic. 0 on "
        "a replica that has ended.",
        "Alert when max without(replica_id) (vsr_can_commit * vsr_is_primary) is 0: true as long as one replica is "
        "left to say so, without traffic too. A backup takes the word of a primary that it hears: alone it says that "
        "it hears one, no more. vsr_cannot_commit has the reason.",
        "peers heard or silent; STATUS",
        STALL,
        essential=True,
    ),
    _gauge(
        "cannot_commit",
        "1 for each reason why can_commit is 0: recovering and view_change (see replica_status), no_primary (a backup "
        "that hears none), no_quorum (too few replicas are heard), catching_up (a new primary that executes what the "
        "last view left), stalled (the oldest op waits for acknowledgements), disk_full, draining, stuck (an op that "
        "nobody has a good copy of holds up the view change), hung (its event loop does not turn), identity_conflict "
        "(two entries under one op).",
        "Says what to look at first. stuck and identity_conflict need a person.",
        "peers heard or silent; STATUS",
        STALL,
        labels=(CANNOT_COMMIT,),
        essential=True,
    ),
    _gauge(
        "prepare_ok_votes",
        "Replicas that have the oldest uncommitted op durable; 0 when nothing waits.",
        "Below quorum_size for long: commits stall for want of acknowledgements.",
        "a prepare without a quorum",
        STALL,
        role=Role.PRIMARY,
    ),
    _gauge(
        "stuck_op",
        "Op that holds up a view change: none of the replicas whose evidence this one has can give it, and too many "
        "may have acknowledged it; 0 while there is none.",
        "Above 0 for seconds: bring back the replica that is missing, or a disk that has the op. It is never skipped.",
        "STUCK",
        STUCK,
        essential=True,
    ),
    _gauge(
        "oldest_uncommitted",
        "Age of the oldest uncommitted op; NaN when nothing waits.",
        "Seconds: commits stall.",
        "a prepare without a quorum",
        STALL,
        Unit.SECONDS,
        source=Source.INSTANT,
        role=Role.PRIMARY,
    ),
    _gauge(
        "last_commit",
        "Time since the commit number last moved, NaN before it first did.",
        "Only together with load: an idle cluster does not commit.",
        "every commit",
        LOAD,
        Unit.SECONDS,
        source=Source.INSTANT,
    ),
    _gauge(
        "scrub_progress",
        "Part of the scrubber's present tour that is done, from 0 to 1.",
        "With scrub_tours: how long a tour takes. 1 while the next tour is not due yet (scrub.tour_interval_s). "
        "Standing still below 1 means that scrub.bytes_per_s is 0.",
        "every step of the scrubber",
        LOAD,
        floating=True,
    ),
    _gauge(
        "scrub_last_tour",
        "Time since a tour of the scrubber over everything was complete; NaN before the first of this start.",
        "Above a week: raise scrub.bytes_per_s. Damage that nothing reads is found by a tour only.",
        "every completed tour",
        LOAD,
        Unit.SECONDS,
        source=Source.INSTANT,
    ),
    _gauge(
        "replica_lag_operations",
        "Ops that a replica is behind. The primary knows it of all, a backup of itself; NaN on backups for the others, "
        "and on a primary for a replica that it has not heard since its start.",
        "max by (peer). A few hundred are repaired quickly; growth is a replica that cannot keep up.",
        "a backup that is behind",
        REPAIRS,
        labels=(PEER,),
        floating=True,
        essential=True,
    ),
    _gauge(
        "replica_lag",
        "For how long the first op that a replica lacks has been committed; 0 while it lacks none, NaN where that is "
        "not known (see replica_lag_operations).",
        "Seconds behind. A replica that is always some ops behind, and keeps up, stays near 0.",
        "a backup that is behind",
        REPAIRS,
        Unit.SECONDS,
        labels=(PEER,),
        floating=True,
    ),
    _gauge(
        "peer_last_heard",
        "Time since a frame of a peer came; NaN before the first, and for the replica itself.",
        "Below 1 on every replica for every other: who has nothing to say gives a sign of life four times a second.",
        "frames of peers",
        STALL,
        Unit.SECONDS,
        labels=(PEER,),
        source=Source.INSTANT,
        essential=True,
    ),
    _gauge(
        "pending_requests",
        "Requests that wait for a place in the pipeline.",
        "Against pending_requests_limit, above which clients are told to come back.",
        "more load than the pipeline takes",
        STALL,
        role=Role.PRIMARY,
        essential=True,
    ),
    _gauge(
        "pending_requests_limit",
        "Bound of pending_requests: limits.queue_max.",
        "See pending_requests.",
        "the configuration",
        FIXED,
    ),
    _gauge(
        "pipeline_depth",
        "Prepares that are not committed.",
        "At pipeline_limit for long: commits are slow, requests queue.",
        "a prepare without a quorum",
        STALL,
        role=Role.PRIMARY,
    ),
    _gauge(
        "pipeline_limit",
        "Bound of pipeline_depth: limits.pipeline_max.",
        "See pipeline_depth.",
        "the configuration",
        FIXED,
    ),
    _gauge(
        "journal_faulty",
        "Entries known to be damaged on this disk and not repaired yet.",
        "Must return to 0 within seconds; if not, no peer has the entry.",
        "FAULTY, REPAIRED",
        DAMAGE,
        essential=True,
    ),
    _gauge(
        "journal_inline",
        "1 while the journal is written in the event loop, 0 while on the disk thread.",
        "0 means that the disk is slower than storage.inline_threshold_us.",
        "the write engine",
        KILL,
    ),
    _gauge(
        "journal_wait",
        "Time since the disk last completed a write, though more was asked of it; NaN while nothing is.",
        "Above a second the disk hangs: vsr_cannot_commit says disk_stalled, /readyz fails, and a primary gives up its "
        "view. Errors end a replica; a disk that hangs says nothing.",
        "writes that wait for the disk",
        KILL,
        Unit.SECONDS,
        source=Source.INSTANT,
        essential=True,
    ),
    _gauge(
        "journal_backlog",
        "Bytes of entries that wait for this replica's disk, or to be executed.",
        "Near journal_backlog_limit the disk does not keep up: a backup takes no more, and fetches the rest later; "
        "a primary prepares no more.",
        "entries that wait for the disk",
        KILL,
        Unit.BYTES,
    ),
    _gauge(
        "journal_backlog_limit",
        "Bound of journal_backlog: twice a full pipeline of the largest entries.",
        "See journal_backlog.",
        "the configuration",
        FIXED,
        Unit.BYTES,
    ),
    _gauge(
        "disk_free",
        "Bytes that the file system has left for this replica.",
        "Below one segment the replica stops being ready. Alert on a forecast: predict_linear.",
        "use of the disk",
        LOAD,
        Unit.BYTES,
        essential=True,
    ),
    _gauge(
        "disk_full",
        "1 while this replica has no room for more: the file system or the quota, or less free than "
        "storage.free_bytes_min.",
        "The cluster goes on without it while a quorum has room and another one leads; then appends are refused "
        "(vsr_requests_rejected with reason disk_full). Make room: it goes on by itself.",
        "a reservation that fails; free space",
        FULL,
        essential=True,
    ),
    _gauge(
        "draining",
        "1 while the replica refuses new requests because it is being stopped.",
        "Expected in rolling restarts only.",
        "SIGTERM",
        DRAIN,
    ),
    _gauge(
        "event_loop_last_turn",
        "Time since the event loop last ended a turn.",
        "/livez fails above its bound. Seconds: the replica hangs.",
        "every wake-up",
        HANG,
        Unit.SECONDS,
        source=Source.INSTANT,
    ),
)

PHASES = (
    _gauge(
        "client_sessions_active",
        "Sessions remembered.",
        "Against client_sessions_limit: above it the least recently used are evicted.",
        "SESSION_REGISTERED, SESSION_EVICTED",
        LOAD,
    ),
    _gauge(
        "client_sessions_limit",
        "Bound of client_sessions_active: limits.sessions_max.",
        "See client_sessions_active.",
        "the configuration",
        FIXED,
    ),
    _gauge(
        "client_connections",
        "Open client connections to this replica.",
        "Against client_connections_limit.",
        "clients that connect",
        LOAD,
    ),
    _gauge(
        "client_connections_limit",
        "Bound of client_connections: limits.connections_max, or what the limit of descriptors leaves.",
        "See client_connections.",
        "the configuration",
        FIXED,
    ),
    _gauge(
        "repair_budget_available",
        "Repair requests that may still be sent.",
        "0 for long: repair is slower than damage or loss.",
        "REPAIR_REQUESTED",
        REPAIRS,
    ),
    _gauge(
        "repair_inflight_count",
        "Repair requests that are not answered.",
        "See repair_budget_available.",
        "REPAIR_REQUESTED",
        REPAIRS,
        base_name="repair_inflight",
    ),
    _gauge(
        "repair_ewma_latency",
        "Average time of a peer's answers to repair requests, recent ones weighing more; 0 before the first.",
        "Repair asks the quickest peer: why one is asked and not another.",
        "REPAIRED, REPAIR_EXPIRED",
        REPAIRS,
        Unit.LATENCY,
        labels=(PEER,),
    ),
)

RESOURCES = (
    _gauge(
        "resident_memory",
        "Resident memory of the replica process.",
        "Constant under constant load; steady growth is a leak.",
        "the process running",
        FIXED,
        Unit.BYTES,
        source=Source.PROCESS,
        essential=True,
    ),
    _gauge(
        "open_files",
        "Open file descriptors of the replica process.",
        "Connections and segments. Against open_files_limit.",
        "the process running",
        FIXED,
        source=Source.PROCESS,
    ),
    _gauge(
        "open_files_limit",
        "Most file descriptors that the replica process may open.",
        "See open_files.",
        "the process running",
        FIXED,
        source=Source.PROCESS,
    ),
    _gauge(
        "telemetry_resident_memory",
        "Resident memory of the telemetry process.",
        "Constant: a few tens of MiB.",
        "the process running",
        FIXED,
        Unit.BYTES,
        source=Source.PROCESS,
    ),
    _gauge(
        "start_time",
        "When the replica started, seconds since 1970.",
        "changes() counts restarts.",
        "a start",
        FIXED,
        Unit.SECONDS,
        source=Source.INFO,
        essential=True,
    ),
    _gauge(
        "build_info",
        "1; the labels are version, release of the protocol, version of Python and checksum kernel.",
        "count by (version): more than one during an upgrade only.",
        "a start",
        FIXED,
        source=Source.INFO,
        labels=tuple(Label(name) for name in BUILD_LABELS),
        essential=True,
    ),
    _gauge(
        "config_info",
        "1; the labels are the settings that matter when replicas behave differently.",
        "count by (...) of any label: replicas of a cluster should agree.",
        "a start",
        FIXED,
        source=Source.INFO,
        labels=tuple(Label(name) for name in CONFIG_LABELS),
    ),
)

METRICS: tuple[Metric, ...] = (*LATENCIES, *COUNTERS, *HEALTH, *PHASES, *RESOURCES)
BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
INFO_NAMES = ("build_info", "config_info")


def cell_name(metric: Metric, values: tuple[str, ...]) -> str:
    """Name of a series in the shared memory."""
    if not values:
        return metric.name
    pairs = zip((label.name for label in metric.labels), values, strict=True)
    return metric.name + "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"


def layout(replica_count: int) -> tuple[Series, ...]:
    """The series of a replica's shared memory, in order."""
    return tuple(
        Series(
            cell_name(metric, values),
            metric.kind,
            floating=metric.floating,
            bounds_ns=metric.bounds_ns,
        )
        for metric in METRICS
        if metric.has_cells
        for values in metric.label_values(replica_count)
    )


def series_count(replica_count: int) -> int:
    """Samples that /metrics of one replica holds, whatever happens. Raises ValueError outside of 1..6."""
    if not 1 <= replica_count <= REPLICAS_MAX:
        raise ValueError(f"a cluster has from 1 to {REPLICAS_MAX} replicas, not {replica_count}")
    return sum(1 if metric.name in INFO_NAMES else metric.series_count(replica_count) for metric in METRICS)
