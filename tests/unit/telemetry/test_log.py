"""The log of events: its lines, what a storm leaves of them, and that nothing ever waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from kimberlite.telemetry import log
from kimberlite.telemetry.log import LINES_MAX, PERIOD_NS, WAITING_MAX, EventLines
from kimberlite.vsr.events import Event, EventKind, GaveUp

NOON = 1_800_000_000.25  # 2027-01-15 08:00:00 UTC, and a quarter of a second
STUCK = Event(EventKind.STUCK, 7, 2)
ABDICATED = Event(EventKind.ABDICATED, 4, GaveUp.LAGGING)


class Written:
    """Takes lines, unless it is held up or refuses."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.takes = True

    def __call__(self, text: str, patience_s: float) -> bool:
        self.goes_on.wait(60)
        if self.takes:
            self.lines.append(text)
        return self.takes


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def lines(written: Written) -> Iterator[EventLines]:
    lines = EventLines(1, written, lambda: NOON)
    lines.look(PERIOD_NS)  # a first period begins
    yield lines
    written.goes_on.set()
    lines.close()


def until(ready: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def test_a_line(lines: EventLines, written: Written) -> None:
    lines.note(ABDICATED)
    lines.close()
    assert written.lines == [
        "kimberlite: 2027-01-15T08:00:00.250Z warning: replica 1 gives up the lead of view 4: lagging\n"
    ]


def test_a_storm_of_one_kind_leaves_room_for_the_others(lines: EventLines, written: Written) -> None:
    for _ in range(5000):
        lines.note(STUCK)
    lines.note(ABDICATED)
    lines.look(PERIOD_NS + PERIOD_NS // 2)  # the period is not over
    lines.note(STUCK)
    lines.look(2 * PERIOD_NS)
    lines.note(STUCK)
    lines.close()
    assert len(written.lines) == LINES_MAX + 1 + 1 + 1
    assert sum("of op 7" in line for line in written.lines) == LINES_MAX + 1, "a new period begins anew"
    (said,) = [line for line in written.lines if "left" in line]
    assert said.endswith(f"error: replica 1 left out {5001 - LINES_MAX} more lines of this kind (STUCK) within 60 s\n")


def test_nothing_is_said_of_a_quiet_period(lines: EventLines, written: Written) -> None:
    lines.note(STUCK)
    for period in range(2, 5):
        lines.look(period * PERIOD_NS)
    lines.close()
    assert len(written.lines) == 1


def test_lines_that_were_lost_are_counted(lines: EventLines, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LINES_MAX", 10 * WAITING_MAX)
    written.goes_on.clear()
    lines.note(STUCK)
    until(lines._waiting.empty)
    for _ in range(WAITING_MAX + 5):
        lines.note(STUCK)
    written.goes_on.set()
    until(lines._waiting.empty)
    lines.look(2 * PERIOD_NS)
    lines.look(3 * PERIOD_NS)
    lines.close()
    assert [line for line in written.lines if "lost" in line] == [
        "kimberlite: 2027-01-15T08:00:00.250Z warning: replica 1 lost 5 lines of its log, which took them too slowly\n"
    ]


def test_lines_that_were_refused_are_counted(lines: EventLines, written: Written) -> None:
    written.takes = False
    lines.note(STUCK)
    lines.note(ABDICATED)
    until(lambda: lines._refused == 2)
    written.takes = True
    lines.look(2 * PERIOD_NS)
    lines.close()
    assert "lost 2 lines" in written.lines[-1]


def test_a_log_that_hangs_does_not_hold_up_the_end(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(log, "LINES_MAX", 10 * WAITING_MAX)
    lines = EventLines(1, written)
    written.goes_on.clear()
    for _ in range(WAITING_MAX * 2):
        lines.note(STUCK)
    began = time.monotonic()
    lines.close(0.05)
    lines.close(0.05)
    assert time.monotonic() - began < 5
    lines.note(STUCK)
    written.goes_on.set()
    lines._thread.join(10)
    assert not lines._thread.is_alive(), "it ends when standard error goes on"


def test_no_thread_is_no_log(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    lines = EventLines(1, written)
    lines.note(STUCK)
    lines.look(PERIOD_NS)
    lines.close()
    assert written.lines == []
