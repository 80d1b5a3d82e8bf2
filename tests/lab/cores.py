"""One core: in a given state, with its inputs and outputs, and what tests see and set inside it.

`started` makes one whose disk holds a whole log, `restarted` one of anything that recovery can find, `leading` the
primary of a view that a quorum has begun. Time is what a test hands in; nothing is durable or executed before a test
says so: `durable`, `applied_op`, or `settle` for all of it.

Inputs and outputs are the methods of `vsr.replica.Replica` by the same names. Everything else is a `Place`: a test
that reads or sets a piece of state names it here, and only here stands where the core keeps it. A piece of state
that moves is one line to change; a test that names what there is not is told so at once, also when it sets it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

from kimberlite.node.driver import FastCodec
from kimberlite.types import (
    ROOM_UNBOUNDED,
    ClientId,
    Command,
    Header,
    Message,
    Recovered,
    Restored,
    Room,
    Status,
    ViewState,
)
from kimberlite.vsr.bounds import OutOfBounds
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.conflict import Conflict
from kimberlite.vsr.events import GaveUp
from kimberlite.vsr.log import Log
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.state import HeadersRequest, Lag, Pace, Peer, Prepared, RepairRequest, ViewScope
from kimberlite.vsr.timers import Timer
from kimberlite.vsr.view_change import DoViewChange
from kimberlite.vsr.work import Persist, Snapshot, ToClient, ToReplica, Work
from lab import entries

T = TypeVar("T")
NONCE = 7  # of evidence that a core is taken to have given
KNOWN = 50  # headers that a restarted core has below its head, as from the disk


class Place(Generic[T]):
    """Where a core keeps something: a path of attributes."""

    def __init__(self, path: str) -> None:
        self._read = attrgetter(path)
        owner, _, self._name = path.rpartition(".")
        self._owner = attrgetter(owner) if owner else None

    def __get__(self, core: Core, kind: type[Core]) -> T:
        found: T = self._read(core.replica)
        return found

    def __set__(self, core: Core, value: T) -> None:
        owner = self._owner(core.replica) if self._owner is not None else core.replica
        getattr(owner, self._name)  # there is such a thing
        setattr(owner, self._name, value)


class Core:
    """A core as tests see it."""

    __slots__ = ("replica",)

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def __getattr__(self, name: str) -> Any:
        """Inputs and outputs, as the driver uses them."""
        if name in INPUTS_AND_OUTPUTS:
            return getattr(self.replica, name)
        raise AttributeError(f"tests do not look at `{name}` of a core: give it a place in {__name__}")

    # State: read and set

    config = Place[CoreConfig]("config")
    index = Place[int]("index")
    now = Place[int]("now")
    room = Place[Room]("room")
    is_short_of_space = Place[bool]("is_short_of_space")
    wants_room = Place[bool]("wants_room")
    status = Place[Status]("status")
    view = Place[int]("view")
    log_view = Place[int]("log_view")
    primary = Place[int]("primary")
    is_primary = Place[bool]("is_primary")
    log = Place[Log]("log")
    commit = Place[int]("commit")
    commit_max = Place[int]("commit_max")
    applied = Place[int]("applied")
    apply_emitted = Place[int]("apply_emitted")
    positions = Place[int]("positions")
    first_op = Place[int]("first_op")
    checkpoint_op = Place[int]("checkpoint_op")
    trimmable_op = Place[int]("trimmable_op")
    peers = Place[dict[int, Peer]]("peers")
    entered = Place[dict[int, int]]("entered")
    disk_waits = Place[int]("disk_waits")
    conflict = Place[Conflict | None]("conflict")
    refusal = Place[OutOfBounds | None]("refusal")
    # Of a view, whatever the role
    scope = Place[ViewScope]("scope")
    votes = Place[dict[int, int]]("scope.votes")
    suspecting = Place[bool]("scope.suspecting")
    evidence = Place[dict[int, DoViewChange]]("scope.evidence")
    evidence_nonce = Place[int]("scope.evidence_nonce")
    gave_up = Place[tuple[int, GaveUp] | None]("gave_up")
    stuck_op = Place[int]("stuck_op")
    view_change_timer = Place[Timer]("view_change_timer")
    # Of a primary
    ready = Place[bool]("scope.ready")
    abdicated = Place[bool]("scope.abdicated")
    can_journal = Place[bool]("can_journal")
    view_left_at = Place[int]("view_left_at")
    full_peers = Place[set[int]]("scope.full_peers")
    lag = Place[Lag]("scope.lag")
    pipeline = Place[deque[Prepared]]("pipeline")
    committing = Place[dict[int, Prepared]]("committing")
    queue = Place[deque[tuple[Message, int]]]("queue")
    queue_bytes = Place[int]("queue_bytes")
    waiting = Place[dict[ClientId, tuple[Message, int]]]("waiting")
    in_flight = Place[dict[ClientId, int]]("in_flight")
    pace = Place[Pace]("pace")
    # Of a backup
    known_head = Place[int]("scope.known_head")
    commit_heard = Place[int]("scope.commit_heard")
    ack_due = Place[bool]("scope.ack_due")
    stash = Place[dict[int, Message]]("stash")
    # Of repair
    repairs = Place[dict[int, RepairRequest]]("repairs")
    headers_requests = Place[dict[int, HeadersRequest]]("scope.headers_requests")

    def snapshot(self, now: int | None = None) -> Snapshot:
        """State for status and gauges; at `now` when that is later than the last input."""
        if now is not None:
            self.now = now
        return self.replica.snapshot()

    @property
    def pending(self) -> list[Persist]:
        """What was handed to the disk and is not durable yet, as far as the core still counts upon it."""
        return [persist for _, persist, _ in self.replica._pending.values()]

    def hold_execution(self) -> None:
        """From now on nothing is given to the state machine."""
        self.replica._emit_applies = lambda: None  # type: ignore[method-assign]

    def go_on_with_execution(self) -> None:
        del self.replica._emit_applies

    def enter_view(self, view: int) -> None:
        self.replica.enter_view(view)

    def persist_view(self) -> None:
        self.replica.persist_view()

    # Several inputs in one

    def settle(self) -> Work:
        """Complete writes and executions until nothing is asked for, and use up the room: everything, in one Work."""
        whole = Work()
        while work := self.replica.take_work():
            for every, part in ((whole.send, work.send), (whole.serve, work.serve), (whole.events, work.events)):
                every += part  # type: ignore[operator]
            whole.persist += work.persist
            for persist in work.persist:
                for entry in persist.entries:
                    left = self.room.after(entry.header.size)
                    assert left is not None, "only what fits is handed to the journal"
                    self.room = left
                self.replica.durable(persist.token, self.now)
            for apply in work.apply:
                self.replica.applied_op(apply.op, [], self.now)
        return whole

    def make_durable(self, now: int) -> Work:
        """Complete the writes that are asked for; the work that follows."""
        for persist in self.replica.take_work().persist:
            self.replica.durable(persist.token, now)
        return self.replica.take_work()

    def execute(self, now: int) -> None:
        """Execute what is asked for, and complete none of the writes."""
        for apply in self.replica.take_work().apply:
            self.replica.applied_op(apply.op, (), now)

    def begin_view(self, view: int, suffix: Sequence[Header], now: int, **fields: Any) -> None:
        """The primary of `view` tells this core, whose evidence it had, how the log of that view ends."""
        count = self.config.replica_count
        self.replica.step(entries.start_view(view, suffix, 0, replicas=count, **fields), now)
        # It has entered the view, and gives evidence when that is durable.
        self.evidence_nonce = self.evidence_nonce or NONCE
        self.replica.step(entries.start_view(view, suffix, self.evidence_nonce, replicas=count, **fields), now)

    def leave_view(self, now: int) -> None:
        """Both others of three vote for that."""
        view = self.view
        for by in self.peers:
            self.replica.step(entries.start_view_change(by, view), now)


INPUTS_AND_OUTPUTS = frozenset(
    (
        *("step", "propose", "tick", "durable", "not_written", "applied_op", "entry_faulty", "checkpointed", "trimmed"),
        *("propose_trim", "set_clock_offset", "drain", "step_down"),
        *("take_work", "next_deadline", "headers_message"),
    )
)


def restarted(
    recovered: Recovered,
    headers: Sequence[Header] = (),
    index: int = 1,
    *,
    replicas: int = 3,
    now: int = 10,
    room: Room = ROOM_UNBOUNDED,
    **config: Any,
) -> Core:
    """A core that starts with what recovery found. headers: as Replica takes them. config: of CoreConfig."""
    replica = Replica(
        config=CoreConfig(entries.CLUSTER, index, replicas, **config),
        codec=FastCodec(),
        recovered=recovered,
        headers=headers,
        seed=3,
        now=now,
    )
    made = Core(replica)
    made.room = room
    return made


def started(
    index: int,
    view: int = 0,
    log: Sequence[Header] = (entries.ROOT,),
    *,
    log_view: int | None = None,
    commit: int | None = None,
    checkpoint: int | None = None,
    **options: Any,
) -> Core:
    """A core that starts in `view` with a whole log on its disk, the root first, known to be committed up to `commit`
    or all of it: a backup in normal status, who would lead recovering, in a view change when log_view is lower.

    checkpoint: op of the one on the disk, from which it executes; None: it has executed everything.
    options: those of `restarted`.
    """
    head = log[-1].op
    commit = head if commit is None else commit
    state = ViewState(view, view if log_view is None else log_view, commit, commit, head, (log[-1],))
    restored = Restored(checkpoint, 0, 1, b"", b"") if checkpoint is not None else None
    recovered = Recovered(state, head, log[-1], head, head, commit=commit, restored=restored)
    return restarted(recovered, log[max(head - KNOWN, 0) : head], index, **options)


def leading(log: Sequence[Header] = (entries.ROOT,), now: int = 30, **options: Any) -> Core:
    """The primary of view 3, index 0 of three, with that log, ready. Both others were heard at `now`, and have said
    that their log is the same."""
    made = started(0, 3, log, log_view=2, **options)
    for by in (1, 2):
        commit = log[-1].op
        made.step(entries.do_view_change(by, 3, log[-1:], log_view=2, commit=commit), now)
    made.settle()
    made.tick(now + 10)  # its own evidence
    made.settle()
    assert (made.status, made.is_primary, made.ready, made.applied) == (Status.NORMAL, True, True, log[-1].op)
    return made


def core_of(node: Any) -> Core:
    """That of a node of the simulator or of production: of what has a driver."""
    return Core(node.driver.core)


# What a core has said


def messages_sent(work: Work, command: Command) -> list[Message]:
    """Frames to replicas of that command."""
    return [
        send.message for send in work.send if isinstance(send, ToReplica) and send.message.header.command == command
    ]


def sent(work: Work, command: Command) -> list[tuple[int, Header]]:
    """The same frames: to whom, and their headers."""
    return [
        (send.replica, send.message.header)
        for send in work.send
        if isinstance(send, ToReplica) and send.message.header.command == command
    ]


def answers(work: Work) -> list[Header]:
    """Headers of the frames to clients."""
    return [send.message.header for send in work.send if isinstance(send, ToClient)]


def refusals(work: Work) -> list[int]:
    """The reason of each."""
    return [header.reason for header in answers(work)]
