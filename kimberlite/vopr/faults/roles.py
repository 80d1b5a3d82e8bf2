"""Faults aimed at who has a role at the moment."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from kimberlite.vopr.disk import PROMISE, WRITE
from kimberlite.vopr.faults.registry import SELDOM, Action, kind
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World


STRIKES = ("crash", "crash writing", "pause", "isolate", "silence", "deafen", "stall")
STRIKE_NS = 1500 * MS
STRIKE_DELAY_NS = 3 * MS


def _strike(world: World, index: int, how: str) -> None:
    """Now is the moment for a replica to fail."""
    if not world.network.faults_on or not world.nodes[index].up:
        return
    others = [other for other in range(world.plan.replica_count) if other != index]
    world.trace.add(world.now, "strike", how, index)
    world.counts[f"STRIKE_{how.replace(' ', '_')}"] = world.counts.get(f"STRIKE_{how.replace(' ', '_')}", 0) + 1
    if how == "crash":
        world.crash(index)
    elif how == "crash writing":
        world.doomed[index] = ""
    elif how == "pause":
        world.pause(index, world.now + STRIKE_NS)
    elif how == "stall":
        world.hang(index, (WRITE, PROMISE), world.now + STRIKE_NS)
    if how in ("isolate", "silence"):
        world.network.cuts.update((index, other) for other in others)
    if how in ("isolate", "deafen"):
        world.network.cuts.update((other, index) for other in others)


@kind(share=SELDOM)
def _strike_primary(world: World, argument: int) -> Action | None:
    """The primary fails while it has prepares under way; in half of the cases its successor too, while the view
    changes."""
    if world.ambushes:
        return None
    random = Random(argument)
    first, second, follows = random.choice(STRIKES), random.choice(STRIKES), random.random() < 0.5
    delays = random.randrange(STRIKE_DELAY_NS), random.randrange(20 * STRIKE_DELAY_NS)

    def primary_is_busy(node: SimNode) -> bool:
        core = node.driver.core
        if core.leading is None or not core.leading.ready or not core.leading.pipeline:
            return False
        world.at(world.now + delays[0], lambda: _strike(world, node.index, first))
        if follows:
            world.ambushes.append(partial(view_is_left, core.state.view))
        return True

    def view_is_left(view: int, node: SimNode) -> bool:
        state = node.driver.core.state
        if state.view <= view:
            return False
        successor = state.membership.leader(state.view)
        world.at(world.now + delays[1], lambda: _strike(world, successor, second))
        return True

    return partial(world.ambushes.append, primary_is_busy)


def _leader(world: World) -> SimNode | None:
    """Who leads the newest view, as far as it goes."""
    leading = [node for node in world.nodes if node.up and _is_ready(node)]
    return max(leading, key=lambda node: node.driver.core.state.view, default=None)


def _is_ready(node: SimNode) -> bool:
    leading = node.driver.core.leading
    return leading is not None and leading.ready


ALARM_NS = 900 * MS  # longer than a silent primary is waited for


@kind(share=SELDOM)
def _false_alarm(world: World, argument: int) -> Action | None:
    """One backup does not hear the primary for a while, and then does again; in half of the cases the primary fails
    soon after, and what the backup did for nothing the first time has to be done now."""
    leader = _leader(world)
    if leader is None or world.plan.replica_count == 1:
        return None
    random = Random(argument)
    link = leader.index, random.choice([index for index in range(world.plan.replica_count) if index != leader.index])
    if link in world.network.cuts:
        return None
    heard_at = world.now + ALARM_NS // 2 + random.randrange(ALARM_NS // 2)
    how = random.choice(STRIKES) if random.random() < 0.5 else None

    def begin() -> None:
        world.network.cuts.add(link)
        world.at(heard_at, lambda: world.network.cuts.discard(link))
        if how is not None:
            world.at(heard_at + random.randrange(ALARM_NS // 2), lambda: _strike(world, leader.index, how))

    return begin


@kind(share=SELDOM)
def _step_down(world: World, argument: int) -> Action | None:
    """The primary is told to ask for another one."""
    leader = _leader(world)
    return partial(_ask_to_step_down, world, leader) if leader is not None else None


def _ask_to_step_down(world: World, node: SimNode) -> None:
    world.act(node.index, node.life, node.driver.step_down)


VIEWS = (3, 12, 40)
VIEWS_NS_MAX = 8000 * MS


@kind(share=SELDOM)
def _restless(world: World, argument: int) -> Action | None:
    """Views change one after another: who begins to lead steps down. In half of the cases a disk hangs meanwhile."""
    if world.ambushes or world.plan.replica_count == 1:
        return None
    random = Random(argument)
    left, until = random.choice(VIEWS), world.now + VIEWS_NS_MAX
    victim = random.randrange(world.plan.replica_count) if random.random() < 0.5 else None
    last = -1  # the last view that was left

    def leads(node: SimNode) -> bool:
        nonlocal left, last
        view = node.driver.core.state.view
        if view > last and _is_ready(node):
            left, last = left - 1, view
            world.at(world.now + random.randrange(STRIKE_DELAY_NS), lambda: _ask_to_step_down(world, node))
        return left <= 0 or world.now > until

    def begin() -> None:
        world.ambushes.append(leads)
        if victim is not None:
            world.hang(victim, random.choice(((WRITE, PROMISE), (PROMISE,))), until)

    return begin


SUCCESSOR_NS = 4000 * MS


@kind(share=SELDOM)
def _successor_hangs(world: World, argument: int) -> Action | None:
    """The primary steps down or fails, and the disk of its successor stops just as that begins to lead."""
    leader = _leader(world)
    if world.ambushes or leader is None or world.plan.replica_count == 1:
        return None
    random = Random(argument)
    how, operations = random.choice((*STRIKES, None, None)), random.choice(((WRITE, PROMISE), (WRITE,), (PROMISE,)))
    view = leader.driver.core.state.view

    def leads(node: SimNode) -> bool:
        state = node.driver.core.state
        if state.view <= view or not state.is_primary:
            return False
        world.hang(node.index, operations, world.now + random.randrange(SUCCESSOR_NS))
        return True

    def begin() -> None:
        world.ambushes.append(leads)
        if how is None:
            _ask_to_step_down(world, leader)
        else:
            _strike(world, leader.index, how)

    return begin
