"""The catalogue agrees with itself and with what the protocol can say."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from kimberlite._fast.metrics import Kind
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import METRICS, Metric, Role, Source, Unit, labels, scenarios
from kimberlite.types import REPLICAS_MAX, Command, Dropped, Reason, Status
from kimberlite.vsr.events import DropReason

each_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


def test_the_number_of_series_grows_with_the_replicas_only() -> None:
    counts = [catalogue.series_count(count) for count in range(1, REPLICAS_MAX + 1)]
    assert len({after - before for before, after in pairwise(counts)}) == 1
    assert counts[-1] < 1000  # a scrape stays small


def test_no_cluster_of_another_size() -> None:
    for count in (0, REPLICAS_MAX + 1):
        with pytest.raises(ValueError, match=str(count)):
            catalogue.series_count(count)


def test_names_are_unique_under_both_units() -> None:
    for units in catalogue.UNITS:
        names = Counter(metric.exposed_name(units) for metric in METRICS)
        assert max(names.values()) == 1, names.most_common(1)
    assert len(catalogue.BY_NAME) == len(METRICS)


def test_the_seed_vocabulary() -> None:
    names = {metric.exposed_name("ms") for metric in METRICS}
    assert names >= {
        *("vsr_operations_total", "vsr_operations_failed_total", "vsr_bytes_written_total"),
        *("vsr_messages_sent_total", "vsr_messages_received_total", "vsr_messages_dropped_total"),
        *("vsr_view_changes_total", "vsr_checksum_failures_total", "vsr_repairs_total"),
        *("vsr_prepare_latency_ms", "vsr_commit_latency_ms", "vsr_client_latency_ms", "vsr_view_change_latency_ms"),
        *("vsr_recovery_latency_ms", "vsr_repair_latency_ms", "vsr_commit_stage_latency_ms"),
        *("vsr_replica_status", "vsr_is_primary", "vsr_view_number", "vsr_op_number", "vsr_commit_number"),
        *("vsr_log_size_bytes", "vsr_log_entry_count", "vsr_quorum_size", "vsr_cluster_size", "vsr_quorum_margin"),
        *("vsr_replica_lag_operations", "vsr_replica_lag_seconds", "vsr_peer_last_heard_seconds"),
        *("vsr_pending_requests", "vsr_client_sessions_active", "vsr_repair_budget_available"),
        *("vsr_repair_inflight_count", "vsr_repair_ewma_latency_ms", "vsr_build_info", "vsr_config_info"),
    }


def test_units() -> None:
    prepare = catalogue.BY_NAME["prepare_latency"]
    assert prepare.exposed_name("base") == "vsr_prepare_latency_seconds"
    assert prepare.scale("ms") == 1e6
    assert prepare.scale("base") == 1e9
    assert catalogue.BY_NAME["log_entry_count"].exposed_name("base") == "vsr_log_entries"
    assert catalogue.BY_NAME["cpu"].exposed_name("ms") == "vsr_cpu_seconds_total"


def test_where_nan_can_be_is_said() -> None:
    """It poisons sums and averages of whoever does not expect it."""
    never = {"scrub_progress_ratio", "event_loop_last_turn"}  # a fraction; an instant that is set from the start on
    can_be = {metric.name for metric in METRICS if metric.floating or metric.source is Source.INSTANT}
    assert {metric.name for metric in METRICS if "NaN" in metric.help} == can_be - never


@each_metric
def test_a_metric_is_declared_whole(metric: Metric) -> None:
    for units in catalogue.UNITS:
        assert re.fullmatch(r"vsr_[a-z0-9_]+", metric.exposed_name(units))
    for text in (metric.help, metric.how_to_use):
        assert text.endswith(".") and len(text) > 10
    assert metric.help.startswith(metric.summary[:-1]) and metric.summary[-1] == "." and len(metric.summary) > 10
    assert metric.moved_by
    assert metric.scenario in scenarios.SCENARIOS
    assert bool(metric.buckets_ms) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets_ms) == sorted(set(metric.buckets_ms))
    assert not metric.base_name or metric.base_name != metric.name
    if metric.kind is Kind.HISTOGRAM:
        assert metric.unit is Unit.LATENCY and metric.source is Source.REPLICA
    if metric.source is Source.INSTANT:
        assert metric.kind is Kind.GAUGE and metric.unit is Unit.SECONDS


@each_metric
def test_labels_are_closed(metric: Metric) -> None:
    for label in metric.labels:
        assert re.fullmatch(r"[a-z_]+", label.name) and label.name not in catalogue.CONSTANT_LABELS
        assert bool(label.values) != label.replicas or metric.name in catalogue.INFO_NAMES
        assert len(set(label.values)) == len(label.values)
        assert all(re.fullmatch(r"[a-z_]+", value) for value in label.values)


def test_labels_cover_what_the_protocol_can_say() -> None:
    assert {command.name.lower() for command in Command} == set(labels.MESSAGE_TYPE.values)
    assert {reason.name.lower() for reason in DropReason} | set(Dropped) == set(labels.DROP_REASON.values)
    assert {reason.name.lower() for reason in Reason} - {"none"} == set(labels.REJECT_REASON.values)
    assert {status.name.lower() for status in Status} == set(labels.STATE.values)


@pytest.mark.parametrize("replica_count", range(1, REPLICAS_MAX + 1))
def test_the_layout_holds_every_cell_once(replica_count: int) -> None:
    layout = catalogue.layout(replica_count)
    names = [series.name for series in layout]
    assert len(set(names)) == len(names)
    expected = {
        catalogue.cell_name(metric, values)
        for metric in METRICS
        if metric.has_cells
        for values in metric.label_values(replica_count)
    }
    exemplars = {
        catalogue.exemplar_cell(name, field) for name in catalogue.EXEMPLARS for field in catalogue.EXEMPLAR_FIELDS
    }
    assert set(names) == expected | exemplars


def test_essential_metrics_are_few() -> None:
    essential = [metric for metric in METRICS if metric.essential]
    assert 10 < len(essential) < len(METRICS) / 2
    assert {metric.role for metric in essential} >= {Role.EVERY, Role.PRIMARY}
