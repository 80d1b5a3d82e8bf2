"""Who speaks: whether a frame is of a member as this replica knows it, of an earlier life, or of a stranger's disk.

A replica is its slot and its incarnation: 128 random bits that were drawn when its data was formatted. So a disk that
was lost and formatted anew is somebody else, and what it says counts nowhere. Its life is one start of its process.
Every frame of a replica to another one but PREPARE has both, and the epoch of the sender's record; an entry's identity
must not depend on who passes it on, so that it is known by that alone.

`TABLE` says what follows from who the receiver and the sender are; it comes before vsr.admission. A test shows that
there is exactly one row for every input. Answers and records are heeded where they can mean something, and never
answered: no two replicas answer each other for ever.

A life is taken from a sign of life alone, and only a later one: it names the superblock that began it, and the highest
sequence of that superblock so far. Less than what was heard is a frame that was left behind, or, from a life that is
news, an older image of the disk, or a copy: its owner may have forgotten what it promised, so that it is told, and not
counted. Who is told writes that down, as what it has heard of its own slot, and says nothing from then on, in this life
and in later ones: every start and every promise brings its superblock further, at last beyond what others have heard.
A frame that was left behind is answered too, for it is told by nothing from one of an image; the answer is heeded only
by who has said just that. What is heard goes to the disk with the next promise. It is no proof: an image put back that
meets only those that have never heard the later one is not noticed.

Data of the first release has no identity: there frames have none, and none is asked for. Imports types and vsr only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from kimberlite.types import (
    SLOTS,
    ZERO16,
    Birth,
    Checksum,
    Command,
    Header,
    Heard,
    Identity,
    Message,
    Reason,
    life_sequence,
)
from kimberlite.vsr.events import DropReason, EventKind
from kimberlite.vsr.record import Record, Role, decode, encode
from kimberlite.vsr.timers import Timer

if TYPE_CHECKING:
    from kimberlite.vsr.state import State

SAID_MAX = 16  # frames of the own that an answer may be about
FLAG_ASKS = 2  # header.flags of PING: the receiver is to say who it is


class Receiver(IntEnum):
    UNBORN = 0  # or bound: no member yet
    FORMED = 1


class Epoch(IntEnum):
    """Of the frame."""

    UNBORN = 0
    KNOWN = 1  # of the receiver's record, or of one before
    LATER = 2


class Sender(IntEnum):
    """By the receiver's record, or its draft of one."""

    MEMBER = 0  # the slot is of that incarnation
    OTHER = 1  # the slot is of another one
    NOBODY = 2  # no such slot, or nobody in it
    UNKNOWN = 3  # of a draft: nobody was heard yet in that slot


class Life(IntEnum):
    """Of the sender, against the last one heard of that incarnation."""

    CURRENT = 0
    NEW = 1
    OLD = 2  # what was left behind
    COPY = 3  # not later than what was heard, and another


class Kind(IntEnum):
    """Of the frame."""

    SIGN = 0  # a sign of life: it tells how far the superblock of its sender is
    ANSWER = 1  # a refusal, or a record
    ORDINARY = 2


class Act(IntEnum):
    HANDLE = 0
    ADOPT = 1  # take the life, then handle
    DROP = 2
    ASK = 3  # drop, and ask who that is
    REFUSE = 4  # drop, and tell the sender that it counts nowhere here
    TELL = 5  # drop, and send the record: it is a member, and does not know yet that the cluster is born
    BIRTH = 6  # what those that are not born yet say to each other
    HEED = 7  # an answer


class Ruling(NamedTuple):
    act: Act
    dropped: DropReason | None = None
    told: Reason = Reason.NONE


class Row(NamedTuple):
    """Matches when every field does."""

    name: str
    receiver: frozenset[Receiver]
    epoch: frozenset[Epoch]
    sender: frozenset[Sender]
    life: frozenset[Life]
    kind: frozenset[Kind]
    ruling: Ruling


def _row(
    name: str,
    receiver: Receiver,
    ruling: Ruling,
    epoch: set[Epoch] | None = None,
    sender: set[Sender] | None = None,
    life: set[Life] | None = None,
    kind: set[Kind] | None = None,
) -> Row:
    """None: any."""
    return Row(
        name,
        frozenset({receiver}),
        frozenset(epoch or Epoch),
        frozenset(sender or Sender),
        frozenset(life or Life),
        frozenset(kind or Kind),
        ruling,
    )


def _told(reason: Reason, dropped: DropReason) -> Ruling:
    return Ruling(Act.REFUSE, dropped, reason)


