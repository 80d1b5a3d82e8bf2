"""The drill: before a campaign each checker is tried on something known to be wrong, and must fire.

A checker that compares a thing with itself, or that has lost its condition, finds no bug and
looks like good news. Each case gives a checker one good input and one bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kimberlite._fast import framing
from kimberlite.types import ZERO16, Command, Header, Message, Operation
from kimberlite.vopr import limits
from kimberlite.vopr.checkers import Acknowledged, Checkers, Violation, check_history
from kimberlite.vsr.codec import ClientRequest
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.log import Log

CLUSTER = b"drill of checker"
CLIENT = b"drill's client 1"


def _entry(op: int, parent: Header | None, *, timestamp: int = 0, body: bytes = b"") -> Header:
    return framing.make_header(
        body,
        cluster=CLUSTER,
        command=Command.PREPARE,
        op=op,
        parent=parent.checksum if parent is not None else ZERO16,
        timestamp=timestamp or op,
        operation=Operation.APPLY,
    )


def _request(number: int) -> ClientRequest:
    return ClientRequest(CLIENT, 1, number, Operation.APPLY, 1, b"")


def _agreement() -> None:
    checkers = Checkers(3)
    first = _entry(1, None)
    checkers.on_applied(0, first, ())
    checkers.on_applied(1, first, ())
    checkers.on_applied(2, _entry(1, None, body=b"other"), ())


def _ancestry() -> None:
    checkers = Checkers(3)
    checkers.on_applied(0, _entry(1, None), ())
    checkers.on_applied(0, _entry(2, None), ())


def _timestamps() -> None:
    checkers = Checkers(3)
    first = _entry(1, None, timestamp=5)
    checkers.on_applied(0, first, ())
    checkers.on_applied(0, _entry(2, first, timestamp=5), ())


def _exactly_once() -> None:
    checkers = Checkers(3)
    first = _entry(1, None)
    checkers.on_applied(0, first, (_request(1),))
    checkers.on_applied(0, _entry(2, first), (_request(1),))


def _state() -> None:
    checkers = Checkers(3)
    checkers.on_applied(0, _entry(1, None), ())
    checkers.on_executed(0, 1, b"state", ())
    checkers.on_executed(1, 1, b"other", ())


def _sessions() -> None:
    checkers = Checkers(3)
    register = ClientRequest(CLIENT, 0, 0, Operation.REGISTER, 0, b"")
    checkers.on_applied(0, _entry(1, None), (register,))
    checkers.on_executed(0, 1, b"", (CLIENT,))
    checkers.on_executed(1, 1, b"", ())


def _votes() -> None:
    checkers = Checkers(3)
    checkers.voters[0] = {1, 2}
    checkers.on_view_left(1, 1, 0)
    checkers.on_view_left(1, 2, 0)


def _evidence() -> None:
    checkers = Checkers(3)
    checkers.witnesses[1] = {0}
    checkers.on_view_begun(1, 1)
    checkers.on_view_begun(2, 2)


def _reply_of(body: bytes, **fields: int) -> Message:
    operation = Operation.APPLY
    header = framing.make_header(body, cluster=CLUSTER, command=Command.REPLY, operation=operation, op=1, **fields)
    return Message(header, body)


def _reply() -> None:
    Checkers(3).on_reply(0, _reply_of(b""))


def _other_body() -> None:
    checkers = Checkers(3)
    checkers.on_applied(0, _entry(1, None), ())
    checkers.on_reply(0, _reply_of(b"done", view=1, commit=1, checkpoint_op=0))
    checkers.on_reply(1, _reply_of(b"done", view=2, commit=9, checkpoint_op=1))
    checkers.on_reply(1, _reply_of(b"dine"))


def _read_another() -> None:
    Checkers(3).on_read(0, 2, _entry(1, None), 0)


def _read_uncommitted() -> None:
    checkers = Checkers(3)
    first, other = _entry(1, None), _entry(1, None, body=b"other")
    checkers.on_applied(0, first, ())
    checkers.on_read(1, 1, first, 1, first.checksum)
    checkers.on_read(1, 1, other, 0, other.checksum)  # it does not know of the commit yet
    checkers.on_read(1, 1, other, 1)


def _journal(durable: int, handed: int, head: int | None, faulty: int = 2) -> Callable[[], None]:
    """A journal as the core believes it to be, and as it is."""

    def case() -> None:
        checkers = Checkers(3)
        log = Log(_entry(2, None))
        checkers.check_journal(0, log, 2, 2)
        log.durable, log.journal_head, log.faulty = durable, handed, {faulty}
        checkers.check_journal(0, log, 2, head)

    return case


def _too_much() -> None:
    most = limits.limits(CoreConfig(CLUSTER, 0, 3), 64 << 10)
    limits.check_held(0, most, most)
    limits.check_held(0, (most[0] + 1, *most[1:]), most)


def _idle(command: Command) -> Callable[[], None]:
    """So many frames of that kind in a second."""

    def case() -> None:
        config = CoreConfig(CLUSTER, 0, 3)
        limits.check_idle({(0, 1, Command.COMMIT): 20, (1, 0, Command.PREPARE_OK): 20}, config, 1_000_000_000)
        limits.check_idle({(0, 1, command): 25}, config, 1_000_000_000)

    return case


def _left_over() -> None:
    nothing = (0,) * len(limits.NAMES)
    limits.check_rest(0, nothing)
    limits.check_rest(0, (1, *nothing[1:]))


def _history(history: Sequence[Acknowledged], log: Sequence[bytes]) -> Callable[[], None]:
    return lambda: check_history(history, log)


def _append(number: int, event: bytes, called: int, returned: int | None, position: int | None) -> Acknowledged:
    return Acknowledged(0, number, (event,), called, returned, position)


_A, _B = _append(0, b"a", 0, 1, 0), _append(1, b"b", 2, 3, 1)
CASES: dict[str, tuple[str, Callable[[], None]]] = {
    "two identities for one op": ("I1 agreement", _agreement),
    "an op that does not continue the one before": ("I2 ancestry", _ancestry),
    "a timestamp twice": ("I16 timestamps", _timestamps),
    "a request in two ops": ("I10 exactly once", _exactly_once),
    "two states after one op": ("I11 state", _state),
    "a session missing": ("I11 sessions", _sessions),
    "a view left by one vote": ("I5 votes", _votes),
    "a view begun on the word of one": ("I5 votes", _evidence),
    "a reply for nothing": ("I6 acknowledged", _reply),
    "a reply with another body": ("I10 same reply", _other_body),
    "another op than was asked for": ("I2 what is read", _read_another),
    "an entry that was not committed": ("I2 what is read", _read_uncommitted),
    "durable above the journal": ("I7 journal", _journal(3, 2, 2)),
    "a journal that ends elsewhere": ("I7 journal", _journal(2, 2, 3)),
    "damage below the log": ("I7 damage", _journal(2, 2, None, faulty=1)),
    "a queue above its bound": ("I17 bounds", _too_much),
    "an idle cluster that repairs": ("I17 idle", _idle(Command.REQUEST_HEADERS)),
    "an idle cluster that talks": ("I17 idle", _idle(Command.COMMIT)),
    "a request left over": ("I17 rest", _left_over),
    "an acknowledged event missing": ("E2 acknowledged is there", _history([_A, _B], [b"a"])),
    "an acknowledged event elsewhere": ("E2 acknowledged is there", _history([_A, _B], [b"b", b"a"])),
    "an event twice": ("E2 exactly once", _history([_A], [b"a", b"a"])),
    "an event of nobody": ("E2 nothing else", _history([_A], [b"a", b"x"])),
    "a refused event present": (
        "E2 refused is not there",
        _history([Acknowledged(0, 0, (b"a",), 0, 1, None, refused=True)], [b"a"]),
    ),
    "real time against the log": (
        "E2 real-time order",
        _history([_append(0, b"a", 2, 3, 0), _append(1, b"b", 0, 1, 1)], [b"a", b"b"]),
    ),
}
GOOD: tuple[tuple[list[Acknowledged], list[bytes]], ...] = (
    ([_A, _B], [b"a", b"b"]),
    ([_A, _append(1, b"b", 0, None, None)], [b"a"]),  # outcome unknown: it may be missing
    ([_A, _append(1, b"b", 0, None, None)], [b"a", b"b"]),  # or there
    ([_append(0, b"a", 0, 9, 1), _append(1, b"b", 1, 8, 0)], [b"b", b"a"]),  # concurrent: any order
)


def drill() -> None:
    """Raises Violation("drill") when a checker does not fire, or fires at what is right."""
    for history, log in GOOD:
        try:
            check_history(history, log)
        except Violation as violation:
            raise Violation("drill", f"a good history is refused: {violation}") from violation
    for what, (name, case) in CASES.items():
        try:
            case()
        except Violation as violation:
            if violation.name != name:
                raise Violation("drill", f"{what}: found by {violation.name}, not by {name}") from violation
        else:
            raise Violation("drill", f"{what}: {name} says nothing")
