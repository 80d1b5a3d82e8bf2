"""The world of one run: replicas, clients, network, disks, and the faults that befall them.

A discrete-event simulation: a queue of (time, sequence, action). Replicas are the production
Driver over the production Store over a SimDisk; clients are the production Session. Nothing
here reads a clock or an entropy source but the seed's three streams.

    safety phase    anything may fail; I-checks at every step
    liveness phase  faults end, and everything pending must finish (liveness.py); E-checks at the end
"""

from __future__ import annotations

import gc
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import xxhash

from kimberlite.errors import KimberliteError, NotMemberError, WriteFailedError
from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.node.clock import JUMP_NS
from kimberlite.node.driver import requests_of
from kimberlite.storage.superblock import NAME as SUPERBLOCK
from kimberlite.types import Birth, Bytes, Identity, Message
from kimberlite.vopr import births, conversions, departures
from kimberlite.vopr.checkers import (
    Checkers,
    Promises,
    Violation,
    durable_promises,
    events_of,
)
from kimberlite.vopr.checkpoints import CheckpointOracle
from kimberlite.vopr.clients import SimClient, SimReader
from kimberlite.vopr.disk import FOREVER, Device, Files, Replaced, SimDisk, TearPolicy
from kimberlite.vopr.faults import ARGUMENT_END, KINDS, START_NS, Fault, lies_of
from kimberlite.vopr.identities import Drawer, draft_of, identity_on, is_awaited, is_unnoticed
from kimberlite.vopr.leads import Leads
from kimberlite.vopr.liveness import liveness
from kimberlite.vopr.logs import Logs
from kimberlite.vopr.network import Address, SimNetwork
from kimberlite.vopr.nodes import TICK_NS, SimNode, boot, format_disk
from kimberlite.vopr.plan import EPOCH_NS, MS, Plan, streams
from kimberlite.vopr.questions import Questions
from kimberlite.vopr.trace import Trace
from kimberlite.vsr.members import Membership

FAR_NS = 1 << 40 << 20  # beyond the end of every run
GC_OBJECTS = 20_000  # made and not freed, between two collections
LOOK_NS = 1 * MS  # between two looks whether a phase is done
SAFETY_NS_MAX = 120_000 * MS
SERVE_DELAY_NS = 20_000
ARRIVED_NS = 5000 * MS  # so long no frame takes
UNREAD = (-1, Promises())  # no version has that number
FAULT_ORDER = -(1 << 62)  # faults come before anything else of the same instant


