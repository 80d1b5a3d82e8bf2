"""The driver: carries out the core's Work on a store, a network and a state machine.

Shared by the node and the simulator: it does no I/O of its own, and its clock is given to it
(monotonic nanoseconds). It is read at every input, after every write and after every
execution, so that what these took is in the latencies. Every input method runs the core until
it asks for nothing more, or for nothing whose answer it waits for, or for ROUNDS_MAX rounds: a long
replay must not keep the caller from its sockets. Then `behind` is true and the caller calls `on_tick`
again as soon as it has looked at everything else.

Checkpoints: after executing an op at which one is due (node.checkpoints), the driver takes the state (sessions,
snapshot) and has the store write it in the background; while that is busy, what comes due is left out. One more is
made at once when no copy of the last can be read; what comes due later stays what it was.

An operation that this release does not know ends the replica before anything is executed or written from there on: a
newer release wrote it, and leaving it out would give another state than the others have.

Order within a round: messages leave; superblock and journal writes are submitted (the messages travel meanwhile); what
is durable by then is acknowledged; committed operations are applied, and answered; last, what happened is recorded.
No round is made while the core is at rest.

May import: errors, types, state_machine, vsr, _fast, storage.interface, node.checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import zip_longest
from typing import Protocol, cast

from kimberlite._fast import events, framing
from kimberlite.errors import (
    DiskFullError,
    FormatVersionError,
    FrameError,
    InvariantError,
    KimberliteError,
    NotMemberError,
    UnrecoverableError,
    invariant,
)
from kimberlite.node.checkpoints import USUAL, CheckpointPolicy, first_needed, schedule_behind
from kimberlite.state_machine import Batch, Frozen, StateMachine
from kimberlite.storage.interface import LogStore, is_known, unknown_operation
from kimberlite.types import (
    Bytes,
    ClientId,
    Command,
    FrameReason,
    Header,
    HeaderFactory,
    Message,
    Operation,
    Reason,
    Recovered,
    Room,
)
from kimberlite.vsr.codec import ClientRequest, decode_trim
from kimberlite.vsr.events import DropReason, Event
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.sessions import Result, SessionTable
from kimberlite.vsr.work import Apply, Persist, Promise, ServeHeaders, ServePrepare, ToClient, ToReplica

# What is compared with at every frame and op: to look a member up in its enum takes four times as long as a name of the
# module (70 against 15 ns, Python 3.11).
PREPARE = Command.PREPARE
NOOP, TRIM, BATCH = Operation.NOOP, Operation.TRIM, Operation.BATCH
APPLY, REGISTER = Operation.APPLY, Operation.REGISTER
# Made for every request, of their fields: in half of the time that the call of a named tuple takes.
_request, _result = partial(tuple.__new__, ClientRequest), partial(tuple.__new__, Result)
_batch = partial(tuple.__new__, Batch)
ROUNDS_MAX = 16
LOOK_NS = 10_000_000  # from one look at the files that are made ahead to the next
_KNOWN_AS = {
    Reason.UNBORN: "other data of",
    Reason.REPLACED: "other data of",
    Reason.REMOVED: "no",
    Reason.ROLLED_BACK: "a later state of the disk of",
}
AHEAD_BYTES = 256 << 10  # read from the disk at once, of entries that are read one after another


class FastCodec:
    """The compiled codec, in the shape that the core asks for (vsr.codec.Codec)."""

    make_header: HeaderFactory = staticmethod(framing.make_header)

    def decode_headers(self, buffer: Bytes) -> list[Header]:
        return list(framing.decode_headers(buffer))

    def pack_requests(self, requests: Sequence[ClientRequest]) -> bytes:
        return events.pack_requests([events.SubRequest(*request) for request in requests])


class Network(Protocol):
    """Where messages go. Neither method blocks or fails: what cannot be sent is dropped."""

    def send(self, replica: int, message: Message) -> None: ...
    def send_client(self, client: ClientId, message: Message) -> None: ...
    def refuse(self, message: Message) -> None:
        """Close the connection that the frame came on."""


class Recorder(Protocol):
    """Where the core's events go (telemetry, or a simulator's checker)."""

    def record(self, events: list[Event]) -> None: ...


class Background(Protocol):
    """Where a snapshot is written that may take long. `done` is called with the bytes from the driver's thread."""

    def __call__(self, work: Callable[[], bytes], done: Callable[[bytes], None]) -> None: ...


