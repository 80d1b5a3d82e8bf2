"""With a replica paused, or all, `read(timeout=1)` took 7 s and 21 s. A call ends within its timeout + 0.5 s, and one
silent replica does not cost the timeout: another is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from lab import Case, Cluster, main

import kimberlite
from kimberlite.errors import KimberliteError

SECONDS = 120
SAMPLE = True
TIMEOUT_S = 1.0
SLACK_S = 0.5


async def timed(call: Callable[[], Awaitable[Any]]) -> tuple[Any, float]:
    """What came of it, an error of Kimberlite's perhaps, and after how long; 30 s at most."""
    began = time.monotonic()
    try:
        result = await asyncio.wait_for(call(), 30)
    except (KimberliteError, TimeoutError) as error:
        result = error
    return result, time.monotonic() - began


async def play(case: Case, cluster: Cluster) -> None:
    async with kimberlite.connect(cluster.addresses) as log:

        async def read(**options: Any) -> int:
            return len([event async for event in log.read(timeout=TIMEOUT_S, **options)])

        await log.append([b"%d" % number for number in range(5)])
        waiting = asyncio.ensure_future(log.follow(5).__anext__())
        await asyncio.sleep(0.3)
        primary = cluster.roles()[0]
        cluster.pause(primary)
        try:
            for what, call in (("read", read), ("status", lambda: log.status(timeout=TIMEOUT_S)), ("read", read)):
                result, took = await timed(call)
                case.say(f"the primary is paused: {what} after {took:.2f} s: {str(result)[:40]}")
                case.check(
                    not isinstance(result, Exception) and took < TIMEOUT_S + SLACK_S,
                    f"{what} took {took:.1f} s of its {TIMEOUT_S} s: {result!r}",
                )
            async with kimberlite.connect(cluster.addresses) as writer:
                await writer.append([b"while it is paused"], timeout=20)
            _, took = await timed(lambda: waiting)
            case.say(f"a follower of the paused primary had the next event after {took:.2f} s")
            case.check(took < 2.5, f"a follower had the next event {took:.1f} s after it was acknowledged")
            for replica in range(cluster.size):
                cluster.pause(replica)
            calls: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
                ("read", read),
                ("status", lambda: log.status(timeout=TIMEOUT_S)),
                ("follow", lambda: log.follow(6, timeout=TIMEOUT_S).__anext__()),
            ]
            for what, call in calls:
                result, took = await timed(call)
                case.say(f"all are paused: {what} after {took:.2f} s: {str(result)[:80]}")
                case.check(
                    isinstance(result, KimberliteError) and took < TIMEOUT_S + SLACK_S,
                    f"{what} took {took:.1f} s of its {TIMEOUT_S} s: {result!r}",
                )
        finally:
            for replica in range(cluster.size):
                cluster.resume(replica)


def run(case: Case) -> None:
    asyncio.run(play(case, case.cluster(3)))


if __name__ == "__main__":
    main(run)
