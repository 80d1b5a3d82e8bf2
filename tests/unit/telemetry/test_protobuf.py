"""The protobuf exposition, decoded by the runtime of protobuf with what it needs of Prometheus' metrics.proto."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import decoder

from kimberlite._fast.metrics import HistogramValue, Kind
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.pages import Pages
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.sinks.prometheus import PROTOBUF, Exposition
from kimberlite.vsr.events import Event, EventKind

REPLICAS = 3
# message -> (number, name, type, whether repeated); https://github.com/prometheus/client_model
MESSAGES: dict[str, tuple[tuple[int, str, str, bool], ...]] = {
    "Timestamp": ((1, "seconds", "INT64", False), (2, "nanos", "INT32", False)),
    "LabelPair": ((1, "name", "STRING", False), (2, "value", "STRING", False)),
    "Gauge": ((1, "value", "DOUBLE", False),),
    "Counter": ((1, "value", "DOUBLE", False), (3, "created_timestamp", "Timestamp", False)),
    "BucketSpan": ((1, "offset", "SINT32", False), (2, "length", "UINT32", False)),
    "Exemplar": ((1, "label", "LabelPair", True), (2, "value", "DOUBLE", False), (3, "timestamp", "Timestamp", False)),
    "Bucket": (
        (1, "cumulative_count", "UINT64", False),
        (2, "upper_bound", "DOUBLE", False),
        (3, "exemplar", "Exemplar", False),
    ),
    "Histogram": (
        (1, "sample_count", "UINT64", False),
        (2, "sample_sum", "DOUBLE", False),
        (3, "bucket", "Bucket", True),
        (5, "schema", "SINT32", False),
        (6, "zero_threshold", "DOUBLE", False),
        (7, "zero_count", "UINT64", False),
        (12, "positive_span", "BucketSpan", True),
        (13, "positive_delta", "SINT64", True),
        (15, "created_timestamp", "Timestamp", False),
    ),
    "Metric": (
        (1, "label", "LabelPair", True),
        (2, "gauge", "Gauge", False),
        (3, "counter", "Counter", False),
        (7, "histogram", "Histogram", False),
    ),
    "MetricFamily": (
        (1, "name", "STRING", False),
        (2, "help", "STRING", False),
        (3, "type", "INT32", False),
        (4, "metric", "Metric", True),
        (5, "unit", "STRING", False),
    ),
}


def family_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package="io.prometheus.client", syntax="proto3")
    for message, members in MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, name, kind, repeated in members:
            added = described.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in MESSAGES:
                added.type, added.type_name = 11, f".io.prometheus.client.{kind}"
            else:
                added.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("io.prometheus.client.MetricFamily"))


FAMILY = family_class()


def families(body: bytes) -> Iterator[Any]:
    at = 0
    while at < len(body):
        size, at = decoder._DecodeVarint(body, at)  # type: ignore[attr-defined]
        family = FAMILY()
        assert family.ParseFromString(body[at : at + size]) == size
        at += size
        yield family


def scrape(reader: Reader, units: str) -> dict[str, Any]:
    body, content_type = Exposition(Pages(reader, units)).render(PROTOBUF)
    assert content_type == PROTOBUF
    return {family.name: family for family in families(body)}


def labels_of(metric: Any) -> dict[str, str]:
    return {pair.name: pair.value for pair in metric.label}


@pytest.mark.parametrize("units", catalogue.UNITS)
def test_both_directions(units: str, reader: Reader) -> None:
    found = scrape(reader, units)
    assert list(found) == [metric.exposed_name(units) for metric in catalogue.METRICS]
    about = Pages(reader, units).about
    for metric in catalogue.METRICS:
        family = found[metric.exposed_name(units)]
        assert (family.help, family.unit) == (metric.summary, metric.exposed_unit(units))
        assert family.type == {Kind.COUNTER: 0, Kind.GAUGE: 1, Kind.HISTOGRAM: 4}[metric.kind]
        for series in family.metric:
            values = labels_of(series)
            assert (values.pop("cluster"), values.pop("replica_id")) == (about.cluster, "1")
            assert list(values) == [label.name for label in metric.labels]
            told = getattr(series, metric.kind.name.lower())
            if metric.kind is not Kind.GAUGE and not metric.is_of_telemetry:
                created = told.created_timestamp
                assert created.seconds * 10**9 + created.nanos == about.started_unix_ns
        if metric.name not in catalogue.INFO_NAMES:
            assert len(family.metric) == len(list(metric.label_values(REPLICAS)))


@pytest.mark.parametrize("units", catalogue.UNITS)
def test_native_histograms_are_exact(units: str, recorder: Recorder, reader: Reader) -> None:
    """Every duration lies in the bucket of schema 3 that it was counted in, in the unit that is exposed."""
    draw = random.Random(7)
    durations = [0, 0, 1, *(int(draw.lognormvariate(13, 2)) for _ in range(500)), 1 << 39]
    recorder.record([Event(EventKind.VIEW_CHANGED, 1, ns) for ns in durations])
    metric = catalogue.BY_NAME["view_change_latency"]
    (series,) = scrape(reader, units)[metric.exposed_name(units)].metric
    told = series.histogram
    assert (told.sample_count, told.zero_count, told.schema) == (len(durations), 2, 3)
    assert 0 < told.zero_threshold < 1e-30
    assert told.sample_sum == pytest.approx(sum(durations) / metric.scale(units))
    counts: dict[int, int] = {}
    at, count, deltas = 0, 0, iter(told.positive_delta)
    for span in told.positive_span:
        at += span.offset
        for _ in range(span.length):
            count += next(deltas)
            counts[at] = count
            at += 1
    assert next(deltas, None) is None
    unit = reader.region.bins.unit_ns
    for index, count in counts.items():
        # unit * 2 ** ((index - 1) / 8) < duration <= unit * 2 ** (index / 8), without fractions: to the eighth power
        def within(ns: int, index: int) -> bool:
            return ns**8 << max(-index, 0) <= unit**8 << max(index, 0)

        assert count == sum(within(ns, index) and not within(ns, index - 1) for ns in durations if ns)
    assert sum(counts.values()) + 2 == len(durations)
    bounds = [bucket.upper_bound for bucket in told.bucket]
    assert bounds == pytest.approx([*(ms if units == "ms" else ms / 1000 for ms in metric.buckets_ms), float("inf")])
    below = [sum(ns <= bound for ns in durations) for bound in metric.bounds_ns]
    assert [bucket.cumulative_count for bucket in told.bucket] == [*below, len(durations)]


def test_an_exemplar(recorder: Recorder, reader: Reader) -> None:
    recorder.record([Event(EventKind.COMMITTED, 41, 1, 3_000_000), Event(EventKind.COMMITTED, 42, 1, 700_000)])
    recorder.exemplars.update(view=7)
    (series,) = scrape(reader, "ms")["vsr_commit_latency_ms"].metric
    told = {bucket.upper_bound: bucket.exemplar for bucket in series.histogram.bucket if bucket.HasField("exemplar")}
    assert list(told) == [1]  # of the bucket from 0.5 to 1 ms
    assert {pair.name: pair.value for pair in told[1].label} == {"op": "42", "view": "7"}
    assert told[1].value == 0.7 and abs(told[1].timestamp.seconds - time.time()) < 60


def test_an_empty_histogram_is_a_native_one_too(reader: Reader) -> None:
    (series,) = scrape(reader, "ms")["vsr_view_change_latency_ms"].metric
    assert series.histogram.zero_threshold > 0 and not series.histogram.positive_span
    values = reader.region.read()
    assert HistogramValue(0, 0, (0,) * 8, {}) in values
