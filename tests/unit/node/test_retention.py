"""With which op the log should begin, and what is said of a trim that can not be made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from kimberlite.errors import DiskFullError
from kimberlite.node import retention
from kimberlite.node.clock import Clock
from kimberlite.node.retention import LOOKS_PER_QUESTION, PATIENCE_NS, SEGMENTS_MAX, Choice, Wait
from kimberlite.storage.interface import Extent, LogStore
from kimberlite.vsr.replica import Replica

S = 1_000_000_000
# Five segments of 100 bytes and 10 ops each; the events of each are a second older than those of the next.
EXTENTS = [
    Extent(first_op=1 + 10 * n, first_position=100 * n, first_timestamp=(n + 1) * S, bytes_from_here=500 - 100 * n)
    for n in range(5)
]


@pytest.mark.parametrize(
    ("bytes_max", "age_max_s", "last_op", "chosen", "held"),
    [
        (0, 0, 50, None, None),  # no limit
        (500, 0, 50, None, None),
        (400, 0, 50, 1, None),  # exactly what is to be kept
        (399, 0, 50, 1, None),
        (300, 0, 50, 2, None),
        (1, 0, 50, 4, None),  # the segment that is written stays
        (1, 0, 31, 3, 4),  # no further than allowed
        (1, 0, 30, 2, 3),
        (1, 0, 10, None, 1),
        (300, 0, 21, 2, None),  # as far as is due
        (0, 4, 50, 1, None),  # at 6 s: the second segment began 4 s ago, so that all of the first is older
        (0, 1, 50, 4, None),
        (0, 6, 50, None, None),
        (300, 4, 50, 2, None),  # whichever goes further
        (400, 2, 50, 3, None),
    ],
)
def test_what_is_chosen(bytes_max: int, age_max_s: int, last_op: int, chosen: int | None, held: int | None) -> None:
    found = retention.choose(
        EXTENTS, bytes_max=bytes_max, age_max_ns=age_max_s * S, now_ns=6 * S, log_ns=6 * S, last_op=last_op
    )
    trim = None if chosen is None else (EXTENTS[chosen].first_op, EXTENTS[chosen].first_position)
    assert found == Choice(trim, None if held is None else EXTENTS[held].first_op)


@pytest.mark.parametrize(
    ("now_s", "log_s", "chosen"),
    [
        (6, 6, 1),
        (1_000, 5, None),  # a clock that is ahead: by the log's own last timestamp nothing is old
        (5, 1_000, None),  # a log that is ahead: what a wrong clock stamped makes nothing old
        (1_000, 1_000, 4),  # a clock that was wrong when the process started, and an append: what remains
        (7, 6, 1),
        (6, 7, 1),
        (1_000, 0, None),  # the log's time is not known, or the clock not believed
    ],
)
def test_age_counts_by_the_clock_and_by_the_log(now_s: int, log_s: int, chosen: int | None) -> None:
    found = retention.choose(EXTENTS, bytes_max=0, age_max_ns=4 * S, now_ns=now_s * S, log_ns=log_s * S, last_op=50)
    assert found.trim == (None if chosen is None else (EXTENTS[chosen].first_op, EXTENTS[chosen].first_position))


def test_size_asks_no_clock() -> None:
    found = retention.choose(EXTENTS, bytes_max=300, age_max_ns=4 * S, now_ns=0, log_ns=0, last_op=50)
    assert found.trim == (21, 200)


DAY = 86_400 * S
NOW = 1_800_000_000 * S


class _Log:
    """A store with segments of a day's length, and as much of a core as retention asks: a primary that has executed
    op 400, stamped at `last`. others: the clocks of a quorum besides the own, less the true time; None: not heard."""

    def __init__(self, last: int, *, is_primary: bool = True, others: int | None = 0) -> None:
        self.last = last
        self.others = others
        self.asked = 0
        self.trimmable_op = self.applied = self.checkpoint_op = 400
        self.state = SimpleNamespace(is_primary=is_primary, log=SimpleNamespace(first_op=1), peers={})

    def ask_clocks(self, now: int) -> None:
        self.asked += 1

    def time_of_a_quorum(self, own_ns: int, now: int) -> int | None:
        return None if self.others is None else min(own_ns, NOW + now + self.others)

    def extents(self) -> Iterator[Extent]:
        for age in range(40, 0, -1):
            yield Extent(1 + 10 * (40 - age), 100 * (40 - age), NOW - age * DAY, age << 20)

    def header(self, op: int) -> object:
        return SimpleNamespace(timestamp=self.last - (self.applied - op), replica=0)


def look(kept: retention.Retention, log: _Log, shift: int = 0, passed: int = 0) -> tuple[int, int] | None:
    times = retention.Times(NOW + passed + shift, passed, passed)
    return kept.look(cast(Replica, log), cast(LogStore, log), times)


def test_a_jump_of_the_clock_suspends_trimming_by_age_until_it_is_undone() -> None:
    kept = retention.Retention(0, 30 * 86_400, Clock(NOW, 0, 0))
    log = _Log(NOW)
    assert look(kept, log) == (101, 1000), "ten of the forty days are too old"
    # A year ahead, and an append is stamped so: by clock and log all is old.
    log.last = NOW + 365 * DAY
    assert look(kept, log, shift=365 * DAY, passed=S) is None
    assert "retention by age waits" in kept.reason(0)
    assert look(kept, log, passed=2 * S) == (101, 1000)
    assert "364 d ahead" in kept.reason(0), "what was stamped stays"


def test_a_backup_watches_its_clock_and_trims_nothing() -> None:
    kept = retention.Retention(0, 30 * 86_400, Clock(NOW, 0, 0))
    log = _Log(NOW, is_primary=False)
    assert look(kept, log, shift=365 * DAY) is None
    log.is_primary, log.last = True, NOW + 365 * DAY
    assert look(kept, log, shift=365 * DAY) is None


def test_without_a_limit_of_age_no_clock_is_in_the_way() -> None:
    kept = retention.Retention(10 << 20, 0, Clock(NOW, 0, 0))
    assert look(kept, _Log(NOW + 365 * DAY), shift=365 * DAY) == (301, 3000)
    assert kept.reason(0) == ""
    assert kept.clock.document()["jump_s"] == 365 * 86_400


def test_a_last_op_that_can_not_be_read_makes_nothing_old() -> None:
    log = _Log(NOW)
    log.header = lambda op: None  # type: ignore[method-assign]
    assert look(retention.Retention(0, 30 * 86_400, Clock(NOW, 0, 0)), log) is None


@pytest.mark.parametrize("what", ["header", "extents"])
def test_a_look_without_a_descriptor_is_made_another_time(what: str) -> None:
    """It ended the replica: an old segment may have to be opened for it."""

    def refused(*_: object) -> None:
        raise DiskFullError("no descriptor")

    log = _Log(NOW)
    setattr(log, what, refused)
    assert look(retention.Retention(0, 30 * 86_400, Clock(NOW, 0, 0)), log) is None


def test_no_segment_is_looked_at_behind_the_first_that_can_not_be_trimmed() -> None:
    """Each look is a read of the disk, and while a replica is down many segments are due, every second."""

    def looked_at() -> Iterator[Extent]:
        yield from EXTENTS[:2]
        raise AssertionError("a segment too many was looked at")

    assert retention.choose(looked_at(), bytes_max=1, age_max_ns=0, now_ns=6 * S, last_op=10) == Choice(None, 11)


def test_no_more_segments_than_one_trim_may_take() -> None:
    many = [Extent(first_op=1 + n, first_position=n, first_timestamp=0, bytes_from_here=1000 - n) for n in range(900)]
    found = retention.choose(many, bytes_max=1, age_max_ns=0, now_ns=S, last_op=900)
    assert found == Choice((1 + SEGMENTS_MAX, SEGMENTS_MAX), None)


def test_a_trim_that_waits_is_told_of_after_a_time_with_what_it_waits_for() -> None:
    wait = Wait()
    wait.look(1, 42, 45, {1: 41, 2: 40, 3: 39}, now=5 * S)
    assert wait.since == 5 * S
    assert wait.reason(5 * S + PATIENCE_NS - 1) == ""
    wait.look(1, 42, 55, {1: 41, 2: 40, 3: 39}, now=6 * S)
    assert wait.since == 5 * S, "it waits for the same trim"
    said = wait.reason(5 * S + PATIENCE_NS)
    assert re.search(r"waited 10 s for a checkpoint of op 41 on replica 2 .* op 40\), replica 3 .* op 39\):", said)


@pytest.mark.parametrize(
    ("held", "own", "others"),
    [
        (None, 45, {1: 0}),  # nothing is due
        (41, 45, {1: 40}),  # all have what is needed: it can be proposed as soon as it is applied
        (41, 39, {1: 0}),  # it is not due before there is a checkpoint here
    ],
)
def test_nothing_waits(held: int | None, own: int, others: dict[int, int]) -> None:
    wait = Wait()
    wait.look(1, 41, 45, {1: 0}, now=S)
    assert wait.since == S
    wait.look(1, held, own, others, now=2 * S)
    assert (wait.since, wait.reason(100 * S)) == (0, "")


def test_a_replica_that_is_always_a_little_behind_is_none_to_wait_for() -> None:
    wait = Wait()
    for turn in range(100):
        wait.look(1 + 10 * turn, 11 + 10 * turn, 20 + 10 * turn, {1: 9 + 10 * turn}, now=turn * S + 1)
        assert wait.reason(turn * S + 1) == ""


def test_a_clock_that_was_wrong_at_the_start_removes_nothing() -> None:
    """Its first append makes clock and log agree: nothing but the clocks of others tells that both are wrong."""
    year = 365 * DAY
    kept = retention.Retention(0, 30 * 86_400, Clock(NOW + year, 0, 0))
    assert look(kept, _Log(NOW + year), shift=year) == (101, 1000), "what is too old by the clocks of the others"
    assert "365 d ahead of those of a quorum" in kept.reason(0)


def test_nothing_goes_by_age_before_a_quorum_has_told_the_time() -> None:
    kept = retention.Retention(0, 30 * 86_400, Clock(NOW, 0, 0))
    log = _Log(NOW, others=None)
    assert look(kept, log) is None
    log.others = 0
    assert look(kept, log) == (101, 1000)


def test_clocks_are_asked_for_now_and_then_and_where_age_is_a_limit() -> None:
    kept, log = retention.Retention(0, 30 * 86_400, Clock(NOW, 0, 0)), _Log(NOW)
    for turn in range(2 * LOOKS_PER_QUESTION):
        look(kept, log, passed=turn * S)
    assert log.asked == 2
    log = _Log(NOW)
    look(retention.Retention(10 << 20, 0, Clock(NOW, 0, 0)), log)
    assert log.asked == 0
