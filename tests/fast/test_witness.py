"""The compiled check of witness records against the one in Python."""

from __future__ import annotations

import random

import pytest

from kimberlite._fast.framing import make_header
from kimberlite._fast.witness import index_records
from kimberlite.errors import UsageError
from kimberlite.storage.journal import RECORD_BYTES, decode_record, encode_record
from kimberlite.types import Command

SEGMENT, BASE, ORIGIN = 7, 1000, 5000


def image_of(count: int, events: int = 3) -> bytearray:
    image = bytearray()
    for index in range(count):
        header = make_header(
            b"",
            cluster=bytes(16),
            command=Command.PREPARE,
            op=BASE + index,
            position=ORIGIN + events * index,
            count=events,
        )
        image += encode_record(header, index * 4096, SEGMENT, index)
    return image


def reference(image: bytearray, count: int, segment: int, base: int, origin: int) -> tuple[list[int], list[int]]:
    positions, damaged = [], []
    before = 0
    for first in range(0, count, 8):
        found = None
        for index in range(first, min(first + 8, count)):
            record = decode_record(bytes(image[index * RECORD_BYTES : (index + 1) * RECORD_BYTES]), segment, index)
            if record is None or record.header.op != base + index:
                damaged.append(index)
            elif found is None:
                found = before = min(max(record.header.position - origin, 0), 2**32 - 1)
        positions.append(before)
    return positions, damaged


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 100])
def test_an_intact_image(count: int) -> None:
    positions, damaged = index_records(image_of(count), count, SEGMENT, BASE, ORIGIN)
    assert list(positions) == [24 * sector for sector in range((count + 7) // 8)]
    assert damaged == []


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_found_as_by_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randrange(1, 70)
    image = image_of(count)
    for _ in range(rng.randrange(8)):
        at = rng.randrange(len(image))
        length = rng.choice([1, 16, 512, 5000])
        image[at : at + length] = rng.choice([bytes, lambda size: b"\xff" * size, rng.randbytes])(
            min(length, len(image) - at)
        )
    segment, base = rng.choice([(SEGMENT, BASE), (SEGMENT, BASE), (SEGMENT + 1, BASE), (SEGMENT, BASE + 1)])
    positions, damaged = index_records(image, count, segment, base, ORIGIN)
    assert (list(positions), damaged) == reference(image, count, segment, base, ORIGIN)


def test_every_bit_of_a_record_is_covered() -> None:
    image = image_of(1)
    for bit in range(RECORD_BYTES * 8):
        image[bit // 8] ^= 1 << bit % 8
        assert index_records(image, 1, SEGMENT, BASE, ORIGIN)[1] == [0]
        image[bit // 8] ^= 1 << bit % 8


def test_distances_that_do_not_fit_are_the_greatest() -> None:
    image = image_of(17, events=2**31)
    assert list(index_records(image, 17, SEGMENT, BASE, ORIGIN)[0]) == [0, 2**32 - 1, 2**32 - 1]
    assert index_records(image, 17, SEGMENT, BASE, ORIGIN + 1)[0][0] == 0


def test_an_image_that_is_too_short_is_refused() -> None:
    for count in (3, -1, 2**40, 2**62, 2**63 - 8, 2**63 - 1):  # the greatest would overflow a sum or a product
        with pytest.raises(UsageError, match=f"{count} records"):
            index_records(image_of(2), count, SEGMENT, BASE, ORIGIN)
