"""Which ops of a log are damaged on this disk.

Imports nothing.
"""

from __future__ import annotations


class FaultyOps:
    """Ops that are known to be damaged, until they are repaired, cut off or trimmed."""

    def __init__(self, floor: int) -> None:
        """floor: the op that the log begins with."""
        self.ops: set[int] = set()
        self._floor = floor

    def mark(self, op: int) -> None:
        """An entry is damaged: a matter of the log from where a trim lets it begin, be that durable yet or not. What
        goes can not be had from anybody any more."""
        if op >= self._floor:
            self.ops.add(op)

    def begin_at(self, floor: int) -> None:
        """The log was trimmed: it begins with that op, or a later one."""
        self._floor = max(self._floor, floor)
        self.ops = {op for op in self.ops if op >= self._floor}

    def end_at(self, head: int) -> None:
        """The log was cut: it ends with that op."""
        self.ops = {op for op in self.ops if op <= head}
