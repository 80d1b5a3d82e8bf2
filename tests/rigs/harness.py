"""What the fault rigs share: clusters with small segments, clients that write down what they saw, and the verdict.

The rigs are programs (`python tests/rigs/NAME.py`), so that a person can run them as CI does; the tests of
tests/integration run them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import kimberlite
from kimberlite import config as configuration
from kimberlite._fast.framing import make_header
from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster
from kimberlite.errors import BusyError, KimberliteError, OutcomeUnknownError, PositionError, UnavailableError
from kimberlite.node.format import make_directory, write_config
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.store import format_store
from kimberlite.vopr.checkers import Acknowledged, check_history

POLL_S = 0.02


class RigError(Exception):
    """The run shows a fault of the system, or shows nothing because the fault was never injected."""


@dataclass(slots=True)
class RigCluster(LocalCluster):
    """A LocalCluster whose segments may be smaller than the configuration allows, so that they change often."""

    segment_bytes: int = 8 << 20

    def _format(self, addresses: tuple[str, ...]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        cluster = secrets.token_hex(16)
        for replica in self.replicas:
            document: dict[str, object] = {
                "cluster": {"id": cluster, "replica": replica.index, "addresses": list(addresses)}
            }
            for setting in self.settings:
                configuration.apply_override(document, setting)
            config = configuration.from_mapping(document)
            make_directory(replica.data)
            disk = FileDisk(replica.data, mode=config.storage.mode, unsafe=config.storage.unsafe)
            try:
                format_store(
                    disk,
                    make_header,
                    cluster=config.cluster_id,
                    replica=replica.index,
                    replica_count=len(addresses),
                    segment_bytes=self.segment_bytes,
                )
            finally:
                disk.close()
            write_config(config, replica.data / configuration.CONFIG_NAME)

    def statuses(self, without: int | None = None) -> list[dict[str, object] | None]:
        """What each replica says of itself; None for one that does not answer. without: one that is not asked,
        for it is paused and would only be waited for."""
        asked = [replica.index for replica in self.replicas if replica.index != without]
        answers = probe.fetch_all([self.addresses[index] for index in asked], 1.0)
        said: list[dict[str, object] | None] = [None] * self.replica_count
        for index, answer in zip(asked, answers, strict=True):
            said[index] = None if isinstance(answer, UnavailableError) else answer
        return said

    def primary(self, without: int | None = None) -> int | None:
        """The replica that leads, as the one in the highest view says. without: as of `statuses`."""
        leading = [
            (int(str(status["view"])), index)
            for index, status in enumerate(self.statuses(without))
            if status is not None and status["role"] == "primary" and status["status"] == "normal"
        ]
        return max(leading)[1] if leading else None

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until every replica has committed and holds what the most advanced one has."""

        def equal() -> bool:
            statuses = self.statuses()
            seen = {(s["commit"], s["op"], s["applied"]) if s is not None else None for s in statuses}
            faulty = [s["faulty"] for s in statuses if s is not None]
            return None not in seen and len(seen) == 1 and not any(faulty) and len(set(*seen)) == 1

        wait_for(equal, "all replicas hold the same log, all of it committed", timeout)

    def read_log(self, index: int, start: int = 0) -> list[bytes]:
        """All events from position `start` on, from that replica alone."""
        with kimberlite.sync.connect([self.addresses[index]], only=True, timeout=30.0) as log:
            return list(log.read(start, raw=True))

    def read_kept(self, index: int) -> tuple[int, list[bytes]]:
        """(first position, events) of what that replica still has; it may be trimmed at that moment."""
        while True:
            status = self.statuses()[index]
            storage = status["storage"] if status is not None else None
            if not isinstance(storage, dict):
                raise RigError(f"replica {index} does not answer")
            first = int(str(storage["first_position"]))
            try:
                return first, self.read_log(index, first)
            except PositionError as error:
                if int(str(error.details["first"])) <= first:
                    raise


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Poll until it holds. Raises RigError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RigError(f"not within {timeout:.0f} s: {what}")
        time.sleep(POLL_S)


