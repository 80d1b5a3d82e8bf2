"""A start that fears for an op without a reason is found: I24."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kimberlite.types import EntryState, RecoveredEntry
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.starts import check_fears

FEARFUL: Any = SimpleNamespace(faulty=1, entries=(RecoveredEntry(7, EntryState.FAULTY, None),))
CALM: Any = SimpleNamespace(faulty=0, entries=())


def world(victim: int | None, rotten: bool) -> Any:
    return SimpleNamespace(rot_victim=victim, rotten=rotten)


@pytest.mark.parametrize(("victim", "rotten"), [(None, False), (1, True), (0, False)])
def test_a_crash_alone_explains_no_fear(victim: int | None, rotten: bool) -> None:
    with pytest.raises(Violation, match=r"I24 fears: replica 0 starts and calls ops \[7\] damaged"):
        check_fears(world(victim, rotten), 0, FEARFUL)
    check_fears(world(victim, rotten), 0, CALM)


def test_damage_does() -> None:
    check_fears(world(0, True), 0, FEARFUL)
