"""What is handed to the disk, until it is durable: order, tokens, actions, and segments that stay open meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kimberlite.errors import WriteFailedError
from kimberlite.storage.faulty import FaultyOps
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.submissions import Submissions
from kimberlite.vopr.disk import Files, SimDisk


class Clock:
    now = 0


@pytest.fixture
def disk() -> SimDisk:
    disk = SimDisk(Files(), lambda: Clock.now, lambda: 1)
    disk.create("journal-00000000", 4 * SECTOR)
    Clock.now = 0
    return disk


def after(disk: SimDisk, submissions: Submissions) -> list[int]:
    disk.flush()
    return submissions.completions()


def test_tokens_come_back_in_order_after_the_actions(disk: SimDisk) -> None:
    handles = Handles(disk)
    submissions, done = Submissions(disk, handles), list[str]()
    file = disk.open("journal-00000000")
    write = Write(file, 0, disk.aligned(SECTOR))

    def says(what: str) -> Callable[[], None]:
        return lambda: done.append(what)

    first = submissions.submit([[write]], 7, says("first"))
    second = submissions.submit([[write]], done=says("of its own"))
    third = submissions.submit([[write]], 5)
    assert first < second < third
    assert (submissions.unasked, submissions.completions(), done) == (1, [], [])
    assert after(disk, submissions) == [7, 5]
    assert (submissions.unasked, done) == (0, ["first", "of its own"])
    assert submissions.completions() == []


def test_an_action_may_submit_more(disk: SimDisk) -> None:
    submissions = Submissions(disk, Handles(disk))
    write = Write(disk.open("journal-00000000"), 0, disk.aligned(SECTOR))
    submissions.submit([[write]], 1, lambda: submissions.submit([[write]], 2) and None)
    assert after(disk, submissions) == [1]
    assert after(disk, submissions) == [2]


def test_segments_are_held_once_for_each_submission(disk: SimDisk) -> None:
    handles = Handles(disk)
    submissions = Submissions(disk, handles)
    write = Write(disk.open("journal-00000000"), 0, disk.aligned(SECTOR))
    one, other = set[int](), set[int]()
    for held in (one, one, other):
        submissions.hold(0, held)
    assert (one, other) == ({0}, {0})
    submissions.submit([[write]], held=one)
    assert after(disk, submissions) == []
    assert handles.is_held(0), "by the other one"
    submissions.submit([[write]], held=other)
    after(disk, submissions)
    assert not handles.is_held(0)


def test_a_failed_write_is_nobodys_success(disk: SimDisk) -> None:
    submissions, done = Submissions(disk, Handles(disk)), list[int]()
    submissions.submit([[]], 1, lambda: done.append(1))

    def fails() -> list[int]:
        raise WriteFailedError("no more")

    disk.completions = fails  # type: ignore[method-assign]
    with pytest.raises(WriteFailedError):
        submissions.completions()
    assert not done


def test_what_is_trimmed_or_cut_off_is_damaged_no_more() -> None:
    faulty = FaultyOps(3)
    for op in (1, 2, 3, 4, 9):
        faulty.mark(op)
    assert faulty.ops == {3, 4, 9}, "what is before the log can not be had from anybody"
    faulty.end_at(8)
    assert faulty.ops == {3, 4}
    faulty.begin_at(4)
    faulty.begin_at(2)
    faulty.mark(3)
    assert faulty.ops == {4}, "a log never begins earlier again"
