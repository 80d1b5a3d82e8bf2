"""The segment that is being written: its witness file in memory, and where the next entry goes.

Headers are decoded from the witness image when asked for: an object for each would take more memory
than the records. What the image does not say (damage, or what an older log has left) is kept apart.

May import: errors, types, _fast, storage.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kimberlite._fast import framing, witness
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import (
    RECORD_BYTES,
    RECORDS_PER_SECTOR,
    ZERO_RECORD,
    Contents,
    decode_record,
    encode_record,
    is_zero_record,
    place_in_record,
    round_up,
)
from kimberlite.storage.places import Apart, Start, find_event
from kimberlite.types import Header

RECENT_MAX = 128  # headers kept as objects: more than a pipeline


@dataclass(slots=True)
class OpenSegment:
    """A segment as far as it belongs to the log: `count` entries from op `base` on."""

    number: int
    base: int
    position: int  # of its first event
    image: bytearray = field(default_factory=bytearray)  # of the witness file, without the zeros behind
    count: int = 0
    end: int | None = 0  # where the next entry would stand; None when that is unknown
    remains: int = 0  # up to here the journal may hold what an older log or a torn write has left: see Segments
    # Header and offset, as far as known, of entries that the image tells nothing of, or something else.
    apart: Apart = field(default_factory=dict)
    _recent: dict[int, Header] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, start: Start, contents: Contents) -> OpenSegment:
        """What a restart or `ColdSegments` has found in a segment."""
        count = len(contents.headers)
        image = bytearray(contents.image.rstrip(b"\0"))
        image += bytes(-len(image) % SECTOR)
        segment = cls(number, start.base, start.position, image, count)
        covered = min(count, len(image) // RECORD_BYTES)
        _, damaged = witness.index_records(image, covered, number, start.base, start.position)
        unclear = {*damaged, *range(covered, count)}
        for index, (header, offset) in enumerate(zip(contents.headers, contents.offsets, strict=True)):
            at = index * RECORD_BYTES
            if (
                index in unclear
                or header is None
                or image[at : at + 16] != header.checksum
                or place_in_record(image, index) != offset
            ):
                segment.apart[index] = header, offset
        segment.end = segment.end_of(count - 1)
        return segment

    @property
    def last(self) -> int:
        """Highest op in the segment; base - 1 when it is empty."""
        return self.base + self.count - 1

    @property
    def start(self) -> Start:
        return Start(self.base, self.position)

    def header(self, index: int) -> Header | None:
        """Of an entry of the log; None when neither entry nor witness tells it."""
        if index in self.apart:
            return self.apart[index][0]
        header = self._recent.get(index)
        return header if header is not None else framing.decode_header(self.image, index * RECORD_BYTES)

    def place(self, index: int) -> int | None:
        """Offset of an entry, from its own record or from the entry before it."""
        offset = self.apart[index][1] if index in self.apart else place_in_record(self.image, index)
        return offset if offset is not None else self.end_of(index - 1)

    def end_of(self, index: int) -> int | None:
        if index < 0:
            return 0
        header = self.header(index)
        offset = self.apart[index][1] if index in self.apart else place_in_record(self.image, index)
        return None if header is None or offset is None else offset + round_up(header.size)

    def find(self, position: int) -> int | None:
        index = find_event(position, 0, self.count - 1, self.header)
        return self.base + index if index is not None else None

    def add(self, header: Header, offset: int) -> None:
        """The next entry, at `end`."""
        index = self.count
        self.count += 1
        self.put(index, header, offset)
        self._recent[index] = header
        self._recent.pop(index - RECENT_MAX, None)
        self.end = offset + round_up(header.size)

    def add_apart(self, header: Header, offset: int) -> None:
        """The same of an entry that is not in the journal yet: the image will tell of it when `put` is called."""
        index = self.count
        self.count += 1
        self.apart[index] = header, offset
        self.end = offset + round_up(header.size)

    def put(self, index: int, header: Header, offset: int) -> None:
        """Enter an entry into the image."""
        at = index * RECORD_BYTES
        if at + RECORD_BYTES > len(self.image):
            self.image += bytes(at // SECTOR * SECTOR + SECTOR - len(self.image))
        self.image[at : at + RECORD_BYTES] = encode_record(header, offset, self.number, index)
        if self.apart:
            self.apart.pop(index, None)
        self._recent.pop(index, None)
        if index == self.count - 1:
            self.end = offset + round_up(header.size)

    def cut(self, count: int) -> None:
        """Only the first `count` entries still belong to the log. What stood behind stays in the image."""
        for index in range(count, self.count):
            self.apart.pop(index, None)
            self._recent.pop(index, None)
        self.count = count
        self.end = self.end_of(count - 1)

    def sectors(self, first: int, last: int) -> tuple[int, bytearray]:
        """Where the sectors begin that hold the records first..last, and their content."""
        start, end = first // RECORDS_PER_SECTOR * SECTOR, (last // RECORDS_PER_SECTOR + 1) * SECTOR
        return start, self.image[start:end]

    def wipe(self) -> tuple[int, bytes] | None:
        """Take what an older log has left behind the last entry out of the image; the sectors that changed."""
        used = self.count * RECORD_BYTES
        # The image may end before the last entry does: where the witnesses of the last ones were lost.
        nothing = bytes(max(len(self.image) - used, 0))
        if self.image[used:] == nothing:
            return None
        self.image[used:] = nothing
        start = used // SECTOR * SECTOR
        changed = bytes(self.image[start:])
        del self.image[round_up(used) :]
        return start, changed

    def clear_damage_behind(self) -> tuple[int, int] | None:
        """Zero the records behind the last entry that are damaged; the first and the last of them."""
        damaged = [
            index
            for index in range(self.count, len(self.image) // RECORD_BYTES)
            if not is_zero_record(self.image, index)
            and decode_record(self.image[index * RECORD_BYTES : (index + 1) * RECORD_BYTES], self.number, index) is None
        ]
        for index in damaged:
            self.image[index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = ZERO_RECORD
        return (damaged[0], damaged[-1]) if damaged else None
