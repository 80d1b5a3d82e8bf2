"""Verification of everything that is on one disk, without changing any of it.

`Audit.findings` reads the superblock, the checkpoint and every entry of the log with its witness, each against its own
checksums, the entry before it and the place that follows from the entries before it. What the log is, where
it ends and what there was never acknowledged, is decided by the code of a restart (storage.scan); what that
trusts by its witness alone is read here. Segments behind the end of the log hold nothing of it and are not read.

A finding is harmless when nothing was lost by it and nothing is missing: a restart repairs it from what is on
this very disk, or takes it for what a crash has left. Anything else takes a peer to repair.

Beside a running replica the picture is not of one instant: what changes while it is read, above what was known
to be committed when the audit began, is not called damage.

May import: errors, types, _fast.framing, storage. Memory: one entry, 64 KiB of witnesses, and what a restart takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from kimberlite._fast import framing
from kimberlite.errors import DataMissingError, SuperblockError
from kimberlite.storage import birth, ring, superblock
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.journal import (
    RECORD_BYTES,
    Flaw,
    Record,
    journal_name,
    round_up,
    witness_bytes,
    witness_name,
)
from kimberlite.storage.log_reader import NoRecord, Place, SegmentReader, file_size, journal_numbers
from kimberlite.storage.scan import Scan, fill_below, scan
from kimberlite.types import Checkpoint, EntryState, Header, Message, root_header


class Cause(StrEnum):
    """What is wrong. The words are stable: scripts may rely on them."""

    SUPERBLOCK_LOST = "superblock-lost"  # no two copies agree, of it or of the file `birth`: there is nothing to go by
    CHECKPOINT_LOST = "checkpoint-lost"  # no copy is intact
    COPY_DAMAGED = "copy-damaged"  # one copy of the superblock, of the file `birth` or of the checkpoint
    COPY_OLD = "copy-old"  # one that an update did not reach
    FILE_MISSING = "file-missing"
    FILE_SIZE = "file-size"
    ENTRY_MISSING = "entry-missing"  # zeros where an entry was
    ENTRY_UNREADABLE = "entry-unreadable"  # the disk gives an error, or the file is cut short
    ENTRY_HEADER = "entry-header"  # fails its checksum
    ENTRY_SIZE = "entry-size"
    ENTRY_BODY = "entry-body"
    ENTRY_PADDING = "entry-padding"
    ENTRY_OTHER = "entry-other"  # an intact entry that does not belong there
    ENTRY_CHAIN = "entry-chain"  # intact and witnessed, but it does not continue the entry before
    ENTRY_LOST = "entry-lost"  # nothing is left that tells where it stood
    ENTRY_ABSENT = "entry-absent"  # never written here, though the log goes on above: a peer has it
    ENTRY_TORN = "entry-torn"  # behind the end of the log: its write was under way
    WITNESS_DAMAGED = "witness-damaged"
    WITNESS_UNREADABLE = "witness-unreadable"
    WITNESS_MISSING = "witness-missing"
    WITNESS_OTHER = "witness-other"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. offset: in the file, in bytes; None when it is about the whole file, or
    not known. harmless: see the module docstring."""

    cause: Cause
    file: str
    harmless: bool
    text: str
    segment: int | None = None
    offset: int | None = None
    op: int | None = None


def _compare_copies(
    name: str, copies: list[superblock.Superblock | None], chosen: superblock.Superblock | None
) -> Iterator[Finding]:
    """Those that are damaged or old. chosen: what the copies agree upon, None when they do not."""
    for index, copy in enumerate(copies):
        offset = index * superblock.COPY_BYTES
        if copy is None:
            text = f"copy {index} of the {name} fails its checksum or can not be read"
            yield Finding(Cause.COPY_DAMAGED, name, chosen is not None, text, offset=offset)
        elif chosen is not None and copy.checksum != chosen.checksum:
            text = f"copy {index} of the {name} has sequence {copy.sequence}, not {chosen.sequence}"
            yield Finding(Cause.COPY_OLD, name, True, text, offset=offset)


