"""A str among concurrent appends made all of them wait for ever. A wrong argument fails alone, at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from lab import Case, main

import kimberlite
from kimberlite.errors import UsageError

SECONDS = 60
SAMPLE = True

WRONG: list[Any] = [
    "text",
    b"bytes",
    ["text"],
    [None],
    [1],
    [[b"x"]],
    [],
    iter([]),
    None,
    [memoryview(b"abcd").cast("I")],
]
TIMEOUTS: list[Any] = [float("nan"), float("inf"), -1, 1 << 64, "5"]


async def outcome(call: Any, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """What a call gives or raises, and after how long."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(8):
            result = await call(*arguments, **options)
    except BaseException as error:
        result = error
    return result, time.monotonic() - started


async def use(case: Case, addresses: list[str]) -> None:
    async with kimberlite.connect(addresses, timeout=3) as log:
        await log.append([b"first"])
        for wrong in WRONG:
            name = f"{wrong!r:.40}"
            before, bad, after = await asyncio.gather(
                outcome(log.append, [b"before"]), outcome(log.append, wrong), outcome(log.append, [b"after"])
            )
            case.check(
                isinstance(before[0], int) and isinstance(after[0], int),
                f"beside append({name}) others gave {before[0]!r} and {after[0]!r}",
            )
            case.check(isinstance(bad[0], TypeError | UsageError), f"append({name}) gave {bad[0]!r}")
            case.check(bad[1] < 1, f"append({name}) took {bad[1]:.1f} s")
        for timeout in TIMEOUTS:
            found, took = await outcome(log.append, [b"timeout"], timeout=timeout)
            case.check(isinstance(found, TypeError | UsageError), f"append(timeout={timeout!r}) gave {found!r}")
            case.check(took < 1, f"append(timeout={timeout!r}) took {took:.1f} s")


def run(case: Case) -> None:
    cluster = case.cluster(1)
    asyncio.run(use(case, cluster.addresses))


if __name__ == "__main__":
    main(run)
