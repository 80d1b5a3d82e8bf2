"""The code of production as the simulator runs it: listened to, for the trace and the checkers.

Each class calls what it is made of, unchanged, and looks at what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import xxhash

from kimberlite._fast import events as event_batches
from kimberlite._fast import framing
from kimberlite.errors import WriteFailedError
from kimberlite.node.driver import Driver, requests_of
from kimberlite.state_machine import Batch
from kimberlite.storage.journal import RECORD_BYTES, journal_name, round_up, witness_name
from kimberlite.storage.scrub import Checked
from kimberlite.storage.store import Store
from kimberlite.storage.superblock import NAME as SUPERBLOCK
from kimberlite.types import Checksum, Command, Header, Message, Operation, Reason, life_sequence
from kimberlite.vopr import books, limits, logs
from kimberlite.vopr.checkers import Violation
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.events import DropReason, Event, EventKind
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.work import Promise, Work

# Names of events, as they are counted.
LABELS: dict[EventKind, str] = {
    kind: kind.name for kind in EventKind if kind not in (EventKind.DROPPED, EventKind.REJECTED)
}
DROPPED_LABELS: dict[int, str] = {reason: f"DROPPED_{reason.name}" for reason in DropReason}
REJECTED_LABELS: dict[int, str] = {reason: f"REJECTED_{reason.name}" for reason in Reason}
HEARD = frozenset(  # what a checker is told of
    {
        EventKind.PREPARE_ACKED,
        EventKind.REPAIR_EXPIRED,
        EventKind.VIEW_CHANGE_STARTED,
        EventKind.VIEW_CHANGED,
        EventKind.FORFEITED,
        EventKind.CHECKPOINTED,
    }
)
PREPARE_ACKED = EventKind.PREPARE_ACKED  # the most frequent one: looked up in a quarter of the time
WEIGH_EVERY = 32  # steps: adding up the bodies in memory costs more than all else that is looked at

if TYPE_CHECKING:
    from kimberlite.vopr.disk import Files, SimDisk
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World
    from kimberlite.vsr.log import Log


class DigestMachine:
    """A state machine whose state is a digest of everything applied: any divergence shows."""

    version = 1
    needs_body = True

    def __init__(self) -> None:
        self.digest = bytes(16)

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        for batch in batches:
            for event in event_batches.slice(batch.body, 0, batch.count):
                self.digest = xxhash.xxh3_128_digest(self.digest + event)
        return [self.digest[:8] for _ in batches]

    def freeze(self) -> DigestMachine:
        frozen = DigestMachine()
        frozen.digest = self.digest
        return frozen

    def snapshot(self, writer: BinaryIO) -> None:
        writer.write(self.digest)

    def restore(self, reader: BinaryIO) -> None:
        self.digest = reader.read()


class Observer:
    """The recorder of a simulated replica: hears the core's events."""

    def __init__(self, world: World, index: int) -> None:
        self._world = world
        self._index = index

    def record(self, events: list[Event]) -> None:
        world = self._world
        world.trace.recorded(world.now, self._index, events)
        counts = world.counts
        for kind, a, b, _ in events:
            label = LABELS.get(kind)
            if label is None:
                label = DROPPED_LABELS[b] if kind is EventKind.DROPPED else REJECTED_LABELS[a]
            counts[label] = counts.get(label, 0) + 1
            if kind in HEARD:
                self._hear(kind, a, b)

    def _hear(self, kind: EventKind, a: int, b: int) -> None:
        """Tell the checker that it concerns."""
        world = self._world
        if kind is PREPARE_ACKED:
            world.checkers.on_commit(world, self._index, a)
        elif kind is EventKind.REPAIR_EXPIRED:
            world.checkers.expired.setdefault(self._index, set()).add(a)
        elif kind is EventKind.VIEW_CHANGE_STARTED:
            world.checkers.on_view_left(self._index, a, b)
        elif kind is EventKind.VIEW_CHANGED:
            tell_clients(world, self._index)
        elif kind is EventKind.FORFEITED:
            world.leads.on_forfeited(world, self._index)
        elif kind is EventKind.CHECKPOINTED:
            made = world.nodes[self._index].store.checkpoint
            world.checkpoints.on_checkpoint(self._index, made, not world.plan.converted)


def tell_clients(world: World, index: int) -> None:
    """Of the view that has begun at a replica, as a node does."""
    view = world.nodes[index].driver.core.state.view
    header = framing.make_header(cluster=world.cluster, command=Command.HELLO, replica=index, view=view)
    for client in world.clients:
        world.network.send(index, client.name, Message(header))


