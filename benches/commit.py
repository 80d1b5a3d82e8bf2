"""The processor time of one commit, at one in flight: three replicas in one process, with neither sockets nor a disk.

    python benches/commit.py [--ops 2000] [--events 1]
    python benches/commit.py --old OLD/bin/python --new NEW/bin/python [--rounds 10]
    python benches/commit.py --old OLD/bin/python --new NEW/bin/python --instructions

Everything between a parsed request and the reply is that of a replica: frames are parsed from their bytes, journal
entries and witnesses are made, the state machine executes, metrics are recorded. What the disk is handed is durable at
once, and never written. Caches are warm: in a cluster of processes the same code takes several times as long.

Printed: microseconds of the primary (a request, its acknowledgements, the reply) and of one backup (a prepare, and its
acknowledgement) for an op.

--old, --new: two installed versions by turns, and the ratio old to new: above 1 the new one is faster.
--instructions counts instructions of an op instead, of all three replicas and the little around them (valgrind's
callgrind, the start taken off): independent of what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kimberlite import config as configuration
from kimberlite._fast import events, framing
from kimberlite._fast.metrics import Region
from kimberlite.node.driver import Driver, FastCodec, known_headers, restore
from kimberlite.node.format import format_replica
from kimberlite.node.measured import MeasuredMachine
from kimberlite.state_machine import EventLog
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.interface import Write
from kimberlite.storage.store import Store
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.recorder import Recorder
from kimberlite.types import ClientId, Command, Message, Operation
from kimberlite.vsr.replica import Replica

try:
    from kimberlite.node.checkpoints import CheckpointPolicy
    from kimberlite.node.settings import core_config
except ImportError:  # where older versions have them
    from kimberlite.node.driver import CheckpointPolicy  # type: ignore[attr-defined]
    from kimberlite.node.node import core_config  # type: ignore[attr-defined, no-redef]

REPLICAS = 3
TICK_NS = 10_000_000
PATIENCE_NS = 600_000_000_000
BEGIN_NS = 1_000_000_000_000
FRAME_MAX = 4 << 20
OPS_PER_TICK = 10  # a thousand a second
CLUSTER, CLIENT = bytes.fromhex("ab" * 16), bytes.fromhex("cd" * 16)
CALLGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
clock = time.perf_counter_ns


class NoDisk(FileDisk):
    """Once `is_real` is false, what is written is durable at once and goes nowhere."""

    is_real = True
    _done: list[int]

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None:
        if self.is_real:
            super().submit(token, phases)
        else:
            self._done.append(token)

    def completions(self) -> list[int]:
        if self.is_real:
            self._done = []
            return super().completions()
        done, self._done = self._done, []
        return done


class OneReplica:
    """A driver with all that belongs to it. `out`: what it sends to others; `replies`: to clients."""

    def __init__(self, index: int, directory: Path, now: Callable[[], int]) -> None:
        addresses = [f"127.0.0.1:{22590 + replica}" for replica in range(REPLICAS)]
        config = configuration.from_mapping(
            {
                "storage": {"segment_bytes": 64 << 20, "unsafe": True, "free_bytes_min": 0},
                "timing": {"suspect_min_ms": 60_000, "suspect_max_ms": 60_000},
                "cluster": {"id": CLUSTER.hex(), "replica": index, "addresses": addresses},
            }
        )
        self.index = index
        self.out: list[tuple[int, Message]] = []
        self.replies: list[Message] = []
        format_replica(config, directory)
        self.disk = NoDisk(directory, unsafe=True)
        store = Store(self.disk, framing.make_header)
        recovered = store.recover()
        self.disk.flush()
        region = Region.create(None, catalogue.layout(REPLICAS))
        try:
            recorder = Recorder(region, index, REPLICAS)
        except TypeError:  # an older version, which wants to know when a peer is silent
            recorder = Recorder(region, index, REPLICAS, contact_ns=10**9)  # type: ignore[call-arg]
        machine = EventLog()
        restore(machine, recovered)
        self.core = Replica(
            config=core_config(config),
            codec=FastCodec(),
            recovered=recovered,
            headers=known_headers(store, recovered),
            seed=index + 1,
            now=now(),
        )
        measured: Any = getattr(recorder, "executions", recorder)
        never = CheckpointPolicy(1 << 40, 1 << 60)  # no checkpoint reads back what it has written
        self.driver = Driver(self.core, store, MeasuredMachine(machine, measured), self, recorder, now, never)

    def send(self, replica: int, message: Message) -> None:
        self.out.append((replica, message))

    def send_client(self, client: ClientId, message: Message) -> None:
        self.replies.append(message)

    def refuse(self, message: Message) -> None:
        raise AssertionError(f"{message} was refused")

    def take(self, frame: bytearray, is_request: bool = False) -> int:
        """Let it have what came over the wire; nanoseconds that took."""
        began = clock()
        frames, _, _ = framing.parse(frame, 0, len(frame), FRAME_MAX, CLUSTER)
        messages = [Message(header, body) for header, body in frames]
        if is_request:
            self.driver.on_input((), messages)
        else:
            self.driver.on_input(messages)
        return clock() - began


class Spent(NamedTuple):
    """Nanoseconds for one op."""

    primary: float
    backup: float


PARTS = Spent._fields


class OneProcess:
    """A cluster whose messages are handed over by hand, and whose time is made: every run is the same."""

    def __init__(
        self,
        directory: Path,
        event_count: int = 1,
        make: Callable[[int, Path, Callable[[], int]], OneReplica] = OneReplica,
    ) -> None:
        self._now = BEGIN_NS
        self.replicas = [make(index, directory / str(index), lambda: self._now) for index in range(REPLICAS)]
        for replica in self.replicas:
            replica.driver.start()
        self._request, self._session = 0, 0
        self._go_on_until(lambda: self._leader() is not None)
        leader = self._leader()
        assert leader is not None
        self.primary = leader
        leader.take(wire(self._make(Operation.REGISTER, b"", 0)), is_request=True)
        self._go_on_until(lambda: bool(leader.replies))
        self._session = leader.replies.pop().header.session
        self.backups = [replica for replica in self.replicas if replica is not self.primary]
        for replica in self.replicas:
            replica.disk.is_real = False
        self._count = event_count
        self._body = events.build([os.urandom(128)] * event_count)

    def _leader(self) -> OneReplica | None:
        """Who leads, all others following it."""
        seen = [replica.core.snapshot() for replica in self.replicas]
        if any(int(one.status) for one in seen) or len({one.view for one in seen}) > 1:
            return None
        return self.replicas[seen[0].primary] if min(one.applied for one in seen) == seen[0].op else None

    def _go_on_until(self, done: Callable[[], bool]) -> None:
        deadline = self._now + PATIENCE_NS
        while not done():
            if self._now > deadline:
                raise SystemExit("three replicas do not come to anything")
            self._tick()

    def _tick(self) -> None:
        self._now += TICK_NS
        for replica in self.replicas:
            if replica.disk.is_real:
                replica.disk.flush()
            replica.driver.on_tick()
        self._deliver_all()

    def _make(self, operation: int, body: bytes, count: int) -> Message:
        header = framing.make_header(
            body,
            cluster=CLUSTER,
            command=Command.REQUEST,
            client=CLIENT,
            session=self._session,
            request=self._request,
            operation=operation,
            count=count,
        )
        return Message(header, body)

    def _deliver_all(self) -> None:
        """Messages, and what comes of them, until nobody says anything more."""
        while any(replica.out for replica in self.replicas):
            for replica in self.replicas:
                out, replica.out = replica.out, []
                for to, message in out:
                    self.replicas[to].take(wire(message))

    def op(self) -> tuple[int, int]:
        """Commit one; nanoseconds of the primary, and of both backups."""
        self._request += 1
        primary, backups = self.primary, 0
        spent = primary.take(wire(self._make(Operation.APPLY, self._body, self._count)), is_request=True)
        out, primary.out = primary.out, []
        for to, message in out:
            backups += self.replicas[to].take(wire(message))
        for backup in self.backups:
            acknowledgements, backup.out = backup.out, []
            for _, message in acknowledgements:
                spent += primary.take(wire(message))
        if len(primary.replies) != 1:
            raise SystemExit(f"an op was answered {len(primary.replies)} times")
        primary.replies.clear()
        return spent, backups

    def ops(self, count: int) -> Spent:
        """Commit so many, with the ticks of as many milliseconds; the medians, for others use the processor too."""
        spent: list[tuple[int, int]] = []
        for number in range(count):
            spent.append(self.op())
            self._now += TICK_NS // OPS_PER_TICK
            if number % OPS_PER_TICK == 0:
                self._tick()
        primary, backups = map(statistics.median, zip(*spent, strict=True))
        return Spent(primary, backups / len(self.backups))


def wire(message: Message) -> bytearray:
    return bytearray(message.header.raw + bytes(message.body))


def measure(count: int, event_count: int, rounds: int = 6) -> Spent:
    """The least of several rounds: what it takes when nothing came between."""
    with tempfile.TemporaryDirectory() as directory:
        cluster = OneProcess(Path(directory), event_count)
        cluster.ops(300)
        found = [cluster.ops(count) for _ in range(rounds)]
    return Spent(min(one.primary for one in found), min(one.backup for one in found))


# Two versions


def run(python: str, *arguments: str, under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """This file in another interpreter, with what is installed there."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONHASHSEED": "0"}
    command = [*under, python, "-P", __file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def timed(old: str, new: str, count: int, event_count: int, rounds: int) -> dict[str, object]:
    found: dict[str, list[Spent]] = {"old": [], "new": []}
    for number in range(rounds):
        for name, python in (("old", old), ("new", new))[:: -1 if number % 2 else 1]:
            row = json.loads(run(python, "--ops", str(count), "--events", str(event_count), "--json").stdout)
            found[name].append(Spent(row["primary_us"], row["backup_us"]))
    pairs = list(zip(found["old"], found["new"], strict=True))
    least = {f"{name}_{part}_us": min(getattr(one, part) for one in found[name]) for name in found for part in PARTS}
    ratios = {
        f"{part}_ratio": round(statistics.median(getattr(old, part) / getattr(new, part) for old, new in pairs), 3)
        for part in PARTS
    }
    return {**least, **ratios}


def instructions(python: str, count: int, event_count: int) -> float:
    """Of one op."""

    def commit(ops: int) -> str:
        return run(python, "--fixed", str(ops), "--events", str(event_count), under=CALLGRIND).stderr

    return counted(commit, count // 10, count // 10 + count // 2)


def counted(commit: Callable[[int], str], few: int, many: int) -> float:
    """Instructions of one op: the difference of two runs of different lengths. commit: so many ops under CALLGRIND, and
    what that says."""
    counts = []
    for ops in (few, many):
        found = re.search(r"Collected : (\d+)", commit(ops))
        if found is None:
            raise SystemExit("valgrind did not say how many instructions it has counted")
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=2000, help="of one round")
    parser.add_argument("--events", type=int, default=1, help="in each request; 128 bytes each")
    parser.add_argument("--rounds", type=int, default=10, help="of each version")
    parser.add_argument("--old", help="interpreter of the version to compare with")
    parser.add_argument("--new", default=sys.executable, help="interpreter of the version in question")
    parser.add_argument("--instructions", action="store_true", help="count instructions")
    parser.add_argument("--fixed", type=int, metavar="OPS", help="commit so many and say nothing")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.fixed is not None:
        with tempfile.TemporaryDirectory() as directory:
            OneProcess(Path(directory), chosen.events).ops(chosen.fixed)
        return
    if chosen.instructions:
        pythons = {"old": chosen.old, "new": chosen.new} if chosen.old else {"new": chosen.new}
        row: dict[str, object] = {
            f"{name}_instructions": round(instructions(python, chosen.ops, chosen.events))
            for name, python in pythons.items()
        }
    elif chosen.old:
        row = timed(chosen.old, chosen.new, chosen.ops, chosen.events, chosen.rounds)
    else:
        spent = measure(chosen.ops, chosen.events)
        row = {"primary_us": round(spent.primary / 1e3, 1), "backup_us": round(spent.backup / 1e3, 1)}
    print(json.dumps(row) if chosen.json else ", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
