"""Where segments begin, where entries stand in them, and which of them holds an event.

Imports types only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from kimberlite.types import Header


@dataclass(frozen=True, slots=True)
class Start:
    """Where a segment begins. certain: False when the position is only a lower bound, for damage."""

    base: int  # op of its first entry
    position: int  # of its first event
    certain: bool = True


class Spot(NamedTuple):
    """Where an entry stands."""

    number: int  # of the segment
    at: int  # index of the entry in it
    offset: int


# By index: header and offset, as far as known, of entries whose witness tells nothing or something else.
Apart: TypeAlias = dict[int, tuple[Header | None, int | None]]


def find_event(position: int, low: int, high: int, header: Callable[[int], Header | None]) -> int | None:
    """Which of the entries low..high holds the event at `position`; None when none is known to."""
    while low <= high:
        middle = probe = (low + high) // 2
        found = header(probe)
        while found is None and probe > low:
            probe -= 1
            found = header(probe)
        if found is None or found.position + found.count <= position:
            low = middle + 1
        elif found.position <= position:
            return probe
        else:
            high = probe - 1
    return None
