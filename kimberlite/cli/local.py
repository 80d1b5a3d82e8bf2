"""A cluster of real replica processes on this machine: what `dev` and `bench` run, and the tests.

Each replica is `python -m kimberlite start DIR/<index>` with its standard error in
DIR/<index>.log. The processes end when the one that started them ends, however it ends.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kimberlite import config as configuration
from kimberlite.cli import probe
from kimberlite.errors import KimberliteError, UnavailableError, UsageError
from kimberlite.types import REPLICAS_MAX

HOST = "127.0.0.1"
PEER_PORT_OFFSET = 1000
TELEMETRY_PORT_OFFSET = 2371  # 9471 and following for the default port, 7100
STOP_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.05
# What `free_port` gives, in blocks: below the ports that Linux takes for outgoing connections (32768 and above), and
# such that no port of a block is the peer or telemetry port of another one.
BLOCK_PORTS = 50
BLOCKS = tuple(
    range(first, first + BLOCK_PORTS)
    for group in range(10_000, 30_000, PEER_PORT_OFFSET + TELEMETRY_PORT_OFFSET)
    for first in range(group, group + PEER_PORT_OFFSET, BLOCK_PORTS)
)


class ReplicaEndedError(KimberliteError):
    """A replica process ended by itself. The exit code is that of the process."""

    def __init__(self, replica: Replica, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = replica.last_log_line()
        super().__init__(f"replica {replica.index} {how}" + (f": {last}" if last else f"; see {replica.log}"))
        self.exit_code = code if code > 0 else KimberliteError.exit_code


@dataclass(slots=True)
class Replica:
    """One replica process of the cluster and where its things are."""

    index: int
    address: str
    data: Path
    log: Path
    telemetry: str | None = None  # host:port of its telemetry
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def forget(self) -> None:
        """Let go of a process that has ended."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None

    def last_log_line(self) -> str:
        """What the process said last."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass(slots=True)
class LocalCluster:
    """Replica processes below one directory.

    port: client port of replica 0, the others follow; 0 chooses free ones.
    telemetry: whether replicas serve metrics. settings: `section.key=value` items for
    the configuration of every replica. Use as a context manager: leaving it stops all.
    """

    directory: Path
    replica_count: int = 3
    port: int = 0
    telemetry: bool = False
    settings: tuple[str, ...] = ()
    replicas: list[Replica] = field(default_factory=list)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(replica.address for replica in self.replicas)

    def prepare(self) -> bool:
        """Choose ports, and format the data when there is none. True when it was new.

        Raises UsageError when the directory holds another number of replicas.
        """
        self.choose_addresses()
        existing = sorted(path.parent.name for path in self.directory.glob("*/node.toml"))
        if existing:
            if existing != [str(index) for index in range(self.replica_count)]:
                raise UsageError(
                    f"{self.directory} holds the replicas {', '.join(existing)}, not {self.replica_count} replicas; "
                    "use --replicas as when it was made, or another --dir"
                )
            return False
        self._format(self.addresses)
        return True

    def choose_addresses(self) -> None:
        """Fill `replicas`; nothing is made or read."""
        if not 1 <= self.replica_count <= REPLICAS_MAX:
            raise UsageError(f"a cluster has from 1 to {REPLICAS_MAX} replicas, not {self.replica_count}")
        if not self.port:
            self.port = free_port(self.replica_count)
        self.replicas = [
            Replica(index, f"{HOST}:{self.port + index}", self.directory / str(index), self.directory / f"{index}.log")
            for index in range(self.replica_count)
        ]
        for replica in self.replicas if self.telemetry else ():
            replica.telemetry = f"{HOST}:{telemetry_port(self.port + TELEMETRY_PORT_OFFSET + replica.index)}"

    def _format(self, addresses: tuple[str, ...]) -> None:
        from kimberlite.node.format import format_replicas

        self.directory.mkdir(parents=True, exist_ok=True)
        cluster = secrets.token_hex(16)
        configs = []
        for replica in self.replicas:
            document: dict[str, object] = {
                "cluster": {"id": cluster, "replica": replica.index, "addresses": list(addresses)}
            }
            for setting in self.settings:
                configuration.apply_override(document, setting)
            configs.append(configuration.from_mapping(document))
        format_replicas(configs, [replica.data for replica in self.replicas])

    def start(self, index: int, under: Sequence[str] = ()) -> Replica:
        """Start a replica process and return at once. under: a command that runs it, in the same process
        (`strace -D` for one)."""
        replica = self.replicas[index]
        listed = ", ".join(f'"{address}"' for address in self.addresses)
        settings = [f"cluster.addresses=[{listed}]", *self.settings]
        if replica.telemetry:
            settings.append(f'telemetry.listen="{replica.telemetry}"')
        else:
            settings.append("telemetry.enabled=false")
        arguments = [argument for setting in settings for argument in ("--set", setting)]
        # -P: the working directory must not decide which kimberlite is run.
        with replica.log.open("ab") as log:
            replica.process = subprocess.Popen(
                [
                    *under,
                    sys.executable,
                    "-P",
                    "-m",
                    "kimberlite",
                    "start",
                    "--exit-with-parent",
                    *arguments,
                    str(replica.data),
                ],
                stdin=subprocess.PIPE,  # never written to: its end says that we have ended
                stdout=log,
                stderr=log,
            )
        return replica

    def start_all(self) -> None:
        for replica in self.replicas:
            self.start(replica.index)

    def ended(self) -> Iterator[tuple[Replica, int]]:
        """Replicas whose process has ended since it was started, with its exit code; each once."""
        for replica in self.replicas:
            if replica.process is not None and (code := replica.process.poll()) is not None:
                replica.forget()
                yield replica, code

    def wait_ready(
        self, timeout: float = 30.0, need: int | None = None, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Return when `need` replicas (all, by default) answer and one of them leads, or `stop` says so.

        Raises ReplicaEndedError when one ends meanwhile, UnavailableError after `timeout` seconds.
        """
        wanted = self.replica_count if need is None else need
        deadline = time.monotonic() + timeout
        while not stop():
            for replica, code in self.ended():
                raise ReplicaEndedError(replica, code)
            answers = probe.fetch_all(self.addresses, 1.0)
            # Another process may listen on an address of ours: then it is its pid that is told.
            statuses = [
                answer
                for replica, answer in zip(self.replicas, answers, strict=True)
                if not isinstance(answer, UnavailableError) and answer.get("pid") == replica.pid
            ]
            normal = [status for status in statuses if status.get("status") == "normal"]
            if len(normal) >= wanted and any(status.get("role") == "primary" for status in normal):
                return
            if time.monotonic() > deadline:
                said = "; ".join(
                    f"replica {index}: {answer if isinstance(answer, UnavailableError) else answer.get('unhealthy')}"
                    for index, answer in enumerate(answers)
                )
                raise UnavailableError(f"no working cluster after {timeout:.0f} s ({said})")
            time.sleep(POLL_INTERVAL_S)

    def kill(self, index: int, number: int = signal.SIGKILL) -> int | None:
        """Send a signal to a replica process, wait for its end and return its exit code; None when it did not run."""
        replica = self.replicas[index]
        if replica.process is None:
            return None
        replica.process.send_signal(number)
        code = replica.process.wait()
        replica.forget()
        return code

    def stop(self) -> None:
        """End all processes: SIGTERM, and SIGKILL for what is still there ten seconds later."""
        running = [replica.process for replica in self.replicas if replica.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for replica in self.replicas:
            replica.forget()

    def cpu_seconds(self) -> float:
        """CPU time used so far by the replica processes and their children that still run."""
        pids = [replica.pid for replica in self.replicas if replica.pid is not None]
        return sum(process_cpu_seconds(pid) for pid in with_children(pids))


def is_free(port: int) -> bool:
    """Whether a listener could be opened on that port of the loopback interface now."""
    with socket.socket() as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe_socket.bind((HOST, port))
            return True
    return False


class PortBlock:
    """Ports which no other process of this machine chooses as long as this one lives, given out round and round.

    A port is free between the choice and the start of the replica that listens there, and again while that replica is
    started anew: what two processes choose in the meantime must not meet. A block belongs to the process that has bound
    its name among the abstract sockets of Linux, which are of the network namespace, as ports are, and end with their
    process.
    """

    def __init__(self) -> None:
        for ports in random.sample(BLOCKS, len(BLOCKS)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim, contextlib.suppress(OSError):
                claim.bind(f"\0kimberlite-ports-{ports.start}")
                claim.detach()  # open until this process ends
                self.ports = ports
                self._next = ports.start
                return
        raise UsageError(f"all {len(BLOCKS)} blocks of free ports belong to processes that run; use --port")

    def take(self, count: int) -> int:
        """The first of the next `count` ports in a row."""
        if self._next + count > self.ports.stop:
            self._next = self.ports.start
        self._next += count
        return self._next - count


@functools.cache
def own_ports(process: int) -> PortBlock:
    """The block of a process, claimed when it asks first: a child that was forked has another one."""
    return PortBlock()


def free_port(count: int) -> int:
    """A port such that it and the `count` - 1 that follow are free, with their peer ports."""
    block = own_ports(os.getpid())
    for _ in range(2 * BLOCK_PORTS):
        first = block.take(count)
        if all(is_free(first + index) and is_free(first + index + PEER_PORT_OFFSET) for index in range(count)):
            return first
    raise UsageError(f"no {count} free ports in a row from {block.ports.start} to {block.ports.stop - 1}; use --port")


def telemetry_port(preferred: int) -> int:
    """The preferred port when it is one and free, otherwise another one."""
    return preferred if preferred < 1 << 16 and is_free(preferred) else free_port(1)


def with_children(pids: Sequence[int]) -> list[int]:
    """Those processes and their direct children."""
    found = list(pids)
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


def process_cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 when it has ended."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) gives; /proc counts in hundredths
    return 0.0
