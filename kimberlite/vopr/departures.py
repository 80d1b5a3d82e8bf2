"""What others learn when a process ends: the kernel resets its connections, and its listener refuses the next one.

Who has a link to it in both directions is told, a moment later, unless another process listens there by then. A machine
that vanished with its process tells nobody, and is missed by its silence alone. A listener that refuses for a moment
tells the same of a process that is there (faults.links).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.world import World

VANISHED_SHARE = 0.3  # of the processes that end
DELAY_NS = 10 * MS


def tell(world: World, index: int) -> None:
    """The process of that replica has just ended."""
    random = Random(f"departure {world.plan.seed} {index} {world.now}")
    if random.random() < VANISHED_SHARE:
        return
    life = world.nodes[index].life
    for node in world.nodes:
        if node.up:
            world.at(world.now + random.randrange(DELAY_NS), _notice, world, node.index, node.life, index, life)


def _notice(world: World, by: int, by_life: int, index: int, life: int) -> None:
    is_there = world.nodes[index].up or world.nodes[index].life != life
    if not is_there and not world.network.cuts & {(by, index), (index, by)}:
        miss(world, by, by_life, index)


def miss(world: World, by: int, by_life: int, index: int) -> None:
    world.count("GONE")
    world.act(by, by_life, world.nodes[by].driver.on_peer_gone, index)
