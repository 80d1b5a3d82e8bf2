"""Where the event loop's time goes: stages of its turns, and pauses for garbage collection."""

from __future__ import annotations

import gc

from kimberlite._fast.metrics import now_ns
from kimberlite.telemetry.catalogue.labels import LOOP_PARTS
from kimberlite.telemetry.recording.handles import Handles

# Positions in LOOP_PARTS.
POLL, PARSE, PROTOCOL, DISK_WAIT, SEND, OTHER_PART = range(len(LOOP_PARTS))


class Loop:
    """switch(part): charge the loop's time to another part; returns the part left. turn_pending: set by the owner of
    the loop while a callback of this turn is scheduled, so that the turn is not over yet."""

    def __init__(self, handles: Handles) -> None:
        self.turn_pending = False
        self._clock = handles.stage_clock()
        self.switch = self._clock.switch
        self._gc_pause = handles.histogram("gc_pause").record
        self._gc_began = 0

    def handled(self) -> None:
        """What came has been handed on: the turn ends here, or when its callback has run."""
        self.switch(OTHER_PART if self.turn_pending else POLL)

    def watch_gc(self) -> None:
        """Time the interpreter's garbage collections, until `close`."""
        gc.callbacks.append(self._on_gc)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_began = now_ns()
        elif self._gc_began:
            self._gc_pause(now_ns() - self._gc_began)

    def close(self) -> None:
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)
