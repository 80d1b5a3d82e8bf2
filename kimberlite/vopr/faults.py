"""The faults of a run: one entry for each kind, with what it does to the world.

A fault is a time, a kind and an argument: one number below ARGUMENT_END, drawn or taken from a script, that says on
whom and how much. Each kind reads it in its own way, so that every number means something. `aim` looks at the world as
it is in that moment and returns what is to be done, or None when the fault would change nothing: a crash of who is
down, a cut from a replica to itself. Such a fault is not counted, and it is not in the script of the run either.

A kind that ends other faults has a floor: plans that draw it do so with that weight at least.

A new kind is a function here, under its own name. Random choices come from `Random(argument)`, never from the
streams of the run: a run whose faults are given is the run that drew them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import UsageError
from kimberlite.storage.journal import RECORDS_PER_SECTOR
from kimberlite.types import HEADER_SIZE, SECTOR, Command
from kimberlite.vopr import hostile
from kimberlite.vopr.disk import (
    FOREVER,
    LIES,
    OPERATIONS,
    PROMISE,
    READ,
    WRITE,
    Lies,
    corrupt,
    empty,
    fill,
    is_full,
    make_unreadable,
)
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World

Fault: TypeAlias = tuple[int, str, int]  # virtual nanoseconds, kind, argument
Action: TypeAlias = Callable[[], None]
Aim: TypeAlias = Callable[["World", int], Action | None]

ARGUMENT_END = 1 << 32
START_NS = 1 * MS  # when runs begin
ROT_TAIL_BYTES = 8192
OFTEN, SELDOM = 0.7, 0.35  # shares of runs; kinds with none are drawn by plans that name them


class Kind(NamedTuple):
    name: str
    aim: Aim
    floor: float = 0.0  # its least weight in plans that are drawn
    share: float = OFTEN  # of the runs that may have it


KINDS: dict[str, Kind] = {}


def kind(floor: float = 0.0, share: float = OFTEN) -> Callable[[Aim], Aim]:
    """Enter a function into the registry, under its own name."""

    def enter(aim: Aim) -> Aim:
        name = aim.__name__.strip("_")
        KINDS[name] = Kind(name, aim, floor, share)
        return aim

    return enter


def check(faults: Iterable[Fault]) -> None:
    """Raises UsageError at a fault that no run can carry out."""
    for when, name, argument in faults:
        if name not in KINDS:
            raise UsageError(f"no fault is called {name!r}; there are {', '.join(KINDS)}")
        if when < START_NS:
            raise UsageError(f"the fault {name!r} is to happen at {when} ns, but a run begins at {START_NS} ns")
        if not 0 <= argument < ARGUMENT_END:
            raise UsageError(f"the argument of the fault {name!r} is {argument}: it is a number from 0 to 2^32 - 1")


# On whom


def _target(world: World, argument: int) -> int:
    return argument % world.plan.replica_count


def _pair(world: World, argument: int) -> tuple[int, int] | None:
    """Two replicas; None where there is but one."""
    count = world.plan.replica_count
    if count == 1:
        return None
    target = argument % count
    return target, (target + 1 + argument // count % (count - 1)) % count


# Processes


@kind()
def _crash(world: World, argument: int) -> Action | None:
    target = _target(world, argument)
    return partial(world.crash, target) if world.nodes[target].up else None


def _doom(world: World, argument: int, file: str) -> Action | None:
    """Crash in the middle of the next write to that file."""
    target = _target(world, argument)
    if not world.nodes[target].up or world.doomed[target] == file:
        return None
    return partial(world.doomed.__setitem__, target, file)


@kind()
def _crash_writing(world: World, argument: int) -> Action | None:
    return _doom(world, argument, "")


@kind()
def _crash_promising(world: World, argument: int) -> Action | None:
    return _doom(world, argument, "superblock")


@kind()
def _crash_all(world: World, argument: int) -> Action | None:
    return _all(world.crash, [node.index for node in world.nodes if node.up])


@kind(floor=0.6)
def _restart(world: World, argument: int) -> Action | None:
    return _all(world.restart, [node.index for node in world.nodes if world.can_start(node.index)])


def _all(action: Callable[[int], None], indices: Sequence[int]) -> Action | None:
    """The same to each; nothing when there is nobody."""
    if not indices:
        return None

    def act() -> None:
        for index in indices:
            action(index)

    return act


@kind()
def _pause(world: World, argument: int) -> Action | None:
    target = _target(world, argument)
    node = world.nodes[target]
    until = world.now + (argument % 1500) * MS
    return partial(world.pause, target, until) if node.up and until > node.paused_until else None


# Links


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
    pair = _pair(world, argument)
    return partial(world.network.cuts.add, pair) if pair is not None and pair not in world.network.cuts else None


@kind()
def _isolate(world: World, argument: int) -> Action | None:
    return _cut(world, {_target(world, argument)})


@kind(floor=0.4)
def _heal(world: World, argument: int) -> Action | None:
    network = world.network
    return network.heal if network.cuts or network.clogs or network.muted else None


@kind()
def _clog(world: World, argument: int) -> Action | None:
    pair = _pair(world, argument)
    until = world.now + (argument % 400) * MS
    if pair is None or until <= max(world.now, world.network.clogs.get(pair, 0)):
        return None
    return partial(world.network.clogs.__setitem__, pair, until)


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
    key = random.choice(MUTED), random.choice((None, _target(world, argument)))
    until = world.now + argument % MUTE_NS_MAX
    if until <= max(world.now, world.network.muted.get(key, 0)):
        return None
    return partial(world.network.muted.__setitem__, key, until)


# Roles


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


# Disks


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


LIES_MAX = 3
# Of an entry and its witness, and of the two copies of a checkpoint, the disk lies about one only.
PARTS = (("journal-", ""), ("witness-", ""), ("checkpoint-", "-a"))


def lies_of(seed: int) -> Lies:
    """What a disk lies about in a run, when it does."""
    return Lies(*Random(f"lies {seed}").choice(PARTS))


# Not drawn by default yet: a tour of the scrubber does not notice the lost write of a witness (check I13; seeds 60, 62
# and 165 of the plan `lying`).
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

    def lose() -> None:
        world.rotten = True
        world.count("BLOCKS_GONE")
        for name, sector in gone:
            if random.random() < 0.5:
                make_unreadable(files, name, sector)
            else:
                corrupt(files, name, sector * SECTOR, SECTOR, random)

    return lose


@kind(share=0.0)
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


@kind(share=0.0)
def _wipe(world: World, argument: int) -> Action | None:
    """The disk of one replica is lost, once in a run, and another one is formatted in its place."""
    if world.counts.get("FAULT_wipe"):
        return None
    return partial(world.wipe, _target(world, argument))


@kind()
def _sync_error(world: World, argument: int) -> Action | None:
    node = world.nodes[_target(world, argument)]
    if not node.up or node.disk.fail_next_write is not None:
        return None
    return partial(setattr, node.disk, "fail_next_write", errno.EIO)


STALL_NS_MAX = 4000 * MS
SLOW_FACTORS = (10, 100)
HANGS = ((WRITE, PROMISE), (WRITE,), (PROMISE,), (READ,), OPERATIONS)
SLOW_NODE_NS = (200_000, 2 * MS, 10 * MS)


def _hang(world: World, argument: int, until: int) -> Action | None:
    """Of one disk, one kind of operation or all: what is begun does not end before then."""
    target, random = _target(world, argument), Random(argument)
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
    target, random = _target(world, argument), Random(argument)
    operations, factor = random.choice(HANGS), random.choice(SLOW_FACTORS)
    slow = world.devices[target].slow
    if all(slow.get(operation) == factor for operation in operations):
        return None
    return partial(world.slow_down, target, operations, factor)


@kind(share=SELDOM)
def _slow_node(world: World, argument: int) -> Action | None:
    """A replica that takes its time with every input."""
    target = _target(world, argument)
    duration = Random(argument).choice(SLOW_NODE_NS)
    if world.slow_nodes.get(target) == duration:
        return None
    return partial(world.slow_nodes.__setitem__, target, duration)


@kind(floor=0.4)
def _cure(world: World, argument: int) -> Action | None:
    """Disks and replicas are as fast as before."""
    is_ill = world.slow_nodes or any(device.slow or device.hung for device in world.devices)
    return world.cure if is_ill else None


# Clocks, strangers, clients


@kind()
def _clock_jump(world: World, argument: int) -> Action | None:
    node = world.nodes[_target(world, argument)]
    return partial(world.set_clock, node.index, (argument % 10_000 - 5_000) * MS) if node.up else None


@kind()
def _clock_step(world: World, argument: int) -> Action | None:
    """A clock goes hours ahead, or is set right again. That of one replica only, always the same: two clocks that are
    wrong in the same way confirm each other."""
    node = world.nodes[world.plan.seed % world.plan.replica_count]
    random = Random(argument)
    offset = random.choice((0, random.randrange(1, 48) * 3_600_000 * MS))
    return partial(world.set_clock, node.index, offset) if node.up else None


@kind()
def _foreign(world: World, argument: int) -> Action | None:
    """A frame of another cluster strays in: like one of ours, but for its cluster and its numbers."""
    random = Random(argument)
    kept = [frame for frame in world.network.kept if isinstance(frame[0], int) and isinstance(frame[1], int)]
    if not kept:
        return None
    source, destination, data = random.choice(kept)
    header = framing.decode_header(data)
    body = data[HEADER_SIZE:]
    stray = framing.make_header(
        body,
        cluster=xxhash.xxh3_128_digest(world.cluster),
        command=header.command,
        replica=header.replica,
        operation=header.operation,
        view=header.view + random.randrange(2),
        op=header.op + random.randrange(3),
        commit=header.commit + random.randrange(4),
        parent=header.parent,
        timestamp=header.timestamp,
        position=header.position,
        count=header.count,
        context=header.context,
        log_view=header.log_view,
    )
    return partial(world.network.launch, source, destination, stray.raw + body)


@kind()
def _evict(world: World, argument: int) -> Action | None:
    """A client dies, and another one begins in its place: sessions fill the table."""
    return world.clients[argument % len(world.clients)].restart if world.clients else None


# Space


@kind()
def _disk_full(world: World, argument: int) -> Action | None:
    files = world.files[_target(world, argument)]
    return partial(fill, files) if not is_full(files) else None


@kind()
def _disk_full_all(world: World, argument: int) -> Action | None:
    return _all(
        lambda index: fill(world.files[index]),
        [index for index, files in enumerate(world.files) if not is_full(files)],
    )


@kind(floor=0.4)
def _disk_space(world: World, argument: int) -> Action | None:
    return _all(
        lambda index: empty(world.files[index]),
        [index for index, files in enumerate(world.files) if files.capacity is not None],
    )


@kind()
def _trim(world: World, argument: int) -> Action | None:
    """Somebody has the log trimmed: to the beginning of one of the primary's segments."""
    for node in world.nodes:
        core = node.driver.core
        if not node.up or core.leading is None or not core.leading.ready:
            continue
        extents = [one for one in node.store.extents() if core.state.log.first_op < one.first_op <= core.trimmable_op]
        if extents:
            extent = extents[argument % len(extents)]
            trim = partial(node.driver.trim, extent.first_op, extent.first_position)
            return partial(world.act, node.index, node.life, trim)
    return None


@kind()
def _hostile(world: World, argument: int) -> Action | None:
    """Frames under valid checksums that no replica sends."""
    pair = _pair(world, argument)
    if pair is None or not world.nodes[pair[0]].up:
        return None
    target, sender = pair
    frames = hostile.frames(Random(argument), hostile.known_of(world.nodes[target].driver.core.state, sender))

    def launch() -> None:
        for message in frames:
            world.network.launch(sender, target, message.header.raw + bytes(message.body))

    return launch
