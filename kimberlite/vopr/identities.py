"""Who the replicas of a run are, and what happens to their disks: born formed, or born in the run; a disk that is put
aside and another one formatted in its place, by somebody who believes it lost, until it is put back.

A disk that is aside is a lost one for as long as it is away: what it has is counted for nothing but the audit of what
was durable when it was acknowledged.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from kimberlite._fast import framing
from kimberlite.storage import superblock
from kimberlite.storage.birth import BirthFile
from kimberlite.types import ZERO16, Birth, Checksum, Identity, life_sequence, root_header
from kimberlite.vopr.disk import Files, SimDisk
from kimberlite.vsr.record import Address, Record, Settings, bind, born, decode, draft, encode, leave_out

if TYPE_CHECKING:
    from kimberlite.vopr.checkers import Checkers
    from kimberlite.vopr.world import World

LOST_OF_MIN = 3  # replicas, of which one may be lost
KNOWN = ("commit_floor", "views", "log_views", "asked", "expired", "acknowledged")  # of Checkers, by replica


def incarnation(seed: int, index: int, formatting: int) -> bytes:
    return Random(f"incarnation {seed} {index} {formatting}").randbytes(16)


def draft_of(world: World) -> Record:
    """What every replica was told of the cluster."""
    plan = world.plan
    most = plan.prepare_bytes_max
    settings = Settings(plan.sessions_max, most, most, most, 2 * most, plan.checkpoint_ops, plan.checkpoint_bytes)
    addresses = [(Address(f"replica-{i}", 1), Address(f"replica-{i}", 2)) for i in range(plan.replica_count)]
    origin = ZERO16 if plan.converted else root_header(framing.make_header, world.cluster).checksum
    record = draft(settings, origin, addresses)
    for slot in world.left_out:
        record = leave_out(record, slot)
    return record


def identity_of(world: World, index: int, formatting: int) -> Identity | None:
    """Of a disk that has just been formatted: the first one of a run that begins with a cluster, or any other. None: it
    is one of the first release."""
    if world.is_old:
        return None
    own = incarnation(world.plan.seed, index, formatting)
    record = draft_of(world)
    if formatting or world.plan.birth:
        return Identity(slot=index, incarnation=own, record=encode(bind(record, index, own)))
    for slot in range(world.plan.replica_count):
        record = bind(record, slot, incarnation(world.plan.seed, slot, 0))
    record = born(record)
    return Identity(Birth.FORMED, index, own, record.birth, record=encode(record))


def identity_on(files: Files) -> Identity:
    """Who a disk says that its replica is."""
    disk = SimDisk(files, lambda: 0, lambda: 1)
    block = superblock.SuperblockFile(disk).current
    is_old = block.version == superblock.VERSION_UNBORN
    return BirthFile(disk, block).identity if is_old else block.identity


def is_awaited(world: World, index: int) -> bool:
    """Whether others are bound to the disk that is in the place of that replica: a birth takes no other."""
    own = identity_on(world.files[index]).incarnation
    others = (identity_on(files) for other, files in enumerate(world.files) if other != index)
    records = [decode(found.record) for found in others if found.birth is not Birth.UNBORN]
    return any(member.incarnation == own for record in records if (member := record.member(index)) is not None)


def is_outdated(world: World, index: int, image: Files) -> bool:
    """Whether every other replica will know, whatever it forgets in a crash, that an image is an older one."""
    begun = superblock.SuperblockFile(SimDisk(image, lambda: 0, lambda: 1)).current.sequence + 1
    others = [other for other in range(world.plan.replica_count) if other != index]
    heard = [identity_on(world.files[other]).heard[index] for other in others]
    return all(max(life_sequence(one.life), one.sequence) >= begun for one in heard)


def is_unnoticed(world: World, index: int) -> bool:
    """Whether an older image has come so far, while nobody told it what it is, that from now on nobody will."""
    files = world.files[index]
    return not identity_on(files).heard[index].life and not is_outdated(world, index, files)


class Drawer:
    """Disks that are aside, with what the checks know of their replicas."""

    def __init__(self) -> None:
        self.disks: dict[int, Files] = {}
        self._known: dict[int, dict[str, Any]] = {}
        self.formatted: dict[int, int] = {}  # how often a disk was formatted for that replica, after the first
        self.given_up: set[int] = set()  # whose disk nobody means to put back, whatever comes
        self.lost: set[int] = set()  # and is lost for good
        self.copies: set[int] = set()  # in whose place is an older image of the disk that is aside

    def swap(self, world: World, index: int) -> Files:
        """A new disk for a replica; the first of its disks is put aside."""
        self.formatted[index] = self.formatted.get(index, 0) + 1
        self.put_aside(world, index)
        return Files(on_write=partial(world.on_write, index))

    def put_aside(self, world: World, index: int) -> None:
        """Another disk is to be put in."""
        if index not in self.disks:
            self.disks[index] = world.files[index]
            self._known[index] = _take_known(world.checkers, index)
        else:
            _take_known(world.checkers, index)

    def settle(self, world: World) -> None:
        """Faults end: what is aside comes back, but for a disk that is given up. It may stay away where nothing else
        was damaged, so that the others have all of it, and where its replica was a member, so that they can be."""
        for index in list(self.disks):
            was_born = identity_on(self.disks[index]).birth is Birth.FORMED
            is_alone = world.rotten or world.plan.garbage or world.plan.replica_count < LOST_OF_MIN
            is_new_born = identity_on(world.files[index]).birth is Birth.FORMED
            if index in self.given_up and was_born and not is_new_born and not is_alone:
                self.lost.add(index)
                world.count("DISK_LOST")
            else:
                world.put_back(index)

    def forget(self, world: World, index: int) -> None:
        """The disk of that replica is not what it was: what it promised, it does not know."""
        _take_known(world.checkers, index)

    def put_back(self, world: World, index: int) -> Files:
        """The disk that is aside."""
        _take_known(world.checkers, index)
        for name, value in self._known.pop(index).items():
            getattr(world.checkers, name)[index] = value
        self.copies.discard(index)
        return self.disks.pop(index)


def _take_known(checkers: Checkers, index: int) -> dict[str, Any]:
    """What the checks know of a replica; it is forgotten there."""
    found = {name: getattr(checkers, name).pop(index) for name in KNOWN if index in getattr(checkers, name)}
    acknowledged: dict[int, Checksum] = {}
    checkers.acknowledged[index] = acknowledged
    return found
