"""The open files of the segments: a bounded number of them, whatever the length of the log.

May import: errors, storage.interface, storage.journal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from kimberlite.errors import DiskFullError
from kimberlite.storage.interface import Disk
from kimberlite.storage.journal import journal_name, witness_name

HANDLES_MAX = 256  # of 1024 descriptors that a process commonly may have


class Handles:
    """Handles of journal and witness files by segment number, opened when needed.

    Those used least recently are released, but none of a segment that is held: something of it is
    under way.
    """

    def __init__(self, disk: Disk, limit: int | None = None) -> None:
        """limit: of open files, as far as no more are in use; HANDLES_MAX when None."""
        self._disk = disk
        self._limit = HANDLES_MAX if limit is None else limit
        self._open: OrderedDict[str, int] = OrderedDict()
        self._held: dict[int, int] = {}  # number of a segment -> how many hold it

    def journal(self, number: int) -> int:
        return self._handle(journal_name(number))

    def witness(self, number: int) -> int:
        return self._handle(witness_name(number))

    def of(self, name: str) -> int:
        """Of the journal or witness file of that name."""
        return self._handle(name)

    def adopt(self, number: int, journal: int | None, witness: int | None) -> None:
        """Take over handles that were opened elsewhere."""
        for name, handle in ((journal_name(number), journal), (witness_name(number), witness)):
            if handle is not None:
                if name in self._open:
                    self._disk.release(handle)
                else:
                    self._keep(name, handle)

    def hold(self, numbers: Iterable[int]) -> None:
        """Writes to these segments are under way; to be followed by `let_go`."""
        for number in numbers:
            self._held[number] = self._held.get(number, 0) + 1

    def let_go(self, numbers: Iterable[int]) -> None:
        held = self._held
        for number in numbers:
            if held[number] == 1:
                del held[number]
            else:
                held[number] -= 1

    def is_held(self, number: int) -> bool:
        return number in self._held

    def forget(self, number: int) -> None:
        """The files of a segment are about to be removed: nothing of it may be under way."""
        for name in (journal_name(number), witness_name(number)):
            handle = self._open.pop(name, None)
            if handle is not None:
                self._disk.release(handle)

    def _handle(self, name: str) -> int:
        handle = self._open.get(name)
        if handle is None:
            handle = self._open_file(name)
            self._keep(name, handle)
        else:
            self._open.move_to_end(name)
        return handle

    def _open_file(self, name: str) -> int:
        """When there is no descriptor for it, in the place of one that is idle. Raises DiskFullError."""
        while True:
            try:
                return self._disk.open(name)
            except DiskFullError:
                if not self._release_idle(name, 1):
                    raise

    def _keep(self, name: str, handle: int) -> None:
        self._open[name] = handle
        self._release_idle(name, max(len(self._open) - self._limit, 0))

    def _release_idle(self, but: str, count: int) -> int:
        """Release up to so many, those used least recently first; how many."""
        idle = (other for other in self._open if other != but and int(other.partition("-")[2]) not in self._held)
        chosen = list(islice(idle, count))
        for name in chosen:
            self._disk.release(self._open.pop(name))
        return len(chosen)
