"""The one table of what is on disk: pinned, and what is written out elsewhere for speed agrees with it."""

from __future__ import annotations

import xxhash

from kimberlite._fast.framing import make_header
from kimberlite.frames import ROOM
from kimberlite.storage import checkpoint, journal, layout, superblock
from kimberlite.types import Command
from kimberlite.vsr.record import RECORD_MAX

# A change here is a change of the format: raise its version, and say in CHANGELOG.md who can read what.
PINNED = {
    layout.FRAME_HEADER: (256, "18b10377ebfe37b0"),
    layout.WITNESS_RECORD: (512, "28cbf01b41f2159c"),
    layout.SUPERBLOCK_2: (472, "ec54f3007c824e33"),
    layout.SUPERBLOCK: (4096, "dcc82ad16e8673ab"),
    layout.CHECKPOINT_1: (4096, "38f0ef01b866da8c"),
    layout.CHECKPOINT: (4096, "215c10ef97b34cdd"),
    layout.RING_FRAME: (128, "27c9d3348a16571f"),
}


def fingerprint(table: layout.Layout) -> str:
    text = "\n".join(f"{field.name} {field.offset} {field.size} {field.kind}" for field in table.fields)
    return xxhash.xxh3_64_hexdigest(text.encode())


def test_the_layout_is_pinned() -> None:
    assert {table.title: (table.size, fingerprint(table)) for table in layout.LAYOUTS} == {
        table.title: pin for table, pin in PINNED.items()
    }


LATER = {room.name for room in ROOM if room.where.startswith("every header")}  # nothing is made or read of it yet


def test_the_compiled_header_has_the_offsets_of_the_table() -> None:
    numbers = {
        field.name: 200 + at if field.size > 1 else 3 + at % 4
        for at, field in enumerate(layout.FRAME_HEADER.fields)
        if field.kind.startswith("u") and field.name not in ("version", "command", "size", "release", *LATER)
    }
    identities = {name: bytes([at]) * 16 for at, name in enumerate(("cluster", "parent", "client", "context"), 1)}
    header = make_header(b"body", command=Command.PREPARE, **numbers, **identities)
    read = layout.FRAME_HEADER.unpack(header.raw)
    assert read is not None
    for field in layout.FRAME_HEADER.fields:
        if field.kind == "zero" or field.name in ("magic", "version"):
            continue
        if field.name in LATER:
            assert not read[field.name] or read[field.name] == bytes(field.size), field.name
            continue
        assert read[field.name] == getattr(header, field.name), field.name
    assert read["magic"] == b"KMBL"
    assert {**numbers, **identities}.items() <= read.items()
    spoiled = bytearray(header.raw)
    spoiled[layout.FRAME_HEADER.offset("reserved")] = 1
    assert layout.FRAME_HEADER.unpack(spoiled) is None


def test_a_witness_record_is_what_the_table_says() -> None:
    header = make_header(cluster=bytes(16), command=Command.PREPARE, op=9)
    record = journal.encode_record(header, 8192, 3, 17)
    read = layout.WITNESS_RECORD.unpack(record)
    assert read == {
        "header": header.raw,
        "offset": 8192,
        "segment": 3,
        "index": 17,
        "checksum": xxhash.xxh3_128_digest(record[:496]),
    }
    assert layout.WITNESS_RECORD.size == journal.RECORD_BYTES


def test_sizes_that_others_rely_on() -> None:
    assert layout.CHECKPOINT.size % journal.SECTOR == 0
    assert layout.SUPERBLOCK.size + superblock.SUFFIX_MAX * 256 <= superblock.COPY_BYTES
    assert next(field.size for field in layout.SUPERBLOCK.fields if field.name == "record") == RECORD_MAX
    assert checkpoint.CHUNK % journal.SECTOR == 0
