"""Every frame of the protocol: who sends it, what each field that it uses means, and how high a number may be.

One header serves all frames (types.Header), so most fields are zero in most frames, and some are borrowed: the
`session` of a READ is a number of bytes. This table is where that is said: `docs/wire.md` is made of it, vsr.bounds
applies its bounds before a handler of the core sees a frame, and tests hold every frame that is sent against it
(`stray_fields`).

A field that a row does not name is zero. Always there and not in the rows: checksum, checksum_body, cluster, command,
size, release, and `replica`, the index of the sender, NO_REPLICA of a client.

A bound is for numbers that enter protocol or durable state. What ends at a listener (node/server.py, net/peers.py) has
none here: it is compared, cut or sent back where it is used.

Imports types only.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from kimberlite.types import KNOWN_COMMANDS, NO_REPLICA, OP_MAX, VIEW_MAX, ZERO16, Command, Header

VIEW_AHEAD_MAX = 1 << 32  # above the own view
OP_AHEAD_MAX = 1 << 40  # above the own head: a year and a half at 20,000 ops a second
POSITION_MAX = 1 << 60
REQUEST_MAX = 1 << 56  # request numbers of a client, from 1 by 1
TIME_MAX = 1 << 62  # nanoseconds: the year 2116 since 1970, 146 years since a start
LATENCY_US_MAX = 0xFFFF_FFFF  # all that the field holds: 72 minutes


class Bound(NamedTuple):
    """The highest value of a field: the lowest of `most`, the frame's field `of` + plus, the replica's `own` + plus."""

    most: int
    of: str = ""
    own: str = ""  # attribute path from vsr.replica.Replica
    plus: int = 0


class Field(NamedTuple):
    """meaning: what the field says in this frame. bound: its highest value, of a number that the core reads."""

    meaning: str
    bound: Bound | None = None


class Party(StrEnum):
    """Who sends a frame. Replica and listener are one process: the core, and what holds its connections."""

    CLIENT = "client"
    REPLICA = "replica"


class Frame(NamedTuple):
    """what: a sentence. fields: by name of the header's field. body: what is behind the header; empty: nothing."""

    what: str
    fields: dict[str, Field]
    body: str = ""


VIEW = Bound(VIEW_MAX, own="view", plus=VIEW_AHEAD_MAX)
OP = Bound(OP_MAX, own="log.op", plus=OP_AHEAD_MAX)
NONCE = Bound(TIME_MAX)

# The core puts these into all of its frames; a row that names one says what is read of it, and its bound. The first
# three are zero on data of the first release.
OF_A_MEMBER = {
    "epoch": Field("epoch of the sender's record; 0: it is no member yet"),
    "client": Field("incarnation of the sender: the formatting of its data"),
    "session": Field("life of the sender: sequence of the superblock that began it, and 32 random bits"),
}
OF_THE_CORE = {
    **OF_A_MEMBER,
    "view": Field("view of the sender", VIEW),
    "commit": Field("commit number of the sender"),
    "checkpoint_op": Field("last op in the durable checkpoint of the sender"),
}
TO_CLIENT = {
    "commit": OF_THE_CORE["commit"],
    "checkpoint_op": OF_THE_CORE["checkpoint_op"],
    "view": Field("view of the replica, as clients know it: vsr.members"),
    "client": Field("the client's id"),
}
HEADER_LIST = "headers of prepares, 256 bytes each, in ascending order of ops, each continuing the one before"
ABOUT = Field("checksum of the frame that is answered")
OF_A_SIGN = {
    **OF_THE_CORE,
    "op": Field("last op durable in the log of the sender", OP),
    "request": Field("last op that the sender has executed"),
    "operation": Field("types.Birth: how far the birth of the sender is"),
    "parent": Field("digest of what the sender is bound to"),
    "latency_us": Field("low 32 bits of the sequence of the sender's superblock"),
    "timestamp": Field("wall time of the sender: nanoseconds since 1970"),
}

