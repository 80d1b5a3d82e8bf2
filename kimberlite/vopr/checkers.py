"""What must be true: checked at every step (I), and at the end (E). See docs for the numbers.

The checkers trust nothing that the core says about itself where the disk or the messages can
be asked: durability is read from the simulated disk's durable image by a parser of its own
(`durable_promises`, `has_durable_entry`), quorums are counted from the table below.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from kimberlite._fast import events as event_batches
from kimberlite.node.driver import FastCodec
from kimberlite.types import HEADER_SIZE, ZERO16, Checksum, ClientId, Command, Header, Message, Operation
from kimberlite.vopr.disk import Files
from kimberlite.vsr.codec import ClientRequest, decode_evidence
from kimberlite.vsr.members import Membership

if TYPE_CHECKING:
    from kimberlite.vopr.world import World
    from kimberlite.vsr.log import Log
    from kimberlite.vsr.state import State

# Replicas that must hold an op before it is committed, by cluster size.
COMMIT_QUORUM = {1: 1, 2: 2, 3: 2, 4: 2, 5: 3, 6: 3}
# Replicas that must have voted before a view is left, and must be heard before one begins.
VIEW_CHANGE_QUORUM = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4}
HEARSAY = 2  # the one cause of VIEW_CHANGE_STARTED that is no count of votes
COPY_BYTES = 16 * 1024
FIRST_OP_AT, CHECKPOINT_HEADER_AT, HEADERS_AT = 200, 216, {2: 472, 3: 4096}  # in a copy; the last by its version
OP_AT = 80  # in a header
NOTHING: Set[int] = frozenset()
NEVER_ASKED = (-1, NOTHING)  # no view has that number
ARRIVED_NS = 40_000_000  # what was sent before is received
SILENT_NS = 1_500_000_000  # who was heard before that is not heard lately
PREPARE_OK, START_VIEW_CHANGE = Command.PREPARE_OK, Command.START_VIEW_CHANGE
DO_VIEW_CHANGE, START_VIEW = Command.DO_VIEW_CHANGE, Command.START_VIEW
APPLY, REGISTER = Operation.APPLY, Operation.REGISTER
VIEW_FRAMES = frozenset({PREPARE_OK, START_VIEW_CHANGE, DO_VIEW_CHANGE, START_VIEW, Command.COMMIT, Command.PING})
LOG_FRAMES = frozenset({START_VIEW, PREPARE_OK, Command.COMMIT})  # of who has the log of their view


class Violation(Exception):
    """An invariant was broken: `name` says which, the text gives the values."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Promises:
    """What a superblock says: the views, and which entries are void. See types.ViewState."""

    view: int = 0
    log_view: int = 0
    suffix_head: int = 0
    suffix: dict[int, Checksum] = field(default_factory=dict)
    checkpoint_op: int = 0
    first_op: int = 1

    def is_void(self, header: Header) -> bool:
        """Whether an entry, though on the disk, was cut off or replaced by a view change."""
        if header.op > self.suffix_head:
            return header.view != self.log_view
        return header.op in self.suffix and self.suffix[header.op] != header.checksum


def durable_promises(files: Files) -> Promises:
    """What a restart would find: the highest sequence on two intact copies."""
    content = files.durable.get("superblock")
    found: dict[tuple[int, bytes], list[memoryview]] = {}
    if content is None:
        return Promises()
    whole = memoryview(content)
    for copy in range(4):
        data = whole[copy * COPY_BYTES : (copy + 1) * COPY_BYTES]
        if xxhash.xxh3_128_digest(data[32:]) != data[:16]:
            continue
        (sequence,) = struct.unpack_from("<Q", data, 48)
        found.setdefault((sequence, bytes(data[:16])), []).append(data)
    agreed = {key: copies for key, copies in found.items() if len(copies) >= 2}
    if not agreed:
        return Promises()
    data = agreed[max(agreed)][0]
    view, log_view, _, _, suffix_head, _, count = struct.unpack_from("<QQQQQQI", data, 104)
    suffix = {}
    for index, at in enumerate(range(HEADERS_AT[data[36]], COPY_BYTES, HEADER_SIZE)[:count]):
        raw = data[at : at + HEADER_SIZE]
        suffix[suffix_head - count + 1 + index] = xxhash.xxh3_128_digest(raw[16:])
    (checkpoint_op,) = struct.unpack_from("<Q", data, CHECKPOINT_HEADER_AT + OP_AT)
    (first_op,) = struct.unpack_from("<Q", data, FIRST_OP_AT)
    return Promises(view, log_view, suffix_head, suffix, checkpoint_op, first_op)


