"""The store as the simulator runs it: a scrubber is told again what it was told, until something may be wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kimberlite.errors import WriteFailedError
from kimberlite.storage.journal import journal_name, witness_name
from kimberlite.storage.scrub import Damage
from kimberlite.types import SECTOR
from kimberlite.vopr.disk import corrupt, make_unreadable
from kimberlite.vopr.observed import ObservedStore
from kimberlite.vopr.plan import draw
from kimberlite.vopr.world import SimNode, World

ENTRY_OP = 5


@pytest.fixture
def quiet() -> tuple[World, SimNode]:
    """A cluster of one that has appended twenty times, and does nothing any more."""
    plan = replace(draw(22), replica_count=1, requests=20, event_bytes=8, segment_bytes=64 << 10, checkpoint_ops=1000)
    world = World(replace(plan, persistent="", late_ops=0), faults=())
    world.run()
    return world, world.nodes[0]


def place(store: ObservedStore, op: int) -> tuple[int, int]:
    number, _, _, offset = store.place_of(op)
    assert offset is not None
    return number, offset


def test_a_good_entry_is_read_once(quiet: tuple[World, SimNode], monkeypatch: pytest.MonkeyPatch) -> None:
    store = quiet[1].store
    first = store.check_entry(ENTRY_OP)
    assert first.bytes == 2 * SECTOR and not first.damage
    monkeypatch.setattr(type(quiet[1].disk), "read", lambda *_: pytest.fail("it is read again"))
    assert store.check_entry(ENTRY_OP) == first


def test_damage_of_a_good_entry_is_found(quiet: tuple[World, SimNode]) -> None:
    world, node = quiet
    node.store.check_entry(ENTRY_OP)
    number, offset = place(node.store, ENTRY_OP)
    corrupt(world.files[0], journal_name(number), offset + 300, 1, world.faults)
    assert node.store.check_entry(ENTRY_OP).damage == (Damage.ENTRY,)
    assert node.store.check_entry(ENTRY_OP).bytes == 0  # it is known, and waits for its repair


def test_an_unreadable_sector_of_a_good_entry_is_found(quiet: tuple[World, SimNode]) -> None:
    world, node = quiet
    node.store.check_entry(ENTRY_OP)
    number, offset = place(node.store, ENTRY_OP)
    make_unreadable(world.files[0], journal_name(number), offset // SECTOR)
    assert node.store.check_entry(ENTRY_OP).damage == (Damage.ENTRY,)


def test_damage_of_the_witness_of_a_good_entry_is_found(quiet: tuple[World, SimNode]) -> None:
    world, node = quiet
    node.store.check_entry(ENTRY_OP)
    number, index, _, _ = node.store.place_of(ENTRY_OP)
    corrupt(world.files[0], witness_name(number), index * 512 + 10, 1, world.faults)
    assert node.store.check_entry(ENTRY_OP).damage == (Damage.WITNESS,)


def test_a_slow_disk_is_read_for_the_time_that_it_takes(quiet: tuple[World, SimNode]) -> None:
    node = quiet[1]
    node.store.check_entry(ENTRY_OP)
    node.disk.device.slow["read"] = 10
    node.store.check_entry(ENTRY_OP)
    assert node.disk.device.waited_ns > 0


def test_an_entry_stays_good_while_others_are_written_around_it(
    quiet: tuple[World, SimNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, node = quiet
    first = node.store.check_entry(ENTRY_OP)
    number, _ = place(node.store, ENTRY_OP)
    world.files[0].changed(journal_name(number))
    monkeypatch.setattr(type(node.disk), "read", lambda *_: pytest.fail("it is read again"))
    assert node.store.check_entry(ENTRY_OP) == first


def test_damage_of_a_good_copy_of_the_superblock_is_found(quiet: tuple[World, SimNode]) -> None:
    world, node = quiet
    assert not node.store.check_superblock(2).damage
    assert not node.store.check_superblock(2).damage
    corrupt(world.files[0], "superblock", 2 * 16384 + 200, 1, world.faults)
    assert node.store.check_superblock(2).damage == (Damage.SUPERBLOCK,)


def test_what_a_round_has_said_is_heard_although_its_disk_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames leave before anything is written: a backup knew of a commit that no primary had told of."""
    plan = replace(draw(22), replica_count=1, requests=20, event_bytes=8, weights={}, persistent="", late_ops=0)
    world = World(plan, faults=())
    heard: list[object] = []
    driver = world.nodes[0].driver
    monkeypatch.setattr(driver.recorder, "record", heard.extend)

    def fail(persist: object) -> None:
        raise WriteFailedError("the disk has failed")

    monkeypatch.setattr(driver, "_persist", fail)
    world.run_until(world.now + 10_000_000_000, lambda: not world.nodes[0].up)
    assert not world.nodes[0].up and heard
    assert driver.core.round is None
