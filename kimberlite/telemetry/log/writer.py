"""What writes the lines of a log: a thread, because standard error may be a file on the very disk that hangs, or a pipe
that nobody reads. Whoever has something to say waits for neither: what the thread has not written yet is bounded, and
what is lost is counted.

Thread rules: everything but `_write_lines` on one thread. May import: process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, Full, Queue

from kimberlite import process

WAITING_MAX = 256  # lines that the thread has not written yet
PATIENCE_S = 0.5  # for standard error to take a line, and for the thread to end


class LineWriter:
    """From its construction until `close`. write: writes a text within so many seconds, and says whether all of it was
    taken."""

    def __init__(self, write: Callable[[str, float], bool] = process.say) -> None:
        self._write = write
        self._waiting: Queue[str | None] = Queue(WAITING_MAX)
        self._lost = 0  # lines that found no place there
        self._refused = 0  # lines that standard error did not take; counted by the thread alone
        self.written = 0  # likewise
        self.is_closed = False
        self._thread = threading.Thread(target=self._write_lines, name="kimberlite-log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no thread: a replica runs without a log as well
            self.is_closed = True

    @property
    def dropped(self) -> int:
        """Lines that are nowhere."""
        return self._lost + self._refused

    def put(self, line: str) -> None:
        """A line with its end. Dropped when too many wait, or after `close`."""
        if self.is_closed:
            return
        try:
            self._waiting.put_nowait(line)
        except Full:
            self._lost += 1

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Let the thread write what waits, for so many seconds at most. Nothing is taken afterwards."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._waiting.full():
            with contextlib.suppress(Empty):  # the thread has just taken one
                self._waiting.get_nowait()
        self._waiting.put_nowait(None)
        self._thread.join(patience_s)

    def _write_lines(self) -> None:
        for line in iter(self._waiting.get, None):
            if self._write(line, 0.0 if self.is_closed else PATIENCE_S):
                self.written += 1
            else:
                self._refused += 1
