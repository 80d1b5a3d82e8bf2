"""The record: who takes part in a cluster, under which settings. What all replicas must agree on, as a value.

    Record    one generation (`epoch`) of the configuration: members, who votes, settings, features
    Member    one replica: its slot, its role, which formatting of a disk it is (`incarnation`), where it is reached
    Settings  limits that every replica must apply alike, or their logs or checkpoints would come to differ

A slot is the number of a member, 0 to 15, the same as long as it is one. A set of slots is a bit set.

Where it stands: in the superblock (the newest that is known to be committed), in a checkpoint (the one in force after
its op), in frames that tell of it. Before a cluster is born each replica has a *draft*, epoch 0: made of its own
configuration, with the incarnations that it has learned so far (`bind`). When a draft has all of them, `birth_digest`
says what has to be equal on all replicas: slots, incarnations, addresses, settings, origin. `born` makes the first
record of it, epoch 1, which carries that digest for ever: records of another birth are another cluster's, whatever
its id says.

The encoding is canonical: equal records have equal bytes, and `decode` accepts no others. At most RECORD_MAX bytes:

    0    fixed part: _FIXED
    188  for each member, by ascending slot: _MEMBER, host of the peer address, host of the client address
         (of length 0 when both are the same, as they mostly are)

Integers are little-endian; hosts are UTF-8. `digest` is XXH3-128 of all of it.

Pure. Imports errors, types and xxhash only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import NamedTuple

import xxhash

from kimberlite.errors import FormatVersionError, RecordError, invariant
from kimberlite.types import OP_MAX, REPLICAS_MAX, SLOT_NONE, SLOTS, ZERO16

RECORD_MAX = 2560  # bytes: what the superblock has room for
HOST_MAX = 255  # bytes
MAGIC = b"KMRC"
VERSION = 1
FLAG_JOINT = 1  # two sets of voters, `old_voters` and `new_voters`, at once
FLAG_SOLE_SURVIVOR = 2  # made on one disk, when the others were lost for good
FLAGS_KNOWN = FLAG_JOINT | FLAG_SOLE_SURVIVOR
SETTING_MAX = 1 << 56
EPOCH_MAX = 0xFFFF_FFFF

_SETTINGS_ROOM = 12  # numbers: what is not used is zero
_FIXED = struct.Struct(f"<4sHHIHHHBxQQQ16s16s16s{_SETTINGS_ROOM}Q")
_MEMBER = struct.Struct("<BBBxHHBB16s")


class Role(IntEnum):
    """What a member does. A lost one counts in the sizes of quorums, but nobody dials it or waits for it."""

    VOTER = 1
    STANDBY = 2
    LOST = 3


class Address(NamedTuple):
    """Where a member is reached. Host names are resolved anew for each connection."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Member:
    """incarnation: 128 random bits, drawn when the data was formatted. ZERO16 in a draft: not learned yet; of a lost
    member: it took no part in the birth. intent: of a standby, the slot that it is to replace."""

    slot: int
    role: Role
    incarnation: bytes
    peer: Address
    client: Address
    intent: int = SLOT_NONE


@dataclass(frozen=True, slots=True)
class Settings:
    """As in the configuration: see config/sections.py, limits and checkpoint."""

    sessions_max: int
    event_bytes_max: int
    request_bytes_max: int
    prepare_bytes_max: int
    frame_bytes_max: int
    checkpoint_ops: int
    checkpoint_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    """made_by: op that made it, 0 for the one of the birth. old_voters: 0 unless joint. machine: version of the state
    machine that is active. origin: identity of the log's first entry before anything was appended: of the root, or of
    a backup's head; ZERO16 when the data is older than records are. birth: digest of the draft it all began with.
    before: digest of the record of the epoch before."""

    epoch: int
    made_by: int
    flags: int
    old_voters: int
    new_voters: int
    settings: Settings
    features: int
    machine: int
    origin: bytes
    birth: bytes
    before: bytes
    members: tuple[Member, ...]

    def member(self, slot: int) -> Member | None:
        """Who has that slot."""
        return next((member for member in self.members if member.slot == slot), None)

    @property
    def voters(self) -> tuple[int, ...]:
        """Slots that count in a quorum of either set, ascending."""
        return tuple(slot for slot in range(SLOTS) if (self.old_voters | self.new_voters) >> slot & 1)

    @property
    def is_bound(self) -> bool:
        """Whether the incarnation of everybody who is not lost is known."""
        return all(member.incarnation != ZERO16 or member.role is Role.LOST for member in self.members)


# Before the birth


