"""Failover: for how long nothing is acknowledged when the leader goes.

A client appends without pause, one append in flight. The leader gets SIGKILL, or SIGSTOP: it goes on being there and
says nothing. The gap is the longest time between two acknowledgements, as the client sees them, from the last one
before the signal until RECOVERED more have come. Then the member returns (it is started again, or gets SIGCONT), and
the next trial begins when all members agree on a leader and have caught up.

In the end every acknowledged append is looked for in the log of every member: what one of them lacks is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

from sidebyside.rows import REPLICAS, SIZE, Results, Row
from sidebyside.workspace import Workspace

BEHIND_MAX = 100  # operations by which a member that has caught up may be behind, under load
RECOVERED = 50  # acknowledgements after which the cluster is taken to work again
SIGNALS = ("KILL", "STOP")


class Connection(Protocol):
    def append(self) -> Any:
        """Append one event of SIZE bytes that no other append has. True is a receipt, for Target.missing; false that
        it failed, and this connection with it."""

    def close(self) -> None: ...


class Target(Protocol):
    """A cluster whose leader can be taken away."""

    system: str
    version: str
    durable: str
    client: str  # how it was loaded

    def start_all(self) -> None: ...
    def leader(self) -> int:
        """Waits until all members agree on one and have caught up."""

    def kill(self, i: int) -> None: ...
    def restart(self, i: int) -> None: ...
    def pause(self, i: int) -> None: ...
    def resume(self, i: int) -> None: ...
    def connect(self, i: int, timeout: float) -> Connection:
        """i: the member to begin with. timeout: of one attempt, where it is the caller who goes to the next member."""

    def missing(self, receipts: Sequence[Any]) -> int:
        """How many of these appends a member lacks, now that nobody appends."""


class Appender(threading.Thread):
    """One append in flight for ever, going to the next member on a failure."""

    def __init__(self, target: Target, first: int, timeout: float) -> None:
        super().__init__(daemon=True)
        self._target, self._at, self._timeout = target, first, timeout
        self._stopping = False
        self._error: Exception | None = None
        self.acks: list[float] = []
        self.receipts: list[Any] = []
        self.failures = 0

    def run(self) -> None:
        connection: Connection | None = None
        try:
            while not self._stopping:
                receipt = None
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection = connection or self._target.connect(self._at, self._timeout)
                    receipt = connection.append()
                if receipt:
                    self.acks.append(time.monotonic())
                    self.receipts.append(receipt)
                    continue
                self.failures += 1
                if connection:
                    connection.close()
                    connection = None
                self._at = (self._at + 1) % REPLICAS
        except Exception as error:
            self._error = error
        finally:
            if connection:
                connection.close()

    def wait_acks(self, after: float, count: int, timeout: float) -> None:
        """Wait until count acknowledgements came later than the time `after`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._error is None:
            acks = self.acks
            if len(acks) >= count and acks[-count] > after:
                return
            time.sleep(0.01)
        raise RuntimeError(f"no {count} acknowledgements in {timeout} s: {self._error or 'no answers'}")

    def stop(self) -> None:
        self._stopping = True
        self.join(15)


@contextlib.contextmanager
def appending(target: Target, timeout: float) -> Iterator[Appender]:
    """Appends go on inside of this."""
    appender = Appender(target, target.leader(), timeout)
    appender.start()
    try:
        appender.wait_acks(0, 20, 20)
        yield appender
    finally:
        appender.stop()


def moment() -> float:
    """Seconds before the leader goes, so that it may be anywhere between two heartbeats."""
    return 0.8 + random.random() * 0.4


def trial(target: Target, appender: Appender, signal: str) -> float:
    """Take the leader away, and give it back when the others work: the gap in milliseconds."""
    time.sleep(moment())
    leader = target.leader()
    take, give_back = (target.kill, target.restart) if signal == "KILL" else (target.pause, target.resume)
    taken = time.monotonic()
    take(leader)
    try:
        appender.wait_acks(taken + 0.02, RECOVERED, 30)
        acks = appender.acks[:]
    finally:
        give_back(leader)
    target.leader()
    last = max(i for i, at in enumerate(acks) if at <= taken)
    return max(after - before for before, after in pairwise(acks[last:])) * 1e3


def measure(target: Target, signal: str, trials: int, timeout: float) -> Row:
    """The row of a cluster that is not started yet, without the probe of the disk."""
    target.start_all()
    with appending(target, timeout) as appender:
        gaps = [trial(target, appender, signal) for _ in range(trials)]
    return {
        "system": target.system,
        "version": target.version,
        "replicas": REPLICAS,
        "durable": target.durable,
        "workload": "failover",
        "signal": signal,
        "size": SIZE,
        "concurrency": 1,
        "batch": 1,
        "ops_per_s": None,
        "p50_ms": statistics.median(gaps),
        "p99_ms": max(gaps),
        "n": len(gaps),
        "gaps_ms": [round(gap, 1) for gap in gaps],
        "acked": len(appender.receipts),
        "failures": appender.failures,
        "lost": target.missing(appender.receipts),
        "client": f"{target.client}; the leader gets SIG{signal}; p99 is the longest gap",
    }


def target_of(name: str, workspace: Workspace, args: argparse.Namespace) -> Target:
    if name == "etcd":
        from sidebyside.systems.etcd import EtcdCluster

        return EtcdCluster(workspace)
    from sidebyside.systems.kimberlite import KimberliteCluster

    return KimberliteCluster(workspace, args.settings)


TARGETS = ("etcd", "kimberlite")


def bench(name: str, args: argparse.Namespace, results: Results) -> None:
    """One of TARGETS."""
    with Workspace(args.dir) as workspace:
        target = target_of(name, workspace, args)
        probe = workspace.probe()
        row = measure(target, args.signal, args.trials, args.timeout_ms / 1e3)
        results.add({**row, "probe_fdatasync_ms": probe})
