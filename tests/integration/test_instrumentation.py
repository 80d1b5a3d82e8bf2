"""docs/INSTRUMENTATION_DESIGN.md as written: its commands run, its collector's configuration holds together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from receivers import StatsdServer, until

from kimberlite.cli.local import LocalCluster
from kimberlite.telemetry import catalogue

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "INSTRUMENTATION_DESIGN.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
COLLECTOR = CHECKOUT / "deploy" / "otel" / "collector.yaml"


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory, settings: tuple[str, ...]) -> Any:
    with LocalCluster(tmp_path_factory.mktemp("page"), 1, telemetry=True, settings=settings) as cluster:
        cluster.prepare()
        cluster.start_all()
        cluster.wait_ready(60)
        yield cluster.replicas[0]


def shell(command: str) -> list[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("kimberlite ", f"{sys.executable} -P -m kimberlite ")],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LASTING = [command for command in COMMANDS if " start " in command]
SHORT = [command for command in COMMANDS if command not in LASTING]


@pytest.mark.parametrize("command", SHORT)
def test_a_command_of_the_page(command: str, replica: Any) -> None:
    printed = shell(command.replace("127.0.0.1:9471", replica.telemetry).replace("DIR", str(replica.data)))
    assert printed
    if "grep -c" in command:
        assert printed == [str(len(catalogue.METRICS))]
    if "openmetrics" in command:
        assert printed == ["# EOF"]
    if command.endswith("/metrics/essential"):
        assert sum(line.startswith("# TYPE") for line in printed) == sum(one.essential for one in catalogue.METRICS)


def test_the_start_with_sinks(start_cluster: Any, tmp_path: Path, settings: tuple[str, ...]) -> None:
    (command,) = LASTING
    statsd = StatsdServer(tmp_path)
    told = re.findall(r"--set (\S+)", command.replace("127.0.0.1:8125", f"127.0.0.1:{statsd.port}"))
    assert len(told) == 2
    try:
        start_cluster(1, telemetry=True, settings=(*told, "telemetry.statsd.interval_s=1"))
        until(lambda: statsd.gauges.get("vsr.replica_0.replica_up") == 1, "its metrics arrive")
    finally:
        statsd.close()


def test_the_collector_holds_together() -> None:
    """No collector is to be had here: that every part of a pipeline is there, and that no part is idle."""
    document = yaml.safe_load(COLLECTOR.read_text())
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in document["service"]["pipelines"].values():
        for kind, names in used.items():
            names |= set(pipeline[kind])
    assert used == {kind: set(document[kind]) for kind in used}
    (endpoint,) = re.findall(r'^#   endpoint = "http://(.*)"$', COLLECTOR.read_text(), re.MULTILINE)
    assert document["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == endpoint
    assert endpoint in LASTING[0]
