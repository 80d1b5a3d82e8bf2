"""Small records that the sub-protocols share. Imports types only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kimberlite.types import Header, Message

if TYPE_CHECKING:
    from kimberlite.vsr.view_change import DoViewChange


@dataclass(slots=True)
class Prepared:
    """An uncommitted op of the primary, or a committed one that waits to be applied."""

    header: Header
    prepared_at: int
    acks: int = 0  # bit set of replicas that have it durable, in this view
    requests: list[tuple[Message, int]] = field(default_factory=list)  # with time of receipt


@dataclass(slots=True)
class Said:
    """What another replica has said in one view. Nanoseconds."""

    op: int | None = None  # that its log holds on disk, or as a primary its head; None: nothing
    progress_at: int = 0  # when its acknowledgements last grew, or it was heard again after a silence
    is_awaited: bool = False  # it was heard again, and has not come nearer since


@dataclass(slots=True)
class Peer:
    """What is known of another replica, whatever the view, and what it says in this one. Nanoseconds."""

    said: Said = field(default_factory=Said)
    last_heard: int = 0
    held: int | None = None  # its last word on what its log holds: a hint whom to ask for an entry, never more
    commit: int = 0
    round_trip: int = 0
    repair_latency: int = 0  # EWMA
    repairs: int = 0  # in flight
    window: int = 16  # how many may be
    rests_until: int = 0  # it did not answer: not asked before, if another can be
    checkpoint: int = 0  # op of its checkpoint, as it said last

    def says(self, op: int) -> None:
        """How far its log goes. The last word counts: its disk may be a new one."""
        self.said.op = self.held = op


@dataclass(slots=True)
class Lag:
    """How far a primary is behind what its backups have committed: see vsr/abdication.py. Nanoseconds."""

    op: int = 0  # committed, and not executed here when it was looked; 0: none
    since: int = 0  # when
    began: int = 0  # the same of the first op of a row that took long
    took: int = 0  # from its prepare to its commit
    reached: int = 0  # ops durable and executed here at the last look
    looked_at: int = 0


@dataclass(slots=True)
class Pace:
    """How fast requests are committed while some wait, so that a full queue can say when to come back. Nanoseconds."""

    request: int = 0  # for one; EWMA, 0 until something was seen
    since: int | None = None  # the last commit, when there was something to commit behind it

    def committed(self, requests: int, now: int, is_more: bool) -> None:
        """So many requests were committed; is_more: others are under way."""
        if self.since is not None and requests:
            took = (now - self.since) // requests
            self.request = self.request + (took - self.request) // 8 if self.request else took
        self.since = now if is_more else None

    def wait(self, requests: int, now: int) -> int:
        """So long until that many requests are committed; as long as nothing has been, when that is longer."""
        return max(requests * self.request, now - self.since if self.since is not None else 0)


@dataclass(frozen=True, slots=True)
class LogState:
    """The part of the superblock that changes only with log_view: see types.ViewState."""

    base: int
    suffix_head: int
    suffix: tuple[Header, ...]
    doubt: int = 0


@dataclass(frozen=True, slots=True)
class HeadersRequest:
    """Headers of ops first..last asked of a peer."""

    peer: int
    first: int
    last: int
    sent_at: int


@dataclass(slots=True)
class RepairRequest:
    """An entry asked of a peer."""

    header: Header
    peer: int
    first_sent_at: int
    sent_at: int


@dataclass(slots=True)
class ViewScope:
    """What a replica has heard, asked and promised in one view: made anew with each, see Replica.enter_view."""

    # Leaving it
    votes: dict[int, int] = field(default_factory=dict)  # replica -> when it last voted to leave the view
    suspecting: bool = False  # this replica votes to leave it
    abdicated: bool = False  # as its primary
    # Beginning it
    evidence: dict[int, DoViewChange] = field(default_factory=dict)
    evidence_nonce: int = 0  # of the evidence given; 0: none yet
    # Backup
    known_head: int = 0  # head of the primary as last heard
    commit_heard: int = 0  # perhaps far above the own log
    trimmed_by_primary: int = 0  # first op that the primary has, as last heard
    ack_due: bool = False
    echo_nonce: int = 0
    # Primary
    ready: bool = False
    ready_at_op: int = 0
    lag: Lag = field(default_factory=Lag)
    full_peers: set[int] = field(default_factory=set)  # who says that its disk is full
    timed_op: int = 0  # the prepare by which round trips are measured,
    timed_at: int = 0  # when it was made, and
    timed_peers: set[int] = field(default_factory=set)  # who has not acknowledged it
    # Repair: headers are those of a view
    headers_requests: dict[int, HeadersRequest] = field(default_factory=dict)  # nonce -> request, in order of ops
    headers_overdue: dict[int, HeadersRequest] = field(default_factory=dict)  # not waited for any more, still taken
