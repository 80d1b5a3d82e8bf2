"""What a replica does again and again: jobs as rows, and the tick that carries them out.

May import: nothing of Kimberlite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

TICK_S = 0.01


class Job(NamedTuple):
    """every: ticks from one time to the next."""

    name: str
    every: int
    action: Callable[[], None]


class Routine:
    """Carries out `jobs`, in that order, each through `run`, which answers for what an action raises."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, run: Callable[[Callable[[], None]], None], jobs: Sequence[Job]
    ) -> None:
        self._loop = loop
        self._run = run
        self._jobs = tuple(jobs)
        self._ticks = 0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The first tick, now."""
        self._tick()

    def stop(self) -> None:
        """No further tick; a job that is being done ends."""
        if self._handle is not None:
            self._handle.cancel()

    def _tick(self) -> None:
        self._handle = self._loop.call_later(TICK_S, self._tick)
        self._ticks += 1
        for job in self._jobs:
            if self._ticks % job.every == 0:
                self._run(job.action)
