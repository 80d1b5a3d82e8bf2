"""`kimberlite backup` beside a running cluster, and new clusters from it: every event, at its position."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.cli.local import LocalCluster
from kimberlite.errors import UnavailableError

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


def test_a_damaged_backup_is_refused(
    start_cluster: Any, kimberlite_command: Any, settings: tuple[str, ...], tmp_path: Path
) -> None:
    """One byte of one file: the restore names the file and leaves nothing. The cluster's own id is refused as well."""
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\nthree\n")
    data = cluster.replicas[0].data
    taken = summary(kimberlite_command("backup", "--json", data, "backup"))
    assert (taken["end_position"], taken["files"]) == (3, 1)
    who = ["--replica", "0", "--addresses", "127.0.0.1:7100"]
    for setting in settings:
        who += ["--set", setting]
    done = kimberlite_command("restore", "backup", "--cluster", taken["cluster"], *who, "new", code=2)
    assert b"--same-cluster" in done.stderr
    kimberlite_command("restore", "backup", "--cluster", NEW, *who, "new")
    assert (
        b"nothing was changed" in kimberlite_command("restore", "backup", "--cluster", NEW, *who, "new", code=11).stderr
    )
    (file,) = (tmp_path / "backup").glob("entries-*")
    flip(file, file.stat().st_size // 2)
    done = kimberlite_command("restore", "backup", "--cluster", NEW, *who, "other", code=29)
    assert file.name.encode() in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_damaged_replica_sends_to_another(start_cluster: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\n")
    cluster.stop()
    data = cluster.replicas[0].data
    with (data / "journal-00000000").open("r+b") as file:
        file.seek(4096 + 300)
        file.write(b"?")
    done = kimberlite_command("backup", data, "backup", code=29)
    assert b"op 2" in done.stderr and b"take the backup from another replica" in done.stderr
    assert list((tmp_path / "backup").iterdir()) == []
    kimberlite_command("backup", tmp_path / "none", "backup", code=12)


def test_a_client_goes_from_the_old_cluster_to_the_new_one(
    start_cluster: Any,
    kimberlite_command: Any,
    settings: tuple[str, ...],
    settled: Any,
    tmp_path: Path,
) -> None:
    """Its session is in the backup and the addresses stay. Under the old id (the old replicas are gone) its session
    goes on where it was; with another id the cluster is another one, which nothing of it reaches."""
    cluster = start_cluster(3)
    items = [item for setting in settings for item in ("--set", setting)]
    addresses = ",".join(cluster.addresses)
    with kimberlite.sync.connect(cluster.addresses, timeout=30) as log:
        assert [log.append([b"one"]), log.append([b"two"])] == [0, 1]
        settled(cluster)
        taken = summary(kimberlite_command("backup", "--json", cluster.replicas[1].data, "backup"))
        assert taken["end_position"] == 2
        for index in range(3):
            cluster.kill(index)
        for options, cluster_id in ((("--same-cluster",), taken["cluster"]), ((), NEW)):
            for replica in cluster.replicas:
                replica.data = tmp_path / f"new-{cluster_id}-{replica.index}"
                who = ("--cluster", cluster_id, "--replica", replica.index, "--addresses", addresses)
                kimberlite_command("restore", "backup", *options, *who, *items, replica.data)
            cluster.start_all()
            cluster.wait_ready(60)
            if options:
                assert log.append([b"three"]) == 2
            else:
                with pytest.raises(UnavailableError):
                    log.append([b"not for this cluster"], timeout=5)
            found = kimberlite_command("read", addresses=cluster.addresses).stdout
            assert found == (b"one\ntwo\nthree\n" if options else b"one\ntwo\n")
            for index in range(3):
                cluster.kill(index)
