"""The client side of one replica over loopback, with a log and no core behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from kimberlite._fast import events, framing
from kimberlite._fast.framing import make_header
from kimberlite.errors import CorruptEntryError, PositionError
from kimberlite.net import CLIENT_VERSION
from kimberlite.net.transport import NullCounters
from kimberlite.node.server import ClientServer
from kimberlite.types import HEADER_SIZE, Command, Dropped, Ended, Header, Message, Reason

CLUSTER = b"s" * 16
MEMBERS = ["h0:7100", "h1:7100", "h2:7100"]
LIMIT_S = 30.0


class Log:
    """What a LogReader gives, over a list."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.damaged = False

    @property
    def end(self) -> int:
        return len(self.events)

    applied = 7

    def read(self, position: int, count_max: int, bytes_max: int) -> tuple[bytes, int, dict[int, int]]:
        if self.damaged:
            raise CorruptEntryError("damaged")
        if not 0 <= position < self.end:
            raise PositionError("outside", position=position, first=0, end=self.end)
        self.asked = (position, count_max, bytes_max)
        found = self.events[position : position + count_max]
        return events.build(found), len(found), {1000 + position: 1, 2000: len(found) - 1}


class Counted(NullCounters):
    def __init__(self) -> None:
        self.dropped: list[Dropped] = []
        self.ended: list[Ended] = []
        self.told: list[Header] = []

    def message_dropped(self, reason: Dropped) -> None:
        self.dropped.append(reason)

    def connection_ended(self, reason: Ended) -> None:
        self.ended.append(reason)

    def client_told(self, request: Header) -> None:
        self.told.append(request)


class Node:
    def __init__(self, **options: Any) -> None:
        self.requests: list[list[Message]] = []
        self.log = Log()
        self.counters = Counted()
        self.server = ClientServer(
            index=1,
            members=MEMBERS,
            listen_on=("127.0.0.1", 0),
            cluster=CLUSTER,
            make_header=make_header,
            view=lambda: 4,
            on_requests=lambda requests: self.requests.append(
                [Message(request.header, bytes(request.body)) for request in requests]
            ),
            status=lambda: {"role": "primary"},
            reader=self.log,  # type: ignore[arg-type]
            counters=self.counters,
            **options,
        )

    @property
    def port(self) -> int:
        assert self.server._server is not None
        return int(self.server._server.sockets[0].getsockname()[1])


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, identity: bytes) -> None:
        self.reader, self.writer, self.identity = reader, writer, identity

    def send(self, command: Command, body: bytes = b"", **fields: Any) -> bytes:
        """Returns the identity of the frame."""
        fields = {"cluster": CLUSTER, "client": self.identity, **fields}
        if command == Command.HELLO:
            fields = {"count": CLIENT_VERSION, **fields}
        header = make_header(body, command=command, **fields)
        self.writer.write(header.raw + body)
        return bytes(header.checksum)

    async def answer(self) -> Message:
        head = await self.reader.readexactly(HEADER_SIZE)
        header = framing.decode_header(head)
        body = await self.reader.readexactly(header.size - HEADER_SIZE)
        assert framing.verify_body(header, body)
        assert (header.cluster, header.replica, header.view) == (CLUSTER, 1, 4)
        return Message(header, body)

    async def rejected(self, reason: Reason) -> Message:
        answer = await self.answer()
        assert (answer.header.command, answer.header.reason) == (Command.REJECT, reason)
        return answer


def run(test: Callable[[Node], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_S):
            node = Node(**options)
            await node.server.start()
            writers.clear()
            try:
                await test(node)
            finally:
                for writer in writers:
                    writer.close()
                await node.server.stop()
                while node.server.connections:
                    await asyncio.sleep(0)

    asyncio.run(main())


writers: list[asyncio.StreamWriter] = []


async def connect(node: Node, identity: bytes = b"c" * 16, greet: bool = True) -> Client:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writers.append(writer)
    client = Client(reader, writer, identity)
    if greet:
        client.send(Command.HELLO)
        answer = await client.answer()
        assert (answer.header.command, answer.header.count) == (Command.HELLO, 3)
        assert json.loads(answer.body) == {"members": MEMBERS, "primary": 1, "view": 4, "replica": 1}
    return client


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def batch(*payloads: bytes) -> bytes:
    return events.build(payloads)
