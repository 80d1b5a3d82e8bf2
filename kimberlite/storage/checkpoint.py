"""The file of a checkpoint: sessions and state-machine snapshot after one op.

    0      layout.CHECKPOINT: sizes, checksums, the header of the last op that is in it
    4096   the session table, the snapshot, zeros up to a whole sector

It is kept twice, in `checkpoint-<op>-a` and `-b`, one written after the other, so that one event can not
hit both; what the superblock says of it (size, digest of the whole content) says which are good.
The same op gives the same bytes on every replica: no file says anything of the replica it belongs to.

May import: errors, types, _fast.framing, xxhash, storage.interface, storage.layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import CheckpointError, FormatVersionError, FrameError
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.layout import CHECKPOINT
from kimberlite.types import Checkpoint, ClusterId, Header

MAGIC = b"KMCP"
VERSION = 1
FEATURES_KNOWN = 0
COPIES = ("a", "b")
CHUNK = 256 * 1024  # written and read at a time: what a commit may have to wait for
PREFIX = "checkpoint-"
_SUM = CHECKPOINT.offset("checksum")


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds. machine: version of the state machine that made `snapshot`."""

    cluster: ClusterId
    header: Header
    machine: int
    sessions: bytes
    snapshot: bytes


def file_name(op: int, copy: str) -> str:
    return f"{PREFIX}{op:016d}-{copy}"


def encode(content: Content) -> bytes:
    """Whole sectors."""
    head = CHECKPOINT.pack(
        {
            "magic": MAGIC,
            "version": VERSION,
            "features": FEATURES_KNOWN,
            "cluster": content.cluster,
            "machine": content.machine,
            "sessions_bytes": len(content.sessions),
            "snapshot_bytes": len(content.snapshot),
            "sessions_sum": xxhash.xxh3_128_digest(content.sessions),
            "snapshot_sum": xxhash.xxh3_128_digest(content.snapshot),
            "header": content.header.raw,
            "checksum": bytes(16),
        }
    )[:_SUM]
    size = CHECKPOINT.size + len(content.sessions) + len(content.snapshot)
    return b"".join((head, xxhash.xxh3_128_digest(head), content.sessions, content.snapshot, bytes(-size % SECTOR)))


def decode(data: bytes | memoryview) -> Content:
    """The inverse. Raises CheckpointError (damaged), FormatVersionError (intact, of an unknown format)."""
    if len(data) < CHECKPOINT.size or xxhash.xxh3_128_digest(data[:_SUM]) != bytes(data[_SUM : CHECKPOINT.size]):
        raise CheckpointError("the header of a checkpoint is damaged", part="header")
    if bytes(data[:4]) != MAGIC:
        raise CheckpointError("no checkpoint: it begins with other letters", part="header")
    version = int.from_bytes(data[4:6], "little")
    features = int.from_bytes(data[8:16], "little")
    if version != VERSION or features & ~FEATURES_KNOWN:
        raise FormatVersionError(
            f"a checkpoint has format version {version} and features {features:#x}; this release knows version "
            f"{VERSION} and features {FEATURES_KNOWN:#x}: start a release that knows them",
            version=version,
            features=features,
        )
    found: dict[str, Any] | None = CHECKPOINT.unpack(data)
    if found is None:
        raise CheckpointError("reserved bytes of a checkpoint's header are not zero", part="header")
    middle = CHECKPOINT.size + found["sessions_bytes"]
    end = middle + found["snapshot_bytes"]
    if len(data) != end + -end % SECTOR or any(data[end:]):
        raise CheckpointError(f"a checkpoint of {end} bytes has {len(data)}", part="size")
    sessions, snapshot = bytes(data[CHECKPOINT.size : middle]), bytes(data[middle:end])
    if xxhash.xxh3_128_digest(sessions) != found["sessions_sum"]:
        raise CheckpointError("the session table of a checkpoint is damaged", part="sessions")
    if xxhash.xxh3_128_digest(snapshot) != found["snapshot_sum"]:
        raise CheckpointError("the snapshot of a checkpoint is damaged", part="snapshot")
    try:
        header = framing.decode_header(found["header"])
    except FrameError as error:
        raise CheckpointError(f"the entry's header in a checkpoint is damaged: {error}", part="header") from error
    return Content(found["cluster"], header, found["machine"], sessions, snapshot)


def chunks(disk: Disk, name: str) -> Iterator[bytes]:
    """A copy's bytes, CHUNK at a time. Raises OSError."""
    file = disk.open(name)
    try:
        size = disk.size(file)
        for offset in range(0, size, CHUNK):
            yield bytes(disk.read(file, offset, min(CHUNK, size - offset)))
    finally:
        disk.release(file)


def read_part(disk: Disk, op: int, copy: str, offset: int, length: int) -> bytes | None:
    """A part of a copy of the checkpoint of that op; None when it can not be read."""
    try:
        file = disk.open(file_name(op, copy))
        try:
            return bytes(disk.read(file, offset, length))
        finally:
            disk.release(file)
    except OSError:
        return None


def check_copy(disk: Disk, checkpoint: Checkpoint, copy: str) -> str:
    """Why a copy is not what the superblock says; the empty string when it is. Bounded memory."""
    name = file_name(checkpoint.op, copy)
    if not disk.exists(name):
        return "missing"
    digest = xxhash.xxh3_128()
    size = 0
    try:
        for chunk in chunks(disk, name):
            size += len(chunk)
            digest.update(chunk)
    except OSError:
        return "unreadable"
    if size != checkpoint.size:
        return f"{size} bytes instead of {checkpoint.size}"
    return "" if digest.digest() == checkpoint.digest else "checksum"


def read(disk: Disk, checkpoint: Checkpoint) -> tuple[Content, list[str]]:
    """What is in the checkpoint that the superblock names, and which copies of it are not good.

    Raises CheckpointError when none is, FormatVersionError.
    """
    bad = {copy: why for copy in COPIES if (why := check_copy(disk, checkpoint, copy))}
    good = [copy for copy in COPIES if copy not in bad]
    if not good:
        reasons = ", ".join(f"{file_name(checkpoint.op, copy)}: {why}" for copy, why in bad.items())
        raise CheckpointError(
            f"no copy of the checkpoint of op {checkpoint.op} is intact ({reasons})", op=checkpoint.op
        )
    return decode(b"".join(chunks(disk, file_name(checkpoint.op, good[0])))), list(bad)
