"""Handles of the cells of a region, by the names of the catalogue. Each is bound once; recording is then a call into C,
without a lock and without allocation.

What has a reason, a type or a cause is counted by the member of an enum, and each table has a cell for every member of
its enum: handles without one can not be had, and nothing is counted as "other".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, IntEnum
from typing import TypeVar

from kimberlite._fast.metrics import Counter, Gauge, Histogram, Region, StageClock
from kimberlite.errors import InvariantError
from kimberlite.telemetry.catalogue import BY_NAME, cell_name
from kimberlite.telemetry.catalogue.labels import LOOP_PARTS, label_value

Member = TypeVar("Member", bound=Enum)


class Handles:
    """Of the region of one replica of a cluster of that size."""

    def __init__(self, region: Region, replica_count: int) -> None:
        self._region = region
        self._replica_count = replica_count
        self._index = {series.name: index for index, series in enumerate(region.series)}

    def counter(self, name: str, *values: str) -> Counter:
        return self._region.counter(self._index[cell_name(BY_NAME[name], values)])

    def gauge(self, name: str, *values: str) -> Gauge:
        return self._region.gauge(self._index[cell_name(BY_NAME[name], values)])

    def histogram(self, name: str, *values: str) -> Histogram:
        return self._region.histogram(self._index[cell_name(BY_NAME[name], values)])

    def cell(self, name: str) -> Gauge:
        """A cell that is no series of the catalogue."""
        return self._region.gauge(self._index[name])

    def gauges(self, name: str) -> list[Gauge]:
        """One for each replica."""
        return [self.gauge(name, str(replica)) for replica in range(self._replica_count)]

    def by_member(self, name: str, members: Iterable[Member]) -> dict[Member, Counter]:
        """A counter for each member of an enum, which its label values name. Raises InvariantError for a member that
        the catalogue has no value for."""
        found: dict[Member, Counter] = {}
        for member in members:
            cell = cell_name(BY_NAME[name], (label_value(member),))
            if cell not in self._index:
                raise InvariantError(f"the catalogue has a series for every {type(member).__name__}", missing=cell)
            found[member] = self._region.counter(self._index[cell])
        return found

    def by_number(self, name: str, members: Iterable[IntEnum]) -> dict[int, Callable[[], None]]:
        """The same for what is told by number: `add` of each counter."""
        return {int(member): counter.add for member, counter in self.by_member(name, members).items()}

    def stage_clock(self) -> StageClock:
        """Of the parts of the event loop's time."""
        return self._region.stage_clock(
            [self._index[cell_name(BY_NAME["event_loop_time"], (part,))] for part in LOOP_PARTS],
            turn=self._index["event_loop_turn"],
            turned_at=self._index["event_loop_last_turn"],
        )
