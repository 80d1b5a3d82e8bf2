"""The test cluster, as a test of somebody else would use it: in this process, and as processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.errors import ConfigError, StateMachineError, UsageError
from kimberlite.testing import Cluster


class Counter(kimberlite.EventLog):
    """Counts events; raises when it is told to."""

    broken = False

    def __init__(self) -> None:
        self.events = 0

    def apply(self, batches: Sequence[kimberlite.Batch]) -> Sequence[bytes]:
        if self.broken:
            raise ValueError("put in by the test")
        self.events += sum(batch.count for batch in batches)
        return [b""] * len(batches)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def counts(cluster: Cluster) -> set[int]:
    return {machine.events for machine in cluster.machines if isinstance(machine, Counter)}


def test_replicas_in_this_process() -> None:
    async def story() -> Path:
        async with Cluster(3, Counter) as cluster, cluster.connect() as log:
            assert len(cluster.addresses) == len(cluster.machines) == 3
            assert await log.append([b"a", b"b"], timeout=20) == 0
            await until(lambda: counts(cluster) == {2})
            await cluster.stop(0)
            await cluster.stop(0)  # nothing to do
            assert (cluster.machines[0], cluster.nodes[0]) == (None, None)
            assert await log.append([b"c"], timeout=20) == 2
            await cluster.start(0)
            with pytest.raises(UsageError, match="runs already"):
                await cluster.start(0)
            await cluster.wait_ready()
            await until(lambda: counts(cluster) == {3})
            with pytest.raises(UsageError, match="processes=True"):
                await cluster.kill(1)
            with pytest.raises(UsageError, match="replicas 0 to 2, not 3"):
                await cluster.stop(3)
            assert (cluster.directory / "0").is_dir()
            return cluster.directory

    assert not asyncio.run(story()).exists()


def test_a_failure_of_a_node_is_raised_at_the_end() -> None:
    async def story(takes: bool) -> None:
        async with Cluster(1, Counter) as cluster:
            machine = cluster.machines[0]
            assert isinstance(machine, Counter)
            machine.broken = True
            async with cluster.connect() as log:
                append = asyncio.create_task(log.append([b"x"], timeout=20))
                await until(lambda: cluster.failures)
                append.cancel()
            with pytest.raises(StateMachineError):
                await cluster.wait_ready()
            if takes:
                assert isinstance(cluster.failures.pop(0), StateMachineError)
                # Corrected: the same data, in the same process.
                await cluster.stop(0)
                await cluster.start(0)
                await cluster.wait_ready()
                await until(lambda: counts(cluster) == {1})

    asyncio.run(story(True))
    with pytest.raises(StateMachineError, match="put in by the test"):
        asyncio.run(story(False))


def test_data_that_is_kept(tmp_path: Path) -> None:
    async def life(position: int) -> None:
        settings = {"timing": {"heartbeat_ms": 20}, "storage": {"segment_bytes": 16 << 20}}
        async with Cluster(1, Counter, directory=tmp_path, settings=settings) as cluster, cluster.connect() as log:
            assert cluster.nodes[0] is not None
            assert cluster.nodes[0].config.timing.heartbeat_ms == 20
            assert cluster.nodes[0].config.storage.unsafe
            assert await log.append([b"x"], timeout=20) == position

    asyncio.run(life(0))
    asyncio.run(life(1))


def test_replicas_as_processes() -> None:
    async def story() -> None:
        async with Cluster(3, processes=True) as cluster, cluster.connect() as log:
            assert (cluster.machines, cluster.nodes) == ([], [])
            assert await log.append([b"a"], timeout=20) == 0
            await cluster.kill(0)
            assert await log.append([b"b"], timeout=20) == 1
            await cluster.start(0)
            with pytest.raises(UsageError, match="runs already"):
                await cluster.start(0)
            await cluster.wait_ready()
            await cluster.stop(1)
            assert [event.data async for event in log.read()] == [b"a", b"b"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"replicas": 7}, "from 1 to 6"),
        ({"replicas": True}, "from 1 to 6"),
        ({"replicas": "3"}, "from 1 to 6"),
        ({"machine": Counter, "processes": True}, "one of the two"),
        ({"machine": Counter()}, "give the class"),
        ({"settings": {"cluster": {}}}, "by itself"),
        ({"settings": {"timing": 3}}, "settings are"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Cluster(**arguments)


def test_wrong_settings_start_nothing() -> None:
    async def story() -> None:
        async with Cluster(1, settings={"timing": {"hartbeat_ms": 5}}):
            pytest.fail("started")

    with pytest.raises(ConfigError, match="did you mean"):
        asyncio.run(story())
