"""The node's log of events: a line on standard error for each whose row in vsr.events.TABLE has a level.

A storm stays bounded: of each kind so many lines are written in a period, the rest is counted, and a line says how many
were left out when the period is over. Lines are written by a thread of their own, because standard error may be a file
on the very disk that hangs, or a pipe that nobody reads: the replica waits for neither. What the thread has not written
yet is bounded as well; what was lost that way is counted and said like the rest.

What has no level costs nothing here: the recorder does not hand it over. Thread rules: everything but `_write_lines` on
the thread of the replica's event loop. May import: process, vsr.events.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import Empty, Full, Queue

from kimberlite import process
from kimberlite.vsr.events import TABLE, Event, EventKind, Level, sentence

LINES_MAX = 10  # of one kind in a period
PERIOD_S = 60
PERIOD_NS = PERIOD_S * 1_000_000_000
WAITING_MAX = 256  # lines that the thread has not written yet
PATIENCE_S = 0.5  # for standard error to take a line, and for the thread to end
LEVELS = {Level.INFO: "info", Level.WARNING: "warning", Level.ERROR: "error"}


class EventLines:
    """Writes the lines of one replica, from its construction until `close`.

    write: writes a text within so many seconds, and says whether all of it was taken. wall: seconds since 1970.
    """

    def __init__(
        self,
        replica: int,
        write: Callable[[str, float], bool] = process.say,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._replica = replica
        self._write = write
        self._wall = wall
        self._seen: Counter[EventKind] = Counter()  # in this period
        self._began = 0  # when this period did
        self._waiting: Queue[str | None] = Queue(WAITING_MAX)
        self._lost = 0  # lines that found no place there
        self._refused = 0  # lines that standard error did not take; counted by the thread alone
        self._lost_told = 0  # how many of both a line has told of
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_lines, name="kimberlite-log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no thread: a replica runs without a log as well
            self._is_closed = True

    def note(self, event: Event) -> None:
        """Something happened that the log tells."""
        self._seen[event.kind] += 1
        if self._seen[event.kind] <= LINES_MAX:
            self._say(TABLE[event.kind].level, sentence(event))

    def look(self, now: int) -> None:
        """Say what was left out, when a period is over. Cheap: to be called often. now: monotonic nanoseconds."""
        if now - self._began < PERIOD_NS:
            return
        self._began = now
        for kind, count in self._seen.items():
            if count > LINES_MAX:
                left_out = f"left out {count - LINES_MAX} more lines of this kind ({kind.name}) within {PERIOD_S} s"
                self._say(TABLE[kind].level, left_out)
        self._seen.clear()
        lost = self._lost + self._refused
        if lost > self._lost_told:
            self._say(Level.WARNING, f"lost {lost - self._lost_told} lines of its log, which took them too slowly")
            self._lost_told = lost

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Let the thread write what waits, for so many seconds at most. Nothing is taken afterwards."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._waiting.full():
            with contextlib.suppress(Empty):  # the thread has just taken one
                self._waiting.get_nowait()
        self._waiting.put_nowait(None)
        self._thread.join(patience_s)

    def _say(self, level: Level, text: str) -> None:
        if self._is_closed:
            return
        now = self._wall()
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        try:
            self._waiting.put_nowait(f"kimberlite: {when} {LEVELS[level]}: replica {self._replica} {text}\n")
        except Full:
            self._lost += 1

    def _write_lines(self) -> None:
        for line in iter(self._waiting.get, None):
            self._refused += not self._write(line, 0.0 if self._is_closed else PATIENCE_S)
