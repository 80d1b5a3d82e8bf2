"""A recorder that records nothing: no cell is written, no clock is read, and the log has what it always has."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kimberlite._fast import framing
from kimberlite._fast.metrics import HistogramValue
from kimberlite.telemetry.recording import loop
from kimberlite.telemetry.recording.loop import PARSE, POLL, SEND
from kimberlite.telemetry.silent import SilentRecorder
from kimberlite.told import TELLS
from kimberlite.types import Access, Command, Dropped, Ended, FrameReason, Reason
from kimberlite.vsr.events import TABLE, Event, EventKind, Level


class Lines:
    """What a log would be told."""

    def __init__(self) -> None:
        self.noted: list[Event] = []
        self.looks = 0
        self.counts = (0, 0, 0)

    def takes(self, kind: EventKind) -> bool:
        return TABLE[kind].level is not Level.COUNTED

    def note(self, event: Event) -> None:
        self.noted.append(event)

    def look(self, now: int) -> None:
        self.looks += 1

    def close(self, patience_s: float) -> None:
        return None


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def silent(lines: Any, monkeypatch: pytest.MonkeyPatch) -> SilentRecorder:
    made: list[SilentRecorder] = []

    def read() -> int:
        assert not made, "the clock was read"
        return 0

    made.append(SilentRecorder(1, 3, lines, read))
    monkeypatch.setattr(loop, "now_ns", read)
    return made[0]


def written(recorder: SilentRecorder) -> list[str]:
    values = zip(recorder.region.series, recorder.region.read(), strict=True)
    return [
        series.name
        for series, value in values
        if (value.count if isinstance(value, HistogramValue) else value and not math.isnan(value))
    ]


def test_what_is_called_for_every_frame_and_op_reads_no_clock_and_writes_nothing(silent: SilentRecorder) -> None:
    silent.loop.watch_gc()
    assert silent.loop.switch(PARSE) == silent.loop.switch(SEND) == POLL
    silent.loop.handled()
    silent.traffic.receiving()
    silent.traffic.received([], 500)
    silent.traffic.message_sent(Command.PREPARE, 256)
    silent.traffic.client_told(
        framing.make_header(cluster=bytes(16), command=Command.REQUEST, flags=TELLS, timestamp=1)
    )
    silent.traffic.handled()
    silent.executions.applied(7, 0)
    silent.executions.replied(7)
    silent.record([Event(kind, 1, 1, 1) for kind, row in TABLE.items() if row.level is Level.COUNTED])
    assert written(silent) == []


def test_what_is_rare_writes_nothing_either(silent: SilentRecorder) -> None:
    silent.traffic.message_dropped(Dropped.MALFORMED)
    silent.traffic.request_rejected(Reason.NOT_READY)
    silent.traffic.frame_refused(FrameReason.BAD_BODY_CHECKSUM)
    silent.traffic.connection_ended(Ended.REFUSED)
    silent.storage.failed(Access.READ)
    silent.storage.superblock_damaged(2)
    assert written(silent) == []


def test_events_of_a_level_go_to_the_log_and_no_others(silent: SilentRecorder, lines: Lines) -> None:
    kinds = [kind for kind in EventKind if kind is not EventKind.RECOVERED]
    silent.record([Event(kind, 1, 0, 0) for kind in kinds])
    assert [event[0] for event in lines.noted] == [kind for kind in kinds if TABLE[kind].level is not Level.COUNTED]
    assert written(silent) == []
    silent.look(5)
    assert lines.looks == 1
    silent.close()
