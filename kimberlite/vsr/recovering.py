"""A replica that led its view before it was started anew: it votes to leave that view, and waits for others to do so.

It never acts as primary of that view again, for it may have sent prepares that its disk does not have.
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Message, Status
from kimberlite.vsr import evidence
from kimberlite.vsr.role import Role, Story, Transition, patience
from kimberlite.vsr.timers import Timer

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


class Recovering(Role):
    """See the module docstring."""

    __slots__ = ("_story", "_timer")

    status = Status.RECOVERING

    def __init__(self, now: int) -> None:
        self._timer = Timer()
        super().__init__(self._timer)
        self._story = Story(now)
        self._timer.start(now)

    def story(self, s: State) -> Story:
        return self._story

    def tick(self, s: State) -> Transition | None:
        if self._timer.due(s.now):
            self._story.failed += 1
            left = self.suspect(s)
            if left is not None:
                return left
            self._timer.start(s.now + patience(s, self._story.failed))
        return self.tick_votes(s)

    def on_do_view_change(self, s: State, message: Message) -> Transition | None:
        """Evidence for a view that this replica does not begin any more."""
        evidence.read(s, message)
        return None
