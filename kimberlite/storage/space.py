"""How much can certainly be appended, and the next segment, made before it is needed.

May import: errors, types, storage.
"""

from __future__ import annotations

from kimberlite.errors import DiskFullError
from kimberlite.storage.interface import RETRY_NS, Disk
from kimberlite.storage.journal import journal_name, witness_bytes, witness_name
from kimberlite.storage.segments import Segments
from kimberlite.types import Room

PREPARE_AT = 4  # the next segment is made ready when one part of so many of this one is used


class Space:
    """Of one store. One thread uses it."""

    def __init__(self, disk: Disk, segments: Segments) -> None:
        self._disk = disk
        self._segments = segments
        self._retry_at = 0  # not before that time
        self.room = Room(0, segments.segment_bytes)
        self.disk_full: DiskFullError | None = None  # why the next segment could not be made

    def measure(self) -> None:
        """The log has moved: what is there to be written to now?"""
        segments = self._segments
        end, size = segments.active.end, segments.segment_bytes
        rest = size - end if end is not None else 0  # unknown until a repair has told
        self.room = Room(rest, size, len(segments.spare), self.disk_full is not None)

    def make_room(self, now: int, needed: bool) -> bool:
        """See LogStore."""
        room, size = self.room, self._segments.segment_bytes
        if room.spare and not needed and not room.is_exhausted:
            return False
        is_time = not room.spare and PREPARE_AT * (size - room.rest) > size
        if now < self._retry_at or not (needed or is_time or room.is_exhausted):
            return False
        number = self._segments.next_number()
        files = {witness_name(number): witness_bytes(size), journal_name(number): size}
        for name, length in files.items():
            self._disk.prepare(name, length)
        if not needed and not all(self._disk.is_prepared(name) for name in files):
            return False
        try:
            self._segments.create(number)
            self.disk_full = None
        except DiskFullError as error:
            self.disk_full = error
            self._retry_at = now + RETRY_NS
        self.measure()
        return self.room != room
