"""Crashes by enumeration: a scripted run, and for every event of its disks everything that a crash may leave.

The run is vopr.recording, what a crash leaves of it vopr.crash_images. Each image is started by the production store
and core, held against the promises, and started again (`judge`).

`python -m kimberlite.vopr.crashes REQUESTS FIRST STEP EVERY RING` prints reports on a part of the images: the workers.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from random import Random

import xxhash

from kimberlite._fast import framing
from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.node.driver import Driver, FastCodec, known_headers, restore
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import ring, superblock
from kimberlite.storage.journal import journal_name, segment_number
from kimberlite.storage.store import Store
from kimberlite.types import (
    ZERO16,
    Checksum,
    ClientId,
    Command,
    EntryState,
    Header,
    Message,
    Operation,
    Recovered,
)
from kimberlite.vopr.crash_images import Image, images
from kimberlite.vopr.disk import Files, ImageDisk
from kimberlite.vopr.enumeration import FAILURES_SHOWN, Wrong, check, failure_text
from kimberlite.vopr.observed import DigestMachine
from kimberlite.vopr.recording import CHECKPOINT_OPS, REPLICAS, Event, Ledger, Recording, record
from kimberlite.vopr.workers import Workers, show
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.events import Event as CoreEvent
from kimberlite.vsr.replica import Replica

NEW_BODIES = tuple(Random(size).randbytes(size) for size in (100, 40_000, 30_000))  # into another segment
PART = 200  # images of one report
SETTLE_ROUNDS = 64


class _Nowhere:
    """A network, and a recorder of events, for a replica that is alone."""

    def send(self, replica: int, message: Message) -> None:
        """Nobody hears it."""

    def send_client(self, client: ClientId, message: Message) -> None:
        """Nobody hears it."""

    def refuse(self, message: Message) -> None:
        """Nobody sent it."""

    def record(self, events: list[CoreEvent]) -> None:
        """Nobody wants to know."""


class _Replay(Driver):
    """Compares what it executes with what was executed when the script ran."""

    truth: Ledger

    def _execute(self, header: Header, message: Message | None) -> None:
        super()._execute(header, message)
        op, truth = header.op, self.truth
        check(truth.committed[op].checksum == header.checksum, f"op {op} is executed as another one")
        machine = self.machine
        check(isinstance(machine, DigestMachine) and machine.digest == truth.digests[op], f"another state at op {op}")
        check(self.core.state.sessions.encode() == truth.session_tables[op], f"other sessions at op {op}")


def _start(disk: ImageDisk) -> tuple[Store, Recovered]:
    store = Store(disk, framing.make_header, uses_ring=True)
    recovered = store.recover()
    disk.flush()
    return store, recovered


def _live(store: Store) -> None:
    """What a process does before it says anything."""
    if store.ring_mark.nonce != ZERO16:
        store.begin_life(store.identity, 0)


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
    disk = ImageDisk(Files(dict(image.make())))
    store, recovered = _start(disk)
    kept = _compare(truth, source, messages, store, recovered, image.is_garbage)
    _live(store)
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
    check(core.state.execution.applied >= promised.checkpoint_op, f"executed up to {core.state.execution.applied} only")
    # Once more: the same, and nothing to be done.
    again = ImageDisk(disk.files)
    second, found = _start(again)
    _compare(truth, source, messages, second, found, image.is_garbage, reads=False)
    check(not again.writes or bool(found.faulty), "a second start finds something to write")
    same = (found.head, found.settled) == (recovered.head, recovered.settled)
    check(same or image.is_garbage, f"a second start finds ops up to {found.head}, the first {recovered.head}")
    _live(second)
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
    if any(entry.state is EntryState.ABSENT and entry.op < recovered.head for entry in recovered.entries):
        return  # a view began with a log that has a hole here: what stands below it is told by headers of others
    token = 1
    for entry in recovered.entries:
        if entry.is_candidate and entry.header != wanted.get(entry.op) and entry.op <= store.head:
            store.truncate(entry.op - 1)
        if entry.state is EntryState.PRESENT and entry.op <= store.head:
            continue
        known = wanted.get(entry.op) or entry.header
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
    # A small one alone, which a ring takes; and the others, which take it along.
    store.append(token, new[:1])
    store.append(token + 1, new[1:])
    check({token, token + 1} <= set(store.completions()), "an append after the restart is not done")
    third, found = _start(ImageDisk(disk.files))
    check(found.settled == found.head == before.op, f"of the log up to {before.op}, {found.settled} are left")
    for header in kept:
        same = third.header(header.op)
        check(same is not None and same.checksum == header.checksum, f"op {header.op} is lost after an append")
    for message in new:
        read = third.read(message.header.op, message.header.checksum)
        check(read is not None and read.body == message.body, f"op {message.header.op}, appended then, is lost")


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
    check(state.view >= promised.view, f"view {state.view}, promised {promised.view}")
    check(state.log_view >= promised.log_view, f"log_view {state.log_view}, promised {promised.log_view}")
    check(checkpoint.op >= promised.checkpoint_op, f"checkpoint {checkpoint.op}, promised {promised.checkpoint_op}")
    check(store.first_op >= promised.first_op, f"the log begins with {store.first_op}, again")
    check(store.first_op <= checkpoint.op + 1, "the checkpoint does not reach to where the log begins")
    _compare_checkpoint(truth, store, recovered)
    states = {entry.op: entry.state for entry in recovered.entries}
    faulty = {op for op, state_of in states.items() if state_of is EntryState.FAULTY} | set(store.faulty)
    # Garbage in the unit of a witness that was not being changed: nothing tells it from an entry that was there and is
    # damaged (R11 c). Faulty is safe: the others say that it never was.
    # Nor is it told that a candidate whose place was being written over had been found void: its witness stands.
    candidates = {entry.op for entry in recovered.entries if entry.is_candidate}
    doubted = (faulty if is_garbage else faulty & candidates) - promised.entries.keys()
    check(faulty <= doubted, f"ops {sorted(faulty)} are called damaged")
    kept = []
    for op, header in promised.entries.items():
        if op < store.first_op:
            continue
        if truth.is_void(state, header):
            check(op > promised.applied, f"op {op} was executed, and is void now")
            continue
        check(op <= recovered.settled or states.get(op) is EntryState.PRESENT, f"op {op} is lost")
        kept.append(header)
        if reads:
            read = store.read(op, header.checksum)
            sound = read is not None and xxhash.xxh3_128_digest(bytes(read.body)) == header.checksum_body
            check(sound, f"op {op} can not be read")
    before: Header | None = None
    for op in range(store.first_op, min(recovered.head, store.head) + 1):
        found = store.header(op)
        if states.get(op, EntryState.PRESENT) is not EntryState.PRESENT:
            before = None
            continue
        check(found is not None, f"op {op} has no header")
        if found is not None:
            check(found.checksum in messages, f"op {op} was never written")
            check(before is None or found.parent == before.checksum, f"op {op} does not continue the one before")
            committed = truth.committed.get(op)
            settled = op <= max(checkpoint.op, state.base)
            check(not settled or committed is None or committed.checksum == found.checksum, f"op {op} is another one")
        before = found
    return kept


def _compare_checkpoint(truth: Ledger, store: Store, recovered: Recovered) -> None:
    checkpoint, restored = store.checkpoint, recovered.restored
    if not checkpoint.size:
        check(restored is None, "a checkpoint from nowhere")
        return
    check(restored is not None, f"the checkpoint of op {checkpoint.op} can not be read")
    if restored is not None:
        op = restored.op
        check(op == checkpoint.op, f"the checkpoint of op {op} was read, that of {checkpoint.op} is in force")
        check(checkpoint.header.checksum == truth.committed[op].checksum, f"a checkpoint of another op {op}")
        check(restored.snapshot == truth.digests[op], f"the snapshot is not that of op {op}")
        check(restored.sessions == truth.session_tables[op], f"the sessions are not those of op {op}")
        positions = truth.committed[op].position + truth.committed[op].count
        check(restored.positions == positions, f"{restored.positions} events up to op {op}, not {positions}")


def _no_leftovers(store: Store, disk: ImageDisk) -> None:
    """What nothing refers to any more is gone."""
    checkpoint = store.checkpoint
    wanted = {checkpoints.file_name(checkpoint.op, copy) for copy in ("a", "b")} if checkpoint.size else set()
    for name in disk.names():
        number = segment_number(name)
        is_kept = number is not None and number >= checkpoint.first_segment
        fits = is_kept or name in wanted or name in (superblock.NAME, ring.NAME)
        check(fits, f"{name} is left over")
    check(disk.exists(journal_name(checkpoint.first_segment)), "the first segment is gone")
    check(all(disk.exists(name) for name in wanted), "a copy of the checkpoint is gone")


# All of it


@dataclass(slots=True)
class Report:
    """How many images of each kind of event were started, and the first of those that went wrong."""

    images: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, image: Image, failure: str) -> None:
        """failure: what is wrong with it; the empty string when nothing is."""
        self.images += 1
        name = kind(image.source)
        self.kinds[name] = self.kinds.get(name, 0) + 1
        if failure:
            self.wrong += 1
            self.failures = [*self.failures, failure][:FAILURES_SHOWN]

    def merge(self, other: Report) -> None:
        """Add what another part has found."""
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


def total_events(world: Recording) -> int:
    return sum(len(recorded.events) for recorded in world.records)


def enumerate_part(world: Recording, first: int, step: int, every: int) -> Generator[Report, None, None]:
    """Of every every-th image, those with the numbers first, first + step, ...: a report on each PART of them."""
    report = Report()
    for image in islice(images(world), first * every, None, step * every):
        report.add(image, try_one(world, image))
        if report.images == PART:
            yield report
            report = Report()
    yield report


def try_one(world: Recording, image: Image) -> str:
    """What is wrong with an image, with the label that replays it; the empty string when nothing is."""
    try:
        judge(world, image)
    except Exception as error:  # whatever a crash makes happen is what is looked for
        return f"{describe(image)}: {failure_text(error)}"
    return ""


def describe(image: Image) -> str:
    """Label, event, and what is left of it."""
    return f"{image.label}, replica {image.source.replica}, {image.source.text()}; {image.text}"


def enumerate_all(world: Recording, every: int = 1, jobs: int = 1) -> Generator[Report, None, None]:
    """All images, or every so many, on that many processes: reports to be merged, as they come."""
    if jobs <= 1:
        yield from enumerate_part(world, 0, 1, every)
        return
    parts = [(world.requests, index, jobs, every, int(world.plan.ring > 0)) for index in range(jobs)]
    with Workers(__name__, parts) as workers:
        for value in workers.values():
            yield Report(**value)


def _worker(arguments: Sequence[str]) -> None:
    requests, first, step, every, has_ring = map(int, arguments)
    for report in enumerate_part(record(requests, bool(has_ring)), first, step, every):
        show(asdict(report))


if __name__ == "__main__":
    _worker(sys.argv[1:])
