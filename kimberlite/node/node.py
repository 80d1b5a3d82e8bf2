"""The composition root: one replica of a cluster as an asyncio object.

Owns the event loop side of everything: disk, store, core, driver, listeners, the tick, the
telemetry process. Data flows one way:

    sockets -> frames -> (one round per loop turn) -> driver -> core
    core -> driver -> disk, sockets, state machine, recorder

Frames that arrive within one turn of the loop are handed to the driver together, so
that requests share a prepare and acknowledgements share a frame. A failed write or a
broken invariant ends the process at once, with the exit code of its error and nothing
further sent: see `Node._run` and process.py.

May import everything below it; nothing imports it but the command line and users.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from kimberlite import __version__, process
from kimberlite._fast import checksum, framing
from kimberlite._fast.metrics import Region
from kimberlite.config import Config
from kimberlite.errors import (
    ConfigError,
    DataMissingError,
    InvariantError,
    KimberliteError,
    SuperblockError,
    WriteFailedError,
    WrongClusterError,
)
from kimberlite.net.peers import PeerNetwork, Refusal
from kimberlite.node import clock, descriptors, notify, retention
from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.node.connections import Bounds
from kimberlite.node.driver import Driver, FastCodec, known_headers, restore
from kimberlite.node.machine import check_machine, guarded
from kimberlite.node.measured import MeasuredDisk, MeasuredMachine
from kimberlite.node.reader import LogReader
from kimberlite.node.server import ClientServer
from kimberlite.node.space import FreeSpace
from kimberlite.state_machine import EventLog, StateMachine
from kimberlite.storage import superblock
from kimberlite.storage.scrub import Scrubber
from kimberlite.storage.store import Store
from kimberlite.telemetry import catalogue, region, supervisor
from kimberlite.telemetry.log import EventLines
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.loop import OTHER_PART, PARSE, PROTOCOL, SEND
from kimberlite.telemetry.recording.storage import StorageSample
from kimberlite.types import RELEASE, VIEW_MAX, Access, ClientId, Command, Message, Reason, Status
from kimberlite.vsr import verdict
from kimberlite.vsr.config import MS, CoreConfig
from kimberlite.vsr.replica import Replica

TICK_S = 0.01
GAUGES_EVERY = 10  # ticks
FREE_SPACE_EVERY = 100  # ticks
RETENTION_EVERY = 100  # ticks
LAST_LINES_S = 0.1  # for what the log was told before the error that ends this replica: the error is the last line
NO_THREAD_S = 1.0  # until a thread is asked for again that the system did not give


def core_config(config: Config) -> CoreConfig:
    """The core's bounds and timeouts out of the user's configuration."""
    timing, limits = config.timing, config.limits
    return CoreConfig(
        cluster=config.cluster_id,
        replica=config.cluster.replica,
        replica_count=config.replica_count,
        pipeline_max=limits.pipeline_max,
        queue_max=limits.queue_max,
        queue_bytes_max=limits.queue_bytes_max,
        prepare_bytes_max=limits.prepare_bytes_max,
        prepare_requests_max=limits.prepare_requests_max,
        request_bytes_max=limits.request_bytes_max,
        sessions_max=limits.sessions_max,
        repairs_max=limits.repairs_max,
        repairs_per_peer_max=limits.repairs_per_peer_max,
        heartbeat_ns=timing.heartbeat_ms * MS,
        commit_linger_ns=timing.commit_linger_ms * MS,
        suspect_min_ns=timing.suspect_min_ms * MS,
        suspect_max_ns=timing.suspect_max_ms * MS,
        vote_resend_ns=timing.vote_resend_ms * MS,
        vote_window_ns=timing.vote_window_ms * MS,
        view_change_ns=timing.view_change_ms * MS,
        view_change_max_ns=timing.view_change_max_ms * MS,
        do_view_change_resend_ns=timing.do_view_change_resend_ms * MS,
        prepare_resend_ns=timing.prepare_resend_ms * MS,
        repair_ns=timing.repair_ms * MS,
        repair_expiry_ns=timing.repair_expiry_ms * MS,
        abdicate_ns=timing.abdicate_ms * MS,
    )


class Node:
    """One replica. `async with Node(config, directory) as node:` constructed means ready to run.

    machine: the replicated state machine, the built-in EventLog when None. on_fatal: called once
    with the error after which this replica must not go on: it has fallen silent by then, and its data is
    safe. Leave the node then; its data can be started anew, after WriteFailedError in another process only. The
    default ends the process, with the exit code of the error; so does an `on_fatal` that raises.

    Nothing of the process around it is changed: no signal handler, limit, hook or setting of the garbage collector.

    Raises UsageError for a `machine` that is none. Entering raises, before anything is listened on: StorageError
    and its kinds, ConfigError, AddressInUseError, StateMachineError.

    Thread rules: everything runs on the event loop that entered it.
    """

    def __init__(
        self,
        config: Config,
        directory: Path | str,
        machine: StateMachine | None = None,
        *,
        on_fatal: Callable[[KimberliteError], None] = process.end,
    ) -> None:
        self.config = config
        self.directory = Path(directory)
        self.machine: StateMachine = check_machine(machine) if machine is not None else EventLog()
        self._on_fatal = on_fatal
        self._failure: KimberliteError | None = None
        self._messages: list[Message] = []
        self._requests: list[Message] = []
        self._round_scheduled = False
        self._applied_seen = 0
        self._tick_handle: asyncio.TimerHandle | None = None
        self._stopping = False
        self._ticks = 0
        self._telemetry_problem = ""
        self._region_descriptor = -1
        self._free_space = FreeSpace(config.storage.free_bytes_min)
        kept = config.retention
        own_clock = clock.Clock(*clock.now(), config.cluster.replica)
        self._retention = retention.Retention(kept.bytes_max, kept.age_max_s, own_clock)
        self.telemetry: supervisor.TelemetryProcess | None = None

    # Life

    async def __aenter__(self) -> Node:
        self._loop = asyncio.get_running_loop()
        storage = self.config.storage
        if self.directory.is_dir() and not (self.directory / superblock.NAME).exists():
            raise DataMissingError(
                f"{self.directory} holds no replica: nothing was started; create one with `kimberlite format`, or name "
                "the directory that holds it",
                path=str(self.directory),
            )
        opened_at = time.monotonic_ns()
        self._disk = MeasuredDisk(
            self.directory,
            mode=storage.mode,
            unsafe=storage.unsafe,
            inline_threshold_us=storage.inline_threshold_us,
        )
        try:
            config = self.config
            self.share = descriptors.share_out(
                descriptors.limit(), descriptors.in_use(), config.replica_count, config.limits.connections_max
            )
            self._store = Store(self._disk, framing.make_header, self.share.handles)
            self._check_identity()
            self.recovered = self._store.recover()
            await self._open_telemetry(opened_at)
            self._build()
            await self._server.start()
            await self._peers.start()
        except BaseException:
            await self._close_half_open()
            raise
        for dialler in self._peers.diallers:
            dialler.add_done_callback(self._on_task_end)
        self._loop.add_reader(self._disk.fileno(), self._on_disk)
        with contextlib.suppress(OSError):  # now, for later there may be no threads, and uvloop ends the process then
            await self._loop.getaddrinfo("localhost", None)
        self.recorder.loop.watch_gc()
        if self.telemetry is not None:
            self.telemetry.start()
        self._run(self.driver.start)
        self._run(self._update_gauges)
        self._tick()
        if self._failure is not None:
            await self.__aexit__(None, None, None)
            raise self._failure
        return self

    def _check_identity(self) -> None:
        """The data must be of the replica that the configuration speaks of."""
        cluster, store = self.config.cluster, self._store
        for name, configured, found in (
            ("cluster.id", self.config.cluster_id.hex(), store.cluster.hex()),
            ("cluster.replica", cluster.replica, store.replica),
            ("the number of cluster.addresses", self.config.replica_count, store.replica_count),
        ):
            if configured != found:
                raise ConfigError(
                    f"{name} is {configured}, but the data in {self.directory} is of {found}: nothing was started; "
                    "correct the configuration, or the directory",
                    configured=configured,
                    found=found,
                )
        view = store.view_state.view
        if view > VIEW_MAX:
            raise SuperblockError(
                f"the data in {self.directory} says that this replica is in view {view}; no cluster gets above "
                f"{VIEW_MAX}: an older release let a frame write that. Nothing was started. Take it back with: "
                f"kimberlite repair-view {self.directory} --others, and the directories or addresses of all others",
                cause="view_out_of_bounds",
            )

    async def _open_telemetry(self, opened_at: int) -> None:
        """The recorder and, when metrics are served, the socket. Raises AddressInUseError.

        Memory that is not to be had costs the metrics, not the replica.
        """
        config = self.config
        takes_over = region.crashed(self.directory)
        try:
            memory = region.create(self.directory, config.replica_count, self._info())
            self._region_descriptor = region.descriptor_of(memory)
        except (OSError, KimberliteError) as error:
            self._telemetry_problem = f"metrics are not shared: {error}"
            memory = Region.create(None, catalogue.layout(config.replica_count))
        replica = config.cluster.replica
        self.recorder = Recorder(memory, replica, config.replica_count, EventLines(replica), opened_at)
        self.recorder.storage.superblock_damaged(self._store.superblock_damaged)
        self._disk.switch = self.recorder.loop.switch
        self._disk.on_error = self.recorder.storage.failed
        if config.telemetry.enabled and memory.path is not None:
            host, port = config.telemetry_address
            names = [str(path) for path in region.paths(self.directory)]
            listener = await supervisor.listen(host, port, supervisor.TAKEOVER_S if takes_over else 0.0, names)
            self.telemetry = supervisor.TelemetryProcess(
                str(memory.path), self._region_descriptor, listener, config.telemetry.units
            )
            if port == 0:
                process.say(f"telemetry at http://{self.telemetry.address}\n")

    def _info(self) -> dict[str, object]:
        """What readers of the metrics may know of this replica."""
        config = self.config
        return {
            "cluster": config.cluster.id,
            "replica": config.cluster.replica,
            "replica_count": config.replica_count,
            "segment_bytes": self._store.segment_bytes,
            "contact_ms": core_config(config).contact_ns // MS,
            "build": {
                "version": __version__,
                "release": str(RELEASE),
                "python": platform.python_version(),
                "checksum_kernel": checksum.kernel(),
            },
            "config": {
                "telemetry_units": config.telemetry.units,
                "storage_mode": self._disk.mode,
                "heartbeat_ms": str(config.timing.heartbeat_ms),
                "suspect_min_ms": str(config.timing.suspect_min_ms),
                "suspect_max_ms": str(config.timing.suspect_max_ms),
                "pipeline_max": str(config.limits.pipeline_max),
                "queue_max": str(config.limits.queue_max),
                "sessions_max": str(config.limits.sessions_max),
                "segment_bytes": str(self._store.segment_bytes),
            },
        }

    async def _close_half_open(self) -> None:
        """The start has failed: leave nothing of it behind."""
        for part in (getattr(self, "_server", None), getattr(self, "_peers", None), self.telemetry):
            if part is not None:
                await part.stop()
        if hasattr(self, "recorder"):
            self.recorder.close()
            region.remove(self.recorder.region)
            self._close_region()
        self._disk.close()

    def _update_gauges(self) -> None:
        """What is not counted as it happens is looked at now."""
        self.recorder.loop.switch(OTHER_PART)
        now = time.monotonic_ns()
        core, disk, store = self.driver.core, self._disk, self._store
        core.now = now
        self.recorder.update(core.snapshot(), now, self._server.connections, self.share.clients)
        stats = disk.stats()
        self.recorder.storage.update(
            StorageSample(
                write_latencies=disk.take_latencies(),
                sync_latencies=disk.take_sync_latencies(),
                reads=disk.reads,
                read_bytes=disk.read_bytes,
                writes=stats["writes"] + disk.zeros.writes,
                bytes=stats["bytes"] + disk.zeros.bytes,
                switches=stats["switches"],
                inline=bool(stats["inline_now"]),
                entry_bytes=store.bytes_written,
                log_bytes=store.bytes_used,
                entries=store.head - store.first_op + 1,
                first_position=store.first_position,
                checkpoint_op=store.checkpoint_op,
                trim_due_at=self._retention.waits_since,
                free_bytes=self._look_at_space() if self._ticks % FREE_SPACE_EVERY == 0 else None,
            )
        )
        kept = self._retention
        self.recorder.gauges.update_clock(kept.clock.offset, kept.clock.ahead, kept.is_suspended)
        scrub = self.scrubber
        self.recorder.storage.scrubbed(scrub.tours, scrub.ended_at, scrub.bytes, scrub.fraction, scrub.damage.items())

    def _look_at_space(self) -> int:
        free = self._disk.free_bytes()
        self.driver.core.is_short_of_space = self._free_space.look(free)
        return free

    def _build(self) -> None:
        config = self.config
        machine = guarded(self.machine)
        restore(machine, self.recovered)
        now = time.monotonic_ns()
        core = Replica(
            config=core_config(config),
            codec=FastCodec(),
            recovered=self.recovered,
            headers=known_headers(self._store, self.recovered),
            seed=secrets.randbits(64),
            now=now,
        )
        core.set_clock_offset(time.time_ns() - now)
        self.recorder.executions.replay_to = core.replay_to
        self.driver = Driver(
            core,
            self._store,
            MeasuredMachine(machine, self.recorder.executions),
            self,
            self.recorder,
            time.monotonic_ns,
            CheckpointPolicy(config.checkpoint.ops, config.checkpoint.bytes),
            self._in_background,
        )
        self.scrubber = Scrubber(
            self._store,
            bytes_per_s=config.scrub.bytes_per_s,
            interval_ns=config.scrub.tour_interval_s * 1_000_000_000,
            seed=secrets.randbits(64),
            now=time.monotonic_ns(),
        )
        self._peers = PeerNetwork(
            index=core.index,
            addresses=config.peer_addresses,
            listen_on=config.peer_address,
            cluster=config.cluster_id,
            make_header=framing.make_header,
            view=lambda: core.view,
            on_messages=self._on_peer_messages,
            on_refusal=self._on_peer_refusal,
            frame_max=config.limits.frame_bytes_max,
            strangers_max=self.share.strangers,
            counters=self.recorder.traffic,
            seed=secrets.randbits(64),
        )
        reader = LogReader(
            self._store,
            end=lambda: core.positions,
            applied=lambda: core.applied,
            damaged=self._on_damaged,
        )
        self._server = ClientServer(
            index=core.index,
            members=config.cluster.addresses,
            listen_on=config.client_address,
            cluster=config.cluster_id,
            make_header=framing.make_header,
            view=lambda: core.view,
            on_requests=self._on_client_requests,
            status=self.status,
            reader=reader,
            event_bytes_max=config.limits.event_bytes_max,
            request_bytes_max=config.limits.request_bytes_max,
            events_max=config.limits.events_per_request_max,
            frame_max=config.limits.frame_bytes_max,
            bounds=Bounds(
                self.share.clients,
                self.share.waiting_room,
                config.limits.connection_bytes_max,
                config.limits.frame_ms / 1000,
                config.limits.reply_ms / 1000,
            ),
            progress=lambda: core.log.op,
            held_elsewhere=lambda: self._peers.memory_bytes,
            counters=self.recorder.traffic,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._loop.remove_reader(self._disk.fileno())
        await self._server.stop()
        await self._peers.stop()
        has_failed = isinstance(self._failure, WriteFailedError)
        is_at_rest = not has_failed and await self._disk.comes_to_rest(self.config.timing.drain_ms / 1000)
        is_in_order = self._failure is None and is_at_rest
        if is_at_rest:
            self._store.close()  # what was on its way has arrived; the data can be started anew, also in this process
        # Only an end in order says so; after a failure the last values stay, to be looked at.
        self.recorder.close(in_order=is_in_order)
        if self.telemetry is not None:
            await self.telemetry.stop()
        if is_in_order:
            region.remove(self.recorder.region)
        self._close_region()

    def _close_region(self) -> None:
        if self._region_descriptor >= 0:
            os.close(self._region_descriptor)
            self._region_descriptor = -1

    async def drain(self) -> None:
        """Refuse new requests, let what is under way end, hand over as primary: at most timing.drain_ms.

        Waits only for what can still happen: a commit needs replicas that we are connected to and hear, and
        a new primary needs a quorum of such others, without us.
        """
        core = self.driver.core
        self._run(core.drain)
        self._run(self._update_gauges)  # at once: readiness must end before the replica does
        deadline = self._loop.time() + self.config.timing.drain_ms / 1000

        def has(others: int) -> bool:
            found = sum(verdict.is_heard(core, replica) for replica in self._peers.connected)
            return self._failure is None and self._loop.time() < deadline and found >= others

        while core.pipeline and has(core.quorums.replication - 1):
            await asyncio.sleep(TICK_S)
        if core.is_primary and core.status == Status.NORMAL and has(core.quorums.view_change):
            view = core.view
            self._run(self.driver.step_down)
            while core.view == view and has(core.quorums.view_change):
                await asyncio.sleep(TICK_S)

    # The driver's network

    def send(self, replica: int, message: Message) -> None:
        self.recorder.loop.switch(SEND)
        self._peers.send(replica, message)
        self.recorder.loop.switch(PROTOCOL)

    def send_client(self, client: ClientId, message: Message) -> None:
        self.recorder.loop.switch(SEND)
        self._server.send_client(client, message)
        self.recorder.loop.switch(PROTOCOL)
        if message.header.command == Command.REPLY:
            self.recorder.executions.replied(message.header.op)

    def refuse(self, message: Message) -> None:
        self._peers.refuse(message)

    # Inputs

    def _on_peer_messages(self, messages: list[Message]) -> None:
        self._messages += messages
        self._schedule_round()

    def _on_peer_refusal(self, replica: int, refusal: Refusal) -> None:
        """The process at a peer's address is another one. Ends this replica when the others at the
        configured addresses can not make a quorum with it and none of them was ever the right one."""
        core = self.driver.core
        process.say(f"kimberlite: replica {replica} can not be used: {refusal}\n")
        refusals = self._peers.refusals
        if self._peers.met or core.config.replica_count - len(refusals) >= core.quorums.replication:
            return
        kind = WrongClusterError if all(r.reason == Reason.WRONG_CLUSTER for r in refusals.values()) else ConfigError
        who = f"replica {core.index} of {core.config.replica_count} of cluster {self.config.cluster.id}"
        self._fail(
            kind(
                f"this is {who}, but {'; '.join(map(str, refusals.values()))}: no quorum can be made, nothing was "
                "changed. Correct cluster.addresses, or format a replica for that cluster in another directory",
                refusals=dict(refusals),
            )
        )

    def _on_client_requests(self, messages: list[Message]) -> None:
        self._requests += messages
        self._schedule_round()

    def _schedule_round(self) -> None:
        if not self._round_scheduled:
            self._round_scheduled = True
            self.recorder.loop.turn_pending = True
            self._loop.call_soon(self._round)

    def _round(self) -> None:
        """Everything that came within this turn of the loop."""
        self._round_scheduled = self.recorder.loop.turn_pending = False
        messages, self._messages = self._messages, []
        requests, self._requests = self._requests, []
        self._run(lambda: self.driver.on_input(messages, requests))

    def _on_disk(self) -> None:
        self._run(self.driver.on_disk)

    def _on_damaged(self, op: int) -> None:
        self._run(self.driver.on_damage)

    def _in_background(self, work: Callable[[], bytes], done: Callable[[bytes], None]) -> None:
        """Write a snapshot on a thread; what comes of it is handed on here."""

        def finished(future: asyncio.Future[bytes]) -> None:
            if not future.cancelled():
                self._run(lambda: done(future.result()))

        try:
            self._loop.run_in_executor(None, work).add_done_callback(finished)
        except RuntimeError:  # the system gives no thread now
            self._loop.call_later(NO_THREAD_S, self._in_background, work, done)

    def _apply_retention(self) -> None:
        """As primary: have trimmed what the configuration no longer keeps."""
        times = retention.Times(*clock.now(), time.monotonic_ns())
        trim = self._retention.look(self.driver.core, self._store, times)
        if trim is not None:
            self.driver.trim(*trim)

    def _scrub(self) -> None:
        if self.scrubber.tick(time.monotonic_ns()):
            self.driver.on_damage()

    def _tick(self) -> None:
        self._tick_handle = self._loop.call_later(TICK_S, self._tick)
        self._ticks += 1
        self._run(self._on_tick)
        self._run(self._scrub)
        if self._ticks % RETENTION_EVERY == 0:
            self._run(self._apply_retention)
        if self._ticks % GAUGES_EVERY == 0:
            self._run(self._update_gauges)

    def _on_tick(self) -> None:
        self.driver.core.set_clock_offset(time.time_ns() - time.monotonic_ns())
        self.driver.on_tick()

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """A task that goes on for as long as the replica has ended: it was cancelled, or it failed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(process.unexpected(error))

    def _run(self, action: Callable[[], None]) -> None:
        """Let the driver act: every way into the core, the store and the state machine. An exception that comes out
        of it has left a step half-way, and ends this replica at once."""
        if self._failure is not None or self._stopping:
            return
        try:
            self._act(action)
        except KimberliteError as error:
            self._fail(error)
        except Exception as error:
            self._fail(process.unexpected(error))
        except BaseException as error:  # KeyboardInterrupt in a host program, for one
            self._fail(InvariantError(f"a step was cut short by {type(error).__name__}: restart this replica"))
            raise

    def _act(self, action: Callable[[], None]) -> None:
        left = self.recorder.loop.switch(PROTOCOL)
        action()
        if self.driver.behind:
            self._schedule_round()
        applied = self.driver.core.applied
        if applied != self._applied_seen:
            self._applied_seen = applied
            self._server.on_applied()
        if left == PARSE:
            self.recorder.loop.switch(PARSE)  # called while frames are handled
        else:
            self.recorder.loop.handled()

    def _fail(self, error: KimberliteError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        try:
            self._fall_silent()
            self.recorder.end_log(LAST_LINES_S)
            if isinstance(error, WriteFailedError):
                self.recorder.storage.failed(Access.WRITE)
            self._on_fatal(error)
        except Exception:
            process.end(error)

    def _fall_silent(self) -> None:
        """Nothing is sent any more, and nothing taken."""
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._loop.remove_reader(self._disk.fileno())
        self._server.abort()
        self._peers.abort()

    # Status

    def status(self) -> dict[str, object]:
        """What `kimberlite status` shows of this replica."""
        now = time.monotonic_ns()
        core = self.driver.core
        core.now = now
        snapshot = core.snapshot()
        stats = self._disk.stats()
        free = self._disk.free_bytes()
        return {
            "replica": snapshot.replica,
            "cluster": self.config.cluster.id,
            "version": __version__,
            "pid": os.getpid(),
            "status": Status(snapshot.status).name.lower(),
            "role": "primary" if snapshot.is_primary else "backup",
            "primary": snapshot.primary,
            "view": snapshot.view,
            "log_view": snapshot.log_view,
            "op": snapshot.op,
            "commit": snapshot.commit,
            "applied": snapshot.applied,
            "positions": snapshot.positions,
            "replica_count": snapshot.replica_count,
            "quorum": snapshot.quorum,
            "quorum_margin": snapshot.quorum_margin,
            "contact_s": core.config.contact_ns / 1e9,
            "can_commit": not snapshot.cannot_commit,
            "cannot_commit": list(snapshot.cannot_commit),
            "stuck_op": snapshot.stuck_op,
            "pipeline": {"depth": snapshot.pipeline_depth, "limit": snapshot.pipeline_limit},
            "queue": {"depth": snapshot.queue_depth, "limit": snapshot.queue_limit},
            "backlog": {"bytes": snapshot.held_bytes, "limit": snapshot.held_bytes_limit},
            "connections": {
                "clients": self._server.connections,
                "limit": self.share.clients,
                "descriptors": self.share.limit,
            },
            "sessions": {"active": snapshot.sessions, "limit": snapshot.sessions_limit},
            "faulty": snapshot.faulty,
            "repairs_in_flight": snapshot.repairs_in_flight,
            "storage": {
                "mode": self._disk.mode,
                "unsafe": self.config.storage.unsafe,
                "inline": bool(stats["inline_now"]),
                "write_latency_us": stats["latency_ns"] // 1000,
                "wait_s": round(snapshot.disk_waits / 1e9, 3),
                "bytes": self._store.bytes_used,
                "free_bytes": free,
                "free_bytes_min": self.config.storage.free_bytes_min,
                "room_bytes": self._store.room.bytes,
                "full": snapshot.is_disk_full,
                "checkpoint_op": self._store.checkpoint_op,
                "first_op": self._store.first_op,
                "first_position": self._store.first_position,
            },
            "scrub": {
                "tours": self.scrubber.tours,
                "last_tour_s": round((now - self.scrubber.ended_at) / 1e9, 3) if self.scrubber.ended_at else None,
                "fraction": round(self.scrubber.fraction, 4),
                "bytes": self.scrubber.bytes,
                "damage": {what.value: count for what, count in self.scrubber.damage.items()},
            },
            "clock": self._retention.clock.document(),
            "peers": [
                {
                    "replica": peer.replica,
                    "last_heard_s": round((now - peer.last_heard) / 1e9, 3) if peer.last_heard else None,
                    "op": peer.op,
                    "round_trip_us": peer.round_trip // 1000,
                }
                for peer in snapshot.peers
            ],
            "refused": str(core.refusal) if core.refusal is not None else None,
            "telemetry": self.telemetry.status()
            if self.telemetry is not None
            else {"problem": self._telemetry_problem},
            "unhealthy": "; ".join(
                [
                    *filter(
                        None,
                        [
                            snapshot.unhealthy,
                            str(self._store.disk_full or ""),
                            self._free_space.reason(free),
                            self._retention.reason(now),
                        ],
                    ),
                    *(f"replica {index}: {refusal}" for index, refusal in sorted(self._peers.refusals.items())),
                ]
            ),
        }


async def _serve(config: Config, directory: Path) -> NoReturn:
    loop = asyncio.get_running_loop()
    process.end_on_surprise(loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Node(config, directory) as node:
        # What is alive now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        if capped := node.share.sentence(config.limits.connections_max):
            process.say(f"kimberlite: {capped}\n")
        notify.send(f"READY=1\nSTATUS=replica {config.cluster.replica} runs")
        await stop.wait()
        notify.send("STOPPING=1")
        await node.drain()
    # Not through the end of the interpreter, which waits for threads: a name that is being resolved, a snapshot.
    os._exit(0)


def run_node(config: Config, directory: Path) -> NoReturn:
    """Run one replica in a process of its own until SIGTERM or SIGINT, then end it. Errors at the start are raised."""
    import uvloop

    descriptors.raise_limit()
    uvloop.run(_serve(config, directory))
