"""Appending through the ring: one write until an entry is acknowledged, the journal later.

Where an op is on its way:

    waiting     has its place in the journal and nothing on the disk: a frame is being written
    under way   in the frame that is being written
    behind      durable in the ring, and only there
    returning   being written into the journal, entries first and then their witnesses; then it is done with

Rules (why, says storage.ring): one frame at a time; none while an entry goes into the journal that was not in the ring,
and none while the superblock is being written, or has not been since the start. What does not fit a frame, begins a
segment, or comes when `pending_max` ops are not in the journal yet, takes the two writes of the journal, with all that
waits, is under way or behind in front of it in the same phases. The same happens before the superblock is written
(`drain`). `write_back` writes what is behind, many ops at a time.

What is not in the journal yet is read from memory, as soon as it is durable.

May import: errors, types, storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kimberlite.storage import ring
from kimberlite.storage.interface import Disk, Write
from kimberlite.storage.journal import round_up
from kimberlite.storage.journal_writer import JournalWriter, Placed
from kimberlite.storage.ring import Frame
from kimberlite.storage.segments import Segments
from kimberlite.storage.submissions import Submissions
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import ZERO16, Message

WRITE_BACK_OPS = 32  # behind, that are written into the journal together; fewer where fewer slots are used


@dataclass(slots=True)
class Group:
    """What was appended under one token."""

    token: int
    entries: list[Placed]
    is_taken: bool = False  # it goes into the journal with something else


def pending_max(slots: int) -> int:
    """Ops that may be in the ring alone: so few that the slot of the next frame has none of them."""
    return min(ring.PENDING_MAX, slots - 1)


class RingWriter:
    """Of one store. One thread uses it."""

    def __init__(
        self,
        disk: Disk,
        superblock: SuperblockFile,
        segments: Segments,
        submissions: Submissions,
        writer: JournalWriter,
        slots: int = ring.SLOTS,
    ) -> None:
        """slots: of the ring that are used, from the first on; two at least."""
        self._disk = disk
        self._superblock = superblock
        self._segments = segments
        self._submissions = submissions
        self._writer = writer
        self._opened_at = superblock.current.sequence
        self._file: int | None = None  # None: the ring is not used
        self._slots = slots
        self._frames = 0  # written since the start
        self._pending_max = pending_max(slots)
        self._write_back_ops = min(WRITE_BACK_OPS, slots - 1)
        self._waiting: list[Group] = []
        self._under_way: list[Group] = []
        self._behind: list[Placed] = []
        self._pending = 0  # ops that are not in the journal yet
        self.went_on = False  # a frame was followed by another
        self._plain = 0  # submissions under way of entries that go into the journal at once
        self.bodies: dict[int, Message] = {}  # by op: durable, and not in the journal yet
        self.bytes_written = 0

    def open(self) -> None:
        """From now on entries may go into the ring, if the directory has one."""
        if self._superblock.current.ring.nonce != ZERO16:
            self._file = self._disk.open(ring.NAME)

    @property
    def is_used(self) -> bool:
        return self._file is not None

    # Appending

    def append(self, token: int, entries: Sequence[Message]) -> None:
        """See LogStore."""
        if self._file is None:
            self._writer.append(token, entries)
        elif self.takes(entries):
            self._waiting.append(Group(token, self._writer.place(entries)))
            self._pending += len(entries)
            if not self._under_way and not self._plain:
                self._write_frame(self._file)
        else:
            self._append_plain(token, entries)

    def takes(self, entries: Sequence[Message]) -> bool:
        """Whether these go into the ring."""
        if self._pending + len(entries) > self._pending_max or not self.is_open:
            return False
        segment = self._segments.active
        if not segment.count or segment.end is None:
            return False  # begins a segment, or stands nobody knows where
        size = sum([message.header.size for message in entries])
        length = sum([round_up(message.header.size) for message in entries])
        return size <= ring.ENTRIES_BYTES_MAX and segment.end + length <= self._segments.segment_bytes

    @property
    def is_open(self) -> bool:
        """Whether a frame that is written now would count after a restart, and no older one with it."""
        block = self._superblock
        return block.is_settled and block.current.sequence > self._opened_at

    def _write_frame(self, file: int) -> None:
        """Of what waits, as much as fits."""
        groups, entries = self._next_groups()
        spot = entries[0].spot
        turn, slot = divmod(self._frames, self._slots)
        frame = Frame(
            turn * ring.SLOTS + slot,
            self._superblock.current.sequence,
            spot.number,
            spot.at,
            spot.offset,
            tuple([message for message, _ in entries]),
        )
        buffer = self._disk.aligned(ring.COPIES * ring.copy_bytes(frame.entries))
        ring.encode_into(memoryview(buffer), frame, self._superblock.current.ring.nonce)
        self._frames += 1
        self._under_way = groups
        self.bytes_written += len(buffer)
        write = Write(file, ring.place(frame.sequence), buffer)
        self._submissions.submit([[write]], done=self._frame_written)

    def _next_groups(self) -> tuple[list[Group], list[Placed]]:
        groups: list[Group] = []
        entries: list[Placed] = []
        size = 0
        for group in self._waiting:
            size += sum([message.header.size for message, _ in group.entries])
            if groups and size > ring.ENTRIES_BYTES_MAX:
                break
            groups.append(group)
            entries += group.entries
        del self._waiting[: len(groups)]
        return groups, entries

    def _frame_written(self) -> None:
        groups, self._under_way = self._under_way, []
        for group in groups:
            for message, _ in group.entries:
                self.bodies[message.header.op] = message
            if not group.is_taken:
                self._behind += group.entries
            self._submissions.complete(group.token)
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting and not self._under_way and not self._plain and self._file is not None:
            self._write_frame(self._file)
            self.went_on = True

    # Into the journal

    def _append_plain(self, token: int | None, entries: Sequence[Message]) -> None:
        """Into the journal, behind all that is not there yet."""
        waiting, self._waiting = self._waiting, []
        placed = self._behind
        self._behind = []
        for group in [*self._under_way, *waiting]:
            if not group.is_taken:
                placed += group.entries
            group.is_taken = True
        count = len(placed)
        is_plain = bool(waiting or entries)
        self._plain += is_plain

        def done() -> None:
            self._plain -= is_plain
            self._returned(placed)
            for group in waiting:
                self._submissions.complete(group.token)
            self._go_on()

        if count or entries:
            self._writer.append(token, entries, placed, done)

    def _returned(self, placed: Sequence[Placed]) -> None:
        self._pending -= len(placed)
        for message, _ in placed:
            self.bodies.pop(message.header.op, None)

    def drain(self) -> None:
        """Have written into the journal all that is not there, before what is submitted next."""
        if self._behind or self._under_way or self._waiting:
            self._append_plain(None, ())

    def write_back(self, is_quiet: bool) -> None:
        """Have written into the journal what is in the ring alone: when it is enough, or all is quiet."""
        behind = self._behind
        if behind and (is_quiet or len(behind) >= self._write_back_ops):
            placed, self._behind = behind, []
            self._writer.append(None, (), placed, lambda: self._returned(placed))
