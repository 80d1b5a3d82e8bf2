"""What is in a backup. `manifest.json` is written last and replaced at once: a backup is what it says.

Every file has its size, its XXH3-128 and its SHA-256 (for people: `sha256sum`). A file of entries also has the
digest of its *content*: of everything in its entries that does not depend on the cluster, by which a restored
journal is compared with the backup although every header in it is new. `sha256` covers the manifest itself.

May import: errors, types, xxhash.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import asdict, dataclass

import xxhash

from kimberlite.errors import BackupError, FormatVersionError
from kimberlite.types import Header

NAME = "manifest.json"
FORMAT = "kimberlite backup"
VERSION = 1
ENTRIES, CHECKPOINT = "entries", "checkpoint"
_FILE_NAME = re.compile(r"(entries-\d{16,20}-\d{16,20}|checkpoint-\d{16,20})-[0-9a-f]{16}")
_CONTENT = struct.Struct("<QQQQQQQIIBBH16s16s")


def is_file_name(name: str) -> bool:
    """Whether a name is one that files of a backup have."""
    return _FILE_NAME.fullmatch(name) is not None


def entries_name(first_op: int, last: Header) -> str:
    """The identity of the last entry is in the name, and with it, by the hash chain, all that the file holds: a name
    never means two contents."""
    return f"{ENTRIES}-{first_op:016d}-{last.op:016d}-{last.checksum[:8].hex()}"


def checkpoint_name(op: int, digest: bytes) -> str:
    return f"{CHECKPOINT}-{op:016d}-{digest[:8].hex()}"


@dataclass(frozen=True, slots=True)
class File:
    """One file. For kind `checkpoint` the ops are both its op, and what speaks of entries is 0 or empty.

    identity: checksum of the header of the last entry. All digests are hexadecimal.
    """

    name: str
    kind: str
    bytes: int
    xxh3_128: str
    sha256: str
    first_op: int
    last_op: int
    entries: int = 0
    events: int = 0
    content: str = ""
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole backup: ops first_op to last_op, events first_position to end_position - 1.

    view: the highest that the replica knew. identity: checksum of the header of last_op.
    """

    cluster: str
    replica: int
    replica_count: int
    view: int
    first_op: int
    first_position: int
    last_op: int
    end_position: int
    identity: str
    files: tuple[File, ...]

    @property
    def entries(self) -> tuple[File, ...]:
        """Files of entries, in the order of the log."""
        return tuple(file for file in self.files if file.kind == ENTRIES)

    @property
    def checkpoint(self) -> File | None:
        return next((file for file in self.files if file.kind == CHECKPOINT), None)

    def encode(self) -> bytes:
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return (json.dumps({**document, "sha256": _digest(document)}, indent=1) + "\n").encode()


def _digest(document: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def decode(data: bytes, where: str) -> Manifest:
    """The inverse; everything checked. Raises BackupError, FormatVersionError."""
    try:
        document = json.loads(data)
        claimed = document.pop("sha256")
        if document.pop("format") != FORMAT:
            raise ValueError("it is of another kind")
        version = document.pop("version")
        if claimed != _digest({"format": FORMAT, "version": version, **document}):
            raise ValueError("its checksum does not fit")
        if version != VERSION:
            raise FormatVersionError(
                f"{where}/{NAME}: backup format {version}; this release knows {VERSION}: use a release that knows it",
                version=version,
            )
        files = tuple(File(**file) for file in document.pop("files"))
        manifest = Manifest(**document, files=files)
        _check(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupError(f"{where}/{NAME} is damaged: {error}; use another backup", file=NAME, where=where) from error
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError: intact, but not one that this program wrote."""
    for file in manifest.files:
        if not is_file_name(file.name):
            raise ValueError(f"{file.name!r} is no name of a file of a backup")
    following = manifest.first_op
    for file in manifest.entries:
        if file.first_op != following or file.last_op < file.first_op:
            raise ValueError(f"{file.name} begins with op {file.first_op} instead of {following}")
        following = file.last_op + 1
    if following != manifest.last_op + 1:
        raise ValueError(f"the files end with op {following - 1} instead of {manifest.last_op}")
    checkpoint = manifest.checkpoint
    if manifest.first_op > 1 and checkpoint is None:
        raise ValueError("there is no checkpoint, and the log does not begin with op 1")
    if checkpoint is not None and not manifest.first_op - 1 <= checkpoint.last_op <= manifest.last_op:
        raise ValueError(f"the checkpoint of op {checkpoint.last_op} is not within the log")


class Digests:
    """Of a file, as its bytes go by."""

    def __init__(self) -> None:
        self.bytes = 0
        self._xxh3 = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256()

    def update(self, data: bytes) -> None:
        self.bytes += len(data)
        self._xxh3.update(data)
        self._sha256.update(data)

    @property
    def xxh3_128(self) -> str:
        return self._xxh3.hexdigest()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


class ContentDigest:
    """Of entries, whatever cluster they belong to: what they do, when, for whom, and every event (by the checksum of
    the body, which whoever read the entry has verified)."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()
        self.entries = 0
        self.events = 0

    def update(self, header: Header) -> None:
        self.entries += 1
        self.events += header.count
        self._digest.update(
            _CONTENT.pack(
                header.op,
                header.view,
                header.commit,
                header.session,
                header.request,
                header.timestamp,
                header.position,
                header.count,
                header.size,
                header.operation,
                header.flags,
                header.reason,
                header.client,
                header.checksum_body,
            )
        )

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
