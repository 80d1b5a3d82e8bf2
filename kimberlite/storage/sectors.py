"""Sectors of witness files, as they are on the disk and as they are being made.

A record is read and rewritten with the 4 KiB sector it is in. The last SECTORS_MAX that were needed are kept. One that
is being written is kept, as it will be, until it is durable: the next change to it builds on that. Any other is read
anew before it is changed: what is in memory may be what a disk gave that gave something else than what is there.

What is read is read with the sectors around it: they cost nothing more with the same call, and tell whether the records
at the edges go together with their neighbours. What was found to go together is remembered (`is_linked`) for as long as
nothing else is known of these sectors.

May import: storage.interface, storage.handles, storage.journal, storage.layout, types.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from itertools import islice

from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Disk, Write
from kimberlite.storage.journal import RECORD_BYTES, RECORDS_PER_SECTOR, decode_record, witness_bytes
from kimberlite.storage.layout import FRAME_HEADER
from kimberlite.types import Bytes, Checksum

SECTORS_MAX = 256  # kept
UNREADABLE = b"\xff" * SECTOR  # no valid record, and not one that was never written
PARENT_AT = FRAME_HEADER.offset("parent")
_LINK = struct.Struct(f"16s{PARENT_AT - 16}x16s{RECORD_BYTES - PARENT_AT - 16}x")  # identity and parent of a record


class WitnessSectors:
    """Of the witness files of one store. One thread uses it."""

    def __init__(self, disk: Disk, handles: Handles, segment_bytes: int) -> None:
        self._disk = disk
        self._handles = handles
        self._count = witness_bytes(segment_bytes) // SECTOR  # in a file
        self._kept: OrderedDict[tuple[int, int], bytearray] = OrderedDict()
        self._linked: set[tuple[int, int]] = set()  # of those kept: all their records go together with their neighbours
        self._under_way: Counter[tuple[int, int]] = Counter()  # writes of a sector

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._kept

    def clear(self) -> None:
        """Keep nothing but what is being written."""
        for key in [key for key in self._kept if key not in self._under_way]:
            self._drop(key)

    def forget(self, number: int) -> None:
        """A segment will be written again, or is gone."""
        for key in [key for key in self._kept if key[0] == number]:
            self._drop(key)
            self._under_way.pop(key, None)

    # Reading

    def get(self, number: int, sector: int) -> bytearray:
        """Its content; ones where it can not be read."""
        key = number, sector
        content = self._kept.get(key)
        if content is not None:
            self._kept.move_to_end(key)
            return content
        self._load(number, max(sector - 1, 0), min(sector + 1, self._count - 1))
        content = self._kept.get(key)
        return content if content is not None else self._keep(key, bytearray(self._read(number, sector, sector)))

    def read_ahead(self, number: int, low: int, high: int) -> None:
        """Sectors low..high will be needed, one after another: read them with one call. Where that fails, each is read
        by itself when it is needed."""
        self._load(number, low, high)
        self._link(number, low, high)

    def _load(self, number: int, low: int, high: int) -> None:
        data = self._read(number, low, high)
        if len(data) < (high + 1 - low) * SECTOR:
            return
        kept, at = self._kept, 0
        for key in [(number, sector) for sector in range(low, high + 1)]:
            if key not in kept:
                kept[key] = bytearray(data[at : at + SECTOR])
            at += SECTOR
        self._let_go()

    def _read(self, number: int, low: int, high: int) -> Bytes:
        """Sectors low..high; nothing when they can not be read all, and of one alone what is known then."""
        try:
            data = self._disk.read(self._handles.witness(number), low * SECTOR, (high + 1 - low) * SECTOR)
        except OSError:
            data = memoryview(b"")
        return bytes(data).ljust(SECTOR, b"\xff") if low == high else data

    def _keep(self, key: tuple[int, int], content: bytearray) -> bytearray:
        self._kept[key] = content
        self._let_go(key)
        return content

    def _let_go(self, but: tuple[int, int] | None = None) -> None:
        """Of what was needed least lately, as much as is too much."""
        excess = len(self._kept) - SECTORS_MAX
        if excess > 0:
            idle = (at for at in self._kept if at != but and at not in self._under_way)
            for key in list(islice(idle, excess)):
                self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        del self._kept[key]
        self._linked.discard(key)

    def overlay(self, number: int, image: bytearray) -> None:
        """Put what is being written into what was read of a witness file."""
        for segment, sector in self._under_way:
            if segment == number and sector * SECTOR < len(image):
                image[sector * SECTOR : (sector + 1) * SECTOR] = self._kept[segment, sector]

    # What goes together

    def is_linked(self, number: int, at: int, checksum: Checksum) -> bool:
        """Whether the records on both sides of one with that identity say that it stands between them; no, where they
        are not both in memory."""
        sector, index = divmod(at, RECORDS_PER_SECTOR)
        if (number, sector) in self._linked:
            return True
        kept = self._kept
        own = kept.get((number, sector))
        before = own if index else kept.get((number, sector - 1))
        behind = own if index < RECORDS_PER_SECTOR - 1 else kept.get((number, sector + 1))
        if own is None or before is None or behind is None:
            return False
        here = index * RECORD_BYTES
        left, right, parent = (here - RECORD_BYTES) % SECTOR, (here + RECORD_BYTES) % SECTOR, here + PARENT_AT
        return (
            own.startswith(checksum, here)
            and behind.startswith(checksum, right + PARENT_AT)
            and before.startswith(own[parent : parent + 16], left)
        )

    def _link(self, number: int, low: int, high: int) -> None:
        """Find out which of the sectors low..high go together with those on both sides."""
        kept = self._kept
        records = {
            sector: [*_LINK.iter_unpack(kept[number, sector])]
            for sector in range(low - 1, high + 2)
            if (number, sector) in kept
        }
        joined = {at for at in records if at - 1 in records and records[at][0][1] == records[at - 1][-1][0]}
        for sector in joined:
            own = records[sector]
            if sector + 1 in joined and all(own[at][0] == own[at + 1][1] for at in range(RECORDS_PER_SECTOR - 1)):
                self._linked.add((number, sector))

    # Writing

    def refreshed(self, number: int, sector: int) -> bytearray:
        """A sector that is about to be written: every record that is intact on the disk or in memory, for either may
        have been lost there without a word. What is under way already is as it will be."""
        key = number, sector
        kept = self._kept.get(key)
        for near in (sector - 1, sector, sector + 1):
            self._linked.discard((number, near))
        if kept is None or key in self._under_way:
            return self.get(number, sector)
        content = self._keep(key, bytearray(self._read(number, sector, sector)))
        for index in range(RECORDS_PER_SECTOR):
            at, where = sector * RECORDS_PER_SECTOR + index, slice(index * RECORD_BYTES, (index + 1) * RECORD_BYTES)
            if decode_record(content[where], number, at) is None and decode_record(kept[where], number, at) is not None:
                content[where] = kept[where]
        return content

    def write(self, number: int, sector: int, content: bytearray) -> Write:
        """The write of a sector that `refreshed` gave, and that has changed since; then `written`."""
        key = number, sector
        self._under_way[key] += 1
        self._keep(key, content)
        buffer = self._disk.aligned(SECTOR)
        buffer[:] = content
        return Write(self._handles.witness(number), sector * SECTOR, buffer)

    def written(self, number: int, sector: int) -> None:
        """A write that `write` gave is durable."""
        key = number, sector
        if key in self._under_way:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]
