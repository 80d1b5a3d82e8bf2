"""Sinks at work: what hangs or fails costs a page of its own and nobody's time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from kimberlite.telemetry.pages import Page, Pages
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.sinks import pump
from kimberlite.telemetry.sinks.pump import Pumps


class Recording:
    """A sink that keeps pages; `go` lets it."""

    interval_s = 0.0

    def __init__(self, name: str = "statsd") -> None:
        self.name = name
        self.pages: list[Page] = []
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def send(self, page: Page) -> None:
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        self.pages.append(page)

    def close(self) -> None:
        self.go.clear()


@pytest.fixture
def pages(reader: Reader) -> Pages:
    return Pages(reader, "ms")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tick finds every sink due."""
    monkeypatch.setattr(Recording, "interval_s", 1e-9)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_sinks_that_are_due_together_get_the_same_page(pages: Pages) -> None:
    sinks = [Recording("otlp"), Recording("statsd")]
    pumps = Pumps(sinks, pages)
    for count in range(1, 4):
        pumps.tick()
        until(lambda count=count: all(len(sink.pages) == count for sink in sinks))  # type: ignore[misc]
    assert [page.number for page in sinks[0].pages] == [1, 2, 3]
    assert all(ours is theirs for ours, theirs in zip(*(sink.pages for sink in sinks), strict=True))


def test_a_sink_that_hangs_costs_its_own_pages(pages: Pages, reader: Reader) -> None:
    hangs, works = Recording("otlp"), Recording("statsd")
    hangs.go.clear()
    pumps = Pumps([hangs, works], pages)
    began = time.monotonic()
    for count in range(1, 21):
        pumps.tick()
        until(lambda count=count: len(works.pages) == count)  # type: ignore[misc]
    assert time.monotonic() - began < 10
    assert reader.dropped == {"otlp": 20 - 1 - pump.QUEUE_MAX}  # one is in its hands, the queue is full
    hangs.go.set()
    until(lambda: len(hangs.pages) == 1 + pump.QUEUE_MAX)
    pumps.tick()
    until(lambda: hangs.pages[-1].number == 21)


def test_a_sink_that_fails_is_told_of_once(pages: Pages, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pump.process, "say", lambda text, patience: told.append(text))
    sink = Recording("otlp")
    sink.error = OSError("nobody there")
    pumps = Pumps([sink], pages)
    for count in range(1, 4):
        pumps.tick()
        until(lambda count=count: reader.dropped["otlp"] == count)  # type: ignore[misc]
    sink.error = None
    pumps.tick()
    until(lambda: len(sink.pages) == 1 and len(told) == 2)
    assert told == [
        "kimberlite.telemetry: otlp: OSError: nobody there\n",
        "kimberlite.telemetry: otlp: it takes what it gets again\n",
    ]


def test_the_last_page_is_delivered(pages: Pages) -> None:
    sink = Recording()
    Pumps([sink], pages).finish()
    assert [page.number for page in sink.pages] == [1]


def test_a_sink_that_hangs_does_not_hold_up_the_end(pages: Pages) -> None:
    hangs, works = Recording("otlp"), Recording("statsd")
    hangs.go.clear()
    pumps = Pumps([hangs, works], pages)
    began = time.monotonic()
    pumps.finish()
    assert time.monotonic() - began < pump.FLUSH_S + 1
    assert len(works.pages) == 1
    hangs.go.set()


def test_who_missed_a_time_is_not_due_twice(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recording()
    monkeypatch.setattr(Recording, "interval_s", 10.0)
    one = pump.Pump(sink, pages.drop, now=100.0)
    assert one.due == 110.0
    for now, due in ((110.0, 120.0), (120.5, 130.0), (166.0, 170.0)):
        one.next_due(now)
        assert one.due == due
    one.finish(1.0)
