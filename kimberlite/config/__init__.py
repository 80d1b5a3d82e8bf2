"""Configuration of one replica: a tree of frozen dataclasses, read from `node.toml`.

Every knob is declared once, with `knob(...)`: default, unit, bounds, what it is for and
what goes wrong at both extremes. Loading, checking, writing and the reference page
(docs/configuration.md) all derive from that declaration.

A value that does not fit raises ConfigError, which names the key, the value and what
is allowed; nothing is ever replaced by a default in silence. An unknown key is an
error too, because a misspelt limit that is ignored is a limit that is not there.

May import: errors, types.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TypeVar, cast

from kimberlite.errors import ConfigError, DataMissingError
from kimberlite.types import HEADER_SIZE, REPLICAS_MAX, ZERO16, ClusterId

# For programs that embed a replica. What else is here belongs to Kimberlite itself.
__all__ = [
    "CONFIG_NAME",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "LimitsConfig",
    "RetentionConfig",
    "ScrubConfig",
    "StorageConfig",
    "TelemetryConfig",
    "TimingConfig",
    "from_mapping",
    "load",
    "parse",
]

CONFIG_NAME = "node.toml"  # in the data directory of a replica
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
SECTOR = 4096
PORT_MAX = 65535
REQUEST_OVERHEAD_BYTES = 64 * KIB  # room in a frame for its header and the table of requests

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Knob:
    """What is known of one key besides its name and default.

    unit: of the value, empty for a name or a switch. low, high: inclusive bounds of
    an integer. choices: the allowed words. help: what it does. too_low, too_high: what
    goes wrong towards either extreme. example: shown for keys without a default.
    """

    help: str
    unit: str = ""
    low: int | None = None
    high: int | None = None
    choices: tuple[str, ...] = ()
    too_low: str = ""
    too_high: str = ""
    multiple_of: int = 1
    example: str = ""


def knob(default: T, help: str, **details: object) -> T:
    """Declare a key with a default. Typed as its default so that dataclasses read naturally."""
    metadata = {"knob": Knob(help, **details)}  # type: ignore[arg-type]
    return field(default=default, metadata=metadata)


def required(kind: type[T], help: str, **details: object) -> T:
    """Declare a key that must be given."""
    return cast(T, field(metadata={"knob": Knob(help, **details)}))  # type: ignore[arg-type]


def parse_address(text: str, port_min: int = 1) -> tuple[str, int]:
    """Split `host:port` or `[ipv6]:port`. Raises ConfigError naming what is wrong."""
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ConfigError(f"address {text!r} is not host:port", address=text)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(f"address {text!r}: {host!r} is no IPv6 address", address=text) from None
    elif ":" in host:
        raise ConfigError(f"address {text!r}: write an IPv6 address in brackets, [::1]:7100", address=text)
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) < 10
    if not is_number or not port_min <= int(port_text) <= PORT_MAX:
        raise ConfigError(f"address {text!r}: the port must be a number from {port_min} to {PORT_MAX}", address=text)
    return host, int(port_text)


def parse_host(text: str) -> str:
    """A host name or address alone; the brackets of an IPv6 address may be there. Raises ConfigError."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host or host != text:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(f"{text!r} is no host name and no address; it has no port", address=text) from None
    return host


