"""I25, I26: one log of a view, and what a replica believes of its disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calm import calm
from lab import core_of

from kimberlite.vopr import logs
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.nodes import SimNode
from kimberlite.vopr.plan import MS
from kimberlite.vopr.world import World

PLAN = calm(client_count=4, requests=200, latency_ns=5 * MS, disk_latency_ns=3 * MS)


def backup_at_work() -> tuple[World, SimNode]:
    world = World(replace(PLAN, replica_count=3, checkpoint_ops=4096), faults=())
    for client in world.clients:
        world.at(world.now, client.begin)
    assert world.run_until(world.now + 5000 * MS, lambda: world.checkers.decided > 20)
    node = max(
        (node for node in world.nodes if not core_of(node).is_primary), key=lambda node: core_of(node).log.durable
    )
    logs.check_kept(world, node)
    return world, node


def another_entry(node: SimNode) -> None:
    log = node.driver.core.state.log
    log.headers[log.linked] = log.headers[log.linked - 1]


def test_two_logs_of_one_view_are_noticed() -> None:
    world, node = backup_at_work()
    log = node.driver.core.state.log
    world.logs.on_linked(world, node.index, 1, log, log.linked)
    another_entry(node)
    with pytest.raises(Violation, match=r"I25 one log: in view 1 op \d+ is"):
        world.logs.on_linked(world, node.index, 1, log, log.linked)


def test_another_entry_than_the_committed_one_is_noticed() -> None:
    world, node = backup_at_work()
    log = node.driver.core.state.log
    op = log.committed
    log.headers[op] = log.headers[op - 1]
    with pytest.raises(Violation, match=f"op {op} is .* committed is"):
        world.logs.on_linked(world, node.index, 99, log, op)


def test_what_was_acknowledged_is_not_absent() -> None:
    world, node = backup_at_work()
    node.driver.core.state.log.durable -= 3
    with pytest.raises(Violation, match=r"I26 on disk: replica \d has acknowledged op \d+, and believes it absent"):
        logs.check_kept(world, node)


def test_what_counts_as_written_is_there() -> None:
    world, node = backup_at_work()
    log = node.driver.core.state.log
    for name in [name for name in world.files[node.index].durable if name.startswith("journal")]:
        world.files[node.index].durable[name][:] = bytes(len(world.files[node.index].durable[name]))
    log.on_disk.add(log.durable)
    with pytest.raises(Violation, match="counts as written on replica"):
        logs.check_kept(world, node)


def test_a_promise_does_not_name_what_is_not_here() -> None:
    world, node = backup_at_work()
    base = node.driver.core.state.log.durable
    logs.check_base(world, node, base)
    for content in world.files[node.index].durable.values():
        content[:] = bytes(len(content))
    with pytest.raises(Violation, match=f"promises to have what is up to op {base}, not op"):
        logs.check_base(world, node, base)
