"""Each kind of fault changes something when it is counted, and is not counted when it changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kimberlite.vopr.faults import KINDS
from kimberlite.vopr.plan import MS, draw
from kimberlite.vopr.world import World

CALM = replace(
    draw(3),
    replica_count=3,
    client_count=2,
    requests=40,
    weights={},
    loss=0.0,
    duplication=0.0,
    reorder=0.0,
    corruption=0.0,
    replay=0.0,
    latency_ns=100_000,
    disk_latency_ns=100_000,
    clock_skew_ns=0,
)


def busy(count: int = 3, clients: int = 2) -> World:
    """A cluster without any faults, in the middle of its work."""
    world = World(replace(CALM, replica_count=count, client_count=clients), faults=())
    for client in world.clients:
        world.at(world.now, client.begin)
    assert world.run_until(world.now + 5000 * MS, lambda: world.checkers.decided >= 10)
    return world


def counted(world: World, kind: str, argument: int) -> bool:
    before = len(world.injected)
    world.inject(kind, argument)
    assert world.counts.get(f"FAULT_{kind}", 0) == sum(name == kind for _, name, _ in world.injected)
    return len(world.injected) > before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("heal", "restart", "disk_space", "trim")])
def test_a_fault_strikes_a_cluster_at_work(kind: str) -> None:
    world = busy()
    assert any(counted(world, kind, argument) for argument in range(1, 8))


@pytest.mark.parametrize(
    ("fault", "argument", "ends"),
    [
        ("crash", 1, "restart"),
        ("crash_all", 0, "restart"),
        ("isolate", 2, "heal"),
        ("partition", 1, "heal"),
        ("one_way", 1, "heal"),
        ("clog", 301, "heal"),
        ("disk_full", 1, "disk_space"),
        ("disk_full_all", 0, "disk_space"),
    ],
)
def test_a_fault_that_is_there_already_is_not_counted_nor_is_the_end_of_none(
    fault: str, argument: int, ends: str
) -> None:
    world = busy()
    assert not counted(world, ends, 0)
    assert counted(world, fault, argument)
    assert not counted(world, fault, argument)
    assert counted(world, ends, 0)
    assert not counted(world, ends, 0)


@pytest.mark.parametrize("kind", ["pause", "crash_writing", "crash_promising", "sync_error", "clock_jump", "hostile"])
def test_nothing_happens_to_who_is_down(kind: str) -> None:
    world = busy()
    world.crash(1)
    assert not counted(world, kind, 3001)


@pytest.mark.parametrize("kind", ["one_way", "clog", "isolate", "partition", "bit_rot", "foreign", "hostile"])
def test_a_replica_alone_has_no_peers(kind: str) -> None:
    world = busy(count=1)
    assert not any(counted(world, kind, argument) for argument in range(100, 110))


def test_a_cut_is_from_one_replica_to_another() -> None:
    world = busy()
    for argument in range(100):
        world.network.heal()
        assert counted(world, "one_way", argument)
        ((source, target),) = world.network.cuts
        assert source != target


def test_a_pause_does_not_end_a_longer_one() -> None:
    world = busy()
    assert counted(world, "pause", 3 * 400)  # 1200 ms
    assert not counted(world, "pause", 3 * 100)
    assert world.nodes[0].paused_until == world.now + 1200 * MS


def test_no_fault_is_carried_out_after_the_faults_have_ended() -> None:
    world = busy()
    world.network.faults_on = False
    assert not any(counted(world, kind, 1) for kind in KINDS)


def test_a_trim_that_can_not_be_is_not_counted() -> None:
    world = busy()
    assert not any(counted(world, "trim", argument) for argument in range(5))
