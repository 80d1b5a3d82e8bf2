"""What `bench` makes of its measurements."""

from __future__ import annotations

import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite.cli import bench_ab
from kimberlite.cli.bench import Window, percentile_ms, row_of
from kimberlite.cli.bench_ab import WINDOW_S, Spent, compare
from kimberlite.errors import UsageError


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (1.0, 100.0)]
)
def test_percentile_of_a_hundred(fraction: float, expected: float) -> None:
    assert percentile_ms([number * 1_000_000 for number in range(1, 101)], fraction) == expected


def test_percentile_of_nothing_and_of_one() -> None:
    assert percentile_ms([], 0.5) is None
    assert percentile_ms([1_500_000], 0.999) == 1.5


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=500), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_percentile_is_the_nearest_rank(values: list[int], fraction: float) -> None:
    ordered = sorted(values)
    found = percentile_ms(ordered, fraction)
    at_least = next(value for rank, value in enumerate(ordered, 1) if rank >= fraction * len(ordered) - 1e-9)
    assert found == round(at_least / 1e6, 3)


def test_row_counts_events_and_requests() -> None:
    window = Window(array("q", [2_000_000] * 400), elapsed_ns=2_000_000_000, cpu_s=1.2345)
    row = row_of(window, 3, 4, 100, 128, "fdatasync")
    assert row["ops_per_s"] == 200.0
    assert row["events_per_s"] == 20_000.0
    assert row["p50_ms"] == row["p999_ms"] == 2.0
    assert row["n"] == 400
    assert row["cpu_s"] == 1.234
    harness_needs = {"replicas", "concurrency", "batch", "size", "seconds", "ops_per_s", "events_per_s", "p50_ms"}
    assert harness_needs | {"p99_ms", "p999_ms", "cpu_s", "durable", "n", "version"} <= set(row)


# --ab


def test_a_setting_that_costs_a_tenth_is_found_with_its_bounds() -> None:
    found = [(Spent(round(110_000 * factor), 1), Spent(100_000, 1)) for factor in (0.99, 1.0, 1.0, 1.01)]
    compared = compare("telemetry.record", 64, found)
    assert compared.percent == pytest.approx(10, abs=0.1)
    # By hand: the standard deviation of the logarithms is 0.00817, and t is 3.182 for three degrees of freedom.
    assert (compared.low, compared.high) == (pytest.approx(8.58, abs=0.02), pytest.approx(11.44, abs=0.02))
    assert compared.row() == {
        "setting": "telemetry.record",
        "concurrency": 64,
        "rounds": 4,
        "with_us_per_op": 110.0,
        "without_us_per_op": 100.0,
        "percent": 10.0,
        "low": 8.58,
        "high": 11.44,
    }
    assert "110.0 us of processor time with, 100.0 without: 10.00 % more" in compared.text()


def test_one_round_says_nothing() -> None:
    compared = compare("telemetry.record", 1, [(Spent(2000, 1), Spent(1000, 1))])
    assert (compared.percent, compared.low, compared.high) == (pytest.approx(100), -100.0, math.inf)


def test_windows_go_to_both_by_turns_and_the_first_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def load(cluster: Any, concurrency: int, seconds: float, warmup: float) -> Spent:
        asked.append((cluster[-1].rpartition("=")[2], concurrency))
        return Spent(1000 if cluster[-1].endswith("true") else 500, 1)

    monkeypatch.setattr(bench_ab, "_started", lambda stack, replicas, settings: settings)
    rounds = list(bench_ab.rounds_of("telemetry.record", 3, ("a.b=1",), 2, (1, 64), 2 * WINDOW_S, load))
    on, off = "true", "false"
    first, second = [(on, off, off, on), (off, on, on, off)]
    warm = [(on, 64), (off, 64)]
    assert asked == [
        *warm,
        *[(one, level) for level in (1, 64) for one in first],
        *warm,
        *[(one, level) for level in (1, 64) for one in second],
    ]
    assert rounds == [{level: (Spent(2000, 2), Spent(1000, 2)) for level in (1, 64)}] * 2


def test_what_is_no_setting_of_two_values_is_refused() -> None:
    bench_ab.check_setting("telemetry.record")
    for setting in ("telemetry.units", "telemetry", "record", ""):
        with pytest.raises(UsageError, match=r"true or false, not .*telemetry\.record"):
            bench_ab.check_setting(setting)
