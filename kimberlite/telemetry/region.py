"""Where a replica's metrics live: one file of shared memory for each data directory.

The file is in /dev/shm, named after device and inode of the data directory, so that anybody who
knows the directory finds it. Not in the directory itself: on a disk the kernel writes dirty pages
back now and then, and a store to such a page waits for the file system's journal, which is to say
for the very disk whose latency is being measured. Only where there is no /dev/shm the data
directory serves.

The file is removed when the replica ends in order. After a crash it stays, with the last values,
until the next start; what belongs to directories that are gone is removed then too.

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
NAME = "kimberlite-metrics"  # in the data directory; in /dev/shm with user, device and inode behind it


def paths(directory: Path) -> Iterator[Path]:
    """Where the metrics of the replica in `directory` may be, preferred first. Raises OSError when it is gone."""
    status = directory.stat()
    if SHARED_MEMORY.is_dir():
        yield SHARED_MEMORY / f"{NAME}-{os.getuid()}-{status.st_dev:x}-{status.st_ino:x}"
    yield directory / NAME


def create(directory: Path, replica_count: int, info: Mapping[str, object]) -> Region:
    """A new region for the replica in `directory`, mode 0600, in place of what its last run left.

    `info`: what a reader may know of the replica; see node.node. Raises OSError, MetricsFileError when no
    place can be written.
    """
    remove_orphans()
    document = json.dumps({**info, "directory": str(directory.absolute())}).encode()
    failure: OSError | None = None
    for path in paths(directory):
        try:
            return Region.create(path, catalogue.layout(replica_count), document)
        except OSError as error:
            failure = failure or error
    if failure is None:
        raise FileNotFoundError(f"no place for the metrics of {directory}")
    raise failure


def find(directory: Path) -> Region:
    """The metrics of the replica in `directory`, to read: of the one that runs, or the last values of one
    that crashed. Raises DataMissingError when there are none, MetricsFileError when they are damaged."""
    if directory.is_dir():
        for path in paths(directory):
            with contextlib.suppress(FileNotFoundError):
                return Region.open(path)
    raise DataMissingError(
        f"there are no metrics of {directory}: no replica has run there since the machine started, or the last one "
        "ended in order",
        path=str(directory),
    )


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
