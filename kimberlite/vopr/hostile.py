"""Well-formed frames that no honest replica sends: valid checksums, current views, wrong numbers.

Each is such that a replica must not care: it drops the frame, or goes on as after a lost one. So they are a fault
of the simulator like any other, and what they do to a replica that cares is found by its checks. Frames that could
be honest ones (a view entered, an op committed) are not among them: who can send those needs an identity first.

Pure functions of a random generator and of what is known of the receiver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from kimberlite._fast import events
from kimberlite._fast.framing import make_header
from kimberlite.types import ZERO16, ClientId, ClusterId, Command, Header, Message, Operation
from kimberlite.vsr import bounds
from kimberlite.vsr.codec import Evidence, encode_evidence, encode_headers, encode_trim
from kimberlite.vsr.members import Membership
from kimberlite.vsr.state import State

EXTREMES = (2**64 - 1, 2**64 - 6, 2**63, 2**63 - 1, 2**62 + 2**57)  # above every bound


class Known(NamedTuple):
    """What the sender knows of its victim."""

    cluster: ClusterId
    membership: Membership
    replica: int  # the victim
    sender: int
    view: int
    op: int
    commit: int
    head: Header | None = None  # the victim's last header
    epoch: int = 0
    members: Mapping[int, tuple[bytes, int]] = {}  # incarnation and life of the others, as the victim knows them

    @property
    def primary(self) -> int:
        return self.membership.leader(self.view)

    def next_view_of(self, replica: int) -> int:
        """The first view above this one that the replica leads."""
        return self.view + 1 + (replica - self.view - 1) % self.membership.turns


def known_of(state: State, sender: int) -> Known:
    headers = state.log.headers
    op, commit = state.log.op, state.commit
    members = {index: (peer.incarnation, peer.life) for index, peer in state.peers.items()}
    head, epoch = headers.get(op), state.own.epoch
    cluster, membership = state.config.cluster, state.membership
    return Known(cluster, membership, state.index, sender, state.view, op, commit, head, epoch, members)


def frames(random: Random, known: Known) -> list[Message]:
    """Some frames of one kind, to be sent to the victim in this order."""
    return random.choice(KINDS)(random, known)


def _frame(known: Known, command: Command, body: bytes = b"", **fields: Any) -> Message:
    given = {"cluster": known.cluster, "replica": known.sender, "view": known.view}
    if command != Command.PREPARE and (member := known.members.get(fields.get("replica", known.sender))):
        given |= {"epoch": known.epoch, "client": member[0], "session": member[1]}
    given |= fields
    return Message(make_header(body, command=command, **given), body)


def _number(random: Random, known: Known) -> list[Message]:
    """One number above its bound, in a frame that is right otherwise."""
    command = random.choice([command for command in bounds.TABLE if command != Command.REQUEST])
    fields: dict[str, Any] = {
        "view": known.view,
        "op": known.op,
        "commit": known.commit,
        "position": known.commit,
        "replica": known.primary if command in (Command.COMMIT, Command.PREPARE) else known.sender,
    }
    if command == Command.PREPARE:
        fields["op"] = known.op + 1
    if command in (Command.DO_VIEW_CHANGE, Command.START_VIEW):
        fields["log_view"] = known.view
    fields[random.choice(list(bounds.TABLE[command]))] = random.choice(EXTREMES)
    return [_frame(known, command, **fields)]


def _commit(random: Random, known: Known) -> list[Message]:
    """A heartbeat that says more committed than there is."""
    commit = known.op + 1 + random.randrange(1000)
    return [_frame(known, Command.COMMIT, replica=known.primary, op=known.op, commit=commit, position=known.commit)]


def _identity(random: Random, known: Known) -> list[Message]:
    """A heartbeat that names another entry for what is committed."""
    fields: dict[str, Any] = {"op": known.op, "commit": known.commit, "position": known.commit}
    fields |= {"nonce": random.randrange(1, 1000), "context": random.randbytes(16)}
    return [_frame(known, Command.COMMIT, replica=known.primary, **fields)]


def _head(random: Random, known: Known) -> list[Message]:
    """A heartbeat that is right, but for a log that ends much further on."""
    context = known.head.checksum if known.head is not None and known.commit == known.op else ZERO16
    fields: dict[str, Any] = {"op": known.op + random.choice((1, 30, 1000)), "commit": known.commit}
    return [_frame(known, Command.COMMIT, replica=known.primary, position=known.commit, context=context, **fields)]


def _acknowledgement(random: Random, known: Known) -> list[Message]:
    """Of another entry than the primary has, or of its last one in another view than this."""
    wrong: dict[str, Any] = {"context": random.randbytes(16)}
    if known.view and random.random() < 0.5:
        wrong = {"view": known.view - 1}
    context = known.head.checksum if known.head is not None else ZERO16
    fields: dict[str, Any] = {"op": known.op, "commit": known.commit, "context": context}
    return [_frame(known, Command.PREPARE_OK, **{**fields, **wrong})]


def chain(random: Random, known: Known, count: int, op: int, view: int, before: Header | None = None) -> list[Header]:
    """Headers that nobody has."""
    result: list[Header] = []
    position, timestamp = (before.position + before.count, before.timestamp) if before is not None else (0, 0)
    parent = before.checksum if before is not None else random.randbytes(16)
    for step in range(count):
        fields: dict[str, Any] = {
            "view": view,
            "replica": known.membership.leader(view),
            "position": position,
            "timestamp": timestamp,
        }
        fields["op"] = op + step
        header = _frame(known, Command.PREPARE, operation=Operation.NOOP, parent=parent, **fields).header
        result.append(header)
        parent = header.checksum
    return result


def _start_view(random: Random, known: Known) -> list[Message]:
    """A log that nobody chose: short, contradicting, far away, or one op longer than the victim's."""
    view = known.next_view_of(known.sender)
    count = random.choice((1, 1, 2, 48, 60))
    op, before = random.choice(
        ((1, None), (max(known.commit, 1), None), (known.op + 1, known.head), (known.op + 1000, None))
    )
    suffix = chain(random, known, count, op, view, before)
    fields = {"view": view, "log_view": view, "op": suffix[-1].op, "commit": random.choice((op, suffix[-1].op))}
    message = _frame(known, Command.START_VIEW, encode_headers(suffix), count=count, **fields)
    return [message] * random.choice((1, 2))


