"""How a run begins whose cluster is not born yet: one replica hears of the others late, a disk is lost meanwhile, and
those that had been served may be gone when the two meet.

Frames of a birth are kept, and some arrive again later, also where a disk is another one by then: a birth must not be
begun by what was left of an older one.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kimberlite.vopr.plan import MS

if TYPE_CHECKING:
    from kimberlite.vopr.world import World

SERVE_NS_MAX = 1500 * MS  # for some of them to be served before a disk is lost
MEET_NS_MAX = 500 * MS
AWAY_NS_MAX = 4000 * MS
AGAIN = 24  # of them arrive again


def begin(world: World) -> None:
    """Plan it."""
    random = Random(f"birth {world.plan.seed}")
    count = world.plan.replica_count
    if count == 1 or random.random() < 0.25:
        return
    network = world.network
    late, lost, *others = random.sample(range(count), count)
    cuts = random.choice(
        (
            {(lost, late)},
            {(lost, late), (late, lost)},
            {(late, lost)},
            {link for other in (lost, *others) for link in ((other, late), (late, other))},
        )
    )
    network.cuts |= cuts
    lost_at = world.now + 20 * MS + random.randrange(SERVE_NS_MAX)
    meet_at = lost_at + random.randrange(MEET_NS_MAX)
    world.at(lost_at, _lose, world, lost, others if random.random() < 0.7 else [])
    world.at(meet_at, network.cuts.difference_update, cuts)
    for _ in range(AGAIN):
        world.at(meet_at + random.randrange(MEET_NS_MAX), _again, world, random.getrandbits(32))
    if random.random() < 0.7:
        world.at(meet_at + random.randrange(AWAY_NS_MAX), _put_back, world, lost)


def _lose(world: World, lost: int, gone: list[int]) -> None:
    if world.network.faults_on:
        for index in gone:
            world.crash(index)
        world.wipe(lost)


def _put_back(world: World, lost: int) -> None:
    if world.network.faults_on:
        world.put_back(lost)


def _again(world: World, pick: int) -> None:
    """A frame of the birth, once more."""
    early = world.network.early
    if world.network.faults_on and early:
        world.network.launch(*early[pick % len(early)])