def parse_addresses(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of addresses, checking each.

    `host:7100,7101,7102` is short for the same host with several ports.
    """
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            raise ConfigError(f"addresses {text!r}: there is an empty one in the list", addresses=text)
        if part.isdigit() and found:
            part = f"{found[-1].rpartition(':')[0]}:{part}"
        parse_address(part)
        found.append(part)
    return tuple(found)


def parse_cluster_id(text: str) -> ClusterId:
    """16 bytes from 32 hexadecimal digits; the dashes of a UUID are allowed."""
    try:
        cluster = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        cluster = b""
    if len(cluster) != 16 or cluster == ZERO16:
        raise ConfigError(
            f"cluster id {text!r} must be 32 hexadecimal digits, not all zero; a UUID (uuidgen) will do", cluster=text
        )
    return cluster


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
        too_high="Reads are made between other work: commits wait for them, and a busy disk is slower still.",
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
class Config:
    """Everything one replica is told. Construct through `load` or `from_mapping`, or
    directly when embedding; the constructor checks what concerns several keys."""

    cluster: ClusterConfig
    timing: TimingConfig = field(default_factory=TimingConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    scrub: ScrubConfig = field(default_factory=ScrubConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    def __post_init__(self) -> None:
        for section_name, section in self.sections():
            for key, item in knobs_of(type(section)):
                check_value(f"{section_name}.{key}", getattr(section, key), kind_of(type(section), key), item)
        for rule in RULES:
            rule(self)

    def sections(self) -> Iterator[tuple[str, Section]]:
        for item in fields(self):
            yield item.name, getattr(self, item.name)

    @property
    def cluster_id(self) -> ClusterId:
        return parse_cluster_id(self.cluster.id)

    @property
    def replica_count(self) -> int:
        return len(self.cluster.addresses)

    @property
    def client_address(self) -> tuple[str, int]:
        """Host and port on which this replica listens for clients."""
        host, port = parse_address(self.cluster.addresses[self.cluster.replica])
        return parse_host(self.cluster.bind) or host, port

    @property
    def peer_address(self) -> tuple[str, int]:
        """Host and port on which this replica listens for peers."""
        host, port = self.client_address
        return host, port + self.cluster.peer_port_offset

    @property
    def telemetry_address(self) -> tuple[str, int]:
        """Host and port of /metrics, /livez and /readyz; port 0 stands for any free one."""
        return parse_address(self.telemetry.listen, port_min=0)

    @property
    def peer_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where every replica, this one included, can be reached by its peers."""
        pairs = (parse_address(address) for address in self.cluster.addresses)
        return tuple((host, port + self.cluster.peer_port_offset) for host, port in pairs)

    def to_toml(self) -> str:
        """The text of a node.toml: what has no default, and what differs from it."""
        lines = ["# One replica of a Kimberlite cluster. All keys: docs/configuration.md"]
        for name, section in self.sections():
            values = [
                f"{item.name} = {toml_value(getattr(section, item.name))}"
                for item in fields(section)
                if getattr(section, item.name) != item.default
            ]
            if values:
                lines += ["", f"[{name}]", *values]
        return "\n".join(lines) + "\n"


Section = (
    ClusterConfig
    | TimingConfig
    | LimitsConfig
    | StorageConfig
    | ScrubConfig
    | CheckpointConfig
    | RetentionConfig
    | TelemetryConfig
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
}


def knobs_of(section: type[Section]) -> list[tuple[str, Knob]]:
    """The keys of a section in their order of declaration."""
    return [(item.name, item.metadata["knob"]) for item in fields(section)]


def kind_of(section: type[Section], key: str) -> str:
    """`int`, `str`, `bool` or `list`: the TOML type of a key."""
    item: Field[object] = next(item for item in fields(section) if item.name == key)
    return "list" if str(item.type).startswith("tuple") else str(item.type)


KIND_WORDS = {"int": "a whole number", "str": "a string", "bool": "true or false", "list": "a list of strings"}


def check_value(key: str, value: object, kind: str, knob: Knob) -> None:
    """Raise ConfigError unless `value` has the type and is within the bounds of the key."""

    def refuse(wanted: str) -> ConfigError:
        shown = f"{knob.unit} " if knob.unit and isinstance(value, int) else ""
        return ConfigError(f"{key} is {value!r} {shown}but must be {wanted}".replace("  ", " "), key=key, value=value)

    right = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
        "list": isinstance(value, tuple) and all(isinstance(item, str) for item in value),
    }[kind]
    if not right:
        raise refuse(KIND_WORDS[kind])
    if knob.choices and value not in knob.choices:
        raise refuse("one of " + ", ".join(knob.choices))
    if isinstance(value, int) and not isinstance(value, bool):
        if (knob.low is not None and value < knob.low) or (knob.high is not None and value > knob.high):
            raise refuse(f"from {knob.low} to {knob.high}")
        if value % knob.multiple_of:
            raise refuse(f"a multiple of {knob.multiple_of}")


