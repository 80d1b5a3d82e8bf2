"""What being watched costs a commit: p99 of appends with whoever watches, against without, window by window.

    python benches/sinks.py scrapes    # each replica is scraped ten times a second, against not at all
    python benches/sinks.py sinks      # OTLP to who hangs, StatsD to where nobody listens, against no sinks

Three replicas, 64 appends in flight. What is compared is measured by turns: see benches/windows.py. A gate is the upper
end of the 95 % interval of the mean ratio of all rounds; the exit code is 1 when it is above 1.1. Needs an idle
machine, and a directory on a real disk (TMPDIR).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import math
import re
import socket
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from windows import Found, System, by_turns, cluster_of, system_of

from kimberlite.cli.bench_ab import WITHIN_95

CONCURRENCY = 64
PER_SECOND = 10
AT_MOST = 1.1
DROPPED = {"otlp", "statsd"}
ACCEPT = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}


class Scraper(threading.Thread):
    """Scrapes one replica while it is on, on a connection that is kept, as Prometheus does."""

    def __init__(self, address: str, on: threading.Event) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection(address, timeout=10)
        self._on = on
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1 / PER_SECOND):
            if self._on.is_set():
                self._connection.request("GET", "/metrics", headers=ACCEPT)
                self._connection.getresponse().read()
        self._connection.close()


async def scrapes(stack: AsyncExitStack, directory: Path) -> list[System]:
    """One cluster, scraped and not."""
    cluster = await cluster_of(stack, directory, telemetry=True)
    alone = await system_of(stack, cluster, CONCURRENCY)
    on = threading.Event()
    for replica in cluster.replicas:
        scraper = Scraper(str(replica.telemetry), on)
        scraper.start()
        stack.callback(scraper.ended.set)

    async def window(seconds: float) -> Found:
        on.set()
        try:
            return await alone.window(seconds)
        finally:
            on.clear()

    return [System(alone.processes, window), alone]


async def sinks(stack: AsyncExitStack, directory: Path) -> list[System]:
    """Two clusters, one with sinks that do not work: of who hangs, the kernel takes connections, and nobody reads."""
    hangs = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
    settings = (
        f"telemetry.otlp.endpoint=http://127.0.0.1:{hangs.getsockname()[1]}",
        "telemetry.otlp.interval_s=1",
        "telemetry.otlp.timeout_s=1",
        f"telemetry.statsd.address=127.0.0.1:{nobody}",
        "telemetry.statsd.interval_s=1",
    )
    clusters = [
        await cluster_of(stack, directory / which, *chosen, telemetry=True)
        for which, chosen in (("with", settings), ("without", ()))
    ]
    for replica in clusters[0].replicas:
        while not set(re.findall(r'_dropped_total{.*sink="(\w+)"} [1-9]', page(str(replica.telemetry)))) >= DROPPED:
            await asyncio.sleep(0.2)  # until both have failed: what they take to start is not what is measured
    return [await system_of(stack, cluster, CONCURRENCY) for cluster in clusters]


def page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics/essential", timeout=10) as answer:
        return str(answer.read().decode())


GATES = {"scrapes": scrapes, "sinks": sinks}


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The mean of ratios, and where it lies with a confidence of 95 %."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    reach = WITHIN_95[min(len(logs) - 1, len(WITHIN_95)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    low, middle, high = (math.exp(value) for value in (mean - reach, mean, mean + reach))
    return low, middle, high


async def judge(gate: str, rounds: int, seconds: float, directory: Path) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        rows = await by_turns(await GATES[gate](stack, directory), rounds, seconds)
    low, middle, high = interval([one.p99_ms / other.p99_ms for one, other in rows])
    return {
        "gate": f"p99 at {CONCURRENCY} in flight, {gate}, of without",
        "with_ms": round(statistics.median(one.p99_ms for one, _ in rows), 3),
        "without_ms": round(statistics.median(other.p99_ms for _, other in rows), 3),
        "ratio": round(middle, 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "at_most": AT_MOST,
        "holds": high <= AT_MOST,
    }


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"of {', '.join(GATES)}; default: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one window")
    chosen = parser.parse_args()
    if unknown := [gate for gate in chosen.gates if gate not in GATES]:
        parser.error(f"unknown gates: {unknown}")
    holds = True
    for gate in chosen.gates or GATES:
        with tempfile.TemporaryDirectory(prefix="sinks-") as directory:
            row = uvloop.run(judge(gate, chosen.rounds, chosen.seconds, Path(directory)))
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        holds &= row["holds"]
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