def draft(settings: Settings, origin: bytes, addresses: Sequence[tuple[Address, Address]], machine: int = 0) -> Record:
    """What a configuration says: voters in the slots 0, 1, ... at these (peer, client) addresses, none bound yet."""
    members = tuple(
        Member(slot, Role.VOTER, ZERO16, peer, client) for slot, (peer, client) in enumerate(addresses[:SLOTS])
    )
    found = Record(
        epoch=0,
        made_by=0,
        flags=0,
        old_voters=0,
        new_voters=(1 << len(members)) - 1,
        settings=settings,
        features=0,
        machine=machine,
        origin=origin,
        birth=ZERO16,
        before=ZERO16,
        members=members,
    )
    check(found)
    return found


def _with_member(record: Record, member: Member) -> Record:
    members = tuple(member if other.slot == member.slot else other for other in record.members)
    return replace(record, members=members)


def bind(record: Record, slot: int, incarnation: bytes) -> Record:
    """The draft with that incarnation in a slot where none is known yet. Raises RecordError: the slot has another, or
    there is no such slot, or another slot has that incarnation (a copied directory)."""
    member = record.member(slot)
    if record.epoch or member is None or member.role is Role.LOST or member.incarnation not in (ZERO16, incarnation):
        known = member.incarnation.hex() if member is not None else "nobody"
        raise _error("member", f"slot {slot} of epoch {record.epoch} is {known}: {incarnation.hex()} can not be bound")
    bound = _with_member(record, replace(member, incarnation=incarnation))
    check(bound)
    return bound


def leave_out(record: Record, slot: int) -> Record:
    """The draft without the member of that slot, which does not come: it stays in the sizes of quorums. All bindings
    are forgotten, for the others leave it out as well, or are not of this birth. Raises RecordError."""
    if record.epoch or record.member(slot) is None:
        raise _error("member", f"slot {slot} can not be left out of a record of epoch {record.epoch}")
    members = tuple(
        replace(member, incarnation=ZERO16, role=Role.LOST if member.slot == slot else member.role)
        for member in record.members
    )
    return replace(record, members=members)


def carried_over(record: Record, before: Record) -> Record:
    """A draft made anew, with what was bound or left out in the one before: that is never forgotten by itself."""
    for old in before.members:
        member = record.member(old.slot)
        if member is not None:
            record = _with_member(record, replace(member, incarnation=old.incarnation, role=old.role))
    check(record)
    return record


def birth_digest(record: Record) -> bytes:
    """What has to be equal on all replicas before any of them counts. Of a bound draft, or of any first record."""
    invariant(record.is_bound, "a birth has the incarnations of all", epoch=record.epoch)
    return xxhash.xxh3_128_digest(encode(replace(record, epoch=0, birth=ZERO16)))


def born(record: Record) -> Record:
    """The first record of a bound draft."""
    return replace(record, epoch=1, birth=birth_digest(record))


# Bytes


def digest(record: Record) -> bytes:
    """What a record is known by: in `before` of the one that follows, and in answers."""
    return xxhash.xxh3_128_digest(encode(record))


def encode(record: Record) -> bytes:
    """At most RECORD_MAX bytes. Raises RecordError for what no record may be."""
    check(record)
    parts = [bytes(_FIXED.size)]
    for member in record.members:
        peer, client = member.peer.host.encode(), member.client.host.encode()
        client = b"" if client == peer else client
        head = (member.slot, member.role, member.intent, member.peer.port, member.client.port)
        parts += _MEMBER.pack(*head, len(peer), len(client), member.incarnation), peer, client
    size = sum(map(len, parts))
    if size > RECORD_MAX:
        raise _error(
            "size",
            f"{size} bytes, and there is room for {RECORD_MAX}: use shorter host names for the "
            f"{len(record.members)} members",
        )
    numbers = [getattr(record.settings, field.name) for field in fields(Settings)]
    parts[0] = _FIXED.pack(
        MAGIC,
        VERSION,
        size,
        record.epoch,
        record.flags,
        record.old_voters,
        record.new_voters,
        len(record.members),
        record.made_by,
        record.features,
        record.machine,
        record.origin,
        record.birth,
        record.before,
        *numbers,
        *[0] * (_SETTINGS_ROOM - len(numbers)),
    )
    return b"".join(parts)


def decode(data: bytes | memoryview) -> Record:
    """The inverse. Raises RecordError for bytes that `encode` does not make, FormatVersionError for a record of a
    later release."""
    data = bytes(data)
    if not _FIXED.size <= len(data) <= RECORD_MAX or data[:4] != MAGIC:
        raise _error("size", f"{len(data)} bytes that begin with {data[:4]!r} are none")
    _, version, size, epoch, flags, old, new, count, made_by, features, machine, *rest = _FIXED.unpack_from(data)
    if version != VERSION:
        raise FormatVersionError(
            f"a record of the cluster has format version {version}; this release knows version {VERSION}: start a "
            "release that knows it",
            version=version,
        )
    origin, birth, before, *numbers = rest
    settings = Settings(*numbers[: len(fields(Settings))])
    members = _decode_members(data, count)
    record = Record(epoch, made_by, flags, old, new, settings, features, machine, origin, birth, before, tuple(members))
    if size != len(data) or encode(record) != data:
        raise _error("encoding", f"{len(data)} bytes that are not what their content is written as")
    return record


