"""What befalls links: cuts, clogs, kinds of frames that are lost."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from kimberlite.types import Command
from kimberlite.vopr import departures
from kimberlite.vopr.faults.registry import SELDOM, Action, kind, pair_of, target_of
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.network import Address
    from kimberlite.vopr.world import World


def _cut(world: World, side: set[int]) -> Action | None:
    """Between those on one side and all others."""
    indices = range(world.plan.replica_count)
    links = {(a, b) for a in indices for b in indices if (a in side) != (b in side)}
    return partial(world.network.cuts.update, links) if not links <= world.network.cuts else None


@kind()
def _partition(world: World, argument: int) -> Action | None:
    return _cut(world, {index for index in range(world.plan.replica_count) if argument >> index & 1})


@kind()
def _one_way(world: World, argument: int) -> Action | None:
    pair = pair_of(world, argument)
    return partial(world.network.cuts.add, pair) if pair is not None and pair not in world.network.cuts else None


@kind()
def _isolate(world: World, argument: int) -> Action | None:
    return _cut(world, {target_of(world, argument)})


@kind(floor=0.4)
def _heal(world: World, argument: int) -> Action | None:
    network = world.network
    return network.heal if network.cuts or network.clogs or network.muted or network.longer else None


@kind()
def _clog(world: World, argument: int) -> Action | None:
    pair = pair_of(world, argument)
    until = world.now + (argument % 400) * MS
    if pair is None or until <= max(world.now, world.network.clogs.get(pair, 0)):
        return None
    return partial(world.network.clogs.__setitem__, pair, until)


LONG_WAY_NS = (60 * MS, 300 * MS, 600 * MS)  # a core waits 250 ms for what it asks for, 500 ms for a view to begin


@kind(share=SELDOM)
def _long_way(world: World, argument: int) -> Action | None:
    """What one replica sends to another, or to everybody, or all that replicas send, takes longer until links are
    healed: longer than whoever asked for it waits, in most cases."""
    pair, random = pair_of(world, argument), Random(argument)
    if pair is None:
        return None
    (a, b), indices, duration = pair, range(world.plan.replica_count), random.choice(LONG_WAY_NS)
    of_one = {link for other in indices if other != a for link in ((a, other), (other, a))}
    of_all = {(one, other) for one in indices for other in indices if one != other}
    links: set[tuple[Address, Address]] = set(random.choice(({(a, b)}, {(a, b), (b, a)}, of_one, of_all)))
    if all(world.network.longer.get(link, 0) >= duration for link in links):
        return None

    def act() -> None:
        world.count("LONG_WAY")
        world.network.longer.update(dict.fromkeys(links, duration))

    return act


@kind(share=SELDOM)
def _refusal(world: World, argument: int) -> Action | None:
    """The listener of a replica that is there refuses for a moment: some of the others hold it to be gone."""
    target, random = target_of(world, argument), Random(argument)
    nodes = [node for node in world.nodes if node.index != target and node.up and random.random() < 0.5]
    if not nodes or not world.nodes[target].up:
        return None

    def act() -> None:
        for node in nodes:
            departures.miss(world, node.index, node.life, target)

    return act


MUTED = (
    Command.PREPARE,
    Command.PREPARE_OK,
    Command.COMMIT,
    Command.START_VIEW_CHANGE,
    Command.DO_VIEW_CHANGE,
    Command.START_VIEW,
    Command.REQUEST_PREPARE,
    Command.REQUEST_HEADERS,
    Command.HEADERS,
    Command.PING,
    Command.REQUEST,
    Command.REPLY,
)
MUTE_NS_MAX = 3000 * MS


@kind(share=SELDOM)
def _mute(world: World, argument: int) -> Action | None:
    """One kind of frame is lost for a while, to one replica or to everybody."""
    random = Random(argument)
    key = random.choice(MUTED), random.choice((None, target_of(world, argument)))
    until = world.now + argument % MUTE_NS_MAX
    if until <= max(world.now, world.network.muted.get(key, 0)):
        return None
    return partial(world.network.muted.__setitem__, key, until)
