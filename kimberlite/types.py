"""The words of the protocol as types. Imports nothing of Kimberlite but errors.

128-bit identities (checksums, client ids, cluster ids) are `bytes` of length 16:
comparing and hashing them costs less than any wrapper. ZERO16 stands for "none".
Times are integer nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

Bytes: TypeAlias = bytes | bytearray | memoryview
Checksum: TypeAlias = bytes  # 16 bytes: XXH3-128, canonical (big-endian) byte order
ClientId: TypeAlias = bytes  # 16 random bytes
ClusterId: TypeAlias = bytes  # 16 bytes

ZERO16 = bytes(16)
NO_REPLICA = 255  # header.replica of a frame that a client sent
FORMAT_VERSION = 1  # of frames and of journal entries: they share the header
RELEASE = 1  # raised with every change of behaviour that replicas must agree on
HEADER_SIZE = 256
FLAG_DISK_FULL = 1  # header.flags of PREPARE_OK and DO_VIEW_CHANGE: the disk of the sender is full
FLAG_PREPARED = 1  # header.flags of REJECT: the request had been prepared, and may yet be committed
REPLICAS_MAX = 6
SLOTS = 16  # numbers that members of a cluster may have
SLOT_NONE = 255  # in the place of a slot: none is assigned
VIEW_MAX = 1 << 56  # a view each nanosecond for two years: what is above is no view that a cluster gets to
OP_MAX = 1 << 56  # no log has that many ops: what is above is no op number
VIEW_BORN = 1 << 32  # the first view of data of the first release, whose views another replica led than lead them now


class Command(IntEnum):
    """What a frame is. Numbers of retired commands are never used again."""

    PREPARE = 1
    PREPARE_OK = 2
    COMMIT = 3
    START_VIEW_CHANGE = 4
    DO_VIEW_CHANGE = 5
    START_VIEW = 6
    REQUEST_PREPARE = 8
    REQUEST_HEADERS = 9
    HEADERS = 10
    CONFIG = 17
    HELLO = 20
    REQUEST = 21
    REPLY = 22
    REJECT = 23
    READ = 24
    READ_REPLY = 25
    STATUS = 26
    STATUS_REPLY = 27
    PING = 28
    PONG = 29


KNOWN_COMMANDS = frozenset(map(int, Command))


class Operation(IntEnum):
    """What a prepare or a request does. Below 128: the protocol's own."""

    NONE = 0
    ROOT = 1  # op 0, the same in every replica of a cluster
    REGISTER = 2  # open a session; its number is the op that commits it
    BATCH = 3  # several client requests in one prepare: see _fast/events
    NOOP = 4
    TRIM = 5  # the log begins at a later op from here on; body: first op, position of its first event
    APPLY = 128  # a batch of events or commands for the state machine


KNOWN_OPERATIONS = frozenset(map(int, Operation))


class Status(IntEnum):
    """Status of a replica; the numbers are those of the replica_status metric."""

    NORMAL = 0
    VIEW_CHANGE = 1
    RECOVERING = 2
    STATE_TRANSFER = 3
    STANDBY = 4
    UNBORN = 5  # no member of a cluster yet


class Reason(IntEnum):
    """Why a request was rejected (REJECT frames, header.reason)."""

    NONE = 0
    NOT_PRIMARY = 1  # header.view tells the view, so the client can go to its primary
    BUSY_PIPELINE = 2
    BUSY_QUEUE = 3
    NO_SESSION = 4  # unknown or evicted session
    REQUEST_TOO_OLD = 5
    REQUEST_TOO_NEW = 6  # a gap in request numbers
    TOO_LARGE = 7
    MALFORMED = 8
    DRAINING = 9
    POSITION_BEYOND_END = 10
    POSITION_TRIMMED = 11
    WRONG_CLUSTER = 12
    VERSION = 13
    NOT_READY = 14  # no view with a working quorum yet
    DISK_FULL = 15
    CORRUPT = 16  # the data asked for is damaged here and under repair
    WRONG_SIZE = 17  # a peer whose cluster has another number of replicas
    WRONG_REPLICA = 18  # a peer that is not the replica whose address it has
    CONNECTIONS = 19  # this replica holds as many connections as it can: go to another one, or come back later
    SLOW = 20  # the connection is ended: a frame or the taking of an answer took too long, or it held too much memory
    REPLACED = 21  # of another replica: its slot belongs to another disk
    REMOVED = 22  # the same: nobody has its slot
    UNBORN = 23  # the same: the cluster was born with another disk in its slot
    ROLLED_BACK = 24  # the same: its disk says less than it has said before


def reason_text(reason: int) -> str:
    """A Reason in words; a number that this release does not know, of a newer one, stays a number."""
    known = reason in Reason.__members__.values()
    return Reason(reason).name.lower().replace("_", " ") if known else f"reason {reason}"


