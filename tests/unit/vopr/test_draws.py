"""Draws are those of random.Random: a seed means the same run, whatever they are made with."""

from __future__ import annotations

from random import Random

from kimberlite.vopr.draws import below, one_of


def test_draws_are_those_of_the_library() -> None:
    ours, theirs = Random("draws"), Random("draws")
    for bound in (1, 2, 3, 7, 8, 255, 256, 10_000_019, 1 << 40):
        for _ in range(50):
            assert below(ours, bound) == theirs.randrange(bound)
            assert one_of(ours, "abcdefg") == theirs.choice("abcdefg")
    assert ours.getstate() == theirs.getstate()
