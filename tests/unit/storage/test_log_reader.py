"""The one way to walk a journal: what stands at a place, where the next entry is, and that nobody goes another way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.cli.inspect import journal_rows
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, Flaw, Record, encode_record, journal_name, witness_name
from kimberlite.storage.log_reader import CHUNK, NoRecord, Place, SegmentReader, file_size, journal_numbers
from kimberlite.types import Message
from kimberlite.vopr.disk import Files, SimDisk, make_unreadable

JOURNAL, WITNESS = journal_name(0), witness_name(0)
SIZES = [100, 9000, 0, 300]
OFFSETS = [0, SECTOR, 4 * SECTOR, 5 * SECTOR]
END = 6 * SECTOR


@pytest.fixture(scope="module")
def entries(kit: Any) -> list[Message]:
    found: list[Message] = kit.chain(SIZES)
    return found


@pytest.fixture
def image(kit: Any, entries: list[Message]) -> Files:
    """Four entries in six sectors."""
    bench = kit.fresh()
    for message in entries:
        bench.append([message])
    files: Files = bench.files
    return files


@pytest.fixture
def disk(image: Files) -> SimDisk:
    return SimDisk(image, lambda: 0, lambda: 0)


@pytest.fixture
def files(disk: SimDisk, kit: Any) -> Iterator[SegmentReader]:
    with SegmentReader(disk, 0, kit.segment) as reader:
        yield reader


def wipe_record(image: Files, index: int, filler: bytes = b"\0") -> None:
    image.durable[WITNESS][index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = filler * RECORD_BYTES


def walked(files: SegmentReader) -> list[tuple[int | None, bool]]:
    """Offset of each entry, and whether it has a witness, by what is known of the one before."""
    place, found = Place(0), list[tuple[int | None, bool]]()
    for _ in SIZES:
        record, offset = files.at(place)
        standing = files.entry(offset) if offset is not None else None
        header = record.header if isinstance(record, Record) else getattr(standing, "header", None)
        found.append((offset, isinstance(record, Record)))
        place.move(header, offset)
    return found


def test_each_entry_stands_where_its_witness_says_or_behind_the_one_before(files: SegmentReader, image: Files) -> None:
    assert walked(files) == [(offset, True) for offset in OFFSETS]
    wipe_record(image, 2, b"\xff")
    files = SegmentReader(SimDisk(image, lambda: 0, lambda: 0), 0, files.segment_bytes)
    assert walked(files) == [(offset, at != 2) for at, offset in enumerate(OFFSETS)]
    image.durable[JOURNAL][OFFSETS[2]] ^= 1
    assert walked(files)[3] == (OFFSETS[3], True), "its own witness says it"
    wipe_record(image, 3)
    files = SegmentReader(SimDisk(image, lambda: 0, lambda: 0), 0, files.segment_bytes)
    assert walked(files)[3] == (None, False), "nothing is left that tells"


def test_a_witness_that_is_not_believed_says_nothing_of_the_place(files: SegmentReader) -> None:
    place = Place(0, 1, 77 * SECTOR)
    assert files.at(place)[1] == OFFSETS[1]
    record, offset = files.at(place, lambda header: False)
    assert isinstance(record, Record) and offset == 77 * SECTOR


def test_why_there_is_no_record(files: SegmentReader, image: Files, entries: list[Message]) -> None:
    wipe_record(image, 1)
    wipe_record(image, 2, b"\x01")
    assert [files.record(at) for at in range(5)] == [
        Record(entries[0].header, 0),
        NoRecord.MISSING,
        NoRecord.DAMAGED,
        Record(entries[3].header, OFFSETS[3]),
        NoRecord.MISSING,
    ]


def test_a_sector_that_can_not_be_read_takes_no_other_record_with_it(kit: Any, entries: list[Message]) -> None:
    bench = kit.fresh()
    bench.append(kit.chain([0] * 12))
    make_unreadable(bench.files, WITNESS, 1)
    with SegmentReader(SimDisk(bench.files, lambda: 0, lambda: 0), 0, kit.segment) as files:
        assert isinstance(files.record(7), Record)
        assert files.record(8) is NoRecord.UNREADABLE
        assert files.image()[SECTOR : 2 * SECTOR] == b"\xff" * SECTOR


def test_a_witness_of_another_place_is_none(image: Files, files: SegmentReader, entries: list[Message]) -> None:
    image.durable[WITNESS][:RECORD_BYTES] = encode_record(entries[0].header, 0, 0, 1)
    assert files.record(0) is NoRecord.DAMAGED


def test_what_a_segment_begins_with(image: Files, kit: Any, entries: list[Message]) -> None:
    def begins(*, beyond_gaps: bool) -> tuple[int | None, int | None]:
        with SegmentReader(SimDisk(image, lambda: 0, lambda: 0), 0, kit.segment) as files:
            header = files.first_header()
            return files.base(beyond_gaps=beyond_gaps), header.op if header is not None else None

    assert begins(beyond_gaps=False) == (1, 1)
    wipe_record(image, 0, b"\xff")
    assert begins(beyond_gaps=False) == (1, 1), "the next record, and the entry"
    image.durable[JOURNAL][0] ^= 1
    assert begins(beyond_gaps=False) == (1, None)
    wipe_record(image, 0)
    assert begins(beyond_gaps=False) == (None, None)
    assert begins(beyond_gaps=True) == (1, None)


def test_what_is_read_ahead_is_the_same_and_an_error_concerns_one_entry(kit: Any) -> None:
    def known(files: SegmentReader, sector: int) -> int | Flaw:
        found = files.entry(sector * SECTOR)
        return found if isinstance(found, Flaw) else found.header.op

    bench = kit.fresh()
    bench.append(kit.chain([0, 0, 0]))
    disk = SimDisk(bench.files, lambda: 0, lambda: 0)
    with SegmentReader(disk, 0, kit.segment, ahead=2 * SECTOR) as files:
        assert [known(files, at) for at in range(4)] == [1, 2, 3, Flaw.NOTHING]
        assert known(files, 0) == 1, "back again"
    make_unreadable(bench.files, JOURNAL, 1)
    with SegmentReader(disk, 0, kit.segment, ahead=2 * SECTOR) as files:
        assert [known(files, at) for at in range(3)] == [1, Flaw.UNREADABLE, 3]


def test_files_are_closed_unless_they_were_given_up(kit: Any, image: Files) -> None:
    disk = kit.disk(image)
    with SegmentReader(disk, 0, kit.segment) as files:
        assert disk.released == []
        files.record(0)
        files.entry(0)
    assert sorted(disk.released) == [JOURNAL, WITNESS]
    files.record(CHUNK // RECORD_BYTES - 1)
    files.entry(0)
    assert None not in files.give_up()
    files.close()
    assert len(disk.released) == 2


def test_which_files_there_are(disk: SimDisk, kit: Any) -> None:
    assert journal_numbers(disk) == [0]
    assert file_size(disk, JOURNAL) == kit.segment
    with pytest.raises(FileNotFoundError):
        file_size(disk, journal_name(1))
    with pytest.raises(FileNotFoundError), SegmentReader(disk, 1, kit.segment) as files:
        files.record(0)


def test_inspect_shows_an_entry_once_whose_witness_is_damaged(image: Files, disk: SimDisk) -> None:
    """The last one was shown again, as a write that was under way."""
    wipe_record(image, 3, b"\xff")
    rows = list(journal_rows(disk, 0))
    assert [row["op"] for row in rows] == [1, 2, 3, 4]
    assert (rows[3]["entry"], rows[3]["witness"], rows[3]["offset"]) == ("good", "damaged", OFFSETS[3])
    wipe_record(image, 2, b"\xff")
    rows = list(journal_rows(disk, 0))
    assert [(row["op"], row["offset"]) for row in rows[2:]] == [(3, OFFSETS[2]), (4, OFFSETS[3])]


# What decodes a record or an entry by itself. All else walks by storage.log_reader, or asks an open store. The
# simulator's checks trust none of it, and read the disk with a parser of their own.
OF_STORAGE = {
    "storage/journal.py",  # what both are
    "storage/log_reader.py",
    "storage/scan.py",  # judges evidence where the reader says that it stands
    "storage/index.py",  # of an open store: cold segments
    "storage/sectors.py",  # and the sectors of their witnesses
    "storage/open_segment.py",  # of an open store: the one that is written
    "storage/journal_reader.py",
    "storage/read_ahead.py",
    "storage/beginnings.py",
    "storage/checks.py",
}


def test_nobody_has_a_way_of_his_own() -> None:
    root = Path(kimberlite.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        name = str(path.relative_to(root))
        if name.startswith("vopr/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            if names & {"decode_record", "examine_entry", "read_entry"}:
                found.add(name)
    assert found <= OF_STORAGE
