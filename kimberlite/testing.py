"""A cluster for the tests of a program that uses Kimberlite.

    async with kimberlite.testing.Cluster(3, KeyValue) as cluster, cluster.connect() as log:
        await log.append([b"x"])
        await cluster.stop(0)

Real replicas, on free ports of the loopback interface, with their data below one directory: as Nodes on the event loop
of the test, each with a state machine of its own to look at, or as processes of their own, which can be killed. The
data is for the trash: the directory may be on any file system, and a power cut may take it.

May import: everything that a user may, and cli.local.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from kimberlite.cli.local import HOST, LocalCluster, free_port
from kimberlite.client.aio import Log, connect
from kimberlite.config import CONFIG_NAME, load, new_replica, toml_value
from kimberlite.errors import KimberliteError, UnavailableError, UsageError
from kimberlite.node.format import format_replicas
from kimberlite.node.node import Node
from kimberlite.state_machine import EventLog, StateMachine
from kimberlite.types import REPLICAS_MAX

__all__ = ["Cluster"]

# Small, and anywhere: nothing here outlives the test.
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "storage": {"segment_bytes": 8 << 20, "unsafe": True, "free_bytes_min": 0},
    "telemetry": {"enabled": False},
}
POLL_S = 0.01


class Cluster:
    """Replicas of one cluster, started when it is entered, stopped and forgotten when it is left.

    replicas: how many, 1 to 6. machine: called once for each life of a replica, gives its state machine (the class of
    yours, as a rule); None: the built-in log. processes: each replica is a process of its own, with the built-in log,
    instead of a Node in this one. directory: for the data, which then stays, and is continued with when there is some;
    None: a temporary one. settings: as of node.toml, {"timing": {"heartbeat_ms": 20}}. timeout: seconds that a start
    may take.

    addresses: of the replicas, for clients. machines, nodes: those that run, by index; None for one that does not
    (both empty with `processes`). failures: by index, why a Node ended by itself; what is left in it when the
    cluster is left without another exception is raised then.

    Raises UsageError, ConfigError, UnavailableError when no cluster comes together in time. One event loop.
    """

    def __init__(
        self,
        replicas: int = 3,
        machine: Callable[[], StateMachine] | None = None,
        *,
        processes: bool = False,
        directory: Path | str | None = None,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        timeout: float = 30.0,
    ) -> None:
        if type(replicas) is not int or not 1 <= replicas <= REPLICAS_MAX:
            raise UsageError(f"a cluster has from 1 to {REPLICAS_MAX} replicas, not {replicas!r}")
        if machine is not None and processes:
            raise UsageError("replicas in processes of their own have the built-in state machine: give one of the two")
        if machine is not None and not callable(machine):
            raise UsageError("machine is called to make one for each replica: give the class, not an instance")
        if "cluster" in (settings or {}):
            raise UsageError("the test cluster chooses the section `cluster` by itself")
        self._replica_count = replicas
        self._make_machine = machine or EventLog
        self._in_processes = processes
        self._kept = Path(directory) if directory is not None else None
        self._settings = _items({**SETTINGS, **_merged(settings or {})})
        self._timeout = timeout
        self.addresses: tuple[str, ...] = ()
        self.machines: list[StateMachine | None] = []
        self.nodes: list[Node | None] = []
        self.failures: dict[int, KimberliteError] = {}

    async def __aenter__(self) -> Cluster:
        self.directory = self._kept or Path(tempfile.mkdtemp(prefix="kimberlite-"))
        try:
            self._replicas: _Replicas = (
                _Processes(self.directory, self._replica_count, self._settings) if self._in_processes else _Nodes(self)
            )
            self.addresses = await self._replicas.prepare()
            for index in range(self._replica_count):
                await self.start(index)
            await self.wait_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()
        if error is None:
            for failure in self.failures.values():
                raise failure

    async def _end(self) -> None:
        if hasattr(self, "_replicas"):
            for index in range(self._replica_count):
                await self._replicas.stop(index)
        if self._kept is None:
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def connect(self, timeout: float = 10.0) -> Log:
        """A client of this cluster: see kimberlite.connect."""
        return connect(list(self.addresses), timeout=timeout)

    async def start(self, index: int) -> None:
        """Start a replica that does not run, with the data that it has. It may not be ready yet."""
        await self._replicas.start(self._checked(index))

    async def stop(self, index: int) -> None:
        """End a replica in order; nothing happens when it does not run."""
        await self._replicas.stop(self._checked(index))

    async def kill(self, index: int) -> None:
        """End a replica as a crash does, SIGKILL. Only with `processes`: raises UsageError otherwise."""
        await self._replicas.kill(self._checked(index))

    async def wait_ready(self) -> None:
        """Until every replica that runs takes part and one of them leads. Raises UnavailableError after the timeout,
        and the failure of a Node that has ended by itself."""
        await self._replicas.wait_ready(self._timeout)

    def _checked(self, index: int) -> int:
        if type(index) is not int or not 0 <= index < self._replica_count:
            raise UsageError(f"there are replicas 0 to {self._replica_count - 1}, not {index!r}")
        return index


class _Replicas(Protocol):
    async def prepare(self) -> tuple[str, ...]:
        """Make what is not there yet; gives the addresses."""

    async def start(self, index: int) -> None: ...
    async def stop(self, index: int) -> None: ...
    async def kill(self, index: int) -> None: ...
    async def wait_ready(self, timeout: float) -> None: ...


class _Nodes:
    """Replicas on this event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cluster.nodes = [None] * cluster._replica_count
        cluster.machines = [None] * cluster._replica_count

    async def prepare(self) -> tuple[str, ...]:
        cluster = self._cluster
        first = free_port(cluster._replica_count)
        addresses = tuple(f"{HOST}:{first + index}" for index in range(cluster._replica_count))
        await asyncio.to_thread(self._format, addresses)
        return addresses

    def _format(self, addresses: Sequence[str]) -> None:
        cluster, identity = self._cluster, secrets.token_hex(16)
        places = [cluster.directory / str(index) for index in range(len(addresses))]
        if not any((place / CONFIG_NAME).exists() for place in places):
            configs = [
                new_replica(identity, index, addresses, cluster._settings, "settings") for index in range(len(places))
            ]
            format_replicas(configs, places)

    async def start(self, index: int) -> None:
        cluster = self._cluster
        if cluster.nodes[index] is not None:
            raise UsageError(f"replica {index} runs already")
        data = cluster.directory / str(index)
        own = f"cluster.addresses={toml_value(cluster.addresses)}"
        machine = cluster._make_machine()
        node = Node(
            load(data / CONFIG_NAME, (*cluster._settings, own)),
            data,
            machine,
            on_fatal=lambda error: cluster.failures.update({index: error}),
        )
        await node.__aenter__()
        cluster.nodes[index], cluster.machines[index] = node, machine

    async def stop(self, index: int) -> None:
        node = self._cluster.nodes[index]
        if node is None:
            return
        self._cluster.nodes[index] = self._cluster.machines[index] = None
        await node.drain()
        await node.__aexit__(None, None, None)

    async def kill(self, index: int) -> None:
        raise UsageError("a replica in this process can not be killed: make the cluster with processes=True")

    async def wait_ready(self, timeout: float) -> None:
        cluster = self._cluster

        def is_ready() -> bool:
            for failure in cluster.failures.values():
                raise failure
            found = [node.status() for node in cluster.nodes if node is not None]
            return all(status["status"] == "normal" for status in found) and any(
                status["role"] == "primary" and status["can_commit"] for status in found
            )

        try:
            async with asyncio.timeout(timeout):
                while not is_ready():
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise UnavailableError(f"no working cluster after {timeout} s") from None


