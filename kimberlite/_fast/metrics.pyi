"""Typed surface of the compiled metrics module: see metrics.pyx."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, final

class Kind(IntEnum):
    COUNTER = 1
    GAUGE = 2
    HISTOGRAM = 3

class Refusal(IntEnum):
    """Why a file is not read (MetricsFileError.reason)."""

    BAD_SIZE = 1
    BAD_MAGIC = 2
    BAD_LAYOUT_VERSION = 3
    BAD_CHECKSUM = 4
    BAD_BOUNDS = 5
    BAD_RESERVED = 6
    RESET_CUT_SHORT = 7

class Series(NamedTuple):
    """One series of a region. `name` is any text that identifies it to the reader, labels included."""

    name: str
    kind: Kind
    floating: bool = False
    """Counters and gauges: the value is a float. Integer counters are 0 .. 2**64 - 1 and wrap,
    integer gauges are signed 64-bit."""
    shared: bool = False
    """Threads that do not hold the GIL write it too. What Python alone writes needs no sharing."""
    group: int = 0
    """0 .. 255: series of one writer. Two groups never share a cache line."""
    bounds_ns: tuple[int, ...] = ()
    """Histograms: upper bounds of the classic buckets, ascending, at most 255, without the +Inf."""

class Bins(NamedTuple):
    """The exponential bins of the histograms of a region: those of schema 3 of Prometheus' native histograms, and of
    scale 3 of OpenTelemetry's exponential ones, in durations counted by a unit. Bin 0 is for 0."""

    unit_ns: int
    bounds: tuple[int, ...]
    """The greatest value of each bin, in nanoseconds; of the last, which holds all that is longer, 2**63 - 1."""
    first: int
    """Bin b ends at unit_ns * 2 ** ((first + b - 1) / 8), for b from 1."""

def exponential_bins(unit_ns: int, /) -> Bins: ...

@dataclass(frozen=True, slots=True)
class HistogramValue:
    count: int  # the sum of `buckets`
    sum_ns: int
    buckets: tuple[int, ...]  # not cumulative, one more than bounds_ns: the last has no bound
    bins: dict[int, int]  # exponential bins that are not 0, ascending: number of the bin (see Bins) -> count

@final
class Counter:
    index: int
    def add(self, amount: float = 1, /) -> None:
        """Add 0 or more. A float only where the series is floating."""

    def advance_to(self, total: float, /) -> None:
        """Set to a total that is counted elsewhere; a total below the present one changes nothing."""

    def value(self) -> float: ...

@final
class Gauge:
    index: int
    def set(self, value: float, /) -> None: ...
    def add(self, amount: float, /) -> None: ...
    def value(self) -> float: ...

@final
class Histogram:
    index: int
    def record(self, duration_ns: int, /) -> None:
        """Count one duration; below 0 counts as 0."""

    def record_many(self, durations_ns: Sequence[int], /) -> None:
        """Count each duration, in one call."""

@final
class StageClock:
    """Where the time of one thread goes: at every moment exactly one stage is charged."""

    def switch(self, stage: int, /) -> int:
        """Charge the time since the last switch to the present stage and enter `stage` (a
        position in `stages`); returns the stage left. Reads the monotonic clock once."""

@final
class Region:
    """A set of series in memory that other processes may map: see Region.create, Region.open."""

    path: str | None
    series: tuple[Series, ...]
    info: bytes
    pid: int
    started_unix_ns: int
    started_monotonic_ns: int
    writable: bool
    size: int  # bytes of the file
    bins: Bins
    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        series: Sequence[Series],
        info: bytes = b"",
        bin_unit_ns: int = 1_000_000,
    ) -> Region:
        """A new region with all cells 0. `path` None: memory of this process alone. A file that
        stands at `path` is replaced, and keeps its content for whoever has it open. `info` is
        what the reader may know of the writer; the region does not interpret it. bin_unit_ns: the unit in which
        histograms are exposed: their bins are exact in it."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Region:
        """Another process's region, to read. Raises MetricsFileError (reason, path), OSError."""

    def counter(self, index: int) -> Counter: ...
    def gauge(self, index: int) -> Gauge: ...
    def histogram(self, index: int) -> Histogram: ...
    def stage_clock(self, stages: Sequence[int], *, turn: int, turned_at: int) -> StageClock:
        """stages: up to 16 counters of nanoseconds, the first one is waiting. turn: histogram of what
        lies between two waits. turned_at: gauge, monotonic clock at the end of the last turn."""

    def read(self) -> list[int | float | HistogramValue]:
        """The values of all series, in their order, each cell read once."""

    def is_current(self) -> bool:
        """Whether `path` still names this file: False after a restart of the writer."""

    @property
    def generation(self) -> int:
        """Changes with every reset; odd while one is under way."""

    @property
    def ended(self) -> bool:
        """Whether the writer said that it has ended in order. A killed writer says nothing: look at `pid`."""

    def end(self) -> None:
        """Writer: say that nothing will be written from here on."""

    def reset(self) -> None:
        """Writer: all cells to 0, for tests. Nothing may be recorded meanwhile."""

def quantile(counts: dict[int, int], q: float, bins: Bins) -> float:
    """The q-quantile (0 .. 1) in ns of counts by bin, within 4.4 % of the truth (below 2**40 ns); 0.0 when they are
    empty."""

def now_ns() -> int:
    """The monotonic clock."""

def calibrate(what: str, rounds: int) -> int:
    """Nanoseconds for `rounds` rounds of a loop in C, for benches: "store" and "locked" are the
    yardsticks, "counter", "shared_counter" and "histogram" are measured by them."""
