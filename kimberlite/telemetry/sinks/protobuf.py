"""Prometheus' protobuf exposition: delimited io.prometheus.client.MetricFamily messages, with native histograms.

    https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto

A dozen fields of it are written, by hand: the runtime of protobuf would be a dependency for 100 lines. A histogram has
its classic buckets and, exact in the unit in which it is exposed, its bins in schema 3.

Thread rules: one page at a time. May import: _fast.metrics, telemetry.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable
from functools import cache

from kimberlite._fast.metrics import Bins, HistogramValue, Kind
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import Metric
from kimberlite.telemetry.pages import About, label_names, metrics_of
from kimberlite.telemetry.reading import Sample

SCHEMA = 3
ZERO_THRESHOLD = 2.0**-128  # only what took no nanosecond is in the bucket of zero
TYPES = {Kind.COUNTER: 0, Kind.GAUGE: 1, Kind.HISTOGRAM: 4}
VALUE_FIELDS = {Kind.COUNTER: 3, Kind.GAUGE: 2, Kind.HISTOGRAM: 7}  # of Metric
VARINT, FIXED64, BYTES = 0, 1, 2  # wire types
DOUBLE = struct.Struct("<d")
Key = tuple[str, tuple[str, ...]]
"""A series: name of the metric, values of its labels."""


SHORT = tuple(bytes((value,)) for value in range(0x80))


def varint(value: int) -> bytes:
    """A number from 0, seven bits to a byte."""
    if value < 0x80:
        return SHORT[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> int:
    """A signed number as one from 0: what is near 0 is short."""
    return 2 * value if value >= 0 else -2 * value - 1


def of_number(field: int, value: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(value)


def of_double(field: int, value: float) -> bytes:
    return varint(field << 3 | FIXED64) + DOUBLE.pack(value)


def of_bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | BYTES) + varint(len(value)) + value


def of_time(field: int, unix_ns: int) -> bytes:
    """A google.protobuf.Timestamp."""
    seconds, rest = divmod(unix_ns, catalogue.NS_PER_S)
    return of_bytes(field, of_number(1, seconds) + of_number(2, rest))


def spans(bins: Bins, counts: dict[int, int]) -> tuple[bytes, bytes]:
    """Counts by bin, ascending, as fields of Histogram: positive_span, runs of neighbours, and positive_delta, by how
    much each count differs from the one before. Without that of bin 0."""
    found: list[bytes] = []
    deltas: list[bytes] = []
    end = begin = before = 0  # indices in schema 3: where the last run ended, where this one began
    at = 0
    for number, count in counts.items():
        if number == 0:
            continue
        index = bins.first + number - 1
        if not deltas:
            begin = index
        elif index != at:
            found.append(of_span(begin - end, at - begin))
            end, begin = at, index
        at = index + 1
        change = 2 * (count - before)
        change = change if change >= 0 else -change - 1  # zigzag
        deltas.append(SHORT[change] if change < 0x80 else varint(change))
        before = count
    if deltas:
        found.append(of_span(begin - end, at - begin))
    return b"".join(found), of_bytes(13, b"".join(deltas))


def of_span(offset: int, length: int) -> bytes:
    """A BucketSpan. offset: from the end of the one before."""
    return of_bytes(12, of_number(1, zigzag(offset)) + of_number(2, length))


@cache
def bounds(metric: Metric, units: str) -> tuple[bytes, ...]:
    """The upper bounds of the classic buckets, as fields of Bucket."""
    exposed = (bound if units == "ms" else round(bound / 1000, 12) for bound in metric.buckets_ms)
    return tuple(of_double(2, bound) for bound in (*exposed, float("inf")))


def exemplar(sample: Sample, scale: float) -> tuple[int, bytes]:
    """The bucket that has an exemplar, and the field of Bucket."""
    found = sample.exemplar
    if found is None:
        return -1, b""
    labels = (("op", found.op), ("view", found.view))
    pairs = b"".join(of_bytes(1, of_bytes(1, name.encode()) + of_bytes(2, b"%d" % value)) for name, value in labels)
    told = pairs + of_double(2, found.duration_ns / scale) + of_time(3, found.unix_ns)
    return bisect_left(sample.metric.bounds_ns, found.duration_ns), of_bytes(3, told)


class ProtobufWriter:
    """What is constant of a series is put together once."""

    def __init__(self, about: About) -> None:
        self._about = about
        self._heads: dict[str, bytes] = {}
        self._labels: dict[Key, bytes] = {}
        self._times: dict[tuple[int, bool], bytes] = {}
        self._numbers: dict[Key, tuple[bytes, bytes]] = {}
        self._empty: dict[Key, bytes] = {}  # histograms that have counted nothing

    def write(self, samples: Iterable[Sample]) -> bytes:
        parts: list[bytes] = []
        for metric, found in metrics_of(samples):
            head = self._heads.get(metric.name)
            if head is None:
                head = self._heads[metric.name] = self._head(metric)
            family = head + b"".join(map(self._metric, found))
            parts += (varint(len(family)), family)
        return b"".join(parts)

    def _head(self, metric: Metric) -> bytes:
        unit = metric.exposed_unit(self._about.units)
        return b"".join(
            (
                of_bytes(1, metric.exposed_name(self._about.units).encode()),
                of_bytes(2, metric.summary.encode()),
                of_number(3, TYPES[metric.kind]),
                of_bytes(5, unit.encode()) if unit else b"",
            )
        )

    def _metric(self, sample: Sample) -> bytes:
        """Field 4 of MetricFamily; nothing for a histogram that the writer does not have."""
        metric, value = sample.metric, sample.value
        scale = metric.scale(self._about.units)
        if isinstance(value, HistogramValue):
            if value.count:
                return self._around(sample, self._histogram(sample, value, scale))
            key = metric.name, sample.values
            if key not in self._empty:
                self._empty[key] = self._around(sample, self._histogram(sample, value, scale))
            return self._empty[key]
        if metric.kind is Kind.HISTOGRAM:
            return b""
        before, behind = self._number(sample)
        return before + DOUBLE.pack(value / scale) + behind

    def _number(self, sample: Sample) -> tuple[bytes, bytes]:
        """What stands before and behind the eight bytes of a counter or gauge: their number is constant too."""
        key = sample.metric.name, sample.values
        found = self._numbers.get(key)
        if found is None:
            since = self._since(3, sample.metric) if sample.metric.kind is Kind.COUNTER else b""
            whole = self._around(sample, of_double(1, 0.0) + since)
            found = self._numbers[key] = whole[: len(whole) - len(since) - DOUBLE.size], since
        return found

    def _around(self, sample: Sample, told: bytes) -> bytes:
        """Field 4 of MetricFamily with labels and what is told."""
        return of_bytes(4, self._labels_of(sample) + of_bytes(VALUE_FIELDS[sample.metric.kind], told))

    def _since(self, field: int, metric: Metric) -> bytes:
        """The created_timestamp of a counter or histogram."""
        key = field, metric.is_of_telemetry
        found = self._times.get(key)
        if found is None:
            found = self._times[key] = of_time(field, self._about.counts_since(metric))
        return found

    def _labels_of(self, sample: Sample) -> bytes:
        key = sample.metric.name, sample.values
        found = self._labels.get(key)
        if found is None:
            values = (self._about.cluster, str(self._about.replica), *sample.values)
            pairs = zip(label_names(sample.metric), values, strict=True)
            found = b"".join(
                of_bytes(1, of_bytes(1, name.encode()) + of_bytes(2, value.encode())) for name, value in pairs
            )
            self._labels[key] = found
        return found

    def _histogram(self, sample: Sample, value: HistogramValue, scale: float) -> bytes:
        metric = sample.metric
        noted, note = exemplar(sample, scale)
        parts = [of_number(1, value.count), of_double(2, value.sum_ns / scale)]
        total = 0
        for number, (bound, count) in enumerate(zip(bounds(metric, self._about.units), value.buckets, strict=True)):
            total += count
            told = of_number(1, total) + bound + (note if number == noted else b"")
            parts.append(b"\x1a" + SHORT[len(told)] + told)  # field 3: BYTES
        parts += (of_number(5, zigzag(SCHEMA)), of_double(6, ZERO_THRESHOLD), of_number(7, value.bins.get(0, 0)))
        parts += (*spans(self._about.bins, value.bins), self._since(15, metric))
        return b"".join(parts)
