"""Every key of node.toml, in its section: default, unit, bounds, what it is for, what goes wrong at both extremes.

May import: types, config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kimberlite.config.addresses import PORT_MAX
from kimberlite.config.knobs import knob, required
from kimberlite.config.sinks import OtlpConfig, StatsdConfig
from kimberlite.types import REPLICAS_MAX

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
SECTOR = 4096


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Who this replica is, and where its peers are. Written by `kimberlite format`."""

    id: str = required(
        str,
        "Identity of the cluster, 32 hexadecimal digits. It is in every frame and in the superblock, so that "
        "replicas and clients of different clusters can never mix.",
        example='"5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"',
    )
    replica: int = required(
        int,
        "Index of this replica in `addresses`. It is in the superblock and cannot change.",
        low=0,
        high=REPLICAS_MAX - 1,
        example="0",
    )
    addresses: tuple[str, ...] = required(
        tuple,
        "Client addresses of all replicas in the order of their index, `host:port`. Their number is the size of the "
        "cluster and cannot change. Host names are resolved again on every connection attempt.",
        example='["10.0.0.1:7100", "10.0.0.2:7100", "10.0.0.3:7100"]',
    )
    peer_port_offset: int = knob(
        1000,
        "Replicas listen for each other on their client port plus this.",
        low=1,
        high=PORT_MAX - 1,
        too_low="Collides with the client port of another replica on the same host.",
        too_high="The peer port is above 65535: refused.",
    )
    bind: str = knob(
        "",
        "Host name or address to listen on; empty means the host of this replica's own address. Use `0.0.0.0`, or "
        "`::` for both families, behind address translation and in containers. An IPv6 address may stand in brackets "
        "and have a zone: `[fe80::1%eth0]`.",
    )


