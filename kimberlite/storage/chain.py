"""Whether an entry of a cold segment is one of the log: what its neighbours say of it.

An entry and its witness may both be intact and not of the log: a disk that loses writes without a word leaves there
what an older log had written. Their op says nothing then, but the chain does. Each entry names the one before it as
its parent, so the witness before must have the name that this one gives, and the one behind must give its name: over
the ends of segments too, as far as it is certain where these begin. A neighbour that is damaged says nothing, and what
stands before the first op of the log is needed by nobody, whatever it says.

That is no proof: witnesses of an older log that follow each other go together. Who must know (`JournalReader.headers`,
`Store.mark`) asks the entry too; a repair knows from its header which parent stands before it (`ColdSegments.prove`).

May import: storage.places, types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kimberlite.storage.places import Start
from kimberlite.types import Header


class Witnesses(Protocol):
    """What is asked of the cold segments."""

    first: int  # the lowest segment
    first_op: int  # of the log
    end: int  # the segment behind the cold ones
    behind: Callable[[], Header | None]  # the first entry of that one, when known

    def start(self, number: int) -> Start: ...
    def record(self, number: int, start: Start, at: int) -> tuple[Header | None, int | None]: ...


def goes_together(cold: Witnesses, number: int, start: Start, at: int, header: Header) -> bool:
    """Whether what the witnesses of its neighbours say goes together with that entry, of which its own tells."""
    before = _before(cold, number, start, at) if header.op > cold.first_op else None
    if before is not None and header.parent != before.checksum:
        return False
    after = _after(cold, number, start, at)
    return after is None or after.parent == header.checksum


def _before(cold: Witnesses, number: int, start: Start, at: int) -> Header | None:
    if at or number == cold.first or not start.certain:
        return cold.record(number, start, at - 1)[0]
    before = cold.start(number - 1)
    return cold.record(number - 1, before, start.base - before.base - 1)[0] if before.certain else None


def _after(cold: Witnesses, number: int, start: Start, at: int) -> Header | None:
    following = cold.start(number + 1)
    if start.base + at + 1 < following.base:
        return cold.record(number, start, at + 1)[0]
    if number + 1 == cold.end:
        return cold.behind()
    return cold.record(number + 1, following, 0)[0] if following.certain else None
