"""A line for each request that took long, with its stages; nothing is kept of those that did not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kimberlite._fast.metrics import Region
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.log import Log
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.slow import OPS_MAX, SlowOps
from kimberlite.vsr.events import Event, EventKind

MS = 1_000_000
SLOW = 100 * MS


class Lines(Log):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("c" * 32, 0)
        self.said: list[tuple[str, dict[str, Any]]] = []

    def say(self, id: str, **values: int | str) -> None:
        self.said.append((id, values))


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


def an_op(op: int, journal: int, replicate: int, execute: int, queue: int = 0) -> list[Event]:
    """Milliseconds of its stages."""
    entered = max(journal, replicate) + execute
    return [
        Event(EventKind.PREPARED, op, 1, 512),
        Event(EventKind.JOURNALED, op, journal * MS, 1),
        Event(EventKind.PREPARE_ACKED, op, replicate * MS, 2),
        Event(EventKind.COMMITTED, op, 1, entered * MS),
        Event(EventKind.REPLIED, op, (queue + entered) * MS, 0),
    ]


def recorder(log: Log | None, slow_ns: int = SLOW) -> Recorder:
    return Recorder(Region.create(None, catalogue.layout(3)), 0, 3, log, slow_ns=slow_ns)


def test_the_stages_of_a_slow_request(lines: Lines) -> None:
    one = recorder(lines)
    one.record(an_op(7, journal=30, replicate=80, execute=15, queue=5))
    one.record(an_op(8, journal=1, replicate=2, execute=120))
    one.record(an_op(9, journal=1, replicate=2, execute=1, queue=300))
    assert lines.said == [
        (
            "slow_operation",
            {
                "op": op,
                "took_ns": took * MS,
                "queue_ns": queue * MS,
                "journal_ns": journal,
                "replicate_ns": replicate,
                "execute_ns": execute * MS,
                "decided_by": decided_by,
            },
        )
        for op, took, queue, journal, replicate, execute, decided_by in (
            (7, 100, 5, 30 * MS, 80 * MS, 15, 2),
            (8, 122, 0, -1, -1, 122, -1),
            (9, 303, 303, -1, -1, 0, -1),
        )
    ]
    one.close()


def test_quick_ones_and_a_log_without_a_threshold_say_nothing(lines: Lines) -> None:
    for log, slow_ns in ((lines, SLOW), (lines, 0), (None, SLOW)):
        one = recorder(log, slow_ns)
        one.record(an_op(7, journal=1, replicate=2, execute=1))
        if slow_ns == 0 or log is None:
            one.record(an_op(8, journal=10_000, replicate=10_000, execute=10_000))
        one.close()
    assert lines.said == []


def test_a_slow_disk_of_a_backup(lines: Lines) -> None:
    one = recorder(lines)
    one.record([Event(EventKind.JOURNALED, 7, SLOW, 0), Event(EventKind.JOURNALED, 8, SLOW - 1, 0)])
    one.close()
    assert lines.said == [("slow_write", {"op": 7, "took_ns": SLOW})]


def test_what_is_remembered_is_bounded_and_let_go(lines: Lines) -> None:
    slow = SlowOps(lines, SLOW)
    for op in range(1, 2 * OPS_MAX):
        slow.journaled(Event(EventKind.JOURNALED, op, SLOW, 1))
    assert len(slow.stages) == OPS_MAX
    slow.committed(Event(EventKind.COMMITTED, 2 * OPS_MAX, 1, SLOW))
    assert slow.stages == {}
    for op in range(1, 2 * OPS_MAX):
        slow.committed(Event(EventKind.COMMITTED, op, 1, SLOW))
    assert len(slow._executed) == OPS_MAX
