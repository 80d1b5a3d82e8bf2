"""Making the data of a new replica. Used by the command line and when embedding.

May import: what the node may. Blocks for as long as the disk takes to preallocate the first segment.
"""

from __future__ import annotations

import os
from pathlib import Path

from kimberlite._fast.framing import make_header
from kimberlite.config import CONFIG_NAME, Config
from kimberlite.errors import DataExistsError
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.store import format_store
from kimberlite.types import Identity


def format_replica(config: Config, data: Path, identity: Identity | None = None) -> None:
    """Create the data of one replica in `data` and its node.toml.

    identity: of a replica of a cluster that is formatted as a whole (node.identity.all_born); the others become
    members when they have all met.

    Raises DataExistsError, with nothing changed, when there is data already. The
    configuration is put in place last: a directory without it was not finished.
    """
    target = data / CONFIG_NAME
    if target.exists():
        raise DataExistsError(f"{target} exists: this is a replica already; nothing was changed", path=str(data))
    make_directory(data)
    disk = FileDisk(data, mode=config.storage.mode, unsafe=config.storage.unsafe)
    try:
        format_store(
            disk,
            make_header=make_header,
            cluster=config.cluster_id,
            replica=config.cluster.replica,
            replica_count=config.replica_count,
            segment_bytes=config.storage.segment_bytes,
            identity=identity,
        )
    finally:
        disk.close()
    write_config(config, target)


def make_directory(path: Path) -> None:
    """The directory, 0700, and those above it: each durable as an entry of the one that holds it."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for directory in missing:
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_config(config: Config, target: Path) -> None:
    """Write the file durably and at once: never half of it, readable by its owner only."""
    temporary = target.with_name(target.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(config.to_toml().encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
    sync_directory(target.parent)
