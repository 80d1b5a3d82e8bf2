"""HTTP of the telemetry process, on a real socket of loopback."""

from __future__ import annotations

import gzip
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


def answer(accept: str, essential: bool) -> tuple[bytes, str]:
    size = int(accept.removeprefix("bytes/") if accept.startswith("bytes/") else 0)
    return f"accepted {accept}{' essential' * essential}\n".encode() + b"x" * size, "text/x-test"


@pytest.fixture
def served(reader: Reader, healthy: Callable[..., None]) -> Iterator[TelemetryServer]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    dropped: list[str] = []
    made = TelemetryServer(listener, reader, answer, dropped.append)
    made.dropped = dropped  # type: ignore[attr-defined]
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
    assert ask(connection, "/metrics/essential", Accept="a")[2] == "accepted a essential\n"
    assert ask(connection, "/metrics", "HEAD") == (200, "text/x-test", "")
    status, kind, body = ask(connection, "/livez")
    assert (status, kind) == (200, "text/plain; charset=utf-8")
    assert [line.split()[:2] for line in body.splitlines()] == [["ok", "process:"], ["ok", "event_loop:"]]


def test_a_kept_connection_is_answered_at_once(connection: http.client.HTTPConnection) -> None:
    """In one segment: a body that waits until the head is acknowledged comes 40 ms late."""
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert ask(connection, "/metrics", Accept="bytes/5000")[0] == 200
        took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.03, took


@pytest.mark.parametrize("wanted", ["gzip", "deflate, GZIP;q=0.5", "br, gzip ;q=1"])
def test_a_long_answer_is_compressed_for_who_takes_it(wanted: str, connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/metrics", headers={"Accept": "bytes/5000", "Accept-Encoding": wanted})
    found = connection.getresponse()
    body = found.read()
    assert found.headers["Content-Encoding"] == "gzip" and found.headers["Vary"] == "Accept-Encoding"
    assert len(body) == int(found.headers["Content-Length"]) < 200
    assert gzip.decompress(body) == answer("bytes/5000", False)[0]


@pytest.mark.parametrize(
    ("size", "wanted"), [(5000, ""), (5000, "br"), (5000, "gzip;q=0"), (5000, "gzip;q=0.0"), (10, "gzip")]
)
def test_others_get_it_as_it_is(size: int, wanted: str, connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/metrics", headers={"Accept": f"bytes/{size}", "Accept-Encoding": wanted})
    found = connection.getresponse()
    assert found.headers["Content-Encoding"] is None
    assert found.read() == answer(f"bytes/{size}", False)[0]


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


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_only_reading(verb: str, connection: http.client.HTTPConnection) -> None:
    connection.request(verb, "/metrics", body=b"x" * 5000 if verb in ("POST", "PUT") else None)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.read() == f"{verb} is not allowed: there is only reading, with GET, HEAD\n".encode()
    assert ask(connection, "/livez")[0] == 200  # on a connection of its own


@pytest.mark.parametrize("line", [b"nonsense", b"GET /livez HTTP/9.9", b"GET /livez FTP/1", b"GET " + b"x" * 70_000])
def test_what_is_no_request_is_told_so_in_plain_text(line: bytes, served: TelemetryServer) -> None:
    with socket.create_connection(served.socket.getsockname(), 10) as client:
        client.sendall(line + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.split()[1] in (b"400", b"414", b"505")
    assert b"<" not in answer


def held(served: TelemetryServer, request: bytes = b"") -> list[socket.socket]:
    """As many connections as there are places, all of which have their place."""
    address = served.socket.getsockname()
    connections = [socket.create_connection(address, 10) for _ in range(server.CONNECTIONS_MAX)]
    for connection in connections:
        connection.sendall(request)
    wait_until(lambda: len(served._open) == server.CONNECTIONS_MAX)
    return connections


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("request_", [b"", b"GET /liv", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_connections_that_do_nothing_keep_nobody_out(
    request_: bytes, served: TelemetryServer, connection: http.client.HTTPConnection
) -> None:
    """Silent, in the middle of a request, or kept alive after one: the longest idle is cut off for who comes."""
    idle = held(served, request_)
    wait_until(lambda: not any(use.answering for use in served._open.values()))
    for _ in range(3):
        assert ask(connection, "/livez")[0] == 200
        connection.close()
    assert len(served._open) <= server.CONNECTIONS_MAX
    for each in idle:
        each.close()


def test_connections_are_bounded(
    served: TelemetryServer, connection: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all places are being answered a newcomer is refused, and takes the place of one that stalls later."""
    monkeypatch.setattr(server, "STALLED_S", 60.0)
    with served.rendering:  # a scrape that takes its time
        scrapes = held(served, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: all(use.answering for use in served._open.values()))
        refused = socket.create_connection(served.socket.getsockname(), 10)
        assert refused.recv(12) == b"HTTP/1.1 503"
        assert served.dropped == ["prometheus"]  # type: ignore[attr-defined]
        monkeypatch.setattr(server, "STALLED_S", 0.0)
        assert ask(connection, "/livez")[0] == 200
    for each in (*scrapes, refused):
        each.close()


def test_a_connection_past_its_deadline_is_cut_off(served: TelemetryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.05)
    client = socket.create_connection(served.socket.getsockname(), 10)
    client.sendall(b"GET /liv")  # and then nothing
    assert client.recv(1) == b""
    wait_until(lambda: not served._open)
    client.close()


def test_a_place_is_free_again_when_no_thread_can_be_had(
    served: TelemetryServer, connection: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with socket.create_connection(served.socket.getsockname(), 10) as client:
            assert client.recv(1) == b""
    assert not served._open
    assert ask(connection, "/livez")[0] == 200
