"""What is on disk, byte by byte: the one table.

`superblock` and `checkpoint` encode and decode by it. The frame header and the witness record are
written out elsewhere for speed (in C, in `journal`): a test holds them against this table.
docs/disk-layout.md is generated from it, and a test pins it. Integers are little-endian; checksums
are XXH3-128 in canonical (big-endian) byte order.

Imports the standard library only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

_FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


class Field(NamedTuple):
    """kind: u8, u16, u32, u64, bytes, or zero (reserved: written as zeros, and anything else is damage)."""

    name: str
    offset: int
    size: int
    kind: str
    meaning: str


class Layout:
    """A structure of fixed size: its fields, one after another without a gap."""

    def __init__(self, title: str, rows: str) -> None:
        """rows: one field a line, as `name kind meaning`, where kind is u8 ... u64, bytes:N or zero:N."""
        self.title = title
        fields, formats, packed, offset = [], ["<"], ["<"], 0
        for row in rows.strip().splitlines():
            name, kind, meaning = row.split(maxsplit=2)
            kind, _, length = kind.partition(":")
            code = _FORMATS.get(kind, f"{length}s")
            size = struct.calcsize("<" + code)
            fields.append(Field(name, offset, size, kind, meaning))
            formats.append(code)
            packed.append(code.replace("s", "x") if kind == "zero" else code)
            offset += size
        self.fields = tuple(fields)
        self.size = offset
        self._struct = struct.Struct("".join(formats))
        self._packed = struct.Struct("".join(packed))  # without what is reserved: that is made zero
        self._reserved = frozenset(field.name for field in fields if field.kind == "zero")
        self._given = tuple(field.name for field in fields if field.kind != "zero")

    def pack(self, values: Mapping[str, int | bytes]) -> bytes:
        """The bytes of these values, one for every field that is not reserved."""
        return self._packed.pack(*[values[name] for name in self._given])

    def unpack(self, data: bytes | memoryview) -> dict[str, int | bytes] | None:
        """The values by name, from the first `size` bytes of data; None when a reserved byte is not zero."""
        values = {field.name: value for field, value in zip(self.fields, self._struct.unpack_from(data), strict=True)}
        if any(any(values.pop(name)) for name in self._reserved):
            return None
        return values

    def offset(self, name: str) -> int:
        """Where a field begins."""
        return next(field.offset for field in self.fields if field.name == name)


FRAME_HEADER = Layout(
    "Header of a journal entry, and of every frame on the wire",
    """
    checksum       bytes:16  of bytes 16 to 255: the identity of the entry
    checksum_body  bytes:16  of the body
    cluster        bytes:16  id of the cluster
    magic          bytes:4   the letters KMBL
    version        u16       of this format
    command        u8        what the frame is; in the journal always a prepare
    replica        u8        index of the replica that made it, 255 for a client
    size           u32       bytes of header and body
    release        u32       release of the program that made it
    epoch          u32       generation of the configuration
    operation      u8        what the prepare does
    flags          u8        none are defined
    reason         u16       why a request was refused
    view           u64       in which it was made
    op             u64       number of the operation
    commit         u64       highest op known to be committed when it was made
    parent         bytes:16  checksum of the entry before: the hash chain
    client         bytes:16  id of the client
    session        u64       number of its session
    request        u64       number of its request
    timestamp      u64       nanoseconds since 1970, increasing along the log
    position       u64       index of the first event
    count          u32       number of events
    latency_us     u32       latency of the client's request before
    context        bytes:16  checksum of the frame that this one is about
    log_view       u64       view whose log the sender has
    checkpoint_op  u64       op of the sender's checkpoint
    nonce          u64       to tell an answer from an older one
    trace          bytes:25  of tracing (W3C trace context): version, trace, parent, flags; not looked at yet
    principal      u64       who asks, once clients are told apart; not looked at yet
    birth_tag      u64       of the birth of the cluster; not looked at yet
    reserved       zero:7    reserved
    """,
)

WITNESS_RECORD = Layout(
    "Witness record: one for each entry of a segment, in order",
    """
    header    bytes:256  the header of the entry, as it stands there
    offset    u64        of the entry in its segment
    segment   u32        number of the segment
    index     u32        of this record in its file
    reserved  zero:224   reserved
    checksum  bytes:16   of bytes 0 to 495
    """,
)

_SUPERBLOCK_BEGIN = """
    checksum          bytes:16  of bytes 32 to the end of the copy
    copy              u16       index of the copy, outside of the checksum
    reserved          zero:14   reserved
    magic             bytes:4   the letters KMSB
    version           u32       of this format
    features          u64       feature bits; an unknown one is refused
    sequence          u64       of this update
    parent            bytes:16  checksum of the update before
    cluster           bytes:16  id of the cluster
    replica           u8        index of this replica
    replica_count     u8        of its cluster
    reserved_segment  zero:6    reserved
    segment_bytes     u64       size of a journal segment
    view              u64       the view this replica is in
    log_view          u64       the view whose log it has
    commit            u64       a lower bound of the commit number
    base              u64       what stands here up to this op is committed entries, if damaged perhaps, never others
    suffix_head       u64       head of the log when log_view was entered
    doubt             u64       what is damaged up to this op may have been acknowledged
    suffix_count      u32       number of headers of the suffix: of the ops up to suffix_head
    segment           u32       checkpoint: segment of its entry
    entries           u32       checkpoint: entries of that segment up to and with its own
    first_segment     u32       lowest segment that there is; files below it are left over from a trim
    end               u64       checkpoint: where its entry ends in the segment
    size              u64       checkpoint: bytes of its file; 0 when there is none yet
    digest            bytes:16  checkpoint: checksum of its file
    first_op          u64       lowest op of the log, after trims
    first_position    u64       position of the first event of that op
    header            bytes:256 header of the checkpoint's entry, of the root when there is no checkpoint yet
    """

SUPERBLOCK_2 = Layout(
    "Superblock of version 2, read, and written until its replica is a member of a cluster that was born: one of four "
    "copies of 16 KiB; headers and zeros follow what is shown here",
    _SUPERBLOCK_BEGIN,
)

SUPERBLOCK = Layout(
    "Superblock: one of four copies of 16 KiB; headers and zeros follow what is shown here. The file `birth` has the "
    "same layout",
    _SUPERBLOCK_BEGIN.rstrip()
    + """
    birth             u8        0 unborn, 1 bound, 2 formed, 3 joining
    slot              u8        number of this member, 255 while none is assigned
    record_size       u16       bytes of the record; 0: none
    reserved_birth    zero:4    reserved
    incarnation       bytes:16  drawn when this data was formatted
    bound_to          bytes:16  digest of the birth; zeros before all incarnations are known
    life              u64       of the process that runs, or ran last: sequence at its start, then 32 random bits
    ring_floor        u64       0; room for the lowest frame of the ring that counts
    ring_nonce        bytes:16  keys the checksums of the ring; zeros: there is none
    heard             bytes:384 of each of 16 slots: life, sequence of its superblock, highest log_view, as heard
    record            bytes:2560 members, voters, settings of the cluster, and zeros; a draft until formed
    transfer          zero:304  reserved for a state transfer under way
    padding           zero:304  reserved
    """,
)

CHECKPOINT_1 = Layout(
    "Checkpoint of version 1, read, and written as long as the superblock is of version 2: the beginning of the file; "
    "the sessions, the snapshot and zeros follow from byte 4096 on",
    """
    magic           bytes:4    the letters KMCP
    version         u16        of this format
    reserved        zero:2     reserved
    features        u64        feature bits; an unknown one is refused
    cluster         bytes:16   id of the cluster
    machine         u64        version of the state machine that wrote the snapshot
    sessions_bytes  u64        size of the session table
    snapshot_bytes  u64        size of the snapshot
    sessions_sum    bytes:16   checksum of the session table
    snapshot_sum    bytes:16   checksum of the snapshot
    header          bytes:256  header of the last op that is in it
    padding         zero:3736  reserved
    checksum        bytes:16   of all bytes before
    """,
)

CHECKPOINT = Layout(
    "Checkpoint: the beginning of the file; its sections, one after another, and zeros follow from byte 4096 on",
    """
    magic           bytes:4    the letters KMCP
    version         u16        of this format
    record_size     u16        bytes of the record; 0: no replica was born yet
    features        u64        feature bits; an unknown one is refused
    cluster         bytes:16   id of the cluster
    machine         u64        version of the state machine that wrote the snapshot
    sections        bytes:256  8 times kind (u32: 1 sessions, 2 snapshot), zeros (u32), size (u64), checksum (16)
    header          bytes:256  header of the last op that is in it
    record          bytes:2560 of the cluster, in force after that op: members, settings, active features and version
    padding         zero:968   reserved
    checksum        bytes:16   of all bytes before
    """,
)

RING_FRAME = Layout(
    "Frame of the ring: the beginning of each of its two copies; the entries without gaps and zeros follow. In the "
    "second copy the bits of all but the first 4096 bytes are inverted",
    """
    checksum         bytes:16  of the nonce of the ring and bytes 32 to the end of the copy
    copy             u16       index of the copy, outside of the checksum
    reserved         zero:14   reserved
    magic            bytes:4   the letters KMRF
    version          u16       of this format
    count            u16       number of entries
    size             u32       bytes of this header and the entries
    segment          u32       segment of the journal in which the entries stand
    sequence         u64       of this frame; its slot is the remainder by the number of slots
    superblock       u64       sequence of the superblock that was in force
    index            u32       of the first entry in its segment
    reserved_offset  zero:4    reserved
    offset           u64       of the first entry in its segment
    padding          zero:48   reserved
    """,
)

LAYOUTS = (FRAME_HEADER, WITNESS_RECORD, SUPERBLOCK_2, SUPERBLOCK, CHECKPOINT_1, CHECKPOINT, RING_FRAME)
