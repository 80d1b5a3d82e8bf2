"""The exposition holds what the catalogue declares: no more, no less, with its HELP and TYPE."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kimberlite._fast.metrics import Kind
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import labels
from kimberlite.telemetry.pages import Pages
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.sinks.prometheus import PROTOBUF, TEXT, Exposition, negotiate
from kimberlite.vsr.events import Event, EventKind

REPLICAS = 3
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OF_TELEMETRY = {"vsr_telemetry_resident_memory_bytes", "vsr_telemetry_snapshot"}
by_units = pytest.mark.parametrize("units", catalogue.UNITS)


def exposition(reader: Reader, units: str) -> Callable[..., tuple[bytes, str]]:
    return Exposition(Pages(reader, units)).render


def scrape(reader: Reader, units: str, accept: str = "") -> str:
    body, _ = exposition(reader, units)(accept)
    return body.decode()


@by_units
def test_both_directions(units: str, reader: Reader) -> None:
    families = {family.name: family for family in text_string_to_metric_families(scrape(reader, units))}
    declared = {metric.exposed_name(units): metric for metric in catalogue.METRICS}
    assert {name.removesuffix("_total") for name in declared} == set(families)
    samples = 0
    for name, metric in declared.items():
        family = families[name.removesuffix("_total")]
        assert family.type == metric.kind.name.lower()
        assert family.documentation == metric.summary
        values = set()
        for sample in family.samples:
            samples += 1
            assert sample.labels["cluster"] == "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"
            assert sample.labels["replica_id"] == "1"
            values.add(tuple(sample.labels[label.name] for label in metric.labels))
        if metric.name not in catalogue.INFO_NAMES:
            assert values == set(metric.label_values(REPLICAS))
    assert samples == catalogue.series_count(REPLICAS)


@by_units
def test_openmetrics_when_asked_for(units: str, reader: Reader) -> None:
    body, content_type = exposition(reader, units)(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    about = Pages(reader, units).about
    (target,) = families.pop("target").samples
    assert target.name == "target_info" and target.labels == {
        "service_name": "kimberlite",
        "service_instance_id": about.instance,
        "service_version": "1.2.3",
        "cluster": about.cluster,
        "replica_id": "1",
    }
    samples = [sample for family in families.values() for sample in family.samples]
    created = [sample for sample in samples if sample.name.endswith("_created")]
    assert len(samples) - len(created) == catalogue.series_count(REPLICAS)
    for metric in catalogue.METRICS:
        name = metric.exposed_name(units).removesuffix("_total")
        unit = families[name].unit
        assert unit == metric.exposed_unit(units) and (not unit or name.endswith(f"_{unit}"))
        since = [sample.value for sample in created if sample.name == f"{name}_created"]
        count = 0 if metric.kind is Kind.GAUGE else len(list(metric.label_values(REPLICAS)))
        if metric.is_of_telemetry:
            assert len(since) == count and all(abs(value - time.time()) < 60 for value in since)
        else:
            assert since == [pytest.approx(about.started_unix_ns / 1e9, abs=0.001)] * count
    assert all(sample.timestamp is None for sample in samples)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("text/html", TEXT),
        ("*/*", TEXT),
        ("text/plain;q=0.5,application/openmetrics-text;version=1.0.0;q=0.8", OPENMETRICS),
        ("text/plain,application/openmetrics-text;q=0.8", TEXT),
        ("application/openmetrics-text;q=nonsense,text/plain", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", TEXT),
        # What Prometheus 2.42 and 3 send when they are to store native histograms, and when they are not.
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
            "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            PROTOBUF,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.1",
            OPENMETRICS,
        ),
    ],
)
def test_the_format_that_is_liked_best(accept: str, content_type: str) -> None:
    assert negotiate(accept) == content_type


@pytest.mark.parametrize(("units", "value"), [("ms", 0.7), ("base", 0.0007)])
def test_an_exemplar_says_which_op_it_was(units: str, value: float, recorder: Recorder, reader: Reader) -> None:
    def exemplars() -> list[tuple[str, dict[str, str], float, Any]]:
        return [
            (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value, sample.exemplar.timestamp)
            for family in parse_openmetrics(scrape(reader, units, OPENMETRICS))
            for sample in family.samples
            if sample.exemplar is not None
        ]

    recorder.record([Event(EventKind.COMMITTED, 40, 1, -1)])  # a replay, which has no latency
    recorder.exemplars.update(view=7)
    assert exemplars() == []
    recorder.record([Event(EventKind.COMMITTED, 42, 1, 700_000), Event(EventKind.REPLAYED, 43)])
    recorder.exemplars.update(view=7)
    ((bound, labels, told, at),) = exemplars()
    assert (float(bound), labels) == (1.0 if units == "ms" else 0.001, {"op": "42", "view": "7"})
    assert told == pytest.approx(value) and abs(float(at) - time.time()) < 60
    recorder.record([Event(EventKind.REPLAYED, 44)])
    recorder.exemplars.update(view=8)
    assert exemplars()[0][1] == {"op": "42", "view": "7"}  # until there is another
    assert "# {" not in scrape(reader, units)  # the text format has none


def test_an_exemplar_that_is_being_written_is_not_told(
    recorder: Recorder, reader: Reader, put: Callable[..., None]
) -> None:
    recorder.record([Event(EventKind.COMMITTED, 42, 1, 700_000)])
    recorder.exemplars.update(view=7)
    assert "# {" in scrape(reader, "ms", OPENMETRICS)
    put(catalogue.exemplar_cell("commit_latency", "op"), 43)
    assert "# {" not in scrape(reader, "ms", OPENMETRICS)


def test_only_what_is_essential(reader: Reader) -> None:
    body, _ = exposition(reader, "ms")("", True)
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert names == {
        metric.exposed_name("ms").removesuffix("_total") for metric in catalogue.METRICS if metric.essential
    }


@pytest.mark.parametrize(
    ("units", "name", "bound", "total"),
    [("ms", "vsr_commit_latency_ms", "0.5", 3.4), ("base", "vsr_commit_latency_seconds", "0.0005", 0.0034)],
)
def test_units_of_a_histogram(
    units: str, name: str, bound: str, total: float, recorder: Recorder, reader: Reader
) -> None:
    recorder.record([Event(EventKind.COMMITTED, 1, 1, ns) for ns in (400_000, 1_000_000, 2_000_000)])
    text = scrape(reader, units)
    labels = 'cluster="5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5",replica_id="1"{le}'

    def value(suffix: str, le: str = "") -> float:
        wanted = name + suffix + "{" + labels.format(le=f',le="{le}"' if le else "") + "} "
        (line,) = [line for line in text.splitlines() if line.startswith(wanted)]
        return float(line.removeprefix(wanted))

    assert value("_bucket", bound) == 1
    assert value("_bucket", "+Inf") == value("_count") == 3
    assert value("_sum") == pytest.approx(total)


def test_buckets_are_cumulative_and_end_at_the_count(recorder: Recorder, reader: Reader) -> None:
    recorder.record([Event(EventKind.VIEW_CHANGED, 1, ns, 0) for ns in range(0, 10**10, 10**8)])
    families = {family.name: family for family in text_string_to_metric_families(scrape(reader, "ms"))}
    samples = families["vsr_view_change_latency_ms"].samples
    buckets = [sample.value for sample in samples if sample.name.endswith("_bucket")]
    (count,) = [sample.value for sample in samples if sample.name.endswith("_count")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == count == 100


@by_units
def test_every_bound_is_written_as_a_float(units: str, reader: Reader) -> None:
    """As Prometheus itself writes them since version 3: a query for le="1.0" finds what was scraped."""
    bounds = set(re.findall(r'le="([^"]+)"', scrape(reader, units)))
    assert bounds >= ({"1.0", "0.001", "15.0", "1000.0", "30000.0"} if units == "ms" else {"1.0", "1e-06", "0.015"})
    assert all(bound == "+Inf" or "." in bound or "e" in bound for bound in bounds)
    by_number = {float(bound): bound for bound in bounds}
    assert len(by_number) == len(bounds)
    wanted = {bound if units == "ms" else round(bound / 1000, 12) for m in catalogue.METRICS for bound in m.buckets_ms}
    assert set(by_number) == {*wanted, math.inf}


def test_instants_become_ages(reader: Reader, put: Callable[..., None], healthy: Callable[..., None]) -> None:
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(scrape(reader, "ms"))
        for sample in family.samples
    }
    assert 0 <= values["vsr_last_commit_seconds"] < 10
    assert math.isnan(values["vsr_oldest_uncommitted_seconds"])  # nothing waits


def test_states_are_exclusive(reader: Reader, put: Callable[..., None]) -> None:
    put("replica_status", 1)
    text = scrape(reader, "ms")
    found = dict(re.findall(r'vsr_replica_state\{.*state="(\w+)"\} (\S+)', text))
    assert found == {state: "1" if state == "view_change" else "0" for state in labels.STATE.values}


def test_large_counters_are_exact(recorder: Recorder, reader: Reader) -> None:
    recorder.record([Event(EventKind.COMMITTED, 1, 2**53 - 1, -1)])
    (shown,) = re.findall(r"^vsr_events_total\{.*\} (\S+)$", scrape(reader, "ms"), re.MULTILINE)
    assert int(shown) == 2**53 - 1


def values(reader: Reader) -> dict[str, list[float]]:
    families = text_string_to_metric_families(scrape(reader, "ms"))
    found: dict[str, list[float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, []).append(sample.value)
    return found


def test_the_page_of_a_dead_replica_claims_no_state(
    recorder: Recorder, reader: Reader, healthy: Callable[..., None], put: Callable[..., None]
) -> None:
    put("is_primary", 1)
    put("can_commit", 1)
    recorder.record([Event(EventKind.COMMITTED, 1, 5, 1_000_000)])
    before = values(reader)
    assert before["vsr_replica_up"] == before["vsr_can_commit"] == before["vsr_is_primary"] == [1]
    reader.replica_gone = True
    after = values(reader)
    assert after["vsr_replica_up"] == after["vsr_can_commit"] == after["vsr_is_primary"] == [0]
    kinds = {metric.exposed_name("ms"): metric.kind for metric in catalogue.METRICS}
    gone = set(before) - set(after)
    left = {name for name in set(before) & set(after) if kinds.get(name) is Kind.GAUGE}
    assert all(kinds[name] is Kind.GAUGE for name in gone)
    assert left == {"vsr_replica_up", "vsr_can_commit", "vsr_is_primary", *OF_TELEMETRY}
    assert after["vsr_events_total"] == [5]
    assert after["vsr_commit_latency_ms_count"] == [1]
    assert not any(math.isnan(value) for name in set(after) - {"vsr_cpu_seconds_total"} for value in after[name])


def test_a_replica_that_hangs_can_not_commit(
    recorder: Recorder, reader: Reader, healthy: Callable[..., None], put: Callable[..., None]
) -> None:
    put("can_commit", 1)
    put("event_loop_last_turn", 1)  # long ago
    assert values(reader)["vsr_can_commit"] == [0]
    reasons = re.findall(r'vsr_cannot_commit\{.*reason="(\w+)".*\} 1\n', scrape(reader, "ms"))
    assert reasons == ["hung"]
