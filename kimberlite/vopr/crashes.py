"""Crashes by enumeration: a scripted run, and for every event of its disks everything that a crash may leave.

The script is a cluster of the simulator (`Recording`): appends, batches, a primary cut off and one that dies,
checkpoints, trims, restarts, a power cut of all. What each replica's disk does is on record: every phase of every
submission with its writes, and every file made or removed; with it goes what the replica had promised by then.

A crash within an event leaves, of the writes that may then be under way together:

    prefix    one write up to every 512 bytes, the others absent, or all of them there
    garbage   the same, with garbage in the unit at the tear
    hole      all of one write but one unit
    all       all writes at once up to the same unit, and with garbage there

and of a file that is made or removed: nothing, or all. Submissions that wait may be carried out together with the one
before them, as the production disk does (storage.interface.Disk): then their writes are among the others. Of images of
an event that are the same there is one.

Each image is started by the production store and core, held against the promises, and started again (`judge`).

`python -m kimberlite.vopr.crashes REQUESTS FIRST STEP EVERY` prints the report on a part of the images as JSON: the
workers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from random import Random
from typing import TypeAlias

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import FrameError
from kimberlite.node.driver import CheckpointPolicy, Driver, FastCodec, known_headers, restore
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import superblock
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.journal import journal_name, segment_number
from kimberlite.storage.store import Store
from kimberlite.types import (
    Checksum,
    ClientId,
    Command,
    EntryState,
    Header,
    Message,
    Operation,
    Recovered,
    ViewState,
)
from kimberlite.vopr.checkers import COMMIT_QUORUM, Checkers
from kimberlite.vopr.disk import UNIT, Files, SimDisk, Submission, TearPolicy
from kimberlite.vopr.plan import MS, Plan
from kimberlite.vopr.world import CONVERGE_NS_MAX, DigestMachine, World
from kimberlite.vsr.codec import ClientRequest
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.work import Event as CoreEvent

SEED = 5
REPLICAS = 3
REQUESTS = 3  # of each client in each part of the script
CHECKPOINT_OPS = 12
STAGE_NS_MAX = 20_000 * MS
GARBAGE = Random(11).randbytes(UNIT)
NEW_BODIES = tuple(Random(size).randbytes(size) for size in (100, 40_000, 30_000))  # into another segment
FAILURES_SHOWN = 20
PROGRESS_EVERY = 200  # images
SETTLE_ROUNDS = 64

Part: TypeAlias = tuple[str, int, bytes]  # file, offset, data


class Wrong(AssertionError):
    """Something that must not happen."""


def _check(condition: bool, text: str) -> None:
    if not condition:
        raise Wrong(text)


# What is on record


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
    others: tuple[Promised, ...]  # what the other replicas had promised then
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
    all: list[Record] = field(default_factory=list)  # of all replicas


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

    def _note(self, kind: str, **values: object) -> None:
        record = self._record
        others = tuple(other.promised.copy() for other in record.all if other is not record)
        event = Event(record.replica, kind, record.promised.copy(), others, **values)  # type: ignore[arg-type]
        record.events.append(event)

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
                if self._handles[write.file].startswith("journal-"):
                    self._learn(bytes(write.buffer))

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
        headers = world.nodes[replica].driver.core.log.headers
        for op, checksum in self.acknowledged[replica].items():
            known = headers.get(op)
            if known is not None and known.checksum == checksum:
                promised.entries[op] = known

    def on_applied(self, replica: int, header: Header, requests: Sequence[ClientRequest]) -> None:
        super().on_applied(replica, header, requests)
        self._world.records[replica].promised.entries[header.op] = header

    def on_executed(self, replica: int, op: int, digest: bytes, clients: Sequence[ClientId]) -> None:
        super().on_executed(replica, op, digest, clients)
        sessions = self._world.nodes[replica].driver.core.sessions.encode()
        _check(self.session_tables.setdefault(op, sessions) == sessions, f"other sessions after op {op}")
        promised = self._world.records[replica].promised
        promised.applied = max(promised.applied, op)

    def on_step(self, world: World, replica: int) -> None:
        super().on_step(world, replica)
        node = world.nodes[replica]
        core = node.driver.core
        promised = self._world.records[replica].promised
        for op, header in core.log.headers.items():
            if op <= core.log.durable:
                promised.entries[op] = header
        promised.checkpoint_op = max(promised.checkpoint_op, core.checkpoint_op)
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

    def __init__(self, requests: int = REQUESTS) -> None:
        self.records: list[Record] = []
        self.records += [Record(index, all=self.records) for index in range(REPLICAS)]
        super().__init__(
            Plan(
                seed=SEED,
                replica_count=REPLICAS,
                client_count=4,
                requests=0,
                segment_bytes=64 << 10,
                pipeline_max=4,
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
            ),
            faults=(),
        )
        self.checkers = self.ledger = Ledger(self)
        self.requests = requests

    def _make_disk(self, index: int, latency: Callable[[], int], wake: Callable[[int], None]) -> SimDisk:
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
            _check(self.now < deadline, f"the script does not go on after {self.now} ns")
            self.run_until(self.now + MS, lambda: False)

    def _quiet(self) -> None:
        self._demand(CONVERGE_NS_MAX, "all replicas", list(range(REPLICAS)))
        self.run_until(self.now + 500 * MS, lambda: False)  # the peers hear of the checkpoints

    def _primary(self) -> int:
        cores = [node.driver.core for node in self.nodes if node.up]
        return max(cores, key=lambda core: core.log_view).primary

    def _trim_segments(self) -> None:
        """To the last segment that may go."""
        self._quiet()
        core = self.nodes[self._primary()].driver.core
        extents = list(self.nodes[self._primary()].store.extents())
        chosen = [
            number for number, extent in enumerate(extents) if core.first_op < extent.first_op <= core.trimmable_op
        ]
        _check(bool(chosen), "there is nothing to trim")
        self.inject("trim", chosen[-1])
        self._wait(lambda: all(node.store.first_op >= extents[chosen[-1]].first_op for node in self.nodes))
        self._quiet()


def record(requests: int = REQUESTS) -> Recording:
    """Carry out the scripted run. Cost: a second."""
    world = Recording(requests)
    world.run()
    return world


# What a crash may leave


@dataclass(frozen=True, slots=True)
class Image:
    """A disk after a crash. `make` gives its files: contents must not be changed in place."""

    event: int  # over all replicas
    variant: int
    source: Event
    text: str
    make: Callable[[], dict[str, bytearray]]
    is_garbage: bool = False

    @property
    def label(self) -> str:
        return f"{self.event}:{self.variant}"


Disk: TypeAlias = dict[str, bytearray]


def put(disk: Disk, parts: Sequence[Part]) -> Disk:
    """A disk with these writes; untouched files are shared."""
    result = dict(disk)
    for name in {part[0] for part in parts}:
        result[name] = bytearray(result[name])
    for name, offset, data in parts:
        result[name][offset : offset + len(data)] = data
    return result


def after(disk: Disk, event: Event) -> Disk:
    if event.kind == "create":
        return disk | {event.name: bytearray(event.size)}
    if event.kind == "remove":
        return {name: content for name, content in disk.items() if name != event.name}
    return put(disk, event.writes)


Variant: TypeAlias = tuple[str, bool, Callable[[], Disk]]  # text, garbage, files


def _torn(base: Disk, writes: Sequence[Part], at: int, others: Sequence[Part], what: str) -> Iterator[Variant]:
    """All that is left of one write, with `others` whole."""
    name, offset, data = writes[at]
    around = put(base, others)
    old = bytes(around[name][offset : offset + len(data)])
    changed = [old[unit : unit + UNIT] != data[unit : unit + UNIT] for unit in range(0, len(data), UNIT)]
    for number, unit in enumerate(range(0, len(data), UNIT)):
        place = f"{name}+{offset}, {len(data)} bytes{what}:"
        if number and changed[number - 1]:
            prefix = (name, offset, data[:unit])
            yield f"{place} the first {unit}", False, lambda prefix=prefix: put(around, [prefix])  # type: ignore[misc]
        garbage = [(name, offset, data[:unit] + GARBAGE)]
        yield f"{place} garbage at {unit}", True, lambda garbage=garbage: put(around, garbage)  # type: ignore[misc]
        if changed[number] and any(changed[number + 1 :]):
            hole = [(name, offset, data[:unit]), (name, offset + unit + UNIT, data[unit + UNIT :])]
            yield f"{place} not those at {unit}", False, lambda hole=hole: put(around, hole)  # type: ignore[misc]


def _of_phase(base: Disk, writes: Sequence[Part], what: str, only_with_others: int = 0) -> Iterator[Variant]:
    """Writes that may reach the disk in any order; for the first so many only what the others change."""
    for at, part in enumerate(writes):
        others = [*writes[:at], *writes[at + 1 :]]
        if at >= only_with_others:
            yield from _torn(base, writes, at, [], what + " (alone)" if others else what)
            if others:
                yield f"{part[0]}+{part[1]}{what} alone", False, lambda part=part: put(base, [part])  # type: ignore[misc]
        if others:
            yield from _torn(base, writes, at, others, what + " (others written)")
            if len(others) > 1:
                rest = others
                yield f"all but {part[0]}+{part[1]}{what}", False, lambda rest=rest: put(base, rest)  # type: ignore[misc]
    if len(writes) > 1:
        yield from _all_torn(base, writes, what)


def _all_torn(base: Disk, writes: Sequence[Part], what: str) -> Iterator[Variant]:
    """All writes of a phase torn at once, at the same unit."""
    for unit in range(0, max(len(data) for _, _, data in writes), UNIT):
        torn = [(name, offset, data[:unit] + GARBAGE) for name, offset, data in writes if unit < len(data)]
        whole = [part for part in writes if unit >= len(part[2])]
        if len(torn) == 1:
            return  # the others are there: that is in `_torn`
        parts = [*whole, *torn]
        yield f"all{what}: garbage at {unit}", True, lambda parts=parts: put(base, parts)  # type: ignore[misc]
        if unit:
            cut = [*whole, *((name, offset, data[:-UNIT]) for name, offset, data in torn)]
            yield f"all{what}: the first {unit}", False, lambda cut=cut: put(base, cut)  # type: ignore[misc]


def variants(base: Disk, event: Event) -> Iterator[Variant]:
    yield "nothing", False, lambda: base
    if event.kind != "write":
        return
    yield from _of_phase(base, event.writes, "")
    for count in range(1, len(event.company) + 1):
        company = event.company[:count]
        before = [part for earlier, _ in company for part in earlier]
        writes = [*event.writes, *(part for _, now in company for part in now)]
        known = len(writes) - len(company[-1][1]) if not before else 0
        yield from _of_phase(put(base, before), writes, f" with {count} more", known)


Changes: TypeAlias = frozenset[tuple[str, bytes]]


def _changes(base: Disk, image: Disk) -> Changes:
    """What differs: equal for equal images."""
    return frozenset(
        (name, xxhash.xxh3_128_digest(content))
        for name, content in image.items()
        if content is not base[name] and content != base[name]
    )


def images(world: Recording) -> Iterator[Image]:
    """Every crash of every replica, in order."""
    number = 0
    for recorded in world.records:
        disk: Disk = recorded.base
        for event in recorded.events:
            seen: set[Changes] = set()
            for text, is_garbage, make in variants(disk, event):
                changes = _changes(disk, make())
                if changes not in seen:
                    yield Image(number, len(seen), event, text, make, is_garbage)
                    seen.add(changes)
            disk = after(disk, event)
            number += 1
        others = tuple(other.promised for other in world.records if other is not recorded)
        last = Event(recorded.replica, "end", recorded.promised, others)
        yield Image(number, 0, last, "everything", lambda disk=disk: disk)  # type: ignore[misc]
        number += 1


# Starting on it


class ImageDisk(SimDisk):
    """Writes take no time; the files are shared with others until they are written."""

    def __init__(self, durable: Disk) -> None:
        super().__init__(Files(dict(durable)), lambda: 0, lambda: 0)
        self._own: set[str] = set()

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        self._own.add(name)
        return super().create(name, size, zeroed)

    def _put(self, file: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        name = self._handles[file]
        if name not in self._own:
            self._own.add(name)
            self.files.durable[name] = bytearray(self.files.durable[name])
        self.files.durable[name][offset : offset + len(data)] = data

    @property
    def is_busy(self) -> bool:
        return bool(self._queue)


class _Nowhere:
    """A network, and a recorder of events, for a replica that is alone."""

    def send(self, replica: int, message: Message) -> None:
        """Nobody hears it."""

    def send_client(self, client: ClientId, message: Message) -> None:
        """Nobody hears it."""

    def record(self, events: list[CoreEvent]) -> None:
        """Nobody wants to know."""


class _Replay(Driver):
    """Compares what it executes with what was executed when the script ran."""

    truth: Ledger

    def _execute(self, header: Header, message: Message | None) -> None:
        super()._execute(header, message)
        op, truth = header.op, self.truth
        _check(truth.committed[op].checksum == header.checksum, f"op {op} is executed as another one")
        machine = self.machine
        _check(isinstance(machine, DigestMachine) and machine.digest == truth.digests[op], f"another state at op {op}")
        _check(self.core.sessions.encode() == truth.session_tables[op], f"other sessions at op {op}")


def _start(disk: ImageDisk) -> tuple[Store, Recovered]:
    store = Store(disk, framing.make_header)
    recovered = store.recover()
    disk.flush()
    return store, recovered


def _settle(store: Store, disk: ImageDisk) -> None:
    """Until the store has nothing more to do by itself."""
    for _ in range(SETTLE_ROUNDS):
        before = disk.writes, len(disk.files.durable)
        store.completions()
        if (disk.writes, len(disk.files.durable)) == before and not disk.is_busy:
            return
    raise Wrong("the store does not come to rest")


def judge(world: Recording, image: Image) -> None:
    """Start on what a crash has left, and hold it against what was promised. Raises Wrong, and whatever crashes."""
    truth, source, replica = world.ledger, image.source, image.source.replica
    promised, messages = source.promised, world.records[replica].messages
    disk = ImageDisk(image.make())
    store, recovered = _start(disk)
    kept = _compare(truth, source, messages, store, recovered, image.is_garbage)
    _settle(store, disk)
    _no_leftovers(store, disk)
    # The core goes on from there, alone.
    core = Replica(
        config=CoreConfig(
            world.cluster, replica, REPLICAS, sessions_max=world.plan.sessions_max, prepare_bytes_max=64 << 10
        ),
        codec=FastCodec(),
        recovered=recovered,
        headers=known_headers(store, recovered),
        seed=0,
        now=1,
    )
    machine = DigestMachine()
    restore(machine, recovered)
    driver = _Replay(core, store, machine, _Nowhere(), _Nowhere(), lambda: 1, CheckpointPolicy(CHECKPOINT_OPS))
    driver.truth = truth
    driver.start()
    while driver.behind:
        driver.on_tick()
    driver.on_disk()
    _settle(store, disk)
    _check(core.applied >= promised.checkpoint_op, f"executed up to {core.applied} only")
    # Once more: the same, and nothing to be done.
    again = ImageDisk(disk.files.durable)
    second, found = _start(again)
    _compare(truth, source, messages, second, found, image.is_garbage, reads=False)
    _check(not again.writes or bool(found.faulty), "a second start finds something to write")
    same = (found.head, found.settled) == (recovered.head, recovered.settled)
    _check(same or image.is_garbage, f"a second start finds ops up to {found.head}, the first {recovered.head}")
    _append(world, again, second, found, kept)


def _append(
    world: Recording,
    disk: ImageDisk,
    store: Store,
    recovered: Recovered,
    kept: Sequence[Header],
) -> None:
    """What is missing up to the head of its view comes from peers, then there are new ops; all of it is there after
    another start."""
    state = recovered.view_state
    wanted = {header.op: header for header in state.suffix}
    wanted |= {op: header for op, header in world.ledger.committed.items() if op <= state.commit}
    messages = {checksum: message for record in world.records for checksum, message in record.messages.items()}
    token = 1
    for entry in recovered.entries:
        if entry.state is EntryState.PRESENT:
            continue
        known = entry.header or wanted.get(entry.op)
        message = messages.get(known.checksum) if known is not None else None
        if message is None:  # nobody knows it yet: the others would say that it never was
            store.truncate(min(entry.op - 1, store.head))
            break
        if entry.op <= store.head:
            store.repair(token, [message])
        else:
            store.append(token, [message])
        token += 1
    before = store.header(store.head)
    if before is None or store.head < state.suffix_head:
        return  # an op of its view that only others have
    new = []
    for body in NEW_BODIES:
        header: Header = framing.make_header(
            body,
            cluster=world.cluster,
            command=Command.PREPARE,
            view=state.log_view,
            op=before.op + 1,
            commit=before.op,
            parent=before.checksum,
            operation=Operation.APPLY,
            position=before.position + before.count,
            timestamp=before.timestamp + 1,
            count=1,
        )
        new.append(Message(header, body))
        before = header
    store.append(token, new)
    _check(token in store.completions(), "an append after the restart is not done")
    third, found = _start(ImageDisk(disk.files.durable))
    _check(found.settled == found.head == before.op, f"of the log up to {before.op}, {found.settled} are left")
    for header in kept:
        same = third.header(header.op)
        _check(same is not None and same.checksum == header.checksum, f"op {header.op} is lost after an append")
    for message in new:
        read = third.read(message.header.op, message.header.checksum)
        _check(read is not None and read.body == message.body, f"op {message.header.op}, appended then, is lost")


def _compare(
    truth: Ledger,
    source: Event,
    messages: dict[Checksum, Message],
    store: Store,
    recovered: Recovered,
    is_garbage: bool,
    reads: bool = True,
) -> list[Header]:
    """Hold a replica that was started against the promises. Returns the entries it had to keep."""
    state, checkpoint, promised = recovered.view_state, store.checkpoint, source.promised
    _check(state.view >= promised.view, f"view {state.view}, promised {promised.view}")
    _check(state.log_view >= promised.log_view, f"log_view {state.log_view}, promised {promised.log_view}")
    _check(checkpoint.op >= promised.checkpoint_op, f"checkpoint {checkpoint.op}, promised {promised.checkpoint_op}")
    _check(store.first_op >= promised.first_op, f"the log begins with {store.first_op}, again")
    _check(store.first_op <= checkpoint.op + 1, "the checkpoint does not reach to where the log begins")
    _compare_checkpoint(truth, store, recovered)
    states = {entry.op: entry.state for entry in recovered.entries}
    faulty = {op for op, state_of in states.items() if state_of is EntryState.FAULTY} | set(store.faulty)
    # Garbage in the unit of a witness that was not being changed: nothing tells it from an entry that was there and is
    # damaged (R11 c). Faulty is safe: the others say that it never was.
    doubted = faulty - promised.entries.keys() if is_garbage else set()
    _check(faulty <= doubted, f"ops {sorted(faulty)} are called damaged")
    kept = []
    for op, header in promised.entries.items():
        if op < store.first_op:
            continue
        if truth.is_void(state, header):
            _check(op > promised.applied, f"op {op} was executed, and is void now")
            continue
        if states.get(op) is EntryState.ABSENT and is_left_to_others(truth, state, source, header):
            continue
        _check(op <= recovered.settled or states.get(op) is EntryState.PRESENT, f"op {op} is lost")
        kept.append(header)
        if reads:
            read = store.read(op, header.checksum)
            sound = read is not None and xxhash.xxh3_128_digest(bytes(read.body)) == header.checksum_body
            _check(sound, f"op {op} can not be read")
    before: Header | None = None
    for op in range(store.first_op, min(recovered.head, store.head) + 1):
        found = store.header(op)
        if states.get(op, EntryState.PRESENT) is not EntryState.PRESENT:
            before = None
            continue
        _check(found is not None, f"op {op} has no header")
        if found is not None:
            _check(found.checksum in messages, f"op {op} was never written")
            _check(before is None or found.parent == before.checksum, f"op {op} does not continue the one before")
            committed = truth.committed.get(op)
            settled = op <= max(checkpoint.op, state.base)
            _check(not settled or committed is None or committed.checksum == found.checksum, f"op {op} is another one")
        before = found
    return kept


def is_left_to_others(truth: Ledger, state: ViewState, source: Event, header: Header) -> bool:
    """Whether a replica that came late into its view may have an entry sent to it once more.

    Of the ops between its base and the suffix of the view it knows that they are committed, but not which they are,
    when one of them is missing here. That one was committed without this replica, by a quorum that had all before it.
    """
    if not state.base < header.op < min(state.suffix[0].op, state.commit + 1):
        return False
    missing = [op for op in range(header.op + 1, state.suffix[0].op + 1) if op not in source.promised.entries]
    holders = [other for other in source.others if other.entries.get(header.op) == truth.committed[header.op]]
    return bool(missing) and len(holders) >= COMMIT_QUORUM[REPLICAS]


def _compare_checkpoint(truth: Ledger, store: Store, recovered: Recovered) -> None:
    checkpoint, restored = store.checkpoint, recovered.restored
    if not checkpoint.size:
        _check(restored is None, "a checkpoint from nowhere")
        return
    _check(restored is not None, f"the checkpoint of op {checkpoint.op} can not be read")
    if restored is not None:
        op = restored.op
        _check(op == checkpoint.op, f"the checkpoint of op {op} was read, that of {checkpoint.op} is in force")
        _check(checkpoint.header.checksum == truth.committed[op].checksum, f"a checkpoint of another op {op}")
        _check(restored.snapshot == truth.digests[op], f"the snapshot is not that of op {op}")
        _check(restored.sessions == truth.session_tables[op], f"the sessions are not those of op {op}")
        positions = truth.committed[op].position + truth.committed[op].count
        _check(restored.positions == positions, f"{restored.positions} events up to op {op}, not {positions}")


def _no_leftovers(store: Store, disk: ImageDisk) -> None:
    """What nothing refers to any more is gone."""
    checkpoint = store.checkpoint
    wanted = {checkpoints.file_name(checkpoint.op, copy) for copy in ("a", "b")} if checkpoint.size else set()
    for name in disk.names():
        number = segment_number(name)
        fits = name == superblock.NAME or name in wanted or (number is not None and number >= checkpoint.first_segment)
        _check(fits, f"{name} is left over")
    _check(disk.exists(journal_name(checkpoint.first_segment)), "the first segment is gone")
    _check(all(disk.exists(name) for name in wanted), "a copy of the checkpoint is gone")


# All of it


@dataclass(slots=True)
class Report:
    """How many images of each kind of event were started, and the first of those that went wrong."""

    events: int = 0
    images: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def merge(self, other: Report) -> None:
        self.events = other.events
        self.images += other.images
        self.wrong += other.wrong
        self.failures = (self.failures + other.failures)[:FAILURES_SHOWN]
        self.kinds = dict(Counter(self.kinds) + Counter(other.kinds))


def kind(event: Event) -> str:
    """Of what an event is part."""
    name = event.name or (event.writes[0][0] if event.writes else "")
    return f"{event.kind} {name.split('-')[0]}".strip()


def total(world: Recording, every: int = 1) -> int:
    return sum(1 for _ in islice(images(world), 0, None, every))


def enumerate_part(
    world: Recording, first: int, step: int, every: int, advance: Callable[[int], None] = lambda count: None
) -> Report:
    """Of every every-th image, those with the numbers first, first + step, ..."""
    report = Report(events=sum(len(recorded.events) for recorded in world.records))
    begun = time.monotonic()
    for image in islice(images(world), first * every, None, step * every):
        failure = try_one(world, image)
        report.images += 1
        name = kind(image.source)
        report.kinds[name] = report.kinds.get(name, 0) + 1
        if failure:
            report.wrong += 1
            if len(report.failures) < FAILURES_SHOWN:
                report.failures.append(failure)
        if report.images % PROGRESS_EVERY == 0:
            advance(PROGRESS_EVERY)
    advance(report.images % PROGRESS_EVERY)
    report.seconds = time.monotonic() - begun
    return report


def try_one(world: Recording, image: Image) -> str:
    """What is wrong with an image, with the label that replays it; the empty string when nothing is."""
    try:
        judge(world, image)
    except Exception as error:  # whatever a crash makes happen is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error} ({where.name})"
        return f"{describe(image)}: {text}"
    return ""


def describe(image: Image) -> str:
    """Label, event, and what is left of it."""
    return f"{image.label}, replica {image.source.replica}, {image.source.text()}; {image.text}"


def find(world: Recording, label: str) -> Image | None:
    """The image with that label, EVENT:VARIANT; None when there is none."""
    return next((image for image in images(world) if image.label == label), None)


def enumerate_all(
    world: Recording, every: int = 1, jobs: int = 1, advance: Callable[[int], None] = lambda count: None
) -> Report:
    """All images, or every so many, on that many processes. advance: called with how many are done."""
    if jobs <= 1:
        return enumerate_part(world, 0, 1, every, advance)
    begun = time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "kimberlite.vopr.crashes", *map(str, (world.requests, index, jobs, every))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(jobs)
    ]
    report = Report()
    try:
        for worker in workers:
            lines = worker.stdout if worker.stdout is not None else ()
            last = ""
            for last in lines:
                if last.startswith("+"):
                    advance(int(last))
            if worker.wait() or not last.startswith("{"):
                raise RuntimeError("a process that enumerates crashes has died")
            report.merge(Report(**json.loads(last)))
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
    report.seconds = time.monotonic() - begun
    return report


def _worker(arguments: Sequence[str]) -> None:
    requests, first, step, every = map(int, arguments)
    report = enumerate_part(record(requests), first, step, every, lambda count: print(f"+{count}", flush=True))
    print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    _worker(sys.argv[1:])
