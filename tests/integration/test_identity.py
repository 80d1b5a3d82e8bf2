"""Who a replica is, on real processes: a disk that is formatted anew counts nowhere, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kimberlite
from kimberlite import config as configuration
from kimberlite._fast.framing import make_header
from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster
from kimberlite.config import Config
from kimberlite.errors import KimberliteError, NotMemberError
from kimberlite.node.format import format_replica
from kimberlite.node.identity import all_born, draft_of, unborn
from kimberlite.types import root_header

TIMEOUT_S = 40.0


class Cluster:
    """Processes whose data has identities. `told`: what each was told of the cluster when it was formatted."""

    def __init__(self, directory: Path, count: int, settings: tuple[str, ...]) -> None:
        self.processes = LocalCluster(directory, count, settings=settings)
        self.processes.choose_addresses()
        cluster = secrets.token_hex(16)
        self.configs: list[Config] = []
        for replica in self.processes.replicas:
            document: dict[str, object] = {
                "cluster": {"id": cluster, "replica": replica.index, "addresses": list(self.processes.addresses)}
            }
            for setting in settings:
                configuration.apply_override(document, setting)
            self.configs.append(configuration.from_mapping(document))
        self.origin = root_header(make_header, self.configs[0].cluster_id).checksum

    def format(self, index: int) -> None:
        """As an operator does who has one machine before him."""
        config = self.configs[index]
        identity = unborn(draft_of(config, self.origin), index, secrets.token_bytes(16))
        format_replica(config, self.processes.replicas[index].data, identity)

    def format_all(self) -> None:
        identities = all_born(self.configs[0], self.origin, lambda: secrets.token_bytes(16))
        for config, replica, identity in zip(self.configs, self.processes.replicas, identities, strict=True):
            format_replica(config, replica.data, identity)

    def end(self, index: int) -> None:
        process = self.processes.replicas[index].process
        assert process is not None
        process.kill()
        process.wait()
        self.processes.replicas[index].forget()

    def exit_code(self, index: int) -> int:
        """Of a process that ends by itself."""
        process = self.processes.replicas[index].process
        assert process is not None
        code = process.wait(TIMEOUT_S)
        self.processes.replicas[index].forget()
        return code

    def log(self, index: int) -> str:
        return self.processes.replicas[index].log.read_text(encoding="utf-8", errors="replace")

    def append(self, *events: bytes, timeout: float = TIMEOUT_S) -> None:
        async def run() -> None:
            async with kimberlite.connect(list(self.processes.addresses), timeout=timeout) as log:
                await log.append(list(events), timeout=timeout)

        asyncio.run(run())

    def events(self) -> list[bytes]:
        async def run() -> list[bytes]:
            async with kimberlite.connect(list(self.processes.addresses), timeout=TIMEOUT_S) as log:
                return [event async for event in log.read(raw=True)]

        return asyncio.run(run())


@pytest.fixture
def clusters(tmp_path: Path, settings: tuple[str, ...]) -> Iterator[list[Cluster]]:
    made: list[Cluster] = []
    try:
        yield made
    finally:
        for cluster in made:
            cluster.processes.stop()


@pytest.mark.parametrize("count", [3, 5])
def test_a_lost_disk_that_is_formatted_anew_is_refused_and_nothing_is_lost(
    clusters: list[Cluster], tmp_path: Path, settings: tuple[str, ...], count: int
) -> None:
    """A quorum acknowledges, and the others are behind; a disk of it is formatted anew, the rest of it ends. The new
    disk and those behind would be a quorum without what was acknowledged."""
    cluster = Cluster(tmp_path / "cluster", count, settings)
    clusters.append(cluster)
    cluster.format_all()
    quorum = list(range(count // 2 + 1))
    cluster.processes.start_all()
    cluster.processes.wait_ready()
    cluster.append(b"seen by all")
    for index in range(len(quorum), count):
        cluster.end(index)
    cluster.append(*(b"acknowledged %d" % number for number in range(20)))
    for index in quorum:
        cluster.end(index)
    lost = quorum[-1]
    data = cluster.processes.replicas[lost].data
    aside = tmp_path / "aside"
    data.rename(aside)
    cluster.format(lost)
    for index in range(len(quorum), count):
        cluster.processes.start(index)
    cluster.processes.start(lost)
    assert cluster.exit_code(lost) == NotMemberError.exit_code
    said = cluster.log(lost)
    assert f"other data of replica {lost}" in said and "put it back" in said and "new cluster id" in said
    with pytest.raises(KimberliteError):
        cluster.append(b"without the quorum", timeout=3.0)
    for index in quorum[:-1]:
        cluster.processes.start(index)
    cluster.append(b"after")
    expected = [b"seen by all", *(b"acknowledged %d" % number for number in range(20))]
    found = cluster.events()
    assert found[: len(expected)] == expected and found[-1] == b"after"
    # Put back, the first disk goes on as if nothing had been.
    shutil.rmtree(data)
    aside.rename(data)
    cluster.processes.start(lost)
    cluster.processes.wait_ready()
    assert cluster.events() == found


def test_a_cluster_is_born_when_all_have_met_and_says_for_whom_it_waits(
    clusters: list[Cluster], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    cluster = Cluster(tmp_path / "cluster", 3, settings)
    clusters.append(cluster)
    for index in range(3):
        cluster.format(index)
    for index in (0, 1):
        cluster.processes.start(index)
    deadline = time.monotonic() + TIMEOUT_S
    waits = ""
    addresses = cluster.processes.addresses
    while "has not heard all others yet" not in waits or "was not heard yet" not in waits:
        assert time.monotonic() < deadline, waits
        answers = probe.fetch_all(addresses[:1], 5)
        waits = str(answers[0]["unhealthy"]) if isinstance(answers[0], dict) else str(answers[0])
    assert "not born yet" in waits
    cluster.processes.start(2)
    cluster.append(b"born")
    for index in range(3):
        cluster.end(index)
    cluster.processes.start_all()
    cluster.append(b"again")
    assert cluster.events() == [b"born", b"again"]


def test_a_process_of_an_earlier_formatting_ends_nobody_of_the_cluster(
    clusters: list[Cluster], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """The same cluster id was formatted twice, and one process of the first time still runs at its address."""
    cluster = Cluster(tmp_path / "cluster", 3, settings)
    clusters.append(cluster)
    cluster.format_all()
    zombie = cluster.processes.replicas[1].data
    kept = tmp_path / "of the first time"
    zombie.rename(kept)
    for index in (0, 2):
        shutil.rmtree(cluster.processes.replicas[index].data)
    cluster.format_all()
    shutil.rmtree(zombie)
    kept.rename(zombie)
    cluster.processes.start(1)
    for index in (0, 2):
        cluster.processes.start(index)
    cluster.append(b"by a quorum of the second time")
    cluster.end(1)  # its log says below whether it was refused, and it did not end by itself
    assert "counts nowhere" not in cluster.log(0) + cluster.log(2)
    cluster.append(b"and again")
    assert cluster.events() == [b"by a quorum of the second time", b"and again"]
    for index in (0, 2):
        process = cluster.processes.replicas[index].process
        assert process is not None and process.poll() is None
