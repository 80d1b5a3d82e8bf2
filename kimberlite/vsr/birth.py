"""The birth of a cluster: everybody is needed, once, and nothing counts before.

    unborn --all others heard--> writes down their incarnations --> bound --> says so, and to what (a digest)
    bound  --all others say that they are bound to the same--> writes the first record --> formed: a member
    bound or unborn --a formed one sends the record, which names this very disk--> formed

Why all, and not a quorum: a fresh replica that has met nobody can not tell one disk that was formatted anew from the
one before; together with it, that disk would be a quorum of a new cluster, and what was acknowledged would be gone.
Why in two phases: after one, some could serve while another still binds, and binds to such a disk. Why one formed
member suffices: it has heard from everybody that all are bound to the same, this replica included. An exhaustive model
stands with the tests (tests/lab/models/birth.py).

What is said is durable before: a frame waits for the promise under way (vsr.outbox). A replica writes down at most one
set of bindings, so that it never says two. A log that is older than identities (origin ZERO16) begins, when its replica
is formed, with a view above all that the first release led: who leads a view has changed.

Imports errors, types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.errors import KimberliteError
from kimberlite.types import VIEW_BORN, ZERO16, Birth, Command, Message, Reason, Status
from kimberlite.vsr import identity
from kimberlite.vsr.events import DropReason, EventKind
from kimberlite.vsr.members import Membership
from kimberlite.vsr.record import Record, bind, birth_digest, born, decode
from kimberlite.vsr.role import Born, Role, Transition
from kimberlite.vsr.work import Admission

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


class Unborn(Role):
    """See the module docstring."""

    __slots__ = ()

    status = Status.UNBORN

    def propose(self, s: State, message: Message) -> Admission:
        s.reject(message, Reason.NOT_READY)
        return Admission.REJECTED

    def suspect(self, s: State) -> Transition | None:
        return None

    def on_gone(self, s: State, replica: int) -> Transition | None:
        return None

    def begin(self, s: State) -> None:
        """Who is alone is born at once."""
        _go_on(s)

    def on_unborn(self, s: State, message: Message) -> None:
        """A sign of life of another one that is not born yet."""
        header, own = message.header, s.own
        record = own.record
        if record is None:
            return
        who = identity.sender_of(record, header)
        if who is identity.Sender.UNKNOWN and s.outbox.promise is None:
            try:
                own.record = bind(record, header.replica, header.client)
            except KimberliteError:  # a copied directory: another slot is the same formatting of a disk
                s.drop(message, DropReason.REPLACED)
                return
        elif who is not identity.Sender.MEMBER:
            s.drop(message, DropReason.REPLACED)
            return
        s.peers[header.replica].last_heard = s.now
        if header.parent != ZERO16:
            own.bound[header.replica] = header.parent
        if header.command == Command.PING and header.flags & identity.FLAG_ASKS:
            s.send(header.replica, identity.sign_of_life(s, Command.PONG))
        _go_on(s)

    def on_record(self, s: State, message: Message) -> None:
        """A member sends the record. It counts only when it names this very disk: then everybody was bound to it."""
        own, state = s.own, s.own.identity
        try:
            record = decode(bytes(message.body))
        except KimberliteError:
            s.drop(message, DropReason.MALFORMED)
            return
        member = record.member(s.index)
        is_ours = state is not None and member is not None and member.incarnation == state.incarnation
        if not record.epoch or not is_ours or identity.sender_of(record, message.header) is not identity.Sender.MEMBER:
            s.drop(message, DropReason.UNWANTED)
        elif s.outbox.promise is None:
            own.bound.clear()
            form(s, record)

    def on_promise_durable(self, s: State) -> Transition | None:
        """What was written down may be said."""
        own = s.own
        if own.identity is not None and own.identity.birth is Birth.FORMED and own.record is not None:
            own.is_formed, own.epoch = True, own.record.epoch
            s.emit(EventKind.BIRTH, Birth.FORMED)
            return Born()
        _say(s)
        _go_on(s)
        return None


def _go_on(s: State) -> None:
    """Bind or form, when it is time to."""
    own = s.own
    if s.outbox.promise is not None or own.identity is None or own.record is None:
        return
    if own.identity.birth is Birth.UNBORN and may_bind(own.record):
        own.take(own.record, Birth.BOUND, birth_digest(own.record))
        s.persist_view()
    elif own.identity.birth is Birth.BOUND and may_form(s):
        form(s, born(own.record))


def may_bind(record: Record) -> bool:
    """Whether the incarnations of all are known."""
    return record.is_bound


def may_form(s: State) -> bool:
    """Whether all others have said that they are bound to the same."""
    own, others = s.own, s.membership.expected & ~(1 << s.index)
    digest = own.identity.digest if own.identity is not None else ZERO16
    return all(own.bound.get(slot) == digest for slot in range(others.bit_length()) if others >> slot & 1)


def form(s: State, record: Record) -> None:
    """Become a member, as soon as that is durable."""
    own = s.own
    own.take(record, Birth.FORMED, record.birth)
    s.membership = Membership.of_record(record)
    if s.membership.is_converted:
        s.enter_view(view_of_birth(s.view))
    s.meet(record)
    s.persist_view()


def view_of_birth(view: int) -> int:
    """The view with which a log older than identities goes on: none that the first release can have led."""
    return max(view, VIEW_BORN)


def _say(s: State) -> None:
    """Tell all others at once how far this one is."""
    if s.own.identity is not None:
        s.emit(EventKind.BIRTH, s.own.identity.birth)
    s.broadcast(identity.sign_of_life(s, asks=True))


def waits_for(s: State) -> str:
    """Whom a birth waits for, in words."""
    own = s.own
    if own.record is None or own.identity is None:
        return "it has no configuration of the cluster: format it anew"
    found = []
    for slot in s.peers:
        member = own.record.member(slot)
        if member is None or not s.membership.expected >> slot & 1:
            continue
        where = f"replica {slot} at {member.peer.host}:{member.peer.port}"
        if member.incarnation == ZERO16:
            found.append(f"{where} was not heard yet")
        elif slot not in own.bound:
            found.append(f"{where} has not heard all others yet")
        elif own.identity.birth is Birth.BOUND and own.bound[slot] != own.identity.digest:
            found.append(
                f"{where} is bound to something else: another disk, address or setting (compare the node.toml of "
                "both); as long as no replica is formed nothing was acknowledged, and all can be formatted anew"
            )
    return "this cluster is not born yet, which takes all its replicas once: " + ("; ".join(found) or "in a moment")