def _headers(random: Random, known: Known) -> list[Message]:
    """Headers behind the victim's last, for which it did not ask."""
    count = random.choice((1, 3))
    learned = chain(random, known, count, known.op + 1, known.view, known.head)
    fields = {"op": known.op + 1, "position": known.op + count, "commit": known.commit}
    body = encode_headers(learned)
    return [_frame(known, Command.HEADERS, body, count=count, nonce=random.randrange(1000), **fields)]


def _prepare(random: Random, known: Known) -> list[Message]:
    """The next prepare, but for its parent, its place, or what its body holds."""
    position, timestamp = (
        (known.head.position + known.head.count, known.head.timestamp + 1) if known.head is not None else (0, 1)
    )
    fields: dict[str, Any] = {
        "op": known.op + 1,
        "commit": known.commit,
        "replica": known.primary,
        "parent": known.head.checksum if known.head is not None else ZERO16,
        "position": position,
        "timestamp": timestamp,
        "operation": Operation.APPLY,
        "count": 1,
    }
    body = events.build([b"forged"])
    changes: Sequence[tuple[bytes, dict[str, Any]]] = (
        (body, {"parent": random.randbytes(16)}),
        (body, {"position": position + 1}),
        (body, {"count": 2}),
        (b"forged", {}),
        (body, {"operation": 77}),
        (body, {"operation": Operation.BATCH}),
        (body, {"operation": Operation.REGISTER}),
        (encode_trim(1, 1), {"operation": Operation.TRIM}),
        (body, {"replica": (known.primary + 1) % len(known.membership.voters)}),
        (body, {"commit": known.op + 1}),
    )
    body, wrong = random.choice(changes)
    return [_frame(known, Command.PREPARE, body, **{**fields, **wrong})]


