"""The recorder: each event of the core moves the cells that the catalogue says, and no other."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import pytest

from kimberlite._fast import framing
from kimberlite._fast.metrics import HistogramValue, Region, now_ns
from kimberlite.errors import InvariantError, OutcomeUnknownError
from kimberlite.storage.scrub import Damage
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import labels
from kimberlite.telemetry.log import Log
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.loop import DISK_WAIT, PARSE, POLL
from kimberlite.telemetry.recording.storage import StorageSample
from kimberlite.told import Telling
from kimberlite.types import Access, Command, Dropped, Ended, FrameReason, Reason, Status
from kimberlite.vsr.events import TABLE, DropReason, Event, EventKind, GaveUp, Level, ViewChangeCause
from kimberlite.vsr.work import Bounded, CannotCommit, DiskSnapshot, PeerSnapshot, Queues, Snapshot

REPLICAS = 3
OWN = 1
SECOND = 1_000_000_000


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(Region.create(None, catalogue.layout(REPLICAS)), OWN, REPLICAS)


def moved(recorder: Recorder) -> dict[str, float]:
    """Counters that are not 0, and counts of histograms."""
    found: dict[str, float] = {}
    for series, value in zip(recorder.region.series, recorder.region.read(), strict=True):
        number = value.count if isinstance(value, HistogramValue) else value
        if number and not math.isnan(number) and not series.name.startswith("event_loop"):
            found[series.name] = number
    return found


def gauge(recorder: Recorder, name: str) -> float:
    (index,) = [index for index, series in enumerate(recorder.region.series) if series.name == name]
    value = recorder.region.read()[index]
    assert not isinstance(value, HistogramValue)
    return value


# Events, at least one of each kind, and what they move: of counters the sum, of histograms the count.
EVENTS: list[tuple[Event, dict[str, float]]] = [
    (Event(EventKind.QUEUED, 5000), {'commit_stage_latency{stage="queue"}': 1}),
    (
        Event(EventKind.PREPARE_ACKED, 7, 2000, OWN),
        {
            "prepare_latency": 1,
            'commit_stage_latency{stage="replicate"}': 1,
            'commit_critical_path{replica="1",stage="journal"}': 1,
        },
    ),
    (
        Event(EventKind.PREPARE_ACKED, 7, 2000, 2),
        {
            "prepare_latency": 1,
            'commit_stage_latency{stage="replicate"}': 1,
            'commit_critical_path{replica="2",stage="replicate"}': 1,
        },
    ),
    (Event(EventKind.JOURNALED, 7, 2000, 1), {'commit_stage_latency{stage="journal"}': 1}),
    (Event(EventKind.JOURNALED, 7, 2000, 0), {'commit_stage_latency{stage="journal"}': 1, "prepare_latency": 1}),
    (
        Event(EventKind.COMMITTED, 7, 12, 900),
        {'operations{outcome="committed"}': 1, "events": 12, "commit_latency": 1},
    ),
    (Event(EventKind.COMMITTED, 7, 12, -1), {'operations{outcome="committed"}': 1, "events": 12}),
    (Event(EventKind.REPLAYED, 7, 12), {"operations_replayed": 1}),
    (Event(EventKind.REPLIED, 7, 900, 1500), {"request_latency": 1, "client_latency": 1}),
    (Event(EventKind.REPLIED, 7, 900, 0), {"request_latency": 1}),
    (Event(EventKind.REJECTED, Reason.BUSY_QUEUE), {'requests_rejected{reason="busy_queue"}': 1}),
    (Event(EventKind.DUPLICATE, 3), {"duplicate_requests": 1}),
    (Event(EventKind.DROPPED, Command.PREPARE, DropReason.OLD_VIEW), {'messages_dropped{reason="old_view"}': 1}),
    (Event(EventKind.VIEW_CHANGE_STARTED, 4, 1), {'view_changes{reason="abdicated"}': 1}),
    (Event(EventKind.VIEW_CHANGED, 4, SECOND, ViewChangeCause.PRIMARY_SILENT), {"view_change_latency": 1}),
    (Event(EventKind.REPAIRED, 4, 1000), {'repairs{outcome="repaired"}': 1, "repair_latency": 1}),
    (Event(EventKind.REPAIR_EXPIRED, 4, 2), {'repairs{outcome="expired"}': 1}),
    (Event(EventKind.IDENTITY_CONFLICT, 4, 1), {"identity_conflicts": 1}),
    (Event(EventKind.FAULTY, 4), {'checksum_failures{component="journal"}': 1}),
    (
        Event(EventKind.ABANDONED, 4, 2),
        {'operations{outcome="failed"}': 2, 'operations_failed{reason="view_change"}': 2},
    ),
    (
        Event(EventKind.SUFFIX_DROPPED, 4, 3),
        {'operations{outcome="failed"}': 3, 'operations_failed{reason="suffix_dropped"}': 3},
    ),
    (Event(EventKind.SESSION_REGISTERED, 4), {"client_sessions_registered": 1}),
    (Event(EventKind.SESSION_EVICTED, 4), {"client_sessions_evicted": 1}),
    (Event(EventKind.RECOVERED, SECOND), {"recovery_latency": 1}),
    (Event(EventKind.PEER_ROUND_TRIP, 2, 1000), {'peer_round_trip_latency{peer="2"}': 1}),
    (Event(EventKind.STATUS, Status.RECOVERING, 9), {"replica_status": 2, "view_number": 9}),
    (Event(EventKind.STUCK, 4, 3), {"stuck_op": 4}),
    (Event(EventKind.PRIMARY, 1), {"is_primary": 1}),
    (Event(EventKind.ABDICATED, 4, GaveUp.DRAINED), {'leadership_given_up{reason="drained"}': 1}),
    (Event(EventKind.FORFEITED, 40, 30, GaveUp.BEHIND), {'leadership_given_up{reason="behind"}': 1}),
    (Event(EventKind.CHECKPOINTED, 40), {"checkpoints": 1}),
    (Event(EventKind.REPAIR_REQUESTED, 4, 2), {'repairs{outcome="requested"}': 1}),
    (Event(EventKind.PREPARED, 4, 3, 200), {"op_number": 4}),
    (Event(EventKind.TRIMMED, 4), {}),
    (Event(EventKind.BIRTH, 1), {}),
    (Event(EventKind.LIFE_BEGUN, 2, 7), {}),
    (Event(EventKind.REFUSED_BY, 2, 23), {}),
    (Event(EventKind.SUSPECTED, 4, ViewChangeCause.PRIMARY_GONE, SECOND), {}),
]


@pytest.mark.parametrize(
    ("event", "expected"), EVENTS, ids=lambda value: value.kind.name if isinstance(value, Event) else ""
)
def test_an_event(event: Event, expected: dict[str, float], recorder: Recorder) -> None:
    recorder.record([event])
    assert moved(recorder) == expected


@pytest.mark.parametrize("kind", EventKind, ids=lambda kind: kind.name)
def test_the_table_of_events_is_true(kind: EventKind) -> None:
    """An event moves the metrics of its row and no other, and is in the log exactly when its row has a level."""
    found: set[str] = set()
    samples = [(event, expected) for event, expected in EVENTS if event.kind is kind]
    for event, _ in samples:
        lines = _Lines()
        one = Recorder(Region.create(None, catalogue.layout(REPLICAS)), OWN, REPLICAS, lines)
        one.record([event])
        found |= {cell.partition("{")[0] for cell in moved(one)}
        one.close()
        assert lines.noted == ([event] if TABLE[kind].level is not Level.COUNTED else [])
    assert samples
    assert found == set(TABLE[kind].metrics)


class _Lines(Log):
    def __init__(self) -> None:
        super().__init__("c" * 32, OWN)
        self.noted: list[Event] = []
        self.looks: list[int] = []

    def note(self, event: Event) -> None:
        self.noted.append(event)

    @property
    def counts(self) -> tuple[int, int, int]:
        return 5, 0, 2

    def look(self, now: int) -> None:
        self.looks.append(now)


def test_the_log_of_events_is_looked_after() -> None:
    lines = _Lines()
    recorder = Recorder(Region.create(None, catalogue.layout(REPLICAS)), OWN, REPLICAS, lines)
    recorder.update(SNAPSHOT, 100 * SECOND, 0, 10)
    recorder.close()
    assert lines.looks == [100 * SECOND]
    outcomes = {cell: count for cell, count in moved(recorder).items() if cell.startswith("log_lines")}
    assert outcomes == {'log_lines{outcome="written"}': 5, 'log_lines{outcome="dropped"}': 2}
    assert not any(thread.name == "kimberlite-log" for thread in threading.enumerate())


TABLES: dict[str, tuple[type[Enum], Callable[[Recorder, Any], object]]] = {
    "messages_received": (Command, lambda recorder, command: recorder.traffic.received([(_Header(command), b"")], 0)),
    "messages_sent": (Command, lambda recorder, command: recorder.traffic.message_sent(command, 0)),
    "messages_dropped": (Dropped, lambda recorder, reason: recorder.traffic.message_dropped(reason)),
    "messages_dropped (core)": (
        DropReason,
        lambda recorder, reason: recorder.record([Event(EventKind.DROPPED, Command.PREPARE, reason)]),
    ),
    "requests_rejected": (Reason, lambda recorder, reason: recorder.traffic.request_rejected(reason)),
    "requests_rejected (core)": (
        Reason,
        lambda recorder, reason: recorder.record([Event(EventKind.REJECTED, reason)]),
    ),
    "client_connections_ended": (Ended, lambda recorder, reason: recorder.traffic.connection_ended(reason)),
    "journal_errors": (Access, lambda recorder, access: recorder.storage.failed(access)),
    "view_changes": (
        ViewChangeCause,
        lambda recorder, cause: recorder.record([Event(EventKind.VIEW_CHANGE_STARTED, 4, cause)]),
    ),
    "leadership_given_up": (
        GaveUp,
        lambda recorder, why: recorder.record([Event(EventKind.ABDICATED, 4, why)]),
    ),
    "scrub_corruptions_detected": (Damage, lambda recorder, what: recorder.storage.scrubbed(0, 0, 0, 0.0, [(what, 1)])),
}


class _Header(NamedTuple):
    command: int


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_total_over_its_enum(name: str, recorder: Recorder) -> None:
    """Each member has a cell of its own, and there is none for anything else."""
    enum, count = TABLES[name]
    metric = catalogue.BY_NAME[name.split()[0]]
    cells = {catalogue.cell_name(metric, values) for values in metric.label_values(REPLICAS)}
    for number, member in enumerate(member for member in enum if member is not Reason.NONE):
        count(recorder, member)
        counted = [cell for cell in moved(recorder) if cell in cells]
        assert len(counted) == number + 1, f"{member!r} is counted under a name of another one"
    if enum not in (Dropped, DropReason):  # these two share a metric
        assert set(counted) == cells
    else:
        assert len(cells) == len({labels.label_value(member) for member in (*Dropped, *DropReason)})


def test_why_it_can_not_commit_is_total(recorder: Recorder) -> None:
    recorder.update(replace(SNAPSHOT, cannot_commit=tuple(CannotCommit)), SECOND, 0, 10)
    assert all(gauge(recorder, f'cannot_commit{{reason="{reason}"}}') == 1 for reason in CannotCommit)


def test_a_disk_that_completes_nothing(recorder: Recorder) -> None:
    recorder.update(replace(SNAPSHOT, disk=DiskSnapshot(0, False, 3 * SECOND)), 100 * SECOND, 0, 10)
    assert gauge(recorder, "journal_wait") == 97 * SECOND, "the instant since when"
    recorder.update(SNAPSHOT, 101 * SECOND, 0, 10)
    assert gauge(recorder, "journal_wait") == 0


class _Newer(IntEnum):
    SEEN_BEFORE = 1
    NOT_DECLARED = 2


@pytest.mark.parametrize(("module", "enum"), [("events", "ViewChangeCause"), ("traffic", "Dropped")])
def test_a_member_without_a_series_is_found_when_the_recorder_is_made(
    module: str, enum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"kimberlite.telemetry.recording.{module}.{enum}", _Newer)
    with pytest.raises(InvariantError, match="a series for every _Newer"):
        Recorder(Region.create(None, catalogue.layout(REPLICAS)), OWN, REPLICAS)


def test_the_network(recorder: Recorder) -> None:
    header = framing.make_header(b"abc", cluster=bytes([1] * 16), command=Command.PREPARE)
    recorder.traffic.received([(header, memoryview(b"abc"))] * 2, 518)
    recorder.traffic.message_sent(Command.PREPARE_OK, 256)
    recorder.traffic.message_dropped(Dropped.QUEUE_FULL)
    recorder.traffic.request_rejected(Reason.TOO_LARGE)
    assert moved(recorder) == {
        'messages_received{message_type="prepare"}': 2,
        'messages_sent{message_type="prepare_ok"}': 1,
        'messages_dropped{reason="queue_full"}': 1,
        'requests_rejected{reason="too_large"}': 1,
        'network{direction="received"}': 518,
        'network{direction="sent"}': 256,
    }


def test_what_clients_tell(recorder: Recorder) -> None:
    telling = Telling()
    telling.answered([0, 0, 900_000], 2_000_000)
    telling.failed(OutcomeUnknownError)
    recorder.traffic.client_told(framing.make_header(cluster=bytes(16), command=Command.REQUEST, **telling.fields()))
    assert moved(recorder) == {"client_latency": 3, 'client_failures{outcome="unknown"}': 1}


@pytest.mark.parametrize(
    ("reason", "drop", "failures"),
    [
        (FrameReason.BAD_HEADER_CHECKSUM, "malformed", 1),
        (FrameReason.BAD_BODY_CHECKSUM, "malformed", 1),
        (FrameReason.BAD_MAGIC, "malformed", 0),
        (FrameReason.WRONG_CLUSTER, "wrong_cluster", 0),
    ],
)
def test_a_refused_frame(reason: FrameReason, drop: str, failures: int, recorder: Recorder) -> None:
    recorder.traffic.frame_refused(reason)
    assert moved(recorder).pop('checksum_failures{component="network"}', 0) == failures
    assert moved(recorder)[f'messages_dropped{{reason="{drop}"}}'] == 1


def test_what_the_core_cannot_see(recorder: Recorder) -> None:
    recorder.executions.replied(7)  # nothing was executed: no commit to charge it to
    recorder.executions.applied(7, now_ns())
    recorder.executions.replied(7)
    recorder.executions.replied(7)
    recorder.storage.failed(Access.READ)
    recorder.storage.superblock_damaged(2)
    assert moved(recorder) == {
        "apply_latency": 1,
        'commit_stage_latency{stage="apply"}': 1,
        'commit_stage_latency{stage="reply"}': 1,
        'journal_errors{operation="read"}': 1,
        'checksum_failures{component="superblock"}': 2,
    }


def test_the_stage_reply_belongs_to_the_op_that_is_answered(recorder: Recorder) -> None:
    """A backup refuses a client long after its last execution, a primary repeats the reply of an older op."""
    recorder.executions.applied(7, now_ns())
    recorder.record([Event(EventKind.COMMITTED, 7, 1, 900)])  # a backup: nobody was answered
    recorder.executions.replied(7)
    recorder.executions.applied(8, now_ns())
    recorder.executions.applied(9, now_ns())
    recorder.executions.replied(7)
    assert 'commit_stage_latency{stage="reply"}' not in moved(recorder)
    recorder.executions.replied(8)
    recorder.executions.replied(9)
    assert moved(recorder)['commit_stage_latency{stage="reply"}'] == 2


def test_a_replay_is_counted_as_such_only(recorder: Recorder) -> None:
    recorder.executions.replay_to = 7
    recorder.executions.applied(7, now_ns())
    recorder.record([Event(EventKind.REPLAYED, 7, 12)])
    assert moved(recorder) == {"operations_replayed": 1}
    recorder.executions.applied(8, now_ns())
    assert moved(recorder)["apply_latency"] == 1


def test_the_parts_of_a_turn_add_up(recorder: Recorder) -> None:
    began = now_ns()
    recorder.loop.switch(PARSE)
    left = recorder.loop.switch(DISK_WAIT)
    assert left == PARSE
    recorder.loop.switch(left)
    recorder.loop.handled()
    first = [gauge(recorder, f'event_loop_time{{part="{part}"}}') for part in labels.LOOP_PARTS]
    assert first[PARSE] > 0 and first[DISK_WAIT] > 0
    assert sum(first) <= now_ns() - recorder.region.started_monotonic_ns
    assert gauge(recorder, "event_loop_last_turn") > began
    recorder.loop.turn_pending = True
    recorder.loop.switch(PARSE)
    recorder.loop.handled()
    turn = gauge(recorder, "event_loop_last_turn")
    assert recorder.loop.switch(POLL) != POLL  # the turn went on
    assert gauge(recorder, "event_loop_last_turn") > turn


def test_garbage_collections_until_closed(recorder: Recorder) -> None:
    recorder.loop.watch_gc()
    gc.collect()
    recorder.close()
    assert recorder.region.ended
    seen = moved(recorder)["gc_pause"]
    assert seen >= 1
    gc.collect()
    assert moved(recorder)["gc_pause"] == seen


SNAPSHOT = Snapshot(
    replica=OWN,
    replica_count=REPLICAS,
    status=Status.NORMAL,
    is_primary=True,
    primary=OWN,
    view=4,
    log_view=4,
    op=10,
    commit=8,
    applied=8,
    positions=80,
    quorum=2,
    quorum_margin=0,
    queues=Queues(Bounded(2, 8), Bounded(3, 1024), Bounded(5, 64), Bounded(2, 16), Bounded(4096, 1 << 20)),
    oldest_uncommitted_votes=1,
    oldest_uncommitted_at=90 * SECOND,
    known_commit=8,
    draining=False,
    disk=DiskSnapshot(faulty=1, is_full=False, waits=0),
    peers=(
        PeerSnapshot(0, 100 * SECOND, 8, 8, 1000, 2000),
        PeerSnapshot(2, 98 * SECOND, 3, 3, 1000, 0),
    ),
    stuck_op=0,
    unhealthy="",
    cannot_commit=(),
)


def test_gauges_of_a_primary(recorder: Recorder) -> None:
    now = 100 * SECOND
    recorder.update(SNAPSHOT, now, 6, 1024)
    for name, value in {
        "is_primary": 1,
        "view_number": 4,
        "op_number": 10,
        "commit_number": 8,
        "applied_number": 8,
        "log_event_count": 80,
        "quorum_size": 2,
        "cluster_size": 3,
        "prepare_ok_votes": 1,
        "pending_requests": 3,
        "pending_requests_limit": 1024,
        "pipeline_depth": 2,
        "pipeline_limit": 8,
        "client_sessions_active": 5,
        "client_sessions_limit": 64,
        "client_connections": 6,
        "journal_faulty": 1,
        "repair_inflight_count": 2,
        "repair_budget_available": 14,
        "journal_backlog": 4096,
        "journal_backlog_limit": 1 << 20,
        "draining": 0,
        "disk_full": 0,
        "quorum_margin": 0,
        "can_commit": 1,
        'cannot_commit{reason="no_quorum"}': 0,
        "oldest_uncommitted": 90 * SECOND,
        "last_commit": 0,
        'replica_lag_operations{peer="0"}': 0,
        'replica_lag_operations{peer="2"}': 5,
        'peer_last_heard{peer="2"}': 98 * SECOND,
        'peer_last_heard{peer="1"}': 0,
        'repair_ewma_latency{peer="0"}': 2000,
    }.items():
        assert gauge(recorder, name) == value, name
    recorder.update(replace(SNAPSHOT, commit=9), now + 2 * SECOND, 6, 1024)
    assert gauge(recorder, "last_commit") == now + 2 * SECOND
    assert gauge(recorder, 'replica_lag{peer="2"}') == 2 * SECOND


def test_gauges_of_a_backup(recorder: Recorder) -> None:
    """What only the primary can know is not guessed."""
    backup = replace(
        SNAPSHOT, is_primary=False, known_commit=20, draining=True, disk=SNAPSHOT.disk._replace(is_full=True)
    )
    recorder.update(backup, 100 * SECOND, 0, 1024)
    assert math.isnan(gauge(recorder, 'replica_lag_operations{peer="2"}'))
    assert gauge(recorder, 'replica_lag_operations{peer="1"}') == 12
    assert gauge(recorder, "draining") == gauge(recorder, "disk_full") == 1


def lag(recorder: Recorder, replica: int) -> tuple[float, float]:
    """Operations and seconds."""
    name = f'{{peer="{replica}"}}'
    return gauge(recorder, "replica_lag_operations" + name), gauge(recorder, "replica_lag" + name) / SECOND


def told(commit: int, *ops: int | None) -> Snapshot:
    """By a primary that knows of the others' logs up to these ops."""
    peers = (PeerSnapshot(replica, SECOND, op, 0, 0, 0) for replica, op in zip((0, 2), ops, strict=True))
    return replace(SNAPSHOT, commit=commit, known_commit=commit, applied=commit, peers=tuple(peers))