def at_once(work: Callable[[], bytes], done: Callable[[bytes], None]) -> None:
    """A Background that is none."""
    done(work())


def restore(machine: StateMachine, recovered: Recovered) -> None:
    """Put a new machine into the state of the checkpoint. Raises FormatVersionError."""
    restored = recovered.restored
    if restored is None:
        return
    if restored.machine > machine.version:
        raise FormatVersionError(
            f"the checkpoint of op {restored.op} was made by version {restored.machine} of the state machine, this is "
            f"version {machine.version}: start a release that has it",
            version=restored.machine,
        )
    machine.restore(BytesIO(restored.snapshot))


def describe_sessions(data: bytes) -> list[dict[str, object]]:
    """The session table of a checkpoint, the next to be evicted first."""
    return [
        {
            "client": client.hex(),
            "session": session.number,
            "request": session.request,
            "op": session.op,
            "position": session.position,
            "events": session.count,
            "reply_bytes": len(session.body),
        }
        for client, session in SessionTable.decode(0, data).items()
    ]


def known_headers(store: LogStore, recovered: Recovered) -> list[Header]:
    """What Replica wants to know of the settled log: headers from the commit number up."""
    return store.headers(min(recovered.commit, recovered.settled), recovered.settled - 1)


class Driver:
    """One replica's core with its store, network, state machine and recorder."""

    def __init__(
        self,
        core: Replica,
        store: LogStore,
        machine: StateMachine,
        network: Network,
        recorder: Recorder,
        clock: Callable[[], int],
        checkpoints: CheckpointPolicy = USUAL,
        background: Background = at_once,
    ) -> None:
        self.core = core
        self.store = store
        self.machine = machine
        self.network = network
        self.recorder = recorder
        self._found = store.head  # of the journal, by the start
        self._head_seen = 0  # head of the journal at the last tick
        self._served = (-1, 0)  # replica and op of the entry read last for a peer
        self._truncations: dict[int, int] = {}  # token -> op to truncate the journal to
        self._clock = clock
        self._now = 0
        self.behind = False
        self._room: Room | None = None  # as the core knows it
        self._look_at = 0  # at the files: whether the next segment is due, or whole
        self._checkpoints = checkpoints
        self._background = background
        first = first_needed(checkpoints, core.applied)
        needed = store.headers(first, core.applied) if first <= core.applied else []
        self._schedule = schedule_behind(checkpoints, core.applied, needed)
        self._snapshot_under_way = False

    # Inputs

    def start(self) -> None:
        """After construction: carry out what recovery asks for. Raises NotMemberError, and nothing was said."""
        self._now = self._clock()
        self._stop_when_no_member()
        self._run()

    def on_input(self, messages: Sequence[Message] = (), requests: Sequence[Message] = ()) -> None:
        """Frames from peers and requests of clients, each in order of arrival: one round for all that
        came within one turn of the caller's loop."""
        now = self._now = self._clock()
        for message in messages:
            if message.header.command != PREPARE or self._is_sound(message):
                self.core.step(message, now)
        for request in requests:
            self.core.propose(request, now)
        self._run()

    def on_peer_gone(self, replica: int) -> None:
        """The process of another replica has ended, and all that it sent has come in."""
        self._now = self._clock()
        self.core.peer_gone(replica, self._now)
        self._run()

    def on_damage(self) -> None:
        """A reader could not read an entry: have it repaired."""
        self._now = self._clock()
        self._note_damage()
        self._run()

    def step_down(self) -> None:
        """As primary: ask the others to take over."""
        self._now = self._clock()
        self.core.step_down(self._now)
        self._run()

    def trim(self, first_op: int, first_position: int) -> None:
        """As primary: propose to trim the log; nothing happens when that can not be done now."""
        self._now = self._clock()
        self.core.propose_trim(first_op, first_position, self._now)
        self._run()

    def on_disk(self) -> None:
        """Writes may have completed. Raises WriteFailedError: the process must end."""
        if self._collect():
            self._run()

    def on_tick(self) -> None:
        """Time has passed."""
        self._collect()
        self._note_damage()
        self._stop_when_unrecoverable()
        self._stop_when_no_member()
        self.core.set_superblock(self.store.sequence)
        if self._is_checkpoint_lost:
            self._make_checkpoint(self.core.applied)
        self.core.tick(self._now)
        self._run()
        head = self.store.head
        self.store.write_back(is_quiet=head == self._head_seen)
        self._head_seen = head

    # The round

    def _run(self) -> None:
        core, store = self.core, self.store
        if self._now >= self._look_at:
            self._look_at = self._now + LOOK_NS
            store.make_room(self._now, False)
        for _ in range(ROUNDS_MAX):
            room = store.room
            if room is not self._room:
                self._room = room
                core.set_room(room)
            if core.is_at_rest:
                break
            work = core.take_work()
            changed = core.wants_room and store.make_room(self._now, True)
            if not work and not changed:
                break
            # Messages first: they travel while the disk writes. None of them depends on what this
            # round writes; those that do come out of `durable`.
            if work.send:
                self._send(work.send)
            for message in work.refused:
                self.network.refuse(message)
            for persist in work.persist:
                self._persist(persist)
            is_durable = bool(work.persist) and self._collect()  # an inline disk has completed already
            if is_durable:
                core.acknowledge()
                self._send(core.take_sends())
            if work.serve:
                for request, following in zip_longest(work.serve, work.serve[1:]):
                    self._serve(request, following)
            if work.apply:
                for apply in work.apply:
                    if not self._apply(apply):
                        break
                self._send(core.take_sends())
            if work.events:
                self.recorder.record(work.events)
            if not (is_durable or changed or work.apply or work.serve):
                break  # nothing that was done has told the core anything new
        else:
            self.behind = True
            return
        self.behind = False
        told = core.take_events()
        if told:
            self.recorder.record(told)
        store.write_back(is_quiet=False)

    def _send(self, messages: Sequence[ToReplica | ToClient]) -> None:
        for destination in messages:
            if isinstance(destination, ToReplica):
                self.network.send(destination.replica, destination.message)
            else:
                self.network.send_client(destination.client, destination.message)

    def _collect(self) -> bool:
        """What the disk has done since; whether the core was told anything."""
        now = self._now = self._clock()
        tokens = self.store.completions()
        for token in tokens:
            if token < 0:
                continue
            above = self._truncations.pop(token, None)
            if above is not None and above < self.store.head:
                self.store.truncate(above)
            self.core.durable(token, now)
        durable = self.store.checkpoint_op
        is_newer = durable > self.core.checkpoint_op
        if is_newer:
            self.core.checkpointed(durable)
        return is_newer or bool(tokens)

    def _persist(self, persist: Persist) -> None:
        if isinstance(persist, Promise):
            if persist.truncate_to is not None:
                self._truncations[persist.token] = persist.truncate_to
            self.store.set_view_state(persist.token, persist.state, persist.identity)
            return
        head, entries = self.store.head, persist.entries
        if entries and entries[0].header.op > head:  # they ascend
            self.store.append(persist.token, entries)
            return
        in_place = [entry for entry in entries if entry.header.op <= head]
        above = entries[len(in_place) :]
        if in_place:
            # Submissions complete in order, so the token of the last one answers for both.
            unplaced = self.store.repair(-persist.token if above else persist.token, in_place)
            if unplaced:
                self.core.not_written(persist.token, unplaced)
                if len(unplaced) == len(persist.entries):  # nothing is under way
                    self.core.durable(persist.token, self._now)
        if above:
            self.store.append(persist.token, above)

    def _serve(self, request: ServePrepare | ServeHeaders, following: ServePrepare | ServeHeaders | None) -> None:
        if isinstance(request, ServePrepare):
            is_run = self._served == (request.replica, request.op - 1) or (
                isinstance(following, ServePrepare)
                and (following.replica, following.op) == (request.replica, request.op + 1)
            )
            self._served = request.replica, request.op
            message = self.store.read(request.op, request.checksum, AHEAD_BYTES if is_run else 0)
            if message is not None:
                self.network.send(request.replica, message)
            else:
                self._note_damage()
            return
        try:
            headers = self.store.headers(request.first, request.last)
        except DiskFullError:  # no descriptor to read them with: whoever wants them asks again
            return
        answer = self.core.headers_message(headers, request.nonce)
        if answer is not None:
            self.network.send(request.replica, answer)

    def _note_damage(self) -> None:
        """Tell the core of all damage that the store has come across."""
        known = self.core.state.log.faulty
        if self.store.faulty <= known:
            return
        for op in sorted(self.store.faulty - known):
            self.core.entry_faulty(op, self.store.proven_header(op), self._now)

    def _stop_when_unrecoverable(self) -> None:
        """The only replica of a cluster has nobody to ask for what is damaged: waiting would be for ever."""
        core = self.core
        if core.state.config.replica_count > 1 or not core.state.log.faulty:
            return
        following = core.applied + 1
        is_needed = following <= core.state.commit_max and following not in core.state.log.bodies
        op = following if is_needed and following in core.state.log.faulty else core.state.role.stuck_op
        if op:
            raise UnrecoverableError(
                f"op {op} is damaged on the only replica of this cluster, and may have been acknowledged: it was not "
                "skipped, nothing was changed. Restore a backup (kimberlite restore), or a copy of the data directory; "
                "kimberlite inspect shows what is intact",
                op=op,
            )

    def _stop_when_no_member(self) -> None:
        """So many others count this replica nowhere that it can be of no use, and going on could not even do harm."""
        own = self.core.state.own
        reason = self.core.refused_for
        if reason is None:
            return
        index = self.core.state.index
        replicas = sorted(own.refusals.keys() - {index})  # an image that was told keeps that, and not by whom
        who = f"replica{'s' if len(replicas) > 1 else ''} {', '.join(map(str, replicas))}" if replicas else "others"
        raise NotMemberError(
            f"{who} of this cluster {'knows' if len(replicas) == 1 else 'know'} {_KNOWN_AS[reason]} replica {index}: "
            f"this data, formatted as {own.incarnation.hex()[:12]}, counts nowhere, and was left as it is. If the disk "
            f"of replica {index} was put aside, put it back. If it is lost, the others go on without it, and must not "
            "be formatted anew; for full redundancy stop appends, take a backup from the replica with the highest "
            "commit number, and restore it on all machines under a new cluster id: docs/cluster.md",
            reason=int(reason),
            replicas=replicas,
        )

    # Applying

    def _is_sound(self, message: Message) -> bool:
        """Whether what a prepare holds is what its header says. Looked at before the core sees it: a log has
        nothing in it that can not be executed. Raises FormatVersionError when that can not be had: the entry was
        asked for, is committed, and of an operation that this release does not know."""
        try:
            message.unpacked = unpack(message.header, message.body)
        except KimberliteError:
            if not is_known(message.header) and self.core.is_committed(message.header):
                raise unknown_operation(message.header) from None
            self.core.refuse(message, DropReason.MALFORMED)
            return False
        return True

    def _apply(self, apply: Apply) -> bool:
        """Execute one committed op; False when its entry is damaged and must be repaired first.

        Of what the start found, and of what the core has no header of, the entry is read: a witness alone may be what
        an older log has left."""
        op, message = apply.op, apply.message
        header = message.header if message is not None else apply.header
        if message is None and (header is None or op <= self._found or self._needs_body(header)):
            message = self.store.read(op, header.checksum if header is not None else None, AHEAD_BYTES)
            if message is None:
                self.core.entry_faulty(op, header or self.store.proven_header(op), self._now)
                return False
            header = message.header
        if header is None:
            raise InvariantError("a committed op that is durable here has a header", op=op)
        self._execute(header, message)
        return True

    def _needs_body(self, header: Header) -> bool:
        return header.operation in (BATCH, TRIM) or (header.operation == APPLY and self.machine.needs_body)

    def _execute(self, header: Header, message: Message | None) -> None:
        requests = requests_of(header, message)
        batches: list[Batch] = []
        op, timestamp, position = header.op, header.timestamp, header.position
        for _, _, _, operation, count, body in requests:
            if operation == APPLY:
                batches.append(_batch((body, count, position, op, timestamp)))
                position += count
        given = self.machine.apply(batches) if batches else ()
        if len(given) != len(batches):
            invariant(
                False,
                "the state machine gives one reply for each batch",
                op=header.op,
                batches=len(batches),
                replies=len(given),
            )
        replies = iter(given)
        results: list[Result] = []
        position = header.position
        for client, session, number, operation, count, _ in requests:
            reply = next(replies) if operation == APPLY else b""
            results.append(_result((client, session, number, operation, position, count, reply)))
            position += count
        if position != header.position + header.count:
            invariant(
                False,
                "the requests of a prepare hold the events its header counts",
                op=header.op,
                header=header.count,
                requests=position - header.position,
            )
        self._now = self._clock()
        self.core.applied_op(op, results, self._now)
        if header.operation == TRIM and message is not None:
            self._trim(message)
        if self._schedule.is_due(self._checkpoints, op, header.size):
            self._make_checkpoint(op)

    def _trim(self, message: Message) -> None:
        """Let the log begin where a committed TRIM says, unless that can not be: it would be written down. A witness
        that says otherwise may be what an older log has left: only an entry contradicts."""
        first_op, first_position = decode_trim(message.body)
        first = self.store.header(first_op)
        is_contradicted = first is not None and first.position != first_position
        if is_contradicted and first_op in range(self.store.first_op, self.store.head + 1):
            is_contradicted = self.store.read(first_op) is not None
            self._note_damage()
        if first_op > message.header.op or is_contradicted:
            self.core.drop(message, DropReason.OUT_OF_BOUNDS)
            return
        self.store.trim(first_op, first_position)
        self.core.trimmed(first_op)

    # Checkpoints

    @property
    def _is_checkpoint_lost(self) -> bool:
        """Whether a restart could not begin with the checkpoint: one is due now, whatever was executed since."""
        return self.store.checkpoint_op < self.store.checkpoint.op

    def _make_checkpoint(self, op: int) -> None:
        """Take the state after `op`, the last executed, and have it written; nothing, while one is being written."""
        mark = None if self._snapshot_under_way else self.store.mark(op)
        if mark is None:
            return
        sessions = self.core.state.sessions.encode()
        self._snapshot_under_way = True

        def done(snapshot: bytes) -> None:
            self._snapshot_under_way = False
            self.store.write_checkpoint(mark, self.machine.version, sessions, snapshot)

        freeze = getattr(self.machine, "freeze", None)
        if freeze is None:
            done(snapshot_of(self.machine))
        else:
            frozen = freeze()
            self._background(lambda: snapshot_of(frozen), done)


