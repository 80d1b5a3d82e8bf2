"""Retention and snapshots in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calm import calm
from lab import core_of

from kimberlite.vopr.canaries import planted
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.plan import MS, Plan
from kimberlite.vopr.world import World

HOUR_NS = 3_600_000 * MS
CALM = calm(
    client_count=4,
    requests=300,
    segment_bytes=64 << 10,
    event_bytes=9000,
    checkpoint_ops=4,
    clock_skew_ns=0,
    snapshot_ns=0,
    retention_age_s=0,
    retention_bytes=0,
)


def at_work(plan: Plan, ms: int) -> World:
    world = World(plan, faults=())
    for client in world.clients:
        world.at(world.now, client.begin)
    world.run_until(world.now + ms * MS, lambda: False)
    return world


def test_the_log_is_trimmed_by_its_size() -> None:
    world = at_work(replace(CALM, retention_bytes=100_000), 8000)
    assert world.counts["RETENTION_bytes"] > 1
    assert all(node.store.first_op > 1 for node in world.nodes)


def test_the_log_is_trimmed_by_the_age_of_its_events_and_not_before() -> None:
    plan = replace(CALM, retention_age_s=3)
    assert "RETENTION_age" not in at_work(plan, 2900).counts
    world = at_work(plan, 6000)
    assert "RETENTION_age" not in world.counts, "nothing is appended any more: the log's own time stands still"


def test_a_clock_that_steps_hours_ahead_trims_nothing() -> None:
    """On a single replica, which has no other clock to go by."""
    world = at_work(replace(CALM, replica_count=1, requests=3000, retention_age_s=5), 500)
    world.set_clock(0, 5 * HOUR_NS)
    assert world.clock_error_ns == 0
    world.run_until(world.now + 3000 * MS, lambda: False)
    assert "RETENTION_age" not in world.counts
    with planted("clock-believed-after-a-jump"), pytest.raises(Violation, match="I22 retention"):
        world.run_until(world.now + 1500 * MS, lambda: False)


def test_a_replica_that_starts_under_a_wrong_clock_trims_nothing() -> None:
    """It appends as primary: its clock and the log agree, and nothing has jumped since its start."""
    world = at_work(replace(CALM, requests=3000, retention_age_s=5), 500)
    world.set_clock(0, 5 * HOUR_NS)
    world.crash(0)
    world.restart(0)
    while not core_of(world.nodes[0]).is_primary:
        for node in world.nodes[1:]:
            if core_of(node).is_primary:
                world.pause(node.index, world.now + 500 * MS)
        world.run_until(world.now + 500 * MS, lambda: False)
    world.run_until(max(world.now, 3500 * MS), lambda: False)
    assert "RETENTION_age" not in world.counts
    with planted("age-by-the-furthest-clock"), pytest.raises(Violation, match="I22 retention"):
        world.run_until(world.now + 1500 * MS, lambda: False)


def test_a_snapshot_takes_time_and_the_checkpoint_is_of_its_beginning() -> None:
    at_once, later = (at_work(replace(CALM, snapshot_ns=ns), 3000) for ns in (0, 1000 * MS))
    assert 0 < later.counts["CHECKPOINTED"] < at_once.counts["CHECKPOINTED"]
    index = next(node.index for node in later.nodes if not core_of(node).is_primary)
    later.crash(index)
    later.restart(index)
    later.run_until(later.now + 3000 * MS, lambda: False)
    assert core_of(later.nodes[index]).applied == later.checkers.decided