def test_a_replica_that_keeps_up_is_not_behind_for_long(recorder: Recorder) -> None:
    """Under load it never has all that is committed; what it lacks is always new."""
    for second in range(100):
        recorder.update(told(100 * second, 100 * second - 3, None), (1000 + second) * SECOND, 0, 1)
    assert lag(recorder, 0) == (3, 0)
    for second in range(100, 110):
        recorder.update(told(100 * second, 9950, None), (1000 + second) * SECOND, 0, 1)
    assert lag(recorder, 0) == (950, 9)
    recorder.update(told(10900, 10900, None), 1110 * SECOND, 0, 1)
    assert lag(recorder, 0) == (0, 0)


def test_the_lag_of_an_empty_disk_and_of_who_was_never_heard(recorder: Recorder) -> None:
    for commit, op, at in ((7, 7, 1000), (900, 0, 1010)):
        found = told(commit, op, None)
        peers = (found.peers[0], found.peers[1]._replace(last_heard=0))
        recorder.update(replace(found, peers=peers), at * SECOND, 0, 1)
    assert lag(recorder, 0) == (900, 10)
    assert all(map(math.isnan, lag(recorder, 2)))


def test_who_has_said_nothing_in_a_view_lacks_what_was_committed_in_it_at_least(recorder: Recorder) -> None:
    """As a former primary that is dead; who was never heard may be anywhere."""
    recorder.update(replace(told(7, 7, 7), view=4), 1000 * SECOND, 0, 1)
    recorder.update(replace(told(8, None, None), view=5), 1010 * SECOND, 0, 1)
    assert all(map(math.isnan, (*lag(recorder, 0), *lag(recorder, 2))))
    for commit, at in ((10, 1020), (13, 1030)):
        found = replace(told(commit, 8, None), view=5)
        recorder.update(found, at * SECOND, 0, 1)
    assert lag(recorder, 0) == lag(recorder, 2) == (5, 10)
    silent = found.peers[1]._replace(last_heard=0)
    recorder.update(replace(found, peers=(found.peers[0], silent)), 1030 * SECOND, 0, 1)
    assert all(map(math.isnan, lag(recorder, 2)))
    recorder.update(replace(told(13, 8, 13), view=5), 1040 * SECOND, 0, 1)
    assert lag(recorder, 2) == (0, 0)


