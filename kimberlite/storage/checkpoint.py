"""The file of a checkpoint: sessions and state-machine snapshot after one op.

    0      layout.CHECKPOINT: sizes, checksums, the header of the last op that is in it, the record of the cluster
    4096   its sections, now the session table and the snapshot, and zeros up to a whole sector

Version 1 has no record, and no table of sections. It is read, and kept as it is where a copy of it is made good; what
a new one is follows from the superblock beside it.

It is kept twice, in `checkpoint-<op>-a` and `-b`, one written after the other, so that one event can not
hit both; what the superblock says of it (size, digest of the whole content) says which are good.
The same op gives the same bytes on every replica: no file says anything of the replica it belongs to.

May import: errors, types, _fast.framing, xxhash, storage.interface, storage.layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import CheckpointError, FormatVersionError, FrameError, invariant
from kimberlite.storage.interface import SECTOR, Disk
from kimberlite.storage.layout import CHECKPOINT, CHECKPOINT_1
from kimberlite.types import Checkpoint, ClusterId, Header

MAGIC = b"KMCP"
VERSION = 2
VERSION_UNBORN = 1  # beside a superblock that knows no record
FEATURES_KNOWN = 0
COPIES = ("a", "b")
CHUNK = 256 * 1024  # written and read at a time: what a commit may have to wait for
PREFIX = "checkpoint-"
_SUM = CHECKPOINT.offset("checksum")
_RECORD_MAX = next(field.size for field in CHECKPOINT.fields if field.name == "record")
_SECTION = struct.Struct("<I4xQ16s")
_SECTIONS_SIZE = next(field.size for field in CHECKPOINT.fields if field.name == "sections")
SESSIONS, SNAPSHOT = 1, 2  # kinds of sections, in this order


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds. machine: version of the state machine that made `snapshot`. record: in force after its
    op, encoded; empty when the cluster was not born yet, and in version 1."""

    cluster: ClusterId
    header: Header
    machine: int
    sessions: bytes
    snapshot: bytes
    version: int = VERSION
    record: bytes = b""


def file_name(op: int, copy: str) -> str:
    return f"{PREFIX}{op:016d}-{copy}"


def encode(content: Content) -> bytes:
    """Whole sectors."""
    common: dict[str, int | bytes] = {
        "magic": MAGIC,
        "version": content.version,
        "features": FEATURES_KNOWN,
        "cluster": content.cluster,
        "machine": content.machine,
        "header": content.header.raw,
        "checksum": bytes(16),
    }
    if content.version == VERSION_UNBORN:
        invariant(not content.record, "a checkpoint of version 1 has no record", size=len(content.record))
        layout = CHECKPOINT_1
        own: dict[str, int | bytes] = {
            "sessions_bytes": len(content.sessions),
            "snapshot_bytes": len(content.snapshot),
            "sessions_sum": xxhash.xxh3_128_digest(content.sessions),
            "snapshot_sum": xxhash.xxh3_128_digest(content.snapshot),
        }
    else:
        invariant(len(content.record) <= _RECORD_MAX, "the record fits a checkpoint", size=len(content.record))
        layout = CHECKPOINT
        sections = ((SESSIONS, content.sessions), (SNAPSHOT, content.snapshot))
        own = {
            "record_size": len(content.record),
            "record": content.record,
            "sections": b"".join(
                _SECTION.pack(kind, len(data), xxhash.xxh3_128_digest(data)) for kind, data in sections
            ),
        }
    head = layout.pack(common | own)[:_SUM]
    size = layout.size + len(content.sessions) + len(content.snapshot)
    return b"".join((head, xxhash.xxh3_128_digest(head), content.sessions, content.snapshot, bytes(-size % SECTOR)))


def decode(data: bytes | memoryview) -> Content:
    """The inverse. Raises CheckpointError (damaged), FormatVersionError (intact, of an unknown format)."""
    if len(data) < CHECKPOINT.size or xxhash.xxh3_128_digest(data[:_SUM]) != bytes(data[_SUM : CHECKPOINT.size]):
        raise CheckpointError("the header of a checkpoint is damaged", part="header")
    if bytes(data[:4]) != MAGIC:
        raise CheckpointError("no checkpoint: it begins with other letters", part="header")
    version = int.from_bytes(data[4:6], "little")
    features = int.from_bytes(data[8:16], "little")
    if version not in (VERSION_UNBORN, VERSION) or features & ~FEATURES_KNOWN:
        raise FormatVersionError(
            f"a checkpoint has format version {version} and features {features:#x}; this release knows versions "
            f"{VERSION_UNBORN} and {VERSION}, and features {FEATURES_KNOWN:#x}: start a release that knows them",
            version=version,
            features=features,
        )
    found: dict[str, Any] | None = (CHECKPOINT_1 if version == VERSION_UNBORN else CHECKPOINT).unpack(data)
    if found is None:
        raise CheckpointError("reserved bytes of a checkpoint's header are not zero", part="header")
    sizes, sums = _sections_1(found) if version == VERSION_UNBORN else _sections(found)
    end = CHECKPOINT.size + sum(sizes)
    if len(data) != end + -end % SECTOR or any(data[end:]):
        raise CheckpointError(f"a checkpoint of {end} bytes has {len(data)}", part="size")
    middle = CHECKPOINT.size + sizes[0]
    sessions, snapshot = bytes(data[CHECKPOINT.size : middle]), bytes(data[middle:end])
    for part, what, content, digest in zip(
        ("sessions", "snapshot"), ("session table", "snapshot"), (sessions, snapshot), sums, strict=True
    ):
        if xxhash.xxh3_128_digest(content) != digest:
            raise CheckpointError(f"the {what} of a checkpoint is damaged", part=part)
    try:
        header = framing.decode_header(found["header"])
    except FrameError as error:
        raise CheckpointError(f"the entry's header in a checkpoint is damaged: {error}", part="header") from error
    record = found.get("record", b"")[: found.get("record_size", 0)]
    return Content(found["cluster"], header, found["machine"], sessions, snapshot, version, record)


def _sections_1(found: dict[str, Any]) -> tuple[list[int], list[bytes]]:
    """Sizes and checksums of sessions and snapshot in version 1."""
    parts = ("sessions", "snapshot")
    return [found[f"{part}_bytes"] for part in parts], [found[f"{part}_sum"] for part in parts]


def _sections(found: dict[str, Any]) -> tuple[list[int], list[bytes]]:
    """The same in version 2. Raises CheckpointError, FormatVersionError."""
    rows = list(_SECTION.iter_unpack(found["sections"]))
    kinds = [kind for kind, _, _ in rows]
    if any(kind > SNAPSHOT for kind in kinds):
        raise FormatVersionError(
            f"a checkpoint has sections of the kinds {kinds}; this release knows {SESSIONS} and {SNAPSHOT}: start a "
            "release that knows them",
            version=VERSION,
        )
    record, size = found["record"], found["record_size"]
    own = b"".join(_SECTION.pack(*row) for row in rows[:2])
    if kinds != [SESSIONS, SNAPSHOT, *[0] * (len(rows) - 2)] or found["sections"] != own.ljust(_SECTIONS_SIZE, b"\0"):
        raise CheckpointError("the table of sections of a checkpoint is none", part="header")
    if size > _RECORD_MAX or any(record[size:]):
        raise CheckpointError(f"a checkpoint has a record of {size} bytes, and bytes behind it", part="header")
    return [size for _, size, _ in rows[:2]], [digest for _, _, digest in rows[:2]]


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
