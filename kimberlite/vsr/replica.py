"""The replica: state, dispatch, and the rules shared by every sub-protocol.

    normal.py        requests, prepares, acknowledgements, heartbeats
    abdication.py    when a primary gives its view up
    view_change.py   votes, evidence, choice of the log, installation
    repair.py        headers and entries that are missing or damaged
    round_trips.py   how long peers take to answer
    recovery.py      from what storage found to the right status
    verdict.py       whether this replica's cluster can commit, as far as it knows
    snapshot.py      state for status and gauges

Each of these is functions over the state held here. The core is pure: no clock (`now`
is handed in, monotonic nanoseconds), no I/O, no randomness but the seed, no logging.
Same state and same inputs give the same outputs, byte for byte.

Main invariants: log_view <= view; both durable before any frame that reveals them;
applied <= durable <= linked <= op; commits only by acknowledgements of the current
view; nothing at or below a known commit number is ever dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from kimberlite.errors import FrameError, invariant
from kimberlite.types import (
    FLAG_DISK_FULL,
    OP_MAX,
    ROOM_UNBOUNDED,
    Bytes,
    Checksum,
    ClientId,
    Command,
    Header,
    Message,
    Reason,
    Recovered,
    Status,
)
from kimberlite.vsr import (
    abdication,
    admission,
    bounds,
    conflict,
    normal,
    recovery,
    repair,
    snapshot,
    verdict,
    view_change,
)
from kimberlite.vsr.admission import Act, Ruling
from kimberlite.vsr.codec import Codec
from kimberlite.vsr.config import CONTACT_MIN_NS, CoreConfig
from kimberlite.vsr.events import DropReason, Event, EventKind, GaveUp
from kimberlite.vsr.log import Log
from kimberlite.vsr.pacing import Pacing
from kimberlite.vsr.quorum import quorums
from kimberlite.vsr.sessions import Result, SessionTable
from kimberlite.vsr.state import LogState, Pace, Peer, Prepared, RepairRequest, Said, ViewScope
from kimberlite.vsr.timers import FailureDetector, Prng, Timer
from kimberlite.vsr.work import (
    Admission,
    Apply,
    Persist,
    PersistKind,
    ServeHeaders,
    ServePrepare,
    Snapshot,
    ToClient,
    ToReplica,
    Work,
)

WRITES_MAX = 4  # to the journal at once: they are carried out one after another, each with two waits for the disk
VIEWS_MAX = 4  # writes of the superblock at once: no more views are entered than the disk follows


class Replica:
    """One replica's protocol state. See the module docstring and vsr/work.py."""

    def __init__(
        self,
        *,
        config: CoreConfig,
        codec: Codec,
        recovered: Recovered,
        headers: Sequence[Header],
        seed: int,
        now: int,
    ) -> None:
        """`headers`: those of the journal from recovered.commit (or below) up to, not including,
        recovered.settled; none when commit is above."""
        self.config = config
        self.codec = codec
        self.index = config.replica
        self.quorums = quorums(config.replica_count)
        self.prng = Prng(seed)
        self.now = now
        self.started_at = now
        self.clock_offset = 0

        self.status = Status.RECOVERING
        self.view = recovered.view_state.view
        self.log_view = recovered.view_state.log_view
        self.scope = ViewScope()  # what belongs to `view`: see enter_view
        self.commit_max = 0  # never above this log, whatever is heard: it goes to disk and into evidence
        restored = recovered.restored
        self.applied = self.apply_emitted = self.checkpoint_op = restored.op if restored is not None else 0
        self.positions = restored.positions if restored is not None else 0  # events in the applied log
        self.first_op = recovered.first_op  # of the log
        self.log = Log(recovered.settled_header, headers)
        self.log_state = LogState(0, 0, ())

        # Primary
        self.pipeline: deque[Prepared] = deque()
        self.committing: dict[int, Prepared] = {}
        self.queue: deque[tuple[Message, int]] = deque()
        self.queue_bytes = 0  # of these and of `waiting`
        self.pace = Pace()
        self.in_flight: dict[ClientId, int] = {}  # request numbers queued or prepared here
        self.waiting: dict[ClientId, tuple[Message, int]] = {}  # requests held until `ready`
        self.draining = False
        # The disk, as the driver last found it: before each round it says what the journal has room for.
        self.room = ROOM_UNBOUNDED
        self.is_short_of_space = False  # the file system has less left than it should
        self.wants_room = False  # the last round held something back for lack of room
        self.progress_at = 0  # when the durable log last grew
        self.last_timestamp = 0
        self.entered: dict[int, int] = {}  # op not yet applied -> when its prepare entered this log

        # Backup
        self.stash: dict[int, Message] = {}

        # View change
        self.view_changes_failed = 0
        self.view_left_at = 0
        self.stuck_op = 0  # of which the evidence has neither a copy nor certain absence; 0: none
        self.gave_up: tuple[int, GaveUp] | None = None  # the view that it would not lead any more, until one begins

        # Repair
        self.repairs: dict[int, RepairRequest] = {}
        self.repair_end = 0  # entries up to here are asked for or held, as last planned
        self.repair_due = False  # answers came in this round
        self.last_nonce = 0  # of a question
        self.pacing = Pacing(config.repair_expiry_ns, config.repair_pause_ns)

        self.conflict: conflict.Conflict | None = None  # an op of which two identities are known
        self.refusal: bounds.OutOfBounds | None = None  # the last number of a peer that was out of bounds

        self.sessions = SessionTable.decode(config.sessions_max, restored.sessions if restored is not None else b"")
        self.peers: dict[int, Peer] = {
            replica: Peer() for replica in range(config.replica_count) if replica != self.index
        }
        self.detector = FailureDetector(config.suspect_min_ns, config.suspect_max_ns, self.prng, now)
        self.heartbeat_timer = Timer()
        self.prepare_timer = Timer()
        self.vote_timer = Timer()
        self.view_change_timer = Timer()
        self.do_view_change_timer = Timer()
        self.repair_timer = Timer()
        self.ping_timer = Timer()
        if self.peers:
            self.ping_timer.start(now + self.prng.jitter(config.ping_ns))

        self._work = Work()
        self._next_token = 1
        self._writes = 0  # to the journal, under way
        self._written_at = 0  # when the disk last completed something, or was given something after it had nothing
        self._pending: dict[int, tuple[int, Persist, Sequence[ToReplica]]] = {}
        self.view_token: int | None = None  # a superblock write is under way: the journal waits
        recovery.begin(self, recovered)
        self.replay_to = self.commit_max  # up to here the disk knew of the commit: executing it again is no new work
        self.recover_to: int | None = self.replay_to  # None once it has recovered

    # Inputs

    def step(self, message: Message, now: int) -> None:
        """A frame from a peer, already verified by the transport."""
        self.now = now
        header = message.header
        handler = _HANDLERS.get(header.command)
        if header.cluster != self.config.cluster or header.epoch != 0:
            self.drop(message, DropReason.WRONG_CLUSTER)
        elif handler is None or header.replica >= self.config.replica_count:
            self.drop(message, DropReason.NOT_MEMBER)
        elif header.replica == self.index and header.command != Command.PREPARE:
            self.drop(message, DropReason.WRONG_ROLE)
        elif (found := bounds.find(self, header)) is not None:
            self.refusal = found
            self.refuse(message, DropReason.OUT_OF_BOUNDS)
        else:
            peer = self.peers.get(header.replica)
            if peer is not None and header.command != Command.PREPARE:  # copies of that anybody sends
                if now - peer.last_heard > CONTACT_MIN_NS:
                    self.hear(peer)
                peer.last_heard = now
            try:
                self._admit(message, handler)
            except FrameError:
                self.refuse(message, DropReason.MALFORMED)

    def hear(self, peer: Peer) -> None:
        """A sign of life, perhaps the first after a silence."""
        silence, peer.last_heard = self.now - peer.last_heard, self.now
        if silence > self.config.contact_ns:
            abdication.on_returned(self, peer)
            self.pacing.clear()  # it may have what nobody else has

    def _admit(self, message: Message, handler: Callable[[Replica, Message], None]) -> None:
        """Do what vsr.admission says of a frame."""
        header = message.header
        if header.command == Command.PREPARE and self.log.knows(header):
            normal.on_known_prepare(self, message)
            return
        ruling = admission.look(self, header)
        if ruling.act is Act.ENTER_FIRST:
            view_change.on_newer_view(self, header.view)
            ruling = admission.look(self, header, may_be_newer=False)
        if ruling.act is Act.ACCEPT:
            handler(self, message)
            return
        if is_of_its_primary(self, header, ruling):
            self.hear(self.peers[header.replica])
        if ruling.act is Act.ENTER:
            view_change.on_newer_view(self, header.view)
        elif ruling.reason is not None:
            (self.refuse if ruling.act is Act.REFUSE else self.drop)(message, ruling.reason)
            if ruling.act is Act.INFORM:
                view_change.inform(self, header.replica)

    def propose(self, message: Message, now: int) -> Admission:
        """A client's request. Refusals are answered with a REJECT frame."""
        self.now = now
        if bounds.find(self, message.header) is not None:
            self.reject(message, Reason.MALFORMED)
            return Admission.REJECTED
        return normal.propose(self, message)

    def tick(self, now: int) -> None:
        """Let expired timers act. To be called at or after `next_deadline`; never harmful."""
        self.now = now
        view = self.view
        view_change.give_signs_of_life(self)
        why = normal.tick(self)
        if why is not None:
            view_change.abdicate(self, why)
        if self.view == view:
            view_change.tick(self)
        repair.tick(self)

    def durable(self, token: int, now: int) -> None:
        """What was asked under `token` is on the disk: releases what depended on it.

        Tokens complete in the order given out. A token of an older view still makes its
        entries durable, unless a cut of the journal has been asked for since (`_void_writes`), but
        acknowledges nothing: by then the same op number may stand for another entry in the
        new view, so the acknowledgement is made anew, from the log, when the new view is installed.
        """
        self.now = now
        self._written_at = now
        view, persist, messages = self._pending.pop(token)
        if persist.kind is PersistKind.WRITE:
            self._writes -= 1
            before = self.log.durable
            for entry in persist.entries:
                if self.log.mark_durable(entry.header):
                    repair.on_durable(self, entry.header)
                entered = self.entered.get(entry.header.op)
                if entered is not None and view == self.view:
                    self.emit(EventKind.JOURNALED, entry.header.op, now - entered, int(self.is_primary))
            if self.log.durable > before:
                self.progress_at = now
            if view == self.view:
                normal.on_entries_durable(self)
        else:
            self.view_token = None if self.view_token == token else self.view_token
            if view == self.view and persist.log_view == self.log_view:
                self._work.send.extend(messages)
                view_change.on_view_durable(self)

    def not_written(self, token: int, ops: Collection[int]) -> None:
        """Of what was asked under `token` the journal has no certain place for these entries: they are missing as
        before, and asked for less and less."""
        view, persist, messages = self._pending[token]
        kept = tuple(entry for entry in persist.entries if entry.header.op not in ops)
        self._pending[token] = view, persist._replace(entries=kept), messages
        for op in ops:
            self.log.not_written(op)
            self.pacing.brought_nothing((repair.ENTRY, op), self.now)
        repair.wake(self)

    def applied_op(self, op: int, results: Sequence[Result], now: int) -> None:
        """The state machine has executed `op`; called in the order of Work.apply."""
        self.now = now
        invariant(op == self.applied + 1, "ops are applied in order", op=op, applied=self.applied)
        self.applied = op
        normal.on_applied(self, op, results)
        self.log.forget(op)

    def entry_faulty(self, op: int, header: Header | None, now: int) -> None:
        """A read from the journal found `op` damaged: fetch it again from a peer. `header` is what
        its witness says, None when that is damaged too. Applying waits for the repair."""
        if not self.is_of_log(op):
            return
        self.now = now
        if header is None and op in self.log.bodies:
            header = self.log.bodies[op].header
        if header is not None and op <= self.log.linked:  # above, the journal may hold another log's entry
            self.log.headers.setdefault(op, header)
        self.log.mark_faulty(op)
        self.apply_emitted = max(self.applied, min(self.apply_emitted, op - 1))
        self.emit(EventKind.FAULTY, op)
        repair.wake(self)

    def is_of_log(self, op: int) -> bool:
        """Whether this log needs what the journal has under `op`. What was trimmed nobody has and nobody needs, and
        what a view change is about to cut off is another log's: the store forgets both in a while."""
        return self.first_op <= op <= self.log.journal_head

    def checkpointed(self, op: int) -> None:
        """The checkpoint of `op` is durable here: peers hear of it with the next frame."""
        self.checkpoint_op = op
        self.emit(EventKind.CHECKPOINTED, op)

    def trimmed(self, first_op: int) -> None:
        """A committed TRIM was executed: the log begins with `first_op`."""
        self.first_op = max(self.first_op, first_op)
        self.log.trim(first_op)
        for op in [op for op in self.repairs if op < first_op]:
            self.peers[self.repairs.pop(op).peer].repairs -= 1
        self.emit(EventKind.TRIMMED, first_op)

    def propose_trim(self, first_op: int, first_position: int, now: int) -> bool:
        """As primary: have the log begin with `first_op`, a committed one, whose first event is
        first_position. False when that can not be proposed now; see `trimmable_op`."""
        self.now = now
        return normal.propose_trim(self, first_op, first_position)

    @property
    def trimmable_op(self) -> int:
        """Highest op with which the log may begin: what is before is in a durable checkpoint of every
        replica, so that none will ever need it to catch up."""
        return min([self.checkpoint_op, *(peer.checkpoint for peer in self.peers.values())]) + 1

    def set_clock_offset(self, offset_ns: int) -> None:
        """Nanoseconds to add to `now` to obtain the time since 1970."""
        self.clock_offset = offset_ns

    def drain(self) -> None:
        """Refuse new requests from now on; what is under way goes on."""
        self.draining = True

    def step_down(self, now: int) -> None:
        """As primary: ask the others to take over, and stop leading."""
        self.now = now
        view_change.abdicate(self, GaveUp.DRAINED if self.draining else GaveUp.ABDICATED)

    # Outputs

    def take_work(self) -> Work:
        """Everything to do since the last call. `wants_room` afterwards: something waits for room in the
        journal, and goes on in a later round when `room` has grown."""
        self.wants_room = False
        normal.flush(self)
        if self.repair_due:
            repair.go_on(self)
        self.note_committed()
        self._write_entries()
        normal.acknowledge(self)
        self._emit_applies()
        if self.recover_to is not None and self.status == Status.NORMAL and self.applied >= self.recover_to:
            self.recover_to = None
            self.emit(EventKind.RECOVERED, self.now - self.started_at)
        work = self._work
        if not work:
            return work
        self._work = Work()
        return work

    def next_deadline(self) -> int | None:
        """When `tick` has something to do; None when only an input can change anything."""
        if self.apply_emitted < self.commit_max and self.apply_emitted < self._applicable and not self.log.faulty:
            return self.now
        if self.wants_room:
            return self.now
        deadlines = [
            timer.deadline
            for timer in (
                self.heartbeat_timer,
                self.prepare_timer,
                self.vote_timer,
                self.view_change_timer,
                self.do_view_change_timer,
                self.repair_timer,
                self.ping_timer,
            )
            if timer.deadline is not None
        ]
        if self.status == Status.NORMAL and not self.is_primary and not self.scope.suspecting:
            deadlines.append(self.detector.deadline)
        return min(deadlines) if deadlines else None

    def snapshot(self) -> Snapshot:
        """State for status and gauges."""
        return snapshot.of(self)

    def headers_message(self, headers: Sequence[Header], nonce: int) -> Message | None:
        """The HEADERS frame for ServeHeaders; None when nothing can be said."""
        return repair.headers_message(self, headers, nonce)

    # Derived state

    @property
    def primary(self) -> int:
        return self.view % self.config.replica_count

    @property
    def is_primary(self) -> bool:
        return self.view % self.config.replica_count == self.index

    def is_committed(self, header: Header) -> bool:
        """Whether that is the header of a committed op of this log."""
        own = self.log.headers.get(header.op)
        return own is not None and own.checksum == header.checksum and header.op <= self.log.committed

    @property
    def ready(self) -> bool:
        """Whether this primary has committed and executed all that the last view left."""
        return self.scope.ready

    @property
    def is_disk_full(self) -> bool:
        """No segment can be reserved any more, and what is left is little; or the file system is nearly full.
        This replica goes on writing what fits, but nobody should count on it for more."""
        return self.is_short_of_space or (self.room.is_exhausted and self.room.bytes < self.config.pipeline_bytes)

    @property
    def can_journal(self) -> bool:
        """Whether this replica and a quorum have room for more, as far as is known: else a request would neither be
        committed nor answered until somebody makes some."""
        return not self.is_disk_full and not verdict.is_short_of_room(self)

    def note_disk(self, replica: int, flags: int) -> None:
        """What a frame of that peer says of its disk."""
        if flags & FLAG_DISK_FULL:
            self.scope.full_peers.add(replica)
        else:
            self.scope.full_peers.discard(replica)

    @property
    def disk_waits(self) -> int:
        """Nanoseconds since the disk last completed something, though more was asked of it; 0 when nothing was."""
        return self.now - self._written_at if self._pending else 0

    @property
    def commit(self) -> int:
        """Highest op known to be committed that this replica's own log reaches."""
        return min(self.commit_max, self.log.linked)

    @property
    def may_enter_view(self) -> bool:
        """Whether the disk follows the views entered so far. Nothing could be said in one more before it does."""
        return sum(persist.kind is PersistKind.VIEW for _, persist, _ in self._pending.values()) < VIEWS_MAX

    # Used by the sub-protocols

    def emit(self, kind: EventKind, a: int = 0, b: int = 0, c: int = 0) -> None:
        self._work.events.append(Event(kind, a, b, c))

    def drop(self, message: Message, reason: DropReason) -> None:
        self._work.events.append(Event(EventKind.DROPPED, message.header.command, reason))

    def refuse(self, message: Message, reason: DropReason) -> None:
        """No honest replica sends that: drop it, and have its connection closed."""
        self.drop(message, reason)
        self._work.refused.append(message)

    def make(self, command: Command, body: Bytes = b"", **fields: int | Checksum) -> Message:
        """A frame of this replica, in its view."""
        header = self.codec.make_header(
            body,
            cluster=self.config.cluster,
            command=command,
            replica=self.index,
            view=self.view,
            commit=self.commit_max,
            checkpoint_op=self.checkpoint_op,
            **fields,  # type: ignore[arg-type]
        )
        return Message(header, body)

    def next_nonce(self) -> int:
        """For a question whose answer is told from others by it: hard to guess for who can not read it."""
        self.last_nonce = max(self.now, self.last_nonce + 1)
        return self.last_nonce

    def send(self, replica: int, message: Message) -> None:
        self._work.send.append(ToReplica(replica, message))

    def broadcast(self, message: Message) -> None:
        for replica in self.peers:
            self._work.send.append(ToReplica(replica, message))

    def send_client(self, client: ClientId, message: Message) -> None:
        self._work.send.append(ToClient(client, message))

    def serve(self, request: ServePrepare | ServeHeaders) -> None:
        self._work.serve.append(request)

    def reject(self, request: Message, reason: Reason, *, flags: int = 0, wait_ms: int = 0) -> None:
        """Tell a client that its request was not accepted here. wait_ms: come back no sooner."""
        header = request.header
        self.emit(EventKind.REJECTED, reason)
        self.send_client(
            header.client,
            self.make(
                Command.REJECT,
                client=header.client,
                request=header.request,
                reason=reason,
                context=header.checksum,
                flags=flags,
                count=wait_ms,
            ),
        )

    def learn_commit(self, commit: int) -> None:
        """A commit number of the canonical log, as a peer says."""
        self.scope.commit_heard = max(self.scope.commit_heard, commit)
        self.note_committed()

    def note_commit(self) -> None:
        """What was heard is believed as far as this log goes: evidence of more than there is would
        keep every later view from being chosen, and a superblock would keep it for ever."""
        heard = self.scope.commit_heard
        if heard > self.commit_max:
            self.commit_max = max(self.commit_max, min(heard, self.log.op, self._trusted))

    @property
    def _trusted(self) -> int:
        """Ops up to here may be committed and executed, for all that is known of their identities."""
        return self.conflict.op - 1 if self.conflict is not None else OP_MAX

    def note_committed(self) -> None:
        """In its own view, from the moment it is installed, this log is a prefix of the canonical
        one, so that a commit number speaks of its entries too: what it allows to apply is never dropped."""
        self.note_commit()
        if self.log_view == self.view:
            self.log.committed = max(self.log.committed, min(self.commit_max, self.log.linked))

    def enter_view(self, view: int) -> None:
        """The one place where a view ends and another begins: all that was heard, asked and promised in the old one
        goes with it. What stays is true in every view: facts (commit number, log, sessions), what is known of disks,
        links and lives of replicas, entries asked for by their identity, and the story of a view change that is
        not over (view_left_at, view_changes_failed, stuck_op, gave_up)."""
        self.view = view
        self.scope = ViewScope()
        for peer in self.peers.values():
            peer.said = Said()

    def set_status(self, status: Status) -> None:
        if status != self.status:
            self.status = status
            self.emit(EventKind.STATUS, status, self.view)

    def persist_view(self, messages: Sequence[ToReplica] = (), truncate_to: int | None = None) -> None:
        """Write the superblock; `messages` leave when it is durable and the view is unchanged."""
        if truncate_to is not None:
            self._void_writes(truncate_to)
        state = self.log_state
        self.view_token = self._persist(
            Persist(
                token=self._next_token,
                kind=PersistKind.VIEW,
                view=self.view,
                log_view=self.log_view,
                commit=self.commit_max,
                base=state.base,
                suffix_head=state.suffix_head,
                suffix=state.suffix,
                doubt=state.doubt,
                truncate_to=truncate_to,
            ),
            messages,
        )

    def _void_writes(self, above: int) -> None:
        """The journal is about to be cut above that op: writes under way there do not count when they complete,
        for the cut comes after them, and takes away what they wrote. Also when a later log names the same entry
        again: that one is written anew."""
        for token, (view, persist, messages) in self._pending.items():
            if persist.entries and persist.entries[-1].header.op > above:
                kept = tuple(entry for entry in persist.entries if entry.header.op <= above)
                self._pending[token] = (view, persist._replace(entries=kept), messages)

    def _persist(self, persist: Persist, messages: Sequence[ToReplica] = ()) -> int:
        token = self._next_token
        self._next_token += 1
        if not self._pending:
            self._written_at = self.now
        self._pending[token] = (self.view, persist, messages)
        self._work.persist.append(persist)
        return token

    def _write_entries(self) -> None:
        """Hand entries to the journal, in groups: one for all that waits."""
        if self.view_token is not None:
            return  # the journal must not grow before the superblock says what is void
        if self._writes >= WRITES_MAX:
            return  # a slow disk: what waits shares the next write
        entries = self.log.take_writes(self.room)
        self.wants_room |= self.log.is_waiting_for_room
        if entries:
            self._writes += 1
            self._persist(Persist(self._next_token, PersistKind.WRITE, tuple(entries)))

    @property
    def _applicable(self) -> int:
        """Ops up to here may be executed: committed, durable here, and of one identity."""
        return min(self.commit_max, self.log.durable, self._trusted)

    def _emit_applies(self) -> None:
        """Committed ops that are durable here, in order, a bounded number a round."""
        if self.apply_emitted >= self.commit_max:
            return
        last = min(self._applicable, self.apply_emitted + self.config.apply_per_round)
        for op in range(self.apply_emitted + 1, last + 1):
            message = self.log.bodies.get(op)
            if message is None and op in self.log.faulty:
                break  # being repaired
            header = message.header if message is not None else self.log.headers.get(op)
            self._work.apply.append(Apply(op, header, message))
            self.apply_emitted = op


def is_of_its_primary(r: Replica, header: Header, ruling: Ruling) -> bool:
    """Whether a prepare that is not accepted comes from who made it: one that is not known here was asked of nobody, so
    that no other replica has sent it. One of an older view may be as old as that."""
    is_prepare = header.command == Command.PREPARE and ruling.act is not Act.REFUSE
    return is_prepare and header.view >= r.view and header.replica != r.index


_HANDLERS: dict[int, Callable[[Replica, Message], None]] = {
    Command.PREPARE: normal.on_prepare,
    Command.PREPARE_OK: normal.on_prepare_ok,
    Command.COMMIT: normal.on_commit,
    Command.START_VIEW_CHANGE: view_change.on_start_view_change,
    Command.DO_VIEW_CHANGE: view_change.on_do_view_change,
    Command.START_VIEW: view_change.on_start_view,
    Command.PING: view_change.on_ping,
    Command.REQUEST_PREPARE: repair.on_request_prepare,
    Command.REQUEST_HEADERS: repair.on_request_headers,
    Command.HEADERS: repair.on_headers,
}
