"""What a store has handed to its disk, until that is durable.

Everything that a store writes goes through this one queue, in order. A submission may have a token, which is told to
whoever asked for it; an action, which is carried out first; and segments that it holds: their files stay open, and what
is known of them stays in memory, until its writes are done.

May import: storage.interface, storage.handles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import Disk, Write


class Submissions:
    """Of one store. One thread uses it."""

    def __init__(self, disk: Disk, handles: Handles) -> None:
        self._disk = disk
        self._handles = handles
        self._next_token = 1
        self._tokens: list[int] = []  # to be returned next
        self.drain: Callable[[], None] = lambda: None  # before the superblock is written: see `promise`
        self._pending: dict[int, tuple[int | None, Callable[[], None] | None, Collection[int]]] = {}

    def hold(self, number: int, held: set[int]) -> None:
        """Have `held`, which is going to be submitted, hold that segment too."""
        if number not in held:
            held.add(number)
            self._handles.hold([number])

    def submit(
        self,
        phases: Sequence[Sequence[Write]],
        token: int | None = None,
        done: Callable[[], None] | None = None,
        held: Collection[int] = (),
    ) -> int:
        """Hand over these writes; the number that the disk knows them by.

        token: returned by `completions`; None: nobody waits. done: called when all is durable. held: see `hold`.
        """
        disk_token = self._next_token
        self._next_token += 1
        self._pending[disk_token] = (token, done, held)
        self._disk.submit(disk_token, phases)
        return disk_token

    def promise(
        self, phases: Sequence[Sequence[Write]], token: int | None = None, done: Callable[[], None] | None = None
    ) -> None:
        """Hand over an update of the superblock. In front of it goes what is in the ring alone."""
        self.drain()
        self.submit(phases, token, done)

    def complete(self, token: int) -> None:
        """Of what has just become durable: to be returned by `completions` as well. For the action of a submission."""
        self._tokens.append(token)

    def completions(self) -> list[int]:
        """The tokens of what has become durable, in order. Raises WriteFailedError."""
        for disk_token in self._disk.completions():
            token, done, held = self._pending.pop(disk_token)
            if held:
                self._handles.let_go(held)
            if done is not None:
                done()
            if token is not None:
                self._tokens.append(token)
        tokens, self._tokens = self._tokens, []
        return tokens

    @property
    def unasked(self) -> int:
        """How many are under way that nobody waits for: what the store mends by itself, and checkpoints."""
        return sum(token is None for token, _, _ in self._pending.values())
