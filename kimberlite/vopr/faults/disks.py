"""What befalls disks: damage, lies, failed and hanging writes."""

from __future__ import annotations

import errno
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from kimberlite.storage.journal import RECORDS_PER_SECTOR
from kimberlite.storage.ring import COPY_BYTES_MAX, SLOT_BYTES
from kimberlite.storage.ring import NAME as RING
from kimberlite.types import SECTOR
from kimberlite.vopr.disk import (
    FOREVER,
    LIES,
    OPERATIONS,
    PROMISE,
    READ,
    UNIT,
    WRITE,
    Files,
    Lies,
    corrupt,
    make_unreadable,
)
from kimberlite.vopr.faults.registry import RARELY, SELDOM, Action, kind, target_of
from kimberlite.vopr.identities import is_outdated
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.world import World


ROT_TAIL_BYTES = 8192


@kind()
def _bit_rot(world: World, argument: int) -> Action | None:
    """Damage a little of one replica's disk: always the same one, so that good copies remain."""
    if world.rot_victim is None:
        return None
    random = Random(argument)
    files = world.files[world.rot_victim]
    # Of a checkpoint one copy only: that both are lost is more than one event does.
    names = [name for name in files.durable if name.startswith(("journal", "witness")) or name.endswith("-a")]
    lies = world.devices[world.rot_victim].lies
    if lies is not None:  # they leave no trace: what tells of them must not be damaged
        names = [name for name in names if lies.concern(name)]
    if not names:
        return None
    name = random.choice(sorted(names))
    used = files.used.get(name, 0)
    if not used:
        return None
    # Half of it at the end, where what is not committed yet stands.
    at = random.randrange(used) if random.random() < 0.5 else used - 1 - random.randrange(min(used, ROT_TAIL_BYTES))

    def damage() -> None:
        world.rotten = True
        if random.random() < 0.3:
            make_unreadable(files, name, at // 4096)
        else:
            corrupt(files, name, at, random.choice((1, 16, 512)), random)

    return damage


@kind()
def _ring_rot(world: World, argument: int) -> Action | None:
    """One sector of the ring of the replica that rots: bytes of it change, it can not be read, it is torn, or it has
    what belongs into another slot. Of every frame it is always the same copy, for the other one must tell of it."""
    victim = world.rot_victim
    if victim is None or RING not in (files := world.files[victim]).durable:
        return None
    if world.devices[victim].lies is not None or not files.used.get(RING):  # they leave no trace
        return None
    random = Random(argument)
    used = files.used[RING] // SLOT_BYTES + 1
    own = Random(f"ring rot {world.plan.seed}").randrange(COPY_BYTES_MAX // SECTOR + 1) * SECTOR
    at, other = (random.randrange(used) * SLOT_BYTES + own for _ in range(2))
    how = random.choice(("rot", "unreadable", "torn", "misdirected"))

    def damage() -> None:  # nothing is missing because of that: the run is not one of rot by it
        world.count("RING_ROT")
        content = files.durable[RING]
        if how == "rot":
            corrupt(files, RING, at + random.randrange(SECTOR - UNIT), random.choice((1, 16, 512)), random)
        elif how == "unreadable":
            make_unreadable(files, RING, at // SECTOR)
        else:
            length = SECTOR if how == "misdirected" else UNIT * random.randrange(1, SECTOR // UNIT)
            content[at : at + length] = content[other : other + length]
            files.changed(RING)

    return damage


LIES_MAX = 3
AWAY_NS_MAX = 4000 * MS
PUT_BACK_SHARE, LOST_SHARE = 0.6, 0.6  # of the disks that are taken for lost; of those that are not put back soon
# Of an entry and its witness, and of the two copies of a checkpoint, the disk lies about one only.
PARTS = (("journal-", ""), ("witness-", ""), ("checkpoint-", "-a"))


def lies_of(seed: int) -> Lies:
    """What a disk lies about in a run, when it does."""
    return Lies(*Random(f"lies {seed}").choice(PARTS))


@kind(share=SELDOM)
def _bad_block(world: World, argument: int) -> Action | None:
    """A block of flash of the replica that rots: consecutive sectors of a segment are gone, from its beginning in half
    of the cases, and in half of them the witnesses of what stands there as well. One in a run."""
    if world.rot_victim is None or world.counts.get("BLOCKS_GONE"):
        return None
    random = Random(argument)
    files = world.files[world.rot_victim]
    journal = random.choice(sorted(name for name in files.durable if name.startswith("journal")))
    used = files.used.get(journal, 0) // SECTOR
    if not used:
        return None
    first, count = random.choice((0, random.randrange(used))), random.choice((1, 4, 16))
    gone = [(journal, sector) for sector in range(first, min(first + count, used))]
    if random.random() < 0.5:
        witness = journal.replace("journal", "witness")
        records = range(first // RECORDS_PER_SECTOR, (first + count - 1) // RECORDS_PER_SECTOR + 1)
        gone += [(witness, sector) for sector in records]
    lies = world.devices[world.rot_victim].lies
    if lies is not None:  # as for rot
        gone = [(name, sector) for name, sector in gone if lies.concern(name)]
    if not gone:
        return None

    def lose() -> None:
        world.rotten = True
        world.count("BLOCKS_GONE")
        for name, sector in gone:
            if random.random() < 0.5:
                make_unreadable(files, name, sector)
            else:
                corrupt(files, name, sector * SECTOR, SECTOR, random)

    return lose


@kind(share=RARELY)
def _disk_lie(world: World, argument: int) -> Action | None:
    """Some of the next writes or reads of one replica's disk are not what they seem; it is the one where bits rot."""
    if world.rot_victim is None or (lies := world.devices[world.rot_victim].lies) is None:
        return None
    random = Random(argument)
    kind = random.choice(LIES)

    def lie() -> None:
        world.rotten = True
        lies.kind, lies.left = kind, random.randrange(LIES_MAX) + 1

    return lie


@kind(share=SELDOM)
def _wipe(world: World, argument: int) -> Action | None:
    """The disk of one replica is taken for lost, once in a run, and another one is formatted in its place; after some
    time, in some runs only at the end, the first one is put back, and in some never. A cluster of one keeps its disk:
    there is no other copy, and nobody who could know the new disk for another one."""
    if world.plan.replica_count == 1 or world.counts.get("FAULT_wipe") or world.drawer.disks or world.plan.converted:
        return None
    index, random = target_of(world, argument), Random(argument)

    def lose() -> None:
        world.wipe(index)
        if random.random() < PUT_BACK_SHARE:
            world.at(world.now + random.randrange(AWAY_NS_MAX), _put_back, world, index)
        elif random.random() < LOST_SHARE:
            world.drawer.given_up.add(index)

    return lose


def _put_back(world: World, index: int) -> None:
    if world.network.faults_on:
        world.put_back(index)


IMAGE_NS_MAX, IMAGE_STEP_NS = 3000 * MS, 100 * MS  # from an image to the moment when it is put in, when it can be


@kind(share=0.0)
def _old_image(world: World, argument: int) -> Action | None:
    """An image is taken of a replica's disk, and put in its place some time later, once in a run; the disk itself comes
    back in the end, at the latest. Only when all others have it on their disks that the replica has come further: who
    meets nobody that knows is not noticed."""
    plan = world.plan
    if plan.replica_count == 1 or plan.birth or plan.converted or world.counts.get("FAULT_old_image"):
        return None
    index, random = target_of(world, argument), Random(argument)

    def put_in(image: Files) -> None:
        if not world.network.faults_on:
            return
        if world.drawer.disks or not is_outdated(world, index, image):
            world.at(world.now + IMAGE_STEP_NS, put_in, image)
        else:
            world.put_in_copy(index, image)
            if random.random() < PUT_BACK_SHARE:
                world.at(world.now + random.randrange(AWAY_NS_MAX), _put_back, world, index)

    return lambda: world.at(world.now + random.randrange(IMAGE_NS_MAX), put_in, world.files[index].copy())


@kind()
def _sync_error(world: World, argument: int) -> Action | None:
    node = world.nodes[target_of(world, argument)]
    if not node.up or node.disk.fail_next_write is not None:
        return None
    return partial(setattr, node.disk, "fail_next_write", errno.EIO)


STALL_NS_MAX = 4000 * MS
SLOW_FACTORS = (10, 100)
HANGS = ((WRITE, PROMISE), (WRITE,), (PROMISE,), (READ,), OPERATIONS)
SLOW_NODE_NS = (200_000, 2 * MS, 10 * MS)


def _hang(world: World, argument: int, until: int) -> Action | None:
    """Of one disk, one kind of operation or all: what is begun does not end before then."""
    target, random = target_of(world, argument), Random(argument)
    operations = random.choice(HANGS)
    hung = world.devices[target].hung
    if all(hung.get(operation, 0) >= until for operation in operations):
        return None
    return partial(world.hang, target, operations, until)


@kind(share=SELDOM)
def _disk_stall(world: World, argument: int) -> Action | None:
    return _hang(world, argument, world.now + argument % STALL_NS_MAX)


@kind(share=SELDOM)
def _disk_hang(world: World, argument: int) -> Action | None:
    return _hang(world, argument, FOREVER)


@kind(share=SELDOM)
def _disk_slow(world: World, argument: int) -> Action | None:
    target, random = target_of(world, argument), Random(argument)
    operations, factor = random.choice(HANGS), random.choice(SLOW_FACTORS)
    slow = world.devices[target].slow
    if all(slow.get(operation) == factor for operation in operations):
        return None
    return partial(world.slow_down, target, operations, factor)


@kind(share=SELDOM)
def _slow_node(world: World, argument: int) -> Action | None:
    """A replica that takes its time with every input."""
    target = target_of(world, argument)
    duration = Random(argument).choice(SLOW_NODE_NS)
    if world.slow_nodes.get(target) == duration:
        return None
    return partial(world.slow_nodes.__setitem__, target, duration)


@kind(floor=0.4)
def _cure(world: World, argument: int) -> Action | None:
    """Disks and replicas are as fast as before."""
    is_ill = world.slow_nodes or any(device.slow or device.hung for device in world.devices)
    return world.cure if is_ill else None
