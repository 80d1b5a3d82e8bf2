"""All parts of one replica, put together: every one of them is whole when it is made.

Data flows one way:

    sockets -> frames -> (one round per loop turn) -> driver -> core
    core -> driver -> disk, sockets, state machine, recorder

Nothing runs yet when `assemble` returns: no socket is listened on but that for metrics, no frame is sent. What was
opened until something fails is closed again by the stack that the caller gives.

May import: errors, config, state_machine, types, _fast, storage, net, telemetry, vsr, node.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kimberlite._fast import framing
from kimberlite.config import Config
from kimberlite.errors import ConfigError, DataMissingError, SuperblockError
from kimberlite.net.peers import PeerNetwork, Refusal
from kimberlite.net.sockets import bind
from kimberlite.node import clock, descriptors
from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.node.connections import Bounds
from kimberlite.node.driver import Background, Driver, FastCodec, known_headers, restore
from kimberlite.node.effects import Effects, PlainEffects
from kimberlite.node.gauges import Gauges
from kimberlite.node.identity import at_start, with_settings
from kimberlite.node.machine import guarded
from kimberlite.node.measured import MeasuredDisk, MeasuredMachine
from kimberlite.node.metrics import Metrics, open_metrics
from kimberlite.node.reader import LogReader
from kimberlite.node.retention import Retention
from kimberlite.node.server import ClientServer
from kimberlite.node.settings import core_config
from kimberlite.node.space import FreeSpace
from kimberlite.state_machine import StateMachine
from kimberlite.storage import superblock
from kimberlite.storage.pieces import PieceReader
from kimberlite.storage.scrub import Scrubber
from kimberlite.storage.store import Store
from kimberlite.telemetry.log import Log, open_log
from kimberlite.telemetry.recorder import Recorder
from kimberlite.types import VIEW_MAX, Message
from kimberlite.vsr.replica import Replica


class Inputs(NamedTuple):
    """What the parts tell whoever runs them. on_damage: a read has found an op damaged. status: the document that
    clients may ask for. background: see node.driver."""

    on_peer_messages: Callable[[list[Message]], None]
    on_peer_refusal: Callable[[int, Refusal], None]
    on_peer_gone: Callable[[int], None]
    on_client_requests: Callable[[list[Message]], None]
    on_damage: Callable[[int], None]
    status: Callable[[], dict[str, object]]
    background: Background


@dataclass(frozen=True, slots=True)
class Parts:
    """One replica."""

    config: Config
    log: Log
    share: descriptors.Share
    disk: MeasuredDisk
    store: Store
    metrics: Metrics
    recorder: Recorder
    peers: PeerNetwork
    server: ClientServer
    driver: Driver
    scrubber: Scrubber
    retention: Retention
    space: FreeSpace
    gauges: Gauges


async def assemble(
    config: Config, directory: Path, machine: StateMachine, inputs: Inputs, undo: AsyncExitStack
) -> Parts:
    """Open the data and make all parts. undo: gets what closes them. Raises StorageError and its kinds, ConfigError,
    AddressInUseError, StateMachineError."""
    if directory.is_dir() and not (directory / superblock.NAME).exists():
        raise DataMissingError(
            f"{directory} holds no replica: nothing was started; create one with `kimberlite format`, or name "
            "the directory that holds it",
            path=str(directory),
        )
    opened_at = time.monotonic_ns()
    log = open_log(
        config.cluster_id.hex(), config.cluster.replica, config.log.level, config.log.format, config.log.destination
    )
    undo.callback(log.close)
    disk = _open_disk(config, directory)
    undo.callback(disk.close)
    share = descriptors.share_out(
        descriptors.limit(), descriptors.in_use(), config.replica_count, config.limits.connections_max
    )
    store = Store(disk, framing.make_header, share.handles, uses_ring=config.storage.ring)
    check_identity(config, store, directory)
    recovered = store.recover()
    await check_addresses(config)
    config = begin_life(config, store, log)
    if config.storage.ring:
        store.add_ring(secrets.token_bytes(16))
    metrics = await open_metrics(config, directory, disk, store, log, opened_at)
    undo.push_async_callback(metrics.close)
    recorder = metrics.recorder

    machine = guarded(
        machine, lambda kind, op, took_ns: log.say("slow_execution", machine=kind, op=op, took_ns=took_ns)
    )
    restore(machine, recovered)
    now = time.monotonic_ns()
    core = Replica(
        config=core_config(config),
        codec=FastCodec(),
        recovered=recovered,
        headers=known_headers(store, recovered),
        seed=secrets.randbits(64),
        now=now,
        identity=store.identity,
    )
    core.set_clock_offset(time.time_ns() - now)
    log.where = lambda: (core.state.view, core.state.log.op)
    recorder.executions.replay_to = core.state.execution.replay_to
    peers = _peers(config, share, core, inputs, recorder)
    undo.push_async_callback(peers.stop)
    reader = LogReader(
        store,
        end=lambda: core.state.execution.positions,
        applied=lambda: core.applied,
        damaged=inputs.on_damage,
    )
    server = _server(config, share, core, reader, peers, inputs, recorder)
    undo.push_async_callback(server.stop)
    driver = Driver(
        core,
        store,
        MeasuredMachine(machine, recorder.executions) if recorder.is_recording else machine,
        (Effects if recorder.is_recording else PlainEffects)(peers, server, recorder),
        recorder,
        time.monotonic_ns,
        CheckpointPolicy(config.checkpoint.ops, config.checkpoint.bytes),
        inputs.background,
    )
    scrubber = Scrubber(
        store,
        bytes_per_s=config.scrub.bytes_per_s,
        interval_ns=config.scrub.tour_interval_s * 1_000_000_000,
        seed=secrets.randbits(64),
        now=time.monotonic_ns(),
        reader=PieceReader(disk),
    )
    undo.callback(scrubber.close)
    kept = config.retention
    retention = Retention(kept.bytes_max, kept.age_max_s, clock.Clock(*clock.now(), config.cluster.replica))
    space = FreeSpace(config.storage.free_bytes_min)
    gauges = Gauges(log, recorder, driver, disk, store, server, peers, share, scrubber, retention, space)
    return Parts(
        config, log, share, disk, store, metrics, recorder, peers, server, driver, scrubber, retention, space, gauges
    )


def _open_disk(config: Config, directory: Path) -> MeasuredDisk:
    storage = config.storage
    return MeasuredDisk(
        directory,
        mode=storage.mode,
        unsafe=storage.unsafe,
        inline_threshold_us=storage.inline_threshold_us,
    )


async def check_addresses(config: Config) -> None:
    """Whether this replica can listen where it is to, before anything is written. Raises AddressInUseError,
    NetworkError."""
    addresses = [(config.client_address, "for clients")]
    if config.replica_count > 1:
        addresses.append((config.peer_address, "for peers"))
    for address, what in addresses:
        for listening in await bind(*address, what):
            listening.close()


def begin_life(config: Config, store: Store, log: Log) -> Config:
    """Have the data say who runs on it from now on. The configuration with what the cluster has agreed on. Raises
    RecordError, ConfigError, DiskFullError, WriteFailedError."""
    identity = at_start(config, store.identity, secrets.token_bytes(16))
    config, differences = with_settings(config, identity)
    store.begin_life(identity, secrets.randbits(32))
    for difference in differences:
        log.say("settings_differ", difference=difference)
    return config


def check_identity(config: Config, store: Store, directory: Path) -> None:
    """The data must be of the replica that the configuration speaks of."""
    for name, configured, found in (
        ("cluster.id", config.cluster_id.hex(), store.cluster.hex()),
        ("cluster.replica", config.cluster.replica, store.replica),
        ("the number of cluster.addresses", config.replica_count, store.replica_count),
    ):
        if configured != found:
            raise ConfigError(
                f"{name} is {configured}, but the data in {directory} is of {found}: nothing was started; "
                "correct the configuration, or the directory",
                configured=configured,
                found=found,
            )
    view = store.view_state.view
    if view > VIEW_MAX:
        raise SuperblockError(
            f"the data in {directory} says that this replica is in view {view}; no cluster gets above "
            f"{VIEW_MAX}: an older release let a frame write that. Nothing was started. Take it back with: "
            f"kimberlite repair-view {directory} --others, and the directories or addresses of all others",
            cause="view_out_of_bounds",
        )


def _peers(config: Config, share: descriptors.Share, core: Replica, inputs: Inputs, recorder: Recorder) -> PeerNetwork:
    return PeerNetwork(
        index=core.state.index,
        addresses=config.peer_addresses,
        listen_on=config.peer_address,
        cluster=config.cluster_id,
        make_header=framing.make_header,
        view=lambda: core.state.view,
        on_messages=inputs.on_peer_messages,
        on_refusal=inputs.on_peer_refusal,
        on_gone=inputs.on_peer_gone,
        frame_max=config.limits.frame_bytes_max,
        strangers_max=share.strangers,
        counters=recorder.traffic,
        doorkeeper=core.doorkeeper,
        seed=secrets.randbits(64),
    )


def _server(
    config: Config,
    share: descriptors.Share,
    core: Replica,
    reader: LogReader,
    peers: PeerNetwork,
    inputs: Inputs,
    recorder: Recorder,
) -> ClientServer:
    limits = config.limits
    return ClientServer(
        index=core.state.index,
        members=config.cluster.addresses,
        listen_on=config.client_address,
        cluster=config.cluster_id,
        make_header=framing.make_header,
        view=lambda: core.state.membership.shown(core.state.view),
        on_requests=inputs.on_client_requests,
        status=inputs.status,
        reader=reader,
        event_bytes_max=limits.event_bytes_max,
        request_bytes_max=limits.request_bytes_max,
        events_max=limits.events_per_request_max,
        frame_max=limits.frame_bytes_max,
        bounds=Bounds(
            share.clients,
            share.waiting_room,
            limits.connection_bytes_max,
            limits.frame_ms / 1000,
            limits.reply_ms / 1000,
        ),
        progress=lambda: core.state.log.op,
        held_elsewhere=lambda: peers.memory_bytes,
        counters=recorder.traffic,
    )
