"""Of 640 appends of more clients than sessions 228 failed. What was surely not executed is sent again by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from lab import Case, main

import kimberlite

SECONDS = 90
SAMPLE = True
SESSIONS, CLIENTS, ROUNDS = 16, 40, 8


async def use(case: Case, addresses: list[str]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(kimberlite.connect(addresses, timeout=20)) for _ in range(CLIENTS)]
        outcomes: Counter[str] = Counter()
        positions: list[int] = []

        async def work(number: int) -> None:
            for turn in range(ROUNDS):
                try:
                    positions.append(await logs[number].append([b"%d-%d" % (number, turn)], timeout=20))
                    outcomes["appended"] += 1
                except kimberlite.errors.KimberliteError as error:
                    outcomes[type(error).__name__] += 1

        await asyncio.gather(*map(work, range(CLIENTS)))
        case.say(f"{SESSIONS} sessions, {CLIENTS} clients: {dict(outcomes)}")
        case.check(outcomes["appended"] == CLIENTS * ROUNDS, f"of {CLIENTS * ROUNDS} appends: {dict(outcomes)}")
        events = [bytes(getattr(event, "data", event)) async for event in logs[0].read()]
        case.check(len(set(events)) == len(events) == CLIENTS * ROUNDS, f"{len(events)} events in the log")
        case.check(sorted(positions) == list(range(len(events))), "each append learned its own position")


def run(case: Case) -> None:
    cluster = case.cluster(3, f"limits.sessions_max={SESSIONS}")
    asyncio.run(use(case, cluster.addresses))


if __name__ == "__main__":
    main(run)
