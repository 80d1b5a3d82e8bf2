"""The recorder: turns what the replica does into additions to its shared memory.

The replica only adds. A handle is bound to its cell once; recording is then a list index and a call into C, without a
lock and without allocation. Each side of the replica has a room of its own: see telemetry/recording.

What an event of the core moves is in its row of vsr.events.TABLE; those that the log takes go there as well.

Thread rules: the thread of the replica's event loop. May import: types, vsr.events, vsr.work, _fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kimberlite._fast.metrics import Region, now_ns
from kimberlite.telemetry.catalogue.labels import LOG_OUTCOMES
from kimberlite.telemetry.log import Log
from kimberlite.telemetry.log.writer import PATIENCE_S
from kimberlite.telemetry.recording.events import event_handlers
from kimberlite.telemetry.recording.executions import Executions
from kimberlite.telemetry.recording.exemplars import Exemplars
from kimberlite.telemetry.recording.gauges import Gauges
from kimberlite.telemetry.recording.handles import Handles
from kimberlite.telemetry.recording.loop import Loop
from kimberlite.telemetry.recording.memory import Memory
from kimberlite.telemetry.recording.slow import SlowOps
from kimberlite.telemetry.recording.storage import StorageCells
from kimberlite.telemetry.recording.traffic import Traffic
from kimberlite.vsr.events import Event
from kimberlite.vsr.work import Snapshot


class Recorder:
    """Writes one region. Constructed with every handle bound; `close` when the replica ends in order.

    loop, traffic, executions, gauges, storage, memory, exemplars: the rooms. Those that are called for every frame and
    op, and the cells, are others for a recorder that records nothing: telemetry.silent.
    """

    is_recording = True
    handles: type[Handles] = Handles
    loops: type[Loop] = Loop
    traffics: type[Traffic] = Traffic
    execution_rooms: type[Executions] = Executions

    def __init__(
        self,
        region: Region,
        replica: int,
        replica_count: int,
        log: Log | None = None,
        opened_at: int | None = None,
        clock: Callable[[], int] = now_ns,
        slow_ns: int = 0,
    ) -> None:
        """log: None for none; the recorder closes it. opened_at: when the data began to be read, monotonic nanoseconds,
        None for now: recovery counts from there. clock: of the replica, when it is another. slow_ns: a request that
        takes as long is told to the log; 0: none."""
        handles = self.handles(region, replica_count)
        self.region = region
        self.loop = self.loops(handles)
        self.traffic = self.traffics(handles, self.loop, log)
        self.executions = self.execution_rooms(handles, clock)
        self.gauges = Gauges(handles, replica)
        self.storage = StorageCells(handles)
        self.memory = Memory(handles)
        self.exemplars = Exemplars(handles)
        self._log = log
        self._log_lines = [handles.counter("log_lines", outcome).advance_to for outcome in LOG_OUTCOMES]
        slow = SlowOps(log, slow_ns)
        since = clock() if opened_at is None else opened_at
        self._handlers = event_handlers(handles, replica, replica_count, self.executions, since, clock, log, slow)

    def record(self, events: Sequence[Event]) -> None:
        """Count what the core reports."""
        handlers = self._handlers
        self.exemplars.last = events
        for event in events:
            handlers[event[0]](event)

    def update(self, snapshot: Snapshot, now: int, connections: int, connections_limit: int) -> None:
        """Set the gauges of the protocol, and look after the log. At a bounded rate; now: monotonic nanoseconds."""
        self.gauges.update(snapshot, now, connections, connections_limit)
        self.exemplars.update(snapshot.view)
        self.look(now)

    def look(self, now: int) -> None:
        """Look after the log."""
        if self._log is not None:
            self._log.look(now)
            for advance_to, count in zip(self._log_lines, self._log.counts, strict=True):
                advance_to(count)

    def end_log(self, patience_s: float = PATIENCE_S) -> None:
        """No event goes to the log any more; those that did are written, in so many seconds at most."""
        if self._log is not None:
            self._log.close(patience_s)

    def close(self, in_order: bool = True) -> None:
        """The replica ends; when in order, say so to the readers. Nothing may be recorded afterwards."""
        self.loop.close()
        self.end_log()
        if in_order:
            self.region.end()
