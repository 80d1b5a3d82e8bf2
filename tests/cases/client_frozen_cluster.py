"""A read took 7 s for a timeout of 1 with every replica frozen, others never ended. Now: timeout + 0.5 s."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from lab import Case, main

import kimberlite
import kimberlite.sync
from kimberlite.errors import NetworkError, OutcomeUnknownError

SECONDS = 120
SAMPLE = True
SLACK_S = 0.5


async def timed(case: Case, what: str, call: Any, timeout: float) -> None:
    started = time.monotonic()
    found: Any
    try:
        async with asyncio.timeout(timeout + 6):
            found = await call()
    except BaseException as error:
        found = error
    took = time.monotonic() - started
    case.check(isinstance(found, NetworkError | OutcomeUnknownError), f"{what} gave {found!r}")
    case.check(took < timeout + SLACK_S, f"{what} with timeout={timeout} took {took:.2f} s")
    case.say(f"{what} (timeout {timeout} s): {type(found).__name__} after {took:.2f} s")


async def use(case: Case, cluster: Any) -> None:
    async def first_of(events: Any) -> Any:
        return await anext(events.__aiter__())

    async def connecting() -> None:
        async with kimberlite.connect(cluster.addresses, timeout=1.0):
            pass

    async with kimberlite.connect(cluster.addresses) as log:
        position = await log.append([b"a"])
        for index in range(cluster.size):
            cluster.pause(index)
        try:
            for timeout in (0.2, 1.0):
                for what, call in (
                    ("append", lambda t=timeout: log.append([b"b"], timeout=t)),
                    ("read", lambda t=timeout: first_of(log.read(0, timeout=t))),
                    ("status", lambda t=timeout: log.status(timeout=t)),
                    ("follow", lambda t=timeout: first_of(log.follow(position + 1000, timeout=t))),
                ):
                    await timed(case, what, call, timeout)
            await timed(case, "connect", connecting, 1.0)
        finally:
            for index in range(cluster.size):
                cluster.resume(index)
        case.check(isinstance(await log.append([b"after"], timeout=20), int), "it goes on when the replicas do")


def blocking(case: Case, cluster: Any) -> None:
    """Threads in the midst of calls when another one closes the client."""
    ended: dict[str, tuple[str, float]] = {}

    def call(name: str, function: Any) -> None:
        started = time.monotonic()
        try:
            result = repr(function())
        except BaseException as error:
            result = type(error).__name__
        ended[name] = result, time.monotonic() - started

    log = kimberlite.sync.connect(cluster.addresses, timeout=5)
    with log:
        log.append([b"c"])
        for index in range(cluster.size):
            cluster.pause(index)
        threads = [
            threading.Thread(target=call, args=arguments, daemon=True)
            for arguments in (
                ("append", lambda: log.append([b"d"])),
                ("another append", lambda: log.append([b"e"])),
                ("read", lambda: next(iter(log.read(0)))),
                ("status", log.status),
            )
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        started = time.monotonic()
    took = time.monotonic() - started
    for thread in threads:
        thread.join(1.0)
    for index in range(cluster.size):
        cluster.resume(index)
    case.check(took < 1.5, f"close took {took:.1f} s")
    waiting = [
        name for name, _ in (("append", 0), ("another append", 0), ("read", 0), ("status", 0)) if name not in ended
    ]
    case.check(not waiting, f"threads that went on waiting after close: {waiting}")
    case.say(f"calls of threads during close: {ended}")


def run(case: Case) -> None:
    cluster = case.cluster(3)
    asyncio.run(use(case, cluster))
    blocking(case, cluster)


if __name__ == "__main__":
    main(run)
