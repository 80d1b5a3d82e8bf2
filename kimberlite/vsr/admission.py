"""Whether a frame of a peer is acted upon: one table, looked at before the handler of its command.

What decides: the command; the frame's view against the own; status; whether this replica leads its own view; whether
the sender leads the frame's view. Handlers ask no more for any of these. Before the table come cluster, membership and
bounds (Replica.step). A prepare whose identity the log knows already is taken whatever the table says: its checksum
is all the proof it needs.

Total and unambiguous: a test shows that there is exactly one row for every input. Pure. Imports types and vsr only.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from kimberlite.types import Command, Header, Status
from kimberlite.vsr.events import DropReason

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


class View(IntEnum):
    """The frame's view against the own."""

    OLDER = 0
    SAME = 1
    NEWER = 2


class Rank(IntEnum):
    """Of this replica in its own view, whatever its status."""

    PRIMARY = 0
    BACKUP = 1


class Sender(IntEnum):
    """LEADER: leads the frame's view."""

    LEADER = 0
    OTHER = 1


class Act(IntEnum):
    ACCEPT = 0  # the handler has it
    DROP = 1
    REFUSE = 2  # no honest replica sends that: drop it, and close its connection
    INFORM = 3  # drop it, and tell the sender which view this is
    ENTER = 4  # enter its view, if that can be done now; it was news of that view and no more
    ENTER_FIRST = 5  # enter its view, and look again; where that can not be done now it counts as OLDER


class Ruling(NamedTuple):
    act: Act
    reason: DropReason | None = None  # of what is dropped


class Row(NamedTuple):
    """Matches when every field does."""

    name: str
    commands: frozenset[Command]
    view: frozenset[View]
    status: frozenset[Status]
    rank: frozenset[Rank]
    sender: frozenset[Sender]
    ruling: Ruling


COMMANDS = (
    Command.PREPARE,
    Command.PREPARE_OK,
    Command.COMMIT,
    Command.START_VIEW_CHANGE,
    Command.DO_VIEW_CHANGE,
    Command.START_VIEW,
    Command.PING,
    Command.PONG,
    Command.REQUEST_PREPARE,
    Command.REQUEST_HEADERS,
    Command.HEADERS,
)
STATUSES = (Status.NORMAL, Status.VIEW_CHANGE, Status.RECOVERING)
_NORMAL, _OUT = {Status.NORMAL}, {Status.VIEW_CHANGE, Status.RECOVERING}
_ACCEPT = Ruling(Act.ACCEPT)
_ENTER = Ruling(Act.ENTER)
_OLD_VIEW = Ruling(Act.DROP, DropReason.OLD_VIEW)
_WRONG_STATUS = Ruling(Act.DROP, DropReason.WRONG_STATUS)
_WRONG_ROLE = Ruling(Act.DROP, DropReason.WRONG_ROLE)


def _row(
    name: str,
    commands: set[Command],
    ruling: Ruling,
    view: set[View] | None = None,
    status: set[Status] | None = None,
    rank: set[Rank] | None = None,
    sender: set[Sender] | None = None,
) -> Row:
    """None: any."""
    return Row(
        name,
        frozenset(commands),
        frozenset(view or View),
        frozenset(status or STATUSES),
        frozenset(rank or Rank),
        frozenset(sender or Sender),
        ruling,
    )


_P, _OK, _C = {Command.PREPARE}, {Command.PREPARE_OK}, {Command.COMMIT}
_VOTE, _EVIDENCE, _START = {Command.START_VIEW_CHANGE}, {Command.DO_VIEW_CHANGE}, {Command.START_VIEW}
_SIGN = {Command.PING, Command.PONG}
_ASK, _HEADERS = {Command.REQUEST_HEADERS}, {Command.HEADERS}
_PRIMARY, _BACKUP, _LEADER, _OTHER = {Rank.PRIMARY}, {Rank.BACKUP}, {Sender.LEADER}, {Sender.OTHER}
_OLDER, _SAME, _NEWER = {View.OLDER}, {View.SAME}, {View.NEWER}
_NOT_NEWER = {View.OLDER, View.SAME}