@dataclass(frozen=True, slots=True)
class TimingConfig:
    """Intervals and timeouts. They affect availability and load, never safety."""

    heartbeat_ms: int = knob(
        50,
        "How often an idle primary tells the backups that it is alive, and the commit number.",
        unit="ms",
        low=5,
        high=10_000,
        too_low="Idle clusters use CPU and network for nothing.",
        too_high="Suspicion has to be as slow, so that failover takes longer.",
    )
    commit_linger_ms: int = knob(
        5,
        "How long backups of a log that went idle may wait to hear of the last commit.",
        unit="ms",
        low=1,
        high=10_000,
        too_low="One more message for each commit under light load.",
        too_high="Reads from backups lag by as much.",
    )
    suspect_min_ms: int = knob(
        300,
        "The least silence of the primary before a backup votes to leave its view. The detector adapts upward to "
        "the gaps it observes.",
        unit="ms",
        low=20,
        high=60_000,
        too_low="A busy disk or a long scheduling delay starts needless view changes.",
        too_high="Failover takes as long.",
    )
    suspect_max_ms: int = knob(
        2_000,
        "The most that the failure detector may wait, whatever gaps it has observed.",
        unit="ms",
        low=20,
        high=600_000,
        too_low="The detector cannot adapt to a slow network: view changes go on for ever.",
        too_high="After a bad spell, failover is slow.",
    )
    vote_resend_ms: int = knob(
        100,
        "How often an unanswered vote to leave a view is sent again.",
        unit="ms",
        low=5,
        high=60_000,
        too_low="Many messages in a partition.",
        too_high="One lost vote delays failover by as much.",
    )
    vote_window_ms: int = knob(
        1_500,
        "How long a vote to leave a view counts.",
        unit="ms",
        low=10,
        high=600_000,
        too_low="Votes expire before a quorum has come together: no failover.",
        too_high="Votes of unrelated incidents add up to a needless view change.",
    )
    view_change_ms: int = knob(
        500,
        "A view change that has not finished after this is voted out in favour of the next view, with back-off.",
        unit="ms",
        low=20,
        high=60_000,
        too_low="View changes that would succeed are abandoned.",
        too_high="A dead candidate delays failover by as much.",
    )
    view_change_max_ms: int = knob(
        5_000,
        "Upper bound of that back-off.",
        unit="ms",
        low=20,
        high=600_000,
        too_low="No back-off: candidates compete.",
        too_high="After a long partition the cluster waits as long to try again.",
    )
    do_view_change_resend_ms: int = knob(
        100,
        "How often a do_view_change without answer is sent again.",
        unit="ms",
        low=5,
        high=60_000,
        too_low="Large messages are sent again needlessly.",
        too_high="One lost message delays failover by as much.",
    )
    prepare_resend_ms: int = knob(
        150,
        "How often the primary sends a prepare again to backups that have not acknowledged it.",
        unit="ms",
        low=5,
        high=60_000,
        too_low="A slow disk is buried under repeated prepares.",
        too_high="One lost message delays a commit by as much when only a bare quorum is up.",
    )
    repair_ms: int = knob(
        20,
        "Mean interval between two rounds of repair while something is missing; jittered.",
        unit="ms",
        low=1,
        high=60_000,
        too_low="Repair competes with normal work.",
        too_high="A replica that was away takes long to catch up.",
    )
    repair_expiry_ms: int = knob(
        250,
        "How long a repair request may stay unanswered before another peer is asked.",
        unit="ms",
        low=5,
        high=600_000,
        too_low="The same entry is fetched twice from peers that are only slow.",
        too_high="A dead peer stalls repair by as much.",
    )
    abdicate_ms: int = knob(
        2_000,
        "A primary that could not commit for this long, though it has something to commit, or not execute what the "
        "others have committed, stops leading.",
        unit="ms",
        low=50,
        high=600_000,
        too_low="A short disk stall costs a view change.",
        too_high="A primary with a one-way link or a sick disk blocks the cluster for as long.",
    )
    drain_ms: int = knob(
        2_000,
        "How long a replica that is told to stop may wait for what is under way, and for another one to lead. It does "
        "not wait for what can not happen: alone it ends at once.",
        unit="ms",
        low=0,
        high=600_000,
        too_low="Clients have to find out by themselves what became of requests under way.",
        too_high="A hung disk holds up the end as long; the service manager must wait longer.",
    )


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Bounds of memory and of what clients may ask for. Every queue has one."""

    event_bytes_max: int = knob(
        1 * MIB,
        "The largest event.",
        unit="bytes",
        low=1,
        high=16 * MIB,
        too_low="Clients get EventTooLargeError.",
        too_high="One event delays all others while it is written and sent.",
    )
    request_bytes_max: int = knob(
        2 * MIB,
        "The largest request of a client: its events and their offset table.",
        unit="bytes",
        low=4 * KIB,
        high=32 * MIB,
        too_low="Batches are small, so that throughput is that of single requests.",
        too_high="Memory: queue and pipeline hold that much for each request.",
    )
    events_per_request_max: int = knob(
        65_536,
        "The most events in one request.",
        unit="events",
        low=1,
        high=1_048_576,
        too_low="As with request_bytes_max.",
        too_high="Validating and indexing one request takes milliseconds.",
    )
    prepare_bytes_max: int = knob(
        1 * MIB,
        "Requests that wait are combined into one prepare up to this size. A larger single request travels alone.",
        unit="bytes",
        low=4 * KIB,
        high=32 * MIB,
        too_low="One journal write serves few requests.",
        too_high="Latency under load: a prepare is acknowledged as a whole.",
    )
    prepare_requests_max: int = knob(
        512,
        "The most requests combined into one prepare.",
        unit="requests",
        low=1,
        high=4_096,
        too_low="One journal write serves few requests.",
        too_high="Latency under load, as with prepare_bytes_max.",
    )
    pipeline_max: int = knob(
        8,
        "The most prepares that may be uncommitted at a time.",
        unit="prepares",
        low=1,
        high=32,
        too_low="Disk and network wait for each other.",
        too_high="View changes carry more, and small prepares do not combine.",
    )
    backlog_bytes: int = knob(
        0,
        "The most bytes of entries that may wait for the disk of this replica, or to be executed: above that a primary "
        "prepares no more, and a backup leaves what comes, to be fetched later. 0: twice what a full pipeline of the "
        "largest entries takes.",
        unit="bytes",
        low=0,
        high=64 * GIB,
        too_low="A disk that is slow for a moment holds clients up, or has entries fetched again.",
        too_high="Memory, on a replica whose disk is slow or hangs.",
    )
    queue_max: int = knob(
        1_024,
        "The most requests that may wait for a place in the pipeline; above that clients are told to come back.",
        unit="requests",
        low=1,
        high=65_536,
        too_low="Bursts are rejected.",
        too_high="Requests wait so long that their clients have given up.",
    )
    queue_bytes_max: int = knob(
        64 * MIB,
        "The most bytes that may wait for a place in the pipeline.",
        unit="bytes",
        low=1 * MIB,
        high=4 * GIB,
        too_low="Bursts of large batches are rejected.",
        too_high="Memory.",
    )
    sessions_max: int = knob(
        1_024,
        "The most client sessions the cluster remembers. The least recently used one is evicted for a new one. Must "
        "be the same on every replica.",
        unit="sessions",
        low=1,
        high=65_536,
        too_low="Active clients are evicted and get SessionEvictedError.",
        too_high="Memory: a reply is kept for each.",
    )
    frame_bytes_max: int = knob(
        4 * MIB,
        "The largest frame that is accepted from a client or a peer.",
        unit="bytes",
        low=64 * KIB,
        high=64 * MIB,
        too_low="Requests do not fit: refused at start.",
        too_high="Memory for each connection.",
    )
    connections_max: int = knob(
        4_096,
        "The most client connections at a time, as far as there are descriptors for them: what storage and peers need "
        "is set aside first. Above that, who appends or reads takes the place of the connection that has been idle "
        "longest; others are told to come back later, and the status is answered all the same.",
        unit="connections",
        low=1,
        high=65_536,
        too_low="Clients are turned away.",
        too_high="File descriptors and memory.",
    )
    connection_bytes_max: int = knob(
        256 * MIB,
        "What all connections together may hold in receive buffers and in answers that were not taken yet. Above that, "
        "the client connection that holds most is ended.",
        unit="bytes",
        low=16 * MIB,
        high=64 * GIB,
        too_low="Clients that send or read large batches are disconnected.",
        too_high="Memory, while clients are slow or hostile.",
    )
    frame_ms: int = knob(
        30_000,
        "How long a client may take for a frame that it has begun to send.",
        unit="ms",
        low=1_000,
        high=3_600_000,
        too_low="Large batches over slow links are cut off.",
        too_high="Who sends a byte now and then holds a connection and its buffer.",
    )
    reply_ms: int = knob(
        30_000,
        "How long a client may take to receive what it was sent.",
        unit="ms",
        low=1_000,
        high=3_600_000,
        too_low="Large answers over slow links are cut off.",
        too_high="Who asks and does not read holds the answer in memory.",
    )
    repairs_max: int = knob(
        256,
        "The most repair requests in flight in all.",
        unit="requests",
        low=1,
        high=4096,
        too_low="Catching up is slow.",
        too_high="Repair competes with normal work.",
    )
    repairs_per_peer_max: int = knob(
        128,
        "The most repair requests in flight to one peer; fewer while it does not answer in time.",
        unit="requests",
        low=1,
        high=4096,
        too_low="Catching up is slow.",
        too_high="A peer's disk is kept busy with repair.",
    )


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """The data directory."""

    segment_bytes: int = knob(
        64 * MIB,
        "Size of a journal segment. Fixed when the data is formatted.",
        unit="bytes",
        low=8 * MIB,
        high=4 * GIB,
        multiple_of=SECTOR,
        too_low="Many files; a large request may not fit: refused at format.",
        too_high="Disk space is taken in steps of this size.",
    )
    mode: str = knob(
        "auto",
        "How the journal is written. `direct`: O_DIRECT and O_DSYNC, an error is reported by the very write. "
        "`buffered`: page cache and fdatasync, weaker. `auto`: direct where the file system can.",
        choices=("auto", "direct", "buffered"),
    )
    ring: bool = knob(
        True,
        "Acknowledge small appends after one write, which puts two copies next to each other into the file `ring`; the "
        "journal has them a moment later. Otherwise after two: journal, then witness. A fault that takes both copies, "
        "together with a crash in that moment, takes the last of what this replica has acknowledged. Data without a "
        "ring gets one when it is opened; data that is not of a cluster with identities yet gets none, whatever this "
        "says. What a ring has counts also where this is false.",
    )
    unsafe: bool = knob(
        False,
        "Accept a file system that cannot make a write durable (tmpfs, overlay). For tests only: an acknowledgement "
        "then promises nothing.",
    )
    free_bytes_min: int = knob(
        256 * MIB,
        "What should stay free in the file system. Below it this replica counts as full: appends are refused "
        "(NoSpaceError) when it leads, or when too few others have room. Reads go on, it goes on writing what is "
        "appended meanwhile, and is itself again when a quarter more is free. Checkpoints, and with them trimming, "
        "need some of it. 0 switches this off; the space for the next segment is reserved ahead in any case.",
        unit="bytes",
        low=0,
        high=1 << 50,
        too_low="No space for a checkpoint, without which nothing can be trimmed.",
        too_high="Space that is never used.",
    )
    inline_threshold_us: int = knob(
        400,
        "While journal writes take less than this they are made in the event loop; above it on the disk thread.",
        unit="us",
        low=0,
        high=1_000_000,
        too_low="Always the disk thread: two context switches for each write.",
        too_high="Heartbeats wait for a slow disk, and healthy primaries are suspected.",
    )


@dataclass(frozen=True, slots=True)
class ScrubConfig:
    """Reading everything on the disk again and again, so that damage is found and repaired while the other
    replicas still have good copies. Affects load, never safety."""

    bytes_per_s: int = knob(
        1 * MIB,
        "How much is read on average. A tour over 100 GiB takes 28 hours at 1 MiB/s. 0 turns it off: damage is then "
        "found when something reads it, or at a restart.",
        unit="bytes/s",
        low=0,
        high=64 * MIB,
        too_low="Damage is found late, when a second replica may have lost the same entry.",
        too_high="Commits share the disk with what is read, and the event loop with what is looked at.",
    )
    tour_interval_s: int = knob(
        3600,
        "Time from the begin of a tour over everything to the begin of the next, at least. A large disk takes longer; "
        "a small one is left alone in between.",
        unit="s",
        low=0,
        high=90 * 24 * 3600,
        too_low="A small log is read many times a second, for nothing.",
        too_high="Damage of a small log is found late.",
    )


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """How often the state is written down, so that a restart need not execute the log from its beginning.
    The same on every replica of a cluster: then all make the same checkpoints."""

    ops: int = knob(
        4096,
        "A checkpoint is due at every multiple of so many operations. One that comes due while another is written is "
        "left out.",
        unit="operations",
        low=16,
        high=10_000_000,
        too_low="The state is written again and again; with a large state the disk does little else.",
        too_high="A restart executes many operations before it answers.",
    )
    bytes: int = knob(
        64 * MIB,
        "A checkpoint is also due when so many bytes of journal entries were executed since one was due.",
        unit="bytes",
        low=64 * KIB,
        high=1 << 40,
        too_low="As for checkpoint.ops.",
        too_high="A restart verifies and executes much before it answers.",
    )


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """What of the log may be given up. By default nothing is. The primary's settings count: it has whole
    journal segments of its own trimmed, by an operation in the log, once every replica has a checkpoint that
    no longer needs them."""

    bytes_max: int = knob(
        0,
        "Trim the oldest segment when the log after it has this size at least. 0 keeps everything.",
        unit="bytes",
        low=0,
        high=1 << 60,
        too_low="Readers that lag find their position trimmed.",
        too_high="The disk fills, and appends are refused.",
    )
    age_max_s: int = knob(
        0,
        "Trim the oldest segment when all its events are older than this, by the clock of the primary and by the last "
        "timestamp of the log: nothing goes while nothing is appended, nor after a jump of that clock. 0 keeps "
        "everything.",
        unit="s",
        low=0,
        high=1 << 32,
        too_low="As for retention.bytes_max.",
        too_high="As for retention.bytes_max.",
    )


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """Metrics and health, served by a process of their own."""

    enabled: bool = knob(True, "Serve metrics and health. Recording goes on either way.")
    record: bool = knob(
        True,
        "Count and time what the replica does. `false`: no clock is read and nothing is written for telemetry, and "
        "nothing is served either, neither metrics nor health; the log and `kimberlite status` stay.",
    )
    listen: str = knob(
        "127.0.0.1:9471",
        "Address of /metrics, /livez and /readyz. Port 0: any free one, which is then in the log.",
    )
    units: str = knob(
        "ms",
        "`ms`: latencies in milliseconds (vsr_prepare_latency_ms). `base`: base units as Prometheus recommends "
        "(vsr_prepare_latency_seconds).",
        choices=("ms", "base"),
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What a replica tells on standard error: see docs/logs.md. It never waits for whoever reads that."""

    level: str = knob(
        "info",
        "The least that is told. `info`: the ordinary life of a cluster too. `warning`: what says that something may "
        "be sick. `error`: what a person has to look at.",
        choices=("info", "warning", "error"),
    )
    format: str = knob(
        "auto",
        "`json`: an object a line. `pretty`: sentences. `auto`: sentences on a terminal, JSON elsewhere.",
        choices=("auto", "json", "pretty"),
    )
    destination: str = knob(
        "stderr",
        "`stderr`: standard error. `none`: nowhere; the error that ends a process is on standard error all the same.",
        choices=("stderr", "none"),
    )
    slow_ms: int = knob(
        1_000,
        "A request that the primary answers later than this is a line, with its stages; so is a write to the journal "
        "that takes a backup longer. 0 switches this off; so does telemetry.record = false.",
        unit="ms",
        low=0,
        high=3_600_000,
        too_low="Ordinary operations fill the log, up to what it takes in a minute.",
        too_high="A disk that hangs now and then is not in the log.",
    )


Section = (
    ClusterConfig
    | TimingConfig
    | LimitsConfig
    | StorageConfig
    | ScrubConfig
    | CheckpointConfig
    | RetentionConfig
    | TelemetryConfig
    | OtlpConfig
    | StatsdConfig
    | LogConfig
)
SECTION_TYPES: Mapping[str, type[Section]] = {
    "cluster": ClusterConfig,
    "timing": TimingConfig,
    "limits": LimitsConfig,
    "storage": StorageConfig,
    "scrub": ScrubConfig,
    "checkpoint": CheckpointConfig,
    "retention": RetentionConfig,
    "telemetry": TelemetryConfig,
    "telemetry.otlp": OtlpConfig,
    "telemetry.statsd": StatsdConfig,
    "log": LogConfig,
}