@contextmanager
def rarely_collected() -> Iterator[None]:
    """A run makes few cycles, and keeps much: looking through all of it for garbage finds next to nothing."""
    before = gc.get_threshold()
    gc.set_threshold(GC_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class World:
    """See the module docstring. `run` raises Violation; everything else is a bug of ours."""

    def __init__(self, plan: Plan, *, keep_trace: bool = False, faults: Sequence[Fault] | None = None):
        """faults: to inject instead of drawing them, for replays and minimizing; `faults.check` has seen them."""
        self.plan = plan
        self.schedule, self.faults, self.workload = streams(plan.seed)
        self.cluster = xxhash.xxh3_128_digest(b"cluster %d" % plan.seed)
        self.now = START_NS
        self.trace = Trace(keep_trace)
        self.counts: dict[str, int] = {}
        self.checkers = Checkers(plan.replica_count, plan.sessions_max)
        self.checkpoint_policy = CheckpointPolicy(plan.checkpoint_ops, plan.checkpoint_bytes)
        self.questions, self.leads, self.logs = Questions(), Leads(), Logs()
        self.checkpoints = CheckpointOracle(self.checkpoint_policy.ops, self.checkpoint_policy.bytes)
        self.network = SimNetwork(plan, self.schedule, lambda: self.now, self.at, self._deliver)
        self.files = [Files(on_write=partial(self.on_write, index)) for index in range(plan.replica_count)]
        self.drawer = Drawer()
        self.injected: list[Fault] = []
        self._scripted = deque(faults) if faults is not None else None
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._fault_sequence = FAULT_ORDER
        self._promises: dict[int, tuple[int, Promises]] = {}  # replica -> what its superblock said in that version
        # Silent damage strikes one replica only, so that a good copy of everything remains; checks that
        # look at a disk take this replica's word while damage is about.
        self.rot_victim = self.faults.randrange(plan.replica_count) if plan.replica_count >= 3 else None
        self.rotten = False
        self.devices = [Device() for _ in range(plan.replica_count)]
        if self.rot_victim is not None and plan.weights.get("disk_lie"):
            self.devices[self.rot_victim].lies = lies_of(plan.seed)
            self.count("DISK_LIES")
        elif self.rot_victim is not None and plan.weights.get("old_witness"):
            self.devices[self.rot_victim].replaced = Replaced()
        self.clock_error_ns = plan.clock_skew_ns  # of a clock that is believed: by so much it is wrong at most
        self.wrong_clocks: dict[int, int] = {}  # replica -> by how much that of its machine is wrong, starts included
        self.slow_nodes: dict[int, int] = {}  # replica -> how long it does nothing after each input
        self.is_late_return = False  # under way
        self.idle_frames: Counter[tuple[int, int, int]] | None = None  # sender, receiver, command
        self.quiet_since: int | None = None  # nothing fails since then but what the phase late return lets fail
        # Each is told of every replica that has just acted, until it says that its moment has come.
        self.ambushes: list[Callable[[SimNode], bool]] = []
        # Crashes in the middle of its next write: to the file of that name, to any when empty.
        self.doomed: list[str | None] = [None] * plan.replica_count
        self.nodes: list[SimNode] = []
        self.is_old = plan.converted  # data of the first release, until all have stopped once
        self.left_out: tuple[int, ...] = ()  # of the birth: replicas that do not come, as the others are told
        if not self.is_old:
            self.checkers.membership = Membership.of_record(draft_of(self))
        for index in range(plan.replica_count):
            format_disk(self, index)
        for index in range(plan.replica_count):
            self.nodes.append(boot(self, index, 0))
        self.clients = [SimClient(self, index) for index in range(plan.client_count)]
        self._waiting = 0  # the client that was found waiting last
        self.readers = [SimReader(self, index) for index in range(plan.reader_count)]
        for number in range(plan.requests):
            self.clients[number % plan.client_count].quota += 1

    @property
    def membership(self) -> Membership:
        return self.checkers.membership

    @property
    def whole(self) -> list[int]:
        """The replicas whose disk is not lost for good."""
        return [index for index in range(self.plan.replica_count) if index not in self.drawer.lost]

    def count(self, label: str, by: int = 1) -> None:
        """What a campaign wants to have seen: see campaign.LABELS."""
        self.counts[label] = self.counts.get(label, 0) + by

    def on_write(self, index: int, name: str, offset: int, data: Bytes) -> None:
        self.trace.written(self.now, index, name, offset, data)

    # Time

    def at(self, when: int, action: Callable[..., None], *arguments: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (when, self._sequence, action, arguments))

    def _at_fault(self, when: int, action: Callable[[], None]) -> None:
        """Like `at`, in an order that does not depend on what else was scheduled: a run whose faults are
        given is the same as the one that drew them."""
        self._fault_sequence += 1
        heapq.heappush(self._queue, (when, self._fault_sequence, action, ()))

    def run_until(self, deadline: int, done: Callable[[], bool]) -> bool:
        """Run events until `done` or the deadline; whether it is done."""
        queue, pop = self._queue, heapq.heappop
        look_at = self.now + LOOK_NS  # at instants that do not depend on what is in the queue
        while queue and (when := queue[0][0]) <= deadline:
            if when > look_at:
                if done():
                    self.now = look_at
                    return True
                look_at += (when - look_at + LOOK_NS - 1) // LOOK_NS * LOOK_NS
            self.now, _, action, arguments = pop(queue)
            action(*arguments)
        self.now = max(self.now, deadline)
        return done()

    # Replicas

    def make_disk(self, index: int, latency: Callable[[], int], wake: Callable[[int], None]) -> SimDisk:
        return SimDisk(self.files[index], lambda: self.now, latency, wake, self.devices[index])

    def act(self, index: int, life: int, action: Callable[..., None], *arguments: Any) -> None:
        """Give an input to a replica, unless it has died since; then check it. Who is paused takes it later."""
        node = self.nodes[index]
        if node.life != life or not node.up:
            return
        if self.now < node.paused_until:
            node.backlog.append((action, arguments))
            return
        self._carry_out(node, action, arguments)

    def _carry_out(self, node: SimNode, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            action(*arguments)
        except WriteFailedError:
            self.crash(node.index)
            return
        except NotMemberError:
            self.count("DISK_REFUSED")
            self.crash(node.index)
            return
        except KimberliteError as error:
            raise Violation("own invariant", f"replica {node.index}: {error}") from error
        self.checkers.on_step(self, node.index)
        node.watch.look(self, node)
        driver = node.driver
        if node.tick_at - self.now > TICK_NS:
            due = driver.core.next_deadline()
            if due is not None and due < node.tick_at:
                self._tick_soon(node, due)
        if driver.behind:
            self.at(self.now + SERVE_DELAY_NS, self.act, node.index, node.life, driver.on_tick)
        if self.ambushes:
            self._spring(node)
        if self.slow_nodes:
            self._be_busy(node, self.slow_nodes.get(node.index, 0))
        waited = node.disk.device.waited_ns
        if waited:
            self._be_busy(node, waited)

    def _spring(self, node: SimNode) -> None:
        waiting, self.ambushes = self.ambushes, []
        left = [ambush for ambush in waiting if not ambush(node)]
        self.ambushes += left

    def _be_busy(self, node: SimNode, duration: int) -> None:
        """What a replica has just done took so long, though it was done at once here."""
        node.disk.device.waited_ns = 0
        until = self.now + duration
        if until > max(self.now, node.paused_until):
            self.pause(node.index, until)

    def on_disk(self, index: int, life: int) -> None:
        self.act(index, life, self.nodes[index].driver.on_disk)

    def tick(self, node: SimNode) -> None:
        """Look at the timers of a replica, and let its scrubber read: every TICK_NS, in effect."""
        if self.now != node.tick_at or not node.up:
            return
        if self.now >= node.paused_until:
            deadline = node.driver.core.next_deadline()
            if deadline is not None and deadline <= self.now:
                self.act(node.index, node.life, node.driver.on_tick)
            scrub = node.scrubber.next_deadline()
            if node.up and scrub is not None and scrub <= self.now:
                self.scrub(node, lambda: node.scrubber.tick(self.now))
        self._plan_tick(node)

    def _plan_tick(self, node: SimNode) -> None:
        """The next tick at which there is something to do, as far as that is known now."""
        node.tick_at = self.now + TICK_NS
        timer, scrub = node.driver.core.next_deadline(), node.scrubber.next_deadline()
        due = self.now + FAR_NS if timer is None else timer
        if scrub is not None and scrub < due:
            due = scrub
        due = max(due, node.paused_until)
        if due > node.tick_at:
            node.tick_at += (due - node.tick_at + TICK_NS - 1) // TICK_NS * TICK_NS
        self.at(node.tick_at, self.tick, node)

    def _tick_soon(self, node: SimNode, due: int) -> None:
        """Something has changed in a replica: there is something to do before its next tick."""
        sooner = (node.tick_at - max(due, self.now + 1)) // TICK_NS * TICK_NS
        if sooner:
            node.tick_at -= sooner
            self.at(node.tick_at, self.tick, node)

    def scrub(self, node: SimNode, action: Callable[[], object]) -> None:
        """Let the scrubber of a replica read, and the replica know what it found."""
        before = sum(node.scrubber.damage.values())
        try:
            action()
        except KimberliteError as error:
            raise Violation("own invariant", f"scrubber of replica {node.index}: {error}") from error
        found = sum(node.scrubber.damage.values()) - before
        if node.disk.device.waited_ns:
            self._be_busy(node, node.disk.device.waited_ns)
        if found:
            self.counts["SCRUB_FOUND"] = self.counts.get("SCRUB_FOUND", 0) + found
            self.act(node.index, node.life, node.driver.on_damage)

    def _deliver(self, source: Address, destination: Address, message: Message) -> None:
        self.trace.delivered(self.now, source, destination, message)
        if isinstance(destination, int):
            node = self.nodes[destination]
            inputs = ([message],) if isinstance(source, int) else ((), [message])
            if node.up and self.now >= node.paused_until:
                self._carry_out(node, node.driver.on_input, inputs)
            else:
                self.act(destination, node.life, node.driver.on_input, *inputs)
        else:
            self.clients[int(destination[7:])].step(message)

    def client_of(self, identity: bytes) -> SimClient | None:
        for client in self.clients:
            if client.session.client_id == identity:
                return client
        return None

    def is_client_busy(self) -> bool:
        """Whether any client waits for anything. Asked for every millisecond: who was found waiting is asked first."""
        if self.clients[self._waiting].busy:
            return True
        self._waiting = next((client.index for client in self.clients if client.busy), 0)
        return self.clients[self._waiting].busy

    def promises(self, index: int) -> Promises:
        """What the superblock on that replica's disk says now."""
        files = self.files[index]
        version, promises = self._promises.get(index, UNREAD)
        if version != files.versions.get(SUPERBLOCK, 0):
            version, promises = self._promises[index] = files.versions.get(SUPERBLOCK, 0), durable_promises(files)
        return promises

    def evidence(self, index: int) -> tuple[Files, Promises]:
        """The disk that a replica acknowledged with, also when it is aside, and what its superblock says. A new one
        that is in time for the birth is that disk."""
        aside = self.drawer.disks.get(index)
        if aside is not None and index in self.drawer.copies:
            return aside, durable_promises(aside)
        if aside is None or identity_on(self.files[index]).birth is Birth.FORMED:
            return self.files[index], self.promises(index)
        return aside, durable_promises(aside)

    def identity_on_disk(self, index: int) -> Identity:
        """Who its disk says that a replica is."""
        return identity_on(self.files[index])

    # Faults

    def crash(self, index: int) -> None:
        node = self.nodes[index]
        if not node.up:
            return
        node.up = False
        node.down_since = self.now
        node.disk.device.waited_ns = 0  # who died does not wait any more
        self.doomed[index] = None
        tear = Random(f"tear {self.plan.seed} {index} {self.now}")
        node.disk.crash(tear, TearPolicy(garbage=self.plan.garbage))
        departures.tell(self, index)
        for client in self.clients:
            client.session.disconnected(index, self.now)
            client.pump()

    def crash_life(self, index: int, life: int) -> None:
        if self.nodes[index].life == life and self.network.faults_on:
            self.crash(index)

    def resume(self, index: int) -> None:
        """End a pause."""
        node = self.nodes[index]
        node.paused_until = min(node.paused_until, self.now)
        self._resume(index, node.life)

    def wipe(self, index: int) -> None:
        """The disk of a replica is put aside, and another one formatted in its place, that knows nothing."""
        self.crash(index)
        self._use(index, self.drawer.swap(self, index))
        format_disk(self, index, self.drawer.formatted[index])
        self.count("DISK_REPLACED")
        self.restart(index)

    def put_back(self, index: int) -> None:
        """The disk of that replica that is aside, when there is one. It stays there when the new one was in time for
        the birth, or others are bound to that; no cluster has both."""
        if index not in self.drawer.disks:
            return
        births = [identity_on(files).birth for files in (self.drawer.disks[index], self.files[index])]
        if index in self.drawer.copies:
            births = []
        if births == [Birth.FORMED, Birth.FORMED]:
            raise Violation("N2 one incarnation", f"two disks of replica {index} are members, both")
        if births and (births[1] is Birth.FORMED or is_awaited(self, index)):
            del self.drawer.disks[index]
            return
        self.crash(index)
        self._use(index, self.drawer.put_back(self, index))
        self.restart(index)

    def format_all(self) -> None:
        """A birth that can not come to its end is begun anew: nothing was acknowledged, for no disk is a member's."""
        everywhere = [*self.files, *self.drawer.disks.values()]
        if any(identity_on(files).birth is Birth.FORMED for files in everywhere):
            raise Violation("E1 birth", f"all are there, some are members, and others are not; {self.describe()}")
        for index in range(self.plan.replica_count):
            self.crash(index)
        self.run_until(self.now + ARRIVED_NS, lambda: False)  # nothing of the disks before is on its way any more
        for index in range(self.plan.replica_count):
            self.wipe(index)
        self.drawer.disks.clear()

    def put_in(self, index: int, image: Files) -> None:
        """That replica, which is down, gets an older image of its disk."""
        self.drawer.forget(self, index)
        self._use(index, image)

    def put_in_copy(self, index: int, image: Files) -> None:
        """An older image takes the place of the disk of that replica, which is put aside."""
        self.crash(index)
        self.drawer.put_aside(self, index)
        self.drawer.copies.add(index)
        self._use(index, image)
        self.count("COPY_PUT_IN")
        self.restart(index)

    def _use(self, index: int, files: Files) -> None:
        self.files[index] = files
        self._promises.pop(index, None)

    def can_start(self, index: int) -> bool:
        """Who is down, and whose disk goes on: a start waits for what it reads and writes."""
        return not self.nodes[index].up and not self.devices[index].hung

    def restart(self, index: int) -> None:
        node = self.nodes[index]
        if not self.can_start(index):
            return
        if index in self.drawer.copies and is_unnoticed(self, index):
            self._use(index, self.drawer.put_back(self, index))
        boot(self, index, node.life + 1)
        for client in self.clients:
            client.session.connected(index, self.now)
            client.pump()

    def _fault_step(self) -> None:
        """Inject one fault and plan the next."""
        if not self.network.faults_on:
            return
        if self._scripted is None:
            kinds = list(self.plan.weights)
            kind = self.faults.choices(kinds, [self.plan.weights[kind] for kind in kinds])[0]
            self.inject(kind, self.faults.randrange(ARGUMENT_END))
            self._at_fault(self.now + self.faults.randrange(2 * self.plan.fault_gap_ns) + MS, self._fault_step)

    def inject(self, kind: str, argument: int) -> None:
        """Carry out a fault, unless it would change nothing."""
        if not self.network.faults_on:
            return
        action = KINDS[kind].aim(self, argument)
        if action is None:
            return
        self.counts[f"FAULT_{kind}"] = self.counts.get(f"FAULT_{kind}", 0) + 1
        self.injected.append((self.now, kind, argument))
        self.trace.add(self.now, "fault", kind, argument)
        action()

    def pause(self, index: int, until: int) -> None:
        """A replica does nothing until then; what comes meanwhile waits."""
        node = self.nodes[index]
        node.paused_until = until
        self.at(until, self._resume, index, node.life)

    def hang(self, index: int, operations: Sequence[str], until: int = FOREVER) -> None:
        """Operations of that disk do not end before then, or before `cure`."""
        device = self.devices[index]
        self.nodes[index].disk.complete_until(self.now)
        for operation in operations:
            device.hung[operation] = max(until, device.hung.get(operation, 0))
        if until < FOREVER:
            self.at(until, lambda: self._unhang(index))

    def _unhang(self, index: int) -> None:
        hung = self.devices[index].hung
        ended = [operation for operation, until in hung.items() if until <= self.now]
        for operation in ended:
            del hung[operation]
        if ended:
            self.nodes[index].disk.go_on()

    def slow_down(self, index: int, operations: Sequence[str], factor: int) -> None:
        """Operations of that disk take so many times as long, until `cure`."""
        self.devices[index].slow.update(dict.fromkeys(operations, factor))

    def cure(self) -> None:
        """All disks and replicas are as fast as in the beginning."""
        self.slow_nodes.clear()
        for node, device in zip(self.nodes, self.devices, strict=True):
            is_hung = bool(device.hung)
            device.heal()
            if is_hung:
                node.disk.go_on()
                self.resume(node.index)

    def set_clock(self, index: int, offset: int) -> None:
        """From now on a replica's clock is so far from the true one. A jump that is small goes on being believed; after
        one that is not, the replica starts under that clock and believes it. A single replica never does: it has no
        other clock to go by."""
        self.wrong_clocks.pop(index, None)
        if abs(offset) <= JUMP_NS:
            self.clock_error_ns = max(self.clock_error_ns, abs(offset))
        elif self.plan.replica_count > 1:
            self.wrong_clocks[index] = offset
        self.nodes[index].driver.core.set_clock_offset(EPOCH_NS + offset)

    def _resume(self, index: int, life: int) -> None:
        node = self.nodes[index]
        if node.life != life:
            return
        while node.backlog and node.up and self.now >= node.paused_until:
            self._carry_out(node, *node.backlog.popleft())
        if node.tick_at - self.now > TICK_NS:
            due = node.driver.core.next_deadline()
            if due is not None and due < node.tick_at:
                self._tick_soon(node, due)

    # The run

    def run(self) -> None:
        """Both phases and the final checks. Raises Violation."""
        with rarely_collected():
            self._run()

    def _run(self) -> None:
        for client in self.clients:
            self.at(self.now, client.begin)
        for reader in self.readers:
            self.at(self.now, reader.step)
        if self.plan.birth:
            births.begin(self)
        if self.plan.converted:
            conversions.begin(self)
        if self._scripted is None:
            self._at_fault(self.now + self.faults.randrange(self.plan.fault_gap_ns), self._fault_step)
        else:
            for when, kind, argument in self._scripted:
                self._at_fault(when, lambda kind=kind, argument=argument: self.inject(kind, argument))  # type: ignore[misc]
        begun = self.now
        self.run_until(begun + SAFETY_NS_MAX, lambda: not self.is_client_busy())
        liveness(self)
        self.checkers.check_end(self, [record for client in self.clients for record in client.history])

    def describe(self, indices: Sequence[int] | None = None) -> str:
        """Where these replicas are, all that are up when none are named."""
        if indices is None:
            indices = [node.index for node in self.nodes if node.up]
        return "; ".join(
            f"{index}: {state.status.name.lower()} view {state.view}/{state.log_view} op {state.log.op} "
            f"linked {state.log.linked} durable {state.log.durable} commit {state.commit_max} "
            f"applied {state.execution.applied} faulty {len(state.log.faulty)}"
            for index in indices
            for state in [self.nodes[index].driver.core.state]
        )

    def read_log(self) -> list[bytes]:
        """All events: what was trimmed as it was when it was first executed, the rest as every replica's
        journal has it."""
        log = self.checkers.log
        for index in self.whole:
            self._compare_events(self.nodes[index], log)
        return log

    def _compare_events(self, node: SimNode, log: list[bytes]) -> None:
        """What a replica can read is the log, from where it begins there to its end."""
        position = node.store.first_position
        for op in range(node.store.first_op, node.driver.core.state.execution.applied + 1):
            message = node.store.read(op)
            if message is None:
                raise Violation("E2 readable", f"replica {node.index} cannot read op {op}")
            header = message.header
            if header.position != position:
                raise Violation(
                    "E2 positions", f"op {op} begins at {header.position}, the one before ends at {position}"
                )
            found = events_of(requests_of(header, message))
            if found != log[position : position + len(found)]:
                raise Violation("E2 same log", f"replica {node.index} has other events in op {op}")
            position += len(found)
        if position != len(log):
            raise Violation("E2 same log", f"the log of replica {node.index} ends at {position}, not at {len(log)}")
