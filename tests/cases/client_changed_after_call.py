"""A list or buffer changed after the call gave wrong content and, to others, wrong positions. It changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from lab import Case, main

import kimberlite

SECONDS = 60
SAMPLE = True


async def use(case: Case, addresses: list[str]) -> None:
    async with kimberlite.connect(addresses, timeout=5) as log:
        await log.append([b"warm"])

        async def content(position: int, count: int) -> list[bytes]:
            return [bytes(getattr(e, "data", e)) async for e in log.read(position, limit=count)]

        events: list[Any] = [b"a", b"b"]
        buffer = bytearray(b"buffer")
        calls = [log.append(events), log.append([buffer]), log.append([b"other"])]
        events.clear()
        events.append(b"X")
        buffer[:] = b"XXXXXX"
        positions = await asyncio.gather(*calls, return_exceptions=True)
        case.check(positions == [1, 3, 4], f"the appends gave {positions}, not [1, 3, 4]")
        found = await content(1, 4)
        case.check(found == [b"a", b"b", b"buffer", b"other"], f"the log has {found}")
        # Tasks begin only in the next turn of the loop.
        events = [b"c", b"d"]
        task = asyncio.ensure_future(log.append(events))
        events[:] = [b"Y", b"Z"]
        position = await task
        found = await content(position, 2)
        case.check(found == [b"c", b"d"], f"after a task the log has {found}, not what the list held at the call")


def run(case: Case) -> None:
    cluster = case.cluster(1)
    asyncio.run(use(case, cluster.addresses))


if __name__ == "__main__":
    main(run)
