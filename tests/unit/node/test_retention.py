"""With which op the log should begin, and what is said of a trim that can not be made."""

from __future__ import annotations

import re

import pytest

from kimberlite.node import retention
from kimberlite.node.retention import PATIENCE_NS, SEGMENTS_MAX, Wait
from kimberlite.storage.interface import Extent

S = 1_000_000_000
# Five segments of 100 bytes and 10 ops each; the events of each are a second older than those of the next.
EXTENTS = [
    Extent(first_op=1 + 10 * n, first_position=100 * n, first_timestamp=(n + 1) * S, bytes_from_here=500 - 100 * n)
    for n in range(5)
]


@pytest.mark.parametrize(
    ("bytes_max", "age_max_s", "last_op", "chosen"),
    [
        (0, 0, 50, None),  # no limit
        (500, 0, 50, None),
        (400, 0, 50, 1),  # exactly what is to be kept
        (399, 0, 50, 1),
        (300, 0, 50, 2),
        (1, 0, 50, 4),  # the segment that is written stays
        (1, 0, 31, 3),  # no further than allowed
        (1, 0, 30, 2),
        (1, 0, 10, None),
        (0, 4, 50, 1),  # at 6 s: the second segment began 4 s ago, so that all of the first is older
        (0, 1, 50, 4),
        (0, 6, 50, None),
        (300, 4, 50, 2),  # whichever goes further
        (400, 2, 50, 3),
    ],
)
def test_what_is_chosen(bytes_max: int, age_max_s: int, last_op: int, chosen: int | None) -> None:
    found = retention.choose(EXTENTS, bytes_max=bytes_max, age_max_ns=age_max_s * S, now_ns=6 * S, last_op=last_op)
    expected = None if chosen is None else (EXTENTS[chosen].first_op, EXTENTS[chosen].first_position)
    assert found == expected


def test_no_more_segments_than_one_trim_may_take() -> None:
    many = [Extent(first_op=1 + n, first_position=n, first_timestamp=0, bytes_from_here=1000 - n) for n in range(900)]
    found = retention.choose(many, bytes_max=1, age_max_ns=0, now_ns=S, last_op=900)
    assert found == (1 + SEGMENTS_MAX, SEGMENTS_MAX)


def test_a_trim_that_waits_is_told_of_after_a_time_with_what_it_waits_for() -> None:
    wait = Wait()
    wait.look(1, 41, {0: 45, 1: 40, 2: 39}, now=5 * S)
    assert wait.since == 5 * S
    assert wait.reason(5 * S + PATIENCE_NS - 1) == ""
    wait.look(1, 51, {0: 55, 1: 40, 2: 39}, now=6 * S)
    assert wait.since == 5 * S, "it waits for the same trim and more"
    said = wait.reason(5 * S + PATIENCE_NS)
    assert re.search(r"waited 10 s for a checkpoint of op 50 on replica 1 .* op 40\), replica 2 .* op 39\)", said)


@pytest.mark.parametrize(
    ("first_op", "due", "checkpoints"),
    [
        (1, None, {0: 45, 1: 0}),  # nothing is due
        (1, 41, {0: 45, 1: 40}),  # all have what is needed: it is proposed
    ],
)
def test_nothing_waits(first_op: int, due: int | None, checkpoints: dict[int, int]) -> None:
    wait = Wait()
    wait.look(1, 41, {0: 45, 1: 0}, now=S)
    wait.look(first_op, due, checkpoints, now=2 * S)
    assert (wait.since, wait.reason(100 * S)) == (0, "")


def test_a_replica_that_is_always_a_little_behind_is_none_to_wait_for() -> None:
    wait = Wait()
    for turn in range(100):
        wait.look(1 + 10 * turn, 11 + 10 * turn, {0: 20 + 10 * turn, 1: 9 + 10 * turn}, now=turn * S + 1)
        assert wait.reason(turn * S + 1) == ""
