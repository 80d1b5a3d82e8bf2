"""Listening and connecting: both address families, zones, places, and what the system lacks."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from kimberlite._fast.framing import make_header
from kimberlite.errors import AddressInUseError, NetworkError
from kimberlite.net import sockets
from kimberlite.net.sockets import Listener, bind, connect, show
from kimberlite.net.transport import FrameConnection
from kimberlite.types import Command, Reason

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
REFUSAL = bytes(make_header(cluster=b"c" * 16, command=Command.REJECT, reason=Reason.CONNECTIONS).raw)


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


class Server:
    def __init__(self, listening: list[socket.socket], has_room: Callable[[int], bool] = lambda opening: True) -> None:
        self.open: list[FrameConnection] = []
        self.refused = 0
        self.listener = Listener(
            listening, self._make, has_room=has_room, refusal=lambda: REFUSAL, refused=self._on_refused
        )

    def _make(self) -> FrameConnection:
        return FrameConnection(on_frames=lambda connection, frames: None, on_open=self.open.append)

    def _on_refused(self, address: str) -> None:
        assert address.rpartition(":")[2].isdigit()
        self.refused += 1

    @property
    def port(self) -> int:
        return int(self.listener.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self.listener.close()
        for connection in self.open:
            connection.abort()
        await asyncio.sleep(0.01)


def plain() -> FrameConnection:
    return FrameConnection(on_frames=lambda connection, frames: None)


@LOOPS
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::1%lo"])
def test_one_socket_serves_both_families_when_it_is_bound_to_all(
    new_loop: Callable[[], asyncio.AbstractEventLoop], host: str
) -> None:
    async def test() -> None:
        server = Server(await bind("::", 0, "here"))
        connection = await connect(plain, host.removesuffix("%lo"), server.port)
        await until(lambda: server.open)
        connection.close()
        await server.close()

    run(new_loop, test)


@LOOPS
def test_a_zone_is_kept(new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback has no link-local address: the system says so, for the address with its zone."""
    asked: list[tuple[Any, ...]] = []

    async def refuse(sock: socket.socket, address: tuple[Any, ...]) -> None:
        asked.append(address)
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    async def test() -> None:
        monkeypatch.setattr(sockets, "_connected", refuse)
        with pytest.raises(OSError, match="unreachable"):
            await connect(plain, "fe80::1%lo", 7100)
        assert asked == [("fe80::1", 7100, 0, socket.if_nametoindex("lo"))]
        with pytest.raises(NetworkError, match=r"\[fe80::1%lo\]:7100 can not be listened on"):
            await bind("fe80::1%lo", 7100, "here")

    run(new_loop, test)


@LOOPS
def test_connecting_where_the_zone_is_kept(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        server = Server(await bind("::1", 0, "here"))
        for code, port in ((0, server.port), (errno.ECONNREFUSED, 1)):
            sock = socket.socket(socket.AF_INET6)
            sock.setblocking(False)
            try:
                await sockets._connected(sock, ("::1", port, 0, 0))
            except OSError as error:
                assert error.errno == code
            else:
                assert not code
            sock.close()
        await server.close()

    run(new_loop, test)


@LOOPS
def test_who_finds_no_room_is_told_so(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        server = Server(await bind("127.0.0.1", 0, "here"), has_room=lambda opening: False)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(bytes(100))
            assert await reader.readexactly(len(REFUSAL)) == REFUSAL
            writer.close()
        assert server.refused == 3
        await server.close()

    run(new_loop, test)


@LOOPS
def test_a_crowd_is_let_in_a_few_at_a_time(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        server = Server(await bind("127.0.0.1", 0, "here"))
        clients = [socket.socket() for _ in range(50)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
        most = 0
        while len(server.open) < len(clients):
            before = len(server.open)
            await asyncio.sleep(0)
            most = max(most, len(server.open) - before)
        assert most <= sockets.ACCEPT_MAX
        for client in clients:
            client.close()
        await server.close()

    run(new_loop, test)


def test_an_address_is_shown_as_it_is_written() -> None:
    assert (show("::1", 7100), show("a.b", 7100)) == ("[::1]:7100", "a.b:7100")


@LOOPS
def test_what_the_system_lacks_for_a_moment_is_waited_for(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        server = Server(await bind("127.0.0.1", 0, "here"))
        tries = 0

        def lacking(listening: socket.socket) -> None:
            nonlocal tries
            tries += 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        with monkeypatch.context() as patched:
            patched.setattr(server.listener, "_accept_one", lacking)
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: tries >= 2)
            assert tries < 5, "it does not spin"
        await until(lambda: server.open)
        writer.close()
        await server.close()

    run(new_loop, test)


@LOOPS
def test_an_address_in_use_is_named(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        (taken,) = await bind("::1", 0, "here")
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUseError, match=rf"\[::1\]:{port} is in use"):
            await bind("::1", port, "here")
        taken.close()

    run(new_loop, test)
