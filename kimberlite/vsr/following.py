"""The backup of a view: it appends what the primary prepares, and acknowledges what is on its disk.

VRR section 4.1 with these differences: an acknowledgement names the entry by identity and is cumulative (it names n
only when everything up to n is durable and chained, so one frame answers for a whole group); it echoes the heartbeat
that it answers. A primary that falls silent is suspected, and its view voted out (vsr.role).
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import FLAG_DISK_FULL, Command, Header, Message, Status
from kimberlite.vsr import conflict, repair
from kimberlite.vsr.codec import follows
from kimberlite.vsr.config import PIPELINE_LIMIT
from kimberlite.vsr.events import DropReason
from kimberlite.vsr.journaling import acknowledged_op
from kimberlite.vsr.role import Role, Transition

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


PREPARE_OK = Command.PREPARE_OK  # for every acknowledgement: looked up in a quarter of the time


class Following(Role):
    """See the module docstring."""

    __slots__ = ("ack_due", "echo_nonce", "trimmed_by_primary")

    status = Status.NORMAL

    def __init__(self) -> None:
        super().__init__()
        self.ack_due = True  # what it has is acknowledged anew in each view
        self.echo_nonce = 0  # of the last heartbeat, until that is answered
        self.trimmed_by_primary = 0  # first op that the primary has, as last heard

    def deadline(self, s: State) -> int | None:
        due, votes = s.detector.deadline, self.votes
        again = votes.timer.deadline
        if votes.is_cast:
            return again
        return due if again is None or due < again else again

    def tick(self, s: State) -> Transition | None:
        if not self.votes.is_cast and s.now >= s.detector.deadline:
            return self.suspect(s)
        return self.tick_votes(s)

    # The log

    def on_prepare(self, s: State, message: Message) -> Transition | None:
        """Append the next one, keep one that came early."""
        header = message.header
        log = s.log
        self.heard_primary(s)
        s.learn_commit(header.commit)
        s.scope.known_head = max(s.scope.known_head, header.op)
        if self.is_held_back(s):
            s.drop(message, DropReason.BOUND)  # repair fetches it when there is room
            repair.wake(s)
        elif header.op == log.op + 1 and log.op in log.headers:
            early = s.repairs.early
            is_next = self._accept(s, message)
            while early and is_next and not self.is_held_back(s):
                following = early.pop(log.op + 1, None)
                is_next = following is not None and self._accept(s, following)
        elif header.op > log.op:
            self.keep_early(s, message)
            repair.wake(s)
        else:
            s.drop(message, DropReason.DUPLICATE)
        return None

    def is_held_back(self, s: State) -> bool:
        """A full disk, or one that does not keep up: bodies that can not be written are kept up to a bound."""
        if s.log.is_waiting_for_room and s.log.op - s.log.journal_head >= PIPELINE_LIMIT:
            return True
        if not s.is_backed_up:
            return False
        s.log.let_go_of_written(s.execution.applied)
        return s.is_backed_up

    def keep_early(self, s: State, message: Message) -> None:
        """A prepare that came before its turn. When there is no place the one furthest ahead goes: it is wanted last,
        and a number that nobody ever reaches must not keep the place of others."""
        early = s.repairs.early
        early[message.header.op] = message
        if len(early) > s.config.pipeline_max:
            s.drop(early.pop(max(early)), DropReason.BOUND)

    def _accept(self, s: State, message: Message) -> bool:
        """Append the next prepare; False when it does not continue this log: then one of the two is forged."""
        header = message.header
        if not follows(s.log.headers[s.log.op], header):
            s.drop(message, DropReason.BROKEN_CHAIN)
            return False
        s.log.append(message)
        s.scope.entered[header.op] = s.now
        s.learn_commit(header.commit)
        return True

    # Signs of life of the primary

    def heard_primary(self, s: State) -> None:
        """Withdraw a vote against it."""
        s.detector.heard(s.now)
        if self.votes.is_cast:
            self.votes.withdraw(s.index)
        primary = s.peers[s.primary]
        primary.last_heard, primary.is_gone = s.now, False

    def on_known_prepare(self, s: State, header: Header) -> None:
        if header.view == s.view and header.op <= s.log.durable:
            self.heard_primary(s)
            self.ack_due = True  # perhaps the acknowledgement was lost

    def on_commit(self, s: State, message: Message) -> Transition | None:
        """The heartbeat: the commit number, the head, and a question that is echoed."""
        header = message.header
        self.heard_primary(s)
        conflict.look(s, header)
        # The primary's last word, also when one before said more: that was another's.
        s.scope.commit_heard = header.commit
        s.scope.known_head = header.op
        s.note_committed()
        s.peers[header.replica].says(header.op)
        self.trimmed_by_primary = s.log.gone_below = header.request
        self.echo_nonce = header.nonce
        self.ack_due = True
        if s.scope.known_head > s.log.op or s.log.durable < s.log.op:
            repair.wake(s)
        return None

    # Acknowledgements

    def on_entries_durable(self, s: State) -> None:
        self.ack_due = True

    def may_acknowledge(self, s: State) -> bool:
        """A backup speaks for its log only when that is of the view it is in, and both are durable."""
        return s.log_view == s.view and s.outbox.promise is None

    def is_at_rest(self, s: State) -> bool:
        return not self.ack_due

    def acknowledge(self, s: State) -> None:
        """One cumulative acknowledgement, when one is due."""
        if not self.ack_due or not self.may_acknowledge(s):
            return
        self.ack_due = False
        op = acknowledged_op(s)
        header = s.log.headers.get(op)
        if header is None:
            return
        nonce, self.echo_nonce = self.echo_nonce, 0
        flags = FLAG_DISK_FULL if s.is_disk_full else 0
        s.send(s.primary, s.make(PREPARE_OK, op=op, context=header.checksum, nonce=nonce, flags=flags))