def _evidence(random: Random, known: Known) -> list[Message]:
    """Evidence that contradicts itself, to the primary of a view to come."""
    view = known.next_view_of(known.replica)
    first, known_bits, present, nack, op = random.choice(
        (
            (known.op, 0, 0, 0, known.op + 48),
            (known.op, 0, 0, 2, known.op),
            (known.op + 1, 0, 0, 0, known.op),
            (2**64 - 1, 0, 0, 1, known.op),
            (known.op, 0, 1, 0, known.op),
            (0, 0, 0, 2**64 - 1, 63),
        )
    )
    body = encode_evidence(Evidence(first, known_bits, present, nack, ()))
    return [_frame(known, Command.DO_VIEW_CHANGE, body, view=view, log_view=known.view, op=op, commit=known.commit)]


def _body(random: Random, known: Known) -> list[Message]:
    """A frame with a body that is none."""
    command = random.choice((Command.START_VIEW, Command.DO_VIEW_CHANGE, Command.HEADERS, Command.PREPARE))
    body = random.randbytes(random.choice((0, 1, 31, 32, 40, 256, 300, 512)))
    view = known.next_view_of(known.sender) if command == Command.START_VIEW else known.view
    return [_frame(known, command, body, view=view, log_view=view, op=known.op, commit=known.commit, count=3)]


def _stranger(random: Random, known: Known) -> list[Message]:
    """A frame of a replica that there is not, or one that no replica sends to another."""
    command = random.choice((Command.PING, Command.COMMIT, Command.PREPARE_OK, Command.REPLY, Command.REJECT))
    return [_frame(known, command, replica=random.randrange(len(known.membership.voters), 256), op=known.op)]


def _other_disk(random: Random, known: Known) -> list[Message]:
    """A disk that is not the member's, or a life of it that is over: it acknowledges what it does not have, or has
    forgotten what it acknowledged, and votes."""
    if not known.epoch or known.sender not in known.members or known.head is None:
        return []
    _, life = known.members[known.sender]
    who: dict[str, Any] = random.choice(({"client": random.randbytes(16)}, {"session": max(life - (1 << 32), 1)}))
    if random.random() < 0.2:  # a copy of its disk, started too
        return [_frame(known, Command.PING, op=known.op, session=life ^ 1)]
    if random.random() < 0.5:
        context = known.head.checksum
        return [_frame(known, Command.PREPARE_OK, op=known.op, context=context, commit=known.commit, **who)]
    view = known.next_view_of(known.replica)
    body = encode_evidence(Evidence(known.commit, 0, 0, 0, ()))
    fields = {"view": view, "log_view": known.view, "op": known.commit, "commit": known.commit, **who}
    vote = _frame(known, Command.START_VIEW_CHANGE, view=known.view, **who)
    return [vote, _frame(known, Command.DO_VIEW_CHANGE, body, **fields)]


KINDS: Sequence[Callable[[Random, Known], list[Message]]] = (
    _number,
    _number,
    _commit,
    _head,
    _acknowledgement,
    _identity,
    _start_view,
    _headers,
    _prepare,
    _evidence,
    _body,
    _stranger,
    _other_disk,
    _other_disk,
)


class Client(NamedTuple):
    """What is known of a client and its session."""

    cluster: ClusterId
    identity: ClientId
    session: int
    request: int  # the last one committed


def requests(random: Random, known: Client) -> list[Message]:
    """Requests under the name of a client that it never makes: none of them may be executed."""
    body = events.build([b"forged"])
    fields: dict[str, Any] = {
        "client": known.identity,
        "session": known.session,
        "request": known.request + 1,
        "operation": Operation.APPLY,
        "count": 1,
    }
    wrong: dict[str, Any] = random.choice(
        (
            {"request": known.request + 2},
            {"request": known.request + random.randrange(3, 1000)},
            {"request": 2**63},
            {"session": known.session + 1},
            {"session": max(known.session - 1, 0)},
            {"session": 0},
            {"operation": Operation.TRIM},
            {"operation": Operation.BATCH},
            {"operation": Operation.NOOP},
            {"operation": 77},
        )
    )
    header = make_header(body, cluster=known.cluster, command=Command.REQUEST, **{**fields, **wrong})
    return [Message(header, body)]
