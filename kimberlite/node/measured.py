"""Disk and state machine of a node, with what the core cannot see measured: time and bytes.

May import: errors, types, state_machine, _fast, storage, telemetry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

from kimberlite._fast.metrics import now_ns
from kimberlite.state_machine import Batch, StateMachine
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.interface import Write
from kimberlite.telemetry.recording.executions import Executions
from kimberlite.telemetry.recording.loop import DISK_WAIT
from kimberlite.types import Access

LOOK_S = 0.01
_HUNG: list[MeasuredDisk] = []  # never let go of: that would be to wait for their threads


def _stay(part: int) -> int:
    return 0


class MeasuredDisk(FileDisk):
    """A FileDisk that tells of failed reads; with `switch` set its waits are charged to a part of the loop's time."""

    switch: Callable[[int], int] = staticmethod(_stay)
    on_error: Callable[[Access], None] = staticmethod(lambda access: None)

    async def comes_to_rest(self, seconds: float) -> bool:
        """Whether all that was handed to the disk is on it within that time. It can be closed then. What a disk that
        hangs was handed, nobody was told of: whoever ends without it ends as in a crash."""
        deadline = time.monotonic() + seconds
        while self.stats()["queued"]:
            if time.monotonic() >= deadline:
                _HUNG.append(self)
                return False
            await asyncio.sleep(LOOK_S)
        return True

    def read(self, file: int, offset: int, length: int) -> memoryview:
        left = self.switch(DISK_WAIT)
        try:
            return super().read(file, offset, length)
        except OSError:
            self.on_error(Access.READ)
            raise
        finally:
            self.switch(left)

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None:
        left = self.switch(DISK_WAIT)
        try:
            super().submit(token, phases)
        finally:
            self.switch(left)

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        left = self.switch(DISK_WAIT)
        try:
            return super().create(name, size, zeroed)
        finally:
            self.switch(left)


class MeasuredMachine:
    """A state machine whose executions are timed."""

    def __init__(self, machine: StateMachine, executions: Executions) -> None:
        self._machine = machine
        self._executions = executions
        self.version = machine.version
        self.needs_body = machine.needs_body
        freeze = getattr(machine, "freeze", None)
        if freeze is not None:
            self.freeze = freeze

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        began = now_ns()
        replies = self._machine.apply(batches)
        self._executions.applied(batches[0].op, began)
        return replies

    def snapshot(self, writer: BinaryIO) -> None:
        self._machine.snapshot(writer)

    def restore(self, reader: BinaryIO) -> None:
        self._machine.restore(reader)
