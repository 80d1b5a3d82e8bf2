"""The log of real processes: the lines of a start, a kill, a failover and a stop, by their ids; none while nothing
happens; never what clients append; and a standard error that does not take them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kimberlite import sync
from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster
from kimberlite.telemetry.log import LINES
from kimberlite.types import REPLICAS_MAX

MARKER = b"MARKER-7d1c"
IDLE_S = 3.0
ENVELOPE = ["time", "level", "id", "cluster", "replica", "view", "op", "message", "fields"]


def lines_of(cluster: LocalCluster, index: int) -> list[dict[str, Any]]:
    """What a replica has told, oldest first."""
    text = cluster.replicas[index].log.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def ids_of(cluster: LocalCluster, index: int) -> list[str]:
    return [line["id"] for line in lines_of(cluster, index)]


def test_start_kill_failover_and_stop(
    start_cluster: Any, primary_of: Callable[[Any], int], wait_until: Callable[..., None]
) -> None:
    cluster: LocalCluster = start_cluster(3, settings=["limits.sessions_max=16"])
    with sync.connect(list(cluster.addresses)) as log:
        for number in range(50):
            log.append([MARKER + b"%d" % number])
        with pytest.raises(Exception, match=r"large|bytes"):
            log.append([MARKER * (1 << 20)])
    for index in range(3):
        assert {"started", "recovered", "view_changed"} <= set(ids_of(cluster, index))
    old = primary_of(cluster)
    others = [index for index in range(3) if index != old]
    before = [len(ids_of(cluster, index)) for index in range(3)]
    cluster.kill(old)
    wait_until(lambda: all("view_changed" in ids_of(cluster, index)[before[index] :] for index in others), "failover")
    for index in others:
        told = lines_of(cluster, index)[before[index] :]
        (changed,) = [line for line in told if line["id"] == "view_changed"]
        assert changed["fields"]["cause"] in {"primary_silent", "primary_gone", "newer_view"}
        assert changed["fields"]["since_left_ns"] > 0
        assert changed["view"] == changed["fields"]["view"]
    told = [line for index in others for line in lines_of(cluster, index)[before[index] :]]
    assert {line["id"] for line in told} >= {"suspected", "view_change_started", "view_changed", "primary"}
    assert [line["fields"] for line in told if line["id"] == "primary"] == [{"role": "primary"}]
    cluster.start(old)
    cluster.wait_ready(60)
    assert ids_of(cluster, old)[before[old] :].count("started") == 1
    wait_until(lambda: "life_begun" in ids_of(cluster, others[0])[before[others[0]] :], "it is heard again")
    assert cluster.kill(old, signal.SIGTERM) == 0
    assert ids_of(cluster, old)[-2:] == ["stopping", "stopped"]
    assert lines_of(cluster, old)[-1]["fields"] == {"how": "in order"}
    _are_well_formed(cluster)


def _are_well_formed(cluster: LocalCluster) -> None:
    for index in range(3):
        assert MARKER[:6] not in cluster.replicas[index].log.read_bytes()
        stamps = []
        for line in lines_of(cluster, index):
            assert list(line) == ENVELOPE
            assert [field.name for field in LINES[line["id"]].fields] == list(line["fields"])
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
            assert line["replica"] == index < REPLICAS_MAX
            assert line["message"].startswith(f"replica {index} ")
            stamps.append(line["time"])
        assert stamps == sorted(stamps)


def test_nothing_is_told_while_nothing_happens(start_cluster: Any, wait_until: Callable[..., None]) -> None:
    cluster: LocalCluster = start_cluster(3)
    wait_until(lambda: all("recovered" in ids_of(cluster, index) for index in range(3)), "all are up")

    def sizes() -> list[int]:
        return [replica.log.stat().st_size for replica in cluster.replicas]

    def has_settled() -> bool:
        before = sizes()
        time.sleep(1.0)
        return sizes() == before

    wait_until(has_settled, "the start is over")
    with sync.connect(list(cluster.addresses)) as log:
        before = sizes()
        log.append([b"one"] * 100)  # nor of an append
    time.sleep(IDLE_S)
    assert sizes() == before


@pytest.fixture
def full_pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that somebody holds open, and nobody reads."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(held, b"x" * 4096)
    except BlockingIOError:
        pass
    yield path
    os.close(held)


@pytest.mark.parametrize("what", ["/dev/full", "a full pipe"])
def test_a_standard_error_that_takes_nothing(
    what: str, full_pipe: Path, tmp_path: Path, settings: tuple[str, ...], wait_until: Callable[..., None]
) -> None:
    """It costs the lines, and a counter: the replica starts, commits, counts them and stops as ever."""
    cluster = LocalCluster(tmp_path / "cluster", 1, telemetry=True, settings=settings)
    cluster.prepare()
    cluster.replicas[0].log.symlink_to(full_pipe if what == "a full pipe" else what)
    with cluster:
        cluster.start_all()
        cluster.wait_ready(60)
        with sync.connect(list(cluster.addresses)) as log:
            began = time.monotonic()
            assert log.append([b"event"] * 10) == 0
            assert time.monotonic() - began < 5
        wait_until(lambda: _dropped(cluster) >= 2, "started and recovered are counted as dropped", 30)
        assert probe.fetch_status(cluster.addresses[0], 10)["unhealthy"] == ""
        began = time.monotonic()
        assert cluster.kill(0, signal.SIGTERM) == 0
        assert time.monotonic() - began < 10


def _dropped(cluster: LocalCluster) -> float:
    with urllib.request.urlopen(f"http://{cluster.replicas[0].telemetry}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r'^vsr_telemetry_dropped_total\{[^}]*sink="log"[^}]*\} (\S+)$', text, re.MULTILINE)
    assert found is not None
    return float(found[1])
