"""Who takes part, who leads which view, and how many of them suffice: a value, made anew when any of that changes.

A set of replicas is a bit set: bit i stands for replica i. Nothing else of the core counts replicas or takes a
view modulo their number. Pure. Imports quorum only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kimberlite.vsr import quorum
from kimberlite.vsr.quorum import Quorums


class Membership(NamedTuple):
    """The voters of a cluster, and their quorums."""

    voters: tuple[int, ...]  # replicas, ascending
    quorums: Quorums

    @classmethod
    def of(cls, replica_count: int) -> Membership:
        """Replicas 0 up to, not including, that number."""
        return cls(tuple(range(replica_count)), quorum.quorums(replica_count))

    def leader(self, view: int) -> int:
        """The replica that leads a view, if that view begins."""
        voters = self.voters
        return voters[view % len(voters)]

    def committed(self, acks: int) -> bool:
        """Whether an op that these have on their disks is committed."""
        return quorum.reached(acks, self.quorums.replication)

    def may_leave_view(self, votes: int) -> bool:
        """Whether these suffice to leave a view, and to begin the next one."""
        return quorum.reached(votes, self.quorums.view_change)

    def nacked(self, nacks: int) -> bool:
        """Whether an op that these never acknowledged can not have been committed."""
        return quorum.reached(nacks, self.quorums.nack)


def bit_set(replicas: Iterable[int]) -> int:
    """The set of these replicas."""
    bits = 0
    for replica in replicas:
        bits |= 1 << replica
    return bits
