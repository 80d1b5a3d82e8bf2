"""The store of one replica: journal, witnesses and superblock behind one interface.

Implements storage.interface.LogStore over any Disk. Everything that is written goes through
one queue of submissions, carried out in order:

- entries: phase 1 the entries themselves, phase 2 their witnesses; only then acknowledged;
- the superblock: its four copies one after another, read back when done;
- checkpoints and trims: storage.checkpoint_writer, between the writes of others.

Memory does not grow with the log: only the segment that is written is kept, and those it has left
as long as writes to them are under way. All others are index.ColdSegments.

May import: errors, types, _fast, storage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from dataclasses import replace
from itertools import chain

from kimberlite.errors import DataExistsError, DiskFullError, StorageError, invariant
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import superblock
from kimberlite.storage.checkpoint_writer import CheckpointWriter
from kimberlite.storage.handles import Handles
from kimberlite.storage.index import ColdSegments, Spot, Start
from kimberlite.storage.interface import RETRY_NS, SECTOR, Disk, Extent, ViewState, Write, unknown_operation
from kimberlite.storage.journal import (
    RECORD_BYTES,
    RECORDS_PER_SECTOR,
    Contents,
    Flaw,
    Segment,
    decode_record,
    examine_entry,
    journal_name,
    read_entry,
    round_up,
    witness_bytes,
    witness_name,
)
from kimberlite.storage.open_segment import OpenSegment
from kimberlite.storage.read_ahead import ReadAhead
from kimberlite.storage.recovery import Entry
from kimberlite.storage.scan import release, scan
from kimberlite.storage.scrub import Checked, Damage
from kimberlite.types import (
    HEADER_SIZE,
    OP_MAX,
    Checkpoint,
    Checksum,
    ClusterId,
    EntryState,
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
PREFETCH_MAX = 1024  # headers that are read with one call
PREPARE_AT = 4  # the next segment is made ready when one part of so many of this one is used


def format_store(
    disk: Disk,
    make_header: HeaderFactory,
    *,
    cluster: ClusterId,
    replica: int,
    replica_count: int,
    segment_bytes: int = SEGMENT_BYTES,
    before: Header | None = None,
    first_position: int = 0,
) -> None:
    """Create the data of a new replica. The superblock is made last: without it there is no replica.

    before: header of the op before the first one of the log, whose first event has `first_position`: for a log that
    was trimmed elsewhere. The root when not given.

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
    header = before if before is not None else root_header(make_header, cluster)
    state = ViewState(commit=header.op, base=header.op, suffix_head=header.op, suffix=(header,))
    start = Checkpoint(header, first_op=header.op + 1, first_position=first_position)
    block = superblock.Superblock(cluster, replica, replica_count, segment_bytes, state, start)
    # Under another name until it is whole: a crash in the middle leaves no half-made replica.
    partial = superblock.NAME + ".new"
    if disk.exists(partial):
        disk.remove(partial)
    file = disk.create(partial, superblock.COPIES * superblock.COPY_BYTES)
    disk.submit(1, superblock.phases(disk, file, block))
    disk.flush()
    disk.completions()
    disk.rename(partial, superblock.NAME)


