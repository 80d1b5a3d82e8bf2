"""What is not counted as it happens is looked at now and then, and told to the recorder.

May import: net, storage, telemetry, node.
"""

from __future__ import annotations

import sys
import time

from kimberlite.net.peers import PeerNetwork
from kimberlite.node.descriptors import Share
from kimberlite.node.driver import Driver
from kimberlite.node.measured import MeasuredDisk
from kimberlite.node.retention import Retention
from kimberlite.node.server import ClientServer
from kimberlite.node.space import FreeSpace
from kimberlite.storage.scrub import Scrubber
from kimberlite.storage.store import Store
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.loop import OTHER_PART
from kimberlite.telemetry.recording.memory import MemorySample
from kimberlite.telemetry.recording.storage import StorageSample


class Gauges:
    """Of one replica."""

    def __init__(
        self,
        recorder: Recorder,
        driver: Driver,
        disk: MeasuredDisk,
        store: Store,
        server: ClientServer,
        peers: PeerNetwork,
        share: Share,
        scrubber: Scrubber,
        retention: Retention,
        space: FreeSpace,
    ) -> None:
        self._recorder = recorder
        self._driver = driver
        self._disk = disk
        self._store = store
        self._server = server
        self._peers = peers
        self._share = share
        self._scrubber = scrubber
        self._retention = retention
        self._space = space
        self._free_bytes: int | None = None  # of the file system, when it was looked at since the last time

    def look_at_space(self) -> None:
        """How much of the file system is free; the core is told when that is too little."""
        self._free_bytes = self._disk.free_bytes()
        self._driver.core.set_short_of_space(self._space.look(self._free_bytes))

    def update(self) -> None:
        """Look at everything else, and tell the recorder."""
        recorder, core = self._recorder, self._driver.core
        recorder.loop.switch(OTHER_PART)
        now = time.monotonic_ns()
        core.set_now(now)
        if not recorder.is_recording:
            recorder.look(now)
            return
        recorder.update(core.snapshot(), now, self._server.connections, self._share.clients)
        recorder.storage.update(self._storage())
        clock, scrub = self._retention.clock, self._scrubber
        recorder.gauges.update_clock(clock.offset, clock.ahead, self._retention.is_suspended)
        recorder.storage.scrubbed(scrub.tours, scrub.ended_at, scrub.bytes, scrub.fraction, scrub.damage.items())

    def look_at_memory(self) -> None:
        """What is held, by owner. Less often than the rest: each connection is looked at."""
        if not self._recorder.is_recording:
            return
        state = self._driver.core.state
        bodies = state.log.bodies
        self._recorder.memory.update(
            MemorySample(
                client_bytes=self._server.memory_bytes,
                peer_bytes=self._peers.memory_bytes,
                entry_bytes=sum(message.header.size for message in bodies.values()),
                entries=len(bodies),
                headers=len(state.log.headers),
                sessions=len(state.sessions),
                blocks=sys.getallocatedblocks(),
            )
        )

    def _storage(self) -> StorageSample:
        disk, store = self._disk, self._store
        stats = disk.stats()
        free_bytes, self._free_bytes = self._free_bytes, None
        return StorageSample(
            write_latencies=disk.take_latencies(),
            sync_latencies=disk.take_sync_latencies(),
            reads=disk.reads,
            read_bytes=disk.read_bytes,
            writes=stats["writes"] + disk.zeros.writes,
            bytes=stats["bytes"] + disk.zeros.bytes,
            switches=stats["switches"],
            inline=bool(stats["inline_now"]),
            entry_bytes=store.bytes_written,
            log_bytes=store.bytes_used,
            entries=store.head - store.first_op + 1,
            first_position=store.first_position,
            checkpoint_op=store.checkpoint_op,
            trim_due_at=self._retention.waits_since,
            free_bytes=free_bytes,
        )
