"""A disk whose blocks fail, under real replicas: a FUSE file (faulty_file.py), a loop device on it, ext4 on that.

    python tests/rigs/block_errors.py                     every scenario, in both ways of writing
    python tests/rigs/block_errors.py --only page_cache   one of them

What it shows, each scenario with `storage.mode` direct and buffered:

write_error   Writes of one replica of three fail with EIO, in its journal, its witnesses or its superblock: the process
              ends at once with code 17, the other two go on, and after the disk is whole again it starts and catches
              up. No acknowledged event is lost, none is there twice.
no_ack        A replica alone: nothing is acknowledged after the first write that failed.
page_cache    A replica alone: after the failed write the page cache has the new bytes and the disk has the old ones
              (looked at, or the run shows nothing). The restart goes by what is on the disk: its log is the same as
              after the file system was unmounted and mounted again.
cache_pages   The same of the storage layer alone, sector by sector, after one long write: the kernel keeps it in pages
              of many sectors, and gives none of them up for one sector.
read_error    Reads of one replica of three fail with EIO, while it runs and while it starts: it lives, marks what it
              can not read, and has it again from its peers; then its journal is whole on the disk.

A fault that was never met, or a scenario that met none, is an error. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faulty_file import FaultyFile
from harness import Load, RigCluster, RigError, end_in_order, inspect_journal, judge, running, show, wait_for

import kimberlite
from kimberlite.cli import probe
from kimberlite.errors import OutcomeUnknownError, UnavailableError, WriteFailedError
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.journal import journal_name, witness_name
from kimberlite.storage.superblock import COPY_BYTES, NAME

DISK_BYTES = 4 << 30  # sparse; a smaller one is held to be full
SEGMENT_BYTES = 1 << 20
VICTIM = 1
WRITE_FAILED = 17
ANSWER_S = 30.0
STUCK_S = 90.0
SCRUB_BYTES_PER_S = 16 << 20
MODES = ("direct", "buffered")
FS_IOC_FIEMAP = 0xC020660B
FIEMAP = struct.Struct("<QQIIII")  # start, length, flags, mapped extents, extent count, reserved
FIEMAP_EXTENT = struct.Struct("<QQQQQIIII")  # logical, physical, length, reserved x2, flags, reserved x3
FIEMAP_FLAG_SYNC = 1
EXTENTS_MAX = 512


def run(*command: str) -> str:
    """A command of the system; raises RigError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclass(slots=True)
class FaultyDisk:
    """An ext4 file system at `mount` on a disk whose blocks fail where they are told to."""

    directory: Path
    mount: Path = field(init=False)
    file: FaultyFile = field(init=False)
    _device: str = field(init=False)
    _mounted: bool = False

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        self.mount = self.directory / "mount"
        self.mount.mkdir()
        self.file = FaultyFile(self.directory / "disk", DISK_BYTES)
        try:
            self._device = run("losetup", "--direct-io=on", "--find", "--show", str(self.file.mount))
            try:
                run("mkfs.ext4", "-q", "-F", self._device)
                self.mount_it()
            except BaseException:
                run("losetup", "--detach", self._device)
                raise
        except BaseException:
            self.file.close()
            raise

    def mount_it(self) -> None:
        run("mount", self._device, str(self.mount))
        self._mounted = True

    def unmount(self) -> None:
        """Every cache of the file system is gone after it."""
        run("umount", str(self.mount))
        self._mounted = False

    def close(self) -> None:
        """Whatever happened: nothing stays mounted."""
        if self._mounted:
            with contextlib.suppress(RigError):
                self.unmount()
        with contextlib.suppress(RigError):
            run("losetup", "--detach", self._device)
        self.file.close()

    def extents(self, path: Path, start: int = 0, length: int | None = None) -> list[tuple[int, int, int]]:
        """Where a range of a file is: (offset in the file, offset on the disk, length)."""
        wanted = path.stat().st_size - start if length is None else length
        buffer = bytearray(FIEMAP.size + EXTENTS_MAX * FIEMAP_EXTENT.size)
        FIEMAP.pack_into(buffer, 0, start, wanted, FIEMAP_FLAG_SYNC, 0, EXTENTS_MAX, 0)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_FIEMAP, buffer)
        finally:
            os.close(descriptor)
        count = FIEMAP.unpack_from(buffer)[3]
        found = []
        for index in range(count):
            logical, physical, size, *_ = FIEMAP_EXTENT.unpack_from(buffer, FIEMAP.size + index * FIEMAP_EXTENT.size)
            low, high = max(logical, start), min(logical + size, start + wanted)
            if low < high:
                found.append((low, physical + low - logical, high - low))
        return found

    def ranges(self, path: Path, start: int = 0, length: int | None = None) -> list[tuple[int, int]]:
        """The same as ranges of the disk."""
        return [(at, at + size) for _, at, size in self.extents(path, start, length)]

    def content(self, path: Path, start: int, length: int) -> bytes:
        """A range of a file as it is on the disk, past every cache."""
        return b"".join(self.file.on_disk(at, size) for _, at, size in self.extents(path, start, length))


