"""The quorum table: every intersection that safety rests on, for every cluster size."""

from __future__ import annotations

from itertools import combinations

import pytest

from kimberlite.vsr.quorum import quorums, reached


@pytest.mark.parametrize("count", range(1, 7))
def test_quorums_intersect(count: int) -> None:
    replication, view_change, nack = quorums(count)
    replicas = range(count)
    for committed in combinations(replicas, replication):
        for voters in combinations(replicas, view_change):
            assert set(committed) & set(voters), "a view change must meet every committed op"
        if count > 1:
            for nackers in combinations(replicas, nack):
                assert set(committed) & set(nackers), "a nack quorum must exclude every commit"
    assert 2 * view_change > count, "two views cannot be entered by disjoint quorums"


@pytest.mark.parametrize(("votes", "quorum", "expected"), [(0b001, 2, False), (0b101, 2, True), (0b111, 3, True)])
def test_votes_are_counted_by_replica(votes: int, quorum: int, expected: bool) -> None:
    assert reached(votes, quorum) is expected


def test_a_vote_counts_once() -> None:
    votes = 0
    for _ in range(5):
        votes |= 1 << 2
    assert not reached(votes, 2)
