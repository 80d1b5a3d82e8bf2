"""Segments that are no longer written: found and read without being kept, whatever is damaged, and repaired in place.

Segments hold sixteen sectors. The log here has entries of one to four sectors with zero to five events each.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.storage import handles, index, sectors
from kimberlite.storage.handles import Handles
from kimberlite.storage.index import ColdSegments
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import (
    RECORD_BYTES,
    decode_record,
    encode_record,
    journal_name,
    witness_bytes,
    witness_name,
)
from kimberlite.storage.places import Spot, Start
from kimberlite.storage.store import Store
from kimberlite.types import HEADER_SIZE, Message, ViewState
from kimberlite.vopr.disk import Files, SimDisk, corrupt, make_unreadable

SEGMENTS = 12


@dataclass
class Log:
    """A log over SEGMENTS segments, the last of which is written, and where everything in it stands."""

    kit: Any
    files: Files
    entries: list[Message]
    bases: list[int]  # of the segments
    places: list[tuple[int, int, int]]  # of op - 1: segment, index, offset

    def copied(self) -> Files:
        copied: Files = self.kit.copied(self.files)
        return copied

    def cold(self, files: Files) -> tuple[ColdSegments, set[int]]:
        """All but the last segment, with nothing known of them."""
        faulty: set[int] = set()
        disk = self.kit.disk(files)
        cold = ColdSegments(disk, Handles(disk), self.kit.segment, faulty.add)
        first = self.entries[self.bases[-1] - 1].header
        cold.end_at(len(self.bases) - 1, Start(first.op, first.position))
        return cold, faulty

    @property
    def cold_entries(self) -> list[Message]:
        return self.entries[: self.bases[-1] - 1]

    def ops_of(self, number: int) -> range:
        return range(self.bases[number], self.bases[number + 1])


@pytest.fixture(scope="module")
def log(kit: Any) -> Log:
    rng = random.Random(5)
    bench = kit.fresh()
    entries: list[Message] = []
    bases, places = [], []
    offset, number, at = 0, 0, 0
    while True:
        body = rng.randbytes(rng.choice([10, 300, 3000, 5000, 13000]))
        events = rng.choice([0, 1, 1, 2, 5])
        message = kit.prepare(entries[-1].header if entries else kit.root, body, events=events)
        size = (message.header.size + SECTOR - 1) // SECTOR * SECTOR
        if offset + size > kit.segment:
            number, offset, at = number + 1, 0, 0
        if number == SEGMENTS:
            break
        if at == 0:
            bases.append(message.header.op)
        entries.append(message)
        places.append((number, at, offset))
        offset, at = offset + size, at + 1
        bench.append([message])
    assert bench.store.segment_count == SEGMENTS
    return Log(kit, bench.files, entries, bases, places)


def expected_positions(entries: list[Message]) -> list[int]:
    """Position -> op."""
    return [message.header.op for message in entries for _ in range(message.header.count)]


def check_all(log: Log, cold: ColdSegments, unknown: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """Everything is told as it is; of the ops in `unknown` nothing need be known."""
    for message in log.cold_entries:
        op = message.header.op
        number, at, header, offset = cold.locate(op)
        assert header == cold.header(op)
        if op in unknown:
            assert header is None or header == message.header
        else:
            assert header == message.header
            assert (number, at, offset) == log.places[op - 1]
    for position, op in enumerate(expected_positions(log.cold_entries)):
        assert cold.find(position) == op or (op in unknown and cold.find(position) is None), position


def record_at(log: Log, op: int) -> tuple[str, int]:
    number, at, _ = log.places[op - 1]
    return witness_name(number), at * RECORD_BYTES


def damage_record(log: Log, files: Files, op: int) -> None:
    name, offset = record_at(log, op)
    corrupt(files, name, offset + 100, 1, random.Random(op))


def damage_entry(log: Log, files: Files, op: int) -> None:
    number, _, offset = log.places[op - 1]
    corrupt(files, journal_name(number), offset + 30, 1, random.Random(op))


# Finding


def test_everything_is_found_with_nothing_known(log: Log) -> None:
    cold, faulty = log.cold(log.copied())
    check_all(log, cold)
    assert cold.find(len(expected_positions(log.cold_entries))) is None
    assert not faulty


def test_nothing_is_kept_for_each_segment_beyond_the_bounds(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name, bound in ((index, "INDEX_BYTES", 700), (sectors, "SECTORS_MAX", 3), (index, "STARTS_MAX", 2)):
        monkeypatch.setattr(room, name, bound)
    monkeypatch.setattr(handles, "HANDLES_MAX", 4)
    cold, _ = log.cold(log.copied())
    check_all(log, cold)
    cold.prefetch(1, log.bases[-1] - 1)
    check_all(log, cold)
    assert len(cold._starts) <= 2
    assert len(cold._sectors) <= 3
    assert len(cold._handles._open) <= 4
    assert 1 <= len(cold._indexes) < 4
    assert cold._index_bytes == sum(kept.bytes for kept in cold._indexes.values()) <= 700


def test_the_log_may_begin_at_any_segment(log: Log) -> None:
    for first in range(SEGMENTS - 1):
        cold, _ = log.cold(log.copied())
        cold.begin_at(first)
        for message in log.cold_entries[log.bases[first] - 1 :]:
            assert cold.header(message.header.op) == message.header


# Damage


@pytest.mark.parametrize("number", range(SEGMENTS - 1))
def test_one_of_two_pieces_of_evidence_is_enough(log: Log, number: int) -> None:
    """The first entry of a segment tells where it begins, and so does its witness."""
    for damage in (damage_record, damage_entry):
        files = log.copied()
        damage(log, files, log.bases[number])
        cold, faulty = log.cold(files)
        check_all(log, cold)
        assert not faulty


@pytest.mark.parametrize("number", range(SEGMENTS - 1))
def test_a_segment_whose_first_entry_is_gone_is_found_by_the_others(log: Log, number: int) -> None:
    files = log.copied()
    op = log.bases[number]
    damage_record(log, files, op)
    damage_entry(log, files, op)
    cold, faulty = log.cold(files)
    check_all(log, cold, {op})
    assert faulty == {op}
    assert cold.locate(op) == (number, 0, None, 0), "its place is known: it can be repaired"


@pytest.mark.parametrize("wipe", ["unreadable", "zero", "ones"])
@pytest.mark.parametrize("number", range(SEGMENTS - 1))
def test_a_witness_file_may_be_gone(log: Log, number: int, wipe: str) -> None:
    files = log.copied()
    size = witness_bytes(log.kit.segment)
    if wipe == "unreadable":
        for sector in range(size // SECTOR):
            make_unreadable(files, witness_name(number), sector)
    else:
        files.durable[witness_name(number)][:] = (b"\0" if wipe == "zero" else b"\xff") * size
    cold, faulty = log.cold(files)
    check_all(log, cold)
    assert not faulty, "the entries are whole"


def test_a_segment_that_tells_nothing_of_its_beginning_begins_where_the_one_before_ends(log: Log) -> None:
    for number in range(1, SEGMENTS - 1):
        files = log.copied()
        files.durable[witness_name(number)][:] = b"\xff" * witness_bytes(log.kit.segment)
        damage_entry(log, files, log.bases[number])
        cold, _ = log.cold(files)
        # Its first entry is lost, and with it the places of those behind it, until it is repaired.
        check_all(log, cold, set(log.ops_of(number)))
        for op in log.ops_of(number):
            message = log.entries[op - 1]
            assert rewritten(cold, message) == log.places[op - 1]
        check_all(log, cold)


def test_no_guess_reaches_beyond_what_is_known_of_the_segments_behind(log: Log) -> None:
    """Damaged witness files may have held any number of records: the segments behind say how many at most."""
    for last in range(2, SEGMENTS - 1):
        files = log.copied()
        for number in range(1, last):
            files.durable[witness_name(number)][:] = b"\xff" * witness_bytes(log.kit.segment)
            damage_entry(log, files, log.bases[number])
        cold, _ = log.cold(files)
        bases = [cold.start(number).base for number in range(SEGMENTS)]
        assert bases == sorted(set(bases))
        assert bases[0] == 1 and bases[last:] == log.bases[last:]
        check_all(log, cold, {op for number in range(1, last) for op in log.ops_of(number)} | {log.bases[1] - 1})
        for number in range(1, last):
            for op in log.ops_of(number):
                assert rewritten(cold, log.entries[op - 1]) == log.places[op - 1]
        check_all(log, cold)


@pytest.mark.parametrize("what", ["witness", "entry"])
def test_what_an_older_log_has_left_does_not_move_a_segment(log: Log, what: str) -> None:
    """A lost write: the first sector of a file as it was when the segment began with another op."""
    for number, shift in itertools.product(range(1, SEGMENTS - 1), (-1, 1)):
        files = log.copied()
        older = [message.header for message in log.entries[log.bases[number] - 1 + shift :]]
        if what == "entry":
            files.durable[journal_name(number)][:HEADER_SIZE] = older[0].raw
        else:
            sector = b"".join(encode_record(older[at], at * SECTOR, number, at) for at in range(8))
            files.durable[witness_name(number)][:SECTOR] = sector
        cold, _ = log.cold(files)
        assert cold.start(number).base == log.bases[number]
        start = log.bases[number]
        check_all(log, cold, set(range(start, start + 8)) if what == "witness" else set())


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_never_tells_a_lie(log: Log, seed: int) -> None:
    rng = random.Random(seed)
    files = log.copied()
    for _ in range(rng.randrange(1, 12)):
        number = rng.randrange(SEGMENTS - 1)
        if rng.random() < 0.5:
            corrupt(files, witness_name(number), rng.randrange(16) * RECORD_BYTES + 7, rng.choice([1, 600, 4096]), rng)
        elif rng.random() < 0.5:
            make_unreadable(files, rng.choice([witness_name, journal_name])(number), rng.randrange(2))
        else:
            corrupt(files, journal_name(number), rng.randrange(log.kit.segment), rng.choice([1, 4096, 9000]), rng)
    cold, faulty = log.cold(files)
    for message in log.cold_entries:
        header = cold.header(message.header.op)
        assert header is None or header == message.header
    positions = expected_positions(log.cold_entries)
    for position, op in enumerate(positions):
        assert cold.find(position) in (op, None)
    assert all(cold.header(op) is None for op in faulty)


# Repair


def rewritten(cold: ColdSegments, message: Message) -> tuple[int, int, int] | None:
    """Where an entry is proven to stand: its witness is written there."""
    spot = cold.prove(message.header)
    if spot is not None:
        cold.rewrite(message.header, spot)
    return spot


def damage_store(log: Log, ops: set[int]) -> tuple[Store, SimDisk, list[int]]:
    """A store that was opened before those entries were damaged; its writes take ten units of time a phase."""
    clock = [0]
    disk = SimDisk(log.copied(), lambda: clock[0], lambda: 10)
    store = Store(disk, make_header)
    store.recover()
    store.completions()
    for op in ops:
        damage_entry(log, disk.files, op)
        assert store.read(op) is None
    assert store.faulty == ops
    return store, disk, clock


def ops_of_one_sector(log: Log) -> list[int]:
    return max(
        ([op for op in log.ops_of(number) if log.places[op - 1][1] < 8] for number in range(SEGMENTS - 3)), key=len
    )


def test_repairs_of_one_sector_under_way_at_once_keep_each_other(log: Log) -> None:
    ops = ops_of_one_sector(log)
    store, disk, clock = damage_store(log, set(ops[:4]))
    for op in ops[:4]:
        damage_record(log, disk.files, op)
    for token, op in enumerate(ops[:4], 1):
        store.repair(token, [log.entries[op - 1]])
    assert store.read(ops[0]) is None
    clock[0] = 1000
    assert store.completions() == [1, 2, 3, 4]
    assert disk.files.durable == log.files.durable
    assert not store.faulty
    for op in ops:
        assert store.read(op).body == log.entries[op - 1].body  # type: ignore[union-attr]


def test_a_sector_under_way_is_not_read_back_from_the_disk(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sectors, "SECTORS_MAX", 1)
    ops = ops_of_one_sector(log)
    store, disk, clock = damage_store(log, {ops[0], ops[1]})
    damage_record(log, disk.files, ops[0])
    damage_record(log, disk.files, ops[1])
    store._segments.cold._sectors.clear()
    store.repair(1, [log.entries[ops[0] - 1]])
    for number in range(SEGMENTS - 2):  # what was used last pushes out what is not under way
        store.header(log.bases[number])
    store.repair(2, [log.entries[ops[1] - 1]])
    clock[0] = 1000
    assert store.completions() == [1, 2]
    assert disk.files.durable == log.files.durable
    for number in range(SEGMENTS - 2):
        store.header(log.bases[number])
    assert len(store._segments.cold._sectors) == 1


def test_a_damaged_neighbour_survives_a_repair_as_it_is(log: Log) -> None:
    first, second, third = ops_of_one_sector(log)[:3]
    store, disk, clock = damage_store(log, {second})
    for op in (first, third):
        damage_record(log, disk.files, op)
    before = log.kit.copied(disk.files).durable
    store._segments.cold._sectors.clear()
    store.repair(1, [log.entries[second - 1]])
    clock[0] = 1000
    assert store.completions() == [1]
    for op in (first, third):
        name, at = record_at(log, op)
        assert disk.files.durable[name][at : at + RECORD_BYTES] == before[name][at : at + RECORD_BYTES]
    assert store.read(second).body == log.entries[second - 1].body  # type: ignore[union-attr]


def test_an_unreadable_sector_is_made_again_from_the_entries_that_the_chain_proves(log: Log) -> None:
    ops = ops_of_one_sector(log)
    victim, lost = ops[2], ops[4]
    store, disk, clock = damage_store(log, {victim})
    number = log.places[victim - 1][0]
    damage_entry(log, disk.files, lost)
    make_unreadable(disk.files, witness_name(number), 0)
    store._segments.cold._sectors.clear()
    store.repair(1, [log.entries[victim - 1]])
    clock[0] = 1000
    assert store.completions() == [1]
    image = disk.files.durable[witness_name(number)]
    for op in ops:
        at = log.places[op - 1][1]
        data = bytes(image[at * RECORD_BYTES : (at + 1) * RECORD_BYTES])
        record = decode_record(data, number, at)
        if op < lost:
            assert record is not None
            assert record.header == log.entries[op - 1].header
        elif op == lost:
            assert record is None
            assert any(data), "damaged, and not as if it had never been written"
    assert image[len(ops) * RECORD_BYTES : SECTOR] == bytes(SECTOR - len(ops) * RECORD_BYTES)


def test_what_has_no_certain_place_is_repaired_when_a_neighbour_is(log: Log) -> None:
    first, second, third = ops_of_one_sector(log)[:3]
    files = log.copied()
    for op in (first, second, third):
        damage_entry(log, files, op)
        damage_record(log, files, op)
    cold, faulty = log.cold(files)
    assert cold.header(second) is None
    assert faulty >= {first, second, third}
    assert cold.prove(log.entries[second - 1].header) is None
    for op in (third, second, first):
        assert rewritten(cold, log.entries[op - 1]) == log.places[op - 1], "the one behind it proves its place"


def test_a_repair_is_seen_by_a_new_index(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = ops_of_one_sector(log)
    files = log.copied()
    damage_record(log, files, ops[1])
    damage_entry(log, files, ops[1])
    cold, _ = log.cold(files)
    assert rewritten(cold, log.entries[ops[1] - 1]) == log.places[ops[1] - 1]
    cold._indexes.clear()
    cold._index_bytes = 0
    check_all(log, cold)


# Truncation


@pytest.mark.parametrize("number", [0, 4, SEGMENTS - 2])
@pytest.mark.parametrize("where", ["first", "last", "middle"])
def test_a_log_may_be_cut_within_a_cold_segment(log: Log, number: int, where: str) -> None:
    ops = log.ops_of(number)
    op = {"first": ops[0], "last": ops[-1], "middle": ops[len(ops) // 2]}[where]
    bench = log.kit.open(log.copied())
    kept = log.entries[:op]
    bench.promise(ViewState(1, 1, base=op, suffix_head=op, suffix=(kept[-1].header,)))
    bench.store.truncate(op)
    assert bench.store.segment_count == number + 1
    new = log.kit.chain([5000] * 40, after=kept[-1].header, view=1, salt=3)
    bench.append(new[:1])
    bench.append(new[1:])
    for store in (bench.store, bench.reopen().store):
        assert store.head == op + 40
        for message in [*kept, *new]:
            assert store.header(message.header.op) == message.header
            assert store.read(message.header.op).body == message.body
        for position, holder in enumerate(expected_positions([*kept, *new])):
            assert store.find(position) == holder
    if number < SEGMENTS - 6:
        assert sorted(bench.files.durable) == sorted(log.files.durable), "segments are used again"


def test_a_truncation_while_a_repair_is_under_way(log: Log) -> None:
    """What is under way arrives before what is written next, and nothing of it is taken for the new log's."""
    ops = log.ops_of(5)
    store, disk, clock = damage_store(log, {ops[1]})
    damage_record(log, disk.files, ops[1])
    store.repair(1, [log.entries[ops[1] - 1]])
    kept = log.entries[: ops[0] - 3]
    store.set_view_state(2, ViewState(1, 1, base=len(kept), suffix_head=len(kept), suffix=(kept[-1].header,)))
    store.truncate(len(kept))
    new = log.kit.chain([5000] * 12, after=kept[-1].header, view=1, salt=3)
    store.append(3, new)
    clock[0] = 10_000
    assert store.completions() == [1, 2, 3]
    again = log.kit.open(disk.files)
    assert again.recovered.settled_header == new[-1].header
    assert again.store.header(ops[1]).view == 1 or again.recovered.head < ops[1]


