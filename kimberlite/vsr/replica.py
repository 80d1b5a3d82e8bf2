"""The replica: inputs, what is done with them, and the work that comes of it.

    role.py           what a replica does now: leading.py, following.py, changing_view.py, recovering.py
    transitions.py    from one role to the next
    requests.py       what clients have asked a primary for
    abdication.py     when a primary gives its view up
    round_trips.py    how long peers take to answer
    evidence.py       what a replica can prove of its log; choice.py: the log chosen from that; installation.py
    journaling.py     the own disk: what is written, what has become durable, what is damaged
    execution.py      from committed to executed
    rest.py           whether there is anything to do
    signs_of_life.py  what is said to those that hear nothing else
    repair.py         headers and entries that are missing or damaged
    identity.py       who speaks: members, strangers, earlier lives; birth.py: before there are members
    recovery.py       from what storage found to the state of a replica
    verdict.py        whether this replica's cluster can commit, as far as it knows
    snapshot.py       state for status and gauges

Each of these is functions over one State (state.py), or one role. The core is pure: no clock (`now` is handed in,
monotonic nanoseconds), no I/O, no randomness but the seed, no logging. Same state and same inputs give the same
outputs, byte for byte. An input comes in here, is let in by vsr.admission, and goes to the role or to the module that
it concerns; when a role ends, vsr.transitions puts another in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kimberlite.errors import FrameError, InvariantError
from kimberlite.types import Command, Header, Identity, Message, Reason, Recovered, Room, command_text
from kimberlite.vsr import (
    admission,
    bounds,
    clocks,
    execution,
    identity,
    journaling,
    recovery,
    repair,
    rest,
    signs_of_life,
    snapshot,
    transitions,
)
from kimberlite.vsr.admission import Act
from kimberlite.vsr.codec import Codec
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.events import DropReason, Event, EventKind, GaveUp
from kimberlite.vsr.leading import REQUESTED, Leading
from kimberlite.vsr.role import Transition
from kimberlite.vsr.sessions import Result
from kimberlite.vsr.state import State
from kimberlite.vsr.work import Admission, Snapshot, ToClient, ToReplica, Work

# For every frame: a name of the module is looked up in a quarter of the time that a member of an enum takes.
PREPARE = Command.PREPARE
ACCEPT, ENTER_FIRST = Act.ACCEPT, Act.ENTER_FIRST


class Replica:
    """One replica's protocol state, in `state`, which is read outside of vsr and never written. See vsr/work.py."""

    def __init__(
        self,
        *,
        config: CoreConfig,
        codec: Codec,
        recovered: Recovered,
        headers: Sequence[Header],
        seed: int,
        now: int,
        identity: Identity | None = None,
    ) -> None:
        """`headers`: those of the journal from recovered.commit (or below) up to, not including,
        recovered.settled; none when commit is above."""
        s = self.state = State(config, codec, recovered, headers, seed, now, identity)
        self.refusal: bounds.OutOfBounds | None = None  # the last number of a peer that was out of bounds
        recovery.fill(s, recovered)
        transitions.begin(s)

    # Inputs

    def step(self, message: Message, now: int) -> None:
        """A frame from a peer, already verified by the transport."""
        s = self.state
        s.now = now
        header = message.header
        if header.cluster != s.config.cluster or (header.epoch and header.command == PREPARE):
            s.drop(message, DropReason.WRONG_CLUSTER)
        elif header.command not in _HANDLERS:
            s.drop(message, DropReason.UNKNOWN_COMMAND)
        elif header.replica not in s.membership.voters:
            s.drop(message, DropReason.NOT_MEMBER)
        elif header.replica == s.index and header.command != PREPARE:
            s.drop(message, DropReason.WRONG_ROLE)
        elif not identity.is_let_in(s, message):
            pass
        elif (found := bounds.find(s, header)) is not None:
            self.refusal = found
            s.refuse(message, DropReason.OUT_OF_BOUNDS)
        else:
            if header.command != PREPARE:  # copies of that anybody sends
                signs_of_life.hear(s, s.peers[header.replica])
            try:
                self._admit(message)
            except FrameError:
                s.refuse(message, DropReason.MALFORMED)

    def _admit(self, message: Message) -> None:
        """Do what vsr.admission says of a frame."""
        s, header = self.state, message.header
        if header.command == PREPARE and s.log.knows(header):
            repair.on_known_prepare(s, message)
            return
        ruling = admission.look(s, header)
        if header.view > s.view and not s.membership.is_led(header.view):
            s.refuse(message, DropReason.OUT_OF_BOUNDS)
            return
        if ruling.act is ENTER_FIRST:
            transitions.on_newer_view(s, header.view)
            ruling = admission.look(s, header, may_be_newer=False)
        if ruling.act is ACCEPT:
            transition = _HANDLERS[header.command](s, message)
            if transition is not None:
                transitions.carry_out(s, transition)
            return
        if admission.is_of_its_primary(s, header, ruling):
            signs_of_life.hear(s, s.peers[header.replica])
        if ruling.act is Act.ENTER:
            transitions.on_newer_view(s, header.view)
        elif ruling.reason is not None:
            (s.refuse if ruling.act is Act.REFUSE else s.drop)(message, ruling.reason)
            if ruling.act is Act.INFORM:
                signs_of_life.inform(s, header.replica)

    def peer_gone(self, replica: int, now: int) -> None:
        """Nothing listens any more at the address of another replica, which was there: its process has ended."""
        s = self.state
        s.now = now
        if replica in s.peers:
            transitions.carry_out(s, signs_of_life.miss(s, replica))

    def propose(self, message: Message, now: int) -> Admission:
        """A client's request. Refusals are answered with a REJECT frame."""
        s = self.state
        s.now = now
        if bounds.find(s, message.header) is not None or message.header.operation not in REQUESTED:
            s.reject(message, Reason.MALFORMED)
            return Admission.REJECTED
        return s.role.propose(s, message)

    def tick(self, now: int) -> None:
        """Let expired timers act. To be called at or after `next_deadline`; never harmful."""
        s = self.state
        s.now = now
        signs_of_life.tick(s)
        transitions.carry_out(s, s.role.tick(s))
        repair.tick(s)

    def durable(self, token: int, now: int) -> None:
        """What was asked under `token` is on the disk: releases what depended on it. Tokens complete in the order
        given out."""
        s = self.state
        s.now = now
        transitions.carry_out(s, journaling.on_durable(s, token))

    def not_written(self, token: int, ops: Collection[int]) -> None:
        """Of what was asked under `token` the journal has no certain place for these entries."""
        journaling.on_not_written(self.state, token, ops)

    def applied_op(self, op: int, results: Sequence[Result], now: int) -> None:
        """The state machine has executed `op`; called in the order of Work.apply."""
        self.state.now = now
        execution.on_applied(self.state, op, results)

    def entry_faulty(self, op: int, header: Header | None, now: int) -> None:
        """A read from the journal found `op` damaged: fetch it again from a peer. `header` is what
        its witness says, None when that is damaged too. Applying waits for the repair."""
        self.state.now = now
        journaling.on_faulty(self.state, op, header)

    def checkpointed(self, op: int) -> None:
        """The checkpoint of `op` is durable here: peers hear of it with the next frame."""
        self.state.execution.checkpoint_op = op
        self.state.emit(EventKind.CHECKPOINTED, op)

    def trimmed(self, first_op: int) -> None:
        """A committed TRIM was executed: the log begins with `first_op`."""
        execution.on_trimmed(self.state, first_op)

    def propose_trim(self, first_op: int, first_position: int, now: int) -> bool:
        """As primary: have the log begin with `first_op`, a committed one, whose first event is
        first_position. False when that can not be proposed now; see `trimmable_op`."""
        s = self.state
        s.now = now
        return isinstance(s.role, Leading) and s.role.propose_trim(s, first_op, first_position)

    def set_clock_offset(self, offset_ns: int) -> None:
        """Nanoseconds to add to `now` to obtain the time since 1970."""
        self.state.clock.offset = offset_ns

    def ask_clocks(self, now: int) -> None:
        """Have the other members say what time it is by their clocks."""
        self.state.now = now
        clocks.ask(self.state)

    def time_of_a_quorum(self, own_ns: int, now: int) -> int | None:
        """See vsr/clocks.py. own_ns: since 1970, by this machine's clock."""
        return clocks.told_by_a_quorum(self.state, own_ns, now)

    def set_now(self, now: int) -> None:
        """What is derived from the time of the last input, as of now."""
        self.state.now = now

    def set_room(self, room: Room) -> None:
        """What the journal has room for: to be said before each round."""
        self.state.disk.room = room

    def set_superblock(self, sequence: int) -> None:
        """How far the superblock of this replica is: others know its life by that."""
        self.state.disk.sequence = sequence

    @property
    def doorkeeper(self) -> identity.Doorkeeper:
        """Who is let in, and who does not let this replica in."""
        return identity.Doorkeeper(self.state)

    @property
    def refused_for(self) -> Reason | None:
        """Why this replica is no member of its cluster, when enough others say so."""
        return identity.final_refusal(self.state)

    def set_short_of_space(self, is_short: bool) -> None:
        """Whether the file system has less left than it should."""
        self.state.disk.is_short_of_space = is_short

    def drop(self, message: Message, reason: DropReason) -> None:
        """A frame or an entry that the driver does not act upon."""
        self.state.drop(message, reason)

    def refuse(self, message: Message, reason: DropReason) -> None:
        """A frame that no honest replica sends: its connection is to be closed."""
        self.state.refuse(message, reason)

    def drain(self) -> None:
        """Refuse new requests from now on; what is under way goes on."""
        self.state.draining = True

    def step_down(self, now: int) -> None:
        """As primary: ask the others to take over, and stop leading."""
        s = self.state
        s.now = now
        if isinstance(s.role, Leading):
            transitions.carry_out(s, s.role.abdicate(s, GaveUp.DRAINED if s.draining else GaveUp.ABDICATED))

    # Outputs

    def take_work(self) -> Work:
        """Everything to do since the last call."""
        s = self.state
        s.disk.wants_room = False
        s.role.flush(s)
        if s.repairs.is_due:
            repair.go_on(s)
        s.note_committed()
        journaling.write(s)
        s.role.acknowledge(s)
        execution.hand_out(s)
        if s.execution.recover_to is not None:
            execution.note_recovered(s)
        return s.outbox.take()

    def acknowledge(self) -> None:
        """Something has become durable: say so before anything is executed. See `take_sends`."""
        self.state.role.acknowledge(self.state)

    def take_sends(self) -> list[ToReplica | ToClient]:
        """What may leave before the next round: acknowledgements, and replies."""
        return self.state.outbox.work.take_sends()

    @property
    def is_at_rest(self) -> bool:
        """Whether there is nothing to do until something comes in: `take_work` would be in vain, but for what is told
        (see `take_events`)."""
        return rest.is_at_rest(self.state)

    def take_events(self) -> list[Event]:
        """What has happened since the last round, when there is to be no other."""
        work = self.state.outbox.work
        events, work.events = work.events, []
        return events

    @property
    def wants_room(self) -> bool:
        """Whether the last round held something back for lack of room in the journal: see `set_room`."""
        return self.state.disk.wants_room

    def next_deadline(self) -> int | None:
        """When `tick` has something to do; None when only an input can change anything."""
        s = self.state
        if s.disk.wants_room or (s.execution.emitted < s.commit_max and execution.is_waiting(s)):
            return s.now
        due = s.role.deadline(s)
        for at in (s.repairs.timer.deadline, s.own.ping_timer.deadline):
            if at is not None and (due is None or at < due):
                due = at
        return due

    def snapshot(self) -> Snapshot:
        """State for status and gauges."""
        return snapshot.of(self.state)

    def headers_message(self, headers: Sequence[Header], nonce: int) -> Message | None:
        """The HEADERS frame for ServeHeaders; None when nothing can be said."""
        return repair.headers_message(self.state, headers, nonce)

    @property
    def applied(self) -> int:
        """The last op that is executed."""
        return self.state.execution.applied

    @property
    def checkpoint_op(self) -> int:
        """The op of the durable checkpoint."""
        return self.state.execution.checkpoint_op

    @property
    def leading(self) -> Leading | None:
        """What it knows as the primary of a view that has begun; None when it is not that."""
        role = self.state.role
        return role if isinstance(role, Leading) else None

    @property
    def trimmable_op(self) -> int:
        """Highest op with which the log may begin: what is before is in a durable checkpoint of every
        replica, so that none will ever need it to catch up."""
        return execution.trimmable_op(self.state)

    def is_committed(self, header: Header) -> bool:
        """Whether that is the header of a committed op of this log."""
        log = self.state.log
        return log.knows(header) and header.op <= log.committed


def _never(s: State, message: Message) -> Transition | None:
    """What vsr.identity heeds by itself."""
    raise InvariantError(f"{command_text(message.header.command)} is an answer, and never let in")


_HANDLERS: dict[int, Callable[[State, Message], Transition | None]] = {
    Command.PREPARE: lambda s, message: s.role.on_prepare(s, message),
    Command.PREPARE_OK: lambda s, message: s.role.on_prepare_ok(s, message),
    Command.COMMIT: lambda s, message: s.role.on_commit(s, message),
    Command.START_VIEW_CHANGE: lambda s, message: s.role.on_start_view_change(s, message),
    Command.DO_VIEW_CHANGE: lambda s, message: s.role.on_do_view_change(s, message),
    Command.START_VIEW: lambda s, message: s.role.on_start_view(s, message),
    Command.PING: lambda s, message: s.role.on_ping(s, message),
    Command.PONG: lambda s, message: s.role.on_ping(s, message),
    Command.REJECT: _never,
    Command.CONFIG: _never,
    Command.REQUEST_PREPARE: repair.on_request_prepare,
    Command.REQUEST_HEADERS: repair.on_request_headers,
    Command.HEADERS: repair.on_headers,
}
