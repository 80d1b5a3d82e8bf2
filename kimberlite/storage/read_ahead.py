"""Entries of a cold segment read many at a time, for who reads them one after another.

May import: types, storage.
"""

from __future__ import annotations

from kimberlite.storage.interface import Disk
from kimberlite.storage.journal import Flaw, examine_entry, round_up
from kimberlite.types import Header, Message


class ReadAhead:
    """The piece of a journal file that was read last.

    It only ever gives an entry that is whole and is the one asked for. For anything else (damage, an error of the
    disk, what was repaired since) the entry has to be read by itself, and what is found then counts.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._number = -1  # of its segment
        self._start = 0
        self._piece = memoryview(b"")

    def entry(self, number: int, file: int, offset: int, header: Header, end: int) -> Message | None:
        """The entry of `header`, which stands at `offset`; read with what follows it, up to `end`, when the piece does
        not hold it."""
        size = round_up(header.size)
        at = offset - self._start
        if number != self._number or at < 0 or at + size > len(self._piece):
            try:
                piece = self._disk.read(file, offset, max(end - offset, size))
            except OSError:
                piece = memoryview(b"")
            self._number, self._start, self._piece = number, offset, piece
        found = examine_entry(self, file, offset, self._start + len(self._piece), header.size)
        return None if isinstance(found, Flaw) or found.header.checksum != header.checksum else found

    def read(self, file: int, offset: int, length: int) -> memoryview:
        """Of the piece: what `examine_entry` needs of a disk."""
        return self._piece[offset - self._start :][:length]
