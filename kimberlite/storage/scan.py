"""Restart recovery: read the log back, decide what every op is, rebuild the segments.

Walks the log forward from the checkpoint, op by op, and asks for each: which entry may stand here
(`_Walk.acceptable`: the derivation in types.ViewState), what is there (entry, witness),
and what that means (recovery.decide). Entries of cold segments are trusted by their
witness and verified when they are read; the last two segments and everything that is
not known to be committed are verified whole.

May import: errors, types, storage.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kimberlite.errors import DataMissingError
from kimberlite.storage.interface import SECTOR, Disk, is_known
from kimberlite.storage.journal import (
    RECORD_BYTES,
    RECORDS_PER_SECTOR,
    Contents,
    Record,
    is_zero_record,
    journal_name,
    read_entry,
    records_of,
    round_up,
    witness_name,
)
from kimberlite.storage.log_reader import SegmentReader, journal_numbers
from kimberlite.storage.recovery import Decision, Entry, Place, Witness, decide
from kimberlite.types import Checkpoint, Checksum, EntryState, Header, Recovered, RecoveredEntry, ViewState

HOT_SEGMENTS = 2  # verified whole at every start
HOT_OPS = 64  # below the commit number: more than a pipeline


@dataclass(slots=True)
class Segment:
    """A segment: where its log begins, and its contents while they are in memory."""

    files: SegmentReader
    base: int = 0  # op of index 0
    count: int = 0  # entries of the log in it
    position: int = 0  # event position at its beginning
    contents: Contents | None = None
    # By index: header and offset of entries whose witness on the disk does not say what they are. Kept
    # when `contents` is let go, until the witness is written.
    unwitnessed: dict[int, tuple[Header | None, int | None]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.files.number

    @property
    def last(self) -> int:
        """Highest op in the segment; base - 1 when it is empty."""
        return self.base + self.count - 1

    def release(self) -> None:
        """Let go of contents and files; they are read again when needed."""
        self.contents = None
        self.files.close()


@dataclass(slots=True)
class Scan:
    """What a restart found, for the store and for the core."""

    recovered: Recovered
    below: list[Segment]  # of the log, below that of the checkpoint: not read
    segments: list[Segment]  # of the log, from there on, in order; at least one
    spare: list[Segment]  # files beyond the log, to be used again
    fixes: list[int]  # ops whose witness is to be written again
    faulty: set[int]
    identities: dict[int, Header]  # those that the superblock's suffix proves, from it downwards
    unknown: Header | None  # the first entry whose operation this release does not know


@dataclass(slots=True)
class _Found:
    """Evidence for one op at one place."""

    segment: int  # index into the list of segments
    index: int
    offset: int | None
    header: Header | None  # an acceptable one
    entry: Entry | None = None  # None: not read yet
    witness: Witness = Witness.ZERO
    sure: bool = True  # False: it may stand in this segment or in the next, and nothing tells


@dataclass(slots=True)
class _Walk:
    disk: Disk
    state: ViewState
    segment_bytes: int
    start: Checkpoint
    segments: list[Segment]  # from that of the checkpoint's entry on
    identities: dict[int, Header] = field(default_factory=dict)  # those that are known up to suffix_head
    witnessed: int = 0  # highest op that was ever witnessed and is not void
    bases: dict[int, int] = field(default_factory=dict)  # segment -> op of its first entry, from its witnesses
    proven: set[Checksum] = field(default_factory=set)  # identities of the suffix that a witness proves
    is_damaged: bool = False  # some witness can not be read: a missing one proves nothing
    commit: int = 0
    used: int = 0  # the last segment that holds any record
    settled_base: int = field(init=False)  # all up to here was committed and in its place in this journal
    _records: dict[int, list[Record | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settled_base = max(self.state.base, self.start.op)

    # Witness files: at most a few segments' worth in memory

    def thaw(self, at: int) -> Contents:
        """The contents of a segment, its witness file read."""
        segment = self.segments[at]
        if segment.contents is None:
            image = segment.files.image()
            segment.contents = Contents(image)
            # Walked before and let go since, or below the checkpoint: what it holds was decided, by its
            # witness or in spite of it.
            records = self._records[at] = records_of(image, segment.number)
            for index in range(segment.count):
                record = records[index] if index < len(records) else None
                self._enter(segment, segment.contents, record, at == 0 and index < self.start.entries)
            if at == 0:
                self._place_by_chain(segment, segment.contents)
        return segment.contents

    def _enter(self, segment: Segment, contents: Contents, record: Record | None, settled: bool) -> None:
        """The next entry of a segment, by its record. When that is damaged and the checkpoint has settled
        what stands there, by the entry itself."""
        header, offset = (record.header, record.offset) if record is not None else (None, None)
        if record is None and settled:
            offset = contents.end()
            if offset is not None:
                _, message = read_entry(self.disk, segment.files.journal, offset, self.segment_bytes)
                before = contents.headers[-1] if contents.headers else None
                is_chained = message is not None and (before is None or message.header.parent == before.checksum)
                if message is not None and is_chained and message.header.op == segment.base + len(contents.headers):
                    header = message.header  # by its number alone it might be one that an older log has left
        header, offset = segment.unwitnessed.get(len(contents.headers), (header, offset))
        contents.headers.append(header)
        contents.offsets.append(offset)

    def _place_by_chain(self, segment: Segment, contents: Contents) -> None:
        """Entries below the checkpoint that neither record nor the entry before places: down from the checkpoint's
        own, each names the one before it, and begins where that one ends. Nobody may be left to repair what is not
        placed: what stands before it may have been trimmed."""
        places: dict[tuple[Checksum, int], tuple[Header, int]] | None = None
        for index in range(self.start.entries - 2, -1, -1):
            following, end = contents.headers[index + 1], contents.offsets[index + 1]
            if contents.headers[index] is not None or following is None or end is None:
                continue
            if places is None:
                found = segment.files.headers_at_sectors()
                places = {(header.checksum, at + round_up(header.size)): (header, at) for at, header in found}
            place = places.get((following.parent, end))
            if place is not None:
                contents.headers[index], contents.offsets[index] = segment.unwitnessed[index] = place

    def unwitnessed(self) -> list[int]:
        """Ops in the first segment that the checkpoint has settled, and whose place is known otherwise than by their
        witness. What is written of the segment next would be without it."""
        contents, records = self.thaw(0), self.records(0)
        places = zip(contents.headers[: self.start.entries], contents.offsets, strict=False)
        found = []
        for index, (header, offset) in enumerate(places):
            record = records[index] if index < len(records) else None
            told = (record.header.checksum, record.offset) if record is not None else None
            if header is not None and offset is not None and told != (header.checksum, offset):
                found.append(self.segments[0].base + index)
        return found

    def records(self, at: int) -> list[Record | None]:
        self.thaw(at)
        return self._records[at]

    def leave(self, at: int) -> None:
        """The walk has left a segment: only the last HOT_SEGMENTS stay in memory."""
        cold = at - HOT_SEGMENTS
        if cold >= 0:
            self._records.pop(cold, None)
            self.segments[cold].release()

    # Identities

    def prepare(self) -> None:
        """Find the canonical headers up to suffix_head, backward from the suffix: down to the base, and some below it,
        where a write that was lost may have left an entry or a witness of an older log."""
        state, low = self.state, max(self.start.op, self.settled_base - HOT_OPS)
        for header in state.suffix:
            self.identities[header.op] = header
        suffix = {header.checksum for header in state.suffix}
        by_checksum: dict[Checksum, Header] = {}
        for at in range(len(self.segments)):
            for index, record in enumerate(self.records(at)):
                self.used = at
                is_settled = at == 0 and index < self.start.entries  # beyond doubt, whatever has become of it
                if record is None:
                    # Also of a settled one, where those that are not share its sector.
                    if not is_settled or index // RECORDS_PER_SECTOR == self.start.entries // RECORDS_PER_SECTOR:
                        self.is_damaged |= not is_zero_record(self.thaw(at).image, index)
                    continue
                if is_settled:
                    continue
                header = record.header
                self.bases[at] = header.op - index  # the same for all: what was there before is wiped
                if header.checksum in suffix:
                    self.proven.add(header.checksum)
                self.commit = max(self.commit, header.commit)
                if low < header.op < state.suffix[0].op:
                    by_checksum[header.checksum] = header
                if header.view == state.log_view:
                    self.witnessed = max(self.witnessed, header.op)
            self.leave(at)
        self.commit = max(self.commit, state.commit, self.start.op)
        scanned = False
        current = state.suffix[0]
        while current.op - 1 > low:
            before = by_checksum.get(current.parent)
            if before is None and not scanned:
                scanned = True
                by_checksum.update(self._entry_headers())
                before = by_checksum.get(current.parent)
            if before is None:
                break
            self.identities[before.op] = before
            current = before

    def _entry_headers(self) -> dict[Checksum, Header]:
        """Headers that stand at sector boundaries of the last segments: for damaged witnesses."""
        found: dict[Checksum, Header] = {}
        for segment in self.segments[-HOT_SEGMENTS - 1 :]:
            found |= {header.checksum: header for _, header in segment.files.headers_at_sectors()}
        return found

    def acceptable(self, header: Header, op: int, before: Header | None) -> bool:
        """Whether `header` may be the canonical entry of `op`, after `before` (None: unknown)."""
        if header.op != op:
            return False
        expected = self.identities.get(op)
        if expected is not None:
            return expected.checksum == header.checksum
        chained = before is None or header.parent == before.checksum
        if op <= self.settled_base:
            return chained
        if op <= self.state.suffix_head:  # a candidate, if it continues what stands before it
            return before is not None and chained
        return chained and header.view == self.state.log_view

    # Evidence

    def _witness_at(self, at: int, index: int, op: int, before: Header | None) -> tuple[Witness, Record | None]:
        records = self.records(at)
        record = records[index] if index < len(records) else None
        if record is None:
            return (Witness.DAMAGED if self._is_damaged_at(at, index) else Witness.ZERO), None
        return (Witness.MATCH if self.acceptable(record.header, op, before) else Witness.OTHER), record

    def _is_damaged_at(self, at: int, index: int) -> bool:
        """Whether a record that is none is damaged. In a sector that holds a damaged one zeros prove nothing either:
        what came over the sector may have taken the record away."""
        if not self.is_damaged:
            return False
        image, records = self.thaw(at).image, self.records(at)
        first = index // RECORDS_PER_SECTOR * RECORDS_PER_SECTOR
        neighbours = range(first, min(first + RECORDS_PER_SECTOR, len(records)))
        return any(records[near] is None and not is_zero_record(image, near) for near in neighbours)

    def _is_any_damaged(self, at: int) -> bool:
        return any(self._is_damaged_at(at, index) for index in range(0, len(self.records(at)), RECORDS_PER_SECTOR))

    def look(self, op: int, before: Header | None, at: int, index: int, end: int | None) -> _Found:
        """Find the place and the evidence of `op`: next in this segment, or first in the following."""
        places = [(at, index, end)] if index < self.segment_bytes // SECTOR else []
        if at + 1 < len(self.segments) and index > 0:
            places.append((at + 1, 0, 0))
        if not places:
            return _Found(at, index, None, self.identities.get(op), Entry.ZERO, sure=False)
        found: list[_Found] = []
        for place, position, offset in places:
            witness, record = self._witness_at(place, position, op, before)
            if witness is Witness.MATCH and record is not None:
                return _Found(place, position, record.offset, record.header, None, witness)
            found.append(_Found(place, position, offset, None, None, witness))
        for candidate in found:
            if candidate.offset is None:
                candidate.entry = Entry.DAMAGED
                continue
            candidate.entry, message = read_entry(
                self.disk, self.segments[candidate.segment].files.journal, candidate.offset, self.segment_bytes
            )
            if message is not None:
                if self.acceptable(message.header, op, before):
                    candidate.header = message.header
                    return candidate
                candidate.entry = Entry.OTHER
        expected = self.identities.get(op)
        chosen = found[0]
        if len(found) > 1:
            chosen = self._choose_place(found[0], found[1], op, expected, end)
        chosen.header = expected
        return chosen

    def _choose_place(self, here: _Found, beyond: _Found, op: int, expected: Header | None, end: int | None) -> _Found:
        """Where an op stands of which neither entry nor witness is left, at the end of a segment or not."""
        if expected is not None and end is not None:
            return here if end + round_up(expected.size) <= self.segment_bytes else beyond
        first_beyond = self.bases.get(beyond.segment, 0)
        if first_beyond > op:
            return here
        if first_beyond == op and beyond.witness is not Witness.OTHER:  # else an older log began it there
            return beyond
        if beyond.entry is Entry.ZERO and beyond.witness is Witness.ZERO:
            return here
        if here.entry is Entry.ZERO and end is not None:
            # Nothing follows here; what is damaged at the head of the next segment may follow.
            return beyond if op <= self.witnessed or beyond.witness is not Witness.OTHER else here
        unsure = self._one_of(here, beyond, op)
        unsure.sure = False
        return unsure

    def _one_of(self, here: _Found, beyond: _Found, op: int) -> _Found:
        """Nothing tells at which of two places an op would stand: the log ends before it only where both say so."""
        return beyond if self.judge(beyond, op) is Decision.FAULTY else here

    def is_hot(self, found: _Found, op: int) -> bool:
        return found.segment > self.used - HOT_SEGMENTS or op > self.commit - HOT_OPS

    def judge(self, found: _Found, op: int, before: Header | None = None) -> Decision:
        """What the evidence means; reads the entry when the op is hot."""
        if found.entry is None:
            if not self.is_hot(found, op) and not self.is_hole(op):
                return Decision.PRESENT
            segment = self.segments[found.segment]
            found.entry, message = read_entry(self.disk, segment.files.journal, found.offset or 0, self.segment_bytes)
            if message is not None and found.header is not None:
                same = message.header.checksum == found.header.checksum
                found.entry = Entry.GOOD if same else Entry.OTHER
                if not same and self.acceptable(message.header, op, before):
                    found.header = None  # one is of an older log, and what was to come over it was lost: but which?
        if self.is_hole(op):
            place = Place.HOLE
        elif found.header is not None:
            place = Place.DOUBTED if self.is_doubted(op, found.header) else Place.CANONICAL
        elif op <= max(self.witnessed, self.settled_base, self.state.doubt):
            place = Place.UNKNOWN
        else:
            place = Place.TAIL
        return decide(place, found.entry, found.witness).decision

    def is_hole(self, op: int) -> bool:
        """Whether the superblock does not tell which entry `op` is, though it is committed."""
        return self.settled_base < op <= self.state.suffix_head and op not in self.identities

    def is_doubted(self, op: int, header: Header) -> bool:
        """Whether this replica may have acknowledged an entry that its place does not prove. At or below the base it
        had the entry, though a disk that loses writes without a trace may show neither it nor its witness."""
        return op <= max(self.state.doubt, self.settled_base) or header.checksum in self.proven

    def without_place(self, first: int, at: int, index: int) -> list[RecoveredEntry]:
        """What is known of the ops from `first` on, whose place in the journal is lost: it would be at
        (at, index) or behind."""
        last = max(self.state.suffix_head, self.witnessed, self.settled_base, self.state.doubt)
        if self.is_damaged:
            # Any damaged witness may have been one more of them.
            damaged = sum(len(self.records(segment)) for segment in range(at, self.used + 1)) - index
            last = max(last, first - 1 + damaged)
        entries = []
        is_base_known = at == 0 or self.bases.get(at) == first - index
        unknown = range(at + is_base_known, self.used + 1)  # segments in which any record may be that of any op
        may_be_behind = any(self._is_any_damaged(segment) for segment in unknown)
        for op in range(first, last + 1):
            header = self.identities.get(op)
            if header is None:
                kind = EntryState.ABSENT if self.is_hole(op) else EntryState.FAULTY
            elif self.settled_base < op < self.state.suffix[0].op:
                kind = EntryState.ABSENT  # committed, and below all that a view change asks about
            else:
                # In a segment whose first op is known its witness has one place.
                doubted = may_be_behind or self._is_damaged_at(at, index + op - first) or self.is_doubted(op, header)
                kind = EntryState.FAULTY if doubted else EntryState.ABSENT
            entries.append(RecoveredEntry(op, kind, header))
        return entries


def scan(disk: Disk, state: ViewState, segment_bytes: int, start: Checkpoint) -> Scan:
    """Read the journal back from `start` on. Raises DataMissingError when a segment's file is gone."""
    below, segments = _find_segments(disk, segment_bytes, start)
    segments[0].base, segments[0].count = start.op + 1 - start.entries, start.entries
    if start.entries:
        segments[0].unwitnessed[start.entries - 1] = start.header, start.end - round_up(start.header.size)
    walk = _Walk(disk, state, segment_bytes, start, segments)
    walk.prepare()
    first = walk.thaw(0).headers[0] if start.entries else None
    begins_here = start.positions if not start.entries else 0
    segments[0].position = first.position if first is not None else begins_here
    # Below the checkpoint nothing is in doubt, but what has lost its place has to be written again.
    numbered = enumerate(walk.thaw(0).headers, segments[0].base)
    displaced = {number for number, header in numbered if header is None and number >= start.first_op}

    before: Header | None = start.header
    known = start.header  # the last header that is known, for positions
    settled, settled_header = start.op, start.header
    rooted = walk.settled_base
    last_placed = start.op
    entries: list[RecoveredEntry] = []
    fixes = [op for op in walk.unwitnessed() if op >= start.first_op]
    faulty: set[int] = set()
    commit, torn, at, index = max(state.commit, start.op), 0, 0, start.entries
    unknown: Header | None = None
    op = start.op + 1
    while True:
        contents = walk.thaw(at)
        end = contents.end()
        found = walk.look(op, before, at, index, end)
        decision = walk.judge(found, op, before)
        if decision in (Decision.END, Decision.TORN):
            torn = int(decision is Decision.TORN)
            break
        if not found.sure:
            lost = walk.without_place(op, at, index)
            entries += lost
            op += len(lost)
            break
        if found.segment != at:
            walk.leave(at)
            at, index = found.segment, 0
            segments[at].base = op
            segments[at].position = known.position + known.count
            contents = walk.thaw(at)
        contents.headers.append(found.header)
        contents.offsets.append(found.offset)
        if found.witness is not Witness.MATCH:
            segments[at].unwitnessed[index] = (found.header, found.offset)
        segments[at].count += 1
        index += 1
        present = decision in (Decision.PRESENT, Decision.PRESENT_FIX_WITNESS)
        if decision is Decision.PRESENT_FIX_WITNESS:
            fixes.append(op)
        if found.header is not None:
            known = found.header
            if unknown is None and not is_known(known):
                unknown = known
            if present:
                commit = max(commit, found.header.commit)
        is_candidate = walk.is_hole(op) and decision is not Decision.ABSENT
        if present and settled == op - 1 and found.header is not None and not is_candidate:
            settled, settled_header = op, found.header
        else:
            kind = EntryState.PRESENT if present else EntryState.FAULTY
            if decision is Decision.ABSENT:
                kind = EntryState.ABSENT
            if kind is EntryState.FAULTY:
                faulty.add(op)
            entries.append(RecoveredEntry(op, kind, found.header, is_candidate))
        if present or found.witness is Witness.MATCH:
            last_placed = op
            if op == rooted + 1 and found.entry is not Entry.OTHER and not is_candidate:
                rooted = op
        before = found.header
        op += 1
    # What neither entry nor witness places at the end of the journal is appended anew; the faulty among
    # it stay in doubt, also when their sector of the witnesses is written meanwhile.
    doubted = {number for number in faulty if number > last_placed}
    faulty = (faulty - doubted) | displaced
    while segments[at].last > last_placed and segments[at].count:
        tail = walk.thaw(at)
        tail.headers.pop()
        tail.offsets.pop()
        segments[at].count -= 1
        index = segments[at].count
        segments[at].unwitnessed.pop(index, None)
        if segments[at].base + index in doubted and is_zero_record(tail.image, index):
            tail.image[index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = b"\xff" * RECORD_BYTES
        if segments[at].count == 0 and at > 0:
            at -= 1
    walk.thaw(at)  # it is written next, and may have been let go
    recovered = Recovered(
        view_state=state,
        settled=settled,
        settled_header=settled_header,
        head=op - 1,
        written=segments[at].last,
        entries=tuple(entries),
        commit=commit,
        torn=torn,
        faulty=sum(entry.state is EntryState.FAULTY for entry in entries),
        rooted=min(rooted, segments[at].last),
    )
    return Scan(recovered, below, segments[: at + 1], segments[at + 1 :], fixes, faulty, walk.identities, unknown)


def _find_segments(disk: Disk, segment_bytes: int, start: Checkpoint) -> tuple[list[Segment], list[Segment]]:
    """The segments below that of the checkpoint, and from it on."""
    names = set(disk.names())
    first = start.first_segment
    numbers = [number for number in journal_numbers(disk) if number >= first]
    segments = []
    for expected in range(first, max([*numbers, start.segment]) + 1):
        for name in (journal_name(expected), witness_name(expected)):
            if name not in names:
                raise DataMissingError(f"{name} is missing: a part of the log is gone; replace this replica", file=name)
        segments.append(Segment(SegmentReader(disk, expected, segment_bytes)))
    following = first + len(segments)
    if witness_name(following) in names:
        # A crash between the creation of the two files of a segment leaves an empty witness. Any other
        # content says that there was a journal.
        with SegmentReader(disk, following, segment_bytes) as files:
            image = files.image()
        if any(image):
            name = journal_name(following)
            raise DataMissingError(f"{name} is missing: a part of the log is gone; replace this replica", file=name)
    return segments[: start.segment - first], segments[start.segment - first :]


def fill_below(below: list[Segment], following: int, first_op: int) -> None:
    """Find what the segments below the checkpoint hold, for an audit: by their witnesses, or their first entries.

    following: op behind the last of them. first_op: of the log, where its first segment says nothing.
    """
    for segment in reversed(below):
        with segment.files as files:
            base, header = files.base(beyond_gaps=True), files.first_header()
        if header is not None:
            base, segment.position = header.op, header.position
        if base is None and segment is below[0]:
            base = first_op
        if base is not None:
            segment.base, segment.count = base, following - base
            following = base