_FLAWS: dict[Flaw, tuple[Cause, str]] = {
    Flaw.NOTHING: (Cause.ENTRY_MISSING, "there are zeros where an entry stood"),
    Flaw.UNREADABLE: (Cause.ENTRY_UNREADABLE, "the entry can not be read"),
    Flaw.HEADER: (Cause.ENTRY_HEADER, "the header of the entry fails its checksum"),
    Flaw.SIZE: (Cause.ENTRY_SIZE, "the entry would reach beyond the end of its segment"),
    Flaw.BODY: (Cause.ENTRY_BODY, "the body of the entry fails its checksum"),
    Flaw.PADDING: (Cause.ENTRY_PADDING, "the padding behind the entry is not zero"),
}
_NO_WITNESS: dict[NoRecord, tuple[Cause, str]] = {
    NoRecord.DAMAGED: (Cause.WITNESS_DAMAGED, "the witness fails its checksum"),
    NoRecord.UNREADABLE: (Cause.WITNESS_UNREADABLE, "the witness can not be read"),
    NoRecord.MISSING: (Cause.WITNESS_MISSING, "the entry has no witness"),
}
_OTHER_WITNESS = Cause.WITNESS_OTHER, "the witness is that of another entry"
_TRIMMED = "; it was trimmed, and nobody reads it"


@dataclass(frozen=True, slots=True)
class _Span:
    """A segment of the log. base: op of its first entry; count: entries of the log in it. None: not known."""

    number: int
    base: int | None
    count: int | None


@dataclass(slots=True)
class _Place(Place):
    """Where the walk is."""

    op: int | None = None
    before: Header | None = None  # of the entry before; None when it is not known