def has_durable_entry(files: Files, header: Header) -> bool:
    """Whether the durable image of a journal holds that entry, whole. The disk remembers where
    it was ever put; what stands there now is looked at."""
    return any(_entry_at(files, *place, header) for place in files.places.get(header.checksum, ()))


def _entry_at(files: Files, name: str, at: int, header: Header) -> bool:
    if files.content(name, at, HEADER_SIZE) != header.raw:
        return False
    body = files.content(name, at + HEADER_SIZE, header.size - HEADER_SIZE)
    return xxhash.xxh3_128_digest(body) == header.checksum_body


def _whole(message: Message) -> bytes:
    """A reply without what may rightly differ between two that say the same: who made it in which view, what else it
    knew, which copy of the request it answers. Another REGISTER of the same client has an op of its own."""
    raw = message.header.raw
    where = b"" if message.header.operation == REGISTER else raw[80:88] + raw[152:160]  # op, position
    return b"".join((raw[16:55], raw[56:72], raw[96:152], where, raw[160:168], raw[184:192], raw[200:], message.body))


def _said(message: Message) -> str:
    header = message.header
    body = bytes(message.body)
    return f"op {header.op}, position {header.position}, {header.count} events, {len(body)} bytes {body[:16].hex()}"


def events_of(requests: Sequence[ClientRequest]) -> list[bytes]:
    """The events that the requests of a prepare append, in order."""
    found: list[bytes] = []
    for request in requests:
        if request.operation == APPLY:
            found += event_batches.slice(request.body, 0, request.events)
    return found


@dataclass(slots=True)
class Acknowledged:
    """An append as its client saw it."""

    client: int
    number: int
    events: tuple[bytes, ...]
    called_at: int
    returned_at: int | None = None  # None: never answered
    position: int | None = None  # None: outcome unknown or refused
    refused: bool = False  # certainly not executed


