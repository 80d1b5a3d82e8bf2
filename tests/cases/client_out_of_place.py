"""Calls on a client that is closed, was opened before a fork or on another loop waited for ever or broke the parent's
connections. They raise UsageError at once, and the parent's client goes on."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from lab import Case, main

import kimberlite
import kimberlite.sync
from kimberlite.errors import UsageError

SECONDS = 90
SAMPLE = True
LIMIT_S = 3.0


async def refused(case: Case, what: str, call: Any) -> None:
    started = time.monotonic()
    found: Any = "nothing"
    try:
        async with asyncio.timeout(LIMIT_S):
            found = await call()
    except BaseException as error:
        found = error
    took = time.monotonic() - started
    case.check(isinstance(found, UsageError), f"{what} gave {found!r} after {took:.1f} s, not a UsageError")
    case.check(took < 0.5, f"{what} took {took:.1f} s")


def refused_here(call: Callable[[], Any]) -> str:
    """'' when a blocking call raises UsageError at once; else what it did. On a thread, as it may never return."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(LIMIT_S)
    if not found:
        return f"did not return within {LIMIT_S} s"
    took = time.monotonic() - started
    return "" if isinstance(found[0], UsageError) and took < 0.5 else f"gave {found[0]!r} after {took:.1f} s"


def in_child(look: Callable[[], str]) -> str:
    """Fork, look there, and give what was seen."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, look().encode() or b"-")
        finally:
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], 2 * LIMIT_S + 2)
    said = os.read(reading, 4096).decode() if ready else "the child said nothing"
    os.close(reading)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return "" if said == "-" else said


async def asynchronous(case: Case, addresses: list[str]) -> None:
    async def first_of(log: Any) -> Any:
        return await anext(log.read(timeout=1.0).__aiter__())

    log = kimberlite.connect(addresses, timeout=3)
    async with log:
        await log.append([b"a"])

        def elsewhere() -> str:
            try:
                with_timeout = asyncio.wait_for(log.append([b"other loop"], timeout=1.0), LIMIT_S)
                return f"gave {asyncio.run(with_timeout)!r}"
            except UsageError:
                return ""
            except BaseException as error:
                return f"raised {error!r}"

        seen = await asyncio.to_thread(elsewhere)
        case.check(not seen, f"append on another event loop {seen}")

        def child() -> str:
            # A child of its own thread and loop, as multiprocessing makes it.
            return refused_here(lambda: asyncio.run(asyncio.wait_for(log.append([b"child"], timeout=1.0), LIMIT_S)))

        seen = in_child(child)
        case.check(not seen, f"append in a forked process {seen}")
        case.check(await log.append([b"parent"], timeout=3) == 1, "the parent's client goes on")
    for what, call in (
        ("append after close", lambda: log.append([b"x"], timeout=1.0)),
        ("read after close", lambda: first_of(log)),
        ("status after close", lambda: log.status(timeout=1.0)),
        ("opening again", lambda: log.__aenter__()),
    ):
        await refused(case, what, call)


def blocking(case: Case, addresses: list[str]) -> None:
    with kimberlite.sync.connect(addresses, timeout=3) as log:
        log.append([b"b"])
        for what, call in (
            ("append", lambda: log.append([b"child"], timeout=1.0)),
            ("status", lambda: log.status(timeout=1.0)),
            ("read", lambda: next(iter(log.read(timeout=1.0)))),
        ):
            seen = in_child(lambda call=call: refused_here(call))  # type: ignore[misc]
            case.check(not seen, f"sync {what} in a forked process {seen}")
        case.check(isinstance(log.append([b"parent"], timeout=3), int), "the parent's blocking client goes on")
    for what, call in (
        ("append", lambda: log.append([b"x"], timeout=1.0)),
        ("status", lambda: log.status(timeout=1.0)),
        ("opening again", lambda: log.__enter__()),
    ):
        seen = refused_here(call)
        case.check(not seen, f"sync {what} after close {seen}")


def run(case: Case) -> None:
    cluster = case.cluster(1)
    blocking(case, cluster.addresses)
    cluster = case.cluster(1)
    asyncio.run(asynchronous(case, cluster.addresses))


if __name__ == "__main__":
    main(run)
