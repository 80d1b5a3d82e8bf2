"""Who takes part, who leads which view, and how many of them suffice: a value, made anew when any of that changes.

A set of replicas is a bit set: bit i stands for replica i. Nothing else of Kimberlite counts replicas for a quorum or
takes a view modulo anything: core, simulator and tools ask here.

Two rules of who leads a view. Data with an identity: slot view % 16, for ever, whoever the members are; a view whose
slot is no voter's is skipped. So replicas that know different members never disagree on who leads a view. Data of the
first release: replica view % their number. A view that has been led under one rule must never be led under the other:
data that changes from the first to the second goes on with a view above all of before, VIEW_BORN.

Pure. Imports types, quorum and record only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kimberlite.types import SLOTS, VIEW_BORN, ZERO16
from kimberlite.vsr import quorum
from kimberlite.vsr.quorum import Quorums
from kimberlite.vsr.record import Record, Role

# A multiple of it has no remainder by 1 to 6 nor by 16.
SHOWN = 240


def leader_of(view: int) -> int:
    """The slot that leads a view, of data with an identity."""
    return view % SLOTS


class Membership(NamedTuple):
    """The voters of a cluster, and their quorums. turns: views after which the same slot is to lead again. expected:
    of the voters those that may come; others are lost, and count in the sizes of quorums only. is_converted: the log
    began before its replicas had an identity."""

    voters: tuple[int, ...]  # replicas, ascending
    quorums: Quorums
    turns: int
    expected: int
    is_converted: bool = False

    @classmethod
    def of(cls, replica_count: int) -> Membership:
        """Replicas 0 up to, not including, that number, on data of the first release."""
        return cls(tuple(range(replica_count)), quorum.quorums(replica_count), replica_count, (1 << replica_count) - 1)

    @classmethod
    def of_record(cls, record: Record) -> Membership:
        """Those that a record names, or a draft of one."""
        voters = record.voters
        expected = bit_set(member.slot for member in record.members if member.role is Role.VOTER)
        return cls(voters, quorum.quorums(len(voters)), SLOTS, expected, record.origin == ZERO16)

    # Views

    def leader(self, view: int) -> int:
        """The replica that leads a view, if that view begins; perhaps one that is no voter."""
        return view % self.turns

    def is_led(self, view: int) -> bool:
        """Whether a voter leads it. No honest replica enters another one."""
        return view % self.turns in self.voters

    def next_view(self, view: int) -> int:
        """The view that follows: views that nobody leads are skipped."""
        view += 1
        while view % self.turns not in self.voters:
            view += 1
        return view

    def view_before(self, view: int) -> int:
        """The view that it follows; -1: none."""
        view -= 1
        while view >= 0 and view % self.turns not in self.voters:
            view -= 1
        return view

    def shown(self, view: int) -> int:
        """The number by which clients know it. They take it modulo the number of members that they have been told;
        clients of the first release always have, and one that lives through the change of the rule goes on to."""
        return view if self.turns < SLOTS else view * SHOWN + view % SLOTS

    # Quorums

    def committed(self, acks: int) -> bool:
        """Whether an op that these have on their disks is committed."""
        return quorum.reached(acks, self.quorums.replication)

    def may_leave_view(self, votes: int) -> bool:
        """Whether these suffice to leave a view."""
        return quorum.reached(votes, self.quorums.view_change)

    def may_begin_view(self, evidence: int, log_view: int) -> bool:
        """Whether the evidence of these suffices to begin a view. log_view: the newest log that any of it is of."""
        if self.is_in_doubt(log_view):
            return self._is_everybody(evidence)
        return quorum.reached(evidence, self.quorums.view_change)

    def is_in_doubt(self, view: int) -> bool:
        """Whether what was made in that view may have been acknowledged by a disk that was formatted anew since, or put
        back to an older state: nothing of before the birth tells. Then its word that it never did so is worth nothing;
        everybody is asked, and nothing of which there is a copy is dropped. That also holds in later views, until the
        ops of before are committed in one of them."""
        return self.is_converted and view < VIEW_BORN

    def may_drop(self, nacks: int, evidence: int, made: int, has_copy: bool) -> bool:
        """Whether an op that these never acknowledged can not have been committed. evidence: whose word is known. made:
        the earliest view in which it can have been made. has_copy: somebody has it."""
        if self.is_in_doubt(made) and (has_copy or not self._is_everybody(evidence)):
            return False
        return quorum.reached(nacks, self.quorums.nack)

    def _is_everybody(self, replicas: int) -> bool:
        return replicas & self.expected == self.expected


def bit_set(replicas: Iterable[int]) -> int:
    """The set of these replicas."""
    bits = 0
    for replica in replicas:
        bits |= 1 << replica
    return bits