_UNBORN, _FORMED = Receiver
_MEMBER, _OTHER, _NOBODY = {Sender.MEMBER}, {Sender.OTHER}, {Sender.NOBODY, Sender.UNKNOWN}
_STRANGER = _OTHER | _NOBODY
_SIGN, _ANSWER, _ORDINARY = {Kind.SIGN}, {Kind.ANSWER}, {Kind.ORDINARY}
_SAID = _SIGN | _ORDINARY
_BEFORE, _KNOWN, _LATER = {Epoch.UNBORN}, {Epoch.KNOWN}, {Epoch.LATER}
_AFTER = _KNOWN | _LATER
_OLD_LIFE = Ruling(Act.DROP, DropReason.OLD_LIFE)
_OLD_IMAGE = _told(Reason.ROLLED_BACK, DropReason.OLD_LIFE)
_HEED = Ruling(Act.HEED)
_PASS = Ruling(Act.DROP, DropReason.UNBORN)

TABLE: tuple[Row, ...] = (
    # Before the own birth nothing counts but what leads to it.
    _row("an answer, before birth", _UNBORN, _HEED, kind=_ANSWER),
    _row("who else is to be born", _UNBORN, Ruling(Act.BIRTH), _BEFORE, kind=_SIGN),
    _row("more from who is not born", _UNBORN, _PASS, _BEFORE, kind=_ORDINARY),
    _row("from who is born, before birth", _UNBORN, _PASS, _AFTER, kind=_SAID),
    # Born: strangers
    _row("an answer of a member", _FORMED, _HEED, None, _MEMBER, kind=_ANSWER),
    _row("an answer of a stranger", _FORMED, Ruling(Act.DROP, DropReason.REPLACED), None, _STRANGER, kind=_ANSWER),
    _row("a member that does not know", _FORMED, Ruling(Act.TELL, DropReason.UNBORN), _BEFORE, _MEMBER, kind=_SAID),
    _row("a new disk", _FORMED, _told(Reason.UNBORN, DropReason.UNBORN), _BEFORE, _STRANGER, kind=_SAID),
    _row("of a later record", _FORMED, Ruling(Act.DROP, DropReason.LATER_EPOCH), _LATER, _STRANGER, kind=_SAID),
    _row("another disk", _FORMED, _told(Reason.REPLACED, DropReason.REPLACED), _KNOWN, _OTHER, kind=_SAID),
    _row("nobody's slot", _FORMED, _told(Reason.REMOVED, DropReason.REMOVED), _KNOWN, _NOBODY, kind=_SAID),
    # Born: a member
    _row("a member", _FORMED, Ruling(Act.HANDLE), _AFTER, _MEMBER, {Life.CURRENT}, _SAID),
    _row("a member, begun anew", _FORMED, Ruling(Act.ADOPT), _AFTER, _MEMBER, {Life.NEW}, _SIGN),
    _row("who has not said so", _FORMED, Ruling(Act.ASK, DropReason.OLD_LIFE), _AFTER, _MEMBER, {Life.NEW}, _ORDINARY),
    _row("what was left behind", _FORMED, _OLD_LIFE, _AFTER, _MEMBER, {Life.OLD, Life.COPY}, _ORDINARY),
    _row("left behind, or an older image", _FORMED, _OLD_IMAGE, _AFTER, _MEMBER, {Life.OLD}, _SIGN),
    _row(
        "a copy, or an older image",
        _FORMED,
        _told(Reason.ROLLED_BACK, DropReason.ROLLED_BACK),
        _AFTER,
        _MEMBER,
        {Life.COPY},
        _SIGN,
    ),
)

Key = tuple[int, int, int, int, int]  # receiver, epoch, sender, life, kind
_RULINGS: dict[Key, Ruling] = {
    key: row.ruling for row in TABLE for key in product(row.receiver, row.epoch, row.sender, row.life, row.kind)
}
KINDS: dict[int, Kind] = {
    Command.PING: Kind.SIGN,
    Command.PONG: Kind.SIGN,
    Command.REJECT: Kind.ANSWER,
    Command.CONFIG: Kind.ANSWER,
}
PREPARE = Command.PREPARE


