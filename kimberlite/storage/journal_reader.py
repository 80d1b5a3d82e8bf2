"""Reading the log of an open store: headers, entries, events by their position.

Every entry is verified, and compared with the identity that is known of it; what fails is marked as damaged. Of what is
being written nothing is read.

May import: errors, types, storage.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from kimberlite.errors import DiskFullError
from kimberlite.storage.faulty import FaultyOps
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Disk, Extent
from kimberlite.storage.journal import read_entry
from kimberlite.storage.read_ahead import ReadAhead
from kimberlite.storage.recovery import Entry
from kimberlite.storage.segments import Segments
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import Checksum, Header, Message

PREFETCH_MAX = 1024  # headers that are read with one call


class JournalReader:
    """Of one store. in_flight: ops that are being written. One thread uses it."""

    def __init__(
        self,
        disk: Disk,
        handles: Handles,
        superblock: SuperblockFile,
        segments: Segments,
        faulty: FaultyOps,
        in_flight: Container[int],
        root: Header,
    ) -> None:
        self._disk = disk
        self._handles = handles
        self._superblock = superblock
        self._segments = segments
        self._faulty = faulty
        self._in_flight = in_flight
        self._root = root
        self._ahead = ReadAhead(disk)

    @property
    def _first_op(self) -> int:
        return self._superblock.current.checkpoint.first_op

    def extents(self) -> Iterator[Extent]:
        """See LogStore."""
        used = self._segments.bytes_used
        for count, start in enumerate(self._segments.starts()):
            header = self.header(start.base)
            if header is not None:
                yield Extent(start.base, header.position, header.timestamp, used - count * self._segments.segment_bytes)

    # Headers

    def header(self, op: int) -> Header | None:
        """See LogStore."""
        if op == 0:
            return self._root
        checkpoint = self._superblock.current.checkpoint
        if op == checkpoint.op:
            return checkpoint.header  # also when its entry was trimmed
        if not checkpoint.first_op <= op <= self._segments.head:
            return None
        segment = self._segments.open_at(op)
        return segment.header(op - segment.base) if segment is not None else self._segments.cold.header(op)

    def proven_header(self, op: int) -> Header | None:
        """The header of an op, unless it does not go together with its neighbours': then nobody can tell which of
        them an older log, or a write that went elsewhere, has left."""
        header, before, after = self.header(op), self.header(op - 1), self.header(op + 1)
        if header is None or (before is not None and header.parent != before.checksum):
            return None
        return header if after is None or after.parent == header.checksum else None

    def headers(self, first: int, last: int) -> list[Header]:
        """See LogStore."""
        result: list[Header] = []
        last = min(last, self._segments.head)
        low = max(first, last - PREFETCH_MAX, self._first_op)
        if low < self._segments.open[0].base:
            self._segments.cold.prefetch(low, last)
        for op in range(last, first - 1, -1):
            header = self.header(op)
            if header is None or (result and header.checksum != result[-1].parent):
                break
            if not result and self._is_contradicted(op):
                break  # those below have one above them that names them, this one has not
            result.append(header)
        return result[::-1]

    def _is_contradicted(self, op: int) -> bool:
        """Whether another entry stands intact where the witness of a cold one says: witnesses of an older log, left by
        writes that were lost, agree with each other."""
        if op < self._first_op or self._segments.open_at(op) is not None or op in self._in_flight:
            return False
        number, _, header, offset = self._segments.place_of(op)
        if header is None or offset is None:
            return False
        journal, limit = self._handles.journal(number), self._segments.segment_bytes
        _, message = read_entry(self._disk, journal, offset, limit, header.size)
        return message is not None and message.header.checksum != header.checksum

    def find(self, position: int) -> int | None:
        """See LogStore."""
        if position < self._superblock.current.checkpoint.first_position:
            return None
        for segment in reversed(self._segments.open):
            if segment.count and position >= segment.position:
                op = segment.find(position)
                if op is not None:
                    return op
        return self._segments.cold.find(position)

    # Entries

    def is_at_rest(self, op: int) -> bool:
        """Whether an entry of the log stands under `op`, and nothing is wrong with it as far as is known."""
        first_op = self._superblock.current.checkpoint.first_op
        return first_op <= op <= self._segments.head and op not in self._in_flight and op not in self._faulty.ops

    def read(self, op: int, checksum: Checksum | None, ahead: int) -> Message | None:
        """See LogStore."""
        if not self.is_at_rest(op):
            return None
        try:
            return self._read(op, checksum, ahead)
        except DiskFullError:  # no descriptor for its file: nothing is known to be wrong with it
            return None

    def _read(self, op: int, checksum: Checksum | None, ahead: int) -> Message | None:
        segments = self._segments
        number, _, expected, offset = segments.place_of(op, is_sequential=ahead > 0)
        if expected is not None and checksum is not None and expected.checksum != checksum:
            return None
        if ahead and expected is not None and offset is not None:
            segment = segments.open_at(op)
            end = min(offset + ahead, (segment.end or 0) if segment is not None else segments.segment_bytes)
            found = self._ahead.entry(number, self._handles.journal(number), offset, expected, end)
            if found is not None:
                return found
        entry, message = Entry.DAMAGED, None
        if offset is not None:
            size = expected.size if expected is not None else SECTOR
            entry, message = read_entry(self._disk, self._handles.journal(number), offset, segments.segment_bytes, size)
        wanted = expected.checksum if expected is not None else checksum
        if entry is not Entry.GOOD or message is None or message.header.checksum != wanted:
            self._faulty.mark(op)
            return None
        return message
