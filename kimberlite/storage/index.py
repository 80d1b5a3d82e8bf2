"""Segments that are no longer written: found, read and repaired without keeping them in memory.

Nothing is stored for each segment. Where one begins is read from its files when it matters, an op
is found by binary search over the numbers of the segments, and what is remembered (beginnings,
indexes, sectors of witness files) is bounded, whatever the length of the log:

- a beginning is what the first witness record and the first entry agree on; where they do not, most of
  the evidence: these two, the other records, and where the segment before ends. That is a guess: it says
  where to look. What is found there counts by its op and its chain, and nothing is written on its
  strength: a repair goes where the hash chain proves that its entry stands (`prove`), which corrects the
  guess, or nowhere; a trim keeps a segment more when it is not certain which one it begins in;
- an index holds the event position at each sector of the witness file and the places of entries
  whose witness is damaged. It is made in one pass over the witness file when it is first needed;
- sectors of the witness files are kept, read and written by `sectors.WitnessSectors`; whether what a record or an entry
  says is of the log, its neighbours tell (`chain`).

May import: errors, types, _fast, storage.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kimberlite._fast import witness
from kimberlite.storage.beginnings import bases_told, first_headers, next_told
from kimberlite.storage.chain import goes_together
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Disk, Write
from kimberlite.storage.journal import (
    RECORD_BYTES,
    RECORDS_PER_SECTOR,
    decode_record,
    end_of,
    put_record,
    read_entry,
    records_of,
    round_up,
    witness_bytes,
)
from kimberlite.storage.log_reader import read_image
from kimberlite.storage.places import Apart, Spot, Start, find_event
from kimberlite.storage.sectors import SECTORS_MAX, UNREADABLE, WitnessSectors
from kimberlite.types import Checksum, Header

INDEX_BYTES = 6 << 20  # of all indexes together: 768 segments of 64 MiB full of single events
AHEAD_RECORDS = 128  # read with one call for who asks for one op after another
STARTS_MAX = 4096  # beginnings of segments kept
_PLACE_BYTES = 128  # what the place of an entry costs whose witness is damaged
_DISTANCE_MAX = 2**32 - 1


@dataclass(slots=True)
class _Run:
    """Ops that are in one segment: from where it begins up to, not including, `end`."""

    number: int
    start: Start
    end: int


NOWHERE = _Run(-1, Start(0, 0), 0)


@dataclass(slots=True)
class _Index:
    start: Start
    count: int  # entries
    positions: memoryview  # see _fast.witness.index_records
    places: dict[int, int | None] = field(default_factory=dict)  # of entries whose witness is damaged

    @property
    def bytes(self) -> int:
        return self.positions.nbytes + _PLACE_BYTES * (len(self.places) + 2)


class ColdSegments:
    """All segments below the one that `end_at` names. One thread uses it.

    damaged: told the op of an entry that neither witness nor entry can tell the identity of.
    """

    def __init__(self, disk: Disk, handles: Handles, segment_bytes: int, damaged: Callable[[int], None]) -> None:
        self._disk = disk
        self._handles = handles
        self._segment_bytes = segment_bytes
        self._damaged = damaged
        self.first = 0  # number of the lowest segment there is
        self.first_op = 1  # of the log: what stands before it says nothing any more
        self._first_start = Start(1, 0)
        self.end = 0
        self._end_start = Start(1, 0)
        self._starts: OrderedDict[int, Start] = OrderedDict()
        self._indexes: OrderedDict[int, _Index] = OrderedDict()
        self._index_bytes = 0
        self._sectors = WitnessSectors(disk, handles, segment_bytes)
        self._apart: dict[int, Apart] = {}  # of segments that have any
        self._bounded = 0, 0, 0  # from one segment up to another and that one's base: found last by `_highest_base`
        self.behind: Callable[[], Header | None] = lambda: None  # the first entry behind the cold ones, when known
        self._last = NOWHERE  # found last by `segment_of`, until a beginning is another

    # What there is

    def begin_at(self, number: int, start: Start | None = None) -> None:
        """The lowest segment is `number`; `start` where its own files say nothing."""
        for gone in range(self.first, min(number, self.end)):
            self.forget(gone)
        self.first, self._last = number, NOWHERE
        if start is not None:
            self._first_start = start

    def end_at(self, number: int, start: Start) -> None:
        """Segments below `number` are cold; that one begins at `start`."""
        for gone in range(number, self.end):
            self.forget(gone)
        self.end, self._end_start, self._last, self._bounded = number, start, NOWHERE, (0, 0, 0)

    def take_over(self, number: int, start: Start | None, apart: Apart) -> None:
        """A segment that is no longer written: where it begins, if that is known, and what its files do not
        tell of its entries."""
        if start is not None:
            self._learn(number, start)
        if apart:
            self._apart[number] = apart

    def _learn(self, number: int, start: Start) -> None:
        self._last = NOWHERE
        self._starts[number] = start
        self._starts.move_to_end(number)
        if len(self._starts) > STARTS_MAX:
            self._starts.popitem(last=False)

    def forget(self, number: int) -> None:
        """A segment will be written again, or is gone."""
        self._last, self._bounded = NOWHERE, (0, 0, 0)
        self._starts.pop(number, None)
        self._apart.pop(number, None)
        index = self._indexes.pop(number, None)
        if index is not None:
            self._index_bytes -= index.bytes
        self._sectors.forget(number)

    def image(self, number: int) -> bytearray:
        """The witness file of a segment, as it is and as it is being made."""
        image = read_image(self._disk, self._handles.witness(number), witness_bytes(self._segment_bytes))
        self._sectors.overlay(number, image)
        return image

    # Where segments begin

    def start(self, number: int) -> Start:
        if number == self._last.number:
            return self._last.start
        if number == self.end:
            return self._end_start
        known = self._starts.get(number)
        if known is None:
            known = self._find_start(number)
            self._learn(number, known)
        else:
            self._starts.move_to_end(number)
        return known

    def _find_start(self, number: int) -> Start:
        if number == self.first == 0 and self._first_start.base == 1:
            return Start(1, self._first_start.position)  # no guess: nothing was ever trimmed
        witnessed, standing = self._first_headers(number)
        if witnessed is not None and witnessed == standing:
            return Start(witnessed.op, witnessed.position)
        # One of them is damaged, or was not written when a newer log began the segment with another op.
        evidence = bases_told(witnessed, standing, self.image(number), number)
        least = self.start(number - 1).base + 1 if number > self.first else 0
        if least:
            evidence.append(least - 1 + len(records_of(self.image(number - 1), number - 1)))
        base = Counter(evidence or [self._first_start.base]).most_common(1)[0][0]
        base = max(min(base, self._highest_base(number)), least)
        for header in (witnessed, standing):
            if header is not None and header.op == base:
                return Start(base, header.position)
        if number == self.first:
            return Start(base, self._first_start.position, certain=False)
        before = self.start(number - 1)
        last, _ = self.record(number - 1, before, base - 1 - before.base)
        if last is not None:
            return Start(base, last.position + last.count)
        return Start(base, before.position, certain=False)

    def _first_headers(self, number: int) -> tuple[Header | None, Header | None]:
        sector = self._sectors.get(number, 0)  # first: to open one file may close another
        return first_headers(self._disk, self._handles.journal(number), sector, number)

    def _told_base(self, number: int) -> int | None:
        """The highest that its own files speak for: what they do not agree on is a bound all the same."""
        witnessed, standing = self._first_headers(number)
        if witnessed is not None and witnessed == standing:
            return witnessed.op
        return max(bases_told(witnessed, standing, self.image(number), number), default=None)

    def _highest_base(self, number: int) -> int:
        if not self._bounded[0] <= number < self._bounded[1]:
            self._bounded = number, *next_told(number, self.end, self._end_start.base, self._told_base)
        _, high, base = self._bounded
        return base - (high - number)

    def segment_of(self, op: int) -> int:
        """The cold segment with `op`, which is above the first one's base and below the end's."""
        last = self._last
        if last.start.base <= op < last.end:
            return last.number
        low, high = self.first, self.end - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.start(middle).base <= op:
                low = middle
            else:
                high = middle - 1
        if low < self.end:
            start, end = self.start(low), self.start(low + 1).base  # may learn a beginning: before `_last` is set
            self._last = _Run(low, start, end)
        return low

    def _segment_at(self, position: int) -> int:
        low, high = self.first, self.end - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.start(middle).position <= position:
                low = middle
            else:
                high = middle - 1
        return low

    # Indexes

    def _count(self, number: int) -> int:
        entries = self.start(number + 1).base - self.start(number).base
        return max(0, min(entries, self._segment_bytes // SECTOR))

    def _index(self, number: int) -> _Index:
        known = self._indexes.get(number)
        if known is not None:
            self._indexes.move_to_end(number)
            return known
        start, count = self.start(number), self._count(number)
        length = round_up(count * RECORD_BYTES)
        image = read_image(self._disk, self._handles.witness(number), length)
        self._sectors.overlay(number, image)
        for at in self._apart.get(number, ()):
            image[at * RECORD_BYTES : (at + 1) * RECORD_BYTES] = bytes(RECORD_BYTES)
        positions, damaged = witness.index_records(image, count, number, start.base, start.position)
        index = _Index(start, count, positions)
        for at in damaged:
            index.places[at] = self._resolve(number, index, image, at)
        self._indexes[number] = index
        self._index_bytes += index.bytes
        while self._index_bytes > INDEX_BYTES and len(self._indexes) > 1:
            _, oldest = self._indexes.popitem(last=False)
            self._index_bytes -= oldest.bytes
        return index

    def _resolve(self, number: int, index: _Index, image: bytearray, at: int) -> int | None:
        """Where an entry stands whose witness is damaged: behind the one before it."""
        header, place = self._apart.get(number, {}).get(at, (None, None))
        if header is not None and place is not None:
            return place
        if at == 0:
            place = 0
        elif at - 1 in self._apart.get(number, ()):
            place = end_of(*self._apart[number][at - 1])
        elif at - 1 in index.places:
            before = self._entry(number, index.start, at - 1, index.places[at - 1])
            place = end_of(before, index.places[at - 1])
        else:
            record = decode_record(image[(at - 1) * RECORD_BYTES : at * RECORD_BYTES], number, at - 1)
            place = end_of(record.header, record.offset) if record is not None else None
        op = index.start.base + at
        is_of_log = at not in self._apart.get(number, ()) and op < self._end_start.base  # a beginning may be a guess
        if is_of_log and self._entry(number, index.start, at, place) is None:
            self._damaged(op)
        return place

    def _entry(self, number: int, start: Start, at: int, place: int | None) -> Header | None:
        """The header of an intact entry at its place; None when there is none."""
        if place is None:
            return None
        _, message = read_entry(self._disk, self._handles.journal(number), place, self._segment_bytes)
        return message.header if message is not None and message.header.op == start.base + at else None

    # Records

    def prefetch(self, first: int, last: int) -> None:
        """The records of ops first..last will be needed: read them with one call for each segment."""
        op = first
        while op <= last and op < self._end_start.base:
            number = self.segment_of(op)
            base, following = self.start(number).base, self.start(number + 1).base
            low, high = (op - base) // RECORDS_PER_SECTOR, (min(last + 1, following) - 1 - base) // RECORDS_PER_SECTOR
            high = min(high, low + SECTORS_MAX // 2)
            if low < high and any((number, sector) not in self._sectors for sector in range(low, high + 1)):
                self._sectors.read_ahead(number, low, high)
            op = max(following, op + 1)

    def record(self, number: int, start: Start, at: int) -> tuple[Header | None, int | None]:
        """Header and offset of an entry, as its witness tells them, or as is known better."""
        if not 0 <= at < self._segment_bytes // SECTOR:
            return None, None
        if number in self._apart and at in self._apart[number]:
            return self._apart[number][at]
        sector = self._sectors.get(number, at // RECORDS_PER_SECTOR)
        where = at % RECORDS_PER_SECTOR * RECORD_BYTES
        record = decode_record(memoryview(sector)[where : where + RECORD_BYTES], number, at)
        if record is None or record.header.op != start.base + at:
            return None, None
        return record.header, record.offset

    def _find(self, number: int, start: Start, at: int) -> tuple[Header | None, int | None]:
        """Header and offset of an entry, from the entry itself when its witness is damaged or not of this log: the
        write of another may have been lost, and an intact entry of the older log stand where its witness says."""
        header, place = self.record(number, start, at)
        if place is None:
            place = self._place(number, start, at)
        elif header is not None and not self._sectors.is_linked(number, at, header.checksum):
            header = header if goes_together(self, number, start, at, header) else None
        return (header or self._chained_entry(number, start, at, place)), place

    def _chained_entry(self, number: int, start: Start, at: int, place: int | None) -> Header | None:
        """The header of an intact entry whose witness is none, unless its neighbours name another: then an older log
        has left it there."""
        header = self._entry(number, start, at, place)
        return header if header is not None and goes_together(self, number, start, at, header) else None

    def _place(self, number: int, start: Start, at: int) -> int | None:
        """Where an entry stands whose witness does not tell it."""
        index = self._index(number)
        if at < index.count and at not in index.places:  # damaged since
            self._indexes.pop(number)
            self._index_bytes -= index.bytes
            index = self._index(number)
        place = index.places.get(at)
        if place is None and at > 0:
            place = end_of(*self.record(number, start, at - 1))  # perhaps repaired since
        return place

    # For the store

    def header(self, op: int) -> Header | None:
        """Header of an op: of its witness, or of its entry when the witness is damaged."""
        number = self.segment_of(op)
        start = self.start(number)
        return self._find(number, start, op - start.base)[0]

    def locate(self, op: int, is_sequential: bool = False) -> tuple[int, int, Header | None, int | None]:
        """Number of the segment, index in it, header and offset of an op, as far as they are known.

        is_sequential: the ops that follow will be asked for next.
        """
        number = self.segment_of(op)
        start = self.start(number)
        at = op - start.base
        if is_sequential:  # the witness of what follows tells, too, whether that is an entry of this log
            is_last = self._last.end == op + 1
            if is_last or (number, (at + 1) // RECORDS_PER_SECTOR) not in self._sectors:
                self.prefetch(op, op + AHEAD_RECORDS - 1)
        return number, at, *self._find(number, start, at)

    def find(self, position: int) -> int | None:
        """The op that holds event `position`, or None when no readable one does."""
        if self.end <= self.first:
            return None
        number = self._segment_at(position)
        while True:
            op = self._find_in(number, position)
            start = self.start(number)
            if op is not None or start.certain or number == self.first:
                return op
            number -= 1

    def _find_in(self, number: int, position: int) -> int | None:
        index = self._index(number)
        start, positions = index.start, index.positions
        distance = min(max(position - start.position, 0), _DISTANCE_MAX)
        beyond = bisect_right(positions, distance)  # the first sector that begins behind it
        low = bisect_left(positions, positions[beyond - 1]) * RECORDS_PER_SECTOR if beyond else 0
        high = min((beyond + 1) * RECORDS_PER_SECTOR, index.count)
        first_beyond = beyond * RECORDS_PER_SECTOR
        if first_beyond < high and first_beyond not in index.places:
            high = first_beyond
        # Witnesses that agree with the position are enough to look by; what is found is asked of its neighbours, too.
        at = find_event(position, low, high - 1, lambda at: self.record(number, start, at)[0])
        found = self._find(number, start, at)[0] if at is not None else None
        if found is None or not found.position <= position < found.position + found.count:
            at = find_event(position, low, high - 1, lambda at: self._find(number, start, at)[0])
        return start.base + at if at is not None else None

    # Repair

    def prove(self, header: Header) -> Spot | None:
        """Where the entry of that header, of this log, stands for certain; None while nothing proves it: when its
        neighbours are repaired, they will. What was guessed of where segments begin is corrected by that."""
        spot = self._proven_by_witness(header) or self._proven_by_the_one_before(header)
        if spot is None or spot.offset + round_up(header.size) > self._segment_bytes:
            return None
        self._correct(spot, header)
        return spot

    def begin_anew(self, headers: Sequence[Header]) -> Spot | None:
        """Where the first entry of the log may be written, and those behind it, when nothing proves where they stood:
        they are all there is before some segment, so that what else stands in the one before that is needed by nobody,
        and they begin that one from now on. None when they are not all, or do not fit there."""
        first, size = headers[0], 0
        for at, last in enumerate(headers):
            size += round_up(last.size)
            if last.op != first.op + at or size > self._segment_bytes:
                return None
            number = self.segment_of(last.op)
            if number < self.end and self._goes_on_in(number + 1, last):
                break
        else:
            return None
        for lower in range(self.first, number):
            if self.start(lower).base > first.op:
                self._correct_start(lower, Start(first.op, first.position, certain=False))
        self._correct_start(number, Start(first.op, first.position))
        return Spot(number, 0, 0)

    def _goes_on_in(self, number: int, last: Header) -> bool:
        """Whether that segment begins with the entry behind `last`."""
        start = self.start(number)
        if start.base != last.op + 1:
            return False
        if number == self.end:
            return start.certain
        header, place = self._find(number, start, 0)
        return header is not None and place == 0 and header.parent == last.checksum

    def _correct(self, spot: Spot, header: Header) -> None:
        """Where segments begin, as far as a proven place tells: this one, and those behind it."""
        number, base, known = spot.number, header.op - spot.at, self.start(spot.number)
        if known.base != base:
            position = min(known.position, header.position) if spot.at else header.position
            self._correct_start(number, Start(base, position, certain=not spot.at))
        for following in range(number + 1, self.end):
            if self.start(following).base > header.op:
                break
            end = header.position + header.count
            self._correct_start(following, Start(header.op + 1, end, certain=False))

    def _correct_start(self, number: int, start: Start) -> None:
        """With it goes what was made by the former one: the indexes of this segment and of the one before."""
        self._learn(number, start)
        for other in (number - 1, number):
            index = self._indexes.pop(other, None)
            if index is not None:
                self._index_bytes -= index.bytes

    def _proven_by_witness(self, header: Header) -> Spot | None:
        """By its own, or by that of the entry behind it, which names it as its parent."""
        number = self.segment_of(header.op)
        start = self.start(number)
        at = header.op - start.base
        own, place = self.record(number, start, at)
        if own is not None and own.checksum == header.checksum and place is not None:
            return Spot(number, at, place)
        after, place = self.record(number, start, at + 1)
        if after is None or place is None or after.parent != header.checksum:
            return None
        offset = place - round_up(header.size)
        return Spot(number, at, offset) if offset >= 0 and bool(offset) == bool(at) else None

    def _proven_by_the_one_before(self, header: Header) -> Spot | None:
        """Behind its parent, wherever that stands; the first entry of the log begins its first segment."""
        op = header.op
        near = self.segment_of(op - 1) if op > self.start(self.first).base else self.first
        for number in (near, near - 1, near + 1):
            if not self.first <= number < self.end:
                continue
            start = self.start(number)
            before, place = self._standing(number, start, op - 1 - start.base, header.parent)
            if before is None or place is None:
                continue
            end = place + round_up(before.size)
            if end + round_up(header.size) <= self._segment_bytes:
                return Spot(number, op - start.base, end)
            return Spot(number + 1, 0, 0) if number + 1 < self.end else None
        is_first = op == self._first_start.base == self.start(self.first).base
        return Spot(self.first, 0, 0) if is_first else None

    def _standing(self, number: int, start: Start, at: int, identity: Checksum) -> tuple[Header | None, int | None]:
        """Header and offset of the entry there if it has that identity, by its witness or by itself: what the witnesses
        around it say, which may be of an older log, does not matter then."""
        header, place = self.record(number, start, at)
        if header is None or header.checksum != identity:
            place = place if place is not None else self._place(number, start, at)
            header = self._entry(number, start, at, place)
        return (header, place) if header is not None and header.checksum == identity else (None, None)

    def rewrite(self, header: Header, spot: Spot) -> Write:
        """The write of the witness of an entry that is written again where `prove` says, to be made when that is
        durable; then `written`. The segment must be held.

        Other records of the same sector stay as they are, damaged ones too. When the sector can not be
        read, those that the hash chain proves are made anew from their entries.
        """
        return self._rewrite_record(spot.number, spot.at, header, spot.offset)

    def segment_begun_by(self, op: int) -> int:
        """The highest segment that certainly begins with `op` or one below it."""
        number = self.segment_of(op)
        while number > self.first and not self._is_certain(number):
            number -= 1
        return number

    def _is_certain(self, number: int) -> bool:
        """Whether the chain goes from the segment before into the beginning of this one, for want of room there, and
        nothing stands there in its place: an older log may have begun this segment with the same op."""
        start, before = self.start(number), self.start(number - 1)
        at = start.base - before.base
        first, place = self._find(number, start, 0)
        last, end = self._find(number - 1, before, at - 1)
        if first is None or place != 0 or last is None or end is None or first.parent != last.checksum:
            return False
        is_full = end + round_up(last.size) + round_up(first.size) > self._segment_bytes
        return is_full and self.record(number - 1, before, at)[0] is None

    def rewrite_witness(self, op: int) -> Write | None:
        """The write of the witness alone of an entry that is intact; None when it is not, after all."""
        number = self.segment_of(op)
        start = self.start(number)
        at = op - start.base
        header, place = self.record(number, start, at)
        if at not in self._apart.get(number, ()):
            place = self._place(number, start, at)
            header = self._chained_entry(number, start, at, place)
        if header is None or place is None:
            return None
        return self._rewrite_record(number, at, header, place)

    def _rewrite_record(self, number: int, at: int, header: Header, place: int) -> Write:
        sector = at // RECORDS_PER_SECTOR
        content = self._sectors.refreshed(number, sector)
        is_unreadable = content == UNREADABLE
        put_record(content, number, at, header, place)
        if number in self._apart:
            self._apart[number].pop(at, None)
        if is_unreadable:
            self._restore(number, at, header, content)
        return self._sectors.write(number, sector, content)

    def _restore(self, number: int, at: int, header: Header, content: bytearray) -> None:
        """Records of an unreadable sector from their entries, as far as the chain from `header` goes."""
        start = self.start(number)
        first = at // RECORDS_PER_SECTOR * RECORDS_PER_SECTOR
        end = min(first + RECORDS_PER_SECTOR, self._count(number))
        for step, indexes in ((-1, range(at - 1, first - 1, -1)), (1, range(at + 1, end))):
            known = header
            for other in indexes:
                _, place = self._find(number, start, other)
                found = self._entry(number, start, other, place)
                if found is None or place is None:
                    break
                lower, upper = (found, known) if step < 0 else (known, found)
                if upper.parent != lower.checksum:
                    break
                put_record(content, number, other, found, place)
                known = found
        for other in range(self._count(number) - first, RECORDS_PER_SECTOR):
            if other >= 0:  # never written
                content[other * RECORD_BYTES : (other + 1) * RECORD_BYTES] = bytes(RECORD_BYTES)

    def written(self, number: int, write: Write | None) -> None:
        """A write of a witness sector that `rewrite` gave is durable."""
        if write is not None:
            self._sectors.written(number, write.offset // SECTOR)
