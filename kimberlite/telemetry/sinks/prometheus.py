"""The Prometheus exposition of a page: text, OpenMetrics, or protobuf with native histograms, as the scraper accepts.

Written here and not by prometheus-client, whose families and samples cost 4 ms of a scrape's 6: what is constant of a
series is put together once, a scrape adds the numbers.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    https://prometheus.io/docs/specs/om/open_metrics_spec/

Thread rules: one scrape at a time. May import: _fast.metrics, telemetry.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from kimberlite._fast.metrics import HistogramValue, Kind
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import Metric
from kimberlite.telemetry.pages import SERVICE, About, Page, Pages, label_names, metrics_of
from kimberlite.telemetry.reading import Sample
from kimberlite.telemetry.sinks.protobuf import ProtobufWriter

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
TYPES = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}


class Exposition:
    """Answers scrapes of one replica."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._text = TextWriter(pages.about)
        self._openmetrics = OpenMetricsWriter(pages.about)
        self._protobuf = ProtobufWriter(pages.about)

    def render(self, accept: str, essential: bool = False) -> tuple[bytes, str]:
        """Body and content type for an Accept header. essential: of essential metrics only."""
        return self.of(self._pages.take(), accept, essential)

    def of(self, page: Page, accept: str, essential: bool = False) -> tuple[bytes, str]:
        """The same of a page that was taken."""
        samples = page.select(essential)
        content_type = negotiate(accept)
        if content_type == PROTOBUF:
            return self._protobuf.write(samples), content_type
        writer = self._openmetrics if content_type == OPENMETRICS else self._text
        return writer.write(samples), content_type


def negotiate(accept: str) -> str:
    """The content type that a scraper likes best. Whoever names none of ours gets text."""
    best, best_quality = TEXT, 0.0
    for offer in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in offer.split(";"))
        given = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        try:
            quality = float(given.get("q", "1"))
        except ValueError:
            continue
        if quality > best_quality and (ours := _ours(kind, given)):
            best, best_quality = ours, quality
    return best


def _ours(kind: str, given: dict[str, str]) -> str:
    if kind == "application/openmetrics-text":
        return OPENMETRICS
    if kind == "application/vnd.google.protobuf":
        wanted = given.get("proto") == "io.prometheus.client.metricfamily" and given.get("encoding") == "delimited"
        return PROTOBUF if wanted else ""
    return TEXT if kind in ("text/plain", "text/*", "*/*") else ""


