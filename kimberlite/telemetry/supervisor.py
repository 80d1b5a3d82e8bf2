"""The node's side of the telemetry process: its socket, its start, its restarts, its end.

The node opens the listening socket and hands it down. So an address in use is an error of the node's
start, port 0 is known at once, and a telemetry process that dies is replaced without a
connection being refused. The process learns of the node's end by a pipe that closes with it:
after an orderly end it ends too; after a crash it serves the last values for a while, and yields
to the next start, which waits for the address, and ends a process that does not yield in time.

Nothing here can fail the replica once it runs: a process that does not start or stay is
tried again with back-off, and `status` says so.

Thread rules: the node's event loop. May import: errors, telemetry.log, telemetry.region.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Container
from pathlib import Path

from kimberlite.errors import AddressInUseError, NetworkError
from kimberlite.telemetry.log import Log
from kimberlite.telemetry.region import PROCESSES
from kimberlite.telemetry.sinks import Settings

TAKEOVER_S = 5.0  # how long to wait for the telemetry of a crashed predecessor to yield the address
YIELD_S = 1.0  # how much of it the predecessor gets to yield by itself
MODULE = "kimberlite.telemetry"
RETRY_S = 0.05
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 30.0
STEADY_S = 60.0  # a process that has lived as long starts again without back-off
STOP_S = 2.0
BACKLOG = 64


async def listen(host: str, port: int, patience_s: float = 0.0, names: Container[str] = ()) -> socket.socket:
    """A listening socket. Raises AddressInUseError when the address is still taken after `patience_s`,
    NetworkError when it cannot be had at all.

    names: files that a region of this replica may have. Its data is locked by the caller, so that a telemetry process
    of such a name is of a life that is over: one that holds the address for YIELD_S (it may be stopped, or starved)
    is ended."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        try:
            return await _bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise NetworkError(
                    f"{host}:{port} can not be listened on: {error} (for telemetry; see telemetry.listen)",
                    host=host,
                    port=port,
                ) from error
            left = leftovers(names)
            waited = loop.time() - began
            for pid in left if waited >= YIELD_S else ():
                kill(pid, names)
            if waited >= (TAKEOVER_S if left else patience_s):
                raise AddressInUseError(
                    f"{host}:{port} is in use: nothing was started; stop what listens there, or set telemetry.listen "
                    "to another address (port 0: any free one), or telemetry.enabled to false",
                    host=host,
                    port=port,
                ) from error
        await asyncio.sleep(RETRY_S)


def leftovers(names: Container[str]) -> list[int]:
    """Telemetry processes that serve a region of one of these names."""
    return [int(process.name) for process in PROCESSES.glob("[0-9]*") if _serves(process, names)]


def _serves(process: Path, names: Container[str]) -> bool:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended, or is of somebody else
        return False
    return MODULE in words and any(word in names for word in words[words.index(MODULE) :])


def kill(pid: int, names: Container[str]) -> None:
    """End such a process, and no other one that got its number since."""
    with contextlib.suppress(OSError):
        held = os.pidfd_open(pid)
        try:
            if _serves(PROCESSES / str(pid), names):
                signal.pidfd_send_signal(held, signal.SIGKILL)
        finally:
            os.close(held)


async def _bind(host: str, port: int) -> socket.socket:
    wanted: dict[str, int] = {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE | socket.AI_NUMERICSERV}
    if "%" in host:  # a number with the zone it is of, which uvloop would drop
        found = socket.getaddrinfo(host, port, **wanted)
    else:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, **wanted)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class TelemetryProcess:
    """Starts and supervises the process that serves a region on `listener`, which it owns from here on.

    name: the region's file. descriptor: of that file; the caller's, open for as long as this is used. sinks: where
    metrics are sent; see telemetry.sinks. log: told of what goes wrong."""

    def __init__(
        self, name: str, descriptor: int, listener: socket.socket, units: str, sinks: Settings, log: Log
    ) -> None:
        self._log = log
        self._name = name
        self._descriptor = descriptor
        self._listener = listener
        self._units = units
        self._sinks = json.dumps(sinks)
        self._loop = asyncio.get_running_loop()
        # The process sees end of file here when this one is gone, however it goes.
        self._pipe_read, self._pipe_write = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started_at = 0.0
        self._backoff_s = BACKOFF_FIRST_S
        self._retry: asyncio.TimerHandle | None = None
        self._stopping = False
        self.restarts = 0
        self.problem = ""
        host, port, *_ = listener.getsockname()
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process; it serves some 0.3 s later, and connections wait for it meanwhile."""
        self._retry = None
        self._started_at = self._loop.time()
        descriptors = (self._listener.fileno(), self._pipe_read, self._descriptor)
        try:
            self._process = subprocess.Popen(
                [
                    # -P: the working directory must not decide which kimberlite is run.
                    *(sys.executable, "-P", "-m", MODULE, "--name", self._name),
                    *("--region", str(descriptors[2]), "--units", self._units),
                    *("--listener", str(descriptors[0]), "--parent", str(descriptors[1]), "--sinks", self._sinks),
                    *(("--first",) if self.restarts == 0 else ()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            if (process := self._forget()) is not None:
                process.kill()
                process.wait()
            self._failed(f"the telemetry process does not start: {error}")
            return
        self._loop.add_reader(self._pidfd, self._on_exit)

    def _on_exit(self) -> None:
        process = self._forget()
        if process is not None and not self._stopping:
            code = process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._failed(f"the telemetry process {how}")

    def _forget(self) -> subprocess.Popen[bytes] | None:
        process, self._process = self._process, None
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        return process

    def _failed(self, problem: str) -> None:
        if self._loop.time() - self._started_at > STEADY_S:
            self._backoff_s = BACKOFF_FIRST_S
        self.problem = problem
        self.restarts += 1
        self._retry = self._loop.call_later(self._backoff_s, self._start_again)
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    def _start_again(self) -> None:
        """Said only now: a signal to all processes of a terminal ends both of them, in any order."""
        self._log.say("telemetry_failed", reason=self.problem)
        self.start()

    def status(self) -> dict[str, object]:
        """For the status of the replica."""
        return {
            "address": self.address,
            "running": self._process is not None,
            "pid": self.pid,
            "restarts": self.restarts,
            "problem": self.problem,
        }

    async def stop(self) -> None:
        """End the process; at most STOP_S, then it is killed."""
        self._stopping = True
        if self._retry is not None:
            self._retry.cancel()
        process = self._forget()
        if process is not None:
            process.terminate()
            deadline = self._loop.time() + STOP_S
            while process.poll() is None:
                if self._loop.time() > deadline:
                    process.kill()
                    process.wait()
                    break
                await asyncio.sleep(0.01)
        for descriptor in (self._pipe_read, self._pipe_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._listener.close()