class Audit:
    """One reading of a disk. advance: called with the number of bytes that are done, of `total_bytes` in all."""

    def __init__(self, disk: Disk, advance: Callable[[int], None] = lambda count: None) -> None:
        self._disk = disk
        self.advance = advance
        self._journals = journal_numbers(disk)
        self._block: superblock.Superblock | None = None
        self._start: Checkpoint | None = None
        self._scan: Scan | None = None
        self._states: dict[int, EntryState] = {}
        self._identities: dict[int, Header] = {}
        self._places: dict[int, tuple[int, int]] = {}  # segment and offset, where no witness says it
        self.total_bytes = superblock.COPIES * superblock.COPY_BYTES + sum(
            self._size(name) for number in self._journals for name in (journal_name(number), witness_name(number))
        )
        self._done = 0
        self.superblock_error: SuperblockError | None = None  # why there is none in force
        self.segments = 0  # of the log, read
        self.entries = 0  # intact ones of the log
        self.entry_bytes = 0

    def findings(self) -> Iterator[Finding]:
        """Everything that is not as it should be, in the order in which it is read.

        Raises FormatVersionError: this release can not judge the data. FileNotFoundError: there is no superblock, so
        no replica. Cost: every entry is read once, every witness twice.
        """
        yield from self._superblock()
        if self._block is None:
            return
        yield from self._birth()
        yield from self._begin()
        yield from self._journal()

    def _reach(self, done: int) -> None:
        if done > self._done:
            self.advance(done - self._done)
            self._done = done

    # Superblock

    def _superblock(self) -> Iterator[Finding]:
        copies = self._read_copies(superblock.NAME)
        self._reach(superblock.COPIES * superblock.COPY_BYTES)
        try:
            self._block = superblock.choose(copies)
        except SuperblockError as error:
            self.superblock_error = error
        yield from _compare_copies(superblock.NAME, copies, self._block)
        if self.superblock_error is not None:
            yield Finding(Cause.SUPERBLOCK_LOST, superblock.NAME, False, str(self.superblock_error))

    def _birth(self) -> Iterator[Finding]:
        """Of data that is not a member's yet: the file that says what the replica is bound to. The log is not lost with
        it, but the replica does not start."""
        if self._required().version != superblock.VERSION_UNBORN or not self._disk.exists(birth.NAME):
            return
        chosen = None
        try:
            file = birth.open_file(self._disk, self._required())
            if file is not None:
                chosen = file.current
                file.close()
        except SuperblockError as error:
            self.superblock_error = error
        yield from _compare_copies(birth.NAME, self._read_copies(birth.NAME), chosen)
        if self.superblock_error is not None:
            yield Finding(Cause.SUPERBLOCK_LOST, birth.NAME, False, str(self.superblock_error))

    def _read_copies(self, name: str) -> list[superblock.Superblock | None]:
        file = self._disk.open(name)
        try:
            return superblock.read_copies(self._disk, file)
        finally:
            self._disk.release(file)

    def _has_moved(self) -> bool:
        """Whether the replica has written its superblock since the audit began."""
        try:
            return superblock.choose(self._read_copies(superblock.NAME)) != self._block
        except SuperblockError:
            return True

    # What a restart makes of it

    def _checkpoint(self) -> Iterator[Finding]:
        """Its copies; `self._start` is where a restart would begin."""
        named = self._required().checkpoint
        self._start = named
        if not named.size:
            return
        self.total_bytes += len(checkpoints.COPIES) * named.size
        bad = 0
        for copy in checkpoints.COPIES:
            why = checkpoints.check_copy(self._disk, named, copy)
            self._reach(self._done + named.size)
            if why:
                bad += 1
                text = f"a copy of the checkpoint of op {named.op}: {why}; it is written again from the other one"
                yield Finding(Cause.COPY_DAMAGED, checkpoints.file_name(named.op, copy), True, text, op=named.op)
        if bad == len(checkpoints.COPIES) and not self._has_moved():
            is_whole = named.first_op == 1
            text = f"no copy of the checkpoint of op {named.op} is intact; " + (
                "a restart executes the log from its beginning" if is_whole else "the log before it was trimmed"
            )
            name = checkpoints.file_name(named.op, checkpoints.COPIES[0])
            yield Finding(Cause.CHECKPOINT_LOST, name, is_whole, text, op=named.op)
            if is_whole:
                self._start = Checkpoint(self._root)

    def _begin(self) -> Iterator[Finding]:
        block = self._required()
        yield from self._checkpoint()
        try:
            self._disk = ring.overlaid(self._disk, block.ring, block.sequence)
            result = scan(self._disk, block.state, block.segment_bytes, self._start or block.checkpoint)
        except DataMissingError as error:
            yield Finding(Cause.FILE_MISSING, str(error.details["file"]), False, str(error))
            return
        self._scan = result
        fill_below(result.below, result.segments[0].base, block.checkpoint.first_op)
        for segment in (*result.segments, *result.spare):
            segment.release()
        for entry in result.recovered.entries:
            self._states[entry.op] = entry.state
            if entry.header is not None:
                self._identities[entry.op] = entry.header
        for op, header in result.identities.items():
            self._identities.setdefault(op, header)
        for segment in result.segments:
            for known, offset in segment.unwitnessed.values():
                if known is not None and offset is not None:
                    self._places[known.op] = segment.number, offset
                    self._identities.setdefault(known.op, known)

    def _required(self) -> superblock.Superblock:
        if self._block is None:
            raise SuperblockError("superblock: no copy is in force", cause="not_found")
        return self._block

    @property
    def _root(self) -> Header:
        return root_header(framing.make_header, self._required().cluster)

    @property
    def _commit(self) -> int:
        """Highest op known to be committed when the audit began."""
        return self._scan.recovered.commit if self._scan is not None else self._required().state.commit

    # The journal

    def _spans(self) -> list[_Span]:
        """The segments of the log, in order."""
        if self._scan is not None:
            return [
                _Span(segment.number, segment.base, segment.count)
                for segment in (*self._scan.below, *self._scan.segments)
            ]
        # A file is missing: what the segments that are left say of themselves.
        bases = {number: self._base(number) for number in self._journals}
        spans = []
        for number in self._journals:
            base, following = bases[number], bases.get(number + 1)
            spans.append(_Span(number, base, following - base if base is not None and following is not None else None))
        return spans

    def _base(self, number: int) -> int | None:
        """The op of the first entry of a segment; all its records agree on it."""
        try:
            with self._files(number) as files:
                return files.base(beyond_gaps=False)
        except FileNotFoundError:
            return None

    def _files(self, number: int) -> SegmentReader:
        return SegmentReader(self._disk, number, self._required().segment_bytes)

    def _journal(self) -> Iterator[Finding]:
        trimmed = self._required().checkpoint.first_segment > 0
        before: Header | None = None if trimmed else self._root
        expected: int | None = None if trimmed else 1
        spans = self._spans()
        for span in spans:
            if expected is not None and span.base is not None and span.base != expected:
                before = None
            place = _Place(span.number, op=span.base if span.base is not None else expected, before=before)
            try:
                yield from self._segment(span, place, is_last=span is spans[-1])
            except FileNotFoundError as error:
                yield from self._judged(Finding(Cause.FILE_MISSING, str(error.filename), False, "the file is missing"))
                place.op = place.before = None
            self.segments += 1
            before, expected = place.before, place.op
        yield from self._lost()
        self._reach(self.total_bytes)

    def _segment(self, span: _Span, place: _Place, is_last: bool) -> Iterator[Finding]:
        with self._files(span.number) as files:
            for name, file, size in (
                (journal_name(span.number), files.journal, files.segment_bytes),
                (witness_name(span.number), files.witness, witness_bytes(files.segment_bytes)),
            ):
                found = self._disk.size(file)
                if found != size:
                    # What of the log was in it is found where it is missed.
                    text = f"the file has {found} bytes instead of {size}"
                    yield Finding(Cause.FILE_SIZE, name, True, text, segment=span.number)
            before = self._done
            while place.index < (span.count if span.count is not None else files.record_count):
                record, offset = files.at(place, lambda header: self._fits(header, place))
                if span.count is None and record is NoRecord.MISSING:
                    break
                yield from self._entry(place, files, record, offset)
                self._reach(before + (place.end or 0))
                place.op = place.op + 1 if place.op is not None else None
            if is_last:
                yield from self._behind_the_end(place, files)
            self._reach(before + self._disk.size(files.journal) + self._disk.size(files.witness))

    def _entry(
        self, place: _Place, files: SegmentReader, record: Record | NoRecord, offset: int | None
    ) -> Iterator[Finding]:
        """One entry, which stands at `offset`, and its witness. Moves the place on to the next."""
        witness = record.header if isinstance(record, Record) and self._fits(record.header, place) else None
        if offset is None and place.op in self._places and self._places[place.op][0] == place.number:
            offset = self._places[place.op][1]
        found = Flaw.UNREADABLE if offset is None else files.entry(offset)
        known = witness or (self._identities.get(place.op) if place.op is not None else None)
        intact = False
        if isinstance(found, Message):
            header = found.header
            if self._fits(header, place) and (witness is None or witness.checksum == header.checksum):
                known, intact = header, True
                self.entries += 1
                self.entry_bytes += round_up(header.size)
                if witness is None:
                    yield from self._judged(self._witness_finding(place, record, harmless=True))
            elif isinstance(record, Record) and record.header.checksum == header.checksum and header.op == place.op:
                known = header
                yield from self._damage(
                    place, offset, Cause.ENTRY_CHAIN, "the entry does not continue the one before it"
                )
            else:
                yield from self._damage(
                    place, offset, Cause.ENTRY_OTHER, f"an intact entry, of op {header.op}, that does not belong there"
                )
        elif offset is None:
            yield from self._damage(place, None, Cause.ENTRY_LOST, "nothing is left that tells where the entry stands")
        else:
            yield from self._damage(place, offset, *_FLAWS[found])
        if not intact and isinstance(record, NoRecord) and record is not NoRecord.MISSING:
            yield from self._judged(self._witness_finding(place, record, harmless=False))
        if place.op is None and known is not None:
            place.op = known.op
        # Which entry a trimmed one was is nobody's business any more, and a witness alone may be of an older log.
        place.before = known if intact or not self._is_trimmed(place) else None
        place.move(known, offset)

    def _fits(self, header: Header, place: _Place) -> bool:
        """Whether an entry may be the one of that place."""
        if place.op is None:
            return True
        identity, state = self._identities.get(place.op), self._required().state
        if identity is not None and identity.checksum != header.checksum:
            return False
        if header.op != place.op or (header.op > state.suffix_head and header.view != state.log_view):
            return False
        return place.before is None or place.before.checksum == header.parent

    def _damage(self, place: _Place, offset: int | None, cause: Cause, text: str) -> Iterator[Finding]:
        name = journal_name(place.number)
        if self._is_trimmed(place):
            text += _TRIMMED
            yield Finding(cause, name, True, text, place.number, offset, place.op)
            return
        if place.op is not None and self._states.get(place.op) is EntryState.ABSENT:
            text = "the entry was never written here; it is fetched from a peer"
            yield Finding(Cause.ENTRY_ABSENT, name, True, text, place.number, offset, place.op)
            return
        yield from self._judged(Finding(cause, name, False, text, place.number, offset, place.op))

    def _is_trimmed(self, place: _Place) -> bool:
        return place.op is not None and place.op < self._required().checkpoint.first_op

    def _witness_finding(self, place: _Place, record: Record | NoRecord, harmless: bool) -> Finding:
        cause, text = _OTHER_WITNESS if isinstance(record, Record) else _NO_WITNESS[record]
        if self._is_trimmed(place):
            text, harmless = text + _TRIMMED, True
        else:
            text += "; the entry is " + ("intact, and its witness is written again" if harmless else "not intact")
        offset = place.index * RECORD_BYTES
        return Finding(cause, witness_name(place.number), harmless, text, place.number, offset, place.op)

    def _judged(self, finding: Finding) -> Iterator[Finding]:
        """A finding; harmless when it is of what a running replica has changed meanwhile."""
        if not finding.harmless and (finding.op is None or finding.op > self._commit) and self._has_moved():
            finding = replace(finding, harmless=True, text=f"{finding.text}; the replica has changed its log meanwhile")
        yield finding

    def _behind_the_end(self, place: _Place, files: SegmentReader) -> Iterator[Finding]:
        if place.end is not None and place.end + SECTOR <= self._disk.size(files.journal):
            found = files.entry(place.end)
            if isinstance(found, Flaw) and found is not Flaw.NOTHING:
                text = "behind the end of the log: a write that was under way, never acknowledged"
                name = journal_name(place.number)
                yield Finding(Cause.ENTRY_TORN, name, True, text, place.number, place.end)
        for index in range(place.index, files.record_count):
            record = files.record(index)
            if record is NoRecord.DAMAGED or record is NoRecord.UNREADABLE:
                text = "behind the end of the log: the witness of no entry"
                name = witness_name(place.number)
                yield Finding(_NO_WITNESS[record][0], name, True, text, place.number, index * RECORD_BYTES)

    def _lost(self) -> Iterator[Finding]:
        """Ops above all that has a place in the journal."""
        if self._scan is None:
            return
        recovered, last = self._scan.recovered, self._scan.segments[-1].number
        for op in range(recovered.written + 1, recovered.head + 1):
            place = _Place(last, end=None, op=op)
            yield from self._damage(place, None, Cause.ENTRY_LOST, "nothing is left that tells where the entry stands")

    def _size(self, name: str) -> int:
        """Of a file; 0 when it is gone."""
        try:
            return file_size(self._disk, name)
        except FileNotFoundError:
            return 0
