"""What is not counted as it happens is looked at now and then, and told to the recorder.

May import: net, storage, telemetry, node.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from kimberlite.net.peers import PeerNetwork
from kimberlite.node.descriptors import Share
from kimberlite.node.driver import Driver
from kimberlite.node.measured import MeasuredDisk
from kimberlite.node.retention import Retention
from kimberlite.node.server import ClientServer
from kimberlite.node.space import FreeSpace
from kimberlite.storage.scrub import Damage, Scrubber
from kimberlite.storage.store import Store
from kimberlite.telemetry.log import Log
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.loop import OTHER_PART
from kimberlite.telemetry.recording.memory import MemorySample
from kimberlite.telemetry.recording.storage import StorageSample


class Gauges:
    """Of one replica."""

    def __init__(
        self,
        log: Log,
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
        self._log = log
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
        self._is_full = False  # what the log was told of the disk
        self._damage: Mapping[Damage, int] = dict(scrubber.damage)  # likewise

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
        if (is_full := core.state.is_disk_full) != self._is_full:
            self._tell_of_space(is_full)
        if self._scrubber.damage != self._damage:
            self._tell_of_damage()
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

    def _tell_of_space(self, is_full: bool) -> None:
        self._is_full = is_full
        free = self._disk.free_bytes()
        if is_full:
            reasons = (str(self._store.disk_full or ""), self._space.reason(free))
            self._log.say("disk_full", reason="; ".join(filter(None, reasons)), free_bytes=free)
        else:
            self._log.say("disk_has_room", free_bytes=free)

    def _tell_of_damage(self) -> None:
        known, self._damage = self._damage, dict(self._scrubber.damage)
        for what, count in self._damage.items():
            if count > known.get(what, 0):
                self._log.say("damage_found", what=what.value, found_count=count)

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
