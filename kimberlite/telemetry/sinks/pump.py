"""A sink at work: pages come in at its interval, a thread of its own takes them out of the house.

Between the two is a queue of QUEUE_MAX pages. A sink that hangs fills it, one that refuses fails: both cost a page of
the sink's own, counted in vsr_telemetry_dropped_total, and nobody waits. The page is one for all sinks that are due at
the same time, so that they tell the same values.

Thread rules: as said of each. May import: process, telemetry.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from kimberlite import process
from kimberlite.telemetry.pages import Page, Pages

QUEUE_MAX = 3
FLUSH_S = 0.5  # for the last page of a replica that ends in order


class Sink(Protocol):
    """Where pages go. One thread calls `send`, and nothing else."""

    name: str
    """Its value of the label `sink`."""

    interval_s: float

    def send(self, page: Page) -> None:
        """Deliver a page. Raises when it is not: whatever was raised is told once, and the page is counted."""

    def close(self) -> None:
        """No more pages come."""


class Pump:
    """A sink with its queue and its thread."""

    def __init__(self, sink: Sink, drop: Callable[[str], None], now: float) -> None:
        self._sink = sink
        self._drop = drop
        self._queue: queue.Queue[Page | None] = queue.Queue(QUEUE_MAX)
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self._works = True  # what fails again and again is told once
        self.due = now + sink.interval_s
        self._thread.start()

    def offer(self, page: Page | None) -> None:
        """Hand over a page; None: no more come. Never waits: what finds the queue full is dropped."""
        try:
            self._queue.put_nowait(page)
        except queue.Full:
            self._drop(self._sink.name)

    def next_due(self, now: float) -> None:
        """Go on to the next time at which a page is due: the first of them that is not over."""
        missed = (now - self.due) // self._sink.interval_s
        self.due += (missed + 1) * self._sink.interval_s

    def finish(self, patience_s: float) -> None:
        """Deliver what is there, for so long at most."""
        self.offer(None)
        self._thread.join(patience_s)

    def _run(self) -> None:
        while (page := self._queue.get()) is not None:
            try:
                self._sink.send(page)
            except Exception as error:  # a library of somebody else's is at work; the thread must live
                self._drop(self._sink.name)
                self._tell(f"{type(error).__name__}: {error}")
            else:
                self._tell("")
        self._sink.close()

    def _tell(self, problem: str) -> None:
        """Say when the sink stops working, and when it does again."""
        if self._works != (not problem):
            self._works = not problem
            process.say(f"kimberlite.telemetry: {self._sink.name}: {problem or 'it takes what it gets again'}\n", 0.1)


class Pumps:
    """All sinks of a telemetry process. Thread rules: one thread."""

    def __init__(self, sinks: Sequence[Sink], pages: Pages) -> None:
        now = time.monotonic()
        self._pages = pages
        self._pumps = [Pump(sink, pages.drop, now) for sink in sinks]

    def tick(self) -> None:
        """Give a page to every sink that is due. To be called often."""
        now = time.monotonic()
        due = [pump for pump in self._pumps if pump.due <= now]
        if due:
            page = self._pages.take()
            for pump in due:
                pump.offer(page)
                pump.next_due(now)

    def finish(self) -> None:
        """The replica has ended in order: its last values go out, within FLUSH_S."""
        if self._pumps:
            page = self._pages.take()
            for pump in self._pumps:
                pump.offer(page)
            until = time.monotonic() + FLUSH_S
            for pump in self._pumps:
                pump.finish(max(until - time.monotonic(), 0.0))
