"""Reading a replica's metrics from outside: the values of every metric of the catalogue.

Cells come from the shared memory; what the replica need not spend its time on (memory, CPU time,
descriptors) from /proc. When the replica has ended, `samples` goes on giving the values of its last moment,
for who looks at what it left; `page`, which is for who watches, no longer claims any state.

Thread rules: any thread, one at a time for `Reader.sample_process`. May import: errors, types, vsr.work, _fast.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from kimberlite._fast.metrics import Bins, HistogramValue, Kind, Region, now_ns, quantile
from kimberlite.telemetry import catalogue, region
from kimberlite.telemetry.catalogue import Metric, Source, Unit, cell_name
from kimberlite.types import Status
from kimberlite.vsr.work import CannotCommit

NAN = math.nan
TICK_HZ = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LOOP_STALL_S = 5.0  # a turn of the event loop that takes longer is a hang
ENDED = ("replica_up", "is_primary", "can_commit")  # gauges that are known to be 0 once a replica has ended
LASTING = (*ENDED, "telemetry_resident_memory", "telemetry_snapshot")
HUNG = {"can_commit": 0.0, f'cannot_commit{{reason="{CannotCommit.HUNG}"}}': 1.0}
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


class Exemplar(NamedTuple):
    """One operation that a histogram has counted."""

    op: int
    view: int
    duration_ns: int
    unix_ns: int


class Sample(NamedTuple):
    """One series. `values` are those of the metric's labels; durations in nanoseconds, as in the cells."""

    metric: Metric
    values: tuple[str, ...]
    value: float | HistogramValue
    exemplar: Exemplar | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """All values at one moment. `cells`: by name, as the replica wrote them. Times are monotonic nanoseconds."""

    now: int
    alive: bool
    cells: dict[str, float | HistogramValue]
    info: dict[str, Any]
    pid: int

    def number(self, name: str, *values: str) -> float:
        """The cell of a counter or gauge; NaN when the writer does not have it."""
        value = self.cells.get(cell_name(catalogue.BY_NAME[name], values), NAN)
        return NAN if isinstance(value, HistogramValue) else value

    def age_s(self, name: str, *values: str) -> float:
        """Seconds since the instant in a cell; NaN when there has been none."""
        instant = self.number(name, *values)
        return max(self.now - instant, 0) / catalogue.NS_PER_S if instant else NAN

    def exemplar(self, metric: Metric) -> Exemplar | None:
        """What the replica told of one operation; None when it has told nothing, or is just telling."""
        if metric.name not in catalogue.EXEMPLARS:
            return None
        told = [self.cells.get(catalogue.exemplar_cell(metric.name, field), 0) for field in catalogue.EXEMPLAR_FIELDS]
        *values, total = (value for value in told if isinstance(value, int))
        return Exemplar(*values) if total and sum(values) == total else None

    @property
    def is_hung(self) -> bool:
        """Whether the event loop has not turned for so long that what it wrote says nothing of now."""
        return self.age_s("event_loop_last_turn") >= LOOP_STALL_S


@cache
def series_of(metric: Metric, replica_count: int) -> tuple[tuple[tuple[str, ...], str], ...]:
    """The series of a metric: label values, and the name of the cell."""
    return tuple((values, cell_name(metric, values)) for values in metric.label_values(replica_count))


@dataclass(slots=True)
class Reader:
    """Values of one replica. replica_gone: set when it is known to have ended. dropped: by sink, what did not get out.
    snapshot: the number of the present reading."""

    region: Region
    replica_gone: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    snapshot: int = 0
    _process: dict[str, float] = field(default_factory=dict)

    @property
    def info(self) -> dict[str, Any]:
        return region.info_of(self.region)

    def is_alive(self) -> bool:
        return not self.replica_gone and not self.region.ended and is_running(self.region)

    def observe(self) -> Observation:
        alive = self.is_alive()
        values = self.region.read()
        cells = {series.name: value for series, value in zip(self.region.series, values, strict=True)}
        return Observation(now_ns(), alive, cells, self.info, self.region.pid)

    def sample_process(self) -> None:
        """Look at the process of the replica; what it no longer has stays as it was."""
        with contextlib.suppress(OSError, ValueError):
            if self.is_alive():
                self._process |= process_values(self.region.pid)

    def samples(self, seen: Observation | None = None) -> list[Sample]:
        """Every series of the catalogue, in its order; `seen`: what was observed already."""
        seen = seen or self.observe()
        self.sample_process()
        found: list[Sample] = []
        for metric in catalogue.METRICS:
            found += _FROM[metric.source](self, metric, seen)
        return found

    def page(self) -> list[Sample]:
        """What may be published. Of a replica that has ended no gauge but those of ENDED, at 0, and those of this
        very process: counters and histograms stay, for what was counted has happened. One that hangs can not commit."""
        seen = self.observe()
        found = self.samples(seen)
        if not seen.alive:
            told = (sample for sample in found if sample.metric.kind is not Kind.GAUGE or sample.metric.name in LASTING)
            return [sample._replace(value=0.0) if sample.metric.name in ENDED else sample for sample in told]
        if seen.is_hung:
            return [
                sample._replace(value=HUNG.get(cell_name(sample.metric, sample.values), sample.value))
                for sample in found
            ]
        return found

    def _from_cells(self, metric: Metric, seen: Observation) -> list[Sample]:
        cells = seen.cells
        exemplar = seen.exemplar(metric)
        return [
            Sample(metric, values, cells.get(cell, NAN), exemplar)
            for values, cell in series_of(metric, seen.info["replica_count"])
        ]

    def _from_instants(self, metric: Metric, seen: Observation) -> list[Sample]:
        return [
            Sample(metric, values, seen.age_s(metric.name, *values) * catalogue.NS_PER_S)
            for values in metric.label_values(seen.info["replica_count"])
        ]

    def _derived(self, metric: Metric, seen: Observation) -> list[Sample]:
        if metric.name == "replica_up":
            return [Sample(metric, (), float(seen.alive))]
        status = seen.number("replica_status")
        return [Sample(metric, (state.name.lower(),), float(state == status)) for state in Status]

    def _from_process(self, metric: Metric, seen: Observation) -> list[Sample]:
        own: dict[str, Callable[[], float]] = {
            "telemetry_cpu": lambda: time.process_time() * catalogue.NS_PER_S,
            "telemetry_resident_memory": lambda: resident_bytes("self"),
            "telemetry_snapshot": lambda: self.snapshot,
        }
        if metric.name in own:
            return [Sample(metric, (), own[metric.name]())]
        if metric.name == "telemetry_dropped":
            lines = seen.number("log_lines", "dropped")  # the replica counts those: no other sink is its own
            counts = {**self.dropped, "log": 0.0 if math.isnan(lines) else lines}
            return [Sample(metric, values, counts.get(values[0], 0)) for values in metric.label_values(0)]
        return [
            Sample(metric, values, self._process.get(cell, NAN))
            for values, cell in series_of(metric, seen.info["replica_count"])
        ]

    def _from_info(self, metric: Metric, seen: Observation) -> list[Sample]:
        if metric.name == "start_time":
            return [Sample(metric, (), float(self.region.started_unix_ns))]
        said = seen.info["build" if metric.name == "build_info" else "config"]
        return [Sample(metric, tuple(str(said.get(label.name, "")) for label in metric.labels), 1.0)]


