"""The minimizer finds the faults that matter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

import pytest

from kimberlite.errors import UsageError
from kimberlite.vopr import minimize as minimizer
from kimberlite.vopr.canaries import planted
from kimberlite.vopr.faults import START_NS
from kimberlite.vopr.minimize import minimize, shrink
from kimberlite.vopr.run import Outcome, Script, run


@pytest.mark.parametrize("size", [0, 1, 2, 5, 6])
def test_shrink_finds_exactly_what_matters(size: int) -> None:
    """For every subset that could be the cause, of up to six items."""
    items = list(range(size))
    for cause in chain.from_iterable(combinations(items, count) for count in range(size + 1)):
        assert shrink(items, lambda kept, cause=cause: set(cause) <= set(kept)) == list(cause)  # type: ignore[misc]


def test_what_shrink_leaves_is_minimal_where_causes_are_many() -> None:
    """Fails with any three even numbers: no monotone cause, still nothing can be taken away."""

    def fails(kept: Sequence[int]) -> bool:
        return sum(item % 2 == 0 for item in kept) >= 3

    kept = shrink(list(range(40)), fails)
    assert fails(kept) and all(not fails([item for item in kept if item != one]) for one in kept)


def test_shrink_is_cheap_when_little_matters() -> None:
    calls = 0

    def fails(kept: Sequence[int]) -> bool:
        nonlocal calls
        calls += 1
        return 700 in kept and 13 in kept

    assert shrink(list(range(1000)), fails) == [13, 700]
    assert calls < 100


def first_found(requests: int, check: str) -> tuple[Script, Outcome]:
    """The first seed whose run breaks that check: which one it is changes with everything that is drawn."""
    for seed in range(200):
        outcome = run(Script(seed, requests))
        if outcome.check == check:
            return Script(seed, requests), outcome
    pytest.fail(f"no seed breaks {check}")


@pytest.mark.slow
def test_a_failing_run_becomes_small_and_still_fails_the_same_way() -> None:
    with planted("superblock-copies-at-once"):
        script, found = first_found(20, "E3 recovery")
        small = minimize(script, runs_max=12)
        again = run(small.script)
    assert found.check == small.outcome.check == again.check == "E3 recovery"
    assert again.trace_hash == small.outcome.trace_hash
    assert small.script.faults is not None
    assert len(small.script.faults) < len(found.faults) == small.before
    assert small.runs <= 12
    assert run(small.script).check == "", "without the bug the small run is fine"


def test_a_run_that_fails_without_faults_needs_none() -> None:
    with planted("quorum-off-by-one"):
        script, _ = first_found(16, "I8 quorum audit")
        small = minimize(script)
    assert (small.outcome.check, small.script.faults, small.script.requests) == ("I8 quorum audit", (), 1)
    assert all(not getattr(small.script.plan(), name) for name in minimizer.QUIET)


def test_a_run_without_a_violation_is_refused() -> None:
    with pytest.raises(UsageError, match="breaks nothing"):
        minimize(Script(0, 1))


def test_the_number_of_runs_is_bounded_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_always(script: Script) -> Outcome:
        faults = script.faults if script.faults is not None else tuple((START_NS + at, "crash", 0) for at in range(8))
        return Outcome(script.seed, "", 0, "I1", "I1: x", "", {}, faults if len(faults) >= 3 else ())

    monkeypatch.setattr(minimizer, "run", fails_always)
    seen: list[int] = []
    small = minimize(Script(0, 1), runs_max=5, progress=lambda runs, faults: seen.append(runs))
    assert small.runs == 5
    assert seen == [2, 3, 4, 5]
