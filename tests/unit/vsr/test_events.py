"""The table of events: total, consumed, true of what the core emits, and legible."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Cluster

from kimberlite.telemetry.catalogue import BY_NAME
from kimberlite.types import Command
from kimberlite.vsr import events
from kimberlite.vsr.events import TABLE, DropReason, Event, EventKind, Field, GaveUp, Level, Row, ViewChangeCause

VSR = Path(events.__file__).parent
UNITS = ("_ns", "_bytes", "_count")
NUMBERS = {"op", "first_op", "commit", "view", "session", "request", "sequence"}
INDEXES = {"peer", "decided_by"}


def problems(table: dict[EventKind, Row]) -> Iterator[str]:
    """Everything that is wrong with a table, a sentence each."""
    for kind in EventKind:
        if kind not in table:
            yield f"{kind.name} has no row"
    for kind, row in table.items():
        if not row.metrics and row.level is Level.COUNTED:
            yield f"{kind.name} moves no metric and is in no log"
        yield from (f"{kind.name} moves {name}, which no catalogue has" for name in row.metrics if name not in BY_NAME)
        names = [field.name for field in row.fields]
        said = [name for _, name, _, _ in string.Formatter().parse(row.sentence) if name is not None]
        if sorted(names) != sorted(said):
            yield f"{kind.name} has the fields {names} and says {said}"
        for field in row.fields:
            if not (field.words or field.name in NUMBERS | INDEXES or field.name.endswith(UNITS)):
                yield f"{kind.name}: {field.name} has no unit"


def test_the_table_is_total_and_every_event_has_a_consumer() -> None:
    assert list(problems(TABLE)) == []
    assert list(TABLE) == list(EventKind), "rows in the order of the kinds"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row((), "rests", Level.COUNTED), "moves no metric and is in no log"),
        (Row((), "rests", Level.COUNTED, ("naps",)), "moves naps, which no catalogue has"),
        (Row((), "rests for {time_ns}", Level.INFO), "has the fields [] and says ['time_ns']"),
        (Row((Field("time_ns", "of rest"),), "rests", Level.INFO), "has the fields ['time_ns'] and says []"),
        (Row((Field("time", "of rest"),), "rests for {time}", Level.INFO), "time has no unit"),
    ],
)
def test_what_is_wrong_is_found(row: Row, expected: str) -> None:
    assert expected in " ".join(problems({**TABLE, EventKind.TRIMMED: row}))


def test_a_kind_without_a_row_is_found() -> None:
    table = {kind: row for kind, row in TABLE.items() if kind is not EventKind.STUCK}
    assert list(problems(table)) == ["STUCK has no row"]


def emitted() -> Iterator[tuple[str, EventKind, int]]:
    """Where the core emits an event: place, kind, how many numbers it gives. A kind may have a name of its own in a
    module, the same as in the enum."""
    for path in sorted(VSR.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(isinstance(argument, ast.Starred) for argument in node.args):
                continue
            for index, argument in enumerate(node.args):
                name = ""
                if isinstance(argument, ast.Attribute) and ast.unparse(argument.value).endswith("EventKind"):
                    name = argument.attr
                elif isinstance(argument, ast.Name) and ast.unparse(node.func).endswith(".emit"):
                    name = argument.id
                if name in EventKind.__members__:
                    yield f"{path.name}:{node.lineno}", EventKind[name], len(node.args) - index - 1


def test_the_core_gives_every_number_of_a_row() -> None:
    found = list(emitted())
    wrong = [f"{where}: {kind.name} with {count}" for where, kind, count in found if count != len(TABLE[kind].fields)]
    assert wrong == []
    assert {kind for _, kind, _ in found} == set(EventKind), "a kind that nothing emits"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Event(EventKind.ABDICATED, 7, GaveUp.LAGGING), "gives up the lead of view 7: lagging"),
        (
            Event(EventKind.VIEW_CHANGED, 8, 1_234_567_890, ViewChangeCause.PRIMARY_GONE),
            "takes part in view 8, 1,234.6 ms after it left its last one: primary_gone",
        ),
        (
            Event(EventKind.SUSPECTED, 8, ViewChangeCause.PRIMARY_SILENT, -1),
            "votes to leave view 8: primary_silent; it last heard the primary an unknown time before",
        ),
        (Event(EventKind.PRIMARY, 0), "acts as backup from now on"),
        (
            Event(EventKind.COMMITTED, 9, 2, -1),
            "executed op 9 with 2 events, an unknown time after it entered the log",
        ),
        (
            Event(EventKind.DROPPED, 1, DropReason.OUT_OF_BOUNDS),
            "did not act upon a frame (PREPARE): out_of_bounds",
        ),
        (Event(EventKind.DROPPED, 1, 99), "did not act upon a frame (PREPARE): 99"),
    ],
    ids=lambda value: value.kind.name if isinstance(value, Event) else "",
)
def test_a_sentence(event: Event, expected: str) -> None:
    assert events.sentence(event).lower() == expected.lower()


def test_a_cluster_that_works_says_nothing() -> None:
    """No line of a log comes with an op, a request or a frame; with a change of view some do."""
    cluster = Cluster()
    cluster.register()
    primary = cluster.settle()
    for node in cluster.up:
        node.events.clear()
    for number in range(1, 101):
        cluster.append(number, b"event")
    seen = [event for node in cluster.up for event in node.events]
    assert len(seen) > 100 * 3
    assert [event for event in seen if TABLE[event.kind].level is not Level.COUNTED] == []
    cluster.crash(primary.index)
    cluster.settle()
    said = {event.kind for node in cluster.up for event in node.events if TABLE[event.kind].level is not Level.COUNTED}
    assert said >= {EventKind.SUSPECTED, EventKind.VIEW_CHANGE_STARTED, EventKind.VIEW_CHANGED, EventKind.PRIMARY}


@pytest.mark.parametrize("minutes", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_a_cluster_at_rest_says_nothing(minutes: int) -> None:
    cluster = Cluster()
    cluster.register()
    cluster.settle()
    cluster.append(1, b"event")
    cluster.run(5_000)
    for node in cluster.up:
        node.events.clear()
    cluster.run(minutes * 60_000)
    seen = [event for node in cluster.up for event in node.events]
    assert seen, "they hear each other"
    assert [event for event in seen if TABLE[event.kind].level is not Level.COUNTED] == []


def test_an_event_in_brief() -> None:
    event = Event(EventKind.DROPPED, Command.PREPARE, DropReason.DUPLICATE)
    assert events.brief(event) == "DROPPED command=prepare reason=duplicate"
    assert events.brief(Event(EventKind.COMMITTED, 9, 2, 41)) == "COMMITTED op=9 event_count=2 since_entered_ns=41"


@pytest.mark.parametrize("kind", EventKind, ids=lambda kind: kind.name)
def test_every_kind_can_be_said(kind: EventKind) -> None:
    said = events.sentence(Event(kind, 1, 1, 1))
    assert said and "{" not in said and "\n" not in said
