"""HTTP of the telemetry process: /metrics, /livez, /readyz, /readyz/<check>.

A thread for each connection, so that one that hangs keeps nobody else waiting; at most
CONNECTIONS_MAX of them, and none for longer than its deadline: a reader that stops reading, or that
sends its request a byte at a time, is cut off.

May import: telemetry.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from kimberlite.telemetry import health
from kimberlite.telemetry.health import Check
from kimberlite.telemetry.reading import Observation, Reader

CONNECTIONS_MAX = 32
REQUEST_S = 30.0  # for a request to arrive; also how long an idle connection is kept
ANSWER_S = 10.0  # for an answer to be taken
POLL_S = 0.5
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
NO_STORE = ("Cache-Control", "no-store")


class TelemetryServer(ThreadingHTTPServer):
    """Serves one replica on a socket that is listening already."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, reader: Reader, render: Callable[[str], tuple[bytes, str]]) -> None:
        address = listener.getsockname()
        super().__init__(address, Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = address[0], address[1]
        self.reader = reader
        self.render = render
        self.rendering = threading.Lock()  # one at a time: what matters is not the speed of a scrape
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._deadlines: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            request.settimeout(0)
            with contextlib.suppress(OSError):  # it may not even take that
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        self.allow(request, REQUEST_S)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._deadlines.pop(request, None)
            self._slots.release()

    def allow(self, connection: socket.socket, seconds: float) -> None:
        """Cut a connection off unless it is allowed more time before that."""
        self._deadlines[connection] = time.monotonic() + seconds

    def service_actions(self) -> None:
        now = time.monotonic()
        for connection, deadline in list(self._deadlines.items()):
            if now > deadline:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    self._deadlines.pop(connection, None)  # it has gone by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection broke: its own affair."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: TelemetryServer
    protocol_version = "HTTP/1.1"
    server_version = "kimberlite"
    sys_version = ""
    timeout = REQUEST_S

    def do_GET(self) -> None:
        self.server.allow(self.connection, ANSWER_S)
        path = urlsplit(self.path).path.rstrip("/") or "/"
        name = path.removeprefix("/readyz/")
        if path == "/metrics":
            with self.server.rendering:
                body, content_type = self.server.render(self.headers.get("Accept", ""))
            self._send(HTTPStatus.OK, body, content_type)
        elif path == "/livez":
            self._answer(health.LIVE)
        elif path == "/readyz":
            self._answer(health.READY)
        elif path.startswith("/readyz/") and name in health.READY:
            self._answer({name: health.READY[name]})
        else:
            checks = ", ".join(f"/readyz/{check}" for check in health.READY)
            self._send(HTTPStatus.NOT_FOUND, f"there is /metrics, /livez, /readyz, {checks}\n".encode(), TEXT)
        self.server.allow(self.connection, REQUEST_S)

    do_HEAD = do_GET

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

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(*NO_STORE)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
