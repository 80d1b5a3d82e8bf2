"""Clients of a real cluster: what they share a request for, what a deadline means, where a name leads by now."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

import kimberlite
from kimberlite.cli import probe
from kimberlite.errors import OutcomeUnknownError, UnavailableError


def test_concurrent_appends_share_requests(start_cluster: Any, settled: Callable[[Any], None]) -> None:
    cluster = start_cluster(3)

    async def run() -> list[int]:
        async with kimberlite.connect(list(cluster.addresses)) as log:
            return list(await asyncio.gather(*(log.append([b"%d" % number, b"more"]) for number in range(2000))))

    before = probe.fetch_status(cluster.addresses[0], 5)
    positions = asyncio.run(run())
    assert positions == list(range(0, 4000, 2))
    settled(cluster)
    after = probe.fetch_status(cluster.addresses[0], 5)
    # The registration, what was there when the first request left, and what waited for it.
    assert int(str(after["op"])) - int(str(before["op"])) < 20


def signal_all(cluster: Any, number: int) -> None:
    for replica in cluster.replicas:
        os.kill(replica.pid, number)


def test_a_deadline_is_an_unknown_outcome_and_the_append_happens_at_most_once(start_cluster: Any) -> None:
    """All replicas stand still: nobody can say what becomes of the append. Its order is kept all the same."""
    cluster = start_cluster(3)

    async def run() -> list[bytes]:
        async with kimberlite.connect(list(cluster.addresses)) as log:
            assert await log.append([b"first"]) == 0
            signal_all(cluster, signal.SIGSTOP)
            try:
                with pytest.raises(OutcomeUnknownError):
                    await log.append([b"unknown"], timeout=0.5)
                with pytest.raises(UnavailableError):  # it waited behind the one under way, and never left
                    await log.append([b"never sent"], timeout=0.5)
            finally:
                signal_all(cluster, signal.SIGCONT)
            last = await log.append([b"last"], timeout=60)
            events = [event async for event in log.read(raw=True)]
            assert events[last:] == [b"last"]
            return events

    events = asyncio.run(run())
    # The request went on being repeated, so that it is before what came after it.
    assert events == [b"first", b"unknown", b"last"]


def test_a_host_name_is_resolved_again_at_every_connection(start_cluster: Any) -> None:
    """A replica moves to another address under its old name, as a container does."""
    cluster = start_cluster(1)
    replica = cluster.replicas[0]
    port = replica.address.rpartition(":")[2]
    where = ["127.0.0.1"]

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        assert host == "log.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where[0], port))]

    async def run() -> None:
        asyncio.get_running_loop().getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment]
        async with kimberlite.connect([f"log.example:{port}"]) as log:
            assert await log.append([b"here"]) == 0
            cluster.kill(0)
            where[0] = "127.0.0.2"
            replica.address = f"127.0.0.2:{port}"
            cluster.start(0)
            assert await log.append([b"there"], timeout=60) == 1
            assert [event async for event in log.read(raw=True)] == [b"here", b"there"]

    asyncio.run(run())


def test_following_goes_on_over_a_failover(start_cluster: Any, primary_of: Callable[[Any], int]) -> None:
    cluster = start_cluster(3)

    async def run() -> list[bytes]:
        seen: list[bytes] = []
        async with (
            kimberlite.connect(list(cluster.addresses)) as writer,
            kimberlite.connect(list(cluster.addresses)) as reader,
        ):

            async def follow() -> None:
                async for event in reader.follow(start=0, raw=True, timeout=60):
                    seen.append(event)
                    if event == b"end":
                        return

            follower = asyncio.create_task(follow())
            await writer.append([b"before"])
            await asyncio.to_thread(lambda: cluster.kill(primary_of(cluster)))
            await writer.append([b"after"], timeout=60)
            await writer.append([b"end"], timeout=60)
            await asyncio.wait_for(follower, 60)
        return seen

    assert asyncio.run(run()) == [b"before", b"after", b"end"]


def test_a_client_that_is_not_let_in_leaves_no_connection() -> None:
    """Something else listens there and never greets."""

    async def run() -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # to the end of the connection
            writer.close()
            ended.set_result(None)

        server = await asyncio.start_server(swallow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError):
            async with kimberlite.connect([f"127.0.0.1:{port}"], timeout=0.3):
                pass
        await asyncio.wait_for(ended, 30)
        server.close()

    asyncio.run(run())


def test_connections_are_kept_alive(start_cluster: Any) -> None:
    """A replica whose machine has gone without a word must not be waited for for ever."""
    cluster = start_cluster(1)

    async def run() -> None:
        async with kimberlite.connect(list(cluster.addresses)) as log:
            (connection,) = log._replicas.values()
            assert connection.transport is not None
            used = connection.transport.get_extra_info("socket")
            assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    asyncio.run(run())
