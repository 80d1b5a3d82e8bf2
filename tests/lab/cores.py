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
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from kimberlite.vsr import transitions
from kimberlite.vsr.abdication import Lag
from kimberlite.vsr.bounds import OutOfBounds
from kimberlite.vsr.choice import DoViewChange
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.conflict import Conflict
from kimberlite.vsr.events import GaveUp, ViewChangeCause
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.log import Log
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.requests import Requests
from kimberlite.vsr.role import EnterView, Role
from kimberlite.vsr.state import HeadersRequest, Pace, Peer, Prepared, RepairRequest, State, ViewScope
from kimberlite.vsr.timers import Timer
from kimberlite.vsr.work import Append, Persist, Snapshot, ToClient, ToReplica, Work
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


class OfRole(Place[T]):
    """What a core keeps in its role. In another role there is no such thing: what it would begin with is read then,
    and setting it is a mistake."""

    def __init__(self, name: str, default: Callable[[], T]) -> None:
        super().__init__(f"state.role.{name}")
        self._default = default

    def __get__(self, core: Core, kind: type[Core]) -> T:
        try:
            return super().__get__(core, kind)
        except AttributeError:
            return self._default()


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

    state = Place[State]("state")
    config = Place[CoreConfig]("state.config")
    index = Place[int]("state.index")
    now = Place[int]("state.now")
    room = Place[Room]("state.disk.room")
    is_short_of_space = Place[bool]("state.disk.is_short_of_space")
    wants_room = Place[bool]("state.disk.wants_room")
    status = Place[Status]("state.status")
    view = Place[int]("state.view")
    log_view = Place[int]("state.log_view")
    primary = Place[int]("state.primary")
    is_primary = Place[bool]("state.is_primary")
    log = Place[Log]("state.log")
    commit = Place[int]("state.commit")
    commit_max = Place[int]("state.commit_max")
    applied = Place[int]("state.execution.applied")
    apply_emitted = Place[int]("state.execution.emitted")
    positions = Place[int]("state.execution.positions")
    first_op = Place[int]("state.log.first_op")
    checkpoint_op = Place[int]("state.execution.checkpoint_op")
    trimmable_op = Place[int]("trimmable_op")
    peers = Place[dict[int, Peer]]("state.peers")
    entered = Place[dict[int, int]]("state.scope.entered")
    conflict = Place[Conflict | None]("state.conflict")
    refusal = Place[OutOfBounds | None]("refusal")
    # Of a view, whatever the role
    scope = Place[ViewScope]("state.scope")
    role = Place[Role]("state.role")
    votes = Place[dict[int, int]]("state.role.votes.at")
    suspecting = Place[bool]("state.role.votes.is_cast")
    stuck_op = Place[int]("state.role.stuck_op")
    # Of a view change
    evidence = OfRole[dict[int, DoViewChange]]("evidence", dict)
    evidence_nonce = OfRole[int]("nonce", int)
    view_change_timer = OfRole[Timer]("_timer", Timer)
    # Of a primary
    ready = OfRole[bool]("ready", bool)
    view_left_at = OfRole[int]("left_at", int)
    full_peers = OfRole[set[int]]("full_peers", set)
    lag = OfRole[Lag]("lag", Lag)
    pipeline = OfRole[deque[Prepared]]("pipeline", deque)
    committing = OfRole[dict[int, Prepared]]("committing", dict)
    requests = OfRole[Requests]("requests", Requests)
    pace = Place[Pace]("state.pace")
    # Of a backup
    known_head = Place[int]("state.scope.known_head")
    commit_heard = Place[int]("state.scope.commit_heard")
    ack_due = OfRole[bool]("ack_due", bool)
    stash = Place[dict[int, Message]]("state.repairs.early")
    # Of repair
    repairs = Place[dict[int, RepairRequest]]("state.repairs.requests")
    headers_requests = Place[dict[int, HeadersRequest]]("state.scope.headers_requests")

    @property
    def queue(self) -> deque[tuple[Message, int]]:
        return self.requests.queue

    @property
    def queue_bytes(self) -> int:
        return self.requests.bytes

    @property
    def waiting(self) -> dict[ClientId, tuple[Message, int]]:
        return self.requests.waiting

    @property
    def in_flight(self) -> dict[ClientId, int]:
        return self.requests.in_flight

    @property
    def abdicated(self) -> bool:
        """Whether this primary is silent, and asks to be replaced."""
        return isinstance(self.role, Leading) and self.role.gave_up is not None

    @property
    def gave_up(self) -> tuple[int, GaveUp] | None:
        """The view that it would not lead any more, and why, as it goes into a view change."""
        return self.state.role.story(self.state).gave_up

    @property
    def can_journal(self) -> bool:
        role = self.state.role
        assert isinstance(role, Leading)
        return role.can_journal(self.state)

    @property
    def disk_waits(self) -> int:
        return self.state.outbox.waits(self.now)

    def snapshot(self, now: int | None = None) -> Snapshot:
        """State for status and gauges; at `now` when that is later than the last input."""
        if now is not None:
            self.now = now
        return self.replica.snapshot()

    @property
    def pending(self) -> list[Persist]:
        """What was handed to the disk and is not durable yet, as far as the core still counts upon it."""
        return [persist for _, persist in self.state.outbox.owed.values()]

    def hold_execution(self) -> None:
        """From now on nothing is given to the state machine."""
        self.state.config = replace(self.config, apply_per_round=0)

    def go_on_with_execution(self) -> None:
        self.state.config = replace(self.config, apply_per_round=256)

    def enter_view(self, view: int) -> None:
        transitions.enter_view(self.state, EnterView(view, ViewChangeCause.NEWER_VIEW))

    def persist_view(self) -> None:
        self.state.persist_view()

    # Several inputs in one

    def settle(self) -> Work:
        """Complete writes and executions until nothing is asked for, and use up the room: everything, in one Work."""
        whole = Work()
        while work := self.replica.take_work():
            for every, part in ((whole.send, work.send), (whole.serve, work.serve), (whole.events, work.events)):
                every += part  # type: ignore[operator]
            whole.persist += work.persist
            for persist in work.persist:
                for entry in persist.entries if isinstance(persist, Append) else ():
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
        *("propose_trim", "set_clock_offset", "ask_clocks", "time_of_a_quorum", "drain", "step_down"),
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
