"""The models of birth and of a changing membership: the rules hold, and each wrong rule beside them fails.

In full with `pytest --whole tests/unit/vsr/test_models.py`, half a minute: two disks lost during a birth, and more
histories of a membership."""

from __future__ import annotations

import pytest
from lab.models import birth, membership

HISTORIES = range(100)
MANY_HISTORIES = range(100, 2000)
# The first history in which a wrong rule loses something.
FOUND = {
    membership.OneCount: 3,
    membership.NewSetAlone: 7,
    membership.AdoptedAtPrepare: 7,
}
FOUND_LATE = {membership.OwnRecord: 1441}


@pytest.mark.parametrize("rule", [birth.TWO_PHASES, birth.ADOPTION])
def test_a_birth_that_loses_a_disk_loses_nothing_else(rule: str) -> None:
    states, wrong = birth.search(rule, 1)
    assert states > 4000 and wrong is None


@pytest.mark.parametrize("rule", [birth.ONE_PHASE, birth.QUORUM])
def test_a_wrong_rule_of_birth_is_found(rule: str) -> None:
    _, wrong = birth.search(rule, 1)
    assert wrong is not None and wrong.holders is not None


@pytest.mark.whole
@pytest.mark.parametrize(("rule", "states"), [(birth.TWO_PHASES, 89_995), (birth.ADOPTION, 112_723)])
def test_a_birth_that_loses_two_disks(rule: str, states: int) -> None:
    assert birth.search(rule, 2) == (states, None)


def test_a_membership_that_changes_loses_nothing() -> None:
    assert membership.first_lost(membership.Rules, HISTORIES) == (None, "")
    counts = [membership.Run(seed, membership.Rules).carry_out() for seed in HISTORIES[:20]]
    assert all(sum(getattr(count, name) for count in counts) > 50 for name in ("committed", "changes", "views"))


@pytest.mark.parametrize("wrong", FOUND, ids=lambda rules: rules.__name__)
def test_a_wrong_rule_of_membership_is_found(wrong: type[membership.Rules]) -> None:
    seed, what = membership.first_lost(wrong, range(FOUND[wrong] + 1))
    assert seed == FOUND[wrong] and what


def test_a_wrong_rule_that_few_histories_show_is_found() -> None:
    for wrong, first in FOUND_LATE.items():
        assert membership.first_lost(wrong, range(first - 1, first + 1))[0] == first
    assert {*FOUND, *FOUND_LATE} == set(membership.WRONG)


@pytest.mark.whole
def test_more_histories_of_a_membership() -> None:
    assert membership.first_lost(membership.Rules, MANY_HISTORIES) == (None, "")
