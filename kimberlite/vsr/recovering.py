"""A replica that led its view before it was started anew: it votes to leave that view, and waits for others to do so.

It never acts as primary of that view again, for it may have sent prepares that its disk does not have.
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Message, Status
from kimberlite.vsr import evidence
from kimberlite.vsr.role import Between, Story, Transition

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


class Recovering(Between):
    """See the module docstring."""

    __slots__ = ()

    status = Status.RECOVERING

    def __init__(self, now: int) -> None:
        super().__init__(Story(now))
        self._timer.start(now)

    def on_do_view_change(self, s: State, message: Message) -> Transition | None:
        """Evidence for a view that this replica does not begin any more."""
        evidence.read(s, message)
        return None
