"""What a replica's own code takes for an op at one in flight, warm, in turns of a calibrated loop.

The yardstick does what such code is made of (calls, attributes, dictionaries, small objects, a frame made and read
again), so that a ratio carries over to other machines and interpreters. See commit.py for what is measured.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from commit import PARTS, OneProcess

from kimberlite._fast import framing
from kimberlite.types import ZERO16, Command, Message

OPS = 50
TURNS = 50
AT_MOST = {"primary": 25.0, "backup": 15.0}  # turns of the yardstick


class Thing:
    __slots__ = ("key", "next", "value")

    def __init__(self, key: int, value: int) -> None:
        self.key = key
        self.value = value
        self.next: Thing | None = None

    def add(self, other: Thing) -> int:
        self.next = other
        return self.value + other.value


def turn(number: int, table: dict[int, Thing]) -> Message:
    """About as long as a tenth of what a backup does for an op."""
    total = 0
    for key in range(number, number + 8):
        thing = table[key] = Thing(key, number)
        before = table.pop(key - 8, thing)
        total += thing.add(before) if thing is not before else 0
        total -= min(total, key)
    header = framing.make_header(b"", cluster=ZERO16, command=Command.PING, op=number)
    return Message(framing.decode_header(header.raw), b"")


def yardstick() -> None:
    table: dict[int, Thing] = {}
    for number in range(TURNS):
        turn(8 * number, table)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> OneProcess:
    cluster = OneProcess(tmp_path_factory.mktemp("commit"))
    cluster.ops(200)
    return cluster


@pytest.mark.benchmark(group="commit")
@pytest.mark.parametrize("part", PARTS)
def test_commit(gate: Callable[..., None], cluster: OneProcess, part: str) -> None:
    def subject() -> float:
        spent: float = getattr(cluster.ops(OPS), part)
        return spent

    gate(subject, yardstick, at_most=AT_MOST[part], operations=(1, TURNS), own_time=True)