def _check_cluster(config: Config) -> None:
    cluster = config.cluster
    parse_cluster_id(cluster.id)
    count = len(cluster.addresses)
    if not 1 <= count <= REPLICAS_MAX:
        raise ConfigError(
            f"cluster.addresses has {count} addresses; a cluster has from 1 to {REPLICAS_MAX} replicas",
            key="cluster.addresses",
            value=cluster.addresses,
        )
    if cluster.replica >= count:
        raise ConfigError(
            f"cluster.replica is {cluster.replica}, but cluster.addresses has {count} addresses, "
            f"so that the last replica is {count - 1}",
            key="cluster.replica",
            value=cluster.replica,
        )
    seen: dict[tuple[str, int], str] = {}
    for address in cluster.addresses:
        host, port = parse_address(address)
        for what, number in (("client", port), ("peer", port + cluster.peer_port_offset)):
            if number > PORT_MAX:
                raise ConfigError(
                    f"the peer port of {address} would be {number}: lower the port or cluster.peer_port_offset",
                    key="cluster.peer_port_offset",
                    value=cluster.peer_port_offset,
                )
            other = seen.setdefault((host, number), f"the {what} port of {address}")
            if other != f"the {what} port of {address}" or cluster.addresses.count(address) > 1:
                raise ConfigError(
                    f"cluster.addresses: {host}:{number} is both {other} and the {what} port of {address}",
                    key="cluster.addresses",
                    value=cluster.addresses,
                )


def _check_bind(config: Config) -> None:
    try:
        parse_host(config.cluster.bind)
    except ConfigError as error:
        raise ConfigError(f"cluster.bind: {error}", key="cluster.bind", value=config.cluster.bind) from None


def _check_telemetry(config: Config) -> None:
    try:
        host, port = config.telemetry_address
    except ConfigError as error:
        raise ConfigError(f"telemetry.listen: {error}", key="telemetry.listen", value=config.telemetry.listen) from None
    own = parse_address(config.cluster.addresses[config.cluster.replica])
    for what, (other, taken) in (
        ("client", own),
        ("peer", (own[0], own[1] + config.cluster.peer_port_offset)),
    ):
        if (host, port) == (other, taken):
            raise ConfigError(
                f"telemetry.listen is {host}:{port}, which is this replica's {what} address",
                key="telemetry.listen",
                value=config.telemetry.listen,
            )


def _ordered(low_key: str, high_key: str, factor: int = 1, extra: int = 0) -> Callable[[Config], None]:
    """A rule: factor * low_key + extra <= high_key."""

    def value(config: Config, key: str) -> int:
        section, _, name = key.partition(".")
        return cast(int, getattr(getattr(config, section), name))

    def rule(config: Config) -> None:
        low, high = value(config, low_key), value(config, high_key)
        least = factor * low + extra
        if least > high:
            times = f"{factor} times " if factor > 1 else ""
            more = f" plus {extra} bytes of overhead" if extra else ""
            raise ConfigError(
                f"{high_key} is {high} but must be at least {least}: {times}{low_key}, {low},{more}".rstrip(","),
                key=high_key,
                value=high,
            )

    return rule


# What concerns several keys. Bounds of single keys are with their declarations.
RULES: tuple[Callable[[Config], None], ...] = (
    _check_cluster,
    _check_bind,
    _check_telemetry,
    _ordered("timing.heartbeat_ms", "timing.suspect_min_ms", factor=2),
    _ordered("timing.suspect_min_ms", "timing.suspect_max_ms"),
    _ordered("timing.vote_resend_ms", "timing.vote_window_ms", factor=2),
    _ordered("timing.view_change_ms", "timing.view_change_max_ms"),
    _ordered("limits.event_bytes_max", "limits.request_bytes_max", extra=HEADER_SIZE),
    _ordered("limits.request_bytes_max", "limits.frame_bytes_max", extra=REQUEST_OVERHEAD_BYTES),
    _ordered("limits.prepare_bytes_max", "limits.frame_bytes_max", extra=REQUEST_OVERHEAD_BYTES),
    _ordered("limits.request_bytes_max", "limits.queue_bytes_max"),
    _ordered("limits.frame_bytes_max", "limits.connection_bytes_max", factor=4),
    _ordered("limits.repairs_per_peer_max", "limits.repairs_max"),
    _ordered("limits.frame_bytes_max", "storage.segment_bytes", extra=2 * SECTOR),
)


