"""Metrics in the simulator are what a model says, at every step, and recording them changes nothing of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kimberlite._fast.metrics import HistogramValue
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.nodes import SimNode
from kimberlite.vopr.run import Script, replay_command, run
from kimberlite.vopr.truth import IN_PART, METRICS, MODELLED, Life, RecordedWorld
from kimberlite.vsr.leading import Leading

REQUESTS = 20
MS = 1_000_000


@pytest.mark.parametrize("seed", [2, 24])
def test_a_recorded_run_is_the_same_run(seed: int) -> None:
    plain, recorded = run(Script(seed, REQUESTS)), run(Script(seed, REQUESTS, record=True))
    assert (recorded.check, recorded.violation) == ("", "")
    assert recorded.trace_hash == plain.trace_hash
    assert recorded.labels == plain.labels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "seeds"), [("default", 20), ("crowded", 3), ("grey", 3), ("lying", 3), ("wiped", 3), ("ringed", 20)]
)
def test_every_plan_is_counted_truly(plan: str, seeds: int) -> None:
    """The model does not follow a primary that commits above a hole of its log: later seeds of four plans meet that."""
    for seed in range(seeds):
        assert run(Script(seed, name=plan, record=True)).violation == ""


class Wrong(Life):
    """A replica of which one cell says one too many."""

    __slots__ = ("cell",)

    def values(self) -> dict[str, int | float | HistogramValue]:
        values = Life.values(self)
        value = values[self.cell]
        wrong = replace(value, count=value.count + 1) if isinstance(value, HistogramValue) else value + 1
        return values | {self.cell: wrong}


@pytest.fixture(scope="module")
def moment() -> tuple[RecordedWorld, SimNode]:
    """A primary of three that waits for acknowledgements, and has done this and that before."""
    world = RecordedWorld(Script(0, 200, {"replica_count": 3}).plan(), faults=())
    for client in world.clients:
        world.at(world.now, client.begin)

    def waits(node: SimNode) -> bool:
        role = node.driver.core.state.role
        return isinstance(role, Leading) and bool(role.pipeline) and role.pipeline[0].header.op > 5

    for _ in range(100_000):
        found = [node for node in world.nodes if waits(node)]
        if found:
            return world, found[0]
        world.run_until(world.now + MS // 10, lambda: False)
    raise AssertionError("no primary waits for anything")


@pytest.mark.parametrize("name", sorted(MODELLED))
def test_one_too_many_is_found(name: str, moment: tuple[RecordedWorld, SimNode]) -> None:
    """Of each cell of a metric that is modelled; of one that is modelled in part, of one of its cells."""
    world, node = moment
    life = world.lives[node.index]
    world._check(node, life)
    cells = [cell for cell in life.places if cell.partition("{")[0] == name]
    missed = []
    for cell in cells:
        wrong = Wrong(life.recorder, life.model, life.places, True)
        wrong.cell = cell
        try:
            world._check(node, wrong)
            missed.append(cell)
        except Violation as violation:
            assert violation.name == METRICS
    assert cells and len(missed) < (len(cells) if name in IN_PART else 1), missed


def test_the_replay_of_a_wrong_count_records_too() -> None:
    outcome = replace(run(Script(2, 1)), check=METRICS)
    assert replay_command(outcome, 1) == "kimberlite vopr replay 2 --record --requests 1"
