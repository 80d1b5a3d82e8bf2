"""The ring's frames: what comes back, what is refused, what a slot means, and the journal seen through them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import xxhash

from kimberlite.errors import DataMissingError, FormatVersionError
from kimberlite.storage import ring
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, decode_record, journal_name, read_entry, round_up, witness_name
from kimberlite.storage.layout import RING_FRAME
from kimberlite.storage.recovery import Entry
from kimberlite.storage.ring import Copy, Frame, Verdict
from kimberlite.vopr.disk import UNIT, Files, SimDisk, make_unreadable

NONCE = bytes(range(100, 116))
SEGMENT = 128 << 10
ZERO = bytes(ring.SLOT_BYTES)


def frame(kit: Any, sizes: Sequence[int] = (100,), sequence: int = 7, superblock: int = 3) -> Frame:
    entries = kit.chain((10, 10, *sizes))[2:]
    return Frame(sequence, superblock, segment=0, index=2, offset=2 * SECTOR, entries=tuple(entries))


def encoded(made: Frame, nonce: bytes = NONCE) -> bytes:
    buffer = memoryview(bytearray(ring.COPIES * ring.copy_bytes(made.entries)))
    ring.encode_into(buffer, made, nonce)
    return bytes(buffer)


def same(found: Frame | None, made: Frame) -> bool:
    return found is not None and described(found) == described(made)


def described(made: Frame) -> Any:
    entries = [(message.header.raw, bytes(message.body)) for message in made.entries]
    return replace(made, entries=()), entries


def slot(made: Frame, over: bytes = ZERO) -> bytes:
    data = encoded(made)
    return data + over[len(data) :]


SIZES = [(100,), (0,), (1, 2, 3), (4000,), (3 * SECTOR // 2,), (2000, 2000, 1000), (50,) * 20]


@pytest.mark.parametrize("sizes", SIZES)
def test_both_copies_come_back_as_they_were(kit: Any, sizes: tuple[int, ...]) -> None:
    made = frame(kit, sizes)
    data = encoded(made)
    length = ring.copy_bytes(made.entries)
    assert len(data) == 2 * length
    assert length % SECTOR == 0
    assert same(ring.decode(data, 0, NONCE), made)
    assert same(ring.decode(data[length:], 1, NONCE), made)
    assert ring.decode(data, 1, NONCE) is None
    assert ring.decode(data[length:], 0, NONCE) is None


@pytest.mark.parametrize("sizes", SIZES)
def test_no_sector_of_one_copy_is_that_of_the_other(kit: Any, sizes: tuple[int, ...]) -> None:
    data = encoded(frame(kit, sizes))
    half = len(data) // 2
    for at in range(0, half, SECTOR):
        assert data[at : at + SECTOR] != data[half + at : half + at + SECTOR]


def test_of_a_copy_of_zeros_too_every_sector_differs(kit: Any) -> None:
    entries = (kit.prepare(kit.root, bytes(2 * SECTOR - 800)),)
    data = encoded(Frame(1, 1, 0, 2, 0, entries))
    assert len(data) == 4 * SECTOR
    assert data[SECTOR : 2 * SECTOR] != data[3 * SECTOR :]


@pytest.mark.parametrize("sizes", [(100,), (2000, 2000, 1000)])
@pytest.mark.parametrize("copy", [0, 1])
def test_every_flipped_bit_is_detected(kit: Any, sizes: tuple[int, ...], copy: int) -> None:
    made = frame(kit, sizes)
    length = ring.copy_bytes(made.entries)
    data = bytearray(encoded(made)[copy * length : (copy + 1) * length])
    for at in range(length):
        data[at] ^= 1 << at % 8
        assert ring.decode(bytes(data), copy, NONCE) is None, at
        data[at] ^= 1 << at % 8
    assert same(ring.decode(bytes(data), copy, NONCE), made)


def test_a_frame_of_another_directory_is_none(kit: Any) -> None:
    assert ring.decode(encoded(frame(kit)), 0, NONCE[::-1]) is None


def test_the_secret_is_not_in_the_frame(kit: Any) -> None:
    assert NONCE not in encoded(frame(kit))


def test_what_an_event_holds_is_no_frame(kit: Any) -> None:
    """A client that appends the very bytes of a frame, made with another secret: at the place of a second copy they
    are no frame."""
    forged = encoded(frame(kit, (10,), sequence=87), nonce=bytes(16))[:SECTOR]
    at = SECTOR - ring.FRAME_HEADER_BYTES - 256  # where in the body the second sector of the copy begins
    body = bytes(at) + forged[: 2 * SECTOR - 256 - ring.FRAME_HEADER_BYTES - at]
    made = Frame(7, 3, 0, 2, 0, (kit.prepare(kit.root, body),))
    found = ring.find_frames(slot(made), 7, NONCE)
    assert list(found) == [7]


def test_an_unknown_format_is_refused_and_not_taken_for_damage(kit: Any) -> None:
    data = bytearray(encoded(frame(kit)))
    at = RING_FRAME.offset("version")
    data[at] += 1
    whole = data[: len(data) // 2]
    data[:16] = xxhash.xxh3_128_digest(NONCE + bytes(whole[32:]))
    with pytest.raises(FormatVersionError) as caught:
        ring.decode(bytes(data), 0, NONCE)
    assert caught.value.details["version"] == ring.VERSION + 1


def test_entries_that_do_not_follow_one_another_are_no_frame(kit: Any) -> None:
    one, two = frame(kit, (10, 20)).entries
    assert ring.decode(encoded(Frame(1, 1, 0, 2, 0, (two, one))), 0, NONCE) is None


# What a slot means


@pytest.mark.parametrize(("first", "second"), list(itertools.product(Copy, Copy)))
def test_every_pattern_matches_exactly_one_row(first: Copy, second: Copy) -> None:
    rows = [row.name for row in ring.TABLE if first in row.first and second in row.second]
    assert rows == [ring.decide(first, second).name]


def test_every_row_is_reached() -> None:
    reached = {ring.decide(*pattern).name for pattern in itertools.product(Copy, Copy)}
    assert reached == {row.name for row in ring.TABLE}


def test_whatever_lives_is_kept_and_nothing_else() -> None:
    for first, second in itertools.product(Copy, Copy):
        lives = Copy.LIVE in (first, second)
        assert (ring.decide(first, second).verdict is Verdict.REPLAY) == lives


def whole_ring(*frames: Frame) -> bytes:
    content = bytearray(ring.RING_BYTES)
    for made in frames:
        data = encoded(made)
        content[ring.place(made.sequence) : ring.place(made.sequence) + len(data)] = data
    return bytes(content)


def test_frames_of_the_superblock_in_force_live_in_their_order(kit: Any) -> None:
    frames = [frame(kit, (10,), sequence, superblock) for sequence, superblock in ((5, 3), (79, 3), (80, 3), (6, 2))]
    found = ring.living(whole_ring(*frames), NONCE, 3)
    assert [made.sequence for made in found] == [5, 79, 80]
    assert [made.sequence for made in ring.living(whole_ring(*frames), NONCE, 2)] == [6]


def test_a_frame_in_the_slot_of_another_is_none(kit: Any) -> None:
    data = bytearray(ring.RING_BYTES)
    made = encoded(frame(kit, (10,), 5))
    data[ring.place(6) : ring.place(6) + len(made)] = made
    assert ring.living(bytes(data), NONCE, 3) == []


@pytest.mark.parametrize("sizes", [(100,), (4000,), (2000, 2000)])
@pytest.mark.parametrize("before", [None, (100,), (5000,)])
def test_every_torn_write_of_a_frame_leaves_it_whole_or_nothing_of_it(
    kit: Any, sizes: tuple[int, ...], before: tuple[int, ...] | None
) -> None:
    """All subsets of units would be too many: prefixes, holes and garbage, over what the slot held."""
    made = frame(kit, sizes, sequence=87)
    old = slot(frame(kit, before, sequence=7)) if before is not None else ZERO
    data = encoded(made)
    images = 0
    for unit in range(0, len(data), UNIT):
        hole = data[:unit] + old[unit : unit + UNIT] + data[unit + UNIT :]
        for image in (data[:unit] + old[unit:], data[:unit] + bytes([85]) * UNIT + old[unit + UNIT :], hole):
            found = ring.find_frames(image.ljust(ring.SLOT_BYTES, b"\0"), 7, NONCE)
            assert set(found) <= {7, 87}
            for copies in found.values():
                for copy in copies:
                    assert copy is None or copy.sequence == 7 or same(copy, made)
            images += 1
    assert images == 3 * len(data) // UNIT


def test_one_damaged_sector_takes_no_frame(kit: Any) -> None:
    for sizes in SIZES:
        made = frame(kit, sizes)
        data = slot(made)
        for at in range(0, len(encoded(made)), SECTOR):
            for damage in (bytes(SECTOR), bytes([255]) * SECTOR):
                image = data[:at] + damage + data[at + SECTOR :]
                first, second = ring.find_frames(image, 7, NONCE)[7]
                assert same(first, made) or same(second, made)


# Reading it


def files_with(*frames: Frame) -> Files:
    files = Files()
    files.durable[ring.NAME] = bytearray(whole_ring(*frames))
    files.durable[journal_name(0)] = bytearray(SEGMENT)
    files.durable[witness_name(0)] = bytearray(16 << 10)
    return files


def disk(files: Files) -> SimDisk:
    return SimDisk(files, lambda: 0, lambda: 0)


def test_without_a_secret_there_is_no_ring() -> None:
    assert ring.read(disk(Files()), bytes(16), 1) == []


@pytest.mark.parametrize("size", [None, 0, ring.RING_BYTES - SECTOR])
def test_a_ring_that_is_gone_is_refused_like_a_lost_journal(kit: Any, size: int | None) -> None:
    files = files_with()
    if size is None:
        del files.durable[ring.NAME]
    else:
        del files.durable[ring.NAME][size:]
    with pytest.raises(DataMissingError) as caught:
        ring.read(disk(files), NONCE, 1)
    assert caught.value.details["file"] == ring.NAME


def test_a_sector_that_can_not_be_read_takes_no_frame(kit: Any) -> None:
    made = frame(kit)
    files = files_with(made)
    sectors = [ring.place(7) // SECTOR, ring.place(7) // SECTOR + 1]
    for sector in sectors:
        files.unreadable.clear()
        make_unreadable(files, ring.NAME, sector)
        assert [found.sequence for found in ring.read(disk(files), NONCE, 3)] == [7]
    for sector in sectors:
        make_unreadable(files, ring.NAME, sector)
    assert ring.read(disk(files), NONCE, 3) == []


@pytest.mark.parametrize("sizes", SIZES)
def test_the_journal_seen_through_the_ring_is_as_if_it_had_been_written(kit: Any, sizes: tuple[int, ...]) -> None:
    made = frame(kit, sizes)
    files = files_with(made)
    below = disk(files)
    shown = ring.Overlaid(below, ring.read(below, NONCE, 3))
    journal, witness = shown.open(journal_name(0)), shown.open(witness_name(0))
    offset = 2 * SECTOR
    for index, message in enumerate(made.entries, 2):
        kind, found = read_entry(shown, journal, offset, SEGMENT)  # type: ignore[arg-type]
        assert kind is Entry.GOOD
        assert found is not None
        assert found.header.raw == message.header.raw
        record = decode_record(shown.read(witness, index * RECORD_BYTES, RECORD_BYTES), 0, index)
        assert record is not None
        assert (record.header.raw, record.offset) == (message.header.raw, offset)
        offset += round_up(message.header.size)
    assert files.durable[journal_name(0)] == bytes(SEGMENT)
    assert bytes(shown.read(journal, 1, 100)) == bytes(100)
    assert bytes(shown.read(journal, 2 * SECTOR + 5, 10)) == made.entries[0].header.raw[5:15]

    phases = ring.replay(below, shown, below.open)
    assert [{below._handles[write.file] for write in phase} for phase in phases] == [
        {journal_name(0)},
        {witness_name(0)},
    ]
    below.submit(1, phases)
    below.complete_until(0)
    plain = disk(files)
    for name in (journal_name(0), witness_name(0)):
        size = len(files.durable[name])
        assert plain.read(plain.open(name), 0, size) == shown.read(shown.open(name), 0, size)
    assert ring.replay(below, shown, below.open) == []


def test_a_bad_sector_is_read_where_a_frame_has_all_of_it(kit: Any) -> None:
    made = frame(kit, (100, 5000))
    files = files_with(made)
    for at in (2, 4, 9):
        make_unreadable(files, journal_name(0), at)
    make_unreadable(files, witness_name(0), 0)
    below = disk(files)
    shown = ring.Overlaid(below, [made])
    journal = shown.open(journal_name(0))
    assert read_entry(shown, journal, 2 * SECTOR, SEGMENT)[0] is Entry.GOOD  # type: ignore[arg-type]
    assert read_entry(shown, journal, 3 * SECTOR, SEGMENT)[0] is Entry.GOOD  # type: ignore[arg-type]
    with pytest.raises(OSError, match="unreadable"):
        shown.read(journal, 9 * SECTOR, SECTOR)
    witness = shown.open(witness_name(0))
    with pytest.raises(OSError, match="unreadable"):
        shown.read(witness, 0, SECTOR)
    _, writes = ring.replay(below, shown, below.open)
    content = bytes(writes[0].buffer)
    assert decode_record(content[2 * RECORD_BYTES : 3 * RECORD_BYTES], 0, 2) is not None
    assert content[:RECORD_BYTES] == b"\xff" * RECORD_BYTES  # what stood there is lost, and does not look unwritten
