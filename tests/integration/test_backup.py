"""`kimberlite backup` beside a running cluster, and new clusters from it: every event, at its position."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kimberlite.cli.local import LocalCluster

NEW = "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"
CHECKPOINTS = ("checkpoint.ops=64", f"storage.segment_bytes={8 << 20}", f"limits.frame_bytes_max={4 << 20}")
PART_BYTES = 3 << 20

Restore = Callable[..., LocalCluster]


def summary(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.fixture
def restore_cluster(
    kimberlite_command: Any, settings: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> Restore:
    """Restore all replicas of a new cluster, and start it."""
    clusters: list[LocalCluster] = []

    def restore(source: object, replicas: int = 3, *, options: Sequence[object] = ()) -> LocalCluster:
        directory = tmp_path / f"restored-{len(clusters)}"
        directory.mkdir()
        cluster = LocalCluster(directory, replicas, settings=settings)
        clusters.append(cluster)
        cluster.choose_addresses()
        items = [item for setting in settings for item in ("--set", setting)]
        results = []
        for replica in cluster.replicas:
            who = ("--cluster", NEW, "--replica", replica.index, "--addresses", ",".join(cluster.addresses))
            results.append(
                summary(kimberlite_command("restore", "--json", source, *who, *items, *options, replica.data))
            )
        assert len({result["identity"] for result in results}) == 1
        cluster.start_all()
        cluster.wait_ready(60)
        return cluster

    def stop() -> None:
        for cluster in clusters:
            cluster.stop()
            for replica in cluster.replicas:
                if replica.log.exists():
                    sys.stderr.write(f"--- {replica.log}\n{replica.log.read_text(errors='replace')[-4000:]}\n")

    request.addfinalizer(stop)
    return restore


def test_a_new_cluster_from_a_backup_of_a_running_one(
    start_cluster: Any,
    kimberlite_command: Any,
    restore_cluster: Restore,
    environment: dict[str, str],
    mixed_lines: Any,
    settled: Any,
    tmp_path: Path,
) -> None:
    cluster = start_cluster(3, settings=CHECKPOINTS)
    target = tmp_path / "backup"
    lines = b"".join(mixed_lines(60_000, 1))
    data = cluster.replicas[2].data

    def taken(*options: str) -> dict[str, Any]:
        return summary(kimberlite_command("backup", "--json", *options, data, target))

    addresses = ",".join(cluster.addresses)
    appending = subprocess.Popen(
        [sys.executable, "-P", "-m", "kimberlite", "append", "--addresses", addresses],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert appending.stdin is not None
    before: dict[str, Any] = {"end_position": 0, "last_op": 0}
    during = 0
    for part in range(0, len(lines), PART_BYTES):
        appending.stdin.write(lines[part : part + PART_BYTES])
        result = taken()
        assert result["end_position"] >= before["end_position"] and result["last_op"] >= before["last_op"]
        during += before["end_position"] < result["end_position"]
        before = result
    appending.stdin.close()
    assert appending.wait(60) == 0
    assert during > 2
    settled(cluster)
    full = taken()
    assert full["kept"] > 0
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one more\n")
    settled(cluster)
    last = taken()
    assert last["kept"] > 0 and last["copied"] >= 1 and last["removed"] >= 1
    assert (last["end_position"], last["uncertain"]) == (60_001, 0)
    again = taken()
    assert (again["copied"], again["removed"]) == (0, 0)
    for index in range(3):
        cluster.kill(index)
    restored = restore_cluster(target)
    for address in restored.addresses:
        output = tmp_path / "read"
        kimberlite_command("read", addresses=[address], output=output)
        assert output.read_bytes() == lines + b"one more\n"
    assert kimberlite_command("append", "-", addresses=restored.addresses, input=b"new\n").stdout == b"60001 60001\n"
    kimberlite_command("read", addresses=restored.addresses, output=output)
    assert output.read_bytes() == lines + b"one more\nnew\n"
    settled(restored)
    restored.stop()
    for replica in restored.replicas:
        kimberlite_command("verify", replica.data)
