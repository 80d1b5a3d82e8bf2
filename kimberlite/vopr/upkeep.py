"""What a replica does beside its core, in virtual time: snapshots that take a while, retention.

The node does both (node/node.py); here they are in the hands of the world's queue. Retention by age is checked
against the true time: no segment goes that holds an event younger than the limit, whatever clocks say (check I22).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from kimberlite.node.clock import Clock
from kimberlite.node.driver import Background
from kimberlite.node.retention import Retention, Times
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.plan import EPOCH_NS, MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World

RETENTION_NS = 250 * MS  # between two looks; the node looks once a second, at limits of hours


def background(world: World, index: int, life: int) -> Background:
    """Where snapshots of a replica are written. At once when the faults have ended: what is asked then is how long
    the rest takes."""

    def write(work: Callable[[], bytes], done: Callable[[bytes], None]) -> None:
        if not world.plan.snapshot_ns or not world.network.faults_on:
            done(work())
            return
        duration = Random(f"snapshot {world.plan.seed} {index} {world.now}").randrange(world.plan.snapshot_ns)
        world.at(world.now + duration, lambda: world.act(index, life, lambda: done(work())))

    return write


def retention(world: World, node: SimNode) -> Retention | None:
    """Of a replica that has just started; None where nothing is ever trimmed by itself."""
    plan = world.plan
    if not plan.retention_bytes and not plan.retention_age_s:
        return None
    wall = world.now + node.driver.core.state.clock.offset
    world.at(world.now + RETENTION_NS, lambda: _look(world, node))
    return Retention(plan.retention_bytes, plan.retention_age_s, Clock(wall, world.now, node.index))


def _look(world: World, node: SimNode) -> None:
    if not node.up or world.nodes[node.index] is not node or not world.network.faults_on:
        return
    world.at(world.now + RETENTION_NS, lambda: _look(world, node))
    world.act(node.index, node.life, lambda: _trim(world, node))


def _trim(world: World, node: SimNode) -> None:
    core = node.driver.core
    if node.retention is None:
        return
    trim = node.retention.look(core, node.store, Times(world.now + core.state.clock.offset, world.now, world.now))
    if trim is None or trim[0] <= core.state.log.first_op:
        return
    if not world.plan.retention_bytes:
        _check_age(world, node, trim[1])
    world.count("RETENTION_bytes" if world.plan.retention_bytes else "RETENTION_age")
    node.driver.trim(*trim)


def _check_age(world: World, node: SimNode, position: int) -> None:
    """The youngest event before `position` was asked for so long ago at least, but for what clocks may be wrong by."""
    if not position:
        return
    client, number, *_ = world.checkers.log[position - 1].split(b"-")
    age = world.now - world.clients[int(client)].history[int(number)].called_at
    least = world.plan.retention_age_s * 1000 * MS - 2 * world.clock_error_ns
    if age < least:
        raise Violation(
            "I22 retention",
            f"replica {node.index} trims what is before position {position}; the event before was appended "
            f"{age // MS} ms ago, the limit is {least // MS} ms; its clock is off by "
            f"{(node.driver.core.state.clock.offset - EPOCH_NS) // MS} ms",
        )
