"""What the cases are made of: real replicas on free ports, hostile frames, a verdict.

A case is a script beside this one: a docstring that says what went wrong and what is promised
now, SECONDS (its limit), SAMPLE (whether the short form runs it), `run(case)`. It ends with
exit code 0 (PASS), 1 (FAIL: the promise is broken) or 2 (the case itself could not be carried out).

    python tests/cases/NAME.py [--directory D]

runs one against the kimberlite that this interpreter imports, so that any version can be asked.
Everything is on the loopback interface, below one directory, and only processes that the case
started are ended. May import: the standard library, xxhash, kimberlite._fast, kimberlite.storage and
kimberlite.types.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from kimberlite._fast import framing
from kimberlite.types import Command, Header

HOST = "127.0.0.1"
PEER_OFFSET = 100
TELEMETRY_OFFSET = 200
BLOCK = 300  # ports from one base on: clients, peers, telemetry
BASES = range(20_000, 32_000, BLOCK)  # below the ports that the kernel gives out
CLIENT_VERSION = 2  # of HELLO; older versions do not look at it
WEAK_FILE_SYSTEMS = {"tmpfs", "ramfs", "overlay"}
END_SECONDS = 8.0

make_header = framing.make_header


class Failed(Exception):
    """The promise is broken."""


def until(what: Callable[[], Any], seconds: float, every: float = 0.05) -> Any:
    """The first true value of `what`, or the last one when the time is over."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value or time.monotonic() >= end:
            return value
        time.sleep(every)


def spoken(header: Header, who: dict[str, Any]) -> bytes:
    """A header with the fields by which its sender is known, unless it is an entry."""
    raw = bytearray(header.raw)
    if who and header.command != Command.PREPARE:
        raw[64:68] = who["epoch"].to_bytes(4, "little")
        raw[112:128] = who["client"]
        raw[128:136] = who["session"].to_bytes(8, "little")
        raw[:16] = xxhash.xxh3_128_digest(bytes(raw[16:]))
    return bytes(raw)


class Raw:
    """A connection that sends whatever it is told, frame by frame."""

    def __init__(self, host: str, port: int, timeout: float = 2.0) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = secrets.token_bytes(16)
        self._received = bytearray()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()

    def send(self, header: Header, body: bytes = b"") -> None:
        self.socket.sendall(header.raw + body)

    def greet(self, cluster: bytes = bytes(16)) -> Header:
        """HELLO of a client; gives the replica's answer."""
        self.send(make_header(cluster=cluster, command=Command.HELLO, client=self.client, count=CLIENT_VERSION))
        return self.receive()[0]

    def greet_as_replica(self, cluster: bytes, replica: int, replica_count: int, view: int = 0, **who: Any) -> None:
        """HELLO of a replica. While one that lives has a connection, the answer comes when that one is found silent."""
        fields = {"replica": replica, "count": replica_count, "view": view, **who}
        self.send(make_header(cluster=cluster, command=Command.HELLO, **fields))

    def receive(self) -> tuple[Header, bytes]:
        """The next frame. Raises EOFError at the end of the connection, TimeoutError."""
        while True:
            if len(self._received) >= framing.HEADER_SIZE:
                header = framing.decode_header(bytes(self._received[: framing.HEADER_SIZE]))
                if len(self._received) >= header.size:
                    body = bytes(self._received[framing.HEADER_SIZE : header.size])
                    del self._received[: header.size]
                    return header, body
            chunk = self.socket.recv(1 << 20)
            if not chunk:
                raise EOFError("the connection was closed")
            self._received += chunk


