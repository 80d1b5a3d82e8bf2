"""I24: a start fears nothing that a crash alone explains.

An op that may have been acknowledged, and is damaged, makes a replica ask the others, and one that is alone end. A
crash may tear what was under way, again and again; of what was never under way, or was whole, it takes nothing. So a
start calls nothing damaged on a disk that nothing but crashes has befallen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import EntryState, Recovered
from kimberlite.vopr.checkers import Violation

if TYPE_CHECKING:
    from kimberlite.vopr.world import World


def check_fears(world: World, index: int, recovered: Recovered) -> None:
    """Raises Violation."""
    if recovered.faulty and not (world.rotten and index == world.rot_victim):
        ops = [entry.op for entry in recovered.entries if entry.state is EntryState.FAULTY]
        raise Violation("I24 fears", f"replica {index} starts and calls ops {ops} damaged, on a disk that is sound")
