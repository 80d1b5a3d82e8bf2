"""Commands that are cut short: between two results, and with what was found so far."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

from kimberlite.cli.interruption import SIGNALS, Interruption


def numbers(closed: list[int], at: int = -1, number: int = signal.SIGTERM) -> Generator[int, None, None]:
    """0 to 4; before one of them there comes a signal."""
    try:
        for count in range(5):
            if count == at:
                os.kill(os.getpid(), number)
                signal.sigtimedwait([], 60)  # what is under way is not waited for
                raise AssertionError("the wait for a result is not cut short")
            yield count
    finally:
        closed.append(at)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_wait_for_a_result(number: signal.Signals) -> None:
    closed: list[int] = []
    with Interruption() as interruption:
        assert list(interruption.until(numbers(closed, 2, number))) == [0, 1]
    assert interruption.signal is number
    assert closed == [2]


def test_what_is_done_with_a_result_is_done_whole() -> None:
    closed: list[int] = []
    done = []
    with Interruption() as interruption:
        for count in interruption.until(numbers(closed)):
            if count == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(count)
        done.append(-1)
    assert done == [0, 1, 2, 3, -1]
    assert interruption.signal is signal.SIGINT
    assert closed == [-1]


def test_without_a_signal_there_are_all_results_and_the_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption() as interruption:
        assert list(interruption.until(numbers([]))) == [0, 1, 2, 3, 4]
        interruption.finish("everything")
    assert interruption.signal is None
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_error_is_an_error() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise KeyError("x")

    with Interruption() as interruption, pytest.raises(KeyError):
        list(interruption.until(failing()))
