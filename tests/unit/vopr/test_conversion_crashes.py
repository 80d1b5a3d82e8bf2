"""Conversions by enumeration, a part of it: `make enumerate` does all. And planted bugs are found by it."""

from __future__ import annotations

from itertools import islice

import pytest

from kimberlite.vopr import conversion_crashes
from kimberlite.vopr.canaries import planted
from kimberlite.vopr.conversion_crashes import ONE_HAS_IT, WHOLE, Case, Report, try_one

EVERY = 293  # shares no factor with what is varied in turn: writes, tears, copies


def test_nothing_acknowledged_is_lost_and_the_cluster_is_born() -> None:
    cases = list(conversion_crashes.cases())
    some = Report()
    for case in islice(cases, 0, None, EVERY):
        some.add(case, try_one(case))
    assert some.failures == []
    assert some.cases == sum(some.kinds.values()) > 45
    assert len(cases) > 14_000


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ("view-kept-at-conversion", "view 2 and log_view 1 would follow"),
        ("bound-before-durable", "N1 unborn"),
        ("old-disk-is-believed", "E2"),
        ("old-disk-is-believed-after-a-view", "E2"),
    ],
)
def test_planted_bugs_are_found(bug: str, found: str) -> None:
    case = Case(ONE_HAS_IT, 0, 0, 4, False, None)
    assert try_one(case) == ""
    with planted(bug):
        assert found in try_one(case)


def test_a_case_with_fewer_writes_says_so() -> None:
    assert "power did not fail" in try_one(Case(WHOLE, 0, 0, 1000, False, None))
