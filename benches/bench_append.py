"""The write engine, in the caller's thread, against a C loop that does the same writes.

On a file in pytest's temporary directory: give --basetemp=DIR for another file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kimberlite._fast.append import INLINE_ALWAYS, AlignedBuffer, Writer, calibrate

WRITES = {4 << 10: 16, 64 << 10: 8, 1 << 20: 2}  # size -> writes of one round


@pytest.fixture
def descriptor(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """A file of the size of one round, written before, so that no write has to allocate."""
    size = request.getfixturevalue("size")
    fd = os.open(tmp_path / "segment", os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_DSYNC)
    try:
        calibrate(fd, 0, AlignedBuffer(size), WRITES[size])
        yield fd
    finally:
        os.close(fd)


@pytest.mark.benchmark(group="append")
@pytest.mark.parametrize("size", WRITES)
def test_append(gate: Callable[..., None], descriptor: int, size: int) -> None:
    """Target: 0.9 of the speed of the loop."""
    times = WRITES[size]
    buffer = AlignedBuffer(size)
    writer = Writer(inline_below_ns=INLINE_ALWAYS)
    token = 0

    def append() -> None:
        nonlocal token
        for index in range(times):
            writer.submit(token, [[(descriptor, index * size, buffer)]])
            token += 1
        writer.flush()
        assert writer.completions()
        writer.take_latencies()

    gate(append, lambda: calibrate(descriptor, 0, buffer, times), at_most=1 / 0.9, operations=(times, times), rounds=60)
