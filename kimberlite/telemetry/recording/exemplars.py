"""An operation to look at beside a latency: which op it was, in which view.

Looking for one costs the hot path nothing but to remember the last batch of events: at the bounded rate at which gauges
are set, its last commit becomes the exemplar. Who reads while it is written sees that the sum does not agree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kimberlite.telemetry.catalogue import EXEMPLAR_FIELDS, EXEMPLARS, exemplar_cell
from kimberlite.telemetry.recording.handles import Handles
from kimberlite.vsr.events import Event, EventKind


class Exemplars:
    """Of commit_latency. last: the events that were recorded last."""

    def __init__(self, handles: Handles) -> None:
        self.last: Sequence[Event] = ()
        (metric,) = EXEMPLARS
        self._cells = [handles.cell(exemplar_cell(metric, field)) for field in EXEMPLAR_FIELDS]

    def update(self, view: int) -> None:
        """Write the last commit there was, if it was not a replay."""
        for event in reversed(self.last):
            if event[0] == EventKind.COMMITTED and event[3] >= 0:
                values = event[1], view, event[3], time.time_ns()
                for cell, value in zip(self._cells, (*values, sum(values)), strict=True):
                    cell.set(value)
                break
        self.last = ()
