"""Damage aimed at a place: at the end of the log, and at the beginning of a segment that a trim is about to reach.

It befalls the replica where bits rot, like all silent damage: good copies of everything remain.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from kimberlite.storage.journal import RECORD_BYTES, journal_name, round_up, witness_name
from kimberlite.types import SECTOR
from kimberlite.vopr.disk import corrupt, make_unreadable
from kimberlite.vopr.faults.registry import SELDOM, Action, kind
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World

DOWN_NS = 300 * MS  # at most, until who was struck at the end of its log starts again
TAIL_OPS = 4
TRIM_NS = 200 * MS
EITHER = ((True, False), (False, True), (True, True))  # what is damaged: entries, witnesses


def _may_rot(world: World) -> int | None:
    """The replica where bits rot, unless its disk lies: lies leave no trace, and what tells of them must stay."""
    victim = world.rot_victim
    return victim if victim is not None and world.devices[victim].lies is None else None


def _damage(world: World, index: int, name: str, offset: int, random: Random) -> None:
    files = world.files[index]
    if name not in files.durable or offset >= len(files.durable[name]):
        return
    world.rotten = True
    if random.random() < 0.2:
        make_unreadable(files, name, offset // SECTOR)
    else:
        corrupt(files, name, offset, random.choice((1, 64)), random)


@kind()
def _end_rot(world: World, argument: int) -> Action | None:
    """A replica dies and the end of its log is damaged before it starts again: the last entries, their witnesses, both,
    or the witnesses behind the end, which say then that something may have been there."""
    victim = _may_rot(world)
    if victim is None or world.devices[victim].hung:
        return None
    random = Random(argument)
    (entries, witnesses), behind = random.choice(EITHER), random.random() < 0.4
    ops = random.randrange(1, TAIL_OPS)
    node = world.nodes[victim]
    store = node.store
    if store.head < store.first_op:  # nothing is left of its log, or nothing is there yet
        return None

    def strike() -> None:
        world.crash(victim)
        for op in range(max(store.head - ops + 1, store.first_op), store.head + 1):
            _damage_entry(world, node, op, random, entries and not behind, witnesses and not behind)
        if behind:
            number, index, _, _ = store.place_of(store.head)
            for at in range(index + 1, index + 1 + ops):
                _damage(world, victim, witness_name(number), at * RECORD_BYTES, random)
        world.count("END_ROT")
        world.at(world.now + random.randrange(DOWN_NS), partial(_start_again, world, victim))

    return strike


def _damage_entry(world: World, node: SimNode, op: int, random: Random, entry: bool, witness: bool) -> None:
    number, index, header, offset = node.store.place_of(op)
    if entry and header is not None and offset is not None:
        at = offset + random.choice((0, 0, random.randrange(round_up(header.size))))
        _damage(world, node.index, journal_name(number), at, random)
    if witness:
        _damage(world, node.index, witness_name(number), index * RECORD_BYTES, random)


def _start_again(world: World, index: int) -> None:
    if world.network.faults_on:
        world.restart(index)


@kind(share=SELDOM)
def _trim_rot(world: World, argument: int) -> Action | None:
    """The beginning of a segment is damaged, perhaps the end of the one before as well, and then the log is trimmed to
    about there."""
    victim = _may_rot(world)
    if victim is None or not world.nodes[victim].up:
        return None
    random = Random(argument)
    node = world.nodes[victim]
    begun = [one.first_op for one in node.store.extents() if one.first_op > node.driver.core.state.log.first_op]
    if not begun:
        return None
    first_op = random.choice(begun[:3])
    entries, witnesses = random.choice(EITHER)
    before = random.random() < 0.5

    def strike() -> None:
        for op in range(first_op - 2 if before else first_op, first_op + 2):
            if node.store.first_op <= op <= node.store.head:
                _damage_entry(world, node, op, random, entries, witnesses)
        world.count("TRIM_ROT")
        number = random.randrange(1 << 16)
        world.at(world.now + random.randrange(TRIM_NS), lambda: world.inject("trim", number))

    return strike
