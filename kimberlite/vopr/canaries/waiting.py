"""Planted bugs of waiting: for promises, for a primary that is ready or leaves, for writes, for room."""

from __future__ import annotations

from collections.abc import Iterable

from kimberlite.storage.handles import Handles
from kimberlite.storage.space import Space
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import execution, leading
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.outbox import Outbox
from kimberlite.vsr.state import State
from kimberlite.vsr.work import Append, Persist


@canary("what waits for a promise is said when an earlier one is durable")
def _said_after_an_earlier_promise() -> list[Patch]:
    original = Outbox.completed

    def completed(self: Outbox, token: int, now: int) -> tuple[int, Persist]:
        if self.promise is not None and not isinstance(self.owed[token][1], Append):
            self.promise = token
        return original(self, token, now)

    return [(Outbox, "completed", completed)]


@canary("who asks to be replaced takes requests, and answers none")
def _asks_to_be_replaced_and_takes_requests() -> list[Patch]:
    return [(Leading, "takes_requests", property(lambda self: True))]


@canary("a new primary answers when all that the last view left is committed, executed or not")
def _answers_before_it_has_executed() -> list[Patch]:
    def is_caught_up(self: Leading, s: State) -> bool:
        return s.commit_max >= self.ready_at_op and s.outbox.promise is None

    return [(Leading, "is_caught_up", is_caught_up)]


@canary("a segment that two writes hold is let go when the first is done")
def _segment_let_go_by_the_first() -> list[Patch]:
    def let_go(self: Handles, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._held.pop(number, None)

    return [(Handles, "let_go", let_go)]


@canary("the log is trimmed without those that are silent")
def _trimmed_without_the_silent() -> list[Patch]:
    def trimmable_op(s: State) -> int:
        heard = [peer.checkpoint for replica, peer in s.peers.items() if s.is_heard(replica)]
        return min([s.execution.checkpoint_op, *heard]) + 1

    return [(execution, "trimmable_op", trimmable_op), (leading, "trimmable_op", trimmable_op)]


@canary("room for a segment that could not be made is asked for when something waits for it, and not before")
def _room_asked_for_when_needed() -> list[Patch]:
    original = Space.make_room

    def make_room(self: Space, now: int, needed: bool) -> bool:
        return (needed or not self.room.is_exhausted) and original(self, now, needed)

    return [(Space, "make_room", make_room)]
