"""The store of one replica: journal, witnesses and superblock behind one interface.

Implements storage.interface.LogStore over any Disk. Everything that is written goes through
one queue of submissions, carried out in order:

- entries: phase 1 the entries themselves, phase 2 their witnesses; only then acknowledged;
- the superblock: its four copies one after another, read back when done;
- a checkpoint: its two copies one after another, chunk by chunk, each chunk when the one before is
  durable, so that others' writes get in between; then the superblock, which makes it the one in force.

Memory does not grow with the log: only the last segments are kept, others are read back
from their witness files when needed (a few at a time).

May import: errors, types, _fast, storage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby

import xxhash

from kimberlite.errors import CheckpointError, DataExistsError, DiskFullError, StorageError, invariant
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import superblock
from kimberlite.storage.interface import SECTOR, Disk, Extent, ViewState, Write
from kimberlite.storage.journal import (
    RECORD_BYTES,
    RECORDS_PER_SECTOR,
    ZERO_RECORD,
    Contents,
    Segment,
    encode_record,
    is_zero_record,
    journal_name,
    read_entry,
    records_of,
    round_up,
    segment_number,
    witness_bytes,
    witness_name,
)
from kimberlite.storage.recovery import Entry
from kimberlite.storage.scan import HOT_SEGMENTS, read_image, release, scan
from kimberlite.types import (
    HEADER_SIZE,
    Checkpoint,
    Checksum,
    ClusterId,
    Header,
    HeaderFactory,
    Message,
    Recovered,
    Restored,
    Room,
    root_header,
)

SEGMENT_BYTES = 64 << 20
SEGMENT_BYTES_MIN = 64 << 10
LOADED_MAX = 4  # cold segments kept in memory
PREPARE_AT = 4  # the next segment is made ready when one part of so many of this one is used
RETRY_NS = 1_000_000_000  # until a segment is asked for again for which there was no space


def format_store(
    disk: Disk,
    make_header: HeaderFactory,
    *,
    cluster: ClusterId,
    replica: int,
    replica_count: int,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Create the data of a new replica. The superblock is made last: without it there is no replica.

    Raises DataExistsError, having changed nothing, when there is any data already.
    """
    existing = [name for name in disk.names() if name == superblock.NAME or name.startswith(("journal-", "witness-"))]
    if existing:
        raise DataExistsError(
            f"there is replica data already ({', '.join(sorted(existing)[:3])}): nothing was changed; "
            "choose another directory",
            files=existing,
        )
    if segment_bytes % SECTOR or segment_bytes < SEGMENT_BYTES_MIN:
        raise StorageError(
            f"segments of {segment_bytes} bytes: they must be multiples of {SECTOR}, and at least 64 KiB"
        )
    disk.release(disk.create(journal_name(0), segment_bytes))
    try:
        disk.release(disk.create(witness_name(0), witness_bytes(segment_bytes)))
    except DiskFullError:
        disk.remove(journal_name(0))  # so that it can be tried again when there is space
        raise
    root = root_header(make_header, cluster)
    block = superblock.Superblock(
        cluster, replica, replica_count, segment_bytes, ViewState(suffix=(root,)), Checkpoint(root)
    )
    # Under another name until it is whole: a crash in the middle leaves no half-made replica.
    partial = superblock.NAME + ".new"
    if disk.exists(partial):
        disk.remove(partial)
    file = disk.create(partial, superblock.COPIES * superblock.COPY_BYTES)
    disk.submit(1, superblock.phases(disk, file, block))
    disk.flush()
    disk.completions()
    disk.rename(partial, superblock.NAME)


@dataclass(slots=True)
class _CheckpointWrite:
    """A checkpoint being written. commits: the superblock follows; else damaged copies are made good."""

    mark: Checkpoint
    data: bytes
    copies: list[str]  # still to be written, the first one under way
    commits: bool
    file: int = -1  # of the copy under way
    offset: int = 0
    is_stalled: bool = False  # there was no space for the next copy


