"""Bounds of the numbers in frames, those of kimberlite.frames.TABLE, applied before a handler sees the frame.

A frame has 64-bit numbers, and whoever can connect can send any of them under a valid checksum. What
follows from a number must be undone by the next honest frame or the next view, never live on in a
superblock, a journal, the evidence of a view change or a metric. So every number that a handler reads
has a highest value there; a frame with one above it is dropped and counted, and its connection closed:
see Replica.step and Replica.propose. Numbers in *bodies* (headers of a suffix, evidence) have the same
bounds: see `check_header`.

Honest replicas stay far below: a view is left at most every few ms, an op takes a disk write.
What two fields of one frame must say of each other is a bound too: `of`. Of a field without a bound
no handler of the core takes a number.

HELLO, READ and STATUS of clients, and HELLO of peers, have no bounds: they end at the listeners (node/server.py,
net/peers.py) and nothing of them enters the core, a disk or a metric. There each number is compared, cut to a highest
value or sent back where it is used: a position is held against the log, a wait, a size and a count against their
limits. Of a REQUEST the core reads what has a bound; a listener has held its operation and count against its body.

Pure functions of header and replica. Imports errors, types and frames only.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, gt
from typing import TYPE_CHECKING, Any, NamedTuple

from kimberlite import frames
from kimberlite.errors import FrameError
from kimberlite.frames import Bound
from kimberlite.types import Command, FrameReason, Header

if TYPE_CHECKING:
    from kimberlite.vsr.state import State

TABLE: dict[Command, dict[str, Bound]] = {
    command: bounded
    for (_, command), frame in frames.TABLE.items()
    if (bounded := {name: field.bound for name, field in frame.fields.items() if field.bound is not None})
}


class OutOfBounds(NamedTuple):
    """A number that was refused."""

    command: int
    replica: int
    field: str
    value: int
    highest: int

    def __str__(self) -> str:
        name = next((command.name.lower() for command in Command if command == self.command), str(self.command))
        return f"{self.field} {self.value} in a {name} of replica {self.replica}, {self.highest} is the most"


class _Row(NamedTuple):
    """A row of the table, made for speed: one call fetches all fields, one compares them."""

    fields: tuple[str, ...]
    get: Callable[[Header], tuple[int, ...]]
    most: tuple[int, ...]
    of: tuple[tuple[int, int, int], ...]  # index of the field, index of what bounds it, plus
    own: tuple[tuple[int, Callable[[Any], int], int], ...]  # index of the field, what bounds it, plus


def _row(bounds: dict[str, Bound]) -> _Row:
    fields = tuple(bounds)
    get: Callable[[Header], Any] = attrgetter(*fields)
    relative = list(enumerate(bounds.values()))
    return _Row(
        fields,
        get if len(fields) > 1 else lambda header: (get(header),),
        tuple(bound.most for bound in bounds.values()),
        tuple((index, fields.index(bound.of), bound.plus) for index, bound in relative if bound.of),
        tuple((index, attrgetter(bound.own), bound.plus) for index, bound in relative if bound.own),
    )


_ROWS = {int(command): _row(bounds) for command, bounds in TABLE.items()}


def find(state: State, header: Header) -> OutOfBounds | None:
    """The first number of a frame that is out of bounds for that replica, or None. Cost: about 1 us."""
    row = _ROWS.get(header.command)
    if row is None:
        return None
    values = row.get(header)
    if any(map(gt, values, row.most)):
        index = next(index for index, value in enumerate(values) if value > row.most[index])
        return _refused(header, row, index, values[index], row.most[index])
    for index, other, plus in row.of:
        if values[index] > values[other] + plus:
            return _refused(header, row, index, values[index], values[other] + plus)
    for index, own, plus in row.own:
        value = values[index]
        if value > plus and value > own(state) + plus:  # own numbers are not negative: most need not be asked for
            return _refused(header, row, index, value, own(state) + plus)
    return None


def _refused(header: Header, row: _Row, index: int, value: int, highest: int) -> OutOfBounds:
    return OutOfBounds(header.command, header.replica, row.fields[index], value, highest)


def check_header(state: State, header: Header, view: int) -> None:
    """A header in the body of a frame of `view`: the prepare of an op above 0 of this cluster, or its root, made
    in that view or before. Raises FrameError."""
    if header.command != Command.PREPARE or header.cluster != state.config.cluster or header.epoch != 0:
        raise FrameError(f"op {header.op} in a list is no prepare of this cluster", reason=FrameReason.BAD_COMMAND)
    if header.view > view:
        raise FrameError(f"op {header.op} is of view {header.view}, after {view}", reason=FrameReason.BAD_SIZE)
    found = find(state, header) if header.op else None
    if found is not None:
        raise FrameError(f"a header has {found}", reason=FrameReason.BAD_SIZE)
