"""Faults aimed at who has a role at the moment."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from kimberlite.vopr.disk import PROMISE, WRITE
from kimberlite.vopr.faults.registry import SELDOM, Action, kind
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World


STRIKES = ("crash", "crash writing", "pause", "isolate", "silence", "deafen", "stall")
STRIKE_NS = 1500 * MS
STRIKE_DELAY_NS = 3 * MS


def _strike(world: World, index: int, how: str) -> None:
    """Now is the moment for a replica to fail."""
    if not world.network.faults_on or not world.nodes[index].up:
        return
    others = [other for other in range(world.plan.replica_count) if other != index]
    world.trace.add(world.now, "strike", how, index)
    world.counts[f"STRIKE_{how.replace(' ', '_')}"] = world.counts.get(f"STRIKE_{how.replace(' ', '_')}", 0) + 1
    if how == "crash":
        world.crash(index)
    elif how == "crash writing":
        world.doomed[index] = ""
    elif how == "pause":
        world.pause(index, world.now + STRIKE_NS)
    elif how == "stall":
        world.hang(index, (WRITE, PROMISE), world.now + STRIKE_NS)
    if how in ("isolate", "silence"):
        world.network.cuts.update((index, other) for other in others)
    if how in ("isolate", "deafen"):
        world.network.cuts.update((other, index) for other in others)


@kind(share=SELDOM)
def _strike_primary(world: World, argument: int) -> Action | None:
    """The primary fails while it has prepares under way; in half of the cases its successor too, while the view
    changes."""
    if world.ambushes:
        return None
    random = Random(argument)
    first, second, follows = random.choice(STRIKES), random.choice(STRIKES), random.random() < 0.5
    delays = random.randrange(STRIKE_DELAY_NS), random.randrange(20 * STRIKE_DELAY_NS)

    def primary_is_busy(node: SimNode) -> bool:
        core = node.driver.core
        if core.leading is None or not core.leading.ready or not core.leading.pipeline:
            return False
        world.at(world.now + delays[0], lambda: _strike(world, node.index, first))
        if follows:
            world.ambushes.append(partial(view_is_left, core.state.view))
        return True

    def view_is_left(view: int, node: SimNode) -> bool:
        state = node.driver.core.state
        if state.view <= view:
            return False
        successor = state.view % world.plan.replica_count
        world.at(world.now + delays[1], lambda: _strike(world, successor, second))
        return True

    return partial(world.ambushes.append, primary_is_busy)
