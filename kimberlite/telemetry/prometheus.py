"""The Prometheus exposition: the catalogue's metrics as prometheus-client families.

A custom collector over a reading, so that nothing of prometheus-client is on the replica's
hot path or even in its process. Text or OpenMetrics, as the scraper accepts.

May import: prometheus_client, _fast.metrics, telemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kimberlite._fast.metrics import HistogramValue, Kind
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.reading import Reader, Sample


class ReplicaCollector(Collector):
    """Families of one replica, in the order of the catalogue, with cluster and replica_id on every series."""

    def __init__(self, reader: Reader, units: str) -> None:
        self._reader = reader
        self._units = units
        info = reader.info
        self._constant = (str(info["cluster"]), str(info["replica"]))

    def collect(self) -> Iterator[Metric]:
        family: Metric | None = None
        metric: catalogue.Metric | None = None
        for sample in self._reader.page():
            if sample.metric is not metric:
                if family is not None:
                    yield family
                metric = sample.metric
                family = self._family(metric)
            self._add(cast(Metric, family), sample)
        if family is not None:
            yield family

    def _family(self, metric: catalogue.Metric) -> Metric:
        labels = (*catalogue.CONSTANT_LABELS, *(label.name for label in metric.labels))
        name = metric.exposed_name(self._units)
        if metric.kind is Kind.COUNTER:
            return CounterMetricFamily(name, metric.help, labels=labels)
        if metric.kind is Kind.GAUGE:
            return GaugeMetricFamily(name, metric.help, labels=labels)
        return HistogramMetricFamily(name, metric.help, labels=labels)

    def _add(self, family: Metric, sample: Sample) -> None:
        labels = (*self._constant, *sample.values)
        scale = sample.metric.scale(self._units)
        value = sample.value
        if isinstance(family, HistogramMetricFamily):
            if isinstance(value, HistogramValue):
                buckets = cumulative(sample.metric, value, self._units)
                family.add_metric(labels, buckets, sum_value=value.sum_ns / scale)
        elif isinstance(family, CounterMetricFamily | GaugeMetricFamily):
            number = cast(float, value)
            family.add_metric(labels, number / scale if scale != 1 else number)


def cumulative(metric: catalogue.Metric, value: HistogramValue, units: str) -> list[tuple[str, float]]:
    """Buckets as (upper bound, count of everything up to it); the last is +Inf and the total. A bound that is an
    integer has its ".0", as newer servers write it whatever they are given: queries match either way."""
    bounds = [repr(round(float(bound if units == "ms" else bound / 1000), 12)) for bound in metric.buckets_ms]
    total, result = 0, []
    for bound, count in zip([*bounds, "+Inf"], value.buckets, strict=True):
        total += count
        result.append((bound, float(total)))
    return result


def exposition(reader: Reader, units: str) -> Callable[[str], tuple[bytes, str]]:
    """A function from an Accept header to (body, content type)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReplicaCollector(reader, units))

    def render(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    return render
