"""What befalls processes: crashes, restarts, pauses."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from kimberlite.storage.ring import NAME as RING
from kimberlite.vopr.faults.registry import Action, each_of, kind, target_of
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.world import World


@kind()
def _crash(world: World, argument: int) -> Action | None:
    target = target_of(world, argument)
    return partial(world.crash, target) if world.nodes[target].up else None


def _doom(world: World, argument: int, file: str) -> Action | None:
    """Crash in the middle of the next write to that file."""
    target = target_of(world, argument)
    if not world.nodes[target].up or world.doomed[target] == file:
        return None
    return partial(world.doomed.__setitem__, target, file)


@kind()
def _crash_writing(world: World, argument: int) -> Action | None:
    return _doom(world, argument, "")


@kind()
def _crash_promising(world: World, argument: int) -> Action | None:
    return _doom(world, argument, "superblock")


@kind()
def _crash_acknowledging(world: World, argument: int) -> Action | None:
    """Only a replica that has a ring."""
    return _doom(world, argument, RING) if RING in world.files[target_of(world, argument)].durable else None


@kind()
def _crash_all(world: World, argument: int) -> Action | None:
    return each_of(world.crash, [node.index for node in world.nodes if node.up])


@kind(floor=0.6)
def _restart(world: World, argument: int) -> Action | None:
    return each_of(world.restart, [node.index for node in world.nodes if world.can_start(node.index)])


@kind()
def _pause(world: World, argument: int) -> Action | None:
    target = target_of(world, argument)
    node = world.nodes[target]
    until = world.now + (argument % 1500) * MS
    return partial(world.pause, target, until) if node.up and until > node.paused_until else None
