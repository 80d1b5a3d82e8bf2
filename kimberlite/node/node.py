"""The life of one replica as an asyncio object: it starts, takes what comes in, and ends.

What it is made of is put together in assembly.py; the jobs that it does again and again are rows of `Node._jobs`.

Frames that arrive within one turn of the loop are handed to the driver together, so that requests share a prepare and
acknowledgements share a frame; where nothing is under way that they could share it with, at once. A failed write or a
broken invariant ends the process at once, with the exit code of its error and nothing further sent: see `Node._run`
and process.py.

May import everything below it; nothing imports it but the command line and users.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from kimberlite import __version__, process
from kimberlite.config import Config
from kimberlite.errors import (
    ConfigError,
    InvariantError,
    KimberliteError,
    StateMachineError,
    WriteFailedError,
    WrongClusterError,
)
from kimberlite.net.peers import Refusal
from kimberlite.net.sockets import show
from kimberlite.node import clock, descriptors, notify, retention
from kimberlite.node import status as documents
from kimberlite.node.assembly import Inputs, Parts, assemble
from kimberlite.node.driver import Driver
from kimberlite.node.machine import check_machine
from kimberlite.node.routine import TICK_S, Job, Routine
from kimberlite.state_machine import EventLog, StateMachine
from kimberlite.storage.scrub import Scrubber
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.loop import PARSE, PROTOCOL
from kimberlite.types import Access, Message, Reason, Status

GAUGES_EVERY = 10  # ticks
MEMORY_EVERY = 100
FREE_SPACE_EVERY = 100  # ticks
RETENTION_EVERY = 100  # ticks
LAST_LINES_S = 0.1  # for what the log was told before the error that ends this replica: the error is the last line
QUOTING = (InvariantError, StateMachineError)  # errors whose text quotes what a program raised, which may be an event
NO_THREAD_S = 1.0  # until a thread is asked for again that the system did not give


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
        self._stopping = False
        self._messages: list[Message] = []
        self._requests: list[Message] = []
        self._gone: list[int] = []
        self._round_scheduled = False
        self._arrivals = 0  # of requests, from one connection each, since the last round
        self._is_crowded = False  # the last round with requests had those of several connections
        self._applied_seen = 0
        self._view_told = 0
        self._is_member = False

    # Life

    async def __aenter__(self) -> Node:
        began = time.monotonic_ns()
        self._loop = asyncio.get_running_loop()
        self._routine = Routine(self._loop, self._run, self._jobs())
        inputs = Inputs(
            on_peer_messages=self._on_peer_messages,
            on_peer_refusal=self._on_peer_refusal,
            on_peer_gone=self._on_peer_gone,
            on_client_requests=self._on_client_requests,
            on_damage=self._on_damage,
            status=self.status,
            background=self._in_background,
        )
        async with contextlib.AsyncExitStack() as undo:
            parts = self.parts = await assemble(self.config, self.directory, self.machine, inputs, undo)
            await parts.server.start()
            await parts.peers.start()
            undo.pop_all()
        for dialler in parts.peers.diallers:
            dialler.add_done_callback(self._on_task_end)
        self._loop.add_reader(parts.disk.fileno(), self._on_disk)
        with contextlib.suppress(OSError):  # now, for later there may be no threads, and uvloop ends the process then
            await self._loop.getaddrinfo("localhost", None)
        parts.recorder.loop.watch_gc()
        if parts.metrics.process is not None:
            parts.metrics.process.start()
        self._run(parts.driver.start)
        self._run(parts.gauges.look_at_space)
        self._run(parts.gauges.update)
        self._routine.start()
        self._say_started(began)
        if self._failure is not None:
            await self.__aexit__(None, None, None)
            raise self._failure
        return self

    def _say_started(self, began: int) -> None:
        parts, log = self.parts, self.parts.log
        if capped := parts.share.sentence(self.config.limits.connections_max):
            log.say("connections_capped", reason=capped)
        log.say(
            "started",
            version=__version__,
            pid=os.getpid(),
            replica_count=self.config.replica_count,
            data=str(self.directory),
            clients=show(*self.config.client_address),
            telemetry=parts.metrics.process.address if parts.metrics.process is not None else "",
            opening_ns=time.monotonic_ns() - began,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._routine.stop()
        parts = self.parts
        parts.scrubber.close()
        self._loop.remove_reader(parts.disk.fileno())
        await parts.server.stop()
        await parts.peers.stop()
        has_failed = isinstance(self._failure, WriteFailedError)
        is_at_rest = not has_failed and await parts.disk.comes_to_rest(self.config.timing.drain_ms / 1000)
        if is_at_rest:
            parts.store.close()  # what was on its way has arrived; the data can be started anew, also in this process
        if self._failure is None:
            parts.log.say("stopped", how="in order" if is_at_rest else "as in a crash")
        await parts.metrics.close(in_order=self._failure is None and is_at_rest)

    async def drain(self) -> None:
        """Refuse new requests, let what is under way end, hand over as primary: at most timing.drain_ms.

        Waits only for what can still happen: a commit needs replicas that we are connected to and hear, and
        a new primary needs a quorum of such others, without us.
        """
        self.parts.log.say("stopping", drain_ms=self.config.timing.drain_ms)
        core, state = self.driver.core, self.driver.core.state
        quorums = state.membership.quorums
        self._run(core.drain)
        self._run(self.parts.gauges.update)  # at once: readiness must end before the replica does
        deadline = self._loop.time() + self.config.timing.drain_ms / 1000

        def has(others: int) -> bool:
            found = sum(state.is_heard(replica) for replica in self.parts.peers.connected)
            return self._failure is None and self._loop.time() < deadline and found >= others

        while core.leading is not None and core.leading.pipeline and has(quorums.replication - 1):
            await asyncio.sleep(TICK_S)
        if core.leading is not None and has(quorums.view_change):
            view = state.view
            self._run(self.driver.step_down)
            while state.view == view and has(quorums.view_change):
                await asyncio.sleep(TICK_S)

    # What it is made of

    parts: Parts  # from the moment it is entered

    @property
    def driver(self) -> Driver:
        return self.parts.driver

    @property
    def recorder(self) -> Recorder:
        return self.parts.recorder

    @property
    def scrubber(self) -> Scrubber:
        return self.parts.scrubber

    def status(self) -> dict[str, object]:
        """What `kimberlite status` shows of this replica."""
        return documents.status(self.parts)

    # Inputs

    def _on_peer_messages(self, messages: list[Message]) -> None:
        self._messages += messages
        self._go_on(under_way=1)

    def _on_peer_gone(self, replica: int) -> None:
        self._gone.append(replica)  # behind its last frames
        self._schedule_round()

    def _on_client_requests(self, messages: list[Message]) -> None:
        self._requests += messages
        self._arrivals += 1
        self._go_on(under_way=0)

    def _go_on(self, under_way: int) -> None:
        """What came is acted upon at once, when nothing else could share its round: on a backup, and on a primary that
        has no more than so many ops under way and whose requests have come one at a time."""
        leading = self.parts.driver.core.leading
        if self._round_scheduled:
            return
        if leading is None or (
            len(leading.pipeline) <= under_way and not leading.requests.queue and not self._is_crowded
        ):
            self._round()
        else:
            self._schedule_round()

    def _schedule_round(self) -> None:
        """At the end of this turn of the loop, with all that comes in it."""
        if not self._round_scheduled:
            self._round_scheduled = True
            self.parts.recorder.loop.turn_pending = True
            self._loop.call_soon(self._round)

    def _round(self) -> None:
        """Everything that has come since the last one."""
        parts = self.parts
        self._round_scheduled = parts.recorder.loop.turn_pending = False
        if self._arrivals:
            self._is_crowded, self._arrivals = self._arrivals > 1, 0
        messages, self._messages = self._messages, []
        requests, self._requests = self._requests, []
        self._run(lambda: parts.driver.on_input(messages, requests))
        gone, self._gone = self._gone, []
        for replica in gone:
            self._run(partial(parts.driver.on_peer_gone, replica))

    def _on_disk(self) -> None:
        self._run(self.parts.driver.on_disk)

    def _on_damage(self, op: int) -> None:
        self._run(self.parts.driver.on_damage)

    def _on_peer_refusal(self, replica: int, refusal: Refusal) -> None:
        """The process at a peer's address is another one. Ends this replica when the others at the
        configured addresses can not make a quorum with it and none of them was ever the right one."""
        state, peers = self.parts.driver.core.state, self.parts.peers
        self.parts.log.say("peer_refused", peer=replica, reason=str(refusal))
        refusals = peers.refusals
        if peers.met or state.config.replica_count - len(refusals) >= state.membership.quorums.replication:
            return
        kind = WrongClusterError if all(r.reason == Reason.WRONG_CLUSTER for r in refusals.values()) else ConfigError
        who = f"replica {state.index} of {state.config.replica_count} of cluster {self.config.cluster.id}"
        self._fail(
            kind(
                f"this is {who}, but {'; '.join(map(str, refusals.values()))}: no quorum can be made; its log is as it "
                "was. Correct cluster.addresses, or format a replica for that cluster in another directory",
                refusals=dict(refusals),
            )
        )

    def _in_background(self, work: Callable[[], bytes], done: Callable[[bytes], None]) -> None:
        """Write a snapshot on a thread; what comes of it is handed on here."""

        def finished(future: asyncio.Future[bytes]) -> None:
            if not future.cancelled():
                self._run(lambda: done(future.result()))

        try:
            self._loop.run_in_executor(None, work).add_done_callback(finished)
        except RuntimeError:  # the system gives no thread now
            self._loop.call_later(NO_THREAD_S, self._in_background, work, done)

    # Jobs

    def _jobs(self) -> tuple[Job, ...]:
        return (
            Job("protocol", 1, self._on_tick),
            Job("scrub", 1, self._scrub),
            Job("retention", RETENTION_EVERY, self._apply_retention),
            Job("free space", FREE_SPACE_EVERY, lambda: self.parts.gauges.look_at_space()),
            Job("gauges", GAUGES_EVERY, lambda: self.parts.gauges.update()),
            Job("memory", MEMORY_EVERY, lambda: self.parts.gauges.look_at_memory()),
        )

    def _on_tick(self) -> None:
        driver = self.parts.driver
        driver.core.set_clock_offset(time.time_ns() - time.monotonic_ns())
        driver.on_tick()

    def _scrub(self) -> None:
        if self.parts.scrubber.tick(time.monotonic_ns()):
            self.parts.driver.on_damage()

    def _apply_retention(self) -> None:
        """As primary: have trimmed what the configuration no longer keeps."""
        parts = self.parts
        times = retention.Times(*clock.now(), time.monotonic_ns())
        trim = parts.retention.look(parts.driver.core, parts.store, times)
        if trim is not None:
            parts.driver.trim(*trim)

    # Steps, and the end of them

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
        parts = self.parts
        meter, driver = parts.recorder.loop, parts.driver
        left = meter.switch(PROTOCOL)
        action()
        if driver.behind:
            self._schedule_round()
        applied = driver.core.applied
        if applied != self._applied_seen:
            self._applied_seen = applied
            parts.server.on_applied()
        state = driver.core.state
        if not self._is_member and state.own.is_formed:
            self._is_member = True
            self._messages.clear()  # of whom, is asked only now: frames get lost at any time
            parts.peers.judge_again()
        if state.view != self._view_told and state.status == Status.NORMAL:
            self._view_told = state.view
            parts.server.tell_view()
        if left == PARSE:
            meter.switch(PARSE)  # called while frames are handled
        else:
            meter.handled()

    def _fail(self, error: KimberliteError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        try:
            self._fall_silent()
            reason = "see the last line" if isinstance(error, QUOTING) else str(error)
            self.parts.log.say("failed", error=type(error).__name__, exit_code=error.exit_code, reason=reason)
            self.parts.recorder.end_log(LAST_LINES_S)
            if isinstance(error, WriteFailedError):
                self.parts.recorder.storage.failed(Access.WRITE)
            self._on_fatal(error)
        except Exception:
            process.end(error)

    def _fall_silent(self) -> None:
        """Nothing is sent any more, and nothing taken."""
        self._routine.stop()
        self._loop.remove_reader(self.parts.disk.fileno())
        self.parts.server.abort()
        self.parts.peers.abort()


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
