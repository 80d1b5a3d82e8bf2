"""Walking a journal as it stands on a disk: the one way for a restart, an audit, a backup and `inspect`.

Shared is what is the same for all of them: which segments there are, what a witness record and an entry are, and where
the next entry stands. What that means is for each of them to say: storage.scan decides what the log is, the audit names
what is wrong, a backup takes what is intact, `inspect` shows all of it.

Nothing is written here, and nothing is kept but 64 KiB of witnesses and what is read ahead: a replica may be writing.

May import: errors, types, _fast, storage.interface, storage.journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Self

from kimberlite._fast import framing
from kimberlite.errors import FrameError
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.journal import (
    RECORD_BYTES,
    ZERO_RECORD,
    Flaw,
    Record,
    decode_record,
    examine_entry,
    journal_name,
    round_up,
    segment_number,
    witness_bytes,
    witness_name,
)
from kimberlite.types import Header, Message

CHUNK = 64 << 10  # of a witness file, read at a time
PIECE = 1 << 20  # of a journal, where something is looked for in the whole of it


class NoRecord(Enum):
    """Why there is no witness record at a place."""

    DAMAGED = auto()
    UNREADABLE = auto()  # the disk gives an error, or the file is shorter
    MISSING = auto()  # all zero: never written


@dataclass(slots=True)
class Place:
    """Where a walk is: at the entry of that index in a segment, behind one that ends at `end`, if that is known."""

    number: int
    index: int = 0
    end: int | None = 0

    def move(self, header: Header | None, offset: int | None) -> None:
        """On to the next: the entry here has that header and stands at that offset, as far as they are known."""
        self.end = offset + round_up(header.size) if header is not None and offset is not None else None
        self.index += 1


def journal_numbers(disk: Disk) -> list[int]:
    """The segments that have a journal file, in order."""
    found = (segment_number(name) for name in disk.names() if name.startswith("journal-"))
    return sorted(number for number in found if number is not None)


def file_size(disk: Disk, name: str) -> int:
    """Raises FileNotFoundError."""
    file = disk.open(name)
    try:
        return disk.size(file)
    finally:
        disk.release(file)


class SegmentReader:
    """The files of one segment, opened when needed; a `with` block closes them.

    ahead: bytes of the journal that are read at once, for who reads it from front to back; what is there is durable
    before. Raises FileNotFoundError when a file is not there.
    """

    def __init__(self, disk: Disk, number: int, segment_bytes: int, ahead: int = 0) -> None:
        self.number = number
        self.segment_bytes = segment_bytes
        self._disk = disk
        self._ahead = ahead
        self._journal = self._witness = -1
        self._begin = -1  # of the witness records in memory
        self._chunk: bytes | bytearray = b""
        self._piece_begin = 0
        self._piece = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """The files are opened again when needed."""
        for file in self.give_up():
            if file is not None:
                self._disk.release(file)

    def give_up(self) -> tuple[int | None, int | None]:
        """The handles of journal and witness, as far as they are open: they are the caller's now."""
        journal, witness = self._journal, self._witness
        self._journal = self._witness = -1
        return (journal if journal >= 0 else None), (witness if witness >= 0 else None)

    @property
    def journal(self) -> int:
        if self._journal < 0:
            self._journal = self._disk.open(journal_name(self.number))
        return self._journal

    @property
    def witness(self) -> int:
        if self._witness < 0:
            self._witness = self._disk.open(witness_name(self.number))
        return self._witness

    # Witnesses

    @property
    def record_count(self) -> int:
        """How many records the witness file has place for."""
        return witness_bytes(self.segment_bytes) // RECORD_BYTES

    def image(self) -> bytearray:
        """The whole witness file, read with one call if it can be; what can not be read is filled with ones."""
        return read_image(self._disk, self.witness, witness_bytes(self.segment_bytes))

    def record(self, index: int) -> Record | NoRecord:
        """The witness of an entry."""
        at = index * RECORD_BYTES
        begin = at // CHUNK * CHUNK
        if begin != self._begin:
            self._begin, self._chunk = begin, self._read_witness(begin, CHUNK)
        raw = self._chunk[at - begin : at - begin + RECORD_BYTES]
        if len(raw) < RECORD_BYTES:
            raw = self._read_witness(at // SECTOR * SECTOR, SECTOR)[at % SECTOR : at % SECTOR + RECORD_BYTES]
            if len(raw) < RECORD_BYTES:
                return NoRecord.UNREADABLE
        if raw == ZERO_RECORD:
            return NoRecord.MISSING
        return decode_record(raw, self.number, index) or NoRecord.DAMAGED

    def _read_witness(self, offset: int, length: int) -> bytes:
        """Nothing when the disk gives an error: then its sectors are read one by one."""
        file = self.witness
        try:
            return bytes(self._disk.read(file, offset, length))
        except OSError:
            return b""

    # Entries

    def entry(self, offset: int, expected: int = SECTOR) -> Message | Flaw:
        """What stands at `offset`, fully verified. expected: its size as far as it is known."""
        return examine_entry(self if self._ahead else self._disk, self.journal, offset, self.segment_bytes, expected)

    def read(self, file: int, offset: int, length: int) -> memoryview:
        """Of what was read ahead: what `examine_entry` needs of a disk."""
        at = offset - self._piece_begin
        if at < 0 or at + length > len(self._piece):
            try:
                self._piece = self._disk.read(file, offset, max(length, self._ahead))
            except OSError:
                return self._disk.read(file, offset, length)  # an error further on concerns another entry
            self._piece_begin, at = offset, 0
        return self._piece[at : at + length]

    def remains(self, end: int) -> int:
        """Up to where the journal holds anything but zeros behind `end`; `end` when it holds nothing there. What can
        not be read may be anything."""
        begin = self.segment_bytes
        while begin > end:
            upper, begin = begin, max(begin - PIECE, end)
            try:
                piece = bytes(self._disk.read(self.journal, begin, upper - begin))
            except OSError:
                return upper
            if piece != bytes(len(piece)):  # `rstrip` alone looks at each byte by itself
                return begin + round_up(len(piece.rstrip(b"\0")))
        return end

    def headers_at_sectors(self) -> Iterator[tuple[int, Header]]:
        """Offset and header of whatever begins a sector with an intact one."""
        file = self.journal
        for offset in range(0, self.segment_bytes, SECTOR):
            try:
                yield offset, framing.decode_header(self._disk.read(file, offset, SECTOR))
            except (FrameError, OSError):
                continue

    # Walking

    def at(
        self, place: Place, accepts: Callable[[Header], bool] = lambda header: True
    ) -> tuple[Record | NoRecord, int | None]:
        """The witness of the entry at that place, and where the entry stands: as that says, unless it is not accepted,
        else behind the one before."""
        record = self.record(place.index)
        is_believed = isinstance(record, Record) and accepts(record.header)
        return record, record.offset if is_believed and isinstance(record, Record) else place.end

    def first_header(self) -> Header | None:
        """Of the entry that the segment begins with: by its witness, else by itself."""
        record = self.record(0)
        if isinstance(record, Record):
            return record.header
        found = self.entry(0)
        return found.header if isinstance(found, Message) else None

    def base(self, *, beyond_gaps: bool) -> int | None:
        """The op of its first entry, by the first witness that is intact: they all agree on it. beyond_gaps: also by
        one behind a place where none was ever written."""
        for index in range(self.record_count):
            record = self.record(index)
            if isinstance(record, Record):
                return record.header.op - index
            if record is NoRecord.MISSING and not beyond_gaps:
                break
        return None


def is_remains(disk: Disk, journal: int, offset: int, segment_bytes: int) -> bool:
    """Whether at that place something stands that is no intact entry."""
    found = examine_entry(disk, journal, offset, segment_bytes)
    return isinstance(found, Flaw) and found is not Flaw.NOTHING


def read_image(disk: Disk, file: int, size: int) -> bytearray:
    """The witness file; what is not there or can not be read is filled with ones, which is no valid record."""
    try:
        return bytearray(disk.read(file, 0, size)).ljust(size, b"\xff")
    except OSError:
        image = bytearray()
        for offset in range(0, size, SECTOR):
            try:
                image += bytes(disk.read(file, offset, SECTOR)).ljust(SECTOR, b"\xff")
            except OSError:
                image += b"\xff" * SECTOR
        return image
