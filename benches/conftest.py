"""Latency gates: what an operation costs, counted in the cost of a yardstick of the same process.

Seconds drift with the machine and with what else runs on it; a ratio drifts less. So a
gate times the subject and its yardstick in turn, round after round, and compares minima
(what they cost when nothing came between) and the median of the ratios of the rounds. The
gate holds if either does: a change of the code moves both, a neighbour seldom both. A gate
that does not hold at first gets more rounds before it fails.

`--benchmark-disable` runs each bench once and judges nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 150
BATCHES_MAX = 5


@dataclass
class Gate:
    """The cost of one operation in yardsticks, and what it may be."""

    name: str
    at_most: float
    subject_ns: list[float] = field(default_factory=list)
    yardstick_ns: list[float] = field(default_factory=list)

    @property
    def least(self) -> float:
        return min(self.subject_ns) / min(self.yardstick_ns)

    @property
    def median(self) -> float:
        return statistics.median(s / y for s, y in zip(self.subject_ns, self.yardstick_ns, strict=True))

    @property
    def holds(self) -> bool:
        return min(self.least, self.median) <= self.at_most

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.least:.3f} yardsticks by minima, {self.median:.3f} by medians, "
            f"at most {self.at_most:.3f} "
            f"({min(self.subject_ns):.1f} ns, yardstick {min(self.yardstick_ns):.1f} ns, {len(self.subject_ns)} rounds)"
        )


def elapsed(call: Callable[[], object]) -> int:
    began = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - began


Judge = Callable[..., None]
gates: list[Gate] = []


@pytest.fixture
def gate(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Iterator[Judge]:
    """gate(subject, yardstick, at_most=..., operations=(n, m)): one call of the subject does n
    operations, one of the yardstick m; one operation may cost `at_most` yardsticks. own_time: the subject returns the
    nanoseconds that count of a call."""

    def judge(
        subject: Callable[[], Any],
        yardstick: Callable[[], object],
        *,
        at_most: float,
        operations: tuple[int, int] = (1, 1),
        rounds: int = ROUNDS,
        own_time: bool = False,
    ) -> None:
        if benchmark.disabled:
            benchmark(subject)
            yardstick()
            return
        measured = Gate(request.node.name, at_most)

        def before() -> None:
            measured.yardstick_ns.append(elapsed(yardstick) / operations[1])

        told: list[float] = []

        def call() -> None:
            took = subject()
            if own_time:
                told.append(took)

        yardstick()
        subject()
        benchmark.pedantic(call, setup=before, rounds=rounds)
        stats = benchmark.stats
        assert stats is not None
        taken = told[:] if own_time else [seconds * 1e9 for seconds in stats.stats.data]
        measured.subject_ns = [ns / operations[0] for ns in taken]
        for _ in range((BATCHES_MAX - 1) * rounds):
            if measured.holds:
                break
            before()
            took = elapsed(call)
            measured.subject_ns.append((told[-1] if own_time else took) / operations[0])
        benchmark.extra_info.update(
            yardsticks=measured.least, yardsticks_median=measured.median, at_most=at_most, operations=operations[0]
        )
        gates.append(measured)
        assert measured.holds, str(measured)

    yield judge


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if gates:
        terminalreporter.section("gates: cost of one operation in yardsticks")
        for measured in gates:
            terminalreporter.line(f"{'holds' if measured.holds else 'FAILS'}  {measured}")