@dataclass(slots=True)
class Scene:
    """A cluster of which one replica is on the faulty disk."""

    cluster: RigCluster
    disk: FaultyDisk
    victim: int

    @property
    def data(self) -> Path:
        return self.cluster.replicas[self.victim].data

    def files(self, kind: str) -> list[Path]:
        return sorted(path for path in self.data.iterdir() if path.name.startswith(kind) and path.suffix != ".new")

    def status(self) -> dict[str, Any]:
        """What the victim says of itself; on a loaded machine, or while it reads what fails, that may take a while."""
        process = self.cluster.replicas[self.victim].process
        if process is None or process.poll() is not None:
            raise RigError("the victim has ended")
        found: dict[str, Any] = probe.fetch_status(self.cluster.addresses[self.victim], ANSWER_S)
        return found

    def wait_end(self, timeout: float = 20.0) -> int:
        """The exit code with which the victim ends by itself."""
        process = self.cluster.replicas[self.victim].process
        if process is None:
            raise RigError("the victim does not run")
        wait_for(lambda: process.poll() is not None, "the victim ends after its disk has failed", timeout)
        code = self.cluster.kill(self.victim)
        return code if code is not None else 0


@contextlib.contextmanager
def scene(directory: Path, mode: str, replicas: int, scrub: int = SCRUB_BYTES_PER_S) -> Iterator[Scene]:
    """Format and start a cluster whose victim has its data at the root of the faulty disk.

    scrub: bytes per second. A tour of the scrubber, which finds what nothing else reads, must be quicker than the log
    grows meanwhile.
    """
    victim = VICTIM if replicas > 1 else 0
    disk = FaultyDisk(directory / "disk")
    try:
        settings = (
            f'storage.mode="{mode}"',
            "limits.prepare_bytes_max=262144",
            f"scrub.bytes_per_s={scrub}",
            "scrub.tour_interval_s=0",
        )
        cluster = RigCluster(directory / "cluster", replicas, settings=settings, segment_bytes=SEGMENT_BYTES)
        cluster.directory.mkdir()
        (cluster.directory / str(victim)).symlink_to(disk.mount, target_is_directory=True)
        with running(cluster):
            cluster.prepare()
            cluster.start_all()
            cluster.wait_ready(60)
            yield Scene(cluster, disk, victim)
    finally:
        disk.close()


