"""What a replica says of its log while it knows better: I9, of damage.

The checks of durability (checkers.py) look at the disk, and forgive what was damaged after it was acknowledged. But who
knows of damage must not acknowledge what is damaged, unless it knows that it is committed: a quorum would be counted
with a copy that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Header
from kimberlite.vopr.checkers import Violation

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


def check(s: State, header: Header) -> None:
    """header: of an acknowledgement that this replica sends. Raises Violation."""
    if not s.log.faulty:
        return
    damaged = [op for op in s.log.faulty if s.commit_max < op <= header.op]
    if damaged:
        raise Violation(
            "I9 durable promises",
            f"replica {s.index} acknowledges op {header.op}, and knows that op {min(damaged)} is damaged",
        )
