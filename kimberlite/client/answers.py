"""What the answers to one READ mean: events of the log, or why there are none.

Invariant: an answer that does not fit the question gives nothing, and neither does one of a replica that has less
than its client knows to be in the log: another one is asked then (Elsewhere).
May import: errors, types, _fast, net, client.asking.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import chain, repeat
from typing import NamedTuple, Protocol

from kimberlite._fast import events as event_batches
from kimberlite.client.asking import Elsewhere
from kimberlite.errors import FrameError, PositionError
from kimberlite.net import times
from kimberlite.types import Bytes, Command, Message, Reason, reason_text


class Event(NamedTuple):
    """An event of the log. Immutable.

    position: its index in the log. timestamp: nanoseconds since 1970, given by the primary to the operation that
    appended it: the same for all events of one operation, and rising along the log.
    """

    data: bytes
    position: int
    timestamp: int


class Piece(NamedTuple):
    """What one READ gave: `length` events from `position` on, in a batch."""

    position: int
    length: int
    batch: Bytes
    stamps: tuple[int, ...] = ()  # of the operations that appended them, when these were asked for
    runs: tuple[int, ...] = ()  # how many events each of these appended

    def raw(self) -> Iterator[bytes]:
        return iter(event_batches.slice(self.batch, 0, self.length))

    def events(self) -> Iterator[Event]:
        data = event_batches.slice(self.batch, 0, self.length)
        positions = range(self.position, self.position + self.length)
        timestamps = chain.from_iterable(map(repeat, self.stamps, self.runs))
        # What Event(...) does, without a call into Python for each.
        return map(tuple.__new__, repeat(Event), zip(data, positions, timestamps, strict=True))

    def batches(self) -> Iterator[tuple[int, int, Bytes]]:
        return iter(((self.position, self.length, self.batch),))


class Learner(Protocol):
    """What a client knows of the log."""

    end: int  # so many events are in the log at least

    @property
    def replicas(self) -> Set[int]:
        """Those that are connected."""

    def learn_end(self, end: int) -> None:
        """A replica has told of so many."""


class Judge:
    """What the answers to one READ mean. waits: the READ waits at the end of the log."""

    def __init__(self, reader: Learner, position: int, count: int, *, timed: bool, waits: bool = False) -> None:
        self._reader = reader
        self._position = position
        self._count = count
        self._timed = timed
        self._waits = waits
        self._beyond: set[int] = set()  # who says that the position is beyond the end

    def __call__(self, replica: int, answer: Message) -> Piece:
        header = answer.header
        if header.command == Command.READ_REPLY:
            return self._piece(replica, answer)
        if header.command == Command.REJECT and header.reason == Reason.POSITION_TRIMMED:
            raise PositionError(
                f"position {self._position} was trimmed: the log begins with position {header.position}",
                position=self._position,
                first=header.position,
                end=None,
            )
        if header.command == Command.REJECT and header.reason == Reason.POSITION_BEYOND_END:
            return self._nothing(replica, header.position)
        raise Elsewhere(refusal(replica, answer))

    def _piece(self, replica: int, answer: Message) -> Piece:
        header = answer.header
        self._reader.learn_end(header.timestamp)
        if not header.count and self._waits:
            return Piece(self._position, 0, b"")
        batch = answer.body
        stamps: tuple[int, ...] = ()
        runs: tuple[int, ...] = ()
        try:
            if self._timed:
                batch, stamps, runs = times.split(answer.body, header.session, header.count)
            fits = header.count == event_batches.count(batch) and header.position == self._position
        except FrameError:
            fits = False
        if not fits or not header.count or 0 < self._count < header.count:
            raise Elsewhere(f"the answer of replica {replica} does not fit the question")
        return Piece(self._position, header.count, batch, stamps, runs)

    def _nothing(self, replica: int, end: int) -> Piece:
        """That replica has nothing at the position, or not yet."""
        reader, position = self._reader, self._position
        reader.learn_end(end)
        if position == reader.end and not self._waits:
            return Piece(position, 0, b"")
        self._beyond.add(replica)
        if position > reader.end and self._beyond >= self._reader.replicas:
            has = f"which has positions 0 to {reader.end - 1}" if reader.end else "which is empty"
            raise PositionError(
                f"position {position} is beyond the end of the log, {has}",
                position=position,
                first=0,
                end=reader.end,
            )
        raise Elsewhere(f"the log has at least {reader.end} events, replica {replica} {end} by now")


def refusal(replica: int, answer: Message) -> str:
    """Why there is nothing in an answer, in words."""
    header = answer.header
    if header.command != Command.REJECT:
        return f"replica {replica} gave another answer than one to the question"
    return f"replica {replica} refused: {reason_text(header.reason)}"
