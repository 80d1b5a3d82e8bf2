"""A follower was given the same events again while others of its client waited at an earlier end. A hundred
followers, some slow, and twenty readers of one client see every event once, in order."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from lab import Case, main

import kimberlite

SECONDS = 90
SAMPLE = True
FOLLOWERS, READERS, EVENTS = 100, 20, 300
LATEST_S = 2.0


async def play(addresses: list[str]) -> tuple[list[str], float]:
    """What was wrong, and how late the latest event came."""
    wrong: list[str] = []
    worst = [0.0]
    ended = asyncio.Event()

    def look(who: str, event: Any, expected: int) -> None:
        number, at = bytes(getattr(event, "data", event)).split()  # an older version gives bytes
        worst[0] = max(worst[0], time.monotonic() - float(at))
        if int(number) != expected:
            wrong.append(f"{who} got event {int(number)}, not {expected}")

    async def follow(log: kimberlite.Log, index: int) -> None:
        expected = 0
        async for event in log.follow(0):
            look(f"follower {index}", event, expected)
            expected += 1
            if expected == EVENTS:
                return
            if index % 10 == 0:
                await asyncio.sleep(index % 7 / 1000)

    async def read(log: kimberlite.Log, index: int) -> None:
        while not ended.is_set():
            position = 0
            if hasattr(log, "end"):
                await log.end()  # so that the client knows of an end before those who wait there do
            async for event in log.read(0):
                number = int(bytes(getattr(event, "data", event)).split()[0])
                if number != position:
                    wrong.append(f"reader {index} got event {number}, not {position}")
                position += 1
            await asyncio.sleep(0.01)

    async with kimberlite.connect(addresses) as log, kimberlite.connect(addresses) as writer:
        following = [asyncio.create_task(follow(log, index)) for index in range(FOLLOWERS)]
        reading = [asyncio.create_task(read(log, index)) for index in range(READERS)]
        for number in range(EVENTS):
            await writer.append([b"%d %f" % (number, time.monotonic())])
            await asyncio.sleep(0.01)
        done, pending = await asyncio.wait(following, timeout=30)
        wrong += [f"{len(pending)} followers did not come to the end"] * bool(pending)
        ended.set()
        for task in (*pending, *done, *reading):
            task.cancel()
        await asyncio.gather(*following, *reading, return_exceptions=True)
    return wrong, worst[0]


def run(case: Case) -> None:
    cluster = case.cluster(3)
    wrong, worst = asyncio.run(play(cluster.addresses))
    case.say(f"{FOLLOWERS} followers and {READERS} readers of {EVENTS} events: the latest came after {worst:.2f} s")
    case.check(not wrong, f"{len(wrong)} times: {wrong[:3]}")
    case.check(worst < LATEST_S, f"an event came {worst:.1f} s late")


if __name__ == "__main__":
    main(run)
