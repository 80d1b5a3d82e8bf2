"""What type checkers say of a program that uses the clients. Checked by `make lint`, never run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, assert_type

import kimberlite
import kimberlite.sync
from kimberlite import Event
from kimberlite.client.reading import Events


async def clients(addresses: list[str], switch: bool) -> None:
    async with kimberlite.connect(addresses, cluster="ab" * 16, timeout=5.0) as log:
        assert_type(log, kimberlite.Log)
        assert_type(await log.append([b"a", bytearray(b"b"), memoryview(b"c")]), int)
        assert_type(await log.append_batch(kimberlite.events.build([b"a"]), 1, timeout=1), int)
        assert_type(await log.apply([b"a"], timeout=1.0), bytes)
        assert_type(await log.end(), int)
        assert_type(await log.status(), dict[str, Any])
        async with asyncio.TaskGroup() as group:
            assert_type(group.create_task(log.append([b"a"])), "asyncio.Task[int]")

        assert_type(log.read(), Events[Event])
        assert_type(log.read(5, limit=2, raw=False), Events[Event])
        assert_type(log.read(last=3, raw=True), Events[bytes])
        assert_type(log.read(raw=switch), Events[Event] | Events[bytes])
        assert_type(log.follow(start="end"), Events[Event])
        assert_type(log.follow(last=3, raw=True, timeout=1.0), Events[bytes])
        assert_type(log.follow(raw=switch), Events[Event] | Events[bytes])
        async for event in log.read():
            assert_type(event, Event)
            assert_type(event.data, bytes)
            assert_type(event.position, int)
            assert_type(event.timestamp, int)
        events = log.follow(7, raw=True)
        assert_type(await anext(events), bytes)
        assert_type(await asyncio.wait_for(anext(events), 1.0), bytes)
        await events.aclose()
        async for position, count, _ in log.read_batches(start="end", follow=True):
            assert_type((position, count), tuple[int, int])


def blocking(addresses: list[str], switch: bool) -> None:
    with kimberlite.sync.connect(addresses, timeout=5.0, request_bytes_max=1 << 20, events_max=10) as log:
        assert_type(log.append([b"a"]), int)
        assert_type(log.apply([b"a"]), bytes)
        assert_type(log.end(), int)
        assert_type(log.read(), Iterator[Event])
        assert_type(log.read(last=3, raw=True), Iterator[bytes])
        assert_type(log.read(raw=switch), Iterator[Event] | Iterator[bytes])
        assert_type(next(log.follow("end")), Event)
        assert_type(next(log.follow(raw=True)), bytes)
        for position, count, _ in log.read_batches():
            assert_type((position, count), tuple[int, int])


async def refused(log: kimberlite.Log, addresses: list[str]) -> None:
    """Each line is wrong: the checkers say if one is not."""
    kimberlite.connect(addresses, retries=3)  # type: ignore[call-arg]
    kimberlite.sync.connect(addresses, retries=3)  # type: ignore[call-arg]
    kimberlite.conect(addresses)  # type: ignore[attr-defined]
    await log.append("text")  # type: ignore[arg-type]
    await log.append([1])  # type: ignore[list-item]
    log.read(start="end")  # type: ignore[call-overload]
    log.follow(start="begin")  # type: ignore[call-overload]
    async for event in log.read():
        event.decode()  # type: ignore[attr-defined]
        event.position = 5  # type: ignore[misc]