class Store:
    """See the module docstring and storage.interface.LogStore."""

    def __init__(self, disk: Disk, make_header: HeaderFactory) -> None:
        """Open. Raises SuperblockError, FormatVersionError. `recover` comes next."""
        self._disk = disk
        self._superblock = superblock.SuperblockFile(disk)
        block = self._superblock.current
        self.cluster, self.replica, self.replica_count = block.cluster, block.replica, block.replica_count
        self.segment_bytes = block.segment_bytes
        self._root = root_header(make_header, block.cluster)
        self._segments: list[Segment] = []
        self._spare: list[Segment] = []
        self._loaded: OrderedDict[int, Segment] = OrderedDict()  # cold segments in memory, by number
        self._faulty: set[int] = set()
        self._head = 0
        self._next_token = 1
        self._pending: dict[int, tuple[int | None, Callable[[], None] | None]] = {}
        self._in_flight: dict[int, int] = {}  # op -> disk token of its write
        self._held: Counter[int] = Counter()  # segment -> groups of writes to it, being made or under way
        self._checkpoint_write: _CheckpointWrite | None = None
        self._floor = (block.checkpoint.first_op, block.checkpoint.first_position)  # of the log, as last trimmed
        self._leftovers: list[str] = []  # files that nothing refers to any more
        self.bytes_written = 0
        self.room = Room(0, self.segment_bytes)
        self.disk_full: DiskFullError | None = None
        self._reserve_at = self._checkpoint_at = 0  # not before that time

    # Start

    def recover(self) -> Recovered:
        block = self._superblock.current
        start, restored, bad_copies = self._read_checkpoint(block.checkpoint)
        result = scan(self._disk, block.state, self.segment_bytes, start)
        self._segments, self._spare = result.segments, result.spare
        self._faulty = result.faulty
        self._head = self._segments[-1].last
        repairs = self._superblock.repair()
        if repairs:
            self._submit(repairs, None, None)
        if result.fixes:
            self._fix_witnesses(result.fixes)
        if result.recovered.head == self._head:
            self._clear_damage_behind()
        # An entry is acknowledged only when its witness is durable: also after a restart.
        self._disk.flush()
        self._measure()
        self._find_leftovers()
        if restored is not None and bad_copies:
            data = checkpoints.encode(restored)
            self._checkpoint_write = _CheckpointWrite(start, data, bad_copies, commits=False)
            self._write_chunk(self._checkpoint_write)
        if restored is None:  # though not readable any more, the checkpoint says how much was committed
            commit = max(result.recovered.commit, block.checkpoint.op)
            return replace(result.recovered, commit=commit)
        return replace(
            result.recovered,
            first_op=start.first_op,
            restored=Restored(start.op, start.positions, restored.machine, restored.sessions, restored.snapshot),
        )

    def _read_checkpoint(self, named: Checkpoint) -> tuple[Checkpoint, checkpoints.Content | None, list[str]]:
        """Where to begin, what was the state there, and which copies of the file are not good.

        When no copy is, and the whole log is still there, it is executed from its beginning.
        """
        if not named.size:
            return named, None, []
        try:
            content, bad = checkpoints.read(self._disk, named)
        except CheckpointError as error:
            if named.first_op > 1:
                raise CheckpointError(
                    f"{error}; the log before op {named.first_op} was trimmed, so that it can not be executed "
                    "again: replace this replica",
                    **error.details,
                ) from error
            return Checkpoint(self._root), None, []
        return named, content, bad

    def _find_leftovers(self) -> None:
        """Files that a crash kept from being removed."""
        current = self.checkpoint
        for name in self._disk.names():
            if name.startswith(checkpoints.PREFIX):
                if name not in [checkpoints.file_name(current.op, copy) for copy in checkpoints.COPIES]:
                    self._leftovers.append(name)
            elif (number := segment_number(name)) is not None and number < current.first_segment:
                self._leftovers.append(name)

    def _clear_damage_behind(self) -> None:
        """Witness records behind the end of the log that a crash has torn: left there they would make
        a torn entry look like a damaged one, later."""
        segment, contents = self._active()
        records = records_of(contents.image, segment.number)
        damaged = [
            index
            for index in range(segment.count, len(records))
            if records[index] is None and not is_zero_record(contents.image, index)
        ]
        for index in damaged:
            contents.image[index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = ZERO_RECORD
        if damaged:
            self._submit([self._witness_writes(segment, contents, damaged[0], damaged[-1])], None, None)

    def _fix_witnesses(self, ops: Sequence[int]) -> None:
        for _, group in groupby(ops, key=lambda op: self._segment_of(op).number):
            writes: list[Write] = []
            for op in group:
                segment, contents, index = self._locate(op)
                self._record(segment, contents, index)
                writes += self._witness_writes(segment, contents, index, index)
            self._submit([[write] for write in writes], None, None)
            self._disk.flush()  # before the segment is let go, for the next one to be read

    # Properties

    @property
    def head(self) -> int:
        return self._head

    @property
    def faulty(self) -> Set[int]:
        return self._faulty

    @property
    def superblock_damaged(self) -> int:
        """Copies of the superblock that could not be read, or failed their checksum, when it was opened."""
        return self._superblock.unreadable_copies

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def bytes_used(self) -> int:
        """Bytes of the journal that hold entries, padding and unused ends of segments included."""
        contents = self._segments[-1].contents
        end = contents.end() if contents is not None else None
        return (len(self._segments) - 1) * self.segment_bytes + (end or 0)

    @property
    def view_state(self) -> ViewState:
        return self._superblock.current.state

    @property
    def checkpoint(self) -> Checkpoint:
        return self._superblock.current.checkpoint

    @property
    def first_op(self) -> int:
        """The lowest op that can be read."""
        return self.checkpoint.first_op

    @property
    def first_position(self) -> int:
        """Position of the first event that can be read."""
        return self.checkpoint.first_position

    # Writing

    def append(self, token: int, entries: Sequence[Message]) -> None:
        invariant(
            entries[0].header.op == self._head + 1,
            "the journal grows by the next op",
            op=entries[0].header.op,
            head=self._head,
        )
        first = self._head + 1
        held: set[int] = set()
        wipes: list[Write] = []
        runs: list[tuple[Segment, list[Message], int]] = []  # segment, entries, offset of the first
        for message in entries:
            size = round_up(message.header.size)
            invariant(
                size <= self.segment_bytes,
                "an entry fits a segment: segments must be larger than the largest frame",
                entry=size,
                segment=self.segment_bytes,
            )
            segment, contents = self._active()
            self._hold(segment, held)
            end = contents.end()
            invariant(end is not None, "the place of the next entry is known", op=message.header.op)
            offset = end or 0
            if offset + size > self.segment_bytes:
                wipes += self._wipe(segment, contents, offset)
                segment, contents, stale = self._next_segment(message.header)
                self._hold(segment, held)
                wipes += stale
                offset = 0
            contents.headers.append(message.header)
            contents.offsets.append(offset)
            segment.count += 1
            self._head += 1
            if runs and runs[-1][0] is segment:
                runs[-1][1].append(message)
            else:
                runs.append((segment, [message], offset))
        entry_writes, witness_writes = wipes, []
        for segment, messages, offset in runs:
            entry_writes.append(self._entries_write(segment, messages, offset))
            contents = self._contents(segment)
            low = messages[0].header.op - segment.base
            high = messages[-1].header.op - segment.base
            for index in range(low, high + 1):
                self._record(segment, contents, index)
            witness_writes += self._witness_writes(segment, contents, low, high)
        self._write_entries(token, range(first, self._head + 1), entry_writes, witness_writes, held)
        self._measure()

    # Room

    def _measure(self) -> None:
        _, contents = self._active()
        end = contents.end()
        rest = self.segment_bytes - end if end is not None else 0  # unknown until a repair has told
        self.room = Room(rest, self.segment_bytes, len(self._spare), self.disk_full is not None)

    def make_room(self, now: int, needed: bool) -> bool:
        write = self._checkpoint_write
        if write is not None and write.is_stalled and now >= self._checkpoint_at:
            self._checkpoint_at = now + RETRY_NS
            write.is_stalled = False
            self._write_chunk(write)
        room = self.room
        used = self.segment_bytes - room.rest
        is_time = not room.spare and PREPARE_AT * used > self.segment_bytes
        if now < self._reserve_at or not (needed or is_time or room.is_exhausted):
            return False
        number = (self._spare or self._segments)[-1].number + 1
        files = {witness_name(number): witness_bytes(self.segment_bytes), journal_name(number): self.segment_bytes}
        for name, size in files.items():
            self._disk.prepare(name, size)
        if not needed and not all(self._disk.is_prepared(name) for name in files):
            return False
        try:
            self._spare.append(self._create_segment(number))
            self.disk_full = None
        except DiskFullError as error:
            self.disk_full = error
            self._reserve_at = now + RETRY_NS
        self._measure()
        return self.room != room

    def repair(self, token: int, entries: Sequence[Message]) -> None:
        held: set[int] = set()
        entry_writes, witness_writes = [], []
        for message in entries:
            header = message.header
            segment, contents, index = self._locate(header.op)
            self._hold(segment, held)
            offset = contents.place(index)
            invariant(
                offset is not None and offset + round_up(header.size) <= self.segment_bytes,
                "the place of a repaired entry is known and holds it",
                op=header.op,
                offset=offset,
            )
            contents.headers[index] = header
            contents.offsets[index] = offset
            self._record(segment, contents, index)
            entry_writes.append(self._entries_write(segment, [message], offset or 0))
            witness_writes += self._witness_writes(segment, contents, index, index)
        self._write_entries(token, [message.header.op for message in entries], entry_writes, witness_writes, held)

    def _hold(self, segment: Segment, held: set[int]) -> None:
        """Keep a segment in memory, and its files open, until the group of writes that `held` belongs to is done."""
        if segment.number not in held:
            held.add(segment.number)
            self._held[segment.number] += 1

    def _write_entries(
        self, token: int, ops: Sequence[int], entry_writes: list[Write], witness_writes: list[Write], held: set[int]
    ) -> None:
        def done() -> None:
            for number in held:
                self._held[number] -= 1
                if not self._held[number]:
                    del self._held[number]
            for op in ops:
                if self._in_flight.get(op) == disk_token:
                    del self._in_flight[op]
                    self._faulty.discard(op)

        disk_token = self._submit([entry_writes, witness_writes], token, done)
        for op in ops:
            self._in_flight[op] = disk_token

    def _entries_write(self, segment: Segment, messages: Sequence[Message], offset: int) -> Write:
        """One write of consecutive entries: each copied once, into aligned zeroed memory."""
        buffer = self._disk.aligned(sum(round_up(message.header.size) for message in messages))
        at = 0
        for message in messages:
            header = message.header
            buffer[at : at + HEADER_SIZE] = header.raw
            if header.size > HEADER_SIZE:
                buffer[at + HEADER_SIZE : at + header.size] = message.body
            at += round_up(header.size)
        self.bytes_written += len(buffer)
        return Write(self._journal(segment), offset, buffer)

    def _record(self, segment: Segment, contents: Contents, index: int) -> None:
        """Enter an entry into the witness image."""
        header, offset = contents.headers[index], contents.offsets[index]
        if header is not None and offset is not None:
            at = index * RECORD_BYTES
            contents.image[at : at + RECORD_BYTES] = encode_record(header, offset, segment.number, index)
            segment.unwitnessed.pop(index, None)

    def _witness_writes(self, segment: Segment, contents: Contents, first: int, last: int) -> list[Write]:
        """The witness sectors that hold the records first..last."""
        start = first // RECORDS_PER_SECTOR * SECTOR
        end = (last // RECORDS_PER_SECTOR + 1) * SECTOR
        buffer = self._disk.aligned(end - start)
        buffer[:] = contents.image[start:end]
        self.bytes_written += end - start
        return [Write(self._witness(segment), start, buffer)]

    def truncate(self, op: int) -> None:
        invariant(op <= self._head, "a journal is cut below its head", op=op, head=self._head)
        while len(self._segments) > 1 and self._segments[-1].base > op:
            segment = self._segments.pop()
            segment.count = 0
            self._loaded.pop(segment.number, None)
            contents = self._contents(segment)
            contents.headers.clear()
            contents.offsets.clear()
            segment.unwitnessed.clear()
            self._spare.insert(0, segment)
        segment = self._segments[-1]
        contents = self._contents(segment)
        self._loaded.pop(segment.number, None)
        keep = op - segment.base + 1
        del contents.headers[keep:]
        del contents.offsets[keep:]
        for index in [index for index in segment.unwitnessed if index >= keep]:
            del segment.unwitnessed[index]
        segment.count = keep
        self._head = op
        self._faulty = {number for number in self._faulty if number <= op}
        self._measure()

    def set_view_state(self, token: int, state: ViewState) -> None:
        block, phases = self._superblock.update(state)
        self._submit(phases, token, lambda: self._superblock.confirm(block))

    # Checkpoints and trims

    def mark(self, op: int) -> Checkpoint | None:
        if self._checkpoint_write is not None or op <= self._superblock.last.checkpoint.op:
            return None
        segment, contents, index = self._locate(op)
        header, end = contents.headers[index], contents.end_of(index)
        if header is None or end is None:
            return None
        return replace(
            self._superblock.last.checkpoint, header=header, segment=segment.number, entries=index + 1, end=end
        )

    def write_checkpoint(self, mark: Checkpoint, machine: int, sessions: bytes, snapshot: bytes) -> None:
        data = checkpoints.encode(checkpoints.Content(self.cluster, mark.header, machine, sessions, snapshot))
        mark = replace(mark, size=len(data), digest=xxhash.xxh3_128_digest(data))
        self._checkpoint_write = _CheckpointWrite(mark, data, list(checkpoints.COPIES), commits=True)
        self._write_chunk(self._checkpoint_write)

    def _write_chunk(self, write: _CheckpointWrite) -> None:
        """Hand the next chunk of a checkpoint to the disk."""
        if write.file < 0:
            name = checkpoints.file_name(write.mark.op, write.copies[0])
            if self._disk.exists(name):  # cut short by a crash, or damaged
                self._disk.remove(name)
            if name in self._leftovers:
                self._leftovers.remove(name)
            try:
                write.file = self._disk.create(name, len(write.data), zeroed=False)
            except DiskFullError:
                # Kept, and tried again in make_room. A trim does not wait for it: it may be what makes room.
                write.is_stalled = True
                self._update_checkpoint(self._superblock.last.checkpoint)
                return
            write.offset = 0
        part = write.data[write.offset : write.offset + checkpoints.CHUNK]
        buffer = self._disk.aligned(len(part))
        buffer[:] = part
        self.bytes_written += len(part)
        self._submit([[Write(write.file, write.offset, buffer)]], None, lambda: self._chunk_written(write))
        write.offset += len(part)

    def _chunk_written(self, write: _CheckpointWrite) -> None:
        if write.offset == len(write.data):
            self._disk.release(write.file)
            write.file = -1
            del write.copies[0]
        if write.copies:
            self._write_chunk(write)
        elif write.commits:
            self._update_checkpoint(write.mark)
        else:
            self._checkpoint_write = None

    def trim(self, first_op: int, first_position: int) -> None:
        if first_op <= self._floor[0]:
            return
        invariant(first_op <= self._head + 1, "a log begins within itself", first_op=first_op, head=self._head)
        self._floor = (first_op, first_position)
        if self._checkpoint_write is None or self._checkpoint_write.is_stalled:  # else its superblock update does it
            self._update_checkpoint(self._superblock.last.checkpoint)

    def _update_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the superblock with that checkpoint, and with the trim when it no longer needs what goes."""
        first_op, first_position = self._floor
        if first_op <= checkpoint.op + 1 and first_op > checkpoint.first_op:
            segment, _, _ = self._locate(first_op)
            checkpoint = replace(
                checkpoint, first_op=first_op, first_position=first_position, first_segment=segment.number
            )
        if checkpoint == self._superblock.last.checkpoint:
            return

        def done() -> None:
            before = self.checkpoint
            self._superblock.confirm(block)
            if self._checkpoint_write is not None and self._checkpoint_write.mark.op == checkpoint.op:
                self._checkpoint_write = None
            if before.size and before.op != checkpoint.op:
                self._leftovers += [checkpoints.file_name(before.op, copy) for copy in checkpoints.COPIES]

        block, phases = self._superblock.update(checkpoint=checkpoint)
        self._submit(phases, None, done)

    def _sweep(self) -> None:
        """Let go of what nothing refers to any more: one file at a time, for removing one takes a while."""
        checkpoint = self.checkpoint
        if self._segments[0].number < checkpoint.first_segment and not self._held[self._segments[0].number]:
            segment = self._segments.pop(0)
            self._loaded.pop(segment.number, None)
            release(segment, self._disk)
            self._faulty = {op for op in self._faulty if op >= checkpoint.first_op}
            self._leftovers += [journal_name(segment.number), witness_name(segment.number)]
        if self._leftovers:
            name = self._leftovers.pop(0)
            if self._disk.exists(name):
                self._disk.remove(name)

    def _submit(self, phases: Sequence[Sequence[Write]], token: int | None, done: Callable[[], None] | None) -> int:
        disk_token = self._next_token
        self._next_token += 1
        self._pending[disk_token] = (token, done)
        self._disk.submit(disk_token, phases)
        return disk_token

    def completions(self) -> list[int]:
        tokens = []
        for disk_token in self._disk.completions():
            token, done = self._pending.pop(disk_token)
            if done is not None:
                done()
            if token is not None:
                tokens.append(token)
        self._sweep()
        return tokens

    # Segments

    def _journal(self, segment: Segment) -> int:
        if segment.journal is None:
            segment.journal = self._disk.open(journal_name(segment.number))
        return segment.journal

    def _witness(self, segment: Segment) -> int:
        if segment.witness is None:
            segment.witness = self._disk.open(witness_name(segment.number))
        return segment.witness

    def _active(self) -> tuple[Segment, Contents]:
        segment = self._segments[-1]
        return segment, self._contents(segment)

    def _wipe(self, segment: Segment, contents: Contents, end: int) -> list[Write]:
        """Writes that leave nothing of an older log behind the last entry of a segment, which goes on
        in the next: what stood there would be taken for what follows, for it too has its parent before it.
        """
        writes = []
        used = len(contents.headers) * RECORD_BYTES
        nothing = bytes(len(contents.image) - used)
        if contents.image[used:] != nothing:
            contents.image[used:] = nothing
            start = used // SECTOR * SECTOR
            buffer = self._disk.aligned(len(contents.image) - start)
            buffer[:] = contents.image[start:]
            writes.append(Write(self._witness(segment), start, buffer))
        if end + SECTOR <= self.segment_bytes:
            writes.append(Write(self._journal(segment), end, self._disk.aligned(SECTOR)))
        return writes

    def _next_segment(self, header: Header) -> tuple[Segment, Contents, list[Write]]:
        """Begin the next segment with the entry of `header`. With the writes that take old witnesses off
        it, so that all it holds agree on which op is its first."""
        if not self._spare:  # whoever heeds `room` does not get here; a full disk is an end here
            self._spare.append(self._create_segment(self._segments[-1].number + 1))
        segment = self._spare.pop(0)
        segment.base, segment.position, segment.count = header.op, header.position, 0
        stale = [
            write
            for write in self._wipe(segment, self._contents(segment), self.segment_bytes)
            if write.file == segment.witness
        ]
        self._segments.append(segment)
        if len(self._segments) > HOT_SEGMENTS + 1:
            self._cool(self._segments[-HOT_SEGMENTS - 2])
        return segment, self._contents(segment), stale

    def _create_segment(self, number: int) -> Segment:
        """The witness first: with the journal the segment exists. One that a crash left alone is empty."""
        if self._disk.exists(witness_name(number)):
            witness = self._disk.open(witness_name(number))
        else:
            witness = self._disk.create(witness_name(number), witness_bytes(self.segment_bytes))
        try:
            journal = self._disk.create(journal_name(number), self.segment_bytes)
        except DiskFullError:
            self._disk.release(witness)
            raise
        return Segment(number, 0, 0, 0, journal, witness, Contents(bytearray(witness_bytes(self.segment_bytes))))

    def _cool(self, segment: Segment) -> None:
        """Keep a segment that is no longer written only as long as it is used."""
        if segment.contents is None:
            return
        self._loaded[segment.number] = segment
        self._loaded.move_to_end(segment.number)
        for number in list(self._loaded)[: max(len(self._loaded) - LOADED_MAX, 0)]:
            if not self._held[number]:
                release(self._loaded.pop(number), self._disk)

    def _contents(self, segment: Segment) -> Contents:
        """What a segment holds; read back from its witness file when it is cold."""
        if segment.contents is None:
            image = read_image(self._disk, self._witness(segment), witness_bytes(self.segment_bytes))
            contents = segment.contents = Contents(image)
            records = records_of(image, segment.number)
            for index in range(segment.count):
                record = records[index] if index < len(records) else None
                if index in segment.unwitnessed:
                    header, offset = segment.unwitnessed[index]
                    contents.headers.append(header)
                    contents.offsets.append(offset)
                elif record is not None and record.header.op == segment.base + index:
                    contents.headers.append(record.header)
                    contents.offsets.append(record.offset)
                else:
                    self._read_without_witness(segment, contents)
            self._cool(segment)
        elif segment.number in self._loaded:
            self._loaded.move_to_end(segment.number)
        return segment.contents

    def _read_without_witness(self, segment: Segment, contents: Contents) -> None:
        """The next entry of a cold segment whose witness is damaged: from the entry itself."""
        op = segment.base + len(contents.headers)
        offset = contents.end()
        header: Header | None = None
        if offset is not None:
            _, message = read_entry(self._disk, self._journal(segment), offset, self.segment_bytes)
            if message is not None and message.header.op == op:
                header = message.header
        if header is None:
            self._faulty.add(op)
        contents.headers.append(header)
        contents.offsets.append(offset)

    def _segment_of(self, op: int) -> Segment:
        return self._segments[bisect_right(self._segments, op, key=lambda segment: segment.base) - 1]

    def _locate(self, op: int) -> tuple[Segment, Contents, int]:
        segment = self._segment_of(op)
        return segment, self._contents(segment), op - segment.base

    # Reading

    def extents(self) -> Iterator[Extent]:
        used = self.bytes_used
        for number, segment in enumerate(self._segments):
            header = self.header(segment.base)
            if segment.count and header is not None:
                yield Extent(segment.base, header.position, header.timestamp, used - number * self.segment_bytes)

    def header(self, op: int) -> Header | None:
        if op == 0:
            return self._root
        if op == self.checkpoint.op:
            return self.checkpoint.header  # also when its entry was trimmed
        if not self.first_op <= op <= self._head:
            return None
        _, contents, index = self._locate(op)
        return contents.headers[index]

    def headers(self, first: int, last: int) -> list[Header]:
        result: list[Header] = []
        for op in range(min(last, self._head), first - 1, -1):
            header = self.header(op)
            if header is None or (result and header.checksum != result[-1].parent):
                break
            result.append(header)
        return result[::-1]

    def read(self, op: int, checksum: Checksum | None = None) -> Message | None:
        if not self.first_op <= op <= self._head or op in self._in_flight or op in self._faulty:
            return None
        segment, contents, index = self._locate(op)
        expected = contents.headers[index]
        offset = contents.place(index)
        if expected is not None and checksum is not None and expected.checksum != checksum:
            return None
        entry, message = Entry.DAMAGED, None
        if offset is not None:
            entry, message = read_entry(self._disk, self._journal(segment), offset, self.segment_bytes)
        wanted = expected.checksum if expected is not None else checksum
        if entry is not Entry.GOOD or message is None or message.header.checksum != wanted:
            self._faulty.add(op)
            return None
        return message

    def find(self, position: int) -> int | None:
        if position < self.first_position:
            return None
        at = bisect_right(self._segments, position, key=lambda segment: segment.position) - 1
        while at >= 0 and self._segments[at].count == 0:
            at -= 1
        if at < 0:
            return None
        segment = self._segments[at]
        contents = self._contents(segment)
        low, high = 0, len(contents.headers) - 1
        while low < high:  # the last header whose position is not above
            middle = (low + high + 1) // 2
            header = contents.headers[middle]
            probe = middle
            while header is None and probe > low:
                probe -= 1
                header = contents.headers[probe]
            if header is not None and header.position <= position:
                low = middle
            else:
                high = middle - 1
        found = contents.headers[low]
        if found is None or not found.position <= position < found.position + found.count:
            return None
        return segment.base + low

    def close(self) -> None:
        self._disk.flush()
        self._disk.close()
