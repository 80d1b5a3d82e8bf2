"""Which segments a log has, and where it ends.

    cold            no longer written: index.ColdSegments, which keeps nothing for each of them
    open            the last of them is written; the others have writes under way
    spare           files behind the end of the log, to be written next

The log moves over them: an entry that does not fit begins a spare one, a cut gives segments back as spare ones, and
what is no longer written becomes cold. Nothing is written here.

What an older log, or a write that a crash has torn, left behind the end of the log are its *remains*. For each segment
that may be written it is known up to where there may be any: a start looks for them, a cut makes them. They must never
stand where the next entry of the log would: with a witness that is torn beside, they would look like an entry that was
acknowledged and is damaged (journal_writer).

May import: errors, types, storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from kimberlite.errors import invariant
from kimberlite.storage.handles import Handles
from kimberlite.storage.index import ColdSegments
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.journal import Contents, journal_name, witness_bytes, witness_name
from kimberlite.storage.open_segment import OpenSegment
from kimberlite.storage.places import Start
from kimberlite.storage.scan import Segment
from kimberlite.types import Checkpoint, Header


class Spare(NamedTuple):
    """A segment behind the end of the log."""

    number: int
    image: bytearray | None  # what its witness will hold; None: what it holds
    remains: int = 0  # up to here its journal may hold something


class Segments:
    """Of one store. damaged: told of an op that ColdSegments finds damaged. One thread uses it."""

    def __init__(self, disk: Disk, handles: Handles, segment_bytes: int, damaged: Callable[[int], None]) -> None:
        self._disk = disk
        self._handles = handles
        self.segment_bytes = segment_bytes
        self.head = 0  # the last op of the log
        self.open: list[OpenSegment] = []
        self.cold = ColdSegments(disk, handles, segment_bytes, damaged)
        self.cold.behind = self._first_open
        self.spare: list[Spare] = []

    def take_over(self, start: Checkpoint, segments: Sequence[Segment], spare: Sequence[Segment]) -> None:
        """Keep of what a restart has read the segments whose contents it still has."""
        self.cold.first_op = start.first_op
        self.cold.begin_at(start.first_segment, Start(start.first_op, start.first_position, certain=False))
        for segment in reversed(segments):
            if segment.contents is None:
                break
            begin = Start(segment.base, segment.position)
            opened = OpenSegment.of(segment.number, begin, segment.contents)
            opened.remains = self.segment_bytes if self.open else segment.files.remains(opened.end or 0)
            self.open.insert(0, opened)
            self._handles.adopt(segment.number, *segment.files.give_up())
        self.cold.end_at(self.open[0].number, self.open[0].start)
        for segment in segments[: -len(self.open)]:
            segment.release()
            is_known = segment.position or segment.base == 1  # else its first entry is damaged
            begun = Start(segment.base, segment.position) if is_known else None
            self.cold.take_over(segment.number, begun, segment.unwitnessed)
        for segment in spare:
            self.spare.append(Spare(segment.number, None, segment.files.remains(0)))
            segment.release()
        self.head = self.active.last

    # What there is

    @property
    def active(self) -> OpenSegment:
        """The segment that is written."""
        return self.open[-1]

    def _first_open(self) -> Header | None:
        """Of the first entry that is in no cold segment."""
        return self.open[0].header(0) if self.open and self.open[0].count else None

    def open_at(self, op: int) -> OpenSegment | None:
        """The segment of an op, None when it is a cold one."""
        for segment in reversed(self.open):
            if op >= segment.base:
                return segment
        return None

    def begun_by(self, op: int) -> int:
        """Number of the segment that holds an op of the log, or would hold the next one; of one before it where that
        is not certain."""
        segment = self.open_at(op)
        return segment.number if segment is not None else self.cold.segment_begun_by(op)

    def place_of(self, op: int, is_sequential: bool = False) -> tuple[int, int, Header | None, int | None]:
        """Number of the segment, index in it, header and offset of an op, as far as they are known.

        is_sequential: the ops that follow will be asked for next.
        """
        segment = self.open_at(op)
        if segment is None:
            return self.cold.locate(op, is_sequential)
        index = op - segment.base
        return segment.number, index, segment.header(index), segment.place(index)

    def starts(self) -> Iterator[Start]:
        """Where the segments begin that hold a part of the log, the oldest first."""
        cold = (self.cold.start(number) for number in range(self.cold.first, self.open[0].number))
        return chain(cold, (segment.start for segment in self.open if segment.count))

    @property
    def count(self) -> int:
        """Segments that hold a part of the log."""
        return self.active.number + 1 - self.cold.first

    @property
    def bytes_used(self) -> int:
        """Bytes of the journal that hold entries, padding and unused ends of segments included."""
        return (self.count - 1) * self.segment_bytes + (self.active.end or 0)

    # The log moves on

    def next_number(self) -> int:
        """Of the file that is made next."""
        return (self.spare[-1][0] if self.spare else self.active.number) + 1

    def create(self, number: int) -> None:
        """One more to use. The witness first: with the journal the segment exists. One that a crash left
        alone is empty. Raises DiskFullError, WriteFailedError."""
        name = witness_name(number)
        if not self._disk.exists(name):
            self._handles.adopt(number, None, self._disk.create(name, witness_bytes(self.segment_bytes)))
        self._handles.adopt(number, self._disk.create(journal_name(number), self.segment_bytes), None)
        self.spare.append(Spare(number, bytearray()))

    def begin_next(self, header: Header) -> OpenSegment:
        """Begin the next segment with the entry of `header`. Its image still has what an older log left there."""
        if not self.spare:  # whoever heeds `room` does not get here; a full disk is an end here
            self.create(self.next_number())
        number, image, remains = self.spare.pop(0)
        segment = OpenSegment(number, header.op, header.position, remains=remains)
        segment.image = image if image is not None else self.cold.image(number).rstrip(b"\0")
        segment.image += bytes(-len(segment.image) % SECTOR)
        self.open.append(segment)
        return segment

    def leave(self) -> None:
        """Let go of segments that are no longer written."""
        while len(self.open) > 1 and not self._handles.is_held(self.open[0].number):
            segment = self.open.pop(0)
            self.cold.end_at(self.open[0].number, self.open[0].start)
            self.cold.take_over(segment.number, segment.start, segment.apart)

    def drop_first(self, below: int) -> list[str]:
        """Forget the lowest segment if the log begins with segment `below`, a later one; the names of its files, which
        may be removed."""
        number = self.cold.first
        if number >= min(below, self.open[0].number) or self._handles.is_held(number):
            return []
        self._handles.forget(number)
        self.cold.begin_at(number + 1, self.cold.start(number + 1))
        return [journal_name(number), witness_name(number)]

    # The log is cut

    def cut(self, op: int) -> None:
        """The log ends with `op`."""
        invariant(op <= self.head, "a journal is cut below its head", op=op, head=self.head)
        while self.active.base > op and self.active.number > self.cold.first:
            segment = self.open.pop()
            self._give_back(segment.number, segment.image)
            if not self.open:
                self._reopen(op)
        segment = self.active
        end = segment.end if segment.end is not None else self.segment_bytes
        segment.remains = max(segment.remains, end)
        segment.cut(op - segment.base + 1)
        self.head = op

    def _give_back(self, number: int, image: bytearray) -> None:
        """A segment is behind the end of the log from now on."""
        kept = image if self._handles.is_held(number) else None
        self.spare.insert(0, Spare(number, kept, self.segment_bytes))

    def _reopen(self, op: int) -> None:
        """Write again to the cold segment that holds `op`."""
        wanted = self.cold.segment_of(op)
        for number in range(self.spare[0][0] - 1, wanted, -1):
            self._give_back(number, self.cold.image(number))
        start = self.cold.start(wanted)
        contents = Contents(self.cold.image(wanted))
        for number in range(start.base, op + 1):
            _, _, header, offset = self.cold.locate(number)
            contents.headers.append(header)
            contents.offsets.append(offset)
        segment = OpenSegment.of(wanted, start, contents)
        segment.remains = self.segment_bytes
        self.open.append(segment)
        self.cold.end_at(wanted, start)
