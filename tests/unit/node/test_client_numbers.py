"""No number in a frame of a client does more than give that client an answer in words: see vsr/bounds.py.

Every numeric field of every frame that a client may send, at values that no client has a use for. Afterwards the same
replica serves others as before.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from client_side import Client, Node, batch, connect, run

from kimberlite.net import READ_WAIT
from kimberlite.node import server as server_module
from kimberlite.types import Command, Operation, Reason
from kimberlite.vsr import bounds

SIZES = {
    **dict.fromkeys(("view", "op", "commit", "session", "request", "timestamp", "position"), 64),
    **dict.fromkeys(("log_view", "checkpoint_op", "nonce"), 64),
    **dict.fromkeys(("epoch", "count", "latency_us"), 32),
    "reason": 16,
    **dict.fromkeys(("operation", "flags"), 8),
}
VALUES = [(field, value) for field, bits in SIZES.items() for value in ((1 << bits) - 1, 1 << (bits - 1))]
EVENTS = [b"first", b"second", b"third"]
each_value = pytest.mark.parametrize(("field", "value"), VALUES, ids=lambda value: str(value))


async def served_as_before(node: Node) -> None:
    """Somebody else is greeted, reads, and is told the status."""
    other = await connect(node, b"o" * 16)
    other.send(Command.READ, position=1)
    answer = await other.answer()
    assert (answer.header.command, answer.header.count, answer.body) == (Command.READ_REPLY, 2, batch(*EVENTS[1:]))
    other.send(Command.STATUS)
    assert (await other.answer()).header.command == Command.STATUS_REPLY
    assert node.server.connections <= 2


async def answered(client: Client) -> Command | None:
    """What the next frame is; None for the end of the connection."""
    try:
        answer = await client.answer()
    except asyncio.IncompleteReadError:
        return None
    if answer.header.command == Command.REJECT:
        assert answer.header.reason in set(Reason)
    return Command(answer.header.command)


@each_value
@pytest.mark.parametrize("command", [Command.READ, Command.STATUS, Command.HELLO])
def test_a_frame_of_a_greeted_client(command: Command, field: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "READ_WAIT_MAX_NS", 1_000_000)
    expected = {
        Command.READ: {Command.READ_REPLY, Command.REJECT},
        Command.STATUS: {Command.STATUS_REPLY},
        Command.HELLO: {Command.REJECT},  # it has greeted already
    }

    async def test(node: Node) -> None:
        node.log.events = list(EVENTS)
        client = await connect(node)
        client.send(command, **{field: value})
        assert await answered(client) in expected[command]
        await served_as_before(node)

    run(test)


@each_value
def test_a_greeting(field: str, value: int) -> None:
    async def test(node: Node) -> None:
        node.log.events = list(EVENTS)
        client = await connect(node, greet=False)
        client.send(Command.HELLO, **{field: value})
        assert await answered(client) == Command.HELLO
        await served_as_before(node)

    run(test)


@each_value
def test_a_request(field: str, value: int) -> None:
    """It is refused in words here, or handed to the core, which holds its numbers against vsr.bounds."""

    async def test(node: Node) -> None:
        node.log.events = list(EVENTS)
        client = await connect(node)
        fields: dict[str, Any] = {"operation": Operation.APPLY, "session": 5, "request": 1, "count": 1, field: value}
        client.send(Command.REQUEST, batch(b"event"), **fields)
        client.send(Command.STATUS)
        found = [await answered(client)]
        if found[-1] == Command.REJECT:
            found.append(await answered(client))
        assert found[-1] == Command.STATUS_REPLY
        assert len(node.requests) == (found[0] != Command.REJECT)
        await served_as_before(node)

    run(test)


def test_what_the_core_reads_of_a_request_has_a_row() -> None:
    assert set(bounds.TABLE[Command.REQUEST]) == {"session", "request", "latency_us"}


@pytest.mark.parametrize("wait", [0, 1 << 63, (1 << 64) - 1])
def test_a_read_that_would_wait_for_ever(wait: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "READ_WAIT_MAX_NS", 1_000_000)

    async def test(node: Node) -> None:
        node.log.events = list(EVENTS)
        client = await connect(node)
        client.send(Command.READ, flags=READ_WAIT, position=3, timestamp=wait)
        assert await answered(client) == Command.READ_REPLY
        await served_as_before(node)

    run(test)
