"""The log of a replica: a line on standard error for each event whose row in vsr.events.TABLE has a level, and for what
else a node has to tell (telemetry.log.catalogue has all of them). JSON lines, or sentences on a terminal.

A storm stays bounded: of each id so many lines are written in a period, the rest is counted, and a line says how many
were left out when the period is over. Nothing is said when nothing happens. Lines are written by a thread of their own
(telemetry.log.writer): the replica never waits for its log.

What has no level, or one below the log's, costs nothing: the recorder does not hand it over (`takes`).

Thread rules: the thread of the replica's event loop. May import: process, vsr.events, telemetry.log.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable

from kimberlite import process
from kimberlite.telemetry.log.catalogue import BY_KIND, LINES, Line
from kimberlite.telemetry.log.catalogue import LINES_MAX as LINES_MAX
from kimberlite.telemetry.log.catalogue import ROUTINE_MAX as ROUTINE_MAX
from kimberlite.telemetry.log.forms import LEVELS as LEVEL_NAMES
from kimberlite.telemetry.log.forms import Said as Said
from kimberlite.telemetry.log.forms import Value
from kimberlite.telemetry.log.forms import as_json as as_json
from kimberlite.telemetry.log.forms import as_text as as_text
from kimberlite.telemetry.log.writer import PATIENCE_S, LineWriter
from kimberlite.vsr.events import Event, EventKind, Level

PERIOD_S = 60
OWN = 0  # silence of the primary, where that is this replica
PERIOD_NS = PERIOD_S * 1_000_000_000
LEVELS = {name: level for level, name in LEVEL_NAMES.items()}
FORMATS = {"json": as_json, "pretty": as_text}


class Log:
    """Writes the lines of one replica, from its construction until `close`.

    level: lines below it are not written. form: one of FORMATS. where: view and op of the replica, set by whoever
    makes its core. write: see LineWriter. wall: seconds since 1970.
    """

    def __init__(
        self,
        cluster: str,
        replica: int,
        level: Level = Level.INFO,
        form: Callable[[Said], str] = as_json,
        write: Callable[[str, float], bool] = process.say,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._replica = replica
        self.level = level
        self._form = form
        self._wall = wall
        self.where: Callable[[], tuple[int | None, int | None]] = lambda: (None, None)
        self._seen: Counter[str] = Counter()  # in this period
        self._began = 0  # when this period did
        self._suppressed = 0
        self._lost_told = 0  # how many lost lines a line has told of
        self._writer = LineWriter(write)

    def takes(self, kind: EventKind) -> bool:
        """Whether an event of this kind is a line."""
        return kind in BY_KIND and BY_KIND[kind].level >= self.level

    def note(self, event: Event) -> None:
        """Something happened that the log tells."""
        line = BY_KIND[event.kind]
        if event.kind is EventKind.SUSPECTED and event.c == OWN:
            return  # a primary that wants another one in its place: ABDICATED says so, or it has just started
        self._tell(line, dict(zip((field.name for field in line.fields), event[1:], strict=False)))

    def say(self, id: str, **values: Value) -> None:
        """A line of a node. id: of OF_NODES in the catalogue. values: exactly those that its row names."""
        self._tell(LINES[id], values)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Lines that were written, left out because there were too many of their id, and lost."""
        return self._writer.written, self._suppressed, self._writer.dropped

    def look(self, now: int) -> None:
        """Say what was left out, when a period is over. Cheap: to be called often. now: monotonic nanoseconds."""
        if now - self._began < PERIOD_NS:
            return
        self._began = now
        for id, count in self._seen.items():
            if (left_out := count - LINES[id].lines_max) > 0:
                values: dict[str, Value] = {"of": id, "line_count": left_out, "period_ns": PERIOD_NS}
                self._put(LINES["suppressed"], LINES[id].level, values)
        self._seen.clear()
        lost = self._writer.dropped
        if lost > self._lost_told:
            self._put(LINES["lines_lost"], LINES["lines_lost"].level, {"line_count": lost - self._lost_told})
            self._lost_told = lost

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Let what was said be written, for so many seconds at most. Nothing is taken afterwards."""
        self._writer.close(patience_s)

    def _tell(self, line: Line, values: dict[str, Value]) -> None:
        if line.level < self.level:
            return
        self._seen[line.id] += 1
        if self._seen[line.id] <= line.lines_max:
            self._put(line, line.level, values)
        else:
            self._suppressed += 1

    def _put(self, line: Line, level: Level, values: dict[str, Value]) -> None:
        if not self._writer.is_closed:
            said = Said(self._wall(), level, line, values, self._cluster, self._replica, *self.where())
            self._writer.put(self._form(said))


def open_log(cluster: str, replica: int, level: str, form: str, destination: str) -> Log:
    """As node.toml has it: see the section log of the configuration."""
    if form == "auto":
        form = "pretty" if _is_terminal() else "json"
    write = process.say if destination == "stderr" else _nowhere
    return Log(cluster, replica, LEVELS[level], FORMATS[form], write)


def _nowhere(text: str, patience_s: float) -> bool:
    return True


def _is_terminal() -> bool:
    try:
        return os.isatty(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # none, or what a host program has put there
        return False
