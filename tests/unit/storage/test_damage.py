"""Damage beyond what vopr.corruption enumerates: several faults at once, and damage after the start.

Nothing that is damaged is served, and nothing that was acknowledged is ever called absent.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, journal_name, witness_name
from kimberlite.types import EntryState
from kimberlite.vopr import corruption
from kimberlite.vopr.corruption import Specimen
from kimberlite.vopr.disk import corrupt

JOURNAL, WITNESS = journal_name(0), witness_name(0)


@pytest.fixture(scope="module")
def small() -> Specimen:
    return corruption.small()


SECTORS = 6


@pytest.mark.parametrize("seed", range(300))
def test_damage_to_an_entry_and_elsewhere_is_never_served(kit: Any, small: Specimen, seed: int) -> None:
    """More than one fault: availability may suffer, never the truth."""
    rng = random.Random(seed)
    image = kit.copied(small.files)
    for _ in range(rng.randrange(1, 6)):
        name = rng.choice([JOURNAL, JOURNAL, WITNESS])
        span = SECTORS * SECTOR if name == JOURNAL else len(small.entries) * RECORD_BYTES
        corrupt(image, name, rng.randrange(span), rng.choice([1, 16, 512, 4096]), rng)
    bench = kit.open(image)
    for message in small.entries:
        for read in (bench.store.read(message.header.op), bench.store.read(message.header.op, message.header.checksum)):
            assert read is None or read.body == message.body
    states = {entry.op: entry.state for entry in bench.recovered.entries}
    for op, state in states.items():
        if state is EntryState.ABSENT:
            raise AssertionError(f"op {op} was acknowledged and is called absent")


# Damage after the start: found when it is read


def test_what_is_damaged_later_is_not_served_either(kit: Any, small: Specimen) -> None:
    for at in range(0, SECTORS * SECTOR, 37):
        bench = kit.open(kit.copied(small.files))
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