def escape(text: str) -> str:
    """For HELP."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def escape_label(text: str) -> str:
    """For the value of a label."""
    return escape(text).replace('"', '\\"')


def number(value: float, scale: float) -> str:
    """A value as it is written; integers in full."""
    if scale != 1:
        value /= scale
    if isinstance(value, int):
        return str(value)
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() else repr(value)


@cache
def bounds(metric: Metric, units: str) -> tuple[str, ...]:
    """Upper bounds of the classic buckets. A bound that is an integer has its ".0", as newer servers write it whatever
    they are given: queries match either way."""
    found = (float(bound if units == "ms" else bound / 1000) for bound in metric.buckets_ms)
    return (*(repr(round(bound, 12)) for bound in found), "+Inf")


class Lines(NamedTuple):
    """What stands in front of the numbers of a histogram, and behind them all; empty: all of it, when nothing was
    counted."""

    buckets: tuple[str, ...]
    total: str
    size: str
    end: str
    empty: str


class TextWriter:
    """The text format. What is constant is kept by series: their number is."""

    def __init__(self, about: About) -> None:
        self._about = about
        self._constant = (about.cluster, str(about.replica))
        self._heads: dict[str, str] = {}
        self._numbers: dict[tuple[str, tuple[str, ...]], tuple[str, str]] = {}
        self._histograms: dict[tuple[str, tuple[str, ...]], Lines] = {}

    def write(self, samples: Iterable[Sample]) -> bytes:
        parts: list[str] = []
        for metric, found in metrics_of(samples):
            head = self._heads.get(metric.name)
            if head is None:
                head = self._heads[metric.name] = self._head(metric)
            parts.append(head)
            scale = metric.scale(self._about.units)
            for sample in found:
                if isinstance(sample.value, HistogramValue):
                    self._add_histogram(parts, sample, sample.value, scale)
                elif metric.kind is not Kind.HISTOGRAM:  # one that the writer does not have has no buckets either
                    before, behind = self._number(sample)
                    parts += (before, number(sample.value, scale), behind)
        parts.append(self._end())
        return "".join(parts).encode()

    def _number(self, sample: Sample) -> tuple[str, str]:
        key = sample.metric.name, sample.values
        found = self._numbers.get(key)
        if found is None:
            name = sample.metric.exposed_name(self._about.units)
            found = f"{name}{self._labels(sample)} ", "\n" + self._created(sample)
            self._numbers[key] = found
        return found

    def _add_histogram(self, parts: list[str], sample: Sample, value: HistogramValue, scale: float) -> None:
        key = sample.metric.name, sample.values
        lines = self._histograms.get(key)
        if lines is None:
            lines = self._histograms[key] = self._lines(sample)
        if not value.count:
            parts.append(lines.empty)
            return
        total = 0
        noted, note = self._exemplar(sample, scale)
        for number_, (before, count) in enumerate(zip(lines.buckets, value.buckets, strict=True)):
            total += count
            parts.append(f"{before}{total}{note if number_ == noted else ''}\n")
        parts.append(f"{lines.total}{number(value.sum_ns, scale)}\n{lines.size}{total}\n{lines.end}")

    def _lines(self, sample: Sample) -> Lines:
        name, labels = sample.metric.exposed_name(self._about.units), self._labels(sample)
        buckets = [f'{name}_bucket{labels[:-1]},le="{bound}"}} ' for bound in bounds(sample.metric, self._about.units)]
        total, size, end = f"{name}_sum{labels} ", f"{name}_count{labels} ", self._created(sample)
        empty = "".join(f"{line}0\n" for line in (*buckets, total, size)) + end
        return Lines(tuple(buckets), total, size, end, empty)

    def _labels(self, sample: Sample) -> str:
        values = (*self._constant, *sample.values)
        pairs = zip(label_names(sample.metric), values, strict=True)
        return "{" + ",".join(f'{name}="{escape_label(value)}"' for name, value in pairs) + "}"

    def _head(self, metric: Metric) -> str:
        name = metric.exposed_name(self._about.units)
        return f"# HELP {name} {escape(metric.summary)}\n# TYPE {name} {TYPES[metric.kind]}\n"

    def _created(self, sample: Sample) -> str:
        return ""

    def _exemplar(self, sample: Sample, scale: float) -> tuple[int, str]:
        """The bucket that has an exemplar, and what is written behind its count."""
        return -1, ""

    def _end(self) -> str:
        return ""


class OpenMetricsWriter(TextWriter):
    """OpenMetrics adds units, exemplars, when a counter or histogram was 0, and who is speaking."""

    def _head(self, metric: Metric) -> str:
        name = metric.exposed_name(self._about.units).removesuffix("_total")
        unit = metric.exposed_unit(self._about.units)
        lines = [f"# HELP {name} {escape_label(metric.summary)}", f"# TYPE {name} {TYPES[metric.kind]}"]
        return "\n".join([*lines, *([f"# UNIT {name} {unit}"] if unit else []), ""])

    def _created(self, sample: Sample) -> str:
        if sample.metric.kind is Kind.GAUGE:
            return ""
        name = sample.metric.exposed_name(self._about.units).removesuffix("_total")
        since = self._about.counts_since(sample.metric) / catalogue.NS_PER_S
        return f"{name}_created{self._labels(sample)} {since:.3f}\n"

    def _exemplar(self, sample: Sample, scale: float) -> tuple[int, str]:
        found = sample.exemplar
        if found is None:
            return -1, ""
        value, at = number(found.duration_ns, scale), found.unix_ns / catalogue.NS_PER_S
        bucket = bisect_left(sample.metric.bounds_ns, found.duration_ns)
        return bucket, f' # {{op="{found.op}",view="{found.view}"}} {value} {at:.3f}'

    def _end(self) -> str:
        about = self._about
        labels = {
            "service_name": SERVICE,
            "service_instance_id": about.instance,
            "service_version": about.version,
            "cluster": about.cluster,
            "replica_id": str(about.replica),
        }
        pairs = ",".join(f'{name}="{escape_label(value)}"' for name, value in labels.items())
        head = "# HELP target Who these metrics are of.\n# TYPE target info\n"
        return f"{head}target_info{{{pairs}}} 1\n# EOF\n"
