"""After `close` a read took its whole timeout, and longer, to say so. A client that is closed, on another event loop,
or in a forked process says so at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

from lab import Case, main

import kimberlite
from kimberlite.errors import UsageError

SECONDS = 60
SAMPLE = True
AT_ONCE_S = 0.3


def calls_of(log: kimberlite.Log) -> list[tuple[str, Callable[[], Coroutine[Any, Any, Any]]]]:
    async def read() -> Any:
        return await log.read(timeout=1.0).__anext__()

    async def follow() -> Any:
        return await log.follow(0, timeout=1.0).__anext__()

    return [("read", read), ("follow", follow), ("status", lambda: log.status(timeout=1.0))]


async def refusals(log: kimberlite.Log) -> list[str]:
    """What is wrong with how the calls end."""
    wrong = []
    for name, call in calls_of(log):
        began = time.monotonic()
        try:
            result = repr(await asyncio.wait_for(call(), 15))
        except UsageError:
            result = ""
        except Exception as error:
            result = repr(error)
        took = time.monotonic() - began
        if result or took > AT_ONCE_S:
            wrong.append(f"{name}: {result or 'UsageError'} after {took:.1f} s")
    return wrong


def in_fork(log: kimberlite.Log) -> int:
    child = os.fork()
    if not child:
        os._exit(1 if asyncio.run(refusals(log)) else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(case: Case) -> None:
    cluster = case.cluster(1)
    cluster.append([b"a"])
    kept: list[kimberlite.Log] = []

    async def play() -> list[str]:
        async with kimberlite.connect(cluster.addresses) as log:
            kept.append(log)
            elsewhere = await asyncio.to_thread(lambda: asyncio.run(refusals(log)))
            case.check(not elsewhere, f"on another event loop: {elsewhere}")
        return await refusals(log)

    closed = asyncio.run(play())
    case.check(not closed, f"closed: {closed}")
    after = asyncio.run(refusals(kept[0]))
    case.check(not after, f"closed, on another event loop: {after}")
    opened = kimberlite.sync.connect(cluster.addresses)
    with opened:
        child = os.fork()
        if not child:
            try:
                next(opened.read(timeout=1.0))
            except UsageError:
                os._exit(0)
            os._exit(1)
        deadline = time.monotonic() + 5
        while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.05)
        if not done[0]:
            os.kill(child, 9)
            os.waitpid(child, 0)
        case.check(
            done[0] and os.waitstatus_to_exitcode(done[1]) == 0, "a forked process read, or waited for more than 5 s"
        )


if __name__ == "__main__":
    main(run)
