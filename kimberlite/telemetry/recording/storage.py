"""Disk, journal and scrubber: what they say of themselves, set at a bounded rate, and errors as they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kimberlite._fast.metrics import now_ns
from kimberlite.telemetry.catalogue import NS_PER_S
from kimberlite.telemetry.catalogue.labels import SCRUBBED
from kimberlite.telemetry.recording.handles import Handles
from kimberlite.types import Access


class StorageSample(NamedTuple):
    """What storage says of itself. Totals since the start; latencies since the last sample, in nanoseconds."""

    write_latencies: Sequence[int]
    sync_latencies: Sequence[int]
    reads: int
    read_bytes: int
    writes: int
    bytes: int
    switches: int
    inline: bool
    entry_bytes: int  # of entries, witnesses and checkpoints, handed to the disk
    log_bytes: int
    entries: int
    first_position: int
    checkpoint_op: int
    trim_due_at: int  # when a trim began to wait for a replica; 0 while none waits
    free_bytes: int | None  # None: as before


class StorageCells:
    """Writes the cells of storage."""

    def __init__(self, handles: Handles) -> None:
        self._write_latency = handles.histogram("journal_write_latency").record_many
        self._sync_latency = handles.histogram("fsync_latency").record_many
        self._totals = {
            "reads": handles.counter("disk_operations", "read").advance_to,
            "read_bytes": handles.counter("disk", "read").advance_to,
            "writes": handles.counter("disk_operations", "write").advance_to,
            "bytes": handles.counter("disk", "write").advance_to,
            "entry_bytes": handles.counter("bytes_written").advance_to,
            "switches": handles.counter("journal_mode_switches").advance_to,
        }
        self._levels = {
            "inline": handles.gauge("journal_inline").set,
            "log_bytes": handles.gauge("log_size").set,
            "entries": handles.gauge("log_entry_count").set,
            "first_position": handles.gauge("log_first_event").set,
            "checkpoint_op": handles.gauge("checkpoint_op").set,
            "trim_due_at": handles.gauge("trim_wait").set,
        }
        self._free = handles.gauge("disk_free").set
        self._scrub_tours = handles.counter("scrub_tours_completed").advance_to
        self._scrub_last_tour = handles.gauge("scrub_last_tour").set
        self._scrub_bytes = handles.counter("scrub").advance_to
        self._scrub_throughput = handles.gauge("scrub_throughput").set
        self._scrub_seen = now_ns(), 0  # when was known how much had been read
        self._scrub_progress = handles.gauge("scrub_progress_ratio").set
        self._scrub_damage = {
            what: handles.counter("scrub_corruptions_detected", what).advance_to for what in SCRUBBED.values
        }
        self._errors = handles.by_member("journal_errors", Access)
        self._superblock = handles.counter("checksum_failures", "superblock").add

    def update(self, sample: StorageSample) -> None:
        """Record what storage did since the last sample."""
        if sample.write_latencies:
            self._write_latency(sample.write_latencies)
        if sample.sync_latencies:
            self._sync_latency(sample.sync_latencies)
        for name, advance_to in self._totals.items():
            advance_to(getattr(sample, name))
        for name, put in self._levels.items():
            put(getattr(sample, name))
        if sample.free_bytes is not None:
            self._free(sample.free_bytes)

    def scrubbed(
        self, tours: int, ended_at: int, read: int, fraction: float, damage: Iterable[tuple[str, int]]
    ) -> None:
        """Record how far the scrubber is: completed tours and when the last of them was, bytes read, the part of the
        present tour, and by what it was how much was found damaged. Totals since the start."""
        self._scrub_tours(tours)
        self._scrub_last_tour(ended_at)
        self._scrub_bytes(read)
        (before, had), now = self._scrub_seen, now_ns()
        self._scrub_throughput((read - had) * NS_PER_S // max(now - before, 1))
        self._scrub_seen = now, read
        self._scrub_progress(fraction)
        for what, count in damage:
            self._scrub_damage[what](count)

    def failed(self, access: Access) -> None:
        """A read or write of the data directory was failed by the system."""
        self._errors[access].add()

    def superblock_damaged(self, copies: int) -> None:
        self._superblock(copies)
