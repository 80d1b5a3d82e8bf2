"""A small cluster in memory: the real core, driver and store of each replica, on simulated disks, and links that a
test rules. Time moves only when a test says so.

- Links. Frames leave in order and wait in `queue` until `deliver` (which `run` calls at every step); `lost` says which
  of them never arrive, `held` which of them wait for `release`. `sent` keeps all that was ever sent.
- Disks. Each takes no time, unless a test gives it some with `Node.slow_disk`, or switches it off with
  `Node.disk_off`: from then on nothing that is asked of it is ever done, but what `Node.make_durable` completes, until
  `Node.disk_on`. What a disk has survives `crash`; `format` makes it empty.
- Time. `run` lets it pass in steps of 5 ms: at each, frames arrive, disks complete what is due, timers act.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kimberlite._fast import events as event_batches
from kimberlite._fast.framing import make_header
from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.node.driver import Background, Driver, FastCodec, at_once, known_headers
from kimberlite.state_machine import Batch, EventLog
from kimberlite.storage.store import Store, format_store
from kimberlite.types import Command, Identity, Message, Status
from kimberlite.vopr.disk import Files, SimDisk
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.events import Event, EventKind
from kimberlite.vsr.replica import Replica
from lab import entries
from lab.cores import Core
from lab.entries import CLUSTER, MS

STEP_NS = 5 * MS
FOR_EVER = 1 << 60
Links = Callable[[int, int, Message], bool]  # source, target, frame


def nothing(source: int, target: int, message: Message) -> bool:
    return False


def between(*groups: set[int]) -> Links:
    """Lost is what does not stay within one of these groups of replicas."""
    return lambda source, target, message: not any(source in group and target in group for group in groups)


class Machine(EventLog):
    """Keeps what it applies."""

    needs_body = True

    def __init__(self) -> None:
        self.applied: list[bytes] = []
        self.batches: list[Batch] = []

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        self.batches += batches
        for batch in batches:
            self.applied += event_batches.slice(batch.body, 0, batch.count)
        return super().apply(batches)


class Node:
    """A replica that is up."""

    def __init__(self, cluster: Cluster, index: int, named: Identity | None = None) -> None:
        self.cluster = cluster
        self.index = index
        self.events: list[Event] = []
        self.answers: list[Message] = []  # to clients
        self._latency_ns: Callable[[], int] = lambda: 0
        self.disk = SimDisk(cluster.files[index], lambda: cluster.now, lambda: self._latency_ns())
        self.store = Store(self.disk, make_header)
        recovered = self.store.recover()
        self.life = next(cluster.lives)
        identity = None
        if cluster.identity is not None:
            identity = self.store.begin_life(named or self.store.identity, self.life)
        self.machine = cluster.make_machine()
        replica = cluster.make_core(
            config=CoreConfig(CLUSTER, index, cluster.count),
            codec=FastCodec(),
            recovered=recovered,
            headers=known_headers(self.store, recovered),
            seed=index + 1,
            now=cluster.now,
            identity=identity,
        )
        self.core = Core(replica)
        self.driver = Driver(
            replica,
            self.store,
            self.machine,
            self,
            self,
            lambda: cluster.now,
            cluster.checkpoints,
            cluster.background,
        )

    # What the driver needs of a node

    def send(self, replica: int, message: Message) -> None:
        copy = Message(message.header, bytes(message.body))
        self.cluster.sent.append((self.index, replica, copy))
        self.cluster.queue.append((self.index, replica, copy))

    def send_client(self, client: bytes, message: Message) -> None:
        self.answers.append(message)

    def refuse(self, message: Message) -> None:
        """Here there are no connections."""

    def record(self, batch: list[Event]) -> None:
        self.events.extend(batch)

    # The disk

    def slow_disk(self, latency: int | Callable[[], int]) -> None:
        """What is asked of the disk from now on takes so many nanoseconds in each of its phases."""
        self._latency_ns = latency if callable(latency) else lambda: latency

    def disk_off(self) -> None:
        self.slow_disk(FOR_EVER)

    def disk_on(self) -> None:
        """The disk completes at once what it was given, and takes no time any more."""
        self.slow_disk(0)
        self.disk.go_on()

    def make_durable(self, count: int = 1) -> None:
        """The disk completes so many of the submissions that it was given, and the core hears of them."""
        for submission in list(self.disk._queue)[:count]:
            submission.done_at = [self.cluster.now] * len(submission.done_at)
        self.driver.on_disk()

    @property
    def bytes_waiting(self) -> int:
        """What the disk was given and has not written."""
        queue = self.disk._queue
        return sum(len(write.buffer) for submission in queue for phase in submission.phases for write in phase)

    def restart(self, after_recovery: Callable[[], None] = lambda: None) -> Node:
        """The next life of this replica. after_recovery: what happens when its disk has been read, before it begins."""
        self.cluster.crash(self.index)
        return self.cluster.start(self.index, after_recovery)

    # What tests look at

    def replies(self) -> list[Message]:
        """To clients, since that or `refusals` was called last."""
        found = [answer for answer in self.answers if answer.header.command == Command.REPLY]
        self.answers.clear()
        return found

    def refusals(self) -> list[int]:
        """The same of the reasons for which clients were refused."""
        found = [answer.header.reason for answer in self.answers if answer.header.command == Command.REJECT]
        self.answers.clear()
        return found

    def entries(self) -> list[bytes]:
        """Identities of the log on the disk, from its first op on."""
        return [header.checksum for header in self.store.headers(1, self.store.head)]

    def kinds(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    @property
    def leads(self) -> bool:
        return self.core.is_primary and self.core.status == Status.NORMAL


def alone(**options: Any) -> Node:
    """The only replica of a cluster of one. options: those of Cluster."""
    return Cluster(1, **options).node(0)


@dataclass
class Cluster:
    """`count` replicas, formatted and started. make_machine, make_core: what each life of a replica gets. identity:
    entries.formed or entries.unborn; None: data of the first release."""

    count: int = 3
    make_machine: Callable[[], Machine] = Machine
    make_core: Callable[..., Replica] = Replica
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    background: Background = at_once
    segment_bytes: int = 64 << 10
    identity: Callable[[int, int, int], Identity] | None = None  # of replica, of so many, formatted so often before

    def __post_init__(self) -> None:
        self.now = 1
        self.lives = count(1)
        self.formatted = [0] * self.count
        self.files = [Files() for _ in range(self.count)]
        self.nodes: list[Node | None] = [None] * self.count
        self.queue: list[tuple[int, int, Message]] = []
        self.sent: list[tuple[int, int, Message]] = []
        self.lost: Links = nothing
        self.held: Links = nothing
        self.waiting: list[tuple[int, int, Message]] = []  # held back
        self.session = 0
        for index in range(self.count):
            self.format(index)
        for index in range(self.count):
            self.start(index)

    # Lives

    def format(self, index: int) -> None:
        """Give a replica that is not up an empty disk."""
        self.files[index] = Files()
        format_store(
            SimDisk(self.files[index], lambda: self.now, lambda: 0),
            make_header,
            cluster=CLUSTER,
            replica=index,
            replica_count=self.count,
            segment_bytes=self.segment_bytes,
            identity=self.identity(index, self.count, self.formatted[index]) if self.identity else None,
        )
        self.formatted[index] += 1

    def start(
        self, index: int, after_recovery: Callable[[], None] = lambda: None, identity: Identity | None = None
    ) -> Node:
        """identity: of a replica whose data has none yet."""
        node = self.nodes[index] = Node(self, index, identity)
        after_recovery()
        node.driver.start()
        return node

    def crash(self, *indexes: int) -> None:
        """What was on its disk stays; what was under way to it is gone."""
        for index in indexes:
            self.nodes[index] = None

    def restart(self) -> None:
        """All of them at once, and no frame survives it."""
        self.crash(*range(self.count))
        self.queue.clear()
        for index in range(self.count):
            self.start(index)

    def node(self, index: int) -> Node:
        node = self.nodes[index]
        assert node is not None
        return node

    @property
    def up(self) -> list[Node]:
        return [node for node in self.nodes if node is not None]

    @property
    def primary(self) -> Node:
        (leading,) = [node for node in self.up if node.leads]
        return leading

    @property
    def backups(self) -> list[Node]:
        """All that are up but the primary."""
        primary = self.primary
        return [node for node in self.up if node is not primary]

    # Links and time

    def deliver(self) -> None:
        while self.queue:
            source, target, message = self.queue.pop(0)
            node = self.nodes[target]
            if self.held(source, target, message):
                self.waiting.append((source, target, message))
            elif node is not None and not self.lost(source, target, message):
                node.driver.on_input(messages=[message])

    def release(self) -> None:
        """What was held back is on its way again, before what was sent since."""
        self.held = nothing
        self.queue[:0] = self.waiting
        self.waiting.clear()

    def run(self, ms: int, until: Callable[[], bool] | None = None, each: Callable[[], None] = lambda: None) -> None:
        """Let time pass; with `until`, as much as it takes up to `ms`. `each` is called at every step."""
        end = self.now + ms * MS
        while self.now < end:
            if until is not None and until():
                return
            self.deliver()
            self.now += STEP_NS
            for node in self.up:
                if node.disk.submissions:
                    node.driver.on_disk()
                deadline = node.core.next_deadline()
                if deadline is not None and deadline <= self.now:
                    node.driver.on_tick()
            each()
        self.deliver()
        assert until is None or until(), "it did not come to that"

    def settle(self) -> Node:
        """A primary that has committed what was there before, and whose backups follow."""
        self.run(
            20_000,
            lambda: (
                all(node.core.status == Status.NORMAL for node in self.up)
                and len({node.core.view for node in self.up}) == 1
                and any(node.core.is_primary and node.core.ready for node in self.up)
            ),
        )
        return self.primary

    # A client

    def request(self, number: int, *payloads: bytes, client: int = 1, session: int | None = None) -> Message:
        """To append these events in the session opened last, when none is given; to open one when there are none."""
        if session is None:
            session = self.session if payloads else 0
        return entries.request(number, *payloads, client=client, session=session)

    def register(self, client: int = 1) -> int:
        """Open the session that is used from now on: its number."""
        primary = self.settle()
        primary.driver.on_input(requests=[self.request(0, client=client)])
        self.run(2000, lambda: any(answer.header.command == Command.REPLY for answer in primary.answers))
        self.session = primary.replies()[-1].header.session
        return self.session

    def append(self, number: int, payload: bytes) -> Message:
        """One request, answered."""
        primary = self.settle()
        primary.driver.on_input(requests=[self.request(number, payload)])
        self.run(5000, lambda: bool(primary.answers))
        answer = primary.answers.pop()
        assert answer.header.command == Command.REPLY
        return answer

    def frames(self, command: Command) -> list[tuple[int, int, Message]]:
        return [sent for sent in self.sent if sent[2].header.command == command]
