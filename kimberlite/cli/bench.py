"""`bench`: load on a cluster of its own, or on a given one.

One client process with one session keeps `concurrency` appends of `batch` events in
flight. Every latency is kept, so that percentiles are exact. The load is closed-loop: a
slow reply delays the request after it, so that latencies are those at the throughput
shown and say nothing about a fixed arrival rate.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

import kimberlite
from kimberlite.cli import bench_ab, probe, version
from kimberlite.cli.common import json_option, note, print_json, run
from kimberlite.cli.common import seconds as duration
from kimberlite.cli.local import LocalCluster
from kimberlite.cli.replica import settings_option
from kimberlite.config import parse_addresses
from kimberlite.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from kimberlite.client.aio import Log

APPEND_TIMEOUT_S = 30.0
WINDOW_CHECK_S = 0.01


@dataclass(slots=True)
class Window:
    """What was measured: nanoseconds, one latency for each acknowledged request."""

    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    elapsed_ns: int = 0
    cpu_s: float = 0.0


class Load:
    """`concurrency` callers, each of which appends again as soon as it has its answer."""

    def __init__(self, log: Log, concurrency: int, events: list[bytes]) -> None:
        self._log = log
        self._concurrency = concurrency
        self._events = events
        self._callers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._latencies: array[int] | None = None

    def start(self) -> None:
        self._callers = [asyncio.create_task(self._call()) for _ in range(self._concurrency)]

    def record_into(self, latencies: array[int] | None) -> None:
        self._latencies = latencies

    async def stop(self) -> None:
        """Issue nothing more and wait for what is in flight."""
        self._stopping = True
        await asyncio.gather(*self._callers)

    def check(self) -> None:
        """Raise what an append failed with."""
        for caller in self._callers:
            if caller.done():
                caller.result()

    async def _call(self) -> None:
        append, events, clock = self._log.append, self._events, time.perf_counter_ns
        while not self._stopping:
            started = clock()
            await append(events, timeout=APPEND_TIMEOUT_S)
            if self._latencies is not None:
                self._latencies.append(clock() - started)


async def measure(
    addresses: tuple[str, ...],
    concurrency: int,
    batch: int,
    size: int,
    seconds: float,
    warmup: float,
    cluster_cpu_s: Callable[[], float],
    with_client: bool = True,
) -> Window:
    """Load the cluster for `warmup` and then for `seconds`, which are measured. with_client: its processor time too."""
    events = [os.urandom(size) for _ in range(batch)]
    window = Window()
    async with kimberlite.connect(list(addresses)) as log:
        load = Load(log, concurrency, events)
        load.start()
        await pass_time(load, warmup)
        gc.collect()
        own_cpu_s = time.process_time if with_client else float
        cpu_before = cluster_cpu_s() + own_cpu_s()
        started = time.perf_counter_ns()
        load.record_into(window.latencies_ns)
        await pass_time(load, seconds)
        load.record_into(None)
        window.elapsed_ns = time.perf_counter_ns() - started
        window.cpu_s = cluster_cpu_s() + own_cpu_s() - cpu_before
        await load.stop()
    return window


async def pass_time(load: Load, seconds: float) -> None:
    """Sleep in short steps, so that a failed append ends the run at once."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, WINDOW_CHECK_S * 25))
        load.check()


