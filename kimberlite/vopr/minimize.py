"""Make a failing run small: fewer faults, a milder network, less work, the same broken invariant.

Delta debugging (Zeller and Hildebrandt, 2002) on the list of injected faults. Every candidate is a
run of its own; it counts when the same check fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kimberlite.errors import UsageError
from kimberlite.vopr.run import Outcome, Script, run

T = TypeVar("T")

RUNS_MAX = 400
# Faults of messages and clocks come from the plan, not from the list: try without each.
QUIET: dict[str, int | float] = {
    "replay": 0.0,
    "corruption": 0.0,
    "duplication": 0.0,
    "reorder": 0.0,
    "loss": 0.0,
    "garbage": 0.0,
    "clock_skew_ns": 0,
}


@dataclass(frozen=True, slots=True)
class Minimal:
    """script: the small run. before: how many faults the run had as drawn. runs: how many were tried."""

    script: Script
    outcome: Outcome
    before: int
    runs: int


def shrink(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """A part of `items`, in order, that still fails and from which no single item can be taken.

    `fails(items)` must be true. Cost: O(n log n) calls when few items matter, O(n^2) at worst.
    """
    kept = list(items)
    if fails([]):
        return []
    parts = 2
    while len(kept) >= 2:
        size = (len(kept) + parts - 1) // parts
        chunks = [kept[at : at + size] for at in range(0, len(kept), size)]
        for index in range(len(chunks)):
            rest = [item for other, chunk in enumerate(chunks) if other != index for item in chunk]
            if fails(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return kept


def minimize(
    script: Script, *, runs_max: int = RUNS_MAX, progress: Callable[[int, int], None] | None = None
) -> Minimal:
    """The smallest run found within `runs_max` runs. progress(runs, faults) is called after each.

    Raises UsageError when the run breaks nothing.
    """
    first = run(script)
    if not first.check:
        raise UsageError(f"seed {script.seed} breaks nothing with {script.requests} requests: nothing to minimize")
    runs = 1
    best = (replace(script, faults=first.faults), first)

    def fails(candidate: Script) -> bool:
        nonlocal runs, best
        if runs >= runs_max:
            return False
        outcome = run(candidate)
        runs += 1
        if outcome.check == first.check:
            # Faults after the violation never happened: the list of those that did is as good, and shorter.
            best = (replace(candidate, faults=outcome.faults), outcome)
        if progress is not None:
            progress(runs, len(best[0].faults or ()))
        return outcome.check == first.check

    def quieter() -> None:
        for name, value in QUIET.items():
            if getattr(best[0].plan(), name):
                fails(replace(best[0], overrides={**best[0].overrides, name: value}))

    quieter()
    shrink(best[0].faults or (), lambda faults: fails(replace(best[0], faults=tuple(faults))))
    while best[0].requests > 1 and fails(replace(best[0], requests=best[0].requests // 2)):
        pass
    quieter()
    shrink(best[0].faults or (), lambda faults: fails(replace(best[0], faults=tuple(faults))))
    return Minimal(*best, before=len(first.faults), runs=runs)
