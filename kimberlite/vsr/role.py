"""What a replica does now: the one object that is made anew when that changes.

    Leading       primary of its view, normal status         leading.py
    Following     backup of its view, normal status          following.py
    ChangingView  has left a view, the next has not begun    changing_view.py
    Recovering    led its view before the restart            recovery.py

To create a role is to enter it, to drop it is to leave it: what belongs to a role lives and dies with it, and nothing
is reset by hand. Roles do not know each other. A handler that ends its role returns a transition; the replica carries
that out. Every role has every handler: which frames come to which role is said by vsr.admission, and a frame that it
lets in and that no handler wants is a bug.

Imports types, codec, installation, membership, timers and work only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

from kimberlite.errors import InvariantError
from kimberlite.types import FLAG_DISK_FULL, Command, Header, Message, Reason, Status
from kimberlite.vsr import clocks, identity, installation
from kimberlite.vsr.codec import decode_chain
from kimberlite.vsr.events import DropReason, EventKind, GaveUp, ViewChangeCause
from kimberlite.vsr.members import bit_set
from kimberlite.vsr.sessions import Result
from kimberlite.vsr.timers import Timer
from kimberlite.vsr.work import Admission

if TYPE_CHECKING:
    from kimberlite.vsr.state import Peer, Prepared, State


class Born(NamedTuple):
    """This replica is a member of its cluster: it begins as after any start."""


class EnterView(NamedTuple):
    """Leave the present view for that one, which no replica has seen begin yet."""

    view: int
    cause: ViewChangeCause


class BecomeLeader(NamedTuple):
    """The log of the own view is installed and durable, and this replica leads it."""

    story: Story
    nonces: dict[int, int]  # replica -> nonce of the evidence that it gave
    full_peers: set[int]


class BecomeFollower(NamedTuple):
    """The log of a view that another replica leads is installed and durable."""

    story: Story


Transition: TypeAlias = EnterView | BecomeLeader | BecomeFollower | Born


@dataclass(slots=True)
class Story:
    """A view change that is not over, through all the views that were tried. Nanoseconds."""

    left_at: int  # when this replica left the last view that had begun, or when it started
    failed: int = 0  # view changes that took too long
    stuck_op: int = 0  # of which the evidence has neither a copy nor certain absence; 0: none
    gave_up: tuple[int, GaveUp] | None = None  # the last view that this replica would not lead any more
    cause: ViewChangeCause | None = None  # why it left the last view that had begun; None: it has just started


class Votes:
    """To leave one view, as one role has heard them."""

    __slots__ = ("at", "is_cast", "timer")

    def __init__(self) -> None:
        self.at: dict[int, int] = {}  # replica -> when it last voted
        self.is_cast = False  # this replica votes to leave the view
        self.timer = Timer()  # when it says so again

    def withdraw(self, replica: int) -> None:
        """The vote of this replica, which is `replica`: it is not said again, and does not count here either when
        another one votes a little later."""
        self.is_cast = False
        self.timer.stop()
        self.at.pop(replica, None)


class Role:
    """What all roles do, and what one does that has nothing to say. See the module docstring."""

    __slots__ = ("timers", "votes")

    status: ClassVar[Status]
    is_leading: ClassVar[bool] = False

    def __init__(self, *timers: Timer) -> None:
        self.votes = Votes()
        self.timers = (self.votes.timer, *timers)  # all that this role waits for

    # Frames: one handler a command

    def on_prepare(self, s: State, message: Message) -> Transition | None:
        """The next entry of the log, from the primary of this view."""
        raise self._unexpected(message)

    def on_prepare_ok(self, s: State, message: Message) -> Transition | None:
        """An acknowledgement, for the primary of this view."""
        raise self._unexpected(message)

    def on_commit(self, s: State, message: Message) -> Transition | None:
        """The heartbeat of the primary of this view."""
        raise self._unexpected(message)

    def on_do_view_change(self, s: State, message: Message) -> Transition | None:
        """Evidence, for the primary of this view."""
        raise self._unexpected(message)

    def on_start_view_change(self, s: State, message: Message) -> Transition | None:
        """A vote to leave this view."""
        replica = message.header.replica
        left = self._count_vote(s, replica)
        if left is None and replica == s.primary and not self.votes.is_cast:
            return self.on_primary_leaves(s)
        return left

    def on_start_view(self, s: State, message: Message) -> Transition | None:
        """The log with which a view begins. One of a newer view is believed as news of that view and no more:
        evidence is given there, and answered."""
        if not installation.is_wanted(s, message.header.view):
            s.drop(message, DropReason.OLD_VIEW)
            return None
        suffix = tuple(decode_chain(s.codec, message.body))
        installation.check_suffix(s, message.header, suffix)
        if not installation.agrees(s, suffix, s.log.committed):
            s.refuse(message, DropReason.BROKEN_CHAIN)
            return None
        if message.header.view > s.view:
            return EnterView(message.header.view, ViewChangeCause.NEWER_VIEW)
        return self.on_log(s, message, suffix)

    def on_log(self, s: State, message: Message, suffix: tuple[Header, ...]) -> Transition | None:
        """The log with which this view begins."""
        raise self._unexpected(message)

    def on_ping(self, s: State, message: Message) -> Transition | None:
        """A replica tells its view, and what its log holds."""
        header = message.header
        s.peers[header.replica].says(header.op)
        clocks.hear(s, header)
        if header.flags & identity.FLAG_ASKS and header.command == Command.PING:
            s.send(header.replica, identity.sign_of_life(s, Command.PONG))
        return None

    # Before its cluster is born (vsr.birth); from whom, says vsr.identity

    def on_unborn(self, s: State, message: Message) -> None:
        """A sign of life of another one that is not born yet."""

    def on_record(self, s: State, message: Message) -> None:
        """The record of the cluster: known here."""

    def _unexpected(self, message: Message) -> InvariantError:
        name = Command(message.header.command).name
        return InvariantError(f"a frame that vsr.admission lets in has a handler: {name}, {type(self).__name__}")

    # Votes

    def suspect(self, s: State) -> Transition | None:
        """Vote to leave this view."""
        if not self.votes.is_cast:
            s.emit(EventKind.SUSPECTED, s.view, self.cause(s), s.silence_of(s.primary))
        self.votes.is_cast = True
        return self._vote(s)

    def on_primary_leaves(self, s: State) -> Transition | None:
        """The primary itself asks to be replaced, or gives its view up before it begins."""
        return self.suspect(s)

    def on_gone(self, s: State, replica: int) -> Transition | None:
        """The process of another replica has ended."""
        return self.suspect(s) if replica == s.primary and not self.votes.is_cast else None

    def tick_votes(self, s: State) -> Transition | None:
        """Say again what has been said: votes get lost."""
        if self.votes.timer.due(s.now) and self.votes.is_cast:
            return self._vote(s)
        return None

    def _vote(self, s: State) -> Transition | None:
        self.votes.timer.start(s.now + s.prng.jitter(s.config.timing.vote_resend_ns))
        s.broadcast(s.make(Command.START_VIEW_CHANGE))
        return self._count_vote(s, s.index)

    def _count_vote(self, s: State, replica: int) -> Transition | None:
        """Each vote counts in the view it names, for as long as it is fresh."""
        self.votes.at[replica] = s.now
        window = s.config.timing.vote_window_ns
        fresh = bit_set(replica for replica, at in self.votes.at.items() if s.now - at <= window)
        if self.enough_votes(s, fresh) and s.outbox.may_promise:
            return EnterView(s.membership.next_view(s.view), self.cause(s))
        return None

    def enough_votes(self, s: State, fresh: int) -> bool:
        """A view is left only by a view-change quorum, whatever one replica believes."""
        return s.membership.may_leave_view(fresh)

    def cause(self, s: State) -> ViewChangeCause:
        """Why this replica leaves its view when a quorum has voted for that."""
        primary = s.peers.get(s.primary)
        is_gone = primary is not None and primary.is_gone
        return ViewChangeCause.PRIMARY_GONE if is_gone else ViewChangeCause.PRIMARY_SILENT

    # What happens to every role

    @property
    def stuck_op(self) -> int:
        """What a view change waits for: see Story. 0: for nothing."""
        return 0

    @property
    def sends_heartbeats(self) -> bool:
        """Whether all others hear of this replica anyway."""
        return False

    def deadline(self, s: State) -> int | None:
        """When `tick` has something to do; None: when something happens."""
        due = None
        for timer in self.timers:
            if timer.deadline is not None and (due is None or timer.deadline < due):
                due = timer.deadline
        return due

    def tick(self, s: State) -> Transition | None:
        """Timers."""
        return self.tick_votes(s)

    def flush(self, s: State) -> None:
        """A round begins: entries of its own."""

    def acknowledge(self, s: State) -> None:
        """What is on the disk by now: when something got there, and when a round ends."""

    def is_at_rest(self, s: State) -> bool:
        """Whether `flush` and `acknowledge` would do nothing. False: they have to be asked."""
        return False

    def propose(self, s: State, message: Message) -> Admission:
        """A client's request."""
        s.reject(message, Reason.NOT_PRIMARY)
        return Admission.REJECTED

    def on_entries_durable(self, s: State) -> None:
        """Entries written in this view reached the disk."""

    def on_promise_durable(self, s: State) -> Transition | None:
        """The superblock knows the view and log_view of this replica: what depended on it may go on."""
        return None

    def take_committed(self, op: int) -> Prepared | None:
        """What this primary made of the requests of `op`, when that is executed."""
        return None

    def answer(self, s: State, prepared: Prepared, results: Sequence[Result]) -> None:
        """Reply to the clients of an op that is executed."""

    def on_returned(self, s: State, peer: Peer) -> None:
        """A replica is heard again after a silence: it gets the time of a new op to come nearer, once."""
        if not peer.said.is_awaited:
            peer.said.progress_at, peer.said.is_awaited = s.now, True

    def on_known_prepare(self, s: State, header: Header) -> None:
        """An entry came once more."""

    def story(self, s: State) -> Story:
        """What the next view change begins with."""
        return Story(s.now)

    def leave(self, s: State) -> None:
        """Its view ends; still in it."""

    def dismiss(self, s: State) -> None:
        """Its view has ended; in the next one."""


class Between(Role):
    """Of a replica that neither leads nor follows: it waits for a view to begin, for so long, and votes to leave it
    then."""

    __slots__ = ("_story", "_timer")

    def __init__(self, story: Story, *timers: Timer) -> None:
        self._timer = Timer()  # patience with this view
        super().__init__(self._timer, *timers)
        self._story = story

    def story(self, s: State) -> Story:
        return self._story

    def start_timer(self, s: State) -> None:
        """So long this view has to begin: longer after each that did not."""
        timing = s.config.timing
        timeout = min(timing.view_change_ns << min(self._story.failed, 8), timing.view_change_max_ns)
        if not s.is_heard(s.primary):
            timeout //= 4  # who is silent will not lead it either
        self._timer.start(s.now + timeout + s.prng.below(timeout // 2))

    def tick(self, s: State) -> Transition | None:
        if self._timer.due(s.now):
            self._story.failed += 1
            left = self.suspect(s)
            if left is not None:
                return left
            self.start_timer(s)
        return self.tick_votes(s)


def note_disk(full_peers: set[int], header: Header) -> None:
    """What a frame says of the disk of its sender."""
    if header.flags & FLAG_DISK_FULL:
        full_peers.add(header.replica)
    else:
        full_peers.discard(header.replica)
