"""The layout of the journal: segments, entries and witnesses, as functions of the header chain.

journal-NNNNNNNN   preallocated; entries start on 4 KiB boundaries, one after another; an entry is
                   the prepare frame itself (header, body), padded with zeros
witness-NNNNNNNN   one record of 512 bytes for each entry of the segment, in order:

    0   256  the header of the entry, as it stands there
    256   8  offset of the entry in its segment
    264   4  number of the segment
    268   4  index of the record in the file
    272 224  zero
    496  16  XXH3-128 of bytes 0..495

An entry that does not fit into the rest of its segment begins the next one. So the place of
every op follows from the headers before it, is the same on every replica, and a repair
writes in place. A torn write leaves 512-byte units whole: a record never spans two.

May import: errors, types, _fast, storage.interface.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

from kimberlite._fast import checksum, framing
from kimberlite.errors import FrameError
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.recovery import Entry
from kimberlite.types import HEADER_SIZE, Bytes, FrameReason, Header, Message

RECORD_BYTES = 512
RECORDS_PER_SECTOR = SECTOR // RECORD_BYTES
_PLACE = struct.Struct("<QII")
_SUM = RECORD_BYTES - 16
_UNUSED = slice(HEADER_SIZE + _PLACE.size, _SUM)
ZERO_RECORD = bytes(RECORD_BYTES)
_ZERO_SECTOR = bytes(SECTOR)
_ZERO_UNUSED = ZERO_RECORD[_UNUSED]


@lru_cache
def journal_name(number: int) -> str:
    return f"journal-{number:08d}"


@lru_cache
def witness_name(number: int) -> str:
    return f"witness-{number:08d}"


def segment_number(name: str) -> int | None:
    """Of a journal or witness file; None for other names."""
    kind, _, number = name.partition("-")
    return int(number) if kind in ("journal", "witness") and number.isdigit() else None


def witness_bytes(segment_bytes: int) -> int:
    """Size of the witness file: a record for every entry that fits, whole sectors."""
    return round_up(segment_bytes // SECTOR * RECORD_BYTES)


def round_up(size: int) -> int:
    return (size + SECTOR - 1) // SECTOR * SECTOR


def encode_record(header: Header, offset: int, segment: int, index: int) -> bytes:
    covered = (header.raw + _PLACE.pack(offset, segment, index)).ljust(_SUM, b"\0")
    return covered + checksum.xxh3_128(covered)


class Record(NamedTuple):
    """A decoded witness record."""

    header: Header
    offset: int


_record = partial(tuple.__new__, Record)  # of its fields, in half of the time


def decode_record(data: Bytes, segment: int, index: int) -> Record | None:
    """None when it is damaged or belongs elsewhere."""
    record = bytes(data)
    if checksum.xxh3_128(record[:_SUM]) != record[_SUM:]:
        return None
    offset, number, position = _PLACE.unpack_from(record, HEADER_SIZE)
    if number != segment or position != index or record[_UNUSED] != _ZERO_UNUSED:
        return None
    try:
        return _record((framing.decode_header(record), offset))
    except FrameError:
        return None


def place_in_record(image: bytearray, index: int) -> int:
    """Offset of the entry, from a record that is known to be intact."""
    offset: int = _PLACE.unpack_from(image, index * RECORD_BYTES + HEADER_SIZE)[0]
    return offset


class Flaw(Enum):
    """Why the bytes at a place are no entry."""

    NOTHING = auto()  # the first sector is all zero, or beyond the end of the segment
    UNREADABLE = auto()  # the disk gives an error, or the file is shorter
    HEADER = auto()
    SIZE = auto()  # the header is intact, and the entry would reach beyond the end of the segment
    BODY = auto()
    PADDING = auto()  # what follows the body up to a whole sector is not zero


class Readable(Protocol):
    """As much of a Disk as reading an entry takes."""

    def read(self, file: int, offset: int, length: int) -> memoryview: ...


def examine_entry(disk: Readable, file: int, offset: int, limit: int, expected: int = SECTOR) -> Message | Flaw:
    """The entry at `offset`, at most up to byte `limit` of the segment, fully verified; or what is wrong.

    expected: its size as far as it is known; what is right is read with one call.
    """
    space = limit - offset
    if space < SECTOR:
        return Flaw.NOTHING
    try:
        head = disk.read(file, offset, min(round_up(expected), space))
        if len(head) < SECTOR:
            return Flaw.UNREADABLE
        header = framing.decode_header(head, 0, space)
        size = header.size
        padded = round_up(size)
        if padded > space:
            return Flaw.SIZE
        whole = head if padded <= len(head) else disk.read(file, offset, padded)
    except FrameError as error:
        if bytes(head[:SECTOR]) == _ZERO_SECTOR:
            return Flaw.NOTHING
        return Flaw.SIZE if error.details["reason"] == FrameReason.BAD_SIZE else Flaw.HEADER
    except OSError:
        return Flaw.UNREADABLE
    if len(whole) < padded:
        return Flaw.UNREADABLE
    if whole is not head and bytes(whole[:HEADER_SIZE]) != header.raw:  # read anew, and another now
        return Flaw.HEADER
    body = whole[HEADER_SIZE:size]
    if not framing.verify_body(header, body):
        return Flaw.BODY
    if bytes(whole[size:padded]) != _ZERO_SECTOR[: padded - size]:
        return Flaw.PADDING
    return Message(header, body)


def read_entry(disk: Disk, file: int, offset: int, limit: int, expected: int = SECTOR) -> tuple[Entry, Message | None]:
    """What `examine_entry` says as evidence for the decision table: GOOD with the message, ZERO, or DAMAGED.

    Whether a GOOD one is the expected one is for the caller to say.
    """
    found = examine_entry(disk, file, offset, limit, expected)
    if isinstance(found, Flaw):
        return (Entry.ZERO if found is Flaw.NOTHING else Entry.DAMAGED), None
    return Entry.GOOD, found


@dataclass(slots=True)
class Contents:
    """What a segment holds, in memory. `headers` and `offsets` are parallel.

    A header is None where entry and witness are both damaged, an offset where the place is
    unknown. `image` is the content of the witness file, stale records included.
    """

    image: bytearray
    headers: list[Header | None] = field(default_factory=list)
    offsets: list[int | None] = field(default_factory=list)

    def end(self) -> int | None:
        """Where the next entry would stand; None when that is unknown."""
        return self.end_of(len(self.headers) - 1)

    def end_of(self, index: int) -> int | None:
        if index < 0:
            return 0
        header, offset = self.headers[index], self.offsets[index]
        return None if header is None or offset is None else offset + round_up(header.size)

    def place(self, index: int) -> int | None:
        """Offset of an entry, from its own record or from the entry before it."""
        offset = self.offsets[index]
        return offset if offset is not None else self.end_of(index - 1)


def used_records(image: bytearray) -> int:
    """How many records a witness image has, up to the last that is not zero."""
    used = len(image) // RECORD_BYTES
    for unit, step in ((_ZERO_SECTOR, RECORDS_PER_SECTOR), (ZERO_RECORD, 1)):
        while used >= step and image[(used - step) * RECORD_BYTES : used * RECORD_BYTES] == unit:
            used -= step
    return used


def records_of(image: bytearray, number: int) -> list[Record | None]:
    """All records of a witness image up to the last that is not zero; None for damaged ones."""
    view, used = memoryview(image), used_records(image)
    return [
        decode_record(view[index * RECORD_BYTES : (index + 1) * RECORD_BYTES], number, index) for index in range(used)
    ]


def is_zero_record(image: bytearray, index: int) -> bool:
    return image[index * RECORD_BYTES : (index + 1) * RECORD_BYTES] == ZERO_RECORD


def put_record(content: bytearray, number: int, at: int, header: Header, place: int) -> None:
    """Into the sector that holds the record of index `at`."""
    where = at % RECORDS_PER_SECTOR * RECORD_BYTES
    content[where : where + RECORD_BYTES] = encode_record(header, place, number, at)


def end_of(header: Header | None, place: int | None) -> int | None:
    """Where what follows an entry stands, if that is known."""
    return place + round_up(header.size) if header is not None and place is not None else None
