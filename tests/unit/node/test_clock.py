"""When the clock of this machine is believed."""

from __future__ import annotations

import pytest

from kimberlite.node import clock
from kimberlite.node.clock import JUMP_NS, Clock, S, Stamp

DAY = 86_400 * S
NOW = 1_800_000_000 * S
BOOT = 5_000 * S
OWN = 1
IDLE = Stamp(NOW - DAY, NOW - DAY - S, 0)  # a log to which nothing was appended for a day


def at(seconds: float, shift: int = 0) -> tuple[int, int]:
    """Wall clock and steady time so many seconds after the start, the clock shifted by nanoseconds."""
    passed = int(seconds * S)
    return NOW + passed + shift, BOOT + passed


@pytest.fixture
def watched() -> Clock:
    return Clock(*at(0), OWN)


def test_a_clock_that_goes_on_is_believed(watched: Clock) -> None:
    assert all(watched.look(*at(seconds), IDLE) for seconds in (1, 60, 86_400, 40_000_000))
    assert (watched.jump, watched.ahead, watched.reason()) == (0, 0, "")


@pytest.mark.parametrize("shift", [JUMP_NS, -JUMP_NS, S])
def test_small_corrections_are_none_to_speak_of(shift: int, watched: Clock) -> None:
    assert watched.look(*at(60, shift), IDLE)
    assert (watched.offset, watched.jump) == (shift, 0)


@pytest.mark.parametrize(
    ("shift", "way"),
    [(JUMP_NS + 1, "forward by 600 s"), (-JUMP_NS - 1, "back by 600 s"), (365 * DAY, "forward by 365 d")],
)
def test_a_jump_ends_the_belief_and_says_so(shift: int, way: str, watched: Clock) -> None:
    assert not watched.look(*at(60, shift), IDLE)
    assert (watched.offset, watched.jump) == (shift, shift)
    assert way in watched.reason() and "restart this replica" in watched.reason()


def test_many_small_steps_are_one_jump(watched: Clock) -> None:
    believed = [watched.look(*at(60 * step, 240 * S * step), IDLE) for step in range(1, 5)]
    assert believed == [True, True, False, False]


def test_it_is_believed_again_when_it_is_what_it_was(watched: Clock) -> None:
    assert not watched.look(*at(60, 365 * DAY), IDLE)
    assert watched.look(*at(120, 5 * S), IDLE)
    assert watched.reason() == ""


def test_the_clock_of_another_replica_speaks_for_it(watched: Clock) -> None:
    """A virtual machine that was paused for an hour: the jump was a correction."""
    hour = 3600 * S
    wall, steady = at(60, hour)
    assert not watched.look(wall, steady, IDLE)
    assert watched.look(wall, steady, Stamp(wall - 2 * S, wall - 9 * S, 0))
    assert watched.look(*at(7200, hour), IDLE), "it stays believed when nothing more is appended"
    assert not watched.look(*at(7300, 0), IDLE), "what it was before is a jump now"


@pytest.mark.parametrize(
    ("stamp", "why"),
    [
        (Stamp(NOW + 365 * DAY, NOW, OWN), "its own stamp agrees with a wrong clock always"),
        (Stamp(NOW + 365 * DAY, NOW + 365 * DAY - 1, 0), "another replica only went on from the wrong stamp"),
        (Stamp(NOW + 365 * DAY - JUMP_NS - 61 * S, NOW, 0), "too far away"),
        (Stamp(NOW, NOW - S, 2), "the others have the time of before"),
    ],
)
def test_what_does_not_speak_for_it(stamp: Stamp, why: str, watched: Clock) -> None:
    assert not watched.look(*at(60, 365 * DAY), stamp), why


def test_a_log_far_ahead_is_told_of_while_the_clock_is_believed(watched: Clock) -> None:
    stamp = Stamp(NOW + 400 * DAY, NOW, 2)
    assert watched.look(*at(0), stamp)
    assert watched.document() == {"jump_s": 0, "log_ahead_s": 400 * 86_400}
    assert "400 d ahead of the clock of this machine" in watched.reason()
    assert watched.look(*at(0), Stamp(NOW + JUMP_NS, NOW, 2)) and watched.reason() == ""


def test_a_machine_that_slept_has_not_jumped() -> None:
    """Both of its times go on meanwhile."""
    wall, steady = clock.now()
    assert abs(wall / S - 1_700_000_000) < 2e9 and steady > 0


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (650, "650 s"), (90_000, "25 h"), (86_400 * 40, "40 d")])
def test_spans(seconds: int, said: str) -> None:
    assert clock.span(seconds * S) == said