def command_text(command: int) -> str:
    """A Command in words; a number that this release does not know, of a newer one, stays a number."""
    return Command(command).name.lower() if command in KNOWN_COMMANDS else f"command {command}"


class FrameReason(IntEnum):
    """Why bytes were refused as a frame (FrameError.reason)."""

    BAD_MAGIC = 1
    BAD_VERSION = 2
    BAD_HEADER_CHECKSUM = 3
    BAD_BODY_CHECKSUM = 4
    BAD_SIZE = 5  # smaller than a header or above the limit
    BAD_RESERVED = 6  # reserved bytes are not zero
    BAD_COMMAND = 7  # none at all: those of later releases are passed over by who gets them
    WRONG_CLUSTER = 8
    TRUNCATED = 9


class Dropped(StrEnum):
    """Why transport and listeners do not send a frame, or do not act upon one; the core has vsr.work.DropReason."""

    NOT_CONNECTED = "not_connected"  # the peer is down
    QUEUE_FULL = "queue_full"  # the peer does not read
    NO_CLIENT = "no_client"
    SLOW_CLIENT = "slow_client"
    CONNECTION_LIMIT = "connection_limit"
    IMPOSTOR = "impostor"  # a frame in the name of another replica than the connection is of
    MALFORMED = "malformed"
    WRONG_CLUSTER = "wrong_cluster"
    WRONG_SIZE = "wrong_size"
    WRONG_REPLICA = "wrong_replica"
    UNKNOWN_COMMAND = "unknown_command"  # of a later release
    VERSION = "version"  # of data without identities, where they are asked for, or the other way round
    UNBORN = "unborn"  # of a disk that is no member of the cluster
    REPLACED = "replaced"  # of another disk in the slot of a member
    REMOVED = "removed"  # of a slot that is nobody's


class Ended(StrEnum):
    """Why a replica ended the connection of a client."""

    REFUSED = "refused"  # there were too many
    DISPLACED = "displaced"  # it was idle, and made room for one that was not
    SLOW_FRAME = "slow_frame"
    SLOW_REPLY = "slow_reply"
    MEMORY = "memory"


class ClientFailure(IntEnum):
    """How an append failed, as its client saw it: the place of its count in a REQUEST (kimberlite.told)."""

    UNKNOWN = 0  # it may or may not be in the log
    UNAVAILABLE = 1  # no replica took it in time
    BUSY = 2
    NO_SPACE = 3
    EVICTED = 4  # the session, again and again
    TOO_LARGE = 5
    REJECTED = 6  # for another reason


class Access(StrEnum):
    """What was done with the data directory."""

    READ = "read"
    WRITE = "write"


