"""`bench --ab`: what one setting costs, of two clusters that are loaded by turns.

Two clusters that differ in the setting alone run side by side, and short windows of load go to one and to the other by
turns, so that whatever else the machine does falls on both. What is compared is the processor time of the replicas for
one operation. Processes differ from one start to the next, by where their memory lies: so each round starts both
clusters anew, is one observation, and the confidence interval is over the rounds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kimberlite.cli.local import LocalCluster
from kimberlite.config import kind_of, knobs_of
from kimberlite.config.sections import SECTION_TYPES
from kimberlite.errors import UsageError

WINDOW_S = 0.5
WARMUP_S = 0.1
FIRST_S = 1.0  # of load before anything is measured, after a start: connections, caches, what is made ahead
# Of Student's t distribution: 95 % lie within, for 1, 2, ... degrees of freedom; the last for all above.
WITHIN_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Spent(NamedTuple):
    """Processor time of all replicas of a cluster, and the operations that it was spent on."""

    ns: int
    ops: int

    @property
    def us_per_op(self) -> float:
        return self.ns / self.ops / 1000


@dataclass(frozen=True, slots=True)
class Comparison:
    """At one concurrency. Percent: by how much more processor time an operation takes with the setting than without;
    low and high bound the mean of all such rounds with a confidence of 95 %."""

    setting: str
    concurrency: int
    rounds: int
    with_us: float
    without_us: float
    percent: float
    low: float
    high: float

    def text(self) -> str:
        return (
            f"{self.setting}, {self.concurrency} in flight: an op takes {self.with_us:.1f} us of processor time with, "
            f"{self.without_us:.1f} without: {self.percent:.2f} % more, {self.low:.2f} to {self.high:.2f} % with 95 % "
            f"confidence ({self.rounds} rounds)"
        )

    def row(self) -> dict[str, object]:
        return {
            "setting": self.setting,
            "concurrency": self.concurrency,
            "rounds": self.rounds,
            "with_us_per_op": round(self.with_us, 1),
            "without_us_per_op": round(self.without_us, 1),
            "percent": round(self.percent, 2),
            "low": round(self.low, 2),
            "high": round(self.high, 2),
        }


# Of one start of both clusters: what was spent with the setting and without it, by the concurrency.
Round = dict[int, tuple[Spent, Spent]]
# Loads a cluster: so many appends in flight, seconds, and seconds before, which do not count.
LoadIt = Callable[[LocalCluster, int, float, float], Spent]


def switches() -> list[str]:
    """Settings that are true or false."""
    return [
        f"{name}.{key}"
        for name, section in SECTION_TYPES.items()
        for key, _ in knobs_of(section)
        if kind_of(section, key) == "bool"
    ]


def check_setting(setting: str) -> None:
    """Raises UsageError for what is no setting that is true or false."""
    if setting not in switches():
        raise UsageError(f"--ab takes a setting that is true or false, not {setting!r}: {', '.join(switches())}")


def rounds_of(
    setting: str,
    replicas: int,
    settings: Sequence[str],
    rounds: int,
    concurrencies: Sequence[int],
    seconds: float,
    load: LoadIt,
) -> Iterator[Round]:
    """One after another."""
    for number in range(rounds):
        with ExitStack() as stack:
            clusters = [_started(stack, replicas, (*settings, f"{setting}={value}")) for value in ("true", "false")]
            for cluster in clusters:
                load(cluster, max(concurrencies), WARMUP_S, FIRST_S)
            yield {
                concurrency: _by_turns(clusters, concurrency, seconds, load, begins=number % 2)
                for concurrency in concurrencies
            }


def _started(stack: ExitStack, replicas: int, settings: Sequence[str]) -> LocalCluster:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kimberlite-bench-")))
    cluster = stack.enter_context(LocalCluster(directory, replicas, settings=tuple(settings)))
    cluster.prepare()
    cluster.start_all()
    cluster.wait_ready()
    return cluster


def _by_turns(
    clusters: Sequence[LocalCluster], concurrency: int, seconds: float, load: LoadIt, begins: int
) -> tuple[Spent, Spent]:
    """ABBA, so that what grows or wanes falls on both alike."""
    sums = [[0, 0], [0, 0]]
    for pair in range(max(1, round(seconds / WINDOW_S))):
        order = (0, 1) if (pair + begins) % 2 == 0 else (1, 0)
        for which in order:
            spent = load(clusters[which], concurrency, min(WINDOW_S, seconds), WARMUP_S)
            sums[which][0] += spent.ns
            sums[which][1] += spent.ops
    a, b = (Spent(*one) for one in sums)
    return a, b


def compare(setting: str, concurrency: int, found: Sequence[tuple[Spent, Spent]]) -> Comparison:
    """Of all rounds at one concurrency. Of one round alone nothing can be said: the bounds are infinite."""
    logs = [math.log(a.us_per_op / b.us_per_op) for a, b in found]
    mean = statistics.fmean(logs)
    reach = math.inf
    if len(logs) > 1:
        within = WITHIN_95[min(len(logs) - 1, len(WITHIN_95)) - 1]
        reach = within * statistics.stdev(logs) / math.sqrt(len(logs))
    return Comparison(
        setting,
        concurrency,
        len(found),
        statistics.fmean(a.us_per_op for a, _ in found),
        statistics.fmean(b.us_per_op for _, b in found),
        *(100 * (math.exp(value) - 1) for value in (mean, mean - reach, mean + reach)),
    )
