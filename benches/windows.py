"""Gates of whole clusters: running systems by turns, window after window, so that all meet the same machine.

    python benches/windows.py quorum    # one in flight, against a bare quorum: operations a second, at least 0.45
    python benches/windows.py scrub     # 64 in flight, scrubber on against off: p99, at most 1.1

The bare quorum is three processes on uvloop whose handlers do nothing but what no replica can leave out: a request to
the primary, to both backups and to the own disk, an answer from each when it is written, a reply when two of three
have it. Frames are as large as ours, and each process makes the synchronous writes that a replica makes for an op.
It checks nothing, remembers nothing and survives nothing: what it does in a second is the most that this design can.

While one system is measured the others are stopped (SIGSTOP). A gate is the median of the ratios of --rounds rounds of
one window each; the exit code is 1 when it does not hold. Needs an idle machine, and a directory on a real disk
(TMPDIR). Only processes started here are stopped or ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import kimberlite
from kimberlite._fast.append import AlignedBuffer
from kimberlite.cli.bench import Load
from kimberlite.cli.local import LocalCluster, free_port

HOST = "127.0.0.1"
FRAME = 256 + 8 + 128  # header, and a batch of one event
WRITES = (8192,)  # that a replica makes before it acknowledges an op: two copies of it, into its ring
FILE_BYTES = 32 << 20
SETTLE_S = 0.1  # of a window, not measured
# Nobody is suspected for having been stopped.
PATIENT = ("timing.suspect_min_ms=60000", "timing.suspect_max_ms=60000", "timing.abdicate_ms=60000")


class Found(NamedTuple):
    """Of one window."""

    per_s: float
    p99_ms: float


def found(latencies_ns: list[int], seconds: float) -> Found:
    ordered = sorted(latencies_ns)
    if not ordered:
        raise SystemExit("nothing was answered within a window")
    return Found(len(ordered) / seconds, ordered[len(ordered) * 99 // 100] / 1e6)


class System(NamedTuple):
    """What is measured: its processes, and one window of it."""

    processes: list[int]
    window: Callable[[float], Awaitable[Found]]

    def signal(self, number: int) -> None:
        signal_all(self.processes, number)


def signal_all(processes: list[int], number: int) -> None:
    for process in processes:
        os.kill(process, number)


# Ours


async def cluster_of(stack: AsyncExitStack, directory: Path, *settings: str, telemetry: bool = False) -> LocalCluster:
    cluster = stack.enter_context(LocalCluster(directory, 3, telemetry=telemetry, settings=(*PATIENT, *settings)))
    cluster.prepare()
    cluster.start_all()
    await asyncio.to_thread(cluster.wait_ready)
    return cluster


async def ours(stack: AsyncExitStack, directory: Path, concurrency: int, *settings: str) -> System:
    return await system_of(stack, await cluster_of(stack, directory, *settings), concurrency)


async def system_of(stack: AsyncExitStack, cluster: LocalCluster, concurrency: int) -> System:
    processes = [replica.process.pid for replica in cluster.replicas if replica.process is not None]
    stack.callback(signal_all, processes, signal.SIGCONT)
    log = await stack.enter_async_context(kimberlite.connect(list(cluster.addresses)))
    event = [os.urandom(128)]

    async def window(seconds: float) -> Found:
        load, latencies = Load(log, concurrency, event), array("q")
        load.start()
        await asyncio.sleep(SETTLE_S)
        began = time.perf_counter()
        load.record_into(latencies)
        await asyncio.sleep(seconds)
        load.record_into(None)
        taken = time.perf_counter() - began
        await load.stop()
        return found(list(latencies), taken)

    await window(0.5)
    return System(processes, window)


# The bare quorum


class Journal:
    """Makes the writes of one op, in the caller's thread."""

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        zeros = memoryview(AlignedBuffer(1 << 20))
        for offset in range(0, FILE_BYTES, 1 << 20):
            os.pwrite(file, zeros, offset)
        os.fsync(file)
        os.close(file)
        self._file = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
        self._buffer = memoryview(AlignedBuffer(max(WRITES)))
        self._offset = 0

    def write(self, frame: bytes) -> None:
        self._buffer[: len(frame)] = frame
        for size in WRITES:
            if self._offset + size > FILE_BYTES:
                self._offset = 0
            os.pwrite(self._file, self._buffer[:size], self._offset)
            self._offset += size


class Frames(asyncio.Protocol):
    """Frames of one size, each handed on as it comes."""

    def __init__(self, on_frame: Callable[[Frames, bytes], None]) -> None:
        self._on_frame = on_frame
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._descriptor = connection.fileno()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        while len(data) >= FRAME:
            self._on_frame(self, data[:FRAME])
            data = data[FRAME:]
        self._rest = data

    def send(self, frame: bytes) -> None:
        os.write(self._descriptor, frame)


async def dial(port: int, on_frame: Callable[[Frames, bytes], None]) -> Frames:
    while True:
        try:
            _, frames = await asyncio.get_running_loop().create_connection(lambda: Frames(on_frame), HOST, port)
            return frames
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)


