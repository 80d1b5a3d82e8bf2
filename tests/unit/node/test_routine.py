"""Jobs as rows: which tick carries out which, in which order, and that none comes after the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from kimberlite.node import routine
from kimberlite.node.routine import Job, Routine


class Loop:
    """Calls nothing by itself."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        self.due.append((delay, action))
        handle = asyncio.TimerHandle(0, action, (), self)  # type: ignore[arg-type]
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.due.clear()

    def get_debug(self) -> bool:
        return False

    def turn(self) -> None:
        ((_, action),) = self.due
        self.due.clear()
        action()


def test_each_job_is_done_when_it_is_due_in_the_order_of_the_rows() -> None:
    loop, done = Loop(), list[str]()
    jobs = [Job(name, every, lambda name=name: done.append(name)) for name, every in (("a", 1), ("b", 3), ("c", 2))]  # type: ignore[misc]
    one = Routine(loop, lambda action: action(), jobs)  # type: ignore[arg-type]
    one.start()
    for _ in range(5):
        assert [delay for delay, _ in loop.due] == [routine.TICK_S]
        loop.turn()
    assert "".join(done) == "a ac ab ac a abc".replace(" ", "")
    one.stop()
    assert not loop.due


def test_a_job_that_fails_is_the_matter_of_run_and_the_next_one_is_done() -> None:
    loop, failures, done = Loop(), list[Exception](), list[int]()

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except ZeroDivisionError as error:
            failures.append(error)

    one = Routine(loop, run, [Job("bad", 1, lambda: print(1 // 0)), Job("good", 1, lambda: done.append(1))])  # type: ignore[arg-type]
    one.start()
    loop.turn()
    assert (len(failures), done) == (2, [1, 1])


def test_before_the_start_there_is_nothing_to_stop() -> None:
    Routine(Loop(), pytest.fail, []).stop()  # type: ignore[arg-type]
