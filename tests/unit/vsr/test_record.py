"""The record: its encoding against a slow second one, what it refuses, and what a birth makes of drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kimberlite.errors import FormatVersionError, InvariantError, RecordError
from kimberlite.types import OP_MAX, SLOT_NONE, SLOTS, ZERO16, Identity, life_of, life_sequence
from kimberlite.vsr import record as records
from kimberlite.vsr.record import RECORD_MAX, Address, Member, Record, Role, Settings

SETTINGS = Settings(1024, 1 << 20, 2 << 20, 1 << 20, 4 << 20, 4096, 64 << 20)
ADDRESSES = [(Address(f"node-{slot}", 8100 + slot), Address(f"node-{slot}", 7100 + slot)) for slot in range(3)]
DRAFT = records.draft(SETTINGS, b"o" * 16, ADDRESSES)


def incarnation(slot: int) -> bytes:
    return bytes([slot + 1]) * 16


def bound(draft: Record = DRAFT) -> Record:
    for member in draft.members:
        draft = records.bind(draft, member.slot, incarnation(member.slot))
    return draft


BORN = records.born(bound())


def slowly(record: Record) -> bytes:
    """The encoding, put together field by field without struct."""

    def number(value: int, size: int) -> bytes:
        return bytes(value >> 8 * at & 0xFF for at in range(size))

    members = b""
    for member in record.members:
        peer, client = (address.host.encode() for address in (member.peer, member.client))
        members += number(member.slot, 1) + number(member.role, 1) + number(member.intent, 1) + b"\0"
        members += number(member.peer.port, 2) + number(member.client.port, 2)
        members += number(len(peer), 1) + number(0 if peer == client else len(client), 1)
        members += member.incarnation + peer + (b"" if peer == client else client)
    settings = b"".join(number(getattr(record.settings, field.name), 8) for field in fields(Settings))
    fixed = number(record.epoch, 4) + number(record.flags, 2)
    fixed += number(record.old_voters, 2) + number(record.new_voters, 2) + number(len(record.members), 1) + b"\0"
    fixed += number(record.made_by, 8) + number(record.features, 8) + number(record.machine, 8)
    fixed += record.origin + record.birth + record.before + settings.ljust(96, b"\0")
    return b"KMRC" + number(1, 2) + number(8 + len(fixed) + len(members), 2) + fixed + members


hosts = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=("L", "N", "P")), min_size=1).filter(
    lambda text: len(text.encode()) <= 60 and text.isprintable()
)
addresses = st.builds(Address, hosts, st.integers(1, 65535))
settings = st.builds(Settings, *[st.integers(1, records.SETTING_MAX)] * len(fields(Settings)))


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    """Stable or joint, with standbys and lost ones, of any epoch; a draft now and then."""
    epoch = draw(st.sampled_from([0, 1, 2, 77, records.EPOCH_MAX]))
    slots = sorted(draw(st.sets(st.integers(0, SLOTS - 1), min_size=1, max_size=10)))
    names = draw(st.lists(st.binary(min_size=16, max_size=16), min_size=len(slots), max_size=len(slots), unique=True))
    members = []
    for slot, name in zip(slots, names, strict=True):
        role = draw(st.sampled_from(Role)) if slot != slots[0] else Role.VOTER
        unknown = epoch == 0 or role is Role.LOST
        name = ZERO16 if unknown and draw(st.booleans()) else name
        peer = draw(addresses)
        client = draw(st.one_of(addresses, st.just(Address(peer.host, 7100))))
        intent = draw(st.integers(0, SLOTS - 1)) if role is Role.STANDBY and draw(st.booleans()) else SLOT_NONE
        members.append(Member(slot, role, name if name != ZERO16 or unknown else b"x" * 16, peer, client, intent))
    may_vote = [member.slot for member in members if member.role is not Role.STANDBY]
    masks = st.sets(st.sampled_from(may_vote), min_size=1, max_size=6).map(lambda those: sum(1 << one for one in those))
    joint = draw(st.booleans())
    return Record(
        epoch=epoch,
        made_by=draw(st.integers(0, OP_MAX)),
        flags=records.FLAG_JOINT if joint else 0,
        old_voters=draw(masks) if joint else 0,
        new_voters=draw(masks),
        settings=draw(settings),
        features=draw(st.integers(0, (1 << 64) - 1)),
        machine=draw(st.integers(0, 1 << 63)),
        origin=draw(st.binary(min_size=16, max_size=16)),
        birth=ZERO16 if epoch == 0 else b"b" * 16,
        before=ZERO16 if epoch <= 1 else b"p" * 16,
        members=tuple(members),
    )


@given(any_record())
def test_the_encoding_is_the_one_of_the_slow_reference_and_comes_back(record: Record) -> None:
    data = records.encode(record)
    assert data == slowly(record)
    assert records.decode(data) == record
    assert records.decode(memoryview(data)) == record
    assert records.digest(record) == xxhash.xxh3_128_digest(data)
    assert len(data) <= RECORD_MAX


@given(any_record(), st.data())
def test_other_bytes_are_another_record_or_none(record: Record, data: st.DataObject) -> None:
    raw = bytearray(records.encode(record))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = records.decode(bytes(raw))
    except (RecordError, FormatVersionError):
        return
    assert found != record
    assert records.encode(found) == bytes(raw)


@given(st.binary(max_size=RECORD_MAX + 10))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for tried in (data, b"KMRC\1\0" + data):
        with pytest.raises(RecordError):
            records.decode(tried)


def test_every_length_but_the_right_one_is_refused() -> None:
    data = records.encode(BORN)
    for length in range(len(data)):
        with pytest.raises(RecordError):
            records.decode(data[:length])
    with pytest.raises(RecordError):
        records.decode(data + b"\0")


def test_a_record_of_a_later_release_is_named() -> None:
    data = bytearray(records.encode(BORN))
    data[4] = 2
    with pytest.raises(FormatVersionError, match="version 2"):
        records.decode(data)


def test_six_voters_with_the_longest_names_fit_and_are_refused_when_all_differ() -> None:
    def with_hosts(client: str) -> Record:
        pairs = [(Address(f"{slot}" * 255, 1), Address((client or f"{slot}") * 255, 2)) for slot in range(6)]
        return records.draft(SETTINGS, ZERO16, pairs)

    assert len(records.encode(with_hosts(""))) <= RECORD_MAX
    with pytest.raises(RecordError, match="shorter host names") as raised:
        records.encode(with_hosts("c"))
    assert raised.value.part == "size"


def member(**changes: object) -> Callable[[Record], Record]:
    def changed(record: Record) -> Record:
        first = replace(record.members[0], **changes)  # type: ignore[arg-type]
        return replace(record, members=(first, *record.members[1:]))

    return changed


REFUSED: list[tuple[str, Callable[[Record], Record]]] = [
    ("epoch", lambda r: replace(r, epoch=-1)),
    ("epoch", lambda r: replace(r, epoch=1 << 32)),
    ("epoch", lambda r: replace(r, birth=ZERO16)),
    ("epoch", lambda r: replace(r, before=b"x" * 16)),
    ("epoch", lambda r: replace(r, epoch=2)),
    ("made_by", lambda r: replace(r, made_by=OP_MAX + 1)),
    ("features", lambda r: replace(r, features=1 << 64)),
    ("machine", lambda r: replace(r, machine=-1)),
    ("flags", lambda r: replace(r, flags=4)),
    ("origin", lambda r: replace(r, origin=b"")),
    ("birth", lambda r: replace(r, birth=b"short")),
    ("sessions_max", lambda r: replace(r, settings=replace(r.settings, sessions_max=0))),
    ("checkpoint_ops", lambda r: replace(r, settings=replace(r.settings, checkpoint_ops=1 << 60))),
    ("member", lambda r: replace(r, members=())),
    ("member", lambda r: replace(r, members=r.members[::-1])),
    ("member", member(slot=1)),
    ("member", member(slot=-1)),
    ("member", member(intent=1)),
    ("incarnation", member(incarnation=b"")),
    ("incarnation", member(incarnation=ZERO16)),
    ("incarnation", member(incarnation=incarnation(1))),
    ("address", member(peer=Address("", 1))),
    ("address", member(peer=Address("x" * 256, 1))),
    ("address", member(client=Address("a b", 1))),
    ("address", member(client=Address("a\n", 1))),
    ("address", member(client=Address("\ud800", 1))),
    ("address", member(client=Address("a", 0))),
    ("address", member(peer=Address("a", 65536))),
    ("new_voters", lambda r: replace(r, new_voters=0)),
    ("new_voters", lambda r: replace(r, new_voters=0b1111)),
    ("new_voters", member(role=Role.STANDBY)),
    ("old_voters", lambda r: replace(r, old_voters=1)),
    ("old_voters", lambda r: replace(r, flags=records.FLAG_JOINT)),
]


@pytest.mark.parametrize(("part", "change"), REFUSED)
def test_what_no_record_may_be_is_refused_and_the_part_named(part: str, change: Callable[[Record], Record]) -> None:
    with pytest.raises(RecordError) as raised:
        records.encode(change(BORN))
    assert raised.value.part == part


# Birth


def test_drafts_that_heard_of_each_other_in_any_order_have_one_digest() -> None:
    other = DRAFT
    for slot in (2, 0, 1):
        assert not other.is_bound
        other = records.bind(other, slot, incarnation(slot))
    assert other.is_bound
    assert records.birth_digest(other) == records.birth_digest(bound())
    assert records.born(other) == BORN
    assert records.birth_digest(BORN) == BORN.birth


def test_every_difference_of_configuration_or_origin_is_another_digest() -> None:
    others = [
        bound(records.draft(replace(SETTINGS, sessions_max=1), b"o" * 16, ADDRESSES)),
        bound(records.draft(SETTINGS, b"p" * 16, ADDRESSES)),
        bound(records.draft(SETTINGS, b"o" * 16, ADDRESSES[:2])),
        bound(records.draft(SETTINGS, b"o" * 16, [ADDRESSES[1], ADDRESSES[0], ADDRESSES[2]])),
        bound(records.draft(SETTINGS, b"o" * 16, ADDRESSES, machine=1)),
        records.bind(records.bind(records.bind(DRAFT, 0, incarnation(0)), 1, incarnation(1)), 2, incarnation(7)),
    ]
    digests = {records.birth_digest(other) for other in [*others, bound()]}
    assert len(digests) == len(others) + 1


def test_what_is_bound_is_bound() -> None:
    once = records.bind(DRAFT, 1, incarnation(1))
    assert records.bind(once, 1, incarnation(1)) == once
    for slot, name in ((1, incarnation(4)), (3, incarnation(3)), (2, incarnation(1))):
        with pytest.raises(RecordError):
            records.bind(once, slot, name)
    with pytest.raises(RecordError):
        records.bind(BORN, 1, incarnation(1))
    with pytest.raises(InvariantError):
        records.birth_digest(once)


def test_who_does_not_come_is_in_the_digest_and_counts_in_quorums() -> None:
    without = records.leave_out(bound(), 2)
    assert [member.incarnation for member in without.members] == [ZERO16] * 3
    with pytest.raises(RecordError):
        records.bind(without, 2, incarnation(2))
    for slot in (0, 1):
        without = records.bind(without, slot, incarnation(slot))
    assert without.is_bound
    assert without.voters == (0, 1, 2)
    first = records.born(without)
    assert records.decode(records.encode(first)) == first
    assert first.birth != BORN.birth
    for slot in (0, 3):
        with pytest.raises(RecordError):
            records.leave_out(first if slot == 0 else DRAFT, slot)


def test_members_are_found_by_their_slot() -> None:
    assert BORN.voters == (0, 1, 2)
    assert BORN.member(1) == BORN.members[1]
    assert BORN.member(3) is None


# Lives


@given(st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_a_life_is_its_sequence_and_its_bits(sequence: int, bits: int) -> None:
    life = life_of(sequence, bits)
    assert 0 <= life < 1 << 64
    assert life_sequence(life) == sequence % (1 << 32)
    assert life % (1 << 32) == bits % (1 << 32)


def test_an_identity_begins_as_nobody() -> None:
    nobody = Identity()
    assert (nobody.slot, nobody.incarnation, nobody.record, len(nobody.heard)) == (SLOT_NONE, ZERO16, b"", SLOTS)
