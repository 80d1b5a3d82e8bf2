"""Damage aimed at a place: at the end of the log, and at the beginning of a segment that a trim is about to reach.

It befalls the replica where bits rot, like all silent damage: good copies of everything remain.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from kimberlite.storage.journal import (
    RECORD_BYTES,
    decode_record,
    journal_name,
    round_up,
    segment_number,
    witness_name,
)
from kimberlite.types import SECTOR
from kimberlite.vopr.disk import WRITE, corrupt, make_unreadable
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


HOLE_OPS = 8


@kind(share=SELDOM)
def _hole_rot(world: World, argument: int) -> Action | None:
    """A replica dies, and some entries in a row are damaged somewhere in its log, each with its witness or not, before
    it starts again: where those in the middle stand nothing tells, until one beside them is repaired."""
    victim = _may_rot(world)
    if victim is None or world.devices[victim].hung:
        return None
    random = Random(argument)
    node = world.nodes[victim]
    store = node.store
    if store.head < store.first_op:
        return None
    begins = [one.first_op for one in store.extents()] if random.random() < 0.5 else []
    first = random.choice([*begins, random.randrange(store.first_op, store.head + 1)])
    last = min(first + random.randrange(1, HOLE_OPS), store.head)
    fates = [random.choice((*EITHER, (True, True))) for _ in range(first, last + 1)]

    def strike() -> None:
        world.crash(victim)
        for op, (entries, witnesses) in enumerate(fates, first):
            if op >= store.first_op:
                _damage_entry(world, node, op, random, entries, witnesses)
        world.count("HOLE_ROT")
        world.at(world.now + random.randrange(DOWN_NS), partial(_start_again, world, victim))

    return strike


@kind()
def _old_witness(world: World, argument: int) -> Action | None:
    """A replica dies, and starts on a disk that has lost the write of a witness over that of an older log, or of a
    sector of them, and where the entries are damaged: what they are called there nobody has. Below its checkpoint:
    what it believes of other entries it says to others."""
    victim = _may_rot(world)
    if victim is None or world.devices[victim].hung or (replaced := world.devices[victim].replaced) is None:
        return None
    files, random = world.files[victim], Random(argument)
    committed, first_op = world.promises(victim).checkpoint_op, world.nodes[victim].store.first_op
    found: list[tuple[str, int, bytes, int]] = []
    for name, offset, old in replaced.records:
        number = segment_number(name)
        if number is None or name not in files.durable:
            continue
        record = decode_record(files.durable[name][offset : offset + RECORD_BYTES], number, offset // RECORD_BYTES)
        other = decode_record(old, number, offset // RECORD_BYTES)
        if record is None or other is None or record.header.checksum == other.header.checksum:
            continue
        if first_op <= record.header.op <= committed:
            found.append((name, offset, old, record.offset))
    if not found:
        return None
    chosen = random.choice(found)
    if random.random() < 0.7:
        sector = chosen[0], chosen[1] // SECTOR
        lost = {at: (name, at, old, entry) for name, at, old, entry in found if (name, at // SECTOR) == sector}
    else:
        lost = {chosen[1]: chosen}

    def strike() -> None:
        world.crash(victim)
        for name, offset, old, at in lost.values():
            content = files.durable.get(name)
            if content is not None:
                content[offset : offset + RECORD_BYTES] = old
                files.changed(name)
                _damage(world, victim, name.replace("witness", "journal"), at, random)
        world.count("OLD_WITNESS")
        world.at(world.now + random.randrange(DOWN_NS), partial(_start_again, world, victim))

    return strike


@kind(share=SELDOM)
def _trim_rot(world: World, argument: int) -> Action | None:
    """The beginning of a segment is damaged, perhaps the end of the one before as well, and then the log is trimmed to
    about there. In half of the cases its disk stops
    meanwhile: what is repaired below is being written when the trim takes it away."""
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
    before, stalls = random.random() < 0.5, random.random() < 0.5

    def strike() -> None:
        for op in range(first_op - 2 if before else first_op, first_op + 2):
            if node.store.first_op <= op <= node.store.head:
                _damage_entry(world, node, op, random, entries, witnesses)
        world.count("TRIM_ROT")
        if stalls:
            world.hang(victim, (WRITE,), world.now + 2 * TRIM_NS)
        number = random.randrange(1 << 16)
        world.at(world.now + random.randrange(TRIM_NS), lambda: world.inject("trim", number))

    return strike