class Store:
    """See the module docstring and storage.interface.LogStore."""

    def __init__(self, disk: Disk, make_header: HeaderFactory, handles_max: int | None = None) -> None:
        """Open. handles_max: segment files that may be open. Raises SuperblockError, FormatVersionError. `recover`
        comes next."""
        self._disk = disk
        self._superblock = superblock.SuperblockFile(disk)
        block = self._superblock.current
        self.cluster, self.replica, self.replica_count = block.cluster, block.replica, block.replica_count
        self.segment_bytes = block.segment_bytes
        self._root = root_header(make_header, block.cluster)
        self._handles = Handles(disk, handles_max)
        self._open: list[OpenSegment] = []  # the last is written; the others have writes under way
        self._cold = ColdSegments(disk, self._handles, block.segment_bytes, self._mark_faulty)
        self._spare: list[tuple[int, bytearray | None]] = []  # segments to use again; what their witness will hold
        self._faulty: set[int] = set()
        self._head = 0
        self._next_token = 1
        self._pending: dict[int, tuple[int | None, Callable[[], None] | None, Collection[int]]] = {}
        self._in_flight: dict[int, int] = {}  # op -> disk token of its write
        self._rewriting: set[int] = set()  # ops whose witness alone is being written again
        self._checkpoints = CheckpointWriter(
            disk, self._superblock, lambda phases, done: self._submit(phases, None, done), self._segment_begun_by
        )
        self._is_end_in_doubt = False  # witnesses behind the head say so, until the superblock does
        self._ahead = ReadAhead(disk)
        self._entry_bytes = 0
        self.room = Room(0, self.segment_bytes)
        self.disk_full: DiskFullError | None = None
        self._reserve_at = 0  # not before that time

    # Start

    def recover(self) -> Recovered:
        block = self._superblock.current
        restored = self._checkpoints.read()
        start = Checkpoint(self._root) if self._checkpoints.is_lost else block.checkpoint
        state = block.state
        if state.commit > OP_MAX:  # a release that believed any number of a frame kept it: it says nothing
            state = replace(state, commit=state.base)
        result = scan(self._disk, state, self.segment_bytes, start)
        if result.unknown is not None:  # before anything is written
            raise unknown_operation(result.unknown)
        self._take_over(start, result.segments, result.spare)
        self._faulty = result.faulty
        self._head = self._active.last
        repairs = self._superblock.repair()
        if repairs:
            self._submit(repairs, None, None)
        if result.fixes:
            self._fix_witnesses(result.fixes)
        faulty = (entry.op for entry in result.recovered.entries if entry.state is EntryState.FAULTY)
        feared = max(faulty, default=0)
        if feared <= max(self._head, block.state.doubt):
            self._clear_damage_behind()
            if feared > self._head:
                self._clear_damage_in_spare()
        else:
            self._is_end_in_doubt = True
        # An entry is acknowledged only when its witness is durable: also after a restart.
        self._disk.flush()
        self._measure()
        self._checkpoints.clean_up(restored)
        if restored is None:  # though not readable any more, the checkpoint says how much was committed
            commit = max(result.recovered.commit, block.checkpoint.op)
            return replace(result.recovered, commit=commit)
        return replace(
            result.recovered,
            first_op=start.first_op,
            restored=Restored(start.op, start.positions, restored.machine, restored.sessions, restored.snapshot),
        )

    def _take_over(self, start: Checkpoint, segments: list[Segment], spare: list[Segment]) -> None:
        """Keep of what a restart has read the segments whose contents it still has."""
        self._cold.begin_at(start.first_segment, Start(start.first_op, start.first_position, certain=False))
        for segment in reversed(segments):
            if segment.contents is None:
                break
            begin = Start(segment.base, segment.position)
            self._open.insert(0, OpenSegment.of(segment.number, begin, segment.contents))
            self._handles.adopt(segment.number, segment.journal, segment.witness)
        self._cold.end_at(self._open[0].number, self._open[0].start)
        for segment in segments[: -len(self._open)]:
            release(segment, self._disk)
            is_known = segment.position or segment.base == 1  # else its first entry is damaged
            begun = Start(segment.base, segment.position) if is_known else None
            self._cold.take_over(segment.number, begun, segment.unwitnessed)
        for segment in spare:
            release(segment, self._disk)
            self._spare.append((segment.number, None))

    def _mark_faulty(self, op: int) -> None:
        """An entry is damaged: a matter of the log from where a trim lets it begin, be that durable yet or not. What
        goes can not be had from anybody any more."""
        if op >= self._checkpoints.floor_op:
            self._faulty.add(op)

    def _clear_damage_behind(self) -> None:
        """Witness records behind the end of the log that a crash has torn, or that were in doubt: left there they
        would make a torn entry look like a damaged one, later."""
        segment = self._active
        damaged = segment.clear_damage_behind()
        if damaged is not None:
            held: set[int] = set()
            self._hold(segment.number, held)
            self._submit([self._witness_writes(segment, *damaged)], None, None, held)

    def _clear_damage_in_spare(self) -> None:
        """The same in the segments that follow: at the end of a segment they hold what is behind the log."""
        for at, (number, image) in enumerate(self._spare):
            segment = OpenSegment(number, self._head + 1, 0, image if image is not None else self._cold.image(number))
            damaged = segment.clear_damage_behind()
            if damaged is not None:
                self._spare[at] = number, segment.image
                held: set[int] = set()
                self._hold(number, held)
                self._submit([self._witness_writes(segment, *damaged)], None, None, held)

    def _fix_witnesses(self, ops: Sequence[int], done: Callable[[], None] = lambda: None) -> None:
        for op in ops:
            held: set[int] = set()
            segment = self._open_segment(op)
            if segment is None:
                self._fix_cold_witness(op, held, done)
                continue
            index = op - segment.base
            header, offset = segment.header(index), segment.place(index)
            if header is not None and offset is not None:
                segment.put(index, header, offset)
                self._hold(segment.number, held)
                self._submit([self._witness_writes(segment, index, index)], None, done, held)

    def _fix_cold_witness(self, op: int, held: set[int], done: Callable[[], None]) -> None:
        number = self._cold.segment_of(op)
        self._hold(number, held)
        write = self._cold.rewrite_witness(op)
        if write is None:
            self._handles.let_go(held)
            done()
            return

        def written() -> None:
            self._cold.written(number, write)
            done()

        self._submit([[write]], None, written, held)

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
        """Segments that hold a part of the log."""
        return self._active.number + 1 - self._cold.first

    @property
    def bytes_used(self) -> int:
        """Bytes of the journal that hold entries, padding and unused ends of segments included."""
        return (self.segment_count - 1) * self.segment_bytes + (self._active.end or 0)

    @property
    def bytes_written(self) -> int:
        """Bytes of entries, witnesses and checkpoints handed to the disk since it was opened."""
        return self._entry_bytes + self._checkpoints.bytes_written

    @property
    def view_state(self) -> ViewState:
        return self._superblock.current.state

    @property
    def checkpoint(self) -> Checkpoint:
        return self._superblock.current.checkpoint

    @property
    def is_checkpoint_idle(self) -> bool:
        """Whether no copy of a checkpoint is being written, waits to be, or is left to be removed."""
        return self._checkpoints.is_idle

    @property
    def is_checkpoint_stalled(self) -> bool:
        """Whether there was no space for the next copy of a checkpoint."""
        return self._checkpoints.is_stalled

    @property
    def checkpoint_op(self) -> int:
        """Op of the checkpoint that a restart can begin with; 0 when there is none, or none that can be read."""
        return 0 if self._checkpoints.is_lost else self.checkpoint.op

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
        first = self._head + 1
        held: set[int] = set()
        wipes: list[Write] = []
        runs: list[tuple[OpenSegment, list[Message], int]] = []  # segment, entries, offset of the first
        for message in entries:
            op, size = message.header.op, round_up(message.header.size)
            if op != self._head + 1:
                invariant(False, "the journal grows by the next op", op=op, head=self._head)
            invariant(
                size <= self.segment_bytes,
                "an entry fits a segment: segments must be larger than the largest frame",
                entry=size,
                segment=self.segment_bytes,
            )
            segment = self._active
            self._hold(segment.number, held)
            invariant(segment.end is not None, "the place of the next entry is known", op=op)
            offset = segment.end or 0
            if offset + size > self.segment_bytes:
                wipes += self._wipe(segment, offset)
                self._hold(segment.number + 1, held)
                segment, stale = self._next_segment(message.header)
                wipes += stale
                offset = 0
            segment.add(message.header, offset)
            self._head += 1
            if runs and runs[-1][0] is segment:
                runs[-1][1].append(message)
            else:
                runs.append((segment, [message], offset))
        entry_writes, witness_writes = wipes, []
        for segment, messages, offset in runs:
            entry_writes.append(self._entries_write(segment.number, messages, offset))
            low = messages[0].header.op - segment.base
            high = messages[-1].header.op - segment.base
            witness_writes += self._witness_writes(segment, low, high)
        self._write_entries(token, range(first, self._head + 1), entry_writes, witness_writes, held)
        self._measure()

    # Room

    def _measure(self) -> None:
        end = self._active.end
        rest = self.segment_bytes - end if end is not None else 0  # unknown until a repair has told
        self.room = Room(rest, self.segment_bytes, len(self._spare), self.disk_full is not None)

    def make_room(self, now: int, needed: bool) -> bool:
        self._checkpoints.try_again(now)
        room = self.room
        used = self.segment_bytes - room.rest
        is_time = not room.spare and PREPARE_AT * used > self.segment_bytes
        if now < self._reserve_at or not (needed or is_time or room.is_exhausted):
            return False
        number = (self._spare[-1][0] if self._spare else self._active.number) + 1
        files = {witness_name(number): witness_bytes(self.segment_bytes), journal_name(number): self.segment_bytes}
        for name, size in files.items():
            self._disk.prepare(name, size)
        if not needed and not all(self._disk.is_prepared(name) for name in files):
            return False
        try:
            self._create_segment(number)
            self.disk_full = None
        except DiskFullError as error:
            self.disk_full = error
            self._reserve_at = now + RETRY_NS
        self._measure()
        return self.room != room

    def repair(self, token: int, entries: Sequence[Message]) -> list[int]:
        held: set[int] = set()
        entry_writes, witness_writes, cold = [], [], []
        ops, unplaced = [], []
        for message in entries:
            header = message.header
            segment = self._open_segment(header.op)
            spot = self._cold.prove(header) if segment is None else self._place_of_repair(segment, header)
            if spot is None:
                unplaced.append(header.op)
                continue
            self._hold(spot.number, held)
            if segment is None:
                write = self._cold.rewrite(header, spot)
                witness_writes.append(write)
                cold.append((spot.number, write))
            else:
                segment.put(spot.at, header, spot.offset)
                witness_writes += self._witness_writes(segment, spot.at, spot.at)
            entry_writes.append(self._entries_write(spot.number, [message], spot.offset))
            ops.append(header.op)
        if ops:
            self._write_entries(token, ops, entry_writes, witness_writes, held, cold)
        return unplaced

    def _hold(self, number: int, held: set[int]) -> None:
        """Keep a segment's files open, and what is known of it, until the group of writes that `held`
        belongs to is done."""
        if number not in held:
            held.add(number)
            self._handles.hold([number])

    def _place_of_repair(self, segment: OpenSegment, header: Header) -> Spot | None:
        at = header.op - segment.base
        offset = segment.place(at)
        is_known = offset is not None and offset + round_up(header.size) <= self.segment_bytes
        return Spot(segment.number, at, offset or 0) if is_known else None

    def _write_entries(
        self,
        token: int,
        ops: Sequence[int],
        entry_writes: list[Write],
        witness_writes: list[Write],
        held: set[int],
        cold: Sequence[tuple[int, Write]] = (),
    ) -> None:
        """held: the segments written to. cold: those of the witness writes that ColdSegments waits for."""

        def done() -> None:
            for op in ops:
                if self._in_flight.get(op) == disk_token:
                    del self._in_flight[op]
                    self._faulty.discard(op)
            for number, write in cold:
                self._cold.written(number, write)

        disk_token = self._submit([entry_writes, witness_writes], token, done, held)
        for op in ops:
            self._in_flight[op] = disk_token

    def _entries_write(self, number: int, messages: Sequence[Message], offset: int) -> Write:
        """One write of consecutive entries: each copied once, into aligned zeroed memory."""
        buffer = self._disk.aligned(sum(round_up(message.header.size) for message in messages))
        at = 0
        for message in messages:
            header = message.header
            buffer[at : at + HEADER_SIZE] = header.raw
            if header.size > HEADER_SIZE:
                buffer[at + HEADER_SIZE : at + header.size] = message.body
            at += round_up(header.size)
        self._entry_bytes += len(buffer)
        return Write(self._handles.journal(number), offset, buffer)

    def _witness_writes(self, segment: OpenSegment, first: int, last: int) -> list[Write]:
        """The witness sectors that hold the records first..last."""
        start, content = segment.sectors(first, last)
        buffer = self._disk.aligned(len(content))
        buffer[:] = content
        self._entry_bytes += len(content)
        return [Write(self._handles.witness(segment.number), start, buffer)]

    def truncate(self, op: int) -> None:
        invariant(op <= self._head, "a journal is cut below its head", op=op, head=self._head)
        while self._active.base > op and self._active.number > self._cold.first:
            segment = self._open.pop()
            self._spare.insert(0, (segment.number, segment.image if self._handles.is_held(segment.number) else None))
            if not self._open:
                self._reopen(op)
        segment = self._active
        segment.cut(op - segment.base + 1)
        self._head = op
        self._faulty = {number for number in self._faulty if number <= op}
        self._measure()

    def _reopen(self, op: int) -> None:
        """Write again to the cold segment that holds `op`."""
        wanted = self._cold.segment_of(op)
        for number in range(self._spare[0][0] - 1, wanted, -1):
            self._spare.insert(0, (number, self._cold.image(number) if self._handles.is_held(number) else None))
        start = self._cold.start(wanted)
        contents = Contents(self._cold.image(wanted))
        for number in range(start.base, op + 1):
            _, _, header, offset = self._cold.locate(number)
            contents.headers.append(header)
            contents.offsets.append(offset)
        self._open.append(OpenSegment.of(wanted, start, contents))
        self._cold.end_at(wanted, start)

    def set_view_state(self, token: int, state: ViewState) -> None:
        def done() -> None:
            self._superblock.confirm(block)
            if self._is_end_in_doubt:  # it says what is in doubt from now on, or a newer log has settled it
                self._is_end_in_doubt = False
                self._clear_damage_behind()
                self._clear_damage_in_spare()

        block, phases = self._superblock.update(state)
        self._submit(phases, token, done)

    # Checkpoints and trims

    def mark(self, op: int) -> Checkpoint | None:
        last = self._checkpoints.begin_mark(op)
        if last is None or op == last.op:
            return last
        number, index, header, offset = self.place_of(op)
        if header is None or offset is None:
            return None
        end = offset + round_up(header.size)
        return replace(last, header=header, segment=number, entries=index + 1, end=end)

    def write_checkpoint(self, mark: Checkpoint, machine: int, sessions: bytes, snapshot: bytes) -> None:
        content = checkpoints.Content(self.cluster, mark.header, machine, sessions, snapshot)
        self._checkpoints.write(mark, checkpoints.encode(content))

    def trim(self, first_op: int, first_position: int) -> None:
        invariant(first_op <= self._head + 1, "a log begins within itself", first_op=first_op, head=self._head)
        self._checkpoints.trim(first_op, first_position)
        self._faulty = {op for op in self._faulty if op >= self._checkpoints.floor_op}

    def _sweep(self) -> None:
        """Let go of what nothing refers to any more, one segment and one file at a time."""
        checkpoint = self.checkpoint
        number = self._cold.first
        if number < min(checkpoint.first_segment, self._open[0].number) and not self._handles.is_held(number):
            self._handles.forget(number)
            self._cold.begin_at(number + 1, self._cold.start(number + 1))
            self._checkpoints.leave([journal_name(number), witness_name(number)])
        self._checkpoints.sweep()

    def _submit(
        self,
        phases: Sequence[Sequence[Write]],
        token: int | None,
        done: Callable[[], None] | None,
        held: Collection[int] = (),
    ) -> int:
        """held: segments that are let go when the writes are done."""
        disk_token = self._next_token
        self._next_token += 1
        self._pending[disk_token] = (token, done, held)
        self._disk.submit(disk_token, phases)
        return disk_token

    def completions(self) -> list[int]:
        tokens = []
        for disk_token in self._disk.completions():
            token, done, held = self._pending.pop(disk_token)
            self._handles.let_go(held)
            if done is not None:
                done()
            if token is not None:
                tokens.append(token)
        if len(self._open) > 1:
            self._leave()
        self._checkpoints.go_on()
        self._sweep()
        return tokens

    # Segments

    @property
    def _active(self) -> OpenSegment:
        """The segment that is written."""
        return self._open[-1]

    def _open_segment(self, op: int) -> OpenSegment | None:
        """The segment of an op, None when it is a cold one."""
        for segment in reversed(self._open):
            if op >= segment.base:
                return segment
        return None

    def _segment_begun_by(self, op: int) -> int:
        segment = self._open_segment(op)
        return segment.number if segment is not None else self._cold.segment_begun_by(op)

    def _leave(self) -> None:
        """Let go of segments that are no longer written."""
        while len(self._open) > 1 and not self._handles.is_held(self._open[0].number):
            segment = self._open.pop(0)
            self._cold.end_at(self._open[0].number, self._open[0].start)
            self._cold.take_over(segment.number, segment.start, segment.apart)

    def _wipe(self, segment: OpenSegment, end: int) -> list[Write]:
        """Writes that leave nothing of an older log behind the last entry of a segment, which goes on
        in the next: what stood there would be taken for what follows, for it too has its parent before it.
        """
        writes = self._wipe_witness(segment)
        if end + SECTOR <= self.segment_bytes:
            writes.append(Write(self._handles.journal(segment.number), end, self._disk.aligned(SECTOR)))
        return writes

    def _wipe_witness(self, segment: OpenSegment) -> list[Write]:
        wiped = segment.wipe()
        if wiped is None:
            return []
        start, content = wiped
        buffer = self._disk.aligned(len(content))
        buffer[:] = content
        return [Write(self._handles.witness(segment.number), start, buffer)]

    def _next_segment(self, header: Header) -> tuple[OpenSegment, list[Write]]:
        """Begin the next segment with the entry of `header`. With the writes that take old witnesses off
        it, so that all it holds agree on which op is its first."""
        if not self._spare:  # whoever heeds `room` does not get here; a full disk is an end here
            self._create_segment(self._active.number + 1)
        number, image = self._spare.pop(0)
        segment = OpenSegment(number, header.op, header.position)
        segment.image = image if image is not None else self._cold.image(number).rstrip(b"\0")
        segment.image += bytes(-len(segment.image) % SECTOR)
        self._open.append(segment)
        return segment, self._wipe_witness(segment)

    def _create_segment(self, number: int) -> None:
        """One more to use. The witness first: with the journal the segment exists. One that a crash left
        alone is empty."""
        name = witness_name(number)
        if not self._disk.exists(name):
            self._handles.adopt(number, None, self._disk.create(name, witness_bytes(self.segment_bytes)))
        self._handles.adopt(number, self._disk.create(journal_name(number), self.segment_bytes), None)
        self._spare.append((number, bytearray()))

    def place_of(self, op: int, is_sequential: bool = False) -> tuple[int, int, Header | None, int | None]:
        """Number of the segment, index in it, header and offset of an op, as far as they are known.

        is_sequential: the ops that follow will be asked for next.
        """
        segment = self._open_segment(op)
        if segment is None:
            return self._cold.locate(op, is_sequential)
        index = op - segment.base
        return segment.number, index, segment.header(index), segment.place(index)

    # Reading

    def extents(self) -> Iterator[Extent]:
        used = self.bytes_used
        starts = ((number, self._cold.start(number)) for number in range(self._cold.first, self._open[0].number))
        opened = ((segment.number, segment.start) for segment in self._open if segment.count)
        for count, (_, start) in enumerate(chain(starts, opened)):
            header = self.header(start.base)
            if header is not None:
                yield Extent(start.base, header.position, header.timestamp, used - count * self.segment_bytes)

    def header(self, op: int) -> Header | None:
        if op == 0:
            return self._root
        if op == self.checkpoint.op:
            return self.checkpoint.header  # also when its entry was trimmed
        if not self.first_op <= op <= self._head:
            return None
        segment = self._open_segment(op)
        return segment.header(op - segment.base) if segment is not None else self._cold.header(op)

    def proven_header(self, op: int) -> Header | None:
        """The header of an op, unless it does not go together with its neighbours': then nobody can tell which of
        them an older log, or a write that went elsewhere, has left."""
        header, before, after = self.header(op), self.header(op - 1), self.header(op + 1)
        if header is None or (before is not None and header.parent != before.checksum):
            return None
        return header if after is None or after.parent == header.checksum else None

    def headers(self, first: int, last: int) -> list[Header]:
        result: list[Header] = []
        last = min(last, self._head)
        low = max(first, last - PREFETCH_MAX, self.first_op)
        if low < self._open[0].base:
            self._cold.prefetch(low, last)
        for op in range(last, first - 1, -1):
            header = self.header(op)
            if header is None or (result and header.checksum != result[-1].parent):
                break
            result.append(header)
        return result[::-1]

    def read(self, op: int, checksum: Checksum | None = None, ahead: int = 0) -> Message | None:
        if not self.first_op <= op <= self._head or op in self._in_flight or op in self._faulty:
            return None
        try:
            return self._read(op, checksum, ahead)
        except DiskFullError:  # no descriptor for its file: nothing is known to be wrong with it
            return None

    def _read(self, op: int, checksum: Checksum | None, ahead: int) -> Message | None:
        number, _, expected, offset = self.place_of(op, is_sequential=ahead > 0)
        if expected is not None and checksum is not None and expected.checksum != checksum:
            return None
        if ahead and expected is not None and offset is not None:
            segment = self._open_segment(op)
            end = min(offset + ahead, (segment.end or 0) if segment is not None else self.segment_bytes)
            found = self._ahead.entry(number, self._handles.journal(number), offset, expected, end)
            if found is not None:
                return found
        entry, message = Entry.DAMAGED, None
        if offset is not None:
            size = expected.size if expected is not None else SECTOR
            entry, message = read_entry(self._disk, self._handles.journal(number), offset, self.segment_bytes, size)
        wanted = expected.checksum if expected is not None else checksum
        if entry is not Entry.GOOD or message is None or message.header.checksum != wanted:
            self._mark_faulty(op)
            return None
        return message

    # Scrubbing: storage.scrub

    def check_entry(self, op: int) -> Checked:
        """Read an entry and its witness from the disk. A damaged entry is marked faulty; a damaged witness of
        an intact one is written again. What is being written is left alone."""
        if not self.first_op <= op <= self._head or op in self._in_flight or op in self._faulty:
            return Checked()
        number, index, header, offset = self.place_of(op)
        size = round_up(header.size) if header is not None else SECTOR
        found = (
            examine_entry(self._disk, self._handles.journal(number), offset, self.segment_bytes, size)
            if offset is not None
            else Flaw.UNREADABLE
        )
        if not isinstance(found, Message) or header is None or found.header.checksum != header.checksum:
            self._mark_faulty(op)
            return Checked(size, (Damage.ENTRY,))
        first = op - index % RECORDS_PER_SECTOR
        if op in self._rewriting or not self._in_flight.keys().isdisjoint(range(first, first + RECORDS_PER_SECTOR)):
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
        self._fix_witnesses([op], lambda: self._rewriting.discard(op))
        return Checked(size, (Damage.WITNESS,))

    def check_superblock(self, copy: int) -> Checked:
        """Read a copy of the superblock; one that is not as it should be is written again."""
        block = self._superblock
        if block.last is not block.current and block.last.sequence != block.current.sequence:
            return Checked()  # they are being written
        if block.is_good(copy):
            return Checked(superblock.COPY_BYTES)
        self._submit(block.rewrite(copy), None, None)
        return Checked(superblock.COPY_BYTES, (Damage.SUPERBLOCK,))

    def read_checkpoint(self, copy: str, offset: int, length: int) -> bytes | None:
        """A part of a copy of the checkpoint; None when it can not be read."""
        try:
            file = self._disk.open(checkpoints.file_name(self.checkpoint.op, copy))
            try:
                return bytes(self._disk.read(file, offset, length))
            finally:
                self._disk.release(file)
        except OSError:
            return None

    def rewrite_checkpoint(self, copy: str, data: bytes) -> bool:
        """Write a damaged copy of the checkpoint again; False when a checkpoint is being written, or it is another."""
        return self._checkpoints.rewrite(copy, data)

    def lose_checkpoint(self, op: int) -> None:
        """No copy of the checkpoint of `op` could be read: `checkpoint_op` is 0 until there is another."""
        self._checkpoints.lose(op)

    def find(self, position: int) -> int | None:
        if position < self.first_position:
            return None
        for segment in reversed(self._open):
            if segment.count and position >= segment.position:
                op = segment.find(position)
                if op is not None:
                    return op
        return self._cold.find(position)

    def close(self) -> None:
        self._disk.flush()
        self._disk.close()
