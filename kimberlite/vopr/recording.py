"""The scripted run that crashes are enumerated of, with everything that its disks do on record.

The script is a cluster of the simulator (`Recording`): appends, batches, a primary cut off and one that dies,
checkpoints, trims, restarts, a power cut of all. What each replica's disk does is on record: every phase of every
submission with its writes, and every file made or removed; with it goes what the replica had promised by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from kimberlite._fast import framing
from kimberlite.errors import FrameError
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.ring import FRAME_HEADER_BYTES
from kimberlite.storage.ring import NAME as RING
from kimberlite.types import Checksum, ClientId, Command, Header, Message, ViewState
from kimberlite.vopr.checkers import Checkers
from kimberlite.vopr.disk import MAGIC, MAGIC_AT, Files, SimDisk, Submission, TearPolicy
from kimberlite.vopr.enumeration import check
from kimberlite.vopr.liveness import CONVERGE_NS_MAX, demand
from kimberlite.vopr.plan import MS, Plan
from kimberlite.vopr.world import World
from kimberlite.vsr.codec import ClientRequest

SEED = 1
REPLICAS = 3
REQUESTS = 3  # of each client in each part of the script
CHECKPOINT_OPS = 12
TRIM_APPENDS_MAX = 3
STAGE_NS_MAX = 20_000 * MS

Part: TypeAlias = tuple[str, int, bytes]  # file, offset, data


@dataclass(slots=True)
class Promised:
    """What a replica has let others know of itself, or is told by its store to be durable."""

    view: int = 0
    log_view: int = 0
    applied: int = 0
    checkpoint_op: int = 0
    first_op: int = 1
    entries: dict[int, Header] = field(default_factory=dict)  # acknowledged, and not void since

    def copy(self) -> Promised:
        return Promised(self.view, self.log_view, self.applied, self.checkpoint_op, self.first_op, dict(self.entries))


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a disk does, which a crash may interrupt."""

    replica: int
    kind: str  # write, torn, create, remove
    promised: Promised  # by the time that it was done
    writes: tuple[Part, ...] = ()
    # What may be carried out with it: of each submission the writes of phases before, and those of this one.
    company: tuple[tuple[tuple[Part, ...], tuple[Part, ...]], ...] = ()
    name: str = ""
    size: int = 0

    def text(self) -> str:
        if self.kind in ("write", "torn"):
            return f"{self.kind} " + ", ".join(f"{name}+{offset} ({len(data)})" for name, offset, data in self.writes)
        return f"{self.kind} {self.name}"


@dataclass(slots=True)
class Record:
    """What the disk of one replica did, over all its lives."""

    replica: int
    base: dict[str, bytearray] = field(default_factory=dict)  # the files when it was new
    events: list[Event] = field(default_factory=list)
    promised: Promised = field(default_factory=Promised)
    messages: dict[Checksum, Message] = field(default_factory=dict)  # every entry it was ever given


