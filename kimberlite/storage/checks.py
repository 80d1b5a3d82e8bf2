"""What the scrubber has looked at, piece by piece, of an open store (storage.scrub says when).

Every check reads the disk, marks what is damaged or has it written again, and never waits for a write.

May import: storage.
"""

from __future__ import annotations

from kimberlite.storage import superblock
from kimberlite.storage.faulty import FaultyOps
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.journal import (
    RECORD_BYTES,
    RECORDS_PER_SECTOR,
    Flaw,
    decode_record,
    examine_entry,
    round_up,
)
from kimberlite.storage.journal_reader import JournalReader
from kimberlite.storage.journal_writer import JournalWriter
from kimberlite.storage.scrub import Checked, Damage
from kimberlite.storage.segments import Segments
from kimberlite.storage.submissions import Submissions
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import Message


class Checks:
    """Of one store. One thread uses it."""

    def __init__(
        self,
        disk: Disk,
        handles: Handles,
        segments: Segments,
        submissions: Submissions,
        faulty: FaultyOps,
        writer: JournalWriter,
        reader: JournalReader,
    ) -> None:
        self._disk = disk
        self._handles = handles
        self._segments = segments
        self._submissions = submissions
        self._faulty = faulty
        self._writer = writer
        self._reader = reader
        self._rewriting: set[int] = set()  # ops whose witness alone is being written again

    @property
    def is_rewriting(self) -> bool:
        """Whether the witness of an intact entry is being written again."""
        return bool(self._rewriting)

    def entry(self, op: int) -> Checked:
        """Read an entry and its witness from the disk. A damaged entry is marked faulty; a damaged witness of
        an intact one is written again. What is being written is left alone."""
        if not self._reader.is_at_rest(op):
            return Checked()
        number, index, header, offset = self._segments.place_of(op)
        size = round_up(header.size) if header is not None else SECTOR
        found = (
            examine_entry(self._disk, self._handles.journal(number), offset, self._segments.segment_bytes, size)
            if offset is not None
            else Flaw.UNREADABLE
        )
        if not isinstance(found, Message) or header is None or found.header.checksum != header.checksum:
            self._faulty.mark(op)
            return Checked(size, (Damage.ENTRY,))
        first = op - index % RECORDS_PER_SECTOR
        sector = range(first, first + RECORDS_PER_SECTOR)
        if op in self._rewriting or not self._writer.in_flight.keys().isdisjoint(sector):
            return Checked(size)  # its sector of the witnesses is being written
        size += SECTOR
        try:
            at = index * RECORD_BYTES
            record = decode_record(self._disk.read(self._handles.witness(number), at, RECORD_BYTES), number, index)
        except (OSError, ValueError):
            record = None
        if record is not None and record.header.checksum == header.checksum and record.offset == offset:
            return Checked(size)
        self._rewriting.add(op)
        self._writer.fix_witnesses([op], lambda: self._rewriting.discard(op))
        return Checked(size, (Damage.WITNESS,))

    def superblock(self, block: SuperblockFile, copy: int) -> Checked:
        """Read a copy of the superblock; one that is not as it should be is written again."""
        if not block.is_settled:
            return Checked()  # they are being written
        if block.is_good(copy):
            return Checked(superblock.COPY_BYTES)
        self._submissions.submit(block.rewrite(copy))
        return Checked(superblock.COPY_BYTES, (Damage.SUPERBLOCK,))
