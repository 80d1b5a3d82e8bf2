"""The table of frames: it has every frame and every field that is ever sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite import frames
from kimberlite._fast.framing import Header as CompiledHeader
from kimberlite._fast.framing import make_header
from kimberlite.cli.local import free_port
from kimberlite.config import from_mapping
from kimberlite.errors import KimberliteError
from kimberlite.frames import Party
from kimberlite.net.transport import FrameConnection
from kimberlite.node.format import format_replica
from kimberlite.storage.layout import FRAME_HEADER
from kimberlite.types import NO_REPLICA, Command, Message
from kimberlite.vopr.network import SimNetwork
from kimberlite.vopr.run import Script, run

CLUSTER = b"f" * 16


def test_every_command_has_a_row() -> None:
    assert {command for _, command in frames.TABLE} == set(Command)


@pytest.mark.parametrize("key", frames.TABLE, ids=lambda key: f"{key[1].name} of a {key[0]}")
def test_a_row_names_fields_of_the_header(key: tuple[Party, Command]) -> None:
    row = frames.TABLE[key]
    for name, field in row.fields.items():
        assert hasattr(CompiledHeader, name), name
        assert field.meaning and not field.meaning.endswith(".")
        if field.bound is not None and field.bound.of:
            assert row.fields[field.bound.of].bound is not None, f"{name}: what bounds it has a bound itself"
    assert row.what.endswith(".")


def test_a_field_without_a_meaning_is_found() -> None:
    sent = make_header(cluster=CLUSTER, command=Command.PING, replica=1, view=2, op=3, count=4, context=b"c" * 16)
    assert frames.stray_fields(sent) == ["count", "context"]
    assert frames.stray_fields(make_header(cluster=CLUSTER, command=Command.PING, replica=1, view=2, op=3)) == []
    of_a_client = make_header(cluster=CLUSTER, command=Command.PING, replica=NO_REPLICA, op=3)
    assert frames.stray_fields(of_a_client) == ["op"], "no client sends it"


def test_commands_of_later_releases_are_not_in_use() -> None:
    assert not set(frames.COMMANDS_LATER) & {command for _, command in frames.TABLE}
    assert {11, 12, 13, 14, 15, 16, 18, 19, 30} <= set(frames.COMMANDS_LATER)
    later = make_header(cluster=CLUSTER, command=18, replica=1, op=3)
    assert frames.stray_fields(later) == ["op"]
    assert repr(Message(later)).startswith("<command 18 from 1 ")


def test_room_of_the_header_is_where_it_is_said_to_be() -> None:
    for room in frames.ROOM:
        if room.where.startswith("every header"):
            field = next(field for field in FRAME_HEADER.fields if field.name == room.name)
            assert room.where.endswith(f"byte {field.offset}") and room.size == field.size
        else:
            names = room.where.split(", ")[0].split(" ")
            assert names[0] in Command.__members__, room.where


class Strays:
    """Fields without a meaning in what was sent, and how many frames of each kind were."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()
        self.sent: Counter[tuple[Party, Command]] = Counter()

    def look(self, message: Message) -> None:
        command = Command(message.header.command)
        self.sent[frames.party(message.header), command] += 1
        self.found |= {(command.name, field) for field in frames.stray_fields(message.header)}


def test_the_simulator_sends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    strays, send = Strays(), SimNetwork.send

    def watched(self: SimNetwork, source: Any, destination: Any, message: Message) -> None:
        strays.look(message)
        send(self, source, destination, message)

    monkeypatch.setattr(SimNetwork, "send", watched)
    for seed in range(6):
        assert run(Script(seed)).check == ""
    assert run(Script(1, 20, {"birth": True})).check == ""
    assert not strays.found
    of_the_core = {key for key, row in frames.TABLE.items() if "checkpoint_op" in row.fields}
    assert of_the_core <= set(strays.sent)


async def _refused(call: Any) -> None:
    with pytest.raises(KimberliteError):
        await call


def test_nodes_and_clients_send_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    strays, send = Strays(), FrameConnection.send

    def watched(self: FrameConnection, message: Message) -> None:
        strays.look(message)
        send(self, message)

    monkeypatch.setattr(FrameConnection, "send", watched)
    first = free_port(3)
    addresses = [f"127.0.0.1:{first + index}" for index in range(2)]

    async def story() -> None:
        nodes = []
        for index in range(2):
            cluster = {"id": "6b" * 16, "replica": index, "addresses": addresses, "peer_port_offset": 1000}
            config = from_mapping({"cluster": cluster, "telemetry": {"enabled": False}})
            format_replica(config, tmp_path / str(index))
            nodes.append(kimberlite.Node(config, tmp_path / str(index)))
        async with nodes[0], nodes[1], kimberlite.connect(addresses, timeout=30.0) as log:
            await log.append([b"a", b"b"])
            assert [event.data async for event in log.read()] == [b"a", b"b"]
            following = log.follow("end")
            step = asyncio.ensure_future(anext(following))
            await log.append([b"c"])
            assert (await step).data == b"c"
            assert await log.end() == 3
            await log.status()
            await _refused(anext(log.read(9)))

    asyncio.run(story())
    assert not strays.found
    assert {
        key for key in frames.TABLE if key[1] >= Command.HELLO and key[1] not in (Command.PING, Command.PONG)
    } <= set(strays.sent)
