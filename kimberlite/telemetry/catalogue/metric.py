"""What a metric is: name, unit, where its value comes from, labels, and what it is called in an exposition.

Imports _fast.metrics only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from kimberlite._fast.metrics import Kind

PREFIX = "vsr"
CONSTANT_LABELS = ("cluster", "replica_id")
UNITS = ("ms", "base")
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


def latency_unit_ns(units: str) -> int:
    """The unit in which latencies are exposed; bins of histograms are exact in it."""
    return NS_PER_MS if units == "ms" else NS_PER_S


class Unit(Enum):
    """What a value measures; decides suffix and scale of what is exposed."""

    NONE = auto()  # a number or a count
    LATENCY = auto()  # nanoseconds in the cell; milliseconds or, in base units, seconds
    SECONDS = auto()  # nanoseconds in the cell; always seconds
    BYTES = auto()


class Source(Enum):
    """Where the value comes from."""

    REPLICA = auto()  # a cell that the replica writes
    INSTANT = auto()  # a cell with a monotonic instant; exposed is its age, NaN while it is 0
    DERIVED = auto()  # from other cells, by the telemetry process
    PROCESS = auto()  # from /proc of the replica, by the telemetry process
    INFO = auto()  # fixed for the life of the replica; the labels say it


class Role(Enum):
    """On which replicas a metric moves."""

    EVERY = "every replica"
    PRIMARY = "the primary"
    BACKUP = "backups"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its closed set of values; `replicas`: one for each replica of the cluster."""

    name: str
    values: tuple[str, ...] = ()
    replicas: bool = False

    def all(self, replica_count: int) -> tuple[str, ...]:
        return tuple(map(str, range(replica_count))) if self.replicas else self.values


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric, equal to itself alone: what is kept by metric is found by its identity, and not by all of its texts.

    Names are without prefix and unit: see `exposed_name`.

    moved_by: what makes it move. scenario: where tests/integration/test_telemetry.py shows that it
    does. base_name: name under base units where the default one breaks a rule that promtool checks.
    floating: NaN stands for "not known here".
    """

    name: str
    kind: Kind
    unit: Unit
    help: str
    how_to_use: str
    moved_by: str
    scenario: str
    labels: tuple[Label, ...] = ()
    buckets_ms: tuple[float, ...] = ()
    source: Source = Source.REPLICA
    role: Role = Role.EVERY
    essential: bool = False
    floating: bool = False
    base_name: str = ""

    def exposed_name(self, units: str) -> str:
        """The name in an exposition, without `_bucket`, `_sum` and `_count` of histograms."""
        name = self.base_name if units == "base" and self.base_name else self.name
        unit = self.exposed_unit(units)
        total = "_total" if self.kind is Kind.COUNTER else ""
        return f"{PREFIX}_{name}{'_' if unit else ''}{unit}{total}"

    def exposed_unit(self, units: str) -> str:
        """The unit as the name has it: ms, seconds, bytes; empty for a number or a count."""
        return {
            Unit.NONE: "",
            Unit.LATENCY: "ms" if units == "ms" else "seconds",
            Unit.SECONDS: "seconds",
            Unit.BYTES: "bytes",
        }[self.unit]

    def scale(self, units: str) -> float:
        """What a cell is divided by to be exposed."""
        if self.unit is Unit.LATENCY and units == "ms":
            return NS_PER_MS
        return NS_PER_S if self.unit in (Unit.LATENCY, Unit.SECONDS) else 1

    @property
    def bounds_ns(self) -> tuple[int, ...]:
        return tuple(round(bound * NS_PER_MS) for bound in self.buckets_ms)

    def label_values(self, replica_count: int) -> Iterator[tuple[str, ...]]:
        """Every combination of label values, in order."""

        def combine(labels: tuple[Label, ...]) -> Iterator[tuple[str, ...]]:
            if not labels:
                yield ()
                return
            for value in labels[0].all(replica_count):
                for rest in combine(labels[1:]):
                    yield (value, *rest)

        return combine(self.labels)

    def series_count(self, replica_count: int) -> int:
        """Samples in an exposition: a histogram has its buckets, +Inf, sum and count."""
        each = len(self.buckets_ms) + 3 if self.kind is Kind.HISTOGRAM else 1
        return each * sum(1 for _ in self.label_values(replica_count))

    @property
    def summary(self) -> str:
        """What a scrape has of `help`: up to the first end of a thought, for help texts are half of what a scrape takes
        when it is compressed."""
        return re.split(r"(?<=.{20})[.:;](?: |$)", self.help, maxsplit=1)[0] + "."

    @property
    def is_of_telemetry(self) -> bool:
        """Whether the value is of the telemetry process, not of the replica."""
        return self.name.startswith("telemetry_")

    @property
    def has_cells(self) -> bool:
        return self.source in (Source.REPLICA, Source.INSTANT)


def histogram(
    name: str, buckets: tuple[float, ...], help: str, how: str, moved: str, scenario: str, **more: object
) -> Metric:
    return Metric(name, Kind.HISTOGRAM, Unit.LATENCY, help, how, moved, scenario, buckets_ms=buckets, **more)  # type: ignore[arg-type]


def counter(
    name: str, help: str, how: str, moved: str, scenario: str, unit: Unit = Unit.NONE, **more: object
) -> Metric:
    return Metric(name, Kind.COUNTER, unit, help, how, moved, scenario, **more)  # type: ignore[arg-type]


def gauge(name: str, help: str, how: str, moved: str, scenario: str, unit: Unit = Unit.NONE, **more: object) -> Metric:
    return Metric(name, Kind.GAUGE, unit, help, how, moved, scenario, **more)  # type: ignore[arg-type]
