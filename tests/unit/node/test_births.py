"""Replicas that are born, in this process: data of the first release, one that does not come, two that do not agree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from lab.old_data import make_old_data

import kimberlite
from kimberlite.cli.local import free_port
from kimberlite.config import Config, from_mapping
from kimberlite.errors import KimberliteError, NotMemberError
from kimberlite.node import birthing
from kimberlite.node.format import format_replica, format_replicas
from kimberlite.node.identity import draft_of, unborn
from kimberlite.node.node import Node
from kimberlite.storage import birth, superblock
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import VIEW_BORN, ZERO16, Birth
from kimberlite.vsr import record as records

EVENTS = [b"event %d" % number for number in range(5)]
LIMIT_S = 30.0


def configs_of(count: int = 3, **sections: dict[str, object]) -> list[Config]:
    port = free_port(count)
    addresses = [f"127.0.0.1:{port + index}" for index in range(count)]
    common = {
        "telemetry": {"enabled": False},
        "storage": {"segment_bytes": 8 << 20, "unsafe": True, "free_bytes_min": 0},
        **sections,
    }
    return [
        from_mapping({"cluster": {"id": "6d" * 16, "replica": index, "addresses": addresses}, **common})
        for index in range(count)
    ]


class Nodes:
    """Those that run, by index, and why others have ended."""

    def __init__(self, configs: list[Config], place: Path) -> None:
        self.configs = configs
        self.place = place
        self.running: dict[int, Node] = {}
        self.failures: dict[int, KimberliteError] = {}

    async def start(self, *indexes: int) -> None:
        for index in indexes:

            def ended(error: KimberliteError, index: int = index) -> None:
                self.failures[index] = error

            node = Node(self.configs[index], self.place / str(index), on_fatal=ended)
            try:
                await node.__aenter__()
            except KimberliteError as error:  # the others were quicker than the rest of its start
                self.failures[index] = error
            else:
                self.running[index] = node

    async def stop(self, *indexes: int) -> None:
        for index in indexes:
            await self.running.pop(index).__aexit__(None, None, None)

    def status(self, index: int) -> dict[str, Any]:
        return self.running[index].status()

    def are_normal(self, indexes: Iterable[int]) -> bool:
        found = [self.status(index) for index in indexes]
        return all(one["status"] == "normal" for one in found) and any(one["can_commit"] for one in found)

    async def read(self) -> list[bytes]:
        async with kimberlite.connect(list(self.configs[0].cluster.addresses), timeout=LIMIT_S) as log:
            return [event async for event in log.read(raw=True)]

    async def append(self, event: bytes) -> None:
        async with kimberlite.connect(list(self.configs[0].cluster.addresses), timeout=LIMIT_S) as log:
            await log.append([event], timeout=LIMIT_S)


@contextlib.asynccontextmanager
async def nodes(configs: list[Config], place: Path) -> AsyncIterator[Nodes]:
    found = Nodes(configs, place)
    try:
        yield found
    finally:
        await found.stop(*list(found.running))
        await asyncio.sleep(0.05)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def version_of(data: Path) -> int:
    return int.from_bytes((data / superblock.NAME).read_bytes()[36:40], "little")


def change(config: Config, data: Path, what: Callable[[FileDisk, Config, bytes], object]) -> None:
    disk = FileDisk(data, unsafe=True)
    what(disk, config, b"%d" % config.cluster.replica * 16)
    disk.close()


def without_2(disk: FileDisk, config: Config, own: bytes) -> None:
    birthing.without(disk, config, [2], own)


def test_data_of_the_first_release_is_born_when_all_have_met(tmp_path: Path) -> None:
    configs = configs_of()
    for index, config in enumerate(configs):
        make_old_data(config, tmp_path / str(index), EVENTS)

    async def story() -> None:
        async with nodes(configs, tmp_path) as cluster:
            await cluster.start(0, 1)
            await until(lambda: "replica 2" in cluster.status(0)["unhealthy"])
            assert {cluster.status(index)["status"] for index in (0, 1)} == {"unborn"}
            assert version_of(tmp_path / "0") == 2  # the first release could still be started
            await cluster.start(2)
            await until(lambda: cluster.are_normal(range(3)))
            assert await cluster.read() == EVENTS
            await cluster.append(b"more")
            for index in range(3):
                store = cluster.running[index].parts.store
                assert store.identity.birth is Birth.FORMED
                assert store.view_state.view >= VIEW_BORN
                assert not (tmp_path / str(index) / birth.NAME).exists()
            await cluster.stop(0, 1, 2)
            await cluster.start(1, 2)  # once born, a majority suffices
            await until(lambda: cluster.are_normal((1, 2)))
            assert await cluster.read() == [*EVENTS, b"more"]

    asyncio.run(story())


def test_the_others_go_on_without_one_that_does_not_come_and_it_is_no_member_then(tmp_path: Path) -> None:
    configs = configs_of()
    for index, config in enumerate(configs):
        make_old_data(config, tmp_path / str(index), EVENTS)
    for index in (0, 1):
        change(
            configs[index], tmp_path / str(index), lambda disk, config, own: birthing.without(disk, config, [2], own)
        )

    async def story() -> None:
        async with nodes(configs, tmp_path) as cluster:
            await cluster.start(0, 1)
            await until(lambda: cluster.are_normal((0, 1)))
            assert await cluster.read() == EVENTS
            await cluster.append(b"without it")
            before = (tmp_path / "2" / superblock.NAME).read_bytes()
            await cluster.start(2)
            await until(lambda: cluster.failures)
            assert isinstance(cluster.failures[2], NotMemberError)
            assert (tmp_path / "2" / superblock.NAME).read_bytes() == before
            assert await cluster.read() == [*EVENTS, b"without it"]

    asyncio.run(story())


def bind_to_somebody_gone(disk: FileDisk, config: Config, own: bytes) -> None:
    """As if it had met replica 1 when that had other data."""
    draft = records.bind(draft_of(config, ZERO16), 1, b"g" * 16)
    draft = records.bind(draft, 2, b"2" * 16)
    birth.write(disk, SuperblockFile(disk), unborn(draft, 0, own))


def test_who_has_bound_itself_to_a_disk_that_is_gone_begins_anew_with_all(tmp_path: Path) -> None:
    configs = configs_of()
    for index, config in enumerate(configs):
        make_old_data(config, tmp_path / str(index), EVENTS)
    change(configs[0], tmp_path / "0", bind_to_somebody_gone)

    async def story() -> None:
        async with nodes(configs, tmp_path) as cluster:
            await cluster.start(0, 1, 2)
            bound = [cluster.running[index].parts.store for index in (1, 2)]
            await until(lambda: all(store.identity.birth is Birth.BOUND for store in bound))
            assert {cluster.status(index)["status"] for index in range(3)} == {"unborn"}
            await cluster.stop(0, 1, 2)
            for index, config in enumerate(configs):
                change(config, tmp_path / str(index), birthing.again)
            await cluster.start(0, 1, 2)
            await until(lambda: cluster.are_normal(range(3)))
            assert await cluster.read() == EVENTS

    asyncio.run(story())


def test_replicas_of_different_origins_refuse_each_other(tmp_path: Path) -> None:
    """As those that were restored from different backups."""
    configs = configs_of()
    for index, config in enumerate(configs):
        origin = b"o" * 16 if index < 2 else b"p" * 16
        format_replica(config, tmp_path / str(index), unborn(draft_of(config, origin), index, b"%d" % index * 16))

    async def story() -> None:
        async with nodes(configs, tmp_path) as cluster:
            await cluster.start(0, 1, 2)
            await until(
                lambda: all("bound to something else" in cluster.status(index)["unhealthy"] for index in range(3))
            )
            assert {cluster.status(index)["status"] for index in range(3)} == {"unborn"}
            assert not cluster.failures

    asyncio.run(story())


def test_what_the_replicas_have_agreed_on_counts_and_not_the_configuration(tmp_path: Path) -> None:
    configs = configs_of(1, limits={"sessions_max": 7})
    format_replicas(configs, [tmp_path / "0"])
    other = from_mapping(
        {
            "cluster": {"id": "6d" * 16, "replica": 0, "addresses": list(configs[0].cluster.addresses)},
            "telemetry": {"enabled": False},
            "storage": {"segment_bytes": 8 << 20, "unsafe": True, "free_bytes_min": 0},
            "limits": {"sessions_max": 9},
        }
    )

    async def story() -> None:
        async with nodes([other], tmp_path) as cluster:
            await cluster.start(0)
            await until(lambda: cluster.are_normal([0]))
            assert cluster.status(0)["sessions"]["limit"] == 7

    asyncio.run(story())
