"""Event batches of 8,192 events of 128 bytes, against what Python itself does with the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kimberlite._fast import events, metrics

LOCKED_ADD_NS = 2.6  # one relaxed fetch_add on the machine of the targets
LOOP = 5_000
COUNT, SIZE = 8192, 128
ITEMS = [random.Random(index).randbytes(SIZE).replace(b"\n", b" ") for index in range(COUNT)]
BODY = events.build(ITEMS)
JOINED = b"".join(ITEMS)
LINES = b"".join(item + b"\n" for item in ITEMS)


@pytest.mark.benchmark(group="events")
def test_build(gate: Callable[..., None]) -> None:
    gate(lambda: events.build(ITEMS), lambda: b"".join(ITEMS), at_most=1.5)


@pytest.mark.benchmark(group="events")
def test_build_lines(gate: Callable[..., None]) -> None:
    gate(lambda: events.build_lines(LINES, 0, COUNT, len(LINES)), lambda: LINES.split(b"\n"), at_most=1.0)


@pytest.mark.benchmark(group="events")
def test_validate(gate: Callable[..., None]) -> None:
    """A nanosecond an event."""
    gate(
        lambda: events.validate(BODY),
        lambda: metrics.calibrate("locked", LOOP),
        at_most=1 / LOCKED_ADD_NS,
        operations=(COUNT, LOOP),
    )


@pytest.mark.benchmark(group="events")
def test_slice(gate: Callable[..., None]) -> None:
    gate(
        lambda: events.slice(BODY, 0, COUNT),
        lambda: [JOINED[at : at + SIZE] for at in range(0, COUNT * SIZE, SIZE)],
        at_most=0.6,
    )


@pytest.mark.benchmark(group="events")
def test_join(gate: Callable[..., None]) -> None:
    gate(lambda: events.join(BODY), lambda: b"\n".join(ITEMS), at_most=1.5)
