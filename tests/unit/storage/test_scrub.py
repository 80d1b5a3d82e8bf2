"""The scrubber: whatever is damaged is found within one tour, and written again where something good is left."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import superblock
from kimberlite.storage.audit import Audit
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.journal import RECORD_BYTES, journal_name, witness_name
from kimberlite.storage.pieces import Extent, Part, Piece, PieceReader
from kimberlite.storage.scrub import STEP_BYTES, STEPS_PER_TICK, Damage, Scrubber
from kimberlite.types import Message
from kimberlite.vopr.disk import SimDisk, corrupt, make_unreadable

WHOLE = SECTOR - 256
S = 1_000_000_000


def scrubber(bench: Any, seed: int = 1, rate: int = 1 << 20) -> Scrubber:
    return Scrubber(bench.store, bytes_per_s=rate, seed=seed, now=0)


def tour(bench: Any, seed: int = 1) -> Scrubber:
    """One whole tour, its writes done."""
    scrub = scrubber(bench, seed)
    for _ in range(10_000):
        scrub.step()
        bench.store.completions()
        if scrub.tours:
            return scrub
    raise AssertionError("a tour ends")


def found(scrub: Scrubber) -> dict[str, int]:
    return {what.value: count for what, count in scrub.damage.items() if count}


def findings(bench: Any) -> list[Any]:
    return list(Audit(SimDisk(bench.files, lambda: 0, lambda: 0)).findings())


@pytest.fixture
def filled(bench: Any, kit: Any) -> Any:
    """200 entries in 13 segments: most of them no longer in memory."""
    bench.log = kit.chain([WHOLE] * 200)
    for start in range(0, 200, 16):
        bench.append(bench.log[start : start + 16])
    return bench


def with_checkpoint(bench: Any, op: int = 20) -> None:
    mark = bench.store.mark(op)
    bench.store.write_checkpoint(mark, 1, b"sessions", random.Random(3).randbytes(200_000))
    for _ in range(50):
        bench.store.completions()
    assert bench.store.checkpoint.op == op


def test_what_is_whole_is_left_alone(filled: Any) -> None:
    with_checkpoint(filled)
    events = len(filled.recorder.events)
    scrub = tour(filled)
    assert (found(scrub), filled.store.faulty) == ({}, set())
    assert len(filled.recorder.events) == events, "nothing is written"
    size = filled.store.checkpoint.size
    assert scrub.bytes == 200 * 2 * SECTOR + superblock.COPIES * superblock.COPY_BYTES + 2 * size


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_entry_is_found_wherever_the_tour_begins(filled: Any, seed: int) -> None:
    ops = random.Random(seed).sample(range(1, 201), 5)
    for op in ops:
        corrupt(filled.files, journal_name((op - 1) // 16), (op - 1) % 16 * SECTOR + 100, 1, random.Random(seed))
    scrub = tour(filled, seed)
    assert filled.store.faulty == set(ops)
    assert found(scrub) == {"entry": 5}
    filled.repair([filled.log[op - 1] for op in sorted(ops)])
    assert filled.store.faulty == set()
    assert findings(filled) == []


@pytest.mark.parametrize("op", [1, 8, 9, 100, 185, 200])
def test_a_damaged_witness_is_written_again(filled: Any, op: int) -> None:
    filled.store.header(op)  # what is in memory says nothing of the disk
    corrupt(filled.files, witness_name((op - 1) // 16), (op - 1) % 16 * RECORD_BYTES + 40, 8, random.Random(1))
    assert [finding.op for finding in findings(filled)] == [op]
    scrub = tour(filled)
    assert found(scrub) == {"witness": 1}
    assert filled.store.faulty == set()
    assert findings(filled) == []


def test_all_witnesses_of_a_sector_are_written_again_in_one_tour(filled: Any) -> None:
    """Also when none of the writes is done before the next record is looked at."""
    for segment in (2, 12):
        filled.files.durable[witness_name(segment)][:SECTOR] = bytes([0xEE]) * SECTOR
    scrub = scrubber(filled)
    while not scrub.tours:
        scrub.step()
    filled.store.completions()
    assert found(scrub) == {"witness": 16}
    assert findings(filled) == []


@pytest.mark.parametrize("lost", ["on the disk", "in memory"])
def test_a_witness_that_is_written_again_takes_no_other_away(filled: Any, lost: str) -> None:
    """Of two records of one sector, that of op 40 is damaged on the disk; that of op 39 is missing there, or in what
    was read of it before."""
    sector = filled.files.durable[witness_name(2)]
    witness = slice(6 * RECORD_BYTES, 7 * RECORD_BYTES)
    good = bytes(sector[witness])
    if lost == "in memory":
        sector[witness] = bytes(RECORD_BYTES)
    filled.store.header(38)
    sector[witness] = good if lost == "in memory" else bytes(RECORD_BYTES)
    corrupt(filled.files, witness_name(2), 7 * RECORD_BYTES + 40, 8, random.Random(1))
    filled.store.check_entry(40)
    filled.store.completions()
    assert findings(filled) == []


def test_unreadable_sectors(filled: Any) -> None:
    make_unreadable(filled.files, journal_name(3), 5)
    make_unreadable(filled.files, witness_name(7), 1)
    scrub = tour(filled)
    assert filled.store.faulty == {3 * 16 + 5 + 1}
    assert scrub.damage[Damage.ENTRY] == 1
    assert scrub.damage[Damage.WITNESS] >= 1
    assert [finding.op for finding in findings(filled)] == [3 * 16 + 5 + 1]


@pytest.mark.parametrize("copy", range(superblock.COPIES))
def test_a_damaged_superblock_copy_is_written_again(filled: Any, copy: int) -> None:
    before = bytes(filled.files.durable[superblock.NAME])
    corrupt(filled.files, superblock.NAME, copy * superblock.COPY_BYTES + 3000, 10, random.Random(1))
    scrub = tour(filled)
    assert found(scrub) == {"superblock": 1}
    assert bytes(filled.files.durable[superblock.NAME]) == before


@pytest.mark.parametrize("copy", checkpoints.COPIES)
@pytest.mark.parametrize("how", ["flipped", "unreadable", "gone", "cut"])
def test_a_damaged_checkpoint_copy_is_written_again(filled: Any, copy: str, how: str) -> None:
    with_checkpoint(filled)
    name = checkpoints.file_name(20, copy)
    before = bytes(filled.files.durable[name])
    if how == "flipped":
        corrupt(filled.files, name, 150_000, 1, random.Random(1))
    elif how == "unreadable":
        make_unreadable(filled.files, name, 20)
    elif how == "gone":
        del filled.files.durable[name]
    else:
        del filled.files.durable[name][100_000:]
    scrub = tour(filled)
    assert found(scrub) == {"checkpoint": 1}
    for _ in range(50):
        filled.store.completions()
    assert bytes(filled.files.durable[name]) == before
    assert found(tour(filled)) == {}


def test_a_checkpoint_without_a_good_copy_is_reported_and_left_to_whoever_has_the_state(filled: Any) -> None:
    with_checkpoint(filled)
    for copy in checkpoints.COPIES:
        corrupt(filled.files, checkpoints.file_name(20, copy), 5000, 1, random.Random(1))
    before = {name: bytes(content) for name, content in filled.files.durable.items()}
    assert filled.store.checkpoint_op == 20
    assert found(tour(filled)) == {"checkpoint": 2}
    assert filled.store.checkpoint_op == 0
    assert {name: bytes(content) for name, content in filled.files.durable.items()} == before


def test_tours_begin_anywhere_and_follow_each_other(filled: Any) -> None:
    origins = {scrubber(filled, seed)._origin for seed in range(30)}
    assert len(origins) > 20 and min(origins) >= 1 and max(origins) <= 200
    scrub = tour(filled)
    assert (scrub.tours, scrub.fraction) == (1, 1.0)
    origin = scrub._origin
    fractions = []
    while scrub.tours == 1:
        scrub.step()
        fractions.append(scrub.fraction)
    assert fractions[:-1] == sorted(fractions[:-1]) and 0 < fractions[0] < 0.2
    assert scrub._origin == origin


def test_what_is_appended_meanwhile_is_left_for_the_next_tour(filled: Any, kit: Any) -> None:
    scrub = scrubber(filled)
    more: list[Message] = kit.chain([WHOLE] * 16, after=filled.log[-1].header)
    filled.append(more)
    while not scrub.tours:
        scrub.step()
    first = scrub.bytes
    while scrub.tours < 2:
        scrub.step()
    assert scrub.bytes - first == first + 16 * 2 * SECTOR


def test_it_keeps_to_its_rate(filled: Any) -> None:
    scrub = scrubber(filled, rate=1 << 20)
    for tick in range(1, 501):
        scrub.tick(tick * S // 100)
    assert abs(scrub.bytes - 5 * (1 << 20)) <= 2 * STEP_BYTES
    idle = scrubber(filled, rate=0)
    assert not idle.tick(100 * S)
    assert idle.bytes == 0
    # After a long pause it does not catch up at once.
    late = scrubber(filled, rate=1 << 30)
    late.tick(3600 * S)
    assert late.bytes <= (STEPS_PER_TICK + 1) * STEP_BYTES


def test_a_step_is_small(bench: Any, kit: Any) -> None:
    bench.append(kit.chain([100] * 30 + [40_000] + [100] * 30))
    scrub = scrubber(bench)
    while not scrub.tours:
        assert scrub.step() <= STEP_BYTES


def test_an_empty_log(bench: Any) -> None:
    scrub = tour(bench)
    assert scrub.bytes == superblock.COPIES * superblock.COPY_BYTES
    assert (scrub.fraction, found(scrub)) == (0.0, {})


def test_what_is_being_written_is_left_alone(bench: Any, kit: Any) -> None:
    entries = kit.chain([WHOLE] * 8)
    bench.append(entries[:4])
    bench.store.append(99, entries[4:])  # under way: not durable before the next look
    corrupt(bench.files, witness_name(0), 40, 4, random.Random(1))
    for op in range(1, 9):
        assert bench.store.check_entry(op).damage == ()
    state = bench.store.view_state
    bench.store.set_view_state(100, state)
    assert bench.store.check_superblock(0).bytes == 0
    bench.store.completions()
    assert bench.store.check_superblock(0).bytes == superblock.COPY_BYTES
    assert tour(bench).damage[Damage.ENTRY] == 0
    assert findings(bench) == []


def test_damage_found_is_said_once(filled: Any) -> None:
    corrupt(filled.files, journal_name(0), 100, 1, random.Random(1))
    scrub = scrubber(filled)
    heard = [scrub.tick(tick * S) for tick in range(1, 200)]
    assert heard.count(True) == 1
    assert scrub.tours > 1


def test_the_next_tour_waits_until_it_is_due(filled: Any) -> None:
    """A log that is read in a moment is read once an interval, not again and again."""
    interval = 60 * S
    scrub = Scrubber(filled.store, bytes_per_s=64 << 20, interval_ns=interval, seed=1, now=S)
    now, ends = S, []
    while now < 3 * interval:
        now += S // 100
        before = scrub.tours
        scrub.tick(now)
        if scrub.tours != before:
            ends.append(now)
            assert (scrub.ended_at, scrub.fraction) == (now, 1.0)
    assert len(ends) == scrub.tours == 3
    assert all(abs(after - before - interval) < S for before, after in pairwise(ends))
    read = scrub.bytes
    assert not scrub.tick(now - 1)
    assert scrub.bytes == read


def test_a_tour_that_takes_longer_than_the_interval_is_followed_at_once(filled: Any) -> None:
    scrub = Scrubber(filled.store, bytes_per_s=100_000, interval_ns=S, seed=1, now=0)
    for now in range(0, 60 * S, S // 100):
        scrub.tick(now)
    assert scrub.tours >= 2
    assert scrub.bytes == pytest.approx(60 * 100_000, rel=0.1)


# By pieces, which another thread reads


class Reader:
    """As PieceReader, on a simulated disk: a piece comes at the tick after the one that asked for it. spoil: what is
    done to what was read."""

    def __init__(self, bench: Any, spoil: Callable[[bytearray], None] = lambda content: None) -> None:
        self.bench, self.spoil = bench, spoil
        self.piece: Any = None
        self.asked = 0

    @property
    def is_busy(self) -> bool:
        return self.piece is not None

    def ask(self, extents: Sequence[Extent]) -> bool:
        parts = {}
        for extent in extents:
            part = parts[extent.name] = Part(extent, -1)
            with contextlib.suppress(OSError):
                content = bytearray(self.bench.disk.read(extent.file, extent.offset, extent.length))
                self.spoil(content)
                part._content = memoryview(content)
        self.piece = Piece(parts)
        self.asked += 1
        return True

    def take(self) -> Any:
        piece, self.piece = self.piece, None
        return piece

    def close(self) -> None:
        self.piece = None


def tour_by_pieces(bench: Any, reader: Any, seed: int = 1) -> Scrubber:
    scrub = Scrubber(bench.store, bytes_per_s=1 << 30, seed=seed, now=0, reader=reader)
    for tick in range(1, 10_000):
        scrub.tick(tick * S)
        bench.store.completions()
        if scrub.tours:
            return scrub
    raise AssertionError("a tour ends")


@pytest.mark.parametrize("seed", range(10))
def test_by_pieces_the_same_is_found(filled: Any, seed: int) -> None:
    with_checkpoint(filled)
    generator = random.Random(seed)
    entries, witnesses = generator.sample(range(1, 201), 5), generator.sample(range(1, 201), 5)
    for op in entries:
        corrupt(filled.files, journal_name((op - 1) // 16), (op - 1) % 16 * SECTOR + 100, 1, generator)
    for op in witnesses:
        corrupt(filled.files, witness_name((op - 1) // 16), (op - 1) % 16 * RECORD_BYTES + 9, 1, generator)
    make_unreadable(filled.files, journal_name(4), 3)
    reader = Reader(filled)
    scrub = tour_by_pieces(filled, reader, seed)
    assert filled.store.faulty == {*entries, 4 * 16 + 4}
    whole = len(set(witnesses) - filled.store.faulty)
    assert found(scrub)["entry"] == len(filled.store.faulty) and found(scrub).get("witness", 0) == whole
    assert 13 <= reader.asked <= 40, "many entries with each"


def test_what_a_piece_says_is_damaged_is_looked_at_on_the_disk(filled: Any) -> None:
    def spoil(content: bytearray) -> None:
        content[:] = bytes(len(content))

    scrub = tour_by_pieces(filled, Reader(filled, spoil))
    assert found(scrub) == {} and filled.store.faulty == set()


def test_what_moves_while_a_piece_is_read_is_left_alone(filled: Any) -> None:
    scrub = Scrubber(filled.store, bytes_per_s=1 << 30, seed=1, now=0, reader=Reader(filled))
    for tick in range(1, 30):
        scrub.tick(tick * S)
        filled.store.truncate(max(filled.store.head - 8, 1))
    assert found(scrub) == {} and filled.store.faulty == set()


def test_a_closed_one_reads_nothing(filled: Any) -> None:
    reader = Reader(filled)
    scrub = Scrubber(filled.store, bytes_per_s=1 << 30, seed=1, now=0, reader=reader)
    scrub.tick(S)
    scrub.close()
    scrub.close()
    assert not scrub.tick(2 * S) and scrub.next_deadline() is None
    assert (scrub.bytes, reader.asked) == (0, 1)


@pytest.fixture
def file_disk(tmp_path: Path) -> Iterator[FileDisk]:
    disk = FileDisk(tmp_path, unsafe=True)
    yield disk
    disk.close()


def scrub_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "km-scrub"]


def test_pieces_are_read_from_files(file_disk: FileDisk) -> None:
    content = random.Random(1).randbytes(40 * SECTOR)
    file = file_disk.create("one", len(content))
    buffer = file_disk.aligned(len(content))
    buffer[:] = content
    file_disk.submit(1, [[Write(file, 0, buffer)]])
    file_disk.flush()
    reader = PieceReader(file_disk)
    assert reader.ask([Extent("one", file, 2 * SECTOR, 35 * SECTOR)])
    file_disk.release(file)  # it reads on
    before = file_disk.read_bytes
    [part] = wait_for(reader).parts.values()
    assert file_disk.read_bytes - before == 35 * SECTOR and file_disk.reads == 3
    assert bytes(part.read(0, 3 * SECTOR + 7, 100)) == content[3 * SECTOR + 7 :][:100]
    for offset, length in ((SECTOR, 10), (37 * SECTOR - 5, 10)):
        with pytest.raises(OSError, match="not in this piece"):
            part.read(0, offset, length)
    reader.close()
    [thread] = scrub_threads() or [threading.current_thread()]
    if thread is not threading.current_thread():
        thread.join(10)
    assert not scrub_threads()


def wait_for(reader: PieceReader) -> Piece:
    assert reader._piece is not None
    assert reader._piece.ended.wait(10)
    piece = reader.take()
    assert piece is not None and not reader.is_busy
    return piece


def test_a_disk_that_hangs_holds_one_thread_until_it_answers(
    file_disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_disk.create("one", 4 * SECTOR)
    answers, is_asked = threading.Event(), threading.Event()

    def hang(*_: object) -> int:
        is_asked.set()
        assert answers.wait(10)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", hang)
    before = len(os.listdir("/proc/self/fd"))
    reader = PieceReader(file_disk)
    extent = Extent("one", file, 0, 4 * SECTOR)
    assert reader.ask([extent])
    assert is_asked.wait(10)
    for _ in range(3):
        assert reader.is_busy and reader.take() is None and not reader.ask([extent])
    [thread] = scrub_threads()
    reader.close()
    reader.close()
    assert not reader.ask([extent]) and thread.is_alive()
    answers.set()
    thread.join(10)
    assert not thread.is_alive() and len(os.listdir("/proc/self/fd")) == before
