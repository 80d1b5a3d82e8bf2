"""The replicas of a run: what each is made of, and how one is started on what its disk holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from kimberlite._fast import framing
from kimberlite.errors import KimberliteError
from kimberlite.node.driver import FastCodec, known_headers, restore
from kimberlite.node.reader import LogReader
from kimberlite.node.retention import Retention
from kimberlite.storage.interface import Recovered
from kimberlite.storage.scrub import Scrubber
from kimberlite.storage.store import format_store
from kimberlite.types import ZERO16, Command, Identity, Message
from kimberlite.vopr import claims, conversions, starts, upkeep
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.disk import SimDisk, empty
from kimberlite.vopr.draws import below
from kimberlite.vopr.identities import identity_of
from kimberlite.vopr.observed import DigestMachine, ObservedDriver, ObservedReplica, ObservedStore, Observer, Watch
from kimberlite.vopr.plan import EPOCH_NS, MS
from kimberlite.vopr.questions import ASKING
from kimberlite.vsr.config import CoreConfig, Timing

if TYPE_CHECKING:
    from kimberlite.vopr.world import World

START_VIEW, PREPARE_OK, REPLY = Command.START_VIEW, Command.PREPARE_OK, Command.REPLY
TICK_NS = 10 * MS
SCRUB_INTERVALS_NS = (100 * MS, 1000 * MS, 5000 * MS)


@dataclass(slots=True)
class SimNode:
    """A replica: what is lost in a crash."""

    index: int
    driver: ObservedDriver
    store: ObservedStore
    disk: SimDisk
    life: int
    up: bool = True
    paused_until: int = 0
    booted_at: int = 0
    down_since: int = 0  # when it is not up
    tick_at: int = 0
    backlog: deque[tuple[Callable[..., None], tuple[Any, ...]]] = field(default_factory=deque)
    scrubber: Scrubber = field(init=False)
    reader: LogReader = field(init=False)
    watch: Watch = field(default_factory=Watch)
    retention: Retention | None = None


def format_disk(world: World, index: int, formatting: int = 0) -> None:
    """formatting: how often that was done before for this replica."""
    format_store(
        SimDisk(world.files[index], lambda: world.now, lambda: 1),
        framing.make_header,
        cluster=world.cluster,
        replica=index,
        replica_count=world.plan.replica_count,
        segment_bytes=world.plan.segment_bytes,
        identity=identity_of(world, index, formatting),
        ring_nonce=_nonce(world, index, formatting) if uses_ring(world, index, 0) else ZERO16,
    )


def uses_ring(world: World, index: int, life: int) -> bool:
    """Whether small entries are acknowledged after one write in that life of a replica."""
    return Random(f"ring {world.plan.seed} {index} {life}").random() < world.plan.ring


def _nonce(world: World, *which: int) -> bytes:
    return Random(f"secret of a ring {world.plan.seed} {which}").randbytes(16)


def boot(world: World, index: int, life: int) -> SimNode:
    """Start a replica on what its disk holds. Raises Violation when it does not start."""
    disk = _disk(world, index, life)
    try:
        store = ObservedStore(world, disk, has_ring := uses_ring(world, index, life))
        recovered = store.recover()
        identity = None if world.is_old else _begin_life(world, index, life, store)
        if has_ring and not world.is_old:
            store.add_ring(_nonce(world, index, life))
    except KimberliteError as error:
        raise Violation("E3 recovery", f"replica {index} does not start: {error}") from error
    starts.check_fears(world, index, recovered)
    driver = _driver(world, index, life, store, recovered, identity)
    world.counts["torn"] = world.counts.get("torn", 0) + recovered.torn
    world.counts["faulty"] = world.counts.get("faulty", 0) + recovered.faulty
    node = SimNode(index, driver, store, disk, life, booted_at=world.now)
    _serve(world, node)
    world.trace.add(world.now, "boot", index, recovered.head, recovered.settled, driver.core.state.view)
    if life:
        world.nodes[index] = node
        world.checkers.on_restart(world, index)
        world.questions.on_restart(index)
    node.tick_at = world.now + world.schedule.randrange(TICK_NS)
    world.at(node.tick_at, world.tick, node)
    world.at(world.now, world.on_disk, index, life)  # what recovery has written
    world.at(world.now, world.act, index, life, driver.start)
    return node


def _begin_life(world: World, index: int, life: int, store: ObservedStore) -> Identity:
    bits = Random(f"life {world.plan.seed} {index} {life}").getrandbits(32)
    if world.plan.converted:
        empty(world.files[index])  # a conversion needs room for one more file, and is refused without
    return store.begin_life(conversions.at_start(world, index, store.identity), bits)


def _disk(world: World, index: int, life: int) -> SimDisk:
    def wake(when: int) -> None:
        world.at(when, world.on_disk, index, life)
        doom = world.doomed[index]
        if doom is not None and (not doom or disk.is_writing(doom)):
            world.doomed[index] = None
            instant = world.now + world.schedule.randrange(max(when - world.now, 1))
            world.at(instant, lambda: world.crash_life(index, life))

    latency, mean = world.schedule, world.plan.disk_latency_ns

    def duration() -> int:
        return mean // 2 + below(latency, mean)

    disk = world.make_disk(index, duration, wake)
    return disk


def _driver(
    world: World, index: int, life: int, store: ObservedStore, recovered: Recovered, identity: Identity | None
) -> ObservedDriver:
    plan = world.plan
    core = ObservedReplica(
        config=CoreConfig(
            world.cluster,
            index,
            plan.replica_count,
            pipeline_max=plan.pipeline_max,
            sessions_max=plan.sessions_max,
            forfeit_gap=plan.forfeit_gap,
            timing=Timing(abdicate_ns=plan.abdicate_ns),
            repairs_max=plan.repairs_max,
            repairs_per_peer_max=plan.repairs_max,
            repair_bytes=plan.repair_bytes,
            backlog_bytes=plan.backlog_bytes,
            queue_max=plan.queue_max,
            prepare_bytes_max=plan.prepare_bytes_max,
            request_bytes_max=plan.prepare_bytes_max,
            **plan.core_bounds,
        ),
        codec=FastCodec(),
        recovered=recovered,
        headers=known_headers(store, recovered),
        seed=world.schedule.getrandbits(64),
        now=world.now,
        identity=identity,
    )
    core.world, store.core = world, core
    machine = DigestMachine()
    restore(machine, recovered)
    driver = ObservedDriver(
        core,
        store,
        machine,
        _Port(world, index),
        Observer(world, index),
        lambda: world.now,
        world.checkpoint_policy,
        upkeep.background(world, index, life),
    )
    driver.world, driver.index = world, index
    skew = Random(f"clock {plan.seed} {index} {life}").randrange(-plan.clock_skew_ns, plan.clock_skew_ns + 1)
    core.set_clock_offset(EPOCH_NS + world.wrong_clocks.get(index, skew))
    return driver


def _serve(world: World, node: SimNode) -> None:
    """What a replica does beside its place in the cluster: it scrubs its disk, is read from, and trims its log."""
    driver, store = node.driver, node.store
    state = driver.core.state
    random = Random(f"scrub {world.plan.seed} {node.index} {node.life}")
    node.scrubber = Scrubber(
        store,
        bytes_per_s=world.plan.scrub_bytes_per_s,
        seed=random.getrandbits(64),
        now=world.now,
        interval_ns=random.choice(SCRUB_INTERVALS_NS),
    )
    node.reader = LogReader(
        store,
        end=lambda: state.execution.positions,
        applied=lambda: state.execution.applied,
        damaged=lambda op: driver.on_damage(),
    )
    node.retention = upkeep.retention(world, node)


class _Port:
    """A replica's network."""

    def __init__(self, world: World, index: int) -> None:
        self._world = world
        self._index = index

    def send(self, replica: int, message: Message) -> None:
        world, index, header = self._world, self._index, message.header
        command = header.command
        world.checkers.on_send(world, index, message)
        if command in ASKING:
            world.checkers.on_ask(world, index, replica, header)
            world.questions.on_send(world.now, index, replica, header)
        elif command == START_VIEW:
            world.leads.on_send(world, index, replica, header)
        elif command == PREPARE_OK:
            claims.check(world.nodes[index].driver.core.state, header)
        if world.idle_frames is not None:
            world.idle_frames[index, replica, command] += 1
        world.network.send(index, replica, message)

    def refuse(self, message: Message) -> None:
        """Here there are no connections: the event that goes with it is counted."""

    def send_client(self, client: bytes, message: Message) -> None:
        if message.header.command == REPLY:
            self._world.checkers.on_reply(self._index, message)
        target = self._world.client_of(client)
        if target is not None:
            self._world.network.send(self._index, target.name, message)
