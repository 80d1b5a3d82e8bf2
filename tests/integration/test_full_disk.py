"""Real full disks: small file systems on loop devices, and quotas that strace makes of system calls.

A cluster whose quorum has room goes on. One whose primary has none refuses appends with a typed error
before anything fails, serves reads and status, and goes on by itself when there is room again. Mounting
takes root: where it is not possible these tests fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kimberlite import sync
from kimberlite.cli import probe
from kimberlite.cli.local import LocalCluster
from kimberlite.errors import NoSpaceError, UnavailableError

MIB = 1 << 20
DISK_BYTES = 96 * MIB
SMALL = ("storage.segment_bytes=8388608", "storage.free_bytes_min=0")
EVENT_BYTES = 64 << 10


class SmallDisk:
    """A file system of its own for one data directory. fill: leave that much free; empty: give it back."""

    def __init__(self, path: Path, image: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"
        path.mkdir(parents=True)
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(path)], check=True)
        (path / "lost+found").rmdir()

    @property
    def free(self) -> int:
        info = os.statvfs(self.path)
        return info.f_bavail * info.f_frsize

    def fill(self, left: int = 3 * MIB) -> None:
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - left)

    def empty(self) -> None:
        self._ballast.unlink()

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


class Rig:
    """A cluster of which some replicas have small disks."""

    def __init__(self, directory: Path, replicas: int, small: list[int], settings: tuple[str, ...]) -> None:
        self.cluster = LocalCluster(directory / "cluster", replicas, settings=(*settings, *SMALL))
        self.disks: dict[int, SmallDisk] = {}
        try:
            self._start(directory, small)
        except BaseException:
            self.close()
            raise

    def _start(self, directory: Path, small: list[int]) -> None:
        for index in small:
            self.disks[index] = SmallDisk(directory / "cluster" / str(index), directory / f"{index}.img")
        self.cluster.prepare()
        self.cluster.start_all()
        self.cluster.wait_ready(60)

    def status(self, replica: int) -> dict[str, Any]:
        found: dict[str, Any] = probe.fetch_status(self.cluster.addresses[replica], 10)
        return found

    def close(self) -> None:
        self.cluster.stop()
        for disk in self.disks.values():
            disk.close()


StartRig = Callable[[int, list[int]], Rig]


@pytest.fixture
def start_rig(tmp_path: Path, settings: tuple[str, ...], environment: dict[str, str]) -> Iterator[StartRig]:
    started: list[Rig] = []
    own = tuple(item for item in settings if "segment_bytes" not in item)

    def start(replicas: int, small: list[int]) -> Rig:
        rig = Rig(tmp_path, replicas, small, own)
        started.append(rig)
        return rig

    yield start
    for rig in started:
        rig.close()
        for replica in rig.cluster.replicas:
            print(f"--- {replica.log.name}\n{replica.log.read_text(errors='replace')[-2000:]}")


def append_until_refused(log: sync.Log, most: int = 3000) -> list[bytes]:
    """Events, numbered, one an append, until there is no room for the next; those that are in the log."""
    appended: list[bytes] = []
    with pytest.raises(NoSpaceError, match="nothing was appended"):
        for number in range(most):
            event = b"%d " % number + b"x" * EVENT_BYTES
            assert log.append([event], timeout=10.0) == number
            appended.append(event)
    return appended


@pytest.mark.parametrize("replicas", [1, 3])
def test_the_primary_refuses_before_its_disk_is_full_and_goes_on_by_itself(
    replicas: int,
    start_rig: StartRig,
    kimberlite_command: Any,
    wait_until: Callable[..., None],
    settled: Callable[[Any], None],
) -> None:
    """All disks are equally small, as they usually are."""
    rig = start_rig(replicas, list(range(replicas)))
    cluster = rig.cluster
    for disk in rig.disks.values():
        disk.fill()
    pids = [replica.pid for replica in cluster.replicas]
    with sync.connect(list(cluster.addresses)) as log:
        appended = append_until_refused(log)
        assert 4 < len(appended) < 8 * MIB // EVENT_BYTES, "one segment, not to its end"
        assert list(log.read(start=0, raw=True)) == appended, "reads go on"
        for index, disk in rig.disks.items():
            # A backup learns of it when it has got as far as the primary, and tries again now and then.
            wait_until(lambda index=index: _says_full(rig, index), f"replica {index} says that its disk is full")
            assert 0 < rig.status(index)["storage"]["room_bytes"] < 8 * MIB
            assert disk.free >= 1 * MIB, "something is left for others"
        lines = b"".join(b"line %d\n" % number for number in range(1000))
        refused = kimberlite_command(
            "append", "--timeout", "5", "-", addresses=cluster.addresses, input=lines, code=NoSpaceError.exit_code
        )
        assert b"the disks of too many replicas are full: nothing was appended" in refused.stderr
        assert list(log.read(start=0, raw=True)) == appended
        # One that waits long enough sees the space come back.
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "kimberlite",
                "append",
                "--timeout",
                "300",
                "--addresses",
                ",".join(cluster.addresses),
                "-",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert waiting.stdin is not None
        waiting.stdin.write(lines)
        waiting.stdin.close()
        with pytest.raises(NoSpaceError):
            log.append([b"before there is space"], timeout=5.0)
        assert waiting.poll() is None
        for disk in rig.disks.values():
            disk.empty()
        assert waiting.wait(300) == 0
        assert waiting.stdout is not None and waiting.stderr is not None
        first, last = map(int, waiting.stdout.read().split())
        waiting.stdout.close()
        waiting.stderr.close()
        assert (first, last) == (len(appended), len(appended) + 999)
        more = [b"more %d " % number + b"y" * EVENT_BYTES for number in range(200)]  # more than a segment
        for number, event in enumerate(more):
            assert log.append([event], timeout=30.0) == last + 1 + number
    settled(cluster)
    expected = [*appended, *lines.splitlines(), *more]
    for address in cluster.addresses:
        with sync.connect([address], only=True) as log:
            assert list(log.read(start=0, raw=True)) == expected
    assert [replica.pid for replica in cluster.replicas] == pids, "no process has ended"
    for replica in cluster.replicas:
        told = [json.loads(line) for line in replica.log.read_text().splitlines()]
        space = [line for line in told if line["id"] in ("disk_full", "disk_has_room")]
        assert [line["id"] for line in space] == ["disk_full", "disk_has_room"], "told once each"
        assert "there is no space for a file of" in space[0]["fields"]["reason"]
        assert space[0]["fields"]["free_bytes"] < space[1]["fields"]["free_bytes"]


def test_one_full_disk_of_three_costs_nothing_but_its_copy(
    start_rig: StartRig,
    primary_of: Callable[[Any], int],
    wait_until: Callable[..., None],
    settled: Callable[[Any], None],
    kimberlite_command: Any,
) -> None:
    rig = start_rig(3, [0, 1, 2])
    cluster = rig.cluster
    victim = (primary_of(cluster) + 1) % 3
    rig.disks[victim].fill()
    events = [b"%d " % number + b"x" * EVENT_BYTES for number in range(400)]  # four segments
    with sync.connect(list(cluster.addresses)) as log:
        for number, event in enumerate(events):
            assert log.append([event], timeout=30.0) == number

    def is_full() -> bool:
        told = rig.status(victim)
        return told["storage"]["full"] and "disk full: the journal has room for" in told["unhealthy"]

    wait_until(is_full, "the victim has got as far as its disk lets it, behind the others")
    assert rig.status(victim)["applied"] < 400
    # It starts again on its full disk, and votes: the cluster survives the loss of its primary.
    assert cluster.kill(victim) is not None
    cluster.start(victim)
    cluster.wait_ready(60)
    leader = primary_of(cluster)
    third = next(index for index in range(3) if index not in (leader, victim))
    cluster.kill(leader)
    wait_until(lambda: _leads(rig, third), "the replica with all entries leads", 60)
    wait_until(lambda: "appends are refused" in rig.status(third)["unhealthy"], "it knows that no quorum has room")
    with sync.connect(list(cluster.addresses)) as log, pytest.raises(NoSpaceError):
        log.append([b"no quorum has room"], timeout=10.0)
    rig.disks[victim].empty()
    with sync.connect(list(cluster.addresses)) as log:
        assert log.append([b"there is room"], timeout=60.0) == 400
    cluster.start(leader)
    cluster.wait_ready(60)
    settled(cluster)
    for address in cluster.addresses:
        with sync.connect([address], only=True) as log:
            assert list(log.read(start=0, raw=True)) == [*events, b"there is room"]

    def is_healthy() -> bool:
        shown = kimberlite_command("status", "--json", addresses=cluster.addresses, code=None).stdout
        return not any(row["unhealthy"] for row in json.loads(shown)["replicas"])

    wait_until(is_healthy, "nothing is unhealthy any more")


def _says_full(rig: Rig, index: int) -> bool:
    told = rig.status(index)
    sizes = (8 * MIB, MIB)
    return told["storage"]["full"] and any(
        f"there is no space for a file of {size} bytes" in told["unhealthy"] for size in sizes
    )


def _leads(rig: Rig, index: int) -> bool:
    with contextlib.suppress(UnavailableError):
        return bool(rig.status(index)["role"] == "primary")
    return False


def test_a_quota_is_a_full_disk(start_cluster: Any, wait_until: Callable[..., None], tmp_path: Path) -> None:
    """EDQUOT of the kernel, injected into a replica that runs."""
    cluster: LocalCluster = start_cluster(1, settings=SMALL)
    pid = cluster.replicas[0].pid
    with sync.connect(list(cluster.addresses)) as log:
        assert log.append([b"0"]) == 0
        with injected(pid, "fallocate:error=EDQUOT", tmp_path):
            count = 1
            with pytest.raises(NoSpaceError):
                while count < 3000:
                    assert log.append([b"x" * EVENT_BYTES], timeout=10.0) == count
                    count += 1
            wait_until(
                lambda: "Disk quota exceeded" in str(probe.fetch_status(cluster.addresses[0], 10)["unhealthy"]),
                "it says why",
            )
            assert sum(1 for _ in log.read(start=0)) == count
        assert log.append([b"again"], timeout=30.0) == count
    assert cluster.replicas[0].pid == pid


@contextlib.contextmanager
def injected(pid: int | None, what: str, tmp_path: Path) -> Iterator[None]:
    """Errors in the system calls of a process, until the end of the block."""
    call = what.partition(":")[0]
    log = tmp_path / "strace"
    strace = subprocess.Popen(
        ["strace", "-f", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={what}", "-p", str(pid)],
        stderr=subprocess.PIPE,
    )
    assert strace.stderr is not None
    try:
        line = strace.stderr.readline()
        assert b"attached" in line, line
        yield
        assert log.stat().st_size, "nothing was injected"
    finally:
        strace.terminate()
        strace.wait()
        strace.stderr.close()