_FROM: dict[Source, Callable[[Reader, Metric, Observation], list[Sample]]] = {
    Source.REPLICA: Reader._from_cells,
    Source.INSTANT: Reader._from_instants,
    Source.DERIVED: Reader._derived,
    Source.PROCESS: Reader._from_process,
    Source.INFO: Reader._from_info,
}


def is_running(written: Region) -> bool:
    """Whether the process that wrote a region runs, and is not another one that got its number since."""
    try:
        after_name = Path(f"/proc/{written.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    started_s = int(after_name[19]) / TICK_HZ  # field 22 of proc(5): since boot
    created_s = written.started_monotonic_ns / catalogue.NS_PER_S
    # The clock of the one runs on while the machine sleeps and that of the other does not: only "later" is telling.
    slept_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return after_name[0] != "Z" and started_s - slept_s < created_s + 1


def resident_bytes(pid: int | str) -> float:
    return float(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def process_values(pid: int) -> dict[str, float]:
    """Values by cell name. Raises OSError, ValueError when the process has gone."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft = next(line.split()[3] for line in limits if line.startswith("Max open files"))
    return {
        'cpu{mode="user"}': int(after_name[11]) * catalogue.NS_PER_S / TICK_HZ,
        'cpu{mode="system"}': int(after_name[12]) * catalogue.NS_PER_S / TICK_HZ,
        "resident_memory": resident_bytes(pid),
        "open_files": float(len(os.listdir(f"/proc/{pid}/fd"))),
        "open_files_limit": math.inf if soft == "unlimited" else float(soft),
    }


def snapshot(directory: Path) -> dict[str, object]:
    """All metrics of the replica in `directory` as JSON can hold them; offline and read-only.

    For `kimberlite inspect metrics`. Durations are in milliseconds; a histogram is count, sum and
    quantiles. Values that are not known are None. Raises DataMissingError, MetricsFileError.
    """
    reader = Reader(region.find(directory))
    info = reader.info
    return {
        "directory": str(directory.absolute()),
        "file": reader.region.path,
        "cluster": info["cluster"],
        "replica": info["replica"],
        "pid": reader.region.pid,
        "running": reader.is_alive(),
        "started_unix_s": reader.region.started_unix_ns / catalogue.NS_PER_S,
        "build": info["build"],
        "config": info["config"],
        "metrics": [
            {
                "name": sample.metric.exposed_name("ms"),
                "kind": sample.metric.kind.name.lower(),
                "labels": dict(zip((label.name for label in sample.metric.labels), sample.values, strict=True)),
                **_plain(sample, reader.region.bins),
            }
            for sample in reader.samples()
            if sample.metric.source is not Source.INFO and not sample.metric.name.startswith("telemetry_")
        ],
    }


def _plain(sample: Sample, bins: Bins) -> dict[str, object]:
    scale = sample.metric.scale("ms")
    if sample.metric.kind is not Kind.HISTOGRAM:
        value = cast(float, sample.value) / scale
        exact = sample.metric.unit in (Unit.NONE, Unit.BYTES) and value.is_integer()
        return {"value": None if not math.isfinite(value) else int(value) if exact else value}
    histogram = sample.value
    if not isinstance(histogram, HistogramValue):
        return {"count": None}
    return {
        "count": histogram.count,
        "sum": histogram.sum_ns / scale,
        **{name: quantile(histogram.bins, q, bins) / scale for name, q in QUANTILES.items()},
    }
