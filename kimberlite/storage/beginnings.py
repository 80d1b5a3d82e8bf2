"""What tells where a segment begins: its own files, and the segments around it.

May import: errors, types, _fast, storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kimberlite._fast import framing
from kimberlite.errors import FrameError
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.journal import RECORD_BYTES, RECORDS_PER_SECTOR, decode_record, records_of
from kimberlite.types import Header


def first_headers(disk: Disk, journal: int, sector: bytearray, number: int) -> tuple[Header | None, Header | None]:
    """Of the first witness record, in the first sector of the witness file, and of the first entry of a segment. The
    beginning is certain where the two are the same."""
    record = decode_record(sector[:RECORD_BYTES], number, 0)
    try:
        standing = framing.decode_header(disk.read(journal, 0, SECTOR))
    except (FrameError, OSError):
        standing = None
    return (record.header if record is not None else None), standing


def base_of_others(image: bytearray, number: int, beyond_first_sector: bool) -> list[int]:
    """The base that most of the other witness records of a segment speak for, if there are any."""
    others = Counter(
        record.header.op - at
        for at, record in enumerate(records_of(image, number))
        if record is not None and at >= (RECORDS_PER_SECTOR if beyond_first_sector else 0)
    )
    return [base for base, _ in others.most_common(1)]


def highest_base(number: int, end: int, end_base: int, told: Callable[[int], int | None]) -> int:
    """The highest base that a segment can have: each one above it, up to the next whose own files tell where it begins
    or to `end`, holds an entry at least. told: such a base, None when it is not certain."""
    for above in range(number + 1, end):
        base = told(above)
        if base is not None:
            return base - (above - number)
    return end_base - (end - number)
