"""Kimberlite: the command in KIMBERLITE_BENCH for throughput; for failover a cluster of the package that is installed
in the Python which runs this, through its own blocking client.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidebyside.failover import BEHIND_MAX
from sidebyside.rows import BATCH, REPLICAS, SIZE, Results, Row, concurrency_of, json_rows
from sidebyside.workspace import DYING_WITH_PARENT, Skip, Workspace, die_with_parent

if TYPE_CHECKING:
    from kimberlite.sync import Log

Receipt = tuple[int, int]  # the position that was acknowledged, and the number of the event


def run_command(w: Workspace, command: list[str], timeout: float) -> list[Row]:
    """The rows a command prints. It runs where we do, its files go to our directory."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, TMPDIR=w.dir),
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        w.stop(process)
        with contextlib.suppress(ProcessLookupError):  # what it started and left
            os.killpg(process.pid, signal.SIGKILL)
    rows = json_rows(printed)
    shown = shlex.join(command)
    if process.returncode or not rows:
        raise RuntimeError(f"{shown} exited {process.returncode} with {len(rows)} rows")
    if any(row["ops_per_s"] is None for row in rows):
        raise RuntimeError(f"{shown} printed a row without events_per_s")
    return rows


def bench(args: argparse.Namespace, results: Results) -> None:
    given = os.environ.get("KIMBERLITE_BENCH")
    if not given:
        raise Skip("KIMBERLITE_BENCH is not set")
    command = shlex.split(given)
    common = {
        "system": "kimberlite", "version": "unknown", "replicas": REPLICAS,
        "durable": "unstated", "size": SIZE, "client": given,
    }  # fmt: skip
    with Workspace(args.dir) as w:
        for workload in args.workloads:
            n = concurrency_of(workload)
            asked = {"concurrency": n or 1, "batch": 1 if n else BATCH}
            probe = w.probe()
            flags = {"replicas": REPLICAS, **asked, "size": SIZE, "seconds": f"{args.seconds:g}"}
            options = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
            for row in run_command(w, [*command, *options, "--json"], args.seconds + 60):
                # The workload is what was asked for, whatever the row calls it.
                row = {**common, **asked, **row, "workload": workload}
                results.add(dict(row, probe_fdatasync_ms=probe))


class KimberliteCluster:
    """A target of failover."""

    system = "kimberlite"
    client = "kimberlite.sync, 1 append in flight, default timeout; the client finds the next primary by itself"

    def __init__(self, workspace: Workspace, settings: Sequence[str] = ()) -> None:
        try:
            import kimberlite
            from kimberlite.cli.local import LocalCluster
        except ImportError as error:
            raise Skip(f"this Python has no package kimberlite: {error}") from error
        self.w = workspace
        self.version = kimberlite.__version__
        self.durable = "unknown until it runs"
        directory = Path(workspace.subdir("kimberlite"))
        self.cluster = LocalCluster(directory, REPLICAS, telemetry=True, settings=tuple(settings))
        self.numbers = itertools.count()
        workspace.closing.callback(self.cluster.stop)

    # Life

    def start_all(self) -> None:
        from kimberlite.cli.bench import durability

        self.cluster.prepare()
        for i in range(REPLICAS):
            self.restart(i)
        self.cluster.wait_ready()
        self.durable = durability(self.cluster.addresses)

    def kill(self, i: int) -> None:
        self.cluster.kill(i)

    def restart(self, i: int) -> None:
        self.cluster.start(i, DYING_WITH_PARENT)

    def pause(self, i: int) -> None:
        self._signal(i, signal.SIGSTOP)

    def resume(self, i: int) -> None:
        self._signal(i, signal.SIGCONT)

    def _signal(self, i: int, number: int) -> None:
        process = self.cluster.replicas[i].process
        if process is not None:
            process.send_signal(number)

    # State

    def leader(self, behind_max: int = BEHIND_MAX) -> int:
        return self.w.wait(lambda: self._leader_if_ready(behind_max), "kimberlite")[0]

    def _leader_if_ready(self, behind_max: int) -> tuple[int] | None:
        from kimberlite.cli import probe

        for replica, code in self.cluster.ended():
            raise RuntimeError(f"replica {replica.index} ended with {code}: {replica.last_log_line()}")
        states: list[Any] = probe.fetch_all(self.cluster.addresses, 1.0)
        if any(not isinstance(state, dict) or state["status"] != "normal" for state in states):
            return None
        done = [state["applied"] for state in states]
        leads = [i for i, state in enumerate(states) if state["role"] == "primary"]
        views = {state["view"] for state in states}
        if len(leads) != 1 or len(views) != 1 or max(state["commit"] for state in states) - min(done) > behind_max:
            return None
        return (leads[0],)

    # Failover

    def connect(self, i: int, timeout: float) -> KimberliteConnection:
        """Its client goes from member to member by itself, in its own time: `timeout` is not for it."""
        from kimberlite import sync

        addresses = self.cluster.addresses
        return KimberliteConnection(sync.connect([*addresses[i:], *addresses[:i]]), self.numbers)

    def missing(self, receipts: Sequence[Receipt]) -> int:
        self.leader(behind_max=0)
        wanted = dict(receipts)
        return max(len(receipts) - self._found(address, wanted) for address in self.cluster.addresses)

    def _found(self, address: str, wanted: dict[int, int]) -> int:
        """How many events the log of this replica has where they were acknowledged."""
        from kimberlite import sync

        with sync.connect([address], only=True, timeout=30) as log:
            events = enumerate(log.read(raw=True))
            return sum(event == event_of(wanted.get(position, -1)) for position, event in events)


def event_of(number: int) -> bytes:
    return b"%0*d" % (SIZE, number)


class KimberliteConnection:
    """One client of the whole cluster."""

    def __init__(self, log: Log, numbers: itertools.count[int]) -> None:
        from kimberlite.errors import KimberliteError

        self.numbers = numbers
        self.failure = KimberliteError
        try:
            self.log = log.__enter__()
        except self.failure as error:
            raise ConnectionError(str(error)) from error

    def append(self) -> Receipt | None:
        number = next(self.numbers)
        try:
            return self.log.append([event_of(number)]), number
        except self.failure:
            return None

    def close(self) -> None:
        self.log.close()