class SessionOracle:
    """The session table as it should be: bounded, in the order of last commit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._table: dict[ClientId, int] = {}
        self.after: dict[int, list[ClientId]] = {}  # op -> clients, next to be evicted first

    def commit(self, op: int, requests: Sequence[ClientRequest]) -> None:
        table = self._table
        for request in requests:
            number = table.get(request.client)
            if request.operation == REGISTER and number is None:
                if len(table) >= self._limit:
                    del table[next(iter(table))]
                table[request.client] = op
            elif request.operation == APPLY and number == request.session:
                table[request.client] = table.pop(request.client)
        self.after[op] = list(table)


@dataclass(slots=True)
class Checkers:
    """Incremental state of all checks of one run."""

    replica_count: int
    sessions_max: int = 1024
    committed: dict[int, Header] = field(default_factory=dict)  # I1
    commit_floor: dict[int, int] = field(default_factory=dict)  # I3: replica -> highest commit in this life
    views: dict[int, tuple[int, int]] = field(default_factory=dict)  # I4: replica -> durable (view, log_view)
    primaries: dict[int, int] = field(default_factory=dict)  # I5: view -> replica that led it
    voters: dict[int, set[int]] = field(default_factory=dict)  # view -> replicas that asked to leave it
    witnesses: dict[int, set[int]] = field(default_factory=dict)  # view -> replicas that gave evidence for it
    requests: dict[tuple[bytes, int, int], int] = field(default_factory=dict)  # I10: request -> op
    replies: dict[tuple[bytes, int, int], Message] = field(default_factory=dict)  # I10
    digests: dict[int, bytes] = field(default_factory=dict)  # I11
    acknowledged: dict[int, dict[int, Checksum]] = field(default_factory=dict)  # I12: replica -> op -> identity
    log_views: dict[int, int] = field(default_factory=dict)
    asked: dict[int, tuple[int, Set[int]]] = field(default_factory=dict)  # I18: replica -> view, ops asked for
    expired: dict[int, set[int]] = field(default_factory=dict)  # of these, in the last step
    sessions: SessionOracle = field(init=False)
    membership: Membership = field(init=False)
    log: list[bytes] = field(default_factory=list)  # all events of the ops up to `logged`
    logged: int = 0
    decided: int = 0  # the highest op that a primary has counted as committed
    quorum_audits: int = 0
    agreements: int = 0  # times an op of one replica was compared with that of another

    def __post_init__(self) -> None:
        self.acknowledged = {replica: {} for replica in range(self.replica_count)}
        self.sessions = SessionOracle(self.sessions_max)
        self.membership = Membership.of(self.replica_count)

    # I1, I2, I10, I16: agreement and ancestry, at every op that a replica applies

    def on_applied(self, replica: int, header: Header, requests: Sequence[ClientRequest]) -> None:
        known = self.committed.get(header.op)
        if known is None:
            self._on_first_applied(replica, header, requests)
            return
        self.agreements += 1
        if known.checksum != header.checksum:
            raise Violation(
                "I1 agreement",
                f"op {header.op} is {header.checksum.hex()} on replica {replica}, was {known.checksum.hex()}",
            )

    def _on_first_applied(self, replica: int, header: Header, requests: Sequence[ClientRequest]) -> None:
        self.committed[header.op] = header
        before = self.committed.get(header.op - 1)
        if before is not None and header.parent != before.checksum:
            raise Violation("I2 ancestry", f"op {header.op} on replica {replica} does not continue op {header.op - 1}")
        if before is not None and header.timestamp <= before.timestamp:
            raise Violation(
                "I16 timestamps",
                f"op {header.op} on replica {replica} has {header.timestamp}, the op before {before.timestamp}",
            )
        for request in requests:
            if request.operation != APPLY:
                continue
            key = (request.client, request.session, request.request)
            earlier = self.requests.setdefault(key, header.op)
            if earlier != header.op:
                raise Violation(
                    "I10 exactly once", f"request {request.request} committed in ops {earlier} and {header.op}"
                )
        self.sessions.commit(header.op, requests)

    def on_events(self, op: int, requests: Sequence[ClientRequest]) -> None:
        """The log as it is when first executed: what is trimmed later can not be read back."""
        if op == self.logged + 1:
            self.logged = op
            self.log += events_of(requests)

    def on_trim(self, world: World, replica: int, message: Message) -> None:
        """What is trimmed is in a durable checkpoint of every replica: none will need it to catch up."""
        (first_op,) = struct.unpack_from("<Q", message.body)
        for other in range(self.replica_count):
            if world.evidence(other)[1].checkpoint_op < first_op - 1:
                raise Violation(
                    "I7 trimmed too early",
                    f"replica {replica} trims what is before op {first_op}; the checkpoint of replica {other} is "
                    f"of op {world.evidence(other)[1].checkpoint_op}",
                )

    def on_executed(self, replica: int, op: int, digest: bytes, clients: Sequence[ClientId]) -> None:
        """I11: the same state and the same sessions after each op, on every replica, every time."""
        if self.digests.setdefault(op, digest) != digest:
            raise Violation("I11 state", f"replica {replica} reaches another state at op {op}")
        if list(clients) != self.sessions.after[op]:
            raise Violation(
                "I11 sessions",
                f"after op {op} replica {replica} has {len(clients)} sessions, in an order of eviction that is not "
                "that of their last commit",
            )

    def on_reply(self, replica: int, message: Message) -> None:
        """I6, I10: what a client is told is committed, and the same each time, byte for byte."""
        header = message.header
        if header.op not in self.committed:
            raise Violation(
                "I6 acknowledged", f"replica {replica} answers for op {header.op}, which nobody has applied"
            )
        earlier = self.replies.setdefault((header.client, header.session, header.request), message)
        if earlier is not message and _whole(earlier) != _whole(message):
            raise Violation(
                "I10 same reply",
                f"request {header.request} was answered {_said(earlier)}, replica {replica} now says {_said(message)}",
            )

    def on_read(self, replica: int, op: int, header: Header, settled: int, checksum: Checksum | None = None) -> None:
        """I2: who asks a store for an op gets that op: the one asked for, and up to `settled`, where the log of that
        replica is known to be committed, the one that was committed."""
        if header.op != op or (checksum is not None and header.checksum != checksum):
            raise Violation(
                "I2 what is read", f"replica {replica} reads op {op} and gets op {header.op}, {header.checksum.hex()}"
            )
        known = self.committed.get(op) if op <= settled else None
        if known is not None and known.checksum != header.checksum:
            raise Violation(
                "I2 what is read",
                f"replica {replica} reads op {op} as {header.checksum.hex()}, committed is {known.checksum.hex()}",
            )

    def holds(self, world: World, replica: int, header: Header) -> bool:
        """Whether a replica has made an entry durable in the log it promises to keep; of silent
        damage since only the replica itself can tell."""
        files, promises = world.evidence(replica)
        if promises.is_void(header):
            return False
        if has_durable_entry(files, header):
            return True
        return world.rotten and replica == world.rot_victim and files.ever_held(header.checksum)

    # I3, I4, I7: what one replica says of itself

    def on_step(self, world: World, replica: int) -> None:
        node = world.nodes[replica]
        state = node.driver.core.state
        if not state.own.is_formed:
            if not world.plan.converted:
                self._check_unborn(replica, state)
            return
        log, commit = state.log, state.commit_max
        durable = log.durable
        if not durable <= log.linked <= log.op:
            raise Violation("I7 order", f"replica {replica}: durable {durable}, linked {log.linked}, op {log.op}")
        head = None if state.outbox.owed else node.store.head
        if log.faulty or durable > log.journal_head or (head is not None and head != log.journal_head):
            self.check_journal(replica, log, log.first_op, head)
        view, asked = self.asked.get(replica, NEVER_ASKED)
        if view != state.view or asked or state.repairs.requests or self.expired:
            self._check_asked(state)
        applied = state.execution.applied
        if applied > commit or applied > durable:
            raise Violation("I7 order", f"replica {replica}: applied {applied} above commit {commit}")
        promises = world.promises(replica)
        if not promises.first_op - 1 <= promises.checkpoint_op <= commit:
            raise Violation(
                "I7 order",
                f"replica {replica}: its log begins with op {promises.first_op}, its checkpoint is of op "
                f"{promises.checkpoint_op}, commit {commit}",
            )
        floor = self.commit_floor.get(replica, 0)
        if commit != floor:
            if commit < floor:
                raise Violation("I3 monotone commit", f"replica {replica}: commit {commit} after {floor}")
            if commit > self.decided:
                raise Violation(
                    "I8 founded commits",
                    f"replica {replica} takes op {commit} for committed, no primary counted above {self.decided}",
                )
            self.commit_floor[replica] = commit
        if state.log_view > state.view:
            raise Violation(
                "I4 monotone views", f"replica {replica}: log_view {state.log_view} above view {state.view}"
            )
        if state.log_view != self.log_views.get(replica):
            self.log_views[replica] = state.log_view
            # The log of another view may rightly lack what was acknowledged and never committed.
            acknowledged = self.acknowledged[replica]
            for op in [op for op in acknowledged if op > log.committed]:
                header = log.headers.get(op)
                if op > log.op or (header is not None and header.checksum != acknowledged[op]):
                    del acknowledged[op]

    def _check_unborn(self, replica: int, state: State) -> None:
        """N1: before its birth a replica does nothing."""
        if state.log.op or state.view or state.role.is_leading:
            raise Violation("N1 unborn", f"replica {replica} is not born, and has op {state.log.op}, view {state.view}")

    def check_journal(self, replica: int, log: Log, first_op: int, head: int | None) -> None:
        """I7: what is durable is in the journal, which ends where the core believes, and nothing of a log is damaged
        that it does not have any more. head: of the journal, when nothing is being written."""
        if log.durable > log.journal_head:
            raise Violation(
                "I7 journal", f"replica {replica}: durable {log.durable}, the journal ends at {log.journal_head}"
            )
        if head is not None and head != log.journal_head:
            raise Violation(
                "I7 journal", f"replica {replica}: the journal ends at {head}, the core believes at {log.journal_head}"
            )
        if log.faulty and min(log.faulty) < first_op:
            raise Violation(
                "I7 damage", f"replica {replica} waits for op {min(log.faulty)}, its log begins with op {first_op}"
            )

    def _check_asked(self, state: State) -> None:
        """I18: a committed entry that was asked for is still waited for when the view changes, unless it came, or
        its time was over."""
        view, asked = self.asked.get(state.index, (state.view, NOTHING))
        expired = self.expired.pop(state.index, NOTHING)
        if view != state.view:
            log = state.log
            for op in asked - expired:
                came = log.holds(op) or op in log.bodies or op in log.writing
                if op <= log.committed and op not in state.repairs.requests and not came and op >= state.log.first_op:
                    raise Violation(
                        "I18 repair goes on",
                        f"replica {state.index} had asked for op {op} in view {view}; in view {state.view} it does not "
                        "wait for it any more",
                    )
        self.asked[state.index] = (
            state.view,
            set(state.repairs.requests) if state.repairs.requests else NOTHING,
        )

    def on_view_left(self, replica: int, view: int, cause: int) -> None:
        """I5: a view is left only when a quorum asks for it."""
        left = self.membership.view_before(view)
        voters = self.voters.get(left, set()) | {replica}
        if cause != HEARSAY and len(voters) < VIEW_CHANGE_QUORUM[self.replica_count]:
            raise Violation("I5 votes", f"replica {replica} leaves view {left}, only {sorted(voters)} voted for it")

    def on_view_begun(self, replica: int, view: int) -> None:
        """I5: a view begins only when a quorum has given evidence for it; the primary's own needs no frame."""
        witnesses = self.witnesses.get(view, set()) | {replica}
        if len(witnesses) < VIEW_CHANGE_QUORUM[self.replica_count]:
            raise Violation("I5 votes", f"replica {replica} begins view {view}, only {sorted(witnesses)} gave evidence")

    def on_commit(self, world: World, replica: int, op: int) -> None:
        """I8: a primary has just counted `op` as committed. Ask the disks, not the messages."""
        state = world.nodes[replica].driver.core.state
        self.decided = max(self.decided, op)
        header = state.log.headers.get(op)
        if header is None:
            return
        self.quorum_audits += 1
        # An acknowledgement is given in the view of the primary, with that view's log.
        holders = [
            other
            for other in range(self.replica_count)
            if world.evidence(other)[1].log_view >= state.view and self.holds(world, other, header)
        ]
        if len(holders) < COMMIT_QUORUM[self.replica_count]:
            raise Violation("I8 quorum audit", f"op {op} committed by replica {replica} but durable only on {holders}")
        leader = self.primaries.setdefault(state.view, replica)
        if leader != replica:
            raise Violation("I5 one primary", f"replicas {leader} and {replica} both commit in view {state.view}")

    def on_restart(self, world: World, replica: int) -> None:
        """I3, I4 and I12 across restarts: nothing durable is forgotten."""
        promises = world.promises(replica)
        views = (promises.view, promises.log_view)
        before = self.views.get(replica, (0, 0))
        if views[0] < before[0] or views[1] < before[1]:
            raise Violation("I4 monotone views", f"replica {replica}: durable views {views} after {before}")
        self.views[replica] = views
        state = world.nodes[replica].driver.core.state
        if state.view < views[0] or state.log_view < views[1]:
            raise Violation(
                "I4 monotone views",
                f"replica {replica} starts in {(state.view, state.log_view)}, its disk says {views}",
            )
        self.commit_floor[replica] = 0
        self.asked.pop(replica, None)
        self.expired.pop(replica, None)
        acknowledged = max(self.acknowledged[replica], default=0)
        if state.log.op < acknowledged:
            raise Violation(
                "I12 no forgetting",
                f"replica {replica} starts with a log up to op {state.log.op}, it has acknowledged op {acknowledged}",
            )
        self._check_kept(world, replica)

    def _check_kept(self, world: World, replica: int) -> None:
        """I12: of what was acknowledged and committed, a restart counts as there what the disk has. Rot may take an
        entry and its witness, and with them the proof of what follows."""
        if world.rotten and replica == world.rot_victim:
            return
        log = world.nodes[replica].driver.core.state.log
        acknowledged = self.acknowledged[replica]
        for op in range(log.durable + 1, max(acknowledged, default=0) + 1):
            header = self.committed.get(op)
            if header is None or acknowledged.get(op) != header.checksum or log.holds(op) or op in log.faulty:
                continue
            candidate = log.candidates.get(op)
            is_kept = candidate is not None and candidate.checksum == header.checksum
            if not is_kept and has_durable_entry(world.files[replica], header):
                raise Violation("I12 no forgetting", f"replica {replica} gives up op {op}, which it has acknowledged")

    # I9, I12: promises are durable before they are made, and kept

    def on_ask(self, world: World, replica: int, other: int, header: Header) -> None:
        """I17: nobody is asked for what is missing who can not have been heard lately. Only while no old frames
        arrive anew."""
        if header.command not in (Command.REQUEST_PREPARE, Command.REQUEST_HEADERS) or world.quiet_since is None:
            return
        asked, asker = world.nodes[other], world.nodes[replica]
        silent_since = max(asked.down_since, world.quiet_since)
        if not asked.up and (silent_since < asker.booted_at - ARRIVED_NS or world.now - silent_since > SILENT_NS):
            raise Violation(
                "I17 asks the silent",
                f"replica {replica} asks replica {other} for op {header.op}, which is down for "
                f"{(world.now - asked.down_since) // 1_000_000} ms",
            )

    def on_send(self, world: World, replica: int, message: Message) -> None:
        header = message.header
        command, view = header.command, header.view
        if replica in world.drawer.copies:  # counts nowhere; whether it does is seen by what others make of it
            return
        if not world.nodes[replica].driver.core.state.own.is_formed:
            self._on_said_unborn(world, replica, message)
        if command not in VIEW_FRAMES:
            return
        promises = world.promises(replica)
        if view > promises.view:
            raise Violation(
                "I9 durable promises",
                f"replica {replica} sends {Command(command).name} of view {view}, its disk says {promises.view}",
            )
        if view > promises.log_view and command in LOG_FRAMES and (header.op or command != PREPARE_OK):
            raise Violation(
                "I9 durable promises",
                f"replica {replica} acts in view {view}, the log_view on its disk is {promises.log_view}",
            )
        if command == PREPARE_OK:
            if header.op:
                self._on_acknowledgement(world, replica, header.op, promises.first_op)
        elif command == START_VIEW_CHANGE:
            self.voters.setdefault(view, set()).add(replica)
        elif command == START_VIEW:
            self.on_view_begun(replica, view)
        elif command == DO_VIEW_CHANGE:
            self.witnesses.setdefault(view, set()).add(replica)
            self._on_evidence(replica, message, promises)

    def _on_said_unborn(self, world: World, replica: int, message: Message) -> None:
        """N1: who is not born says only who it is, and what it is bound to when that is on its disk."""
        header = message.header
        if header.command not in (Command.PING, Command.PONG, Command.REJECT, Command.CONFIG):
            raise Violation("N1 unborn", f"replica {replica} is not born, and sends {Command(header.command).name}")
        if header.command in (Command.PING, Command.PONG) and header.parent != ZERO16:
            identity = world.identity_on_disk(replica)
            if identity.digest != header.parent:
                raise Violation(
                    "N1 unborn",
                    f"replica {replica} says that it is bound to {header.parent.hex()}, its disk "
                    f"{identity.digest.hex()}",
                )

    def _on_evidence(self, replica: int, message: Message, promises: Promises) -> None:
        header = message.header
        if header.log_view > promises.log_view:
            raise Violation(
                "I9 durable promises",
                f"replica {replica} claims log_view {header.log_view}, has {promises.log_view}",
            )
        acknowledged = self.acknowledged[replica]
        highest = max(acknowledged, default=0)
        if header.op < highest:
            raise Violation(
                "I12 no forgetting", f"replica {replica} claims a log up to op {header.op}, has acknowledged {highest}"
            )
        evidence = decode_evidence(FastCodec(), message.body)
        for known in evidence.headers:
            nacked = evidence.nack >> (known.op - evidence.first) & 1
            if nacked and acknowledged.get(known.op) == known.checksum:
                raise Violation("I12 true nacks", f"replica {replica} nacks op {known.op}, which it has acknowledged")

    def _on_acknowledgement(self, world: World, replica: int, op: int, first_op: int) -> None:
        """It speaks for everything up to `op`: all of that must be on the disk, but for what was trimmed."""
        state = world.nodes[replica].driver.core.state
        acknowledged = self.acknowledged[replica]
        while op >= first_op:
            entry = state.log.headers.get(op)
            if entry is None or acknowledged.get(op) == entry.checksum:
                return
            # What was durable and was damaged since stays acknowledged; it is being repaired.
            damaged = op in state.log.faulty and op <= state.log.durable
            if not damaged and not self.holds(world, replica, entry):
                raise Violation("I9 durable promises", f"replica {replica} acknowledges op {op} before it is durable")
            acknowledged[op] = entry.checksum
            op -= 1

    # E1, E2

    def check_end(self, world: World, history: Sequence[Acknowledged]) -> None:
        check_history(history, world.read_log())
        for replica in world.whole:
            state = world.nodes[replica].driver.core.state
            if state.execution.applied != max(self.committed, default=0):
                raise Violation(
                    "E1 convergence",
                    f"replica {replica} has applied {state.execution.applied} of {max(self.committed, default=0)} ops",
                )


