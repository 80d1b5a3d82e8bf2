"""Followers of one client displaced each other's waiting read: events came 4 to 7 s late. Any number of them see every
event at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from lab import Case, main

import kimberlite

SECONDS = 60
SAMPLE = True
FOLLOWERS = 16
EVENTS = 300
EVERY_S = 0.01
WITHIN_S = 0.2
LATE_SHARE = 0.01  # of what a machine that has other things to do may delay
LATEST_S = 1.0


def data_of(event: Any) -> bytes:
    return getattr(event, "data", event)  # an older version gives bytes


async def delays(addresses: list[str]) -> list[list[float]]:
    """Of each follower: how long after its acknowledgement each event came."""
    acknowledged: dict[bytes, float] = {}
    seen: list[dict[bytes, float]] = [{} for _ in range(FOLLOWERS)]

    async def follow(log: kimberlite.Log, found: dict[bytes, float]) -> None:
        async for event in log.follow(0):
            found[data_of(event)] = time.monotonic()

    async with kimberlite.connect(addresses) as log, kimberlite.connect(addresses) as writer:
        tasks = [asyncio.create_task(follow(log, found)) for found in seen]
        await asyncio.sleep(0.5)
        for number in range(EVENTS):
            await writer.append([b"%d" % number])
            acknowledged[b"%d" % number] = time.monotonic()
            await asyncio.sleep(EVERY_S)
        for _ in range(200):
            if all(len(found) == EVENTS for found in seen):
                break
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [[found.get(event, 1e9) - at for event, at in acknowledged.items()] for found in seen]


def run(case: Case) -> None:
    cluster = case.cluster(3)
    found = asyncio.run(delays(cluster.addresses))
    every = sorted(delay for follower in found for delay in follower)
    late = sum(delay > WITHIN_S for delay in every)
    median = every[len(every) // 2]
    case.say(f"{FOLLOWERS} followers, {EVENTS} events: median {median * 1000:.1f} ms, worst {every[-1]:.3f} s")
    case.check(
        every[-1] < LATEST_S, f"an event came {every[-1]:.1f} s late, {late} of {len(every)} later than {WITHIN_S} s"
    )
    case.check(late <= LATE_SHARE * len(every), f"{late} of {len(every)} came later than {WITHIN_S} s")


if __name__ == "__main__":
    main(run)
