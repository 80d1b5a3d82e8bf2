"""What comes from outside: clocks, strangers, clients, space, trims."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

import xxhash

from kimberlite._fast import framing
from kimberlite.types import HEADER_SIZE
from kimberlite.vopr import hostile
from kimberlite.vopr.disk import empty, fill, is_full
from kimberlite.vopr.faults.registry import SELDOM, Action, each_of, kind, pair_of, target_of
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.world import World


@kind()
def _clock_jump(world: World, argument: int) -> Action | None:
    node = world.nodes[target_of(world, argument)]
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


@kind()
def _disk_full(world: World, argument: int) -> Action | None:
    files = world.files[target_of(world, argument)]
    return partial(fill, files) if not is_full(files) else None


@kind()
def _disk_full_all(world: World, argument: int) -> Action | None:
    return each_of(
        lambda index: fill(world.files[index]),
        [index for index, files in enumerate(world.files) if not is_full(files)],
    )


@kind(floor=0.4)
def _disk_space(world: World, argument: int) -> Action | None:
    return each_of(
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
    pair = pair_of(world, argument)
    if pair is None or not world.nodes[pair[0]].up:
        return None
    target, sender = pair
    frames = hostile.frames(Random(argument), hostile.known_of(world.nodes[target].driver.core.state, sender))

    def launch() -> None:
        for message in frames:
            world.network.launch(sender, target, message.header.raw + bytes(message.body))

    return launch


@kind(share=SELDOM)
def _hostile_client(world: World, argument: int) -> Action | None:
    """Requests under the name of a client that it never makes. They are looked at at once, by a primary that is awake:
    after the client's next one the number behind that would be the right one, and what has name, session and number of
    a client is the client's."""
    random = Random(argument)
    leading = [
        node for node in world.nodes if node.up and (role := node.driver.core.leading) is not None and role.ready
    ]
    if not leading or leading[-1].paused_until > world.now:
        return None
    core = leading[-1].driver.core
    client = random.choice(world.clients)
    session = core.state.sessions.get(client.session.client_id)
    if session is None:
        return None
    known = hostile.Client(world.cluster, client.session.client_id, session.number, session.request)

    def launch() -> None:
        for message in hostile.requests(random, known):
            data = message.header.raw + bytes(message.body)
            world.network.launch(client.name, core.state.index, data, at_once=True)

    return launch
