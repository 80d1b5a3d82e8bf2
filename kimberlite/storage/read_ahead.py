"""Entries of a cold segment read many at a time, for who reads them one after another.

May import: types, storage.
"""

from __future__ import annotations

from collections import OrderedDict

from kimberlite.storage.interface import Disk
from kimberlite.storage.journal import Flaw, examine_entry, round_up
from kimberlite.types import Header, Message

PIECES_MAX = 4  # who reads one after another: clients, and peers that catch up


class ReadAhead:
    """The pieces of journal files that were used last.

    It only ever gives an entry that is whole and is the one asked for. For anything else (damage, an error of the
    disk, what was repaired since) the entry has to be read by itself, and what is found then counts.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._pieces: OrderedDict[tuple[int, int], memoryview] = OrderedDict()  # segment, offset -> content
        self._start = 0
        self._piece = memoryview(b"")

    def entry(self, number: int, file: int, offset: int, header: Header, end: int) -> Message | None:
        """The entry of `header`, which stands at `offset`; read with what follows it, up to `end`, when the piece does
        not hold it."""
        if not self._select(number, offset, offset + round_up(header.size)):
            try:
                piece = self._disk.read(file, offset, max(end - offset, round_up(header.size)))
            except OSError:
                piece = memoryview(b"")
            self._start, self._piece = offset, piece
            self._pieces[number, offset] = piece
            if len(self._pieces) > PIECES_MAX:
                self._pieces.popitem(last=False)
        found = examine_entry(self, file, offset, self._start + len(self._piece), header.size)
        return None if isinstance(found, Flaw) or found.header.checksum != header.checksum else found

    def _select(self, number: int, start: int, end: int) -> bool:
        """Take the piece that holds those bytes, if one does."""
        for place, piece in self._pieces.items():
            if place[0] == number and place[1] <= start and end <= place[1] + len(piece):
                self._pieces.move_to_end(place)
                self._start, self._piece = place[1], piece
                return True
        return False

    def read(self, file: int, offset: int, length: int) -> memoryview:
        """Of the piece: what `examine_entry` needs of a disk."""
        return self._piece[offset - self._start :][:length]
