"""Retention: with which op the log should begin, by its size and the age of its events.

A pure decision over what the store knows of its segments; the primary asks now and then, and proposes
the answer as an operation. Whole segments only: trimming less would give no space back. A trim that
is due waits for the checkpoints of all replicas, and it is said when that takes long: the log grows.

May import: storage.interface only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kimberlite.storage.interface import Extent

SEGMENTS_MAX = 256  # trimmed at a time: each takes a look at its file
PATIENCE_NS = 10_000_000_000  # replicas make their checkpoints one a little after the other


class Choice(NamedTuple):
    """trim: (first op, position of its first event) to begin the log with; None to leave it as it is.
    held: first op of the next segment that the log would begin with, were that not above `last_op`."""

    trim: tuple[int, int] | None = None
    held: int | None = None


def choose(extents: Iterable[Extent], *, bytes_max: int, age_max_ns: int, now_ns: int, last_op: int) -> Choice:
    """With which op the log should begin.

    extents: the segments of the log, oldest first; looked at only as far as needed. A segment goes when what
    comes after it is bytes_max at least, or when all its events are older than age_max_ns (0: no
    such limit). last_op: the highest op that the log may begin with.
    """
    if not bytes_max and not age_max_ns:
        return Choice()
    trim: tuple[int, int] | None = None
    for count, extent in enumerate(extents):
        if count == 0:
            continue  # the segment that the log begins with
        large = bytes_max and extent.bytes_from_here >= bytes_max
        old = age_max_ns and extent.first_timestamp <= now_ns - age_max_ns
        if count > SEGMENTS_MAX or not (large or old):
            break
        if extent.first_op > last_op:
            return Choice(trim, extent.first_op)
        trim = extent.first_op, extent.first_position
    return Choice(trim)


class Wait:
    """For which replicas a trim that is due waits. since: nanoseconds, when that began; 0 while none waits."""

    def __init__(self) -> None:
        self.since = 0
        self._first_op = 0
        self._needed = 0
        self._late: dict[int, int] = {}  # replica -> the op of its checkpoint

    def look(self, first_op: int, held: int | None, own: int, others: Mapping[int, int], now: int) -> None:
        """first_op: with which the log begins; held: of the Choice. own, others: the op of the durable
        checkpoint here, and by replica elsewhere. While there is none here for it, a trim is not due."""
        needed = held - 1 if held is not None and own >= held - 1 else 0
        self._late = {replica: op for replica, op in others.items() if op < needed}
        if not self._late:
            self.since = 0
        elif not self.since or first_op != self._first_op:
            self.since = now
        self._first_op, self._needed = first_op, needed

    def reason(self, now: int) -> str:
        """A sentence, empty while nothing waits for long."""
        if not self.since or now - self.since < PATIENCE_NS:
            return ""
        late = ", ".join(f"replica {replica} (which has that of op {op})" for replica, op in sorted(self._late.items()))
        return (
            f"retention has waited {(now - self.since) / 1e9:.0f} s for a checkpoint of op {self._needed} on {late}: "
            "the log grows until it has one; bring it back, or see to room on the disks"
        )