@dataclass(slots=True)
class Own:
    """Who this replica is, and what it has been told about that. identity: as it is on the disk, or is being written
    there; None on data of the first release. record: the one in force, or until the birth a draft."""

    identity: Identity | None = None
    record: Record | None = None
    incarnation: bytes = ZERO16
    life: int = 0
    epoch: int = 0
    is_formed: bool = True  # what it says may count; data of the first release always may
    ping_timer: Timer = field(default_factory=Timer)
    said: deque[Checksum] = field(default_factory=lambda: deque(maxlen=SAID_MAX))  # signs of life, the last ones
    refusals: dict[int, int] = field(default_factory=dict)  # slot -> reason for which it counts this replica nowhere
    bound: dict[int, Checksum] = field(default_factory=dict)  # slot -> digest of what it is bound to, as it said

    @classmethod
    def of(cls, identity: Identity | None) -> Own:
        if identity is None:
            return cls()
        record = decode(identity.record) if identity.record else None
        is_formed = identity.birth is Birth.FORMED
        epoch = record.epoch if record is not None and is_formed else 0
        own = cls(identity, record, identity.incarnation, identity.life, epoch, is_formed)
        if is_older_image(identity):
            own.refusals[identity.slot] = Reason.ROLLED_BACK
        return own

    def take(self, record: Record, birth: Birth, digest: bytes) -> None:
        """Be that, once it is durable."""
        if self.identity is not None:
            self.record = record
            self.identity = replace(self.identity, birth=birth, digest=digest, record=encode(record))


def is_let_in(s: State, message: Message) -> bool:
    """Whether a frame is one of a member, to be acted upon. What else follows from it has been done. Cost: that of four
    attributes, for the frames of a member whose life is known."""
    header, own = message.header, s.own
    if header.command == PREPARE:
        return own.is_formed or _drop(s, message, DropReason.UNBORN)
    peer = s.peers[header.replica]
    is_known = header.session == peer.life and header.client == peer.incarnation and header.epoch == own.epoch
    if is_known and own.is_formed and header.command not in KINDS:
        return True
    if own.identity is None:
        return (is_known and header.command == Command.PING) or _drop(s, message, DropReason.NOT_MEMBER)
    return _carry_out(s, message, look(s, header))


def look(s: State, header: Header) -> Ruling:
    """What the table says."""
    own = s.own
    epoch = Epoch.UNBORN if not header.epoch else Epoch.LATER if header.epoch > own.epoch else Epoch.KNOWN
    receiver = Receiver.FORMED if own.is_formed else Receiver.UNBORN
    kind = KINDS.get(header.command, Kind.ORDINARY)
    return _RULINGS[receiver, epoch, sender_of(own.record, header), life_of(s, header), kind]


def sender_of(record: Record | None, header: Header) -> Sender:
    """Who that is, by a record or a draft."""
    member = record.member(header.replica) if record is not None else None
    if member is None or (member.incarnation == ZERO16 and member.role is Role.LOST):
        return Sender.NOBODY
    if member.incarnation == ZERO16:
        return Sender.UNKNOWN
    return Sender.MEMBER if member.incarnation == header.client else Sender.OTHER


def life_of(s: State, header: Header) -> Life:
    """Of a member."""
    peer = s.peers[header.replica]
    if header.session == peer.life:
        return Life.CURRENT
    begun, known = life_sequence(header.session), life_sequence(peer.life)
    if begun > peer.sequence and begun > known:
        return Life.NEW
    return Life.OLD if begun < known else Life.COPY


def _drop(s: State, message: Message, reason: DropReason) -> bool:
    s.drop(message, reason)
    return False


def _carry_out(s: State, message: Message, ruling: Ruling) -> bool:
    header = message.header
    act = ruling.act
    if act is Act.ADOPT:
        _adopt(s, header)
    if act in (Act.HANDLE, Act.ADOPT):
        _hear_sequence(s, header)
        return True
    if act is Act.BIRTH:
        s.role.on_unborn(s, message)
    elif act is Act.HEED:
        _heed(s, message)
    elif ruling.dropped is not None:
        s.drop(message, ruling.dropped)
    if act is Act.REFUSE:
        tell(s, header, ruling.told)
    elif act is Act.ASK:
        s.send(header.replica, sign_of_life(s, asks=True))
    elif act is Act.TELL and s.own.record is not None:
        s.send(header.replica, s.make(Command.CONFIG, encode(s.own.record), context=header.checksum))
    return False


def _adopt(s: State, header: Header) -> None:
    """Another start of the same member."""
    s.peers[header.replica].life = header.session
    s.emit(EventKind.LIFE_BEGUN, header.replica, life_sequence(header.session))


def _hear_sequence(s: State, header: Header) -> None:
    """How far the superblock of a member is."""
    if header.command in KINDS:
        peer = s.peers[header.replica]
        peer.sequence = max(peer.sequence, header.latency_us, life_sequence(header.session))