class Cluster:
    """Replicas as processes, each in a directory of its own. Indexes everywhere."""

    def __init__(self, case: Case, replicas: int, settings: Sequence[str], base: int) -> None:
        self._case = case
        self.size = replicas
        self.cluster_id = secrets.token_hex(16)
        self.cluster = bytes.fromhex(self.cluster_id)
        self.ports = [base + index for index in range(replicas)]
        self.addresses = [f"{HOST}:{port}" for port in self.ports]
        self.peer_ports = [port + PEER_OFFSET for port in self.ports]
        self.telemetry_ports = [port + TELEMETRY_OFFSET for port in self.ports]
        self.root = case.directory / f"cluster-{base}"
        self.directories = [self.root / str(index) for index in range(replicas)]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * replicas
        self.root.mkdir(parents=True)
        for index, directory in enumerate(self.directories):
            chosen = [
                f"cluster.peer_port_offset={PEER_OFFSET}",
                f"telemetry.listen={HOST}:{self.telemetry_ports[index]}",
                "storage.segment_bytes=8388608",
                "storage.free_bytes_min=0",
                *case.storage_settings,
                *settings,
            ]
            case.command(
                *("format", "--cluster", self.cluster_id, "--replica", str(index)),
                *("--addresses", ",".join(self.addresses)),
                *(part for setting in chosen for part in ("--set", setting)),
                str(directory),
                check=True,
            )

    # Processes

    def start(self, index: int, prefix: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        """Start one replica. prefix: a command to run it under; options: of Popen."""
        with self.log_path(index).open("ab") as log:
            options = {
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": log,
                "env": self._case.environment,
                **options,
            }
            process = subprocess.Popen(
                [*prefix, *self._case.kimberlite, "start", str(self.directories[index])], **options
            )
        self._case.own(process)
        self.processes[index] = process
        return process

    def start_all(self) -> None:
        for index in range(self.size):
            self.start(index)
        self.wait()

    def wait(self, seconds: float = 40.0) -> None:
        """Until every replica is in normal status and one of them leads."""

        def ready() -> bool:
            found = [self.status(index) for index in range(self.size)]
            return all(s and s["status"] == "normal" for s in found) and self.primary() is not None

        if not until(ready, seconds):
            raise RuntimeError(f"the cluster is not ready: {[self.log(index)[-300:] for index in range(self.size)]}")

    def process(self, index: int) -> subprocess.Popen[bytes]:
        process = self.processes[index]
        assert process is not None, f"replica {index} was not started"
        return process

    def kill(self, index: int) -> None:
        """As a power cut of the process: SIGKILL."""
        self.process(index).kill()
        self.process(index).wait()

    def pause(self, index: int) -> None:
        self.process(index).send_signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        self.process(index).send_signal(signal.SIGCONT)

    def stop(self, index: int, seconds: float = END_SECONDS) -> int:
        """SIGTERM; gives the exit code."""
        self.process(index).terminate()
        return self.process(index).wait(seconds)

    @property
    def exit_codes(self) -> list[int | None]:
        """Of replicas that have ended; None of those that run."""
        return [process.poll() if process is not None else None for process in self.processes]

    # Looking

    def log_path(self, index: int) -> Path:
        return self.root / f"{index}.log"

    def log(self, index: int) -> str:
        """What the replica has printed in all its lives."""
        path = self.log_path(index)
        return path.read_text(errors="replace") if path.exists() else ""

    def status(self, index: int, timeout: float = 1.0) -> dict[str, Any] | None:
        """The status document of a replica, None when it does not give one in time."""
        try:
            with Raw(HOST, self.ports[index], timeout) as connection:
                connection.greet()
                connection.send(make_header(cluster=self.cluster, command=Command.STATUS, client=connection.client))
                document: dict[str, Any] = json.loads(connection.receive()[1])
                return document
        except (OSError, ValueError, EOFError):
            return None

    def tells(self, index: int, seconds: float = 20.0) -> dict[str, Any]:
        """The status document of a replica that runs: waited for, and without one the case ends in words."""
        document = until(lambda: self.status(index, 5.0), seconds)
        self._case.check(document, f"replica {index} gives no status in {seconds:.0f} s; exit codes {self.exit_codes}")
        found: dict[str, Any] = document
        return found

    def applied(self) -> list[int | None]:
        """Of each replica, how far it has executed; None of one that does not say so in time."""
        found = [self.status(index) for index in range(self.size)]
        return [status["applied"] if status else None for status in found]

    def is_level(self, within: int = 0) -> bool:
        """Whether all have executed the same; under load the answers are not of one moment: `within` so many ops."""
        applied = [op for op in self.applied() if op is not None]
        return len(applied) == self.size and max(applied) - min(applied) <= within

    def primary(self) -> int | None:
        """The index of the replica that leads the highest view, None when none does."""
        leading = [
            (status["view"], index)
            for index in range(self.size)
            if (status := self.status(index)) and status["role"] == "primary" and status["status"] == "normal"
        ]
        return max(leading)[1] if leading else None

    def leader(self, seconds: float) -> int | None:
        """The same, waited for. (`until` takes replica 0 for no answer.)"""
        found = until(lambda: (index := self.primary()) is not None and (index,), seconds)
        return found[0] if found else None

    def roles(self) -> tuple[int, ...]:
        """The primary, then the backups."""
        primary = self.leader(20)
        assert primary is not None, "nobody leads"
        return (primary, *((primary + step) % self.size for step in range(1, self.size)))

    def scrape(self, index: int, path: str = "/metrics", timeout: float = 5.0) -> str:
        """A page of the telemetry process, head and all. A process that has just been started is waited for."""

        def connected() -> socket.socket | None:
            try:
                return socket.create_connection((HOST, self.telemetry_ports[index]), timeout)
            except ConnectionRefusedError:
                return None

        connection = until(connected, timeout)
        if connection is None:
            raise ConnectionRefusedError(f"nobody serves the metrics of replica {index}")
        with connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()

    def inject(self, to: int, as_replica: int, frames: Sequence[tuple[Header, bytes]], hold: float = 0.5) -> bool:
        """Send frames to the peer port of `to`, greeting as another replica, which is stopped meanwhile: nobody takes
        the place of one that answers. Whether all could be handed to the kernel: a replica that has ended, or that
        cuts the connection off, takes none or some."""
        runs = self.processes[as_replica] is not None and self.process(as_replica).poll() is None
        if runs:
            self.pause(as_replica)
        try:
            with Raw(HOST, self.peer_ports[to], 5) as connection:
                who = self.identity(as_replica)
                connection.greet_as_replica(self.cluster, as_replica, self.size, **who)
                connection.receive()
                for header, body in frames:
                    connection.socket.sendall(spoken(header, who) + body)
                # Held open: a replica that is cut off reads no more of what was sent.
                connection.socket.settimeout(hold)
                with contextlib.suppress(TimeoutError):
                    while connection.socket.recv(1 << 16):
                        pass
        except (OSError, EOFError):
            return False
        finally:
            if runs:
                self.resume(as_replica)
        return True

    def identity(self, index: int) -> dict[str, Any]:
        """Fields by which the others know a replica, from its disk; none in a version without them."""
        from kimberlite.storage import superblock

        data, size = (self.directories[index] / superblock.NAME).read_bytes(), superblock.COPY_BYTES
        copies = [superblock.decode(data[at * size : (at + 1) * size], at) for at in range(superblock.COPIES)]
        newest = max((copy for copy in copies if copy is not None), key=lambda copy: copy.sequence)
        identity = getattr(newest, "identity", None)
        if identity is None or not identity.life:
            return {}
        return {"epoch": 1, "client": identity.incarnation, "session": identity.life}

    def append(self, events: Sequence[bytes], timeout: float = 10.0) -> int:
        """Append with a client of its own; gives the position."""
        from kimberlite import sync

        with sync.connect(self.addresses, timeout=timeout) as log:
            return log.append(events, timeout=timeout)


class Case:
    """One run of a case."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.python = sys.executable
        self.kimberlite = [self.python, "-P", "-m", "kimberlite"]
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("KIMBERLITE_")}
        self._owned: list[subprocess.Popen[Any]] = []
        self.storage_settings = ["storage.unsafe=true"] if _file_system(directory) in WEAK_FILE_SYSTEMS else []

    def check(self, condition: object, sentence: str) -> None:
        """Go on if `condition` holds; else the case ends, and the sentence says why."""
        if not condition:
            raise Failed(sentence)

    def say(self, sentence: str) -> None:
        print(f"  {sentence}", flush=True)

    def own(self, process: subprocess.Popen[Any]) -> subprocess.Popen[Any]:
        """A process to be ended with the case."""
        self._owned.append(process)
        return process

    def command(
        self, *arguments: str, check: bool = False, timeout: float = 60.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        done = subprocess.run(
            [*self.kimberlite, *arguments],
            **{"env": self.environment, "capture_output": True, "text": True, "timeout": timeout, **options},
        )
        if check and done.returncode:
            raise RuntimeError(f"{arguments}: exit code {done.returncode}: {done.stderr}")
        return done

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Run the command line beside the case."""
        return self.own(subprocess.Popen([*self.kimberlite, *arguments], **{"env": self.environment, **options}))

    def cluster(self, replicas: int = 3, *settings: str, start: bool = True) -> Cluster:
        """Formatted replicas on free ports, started unless told otherwise. settings: of node.toml, KEY=VALUE."""
        cluster = Cluster(self, replicas, settings, self.free_block(replicas))
        if start:
            cluster.start_all()
        return cluster

    def free_block(self, replicas: int) -> int:
        """A base such that the ports of so many replicas are free."""
        for base in random.sample(BASES, len(BASES)):
            if all(_is_free(base + part + index) for part in (0, 100, 200) for index in range(replicas)):
                return base
        raise RuntimeError("no free ports")

    def end(self) -> None:
        for process in self._owned:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._owned:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`, from the longest mount point above it."""
    mounts = (line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines())
    return max((len(point), kind) for point, kind in mounts if path.resolve().is_relative_to(point))[1]


@contextlib.contextmanager
def _working_place(chosen: Path | None, name: str) -> Iterator[Path]:
    """Kept when it was chosen."""
    place = chosen / name if chosen is not None else Path(tempfile.mkdtemp(prefix=f"{name}-"))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
    if chosen is None:
        shutil.rmtree(place, ignore_errors=True)


def main(run: Callable[[Case], None]) -> None:
    """Carry out one case and say its verdict; ends the process."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--directory", type=Path, help="where its data goes, and stays; default: a temporary one")
    chosen = parser.parse_args()
    name = Path(sys.argv[0]).stem
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # the runner's limit: what was started is ended
    with _working_place(chosen.directory, name) as place:
        case = Case(name, place)
        try:
            run(case)
            verdict, code = "PASS", 0
        except Failed as failure:
            verdict, code = f"FAIL: {failure}", 1
        except Exception:
            verdict, code = f"BROKEN: {traceback.format_exc()}", 2
        finally:
            case.end()
    print(f"{name}: {verdict} ({time.monotonic() - started:.1f} s)", flush=True)
    sys.exit(code)