class ObservedDriver(Driver):
    """The production driver; tells the checkers what it executes."""

    core: ObservedReplica
    world: World
    index: int

    def _run(self) -> None:
        """A round that its disk ends has said already what it says: the checkers hear of it too."""
        core = self.core
        try:
            super()._run()
        except WriteFailedError:
            if core.round is not None and core.round.events:
                self.recorder.record(core.round.events)
            raise
        finally:
            core.round = None

    def _execute(self, header: Header, message: Message | None) -> None:
        world = self.world
        requests = requests_of(header, message)
        if message is not None and requests:
            message.unpacked = requests  # the driver makes the same of it
        world.checkers.on_applied(self.index, header, requests)
        world.checkers.on_events(header.op, requests)
        if header.operation == Operation.TRIM and message is not None:
            world.checkers.on_trim(world, self.index, message)
        world.checkpoints.on_executed(header)
        super()._execute(header, message)
        digest = self.machine.digest if isinstance(self.machine, DigestMachine) else b""
        world.checkers.on_executed(self.index, header.op, digest, self.core.state.sessions.clients)

    def _make_checkpoint(self, op: int) -> None:
        if self._is_checkpoint_lost:
            self.world.checkpoints.remade.add((self.index, op))
        super()._make_checkpoint(op)


class ObservedReplica(Replica):
    """The production core; what it has promised is in the trace from the moment it is durable."""

    world: World
    round: Work | None = None  # the one under way

    def take_work(self) -> Work:
        self.round = super().take_work()
        return self.round

    def step(self, message: Message, now: int) -> None:
        """N1, N2: what a stranger says, or a life that is over, changes nothing."""
        stranger = message.header.command != Command.PREPARE and self._is_stranger(message.header)
        before = self._heard_of(message.header.replica) if stranger else None
        super().step(message, now)
        if stranger and before != self._heard_of(message.header.replica):
            raise Violation(
                "N1 strangers",
                f"replica {self.state.index} acts upon {message}, of a disk that is no member, or a life that is over",
            )

    def _is_stranger(self, header: Header) -> bool:
        """By the record alone, and the lives that were heard."""
        own, peer = self.state.own, self.state.peers.get(header.replica)
        if own.record is None or not own.is_formed or peer is None:
            return False
        member = own.record.member(header.replica)
        is_other = member is not None and member.incarnation != header.client
        return is_other or life_sequence(header.session) < life_sequence(peer.life)

    def _heard_of(self, replica: int) -> object:
        """What a frame of that replica may change."""
        state = self.state
        role, peer = state.role, state.peers[replica]
        given = role.evidence.get(replica) if isinstance(role, ChangingView) else None
        acks = [prepared.acks for prepared in role.pipeline] if isinstance(role, Leading) else None
        return state.view, state.commit_max, role.votes.at.get(replica), given, acks, peer.life, peer.last_heard

    def durable(self, token: int, now: int) -> None:
        view, persist = self.state.outbox.owed[token]
        if isinstance(persist, Promise):
            state = persist.state
            promise = (state.view, state.log_view, state.commit, state.suffix_head, persist.truncate_to)
            self.world.trace.add(now, "promise", self.state.index, *promise)
            logs.check_base(self.world, self.world.nodes[self.state.index], state.base)
        elif view != self.state.view:
            self.world.count("WRITTEN_IN_A_LATER_VIEW")
        super().durable(token, now)


class Good(NamedTuple):
    """An entry that was found good: where it and its witness stand, what was read there, and what the scrubber was
    told."""

    journal: str
    offset: int
    entry: bytearray
    witness: str
    at: int
    record: bytearray
    said: Checked

    @classmethod
    def of(cls, files: Files, number: int, index: int, place: tuple[int, int], said: Checked) -> Good:
        """index: of the entry in its segment. place: its offset and size."""
        journal, witness, at = journal_name(number), witness_name(number), index * RECORD_BYTES
        entry = files.durable[journal][place[0] : sum(place)]
        return cls(journal, place[0], entry, witness, at, files.durable[witness][at : at + RECORD_BYTES], said)

    def stands_in(self, files: Files) -> bool:
        """Whether it stands there now."""
        journal, offset, entry, witness, at, record, _ = self
        durable = files.durable
        if journal not in durable or witness not in durable:
            return False
        is_same = durable[journal][offset : offset + len(entry)] == entry
        return is_same and durable[witness][at : at + RECORD_BYTES] == record


