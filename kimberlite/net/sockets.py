"""Sockets: listening on both address families, connecting, and a bounded number of connections accepted in one turn.

Who does not get in is told why by the frame that `refusal` gives, before the connection is closed. When the process
has no descriptor left, one that was held for it takes the connection that waits, refuses it, and is held again:
the loop neither spins nor ends. What else the system lacks is waited for.

Thread rules: one event loop. May import: errors, net.transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from kimberlite.errors import AddressInUseError, NetworkError
from kimberlite.net.transport import FrameConnection

BACKLOG = 256
ACCEPT_MAX = 16  # connections accepted in one turn of the loop: what is behind them waits in the kernel
PAUSE_S = 0.1  # until it is tried again, when the system lacks what a connection needs
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def show(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(host: str, port: int, flags: int = 0) -> list[tuple[socket.AddressFamily, int, int, tuple[Any, ...]]]:
    """(family, kind, protocol, address) of all addresses of a host. Raises socket.gaierror."""
    wanted = {"type": socket.SOCK_STREAM, "flags": flags}
    if "%" in host:  # a number with the zone it is of, which uvloop would drop; nothing is asked of the network
        found = socket.getaddrinfo(host, port, **wanted)
    else:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, **wanted)
    return list(dict.fromkeys((family, kind, protocol, address) for family, kind, protocol, _, address in found))


async def connect(factory: Callable[[], FrameConnection], host: str, port: int) -> FrameConnection:
    """A connection to the first address of `host` that takes it. Raises OSError."""
    loop = asyncio.get_running_loop()
    if "%" not in host:
        _, connection = await loop.create_connection(factory, host, port)
        return connection
    family, kind, protocol, address = (await resolve(host, port))[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await _connected(sock, address)
        _, connection = await loop.create_connection(factory, sock=sock)
    except BaseException:
        sock.close()
        raise
    return connection


async def _connected(sock: socket.socket, address: tuple[Any, ...]) -> None:
    """loop.sock_connect, but the zone of the address is kept."""
    loop = asyncio.get_running_loop()
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        writable: asyncio.Future[None] = loop.create_future()

        def on_writable() -> None:
            if not writable.done():
                writable.set_result(None)

        loop.add_writer(sock.fileno(), on_writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock.fileno())
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def bind(host: str, port: int, what: str) -> list[socket.socket]:
    """Sockets that listen on every address of `host`; "::" stands for all of both families.

    Raises AddressInUseError naming the address, NetworkError otherwise.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, address in await resolve(host, port, socket.AI_PASSIVE):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            listening.setblocking(False)
            listening.bind(address)
            listening.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        for listening in sockets:
            listening.close()
        where = show(host, port)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"{where} is in use: nothing was started; stop what listens there, or give this replica "
                f"another address ({what})",
                host=host,
                port=port,
            ) from error
        raise NetworkError(f"{where} can not be listened on: {error} ({what})", host=host, port=port) from error
    return sockets


class Listener:
    """Accepts on listening sockets, which it owns.

    factory: makes the protocol of a connection. has_room: whether one more may come in, given how many are accepted
    but not open yet; refused: told of the address of each that may not. refusal: a frame for those.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        factory: Callable[[], FrameConnection],
        *,
        has_room: Callable[[int], bool],
        refusal: Callable[[], bytes],
        refused: Callable[[str], None],
    ) -> None:
        self.sockets = sockets
        self._factory = factory
        self._has_room = has_room
        self._refusal = refusal
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._held = -1
        self._hold(sockets[0])
        for listening in sockets:
            self._resume(listening)

    def close(self) -> None:
        """Accept no more. Connections that are open stay so, and those just accepted open yet: their protocol is to cut
        them off."""
        for listening in self.sockets:
            self._loop.remove_reader(listening.fileno())
            listening.close()
        self.sockets = []
        self._let_go()

    def _resume(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPT_MAX):
            try:
                self._accept_one(listening)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError:
                self._loop.remove_reader(listening.fileno())
                self._loop.call_later(PAUSE_S, self._resume, listening)
                return

    def _accept_one(self, listening: socket.socket) -> None:
        try:
            accepted, address = listening.accept()
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS or self._held < 0:
                self._hold(listening)
                raise
            self._let_go()
            try:
                accepted, address = listening.accept()
                self._refuse(accepted, address)
            finally:
                self._hold(listening)
            return
        if self._has_room(len(self._opening)):
            accepted.setblocking(False)
            task = self._loop.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self._refuse(accepted, address)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, accepted)
        except (OSError, asyncio.CancelledError):
            accepted.close()
        except Exception as error:
            accepted.close()
            context = {"message": "a connection was not accepted", "exception": error, "socket": accepted}
            self._loop.call_exception_handler(context)

    def _refuse(self, accepted: socket.socket, address: tuple[Any, ...]) -> None:
        self._refused(show(*address[:2]))
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            accepted.send(self._refusal())
            accepted.shutdown(socket.SHUT_WR)
            accepted.recv(1 << 12)  # closed over something unread it would be a reset, which may overtake the words
        accepted.close()

    def _hold(self, listening: socket.socket) -> None:
        if self._held < 0:
            with contextlib.suppress(OSError):
                self._held = os.dup(listening.fileno())

    def _let_go(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