TABLE: tuple[Row, ...] = (
    _row("prepare by who does not lead", _P, Ruling(Act.REFUSE, DropReason.WRONG_ROLE), sender=_OTHER),
    _row("prepare of a newer view", _P, _ENTER, _NEWER, sender=_LEADER),
    _row("prepare of an older view", _P, _OLD_VIEW, _OLDER, sender=_LEADER),
    _row("prepare out of normal", _P, _WRONG_STATUS, _SAME, _OUT, sender=_LEADER),
    _row("prepare at the primary", _P, _WRONG_ROLE, _SAME, _NORMAL, _PRIMARY, _LEADER),
    _row("prepare", _P, _ACCEPT, _SAME, _NORMAL, _BACKUP, _LEADER),
    _row("acknowledgement of a newer view", _OK, _ENTER, _NEWER),
    _row("acknowledgement of an older view", _OK, _OLD_VIEW, _OLDER),
    _row("acknowledgement out of normal", _OK, _WRONG_ROLE, _SAME, _OUT),
    _row("acknowledgement at a backup", _OK, _WRONG_ROLE, _SAME, _NORMAL, _BACKUP),
    _row("acknowledgement", _OK, _ACCEPT, _SAME, _NORMAL, _PRIMARY),
    _row("heartbeat of a newer view", _C, _ENTER, _NEWER),
    _row("heartbeat of an older view", _C, _OLD_VIEW, _OLDER),
    _row("heartbeat out of normal", _C, _WRONG_STATUS, _SAME, _OUT),
    _row("heartbeat at the primary", _C, _WRONG_ROLE, _SAME, _NORMAL, _PRIMARY),
    _row("heartbeat by who does not lead", _C, _WRONG_ROLE, _SAME, _NORMAL, _BACKUP, _OTHER),
    _row("heartbeat", _C, _ACCEPT, _SAME, _NORMAL, _BACKUP, _LEADER),
    _row("vote in a newer view", _VOTE, Ruling(Act.ENTER_FIRST), _NEWER),
    _row("vote", _VOTE, _ACCEPT, _SAME),
    _row("vote in an older view", _VOTE, Ruling(Act.INFORM, DropReason.OLD_VIEW), _OLDER),
    _row("evidence for a newer view", _EVIDENCE, Ruling(Act.ENTER_FIRST), _NEWER),
    _row("evidence", _EVIDENCE, _ACCEPT, _SAME, rank=_PRIMARY),
    _row("evidence for another", _EVIDENCE, Ruling(Act.INFORM, DropReason.OLD_VIEW), _SAME, rank=_BACKUP),
    _row("evidence for an older view", _EVIDENCE, Ruling(Act.INFORM, DropReason.OLD_VIEW), _OLDER),
    _row("log by who does not lead", _START, _WRONG_ROLE, sender=_OTHER),
    _row("log of a newer view", _START, _ACCEPT, _NEWER, sender=_LEADER),  # believed only as news of the view
    _row("log", _START, _ACCEPT, _SAME, _OUT, sender=_LEADER),
    _row("log that is there", _START, _OLD_VIEW, _SAME, _NORMAL, sender=_LEADER),
    _row("log of an older view", _START, _OLD_VIEW, _OLDER, sender=_LEADER),
    _row("sign of life in a newer view", _SIGN, Ruling(Act.ENTER_FIRST), _NEWER),
    _row("sign of life", _SIGN, _ACCEPT, _NOT_NEWER),
    _row("an entry is asked for", {Command.REQUEST_PREPARE}, _ACCEPT),  # by its identity: of any view, in any status
    _row("headers are asked for", _ASK, _ACCEPT, _SAME, _NORMAL),
    _row("headers are asked for out of normal", _ASK, _WRONG_STATUS, _SAME, _OUT),
    _row("headers of another view are asked for", _ASK, _WRONG_STATUS, {View.OLDER, View.NEWER}),
    _row("headers", _HEADERS, _ACCEPT, _SAME, _NORMAL),
    _row("headers out of normal", _HEADERS, _OLD_VIEW, _SAME, _OUT),
    _row("headers of another view", _HEADERS, _OLD_VIEW, {View.OLDER, View.NEWER}),
)

# For every frame: a name of the module is looked up in a quarter of the time that a member of an enum takes.
OLDER, SAME, NEWER = View
PRIMARY, BACKUP = Rank
LEADER, OTHER = Sender
PREPARE, REFUSE = Command.PREPARE, Act.REFUSE

Key = tuple[int, int, int, int, int]  # command, view, status, rank, sender

_RULINGS: dict[Key, Ruling] = {
    key: row.ruling for row in TABLE for key in product(row.commands, row.view, row.status, row.rank, row.sender)
}


def decide(command: int, view: View, status: int, rank: Rank, sender: Sender) -> Ruling:
    """What the table says. Cost: a look-up."""
    return _RULINGS[command, view, status, rank, sender]


def look(s: State, header: Header, may_be_newer: bool = True) -> Ruling:
    """What the table says of a frame here and now. may_be_newer: False when its view could not be entered."""
    seen, own, leader = header.view, s.view, s.membership.leader
    led_by = leader(seen)
    view = SAME if seen == own else NEWER if seen > own and may_be_newer else OLDER
    sender = LEADER if header.replica == led_by else OTHER
    rank = PRIMARY if s.index == (led_by if seen == own else leader(own)) else BACKUP
    return decide(header.command, view, s.role.status, rank, sender)


def is_of_its_primary(s: State, header: Header, ruling: Ruling) -> bool:
    """Whether a prepare that is not accepted comes from who made it: one that is not known here was asked of nobody, so
    that no other replica has sent it. One of an older view may be as old as that."""
    is_prepare = header.command == PREPARE and ruling.act is not REFUSE
    return is_prepare and header.view >= s.view and header.replica != s.index