class ObservedStore(Store):
    """The production store; what it hands out is compared with what was asked for, and with what was committed."""

    core: ObservedReplica | None = None  # whose log it keeps, from the moment there is one

    def __init__(self, world: World, disk: SimDisk, uses_ring: bool = False) -> None:
        plan = world.plan
        super().__init__(disk, framing.make_header, plan.handles_max, uses_ring, plan.ring_slots)
        self._world = world
        self._device, self._files = disk.device, disk.files
        self._good: dict[int, Good] = {}
        # Copies of the superblock found good: the version that it had then, and what the scrubber was told.
        self._good_copies: dict[int, tuple[int, Checked]] = {}

    def read(self, op: int, checksum: Checksum | None = None, ahead: int = 0) -> Message | None:
        message = super().read(op, checksum, ahead)
        if message is not None:
            self._world.checkers.on_read(self.replica, op, message.header, self._settled, checksum)
        return message

    def headers(self, first: int, last: int) -> list[Header]:
        found = super().headers(first, last)
        if found:  # those before are its ancestors
            self._world.checkers.on_read(self.replica, min(last, self.head), found[-1], self._settled)
        return found

    def check_entry(self, op: int) -> Checked:
        """In virtual time a tour follows the other. What was found good is good while the same bytes stand there, the
        disk gives what is there and takes no time, and nothing is being written."""
        if not self._may_know or self._writer.in_flight or self._checks.is_rewriting:
            return super().check_entry(op)
        known = self._good.get(op)
        if known is not None and known.stands_in(self._files):
            return known.said if self.first_op <= op <= self.head and op not in self.faulty else super().check_entry(op)
        said = super().check_entry(op)
        if said.bytes and not said.damage:
            number, index, header, offset = self.place_of(op)
            if header is not None and offset is not None:
                self._good[op] = Good.of(self._files, number, index, (offset, round_up(header.size)), said)
        return said

    def check_superblock(self, copy: int) -> Checked:
        """Like check_entry."""
        version = self._files.versions.get(SUPERBLOCK, 0)
        known = self._good_copies.get(copy)
        if known is not None and known[0] == version and self._may_know and self._superblock.is_settled:
            return known[1]
        said = super().check_superblock(copy)
        if said.bytes and not said.damage:
            self._good_copies[copy] = version, said
        return said

    @property
    def _may_know(self) -> bool:
        """Whether every read gives what is there, and takes no time."""
        device, unreadable = self._device, self._files.unreadable
        if device.slow or device.hung or device.lies is not None:
            return False
        return not unreadable or not any(unreadable.values())

    def truncate(self, op: int) -> None:
        super().truncate(op)
        self._good.clear()  # other entries may come in their places, or they in others

    @property
    def _settled(self) -> int:
        """Up to here the log of its replica is known to be committed."""
        core = self.core
        if core is None:
            return 0
        committed, applied = core.state.log.committed, core.state.execution.applied
        return committed if committed > applied else applied


class Watch:
    """Looks at one life of a replica after every step: at its bounds, and for what leaves no event."""

    def __init__(self) -> None:
        self._most: tuple[int, ...] = ()
        self._steps = self._op = self._journal_head = 0
        self._linked = -1, 0
        self._log_view = -1
        self._candidates: dict[int, Checksum] = {}

    def look(self, world: World, node: SimNode) -> None:
        core = node.driver.core
        state = core.state
        if not self._most:
            found = len(node.store._segments.spare) + len(node.store._segments.open)
            self._most = limits.limits(state.config, node.store.segment_bytes, found)
        self._steps += 1
        is_another = (
            state.log_view != self._log_view or state.log.journal_head < self._journal_head
        )  # installed, or cut
        self._journal_head = state.log.journal_head
        if is_another or self._steps % WEIGH_EVERY == 0:
            limits.weigh(core)
            books.check(core)
            logs.check_kept(world, node)
        if not limits.fits(core, node.store, node.disk, self._most):
            limits.check_held(node.index, limits.held(core, node.store, node.disk), self._most)
        log = state.log
        log_view, op = state.log_view, log.op
        if state.outbox.promise is None and (log_view, log.linked) != self._linked:  # else it may yet be another's
            first = log.committed if log_view != self._linked[0] else self._linked[1]
            world.logs.on_linked(world, node.index, log_view, log, first + 1)
            self._linked = log_view, log.linked
        if op < self._op and log_view == self._log_view:
            world.count("GAVE_UP_ABOVE")  # nothing else makes a log shorter within a view
        self._log_view, self._op = log_view, op
        if self._candidates or log.candidates:
            self._look_at_candidates(world, log)

    def _look_at_candidates(self, world: World, log: Log) -> None:
        for op, checksum in self._candidates.items():
            known = log.headers.get(op)
            if op not in log.candidates and op <= log.linked and known is not None and known.checksum == checksum:
                world.count("CANDIDATE_SETTLED")
        self._candidates = {op: header.checksum for op, header in log.candidates.items()}
