"""The recorder of a replica that records nothing: `telemetry.record = false`.

What is called for every frame and op does nothing at all here: it reads no clock and writes no cell. The node leaves
out what would only measure (node.assembly). What is rare goes through the rooms as always, to cells that are none.
Events that the log takes still go there.

Thread rules: the thread of the replica's event loop. May import: types, vsr.events, _fast, telemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, cast

from kimberlite._fast.metrics import Counter, Gauge, Histogram, Region, StageClock, now_ns
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.log import Log
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.executions import Executions
from kimberlite.telemetry.recording.handles import Handles, Member
from kimberlite.telemetry.recording.loop import POLL, Loop
from kimberlite.telemetry.recording.traffic import Traffic
from kimberlite.types import Header
from kimberlite.vsr.events import Event, EventKind


def _nothing(*_: object) -> int:
    return POLL


class NoCell:
    """A counter, gauge, histogram or clock of no region."""

    __slots__ = ()
    add = set = advance_to = record = record_many = switch = staticmethod(_nothing)

    def value(self) -> int:
        return 0


class NoHandles(Handles):
    """Of no region: every name and member has the same cell, which is none."""

    def __init__(self, region: Region, replica_count: int) -> None:
        super().__init__(region, replica_count)
        self._none: Any = NoCell()

    def counter(self, name: str, *values: str) -> Counter:
        return cast(Counter, self._none)

    def gauge(self, name: str, *values: str) -> Gauge:
        return cast(Gauge, self._none)

    def cell(self, name: str) -> Gauge:
        return cast(Gauge, self._none)

    def histogram(self, name: str, *values: str) -> Histogram:
        return cast(Histogram, self._none)

    def by_member(self, name: str, members: Iterable[Member]) -> dict[Member, Counter]:
        return dict.fromkeys(members, self._none)

    def by_number(self, name: str, members: Iterable[IntEnum]) -> dict[int, Callable[[], None]]:
        return dict.fromkeys(map(int, members), self._none.add)

    def stage_clock(self) -> StageClock:
        return cast(StageClock, self._none)


class SilentLoop(Loop):
    """Nobody asks where the time goes."""

    def handled(self) -> None:
        return None

    def watch_gc(self) -> None:
        return None


class SilentTraffic(Traffic):
    """Frames are not counted."""

    def receiving(self) -> None:
        return None

    def received(self, frames: Sequence[tuple[Header, memoryview]], size: int) -> None:
        return None

    def message_sent(self, command: int, size: int) -> None:
        return None

    def client_told(self, request: Header) -> None:
        return None


class SilentExecutions(Executions):
    """Nothing is remembered of an execution."""

    def applied(self, op: int, began_ns: int) -> None:
        return None

    def replied(self, op: int) -> None:
        return None


class SilentRecorder(Recorder):
    """What a node calls a recorder."""

    is_recording = False
    handles, loops, traffics, execution_rooms = NoHandles, SilentLoop, SilentTraffic, SilentExecutions

    def __init__(
        self, replica: int, replica_count: int, log: Log | None = None, clock: Callable[[], int] = now_ns
    ) -> None:
        """log, clock: see Recorder. The log is told of no slow operation."""
        region = Region.create(None, catalogue.layout(replica_count))
        super().__init__(region, replica, replica_count, log, clock=clock)
        said = {kind for kind in EventKind if log is not None and log.takes(kind)}
        self._said = [kind in said for kind in range(max(EventKind) + 1)]

    def record(self, events: Sequence[Event]) -> None:
        said = self._said
        for event in events:
            if said[event[0]]:
                self._handlers[event[0]](event)
