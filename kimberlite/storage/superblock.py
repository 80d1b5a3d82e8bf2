"""The superblock: who this replica is and what it has promised, in four copies.

One file of four copies of 16 KiB. A copy is written only after the one before is durable, so
that one event cannot hit two; three must read back; opening takes the highest sequence
on which two agree (3 + 2 > 4: the last completed update is always seen, an incomplete
one is rolled back or forward as a whole). Source: TigerBeetle's superblock quorums;
rules R9 and R19 of the storage notes.

    0    16  checksum    XXH3-128 of bytes 32 to the end, by the xxhash package
    16    2  copy        index of the copy: checked, outside of the checksum
    18   14  zero
    32    4  magic "KMSB" | 36 u16 version | 38 u16 zero | 40 u64 features
    48    8  sequence     | 56 16 parent: checksum of the sequence before
    72   16  cluster      | 88 u8 replica | 89 u8 replica_count | 90 6 zero | 96 u64 segment_bytes
    104   8  view | 112 u64 log_view | 120 u64 commit | 128 u64 base | 136 u64 suffix_head
    144   4  suffix_count | 148 4 zero | 152 u64 doubt
    160      suffix_count headers of 256 bytes, then zeros

May import: errors, types, _fast.framing, xxhash, storage.interface.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import FormatVersionError, FrameError, SuperblockError, WriteFailedError, invariant
from kimberlite.storage.interface import SUFFIX_MAX, Disk, ViewState, Write
from kimberlite.types import HEADER_SIZE, ZERO16, ClusterId

NAME = "superblock"
COPIES = 4
COPY_BYTES = 16 * 1024
WRITE_QUORUM = 3
READ_QUORUM = 2
VERSION = 1
FEATURES_KNOWN = 0
MAGIC = b"KMSB"

_CHECKED = 32  # the checksum covers everything from here on
_COPY = struct.Struct("<H")
_FIXED = struct.Struct("<4sHHQ Q16s 16sBB6xQ QQQQQ I4x Q")
_HEADERS = _CHECKED + _FIXED.size


@dataclass(frozen=True, slots=True)
class Superblock:
    """Decoded content. `checksum` is ZERO16 until encoded."""

    cluster: ClusterId
    replica: int
    replica_count: int
    segment_bytes: int
    state: ViewState
    sequence: int = 1
    parent: bytes = ZERO16
    checksum: bytes = ZERO16


def encode(block: Superblock, copy: int) -> bytes:
    """One copy, COPY_BYTES long."""
    state = block.state
    invariant(len(state.suffix) <= SUFFIX_MAX, "the suffix fits the superblock", headers=len(state.suffix))
    fixed = _FIXED.pack(
        MAGIC,
        VERSION,
        0,
        FEATURES_KNOWN,
        block.sequence,
        block.parent,
        block.cluster,
        block.replica,
        block.replica_count,
        block.segment_bytes,
        state.view,
        state.log_view,
        state.commit,
        state.base,
        state.suffix_head,
        len(state.suffix),
        state.doubt,
    )
    checked = (fixed + b"".join(header.raw for header in state.suffix)).ljust(COPY_BYTES - _CHECKED, b"\0")
    return (xxhash.xxh3_128_digest(checked) + _COPY.pack(copy)).ljust(_CHECKED, b"\0") + checked


def decode(data: bytes, copy: int) -> Superblock | None:
    """A copy, or None when it is damaged or is not copy number `copy`.

    Raises FormatVersionError for an intact copy of an unknown format: never repaired.
    """
    checked = data[_CHECKED:]
    if len(data) != COPY_BYTES or data[:16] != xxhash.xxh3_128_digest(checked):
        return None
    if data[16:_CHECKED] != _COPY.pack(copy).ljust(_CHECKED - 16, b"\0"):
        return None
    magic, version, reserved, features, sequence, parent, *rest = _FIXED.unpack_from(checked)
    if magic != MAGIC:
        return None
    if version != VERSION or features & ~FEATURES_KNOWN or reserved:
        raise FormatVersionError(
            f"superblock copy {copy} has format version {version} and features {features:#x}; this release knows "
            f"version {VERSION} and features {FEATURES_KNOWN:#x}: start a release that knows them",
            version=version,
            features=features,
        )
    cluster, replica, replica_count, segment_bytes, view, log_view, commit, base, suffix_head, count, doubt = rest
    end = _FIXED.size + count * HEADER_SIZE
    if count > SUFFIX_MAX or checked[end:] != bytes(len(checked) - end):
        return None
    try:
        suffix = tuple(framing.decode_headers(checked[_FIXED.size : end]))
    except FrameError:
        return None
    state = ViewState(view, log_view, commit, base, suffix_head, suffix, doubt)
    return Superblock(cluster, replica, replica_count, segment_bytes, state, sequence, parent, bytes(data[:16]))


def choose(copies: Sequence[Superblock | None]) -> Superblock:
    """The content in force among the copies read. Raises SuperblockError with its `cause`."""
    valid = [copy for copy in copies if copy is not None]
    if not valid:
        raise _error("not_found", "no copy of the superblock is intact; if this is a replica, restore it from a peer")
    by_sequence: dict[int, set[bytes]] = {}
    for copy in valid:
        by_sequence.setdefault(copy.sequence, set()).add(copy.checksum)
    for sequence, checksums in by_sequence.items():
        if len(checksums) > 1:
            raise _error("fork", f"two different superblocks have sequence {sequence}: two processes wrote this data")
    for sequence in sorted(by_sequence, reverse=True):
        agreeing = [copy for copy in valid if copy.sequence == sequence]
        if len(agreeing) >= READ_QUORUM:
            chosen = agreeing[0]
            break
    else:
        raise _error(
            "quorum_lost", f"no {READ_QUORUM} of the {len(valid)} intact superblock copies agree; replace this replica"
        )
    for copy in valid:
        if copy.sequence == chosen.sequence + 1 and copy.parent != chosen.checksum:
            raise _error("parent_skipped", f"superblock {copy.sequence} does not continue {chosen.sequence}")
        if copy.sequence > chosen.sequence + 1:
            raise _error("parent_skipped", f"superblock {copy.sequence} is ahead of {chosen.sequence} by more than one")
        if copy.sequence == chosen.sequence - 1 and chosen.parent != copy.checksum:
            raise _error("parent_skipped", f"superblock {chosen.sequence} does not continue {copy.sequence}")
    return chosen


def _error(cause: str, message: str) -> SuperblockError:
    return SuperblockError(f"superblock: {message}", cause=cause)


def read_copies(disk: Disk, file: int) -> list[Superblock | None]:
    """All copies; an unreadable one counts as damaged."""
    copies: list[Superblock | None] = []
    for copy in range(COPIES):
        try:
            data = bytes(disk.read(file, copy * COPY_BYTES, COPY_BYTES))
        except OSError:
            copies.append(None)
        else:
            copies.append(decode(data, copy))
    return copies


def phases(disk: Disk, file: int, block: Superblock, copies: Iterable[int] = range(COPIES)) -> list[list[Write]]:
    """The write of these copies, one after another."""
    result = []
    for copy in copies:
        buffer = disk.aligned(COPY_BYTES)
        buffer[:] = encode(block, copy)
        result.append([Write(file, copy * COPY_BYTES, buffer)])
    return result


class SuperblockFile:
    """The open superblock of a replica: what is in force, and the next update."""

    def __init__(self, disk: Disk) -> None:
        """Open and choose. Raises SuperblockError, FormatVersionError."""
        self._disk = disk
        if not disk.exists(NAME):
            raise _error("not_found", "there is no superblock; create the replica with `kimberlite format`")
        self._file = disk.open(NAME)
        copies = read_copies(disk, self._file)
        self.current = choose(copies)
        self._damaged = [
            index for index, copy in enumerate(copies) if copy is None or copy.checksum != self.current.checksum
        ]
        self.damaged_copies = len(self._damaged)
        self.unreadable_copies = sum(copy is None for copy in copies)  # the others are merely older
        self._last = self.current  # submitted last

    def repair(self) -> list[list[Write]]:
        """Writes that bring every copy to what is in force; empty when all are.

        Intact copies are left alone: there may be only two, and a crash must not tear one of them.
        """
        return phases(self._disk, self._file, self.current, self._damaged)

    def update(self, state: ViewState) -> tuple[Superblock, list[list[Write]]]:
        """The next content and its writes. View and log_view never go back."""
        last = self._last
        if state.view < last.state.view or state.log_view < last.state.log_view or state.log_view > state.view:
            raise _error(
                "not_monotonic",
                f"view {state.view} and log_view {state.log_view} would follow "
                f"{last.state.view} and {last.state.log_view}",
            )
        digest = encode(last, 0)[:16]
        self._last = replace(last, state=state, sequence=last.sequence + 1, parent=digest)
        return self._last, phases(self._disk, self._file, self._last)

    def confirm(self, block: Superblock) -> None:
        """Read an update back when it is durable. Raises WriteFailedError below the write quorum."""
        digest = encode(block, 0)[:16]
        equal = sum(copy is not None and copy.checksum == digest for copy in read_copies(self._disk, self._file))
        if equal < WRITE_QUORUM and self._last is block:
            raise WriteFailedError(
                f"only {equal} of {COPIES} superblock copies read back as written: the disk does not keep its word; "
                "replace it",
                file=NAME,
                offset=0,
                errno=0,
            )
        self.current = replace(block, checksum=digest)
