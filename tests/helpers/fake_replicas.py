"""Replicas that are fake but speak real frames over loopback, and clients of them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import kimberlite
from kimberlite._fast import events as event_batches
from kimberlite._fast.framing import Header, make_header
from kimberlite.client import aio
from kimberlite.net import READ_END, READ_TIMES, READ_WAIT, times
from kimberlite.net.transport import FrameConnection
from kimberlite.types import ZERO16, Command, Message, Operation, Reason

CLUSTER = b"f" * 16
FIRST_NS = 1_800_000_000_000_000_000  # timestamp of event 0; each is appended 1 ns after the one before
WAIT_S = 0.02  # so long a READ waits for new events when Replicas.parks is off


class Replicas:
    """Three listeners over one log. The primary answers requests; every one of them answers reads."""

    def __init__(self, count: int = 3, cluster: bytes = CLUSTER) -> None:
        self.count = count
        self.cluster = cluster
        self.refusal = Reason.NONE  # of every greeting
        self.members: list[str] | None = None  # told instead of the addresses
        self.greets_in_words = True  # replicas of older releases do not
        self.view = 0
        self.log: list[bytes] = []
        self.requests = 0  # appended
        self.arrived = 0  # appended or not
        self.silent = False  # the primary swallows what it gets
        self.sessions: dict[bytes, int] = {}
        self.connections: list[list[FrameConnection]] = [[] for _ in range(count)]
        self.servers: list[asyncio.Server] = []
        self.addresses: list[str] = []
        self.behind: dict[int, int] = {}  # replica -> the events it has, when not all
        self.greets_after: dict[int, float] = {}  # replica -> seconds
        self.parked: list[tuple[int, FrameConnection, Header]] = []
        self.reads: list[tuple[int, int, int, int]] = []  # replica, position, count, flags
        self.paused: set[int] = set()  # replicas that read nothing; their connections stay open
        self.unread: dict[int, int] = {}  # flag of READ -> so many READs with it stay without an answer
        self.lies: dict[int, dict[str, int]] = {}  # replica -> fields of its answers that are wrong
        self.first = 0  # events before it were trimmed
        self.parks = True  # a READ that waits does so until there is something, not only for WAIT_S

    async def start(self) -> list[str]:
        loop = asyncio.get_running_loop()
        for index in range(self.count):
            server = await loop.create_server(lambda index=index: self._accept(index), "127.0.0.1", 0)  # type: ignore[misc]
            self.servers.append(server)
        self.addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in self.servers]
        return self.addresses

    def stop(self) -> None:
        for server in self.servers:
            server.close()
        for index in range(self.count):
            self.cut(index)

    def cut(self, index: int) -> None:
        for connection in self.connections[index]:
            connection.abort()
        self.connections[index].clear()

    def _accept(self, index: int) -> FrameConnection:
        def frames(connection: FrameConnection, received: Sequence[tuple[Any, memoryview]]) -> None:
            for header, body in received:
                self._answer(index, connection, header, body)

        return FrameConnection(on_frames=frames, on_open=self.connections[index].append)

    def greeting(self, index: int) -> bytes:
        if not self.greets_in_words:
            return b""
        members = self.members if self.members is not None else self.addresses
        return json.dumps({"members": members, "primary": self.view % self.count, "replica": index}).encode()

    def _send(
        self, index: int, to: FrameConnection, about: Any, command: Command, body: bytes = b"", **fields: Any
    ) -> None:
        header = make_header(
            body,
            cluster=self.cluster,
            command=command,
            replica=index,
            view=self.view,
            client=about.client,
            request=about.request,
            context=about.checksum,
            **fields,
        )
        to.send(Message(header, body))

    def _answer(self, index: int, connection: FrameConnection, header: Any, body: memoryview) -> None:
        if index in self.paused:
            return
        end = self.behind.get(index, len(self.log))
        if header.cluster not in (self.cluster, ZERO16):
            self._send(index, connection, header, Command.REJECT, reason=Reason.WRONG_CLUSTER)
        elif header.command == Command.HELLO and self.refusal is not Reason.NONE:
            self._send(index, connection, header, Command.REJECT, reason=self.refusal)
            connection.close()
        elif header.command == Command.HELLO:
            asyncio.get_running_loop().call_later(
                self.greets_after.get(index, 0.0),
                lambda: self._send(index, connection, header, Command.HELLO, self.greeting(index), count=self.count),
            )
        elif header.command == Command.STATUS:
            self._send(index, connection, header, Command.STATUS_REPLY, json.dumps({"replica": index}).encode())
        elif header.command == Command.READ:
            self.reads.append((index, header.position, header.count, header.flags))
            for flag, count in self.unread.items():
                if header.flags & flag and count:
                    self.unread[flag] -= 1
                    return
            if header.flags & READ_END:
                self._send(index, connection, header, Command.READ_REPLY, timestamp=end)
                return
            if header.position < self.first:
                self._send(
                    index, connection, header, Command.REJECT, reason=Reason.POSITION_TRIMMED, position=self.first
                )
                return
            if header.position >= end:
                if header.flags & READ_WAIT and header.position == end and self.parks:
                    self.parked.append((index, connection, header))
                elif header.flags & READ_WAIT and header.position == end:
                    nothing = partial(
                        self._send, index, connection, header, Command.READ_REPLY, position=end, timestamp=end
                    )
                    asyncio.get_running_loop().call_later(WAIT_S, nothing)
                else:
                    self._send(
                        index, connection, header, Command.REJECT, reason=Reason.POSITION_BEYOND_END, position=end
                    )
                return
            found = self.log[header.position : min(header.position + min(header.count or 7, 7), end)]
            runs = {FIRST_NS + header.position + n: 1 for n in range(len(found))} if header.flags & READ_TIMES else {}
            self._send(
                index,
                connection,
                header,
                Command.READ_REPLY,
                event_batches.build(found) + times.encode(runs),
                **{
                    "position": header.position,
                    "count": len(found),
                    "session": len(runs),
                    "timestamp": end,
                    **self.lies.get(index, {}),
                },
            )
        elif header.command == Command.REQUEST:
            self._request(index, connection, header, body)

    def _request(self, index: int, connection: FrameConnection, header: Any, body: memoryview) -> None:
        self.arrived += 1
        if index != self.view % self.count:
            self._send(index, connection, header, Command.REJECT, reason=Reason.NOT_PRIMARY)
            return
        if self.silent:
            return
        if header.operation == Operation.REGISTER:
            number = self.sessions.setdefault(header.client, len(self.sessions) + 1)
            self._send(index, connection, header, Command.REPLY, operation=Operation.REGISTER, session=number)
            return
        self.requests += 1
        position = len(self.log)
        self.log += event_batches.slice(body, 0, header.count)
        self._send(
            index,
            connection,
            header,
            Command.REPLY,
            b"reply to %d at %d" % (header.count, position),
            operation=Operation.APPLY,
            position=position,
            count=header.count,
        )
        parked, self.parked = self.parked, []
        for at, waiting, read in parked:
            self._answer(at, waiting, read, memoryview(b""))


def run(test: Callable[[Replicas, list[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        replicas = Replicas()
        addresses = await replicas.start()
        try:
            await test(replicas, addresses)
        finally:
            replicas.stop()

    asyncio.run(main())


@asynccontextmanager
async def connected(addresses: list[str], **options: Any) -> AsyncIterator[aio.Log]:
    async with kimberlite.connect(addresses, **options) as log:
        yield log


async def collected(source: AsyncIterator[bytes]) -> list[bytes]:
    return [event async for event in source]


@contextmanager
def background() -> Iterator[tuple[Replicas, list[str]]]:
    """Replicas on a loop of their own."""
    replicas = Replicas()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield replicas, asyncio.run_coroutine_threadsafe(replicas.start(), loop).result()
    finally:
        loop.call_soon_threadsafe(replicas.stop)
        loop.call_soon_threadsafe(loop.call_soon, loop.stop)
        thread.join()
        loop.close()
