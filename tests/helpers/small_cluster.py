"""A small cluster in memory: the real core, driver and store, disks that take no time, and links that a test cuts or
listens to. Time moves only when a test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kimberlite._fast import events as event_batches
from kimberlite._fast.framing import make_header
from kimberlite.node.driver import Driver, FastCodec, known_headers
from kimberlite.state_machine import Batch, EventLog
from kimberlite.storage.store import Store, format_store
from kimberlite.types import Command, Message, Operation, Status
from kimberlite.vopr.disk import Files, SimDisk
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.events import Event, EventKind
from kimberlite.vsr.replica import Replica

CLUSTER = b"o" * 16
MS = 1_000_000
STEP_NS = 5 * MS


class Machine(EventLog):
    """Counts what it applies."""

    needs_body = True

    def __init__(self) -> None:
        self.applied: list[bytes] = []

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        for batch in batches:
            self.applied += event_batches.slice(batch.body, 0, batch.count)
        return super().apply(batches)


@dataclass
class Node:
    index: int
    driver: Driver
    store: Store
    machine: Machine
    events: list[Event]
    answers: list[Message] = field(default_factory=list)

    @property
    def core(self) -> Replica:
        return self.driver.core

    def entries(self) -> list[bytes]:
        """Identities of the log, op 1 up."""
        return [header.checksum for header in self.store.headers(1, self.store.head)]

    def kinds(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


class Cluster:
    def __init__(self, count: int = 3) -> None:
        self.count = count
        self.now = 1
        self.files = [Files() for _ in range(count)]
        self.nodes: list[Node | None] = [None] * count
        self.queue: list[tuple[int, int, Message]] = []
        self.sent: list[tuple[int, int, Message]] = []
        self.lost: Callable[[int, int, Message], bool] = lambda source, target, message: False
        self.session = 0
        for index in range(count):
            self.format(index)
        for index in range(count):
            self.start(index)

    def format(self, index: int) -> None:
        """Give a replica that is not up an empty disk."""
        self.files[index] = Files()
        disk = SimDisk(self.files[index], lambda: self.now, lambda: 0)
        format_store(
            disk, make_header, cluster=CLUSTER, replica=index, replica_count=self.count, segment_bytes=64 << 10
        )

    def start(self, index: int) -> Node:
        store = Store(SimDisk(self.files[index], lambda: self.now, lambda: 0), make_header)
        recovered = store.recover()
        core = Replica(
            config=CoreConfig(CLUSTER, index, self.count),
            codec=FastCodec(),
            recovered=recovered,
            headers=known_headers(store, recovered),
            seed=index + 1,
            now=self.now,
        )
        cluster, events, machine = self, [], Machine()  # type: ignore[var-annotated]

        class Port:
            def send(self, replica: int, message: Message) -> None:
                copy = Message(message.header, bytes(message.body))
                cluster.sent.append((index, replica, copy))
                cluster.queue.append((index, replica, copy))

            def send_client(self, client: bytes, message: Message) -> None:
                node.answers.append(message)

            def refuse(self, message: Message) -> None:
                """Here there are no connections."""

            def record(self, batch: list[Event]) -> None:
                events.extend(batch)

        port = Port()
        node = Node(index, Driver(core, store, machine, port, port, lambda: self.now), store, machine, events)
        self.nodes[index] = node
        node.driver.start()
        return node

    def crash(self, index: int) -> None:
        self.nodes[index] = None

    def node(self, index: int) -> Node:
        node = self.nodes[index]
        assert node is not None
        return node

    @property
    def up(self) -> list[Node]:
        return [node for node in self.nodes if node is not None]

    def deliver(self) -> None:
        while self.queue:
            source, target, message = self.queue.pop(0)
            node = self.nodes[target]
            if node is not None and not self.lost(source, target, message):
                node.driver.on_input(messages=[message])

    def run(self, ms: int, until: Callable[[], bool] | None = None) -> None:
        """Let time pass; with `until`, as much as it takes up to `ms`."""
        end = self.now + ms * MS
        while self.now < end:
            if until is not None and until():
                return
            self.deliver()
            self.now += STEP_NS
            for node in self.up:
                deadline = node.core.next_deadline()
                if deadline is not None and deadline <= self.now:
                    node.driver.on_tick()
        self.deliver()
        assert until is None or until(), "it did not come to that"

    @property
    def primary(self) -> Node:
        (leading,) = [node for node in self.up if node.core.is_primary and node.core.status == Status.NORMAL]
        return leading

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

    def request(self, number: int, payload: bytes, client: int = 1, operation: int = Operation.APPLY) -> Message:
        body = event_batches.build([payload]) if operation == Operation.APPLY else b""
        header = make_header(
            body,
            cluster=CLUSTER,
            command=Command.REQUEST,
            client=bytes([client]) * 16,
            session=self.session if operation == Operation.APPLY else 0,
            request=number,
            operation=operation,
            count=int(operation == Operation.APPLY),
        )
        return Message(header, body)

    def register(self, client: int = 1) -> None:
        primary = self.settle()
        primary.driver.on_input(requests=[self.request(0, b"", client, Operation.REGISTER)])
        self.run(2000, lambda: any(answer.header.command == Command.REPLY for answer in primary.answers))
        self.session = primary.answers[-1].header.session
        primary.answers.clear()

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
