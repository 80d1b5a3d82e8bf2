"""The store of one replica: journal, witnesses and superblock behind one interface.

Implements storage.interface.LogStore over any Disk, and is made of rooms, each of which says what it is about:

    submissions        what is handed to the disk, and completes: everything that is written goes through it, in order
    segments           which segments there are, and where the log ends
    ring_writer        small entries, until the journal has them
    journal_writer     entries and witnesses: appended, repaired
    journal_reader     headers, entries, events by their position
    faulty             which ops are damaged
    space              what can certainly be appended, and the next segment
    checkpoint_writer  checkpoints and trims, between the writes of others
    superblock         who this is, what was promised, which checkpoint is in force
    birth              who this is, as long as the superblock is too old to say it
    checks             what the scrubber looks at

Here is what concerns several of them: a start, a view change, what is done when something has become durable.

Memory does not grow with the log: only the segment that is written is kept, and those it has left
as long as writes to them are under way. All others are index.ColdSegments.

May import: errors, types, storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace

from kimberlite.errors import DataExistsError, DiskFullError, StorageError, invariant
from kimberlite.storage import birth, ring, superblock
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage.checkpoint_writer import CheckpointWriter
from kimberlite.storage.checks import Checks
from kimberlite.storage.faulty import FaultyOps
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Disk, Extent, ViewState, Write, unknown_operation
from kimberlite.storage.journal import journal_name, round_up, segment_number, witness_bytes, witness_name
from kimberlite.storage.journal_reader import JournalReader
from kimberlite.storage.journal_writer import JournalWriter
from kimberlite.storage.pieces import Piece
from kimberlite.storage.ring_writer import RingWriter
from kimberlite.storage.scan import scan
from kimberlite.storage.scrub import Checked, Plan
from kimberlite.storage.segments import Segments
from kimberlite.storage.space import Space
from kimberlite.storage.submissions import Submissions
from kimberlite.types import (
    OP_MAX,
    ZERO16,
    Birth,
    Checkpoint,
    Checksum,
    ClusterId,
    EntryState,
    Header,
    HeaderFactory,
    Identity,
    Message,
    Recovered,
    Restored,
    RingMark,
    Room,
    life_of,
    root_header,
)

SEGMENT_BYTES = 64 << 20
SEGMENT_BYTES_MIN = 64 << 10


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
    identity: Identity | None = None,
    ring_nonce: bytes = ZERO16,
) -> None:
    """Create the data of a new replica. The superblock is made last: without it there is no replica.

    before: header of the op before the first one of the log, whose first event has `first_position`: for a log that
    was trimmed elsewhere. The root when not given. identity: who it is; not given: nobody yet, as the first release
    made it. ring_nonce: types.RingMark; data of the first release has no ring.

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
    if ring_nonce != ZERO16 and identity is not None:
        disk.release(disk.create(ring.NAME, ring.RING_BYTES))
    header = before if before is not None else root_header(make_header, cluster)
    state = ViewState(commit=header.op, base=header.op, suffix_head=header.op, suffix=(header,))
    start = Checkpoint(header, first_op=header.op + 1, first_position=first_position)
    block = superblock.Superblock(cluster, replica, replica_count, segment_bytes, state, start)
    if identity is not None:
        block = replace(block, version=superblock.VERSION, identity=identity, ring=RingMark(0, ring_nonce))
    birth.make_file(disk, superblock.NAME, block)


