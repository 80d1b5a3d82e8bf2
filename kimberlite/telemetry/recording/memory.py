"""What the process holds in memory, by owner: bytes of buffers, and how many there are of what grows with load."""

from __future__ import annotations

from typing import NamedTuple

from kimberlite.telemetry.recording.handles import Handles


class MemorySample(NamedTuple):
    """Bytes, and numbers of objects."""

    client_bytes: int  # receive buffers of clients' connections, and answers that they have not taken
    peer_bytes: int  # the same of the other replicas
    entry_bytes: int  # entries that wait for the disk or for execution, and those kept for others
    entries: int
    headers: int
    sessions: int
    blocks: int  # all that the interpreter has allocated, each object one or more


class Memory:
    """Writes the cells of memory."""

    def __init__(self, handles: Handles) -> None:
        self._cells = [
            *(handles.gauge("memory_held", owner).set for owner in ("clients", "peers", "entries")),
            *(handles.gauge("objects", kind).set for kind in ("entries", "headers", "sessions")),
            handles.gauge("memory_blocks").set,
        ]

    def update(self, sample: MemorySample) -> None:
        """Set all. At a bounded rate: whoever makes the sample looks at every connection."""
        for put, value in zip(self._cells, sample, strict=True):
            put(value)
