"""How metrics leave a node, each way proven against something that is not of this project.

One cluster of three replicas is loaded once; what it has counted stands still afterwards, but for what an idle cluster
counts too.
"""

from __future__ import annotations

import gzip
import http.client
import re
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kimberlite import sync
from kimberlite.cli.local import LocalCluster

REPLICAS = 3
APPENDS = 200
SCRAPES, ROUNDS = 100, 10
SCRAPE_CPU_S = 0.002
# On the machine of that target: compressing TEXT. What shares the processors slows both down.
YARDSTICK_S = 0.00018
LINE = b'vsr_%s_total{cluster="5f0c7b9a3f6e4d6a",replica_id="1"} %d\n'
TEXT = b"".join(LINE % (b"x" * (number % 40), number) for number in range(900))
SCRAPE_BYTES = 9 << 10
ACCEPTED = {
    "text": "text/plain;version=0.0.4",
    "OpenMetrics": "application/openmetrics-text;version=1.0.0",
    "protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, settings: tuple[str, ...]) -> Iterator[LocalCluster]:
    """Three replicas that have done some work."""
    directory = tmp_path_factory.mktemp("sinks")
    with LocalCluster(directory, REPLICAS, telemetry=True, settings=settings) as made:
        made.prepare()
        made.start_all()
        made.wait_ready(60)
        with sync.connect(list(made.addresses)) as log:
            for number in range(APPENDS):
                log.append([b"event %d" % number] * 3, timeout=30)
        yield made


def scrape(cluster: LocalCluster, replica: int, path: str = "/metrics", **headers: str) -> tuple[bytes, Any]:
    """Body as it came, and headers."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{cluster.replicas[replica].telemetry}{path}", headers=names)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read(), answer.headers


def text_of(cluster: LocalCluster, replica: int, path: str = "/metrics") -> str:
    return scrape(cluster, replica, path)[0].decode()


def test_the_catalogue_is_what_replicas_expose(cluster: LocalCluster, kimberlite_command: Any) -> None:
    names = kimberlite_command("telemetry", "catalogue", "--names").stdout.decode().split()
    essential = kimberlite_command("telemetry", "catalogue", "--names", "--essential").stdout.decode().split()
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert re.findall(r"^### `(\w+)`$", documented, re.MULTILINE) == names
    for replica in range(REPLICAS):
        exposed = [re.findall(r"^# TYPE (\w+) ", text_of(cluster, replica, path), re.MULTILINE) for path in PATHS]
        assert exposed == [names, essential]


PATHS = ("/metrics", "/metrics/essential")


def cpu_s(connection: http.client.HTTPConnection) -> float:
    """Of the telemetry process, as it says itself."""
    connection.request("GET", "/metrics")
    (found,) = re.findall(
        r"^vsr_telemetry_cpu_seconds_total\{.*\} (\S+)$", connection.getresponse().read().decode(), re.M
    )
    return float(found)


@pytest.mark.parametrize("form", ACCEPTED)
def test_a_scrape_is_cheap(form: str, cluster: LocalCluster) -> None:
    """A hundred of them, on a connection that is kept, as Prometheus does it: CPU time of the telemetry process, its
    looking at the replica once a second included. The quickest round counts: others may have shared their cache."""
    address = cluster.replicas[0].telemetry
    assert address is not None
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"Accept": ACCEPTED[form], "Accept-Encoding": "gzip"}
    costs, yardsticks, body = [], [], b""
    for _ in range(ROUNDS):
        before = cpu_s(connection)
        for _ in range(SCRAPES // ROUNDS):
            connection.request("GET", "/metrics", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.headers["Content-Encoding"] == "gzip"
        costs.append((cpu_s(connection) - before) / (SCRAPES // ROUNDS))
        before = time.thread_time()
        zlib.compress(TEXT, 5)
        yardsticks.append(time.thread_time() - before)
    connection.close()
    slowness = max(min(yardsticks) / YARDSTICK_S, 1)
    print(f"{form}: {min(costs) * 1e3:.2f} ms of CPU on a machine {slowness:.2f} times as slow as it could be")
    print(f"{len(body)} bytes, {len(gzip.decompress(body))} without gzip")
    assert min(costs) <= SCRAPE_CPU_S * slowness
    assert len(body) <= SCRAPE_BYTES
