"""Asking one address for a status, whatever listens there."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kimberlite._fast import framing
from kimberlite.cli import probe
from kimberlite.errors import UnavailableError, WrongClusterError
from kimberlite.types import Command, Reason

CLUSTER = bytes([7]) * 16


@contextlib.contextmanager
def listener(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """An address where one connection is accepted and talked to."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join(20)


def frame(command: Command, body: bytes = b"", **fields: int) -> bytes:
    return framing.make_header(body, cluster=CLUSTER, command=command, replica=1, **fields).raw + body


def test_a_replica_tells_its_status_and_the_members() -> None:
    members = json.dumps({"members": ["h:1", "h:2"], "primary": 0, "view": 0, "replica": 1}).encode()
    document = b'{"role":"backup"}'
    greeting = frame(Command.HELLO, members)
    with listener(lambda s: s.sendall(greeting + frame(Command.STATUS_REPLY, document))) as address:
        assert probe.ask(address, 5) == probe.Told({"role": "backup"}, ("h:1", "h:2"))


def test_an_older_release_names_no_members() -> None:
    with listener(lambda s: s.sendall(frame(Command.HELLO) + frame(Command.STATUS_REPLY, b"{}"))) as address:
        assert probe.ask(address, 5).members == ()


def test_the_timeout_is_for_all_of_the_answer() -> None:
    def trickle(connection: socket.socket) -> None:
        for byte in frame(Command.STATUS_REPLY, b"{}"):
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    with listener(trickle) as address:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="no answer in time"):
            probe.ask(address, 0.5)
        assert time.monotonic() - started < 5  # 25 s of trickling


@pytest.mark.parametrize(
    ("bytes_sent", "said"),
    [
        (b"", "closed the connection; is that the client"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(300), "frame"),
        (frame(Command.STATUS_REPLY, b"{"), "no JSON"),
        (frame(Command.REJECT, reason=Reason.BUSY_QUEUE), "refused to answer: busy queue"),
    ],
)
def test_what_is_no_answer(bytes_sent: bytes, said: str) -> None:
    with listener(lambda s: s.sendall(bytes_sent)) as address, pytest.raises(UnavailableError, match=said):
        probe.ask(address, 5)


def test_another_cluster_is_named() -> None:
    refusal = frame(Command.REJECT, reason=Reason.WRONG_CLUSTER)
    with listener(lambda s: s.sendall(refusal)) as address, pytest.raises(WrongClusterError, match=CLUSTER.hex()):
        probe.ask(address, 5, bytes([8]) * 16)


def test_all_are_asked_at_once_and_an_error_takes_the_place_of_an_answer() -> None:
    with listener(lambda s: s.sendall(frame(Command.STATUS_REPLY, b'{"op":1}'))) as address:
        found = probe.fetch_all([address, "127.0.0.1:1"], 5)
    assert found[0] == {"op": 1}
    assert isinstance(found[1], UnavailableError)
