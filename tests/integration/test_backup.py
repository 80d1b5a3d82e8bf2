"""`kimberlite backup` beside a running cluster, and new clusters from it: every event, at its position."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster, free_port
from kimberlite.errors import PositionError, UnavailableError

GUIDE = Path(__file__).parents[2] / "docs" / "backup.md"
NEW = "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"
SMALL = (f"storage.segment_bytes={8 << 20}", f"limits.frame_bytes_max={4 << 20}")
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
    wait_until: Any,
    tmp_path: Path,
) -> None:
    cluster = start_cluster(3, settings=(*SMALL, "checkpoint.ops=64"))
    target = tmp_path / "backup"
    lines = b"".join(mixed_lines(60_000, 1))
    data = cluster.replicas[2].data

    def taken(*options: str) -> dict[str, Any]:
        return summary(kimberlite_command("backup", "--json", *options, data, target))

    def status() -> dict[str, Any]:
        return probe.fetch_status(cluster.addresses[2], 10)

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
        reached = before["end_position"]
        wait_until(lambda reached=reached: status()["positions"] > reached, "some of it has arrived")
        result = taken()
        assert result["end_position"] >= before["end_position"] and result["last_op"] >= before["last_op"]
        during += before["end_position"] < result["end_position"]
        before = result
    appending.stdin.close()
    assert appending.wait(300) == 0
    assert during > 2
    settled(cluster)
    full = taken()
    assert full["kept"] > 0
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one more\n")
    settled(cluster)
    # No checkpoint is due or under way: the next backup finds the same.
    wait_until(lambda: status()["commit"] - status()["storage"]["checkpoint_op"] < 64, "the checkpoint is written")
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
        kimberlite_command("read", "--only", addresses=[address], output=output)
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


def test_a_restore_that_is_killed(
    start_cluster: Any,
    kimberlite_command: Any,
    settings: tuple[str, ...],
    environment: dict[str, str],
    wait_until: Any,
    tmp_path: Path,
) -> None:
    """In the middle, when it waits for more of the backup: nothing that starts, and nothing that is written over."""
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\n")
    kimberlite_command("backup", cluster.replicas[0].data, "backup")
    (file,) = (tmp_path / "backup").glob("entries-*")
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    who = ["--cluster", NEW, "--replica", "0", "--addresses", "127.0.0.1:7100"]
    who += [item for setting in settings for item in ("--set", setting)]
    new = tmp_path / "new"
    command = [sys.executable, "-P", "-m", "kimberlite", "restore", "backup", *who, new]
    restoring = subprocess.Popen(command, cwd=tmp_path, env=environment)
    wait_until((new / "superblock.restoring").exists, "the restore has begun to write")
    restoring.kill()
    restoring.wait()
    assert not (new / "superblock").exists()
    assert b"node.toml" in kimberlite_command("start", new, code=12).stderr
    config = cluster.replicas[0].data / "node.toml"
    assert b"holds no replica" in kimberlite_command("start", "--config", config, new, code=12).stderr
    file.unlink()
    file.write_bytes(content)
    assert b"an interrupted restore" in kimberlite_command("restore", "backup", *who, new, code=11).stderr
    shutil.rmtree(new)
    kimberlite_command("restore", "backup", *who, new)
    kimberlite_command("verify", new)


def test_progress_is_shown_on_a_terminal_only(
    start_cluster: Any, kimberlite_command: Any, on_terminal: Any, settings: tuple[str, ...]
) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\n")
    items = [item for setting in settings for item in ("--set", setting)]
    who = ["--cluster", NEW, "--replica", "0", "--addresses", "127.0.0.1:7100", *items]
    for words, expected in (
        (["backup", cluster.replicas[0].data, "backup"], [b"copying", b"2 events, positions 0 to 1"]),
        (["restore", "backup", *who, "new"], [b"restoring", b"verifying", b"comparing", b"identity"]),
    ):
        code, output, shown = on_terminal(*words)
        assert (code, output) == (0, b"")
        for text in expected:
            assert text in shown
    quiet = kimberlite_command("backup", "--check", cluster.replicas[0].data, "backup")
    assert b"checking" not in quiet.stderr and b"1 kept" in quiet.stderr


def test_a_damaged_replica_sends_to_another(start_cluster: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    cluster = start_cluster(1, settings=("storage.ring=false",))  # else the ring would have it
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


@pytest.fixture
def s3_service(environment: dict[str, str]) -> Iterator[str]:
    """An S3 service with a bucket named `bucket`, and credentials for it in the environment of the commands."""
    from moto.server import ThreadedMotoServer

    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials.items():
            patch.setitem(environment, name, value)
        request = urllib.request.Request(f"{url}/bucket", method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        yield url
    server.stop()


def test_the_guide(
    start_cluster: Any,
    kimberlite_command: Any,
    settings: tuple[str, ...],
    environment: dict[str, str],
    s3_service: str,
    wait_until: Any,
    tmp_path: Path,
) -> None:
    """Its commands as they are written, with addresses and directories of this machine."""
    cluster = start_cluster(3)
    lines = b"".join(b"line %d\n" % number for number in range(1000))
    kimberlite_command("append", "-", addresses=cluster.addresses, input=lines)
    port = free_port(3)
    local = [f"127.0.0.1:{port + index}" for index in range(3)]
    items = [item for setting in settings for item in ("--set", setting)]

    def here(command: str, index: int) -> list[str]:
        for name, address in zip("abc", local, strict=True):
            command = command.replace(f"{name}.example:7100", address)
        command = command.replace("--replica 0", f"--replica {index}").replace("https://s3.example", s3_service)
        for suffix in ("new", "s3"):
            command = command.replace(f"/var/lib/kimberlite-{suffix}", str(tmp_path / f"{suffix}-{index}"))
        command = command.replace("/var/lib/kimberlite", str(cluster.replicas[1].data))
        program, *arguments = command.replace("/backup/", f"{tmp_path}/backup/").split()
        assert program == "kimberlite"
        return arguments + (items if arguments[0] == "restore" else [])

    backing_up, bringing_back, object_storage = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for command in backing_up.splitlines():
        kimberlite_command(*here(command, 0))
    to_storage, from_storage = object_storage.splitlines()
    kimberlite_command(*here(to_storage, 0))
    kimberlite_command(*here(from_storage, 0))
    kimberlite_command("verify", tmp_path / "s3-0")
    restoring, verifying, starting = bringing_back.splitlines()
    processes = []
    try:
        for index in range(3):
            kimberlite_command(*here(restoring, index))
            kimberlite_command(*here(verifying, index))
        for index in range(3):
            own = ["--set", f'telemetry.listen="127.0.0.1:{free_port(1)}"']
            command = [sys.executable, "-P", "-m", "kimberlite", *here(starting, index), *own]
            processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL))
        wait_until(
            lambda: b"primary" in kimberlite_command("status", addresses=local, code=None).stdout, "one of them leads"
        )
        assert kimberlite_command("read", addresses=local).stdout == lines
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait(timeout=30) for process in processes]
    assert codes == [0, 0, 0]
    # The same log from each: into the archive and the bucket as into the directory.
    (file,) = (tmp_path / "backup" / "orders").glob("entries-*")
    with tarfile.open(tmp_path / "backup" / "orders.tar") as archive:
        assert archive.getnames() == [file.name, "manifest.json"]


def test_a_log_that_is_trimmed_meanwhile(
    start_cluster: Any, kimberlite_command: Any, restore_cluster: Restore, settled: Any, tmp_path: Path
) -> None:
    """Checkpoints and trims go on while backups are taken; a new cluster begins where the log did, and goes on."""
    settings = (*SMALL, "checkpoint.ops=16", f"retention.bytes_max={16 << 20}")
    cluster = start_cluster(3, settings=settings)
    data, target = cluster.replicas[1].data, tmp_path / "backup"
    generator = random.Random(5)
    events: list[bytes] = []
    with kimberlite.sync.connect(cluster.addresses) as log:
        while True:
            batch = [generator.randbytes(30_000) for _ in range(30)]
            assert log.append(batch, timeout=30) == len(events)
            events += batch
            if len(events) % 180 == 0:
                taken = summary(kimberlite_command("backup", "--json", data, target))
                if taken["first_position"] > 0 and taken["removed"] > 1:
                    break
            assert len(events) < 6000, "the log is trimmed after 16 MiB"
    settled(cluster)
    taken = summary(kimberlite_command("backup", "--json", data, target))
    first, end = taken["first_position"], taken["end_position"]
    assert (end, taken["uncertain"]) == (len(events), 0)
    for index in range(3):
        cluster.kill(index)
    restored = restore_cluster(target)
    for address in restored.addresses:
        with kimberlite.sync.connect([address], only=True) as log:
            assert list(log.read(start=first, raw=True)) == events[first:]
            with pytest.raises(PositionError) as caught:
                list(log.read(start=first - 1, raw=True))
            assert caught.value.first == first
    for index in range(3):
        restored.kill(index)
    restored.start_all()
    restored.wait_ready(60)
    with kimberlite.sync.connect(restored.addresses) as log:
        assert log.append([b"new"], timeout=30) == end
        assert list(log.read(start=first, raw=True)) == [*events[first:], b"new"]
    settled(restored)
    restored.stop()
    for replica in restored.replicas:
        kimberlite_command("verify", replica.data)
