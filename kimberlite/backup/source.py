"""The committed log of one replica, read from its disk beside the running process or without it.

What is in the log is decided by the code of a restart (storage.scan). Committed of it is what the highest commit
number says that the superblock or any entry knows; what the running process had executed when it was asked; and in a
cluster of one, everything. What is committed and intact here never changes again, so a replica that goes on meanwhile
takes nothing away from what was read; but files go when it trims, and a checkpoint when the next is made. Then
something is missing, the superblock has changed, and whoever reads begins again.

May import: errors, types, _fast.framing, storage. Memory: the checkpoint, one entry, READ_AHEAD bytes, and what a
restart takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import BackupError, CheckpointError, SuperblockError
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import ring, superblock
from kimberlite.storage.interface import Disk
from kimberlite.storage.journal import Flaw, Record, journal_name, round_up
from kimberlite.storage.log_reader import Place, SegmentReader
from kimberlite.storage.scan import scan
from kimberlite.storage.superblock import Superblock
from kimberlite.types import EntryState, Header, Message, root_header

READ_AHEAD = 1 << 20
_SUPERBLOCK_READS = 5  # beside a replica that is just writing it, a reading may show three updates at once

_FLAWS = {
    Flaw.NOTHING: "there are zeros where it stood",
    Flaw.UNREADABLE: "the disk can not read it",
    Flaw.HEADER: "its header fails its checksum",
    Flaw.SIZE: "it would reach beyond the end of its segment",
    Flaw.BODY: "its body fails its checksum",
    Flaw.PADDING: "the padding behind it is not zero",
}


@dataclass(frozen=True, slots=True)
class Run:
    """The entries of one segment that belong to the committed log."""

    segment: int
    base: int  # op of the first entry of the segment
    first_op: int
    last: Header


def read_superblock(disk: Disk) -> Superblock:
    """What is in force. Raises SuperblockError, FormatVersionError."""
    file = disk.open(superblock.NAME)
    try:
        for _ in range(_SUPERBLOCK_READS - 1):
            try:
                return superblock.choose(superblock.read_copies(disk, file))
            except SuperblockError:
                continue
        return superblock.choose(superblock.read_copies(disk, file))
    finally:
        disk.release(file)


class Source:
    """The log as it was when this was made. Raises BackupError (something committed is not intact here),
    CheckpointError, DataMissingError, FileNotFoundError; all of them may only mean that the replica went on."""

    def __init__(self, disk: Disk, block: Superblock, applied: int = 0, uncommitted: bool = False) -> None:
        """applied: an op that the running process had executed before `block` was read. uncommitted: take what is
        intact behind the committed log as well: it may have been acknowledged, and nobody is left who could tell."""
        self._disk = disk = ring.overlaid(disk, block.ring, block.sequence)
        self.block = block
        self.checkpoint = self._read_checkpoint()  # the whole file; None when there is none yet
        self.first_op = block.checkpoint.first_op
        self.first_position = block.checkpoint.first_position
        result = scan(disk, block.state, block.segment_bytes, block.checkpoint)
        for segment in (*result.segments, *result.spare):
            segment.release()
        recovered = result.recovered
        self.last_op = max(recovered.commit, applied)
        if block.replica_count == 1:
            self.last_op = max(self.last_op, recovered.head)  # damaged or not: it may have been acknowledged
        if uncommitted:
            self.last_op = max(self.last_op, recovered.settled)
        self.uncertain = max(recovered.head - self.last_op, 0)  # ops of this log that are not known to be committed
        if self.last_op > recovered.settled:
            op = recovered.settled + 1
            state = next((entry.state for entry in recovered.entries if entry.op == op), EntryState.ABSENT)
            what = "is damaged on this disk" if state is EntryState.FAULTY else "has not reached this replica yet"
            raise BackupError(
                f"op {op} is committed (so is everything up to op {self.last_op}) and {what}: take the backup from "
                "another replica, or wait until this one has repaired itself",
                op=op,
                commit=self.last_op,
            )
        self._known = {
            segment.base + index: header
            for segment in result.segments
            for index, (header, _) in segment.unwitnessed.items()
            if header is not None
        }
        self._known[recovered.settled] = recovered.settled_header
        self._known[block.checkpoint.op] = block.checkpoint.header
        self.runs: list[Run] = []
        spans = [(segment.number, segment.base, segment.last) for segment in result.segments]
        for segment in reversed(result.below):
            base = self._base(segment.number)
            spans.insert(0, (segment.number, base, spans[0][1] - 1))
        for number, base, last in spans:
            first, last = max(base, self.first_op), min(last, self.last_op)
            if first <= last:
                self.runs.append(Run(number, base, first, self._header(number, base, last)))

    def _read_checkpoint(self) -> bytes | None:
        named = self.block.checkpoint
        if not named.size:
            return None
        content, _ = checkpoints.read(self._disk, named)
        data = checkpoints.encode(content)
        if xxhash.xxh3_128_digest(data) != named.digest:
            raise CheckpointError(f"the checkpoint of op {named.op} was read with other bytes than before", op=named.op)
        return data

    @property
    def last(self) -> Header:
        """Header of last_op; the root when the log is empty."""
        if self.runs:
            return self.runs[-1].last
        return self.block.checkpoint.header  # all before it was trimmed, or nothing was ever appended

    @property
    def view(self) -> int:
        """The highest that the replica knew."""
        return max(self.block.state.view, self.last.view)

    def identity(self, op: int) -> bytes | None:
        """Checksum of the header of an op, by its witness or its entry; None when it is not in the log."""
        if op == self.block.checkpoint.op:
            return self.block.checkpoint.header.checksum
        for run in self.runs:
            if run.first_op <= op <= run.last.op:
                return self._header(run.segment, run.base, op).checksum
        return None

    def size(self, at: int) -> int:
        """Bytes of the journal that the entries of runs[at] take, as far as their witnesses tell."""
        run = self.runs[at]
        first = self._record(run.segment, run.first_op - run.base)
        last = self._record(run.segment, run.last.op - run.base)
        begin = first.offset if first is not None else 0
        end = last.offset + round_up(run.last.size) if last is not None else self.block.segment_bytes
        return max(end - begin, 0)

    def entries(self, at: int, advance: Callable[[int], None] = lambda count: None) -> Iterator[Message]:
        """The verified entries of runs[at]: each is intact, and continues the one before. Raises BackupError."""
        run = self.runs[at]
        before: Header | None = None
        if at > 0:
            before = self.runs[at - 1].last
        elif self.first_op == 1:
            before = root_header(framing.make_header, self.block.cluster)
        elif self.block.checkpoint.op == self.first_op - 1:
            before = self.block.checkpoint.header
        position = before.position + before.count if before is not None else self.first_position
        for message in self._messages(run.segment, run.base, run.first_op, run.last.op, advance):
            header = message.header
            known = self._known.get(header.op)
            if (
                (before is not None and header.parent != before.checksum)
                or header.position != position
                or (known is not None and known.checksum != header.checksum)
            ):
                raise self._damage(run.segment, header.op, "an intact entry stands there that is not of this log")
            yield message
            before, position = header, header.position + header.count
        if before is None or before.checksum != run.last.checksum:
            raise self._damage(run.segment, run.last.op, "its entry and its witness are not the same")

    def _reader(self, segment: int, ahead: int = 0) -> SegmentReader:
        return SegmentReader(self._disk, segment, self.block.segment_bytes, ahead)

    def _base(self, segment: int) -> int:
        """The op of the first entry of a segment, by its witness or by the entry."""
        with self._reader(segment) as files:
            header = files.first_header()
        if header is None:
            raise BackupError(
                f"{journal_name(segment)}: its first entry and the witness of it are damaged on this disk: take the "
                "backup from another replica, or when this one has repaired itself",
                file=journal_name(segment),
                offset=0,
            )
        return header.op

    def _header(self, segment: int, base: int, op: int) -> Header:
        """Of an op, by its witness, which a restart believes as well; without one by its entry."""
        known = self._known.get(op)
        if known is not None:
            return known
        record = self._record(segment, op - base)
        if record is not None and record.header.op == op:
            return record.header
        *_, message = self._messages(segment, base, op, op)
        return message.header

    def _record(self, segment: int, index: int) -> Record | None:
        with self._reader(segment) as files:
            record = files.record(index)
        return record if isinstance(record, Record) else None

    def _messages(
        self, segment: int, base: int, first: int, last: int, advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[Message]:
        """Intact entries of a segment; not compared with anything but their op."""
        place = Place(segment)
        record = self._record(segment, first - base) if first > base else None
        if record is not None and record.header.op == first:
            place = Place(segment, first - base, record.offset)
        with self._reader(segment, READ_AHEAD) as files:
            while (op := base + place.index) <= last:
                offset = place.end or 0
                found = files.entry(offset)
                if isinstance(found, Flaw):
                    raise self._damage(segment, op, _FLAWS[found], offset)
                if found.header.op != op:
                    raise self._damage(segment, op, f"the entry of op {found.header.op} stands there", offset)
                if op >= first:
                    yield found
                advance(round_up(found.header.size))
                place.move(found.header, offset)

    def _damage(self, segment: int, op: int, why: str, offset: int | None = None) -> BackupError:
        place = journal_name(segment) + ("" if offset is None else f" offset {offset}")
        return BackupError(
            f"{place}: op {op}, which is committed, is damaged on this disk: {why}; take the backup from another "
            "replica, or when this one has repaired itself",
            op=op,
            file=journal_name(segment),
            offset=offset,
        )