def write_error(directory: Path, mode: str) -> str:
    """See the module docstring."""
    numbers = []
    with scene(directory, mode, 3) as it:
        load = Load(it.cluster.addresses, rate=60.0).start()
        load.wait_progress(30)
        for kind in ("journal", "witness", NAME):
            failed_before = len(it.disk.file.failures("write"))
            it.disk.file.order(write=[r for path in it.files(kind) for r in it.disk.ranges(path)])
            if kind == NAME:  # written when the view changes: the primary hands over, and must not be the victim
                leader = it.cluster.primary()
                if leader == it.victim:
                    raise RigError("the victim leads")
                if leader is not None:
                    it.cluster.kill(leader, signal.SIGTERM)
                    it.cluster.start(leader)
            code = it.wait_end()
            ended_at = time.monotonic_ns()
            failures = it.disk.file.failures("write")[failed_before:]
            if code != WRITE_FAILED or not failures:
                raise RigError(f"{kind}: exit code {code} after {len(failures)} failed writes, not {WRITE_FAILED}")
            load.wait_progress(20)  # without it
            it.disk.file.order(write=[])
            it.cluster.start(it.victim)
            it.cluster.wait_ready(60)
            load.wait_progress(10)
            numbers.append(f"{kind} ended {(ended_at - failures[0][2]) / 1e6:.0f} ms after")
            while it.cluster.primary() == it.victim:  # the next fault is met by a backup
                it.cluster.kill(it.victim, signal.SIGTERM)
                it.cluster.start(it.victim)
                it.cluster.wait_ready(60)
        load.stop()
        verdict = judge(it.cluster, load)
    return (
        f"3 ends with code {WRITE_FAILED} ({', '.join(numbers)} its first failed write), {verdict.appends} appends "
        f"acknowledged, {verdict.unknown} unknown, {verdict.events} events, none lost, none twice"
    )


def no_ack(directory: Path, mode: str) -> str:
    with scene(directory, mode, 1) as it:
        load = Load(it.cluster.addresses, rate=200.0, timeout=3.0).start()
        load.wait_progress(50)
        journal = it.files("journal")[-1]
        it.disk.file.order(write=it.disk.ranges(journal))
        code = it.wait_end()
        load.stop()
        failures = it.disk.file.failures("write")
        if code != WRITE_FAILED or not failures:
            raise RigError(f"exit code {code} after {len(failures)} failed writes, not {WRITE_FAILED}")
        first = failures[0][2]
        after = [append for append in load.history if append.position is not None and (append.returned_at or 0) > first]
        # An answer that had left the replica before may still have been on its way to the client: its events must be
        # on the disk all the same, which is what the restart is asked for.
        it.disk.file.order(write=[])
        it.disk.unmount()
        it.disk.mount_it()
        it.cluster.start(0)
        it.cluster.wait_ready(60)
        waiting = sum(append.position is None for append in load.history)
        verdict = judge(it.cluster, load)
    if any(append.called_at > first for append in after):
        raise RigError("an append that was called after the first failed write was acknowledged")
    if not waiting:
        raise RigError("no append was under way when the write failed: the run shows nothing")
    return (
        f"{verdict.appends} appends acknowledged before the first failed write, of {waiting} under way or later none; "
        f"{verdict.events} events on the disk"
    )


def page_cache(directory: Path, mode: str) -> str:
    """One entry of a few bytes and one of many pages: large pages of the cache hold more than one entry."""
    numbers = []
    # No scrubber: it gives up what is cached before it reads, maybe after the write has failed and before the end.
    with scene(directory, mode, 1, scrub=0) as it:
        for size in (100, 200_000):
            numbers.append(_page_cache(it, mode, size))
    return "; ".join(numbers)


