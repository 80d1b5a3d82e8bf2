"""The example state machine, in a real cluster and by itself."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import pytest

from kimberlite import events
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
    machines = asyncio.run(kv.run(tmp_path, commands, storage))
    assert [machine.data for machine in machines] == [{"colour": "green"}] * 3
    assert [machine.applied for machine in machines] == [4] * 3


def test_the_dictionary_is_rebuilt_after_a_restart(kv: ModuleType, storage: dict[str, object], tmp_path: Path) -> None:
    asyncio.run(kv.run(tmp_path, [["set", f"key {number}", str(number)] for number in range(1000)], storage))
    machines = asyncio.run(kv.run(tmp_path, [["delete", "key 0"]], storage))
    expected = {f"key {number}": str(number) for number in range(1, 1000)}
    assert [machine.data for machine in machines] == [expected] * 3


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