def snapshot_of(machine: Frozen) -> bytes:
    """What a state machine writes as its snapshot."""
    writer = BytesIO()
    machine.snapshot(writer)
    return writer.getvalue()


def unpack(header: Header, body: Bytes) -> list[ClientRequest] | None:
    """The requests of a BATCH, None for another prepare. Raises FrameError when the body is not what the header says.

    Cost: 1 ns an event, 0.3 us a request.
    """
    operation, size = header.operation, len(body)
    if operation == BATCH:
        requests = [ClientRequest(*request) for request in events.unpack_requests(body)]
        if all(map(_is_sound_request, requests)) and sum(request.events for request in requests) == header.count:
            return requests
    elif operation == APPLY:
        if events.validate(body) == header.count:
            return None
    elif operation in (REGISTER, NOOP):
        if not size and not header.count:
            return None
    elif operation == TRIM and not header.count:
        decode_trim(body)
        return None
    raise FrameError(
        f"a body of {size} bytes is not what a prepare of operation {operation} with {header.count} events holds",
        reason=FrameReason.BAD_SIZE,
    )


def _is_sound_request(request: ClientRequest) -> bool:
    if request.operation == REGISTER:
        return not len(request.body) and not request.events
    return request.operation == APPLY and events.validate(request.body) == request.events


def requests_of(header: Header, message: Message | None) -> list[ClientRequest]:
    """The client requests that a committed prepare holds, in order. Raises FormatVersionError."""
    if message is not None and message.unpacked is not None:
        return cast("list[ClientRequest]", message.unpacked)
    operation = header.operation
    if operation == BATCH:
        if message is None:
            raise InvariantError("a batch of requests needs its body", op=header.op)
        return [ClientRequest(*request) for request in events.unpack_requests(message.body)]
    if operation in (APPLY, REGISTER):
        body: Bytes = message.body if message is not None else b""
        return [_request((header.client, header.session, header.request, operation, header.count, body))]
    if operation in (NOOP, TRIM):
        return []
    raise unknown_operation(header)
