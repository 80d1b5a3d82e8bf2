"""A primary that ends is replaced at once, one that only seems to end is not replaced for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.cli import probe
from kimberlite.cli.local import PEER_PORT_OFFSET, LocalCluster, free_port

FLAP_S = 0.1


def primary_of(cluster: Any) -> int:
    (leading,) = [answer["replica"] for answer in probe.fetch_all(cluster.addresses, 5) if answer["role"] == "primary"]
    return int(leading)


def views(cluster: Any, replicas: list[int]) -> list[int]:
    return [int(str(probe.fetch_status(cluster.addresses[replica], 5)["view"])) for replica in replicas]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_goes_on_with_the_next_primary(start_cluster: Any, number: int) -> None:
    """One append is under way all the time: none is lost, none is there twice, and none ends in an error."""
    cluster = start_cluster(3)
    victim = primary_of(cluster)
    process = cluster.replicas[victim].process

    async def run() -> list[bytes]:
        async with kimberlite.connect(list(cluster.addresses)) as log:
            for count in range(600):
                if count == 200:
                    os.kill(process.pid, number)
                await log.append([b"%d" % count], timeout=30)
            return [event async for event in log.read(raw=True)]

    try:
        assert asyncio.run(run()) == [b"%d" % count for count in range(600)]
    finally:
        if number == signal.SIGSTOP:
            os.kill(process.pid, signal.SIGCONT)
    others = [answer for answer in probe.fetch_all(cluster.addresses, 5) if isinstance(answer, dict)]
    assert [answer["replica"] for answer in others if answer["role"] == "primary"] not in ([], [victim])


class Proxy:
    """In front of a listener: accepts and refuses by turns."""

    def __init__(self, target: tuple[str, int], port: int) -> None:
        self._target = target
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    async def accept(self) -> None:
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", self._port)

    async def refuse(self) -> None:
        """The listener goes, and with it what it has accepted."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        await self.refuse()
        await asyncio.gather(*self._pumps)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            onward, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(back)
        self._pumps |= {asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(onward, writer))}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.whole)])
def test_a_listener_that_comes_and_goes_changes_the_view_once(
    seconds: float, tmp_path: Path, settings: tuple[str, ...], settled: Callable[[Any], None]
) -> None:
    """The peers of the primary reach it through a listener that refuses and accepts by turns, for so long."""
    with LocalCluster(tmp_path, settings=(*settings, "timing.suspect_min_ms=2000")) as cluster:
        cluster.prepare()
        real, port = cluster.replicas[0].address, free_port(1)
        host, own = real.split(":")

        async def run() -> tuple[list[int], list[int]]:
            proxy = Proxy((host, int(own) + PEER_PORT_OFFSET), port + PEER_PORT_OFFSET)
            await proxy.accept()
            cluster.start(0)
            cluster.replicas[0].address = f"127.0.0.1:{port}"
            for replica in (1, 2):
                cluster.start(replica)
            cluster.replicas[0].address = real
            await asyncio.to_thread(cluster.wait_ready, 60)
            await asyncio.to_thread(settled, cluster)
            while await asyncio.to_thread(primary_of, cluster) != 0:
                # Whoever leads stands down until it is the one behind the proxy.
                leading = await asyncio.to_thread(primary_of, cluster)
                os.kill(cluster.replicas[leading].process.pid, signal.SIGTERM)
                cluster.replicas[leading].process.wait()
                cluster.replicas[leading].forget()
                cluster.replicas[0].address = f"127.0.0.1:{port}"
                cluster.start(leading)
                cluster.replicas[0].address = real
                await asyncio.to_thread(cluster.wait_ready, 60)
            before = await asyncio.to_thread(views, cluster, [0, 1, 2])
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await proxy.refuse()
                await asyncio.sleep(FLAP_S)
                await proxy.accept()
                await asyncio.sleep(FLAP_S)
            await asyncio.to_thread(settled, cluster)
            after = await asyncio.to_thread(views, cluster, [0, 1, 2])
            await proxy.close()
            return before, after

        before, after = asyncio.run(run())
        assert max(after) - max(before) <= 1, (before, after)
