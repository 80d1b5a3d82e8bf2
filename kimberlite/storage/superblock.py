"""The superblock: who this replica is and what it has promised, in four copies.

One file of four copies of 16 KiB. A copy is written only after the one before is durable, so
that one event cannot hit two; three must read back; opening takes the highest sequence
on which two agree (3 + 2 > 4: the last completed update is always seen, an incomplete
one is rolled back or forward as a whole). When no two agree, because a crash cut an update short and a copy
was damaged besides, two that follow each other do as well: had a later update been completed, one copy at
most would not be of it. Source: TigerBeetle's superblock quorums; rules R9 and R19 of the storage notes.

The bytes: layout.SUPERBLOCK, then the headers of the suffix, then zeros. What changes in it: the view state
(types.ViewState), the checkpoint (types.Checkpoint), for which it is the only commit point, the identity
(types.Identity) and what is said of the ring (types.RingMark).

Version 2, of the first release, knows neither identity nor ring. It is read, and written again as version 2, by
repair and by update, until the replica has become a member of its cluster: an update whose identity is formed is the
conversion, and makes it version 3. What is in force names its parent by the checksum that was read, so that both
versions form one chain, and a crash in the middle of a conversion leaves the one or the other.

May import: errors, types, _fast.framing, xxhash, storage.interface, storage.layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from kimberlite._fast import framing
from kimberlite.errors import (
    FormatVersionError,
    FrameError,
    StorageError,
    SuperblockError,
    WriteFailedError,
    invariant,
)
from kimberlite.storage.interface import SUFFIX_MAX, Disk, ViewState, Write
from kimberlite.storage.layout import SUPERBLOCK, SUPERBLOCK_2
from kimberlite.types import (
    HEADER_SIZE,
    SLOTS,
    VIEW_BORN,
    ZERO16,
    Birth,
    Checkpoint,
    ClusterId,
    Heard,
    Identity,
    RingMark,
)

NAME = "superblock"
COPIES = 4
COPY_BYTES = 16 * 1024
WRITE_QUORUM = 3
READ_QUORUM = 2
VERSION = 3
VERSION_UNBORN = 2  # of data that the first release made; it knows no identity
FEATURES_KNOWN = 0
MAGIC = b"KMSB"

_CHECKED = SUPERBLOCK.offset("magic")  # the checksum covers everything from here on
_MAGIC, _VERSION, _FEATURES = (
    slice(SUPERBLOCK.offset(name), SUPERBLOCK.offset(name) + size)
    for name, size in (("magic", 4), ("version", 4), ("features", 8))
)
_STATE = ("view", "log_view", "commit", "base", "suffix_head", "doubt")
_CHECKPOINT = (
    "segment",
    "entries",
    "end",
    "size",
    "digest",
    "first_op",
    "first_position",
    "first_segment",
)
_LAYOUTS = {VERSION_UNBORN: SUPERBLOCK_2, VERSION: SUPERBLOCK}
_RECORD_MAX = next(field.size for field in SUPERBLOCK.fields if field.name == "record")
NOBODY, NO_RING = Identity(), RingMark()  # what version 2 says
_HEARD = struct.Struct(f"<{3 * SLOTS}Q")


@dataclass(frozen=True, slots=True)
class Superblock:
    """Decoded content. `checksum` is ZERO16 until encoded."""

    cluster: ClusterId
    replica: int
    replica_count: int
    segment_bytes: int
    state: ViewState
    checkpoint: Checkpoint
    sequence: int = 1
    parent: bytes = ZERO16
    checksum: bytes = ZERO16
    version: int = VERSION_UNBORN
    identity: Identity = NOBODY
    ring: RingMark = NO_RING


def encode(block: Superblock, copy: int) -> bytes:
    """One copy, COPY_BYTES long."""
    state, checkpoint = block.state, block.checkpoint
    invariant(len(state.suffix) <= SUFFIX_MAX, "the suffix fits the superblock", headers=len(state.suffix))
    fixed = _LAYOUTS[block.version].pack(
        {
            "checksum": ZERO16,
            "copy": copy,
            "magic": MAGIC,
            "version": block.version,
            "features": FEATURES_KNOWN,
            "sequence": block.sequence,
            "parent": block.parent,
            "cluster": block.cluster,
            "replica": block.replica,
            "replica_count": block.replica_count,
            "segment_bytes": block.segment_bytes,
            "view": state.view,
            "log_view": state.log_view,
            "commit": state.commit,
            "base": state.base,
            "suffix_head": state.suffix_head,
            "doubt": state.doubt,
            "suffix_count": len(state.suffix),
            "segment": checkpoint.segment,
            "entries": checkpoint.entries,
            "end": checkpoint.end,
            "size": checkpoint.size,
            "digest": checkpoint.digest,
            "first_op": checkpoint.first_op,
            "first_position": checkpoint.first_position,
            "first_segment": checkpoint.first_segment,
            "header": checkpoint.header.raw,
            **_encode_identity(block),
        }
    )
    whole = (fixed + b"".join(header.raw for header in state.suffix)).ljust(COPY_BYTES, b"\0")
    return xxhash.xxh3_128_digest(whole[_CHECKED:]) + whole[16:]


def _encode_identity(block: Superblock) -> dict[str, int | bytes]:
    """The fields that version 3 has and version 2 has not."""
    identity, ring = block.identity, block.ring
    if block.version == VERSION_UNBORN:
        invariant(identity == NOBODY and ring == NO_RING, "superblock 2 says nothing of identity or ring")
        return {}
    invariant(len(identity.record) <= _RECORD_MAX, "the record fits the superblock", size=len(identity.record))
    invariant(len(identity.heard) == SLOTS, "every slot has what was heard of it", slots=len(identity.heard))
    return {
        "birth": identity.birth,
        "slot": identity.slot,
        "record_size": len(identity.record),
        "incarnation": identity.incarnation,
        "bound_to": identity.digest,
        "life": identity.life,
        "ring_floor": ring.floor,
        "ring_nonce": ring.nonce,
        "heard": _HEARD.pack(*(number for heard in identity.heard for number in heard)),
        "record": identity.record,
    }


def _decode_identity(found: dict[str, Any]) -> Identity | None:
    """None for what `_encode_identity` does not make."""
    size, record = found["record_size"], found["record"]
    if size > _RECORD_MAX or any(record[size:]) or found["birth"] not in tuple(Birth):
        return None
    numbers = iter(_HEARD.unpack(found["heard"]))
    return Identity(
        birth=Birth(found["birth"]),
        slot=found["slot"],
        incarnation=found["incarnation"],
        digest=found["bound_to"],
        life=found["life"],
        heard=tuple(map(Heard, numbers, numbers, numbers)),
        record=record[:size],
    )


def _mark(copy: int) -> bytes:
    """What only that copy has, behind the checksum that all have in common."""
    return copy.to_bytes(2, "little").ljust(_CHECKED - 16, b"\0")


def _is_whole(data: bytes, copy: int) -> bool:
    """Whether that is copy number `copy`, as it was written."""
    intact = len(data) == COPY_BYTES and data[:16] == xxhash.xxh3_128_digest(data[_CHECKED:])
    return intact and data[16:_CHECKED] == _mark(copy)


def decode(data: bytes, copy: int) -> Superblock | None:
    """A copy, or None when it is damaged or is not copy number `copy`.

    Raises FormatVersionError for an intact copy of an unknown format: never repaired.
    """
    if not _is_whole(data, copy) or data[_MAGIC] != MAGIC:
        return None
    version, features = int.from_bytes(data[_VERSION], "little"), int.from_bytes(data[_FEATURES], "little")
    if version not in _LAYOUTS or features & ~FEATURES_KNOWN:
        raise FormatVersionError(
            f"superblock copy {copy} has format version {version} and features {features:#x}; this release knows "
            f"versions {VERSION_UNBORN} and {VERSION}, and features {FEATURES_KNOWN:#x}: start a release that knows "
            "them",
            version=version,
            features=features,
        )
    layout = _LAYOUTS[version]
    found: dict[str, Any] | None = layout.unpack(data)
    if found is None:
        return None
    end = layout.size + found["suffix_count"] * HEADER_SIZE
    identity = NOBODY if version == VERSION_UNBORN else _decode_identity(found)
    if found["suffix_count"] > SUFFIX_MAX or data[end:] != bytes(len(data) - end) or identity is None:
        return None
    try:
        suffix = tuple(framing.decode_headers(data[layout.size : end]))
        header = framing.decode_header(found["header"])
    except FrameError:
        return None
    state = ViewState(**{name: found[name] for name in _STATE}, suffix=suffix)
    checkpoint = Checkpoint(header, **{name: found[name] for name in _CHECKPOINT})
    of_whom = {name: found[name] for name in ("cluster", "replica", "replica_count", "segment_bytes")}
    return Superblock(
        **of_whom,
        state=state,
        checkpoint=checkpoint,
        sequence=found["sequence"],
        parent=found["parent"],
        checksum=bytes(data[:16]),
        version=version,
        identity=identity,
        ring=NO_RING if version == VERSION_UNBORN else RingMark(found["ring_floor"], found["ring_nonce"]),
    )


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
    chosen = _in_force(valid)
    if chosen is None:
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


def _in_force(valid: Sequence[Superblock]) -> Superblock | None:
    """The newest of these intact copies on which two agree; else the newest that continues another; else None."""
    newest = sorted(valid, key=lambda copy: -copy.sequence)
    for copy in newest:
        if sum(other.sequence == copy.sequence for other in valid) >= READ_QUORUM:
            return copy
    for copy in newest:
        if any((other.sequence + 1, other.checksum) == (copy.sequence, copy.parent) for other in valid):
            return copy
    return None


def _error(cause: str, message: str) -> SuperblockError:
    return SuperblockError(f"superblock: {message}", cause=cause)


def read_copies(disk: Disk, file: int) -> list[Superblock | None]:
    """All copies; an unreadable one counts as damaged."""
    copies: list[Superblock | None] = []
    known: dict[bytes, Superblock] = {}  # by checksum: most copies have the same content
    for copy in range(COPIES):
        try:
            data = bytes(disk.read(file, copy * COPY_BYTES, COPY_BYTES))
        except OSError:
            copies.append(None)
            continue
        same = known.get(data[:16])
        found = same if same is not None and _is_whole(data, copy) else decode(data, copy)
        if found is not None:
            known[found.checksum] = found
        copies.append(found)
    return copies


def phases(disk: Disk, file: int, whole: bytes, copies: Iterable[int] = range(COPIES)) -> list[list[Write]]:
    """The write of these copies, one after another. whole: what `encode` makes of one."""
    result = []
    for copy in copies:
        buffer = disk.aligned(COPY_BYTES)
        buffer[:] = whole
        buffer[16:_CHECKED] = _mark(copy)
        result.append([Write(file, copy * COPY_BYTES, buffer)])
    return result


def check_identity(last: Superblock, identity: Identity) -> None:
    """Raises SuperblockError when that identity must not follow: who formed stays formed, as whom it formed."""
    before = last.identity
    if before.birth is Birth.FORMED and identity.birth is not Birth.FORMED:
        raise _error("not_monotonic", f"a replica that is formed would be {identity.birth.name.lower()}")
    if before.birth is Birth.FORMED and (identity.incarnation, identity.slot) != (before.incarnation, before.slot):
        raise _error("not_monotonic", f"slot {identity.slot} would follow slot {before.slot}, or another incarnation")
    if before.record and not identity.record:
        raise _error("not_monotonic", "no record of the cluster would follow one")


def converted(block: Superblock) -> Superblock:
    """What an update of version 2 becomes: version 3 when the replica is formed, the same version otherwise.

    Data of the first release has promised views that other replicas led than lead them now: none of these views may
    ever be led again, or two logs of one view come about. So the conversion enters VIEW_BORN, above all of them;
    log_view stays, for it says which log this is.
    """
    if block.identity.birth is not Birth.FORMED:
        return block
    return replace(block, version=VERSION, state=replace(block.state, view=max(block.state.view, VIEW_BORN)))


class SuperblockFile:
    """The open superblock of a replica: what is in force, and the next update."""

    def __init__(self, disk: Disk, name: str = NAME) -> None:
        """Open and choose. name: of the file. Raises SuperblockError, FormatVersionError."""
        self._disk = disk
        self._name = name
        if not disk.exists(name):
            raise _error("not_found", "there is no superblock; create the replica with `kimberlite format`")
        self._file = disk.open(name)
        try:
            copies = read_copies(disk, self._file)
            self.current = choose(copies)
        except StorageError:
            disk.release(self._file)
            raise
        unreadable = [index for index, copy in enumerate(copies) if copy is None]
        others = [i for i, copy in enumerate(copies) if copy is not None and copy.checksum != self.current.checksum]
        self._damaged = unreadable + others  # an older copy may be what the choice rests on: it is written over last
        self.damaged_copies = len(self._damaged)
        self.unreadable_copies = len(unreadable)
        self._last = self.current  # submitted last

    def close(self) -> None:
        """Let go of the file; nothing of it may be under way."""
        self._disk.release(self._file)

    def repair(self) -> list[list[Write]]:
        """Writes that bring every copy to what is in force; empty when all are.

        Intact copies are left alone: there may be only two, and a crash must not tear one of them.
        """
        return phases(self._disk, self._file, encode(self.current, 0), self._damaged) if self._damaged else []

    def is_good(self, copy: int) -> bool:
        """Whether a copy on the disk is what is in force. While an update is under way it need not be."""
        return self._holds(copy, self.current)

    def _holds(self, copy: int, block: Superblock) -> bool:
        """Whether a copy on the disk is that content."""
        try:
            data = bytes(self._disk.read(self._file, copy * COPY_BYTES, COPY_BYTES))
        except OSError:
            return False
        return data[:16] == block.checksum and _is_whole(data, copy)

    def rewrite(self, copy: int) -> list[list[Write]]:
        """The write of one copy of what is in force."""
        return phases(self._disk, self._file, encode(self.current, 0), [copy])

    def update(
        self,
        state: ViewState | None = None,
        checkpoint: Checkpoint | None = None,
        identity: Identity | None = None,
        ring: RingMark | None = None,
    ) -> tuple[Superblock, list[list[Write]]]:
        """The next content and its writes; what is not given stays. Views, checkpoint and trims never go back, nor
        does a birth."""
        last = self._last
        state = state if state is not None else last.state
        if state.view < last.state.view or state.log_view < last.state.log_view or state.log_view > state.view:
            raise _error(
                "not_monotonic",
                f"view {state.view} and log_view {state.log_view} would follow "
                f"{last.state.view} and {last.state.log_view}",
            )
        checkpoint = checkpoint if checkpoint is not None else last.checkpoint
        if checkpoint.op < last.checkpoint.op or checkpoint.first_op < last.checkpoint.first_op:
            raise _error(
                "not_monotonic",
                f"checkpoint {checkpoint.op} of a log from op {checkpoint.first_op} would follow "
                f"checkpoint {last.checkpoint.op} of one from op {last.checkpoint.first_op}",
            )
        identity = identity if identity is not None else last.identity
        check_identity(last, identity)
        block = replace(last, state=state, checkpoint=checkpoint, identity=identity, ring=ring or last.ring)
        return self._next(converted(block) if block.version == VERSION_UNBORN else block)

    def take_back_view(self, view: int) -> tuple[Superblock, list[list[Write]]]:
        """The next content with a lower view: see cli.repair_view for when that breaks no promise. All else stays."""
        state = self._last.state
        if not state.log_view <= view <= state.view:
            raise _error(
                "not_monotonic", f"view {state.view} can not be taken back to {view}: log_view {state.log_view}"
            )
        return self._next(replace(self._last, state=replace(state, view=view)))

    def _next(self, block: Superblock) -> tuple[Superblock, list[list[Write]]]:
        last = self._last
        block = replace(block, sequence=last.sequence + 1, parent=last.checksum, checksum=ZERO16)
        whole = encode(block, 0)
        self._last = replace(block, checksum=whole[:16])
        return self._last, phases(self._disk, self._file, whole)

    @property
    def last(self) -> Superblock:
        """What was handed to the disk last: `current` once all is durable."""
        return self._last

    @property
    def is_settled(self) -> bool:
        """Whether nothing was handed to the disk that is not in force."""
        return self._last is self.current or self._last.sequence == self.current.sequence

    def confirm(self, block: Superblock) -> None:
        """Read an update back when it is durable. Raises WriteFailedError below the write quorum."""
        equal = sum(self._holds(copy, block) for copy in range(COPIES))
        if equal < WRITE_QUORUM and self._last is block:
            raise WriteFailedError(
                f"only {equal} of {COPIES} superblock copies read back as written: the disk does not keep its word; "
                "replace it",
                file=self._name,
                offset=0,
                errno=0,
            )
        self.current = block
