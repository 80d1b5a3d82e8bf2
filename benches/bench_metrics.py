"""Recording, in C by one locked addition, from Python by the call of an empty function."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import pytest

from kimberlite._fast import metrics
from kimberlite._fast.metrics import Kind, Region, Series

LOOP = 100_000
CALLS = 5_000
# On the machine of the targets: one relaxed fetch_add, and the call of an empty function.
LOCKED_ADD_NS = 2.6
EMPTY_FUNCTION_NS = 55
SERIES = (
    Series("operations", Kind.COUNTER),
    Series("seconds", Kind.COUNTER, floating=True),
    Series("view", Kind.GAUGE),
    Series("latency", Kind.HISTOGRAM, bounds_ns=(100_000, 500_000, 1_000_000, 2_000_000, 5_000_000)),
)


@pytest.mark.benchmark(group="metrics in C")
@pytest.mark.parametrize(("loop", "target_ns"), [("counter", 5), ("shared_counter", 5), ("histogram", 25)])
def test_recording_in_c(gate: Callable[..., None], loop: str, target_ns: float) -> None:
    gate(
        lambda: metrics.calibrate(loop, LOOP),
        lambda: metrics.calibrate("locked", LOOP),
        at_most=target_ns / LOCKED_ADD_NS,
        operations=(LOOP, LOOP),
    )


@pytest.mark.benchmark(group="metrics in C")
def test_a_counter_of_one_writer_is_not_locked(gate: Callable[..., None]) -> None:
    gate(
        lambda: metrics.calibrate("counter", LOOP),
        lambda: metrics.calibrate("store", LOOP),
        at_most=3.0,  # a locked one costs four bare stores
        operations=(LOOP, LOOP),
    )


def nothing(argument: object) -> None:
    pass


def calls(function: Callable[[float], object], value: float = 123_456, times: int = CALLS) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, times):
            function(value)

    return run


@pytest.mark.benchmark(group="metrics from Python")
@pytest.mark.parametrize("name", ["counter", "floating", "gauge", "histogram"])
def test_recording_from_python(gate: Callable[..., None], name: str) -> None:
    region = Region.create(None, SERIES)
    record: dict[str, Callable[[float], object]] = {
        "counter": region.counter(0).add,
        "floating": region.counter(1).add,
        "gauge": region.gauge(2).set,
        "histogram": region.histogram(3).record,  # type: ignore[dict-item]
    }
    value = 0.5 if name == "floating" else 123_456
    gate(calls(record[name], value), calls(nothing), at_most=60 / EMPTY_FUNCTION_NS, operations=(CALLS, CALLS))


@pytest.mark.benchmark(group="metrics from Python")
def test_recording_a_batch(gate: Callable[..., None]) -> None:
    histogram = Region.create(None, SERIES).histogram(3)
    durations = [index * 997 % 10_000_000 for index in range(CALLS)]
    gate(
        lambda: histogram.record_many(durations),
        calls(histogram.record),
        at_most=0.5,
        operations=(CALLS, CALLS),
    )
