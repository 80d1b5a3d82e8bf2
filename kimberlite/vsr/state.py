"""Everything a replica knows, whatever it does now: the state that its roles share.

Grouped by what lives and dies together. What belongs to one view is in ViewScope, which is made anew with each; what
belongs to what the replica does now is in its role (vsr.role). What stays is true in every view: facts (commit number,
log, sessions), what is known of disks, links and lives of replicas, and entries asked for by their identity.

The methods are what every sub-protocol needs: making and sending frames, telling events, learning commit numbers.

Main invariants: log_view <= view; both durable before any frame that reveals them; applied <= durable <= linked <= op;
commits only by acknowledgements of the current view; nothing at or below a known commit number is ever dropped.
Imports errors, types and vsr only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from kimberlite.types import (
    OP_MAX,
    ROOM_UNBOUNDED,
    ZERO16,
    Bytes,
    Checksum,
    ClientId,
    Command,
    Header,
    Identity,
    Message,
    Reason,
    Recovered,
    Restored,
    Room,
    Status,
    life_sequence,
)
from kimberlite.vsr import identity as identities
from kimberlite.vsr.codec import Codec
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.events import DropReason, Event, EventKind
from kimberlite.vsr.identity import Own
from kimberlite.vsr.log import Log
from kimberlite.vsr.members import Membership
from kimberlite.vsr.outbox import Outbox
from kimberlite.vsr.pacing import Pacing
from kimberlite.vsr.record import Record
from kimberlite.vsr.sessions import SessionTable
from kimberlite.vsr.timers import FailureDetector, Prng, Timer
from kimberlite.vsr.work import ServeHeaders, ServePrepare, ToClient, ToReplica

if TYPE_CHECKING:
    from kimberlite.vsr.conflict import Conflict
    from kimberlite.vsr.role import Role

# Made for every frame and op, of their fields: in half of the time that the call of a named tuple takes.
_event = partial(tuple.__new__, Event)
_to_replica, _to_client = partial(tuple.__new__, ToReplica), partial(tuple.__new__, ToClient)
DROPPED = EventKind.DROPPED


@dataclass(slots=True)
class Prepared:
    """An uncommitted op of the primary, or a committed one that waits to be applied."""

    header: Header
    prepared_at: int
    acks: int = 0  # bit set of replicas that have it durable, in this view
    requests: list[tuple[Message, int]] = field(default_factory=list)  # with time of receipt


@dataclass(slots=True)
class Said:
    """What another replica has said in one view. Nanoseconds."""

    op: int | None = None  # that its log holds on disk, or as a primary its head; None: nothing
    progress_at: int = 0  # when its acknowledgements last grew, or it was heard again after a silence
    is_awaited: bool = False  # it was heard again, and has not come nearer since


@dataclass(slots=True)
class Peer:
    """What is known of another replica, whatever the view, and what it says in this one. Nanoseconds."""

    said: Said = field(default_factory=Said)
    last_heard: int = 0
    clock_offset: int | None = None  # to add to `now` for the time that its clock told; see vsr/clocks.py
    is_gone: bool = False  # nothing listens where it was, and nothing has come from it since
    held: int | None = None  # its last word on what its log holds: a hint whom to ask for an entry, never more
    commit: int = 0
    round_trip: int = 0
    repair_latency: int = 0  # EWMA
    repairs: int = 0  # in flight
    window: int = 16  # how many may be
    rests_until: int = 0  # it did not answer: not asked before, if another can be
    checkpoint: int = 0  # op of its checkpoint, as it said last
    incarnation: bytes = ZERO16  # see vsr/identity.py; of data of the first release zero, as the two that follow
    life: int = 0
    sequence: int = 0  # of its superblock, the highest heard

    def says(self, op: int) -> None:
        """How far its log goes. The last word counts: its disk may be a new one."""
        self.said.op = self.held = op


@dataclass(slots=True)
class Pace:
    """How fast requests are committed while some wait, so that a full queue can say when to come back. Nanoseconds."""

    request: int = 0  # for one; EWMA, 0 until something was seen
    since: int | None = None  # the last commit, when there was something to commit behind it

    def committed(self, requests: int, now: int, is_more: bool) -> None:
        """So many requests were committed; is_more: others are under way."""
        if self.since is not None and requests:
            took = (now - self.since) // requests
            self.request = self.request + (took - self.request) // 8 if self.request else took
        self.since = now if is_more else None

    def wait(self, requests: int, now: int) -> int:
        """So long until that many requests are committed; as long as nothing has been, when that is longer."""
        return max(requests * self.request, now - self.since if self.since is not None else 0)


@dataclass(frozen=True, slots=True)
class HeadersRequest:
    """Headers of ops first..last asked of a peer."""

    peer: int
    first: int
    last: int
    sent_at: int


@dataclass(slots=True)
class RepairRequest:
    """An entry asked of a peer."""

    header: Header
    peer: int
    first_sent_at: int
    sent_at: int


@dataclass(slots=True)
class ViewScope:
    """What a replica has heard and asked in one view."""

    known_head: int = 0  # head of the primary as last heard
    commit_heard: int = 0  # perhaps far above the own log
    entered: dict[int, int] = field(default_factory=dict)  # op not yet applied -> when its prepare entered this log
    headers_requests: dict[int, HeadersRequest] = field(default_factory=dict)  # nonce -> request, in order of ops
    headers_overdue: dict[int, HeadersRequest] = field(default_factory=dict)  # not waited for any more, still taken


@dataclass(slots=True)
class Repairs:
    """What is asked of others, by its identity: it stays wanted in every view."""

    pacing: Pacing
    requests: dict[int, RepairRequest] = field(default_factory=dict)  # op -> request
    early: dict[int, Message] = field(default_factory=dict)  # op -> prepare that came before its turn
    end: int = 0  # entries up to here are asked for or held, as last planned
    is_due: bool = False  # answers came in this round
    last_nonce: int = 0  # of any question
    timer: Timer = field(default_factory=Timer)


@dataclass(slots=True)
class Execution:
    """How far the committed log is executed. Times in nanoseconds."""

    applied: int = 0  # executed up to this op
    emitted: int = 0  # handed out up to this op
    checkpoint_op: int = 0  # of the durable checkpoint
    positions: int = 0  # events in the applied log
    replay_to: int = 0  # up to here the disk knew of the commit: executing it again is no new work
    recover_to: int | None = None  # the same until that has been done, then None
    started_at: int = 0

    def begin_with(self, restored: Restored) -> None:
        """Go on behind a checkpoint."""
        self.applied = self.emitted = self.checkpoint_op = restored.op
        self.positions = restored.positions


@dataclass(slots=True)
class Disk:
    """The own disk, as the driver last found it: before each round it says what the journal has room for."""

    room: Room = ROOM_UNBOUNDED
    is_short_of_space: bool = False  # the file system has less left than it should
    wants_room: bool = False  # the last round held something back for lack of room
    progress_at: int = 0  # when the durable log last grew; nanoseconds
    sequence: int = 0  # of the superblock, as it is durable


@dataclass(slots=True)
class Clock:
    """Time since 1970, as entries of the log are stamped. Nanoseconds."""

    offset: int = 0  # to add to `now`
    last: int = 0  # the last stamp given

    def stamp(self, now: int, previous: int) -> int:
        """Strictly increasing along the log, whatever the clock does. previous: of the entry before."""
        self.last = max(now + self.offset, previous + 1, self.last + 1)
        return self.last


class State:
    """See the module docstring."""

    __slots__ = (
        "__weakref__",
        "clock",
        "codec",
        "commit_max",
        "config",
        "conflict",
        "detector",
        "disk",
        "draining",
        "execution",
        "index",
        "log",
        "promised",
        "log_view",
        "membership",
        "now",
        "outbox",
        "own",
        "pace",
        "peers",
        "prng",
        "repairs",
        "role",
        "scope",
        "sessions",
        "view",
    )

    role: Role

    def __init__(
        self,
        config: CoreConfig,
        codec: Codec,
        recovered: Recovered,
        headers: Sequence[Header],
        seed: int,
        now: int,
        identity: Identity | None = None,
    ) -> None:
        """As storage found it; `role` is still missing. See Replica.__init__."""
        self.config = config
        self.codec = codec
        self.index = config.replica
        self.own = Own.of(identity)
        record = self.own.record
        self.membership = Membership.of(config.replica_count) if record is None else Membership.of_record(record)
        self.prng = Prng(seed)
        self.now = now
        self.clock = Clock()

        # Promised
        self.view = recovered.view_state.view
        self.log_view = recovered.view_state.log_view
        self.promised = recovered.view_state  # as it was written last, or is being written
        self.commit_max = 0  # never above this log, whatever is heard: it goes to disk and into evidence

        self.log = Log(recovered.settled_header, headers, recovered.first_op)
        self.conflict: Conflict | None = None  # an op of which two identities are known
        restored = recovered.restored
        self.sessions = SessionTable.decode(config.sessions_max, restored.sessions if restored is not None else b"")
        self.execution = Execution(started_at=now)
        if restored is not None:
            self.execution.begin_with(restored)

        self.scope = ViewScope()  # what belongs to `view`: see enter_view
        self.peers: dict[int, Peer] = {replica: Peer() for replica in self.membership.voters if replica != self.index}
        timing = config.timing
        self.detector = FailureDetector(timing.suspect_min_ns, timing.suspect_max_ns, self.prng, now)
        if self.peers:
            self.own.ping_timer.start(now + self.prng.jitter(timing.ping_ns))
        if record is not None:
            self.meet(record)
        self.repairs = Repairs(Pacing(timing.repair_expiry_ns, timing.repair_pause_ns))
        self.pace = Pace()
        self.draining = False  # this replica is being stopped
        self.disk = Disk(sequence=life_sequence(self.own.life))
        self.outbox = Outbox()

    # Derived

    @property
    def status(self) -> Status:
        return self.role.status

    @property
    def primary(self) -> int:
        return self.membership.leader(self.view)

    @property
    def is_primary(self) -> bool:
        """Whether this replica leads its view, or would if that began."""
        return self.membership.leader(self.view) == self.index

    @property
    def commit(self) -> int:
        """Highest op known to be committed that this replica's own log reaches."""
        return min(self.commit_max, self.log.linked)

    @property
    def is_disk_full(self) -> bool:
        """No segment can be reserved any more, and what is left is little; or the file system is nearly full.
        This replica goes on writing what fits, but nobody should count on it for more."""
        room = self.disk.room
        return self.disk.is_short_of_space or (room.is_exhausted and room.bytes < self.config.pipeline_bytes)

    @property
    def is_backed_up(self) -> bool:
        """Whether so much waits for this disk, or to be executed here, that no more is taken."""
        return self.log.held_bytes >= self.config.held_bytes_max

    def silence_of(self, replica: int) -> int:
        """Nanoseconds since that replica gave a sign of life; 0 of this one itself, -1 of one that never did."""
        if replica == self.index:
            return 0
        peer = self.peers.get(replica)
        return self.now - peer.last_heard if peer is not None and peer.last_heard > 0 else -1

    def is_heard(self, replica: int) -> bool:
        """Whether that replica, or this one itself, gave a sign of life within contact_ns."""
        if replica == self.index:
            return True
        peer = self.peers.get(replica)
        return (
            peer is not None
            and peer.last_heard > 0
            and not peer.is_gone
            and self.now - peer.last_heard <= self.config.timing.contact_ns
        )

    def is_gone(self, replica: int) -> bool:
        """Whether nothing listens where that replica was."""
        peer = self.peers.get(replica)
        return peer is not None and peer.is_gone

    @property
    def quorum_margin(self) -> int:
        """Replicas heard, this one included, minus those that a commit needs: below 0 nothing can be committed."""
        return sum(map(self.is_heard, self.membership.voters)) - self.membership.quorums.replication

    # Telling

    def emit(self, kind: EventKind, a: int = 0, b: int = 0, c: int = 0) -> None:
        self.outbox.work.events.append(_event((kind, a, b, c)))

    def drop(self, message: Message, reason: DropReason) -> None:
        self.outbox.work.events.append(Event(DROPPED, message.header.command, reason))

    def refuse(self, message: Message, reason: DropReason) -> None:
        """No honest replica sends that: drop it, and have its connection closed."""
        self.drop(message, reason)
        self.outbox.work.refused.append(message)

    def make(self, command: Command, body: Bytes = b"", **fields: int | Checksum) -> Message:
        """A frame of this replica, in its view."""
        own = self.own
        header = self.codec.make_header(
            body,
            cluster=self.config.cluster,
            command=command,
            replica=self.index,
            epoch=own.epoch,
            client=own.incarnation,
            session=own.life,
            view=self.view,
            commit=self.commit_max,
            checkpoint_op=self.execution.checkpoint_op,
            **fields,  # type: ignore[arg-type]
        )
        return Message(header, body)

    def make_for_client(self, command: Command, body: Bytes = b"", **fields: int | Checksum) -> Message:
        """The same, of the view as clients know it."""
        header = self.codec.make_header(
            body,
            cluster=self.config.cluster,
            command=command,
            replica=self.index,
            view=self.membership.shown(self.view),
            commit=self.commit_max,
            checkpoint_op=self.execution.checkpoint_op,
            **fields,  # type: ignore[arg-type]
        )
        return Message(header, body)

    def next_nonce(self) -> int:
        """For a question whose answer is told from others by it: hard to guess for who can not read it."""
        self.repairs.last_nonce = max(self.now, self.repairs.last_nonce + 1)
        return self.repairs.last_nonce

    def send(self, replica: int, message: Message) -> None:
        """A frame of this replica: it leaves when what it reveals is durable."""
        self.outbox.reveal(_to_replica((replica, message)))

    def broadcast(self, message: Message) -> None:
        for replica in self.peers:
            self.outbox.reveal(_to_replica((replica, message)))

    def pass_on(self, replica: int, entry: Message) -> None:
        """An entry of the log, which says nothing of this replica but that it has it."""
        self.outbox.work.send.append(_to_replica((replica, entry)))

    def send_client(self, client: ClientId, message: Message) -> None:
        self.outbox.work.send.append(_to_client((client, message)))

    def serve(self, request: ServePrepare | ServeHeaders) -> None:
        self.outbox.work.serve.append(request)

    def reject(self, request: Message, reason: Reason, *, flags: int = 0, wait_ms: int = 0) -> None:
        """Tell a client that its request was not accepted here. wait_ms: come back no sooner."""
        header = request.header
        self.emit(EventKind.REJECTED, reason)
        self.send_client(
            header.client,
            self.make_for_client(
                Command.REJECT,
                client=header.client,
                request=header.request,
                reason=reason,
                context=header.checksum,
                flags=flags,
                count=wait_ms,
            ),
        )

    # Commit numbers

    def learn_commit(self, commit: int) -> None:
        """A commit number of the canonical log, as a peer says."""
        if commit > self.scope.commit_heard:
            self.scope.commit_heard = commit
        self.note_committed()

    def note_commit(self) -> None:
        """What was heard is believed as far as this log goes: evidence of more than there is would
        keep every later view from being chosen, and a superblock would keep it for ever."""
        heard = self.scope.commit_heard
        if heard > self.commit_max:
            self.commit_max = max(self.commit_max, min(heard, self.log.op, self.trusted))

    @property
    def trusted(self) -> int:
        """Ops up to here may be committed and executed, for all that is known of their identities."""
        return self.conflict.op - 1 if self.conflict is not None else OP_MAX

    def note_committed(self) -> None:
        """In its own view, from the moment it is installed, this log is a prefix of the canonical
        one, so that a commit number speaks of its entries too: what it allows to apply is never dropped."""
        if self.scope.commit_heard > self.commit_max:
            self.note_commit()
        log, committed = self.log, self.commit_max
        if self.log_view == self.view and committed > log.committed:
            log.committed = max(log.committed, min(committed, log.linked))

    # Promises

    def enter_view(self, view: int) -> None:
        """The one place where a view ends and another begins: all that was heard, asked and to be said in the old one
        goes with it."""
        self.view = view
        self.outbox.withdraw()
        self.scope = ViewScope()
        for peer in self.peers.values():
            peer.said = Said()

    def meet(self, record: Record) -> None:
        """Know the others by their disks, as a record names them, and by what they have shown."""
        known = self.own.identity
        self.peers = {slot: self.peers.get(slot) or Peer() for slot in self.membership.voters if slot != self.index}
        for slot, peer in self.peers.items():
            member = record.member(slot)
            peer.incarnation = member.incarnation if member is not None else ZERO16
            if known is not None and known.heard[slot].life:
                peer.life, peer.sequence = known.heard[slot].life, known.heard[slot].sequence

    def persist_view(self, truncate_to: int | None = None) -> None:
        """Write the superblock. truncate_to: the journal is cut above that op then."""
        self.promised = replace(self.promised, view=self.view, log_view=self.log_view, commit=self.commit_max)
        own = self.own
        if own.identity is not None:
            own.identity = replace(own.identity, heard=identities.heard(self))
        self.outbox.make_promise(self.promised, truncate_to, self.now, own.identity)
