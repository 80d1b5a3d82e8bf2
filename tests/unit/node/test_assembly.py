"""Putting a replica together: wherever that fails, nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.cli.local import free_port
from kimberlite.config import Config, from_mapping
from kimberlite.node import assembly
from kimberlite.node.format import format_replica
from kimberlite.node.node import Node
from kimberlite.telemetry import region


class Broken(Exception):
    pass


def broken(*_: object, **__: object) -> Any:
    raise Broken


async def broken_start(*_: object) -> None:
    raise Broken


PLACES = {
    "share of descriptors": (assembly.descriptors, "share_out", broken),
    "store": (assembly, "Store", broken),
    "identity": (assembly, "check_identity", broken),
    "metrics": (assembly, "open_metrics", broken),
    "state machine": (assembly, "restore", broken),
    "core": (assembly, "Replica", broken),
    "peers": (assembly, "PeerNetwork", broken),
    "listener": (assembly, "ClientServer", broken),
    "driver": (assembly, "Driver", broken),
    "scrubber": (assembly, "Scrubber", broken),
    "gauges": (assembly, "Gauges", broken),
    "listening to clients": (assembly.ClientServer, "start", broken_start),
    "listening to peers": (assembly.PeerNetwork, "start", broken_start),
}


def config_of(directory: Path, telemetry: bool, record: bool = True) -> Config:
    port = free_port(1)
    document: dict[str, Any] = {
        "cluster": {"id": "6c" * 16, "replica": 0, "addresses": [f"127.0.0.1:{port}"]},
        "telemetry": {"enabled": telemetry, "record": record, "listen": "127.0.0.1:0"},
        "storage": {"segment_bytes": 8 << 20, "unsafe": True, "free_bytes_min": 0},
    }
    config = from_mapping(document)
    format_replica(config, directory)
    return config


@pytest.mark.parametrize("telemetry", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_start_that_fails_leaves_nothing_behind(
    place: str, telemetry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "0", telemetry)

    async def story() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(*PLACES[place])  # type: ignore[arg-type]
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(Broken):
                await Node(config, tmp_path / "0").__aenter__()
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before
        assert not any(path.exists() for path in region.paths(tmp_path / "0"))
        assert len(asyncio.all_tasks()) == 1
        async with Node(config, tmp_path / "0") as started:  # the lock of the data is free
            assert started.status()["replica"] == 0

    asyncio.run(story())


def test_a_replica_that_records_nothing_serves_nothing_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "0", telemetry=True, record=False)

    def read() -> int:
        raise AssertionError("the clock was read for telemetry")

    monkeypatch.setattr("kimberlite.node.measured.now_ns", read)

    async def story() -> None:
        async with Node(config, tmp_path / "0") as node:
            async with asyncio.timeout(30), kimberlite.connect(list(config.cluster.addresses)) as log:
                assert await log.append([b"one", b"two"]) == 0
                assert await log.end() == 2
            node.parts.gauges.update()
            assert not any(path.exists() for path in region.paths(tmp_path / "0"))
            assert node.status()["telemetry"] == {"problem": ""}

    asyncio.run(story())


def test_what_is_held_in_memory_is_told_by_owner(tmp_path: Path) -> None:
    config = config_of(tmp_path / "0", telemetry=False)

    def values(node: Node) -> dict[str, object]:
        node.parts.gauges.look_at_memory()
        written = node.recorder.region
        return {series.name: value for series, value in zip(written.series, written.read(), strict=True)}

    async def story() -> None:
        async with Node(config, tmp_path / "0") as node:
            assert values(node)['memory_held{owner="clients"}'] == 0
            async with asyncio.timeout(30), kimberlite.connect(list(config.cluster.addresses)) as log:
                await log.append([b"x" * 5000])
                found = values(node)
                bodies = node.parts.driver.core.state.log.bodies
                assert found['memory_held{owner="entries"}'] == sum(one.header.size for one in bodies.values()) > 5000
                assert found['memory_held{owner="clients"}'] >= 5000  # the receive buffer that it came in
                assert (found['objects{kind="entries"}'], found['objects{kind="sessions"}']) == (len(bodies), 1)
                assert found["memory_blocks"] > 10_000

    asyncio.run(story())
