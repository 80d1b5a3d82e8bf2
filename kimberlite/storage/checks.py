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
    journal_name,
    round_up,
    witness_name,
)
from kimberlite.storage.journal_reader import JournalReader
from kimberlite.storage.journal_writer import JournalWriter
from kimberlite.storage.pieces import Extent, Piece
from kimberlite.storage.scrub import Checked, Damage, Plan
from kimberlite.storage.segments import Segments
from kimberlite.storage.submissions import Submissions
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import Message

PLANNED_MAX = 64  # entries of one piece: to look at one takes some ten microseconds


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

    def plan(self, op: int, last: int, bytes_max: int) -> Plan:
        """Which entries from `op` on, up to `last`, can be read in one piece, with their witnesses: those that stand
        one behind another in one segment, as many as so many bytes hold, one at least. None where nothing is certain:
        that entry is to be looked at by itself. Raises DiskFullError."""
        if not self._reader.is_at_rest(op):
            return Plan(range(0), (), 0)
        known = len(self._faulty.ops)
        number, index, header, offset = self._segments.place_of(op, is_sequential=True)
        if header is None or offset is None or not self._reader.is_at_rest(op):
            return Plan(range(0), (), len(self._faulty.ops) - known)
        end, following = offset + round_up(header.size), op + 1
        while following <= min(last, op + PLANNED_MAX - 1) and self._reader.is_at_rest(following):
            other, _, header, place = self._segments.place_of(following, is_sequential=True)
            if other != number or header is None or place != end or end - offset + round_up(header.size) > bytes_max:
                break
            end += round_up(header.size)
            following += 1
        first = index // RECORDS_PER_SECTOR * SECTOR
        behind = round_up((index + following - op) * RECORD_BYTES)
        return Plan(
            range(op, following),
            (
                Extent(journal_name(number), self._handles.journal(number), offset, end - offset),
                Extent(witness_name(number), self._handles.witness(number), first, behind - first),
            ),
            len(self._faulty.ops) - known,
        )

    def screen(self, op: int, piece: Piece) -> Checked | None:
        """What a piece that was read for `plan` says of an entry. None: that it is not whole, or has moved since, so
        that it has to be looked at on the disk."""
        if not self._reader.is_at_rest(op):
            return Checked()  # left for the next tour
        number, index, header, offset = self._segments.place_of(op, is_sequential=True)
        entries, witnesses = piece.parts.get(journal_name(number)), piece.parts.get(witness_name(number))
        if header is None or offset is None or entries is None or witnesses is None:
            return None
        found = examine_entry(entries, 0, offset, self._segments.segment_bytes, round_up(header.size))
        if not isinstance(found, Message) or found.header.checksum != header.checksum:
            return None
        try:
            record = decode_record(witnesses.read(0, index * RECORD_BYTES, RECORD_BYTES), number, index)
        except OSError:
            return None
        is_whole = record is not None and record.header.checksum == header.checksum and record.offset == offset
        return Checked() if is_whole else None

    def superblock(self, block: SuperblockFile, copy: int) -> Checked:
        """Read a copy of the superblock; one that is not as it should be is written again."""
        if not block.is_settled:
            return Checked()  # they are being written
        if block.is_good(copy):
            return Checked(superblock.COPY_BYTES)
        self._submissions.submit(block.rewrite(copy))
        return Checked(superblock.COPY_BYTES, (Damage.SUPERBLOCK,))