def heard(s: State) -> tuple[Heard, ...]:
    """What members have shown, for the disk."""
    found = [Heard()] * SLOTS
    for slot, peer in s.peers.items():
        found[slot] = Heard(peer.life, peer.sequence)
    if Reason.ROLLED_BACK in s.own.refusals.values():
        found[s.index] = Heard(s.own.life, s.disk.sequence)
    return tuple(found)


def is_older_image(identity: Identity) -> bool:
    """Whether it was told that others know a later image of its disk."""
    return identity.slot < SLOTS and bool(identity.heard[identity.slot].life)


def sign_of_life(s: State, command: Command = Command.PING, *, asks: bool = False) -> Message:
    """Who this replica is, its view, and what its log holds on disk."""
    own = s.own
    if own.identity is None:
        return s.make(Command.PING, op=s.log.durable)
    message = s.make(
        command,
        op=s.log.durable,
        request=s.execution.applied,
        operation=own.identity.birth,
        parent=own.identity.digest,
        latency_us=s.disk.sequence & 0xFFFF_FFFF,
        timestamp=s.now + s.clock.offset,
        flags=FLAG_ASKS if asks else 0,
    )
    own.said.append(message.header.checksum)
    return message


# Refusals


def tell(s: State, header: Header, reason: Reason) -> None:
    """Tell who sent that frame that it counts nowhere here."""
    s.send(header.replica, s.make(Command.REJECT, reason=reason, context=header.checksum))


FINAL = frozenset({Reason.UNBORN, Reason.REPLACED, Reason.REMOVED})


def _heed(s: State, message: Message) -> None:
    header, own = message.header, s.own
    if header.command == Command.CONFIG:
        s.role.on_record(s, message)
    elif header.context not in own.said or header.reason not in (*FINAL, Reason.ROLLED_BACK):
        s.drop(message, DropReason.UNWANTED)
    else:
        note_refusal(s, header.replica, header.reason)


def note_refusal(s: State, replica: int, reason: int) -> None:
    """Another replica counts this one nowhere. One member's word is enough that this is an older image: what it has
    heard can not be unsaid, and this replica has not said it."""
    if s.own.refusals.get(replica) != reason:
        s.own.refusals[replica] = reason
        s.emit(EventKind.REFUSED_BY, replica, reason)
        if reason == Reason.ROLLED_BACK and s.own.is_formed:
            s.persist_view()


def final_refusal(s: State) -> Reason | None:
    """Why this replica is no member: when so many say so that no quorum can be of those that do not, or when it is an
    older image of its disk, as soon as that is written down."""
    if Reason.ROLLED_BACK in s.own.refusals.values() and s.own.is_formed:
        is_written = s.own.identity is not None and is_older_image(s.own.identity) and s.outbox.promise is None
        return Reason.ROLLED_BACK if is_written else None
    reasons = [reason for reason in s.own.refusals.values() if reason in FINAL]
    needed = max(s.membership.quorums.replication - 1, 1)
    return Reason(reasons[-1]) if len(reasons) >= needed else None


class Doorkeeper:
    """What a replica says of itself when it connects, whom it lets in, and who does not let it in. Greetings are looked
    at so that an operator is told at once, and for the prepares that come on a connection; what counts is decided by
    `is_let_in`, frame by frame."""

    def __init__(self, state: State) -> None:
        self._state = state

    def greeting(self) -> dict[str, Any]:
        own = self._state.own
        return {"epoch": own.epoch, "client": own.incarnation, "session": own.life}

    def judge_greeting(self, header: Header) -> Reason:
        """NONE, or why it is no member. Any life of a member is let in: its sign of life tells more."""
        own, peers = self._state.own, self._state.peers
        if (own.identity is None) != (header.client == ZERO16):
            return Reason.VERSION
        if own.identity is None or header.replica not in peers or not own.is_formed or header.epoch > own.epoch:
            return Reason.NONE
        who = sender_of(own.record, header)
        if who is Sender.MEMBER:
            return Reason.NONE
        return Reason.UNBORN if not header.epoch else Reason.REPLACED if who is Sender.OTHER else Reason.REMOVED

    def refused_by(self, header: Header) -> None:
        """Once this replica is born the word of a member counts alone: a process of an earlier formatting of the same
        cluster may still run at the address of one."""
        own = self._state.own
        is_heeded = not own.is_formed or sender_of(own.record, header) is Sender.MEMBER
        if is_heeded and header.replica in self._state.peers:
            note_refusal(self._state, header.replica, header.reason)
