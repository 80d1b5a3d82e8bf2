"""What one round of the core asks of its driver, in the making, and what the disk still owes.

Everything asked of the disk has a token, and tokens complete in the order given out. Two kinds are told apart: entries
of the journal, and promises (the superblock: view, log_view and what of the log they stand for).

A frame of this replica names its view: it reveals the promise of that view. `reveal` holds it back while a promise is
under way: until that is durable, or for good, when the view is left before. So no sender has to ask.

Bounded: WRITES_MAX writes, and promises of VIEWS_MAX views; of what is held back, one frame for each replica and
command: the last says all that those before it said. Imports types and work only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from kimberlite.types import Identity, Message, ViewState
from kimberlite.vsr.work import Append, Persist, Promise, ToReplica, Work

WRITES_MAX = 4  # to the journal at once: they are carried out one after another, each with two waits for the disk
VIEWS_MAX = 4  # writes of the superblock at once: no more views are entered than the disk follows


class Outbox:
    """See the module docstring. Times in nanoseconds."""

    __slots__ = ("_held", "_last_token", "_written_at", "owed", "promise", "work", "writes")

    def __init__(self) -> None:
        self.work = Work()
        self.owed: dict[int, tuple[int, Persist]] = {}  # token -> view in which it was asked for, and what
        self.promise: int | None = None  # token of the last promise, while that is under way
        self._held: dict[tuple[int, int], ToReplica] = {}  # (replica, command) -> what waits for that promise
        self.writes = 0  # to the journal, under way
        self._last_token = 0
        self._written_at = 0  # when the disk last completed something, or was given something after it had nothing

    def take(self) -> Work:
        """What was asked for since the last call."""
        work = self.work
        if work:
            self.work = Work()
        return work

    def reveal(self, frame: ToReplica) -> None:
        """Send a frame of this replica, as soon as what it reveals is durable."""
        if self.promise is None:
            self.work.send.append(frame)
        else:
            self._held[frame.replica, frame.message.header.command] = frame

    def withdraw(self) -> None:
        """The view is left: what waits to be said in it is never said."""
        self._held.clear()

    def append(self, entries: tuple[Message, ...], view: int, now: int) -> None:
        """Ask the disk to write these entries."""
        asked = Append(self._ask(now), entries)
        self.writes += 1
        self.owed[asked.token] = view, asked
        self.work.persist.append(asked)

    def make_promise(
        self, state: ViewState, truncate_to: int | None, now: int, identity: Identity | None = None
    ) -> None:
        """Ask the disk to write that into the superblock, and to cut the journal above that op then."""
        if truncate_to is not None:
            self._void_writes(truncate_to)
        asked = Promise(self._ask(now), state, truncate_to, identity)
        self.promise = asked.token
        self.owed[asked.token] = state.view, asked
        self.work.persist.append(asked)

    def _ask(self, now: int) -> int:
        """The next token."""
        if not self.owed:
            self._written_at = now
        self._last_token += 1
        return self._last_token

    def completed(self, token: int, now: int) -> tuple[int, Persist]:
        """The disk has done it: the view in which it was asked for, and what of it still counts."""
        self._written_at = now
        view, asked = self.owed.pop(token)
        if isinstance(asked, Append):
            self.writes -= 1
        elif self.promise == token:
            self.promise = None
            self.work.send += self._held.values()
            self._held.clear()
        return view, asked

    def leave_out(self, token: int, ops: Collection[int]) -> None:
        """The disk has no place for these entries: they do not count when that token completes."""
        view, asked = self.owed[token]
        if isinstance(asked, Append):
            self.owed[token] = view, _without(asked, lambda op: op in ops)

    def _void_writes(self, above: int) -> None:
        """The journal is about to be cut above that op: writes under way there do not count when they complete,
        for the cut comes after them, and takes away what they wrote. Also when a later log names the same entry
        again: that one is written anew."""
        for token, (view, asked) in self.owed.items():
            if isinstance(asked, Append) and asked.entries and asked.entries[-1].header.op > above:
                self.owed[token] = view, _without(asked, lambda op: op > above)

    @property
    def may_promise(self) -> bool:
        """Whether the disk follows the views entered so far. Nothing could be said in one more before it does."""
        return sum(isinstance(asked, Promise) for _, asked in self.owed.values()) < VIEWS_MAX

    def waits(self, now: int) -> int:
        """Nanoseconds since the disk last completed something, though more was asked of it; 0 when nothing was."""
        return now - self._written_at if self.owed else 0


def _without(asked: Append, is_void: Callable[[int], bool]) -> Append:
    return asked._replace(entries=tuple(entry for entry in asked.entries if not is_void(entry.header.op)))
