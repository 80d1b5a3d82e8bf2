"""How often a replica asks another for the same thing: I20.

Whoever is asked and does not help is asked again, for frames get lost; but not many times a second, for whatever it
is that keeps it from helping.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from kimberlite.types import Checksum, Command, Header
from kimberlite.vopr.checkers import Violation

PER_S_MAX = 12  # times the same is asked of the same replica within a second
SECOND_NS = 1_000_000_000
ASKING = frozenset({Command.REQUEST_PREPARE, Command.REQUEST_HEADERS})

Question: TypeAlias = tuple[int, int, int, int, Checksum]


@dataclass(slots=True)
class Questions:
    """What was asked lately."""

    _asked: dict[Question, deque[int]] = field(default_factory=dict)

    def on_send(self, now: int, replica: int, other: int, header: Header) -> None:
        if header.command not in ASKING:
            return
        key = (replica, other, header.command, header.op, header.context)
        times = self._asked.setdefault(key, deque(maxlen=PER_S_MAX))
        if len(times) == PER_S_MAX and now - times[0] < SECOND_NS:
            raise Violation(
                "I20 pacing",
                f"replica {replica} asks replica {other} for op {header.op} for the {PER_S_MAX + 1}th time within "
                f"{(now - times[0]) / 1e9:.2f} s",
            )
        times.append(now)

    def on_restart(self, replica: int) -> None:
        """What a life before has asked is not known to the one that begins."""
        for key in [key for key in self._asked if key[0] == replica]:
            del self._asked[key]
