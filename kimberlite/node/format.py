"""Making the data of a new replica. Used by the command line and when embedding.

A replica that is formatted alone is a member of its cluster when it has met all others, once (vsr.birth). Who formats
all of them, on one machine, makes them members from the beginning: `format_replicas`.

May import: what the node may. Blocks for as long as the disk takes to preallocate the first segment.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from kimberlite._fast.framing import make_header
from kimberlite.config import CONFIG_NAME, Config
from kimberlite.errors import DataExistsError
from kimberlite.node.identity import all_born, draft_of, unborn
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.store import format_store
from kimberlite.types import Identity, root_header


def format_replica(config: Config, data: Path, identity: Identity | None = None) -> None:
    """Create the data of one replica in `data` and its node.toml.

    identity: of a member; not given: somebody new, who is none before all replicas have met.

    Raises DataExistsError, with nothing changed, when there is data already. The
    configuration is put in place last: a directory without it was not finished.
    """
    target = data / CONFIG_NAME
    if target.exists():
        raise DataExistsError(f"{target} exists: this is a replica already; nothing was changed", path=str(data))
    if identity is None:
        draft = draft_of(config, _origin(config))
        identity = unborn(draft, config.cluster.replica, secrets.token_bytes(16))
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


def format_replicas(configs: Sequence[Config], places: Sequence[Path]) -> None:
    """Create the data of all replicas of one cluster, in the order of their indexes: members from the beginning.

    Raises DataExistsError when one of the places holds data already.
    """
    identities = all_born(configs[0], _origin(configs[0]), lambda: secrets.token_bytes(16))
    for config, place, identity in zip(configs, places, identities, strict=True):
        format_replica(config, place, identity)


def _origin(config: Config) -> bytes:
    return root_header(make_header, config.cluster_id).checksum


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
