"""Too little free space, and enough again."""

from __future__ import annotations

import pytest

from kimberlite.node.space import FreeSpace


def test_it_is_enough_again_only_when_a_quarter_more_is_free() -> None:
    space = FreeSpace(1000)
    seen = [space.look(free) for free in (1001, 1000, 999, 1000, 1249, 1250, 1000, 0)]
    assert seen == [False, False, True, True, True, False, False, True]


def test_the_reason_has_the_numbers() -> None:
    space = FreeSpace(1000)
    assert space.reason(5) == ""
    space.look(5)
    assert space.reason(5).startswith("5 bytes of the file system are free, below storage.free_bytes_min, 1000;")
    assert "1250" in space.reason(5)


@pytest.mark.parametrize("free", [0, 1, 1 << 60])
def test_nothing_is_judged_when_it_is_off(free: int) -> None:
    assert not FreeSpace(0).look(free)
