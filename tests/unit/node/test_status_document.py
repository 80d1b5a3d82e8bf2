"""The status document of a real node has the fields that docs/status.md describes, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kimberlite import config as configuration
from kimberlite.cli.fields import FIELDS
from kimberlite.cli.local import free_port
from kimberlite.node.format import format_replica
from kimberlite.node.metrics import info
from kimberlite.node.node import Node

OF_TELEMETRY = {f"telemetry.{name}" for name in ("address", "running", "pid", "restarts")}


def names(document: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all fields, as FIELDS writes them; not what is below a name that stands there by itself."""
    for key, value in document.items():
        name = prefix + key
        if isinstance(value, dict) and name not in FIELDS:
            yield from names(value, name + ".")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from names(value[0], name + "[].")
        else:
            yield name


@pytest.mark.parametrize("telemetry", [False, True])
def test_every_field_is_described(telemetry: bool, tmp_path: Path) -> None:
    port = free_port(3)
    addresses = [f"127.0.0.1:{port + index}" for index in range(3)]
    document: dict[str, object] = {"cluster": {"id": "ab" * 16, "replica": 0, "addresses": addresses}}
    for setting in (
        "storage.unsafe=true",
        "storage.segment_bytes=8388608",
        'telemetry.listen="127.0.0.1:0"',
        f"telemetry.enabled={str(telemetry).lower()}",
    ):
        configuration.apply_override(document, setting)
    config = configuration.from_mapping(document)
    format_replica(config, tmp_path / "0")

    async def said() -> tuple[dict[str, Any], dict[str, Any]]:
        async with Node(config, tmp_path / "0") as node:
            return node.status(), info(config, node.parts.disk, node.parts.store)

    document, told = asyncio.run(said())
    assert document["contact_s"] * 1000 == told["contact_ms"], "readiness and can_commit mean the same silence"
    found = set(names(document))
    assert found == set(FIELDS) - (set() if telemetry else OF_TELEMETRY)
