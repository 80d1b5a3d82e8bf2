"""What the core reports: a row for each kind of event, with what it says, and who takes note of it.

An event is a kind and up to three numbers, so that it costs little on the way of an op. TABLE says what the numbers
are, the sentence that a log has of it, how much it matters there, and the metrics (names of telemetry.catalogue)
that it moves. docs/events.md is made of it; the node's log (telemetry/log/) is written with it.

TABLE is total: every kind has a row, and every row has a metric, or a level at which it is in the log. Tests hold the
recorder against it: an event moves the metrics of its row and no other. The numbers of the kinds are in the traces of
the simulator: a new kind comes at the end.

Imports types only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum, auto
from typing import NamedTuple

from kimberlite.types import Birth, Command, Reason, Status

NS_PER_MS = 1_000_000


class EventKind(IntEnum):
    """What happened. TABLE says what the numbers of each are."""

    PREPARED = auto()
    PREPARE_ACKED = auto()
    JOURNALED = auto()
    COMMITTED = auto()
    REPLAYED = auto()
    QUEUED = auto()
    REPLIED = auto()
    REJECTED = auto()
    DUPLICATE = auto()
    DROPPED = auto()
    ABANDONED = auto()
    STATUS = auto()
    VIEW_CHANGE_STARTED = auto()
    VIEW_CHANGED = auto()
    PRIMARY = auto()
    SUFFIX_DROPPED = auto()
    REPAIR_REQUESTED = auto()
    REPAIRED = auto()
    REPAIR_EXPIRED = auto()
    FAULTY = auto()
    SESSION_REGISTERED = auto()
    SESSION_EVICTED = auto()
    ABDICATED = auto()
    RECOVERED = auto()
    STUCK = auto()
    PEER_ROUND_TRIP = auto()
    CHECKPOINTED = auto()
    TRIMMED = auto()
    IDENTITY_CONFLICT = auto()
    FORFEITED = auto()
    BIRTH = auto()
    LIFE_BEGUN = auto()
    REFUSED_BY = auto()
    SUSPECTED = auto()


class Event(NamedTuple):
    """One thing that happened; the numbers in the order of the fields of its row."""

    kind: EventKind
    a: int = 0
    b: int = 0
    c: int = 0


class ViewChangeCause(IntEnum):
    """Why a replica left its view. All but NEWER_VIEW: it counted the votes itself."""

    PRIMARY_SILENT = 0  # a quorum voted
    ABDICATED = 1  # the same, and it is the primary that had asked for it
    NEWER_VIEW = 2  # heard of from a peer
    PRIMARY_GONE = 3  # a quorum voted, this replica because nothing listens any more where the primary was


class GaveUp(IntEnum):
    """Why a replica left the lead of its view to another."""

    ABDICATED = 0  # it could not commit
    DRAINED = 1  # it is being stopped
    BEHIND = 2  # it lacks much of the log, and another one has it
    DISK_FULL = 3  # it lacks entries of the log, and has no room for them
    LAGGING = 4  # it did not execute what the others committed: a disk that hangs, or a damaged entry


class DropReason(IntEnum):
    WRONG_CLUSTER = 1
    OLD_VIEW = 2
    NEWER_VIEW = 3
    WRONG_STATUS = 4
    NOT_MEMBER = 5
    DUPLICATE = 6
    BROKEN_CHAIN = 7
    BOUND = 8
    MALFORMED = 9
    WRONG_ROLE = 10
    UNWANTED = 11
    OUT_OF_BOUNDS = 12  # a number that can not be: see vsr.bounds
    UNKNOWN_COMMAND = 13  # of a later release
    REPLACED = 14  # of another disk in the slot of a member
    REMOVED = 15  # of a slot that is nobody's
    UNBORN = 16  # of a disk that is no member yet, or to one
    ROLLED_BACK = 17  # of a copy of a member's disk, or an older image
    OLD_LIFE = 18  # of a life of a member that is over, or that has not said so yet
    LATER_EPOCH = 19  # of a record that is not known here


class Level(IntEnum):
    """How much an event matters in a log."""

    COUNTED = 0  # in no log: it may come with every op, request or frame
    INFO = 1  # the ordinary life of a cluster
    WARNING = 2  # the cluster goes on by itself; often, it says that something is sick
    ERROR = 3  # a person has to look


class Field(NamedTuple):
    """A number of an event. name: with its unit last. words: what is said instead of it, of those values."""

    name: str
    meaning: str
    words: Mapping[int, str] = {}

    def said(self, value: int) -> str:
        if value in self.words:
            return self.words[value]
        return f"{value / NS_PER_MS:,.1f} ms" if self.name.endswith("_ns") else f"{value}"


class Row(NamedTuple):
    """fields: the numbers, in order. sentence: with their names as placeholders; its subject is the replica that the
    line of the log begins with. metrics: names of the catalogue that the event moves."""

    fields: tuple[Field, ...]
    sentence: str
    level: Level
    metrics: tuple[str, ...] = ()


def _named(enum: type[IntEnum]) -> dict[int, str]:
    return {int(member): member.name.lower() for member in enum}


OP = Field("op", "op number")
VIEW = Field("view", "the view")
PEER = Field("peer", "index of the other replica")
EVENTS = Field("event_count", "events in it")
ENTERED = Field("since_entered_ns", "since it entered this replica's log")
WHY = Field("why", "why another one is to lead", _named(GaveUp))

TABLE: dict[EventKind, Row] = {
    EventKind.PREPARED: Row(
        (OP, EVENTS, Field("size_bytes", "of its prepare, with the header")),
        "prepared op {op}: {event_count} events, {size_bytes} bytes",
        Level.COUNTED,
        ("op_number",),
    ),
    EventKind.PREPARE_ACKED: Row(
        (
            OP,
            Field("since_prepared_ns", "since this primary prepared it"),
            Field("decided_by", "index of the replica whose acknowledgement completed the quorum"),
        ),
        "has a quorum for op {op}, {since_prepared_ns} after preparing it; replica {decided_by} completed it",
        Level.COUNTED,
        ("prepare_latency", "commit_stage_latency", "commit_critical_path"),
    ),
    EventKind.JOURNALED: Row(
        (OP, ENTERED, Field("role", "1 on the primary, 0 on a backup", {0: "backup", 1: "primary"})),
        "has op {op} durable, {since_entered_ns} after it entered the log, as {role}",
        Level.COUNTED,
        ("commit_stage_latency", "prepare_latency"),
    ),
    EventKind.COMMITTED: Row(
        (
            OP,
            EVENTS,
            Field("since_entered_ns", ENTERED.meaning + "; -1 when it came by repair", {-1: "an unknown time"}),
        ),
        "executed op {op} with {event_count} events, {since_entered_ns} after it entered the log",
        Level.COUNTED,
        ("operations", "events", "commit_latency"),
    ),
    EventKind.REPLAYED: Row(
        (OP, EVENTS),
        "executed op {op} with {event_count} events once more: this start found it committed on the disk",
        Level.COUNTED,
        ("operations_replayed",),
    ),
    EventKind.QUEUED: Row(
        (Field("waited_ns", "how long the oldest request of a batch waited"),),
        "took up a request that had waited {waited_ns}",
        Level.COUNTED,
        ("commit_stage_latency",),
    ),
    EventKind.REPLIED: Row(
        (
            OP,
            Field("since_received_ns", "between the receipt of the request and its reply"),
            Field("client_latency_ns", "what its client saw for the request before; 0: it did not say"),
        ),
        "answered a request of op {op}, {since_received_ns} after its receipt; the client's last one took "
        "{client_latency_ns}",
        Level.COUNTED,
        ("request_latency", "client_latency"),
    ),
    EventKind.REJECTED: Row(
        (Field("reason", "why", _named(Reason)),),
        "refused a request: {reason}",
        Level.COUNTED,
        ("requests_rejected",),
    ),
    EventKind.DUPLICATE: Row(
        (Field("request", "number of the request"),),
        "had request {request} of its client already",
        Level.COUNTED,
        ("duplicate_requests",),
    ),
    EventKind.DROPPED: Row(
        (Field("command", "type of the frame", _named(Command)), Field("reason", "why", _named(DropReason))),
        "did not act upon a frame ({command}): {reason}",
        Level.COUNTED,
        ("messages_dropped",),
    ),
    EventKind.ABANDONED: Row(
        (Field("first_op", "the lowest of them"), Field("op_count", "how many")),
        "left its view as primary with {op_count} ops uncommitted, from op {first_op} on: the next primary decides "
        "on them, and their clients ask there",
        Level.WARNING,
        ("operations", "operations_failed"),
    ),
    EventKind.STATUS: Row(
        (Field("status", "what it does now", _named(Status)), VIEW),
        "has status {status}, in view {view}",
        Level.COUNTED,
        ("replica_status", "view_number"),
    ),
    EventKind.VIEW_CHANGE_STARTED: Row(
        (Field("view", "the view that it goes to"), Field("cause", "why it left", _named(ViewChangeCause))),
        "left its view for view {view}: {cause}",
        Level.WARNING,
        ("view_changes",),
    ),
    EventKind.VIEW_CHANGED: Row(
        (
            VIEW,
            Field("since_left_ns", "since the replica left the last view in which its status was normal"),
            Field("cause", "why it left that one", {-1: "start", **_named(ViewChangeCause)}),
        ),
        "takes part in view {view}, {since_left_ns} after it left its last one: {cause}",
        Level.INFO,
        ("view_change_latency",),
    ),
    EventKind.PRIMARY: Row(
        (Field("role", "1 when it became primary, 0 when it ceased to be", {0: "backup", 1: "primary"}),),
        "acts as {role} from now on",
        Level.INFO,
        ("is_primary",),
    ),
    EventKind.SUFFIX_DROPPED: Row(
        (Field("first_op", "the lowest of them"), Field("op_count", "how many")),
        "leads a log without {op_count} ops from op {first_op} on: too few replicas ever had them to acknowledge them",
        Level.WARNING,
        ("operations", "operations_failed"),
    ),
    EventKind.REPAIR_REQUESTED: Row(
        (OP, PEER),
        "asked replica {peer} for the entry of op {op}",
        Level.COUNTED,
        ("repairs",),
    ),
    EventKind.REPAIRED: Row(
        (OP, Field("since_requested_ns", "since it was first asked for")),
        "got the entry of op {op}, {since_requested_ns} after it first asked for it",
        Level.INFO,
        ("repairs", "repair_latency"),
    ),
    EventKind.REPAIR_EXPIRED: Row(
        (OP, Field("peer", "index of the replica that was asked for it, or for headers from it on")),
        "got no answer from replica {peer} about op {op} in time",
        Level.COUNTED,
        ("repairs",),
    ),
    EventKind.FAULTY: Row(
        (OP,),
        "found its own entry of op {op} damaged, and fetches it from the others: a disk that does this is failing",
        Level.WARNING,
        ("checksum_failures",),
    ),
    EventKind.SESSION_REGISTERED: Row(
        (Field("session", "the op that opened it"),),
        "opened session {session}",
        Level.COUNTED,
        ("client_sessions_registered",),
    ),
    EventKind.SESSION_EVICTED: Row(
        (Field("session", "the op that opened it"),),
        "evicted session {session}: more clients than limits.sessions_max",
        Level.INFO,
        ("client_sessions_evicted",),
    ),
    EventKind.ABDICATED: Row(
        (VIEW, WHY),
        "gives up the lead of view {view}: {why}",
        Level.WARNING,
        ("leadership_given_up",),
    ),
    EventKind.RECOVERED: Row(
        (
            Field(
                "since_started_ns",
                "since the core was made; now its status is normal, and what was known to be committed is executed",
            ),
        ),
        "has recovered, {since_started_ns} after its core started",
        Level.INFO,
        ("recovery_latency",),
    ),
    EventKind.STUCK: Row(
        (
            Field("op", "of which the evidence has neither a copy nor enough replicas that never had it"),
            Field("evidence_count", "replicas whose evidence came, this one included"),
        ),
        "can not finish its view change: of {evidence_count} replicas that gave evidence none has a good copy of op "
        "{op}, which may have been acknowledged; bring back a replica that has it",
        Level.ERROR,
        ("stuck_op",),
    ),
    EventKind.PEER_ROUND_TRIP: Row(
        (PEER, Field("took_ns", "from the question to its echo")),
        "was answered by replica {peer} within {took_ns}",
        Level.COUNTED,
        ("peer_round_trip_latency",),
    ),
    EventKind.CHECKPOINTED: Row(
        (Field("op", "the last that the checkpoint holds"),),
        "has a durable checkpoint of op {op}",
        Level.INFO,
        ("checkpoints",),
    ),
    EventKind.TRIMMED: Row(
        (Field("first_op", "with which the log begins now"),),
        "trimmed its log, which begins with op {first_op} now",
        Level.INFO,
    ),
    EventKind.IDENTITY_CONFLICT: Row(
        (OP, Field("peer", "index of the replica whose heartbeat names another entry")),
        "has another entry under op {op} than a heartbeat of replica {peer} names: a forged frame, or two logs that "
        "differ; compare them with `kimberlite verify`",
        Level.ERROR,
        ("identity_conflicts",),
    ),
    EventKind.FORFEITED: Row(
        (
            Field("commit", "commit number of the log that it should have led"),
            Field("behind_count", "ops that are not in its log, or not on its disk"),
            WHY,
        ),
        "leaves the lead of its view to another ({why}): {behind_count} ops of a log that is committed up to op "
        "{commit} are not on its disk",
        Level.WARNING,
        ("leadership_given_up",),
    ),
    EventKind.BIRTH: Row(
        (Field("birth", "how far it is", _named(Birth)),),
        "is {birth}: a cluster is born when all its replicas have met",
        Level.INFO,
    ),
    EventKind.LIFE_BEGUN: Row(
        (PEER, Field("sequence", "of the superblock that began it")),
        "hears replica {peer} anew: its process was started, with superblock {sequence}",
        Level.INFO,
    ),
    EventKind.REFUSED_BY: Row(
        (PEER, Field("reason", "why", _named(Reason))),
        "counts nowhere at replica {peer}: {reason}",
        Level.ERROR,
    ),
    EventKind.SUSPECTED: Row(
        (
            Field("view", "the view that it wants to leave"),
            Field("cause", "why", _named(ViewChangeCause)),
            Field("silent_ns", "since it last heard the primary of that view; -1: never", {-1: "an unknown time"}),
        ),
        "votes to leave view {view}: {cause}; it last heard the primary {silent_ns} before",
        Level.WARNING,
    ),
}


def sentence(event: Event) -> str:
    """What happened, in words."""
    return TABLE[event.kind].sentence.format(**{field.name: field.said(value) for field, value in _fields(event)})


def brief(event: Event) -> str:
    """The same as a line of a trace: kind, and each number under its name."""
    return " ".join([event.kind.name, *(f"{field.name}={field.words.get(n, n)}" for field, n in _fields(event))])


def _fields(event: Event) -> Iterator[tuple[Field, int]]:
    return zip(TABLE[event.kind].fields, event[1:], strict=False)  # what a kind has no field for is 0