class _Processes:
    """Replicas that are processes."""

    def __init__(self, directory: Path, replica_count: int, settings: Sequence[str]) -> None:
        self._local = LocalCluster(directory, replica_count, settings=tuple(settings))

    async def prepare(self) -> tuple[str, ...]:
        await asyncio.to_thread(self._local.prepare)
        return self._local.addresses

    async def start(self, index: int) -> None:
        if self._local.replicas[index].pid is not None:
            raise UsageError(f"replica {index} runs already")
        self._local.start(index)

    async def stop(self, index: int) -> None:
        await asyncio.to_thread(self._local.kill, index, signal.SIGTERM)

    async def kill(self, index: int) -> None:
        await asyncio.to_thread(self._local.kill, index, signal.SIGKILL)

    async def wait_ready(self, timeout: float) -> None:
        running = sum(replica.pid is not None for replica in self._local.replicas)
        await asyncio.to_thread(self._local.wait_ready, timeout, running)


def _merged(settings: Mapping[str, Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """With what a test cluster sets otherwise in the same sections."""
    for section, values in settings.items():
        if not isinstance(values, Mapping):
            raise UsageError(f'settings are {{"section": {{"key": value}}}}: {section!r} has {values!r}')
    return {section: {**SETTINGS.get(section, {}), **values} for section, values in settings.items()}


def _items(settings: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
    return tuple(
        f"{section}.{key}={toml_value(tuple(value) if isinstance(value, list) else value)}"
        for section, values in settings.items()
        for key, value in values.items()
    )