TABLE: dict[tuple[Party, Command], Frame] = {
    (Party.REPLICA, Command.PREPARE): Frame(
        "An entry of the log: from the primary to all backups, to its journal, and as a repair from any replica.",
        {
            "view": Field("view in which it was made; `replica` was its primary", VIEW),
            "op": Field("op number", OP),
            "commit": Field("commit number of the primary", Bound(OP_MAX, of="op", plus=-1)),
            "parent": Field("checksum of the prepare of the op before"),
            "timestamp": Field(
                # Strictly increasing: after one of TIME_MAX, which no clock says, the next may add one for each op.
                "nanoseconds since 1970, strictly increasing along the log",
                Bound(TIME_MAX + OP_MAX, of="op", plus=TIME_MAX),
            ),
            "position": Field("index of its first event in the log", Bound(POSITION_MAX)),
            "count": Field("events in it"),
            "operation": Field("what it does: types.Operation; BATCH: several requests"),
            "client": Field("of a single request: the client's id"),
            "session": Field("of a single request: the op that opened the session", Bound(OP_MAX)),
            "request": Field("of a single request: its number", Bound(REQUEST_MAX)),
            "context": Field("of a single request: its checksum"),
            "checkpoint_op": Field("last op in the durable checkpoint of the primary", Bound(OP_MAX, of="commit")),
        },
        "the request's body; of a BATCH, its requests; of a TRIM, first op and position of its first event",
    ),
    (Party.REPLICA, Command.PREPARE_OK): Frame(
        "A backup has everything up to an op durable and chained: it acknowledges all of that at once.",
        {
            **OF_A_MEMBER,
            "view": OF_THE_CORE["view"],
            "op": Field("last op that is acknowledged", OP),
            "context": Field("checksum of that op's prepare"),
            "commit": Field("commit number of the backup", OP),
            "checkpoint_op": Field("last op in the durable checkpoint of the backup", OP),
            # The time of our own question.
            "nonce": Field("echo of the heartbeat's nonce; 0: of none", Bound(TIME_MAX, own="now")),
            "flags": Field("1: the disk of the backup is full"),
        },
    ),
    (Party.REPLICA, Command.COMMIT): Frame(
        "Heartbeat of a primary.",
        {
            **OF_A_MEMBER,
            "view": OF_THE_CORE["view"],
            "op": Field("head of its log", OP),
            "commit": Field("commit number", Bound(OP_MAX, of="op")),  # a primary has all that it calls committed
            "position": Field("op that `context` is of", Bound(OP_MAX, of="commit")),
            "context": Field("checksum of the prepare of that op; zero: not in memory any more"),
            "request": Field("first op of its log", Bound(OP_MAX, of="op", plus=1)),
            "nonce": Field("time of the primary, to be echoed", NONCE),
            "checkpoint_op": OF_THE_CORE["checkpoint_op"],
        },
    ),
    (Party.REPLICA, Command.START_VIEW_CHANGE): Frame("A vote to leave the views below `view`.", {**OF_THE_CORE}),
    (Party.REPLICA, Command.DO_VIEW_CHANGE): Frame(
        "Evidence for the primary of `view`: what the sender's log holds, and what it certainly never had.",
        {
            **OF_THE_CORE,
            "log_view": Field("last view in which its status was normal", Bound(VIEW_MAX, of="view")),
            "op": Field("head of its log", OP),
            "commit": Field("commit number", OP),
            "count": Field("headers in the body"),
            "nonce": Field("to be echoed by START_VIEW", NONCE),
            "flags": Field("1: the disk of the sender is full"),
        },
        "first op, head, bit sets of what is present and what was never there, then headers",
    ),
    (Party.REPLICA, Command.START_VIEW): Frame(
        "The log of the view, from its primary, for a backup that gave evidence.",
        {
            **OF_THE_CORE,
            "log_view": Field("the view", Bound(VIEW_MAX, of="view")),
            "op": Field("head of the log", OP),
            "commit": Field("commit number", Bound(OP_MAX, of="op")),
            "count": Field("headers in the body"),
            "nonce": Field("echo of the evidence's nonce", NONCE),
        },
        HEADER_LIST + ", from the commit number to the head",
    ),
    (Party.REPLICA, Command.REQUEST_PREPARE): Frame(
        "Asks for an entry.",
        {
            **OF_THE_CORE,
            "view": Field("view of the sender"),
            "op": Field("op wanted", Bound(OP_MAX)),
            "context": Field("checksum of the prepare wanted"),
        },
    ),
    (Party.REPLICA, Command.REQUEST_HEADERS): Frame(
        "Asks for the headers of a range of ops.",
        {
            **OF_THE_CORE,
            "op": Field("first op wanted", Bound(OP_MAX)),
            "position": Field("last op wanted", Bound(2 * OP_MAX)),
            "nonce": Field("to be echoed by HEADERS", NONCE),
        },
    ),
    (Party.REPLICA, Command.HEADERS): Frame(
        "Headers of the log of the view.",
        {
            **OF_THE_CORE,
            "op": Field("op of the first header", OP),
            "count": Field("headers in the body"),
            "position": Field("head of the sender's log", OP),
            "commit": Field("commit number", OP),
            "nonce": Field("echo of the question's nonce", NONCE),
        },
        HEADER_LIST,
    ),
    (Party.REPLICA, Command.PING): Frame(
        "A sign of life between backups, and to who is behind in views.",
        OF_A_SIGN | {"flags": Field("2: the receiver is to say by PONG who it is")},
    ),
    (Party.REPLICA, Command.PONG): Frame("What a PING asks for.", OF_A_SIGN),
    (Party.REPLICA, Command.CONFIG): Frame(
        "The record of the cluster, to a member that does not know yet that the cluster is born.",
        {**OF_THE_CORE, "context": ABOUT},
        "the record: kimberlite/vsr/record.py",
    ),
    (Party.CLIENT, Command.HELLO): Frame(
        "The first frame on a connection. An older client is refused with REJECT, reason VERSION.",
        {"client": Field("the client's id"), "count": Field("version of the frames: net.CLIENT_VERSION")},
    ),
    (Party.REPLICA, Command.HELLO): Frame(
        "The first frame of a replica, on a connection to another one or as the answer to a client. Unasked, to those "
        "that have sent requests: another view has begun.",
        {
            "view": Field("view of the replica"),
            "count": Field("size of the cluster"),
            "client": Field("to a client: its id; to a replica: incarnation of the sender"),
            "epoch": Field("to a replica: epoch of the sender's record"),
            "session": Field("to a replica: life of the sender"),
            "context": ABOUT,
        },
        "to a client a JSON object: members (addresses for clients, by index), primary (its index as far as known), "
        "view, replica",
    ),
    (Party.CLIENT, Command.REQUEST): Frame(
        "Register a session, or append in one.",
        {
            "client": Field("the client's id"),
            "operation": Field("REGISTER or APPLY"),
            "session": Field("number of the session; 0: it registers", Bound(OP_MAX)),
            "request": Field("1 more than the last; 0: it registers", Bound(REQUEST_MAX)),
            "count": Field("events in the body"),
            "latency_us": Field(
                "microseconds that the client saw for its last append; 0: it tells of none, or of more",
                Bound(LATENCY_US_MAX),
            ),
            # Of kimberlite.told: no number of it is more than a listener adds to a metric, bounded there.
            "flags": Field("1: the client tells of more than one append, or of those that failed"),
            "parent": Field("of its appends since: four pairs of u16, a latency and how many took that long"),
            "context": Field("four more of them"),
            "timestamp": Field("of its appends since: how many failed, a byte for each types.ClientFailure"),
        },
        "an event batch",
    ),
    (Party.REPLICA, Command.REPLY): Frame(
        "The request is committed and executed.",
        {
            **TO_CLIENT,
            "session": Field("number of the session"),
            "request": Field("number of the request"),
            "operation": Field("that of the request"),
            "op": Field("op that executed it"),
            "position": Field("index of the first event"),
            "count": Field("events"),
            "context": ABOUT,
        },
        "what the state machine replied",
    ),
    (Party.REPLICA, Command.REJECT): Frame(
        "A frame, or the connection, is refused.",
        {
            **TO_CLIENT,
            "epoch": OF_THE_CORE["epoch"],
            "session": Field("to a replica: life of the sender"),
            "reason": Field("types.Reason"),
            "request": Field("number of the request"),
            "position": Field("end of the log here; of POSITION_TRIMMED the first position there is"),
            "count": Field("of BUSY_QUEUE: milliseconds to wait; to a replica: size of the cluster"),
            "flags": Field("1: the request had been prepared, and may yet be committed"),
            "context": ABOUT,
        },
    ),
    (Party.CLIENT, Command.READ): Frame(
        "Asks for events.",
        {
            "client": Field("the client's id"),
            "position": Field("first wanted"),
            "count": Field("most events; 0: any number"),
            "session": Field("most bytes; 0: as many as the replica gives"),
            "flags": Field("1: wait for events at the end of the log; 2: only tell the end; 4: tell times as well"),
            "timestamp": Field("nanoseconds to wait"),
            "nonce": Field("makes the frame's checksum unlike any other's"),
        },
    ),
    (Party.REPLICA, Command.READ_REPLY): Frame(
        "Events; none: nothing came in time.",
        {
            "view": Field("view of the replica"),
            "client": Field("the client's id"),
            "position": Field("index of the first event"),
            "count": Field("events in the body"),
            "session": Field("runs in the table of times"),
            "timestamp": Field("end of the log here"),
            "op": Field("last op executed here"),
            "context": ABOUT,
        },
        "an event batch; when times were asked for, behind it of each run of events that one op appended: its "
        "timestamp (u64) and how many they are (u32)",
    ),
    (Party.CLIENT, Command.STATUS): Frame(
        "Asks for the status document.",
        {"client": Field("the client's id"), "nonce": Field("makes the frame's checksum unlike any other's")},
    ),
    (Party.REPLICA, Command.STATUS_REPLY): Frame(
        "The status document.",
        {"view": Field("view of the replica"), "client": Field("the client's id"), "context": ABOUT},
        "a JSON object: docs/status.md",
    ),
}


