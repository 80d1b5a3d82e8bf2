"""The scrubber: reads everything on the disk again and again, to find damage while good copies are left.

A tour goes over every entry of the log with its witness, the copies of the superblock and those of the checkpoint. It
begins at a random op, so that replicas do not read the same at the same time and restarts do not always begin with the
oldest; it wraps at the head that the log had when it began, and ends where it began. The next one begins when it is
due, so that a small disk is not read many times a second. What it finds:

- a damaged entry is marked faulty in the store: the core has it repaired from a peer, by its identity;
- a damaged witness of an intact entry, or copy of the superblock or of the checkpoint, is written again from what
  is good; when no copy of the checkpoint is, the store is told, and the driver makes a new one.

It runs inside the replica, between its other work, in steps of at most STEP_BYTES or one entry. A step reads and
never waits for a write; what is being written is left for the next tour. Nothing is kept but one entry, and the
checkpoint while a damaged copy of it is made anew.

With a reader (storage.pieces) entries and witnesses are read on its thread, many at a time, and looked at when they
have come. What is whole there is whole; anything else is looked at on the disk by a step, which decides. So the replica
waits for a read only where something is wrong, at the copies of superblock and checkpoint, and once for the places of
some hundred entries of an old segment. A disk that hangs holds the reader up, and the tour with it, and nothing else.

May import: errors, types, storage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from random import Random
from typing import NamedTuple, Protocol

import xxhash

from kimberlite.errors import DiskFullError
from kimberlite.storage import superblock
from kimberlite.storage.checkpoint import COPIES
from kimberlite.storage.pieces import Extent, Piece, PieceReader
from kimberlite.types import Checkpoint

STEP_BYTES = 64 << 10
STEP_ENTRIES = 16
STEPS_PER_TICK = 16
NS_PER_S = 1_000_000_000


class Damage(StrEnum):
    """What was found damaged."""

    ENTRY = "entry"
    WITNESS = "witness"
    SUPERBLOCK = "superblock"
    CHECKPOINT = "checkpoint"


class Checked(NamedTuple):
    """What a check of the store has read, and what of it was damaged."""

    bytes: int = 0
    damage: tuple[Damage, ...] = ()


class Plan(NamedTuple):
    """What may be read in one piece: these ops, from there. No ops: nothing. damaged: so many entries turned out to be,
    by their witnesses, when their places were looked for."""

    ops: range
    extents: tuple[Extent, ...]
    damaged: int


class Scrubbed(Protocol):
    """What a scrubber needs of a store. Every check reads the disk, marks or repairs, and never waits."""

    @property
    def head(self) -> int: ...
    @property
    def first_op(self) -> int: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    def check_entry(self, op: int) -> Checked: ...
    def plan_check(self, op: int, last: int, bytes_max: int) -> Plan: ...
    def screen_entry(self, op: int, piece: Piece) -> Checked | None: ...
    def check_superblock(self, copy: int) -> Checked: ...
    def read_checkpoint(self, copy: str, offset: int, length: int) -> bytes | None:
        """A part of a copy; None when it can not be read."""

    def rewrite_checkpoint(self, copy: str, data: bytes) -> bool:
        """Write a damaged copy again; False when the checkpoint has changed or is being written."""

    def lose_checkpoint(self, op: int) -> None:
        """Neither copy of the checkpoint of `op` can be read."""


class Scrubber:
    """Tours over one store. bytes_per_s: what it reads at most on average; 0: nothing. seed: of the origin.
    interval_ns: from the begin of a tour to that of the next, at least. reader: reads beside the caller's thread; None:
    every read is one of the caller's."""

    def __init__(
        self,
        store: Scrubbed,
        *,
        bytes_per_s: int,
        seed: int,
        now: int,
        interval_ns: int = 0,
        reader: PieceReader | None = None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._asked = range(0)  # ops of the piece that is being read
        self._bytes_per_s = bytes_per_s
        self._interval_ns = interval_ns
        self._random = Random(seed)
        self._now = now
        self._credit = 0.0
        self.tours = 0  # completed
        self.ended_at = 0  # when the last one was: monotonic nanoseconds, 0 before
        self.bytes = 0  # read
        self.damage = dict.fromkeys(Damage, 0)
        self._first = self._last = self._origin = self._op = 0
        self._left = 0  # entries still to be read
        self._steps: list[Callable[[], Checked]] = []  # copies still to be read, the next one last
        self._copy: _CheckpointCopy | None = None
        self._due_at = now  # the next tour begins then at the earliest
        self._next_where: float | None = None  # between two tours: where the next one begins
        self._begin(self._random.random())

    @property
    def fraction(self) -> float:
        """How much of the present tour, or of the last while none is due, is done, by entries: 0 to 1."""
        count = self._last - self._first + 1
        return 1.0 - self._left / count if count > 0 else 0.0

    def tick(self, now: int) -> bool:
        """Read what the rate allows by now (monotonic nanoseconds). Whether a damaged entry was found: the core must
        be told of it."""
        if not self._bytes_per_s:
            return False
        earned = (now - self._now) * self._bytes_per_s / NS_PER_S
        self._now = now
        self._credit = min(self._credit + earned, float(STEPS_PER_TICK * STEP_BYTES))
        before = self.damage[Damage.ENTRY]
        if self._reader is not None:
            self._go_on(self._reader)
        else:
            for _ in range(STEPS_PER_TICK):
                if not self._may_read:
                    break
                self._credit -= self.step()
        return self.damage[Damage.ENTRY] != before

    @property
    def _may_read(self) -> bool:
        return self._credit > 0 and (self._next_where is None or self._now >= self._due_at)

    def close(self) -> None:
        """Nothing more is read; what is being read is not waited for."""
        self._bytes_per_s = 0
        if self._reader is not None:
            self._reader.close()

    def next_deadline(self) -> int | None:
        """When `tick` may read again; None: never."""
        if not self._bytes_per_s:
            return None
        at = self._now - int(self._credit * NS_PER_S / self._bytes_per_s) + 1 if self._credit <= 0 else self._now
        return max(at, self._due_at) if self.is_between_tours else at

    @property
    def is_between_tours(self) -> bool:
        """Whether a tour has ended and the next one has not begun."""
        return self._next_where is not None

    def step(self) -> int:
        """Read the next piece of the tour, or the first of another one whether it is due or not; the number of bytes,
        1 at least."""
        if self._next_where is not None:
            self._begin(self._next_where)
        done = 0
        for _ in range(STEP_ENTRIES):
            if not self._left and not self._steps and self._copy is None:
                self._end()
                break
            try:
                checked = self._next()
            except DiskFullError:  # the system has no descriptor for it now
                break
            for what in checked.damage:
                self.damage[what] += 1
            done += checked.bytes
            if done >= STEP_BYTES // 2:  # the next entry might be a large one
                break
        self.bytes += done
        return max(done, 1)

    # By pieces

    def _go_on(self, reader: PieceReader) -> None:
        """Look at the piece that has come, and ask for the next one."""
        piece = reader.take()
        if piece is not None:
            self.bytes += piece.bytes
            self._look_at(piece)
        if reader.is_busy or not self._may_read:
            return
        if self._next_where is not None:
            self._begin(self._next_where)
        if not self._ask(reader):
            self._credit -= self.step()

    def _ask(self, reader: PieceReader) -> bool:
        """For the entries that are next; False when that is something else, or can not be done now."""
        if self._copy is not None or not self._left or (self._steps and self._op > self._last):
            return False
        op = self._op if self._op <= self._last else self._first
        size = max(STEP_BYTES, int(self._credit))  # more where the rate asks for more than one such piece a tick
        try:
            plan = self._store.plan_check(op, min(self._last, op + self._left - 1), size)
        except DiskFullError:  # the system has no descriptor for it now
            return False
        self.damage[Damage.ENTRY] += plan.damaged
        if not plan.ops or not reader.ask(plan.extents):
            return False
        self._asked = plan.ops
        self._op, self._left = plan.ops.stop, self._left - len(plan.ops)
        self._credit -= sum(extent.length for extent in plan.extents)
        return True

    def _look_at(self, piece: Piece) -> None:
        for op in self._asked:
            try:
                checked = self._store.screen_entry(op, piece) or self._store.check_entry(op)
            except DiskFullError:
                continue
            for what in checked.damage:
                self.damage[what] += 1
            self.bytes += checked.bytes
            self._credit -= checked.bytes

    # Tours

    def _begin(self, where: float) -> None:
        """A tour over what there is now, from that part of it on."""
        self._next_where = None
        self._due_at = self._now + self._interval_ns
        self._first, self._last = self._store.first_op, self._store.head
        count = max(self._last - self._first + 1, 0)
        self._left = count
        self._origin = self._op = self._first + min(int(where * count), max(count - 1, 0))
        self._steps = [
            *(partial(self._begin_checkpoint, copy) for copy in reversed(COPIES)),
            *(partial(self._store.check_superblock, copy) for copy in reversed(range(superblock.COPIES))),
        ]

    def _end(self) -> None:
        """The tour is done: the next one begins at the same place, for the same time to go by between two readings."""
        self.tours += 1
        self.ended_at = self._now
        count = self._last - self._first + 1
        self._next_where = (self._origin - self._first) / count if count > 0 else self._random.random()

    def _next(self) -> Checked:
        if self._copy is not None:
            return self._continue_checkpoint(self._copy)
        if self._steps and (self._op > self._last or not self._left):  # at the wrap
            return self._steps.pop()()
        if self._op > self._last:
            self._op = self._first
        op = self._op
        self._op += 1
        self._left -= 1
        return self._store.check_entry(op)

    # Checkpoints: read in pieces, over many steps

    def _begin_checkpoint(self, copy: str, repairs: str = "") -> Checked:
        """repairs: the damaged copy that this one is to replace."""
        if self._store.checkpoint.size:
            self._copy = _CheckpointCopy(self._store.checkpoint, copy, xxhash.xxh3_128(), repairs)
        return Checked()

    def _continue_checkpoint(self, reading: _CheckpointCopy) -> Checked:
        wanted = self._store.checkpoint
        if wanted.op != reading.checkpoint.op:  # another has taken its place
            self._copy = None
            return Checked()
        length = min(STEP_BYTES, wanted.size - reading.offset)
        data = self._store.read_checkpoint(reading.copy, reading.offset, length)
        if data is not None and len(data) == length:
            reading.offset += length
            reading.digest.update(data)
            if reading.repairs:
                reading.data.append(data)
            if reading.offset < wanted.size:
                return Checked(length)
            if reading.digest.digest() == wanted.digest:
                self._copy = None
                if reading.repairs:
                    self._store.rewrite_checkpoint(reading.repairs, b"".join(reading.data))
                return Checked(length)
        self._copy = None
        if reading.repairs:  # there is no good one: whoever has the state makes a new one
            self._store.lose_checkpoint(reading.checkpoint.op)
        else:
            other = next(name for name in COPIES if name != reading.copy)
            self._begin_checkpoint(other, repairs=reading.copy)
            return Checked(length, (Damage.CHECKPOINT,))
        return Checked(length)


@dataclass(slots=True)
class _CheckpointCopy:
    """A copy of the checkpoint being read."""

    checkpoint: Checkpoint
    copy: str
    digest: xxhash.xxh3_128
    repairs: str
    offset: int = 0
    data: list[bytes] = field(default_factory=list)
