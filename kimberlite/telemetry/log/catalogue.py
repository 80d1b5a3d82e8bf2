"""The catalogue of the log's lines: a row for each id, with its level, its fields, what it means and what to do.

Lines of events of the core have the id of their kind, in small letters, and level, fields and sentence of its row in
vsr.events.TABLE; what else a node tells has a row here. LINES is all of them, and docs/logs.md is made of it. A line
says nothing that is not a field of its row: there is no place for what clients append.

May import: vsr.events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kimberlite.vsr.events import TABLE, EventKind, Field, Level

LINES_MAX = 10  # of one id in a period
ROUTINE_MAX = 2  # of one that comes again and again while all is well
UNKNOWN_NS = -1


class Line(NamedTuple):
    """sentence: with the names of the fields as placeholders; its subject is the replica. todo: for the person who
    reads it. lines_max: in a period, the rest is counted."""

    id: str
    level: Level
    fields: tuple[Field, ...]
    sentence: str
    meaning: str
    todo: str
    lines_max: int = LINES_MAX


NOTHING = "Nothing."
REASON = Field("reason", "why")

# What the rows of vsr.events do not say: what it means to whoever runs the cluster, and what to do.
OF_EVENTS: Mapping[EventKind, tuple[str, str]] = {
    EventKind.ABANDONED: (
        "A primary ceased to lead while ops had no quorum. The next primary decides on them; clients repeat what was "
        "not answered, and nothing is executed twice.",
        "Nothing for one. Again and again: look for the cause in `view_change_started`.",
    ),
    EventKind.VIEW_CHANGE_STARTED: (
        "A quorum found that the primary of this view does not lead it, or a peer is in a later view.",
        "Look at the replica that led. Often, with all processes up: a slow disk, a busy machine or a bad network; "
        "see `suspected` and timing.suspect_min_ms.",
    ),
    EventKind.VIEW_CHANGED: (
        "The view has begun for this replica: from now on it leads or follows. The duration is how long it took no "
        "part.",
        NOTHING,
    ),
    EventKind.PRIMARY: ("Who leads has changed here.", NOTHING),
    EventKind.SUFFIX_DROPPED: (
        "Ops at the end of a log were certainly never acknowledged, and the new primary goes on without them.",
        "Nothing: no acknowledged event is among them.",
    ),
    EventKind.REPAIRED: (
        "An entry that was missing or damaged came from a peer. After an absence there are many, of which few are "
        "told.",
        NOTHING,
    ),
    EventKind.FAULTY: (
        "Bytes on this disk are not those that were written.",
        "Look at the health of the disk (`smartctl`, the kernel's log); run `kimberlite verify`; replace the disk when "
        "that comes again.",
    ),
    EventKind.SESSION_EVICTED: (
        "A client's session gave way to a newer one. A client that comes back gets an error when it can not know what "
        "became of its last append.",
        "Raise limits.sessions_max when clients that are active are meant, or have clients keep their connection.",
    ),
    EventKind.ABDICATED: (
        "A primary found that another one would serve clients better.",
        "`drained` comes with every orderly stop. `lagging` and `abdicated`: look at the disk of this replica and its "
        "network.",
    ),
    EventKind.RECOVERED: ("What the disk held is read, and executed as far as it is committed.", NOTHING),
    EventKind.STUCK: (
        "Nothing can be committed: an op that may have been acknowledged is on no disk that answers.",
        "Bring back the replicas that are missing, with their data. Do not format one anew.",
    ),
    EventKind.CHECKPOINTED: ("A restart begins from there.", NOTHING),
    EventKind.TRIMMED: ("Old events were given up, as retention.* has it.", NOTHING),
    EventKind.IDENTITY_CONFLICT: (
        "Two replicas have different entries under one number, or somebody forges frames.",
        "Stop, keep the data of all replicas, compare them with `kimberlite verify`, and report it.",
    ),
    EventKind.FORFEITED: (
        "The replica whose turn it is can not lead for now: it is behind, or its disk is full.",
        "Look at its disk when that comes again.",
    ),
    EventKind.BIRTH: ("A new cluster, or one of the first release, becomes one with identities.", NOTHING),
    EventKind.LIFE_BEGUN: ("Another replica's process has started.", NOTHING),
    EventKind.REFUSED_BY: (
        "A peer does not count this replica: its data is not that of the member that the peer knows.",
        "See docs/cluster.md: put the right disk back, or replace the replica as is said there.",
    ),
    EventKind.SUSPECTED: (
        "One replica wants another primary. Alone it changes nothing; a quorum that finds the same leaves the view.",
        "Look at the primary of that view. Again and again, with no `view_change_started`: look at the network between "
        "this replica and the primary.",
    ),
}

OF_NODES = (
    Line(
        "started",
        Level.INFO,
        (
            Field("version", "of Kimberlite"),
            Field("pid", "of its process"),
            Field("replica_count", "members of the cluster"),
            Field("data", "its directory"),
            Field("clients", "where it listens for clients"),
            Field("telemetry", "where its metrics are; empty: nowhere"),
            Field("opening_ns", "since the data began to be read"),
        ),
        "runs version {version} as process {pid}, one of {replica_count}, on {data}, clients at {clients}, metrics at "
        "{telemetry}; it took {opening_ns} to open the data",
        "The process is there and listens. It takes part from `recovered` or `view_changed` on.",
        NOTHING,
    ),
    Line(
        "stopping",
        Level.INFO,
        (Field("drain_ms", "what it has for that: timing.drain_ms"),),
        "was told to stop: it ends what is under way and hands over, within {drain_ms} ms",
        "SIGTERM or SIGINT came.",
        NOTHING,
    ),
    Line(
        "stopped",
        Level.INFO,
        (Field("how", "`in order`, or `as in a crash`: the disk did not complete what it had been given"),),
        "has stopped, {how}",
        "The last line of an orderly end. A process that ends without it crashed or was killed.",
        "`as in a crash`: look at the disk. The data is as safe as after a crash.",
    ),
    Line(
        "failed",
        Level.ERROR,
        (
            Field("error", "its kind: see docs/exit-codes.md"),
            Field("exit_code", "with which the process ends"),
            REASON,
        ),
        "can not go on ({error}, exit code {exit_code}): {reason}",
        "The replica ends at once and sends nothing more. The process says the error once more, as text, in the last "
        "line of all.",
        "See docs/exit-codes.md. A supervisor starts it again; its data is safe.",
    ),
    Line(
        "settings_differ",
        Level.WARNING,
        (Field("difference", "which setting, and what counts"),),
        "does not use a setting of its node.toml: {difference}",
        "What must be equal on all replicas is in the record of the cluster.",
        "Correct node.toml.",
    ),
    Line(
        "connections_capped",
        Level.WARNING,
        (REASON,),
        "takes fewer connections than it was told: {reason}",
        "The system allows too few descriptors for limits.connections_max.",
        "Raise the hard limit: LimitNOFILE= of systemd, `ulimit -Hn`.",
    ),
    Line(
        "telemetry_failed",
        Level.WARNING,
        (REASON,),
        "serves no metrics for now: {reason}",
        "The process that serves metrics ended, or does not start; it is tried again with growing pauses. The replica "
        "does not notice.",
        "Look for what killed it: memory, most often.",
    ),
    Line(
        "peer_refused",
        Level.ERROR,
        (Field("peer", "index of the other replica"), REASON),
        "can not use replica {peer}: {reason}",
        "The process at the address of that replica is another one.",
        "Correct cluster.addresses, here or there.",
    ),
    Line(
        "connection_refused",
        Level.WARNING,
        (Field("address", "of the other side"), REASON),
        "sent away a connection of {address}: {reason}",
        "More connections than limits.connections_max, one that was too slow or held too much, one that speaks "
        "something else, or a peer that is no member. Reasons are those of `vsr_client_connections_ended_total`, "
        "`vsr_requests_rejected_total` and `vsr_messages_dropped_total`, or say what is wrong with a frame.",
        "Who is that? Raise limits.connections_max, or have clients share a connection.",
    ),
    Line(
        "disk_full",
        Level.ERROR,
        (REASON, Field("free_bytes", "of the file system")),
        "counts its disk as full, with {free_bytes} bytes free: {reason}",
        "It goes on writing what fits. Appends are refused when it leads, or when too few others have room.",
        "Make room, or have less kept: retention.bytes_max.",
    ),
    Line(
        "disk_has_room",
        Level.INFO,
        (Field("free_bytes", "of the file system"),),
        "has room on its disk again: {free_bytes} bytes are free",
        "Appends go on by themselves.",
        NOTHING,
    ),
    Line(
        "damage_found",
        Level.WARNING,
        (Field("what", "entry, witness, superblock or checkpoint"), Field("found_count", "since this process started")),
        "found damage on its disk while it read everything: {what}, {found_count} by now",
        "The scrubber repairs what it finds: from a copy here, or from the others.",
        "As for `faulty`.",
    ),
    Line(
        "slow_operation",
        Level.WARNING,
        (
            Field("op", "op number"),
            Field("took_ns", "from the receipt of a request to its reply"),
            Field("queue_ns", "until it was put into an op"),
            Field("journal_ns", "from there until it was durable here; -1: less than a sixteenth of log.slow_ms"),
            Field("replicate_ns", "from there, too, until a quorum had it; -1: as above"),
            Field("execute_ns", "from both until it was executed and answered, waiting for the ops before included"),
            Field("decided_by", "index of the replica that completed the quorum; -1: not known"),
        ),
        "answered a request of op {op} after {took_ns}: queue {queue_ns}, journal {journal_ns}, replicate "
        "{replicate_ns} (completed by replica {decided_by}), execute {execute_ns}",
        "A request took longer than log.slow_ms on the primary; the stage that took most says why. After a view change "
        "the op may have waited for that.",
        "queue: too many requests, see limits.pipeline_max. journal: the disk here. replicate: the disks and the "
        "network of the others. execute: the state machine.",
    ),
    Line(
        "slow_write",
        Level.WARNING,
        (Field("op", "op number"), Field("took_ns", "from the receipt of its prepare until it was durable")),
        "had op {op} durable after {took_ns}, as a backup",
        "The disk of this backup took longer than log.slow_ms.",
        "Look at the disk. A quorum without it does not wait for it.",
    ),
    Line(
        "slow_execution",
        Level.WARNING,
        (Field("machine", "class of the state machine"), Field("op", "op number"), Field("took_ns", "of its `apply`")),
        "did nothing else for {took_ns}: so long {machine}.apply took for op {op}",
        "The event loop stands still while a state machine executes.",
        "Make `apply` quicker, or give it less at a time.",
    ),
    Line(
        "suppressed",
        Level.INFO,
        (Field("of", "id of the lines"), Field("line_count", "how many"), Field("period_ns", "within")),
        "left out {line_count} more lines of {of} within {period_ns}",
        "Of each id there are so many lines in a minute; the level of this one is that of the lines left out.",
        "Metrics have the true number.",
    ),
    Line(
        "lines_lost",
        Level.WARNING,
        (Field("line_count", "how many"),),
        "lost {line_count} lines of its log, which took them too slowly",
        "Standard error was full, closed or hung. The replica never waits for it.",
        "Look at what reads it.",
    ),
)
_ROUTINE = frozenset({EventKind.REPAIRED, EventKind.CHECKPOINTED, EventKind.SESSION_EVICTED})


def _of_event(kind: EventKind) -> Line:
    row = TABLE[kind]
    limit = ROUTINE_MAX if kind in _ROUTINE else LINES_MAX
    return Line(kind.name.lower(), row.level, row.fields, row.sentence, *OF_EVENTS[kind], limit)


BY_KIND: Mapping[EventKind, Line] = {
    kind: _of_event(kind) for kind, row in TABLE.items() if row.level is not Level.COUNTED
}
LINES: Mapping[str, Line] = {line.id: line for line in (*BY_KIND.values(), *OF_NODES)}
