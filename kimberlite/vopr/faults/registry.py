"""The list of kinds of faults, and on whom they act."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from kimberlite.errors import UsageError
from kimberlite.vsr.config import MS

if TYPE_CHECKING:
    from kimberlite.vopr.world import World

Fault: TypeAlias = tuple[int, str, int]  # virtual nanoseconds, kind, argument
Action: TypeAlias = Callable[[], None]
Aim: TypeAlias = Callable[["World", int], Action | None]

ARGUMENT_END = 1 << 32
START_NS = 1 * MS  # when runs begin
OFTEN, SELDOM, RARELY = 0.7, 0.35, 0.15  # shares of runs; kinds with none are drawn by plans that name them


class Kind(NamedTuple):
    name: str
    aim: Aim
    floor: float = 0.0  # its least weight in plans that are drawn
    share: float = OFTEN  # of the runs that may have it


KINDS: dict[str, Kind] = {}


def kind(floor: float = 0.0, share: float = OFTEN) -> Callable[[Aim], Aim]:
    """Enter a function into the registry, under its own name."""

    def enter(aim: Aim) -> Aim:
        name = aim.__name__.strip("_")
        KINDS[name] = Kind(name, aim, floor, share)
        return aim

    return enter


def check(faults: Iterable[Fault]) -> None:
    """Raises UsageError at a fault that no run can carry out."""
    for when, name, argument in faults:
        if name not in KINDS:
            raise UsageError(f"no fault is called {name!r}; there are {', '.join(KINDS)}")
        if when < START_NS:
            raise UsageError(f"the fault {name!r} is to happen at {when} ns, but a run begins at {START_NS} ns")
        if not 0 <= argument < ARGUMENT_END:
            raise UsageError(f"the argument of the fault {name!r} is {argument}: it is a number from 0 to 2^32 - 1")


# On whom


def target_of(world: World, argument: int) -> int:
    return argument % world.plan.replica_count


def pair_of(world: World, argument: int) -> tuple[int, int] | None:
    """Two replicas; None where there is but one."""
    count = world.plan.replica_count
    if count == 1:
        return None
    target = argument % count
    return target, (target + 1 + argument // count % (count - 1)) % count


def each_of(action: Callable[[int], None], indices: Sequence[int]) -> Action | None:
    """The same to each; nothing when there is nobody."""
    if not indices:
        return None

    def act() -> None:
        for index in indices:
            action(index)

    return act