def check_history(history: Sequence[Acknowledged], log: Sequence[bytes]) -> None:
    """E2: the history of all clients is linearizable with respect to the final log.

    Positions give the order, so a sort and one sweep decide: every acknowledged append
    stands at its position and nowhere else, one whose outcome is unknown at most once, a
    refused one nowhere, and an append that returned before another was called stands before it.
    """
    where: dict[bytes, list[int]] = {}
    for position, event in enumerate(log):
        where.setdefault(event, []).append(position)
    placed: list[tuple[int, Acknowledged]] = []
    owned = 0
    for append in history:
        positions = [where.get(event, []) for event in append.events]
        if any(len(found) > 1 for found in positions):
            raise Violation(
                "E2 exactly once", f"an event of append {append.number} of client {append.client} is twice in the log"
            )
        present = [found[0] for found in positions if found]
        if append.position is not None:
            wanted = list(range(append.position, append.position + len(append.events)))
            if present != wanted:
                raise Violation(
                    "E2 acknowledged is there",
                    f"append {append.number} of client {append.client} was acknowledged at {append.position}, "
                    f"found at {present}",
                )
        elif append.refused and present:
            raise Violation("E2 refused is not there", f"append {append.number} of client {append.client} was refused")
        elif present and present != list(range(present[0], present[0] + len(append.events))):
            raise Violation("E2 all or nothing", f"append {append.number} of client {append.client} is torn: {present}")
        if present:
            owned += len(present)
            placed.append((present[0], append))
    if owned != len(log):
        raise Violation("E2 nothing else", f"the log has {len(log)} events, clients appended {owned} of them")
    placed.sort(key=lambda item: item[0])
    # Sweep from the end: nothing later in the log may have returned before this one was called.
    earliest_return: int | None = None
    for _, append in reversed(placed):
        if earliest_return is not None and earliest_return < append.called_at:
            raise Violation(
                "E2 real-time order",
                f"append {append.number} of client {append.client} was called at {append.called_at}, after a later "
                f"one in the log had returned at {earliest_return}",
            )
        if append.returned_at is not None and append.position is not None:
            earliest_return = (
                append.returned_at if earliest_return is None else min(earliest_return, append.returned_at)
            )