@pytest.mark.parametrize("how", ["whole", "damaged", "unreadable"])
def test_entries_read_ahead_are_the_same_and_damage_is_that_of_its_op_alone(kit: Any, bench: Any, how: str) -> None:
    entries = kit.chain([400 + 2500 * (number % 4) for number in range(60)])
    bench.append(entries)
    number, _, _, offset = bench.store.place_of(5)
    assert number < bench.store.place_of(60)[0]
    name = journal_name(number)
    reads = CountedReads(bench.disk)
    if how == "unreadable":
        make_unreadable(bench.files, name, offset // SECTOR)
    for op in range(1, 61):
        if op == 5 and how == "damaged":  # what was read ahead of it is as good as it was
            bench.files.durable[name][offset + 300] ^= 1
            assert same(bench.store.read(5, ahead=1 << 18), entries[4])
            for other in range(15, 61, 5):  # so that it is not kept any more
                bench.store.read(other, ahead=1 << 18)
        message = bench.store.read(op, ahead=1 << 18)
        assert message is None if op == 5 and how != "whole" else same(message, entries[op - 1])
    assert bench.store.faulty == (set() if how == "whole" else {5})
    bench.repair([entries[4]])
    assert same(bench.store.read(5, ahead=1 << 18), entries[4])
    assert how != "whole" or reads.of_journals < 30


def test_witnesses_are_read_several_at_a_time(kit: Any, bench: Any) -> None:
    entries = kit.chain([100] * 200)
    bench.append(entries)
    counts = []
    for ahead in (1 << 18, 0):
        again = bench.reopen()
        reads = CountedReads(again.disk)
        for message in entries:
            assert same(again.store.read(message.header.op, ahead=ahead), message)
        counts.append(reads.of_witnesses)
    cold = again.store.segment_count - 1
    assert max(counts) <= cold, "two sectors hold the witnesses of a segment: they come together"


def same(found: Message | None, wanted: Message) -> bool:
    return found is not None and (found.header.raw, bytes(found.body)) == (wanted.header.raw, bytes(wanted.body))


class CountedReads:
    def __init__(self, disk: SimDisk) -> None:
        self.of_journals = self.of_witnesses = 0
        read = disk.read

        def counted(file: int, offset: int, length: int) -> memoryview:
            self.of_journals += disk._handles[file].startswith("journal")
            self.of_witnesses += disk._handles[file].startswith("witness")
            return read(file, offset, length)

        disk.read = counted  # type: ignore[method-assign]


# Guesses: where a segment begins


def write_back(log: Log, files: Files, cold: ColdSegments, message: Message, spot: Spot) -> None:
    """A repair, whole: the entry, then its witness."""
    number, _, offset = spot
    data = message.header.raw + bytes(message.body)
    data = data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
    files.durable[journal_name(number)][offset : offset + len(data)] = data
    heal(files, journal_name(number), offset, len(data))
    write = cold.rewrite(message.header, spot)
    files.durable[witness_name(number)][write.offset : write.offset + SECTOR] = write.buffer
    heal(files, witness_name(number), write.offset, SECTOR)
    cold.written(number, write)


def heal(files: Files, name: str, offset: int, length: int) -> None:
    bad = files.unreadable.get(name, set())
    bad -= set(range(offset // SECTOR, (offset + length) // SECTOR))


def spoil(log: Log, files: Files, rng: random.Random) -> None:
    """Much damage at once: whole witness files, ends of them, first entries, runs of entries, sectors of an older log
    whose segments began elsewhere."""
    for number in range(SEGMENTS - 1):
        size = witness_bytes(log.kit.segment)
        image = files.durable[witness_name(number)]
        kind = rng.randrange(7)
        if kind == 0:
            image[:] = rng.choice([b"\0", b"\xff"]) * size
        elif kind == 1:
            end = rng.randrange(16) * RECORD_BYTES
            image[end:] = rng.choice([b"\0", b"\xff"]) * (size - end)
        elif kind == 2:
            shift = rng.choice([-2, -1, 1, 2])
            parent = log.entries[max(log.bases[number] - 2 + shift, 0)].header
            older = [message.header for message in log.kit.chain([100] * 8, after=parent, salt=number)]
            image[:SECTOR] = b"".join(encode_record(older[at], at * SECTOR, number, at) for at in range(8))
        elif kind == 3:
            make_unreadable(files, witness_name(number), rng.randrange(size // SECTOR))
        if rng.random() < 0.7:
            damage_entry(log, files, log.bases[number])
        for _ in range(rng.randrange(4)):
            corrupt(files, journal_name(number), rng.randrange(log.kit.segment), rng.choice([1, 4096, 20_000]), rng)


@pytest.mark.parametrize("seed", range(80))
def test_no_repair_is_ever_written_where_its_entry_does_not_belong(log: Log, seed: int) -> None:
    """And in the end all are repaired, one proving the place of the next."""
    rng = random.Random(seed)
    files = log.copied()
    spoil(log, files, rng)
    cold, _ = log.cold(files)
    for message in log.cold_entries:
        op = message.header.op
        assert cold.segment_begun_by(op) <= log.places[op - 1][0], "a trim to that op would remove it"
    left = list(log.cold_entries)
    for _ in range(4):
        waiting = []
        for message in left:
            op = message.header.op
            if cold.header(op) == message.header and rng.random() < 0.5:
                continue  # intact, as far as its witness tells, and nobody asked
            spot = cold.prove(message.header)
            if spot is None:
                waiting.append(message)
                continue
            assert spot == log.places[op - 1], op
            write_back(log, files, cold, message, spot)
        left = waiting
    assert not left
    for known in (cold, log.cold(files)[0]):
        for message in log.cold_entries:
            found = known.header(message.header.op)
            assert found is None or found == message.header


def test_an_entry_of_an_older_log_is_not_taken_for_the_one_whose_witness_is_damaged(log: Log) -> None:
    """A lost write has left it there; writing its witness anew would make it the one of the log."""
    for op in (log.ops_of(3)[0], log.ops_of(3)[1], log.ops_of(5)[-2]):
        files = log.copied()
        number, _, offset = log.places[op - 1]
        stale = log.kit.prepare(log.entries[op - 3].header, b"older")
        stale = log.kit.prepare(stale.header, b"older")
        assert stale.header.op == op
        whole = (stale.header.raw + bytes(stale.body)).ljust(SECTOR, b"\0")
        files.durable[journal_name(number)][offset : offset + SECTOR] = whole
        damage_record(log, files, op)
        cold, _ = log.cold(files)
        assert cold.header(op) is None
        assert cold.rewrite_witness(op) is None
        assert rewritten(cold, log.entries[op - 1]) == log.places[op - 1]


def test_a_witness_that_an_older_log_has_left_does_not_say_which_entry_it_is(log: Log) -> None:
    """The entry says so, which its neighbours know; and when it is damaged, nobody."""
    op = log.ops_of(4)[2]
    store, disk, _ = damage_store(log, set())
    stale = log.kit.prepare(log.kit.prepare(log.entries[op - 3].header, b"older").header, b"older").header
    number, at, offset = log.places[op - 1]
    record = encode_record(stale, offset, number, at)
    disk.files.durable[witness_name(number)][at * RECORD_BYTES : (at + 1) * RECORD_BYTES] = record
    store._segments.cold._sectors.clear()
    assert same(store.read(op), log.entries[op - 1])
    damage_entry(log, disk.files, op)
    assert store.read(op) is None
    assert op in store.faulty
    assert store.proven_header(op) is None
    assert store.proven_header(op - 3) == log.entries[op - 4].header


@pytest.mark.parametrize("at", [0, 2, -2, -1])
def test_an_entry_of_an_older_log_is_not_read_though_its_witness_is_intact_too(log: Log, at: int) -> None:
    """The writes of both were lost: only the neighbours know that they are of another log."""
    op = log.ops_of(4)[at]
    store, disk, _ = damage_store(log, set())
    stale = log.kit.prepare(log.kit.prepare(log.entries[op - 3].header, b"older").header, b"older")
    assert stale.header.op == op
    number, index, offset = log.places[op - 1]
    whole = (stale.header.raw + bytes(stale.body)).ljust(SECTOR, b"\0")
    disk.files.durable[journal_name(number)][offset : offset + SECTOR] = whole
    record = encode_record(stale.header, offset, number, index)
    disk.files.durable[witness_name(number)][index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = record
    store._segments.cold._sectors.clear()
    for ahead in (0, 64 << 10):
        assert store.read(op, None, ahead) is None
    assert op in store.faulty


def test_witnesses_of_an_older_log_that_agree_with_each_other_begin_no_list_of_headers_and_no_checkpoint(
    log: Log,
) -> None:
    """The writes of several witnesses in a row were lost: what stands in the journal contradicts them."""
    first, op, _ = run = log.ops_of(4)[:3]
    store, disk, _ = damage_store(log, set())
    leave_older_witnesses(log, disk.files, run)
    store._segments.cold._sectors.clear()
    assert store.headers(first, op) == []
    assert store.mark(op) is None
    store._segments.cold._sectors.clear()
    assert store.headers(first - 2, first - 1) == [log.entries[at - 1].header for at in (first - 2, first - 1)]


def leave_older_witnesses(log: Log, files: Files, ops: range) -> None:
    """As when the writes of those of the log were lost: they agree with each other, and with the op before them."""
    older = log.entries[ops[0] - 2].header
    for op in ops:
        number, index, offset = log.places[op - 1]
        older = log.kit.prepare(older, b"older").header
        record = encode_record(older, offset, number, index)
        files.durable[witness_name(number)][index * RECORD_BYTES : (index + 1) * RECORD_BYTES] = record


def test_a_run_of_witnesses_of_an_older_log_is_repaired_from_below(log: Log) -> None:
    """Each names another parent than what stands before it: that is no reason not to believe that one."""
    run = log.ops_of(4)[1:5]
    store, disk, clock = damage_store(log, set())
    leave_older_witnesses(log, disk.files, run)
    damage_entry(log, disk.files, run[2])
    store._segments.cold._sectors.clear()
    for token, op in enumerate(run, 1):
        assert store.repair(token, [log.entries[op - 1]]) == []
        clock[0] += 1000
        assert store.completions() == [token]
    store._segments.cold._sectors.clear()
    assert all(store.read(op) is not None for op in run)
    assert not store.faulty
    assert disk.files.durable == log.files.durable


def test_the_first_op_of_a_log_is_read_whatever_is_left_of_what_was_trimmed(log: Log) -> None:
    gone, first = log.ops_of(4)[1:3]
    store, disk, clock = damage_store(log, set())
    leave_older_witnesses(log, disk.files, range(gone, first))
    store._segments.cold._sectors.clear()
    assert store.read(first) is None, "nobody knows which of the two is of the log"
    store.faulty.clear()
    header = log.entries[first - 1].header
    store.trim(header.op, header.position)
    for opened in (store, *trimmed_and_started_again(log, disk, store, clock, header.op)):
        assert opened.read(first).body == log.entries[first - 1].body  # type: ignore[union-attr]


def trimmed_and_started_again(log: Log, disk: SimDisk, store: Store, clock: list[int], first: int) -> list[Store]:
    mark = store.mark(log.entries[-1].header.op)
    assert mark is not None
    store.write_checkpoint(mark, 1, b"", b"state")
    while store.first_op != first or not store.is_checkpoint_idle:
        clock[0] += 10
        assert store.completions() == []
    reopened = Store(disk, make_header)
    reopened.recover()
    return [reopened]


def test_no_guess_of_where_a_segment_begins_makes_damage_of_what_is_no_cold_entry(log: Log) -> None:
    files = log.copied()
    number = SEGMENTS - 3
    make_unreadable(files, witness_name(number), 0)
    cold, faulty = log.cold(files)
    end = log.bases[-1]
    cold._learn(number, Start(end - 2, 0, certain=False))
    cold._learn(number + 1, Start(end + 9, 0, certain=False))
    cold._index(number)
    assert faulty == {end - 2, end - 1}


@pytest.mark.parametrize("gone", [1, 3])
def test_what_is_guessed_of_where_segments_begin_hides_none_behind_them(log: Log, gone: int) -> None:
    """Nothing tells where segments begin of which all is damaged: as little as it may be by those behind them. Counted
    from those before them, garbage and all, they would seem to begin behind others which hold what is looked for."""
    files = log.copied()
    first = 4
    for number in range(first, first + gone + 1):
        damage_entry(log, files, log.bases[number])
        damage_record(log, files, log.bases[number])
    for number in range(first, first + gone):
        files.durable[witness_name(number)][:] = b"\xff" * witness_bytes(log.kit.segment)
    cold, _ = log.cold(files)
    for number in range(first + gone, SEGMENTS - 1):
        for op in log.ops_of(number):
            assert cold.segment_of(op) == number
    starts = [cold.start(number).base for number in range(SEGMENTS)]
    assert starts == sorted(set(starts))


def test_repairs_that_come_together_are_placed_from_both_sides(log: Log) -> None:
    """Nothing tells where the first of them stands but the one behind the last."""
    first, *_ = ops = ops_of_one_sector(log)[1:5]
    store, disk, clock = damage_store(log, {first - 1, *ops})
    for op in (first - 1, *ops):
        damage_record(log, disk.files, op)
    store._segments.cold._sectors.clear()
    assert store.repair(1, [log.entries[op - 1] for op in ops]) == []
    clock[0] = 1000
    assert store.completions() == [1]
    assert store.faulty == {first - 1}
    assert [message.header.op for op in ops if (message := store.read(op)) is not None] == ops


@pytest.mark.parametrize("is_last_of_a_segment", [False, True])
def test_the_first_entries_of_a_trimmed_log_need_no_proof_of_their_place(log: Log, is_last_of_a_segment: bool) -> None:
    """When they come together and are all there is before a segment: what else stood there is needed by nobody. They
    fill a segment, or the log begins with the last entry of one."""
    number = 4
    below, ops = log.ops_of(number - 1), list(log.ops_of(number))
    if is_last_of_a_segment:
        number, ops, below = number - 1, [below[-1]], below[:-1]
    store, disk, clock = damage_store(log, {below[-1], *ops})
    for gone in {number - 1, number}:
        disk.files.durable[witness_name(gone)][:] = b"\xff" * witness_bytes(log.kit.segment)
    store._segments.cold._sectors.clear()
    store._segments.cold._starts.clear()
    first = log.entries[ops[0] - 1].header
    assert store.repair(1, [log.entries[op - 1] for op in ops]) == ops, "what is below may still be needed"
    mark = store.mark(log.entries[-1].header.op)
    assert mark is not None
    store.write_checkpoint(mark, 1, b"", b"state")
    store.trim(first.op, first.position)
    assert store.repair(2, [log.entries[op - 1] for op in ops]) == ops, "a restart would need it again"
    while store.first_op != first.op or not store.is_checkpoint_idle:
        clock[0] += 10
        assert store.completions() == []
    assert store.repair(3, [log.entries[op - 1] for op in ops[:-1]]) == ops[:-1], "they are not all"
    assert store.repair(4, [log.entries[op - 1] for op in ops]) == []
    clock[0] += 1000
    assert store.completions() == [4]
    assert not store.faulty
    reopened = Store(disk, make_header)
    reopened.recover()
    for opened in (store, reopened):
        for message in log.entries[first.op - 1 :]:
            assert opened.read(message.header.op).body == message.body  # type: ignore[union-attr]
        assert not opened.faulty


def test_a_repair_without_a_certain_place_changes_nothing_and_is_said(log: Log) -> None:
    first, second, third, fourth = ops_of_one_sector(log)[1:5]
    store, disk, clock = damage_store(log, {first, second, third, fourth})
    for op in (first, second, third, fourth):
        damage_record(log, disk.files, op)
    store._segments.cold._sectors.clear()
    before = {name: bytes(data) for name, data in disk.files.durable.items()}
    assert store.repair(1, [log.entries[third - 1]]) == [third]
    clock[0] = 1000
    assert store.completions() == []
    assert {name: bytes(data) for name, data in disk.files.durable.items()} == before
    assert store.repair(2, [log.entries[op - 1] for op in (first, third)]) == [third]
    clock[0] = 2000
    assert store.completions() == [2]
    assert store.faulty == {second, third, fourth}
    assert store.repair(3, [log.entries[op - 1] for op in (second, third, fourth)]) == []
    clock[0] = 3000
    assert store.completions() == [3]
    assert not store.faulty
    assert disk.files.durable == log.files.durable
