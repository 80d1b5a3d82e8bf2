"""How each metric is known to be true, and that nothing which the protocol can say is missing in the catalogue."""

from __future__ import annotations

import ast
import inspect
from enum import Enum, EnumMeta
from pathlib import Path
from types import ModuleType

import pytest

from kimberlite import types
from kimberlite.storage import scrub
from kimberlite.storage.scrub import Damage
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import METRICS
from kimberlite.telemetry.catalogue.labels import label_value
from kimberlite.types import Access, ClientFailure, Command, Dropped, Ended, Reason, Status
from kimberlite.vopr.truth import IN_PART, MODELLED
from kimberlite.vsr import events, work
from kimberlite.vsr.events import TABLE, DropReason, EventKind, GaveUp, Level, ViewChangeCause
from kimberlite.vsr.work import CannotCommit

TESTS = Path(__file__).parents[2]
STORY = TESTS / "integration" / "test_telemetry.py"
CASE = TESTS / "cases" / "truth.py"

# Held against something else than the code that counts: the simulator's model at every step (MODELLED), or real
# processes under load and kills (ON_PROCESSES: what clients were told, the log, /proc, strace), or an exact value that
# the story of the integration test knows from elsewhere (KNOWN: a status document, /proc, the configuration, what the
# story has done).
ON_PROCESSES = {"events", "disk", "disk_operations", "is_primary", "can_commit", "replica_up"}
KNOWN = {
    *("client_latency", "client_failures", "recovery_latency", "event_loop_time", "replica_state", "quorum_margin"),
    *("cannot_commit", "stuck_op", "retention_suspended", "clock_offset", "disk_full", "journal_errors"),
    *("repair_budget_available", "repair_inflight_count", "replica_lag_operations", "journal_inline", "trim_wait"),
    *("pending_requests_limit", "journal_backlog_limit", "client_connections_limit", "resident_memory", "open_files"),
    *("open_files_limit", "start_time", "build_info", "config_info", "disk_free"),
}
# Shown to move when their phenomenon happens, and no more: durations and counts of what nobody else counts.
MOVES = {
    *("prepare_latency", "commit_latency", "request_latency", "view_change_latency", "repair_latency"),
    *("journal_write_latency", "fsync_latency", "peer_round_trip_latency", "event_loop_turn", "gc_pause"),
    *(
        "messages_dropped",
        "client_connections_ended",
        "leadership_given_up",
        "identity_conflicts",
        "scrub_tours_completed",
    ),
    *(
        "scrub",
        "scrub_corruptions_detected",
        "journal_mode_switches",
        "cpu",
        "telemetry_cpu",
        "log_size",
        "log_entry_count",
    ),
    *("checkpoint_op", "clock_log_ahead", "last_commit", "scrub_progress_ratio", "scrub_last_tour", "replica_lag"),
    *("peer_last_heard", "pending_requests", "journal_wait", "journal_backlog", "event_loop_last_turn"),
    *("client_connections", "repair_ewma_latency", "telemetry_resident_memory"),
    *("objects", "memory_held", "memory_blocks", "scrub_throughput", "telemetry_snapshot", "telemetry_dropped"),
    "log_lines",
}


def test_of_each_metric_it_is_said_how_it_is_known_to_be_true() -> None:
    """A new metric needs a place here: with an oracle, or, if there can be none, among those that only move."""
    held = MODELLED | ON_PROCESSES | KNOWN
    assert held | MOVES == set(catalogue.BY_NAME)
    assert not held & MOVES
    assert IN_PART <= MODELLED


def proofs() -> set[str]:
    """The metrics that the story of the integration test shows to move, without running it."""
    for node in ast.walk(ast.parse(STORY.read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "PROOFS":
            assert isinstance(node.value, ast.Dict)
            return {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    raise AssertionError(f"{STORY} has no PROOFS")


def test_each_metric_is_shown_to_move() -> None:
    assert proofs() == set(catalogue.BY_NAME)


def test_the_case_looks_at_what_is_said_of_it() -> None:
    text = CASE.read_text(encoding="utf-8")
    for name in ON_PROCESSES:
        assert catalogue.BY_NAME[name].exposed_name("ms") in text, name


# What the protocol can say

COUNTED: dict[EnumMeta, tuple[str, str]] = {  # -> metric and label
    Command: ("messages_received", "message_type"),
    DropReason: ("messages_dropped", "reason"),
    Dropped: ("messages_dropped", "reason"),
    Reason: ("requests_rejected", "reason"),
    Ended: ("client_connections_ended", "reason"),
    ClientFailure: ("client_failures", "outcome"),
    Access: ("journal_errors", "operation"),
    Status: ("replica_state", "state"),
    ViewChangeCause: ("view_changes", "reason"),
    GaveUp: ("leadership_given_up", "reason"),
    CannotCommit: ("cannot_commit", "reason"),
    Damage: ("scrub_corruptions_detected", "what"),
}
NOT_COUNTED = {
    "Operation": "counted together, as ops",
    "FrameReason": "of bytes that are no frame: counted as malformed, and by their checksums",
    "EntryState": "of one entry at a start",
    "Birth": "in the log: a cluster is born once",
    "EventKind": "a row each in vsr.events.TABLE",
    "Level": "of a log",
    "Admission": "an answer to the caller",
}


def enums(module: ModuleType) -> list[EnumMeta]:
    found = (value for _, value in inspect.getmembers(module, inspect.isclass))
    return [value for value in found if issubclass(value, Enum) and value.__module__ == module.__name__]


@pytest.mark.parametrize("module", [types, events, work, scrub], ids=lambda module: str(module.__name__))
def test_whatever_the_protocol_can_say_has_an_entry(module: ModuleType) -> None:
    """A command, a reason, a cause or an end that is new fails here, until it has a series or is said to need none."""
    for enum in enums(module):
        if enum not in COUNTED:
            assert enum.__name__ in NOT_COUNTED, f"{enum.__name__} has no metric, and nothing says why"
            continue
        metric, label = COUNTED[enum]
        (values,) = [found.values for found in catalogue.BY_NAME[metric].labels if found.name == label]
        missing = {label_value(member) for member in enum if member is not Reason.NONE} - set(values)
        assert not missing, f"{metric} has no series for {missing}"


def test_every_event_is_consumed() -> None:
    for kind in EventKind:
        row = TABLE[kind]
        assert set(row.metrics) <= set(catalogue.BY_NAME)
        assert row.metrics or row.level is not Level.COUNTED, f"{kind.name} is in no metric and in no log"


def test_every_event_of_a_metric_is_named_by_it() -> None:
    """The metric says what moves it, and leaves out no event whose row says that it does."""
    for metric in METRICS:
        movers = [kind.name for kind, row in TABLE.items() if metric.name in row.metrics]
        assert [name for name in movers if name not in metric.moved_by] == [], metric.name
