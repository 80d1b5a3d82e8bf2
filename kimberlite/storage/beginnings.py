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


def bases_told(witnessed: Header | None, standing: Header | None, image: bytearray, number: int) -> list[int]:
    """The ops that a segment may begin with: by its first entry, by its first witness record, and by most of the other
    records."""
    others = Counter(
        record.header.op - at
        for at, record in enumerate(records_of(image, number))
        if record is not None and at >= (RECORDS_PER_SECTOR if witnessed is not None else 0)
    )
    first = [header.op for header in (standing, witnessed) if header is not None]
    return first + [base for base, _ in others.most_common(1)]


def next_told(number: int, end: int, end_base: int, told: Callable[[int], int | None]) -> tuple[int, int]:
    """The next segment above one whose own files tell where it begins, and that base; `end` where none does. Each below
    holds an entry at least, which bounds where that begins. told: None when a segment tells nothing."""
    for above in range(number + 1, end):
        base = told(above)
        if base is not None:
            return above, base
    return end, end_base