class Reserved(NamedTuple):
    """Room that this release leaves for later ones, so that they need no other format. where: a command's number, or
    the place in a frame or body. size: in bytes; 0: a command, or what a field holds. today: what this release does."""

    where: str
    name: str
    what: str
    size: int = 0
    today: str = "writes zero, and passes over what is there"


# What later releases will say. Commands that this one does not know are passed over and counted; no connection ends.
COMMANDS_LATER: dict[int, str] = {
    11: "REQUEST_OFFER: asks for a state to transfer",
    12: "OFFER: checkpoint and log that can be had",
    13: "REQUEST_CHUNK: asks for a part of a checkpoint",
    14: "CHUNK: a part of a checkpoint",
    15: "REQUEST_ENTRIES: asks for many entries at once",
    16: "ENTRIES: consecutive committed entries",
    18: "READ_INDEX: asks a primary to confirm that it leads, for a read",
    19: "ADMIN: an operator's request",
    30: "ADMIN_REPLY: answer to an ADMIN",
}
ROOM: tuple[Reserved, ...] = (
    Reserved("every header, byte 208", "trace", "W3C trace context: version, trace id, parent id, flags", 25),
    Reserved("every header, byte 233", "principal", "who asks, once clients are authenticated", 8),
    Reserved("every header, byte 241", "birth_tag", "of the birth of the cluster: tells two births of one id apart", 8),
    Reserved("PREPARE", "nonce", "bytes of the log up to and with this entry"),
    Reserved("PING, PONG", "nonce", "monotonic time of the PING, echoed"),
    Reserved(
        "REQUEST, record of a BATCH",
        "extension",
        "what follows the events of a request, in parts of {kind u16, zero u16, bytes u32, data, zeros to 8 bytes}; "
        "kind 1: keys for appends that anybody may retry, each {key 16 bytes, expected position u64, count u32, "
        "zero u32}; kind 2: trace; kind 3: principal. Its length is the `nonce` of a REQUEST, and bytes 44 to 47 of "
        "the 48 bytes of a record",
        today="writes none, and refuses a request or a prepare that has one: what it asks for may not be left out",
    ),
)

_ALWAYS = frozenset({"checksum", "checksum_body", "cluster", "command", "replica", "size", "release", "raw"})
_OPTIONAL = tuple(name for name, kind in vars(Header).items() if isinstance(kind, property) and name not in _ALWAYS)


def party(header: Header) -> Party:
    """Who sent it."""
    return Party.CLIENT if header.replica == NO_REPLICA else Party.REPLICA


def stray_fields(header: Header) -> list[str]:
    """Fields that are set and that no row gives a meaning in this frame; of a frame without a row, all that are set."""
    command = header.command
    row = TABLE.get((party(header), Command(command))) if command in KNOWN_COMMANDS else None
    meant = row.fields if row is not None else {}
    return [name for name in _OPTIONAL if name not in meant and getattr(header, name) not in (0, ZERO16)]
