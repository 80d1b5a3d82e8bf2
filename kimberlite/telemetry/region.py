"""Where a replica's metrics live: one file of shared memory for each data directory.

The file is in /dev/shm, named after device and inode of the data directory, so that anybody who
knows the directory finds it. Not in the directory itself: on a disk the kernel writes dirty pages
back now and then, and a store to such a page waits for the file system's journal, which is to say
for the very disk whose latency is being measured. Only where there is no /dev/shm the data
directory serves.

The file is removed when the replica ends in order. After a crash it stays, with the last values,
until the next start; what belongs to directories that are gone is removed then too.

Its name is for those who come later. The replica and its telemetry process hold it by a descriptor, so that the
removal of the name (logind does that to what users leave in /dev/shm) changes nothing for them, and a reader
finds it through their descriptors. Whoever cuts the file itself short ends the replica, by SIGBUS, as the file of any
mapping; the next start makes another one.

May import: errors, types, _fast.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kimberlite._fast.metrics import Region
from kimberlite.errors import DataMissingError, MetricsFileError
from kimberlite.telemetry import catalogue

SHARED_MEMORY = Path("/dev/shm")
PROCESSES = Path("/proc")
REMOVED = " (deleted)"  # behind the name of a descriptor's file that has none any more: proc(5)
NAME = "kimberlite-metrics"  # in the data directory; in /dev/shm with user, device and inode behind it


def paths(directory: Path) -> Iterator[Path]:
    """Where the metrics of the replica in `directory` may be, preferred first. Raises OSError when it is gone."""
    status = directory.stat()
    if SHARED_MEMORY.is_dir():
        yield SHARED_MEMORY / f"{NAME}-{os.getuid()}-{status.st_dev:x}-{status.st_ino:x}"
    yield directory / NAME


def create(directory: Path, replica_count: int, info: Mapping[str, object], units: str = "ms") -> Region:
    """A new region for the replica in `directory`, mode 0600, in place of what its last run left.

    `info`: what a reader may know of the replica; see node.metrics. units: as exposed, of catalogue.UNITS.
    Raises OSError, MetricsFileError when no place can be written.
    """
    remove_orphans()
    document = json.dumps({**info, "directory": str(directory.absolute())}).encode()
    failure: OSError | None = None
    for path in paths(directory):
        try:
            return Region.create(path, catalogue.layout(replica_count), document, catalogue.latency_unit_ns(units))
        except OSError as error:
            failure = failure or error
    if failure is None:
        raise FileNotFoundError(f"no place for the metrics of {directory}")
    raise failure


def descriptor_of(written: Region) -> int:
    """A descriptor to read the file of a region that has just been made here. Raises OSError: somebody was quick to
    remove it."""
    opened = os.open(str(written.path), os.O_RDONLY | os.O_CLOEXEC)
    if not written.is_current():
        os.close(opened)
        raise FileNotFoundError(f"{written.path} was removed as soon as it was made")
    return opened


def open_descriptor(descriptor: int) -> Region:
    """The region behind a descriptor of this process, whatever has become of its name. Raises as Region.open."""
    return Region.open(f"/proc/self/fd/{descriptor}")


def is_replaced(path: Path, descriptor: int) -> bool:
    """Whether another start has put a region of its own in the place of this one. A name that is only gone says
    nothing."""
    try:
        named, own = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) != (own.st_dev, own.st_ino)


def find(directory: Path) -> Region:
    """The metrics of the replica in `directory`, to read: of the one that runs, or the last values of one
    that crashed. Raises DataMissingError when there are none, MetricsFileError when they are damaged."""
    if directory.is_dir():
        for path in paths(directory):
            with contextlib.suppress(FileNotFoundError):
                return Region.open(path)
        held = [region for path in paths(directory) for region in _held(path)]
        if held:
            return max(held, key=lambda region: region.started_unix_ns)
    raise DataMissingError(
        f"there are no metrics of {directory}: no replica has run there since the machine started, or the last one "
        "ended in order",
        path=str(directory),
    )


def _held(path: Path) -> Iterator[Region]:
    """Regions that had this name, and that a process of this user has open."""
    for link in PROCESSES.glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError, MetricsFileError):
            if os.readlink(link) == str(path) + REMOVED:
                yield Region.open(link)


def crashed(directory: Path) -> bool:
    """Whether the last replica in `directory` ended without saying so; its telemetry may still be served."""
    try:
        return not find(directory).ended
    except (DataMissingError, MetricsFileError):
        return False


def info_of(region: Region) -> dict[str, Any]:
    """What the writer said of itself."""
    document = json.loads(region.info)
    return document if isinstance(document, dict) else {}


def remove(region: Region) -> None:
    """Remove the file of a region, unless another one has taken its name."""
    if region.path is not None and region.is_current():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(region.path)


def remove_orphans() -> None:
    """Remove files of replicas whose data directory is gone: nobody will ever start there again."""
    if not SHARED_MEMORY.is_dir():
        return
    for path in SHARED_MEMORY.glob(f"{NAME}-{os.getuid()}-*"):
        with contextlib.suppress(OSError, MetricsFileError, ValueError):
            directory = Path(str(info_of(Region.open(path)).get("directory", "")))
            if not directory.is_dir() or path not in set(paths(directory)):
                path.unlink()
