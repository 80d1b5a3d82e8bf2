"""Timers, jitter and the failure detector: functions of what is handed in."""

from __future__ import annotations

from kimberlite.vsr.config import MS
from kimberlite.vsr.timers import FailureDetector, Prng, Timer


def test_prng_is_a_function_of_its_seed() -> None:
    first = [Prng(7).below(1000) for _ in range(3)]
    assert len(set(first)) == 1
    a, b = Prng(7), Prng(8)
    assert [a.below(1 << 30) for _ in range(8)] != [b.below(1 << 30) for _ in range(8)]


def test_prng_covers_its_range_evenly() -> None:
    prng = Prng(1)
    counts = [0] * 8
    for _ in range(8000):
        counts[prng.below(8)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150
    assert prng.below(0) == 0


def test_jitter_stays_within_half_of_the_interval() -> None:
    prng = Prng(3)
    values = [prng.jitter(1000) for _ in range(1000)]
    assert min(values) >= 500
    assert max(values) < 1500
    assert len(set(values)) > 300


def test_timer_fires_once() -> None:
    timer = Timer()
    assert not timer.due(10)
    timer.start(5)
    assert not timer.due(4)
    assert timer.due(5)
    assert not timer.due(6)
    timer.start(20)
    timer.start_if_idle(10)
    assert timer.deadline == 20
    timer.start_no_later_than(15)
    assert timer.deadline == 15
    timer.stop()
    timer.start_no_later_than(30)
    assert timer.deadline == 30


def test_detector_adapts_to_the_observed_gap() -> None:
    detector = FailureDetector(300 * MS, 2000 * MS, Prng(1), 0)
    now = 0
    for _ in range(50):
        now += 400 * MS
        detector.heard(now)
    assert detector.deadline - now >= 4 * 390 * MS
    for _ in range(50):
        now += 10 * MS
        detector.heard(now)
    assert 300 * MS <= detector.deadline - now <= 450 * MS


def test_one_long_pause_does_not_blind_the_detector() -> None:
    detector = FailureDetector(300 * MS, 2000 * MS, Prng(1), 0)
    detector.heard(3_600_000 * MS)
    assert detector.deadline - 3_600_000 * MS <= 3000 * MS
