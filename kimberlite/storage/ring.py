"""The ring: where a small group of entries is durable with one write, until the journal has it.

An entry of the journal takes two writes one after another, itself and its witness. A group of small ones is instead
put into a frame, and the frame twice into a slot of the file `ring`, the copies adjacent, with one write: when that is
durable the entries are acknowledged. Journal and witnesses follow later, many at a time (storage.ring_writer).

A copy, of whole sectors: layout.RING_FRAME, the entries one after another without gaps, zeros. Its checksum is keyed by
the secret of the directory (types.RingMark): what a client has appended can not be taken for a frame. The place is
told by the content: slot = sequence mod SLOTS, the second copy behind the first.

What a frame says. An intact copy says of each of its entries just what the journal says where entry and witness are
intact: it was durable, it may have been acknowledged, and here it stands. So whoever reads the journal of a directory
with a ring reads it through `Overlaid`, which shows the entries and witnesses of living frames in their places; what
they mean together is decided by the table of storage.recovery. A frame that is not there says nothing, and the journal
is what it is. That this is sound rests on:

- a frame is alive as long as the superblock under which it was written is in force. All that was in the ring is in the
  journal, entries and witnesses durable, before the superblock is written: so the ring holds entries of one process,
  of one log_view, and of a log that was not cut, and no two entries of one op;
- one frame at a time, and none while an entry is on its way into the journal without having been in the ring: of a
  frame that is intact everything below it is durable, as below a witness;
- into the journal goes only what is durable in the ring, entries first, then their witnesses. A slot is written again
  when the witnesses of what it held are durable;
- an entry that begins a segment, or does not fit a frame, takes two writes, with all that is only in the ring in front
  of it;
- a start writes down what it finds in the ring (`replay`), then the superblock, and only then speaks.

What holds of the journal holds here: every byte of a copy is under its checksum, and what is behind the entries is
zero; no two frames share a sector, and none that was acknowledged is written over before the journal has it; what is
torn is told from what is damaged by data (`TABLE`, then that of storage.recovery).

So a restart, a tool and a repair see a journal that could have been written without a ring. One thing is given up: both
copies of the last few entries lie next to each other. A fault that takes both, together with a crash before the next
flush, takes entries that were acknowledged.

May import: errors, types, _fast, xxhash, storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import DataMissingError, FormatVersionError, FrameError, SuperblockError
from kimberlite.storage import superblock as superblocks
from kimberlite.storage.interface import SECTOR, Disk, Write
from kimberlite.storage.journal import (
    RECORD_BYTES,
    encode_record,
    journal_name,
    round_up,
    witness_name,
)
from kimberlite.storage.layout import RING_FRAME
from kimberlite.storage.places import Spot
from kimberlite.types import HEADER_SIZE, ZERO16, Bytes, Message, RingMark

NAME = "ring"
COPIES = 2
COPY_BYTES_MAX = 8 << 10
SLOT_BYTES = COPIES * COPY_BYTES_MAX
PENDING_MAX = 64  # ops that are in the ring and not in the journal
SLOTS = 80  # a frame holds one op at least: so many that the next slot never holds what is only there
RING_BYTES = SLOTS * SLOT_BYTES
VERSION = 1
MAGIC = b"KMRF"
FRAME_HEADER_BYTES = RING_FRAME.size
ENTRIES_BYTES_MAX = COPY_BYTES_MAX - FRAME_HEADER_BYTES

_CHECKED = RING_FRAME.offset("magic")
_UNIT = RECORD_BYTES  # what the overlay is kept in: entries fill whole ones, a witness is one


@dataclass(frozen=True, slots=True)
class Frame:
    """Entries of consecutive ops that stand one behind another in one segment.

    superblock: sequence of the superblock that was in force. segment, index, offset: place of the first entry.
    """

    sequence: int
    superblock: int
    segment: int
    index: int
    offset: int
    entries: tuple[Message, ...]

    def places(self) -> Iterator[tuple[Message, Spot]]:
        """Its entries and where they stand, or will, in the journal."""
        offset = self.offset
        for index, message in enumerate(self.entries, self.index):
            yield message, Spot(self.segment, index, offset)
            offset += round_up(message.header.size)


# One copy


def place(sequence: int) -> int:
    """Where in the ring the copies of a frame begin."""
    return sequence % SLOTS * SLOT_BYTES


def copy_bytes(entries: Iterable[Message]) -> int:
    """Size of one copy of the frame of these entries."""
    return round_up(FRAME_HEADER_BYTES + sum(message.header.size for message in entries))


def _mark(copy: int) -> bytes:
    """What only that copy has, where the nonce is while the checksum is taken."""
    return copy.to_bytes(2, "little").ljust(_CHECKED - 16, b"\0")


def encode_into(buffer: memoryview, frame: Frame, nonce: bytes) -> None:
    """Both copies, into zeroed memory of COPIES times `copy_bytes`."""
    size = FRAME_HEADER_BYTES
    for message in frame.entries:
        header = message.header
        buffer[size : size + HEADER_SIZE] = header.raw
        buffer[size + HEADER_SIZE : size + header.size] = message.body
        size += header.size
    buffer[:FRAME_HEADER_BYTES] = RING_FRAME.pack(
        {
            "checksum": ZERO16,
            "copy": 0,
            "magic": MAGIC,
            "version": VERSION,
            "count": len(frame.entries),
            "size": size,
            "segment": frame.segment,
            "sequence": frame.sequence,
            "superblock": frame.superblock,
            "index": frame.index,
            "offset": frame.offset,
        }
    )
    length = len(buffer) // COPIES
    buffer[16:_CHECKED] = nonce
    buffer[:16] = xxhash.xxh3_128_digest(buffer[16:length])
    for copy in range(COPIES):
        begin = copy * length
        if begin:
            buffer[begin : begin + length] = buffer[:length]
            invert(buffer[begin + SECTOR : begin + length])
        buffer[begin + 16 : begin + _CHECKED] = _mark(copy)


def invert(data: memoryview) -> None:
    """Of a second copy every sector differs from that of the first: a disk that stores equal sectors once must not
    store one for both. In the first of them the number of the copy does it."""
    if data:
        data[:] = (int.from_bytes(data, "little") ^ ((1 << 8 * len(data)) - 1)).to_bytes(len(data), "little")


def decode(data: Bytes, copy: int, nonce: bytes) -> Frame | None:
    """The frame of which `data` begins with copy number `copy`; None when it does not.

    Raises FormatVersionError for an intact copy of an unknown format.
    """
    head = bytes(data[:FRAME_HEADER_BYTES])
    if len(head) < FRAME_HEADER_BYTES or head[_CHECKED : _CHECKED + 4] != MAGIC or head[16:_CHECKED] != _mark(copy):
        return None
    found: dict[str, Any] | None = RING_FRAME.unpack(head)
    if found is None:
        return None
    size, length = found["size"], round_up(found["size"])
    if not FRAME_HEADER_BYTES < size <= COPY_BYTES_MAX or length > len(data):
        return None
    whole = bytearray(data[:length])
    if copy:
        invert(memoryview(whole)[SECTOR:])
    whole[16:_CHECKED] = nonce
    if xxhash.xxh3_128_digest(memoryview(whole)[16:]) != head[:16]:
        return None
    if found["version"] != VERSION:
        raise FormatVersionError(
            f"a frame of the ring has format version {found['version']}; this release knows version {VERSION}: start a "
            "release that knows it",
            version=found["version"],
        )
    if any(whole[size:]):
        return None
    entries = _entries(memoryview(bytes(whole)), size)
    if entries is None or len(entries) != found["count"]:
        return None
    places = {name: found[name] for name in ("sequence", "superblock", "segment", "index", "offset")}
    return Frame(**places, entries=entries)


def _entries(whole: memoryview, size: int) -> tuple[Message, ...] | None:
    """Those of a copy; None when they are no chain of intact ones."""
    entries: list[Message] = []
    at = FRAME_HEADER_BYTES
    while at < size:
        try:
            header = framing.decode_header(whole, at, size - at)
        except FrameError:
            return None
        body = whole[at + HEADER_SIZE : at + header.size]
        if at + header.size > size or not framing.verify_body(header, body):
            return None
        if entries and header.parent != entries[-1].header.checksum:
            return None
        entries.append(Message(header, body))
        at += header.size
    return tuple(entries)


# What a slot means


class Copy(IntEnum):
    """What is where a copy would be."""

    LIVE = 0  # intact, written under the superblock in force
    DEAD = 1  # intact, written under another one: all of it is in the journal, or was cut off since
    NONE = 2  # no copy: never written, torn, damaged, of another place, or not to be read


class Verdict(IntEnum):
    REPLAY = 0  # its entries were durable
    NOTHING = 1  # what the journal says is all there is


class Row(NamedTuple):
    """A row matches when both fields do."""

    name: str
    first: frozenset[Copy]
    second: frozenset[Copy]
    verdict: Verdict


_LIVE, _OTHER = frozenset({Copy.LIVE}), frozenset({Copy.DEAD, Copy.NONE})
TABLE: tuple[Row, ...] = (
    Row("whole", _LIVE, _LIVE, Verdict.REPLAY),
    # Its write was cut short, or a copy was damaged since: nothing tells which, and so it is kept.
    Row("first copy alone", _LIVE, _OTHER, Verdict.REPLAY),
    Row("second copy alone", _OTHER, _LIVE, Verdict.REPLAY),
    Row("of an older superblock", frozenset({Copy.DEAD}), _OTHER, Verdict.NOTHING),
    Row("of an older superblock, first copy gone", frozenset({Copy.NONE}), frozenset({Copy.DEAD}), Verdict.NOTHING),
    # Never written, or torn, and then never acknowledged; or both copies damaged: what is above it tells.
    Row("nothing", frozenset({Copy.NONE}), frozenset({Copy.NONE}), Verdict.NOTHING),
)


def decide(first: Copy, second: Copy) -> Row:
    """The one row that matches: a test shows that there is exactly one for every input."""
    for row in TABLE:
        if first in row.first and second in row.second:
            return row
    raise AssertionError(f"no row for {first!r}, {second!r}")


def is_live(frame: Frame, superblock: int) -> bool:
    """Whether a frame counts under the superblock of that sequence."""
    return frame.superblock == superblock


def is_in_place(frame: Frame, slot: int) -> bool:
    """Whether a frame stands where it was written to: else a disk has put it there."""
    return frame.sequence % SLOTS == slot


# All of it


def find_frames(data: Bytes, slot: int, nonce: bytes) -> dict[int, tuple[Frame | None, Frame | None]]:
    """By sequence: what there is of first and second copy of frames in a slot. There may be more than one frame: a
    longer one leaves its second copy behind a shorter one."""
    found: dict[int, tuple[Frame | None, Frame | None]] = {}
    first = decode(data, 0, nonce)
    if first is not None and is_in_place(first, slot):
        found[first.sequence] = first, None
    for at in range(SECTOR, COPY_BYTES_MAX + 1, SECTOR):
        second = decode(data[at:], 1, nonce)
        if second is not None and is_in_place(second, slot) and copy_bytes(second.entries) == at:
            known, _ = found.get(second.sequence, (None, None))
            found[second.sequence] = known, second
    return found


def _copy(frame: Frame | None, superblock: int) -> Copy:
    if frame is None:
        return Copy.NONE
    return Copy.LIVE if is_live(frame, superblock) else Copy.DEAD


def living(data: Bytes, nonce: bytes, superblock: int) -> list[Frame]:
    """The frames of a ring that count under the superblock of that sequence, in the order in which they were
    written."""
    frames = []
    for slot in range(SLOTS):
        part = data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
        for first, second in find_frames(part, slot, nonce).values():
            if decide(_copy(first, superblock), _copy(second, superblock)).verdict is Verdict.REPLAY:
                frame = first if _copy(first, superblock) is Copy.LIVE else second
                frames += [frame] if frame is not None else []
    return sorted(frames, key=lambda frame: frame.sequence)


def read(disk: Disk, nonce: bytes, superblock: int) -> list[Frame]:
    """The same of the ring of a directory; none when it has no ring.

    Raises DataMissingError when the file is gone or too short: entries that were acknowledged may have been in it.
    """
    if nonce == ZERO16:
        return []
    if not disk.exists(NAME):
        raise _missing("is missing")
    file = disk.open(NAME)
    try:
        size = disk.size(file)
        if size < RING_BYTES:
            raise _missing(f"has {size} bytes instead of {RING_BYTES}")
        return living(_content(disk, file), nonce, superblock)
    finally:
        disk.release(file)


def _missing(what: str) -> DataMissingError:
    return DataMissingError(
        f"{NAME} {what}: the last acknowledged entries may have been in it; replace this replica", file=NAME
    )


def _content(disk: Disk, file: int) -> bytes:
    """Sectors that can not be read are zeros."""
    try:
        return bytes(disk.read(file, 0, RING_BYTES))
    except OSError:
        content = bytearray(RING_BYTES)
        for offset in range(0, RING_BYTES, SECTOR):
            try:
                content[offset : offset + SECTOR] = disk.read(file, offset, SECTOR)
            except OSError:
                continue
        return bytes(content)


# The journal as it is with the ring


class Overlaid:
    """A disk whose journal and witness files show what the frames say: for reading only, as far as that goes.

    A sector that can not be read can, where a frame has all of it.
    """

    def __init__(self, disk: Disk, frames: Sequence[Frame]) -> None:
        self._disk = disk
        self._names: dict[int, str] = {}
        self.units: dict[str, dict[int, bytes]] = {}
        for frame in frames:
            for message, spot in frame.places():
                self._show(message, spot)

    def _show(self, message: Message, spot: Spot) -> None:
        segment, index, offset = spot
        header = message.header
        whole = (header.raw + bytes(message.body)).ljust(round_up(header.size), b"\0")
        journal = self.units.setdefault(journal_name(segment), {})
        for at in range(0, len(whole), _UNIT):
            journal[(offset + at) // _UNIT] = whole[at : at + _UNIT]
        witness = self.units.setdefault(witness_name(segment), {})
        witness[index] = encode_record(header, offset, segment, index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def open(self, name: str) -> int:
        """See Disk."""
        file = self._disk.open(name)
        self._names[file] = name
        return file

    def read(self, file: int, offset: int, length: int) -> memoryview:
        """See Disk."""
        name = self._names.get(file, "")
        units = self.units.get(name)
        first, end = offset // _UNIT, (offset + length - 1) // _UNIT + 1
        shown = [unit for unit in units if first <= unit < end] if units else []
        if not shown:
            return self._disk.read(file, offset, length)
        try:
            content = bytearray(self._disk.read(file, offset, length))
        except OSError:
            if len(shown) < end - first:
                raise
            content = bytearray(length)
        return memoryview(bytes(self.cover(name, offset, content)))

    def cover(self, name: str, offset: int, content: bytearray) -> bytearray:
        """Put what the frames say over what is in that file at `offset`."""
        units = self.units[name]
        for unit in range(offset // _UNIT, (offset + len(content) - 1) // _UNIT + 1):
            data = units.get(unit)
            if data is not None:
                at = unit * _UNIT - offset
                low, high = max(at, 0), min(at + _UNIT, len(content))
                content[low:high] = data[low - at : high - at]
        return content


def replay(disk: Disk, shown: Overlaid, handle: Callable[[str], int]) -> list[list[Write]]:
    """The writes, entries and then witnesses, that put what the frames say into the journal; of what is there already,
    none. handle: of a file by its name.

    Of a sector of witnesses that can not be read, the others are lost: they become what is no record.
    """
    entries: list[Write] = []
    witnesses: list[Write] = []
    for name, units in sorted(shown.units.items()):
        file, writes = handle(name), entries if name.startswith("journal-") else witnesses
        for sector in sorted({unit * _UNIT // SECTOR for unit in units}):
            offset = sector * SECTOR
            try:
                there = bytes(disk.read(file, offset, SECTOR)).ljust(SECTOR, b"\xff")
            except OSError:
                there = b"\xff" * SECTOR
            wanted = shown.cover(name, offset, bytearray(there))
            if wanted != there:
                buffer = disk.aligned(SECTOR)
                buffer[:] = wanted
                writes.append(Write(file, offset, buffer))
    return [phase for phase in (entries, witnesses) if phase]


def settle(disk: Disk, shown: Overlaid) -> None:
    """Have all that the frames say durable in the journal. Nothing else may be under way. Raises WriteFailedError."""
    files = {name: disk.open(name) for name in shown.units}
    try:
        phases = replay(disk, shown, files.__getitem__)
        if phases:
            disk.submit(0, phases)
            disk.flush()
            disk.completions()
    finally:
        for file in files.values():
            disk.release(file)


def overlaid(disk: Disk, mark: RingMark, superblock: int) -> Overlaid:
    """The journal as the ring of that directory says it is, under the superblock of that sequence. Raises what `read`
    raises."""
    return Overlaid(disk, read(disk, mark.nonce, superblock))


def shown(disk: Disk) -> Disk:
    """The same for who only looks: under the superblock in force. Where none is, or the ring is gone, as it is."""
    try:
        file = superblocks.SuperblockFile(disk)
        block = file.current
        file.close()
        return overlaid(disk, block.ring, block.sequence)
    except (SuperblockError, DataMissingError):
        return disk
