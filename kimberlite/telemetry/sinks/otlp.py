"""OTLP: to an OpenTelemetry collector, or to whatever takes OTLP, by the official exporter.

The exporter is given MetricsData that is put together here from a page: the SDK's meters would count a second time what
the replica has counted, and have no histogram that can be filled from outside. Names are those of the catalogue without
prefix and unit, below `vsr.`, with the unit beside: what makes Prometheus names of them (a collector does) arrives at
those of base units. Who speaks is in the resource.

Histograms are exponential ones in scale 3, exact, or have the classic buckets. Cumulative values count from the start
of the replica, whichever telemetry process tells them; deltas from the last delivery.

Everything of opentelemetry is imported when the sink is made: that takes some 0.3 s, and memory, which a replica
without it does not pay for. Headers and certificates are the exporter's own affair: OTEL_EXPORTER_OTLP_HEADERS,
OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_EXPORTER_OTLP_COMPRESSION and so on.

Thread rules: that of the sink. May import: opentelemetry, requests, errors, telemetry.
"""

from __future__ import annotations

import io
import logging
import math
import time
from typing import Any

from kimberlite._fast.metrics import Bins, HistogramValue, Kind
from kimberlite.errors import NetworkError
from kimberlite.telemetry.catalogue import Metric
from kimberlite.telemetry.pages import SERVICE, About, Page, metrics_of
from kimberlite.telemetry.reading import Sample
from kimberlite.telemetry.sinks.changes import Changes

SCALE = 3
HTTP, GRPC = "http", "grpc"
PATH = "/v1/metrics"
ANSWER_MAX = 16 << 10  # bytes of an answer that are read
OTLP_UNITS = {"ms": "ms", "seconds": "s", "bytes": "By", "": ""}


class OtlpSink:
    """A receiver of OTLP. endpoint: its URL, without the path that is the same everywhere."""

    name = "otlp"

    def __init__(
        self,
        about: About,
        endpoint: str,
        protocol: str,
        interval_s: float,
        timeout_s: float,
        is_delta: bool,
        is_exponential: bool,
        essential: bool,
    ) -> None:
        self.interval_s = interval_s
        self._essential = essential
        self._problems = _Problems()
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self._problems)
        logger.propagate = False  # whatever the exporter complains of is told by who runs this sink
        self._builder = Builder(about, is_delta, is_exponential)
        make = http_exporter if protocol == HTTP else grpc_exporter
        self._exporter = make(endpoint, timeout_s, self._problems)

    def send(self, page: Page) -> None:
        """Raises NetworkError when the receiver does not take it."""
        data = self._builder.build(page, page.select(self._essential))
        if data is None:
            return
        self._problems.told.clear()
        if self._exporter.export(data).name != "SUCCESS":
            raise NetworkError("; ".join(self._problems.told) or "it was not taken, and no reason is given")
        self._builder.delivered(page)

    def close(self) -> None:
        """Nothing more is sent."""
        self._exporter.shutdown()
        logging.getLogger("opentelemetry").removeHandler(self._problems)


class _Problems(logging.Handler):
    """What was said of one delivery, each thing once: the exporter's result has no reason."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage())

    def note(self, problem: str) -> None:
        self.told[problem] = None


def http_exporter(endpoint: str, timeout_s: float, problems: _Problems) -> Any:
    """The official one, with a bound on what is read of an answer."""
    import requests
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from requests.adapters import HTTPAdapter

    class BoundedAdapter(HTTPAdapter):
        """Does not let an answer that never ends fill the memory, or take longer than a request may."""

        def send(self, request: Any, *arguments: Any, **more: Any) -> Any:
            try:
                answer = super().send(request, *arguments, **{**more, "stream": True})
            except requests.RequestException as error:  # the exporter tries again, and says nothing of it
                problems.note(str(error.args[0] if error.args else error))
                raise
            until, read = time.monotonic() + timeout_s, b""
            while chunk := answer.raw.read1(ANSWER_MAX):
                read += chunk
                if len(read) > ANSWER_MAX or time.monotonic() > until:
                    answer.close()
                    raise requests.ConnectionError(f"an answer of more than {len(read)} bytes, after {timeout_s} s")
            answer.raw.release_conn()
            answer.raw = io.BytesIO(read)
            return answer

    session = requests.Session()
    session.mount("http://", BoundedAdapter())
    session.mount("https://", BoundedAdapter())
    url = endpoint.rstrip("/") + PATH
    return OTLPMetricExporter(url, timeout=timeout_s, session=session)


def grpc_exporter(endpoint: str, timeout_s: float, problems: _Problems) -> Any:
    """Of the extra otel-grpc. http:// in front says that there is no TLS."""
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter(endpoint, timeout=timeout_s)


