"""Retention: with which op the log should begin, by its size and the age of its events.

A pure decision over what the store knows of its segments; the primary asks now and then, and proposes
the answer as an operation. Whole segments only: trimming less would give no space back.

May import: storage.interface only.
"""

from __future__ import annotations

from collections.abc import Iterable

from kimberlite.storage.interface import Extent

SEGMENTS_MAX = 256  # trimmed at a time: each takes a look at its file


def choose(
    extents: Iterable[Extent], *, bytes_max: int, age_max_ns: int, now_ns: int, last_op: int
) -> tuple[int, int] | None:
    """(first op, position of its first event) to begin the log with; None to leave it as it is.

    extents: the segments of the log, oldest first; looked at only as far as needed. A segment goes when what
    comes after it is bytes_max at least, or when all its events are older than age_max_ns (0: no
    such limit). last_op: the highest op that the log may begin with.
    """
    if not bytes_max and not age_max_ns:
        return None
    chosen: tuple[int, int] | None = None
    for count, extent in enumerate(extents):
        if count == 0:
            continue  # the segment that the log begins with
        large = bytes_max and extent.bytes_from_here >= bytes_max
        old = age_max_ns and extent.first_timestamp <= now_ns - age_max_ns
        if count > SEGMENTS_MAX or extent.first_op > last_op or not (large or old):
            break
        chosen = extent.first_op, extent.first_position
    return chosen