def _page_cache(it: Scene, mode: str, size: int) -> str:
    cluster = it.cluster
    with kimberlite.sync.connect(list(cluster.addresses)) as log:
        for number in range(3):
            log.append([b"%d before " % number + bytes(size)])
        acknowledged = list(log.read(raw=True))
        status = it.status()
        last = inspect_journal(it.data)[-1]
        place = int(str(last["offset"])) + -(-int(str(last["bytes"])) // 4096) * 4096
        if place + size + 8192 > SEGMENT_BYTES:
            raise RigError("the next entry begins another segment")
        journal = it.data / journal_name(int(str(last["segment"])))
        it.disk.file.order(write=it.disk.ranges(journal))
        began = len(it.disk.file.failures("write"))
        try:
            log.append([b"lost " + b"\xa5" * size], timeout=1.5)
        except (OutcomeUnknownError, UnavailableError):
            pass
        else:
            raise RigError("an append was acknowledged whose write failed")
    code = it.wait_end()
    failed = len(it.disk.file.failures("write")) - began
    if code != WRITE_FAILED or not failed:
        raise RigError(f"exit code {code} after {failed} failed writes, not {WRITE_FAILED}")
    it.disk.file.order(write=[])
    with journal.open("rb") as file:
        file.seek(place)
        cached = file.read(size)
    on_disk = it.disk.content(journal, place, size)
    if (cached == on_disk) != (mode == "direct"):
        raise RigError("the page cache is not what this mode makes of it after a failed write: the run shows nothing")
    logs = []
    for remount in (False, True):
        if remount:
            it.disk.unmount()
            it.disk.mount_it()
        cluster.start(0)
        cluster.wait_ready(60)
        log_now = cluster.read_log(0)
        if log_now[: len(acknowledged)] != acknowledged:
            raise RigError("an acknowledged event is lost")
        logs.append(log_now)
        if int(str(it.status()["op"])) < int(str(status["op"])):
            raise RigError("an acknowledged op is lost")
        if remount:
            break
        cluster.kill(0, signal.SIGKILL)
    if logs[0] != logs[1]:
        raise RigError(
            f"the restart served {len(logs[0])} events, {len(logs[1])} are on the disk: it believed the page cache"
        )
    if logs[0] != acknowledged:
        raise RigError(f"{len(logs[0])} events, {len(acknowledged)} were on the disk when the process ended")
    if mode == "direct":
        return f"entry of {size} bytes: nothing of it was cached"
    differing = sum(a != b for a, b in zip(cached, on_disk, strict=True))
    return f"entry of {size} bytes: {differing} bytes of the cache were not on the disk, the restart believed none"


def cache_pages(directory: Path, mode: str) -> str:
    """See the module docstring."""
    size = 1 << 20
    disk = FaultyDisk(directory)
    try:
        data = disk.mount / "data"
        data.mkdir()
        files = FileDisk(data, mode=mode)
        file = files.create("file", size)
        disk.file.order(write=disk.ranges(data / "file"))
        buffer = files.aligned(size)
        buffer[:] = b"\xa5" * size
        files.submit(1, [[Write(file, 0, buffer)]])
        files.flush()
        try:
            files.completions()
        except WriteFailedError:
            pass
        else:
            raise RigError("a write that failed was reported as durable")
        files.close()
        disk.file.order(write=[])
        on_disk = disk.content(data / "file", 0, size)
        cached = (data / "file").read_bytes()
        if mode == "buffered" and cached == on_disk:
            raise RigError("the page cache does not differ from the disk after the failed write: the run shows nothing")
        files = FileDisk(data, mode=mode)
        file = files.open("file")
        sectors = range(0, size, SECTOR)
        wrong = sum(files.read(file, at, SECTOR) != on_disk[at : at + SECTOR] for at in sectors)
        files.close()
    finally:
        disk.close()
    if wrong:
        raise RigError(f"{wrong} of {len(sectors)} sectors were read from the page cache, and are not on the disk")
    return f"{len(sectors)} sectors read one by one, all as they are on the disk"


def read_error(directory: Path, mode: str) -> str:
    """See the module docstring."""
    with scene(directory, mode, 3) as it:
        load = Load(it.cluster.addresses, rate=40.0, sizes=(40, 12_000)).start()
        wait_for(lambda: len(it.files("journal")) > 3, "a few segments", 300)
        faults: list[Callable[[], None]] = [lambda: _reads_fail_while_it_runs(it), lambda: _reads_fail_at_start(it)]
        numbers = []
        for fault in faults:
            before = len(it.disk.file.failures("read"))
            fault()
            _wait_repaired(it)
            numbers.append(len(it.disk.file.failures("read")) - before)
            if not numbers[-1]:
                raise RigError("no read failed: the run shows nothing")
        load.wait_progress(20)
        load.stop()
        verdict = judge(it.cluster, load)
    return (
        f"{numbers[0]} reads failed while it ran, {numbers[1]} at a start and after it; all repaired, "
        f"{verdict.appends} appends acknowledged, {verdict.events} events, none lost, none twice"
    )


def _wait_repaired(it: Scene) -> None:
    """Wait until all that failed is written again. However slow the machine is, as long as it gets on."""
    history = []
    began = time.monotonic()
    best, since = (1 << 62, 1 << 62), began
    while True:
        bad = len(it.disk.file.order()["bad"]["read"])
        faulty = int(str(it.status()["faulty"]))
        if not bad and not faulty:
            return
        now = time.monotonic()
        history.append((round(now - began, 1), bad, faulty))
        if (bad, faulty) < best:
            best, since = (bad, faulty), now
        if now - since > STUCK_S:
            tail = history[:: max(1, len(history) // 20)]
            raise RigError(
                f"not one sector written again for {STUCK_S:.0f} s: (seconds, bad sectors, faulty entries) {tail}; "
                f"{_what_fails(it)}"
            )
        time.sleep(0.2)


def _what_fails(it: Scene) -> str:
    """The entries that still can not be read, and what each replica says, for people."""
    bad = set(it.disk.file.order()["bad"]["read"])
    rows = []
    for row in inspect_journal(it.data):
        path = it.data / journal_name(int(str(row["segment"])))
        for start, end in it.disk.ranges(path, int(str(row["offset"])), int(str(row["bytes"] or 1))):
            if bad & set(range(start // 512, (end + 511) // 512)):
                rows.append(row)
    return f"{len(bad)} sectors, {sorted(bad)[:20]}: {rows[:3]}; {it.status()}; all: {it.cluster.statuses()}"


def _entries(it: Scene, wanted: int) -> list[dict[str, object]]:
    """Some whole entries of the first segments, spread over them: with events, so that clients read them."""
    rows = [row for row in inspect_journal(it.data) if row["entry"] == row["witness"] == "good" and row["events"]]
    rows = rows[: len(rows) * 2 // 3]
    return rows[:: max(len(rows) // wanted, 1)][:wanted]


def _reads_fail_while_it_runs(it: Scene) -> None:
    """Entries can not be read; a client reads all of the log from that replica alone."""
    ranges = []
    for row in _entries(it, 10):
        path = it.data / journal_name(int(str(row["segment"])))
        ranges += it.disk.ranges(path, int(str(row["offset"])), int(str(row["bytes"])))
    process = it.cluster.replicas[it.victim].process
    it.disk.file.order(read=ranges)
    end = int(str(it.status()["positions"]))
    read = it.cluster.read_log(it.victim)
    if len(read) < end:
        raise RigError(f"{len(read)} of {end} events could be read")
    if process is None or process.poll() is not None:
        raise RigError("a read error ended the replica")


def _reads_fail_at_start(it: Scene) -> None:
    """Entries, witnesses and one copy of the superblock can not be read when it starts."""
    it.cluster.kill(it.victim, signal.SIGKILL)
    ranges = []
    for row in _entries(it, 7):
        path = it.data / journal_name(int(str(row["segment"])))
        ranges += it.disk.ranges(path, int(str(row["offset"])), int(str(row["bytes"])))
    last = it.files("journal")[-1]
    ranges += it.disk.ranges(last, 0, 4096)
    ranges += it.disk.ranges(it.data / witness_name(int(last.name[8:])), 0, 4096)
    ranges += it.disk.ranges(it.data / NAME, 2 * COPY_BYTES, COPY_BYTES)
    it.disk.file.order(read=ranges)
    it.cluster.start(it.victim)
    it.cluster.wait_ready(60)
    it.cluster.read_log(it.victim)


SCENARIOS: dict[str, Callable[[Path, str], str]] = {
    "write_error": write_error,
    "no_ack": no_ack,
    "page_cache": page_cache,
    "cache_pages": cache_pages,
    "read_error": read_error,
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SCENARIOS), action="append", help="only these scenarios")
    parser.add_argument("--mode", choices=MODES, action="append", help="only these ways of writing")
    parser.add_argument("--dir", type=Path, help="where the data goes; a temporary directory when not given")
    options = parser.parse_args(arguments)
    end_in_order()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="block-errors-", dir=options.dir) as directory:
        for name in options.only or SCENARIOS:
            for mode in options.mode or MODES:
                began = time.monotonic()
                try:
                    shown = SCENARIOS[name](Path(directory) / f"{name}-{mode}", mode)
                except Exception as error:  # the other scenarios are run all the same
                    failed += 1
                    shown = f"FAILED: {show(error)}"
                print(f"{name} ({mode}): {shown}; {time.monotonic() - began:.0f} s", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
