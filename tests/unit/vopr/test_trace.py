"""The trace has everything in it: what is left out could differ from run to run and nobody would know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kimberlite._fast import framing
from kimberlite.types import Command, Message
from kimberlite.vopr.plan import draw
from kimberlite.vopr.trace import TRACE_TAIL, Trace
from kimberlite.vopr.world import World
from kimberlite.vsr.events import Event, EventKind

PING = Message(framing.make_header(cluster=bytes(16), command=Command.PING), b"")
OTHER = Message(framing.make_header(cluster=bytes(16), command=Command.PING, view=1), b"")
PREPARED = Event(EventKind.PREPARED, 5, 1, 320)

LINES: list[Callable[[Trace], None]] = [
    lambda trace: None,
    lambda trace: trace.add(1, "fault", "crash", 2),
    lambda trace: trace.add(1, "fault", "crash", 3),
    lambda trace: trace.delivered(1, 0, 1, PING),
    lambda trace: trace.delivered(2, 0, 1, PING),
    lambda trace: trace.delivered(1, 1, 0, PING),
    lambda trace: trace.delivered(1, 0, 1, OTHER),
    lambda trace: trace.delivered(1, 0, b"client 0", PING),
    lambda trace: trace.delivered(1, 0, b"client 1", PING),
    lambda trace: trace.written(1, 0, "journal-0", 4096, b"abc"),
    lambda trace: trace.written(1, 1, "journal-0", 4096, b"abc"),
    lambda trace: trace.written(1, 0, "witness-0", 4096, b"abc"),
    lambda trace: trace.written(1, 0, "journal-0", 8192, b"abc"),
    lambda trace: trace.written(1, 0, "journal-0", 4096, b"abd"),
    lambda trace: trace.recorded(1, 0, [PREPARED]),
    lambda trace: trace.recorded(1, 1, [PREPARED]),
    lambda trace: trace.recorded(1, 0, [PREPARED, PREPARED]),
    lambda trace: trace.recorded(1, 0, [PREPARED._replace(c=321)]),
    lambda trace: trace.recorded(1, 0, [PREPARED._replace(kind=EventKind.JOURNALED)]),
]


def test_whatever_differs_is_in_the_hash() -> None:
    digests = set()
    for line in LINES:
        trace = Trace()
        line(trace)
        digests.add(trace.digest())
    assert len(digests) == len(LINES)


def test_the_tail_is_for_people_and_bounded() -> None:
    trace, whole = Trace(), Trace(keep_all=True)
    for each in (trace, whole):
        for number in range(TRACE_TAIL):
            each.add(number, "boot", 0)
        each.delivered(7, 0, b"client 1", PING)
        each.written(8, 2, "journal-0", 4096, b"abc")
        each.recorded(9, 1, [PREPARED, PREPARED])
    assert trace.digest() == whole.digest()
    assert len(trace.text().splitlines()) == TRACE_TAIL
    assert len(whole.text().splitlines()) == TRACE_TAIL + 3
    assert whole.text().splitlines()[-1].split() == [
        "9",
        "events",
        "1",
        *("PREPARED", "op=5", "event_count=1", "size_bytes=320;") * 2,
    ]
    assert " journal-0 4096 3 " in whole.text().splitlines()[-2]


@pytest.fixture(scope="module")
def world() -> World:
    world = World(replace(draw(0, 20), replica_count=3, late_ops=0, persistent=""), keep_trace=True, faults=())
    world.run()
    return world


@pytest.mark.parametrize("kind", ["deliver", "write", "promise", "events", "boot", "outcome"])
def test_a_run_leaves_lines_of_every_kind(world: World, kind: str) -> None:
    assert any(entry[1] == kind for entry in world.trace.tail)


def test_every_change_of_a_disk_is_in_the_trace(world: World) -> None:
    """What the files hold is what the lines say was written last."""
    written = [entry for entry in world.trace.tail if entry[1] == "write"]
    assert {entry[2] for entry in written} == {0, 1, 2}
    assert any(str(entry[3]).startswith("journal-") for entry in written)
    assert any(entry[3] == "superblock" for entry in written)
