"""HTTP of the telemetry process: /metrics, /metrics/essential, /livez, /readyz, /readyz/<check>.

A thread for each connection, so that one that hangs keeps nobody else waiting; at most
CONNECTIONS_MAX of them, and none for longer than its deadline: a reader that stops reading, or that
sends its request a byte at a time, is cut off. Whoever comes when all places are taken displaces the
connection that has been waiting for a request the longest, or one that has not taken its answer within
STALLED_S: connections that do nothing can not make /livez fail, and with it a healthy replica be restarted.

May import: telemetry.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kimberlite.telemetry import health
from kimberlite.telemetry.health import Check
from kimberlite.telemetry.reading import Observation, Reader

CONNECTIONS_MAX = 32
REQUEST_S = 30.0  # for a request to arrive; also how long an idle connection is kept
ANSWER_S = 10.0  # for an answer to be taken
STALLED_S = 1.0  # an answer that is not taken for so long may be given up for somebody else
BODY_MAX = 64 << 10  # of a request that is refused: read, so that its sender gets the answer
POLL_S = 0.5
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
ALLOWED = "GET, HEAD"
COMPRESS_FROM = 1 << 10  # bytes: shorter answers go as they are
COMPRESS_LEVEL = 6  # the last level that is worth its time: 7 takes half as much again, and saves 4 bytes in a thousand
GZIP_FORMAT = 31  # of zlib: a gzip header, the largest window
SINK = "prometheus"
ALL_METRICS, ESSENTIAL_METRICS = "/metrics", "/metrics/essential"
NO_STORE = ("Cache-Control", "no-store")


class _Use(NamedTuple):
    """What a connection is doing. Monotonic seconds."""

    since: float
    deadline: float
    answering: bool = False  # else waiting for a request, or for the rest of one


def _cut_off(connection: socket.socket) -> None:
    """Its thread finds the end of the connection, whatever it waits for."""
    with contextlib.suppress(OSError):  # it has gone by itself
        connection.shutdown(socket.SHUT_RDWR)


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header has gzip, and not to refuse it."""
    for offer in header.lower().split(","):
        name, _, quality = offer.replace(" ", "").partition(";q=")
        if name == "gzip":
            return quality.strip("0.") != "" if quality else True
    return False


class TelemetryServer(ThreadingHTTPServer):
    """Serves one replica on a socket that is listening already."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listener: socket.socket,
        reader: Reader,
        render: Callable[[str, bool], tuple[bytes, str]],
        drop: Callable[[str], None],
    ) -> None:
        """render: body and content type for an Accept header, of all metrics or the essential ones. drop: counts what
        a scraper did not get."""
        address = listener.getsockname()
        super().__init__(address, Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = address[0], address[1]
        self.reader = reader
        self.render = render
        self._drop = drop
        self.rendering = threading.Lock()  # one at a time: what matters is not the speed of a scrape
        self._lock = threading.Lock()
        self._open: dict[socket.socket, _Use] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._take_place(request):
            self._drop(SINK)
            request.settimeout(0)
            with contextlib.suppress(OSError):  # it may not even take that
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had
            self._leave(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _take_place(self, connection: socket.socket) -> bool:
        """Whether there is a place for a new connection, perhaps that of another one."""
        now = time.monotonic()
        with self._lock:
            if len(self._open) >= CONNECTIONS_MAX:
                idle = [(use.since, other) for other, use in self._open.items() if not use.answering]
                stalled = [(use.since, other) for other, use in self._open.items() if now - use.since > STALLED_S]
                if not idle and not stalled:
                    return False
                _, displaced = min(idle or stalled, key=lambda found: found[0])
                del self._open[displaced]
                _cut_off(displaced)
            self._open[connection] = _Use(since=now, deadline=now + REQUEST_S)
        return True

    def _leave(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.pop(connection, None)

    def note(self, connection: socket.socket, answering: bool) -> None:
        """A connection begins to be answered, or to wait for the next request: its deadline follows."""
        now = time.monotonic()
        with self._lock:
            if connection in self._open:
                self._open[connection] = _Use(now, now + (ANSWER_S if answering else REQUEST_S), answering)

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [(connection, use) for connection, use in self._open.items() if now > use.deadline]
        for connection, use in late:
            if use.answering:
                self._drop(SINK)
            _cut_off(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection broke: its own affair."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: TelemetryServer
    protocol_version = "HTTP/1.1"
    server_version = "kimberlite"
    sys_version = ""
    timeout = REQUEST_S
    wbufsize = 1 << 16  # head and body leave together: else the one waits for the acknowledgement of the other
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.server.note(self.connection, answering=True)
        path = urlsplit(self.path).path.rstrip("/") or "/"
        name = path.removeprefix("/readyz/")
        if path in (ALL_METRICS, ESSENTIAL_METRICS):
            with self.server.rendering:
                body, content_type = self.server.render(self.headers.get("Accept", ""), path == ESSENTIAL_METRICS)
            self._send(HTTPStatus.OK, body, content_type)
        elif path == "/livez":
            self._answer(health.LIVE)
        elif path == "/readyz":
            self._answer(health.READY)
        elif path.startswith("/readyz/") and name in health.READY:
            self._answer({name: health.READY[name]})
        else:
            paths = (
                ALL_METRICS,
                ESSENTIAL_METRICS,
                "/livez",
                "/readyz",
                *(f"/readyz/{check}" for check in health.READY),
            )
            self._send(HTTPStatus.NOT_FOUND, f"there is {', '.join(paths)}\n".encode(), TEXT)
        self.server.note(self.connection, answering=False)

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """For a request that is none, and for every verb that has no do_ method."""
        self.close_connection = True
        self.request_version = self.protocol_version  # a status line for whoever sent no version, too
        if code == HTTPStatus.NOT_IMPLEMENTED:
            length = self.headers.get("Content-Length", "")
            if length.isascii() and length.isdigit():
                self.rfile.read(min(int(length[:9]), BODY_MAX))
            told = f"{self.command} is not allowed: there is only reading, with {ALLOWED}\n"
            self._send(HTTPStatus.METHOD_NOT_ALLOWED, told.encode(), TEXT, Allow=ALLOWED, Connection="close")
        else:
            status = HTTPStatus(code)
            self._send(status, f"{message or status.phrase}\n".encode(), TEXT, Connection="close")

    def _answer(self, checks: dict[str, Callable[[Observation], Check]]) -> None:
        found = health.evaluate(checks, self.server.reader.observe())
        ok = all(check.ok for check in found)
        if JSON in self.headers.get("Accept", ""):
            document = {"ok": ok, "checks": {check.name: {"ok": check.ok, "reason": check.reason} for check in found}}
            body, content_type = json.dumps(document).encode() + b"\n", JSON
        else:
            lines = [f"{'ok' if check.ok else 'failed'}  {check.name}: {check.reason}\n" for check in found]
            body, content_type = "".join(lines).encode(), TEXT
        self._send(HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE, body, content_type)

    def _send(self, status: HTTPStatus, body: bytes, content_type: str, **headers: str) -> None:
        if len(body) >= COMPRESS_FROM and accepts_gzip(self.headers.get("Accept-Encoding", "")):
            compressor = zlib.compressobj(COMPRESS_LEVEL, zlib.DEFLATED, GZIP_FORMAT)
            body = compressor.compress(body) + compressor.flush()
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(*NO_STORE)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
