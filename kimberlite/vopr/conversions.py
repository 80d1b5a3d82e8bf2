"""Runs that begin on data of the first release: all replicas stop at some moment, and start as members to be born.

Before, disks have no identity, and replica view % n leads a view; afterwards slot view % 16. What was acknowledged
before is there afterwards, also when one disk was put back meanwhile to an older image, which nothing tells.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kimberlite.types import SLOT_NONE, VIEW_BORN, Identity
from kimberlite.vopr.identities import draft_of, incarnation
from kimberlite.vopr.plan import MS
from kimberlite.vsr.members import Membership
from kimberlite.vsr.record import bind, encode

if TYPE_CHECKING:
    from kimberlite.vopr.disk import Files
    from kimberlite.vopr.world import World

STOP_NS_MAX = 3000 * MS
START_NS_MAX = 400 * MS


def begin(world: World) -> None:
    """Plan it."""
    random = Random(f"conversion {world.plan.seed}")
    stop_at = world.now + random.randrange(STOP_NS_MAX)
    image: list[Files] = []
    # Of whose disk nobody's data depends: it is the one that silent damage strikes.
    keeps_all = not world.plan.retention_bytes and not world.plan.retention_age_s  # else it may be beyond catching up
    victim = world.rot_victim if keeps_all and random.random() < 0.6 else None
    if victim is not None:
        world.at(random.randrange(world.now, stop_at + 1), _copy, world, victim, image)
    world.at(stop_at, _stop, world, random, victim, image)


def _copy(world: World, victim: int, image: list[Files]) -> None:
    """An image of a disk, as somebody takes one of a machine that runs."""
    image.append(world.files[victim].copy())


def _stop(world: World, random: Random, victim: int | None, image: list[Files]) -> None:
    if not world.is_old:
        return
    indices = range(world.plan.replica_count)
    for index in indices:
        world.crash(index)
    if victim is not None and image:
        world.put_in(victim, image[0])
        world.count("OLD_IMAGE")
    convert(world)
    for index in indices:
        world.at(world.now + random.randrange(START_NS_MAX), world.restart, index)


def convert(world: World) -> None:
    """From now on every start is one of this release."""
    world.is_old = False
    world.checkers.membership = Membership.of_record(draft_of(world))
    world.count("CONVERTED")


def at_start(world: World, index: int, known: Identity) -> Identity:
    """Who a replica is that starts, by what its disk says."""
    if known.slot != SLOT_NONE:
        return known
    own = incarnation(world.plan.seed, index, 0)
    return Identity(slot=index, incarnation=own, record=encode(bind(draft_of(world), index, own)))


def is_over(world: World) -> bool:
    """Whether a log of after the birth is everywhere: until then every view needs everybody."""
    return all(node.driver.core.state.log_view >= VIEW_BORN for node in world.nodes)
