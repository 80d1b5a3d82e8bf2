"""The catalogue: every metric there is, declared once.

The shared-memory layout, the recorder's handles, the exposition, the reference page
(docs/metrics.md) and the tests all derive from METRICS. Labels are closed enums, so the
number of series of a cluster of a given size is a constant: `series_count`.

Cells hold integers in one fixed unit (nanoseconds, bytes, counts); what is exposed may be
another unit, chosen by `units`: "ms" gives latencies in milliseconds (vsr_prepare_latency_ms),
"base" gives seconds (vsr_prepare_latency_seconds) and names that follow Prometheus' rules.

    metric       what a metric is
    labels       labels and their values
    scenarios    in which test each metric is shown to move
    latencies, counters, gauges, resources   the metrics themselves

May import: types, _fast.metrics, vsr.events, vsr.work. Main invariant: nothing is exposed that is not declared here,
and everything declared here is exposed.
"""

from __future__ import annotations

from kimberlite._fast.metrics import Kind, Series
from kimberlite.telemetry.catalogue.counters import COUNTERS
from kimberlite.telemetry.catalogue.gauges import HEALTH, PHASES
from kimberlite.telemetry.catalogue.latencies import LATENCIES
from kimberlite.telemetry.catalogue.metric import (
    CONSTANT_LABELS,
    NS_PER_S,
    UNITS,
    Metric,
    Role,
    Source,
    Unit,
    latency_unit_ns,
)
from kimberlite.telemetry.catalogue.resources import RESOURCES
from kimberlite.types import REPLICAS_MAX

__all__ = [
    "BY_NAME",
    "CONSTANT_LABELS",
    "COUNTERS",
    "EXEMPLARS",
    "EXEMPLAR_FIELDS",
    "HEALTH",
    "INFO_NAMES",
    "LATENCIES",
    "METRICS",
    "NS_PER_S",
    "PHASES",
    "RESOURCES",
    "UNITS",
    "Metric",
    "Role",
    "Source",
    "Unit",
    "cell_name",
    "exemplar_cell",
    "latency_unit_ns",
    "layout",
    "series_count",
]

METRICS: tuple[Metric, ...] = (*LATENCIES, *COUNTERS, *HEALTH, *PHASES, *RESOURCES)
BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
INFO_NAMES = ("build_info", "config_info")
EXEMPLARS = ("commit_latency",)  # histograms that have an exemplar
EXEMPLAR_FIELDS = (
    "op",
    "view",
    "duration_ns",
    "unix_ns",
    "sum",
)  # sum: of those before, to see that they belong together


def cell_name(metric: Metric, values: tuple[str, ...]) -> str:
    """Name of a series in the shared memory."""
    if not values:
        return metric.name
    pairs = zip((label.name for label in metric.labels), values, strict=True)
    return metric.name + "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"


def exemplar_cell(metric: str, field: str) -> str:
    """Name of a cell in the shared memory that an exemplar is told in. No series of an exposition."""
    return f"exemplar of {metric}: {field}"


def layout(replica_count: int) -> tuple[Series, ...]:
    """The series of a replica's shared memory, in order; behind them the cells of exemplars."""
    exemplars = (Series(exemplar_cell(metric, field), Kind.GAUGE) for metric in EXEMPLARS for field in EXEMPLAR_FIELDS)
    return (
        *(
            Series(
                cell_name(metric, values),
                metric.kind,
                floating=metric.floating,
                bounds_ns=metric.bounds_ns,
            )
            for metric in METRICS
            if metric.has_cells
            for values in metric.label_values(replica_count)
        ),
        *exemplars,
    )


def series_count(replica_count: int) -> int:
    """Samples that /metrics of one replica holds, whatever happens. Raises ValueError outside of 1..6."""
    if not 1 <= replica_count <= REPLICAS_MAX:
        raise ValueError(f"a cluster has from 1 to {REPLICAS_MAX} replicas, not {replica_count}")
    return sum(1 if metric.name in INFO_NAMES else metric.series_count(replica_count) for metric in METRICS)