def test_how_long_a_replica_is_behind_is_remembered_within_bounds(recorder: Recorder) -> None:
    for second in range(10_000):
        recorder.update(told(second, min(second, 10), max(second - 300, 0)), second * SECOND, 0, 1)
    assert lag(recorder, 0) == (9989, 9988)
    assert lag(recorder, 2) == (300, 299)
    assert len(recorder.gauges._peers._commits) == len(recorder.gauges._peers._commits_at) <= 1024


def test_why_it_can_not_commit(recorder: Recorder) -> None:
    found = (CannotCommit.VIEW_CHANGE, CannotCommit.NO_QUORUM)
    recorder.update(replace(SNAPSHOT, quorum_margin=-1, cannot_commit=found), 100 * SECOND, 0, 1024)
    assert (gauge(recorder, "can_commit"), gauge(recorder, "quorum_margin")) == (0, -1)
    said = {reason for reason in CannotCommit if gauge(recorder, f'cannot_commit{{reason="{reason}"}}')}
    assert said == set(found)
    recorder.update(SNAPSHOT, 101 * SECOND, 0, 1024)
    assert gauge(recorder, "can_commit") == 1
    assert not any(gauge(recorder, f'cannot_commit{{reason="{reason}"}}') for reason in CannotCommit)


def test_storage(recorder: Recorder) -> None:
    sample = StorageSample(
        write_latencies=[1000, 2000],
        sync_latencies=[900],
        reads=3,
        read_bytes=4096,
        writes=5,
        bytes=8192,
        switches=1,
        inline=True,
        entry_bytes=6000,
        log_bytes=7000,
        entries=4,
        first_position=11,
        checkpoint_op=12,
        trim_due_at=13,
        free_bytes=None,
    )
    recorder.storage.update(sample._replace(free_bytes=1 << 40))
    recorder.storage.update(sample._replace(write_latencies=(), sync_latencies=()))
    assert moved(recorder) == {
        "journal_write_latency": 2,
        "fsync_latency": 1,
        'disk_operations{operation="read"}': 3,
        'disk{operation="read"}': 4096,
        'disk_operations{operation="write"}': 5,
        'disk{operation="write"}': 8192,
        "journal_mode_switches": 1,
        "journal_inline": 1,
        "bytes_written": 6000,
        "log_size": 7000,
        "log_entry_count": 4,
        "log_first_event": 11,
        "checkpoint_op": 12,
        "trim_wait": 13,
        "disk_free": 1 << 40,
    }


