"""What `bench` makes of its measurements."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite.cli.bench import Window, percentile_ms, row_of


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