class RecordingDisk(SimDisk):
    """Puts on record what it does."""

    def __init__(
        self,
        files: Files,
        clock: Callable[[], int],
        latency: Callable[[], int],
        wake: Callable[[int], None],
        record: Record,
    ) -> None:
        super().__init__(files, clock, latency, wake)
        self._record = record
        if not record.base:
            record.base = {name: bytearray(content) for name, content in files.durable.items()}

    def _note(self, kind: str, **values: Any) -> None:
        record = self._record
        record.events.append(Event(record.replica, kind, record.promised.copy(), **values))

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        self._note("create", name=name, size=size)
        return super().create(name, size, zeroed)

    def remove(self, name: str) -> None:
        self._note("remove", name=name)
        super().remove(name)

    def rename(self, old: str, new: str) -> None:
        raise NotImplementedError("a formatted replica renames nothing")

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None:
        super().submit(token, phases)
        for phase in phases:
            for write in phase:
                name = self._handles[write.file]
                if name.startswith("journal-"):
                    self._learn(bytes(write.buffer))
                elif name == RING:
                    self._learn_frame(bytes(write.buffer))

    def _learn_frame(self, data: bytes) -> None:
        """The entries of a frame stand without gaps."""
        at = FRAME_HEADER_BYTES
        while data[at + MAGIC_AT : at + MAGIC_AT + len(MAGIC)] == MAGIC:
            header = framing.decode_header(data, at)
            body = data[at + len(header.raw) : at + header.size]
            self._record.messages[header.checksum] = Message(header, body)
            at += header.size

    def _learn(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            try:
                header = framing.decode_header(data, at)
            except FrameError:
                at += SECTOR
                continue
            body = data[at + len(header.raw) : at + header.size]
            self._record.messages[header.checksum] = Message(header, body)
            at += -(-header.size // SECTOR) * SECTOR

    def _parts(self, writes: Sequence[Write]) -> tuple[Part, ...]:
        return tuple((self._handles[write.file], write.offset, bytes(write.buffer)) for write in writes)

    def _complete_phase(self, submission: Submission) -> None:
        number = submission.applied
        company = tuple(
            (
                tuple(part for phase in other.phases[:number] for part in self._parts(phase)),
                self._parts(other.phases[number]),
            )
            for other in self._group(submission)
        )
        self._note("write", writes=self._parts(submission.phases[number]), company=company)
        super()._complete_phase(submission)

    def _group(self, first: Submission) -> list[Submission]:
        """What waits behind and may be carried out with `first`: as many phases, no file in two of them."""
        phase_of: dict[int, int] = {}
        group: list[Submission] = []
        for submission in [first, *list(self._queue)[1:]]:
            files = {write.file: number for number, phase in enumerate(submission.phases) for write in phase}
            writes = sum(len({write.file for write in phase}) for phase in submission.phases)
            fits = writes == len(files) and all(phase_of.get(file, number) == number for file, number in files.items())
            if not fits or len(submission.phases) != len(first.phases):
                break
            phase_of |= files
            group.append(submission)
        return group[1:]

    def crash(self, rng: Random, policy: TearPolicy | None = None) -> None:
        self.complete_until(self._clock())
        under_way = self._queue[0].phases[self._queue[0].applied] if self._queue else []
        super().crash(rng, policy)
        left = [
            (name, write.offset, bytes(self.files.durable[name][write.offset : write.offset + len(write.buffer)]))
            for write in under_way
            for name in (self._handles[write.file],)
        ]
        if left:
            self._note("torn", writes=tuple(left))


class Ledger(Checkers):
    """All checks of a run; keeps what every replica has promised, and what the truth was after every op."""

    def __init__(self, world: Recording) -> None:
        super().__init__(world.plan.replica_count, world.plan.sessions_max)
        self.membership = world.membership
        self._world = world
        self.session_tables: dict[int, bytes] = {}  # after each op

    def on_send(self, world: World, replica: int, message: Message) -> None:
        super().on_send(world, replica, message)
        header = message.header
        promised = self._world.records[replica].promised
        command = header.command
        if command in (Command.START_VIEW_CHANGE, Command.DO_VIEW_CHANGE, Command.START_VIEW, Command.PREPARE_OK):
            promised.view = max(promised.view, header.view)
        if command in (Command.START_VIEW, Command.PREPARE_OK) and header.op:
            promised.log_view = max(promised.log_view, header.view)
        if command == Command.DO_VIEW_CHANGE:
            promised.log_view = max(promised.log_view, header.log_view)
        headers = world.nodes[replica].driver.core.state.log.headers
        for op, checksum in self.acknowledged[replica].items():
            known = headers.get(op)
            if known is not None and known.checksum == checksum:
                promised.entries[op] = known

    def on_applied(self, replica: int, header: Header, requests: Sequence[ClientRequest]) -> None:
        super().on_applied(replica, header, requests)
        self._world.records[replica].promised.entries[header.op] = header

    def on_executed(self, replica: int, op: int, digest: bytes, clients: Sequence[ClientId]) -> None:
        super().on_executed(replica, op, digest, clients)
        sessions = self._world.nodes[replica].driver.core.state.sessions.encode()
        check(self.session_tables.setdefault(op, sessions) == sessions, f"other sessions after op {op}")
        promised = self._world.records[replica].promised
        promised.applied = max(promised.applied, op)

    def on_step(self, world: World, replica: int) -> None:
        super().on_step(world, replica)
        node = world.nodes[replica]
        core = node.driver.core.state
        promised = self._world.records[replica].promised
        for op, header in core.log.headers.items():
            if op <= core.log.durable:
                promised.entries[op] = header
        promised.checkpoint_op = max(promised.checkpoint_op, core.execution.checkpoint_op)
        promised.first_op = max(promised.first_op, node.store.first_op)
        entries, state = promised.entries, node.store.view_state
        for op in [op for op, header in entries.items() if op > promised.applied and self.is_void(state, header)]:
            del entries[op]

    def is_void(self, state: ViewState, header: Header) -> bool:
        """Whether an entry that a replica had was cut off or replaced by a view change."""
        op = header.op
        if op > state.suffix_head:
            return header.view != state.log_view
        expected = next((known for known in state.suffix if known.op == op), None)
        if expected is None:  # committed, if it is above the base
            expected = self.committed.get(op) if op > state.base else None
        return expected is not None and expected.checksum != header.checksum


class Recording(World):
    """The scripted run."""

    def __init__(self, requests: int = REQUESTS, ring: bool = False) -> None:
        """ring: the replicas acknowledge small groups after one write."""
        self.records: list[Record] = []
        self.records += [Record(index) for index in range(REPLICAS)]
        super().__init__(
            Plan(
                seed=SEED,
                replica_count=REPLICAS,
                client_count=5,
                requests=0,
                segment_bytes=64 << 10,
                pipeline_max=3,
                sessions_max=3,
                loss=0.0,
                duplication=0.0,
                reorder=0.0,
                corruption=0.0,
                latency_ns=200_000,
                disk_latency_ns=300_000,
                fault_gap_ns=1000 * MS,
                event_bytes=2500,
                checkpoint_ops=CHECKPOINT_OPS,
                ring=float(ring),
            ),
            faults=(),
        )
        self.checkers = self.ledger = Ledger(self)
        self.requests = requests

    def make_disk(self, index: int, latency: Callable[[], int], wake: Callable[[int], None]) -> SimDisk:
        return RecordingDisk(self.files[index], lambda: self.now, latency, wake, self.records[index])

    def run(self) -> None:
        for client in self.clients:
            self.at(self.now, client.begin)
        self._append()
        self._trim_segments()
        # A primary is cut off with appends under way: what it wrote alone is void when it is back.
        primary = self._primary()
        self._append(lambda: self.inject("isolate", primary))
        self.inject("heal", 0)
        self._quiet()
        # A primary dies in the middle of a write.
        primary = self._primary()
        self._append(lambda: self.crash(primary))
        self.restart(primary)
        self._quiet()
        self._append()
        self._trim_segments()
        # The power fails everywhere at once.
        self._append(self._cut_power)
        self._quiet()
        # A backup is away for more than a checkpoint.
        backup = (self._primary() + 1) % REPLICAS
        self.crash(backup)
        self._append()
        self.restart(backup)
        self._append()
        self._quiet()
        self._trim_segments()
        self._append()
        self._quiet()
        self.network.faults_on = False
        self.checkers.check_end(self, [record for client in self.clients for record in client.history])

    def _append(self, *actions: Callable[[], None]) -> None:
        """Clients append their share; the actions come while they do, one after another."""
        for client in self.clients:
            client.quota += self.requests
            self.at(self.now, client.append)
        for action in actions:
            acked = len(self.checkers.committed)
            self._wait(lambda acked=acked: len(self.checkers.committed) > acked + 2)  # type: ignore[misc]
            action()
        self._wait(lambda: not any(client.busy for client in self.clients))

    def _cut_power(self) -> None:
        self.inject("crash_all", 0)
        self.inject("restart", 0)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = self.now + STAGE_NS_MAX
        while not done():
            check(self.now < deadline, f"the script does not go on after {self.now} ns")
            self.run_until(self.now + MS, lambda: False)

    def _quiet(self) -> None:
        demand(self, CONVERGE_NS_MAX, "all replicas", list(range(REPLICAS)))
        self.run_until(self.now + 500 * MS, lambda: False)  # the peers hear of the checkpoints

    def _trimmable(self) -> list[int]:
        """First ops of the segments with which the log may begin."""
        node = self.nodes[self._primary()]
        core = node.driver.core
        first_ops = (extent.first_op for extent in node.store.extents())
        return [op for op in first_ops if core.state.log.first_op < op <= core.trimmable_op]

    def _primary(self) -> int:
        states = [node.driver.core.state for node in self.nodes if node.up]
        return max(states, key=lambda state: state.log_view).primary

    def _trim_segments(self) -> None:
        """To the last segment that may go. Which appends share an op, and so where segments begin, is a matter of
        moments: the clients go on until one may go."""
        self._quiet()
        for _ in range(TRIM_APPENDS_MAX):
            if not self._trimmable():
                self._append()
                self._quiet()
        chosen = self._trimmable()
        check(bool(chosen), "there is nothing to trim")
        self.inject("trim", len(chosen) - 1)
        self._wait(lambda: all(node.store.first_op >= chosen[-1] for node in self.nodes))
        self._quiet()


def record(requests: int = REQUESTS, ring: bool = False) -> Recording:
    """Carry out the scripted run. Cost: a second."""
    world = Recording(requests, ring)
    world.run()
    return world