@runtime_checkable
class Header(Protocol):
    """The fixed 256-byte header of every frame and journal entry, decoded.

    Immutable. `checksum` is XXH3-128 over bytes 16..255 and is the *identity* of the
    frame; `checksum_body` covers the body. The compiled class is _fast.framing.Header.
    """

    @property
    def checksum(self) -> Checksum: ...
    @property
    def checksum_body(self) -> Checksum: ...
    @property
    def cluster(self) -> ClusterId: ...
    @property
    def command(self) -> int: ...
    @property
    def replica(self) -> int:
        """Index of the replica that made the frame; NO_REPLICA for clients."""

    @property
    def size(self) -> int:
        """Bytes of header and body together."""

    @property
    def release(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def operation(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def reason(self) -> int: ...
    @property
    def view(self) -> int: ...
    @property
    def op(self) -> int: ...
    @property
    def commit(self) -> int: ...
    @property
    def parent(self) -> Checksum:
        """Prepares: checksum of the prepare before."""

    @property
    def client(self) -> ClientId: ...
    @property
    def session(self) -> int: ...
    @property
    def request(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Nanoseconds since 1970, strictly increasing along the log."""

    @property
    def position(self) -> int:
        """Index of the first event."""

    @property
    def count(self) -> int:
        """Number of events in the body (or of headers, for HEADERS and view frames)."""

    @property
    def latency_us(self) -> int:
        """Requests: latency of the client's previous request, in microseconds."""

    @property
    def context(self) -> Checksum:
        """The identity a frame is about: the acked or wanted prepare, the request replied to."""

    @property
    def log_view(self) -> int: ...
    @property
    def checkpoint_op(self) -> int: ...
    @property
    def nonce(self) -> int: ...
    @property
    def raw(self) -> bytes:
        """The 256 encoded bytes."""


class Message:
    """A frame: decoded header and body. The body may be a view of a receive buffer."""

    __slots__ = ("header", "body", "unpacked")

    def __init__(self, header: Header, body: Bytes = b"") -> None:
        self.header = header
        self.body = body
        self.unpacked: object = None  # what node.driver has made of the body, so that it is done once

    def __repr__(self) -> str:
        h = self.header
        name = command_text(h.command)
        return f"<{name} from {h.replica} view={h.view} op={h.op} commit={h.commit} {h.checksum[:4].hex()}>"


class HeaderFactory(Protocol):
    """Makes sealed headers: fills size, magic, version, release and both checksums.

    Given to the core from outside, so that the core itself imports no codec.
    """

    def __call__(
        self,
        body: Bytes = b"",
        *,
        cluster: ClusterId,
        command: int,
        replica: int = NO_REPLICA,
        epoch: int = 0,
        operation: int = 0,
        flags: int = 0,
        reason: int = 0,
        view: int = 0,
        op: int = 0,
        commit: int = 0,
        parent: Checksum = ZERO16,
        client: ClientId = ZERO16,
        session: int = 0,
        request: int = 0,
        timestamp: int = 0,
        position: int = 0,
        count: int = 0,
        latency_us: int = 0,
        context: Checksum = ZERO16,
        log_view: int = 0,
        checkpoint_op: int = 0,
        nonce: int = 0,
        checksum_body: Checksum | None = None,
    ) -> Header:
        """`checksum_body`, when given, must be the body's checksum: it is not computed again."""


def root_header(make_header: HeaderFactory, cluster: ClusterId) -> Header:
    """Header of op 0, where every replica's hash chain starts. Depends on the cluster only."""
    return make_header(cluster=cluster, command=Command.PREPARE, replica=0, operation=Operation.ROOT)


SECTOR = 4096  # entries of the journal begin on such boundaries


class Room(NamedTuple):
    """What a journal can take without a new file: `rest` bytes of the segment in use, then `spare` whole ones.

    is_exhausted: the next segment could not be reserved; there was no space for it, and there may be soon.
    """

    rest: int
    segment_bytes: int
    spare: int = 0
    is_exhausted: bool = False

    @property
    def bytes(self) -> int:
        """At most; entries leave the end of a segment empty when they do not fit."""
        return self.rest + self.spare * self.segment_bytes

    def after(self, size: int) -> Room | None:
        """What is left when an entry of that size has been appended; None when it does not fit."""
        padded = (size + SECTOR - 1) // SECTOR * SECTOR
        if padded <= self.rest:
            return _room((self.rest - padded, self.segment_bytes, self.spare, self.is_exhausted))
        if self.spare and padded <= self.segment_bytes:
            return _room((self.segment_bytes - padded, self.segment_bytes, self.spare - 1, self.is_exhausted))
        return None


_room = partial(tuple.__new__, Room)  # of its fields, in a quarter of the time that _replace takes
ROOM_UNBOUNDED = Room(1 << 62, 1 << 62)


class EntryState(IntEnum):
    """What a replica knows of an op after a restart. Unsure means FAULTY."""

    PRESENT = 0  # durable here and verified
    ABSENT = 1  # certainly never acknowledged by this replica: it may nack
    FAULTY = 2  # perhaps acknowledged, damaged now: neither ack nor nack, repair


@dataclass(frozen=True, slots=True)
class ViewState:
    """The promises a replica has made, as kept in the superblock.

    Written when a view is left and when a log_view is entered. Fields that describe the
    log of log_view (`base`, `suffix`) change only together with log_view:

    - `base`: everything at or below it in this replica's journal was committed when log_view was
      entered, and what stands in its place there is that entry, if damaged perhaps: never another's.
    - `suffix`: headers of the canonical log of log_view for ops
      `suffix[0].op` .. `suffix_head`, ascending, without gaps, never empty after
      format (the root header at least), at most SUFFIX_MAX. suffix[0] is the header of
      an op that was committed.

    What this means for entries on disk (the derivation that recovery follows):
    - op <= base: canonical.
    - base < op <= suffix_head: canonical if and only if its identity is in `suffix`, or it
      is reached backward through `parent` from suffix[0] over verified entries. Where that
      does not reach, below suffix[0], an entry that chains forward from `base` is a candidate: it may be
      canonical, and acknowledged, which only its identity decides, to be learned from others. Any
      other entry there is a stale one of an older view: void, whatever its view says.
    - op > suffix_head: canonical if and only if its view equals log_view and it chains
      forward, without a gap, from the header of suffix_head; otherwise void.

    `doubt`: entries up to here may have been acknowledged by this replica although its
    journal no longer proves it (they were damaged beyond recognition, and what stood there
    was or will be overwritten). What is not intact at or below it is FAULTY, never ABSENT,
    and the log is at least that long.
    """

    view: int = 0
    log_view: int = 0
    commit: int = 0  # a lower bound of the commit number, may be above base
    base: int = 0
    suffix_head: int = 0  # head of the log when log_view was entered
    suffix: tuple[Header, ...] = ()
    doubt: int = 0


SUFFIX_MAX = 48


class Birth(IntEnum):
    """How far a replica has got in becoming a member of its cluster. Only who is formed votes, acknowledges, leads."""

    UNBORN = 0  # it knows its own incarnation, and perhaps those of some others
    BOUND = 1  # it has written down the incarnations of all: it will never accept others
    FORMED = 2  # all have said that they are bound to the same ones: its record is of epoch 1 at least
    JOINING = 3  # formatted for a cluster that has long been born, and not yet in its record


class Heard(NamedTuple):
    """The least that the incarnation in a slot can be, by what it has shown: who shows less is an older image of its
    disk, or a copy. All zero: nothing yet. They go to the disk with the next superblock update, for they need none of
    their own.

    life: the newest one heard. sequence: of its superblock. log_view: the highest that it had on its disk.
    """

    life: int = 0
    sequence: int = 0
    log_view: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is; kept in the superblock, before the birth of data of the first release in the file `birth`.

    slot: its number in the cluster. incarnation: 128 random bits, drawn when its data was formatted: a disk that was
    formatted anew is somebody else. digest: what it is bound to (vsr.record.birth_digest); ZERO16 before. life: one
    start of its process (life_of), durable before its first frame. heard: of each slot. record: the encoded record
    (vsr.record) that is known to be committed, or, until it is formed, its draft; empty when it has none.
    """

    birth: Birth = Birth.UNBORN
    slot: int = SLOT_NONE
    incarnation: bytes = ZERO16
    digest: bytes = ZERO16
    life: int = 0
    heard: tuple[Heard, ...] = (Heard(),) * SLOTS
    record: bytes = b""


def life_of(sequence: int, bits: int) -> int:
    """The number of a life: the sequence of the superblock that began it, and 32 random bits, by which copies of one
    disk differ that are started both."""
    return (sequence & 0xFFFF_FFFF) << 32 | bits & 0xFFFF_FFFF


def life_sequence(life: int) -> int:
    """The sequence, modulo 2 to the 32nd, of the superblock that began a life."""
    return life >> 32


class RingMark(NamedTuple):
    """What the superblock says of the ring of a data directory.

    floor: 0, and room for a lowest sequence: a frame counts only under the superblock that was in force when it was
    written, which says as much (storage.ring).
    nonce: 16 secret random bytes of this directory, by which its checksums are keyed: no client can write a frame.
    """

    floor: int = 0
    nonce: bytes = ZERO16


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a restart begins, and where the log does; kept in the superblock.

    Everything up to `op` is committed, and was durable in this replica's journal when the checkpoint was
    made; what executing it led to is in the checkpoint's file. The entry of op + 1 stands in `segment`
    at `end`, as its entry number `entries` from 0, or at the beginning of the following segment.

    The log begins with `first_op`: a trim took away what was before. Files of segments below
    `first_segment` are left over from it. Always first_op <= op + 1.
    """

    header: Header  # of the last op in it; the root when there is no checkpoint yet
    segment: int = 0
    entries: int = 0
    end: int = 0
    size: int = 0  # of the file; 0 when there is none yet
    digest: Checksum = ZERO16
    first_op: int = 1
    first_position: int = 0
    first_segment: int = 0

    @property
    def op(self) -> int:
        return self.header.op

    @property
    def positions(self) -> int:
        """Number of events up to and with `op`."""
        return self.header.position + self.header.count


@dataclass(frozen=True, slots=True)
class RecoveredEntry:
    """An op of the log after restart; `header` None when even its identity is unknown.

    is_candidate: it stands in the journal, but whether it is the one of the log is still to be learned: see ViewState.
    """

    op: int
    state: EntryState
    header: Header | None
    is_candidate: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a restart found. `entries` covers [first_unsettled, head] ascending, without
    gaps; everything at or below `settled` is present, chained and verified."""

    view_state: ViewState
    settled: int  # highest op such that it and everything below is PRESENT and chained
    settled_header: Header  # of op `settled` (the root when 0)
    head: int
    written: int  # head of the journal; what is FAULTY above has lost its place and is appended anew
    entries: tuple[RecoveredEntry, ...] = ()
    commit: int = 0  # highest commit number any verified entry or the superblock knows
    torn: int = 0  # entries cut as torn, never acknowledged
    faulty: int = 0
    notes: tuple[str, ...] = ()
    restored: Restored | None = None  # None: execution begins with op 1
    first_op: int = 1  # of the log
    rooted: int = 0  # what stands in the journal up to here is this log, intact or damaged: never another's


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint read back: the state after `op`."""

    op: int
    positions: int
    machine: int  # version of the state machine that made the snapshot
    sessions: bytes  # of the session table: vsr.sessions
    snapshot: bytes  # of the state machine
