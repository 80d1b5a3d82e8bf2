"""Damage by enumeration: bits, sectors and whole ranges of a small replica altered; each is detected or harmless.

Harmless: every acknowledged entry is still served as it was, and every promise stands. Detected: an error that
names what is wrong, or the entry is faulty (to be repaired), never absent, and its bytes are not served.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest

from kimberlite.errors import DataMissingError, SuperblockError
from kimberlite.storage import superblock
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, journal_name, witness_name
from kimberlite.types import EntryState, Message, ViewState
from kimberlite.vopr.disk import Files, corrupt, make_unreadable

JOURNAL, WITNESS = journal_name(0), witness_name(0)


@dataclass
class Small:
    """Four acknowledged entries, six sectors, a view entered; what the disk held before is kept."""

    kit: Any
    files: Files
    history: list[Files]
    entries: list[Message]
    state: ViewState

    def check(self, image: Files) -> set[int]:
        """The ops found faulty."""
        bench = self.kit.open(image)
        recovered, store = bench.recovered, bench.store
        assert recovered.view_state == self.state
        assert recovered.head >= len(self.entries), "an acknowledged entry was taken for absent"
        states = {entry.op: entry.state for entry in recovered.entries}
        for message in self.entries:
            op = message.header.op
            read = store.read(op, message.header.checksum)
            if read is None:
                assert states.get(op) is EntryState.FAULTY, "what is not served is known to be damaged"
            else:
                assert read.header == message.header
                assert read.body == message.body
            served = store.read(op)
            assert served is None or served.body == message.body
            header = store.header(op)
            assert header is None or header == message.header
        assert recovered.head == len(self.entries), "nothing was ever written above"
        return {op for op, state in states.items() if state is not EntryState.PRESENT}


@pytest.fixture(scope="module")
def small(kit: Any) -> Small:
    bench = kit.fresh()
    history = [kit.copied(bench.files)]
    void = kit.chain([700, 3000], view=0, salt=9)
    bench.append(void)
    history.append(kit.copied(bench.files))
    entries = kit.chain([100, 9000, 0, 300], view=1)
    state = ViewState(1, 1, base=0, suffix_head=0, suffix=(kit.root,))
    bench.promise(state)
    bench.store.truncate(0)
    history.append(kit.copied(bench.files))
    for message in entries:
        bench.append([message])
        history.append(kit.copied(bench.files))
    return Small(kit, bench.files, history[:-1], entries, state)


SECTORS = 6


def test_undamaged_it_is_whole(small: Small) -> None:
    assert small.check(small.kit.copied(small.files)) == set()


def test_every_byte_of_the_journal(small: Small) -> None:
    faulty_ops: set[int] = set()
    for at in range(SECTORS * SECTOR):
        # Every byte of headers, every 32nd of bodies and padding.
        if at % SECTOR >= 300 and at % 32:
            continue
        image = small.kit.copied(small.files)
        image.durable[JOURNAL][at] ^= 1 << (at * 5 + at // 8) % 8
        faulty = small.check(image)
        assert len(faulty) == 1, at
        faulty_ops |= faulty
    assert faulty_ops == {1, 2, 3, 4}


def test_every_byte_of_the_witnesses(small: Small) -> None:
    for at in range(len(small.entries) * RECORD_BYTES + 64):
        image = small.kit.copied(small.files)
        image.durable[WITNESS][at] ^= 1 << (at * 3 + at // 8) % 8
        assert small.check(image) == set(), at  # the entries are whole
        if at < len(small.entries) * RECORD_BYTES:
            assert image.durable[WITNESS] == small.files.durable[WITNESS], "opening writes the witness again"


def test_every_byte_of_every_superblock_copy(small: Small) -> None:
    used = 152 + 256
    for copy in range(superblock.COPIES):
        for at in [*range(0, used + 8, 2), *range(used + 9, superblock.COPY_BYTES, 301)]:
            image = small.kit.copied(small.files)
            image.durable[superblock.NAME][copy * superblock.COPY_BYTES + at] ^= 1 << at % 8
            assert small.check(image) == set()
            assert image.durable[superblock.NAME] == small.files.durable[superblock.NAME], "repaired at open"


@pytest.mark.parametrize("fill", [0x00, 0xFF])
def test_every_sector_wiped(small: Small, fill: int) -> None:
    for name in (JOURNAL, WITNESS):
        for sector in range(SECTORS + 1 if name == JOURNAL else 2):
            image = small.kit.copied(small.files)
            image.durable[name][sector * SECTOR : (sector + 1) * SECTOR] = bytes([fill]) * SECTOR
            faulty = small.check(image)
            assert len(faulty) == int(name == JOURNAL and sector < SECTORS)


def test_every_sector_unreadable(small: Small) -> None:
    for name in (JOURNAL, WITNESS):
        for sector in range(SECTORS if name == JOURNAL else 2):
            image = small.kit.copied(small.files)
            make_unreadable(image, name, sector)
            faulty = small.check(image)
            assert len(faulty) == int(name == JOURNAL)


def test_every_two_sectors_swapped(small: Small) -> None:
    for left, right in itertools.combinations(range(SECTORS + 2), 2):
        image = small.kit.copied(small.files)
        journal = image.durable[JOURNAL]
        a, b = slice(left * SECTOR, (left + 1) * SECTOR), slice(right * SECTOR, (right + 1) * SECTOR)
        journal[a], journal[b] = journal[b], journal[a]
        faulty = small.check(image)
        assert bool(faulty) == (journal != small.files.durable[JOURNAL])


def test_every_sector_written_to_the_place_of_another(small: Small) -> None:
    """Misdirected writes, between the files too."""
    for source, target in itertools.product([(JOURNAL, n) for n in range(SECTORS)] + [(WITNESS, 0)], repeat=2):
        image = small.kit.copied(small.files)
        name, sector = source
        data = small.files.durable[name][sector * SECTOR : (sector + 1) * SECTOR]
        name, sector = target
        image.durable[name][sector * SECTOR : (sector + 1) * SECTOR] = data
        small.check(image)


def test_every_sector_rolled_back(small: Small) -> None:
    """Lost writes: a sector as it was at an earlier time."""
    for old in small.history:
        for name in (JOURNAL, WITNESS):
            for sector in range(SECTORS if name == JOURNAL else 1):
                image = small.kit.copied(small.files)
                at = slice(sector * SECTOR, (sector + 1) * SECTOR)
                image.durable[name][at] = old.durable[name][at]
                faulty = small.check(image)
                changed = image.durable[name][at] != small.files.durable[name][at]
                assert len(faulty) == int(name == JOURNAL and changed)


def test_every_superblock_copy_rolled_back(small: Small) -> None:
    for old in small.history:
        for copy in range(superblock.COPIES):
            at = slice(copy * superblock.COPY_BYTES, (copy + 1) * superblock.COPY_BYTES)
            image = small.kit.copied(small.files)
            image.durable[superblock.NAME][at] = old.durable[superblock.NAME][at]
            assert small.check(image) == set()


@pytest.mark.parametrize("name", [JOURNAL, WITNESS, superblock.NAME])
def test_a_file_cut_anywhere(small: Small, name: str) -> None:
    """Preallocated files never shrink by themselves; one that did is noticed, or nothing of it was needed."""
    size = len(small.files.durable[name])
    detected = 0
    for length in sorted({*range(0, min(size, (SECTORS + 1) * SECTOR), 256), *range(0, size, 2048), 1, size - 1}):
        image = small.kit.copied(small.files)
        del image.durable[name][length:]
        try:
            faulty = small.check(image)
        except (SuperblockError, DataMissingError):
            detected += 1
        else:
            detected += bool(faulty)
    assert bool(detected) == (name != WITNESS), "entries that are whole need no witness"


@pytest.mark.parametrize("seed", range(300))
def test_damage_to_an_entry_and_elsewhere_is_never_served(small: Small, seed: int) -> None:
    """More than one fault: availability may suffer, never the truth."""
    rng = random.Random(seed)
    image = small.kit.copied(small.files)
    for _ in range(rng.randrange(1, 6)):
        name = rng.choice([JOURNAL, JOURNAL, WITNESS])
        span = SECTORS * SECTOR if name == JOURNAL else len(small.entries) * RECORD_BYTES
        corrupt(image, name, rng.randrange(span), rng.choice([1, 16, 512, 4096]), rng)
    bench = small.kit.open(image)
    for message in small.entries:
        for read in (bench.store.read(message.header.op), bench.store.read(message.header.op, message.header.checksum)):
            assert read is None or read.body == message.body
    states = {entry.op: entry.state for entry in bench.recovered.entries}
    for op, state in states.items():
        if state is EntryState.ABSENT:
            raise AssertionError(f"op {op} was acknowledged and is called absent")


# Damage after the start: found when it is read


def test_what_is_damaged_later_is_not_served_either(small: Small) -> None:
    for at in range(0, SECTORS * SECTOR, 37):
        bench = small.kit.open(small.kit.copied(small.files))
        bench.files.durable[JOURNAL][at] ^= 0x10
        faulty = set()
        for message in small.entries:
            read = bench.store.read(message.header.op)
            if read is None:
                faulty.add(message.header.op)
            else:
                assert read.body == message.body
        assert len(faulty) == 1
        assert bench.store.faulty == faulty
