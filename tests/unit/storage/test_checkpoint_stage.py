"""The life of a checkpoint that is being written: which stage may follow which, and when it is named."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from kimberlite._fast import framing
from kimberlite.errors import InvariantError
from kimberlite.storage.checkpoint_stage import ALLOWED, Copying, Stage
from kimberlite.types import Checkpoint, root_header

MARK = Checkpoint(root_header(framing.make_header, bytes(16)))  # type: ignore[arg-type]


def copying(**values: Any) -> Copying:
    return Copying(MARK, b"", **{"copies": ["a", "b"], "names_at": 0, **values})


def test_the_table_speaks_of_every_stage_and_all_are_reached() -> None:
    assert set(ALLOWED) == set(Stage)
    reached, open_ones = {Stage.OPENING}, [Stage.OPENING]
    while open_ones:
        new = ALLOWED[open_ones.pop()] - reached
        reached |= new
        open_ones += new
    assert reached == set(Stage)
    assert all(Stage.DONE in ALLOWED[stage] or stage is Stage.DONE for stage in (Stage.WRITING, Stage.NAMING))


@pytest.mark.parametrize(("before", "after"), list(product(Stage, Stage)))
def test_no_other_move_is_made(before: Stage, after: Stage) -> None:
    one = copying(stage=before)
    if after in ALLOWED[before]:
        one.move(after)
        assert one.stage is after
    else:
        with pytest.raises(InvariantError, match=f"{before.name}.*{after.name}"):
            one.move(after)
        assert one.stage is before


@pytest.mark.parametrize(
    ("names_at", "copies", "unnamed"),
    [
        (0, ["a", "b"], True),
        (0, ["b"], True),
        (0, [], False),
        (1, ["a", "b"], True),  # in the place of a lost one: named behind its first copy
        (1, ["b"], False),
        (None, ["a"], False),
    ],
)
def test_a_checkpoint_is_unnamed_until_so_many_copies_are_left(
    names_at: int | None, copies: list[str], unnamed: bool
) -> None:
    assert copying(names_at=names_at, copies=copies).is_unnamed is unnamed
