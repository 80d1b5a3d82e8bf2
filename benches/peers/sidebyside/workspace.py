"""A temporary directory and the processes in it, and what is there to be started.

Invariant: when a Workspace is left, however, its processes have ended and its directory is gone. When this process
is killed, so are they; the directory stays then.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PEERS = Path(__file__).resolve().parents[1]  # where the C programs and the scripts of other interpreters are
STOP_TIMEOUT_S = 5.0
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Skip(Exception):
    """This system cannot be measured here; the text says why."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# In front of a command that somebody else starts: the same, also while it is stopped.
DYING_WITH_PARENT = (
    sys.executable,
    "-c",
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)


class Workspace:
    """Use as a context manager. base: the directory to make it in; None is the usual one."""

    def __init__(self, base: str | None) -> None:
        self.base = base
        self.dir = ""
        self.processes: list[subprocess.Popen[Any]] = []
        self.closing = contextlib.ExitStack()  # what else is to be done before the directory goes
        self._logs: dict[int, str] = {}

    def __enter__(self) -> Workspace:
        self.dir = os.path.abspath(tempfile.mkdtemp(prefix="peers-", dir=self.base))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.closing.close()
        finally:
            for process in self.processes:
                self.stop(process)
            shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, *names: str) -> str:
        return os.path.join(self.dir, *names)

    def subdir(self, name: str) -> str:
        os.makedirs(self.path(name), exist_ok=True)
        return self.path(name)

    def spawn(self, argv: list[str], name: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a process; what it says goes to NAME.log."""
        log_path = self.path(f"{name}.log")
        with open(log_path, "ab") as log:
            options.setdefault("stdout", log)
            process = subprocess.Popen(argv, stderr=log, cwd=self.dir, preexec_fn=die_with_parent, **options)
        self._logs[process.pid] = log_path
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[Any]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it was still to be told
                    pipe.close()

    def kill(self, process: subprocess.Popen[Any]) -> None:
        """SIGKILL, as part of a measurement: nothing is wrong that it has ended."""
        process.kill()
        process.wait()
        self.processes.remove(process)

    def run(self, argv: list[str], timeout: float) -> str:
        """Run a client to its end and return what it printed."""
        client = subprocess.run(
            argv,
            cwd=self.dir,
            capture_output=True,
            text=True,
            timeout=timeout,
            preexec_fn=die_with_parent,
            check=False,
        )
        if client.returncode:
            raise RuntimeError(f"{os.path.basename(argv[0])} exited {client.returncode}: {client.stderr[-800:]}")
        return client.stdout

    def compile(self, name: str) -> str:
        binary = self.path(name)
        self.run([need("gcc"), "-O2", "-o", binary, str(PEERS / f"{name}.c")], 60)
        return binary

    def wait(self, ready: Callable[[], T | None], what: str, timeout: float = 30) -> T:
        """Poll ready() until it returns something true, and return that."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for process in self.processes:
                if process.poll() is not None:
                    with open(self._logs[process.pid], errors="replace") as log:
                        raise RuntimeError(f"{what}: a process ended: {log.read()[-800:]}")
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                if found := ready():
                    return found
            time.sleep(0.1)
        raise RuntimeError(f"{what}: not ready in {timeout} s")

    def probe(self) -> float:
        """The median of 200 synchronous 4 KiB writes, in milliseconds."""
        path = self.path("probe")
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.write(fd, b"\0" * (200 * 4096))
            os.fsync(fd)
            times = []
            for i in range(200):
                start = time.perf_counter()
                os.pwrite(fd, b"\1" * 4096, i * 4096)
                os.fdatasync(fd)
                times.append(time.perf_counter() - start)
        finally:
            os.close(fd)
            os.unlink(path)
        return round(statistics.median(times) * 1e3, 4)


def need(name: str, variable: str | None = None) -> str:
    """The path of a program, from an environment variable or from PATH."""
    found = (variable and os.environ.get(variable)) or shutil.which(name)
    if not found or not os.access(found, os.X_OK):
        raise Skip(f"no {name} on PATH" + (f" and none in {variable}" if variable else ""))
    return found


def need_python(module: str) -> str:
    """A Python that has the module: PEERS_PYTHON, or the one running this."""
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    try:
        found = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise Skip(f"{python} has no package {module} (set PEERS_PYTHON)")
    return python


def version_of(argv: list[str], pattern: str) -> str:
    shown = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    found = re.search(pattern, shown.stdout + shown.stderr)
    return found.group(1) if found else "unknown"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
