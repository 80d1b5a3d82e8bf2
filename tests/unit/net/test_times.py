"""The table of timestamps behind a READ_REPLY: what goes in comes out, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite.errors import FrameError
from kimberlite.net import times

RUNS = st.dictionaries(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), max_size=20)


@given(st.binary(max_size=50), RUNS)
def test_what_goes_in_comes_out(batch: bytes, runs: dict[int, int]) -> None:
    body = batch + times.encode(runs)
    assert len(body) == len(batch) + times.RUN_BYTES * len(runs)
    found, stamps, counts = times.split(body, len(runs), sum(runs.values()))
    assert bytes(found) == batch and dict(zip(stamps, counts, strict=True)) == runs


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_bytes_are_refused_or_fit(body: bytes, runs: int, events: int) -> None:
    try:
        _, stamps, counts = times.split(body, runs, events)
    except FrameError:
        return
    assert len(stamps) == len(counts) == runs and sum(counts) == events


def test_a_table_that_does_not_fit_is_refused() -> None:
    body = b"batch" + times.encode({7: 1, 9: 2})
    for runs, events in ((2, 4), (1, 3), (3, 3), (0, 3)):
        with pytest.raises(FrameError):
            times.split(body, runs, events)