class Store:
    """See the module docstring and storage.interface.LogStore. One thread uses it."""

    def __init__(
        self,
        disk: Disk,
        make_header: HeaderFactory,
        handles_max: int | None = None,
        uses_ring: bool = False,
        ring_slots: int = ring.SLOTS,
    ) -> None:
        """Open. handles_max: segment files that may be open. uses_ring: whether small entries are written to the ring
        of the directory, if it has one, and to how many of its slots; what is in it counts in any case. Raises
        SuperblockError, FormatVersionError. `recover` comes next."""
        self._disk = disk
        self._superblock = superblock.SuperblockFile(disk)
        block = self._superblock.current
        is_old = block.version == superblock.VERSION_UNBORN
        self._birth = birth.BirthFile(disk, block) if is_old else None  # None: the superblock has the identity
        self.cluster, self.replica, self.replica_count = block.cluster, block.replica, block.replica_count
        self.segment_bytes = block.segment_bytes
        self._root = root_header(make_header, block.cluster)
        self._handles = handles = Handles(disk, handles_max)
        self._submissions = Submissions(disk, handles)
        self._faulty = FaultyOps(block.checkpoint.first_op)
        self._segments = Segments(disk, handles, block.segment_bytes, self._faulty.mark)
        self._writer = JournalWriter(disk, handles, self._segments, self._submissions, self._faulty)
        self._reader = JournalReader(
            disk, handles, self._superblock, self._segments, self._faulty, self._writer.in_flight, self._root
        )
        self._ring = RingWriter(disk, self._superblock, self._segments, self._submissions, self._writer, ring_slots)
        self._submissions.drain = self._ring.drain
        self._uses_ring = uses_ring
        self._space = Space(disk, self._segments)
        self._checkpoints = CheckpointWriter(disk, self._superblock, self._submissions, self._segments.begun_by)
        self._checks = Checks(
            disk, handles, self._segments, self._submissions, self._faulty, self._writer, self._reader
        )
        self._is_end_in_doubt = False  # witnesses behind the head say so, until the superblock does

    # Start

    def recover(self) -> Recovered:
        block = self._superblock.current
        restored = self._checkpoints.read()
        start = Checkpoint(self._root) if self._checkpoints.is_lost else block.checkpoint
        state = block.state
        if state.commit > OP_MAX:  # a release that believed any number of a frame kept it: it says nothing
            state = replace(state, commit=state.base)
        shown = ring.overlaid(self._disk, block.ring, block.sequence)
        result = scan(shown, state, self.segment_bytes, start)
        if result.unknown is not None:  # before anything is written
            raise unknown_operation(result.unknown)
        self._segments.take_over(start, result.segments, result.spare)
        self._faulty.ops = result.faulty
        repairs = self._superblock.repair()
        if repairs:
            self._submissions.submit(repairs)
        self._settle_end(result.recovered, shown)
        self._replay(shown)
        self._writer.fix_witnesses(result.fixes)
        if self._uses_ring:
            self._ring.open()
        # An entry is acknowledged only when its witness is durable: also after a restart.
        self._disk.flush()
        self._space.measure()
        self._checkpoints.clean_up(restored)
        birth.remove_leftovers(self._disk, block)
        if restored is None:  # though not readable any more, the checkpoint says how much was committed
            commit = max(result.recovered.commit, block.checkpoint.op)
            return replace(result.recovered, commit=commit)
        return replace(
            result.recovered,
            first_op=start.first_op,
            restored=Restored(start.op, start.positions, restored.machine, restored.sessions, restored.snapshot),
        )

    def _settle_end(self, recovered: Recovered, shown: ring.Overlaid) -> None:
        """Take what is left behind the end of the log away, unless it is all that says that something was there."""
        faulty = (entry.op for entry in recovered.entries if entry.state is EntryState.FAULTY)
        feared = max(faulty, default=0)
        if feared > max(self.head, recovered.view_state.doubt):
            self._replay(shown)  # the next superblock ends what is in the ring
            self._keep_doubt(feared)
        if not self._is_end_in_doubt and self._writer.clear_behind(in_spare=feared > self.head):
            self._disk.flush()  # before any other witness is written

    def _replay(self, shown: ring.Overlaid) -> None:
        """Write into the journal what only the ring has. Until the superblock is written next, the ring has it too."""
        held: set[int] = set()
        for name in shown.units:
            self._submissions.hold(segment_number(name) or 0, held)
        phases = ring.replay(self._disk, shown, self._handles.of)
        if phases:
            self._submissions.submit(phases, held=held)
        else:
            self._handles.let_go(held)

    def _keep_doubt(self, feared: int) -> None:
        """Before anything is mended that may be all that tells of an op: have the superblock say that it is feared. One
        too old to be written before somebody says who this is does it with the first promise."""
        if self._superblock.current.version == superblock.VERSION_UNBORN:
            self._is_end_in_doubt = True
            return
        self._disk.flush()
        block, phases = self._superblock.update(replace(self._superblock.last.state, doubt=feared))
        self._submissions.submit(phases, done=lambda: self._superblock.confirm(block))
        self._disk.flush()

    def begin_life(self, identity: Identity, bits: int) -> Identity:
        """Write down, durably, that a process begins as that identity; what it is from now on, its `life` included.
        After `recover`, and before a frame is sent. bits: 32 random ones. Raises WriteFailedError, DiskFullError."""
        self._disk.flush()
        self._submissions.completions()
        sequence = self._superblock.last.sequence
        if self._birth is not None:
            identity = replace(identity, life=life_of(sequence, bits))
            confirm = self._birth.confirm
            block, phases = self._birth.begin(identity)
        else:
            identity = replace(identity, life=life_of(sequence + 1, bits))
            confirm = self._superblock.confirm
            block, phases = self._superblock.update(identity=identity)
        self._promise_now(phases, lambda: confirm(block))
        return identity

    def add_ring(self, nonce: bytes) -> bool:
        """Give this data a ring, durably, when it has none; whether it has one now. After `recover`, and before a
        frame is sent. Data of the first release gets none, and none is made where there is no space for it. nonce: 16
        secret random bytes. Raises WriteFailedError."""
        current = self._superblock.current
        if current.version != superblock.VERSION or self.ring_mark.nonce != ZERO16:
            return self.ring_mark.nonce != ZERO16
        if self._disk.exists(ring.NAME):  # a crash came before the superblock named it: nothing is in it
            self._disk.remove(ring.NAME)
        try:
            self._disk.release(self._disk.create(ring.NAME, ring.RING_BYTES))
        except DiskFullError:
            return False
        block, phases = self._superblock.update(ring=RingMark(0, nonce))
        self._promise_now(phases, lambda: self._superblock.confirm(block))
        if self._uses_ring:
            self._ring.open()
        return True

    def _promise_now(self, phases: Sequence[Sequence[Write]], confirm: Callable[[], None]) -> None:
        """Write an update of the superblock, and wait for it."""
        self._submissions.promise(phases, done=confirm)
        self._disk.flush()
        self._submissions.completions()

    # Properties

    @property
    def identity(self) -> Identity:
        """Who this is: empty when the data is older than identities are, and nobody has begun a life on it."""
        return self._superblock.current.identity if self._birth is None else self._birth.identity

    @property
    def sequence(self) -> int:
        """Of the superblock in force: it increases with each update, and never goes back on this disk."""
        return self._superblock.current.sequence

    @property
    def ring_mark(self) -> RingMark:
        return self._superblock.current.ring

    @property
    def head(self) -> int:
        return self._segments.head

    @property
    def faulty(self) -> Set[int]:
        return self._faulty.ops

    @property
    def superblock_damaged(self) -> int:
        """Copies of the superblock that could not be read, or failed their checksum, when it was opened."""
        return self._superblock.unreadable_copies

    @property
    def segment_count(self) -> int:
        """Segments that hold a part of the log."""
        return self._segments.count

    @property
    def bytes_used(self) -> int:
        """Bytes of the journal that hold entries, padding and unused ends of segments included."""
        return self._segments.bytes_used

    @property
    def bytes_written(self) -> int:
        """Bytes of entries, witnesses and checkpoints handed to the disk since it was opened."""
        return self._writer.bytes_written + self._ring.bytes_written + self._checkpoints.bytes_written

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
        return 0 if self._checkpoints.is_lost else self._superblock.current.checkpoint.header.op

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
        self._ring.append(token, entries)
        self._space.measure()

    def write_back(self, is_quiet: bool) -> None:
        self._ring.write_back(is_quiet)

    def repair(self, token: int, entries: Sequence[Message]) -> list[int]:
        self._ring.drain()
        return self._writer.repair(token, entries, self.checkpoint.first_op)

    @property
    def room(self) -> Room:
        return self._space.room

    @property
    def disk_full(self) -> DiskFullError | None:
        return self._space.disk_full

    def make_room(self, now: int, needed: bool) -> bool:
        self._checkpoints.try_again(now)
        return self._space.make_room(now, needed)

    def truncate(self, op: int) -> None:
        self._segments.cut(op)
        self._faulty.end_at(op)
        self._space.measure()

    def set_view_state(self, token: int, state: ViewState, identity: Identity | None = None) -> None:
        if identity is not None and self._birth is not None and identity.birth is not Birth.FORMED:
            self._set_unborn(identity)
            identity = None

        def done() -> None:
            self._superblock.confirm(block)
            if self._birth is not None and block.version != superblock.VERSION_UNBORN:
                self._birth.close()
                self._birth = None
            if self._is_end_in_doubt:  # it says what is in doubt from now on, or a newer log has settled it
                self._is_end_in_doubt = False
                self._writer.clear_behind(in_spare=True)

        block, phases = self._superblock.update(state, identity=identity)
        self._submissions.promise(phases, token, done)

    def _set_unborn(self, identity: Identity) -> None:
        """Write down who this is as long as the superblock can not say it."""
        file = self._birth
        invariant(file is not None, "the superblock is too old to say who this is")
        if file is not None:
            block, phases = file.update(identity)
            self._submissions.submit(phases, done=lambda: file.confirm(block))

    def completions(self) -> list[int]:
        tokens = self._submissions.completions()
        while self._ring.went_on:  # the frame that followed may be durable already
            self._ring.went_on = False
            tokens += self._submissions.completions()
        if len(self._segments.open) > 1:
            self._segments.leave()
        self._checkpoints.go_on()
        self._sweep()
        return tokens

    # Checkpoints and trims

    def mark(self, op: int) -> Checkpoint | None:
        last = self._checkpoints.begin_mark(op)
        if last is None or op == last.op:
            return last
        number, index, header, offset = self._segments.place_of(op)
        if header is None or offset is None or (self._segments.open_at(op) is None and self.read(op) is None):
            return None  # its witness alone may be one that an older log has left
        end = offset + round_up(header.size)
        return replace(last, header=header, segment=number, entries=index + 1, end=end)

    def write_checkpoint(self, mark: Checkpoint, machine: int, sessions: bytes, snapshot: bytes) -> None:
        block = self._superblock.current
        identity = block.identity
        is_old = block.version == superblock.VERSION_UNBORN
        content = checkpoints.Content(
            self.cluster,
            mark.header,
            machine,
            sessions,
            snapshot,
            checkpoints.VERSION_UNBORN if is_old else checkpoints.VERSION,
            identity.record if identity.birth is Birth.FORMED else b"",
        )
        self._checkpoints.write(mark, checkpoints.encode(content))

    def trim(self, first_op: int, first_position: int) -> None:
        invariant(first_op <= self.head + 1, "a log begins within itself", first_op=first_op, head=self.head)
        self._checkpoints.trim(first_op, first_position)
        self._faulty.begin_at(first_op)
        self._segments.cold.first_op = first_op

    def _sweep(self) -> None:
        """Let go of what nothing refers to any more, one segment and one file at a time."""
        first_segment = self._superblock.current.checkpoint.first_segment
        if self._segments.cold.first < first_segment:
            self._checkpoints.leave(self._segments.drop_first(first_segment))
        self._checkpoints.sweep()

    # Reading

    def extents(self) -> Iterator[Extent]:
        return self._reader.extents()

    def header(self, op: int) -> Header | None:
        return self._reader.header(op)

    def proven_header(self, op: int) -> Header | None:
        return self._reader.proven_header(op)

    def headers(self, first: int, last: int) -> list[Header]:
        return self._reader.headers(first, last)

    def read(self, op: int, checksum: Checksum | None = None, ahead: int = 0) -> Message | None:
        message = self._ring.bodies.get(op)
        if message is not None:
            return message if checksum is None or message.header.checksum == checksum else None
        return self._reader.read(op, checksum, ahead)

    def find(self, position: int) -> int | None:
        return self._reader.find(position)

    def place_of(self, op: int) -> tuple[int, int, Header | None, int | None]:
        """Number of the segment, index in it, header and offset of an op, as far as they are known."""
        return self._segments.place_of(op)

    # Scrubbing: storage.scrub.Scrubbed

    def check_entry(self, op: int) -> Checked:
        return self._checks.entry(op)

    def plan_check(self, op: int, last: int, bytes_max: int) -> Plan:
        return self._checks.plan(op, last, bytes_max)

    def screen_entry(self, op: int, piece: Piece) -> Checked | None:
        return self._checks.screen(op, piece)

    def check_superblock(self, copy: int) -> Checked:
        return self._checks.superblock(self._superblock, copy)

    def read_checkpoint(self, copy: str, offset: int, length: int) -> bytes | None:
        return checkpoints.read_part(self._disk, self.checkpoint.op, copy, offset, length)

    def rewrite_checkpoint(self, copy: str, data: bytes) -> bool:
        return self._checkpoints.rewrite(copy, data)

    def lose_checkpoint(self, op: int) -> None:
        self._checkpoints.lose(op)

    def close(self) -> None:
        self._ring.drain()
        self._disk.flush()
        self._disk.close()
