"""Quorum sizes, as a table one can check by eye.

replication + view_change > n: every view change meets every committed op.
replication + nack > n: a nack quorum leaves no replication quorum that could have committed.
Source: flexible quorums (Howard et al. 2016); two replicas need both for everything.
"""

from __future__ import annotations

from typing import NamedTuple


class Quorums(NamedTuple):
    """Numbers of distinct replicas."""

    replication: int
    view_change: int
    nack: int


_TABLE = {
    1: Quorums(1, 1, 1),
    2: Quorums(2, 2, 1),
    3: Quorums(2, 2, 2),
    4: Quorums(2, 3, 3),
    5: Quorums(3, 3, 3),
    6: Quorums(3, 4, 4),
}


def quorums(replica_count: int) -> Quorums:
    """Quorums of a cluster of that size."""
    return _TABLE[replica_count]


def reached(votes: int, quorum: int) -> bool:
    """Whether the bit set `votes` (bit i = replica i) holds at least `quorum` replicas."""
    return votes.bit_count() >= quorum
