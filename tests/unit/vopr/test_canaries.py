"""Planted bugs leave no trace behind, and the quick ones are found. `kimberlite vopr canaries` runs all."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from kimberlite.errors import CampaignStateError, UsageError
from kimberlite.vopr.canaries import CANARIES, Canary, Notes, hunt, hunt_all, hunting, planted, select
from kimberlite.vopr.run import Outcome, Script
from kimberlite.vsr.leading import Leading

# Found within a few seeds, and by which check.
QUICK = {
    "quorum-off-by-one": "I8 quorum audit",
    "replica-counted-twice": "I8 quorum audit",
    "old-ops-committed-by-old-acks": "I8 quorum audit",
    "ack-before-durable": "I9 durable promises",
    "ack-in-view-change": "I9 durable promises",
    "do-view-change-before-durable": "I9 durable promises",
    "log-view-not-persisted": "I9 durable promises",
    "view-not-persisted": "I9 durable promises",
    "view-left-on-one-vote": "I5 votes",
    "superblock-copies-at-once": "E3 recovery",
    "in-flight-prepared-twice": "I10 exactly once",
    "session-dedupe-off": "I10 exactly once",
    "eviction-by-registration": "I11 sessions",
    "segment-let-go-while-written": "own invariant",
    "reply-before-commit": "I6 acknowledged",
    "executed-before-commit": "I7 order",
    "timeout-reported-as-refusal": "E2 refused is not there",
    "liveness-too-early": "E1 liveness",
    "second-source-of-entropy": "E0 determinism",
    "agreement-with-itself": "drill",
}


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_gone_afterwards(name: str) -> None:
    patches = CANARIES[name].patches()
    assert patches
    places = [(owner, key, owner[key] if isinstance(owner, dict) else vars(owner)[key]) for owner, key, _ in patches]
    with planted(name):
        for owner, key, before in places:
            assert (owner[key] if isinstance(owner, dict) else vars(owner)[key]) is not before
    for owner, key, before in places:
        assert (owner[key] if isinstance(owner, dict) else vars(owner)[key]) is before


def called_with(function: Any) -> tuple[int, int] | None:
    """How many arguments by position a function needs and takes; None for what can not be asked."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    by_position = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    anything = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    needed = sum(one.default is one.empty for one in by_position)
    return needed, 99 if anything else len(by_position)


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_function_is_called_like_the_true_one(name: str) -> None:
    """Else it is found by a TypeError, which says nothing of the bug."""
    for owner, key, value in CANARIES[name].patches():
        true = called_with(owner[key] if isinstance(owner, dict) else getattr(owner, key))
        wrong = called_with(value)
        if true is not None and wrong is not None:
            assert wrong[0] <= true[0], (key, wrong, true)
            assert wrong[1] >= true[1], (key, wrong, true)


def test_it_is_gone_after_an_error_too() -> None:
    before = Leading.may_commit
    with pytest.raises(KeyError), planted("quorum-off-by-one"):
        assert Leading.may_commit is not before
        raise KeyError
    assert Leading.may_commit is before


def test_the_documentation_lists_every_planted_bug_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", page, re.MULTILINE))
    assert listed == {canary.name: canary.what for canary in CANARIES.values()}


def test_nothing_is_planted_without_a_name() -> None:
    before = Leading.may_commit
    with planted(None):
        assert Leading.may_commit is before


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no planted bug is called 'nonsense'; there are quorum-off-by-one"):
        select(["nonsense"])
    assert select([]) == list(CANARIES)


def test_a_bug_that_changes_nothing_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Leading.may_commit
    harmless = Canary("harmless", "", lambda: [(Leading, "may_commit", same)])
    monkeypatch.setitem(CANARIES, "harmless", harmless)
    found = hunt("harmless", seeds_max=2, requests=5)
    assert (found.check, found.seeds, found.seed) == ("", 2, None)


def test_a_seed_that_fails_without_the_bug_as_well_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Leading.may_commit

    def fake(script: Script) -> Outcome:
        fails = script.seed == 3 or (script.seed == 5 and Leading.may_commit is not original)
        return Outcome(script.seed, "", 0, "I1" if fails else "", "I1: x", "", {}, ())

    monkeypatch.setattr(hunting, "run", fake)
    found = hunt("quorum-off-by-one", seeds_max=10)
    assert (found.check, found.seed, found.seeds) == ("I1", 5, 6)


# Those of seconds.
LESS_QUICK = {
    "second-source-of-entropy",
    "in-flight-prepared-twice",
    "superblock-copies-at-once",
    "timeout-reported-as-refusal",
    "segment-let-go-while-written",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LESS_QUICK else name for name in QUICK]
)
def test_a_planted_bug_is_found(name: str) -> None:
    found = hunt(name, seeds_max=20)
    assert found.check == QUICK[name], found


def test_faults_that_are_silently_absent_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kimberlite.vopr.campaign.LABELS", {"FAULTY": 3})
    found = hunt("faults-silently-zero", seeds_max=3, requests=5)
    assert (found.check, found.seeds) == ("E4 coverage", 3)
    assert "FAULTY" in found.violation


def test_what_was_tried_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[int] = []

    def fake(script: Script) -> Outcome:
        tried.append(script.seed)
        fails = script.seed == 45 and Leading.may_commit is not may_commit
        return Outcome(script.seed, "", 0, "I1" if fails else "", "I1: x", "", {}, ())

    may_commit = Leading.may_commit
    monkeypatch.setattr(hunting, "run", fake)
    monkeypatch.setattr(hunting, "drill", lambda: None)
    path = tmp_path / "notes"
    names = ["quorum-off-by-one"]
    (missed,) = hunt_all(names, seeds_max=30, notes=Notes(path))
    assert (missed.check, missed.seeds, tried) == ("", 30, list(range(30)))
    (found,) = hunt_all(names, seeds_max=100, notes=Notes(path))
    assert (found.check, found.seed, found.seeds) == ("I1", 45, 46)
    assert tried == [*range(46), 45], "the last one again, without the bug"
    (again,) = hunt_all(names, seeds_max=100, notes=Notes(path))
    assert again == found and len(tried) == 47
    (alone,) = hunt_all(names, seeds_max=100)
    assert alone == found


def test_notes_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    Notes(path, 5)
    with pytest.raises(CampaignStateError, match="is of other code or runs"):
        Notes(path, 6)
    path.write_text("nonsense")
    with pytest.raises(CampaignStateError, match="holds no notes of planted bugs"):
        Notes(path, 5)
