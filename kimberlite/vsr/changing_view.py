"""A replica that has left a view: it gives evidence to the primary of the next, or as that one chooses the log.

    enough votes --> view persisted --> do_view_change
    quorum of do_view_change --> choose() --> log_view persisted --> start_view
    start_view --> installed, log_view persisted --> fresh acknowledgements

VRR section 4.2, repaired: a view is left only with a quorum of votes, which expire and are withdrawn when the primary
is heard (vsr.role); what is lost is told from what never was (vsr.choice); old ops commit only by acknowledgements of
the new view. A view that does not begin in time is voted out like any other, with back-off.
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import FLAG_DISK_FULL, Command, Header, Message, Status
from kimberlite.vsr import evidence, installation
from kimberlite.vsr.choice import Choice, DoViewChange, choose, has_copy
from kimberlite.vsr.codec import SUFFIX_OPS_MAX, encode_evidence
from kimberlite.vsr.events import DropReason, EventKind, GaveUp
from kimberlite.vsr.members import bit_set
from kimberlite.vsr.role import BecomeFollower, BecomeLeader, Between, Story, Transition, note_disk
from kimberlite.vsr.timers import Timer

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


class ChangingView(Between):
    """See the module docstring."""

    __slots__ = ("_resend_timer", "evidence", "full_peers", "nonce")

    status = Status.VIEW_CHANGE

    def __init__(self, story: Story) -> None:
        self._resend_timer = Timer()  # of the own evidence
        super().__init__(story, self._resend_timer)
        self.evidence: dict[int, DoViewChange] = {}  # replica -> what it gave, as the primary of this view
        self.full_peers: set[int] = set()  # who says that its disk is full
        self.nonce = 0  # of the own evidence; 0: none was given yet

    def begin(self, s: State) -> None:
        """The view is entered: make that durable, then give evidence."""
        self._resend_timer.start(s.now + s.prng.jitter(s.config.timing.do_view_change_resend_ns))
        self.start_timer(s)
        # Who is gone will not lead it: as soon as this view is durable, it is voted out.
        self.votes.is_cast = not s.is_primary and s.is_gone(s.primary)
        s.persist_view()

    def resume(self, s: State) -> None:
        """The view was entered before the restart, and is durable."""
        self._resend_timer.start(s.now)
        view_change_ns = s.config.timing.view_change_ns
        self._timer.start(s.now + view_change_ns + s.prng.below(view_change_ns))

    @property
    def stuck_op(self) -> int:
        return self._story.stuck_op

    def tick(self, s: State) -> Transition | None:
        left = super().tick(s)
        if left is None and self._resend_timer.due(s.now):
            self._resend_timer.start(s.now + s.prng.jitter(s.config.timing.do_view_change_resend_ns))
            if s.outbox.promise is None:
                return self._send_evidence(s)
        return left

    def on_promise_durable(self, s: State) -> Transition | None:
        if s.log_view == s.view:
            if s.is_primary:
                nonces = {replica: given.nonce for replica, given in self.evidence.items()}
                return BecomeLeader(self._story, nonces, self.full_peers)
            return BecomeFollower(self._story)
        left = self._send_evidence(s)
        if left is None and self.votes.is_cast:
            self.votes.timer.start_if_idle(s.now)
        return left

    # Evidence

    def _send_evidence(self, s: State) -> Transition | None:
        """Give evidence to the primary of this view, and so ask it for the log. Only a start_view with the nonce of
        that is installed: a forged log would be evidence in every later view, and what is sent here only the replica
        at the configured address can read."""
        given = evidence.own(s)
        self.nonce = self.nonce or s.next_nonce()
        message = s.make(
            Command.DO_VIEW_CHANGE,
            encode_evidence(given),
            op=s.log.op,
            log_view=s.log_view,
            count=len(given.headers),
            flags=FLAG_DISK_FULL if s.is_disk_full else 0,
            nonce=self.nonce,
        )
        if s.is_primary:
            return self.on_do_view_change(s, message)
        s.send(s.primary, message)
        return None

    def on_do_view_change(self, s: State, message: Message) -> Transition | None:
        given = evidence.read(s, message)
        if given.replica != s.index:
            note_disk(self.full_peers, message.header)
        self.evidence[given.replica] = given
        if s.log_view < s.view and s.outbox.promise is None:
            return self._try_to_choose(s)
        return None

    def enough_evidence(self, s: State) -> bool:
        """Own evidence counts, and arrives here like any other."""
        newest = max((given.log_view for given in self.evidence.values()), default=0)
        return s.index in self.evidence and s.membership.may_begin_view(bit_set(self.evidence), newest)

    def _try_to_choose(self, s: State) -> Transition | None:
        if not self.enough_evidence(s):
            return None
        choice = choose(list(self.evidence.values()), s.membership)
        if not choice.suffix:
            self._story.stuck_op = choice.stuck_op
            s.emit(EventKind.STUCK, choice.stuck_op, len(self.evidence))
            return None
        canonical = min(s.log.linked if s.log_view == choice.log_view else s.log.committed, choice.commit)
        if len(choice.suffix) > SUFFIX_OPS_MAX or not installation.agrees(s, choice.suffix, canonical):
            # Somebody's evidence is forged: all is asked for again, and who sent it honestly does so by itself.
            s.emit(EventKind.DROPPED, Command.DO_VIEW_CHANGE, DropReason.BROKEN_CHAIN)
            self.evidence = {s.index: self.evidence[s.index]}
            return None
        gap = ops_behind(s, choice, canonical)
        if self.is_far_behind(s, choice, gap):
            # Nothing would be answered before it has caught up: whoever has the log leads.
            return self._forfeit(s, choice.commit, gap, GaveUp.BEHIND)
        if s.is_disk_full and installation.lacks_entries(s, choice.suffix):
            # It could not answer anybody before somebody makes room on its disk.
            return self._forfeit(s, choice.commit, choice.suffix[-1].op - s.log.durable, GaveUp.DISK_FULL)
        if choice.dropped:
            s.emit(EventKind.SUFFIX_DROPPED, choice.suffix[-1].op + 1, choice.dropped)
        s.learn_commit(choice.commit)
        installation.install(s, choice.suffix, canonical)
        return None

    def is_far_behind(self, s: State, choice: Choice, gap: int) -> bool:
        """Whether this candidate lacks much of what is committed, and another that gave evidence has it. It gives its
        view up at once, and does not have to again: who has the log is not left while others catch up with it."""
        others = (given for given in self.evidence.values() if given.replica != s.index)
        return gap > s.config.forfeit_gap and any(has_copy(m, choice.commit, choice.suffix[0]) for m in others)

    def _forfeit(self, s: State, commit: int, gap: int, why: GaveUp) -> Transition | None:
        """Leave the lead of this view to another before it begins."""
        self._story.gave_up = s.view, why
        s.emit(EventKind.FORFEITED, commit, gap, why)
        return self.suspect(s)

    # The log of the view

    def on_log(self, s: State, message: Message, suffix: tuple[Header, ...]) -> Transition | None:
        """Install it, once, when it answers the own evidence."""
        header = message.header
        if self.is_answer(header):
            s.learn_commit(header.commit)
            installation.install(s, suffix, s.log.committed)
            return None
        s.drop(message, DropReason.UNWANTED)
        return self._send_evidence(s) if s.outbox.promise is None else None

    def is_answer(self, header: Header) -> bool:
        """Whether a start_view answers the evidence that this replica gave in this view."""
        return header.nonce == self.nonce != 0


def ops_behind(s: State, choice: Choice, canonical: int) -> int:
    """How much of what is committed this candidate lacks. What it holds of an older view's log is nothing that it
    has, unless the chosen one is known to have it too."""
    return choice.commit - min(s.log.linked, s.log.same_up_to(choice.suffix, canonical))
