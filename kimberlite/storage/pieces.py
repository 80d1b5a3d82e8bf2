"""Parts of files, read on a thread of their own: for the scrubber, for whose reads nobody should wait.

A piece says what stood on the disk at some moment between `ask` and `take`; of what is written meanwhile it may hold
anything. So it can show that something is whole, and never that it is damaged: who finds anything else in it looks at
the disk itself.

One thread, begun with the first piece, and one piece at a time. A disk that hangs keeps that thread and the
descriptors of that piece, and is asked for nothing more; they go when it answers, whatever was closed meanwhile. The
descriptors are duplicates: the files may be closed, or removed, while they are read.

Thread rules: one thread uses a PieceReader. May import: errors, types, _fast, storage.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from kimberlite._fast import append
from kimberlite.errors import DiskFullError

READ_BYTES = 64 << 10  # with one call: a write that commits wait for waits behind one of these at most


class Extent(NamedTuple):
    """A part of an open file: whole sectors."""

    name: str
    file: int
    offset: int
    length: int


class Part:
    """What stood in an extent. Stands in for the disk (journal.Readable), for that file alone."""

    __slots__ = ("_content", "_descriptor", "_extent", "calls", "got")

    def __init__(self, extent: Extent, descriptor: int) -> None:
        self._extent = extent
        self._descriptor = descriptor
        self._content: memoryview | None = None
        self.calls = self.got = 0  # calls of the system, and the bytes that they brought

    def fetch(self, forget_cached: bool) -> None:
        """On the thread. What can not be read stays unknown."""
        _, _, offset, length = self._extent
        buffer = memoryview(append.AlignedBuffer(length, False))
        try:
            if forget_cached:  # all of the file, as FileDisk.read does it
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while self.got < length:
                count = os.preadv(self._descriptor, [buffer[self.got : self.got + READ_BYTES]], offset + self.got)
                self.calls += 1
                if count == 0:
                    break
                self.got += count
        except OSError:
            return
        finally:
            os.close(self._descriptor)
        self._content = buffer[: self.got].toreadonly()

    def drop(self) -> None:
        """It will not be read."""
        os.close(self._descriptor)

    def read(self, file: int, offset: int, length: int) -> memoryview:
        """Raises OSError where nothing is known."""
        start = offset - self._extent.offset
        if self._content is None or start < 0 or start + length > len(self._content):
            raise OSError("not in this piece")
        return self._content[start : start + length]

    @property
    def bytes(self) -> int:
        return self._extent.length


class Piece:
    """Some parts, read together."""

    def __init__(self, parts: dict[str, Part]) -> None:
        self.parts = parts
        self.ended = threading.Event()

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())


class Duplicating(Protocol):
    """What a reader needs of a disk, and what it counts there."""

    mode: str
    reads: int
    read_bytes: int

    def duplicate(self, file: int) -> int:
        """Another descriptor of an open file, for the caller to close. Raises DiskFullError: there is none now."""


class PieceReader:
    """See the module docstring."""

    def __init__(self, disk: Duplicating) -> None:
        self._disk = disk
        self._jobs: SimpleQueue[Piece | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._piece: Piece | None = None  # asked for, and not taken
        self.is_closed = False

    @property
    def is_busy(self) -> bool:
        """Whether a piece was asked for that was not taken yet."""
        return self._piece is not None

    def ask(self, extents: Sequence[Extent]) -> bool:
        """Begin to read these; False when that can not be done now, for want of a descriptor or a thread."""
        if self.is_closed or self._piece is not None or not self._has_thread():
            return False
        parts: dict[str, Part] = {}
        try:
            for extent in extents:
                parts[extent.name] = Part(extent, self._disk.duplicate(extent.file))
        except DiskFullError:
            for part in parts.values():
                part.drop()
            return False
        self._piece = Piece(parts)
        self._jobs.put(self._piece)
        return True

    def take(self) -> Piece | None:
        """The piece that was asked for, when it has come."""
        piece = self._piece
        if piece is None or not piece.ended.is_set():
            return None
        self._piece = None
        for part in piece.parts.values():
            self._disk.reads += part.calls
            self._disk.read_bytes += part.got
        return piece

    def close(self) -> None:
        """The thread ends, now or when the disk answers; nobody waits for it."""
        if not self.is_closed:
            self.is_closed = True
            self._jobs.put(None)

    def _has_thread(self) -> bool:
        if self._thread is None:
            forget_cached = self._disk.mode == "buffered"
            thread = threading.Thread(target=_work, args=(self._jobs, forget_cached), name="km-scrub", daemon=True)
            with contextlib.suppress(RuntimeError):  # the system gives no thread now
                thread.start()
                self._thread = thread
        return self._thread is not None


def _work(jobs: SimpleQueue[Piece | None], forget_cached: bool) -> None:
    while (piece := jobs.get()) is not None:
        for part in piece.parts.values():
            part.fetch(forget_cached)
        piece.ended.set()