def percentile_ms(sorted_ns: array[int] | list[int], fraction: float) -> float | None:
    """The smallest value that is not below that fraction of all; milliseconds, None without values."""
    if not sorted_ns:
        return None
    index = min(len(sorted_ns) - 1, max(0, -(-int(fraction * 1_000_000) * len(sorted_ns) // 1_000_000) - 1))
    return round(sorted_ns[index] / 1e6, 3)


def row_of(window: Window, replicas: int, concurrency: int, batch: int, size: int, durable: str) -> dict[str, object]:
    """The result as the harness and people get it."""
    count = len(window.latencies_ns)
    seconds = window.elapsed_ns / 1e9
    ordered = sorted(window.latencies_ns)
    return {
        "replicas": replicas,
        "concurrency": concurrency,
        "batch": batch,
        "size": size,
        "seconds": round(seconds, 3),
        "ops_per_s": round(count / seconds, 1),
        "events_per_s": round(count * batch / seconds, 1),
        "p50_ms": percentile_ms(ordered, 0.5),
        "p99_ms": percentile_ms(ordered, 0.99),
        "p999_ms": percentile_ms(ordered, 0.999),
        "max_ms": percentile_ms(ordered, 1.0),
        "cpu_s": round(window.cpu_s, 3),
        "durable": durable,
        "n": count,
        "version": version(),
    }


def durability(addresses: Sequence[str]) -> str:
    """What the replicas say an acknowledgement means on their disks: the weakest of them counts."""
    said = [answer for answer in probe.fetch_all(addresses, 2.0) if not isinstance(answer, UnavailableError)]
    storage = [dict(cast("dict[str, object]", status["storage"])) for status in said]
    if not storage:
        return "unknown"
    if any(one["unsafe"] for one in storage):
        return "no: storage.unsafe"
    return "O_DIRECT, O_DSYNC" if all(one["mode"] == "direct" for one in storage) else "fdatasync"


def by_load(batch: int, size: int) -> bench_ab.LoadIt:
    """The load of this command, as `--ab` asks for it: of processor time, that of the replicas alone counts."""

    def load(cluster: LocalCluster, concurrency: int, seconds: float, warmup: float) -> bench_ab.Spent:
        window = run(measure(cluster.addresses, concurrency, batch, size, seconds, warmup, cluster.cpu_seconds, False))
        return bench_ab.Spent(round(window.cpu_s * 1e9), len(window.latencies_ns))

    return load


def show_comparisons(setting: str, levels: Sequence[int], found: Sequence[bench_ab.Round], as_json: bool) -> None:
    for level in levels:
        compared = bench_ab.compare(setting, level, [one[level] for one in found])
        if as_json:
            print_json(compared.row())
        else:
            click.echo(compared.text())
    note("closed loop; processor time of all replicas, without the client")


@click.command(short_help="Measure a cluster under load.")
@click.option(
    "--replicas", type=click.IntRange(1, 6), default=3, show_default=True, help="Size of the temporary cluster."
)
@click.option("--concurrency", type=click.IntRange(1, 65_536), default=64, show_default=True, help="Appends in flight.")
@click.option("--batch", type=click.IntRange(1, 65_536), default=1, show_default=True, help="Events in one append.")
@click.option("--size", type=click.IntRange(0, 1 << 20), default=128, show_default=True, help="Bytes of one event.")
@click.option(
    "--seconds", type=duration(0.1), metavar="SECONDS", default=10.0, show_default=True, help="Measured time."
)
@click.option(
    "--warmup", type=duration(0), metavar="SECONDS", default=1.0, show_default=True, help="Time before, not measured."
)
@click.option(
    "--addresses",
    type=parse_addresses,
    metavar="HOST:PORT,...",
    help="Load this cluster instead of a temporary one. It keeps the events.",
)
@click.option(
    "--ab",
    metavar="SECTION.KEY",
    help="What this setting, which is true or false, costs: processor time of an operation with it and without it, of "
    "two clusters by turns, at 1 append in flight and at --concurrency. --seconds are of each of the two in a round.",
)
@click.option(
    "--rounds", type=click.IntRange(2, 1000), default=8, show_default=True, help="Of --ab: starts of both clusters."
)
@settings_option
@json_option
def bench(
    replicas: int,
    concurrency: int,
    batch: int,
    size: int,
    seconds: float,
    warmup: float,
    addresses: tuple[str, ...] | None,
    ab: str | None,
    rounds: int,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a cluster under load.

    Starts a temporary cluster in TMPDIR with durable writes (a tmpfs is refused), loads it from
    this process, and removes it. Figures depend on the machine: compare them with those of
    another system on the same machine, in the same minute.
    """
    if ab is not None:
        if addresses is not None:
            raise UsageError("--ab starts clusters of its own: give it without --addresses")
        bench_ab.check_setting(ab)
        levels = sorted({1, concurrency})
        found = bench_ab.rounds_of(ab, replicas, settings, rounds, levels, seconds, by_load(batch, size))
        show_comparisons(ab, levels, list(found), as_json)
        return
    with ExitStack() as stack:
        cpu: Callable[[], float] = float
        if addresses is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kimberlite-bench-")))
            cluster = stack.enter_context(LocalCluster(directory, replicas, telemetry=True, settings=settings))
            cluster.prepare()
            cluster.start_all()
            cluster.wait_ready()
            addresses, cpu = cluster.addresses, cluster.cpu_seconds
        durable = durability(addresses)
        window = run(measure(addresses, concurrency, batch, size, seconds, warmup, cpu))
        row = row_of(window, len(addresses), concurrency, batch, size, durable)
    if as_json:
        print_json(row)
        return
    width = max(map(len, row))
    for name, value in row.items():
        click.echo(f"{name:<{width}}  {value:,}" if isinstance(value, int | float) else f"{name:<{width}}  {value}")
    note("closed loop; CPU seconds are those of the replicas and of this client")
