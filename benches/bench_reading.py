"""What a client does with the events of an answer: Event objects, against the bytes alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from kimberlite._fast import events
from kimberlite.client.answers import Piece
from kimberlite.client.reading import Events

COUNT, SIZE, PER_OP = 30_000, 32, 10
PIECE = Piece(
    1_000_000,
    COUNT,
    events.build([b"%0*d" % (SIZE, index) for index in range(COUNT)]),
    tuple(range(COUNT // PER_OP)),
    (PER_OP,) * (COUNT // PER_OP),
)


class Once:
    """A span that gives one piece."""

    follow = False

    def __init__(self) -> None:
        self._pieces = iter([PIECE])

    async def step(self) -> Piece | None:
        return next(self._pieces, None)

    def abandon(self) -> None:
        return None


def iterate(unpack: Callable[[Piece], Iterator[Any]]) -> None:
    async def run() -> None:
        source: AsyncIterator[Any] = Events(Once(), unpack)  # type: ignore[arg-type]
        async for _ in source:
            pass

    asyncio.run(run())


@pytest.mark.benchmark(group="reading")
def test_unpack_events(gate: Callable[..., None]) -> None:
    gate(lambda: deque(PIECE.events(), maxlen=0), lambda: deque(PIECE.raw(), maxlen=0), at_most=8.0)


@pytest.mark.benchmark(group="reading")
def test_iterate_events(gate: Callable[..., None]) -> None:
    gate(lambda: iterate(Piece.events), lambda: iterate(Piece.raw), at_most=3.5)
