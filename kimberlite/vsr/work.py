"""What the core asks of its driver: one Work per round.

The core never performs an effect. It describes effects here, in five groups with one
rule each:

- `send`: may leave now;
- `persist`: to be made durable, in order; the driver hands the token back with
  `Replica.durable(token)`, and only then does the core release the messages that
  promise what was written. Nothing else can release them;
- `apply`: committed operations, in order, each to be answered by `Replica.applied`;
- `serve`: entries or headers that a peer wants and that only the disk still has;
- `refused`: frames that no honest replica sends: whoever holds their connection closes it.

What happened is told in `events`: see vsr/events.py. Imports types and events only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple, TypeAlias

from kimberlite.types import Checksum, ClientId, Header, Identity, Message, ViewState
from kimberlite.vsr.events import Event


class ToReplica(NamedTuple):
    """Send `message` to the replica of that index."""

    replica: int
    message: Message


class ToClient(NamedTuple):
    """Send `message` to the connection(s) of that client; dropped when there is none."""

    client: ClientId
    message: Message


class Append(NamedTuple):
    """Make these prepares durable, then call Replica.durable(token). Ascending: in place up to the journal's head,
    appended above."""

    token: int
    entries: tuple[Message, ...]


class Promise(NamedTuple):
    """Make that the superblock, then call Replica.durable(token)."""

    token: int
    state: ViewState
    truncate_to: int | None = None  # once durable, forget the journal above this op
    identity: Identity | None = None  # None: as it is


Persist: TypeAlias = Append | Promise


class Apply(NamedTuple):
    """A committed operation; header or message are None when only the journal has them."""

    op: int
    header: Header | None
    message: Message | None


class ServePrepare(NamedTuple):
    """Read the prepare from the journal and send it to that replica."""

    replica: int
    op: int
    checksum: Checksum


class ServeHeaders(NamedTuple):
    """Send headers of ops first..last from the journal to that replica, in the HEADERS frame
    that Replica.headers_message makes of them."""

    replica: int
    first: int
    last: int
    nonce: int  # of the request, for the answer


class Work:
    """Everything the core wants done since the last `take_work`."""

    __slots__ = ("apply", "events", "persist", "refused", "send", "serve")

    def __init__(self) -> None:
        self.send: list[ToReplica | ToClient] = []
        self.persist: list[Persist] = []
        self.apply: list[Apply] = []
        self.serve: list[ServePrepare | ServeHeaders] = []
        self.events: list[Event] = []
        self.refused: list[Message] = []

    def __bool__(self) -> bool:
        return bool(self.send or self.persist or self.apply or self.serve or self.events)  # what is refused has one

    def take_sends(self) -> list[ToReplica | ToClient]:
        """What may leave now, before the rest is asked for."""
        send, self.send = self.send, []
        return send


class PeerSnapshot(NamedTuple):
    """What this replica knows of a peer. Nanoseconds; 0 in `last_heard` means never."""

    replica: int
    last_heard: int
    op: int | None  # what it said last that its log holds on disk, or of a primary its head; None: nothing yet
    commit: int
    round_trip: int
    repair_latency: int  # average of its answers to repair requests


class CannotCommit(StrEnum):
    """Why a replica's cluster can not commit, as far as that replica knows: see vsr/verdict.py."""

    RECOVERING = "recovering"  # it would lead its view, and has just started
    VIEW_CHANGE = "view_change"  # it has left a view, and no log of a later one is installed
    NO_PRIMARY = "no_primary"  # backup: the primary is silent
    NO_QUORUM = "no_quorum"  # fewer replicas are heard than a commit needs
    CATCHING_UP = "catching_up"  # primary: it commits what the last view left, or waits for a damaged entry
    STALLED = "stalled"  # primary: the oldest op waits for acknowledgements though a quorum is heard, or not
    DISK_FULL = "disk_full"  # primary: it, or so many others that no quorum is left, have no room
    DISK_STALLED = "disk_stalled"  # primary, or in a view change: its disk does not complete what it waits for
    DRAINING = "draining"  # primary: it is being stopped
    STUCK = "stuck"  # a view change needs an op of which no copy and no certain absence is known
    HUNG = "hung"  # said by who reads its metrics: its event loop does not turn
    UNBORN = "unborn"  # its cluster has not been born, or not with this disk
    IDENTITY_CONFLICT = "identity_conflict"  # the primary committed another entry than the own one under some op


class Bounded(NamedTuple):
    """How much there is of something that has a bound."""

    used: int
    limit: int


class Queues(NamedTuple):
    """How full what is bounded is."""

    pipeline: Bounded  # uncommitted ops
    requests: Bounded  # that wait for a place in the pipeline
    sessions: Bounded
    repairs: Bounded  # in flight
    backlog: Bounded  # bytes of entries that wait for the own disk, or to be executed


class DiskSnapshot(NamedTuple):
    """What the core knows of the own disk."""

    faulty: int  # ops of which it has lost the entry
    is_full: bool  # nearly, or nothing more can be reserved
    waits: int  # nanoseconds since it completed something, though more was asked of it; 0: nothing is asked


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of the core for status and gauges, made on demand."""

    replica: int
    replica_count: int
    status: int  # types.Status
    is_primary: bool
    primary: int
    view: int
    log_view: int
    op: int
    commit: int
    applied: int
    positions: int  # events in the committed log
    quorum: int
    quorum_margin: int  # replicas heard lately, this one included, minus quorum
    queues: Queues
    oldest_uncommitted_votes: int
    oldest_uncommitted_at: int  # when the primary prepared it; 0 when nothing waits
    known_commit: int  # highest commit number heard of, may be above the own log
    draining: bool
    disk: DiskSnapshot
    peers: tuple[PeerSnapshot, ...]
    stuck_op: int  # what a view change waits for: see events.EventKind.STUCK; 0 when for nothing
    unhealthy: str  # a sentence that says why it does not commit; empty when it does
    cannot_commit: tuple[CannotCommit, ...]  # empty when it can, as far as this replica knows


class Admission(IntEnum):
    """Answer to Replica.propose. Anything above DUPLICATE was refused, with a REJECT
    frame in the next Work; nothing about the request is remembered."""

    ACCEPTED = 0
    DUPLICATE = 1
    REJECTED = 2