class Builder:
    """Makes the SDK's MetricsData of pages."""

    def __init__(self, about: About, is_delta: bool, is_exponential: bool) -> None:
        from opentelemetry.sdk.metrics import export
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._sdk = export
        self._about = about
        self._changes = Changes(about) if is_delta else None
        self._is_exponential = is_exponential
        self._temporality = (
            export.AggregationTemporality.DELTA if is_delta else export.AggregationTemporality.CUMULATIVE
        )
        self._scope = InstrumentationScope(SERVICE, about.version)
        self._resource = Resource(
            {
                "service.name": SERVICE,
                "service.instance.id": about.instance,
                "service.version": about.version,
                "cluster": about.cluster,
                "replica_id": str(about.replica),
            }
        )

    def build(self, page: Page, samples: list[Sample]) -> Any:
        """MetricsData of these samples of a page; None when there is nothing to tell yet."""
        if self._changes is not None and not self._changes.begin(page):
            return None
        metrics = [metric for metric in (self._metric(page, *each) for each in metrics_of(samples)) if metric]
        scope_metrics = self._sdk.ScopeMetrics(self._scope, metrics, "")
        resource_metrics = self._sdk.ResourceMetrics(self._resource, [scope_metrics], "")
        return self._sdk.MetricsData([resource_metrics])

    def delivered(self, page: Page) -> None:
        """A page was taken."""
        if self._changes is not None:
            self._changes.tell(page.samples)
            self._changes.since_unix_ns = page.unix_ns

    def _metric(self, page: Page, metric: Metric, samples: list[Sample]) -> Any:
        """One metric with its points; None when none of them has a value."""
        points = [point for point in (self._point(page, sample) for sample in samples) if point is not None]
        if not points:
            return None
        data: Any
        if metric.kind is Kind.GAUGE:
            data = self._sdk.Gauge(points)
        elif metric.kind is Kind.COUNTER:
            data = self._sdk.Sum(points, self._temporality, is_monotonic=True)
        else:
            kind = self._sdk.ExponentialHistogram if self._is_exponential else self._sdk.Histogram
            data = kind(points, self._temporality)
        unit = metric.exposed_unit(self._about.units)
        return self._sdk.Metric(otlp_name(metric, self._about.units), metric.help, OTLP_UNITS[unit], data)

    def _point(self, page: Page, sample: Sample) -> Any:
        metric = sample.metric
        attributes = dict(zip((label.name for label in metric.labels), sample.values, strict=True))
        scale = metric.scale(self._about.units)
        if metric.kind is Kind.GAUGE:
            told: Any = sample.value
            since = 0
        else:
            told = self._changes.of(sample) if self._changes is not None else sample.value
            since = self._changes.since_unix_ns if self._changes is not None else self._about.counts_since(metric)
        if isinstance(told, HistogramValue):
            return self._histogram_point(metric, told, attributes, since, page.unix_ns)
        if metric.kind is Kind.HISTOGRAM or math.isnan(told):
            return None
        value = told / scale if scale != 1 else told
        return self._sdk.NumberDataPoint(attributes, since, page.unix_ns, value)

    def _histogram_point(
        self, metric: Metric, value: HistogramValue, attributes: dict[str, str], since: int, now: int
    ) -> Any:
        total = value.sum_ns / metric.scale(self._about.units)
        none: Any = None  # the least and the most are not recorded
        if not self._is_exponential:
            bounds = [bound if self._about.units == "ms" else round(bound / 1000, 12) for bound in metric.buckets_ms]
            return self._sdk.HistogramDataPoint(
                attributes, since, now, value.count, total, value.buckets, bounds, none, none
            )
        offset, counts = dense(self._about.bins, value.bins)
        return self._sdk.ExponentialHistogramDataPoint(
            attributes=attributes,
            start_time_unix_nano=since,
            time_unix_nano=now,
            count=value.count,
            sum=total,
            scale=SCALE,
            zero_count=value.bins.get(0, 0),
            positive=self._sdk.Buckets(offset, counts),
            negative=self._sdk.Buckets(0, []),
            flags=0,
            min=none,
            max=none,
        )


def otlp_name(metric: Metric, units: str) -> str:
    """Prefix, and name without unit: that is told beside."""
    name = metric.base_name if units == "base" and metric.base_name else metric.name
    return f"vsr.{name}"


def dense(bins: Bins, counts: dict[int, int]) -> tuple[int, list[int]]:
    """Index of the first bucket, and the counts from there on. OpenTelemetry's bucket i ends where that of Prometheus
    with i + 1 does. Without that of bin 0."""
    above = [number for number in counts if number > 0]
    if not above:
        return 0, []
    low, high = min(above), max(above)
    return bins.first + low - 2, [counts.get(number, 0) for number in range(low, high + 1)]
