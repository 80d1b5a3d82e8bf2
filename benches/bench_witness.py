"""Witness records checked for an index: every one is hashed twice, whole and its header alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kimberlite._fast.checksum import xxh3_128
from kimberlite._fast.framing import make_header
from kimberlite._fast.witness import index_records
from kimberlite.storage.journal import RECORD_BYTES, encode_record
from kimberlite.types import Command

RECORDS = 16384  # a segment of 64 MiB full of the smallest entries


@pytest.mark.benchmark(group="witness")
def test_index(gate: Callable[..., None]) -> None:
    """Against the digest of the same bytes in one go, which hashes them once and looks at nothing."""
    image = bytearray()
    for index in range(RECORDS):
        header = make_header(b"", cluster=bytes(16), command=Command.PREPARE, op=1 + index, position=index, count=1)
        image += encode_record(header, index * 4096, 3, index)
    assert len(image) == RECORDS * RECORD_BYTES

    def index_all() -> None:
        _, damaged = index_records(image, RECORDS, 3, 1, 0)
        assert not damaged

    gate(index_all, lambda: xxh3_128(image), at_most=12, operations=(RECORDS, RECORDS), rounds=40)
