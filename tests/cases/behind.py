"""What the cases of catching up share: load, a client that waits, and the double event.

One replica misses thousands of ops; when it comes back another one has just failed, so that a commit needs the
one that is behind. Every op holds one request (limits.prepare_requests_max=1).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from lab import Case, Cluster, until

import kimberlite

UNBATCHED = "limits.prepare_requests_max=1"
WRITERS = 24


def load(cluster: Cluster, ops: int, seconds: float = 60.0) -> float:
    """Append so many single events, or for so long; gives ops a second."""

    async def write() -> float:
        left = ops
        end = time.monotonic() + seconds

        async def writer() -> None:
            nonlocal left
            async with kimberlite.connect(cluster.addresses, timeout=20) as log:
                while left > 0 and time.monotonic() < end:
                    left -= 1
                    await log.append([b"." * 100], timeout=20)

        started = time.monotonic()
        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        return (ops - left) / (time.monotonic() - started)

    return asyncio.run(write())


class Waiting:
    """Clients that append all the time; `since(t)`: seconds from t to the first acknowledgement after it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._acknowledged: list[float] = []
        self._ended = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    async def _run(self) -> None:
        await asyncio.gather(self._append(), self._append())

    async def _append(self) -> None:
        while not self._ended:
            try:
                async with kimberlite.connect(self._cluster.addresses, timeout=3) as log:
                    while not self._ended:
                        await log.append([b"waiting"], timeout=30)
                        self._acknowledged.append(time.monotonic())
                        await asyncio.sleep(0.02)
            except Exception:
                await asyncio.sleep(0.1)

    def since(self, begin: float, seconds: float) -> float | None:
        """None when there was none within that time."""
        found = until(lambda: next((at for at in self._acknowledged if at > begin), None), seconds)
        return found - begin if found else None

    def end(self) -> None:
        self._ended = True


class Returned(NamedTuple):
    missed: int  # ops
    after: float | None  # seconds from the return to the next commit
    start: float  # of these until the replica answered at all
    views: int  # left meanwhile


def come_back(
    case: Case, cluster: Cluster, late: int, missed: int, fail: Callable[[], None], seconds: float
) -> Returned:
    """`late` misses so many ops, then `fail` strikes another replica while `late` is started."""
    cluster.kill(late)
    rate = load(cluster, missed)
    leader = cluster.roles()[0]
    before = cluster.tells(leader)
    case.say(f"replica {late} has missed {missed} ops, made at {rate:.0f}/s; the primary is {leader}")
    waiting = Waiting(cluster)
    fail()
    time.sleep(0.2)  # what was under way is acknowledged, or waits
    begin = time.monotonic()
    cluster.start(late)
    until(lambda: cluster.status(late, 0.3), 20, 0.02)
    start = time.monotonic() - begin
    after = waiting.since(begin, seconds)
    waiting.end()
    views = [found["view"] for index in range(cluster.size) if (found := cluster.status(index))]
    left = max(views, default=0) - before["view"]
    shown = f"{after:.1f} s" if after is not None else f"not within {seconds} s"
    case.say(f"the next commit came {shown} after the return ({start:.1f} s of it a start); {left} views were left")
    return Returned(missed, after, start, left)


def check(case: Case, what: str, found: Returned, seconds: float, views: int) -> None:
    case.check(
        found.after is not None and found.after <= seconds,
        f"{what}: {found.missed} ops behind, the next commit came after {found.after} s, {seconds} s are promised",
    )
    case.check(found.views <= views, f"{what}: {found.views} views were left, {views} are enough")
