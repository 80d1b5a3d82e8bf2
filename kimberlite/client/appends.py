"""What a session keeps of appends: one that waits, the request in flight, and how an append ended.

Invariant: positions of the appends of a request are counted on from one to the next, so one that has its outcome keeps
its place in it. Imports errors and types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kimberlite.errors import KimberliteError
from kimberlite.types import Bytes, Message

EXPIRED = -1  # handle of an append that was answered at its deadline and only keeps its place


@dataclass(slots=True)
class Append:
    """An append that waits or is under way."""

    handle: int
    body: Bytes  # a batch of events
    count: int
    deadline: int | None
    alone: bool = False  # travels in a request of its own
    called_at: int = 0

    def keep_place(self) -> None:
        """It has its outcome; the positions of those behind it are still counted on from it."""
        self.handle, self.body, self.deadline = EXPIRED, b"", None


class Outcome(NamedTuple):
    """The end of an append: `position` of its first event, or the error. reply: what the state machine
    answered to the request that it travelled in; its own answer when it travelled alone."""

    handle: int
    position: int = -1
    events: int = 0
    error: KimberliteError | None = None
    reply: bytes = b""


@dataclass(slots=True)
class Request:
    """The one request in flight."""

    message: Message
    appends: list[Append] = field(default_factory=list)
    first_sent_at: int | None = None  # None: never left
    sent_at: int = 0
    attempts: int = 0
    refused: int = 0  # copies that were answered by a REJECT which says that they were never executed
    reason: int = 0  # of the last REJECT
    back_off: int = 0
    has_no_session: bool = False  # its session is gone: it is not sent again, only the fate of its copies is awaited

    @property
    def is_surely_refused(self) -> bool:
        """Every copy was refused: none of them can be in the log, or get there."""
        return self.refused >= self.attempts