class _Clients(ABC):
    """Clients on a thread of their own. What goes wrong in `_main` is kept for the thread that judges."""

    def __init__(self, name: str) -> None:
        self.error: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.error = error

    @abstractmethod
    async def _main(self) -> None:
        """Until `_stopping`."""

    def start(self) -> Self:
        self._thread.start()
        return self

    def _join(self, timeout: float) -> None:
        """Let what is under way end. Raises what went wrong."""
        self._stopping = True
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise RigError(f"the {self._thread.name} did not end")
        self._raise_error()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise RigError(f"the {self._thread.name} failed: {self.error!r}") from self.error


class Load(_Clients):
    """Clients that append on a thread of their own, each append written down as the checker wants it.

    Every event is unique. rate: appends a second of all together. sizes: bounds of an event's bytes. counts: numbers
    of events of an append, of which one is drawn. hold: while it says so nothing new is appended.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        clients: int = 4,
        rate: float = 100.0,
        sizes: tuple[int, int] = (40, 2000),
        counts: Sequence[int] = (1, 1, 2, 5),
        timeout: float = 60.0,
        seed: int = 0,
        hold: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__("load")
        self.history: list[Acknowledged] = []
        self.acknowledged = 0
        self.end = 0  # the positions below have been acknowledged, or came before some that were
        self._addresses = list(addresses)
        self._clients = clients
        self._pause_s = clients / rate
        self._sizes = sizes
        self._counts = counts
        self._hold = hold
        self._timeout = timeout
        self._random = random.Random(seed)

    async def _main(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(self._clients):
                group.create_task(self._client(client))

    async def _client(self, client: int) -> None:
        number = 0
        async with kimberlite.connect(self._addresses) as log:
            while not self._stopping:
                if self._hold():
                    await asyncio.sleep(POLL_S)
                    continue
                count = self._random.choice(self._counts)
                events = tuple(
                    b"%d-%d-%d " % (client, number, index) + bytes(self._random.randint(*self._sizes))
                    for index in range(count)
                )
                append = Acknowledged(client, number, events, time.monotonic_ns())
                self.history.append(append)
                number += 1
                try:
                    append.position = await log.append(events, timeout=self._timeout)
                    append.returned_at = time.monotonic_ns()
                    self.acknowledged += 1
                    self.end = max(self.end, append.position + len(events))
                except OutcomeUnknownError:
                    pass
                except (UnavailableError, BusyError):  # nothing was sent, or it was not let in
                    append.refused = True
                await asyncio.sleep(self._pause_s * self._random.uniform(0.5, 1.5))

    def stop(self) -> None:
        """Let what is under way end. Raises what went wrong in the clients."""
        self._join(self._timeout + 30)

    def wait_progress(self, count: int, timeout: float = 60.0) -> None:
        """Wait until `count` more appends are acknowledged."""
        wanted = self.acknowledged + count
        wait_for(lambda: self.acknowledged >= wanted or self.error is not None, f"{count} more appends", timeout)
        self._raise_error()


class Follower(_Clients):
    """A client that reads the log from its beginning while it grows, so that what is trimmed later was seen."""

    def __init__(self, addresses: Sequence[str]) -> None:
        super().__init__("follower")
        self.log: list[bytes] = []
        self._addresses = list(addresses)

    async def _main(self) -> None:
        async with asyncio.TaskGroup() as group:
            for address in self._addresses:
                group.create_task(self._follow(address))

    async def _follow(self, address: str) -> None:
        """Through one replica: one that is paused or down holds up nobody else."""
        while not self._stopping:
            with contextlib.suppress(UnavailableError):
                async with kimberlite.connect([address], only=True, timeout=1.0) as log:
                    while not self._stopping:
                        await self._read(log)
                        await asyncio.sleep(POLL_S)

    async def _read(self, log: kimberlite.Log) -> None:
        at = len(self.log)
        try:
            async for event in log.read(at, raw=True):
                if at == len(self.log):
                    self.log.append(event)
                elif self.log[at] != event:
                    raise RigError(f"two replicas serve different events at position {at}")
                at += 1
        except PositionError as error:
            if int(str(error.details["first"])) > len(self.log):
                raise  # trimmed before it was read
            # Else this replica is behind.

    def stop(self, end: int) -> list[bytes]:
        """The events below `end`, all of which have been committed."""
        wait_for(lambda: len(self.log) >= end or self.error is not None, f"{end} events are read", 60)
        self._join(60)
        return self.log


@contextlib.contextmanager
def running(cluster: LocalCluster) -> Iterator[None]:
    """Stop the cluster at the end, and show the end of its logs when something went wrong."""
    try:
        yield
    except BaseException:
        for replica in cluster.replicas:
            if replica.log.exists():
                print(f"--- {replica.log.name}\n{replica.log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise
    finally:
        cluster.stop()


def kimberlite_json(*arguments: str | Path) -> list[dict[str, object]]:
    """What a command of the command line says with --json, line by line."""
    command = [sys.executable, "-P", "-m", "kimberlite", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, timeout=120)
    if done.returncode != 0:
        said = (done.stdout[-800:] + done.stderr[-500:]).decode(errors="replace")
        raise RigError(f"{' '.join(command[4:])}: exit code {done.returncode}: {said}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def inspect_superblock(data: Path) -> dict[str, object]:
    """What `kimberlite inspect superblock` shows, offline."""
    return kimberlite_json("inspect", "superblock", data)[0]


def inspect_journal(data: Path) -> list[dict[str, object]]:
    """The rows of `kimberlite inspect journal`, offline."""
    return kimberlite_json("inspect", "journal", data)


def verify(data: Path) -> dict[str, object]:
    """The totals of `kimberlite verify`, offline. Raises RigError when it finds damage."""
    return kimberlite_json("verify", data)[-1]


@dataclass(slots=True)
class Verdict:
    """What was compared. trimmed: events that no replica has any more."""

    events: int
    appends: int
    unknown: int
    ops: int
    trimmed: int


def judge(cluster: RigCluster, load: Load, follower: Follower | None = None) -> Verdict:
    """The whole verdict on a cluster whose load has been stopped; stops the cluster.

    The logs that the replicas serve are equal event by event, the history of the clients is linearizable and exact,
    in every journal each op stands once, whole and witnessed, with the same checksum on all replicas, and `verify`
    finds no damage. follower: has read what was trimmed since; needed where anything was.
    """
    cluster.settle()
    status = next(status for status in cluster.statuses() if status is not None)
    end, commit = int(str(status["positions"])), int(str(status["commit"]))
    whole = follower.stop(end) if follower is not None else cluster.read_log(0)
    firsts = []
    for index in range(cluster.replica_count):
        first, log = cluster.read_kept(index)
        if log != whole[first:]:
            raise RigError(f"replica {index} serves other events from position {first} on than the followed log has")
        firsts.append(first)
    check_history(load.history, whole)
    cluster.stop()
    entries: list[dict[int, object]] = []
    for replica in cluster.replicas:
        first_op = int(str(inspect_superblock(replica.data)["first_op"]))
        rows = [row for row in inspect_journal(replica.data) if row["op"] is None or int(str(row["op"])) >= first_op]
        bad = [row for row in rows if row["entry"] != "good" or row["witness"] != "good"]
        if bad:
            raise RigError(f"replica {replica.index}: inspect journal shows {bad[:3]}")
        ops = [int(str(row["op"])) for row in rows]
        if ops != list(range(first_op, first_op + len(ops))) or ops[-1] < commit:
            raise RigError(f"replica {replica.index}: it does not hold each op from {first_op} to {commit} once")
        # The log may have been trimmed once more after it was settled.
        if any(row["operation"] != "trim" for row in rows[commit - first_op + 1 :]):
            raise RigError(f"replica {replica.index}: the journal holds more than the log that was settled")
        entries.append({int(str(row["op"])): (row["checksum"], row["position"]) for row in rows})
        verify(replica.data)
    for op in range(max(min(journal) for journal in entries), commit + 1):
        if len({journal[op] for journal in entries}) != 1:
            raise RigError(f"the journals differ in op {op}")
    unknown = sum(append.position is None and not append.refused for append in load.history)
    return Verdict(len(whole), load.acknowledged, unknown, commit, max(firsts))


def end_in_order() -> None:
    """Have SIGTERM end the rig as an error does: what it has started and mounted goes with it."""

    def on_signal(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, on_signal)


def show(error: BaseException) -> str:
    """One line for a failed run."""
    return f"{type(error).__name__}: {error}" if isinstance(error, (RigError, KimberliteError)) else repr(error)
