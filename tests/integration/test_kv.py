"""The example state machine, in a real cluster and by itself."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kimberlite
from kimberlite import events
from kimberlite.cli.local import free_port
from kimberlite.config import from_mapping
from kimberlite.node.format import format_replica
from kimberlite.state_machine import Batch


@pytest.fixture(scope="module")
def kv() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "kv.py"
    spec = importlib.util.spec_from_file_location("kv", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def storage(settings: tuple[str, ...]) -> dict[str, object]:
    chosen: dict[str, object] = {"segment_bytes": 16 << 20}
    if "storage.unsafe=true" in settings:
        chosen["unsafe"] = True
    return chosen


def test_every_replica_arrives_at_the_same_dictionary(
    kv: ModuleType, storage: dict[str, object], tmp_path: Path
) -> None:
    commands = [["set", "colour", "blue"], ["set", "size", "7"], ["set", "colour", "green"], ["delete", "size"]]
    machines, replaced = asyncio.run(kv.run(tmp_path, commands, storage))
    assert replaced == [None, None, "blue", "7"]
    assert [machine.data for machine in machines] == [{"colour": "green"}] * 3
    assert [machine.applied for machine in machines] == [4] * 3


def test_the_dictionary_is_rebuilt_after_a_restart(kv: ModuleType, storage: dict[str, object], tmp_path: Path) -> None:
    asyncio.run(kv.run(tmp_path, [["set", f"key {number}", str(number)] for number in range(1000)], storage))
    machines, replaced = asyncio.run(kv.run(tmp_path, [["delete", "key 0"]], storage))
    assert replaced == ["0"]
    expected = {f"key {number}": str(number) for number in range(1, 1000)}
    assert [machine.data for machine in machines] == [expected] * 3


def test_a_restart_executes_only_what_came_after_the_checkpoint(
    kv: ModuleType, storage: dict[str, object], tmp_path: Path
) -> None:
    """Commands go on while the frozen copy is written; what is written is the state at its op."""
    appends = 100
    addresses = [f"127.0.0.1:{free_port(1)}"]
    cluster = {"id": "6b" * 16, "replica": 0, "addresses": addresses}
    config = from_mapping(
        {"cluster": cluster, "telemetry": {"enabled": False}, "storage": storage, "checkpoint": {"ops": 16}}
    )
    format_replica(config, tmp_path / "0")

    async def run(machine: Any, first: int, count: int) -> None:
        async with kimberlite.Node(config, tmp_path / "0", machine) as node, kimberlite.connect(addresses) as log:
            for number in range(count):
                await log.append([json.dumps(["set", f"key {first + number}", str(number)]).encode()], timeout=30)
            async with asyncio.timeout(60):
                while not node.status()["storage"]["checkpoint_op"]:  # type: ignore[index]
                    await asyncio.sleep(0.01)

    first = kv.KeyValue()
    asyncio.run(run(first, 0, appends))
    executed = []

    class Watched(kv.KeyValue):  # type: ignore[name-defined,misc]
        def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
            executed.extend(batches)
            return super().apply(batches)

    second = Watched()
    asyncio.run(run(second, appends, 1))
    assert second.applied == appends + 1
    assert 0 < len(executed) < appends
    assert {**second.data} == {**first.data, f"key {appends}": "0"}


def test_apply_snapshot_restore(kv: ModuleType) -> None:
    commands = [
        b'["set", "a", "1"]',
        b'["set", "b", "2"]',
        b'["delete", "a"]',
        b'["delete", "never there"]',
        b'["set", "b"]',
        b'{"not": "a command"}',
        b"\xff\xfe",
        b"",
    ]
    machine = kv.KeyValue()
    replies = machine.apply([Batch(events.build(commands), len(commands), 0, 1, 0)])
    assert len(replies) == 1
    assert machine.data == {"b": "2"}
    assert machine.applied == len(commands)
    image = io.BytesIO()
    machine.snapshot(image)
    assert json.loads(image.getvalue()) == [8, {"b": "2"}]
    image.seek(0)
    other = kv.KeyValue()
    other.restore(image)
    assert other.data == machine.data
    again = io.BytesIO()
    other.snapshot(again)
    assert again.getvalue() == image.getvalue()
