"""Planted bugs of the ring, where small entries are durable until the journal has them."""

from __future__ import annotations

from kimberlite.storage import ring, ring_writer
from kimberlite.storage.ring_writer import RingWriter
from kimberlite.vopr.canaries.registry import Patch, canary


@canary("a start passes over the ring")
def _ring_not_read() -> list[Patch]:
    return [(ring, "read", lambda disk, nonce, superblock: [])]


@canary("a frame of the ring counts whatever the superblock was")
def _frame_of_any_superblock() -> list[Patch]:
    return [(ring, "is_live", lambda frame, superblock: True)]


@canary("the superblock is written before what the ring has is in the journal, at a start")
def _ring_not_replayed() -> list[Patch]:
    return [(ring, "replay", lambda disk, shown, handle: [])]


@canary("the superblock is written while entries are in the ring alone")
def _ring_not_drained() -> list[Patch]:
    return [(RingWriter, "drain", lambda self: None)]


@canary("a slot of the ring is written again before the journal has what it held")
def _slot_reused_too_early() -> list[Patch]:
    return [
        (ring_writer, "pending_max", lambda slots: 1 << 30),
        (RingWriter, "write_back", lambda self, is_quiet: None),
    ]


@canary("the ring is used while the superblock is written, or before it was since the start")
def _ring_used_before_its_superblock() -> list[Patch]:
    return [(RingWriter, "is_open", property(lambda self: True))]