def from_mapping(document: Mapping[str, object], source: str = "configuration") -> Config:
    """A Config from nested mappings, as a TOML parser gives them. Raises ConfigError."""
    try:
        _refuse_unknown(document, SECTION_TYPES, "section")
        built: dict[str, Section] = {}
        for name, section_type in SECTION_TYPES.items():
            values = document.get(name, {})
            if not isinstance(values, Mapping):
                raise ConfigError(f"{name} is {values!r} but must be a section: [{name}]", key=name, value=values)
            built[name] = _section(name, section_type, values)
        return Config(**built)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}", **error.details) from None


def _section(name: str, section_type: type[Section], values: Mapping[str, object]) -> Section:
    known = dict(knobs_of(section_type))
    _refuse_unknown(values, {f"{name}.{key}" for key in known}, "key", prefix=f"{name}.")
    given: dict[str, object] = {}
    for key, value in values.items():
        given[key] = tuple(value) if isinstance(value, list) else value
        check_value(f"{name}.{key}", given[key], kind_of(section_type, key), known[key])
    missing = [item.name for item in fields(section_type) if item.name not in given and not has_default(item)]
    if missing:
        raise ConfigError(
            f"{name}.{missing[0]} is missing; for example {missing[0]} = {known[missing[0]].example}",
            key=f"{name}.{missing[0]}",
        )
    return section_type(**given)  # type: ignore[arg-type]


def has_default(item: Field[object]) -> bool:
    return item.default is not MISSING


def _refuse_unknown(
    given: Mapping[str, object], known: Mapping[str, object] | set[str], what: str, prefix: str = ""
) -> None:
    for key in given:
        name = f"{prefix}{key}"
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(sorted(known))}"
            raise ConfigError(f"unknown {what} {name}{hint}", key=name, nearest=near[0] if near else None)


def parse(text: str, source: str = "configuration", overrides: tuple[str, ...] = ()) -> Config:
    """A Config from TOML text. `overrides` are `section.key=value` items that win over it."""
    try:
        document: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is no valid TOML: {error}", source=source) from None
    for override in overrides:
        apply_override(document, override)
    return from_mapping(document, source)


def load(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a node.toml. DataMissingError when there is no such file, ConfigError when it is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataMissingError(
            f"{path} does not exist; create a replica with `kimberlite format`", path=str(path)
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}", source=str(path)) from None
    return parse(text, str(path), overrides)


def new_replica(cluster: str, replica: int, addresses: Sequence[str], settings: Sequence[str], source: str) -> Config:
    """The configuration of a replica that is being made: who it is, and `section.key=value` items.

    Raises ConfigError.
    """
    document: dict[str, object] = {
        "cluster": {"id": parse_cluster_id(cluster).hex(), "replica": replica, "addresses": list(addresses)}
    }
    for setting in settings:
        apply_override(document, setting)
    return from_mapping(document, source)


def apply_override(document: dict[str, object], override: str) -> None:
    """Put `section.key=value` into a document. The value is TOML; a bare word is a string."""
    name, equals, value_text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{override!r} is not section.key=value", value=override)
    try:
        value = tomllib.loads(f"value = {value_text}")["value"]
    except tomllib.TOMLDecodeError:
        value = value_text.strip()
    values = document.setdefault(section, {})
    if isinstance(values, dict):
        values[key] = value


def toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    # A JSON string is a TOML string but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
