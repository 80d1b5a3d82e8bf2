"""Pages: everything there is to tell of a replica at one moment, with what does not change.

A page is what a sink is given. Two sinks with the same page tell the same values: its number is among them
(vsr_telemetry_snapshot).

Thread rules: any thread. May import: telemetry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from kimberlite._fast.metrics import Bins
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import Metric
from kimberlite.telemetry.reading import Reader, Sample

SERVICE = "kimberlite"


@dataclass(frozen=True, slots=True)
class About:
    """What all pages of a replica have in common.

    units: of catalogue.UNITS. bins: of its histograms. started_unix_ns: when the replica began to count;
    own_started_unix_ns: when this process did, for what it counts itself. is_first: this process is the first of the
    replica's life, so that nothing was told to any sink before it."""

    cluster: str
    replica: int
    version: str
    units: str
    bins: Bins
    started_unix_ns: int
    own_started_unix_ns: int
    is_first: bool

    @property
    def instance(self) -> str:
        """Which replica this is, among all there are."""
        return f"{self.cluster}/{self.replica}"

    def counts_since(self, metric: Metric) -> int:
        """When a counter or histogram was 0, nanoseconds since 1970."""
        return self.own_started_unix_ns if metric.is_of_telemetry else self.started_unix_ns


@dataclass(frozen=True, slots=True)
class Page:
    """What there is to tell at one moment."""

    number: int
    unix_ns: int
    samples: list[Sample]

    def select(self, essential: bool) -> list[Sample]:
        """All samples, or those of essential metrics only."""
        return [sample for sample in self.samples if sample.metric.essential] if essential else self.samples


class Pages:
    """Makes the pages of one replica, one at a time."""

    def __init__(self, reader: Reader, units: str, is_first: bool = True) -> None:
        info = reader.info
        self.about = About(
            cluster=str(info["cluster"]),
            replica=int(info["replica"]),
            version=str(info["build"]["version"]),
            units=units,
            bins=reader.region.bins,
            started_unix_ns=reader.region.started_unix_ns,
            own_started_unix_ns=time.time_ns(),
            is_first=is_first,
        )
        self._reader = reader
        self._lock = threading.Lock()

    def take(self) -> Page:
        """The page of now."""
        with self._lock:
            self._reader.snapshot += 1
            return Page(self._reader.snapshot, time.time_ns(), self._reader.page())

    def drop(self, sink: str, count: int = 1) -> None:
        """Count what a sink did not deliver."""
        with self._lock:
            self._reader.dropped[sink] += count


def metrics_of(samples: Iterable[Sample]) -> list[tuple[Metric, list[Sample]]]:
    """Samples by metric; those of one stand together already."""
    found: list[tuple[Metric, list[Sample]]] = []
    for sample in samples:
        if not found or found[-1][0] is not sample.metric:
            found.append((sample.metric, []))
        found[-1][1].append(sample)
    return found


def label_names(metric: Metric) -> tuple[str, ...]:
    """Of every series of a metric, the constant ones first."""
    return (*catalogue.CONSTANT_LABELS, *(label.name for label in metric.labels))