async def serve_bare(port: int, index: int, directory: Path) -> None:
    """The primary is the one of index 0, and listens on `port`; the others behind it."""
    journal = Journal(directory / f"bare-{index}")
    backups: list[Frames] = []
    clients: list[Frames] = []
    written: dict[bytes, int] = {}

    def on_acknowledgement(_: Frames | None, frame: bytes) -> None:
        number = frame[:8]
        written[number] = written.get(number, 0) + 1
        if written[number] == 2:
            clients[-1].send(frame)
        elif written[number] == 3:
            del written[number]

    def on_request(client: Frames, frame: bytes) -> None:
        clients[:] = [client]
        for backup in backups:
            backup.send(frame)
        journal.write(frame)
        on_acknowledgement(None, frame)

    def on_prepare(primary: Frames, frame: bytes) -> None:
        journal.write(frame)
        primary.send(frame)

    if not index:
        backups += [await dial(port + other, on_acknowledgement) for other in (1, 2)]
    handler = on_prepare if index else on_request
    server = await asyncio.get_running_loop().create_server(lambda: Frames(handler), HOST, port + index)
    await server.serve_forever()


async def bare(stack: AsyncExitStack, directory: Path) -> System:
    port = free_port(3)
    processes: list[int] = []
    for index in range(3):
        command = [sys.executable, "-P", __file__, "serve", str(port), str(index), str(directory)]
        process = subprocess.Popen(command)
        stack.callback(process.wait)
        stack.callback(process.kill)
        processes.append(process.pid)
    answered: asyncio.Future[None] | None = None

    def on_reply(_: Frames, frame: bytes) -> None:
        if answered is not None and not answered.done():
            answered.set_result(None)

    primary = await dial(port, on_reply)
    number = 0

    async def window(seconds: float) -> Found:
        nonlocal answered, number
        latencies: list[int] = []
        began = time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            number += 1
            answered = asyncio.get_running_loop().create_future()
            primary.send(number.to_bytes(8, "little") + bytes(FRAME - 8))
            await answered
            latencies.append(int((time.perf_counter() - now) * 1e9))
        return found(latencies, time.perf_counter() - began)

    await window(0.5)
    return System(processes, window)


# The gates


async def by_turns(systems: list[System], rounds: int, seconds: float) -> list[tuple[Found, ...]]:
    """One window of each in every round, in alternating order."""
    for system in systems:
        system.signal(signal.SIGSTOP)
    rows = []
    for number in range(rounds):
        seen: dict[int, Found] = {}
        for which in range(len(systems))[:: -1 if number % 2 else 1]:
            systems[which].signal(signal.SIGCONT)
            seen[which] = await systems[which].window(seconds)
            systems[which].signal(signal.SIGSTOP)
        rows.append(tuple(seen[which] for which in range(len(systems))))
    for system in systems:
        system.signal(signal.SIGCONT)
    return rows


async def quorum(rounds: int, seconds: float, directory: Path) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        systems = [await ours(stack, directory / "ours", 1), await bare(stack, directory)]
        rows = await by_turns(systems, rounds, seconds)
    return {
        "gate": "one in flight, of a bare quorum",
        "ours_per_s": round(statistics.median(one.per_s for one, _ in rows), 1),
        "bare_per_s": round(statistics.median(other.per_s for _, other in rows), 1),
        "ratio": round(statistics.median(one.per_s / other.per_s for one, other in rows), 3),
        "at_least": 0.45,
    }


async def scrub(rounds: int, seconds: float, directory: Path) -> dict[str, Any]:
    """On: at the rate that it has when nothing is said, tour after tour."""
    async with AsyncExitStack() as stack:
        on = await ours(stack, directory / "on", 64, "scrub.tour_interval_s=0")
        off = await ours(stack, directory / "off", 64, "scrub.bytes_per_s=0")
        rows = await by_turns([on, off], rounds, seconds)
    return {
        "gate": "p99 at 64 in flight, scrubber on, of off",
        "on_ms": round(statistics.median(one.p99_ms for one, _ in rows), 3),
        "off_ms": round(statistics.median(other.p99_ms for _, other in rows), 3),
        "ratio": round(statistics.median(one.p99_ms / other.p99_ms for one, other in rows), 3),
        "at_most": 1.1,
    }


GATES = {"quorum": quorum, "scrub": scrub}


def main() -> None:
    import uvloop

    if sys.argv[1:2] == ["serve"]:
        uvloop.run(serve_bare(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"of {', '.join(GATES)}; default: all")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one window")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if unknown := [gate for gate in chosen.gates if gate not in GATES]:
        parser.error(f"unknown gates: {unknown}")
    rows = []
    for gate in chosen.gates or GATES:
        with tempfile.TemporaryDirectory(prefix="windows-") as directory:
            row = uvloop.run(GATES[gate](chosen.rounds, chosen.seconds, Path(directory)))
        row["holds"] = row["ratio"] >= row["at_least"] if "at_least" in row else row["ratio"] <= row["at_most"]
        rows.append(row)
        if not chosen.json:
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if chosen.json:
        print(json.dumps(rows))
    sys.exit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()