def test_the_clock(recorder: Recorder) -> None:
    recorder.gauges.update_clock(-700 * SECOND, 90 * SECOND, True)
    names = ("clock_offset", "clock_log_ahead", "retention_suspended")
    assert [gauge(recorder, name) for name in names] == [-700 * SECOND, 90 * SECOND, 1]
    recorder.gauges.update_clock(5, 0, False)
    assert [gauge(recorder, name) for name in names] == [5, 0, 0]


def test_the_scrubber(recorder: Recorder) -> None:
    recorder.storage.scrubbed(
        2, 7 * SECOND, 9000, 0.25, [("entry", 1), ("witness", 0), ("superblock", 3), ("checkpoint", 0)]
    )
    recorder.storage.scrubbed(
        3, 8 * SECOND, 9500, 0.5, [("entry", 1), ("witness", 2), ("superblock", 3), ("checkpoint", 0)]
    )
    found = moved(recorder)
    assert found.pop("scrub_throughput") > 500  # bytes a second: 500 came in far less
    assert found == {
        "scrub_tours_completed": 3,
        "scrub_last_tour": 8 * SECOND,
        "scrub": 9500,
        "scrub_progress_ratio": 0.5,
        'scrub_corruptions_detected{what="entry"}': 1,
        'scrub_corruptions_detected{what="witness"}': 2,
        'scrub_corruptions_detected{what="superblock"}': 3,
    }
