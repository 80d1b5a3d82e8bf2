"""Processes that share a piece of work: all that they say is read, and none is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kimberlite.vopr.workers import Workers

MODULE = """
import os, signal, sys
from kimberlite.vopr.workers import show

first, count, how = map(int, sys.argv[1:])
for number in range(first, first + count):
    show([number, "x" * 1000])
if how == 1:
    show([os.getpid(), os.getpgrp()])
    signal.pause()
if how == 2:
    sys.exit(7)
if how == 3:
    print("half of a li", end="", flush=True)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part_of_the_work.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_everything_that_all_of_them_say_is_read() -> None:
    """More than a pipe holds, of each."""
    with Workers("part_of_the_work", [(0, 300, 0), (1000, 2, 0), (2000, 200, 0)]) as workers:
        numbers = [number for number, _ in workers.values()]
    assert sorted(numbers) == [*range(300), 1000, 1001, *range(2000, 2200)]
    assert [number for number in numbers if number < 1000] == list(range(300)), "each in its order"


def test_one_after_another() -> None:
    with Workers("part_of_the_work", [(0, 2, 0), (10, 1, 0)]) as workers:
        assert [workers.next_of(index)[0] for index in (0, 1, 0)] == [0, 10, 1]
        with pytest.raises(RuntimeError, match="part_of_the_work has died with exit code 0"):
            workers.next_of(1)


@pytest.mark.parametrize(("how", "code"), [(2, 7), (3, 0)])
def test_one_that_dies_is_an_error_and_what_it_said_before_is_not_lost(how: int, code: int) -> None:
    numbers = []
    died = pytest.raises(RuntimeError, match=f"has died with exit code {code}")
    with Workers("part_of_the_work", [(0, 3, how)]) as workers, died:
        for number, _ in workers.values():
            numbers.append(number)
    assert numbers == [0, 1, 2]


def test_none_is_left_behind_and_signals_for_the_group_are_not_for_them() -> None:
    with Workers("part_of_the_work", [(0, 0, 1), (0, 0, 1)]) as workers:
        started = [workers.next_of(index) for index in (0, 1)]
        assert all(group != os.getpgrp() for _, group in started)
        for process, _ in started:
            os.kill(process, 0)
    for process, _ in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