def _decode_members(data: bytes, count: int) -> list[Member]:
    members, at = [], _FIXED.size
    try:
        for _ in range(count):
            slot, role, intent, peer_port, client_port, peer_size, client_size, incarnation = _MEMBER.unpack_from(
                data, at
            )
            at += _MEMBER.size
            peer = data[at : at + peer_size].decode()
            client = data[at + peer_size : at + peer_size + client_size].decode() if client_size else peer
            at += peer_size + client_size
            addresses = Address(peer, peer_port), Address(client, client_port)
            members.append(Member(slot, Role(role), incarnation, *addresses, intent))
    except (struct.error, ValueError) as error:
        raise _error("member", f"member number {len(members)} does not decode: {error}") from error
    return members


# What a record may be


def _error(part: str, message: str) -> RecordError:
    return RecordError(f"record of the cluster: {message}", part=part)


def check(record: Record) -> None:
    """Raises RecordError for what can be no record of any cluster; its `part` says of what."""
    _check_numbers(record)
    slots = [member.slot for member in record.members]
    if not 1 <= len(slots) <= SLOTS or slots != sorted(set(slots)) or not 0 <= slots[0] <= slots[-1] < SLOTS:
        raise _error("member", f"the slots are {slots}: they must be from 1 to {SLOTS}, ascending, of 0 to {SLOTS - 1}")
    for member in record.members:
        _check_member(member, record.epoch)
    known = [member.incarnation for member in record.members if member.incarnation != ZERO16]
    if len(set(known)) != len(known):
        raise _error("incarnation", "two members are the same formatting of a disk: one of them is a copied directory")
    _check_voters(record)


def _check_numbers(record: Record) -> None:
    numbers = {field.name: getattr(record.settings, field.name) for field in fields(Settings)}
    low = dict.fromkeys(numbers, 1)
    most = dict.fromkeys(numbers, SETTING_MAX)
    for name, bound in (("epoch", EPOCH_MAX), ("made_by", OP_MAX), ("features", (1 << 64) - 1), ("machine", 1 << 63)):
        numbers[name], low[name], most[name] = getattr(record, name), 0, bound
    for name, number in numbers.items():
        if not low[name] <= number <= most[name]:
            raise _error(name, f"{name} is {number}: it must be from {low[name]} to {most[name]}")
    if record.flags & ~FLAGS_KNOWN:
        raise _error("flags", f"the flags are {record.flags:#x}; known are {FLAGS_KNOWN:#x}")
    for name in ("origin", "birth", "before"):
        if len(getattr(record, name)) != 16:
            raise _error(name, f"{name} has {len(getattr(record, name))} bytes instead of 16")
    is_zero = (record.birth == ZERO16, record.before == ZERO16)
    if is_zero != (record.epoch == 0, record.epoch <= 1):
        raise _error("epoch", f"epoch {record.epoch} with birth {record.birth.hex()}, before it {record.before.hex()}")


def _check_member(member: Member, epoch: int) -> None:
    for address in (member.peer, member.client):
        size = len(address.host.encode(errors="replace"))
        if not 1 <= size <= HOST_MAX or not address.host.isprintable() or " " in address.host:
            raise _error(
                "address",
                f"member {member.slot}: a host name has from 1 to {HOST_MAX} bytes, {size} are too many, "
                "too few, or no name",
            )
        if not 1 <= address.port <= 65535:
            raise _error("address", f"member {member.slot}: port {address.port} must be from 1 to 65535")
    if len(member.incarnation) != 16:
        raise _error("incarnation", f"member {member.slot}: {len(member.incarnation)} bytes instead of 16")
    if member.incarnation == ZERO16 and epoch and member.role is not Role.LOST:
        raise _error("incarnation", f"member {member.slot} has none, and epoch {epoch} names those of all")
    if member.intent != SLOT_NONE and (member.role is not Role.STANDBY or not 0 <= member.intent < SLOTS):
        raise _error("member", f"member {member.slot}, {member.role.name.lower()}, is to replace {member.intent}")


def _check_voters(record: Record) -> None:
    voting = sum(1 << member.slot for member in record.members if member.role is not Role.STANDBY)
    is_joint = bool(record.flags & FLAG_JOINT)
    for name, mask in (("old_voters", record.old_voters), ("new_voters", record.new_voters)):
        least = 0 if name == "old_voters" and not is_joint else 1
        most = least and REPLICAS_MAX
        if not least <= mask.bit_count() <= most or mask & ~voting or mask < 0:
            raise _error(name, f"{name} are {mask:#x}, the members that may be {voting:#x}: from {least} to {most}")
