"""HTTP of the telemetry process, on a real socket of loopback."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kimberlite.telemetry import health, server
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.server import TelemetryServer


@pytest.fixture
def served(reader: Reader, healthy: Callable[..., None]) -> Iterator[TelemetryServer]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(8)
    made = TelemetryServer(listener, reader, lambda accept: (f"accepted {accept}\n".encode(), "text/x-test"))
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def connection(served: TelemetryServer) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection(*served.socket.getsockname(), timeout=10)
    yield made
    made.close()


def ask(connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read().decode()


def test_one_connection_serves_several_requests(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/metrics", Accept="what I want") == (200, "text/x-test", "accepted what I want\n")
    assert ask(connection, "/metrics?name[]=x")[0] == 200
    assert ask(connection, "/metrics", "HEAD") == (200, "text/x-test", "")
    status, kind, body = ask(connection, "/livez")
    assert (status, kind) == (200, "text/plain; charset=utf-8")
    assert [line.split()[:2] for line in body.splitlines()] == [["ok", "process:"], ["ok", "event_loop:"]]


def test_ready_and_not(connection: http.client.HTTPConnection, healthy: Callable[..., None]) -> None:
    assert ask(connection, "/readyz")[0] == 200
    healthy("draining", 1)
    assert ask(connection, "/readyz")[0] == ask(connection, "/readyz/draining")[0] == 503
    assert ask(connection, "/readyz/disk/")[0] == 200
    assert ask(connection, "/livez")[0] == 200
    status, kind, body = ask(connection, "/readyz", Accept="application/json")
    document = json.loads(body)
    assert (status, kind, document["ok"]) == (503, "application/json", False)
    assert document["checks"]["draining"] == {"ok": False, "reason": "being stopped"}
    assert list(document["checks"]) == list(health.READY)


@pytest.mark.parametrize("path", ["/", "/readyz/nothing", "/metricsx", "/livez/process"])
def test_what_is_not_there(path: str, connection: http.client.HTTPConnection) -> None:
    status, _, body = ask(connection, path)
    assert status == 404
    assert "/readyz/quorum" in body


def test_only_reading(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "/metrics", "POST")[0] == 501


def test_connections_are_bounded(served: TelemetryServer, connection: http.client.HTTPConnection) -> None:
    address = served.socket.getsockname()
    held = [socket.create_connection(address, 10) for _ in range(server.CONNECTIONS_MAX)]
    for each in held:  # wait until it has its thread: the answer shows that
        each.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert each.recv(12) == b"HTTP/1.1 200"
    refused = socket.create_connection(address, 10)
    assert refused.recv(12) == b"HTTP/1.1 503"
    for each in (*held, refused):
        each.close()


def test_a_connection_past_its_deadline_is_cut_off(served: TelemetryServer) -> None:
    client = socket.create_connection(served.socket.getsockname(), 10)
    client.sendall(b"GET /liv")  # and then nothing
    until = time.monotonic() + 10
    while not served._deadlines:
        assert time.monotonic() < until, "the connection is not accepted"
        time.sleep(0.001)
    (connection,) = served._deadlines
    served.allow(connection, -1)
    assert client.recv(1) == b""
    client.close()
