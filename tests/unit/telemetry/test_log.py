"""The log: its lines, what a storm leaves of them, and that nothing ever waits for it."""

from __future__ import annotations

import ast
import json
import string
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.telemetry import log as module
from kimberlite.telemetry.log import FORMATS, PERIOD_NS, Log, as_text, open_log
from kimberlite.telemetry.log.catalogue import BY_KIND, LINES, LINES_MAX, OF_EVENTS, OF_NODES
from kimberlite.telemetry.log.forms import TEXT_MAX, clean
from kimberlite.telemetry.log.writer import WAITING_MAX
from kimberlite.vsr.events import TABLE, Event, EventKind, GaveUp, Level, ViewChangeCause

NOON = 1_800_000_000.25  # 2027-01-15 08:00:00 UTC, and a quarter of a second
CLUSTER = "c" * 32
SOURCE = Path(kimberlite.__file__).parent
STUCK = Event(EventKind.STUCK, 7, 2)
ABDICATED = Event(EventKind.ABDICATED, 4, GaveUp.LAGGING)


class Written:
    """Takes lines, unless it is held up or refuses."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.takes = True

    def __call__(self, text: str, patience_s: float) -> bool:
        self.goes_on.wait(60)
        if self.takes:
            self.lines.append(text)
        return self.takes

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def written() -> Written:
    return Written()


def made(written: Written, **options: Any) -> Log:
    log = Log(CLUSTER, 1, write=written, wall=lambda: NOON, **options)
    log.look(PERIOD_NS)  # a first period begins
    return log


@pytest.fixture
def log(written: Written) -> Iterator[Log]:
    log = made(written)
    yield log
    written.goes_on.set()
    log.close()


def until(ready: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


# The catalogue


def test_the_catalogue_is_total_and_legible() -> None:
    with_level = {kind for kind, row in TABLE.items() if row.level is not Level.COUNTED}
    assert set(OF_EVENTS) == set(BY_KIND) == with_level
    assert len(LINES) == len(BY_KIND) + len(OF_NODES), "an id is that of one line"
    for line in LINES.values():
        said = [name for _, name, _, _ in string.Formatter().parse(line.sentence) if name is not None]
        assert sorted(said) == sorted(field.name for field in line.fields), line.id
        assert line.level is not Level.COUNTED and line.meaning.endswith(".") and line.todo, line.id
        assert line.id.isidentifier() and line.id.islower()


def values_of(id: str) -> dict[str, int | str]:
    """Something for every field of a line."""
    return {field.name: 1 if field.name.endswith(("_ns", "_count", "_ms")) else "x" for field in LINES[id].fields}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("id", LINES)
def test_every_line_can_be_said(id: str, form: str, written: Written) -> None:
    log = made(written, form=FORMATS[form])
    log.say(id, **values_of(id))
    log.close()
    (line,) = written.lines
    assert line.endswith("\n") and line[:-1].isprintable()
    if form == "json":
        (document,) = written.documents
        assert list(document) == ["time", "level", "id", "cluster", "replica", "view", "op", "message", "fields"]
        assert list(document["fields"]) == [field.name for field in LINES[id].fields]


def said_in_the_source() -> Iterator[tuple[str, str, list[str]]]:
    """Where a node tells something: place, id, names of the values."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("log.say"):
                (id,) = node.args
                assert isinstance(id, ast.Constant) and isinstance(id.value, str)
                yield f"{path.name}:{node.lineno}", id.value, [str(keyword.arg) for keyword in node.keywords]


def test_a_node_gives_every_field_of_a_line_in_order() -> None:
    found = list(said_in_the_source())
    wrong = [row for row in found if row[2] != [field.name for field in LINES[row[1]].fields]]
    assert wrong == []
    by_itself = {"suppressed", "lines_lost"}
    assert {id for _, id, _ in found} == {line.id for line in OF_NODES} - by_itself, "a line that nobody says"


# A line


def test_a_line_for_programs(log: Log, written: Written) -> None:
    log.note(Event(EventKind.VIEW_CHANGE_STARTED, 5, ViewChangeCause.PRIMARY_GONE))
    log.where = lambda: (5, 1042)
    log.note(Event(EventKind.VIEW_CHANGED, 5, 12_000_000, -1))
    log.close()
    first, second = written.documents
    assert first == {
        "time": "2027-01-15T08:00:00.250Z",
        "level": "warning",
        "id": "view_change_started",
        "cluster": CLUSTER,
        "replica": 1,
        "view": None,
        "op": None,
        "message": "replica 1 left its view for view 5: primary_gone",
        "fields": {"view": 5, "cause": "primary_gone"},
    }
    assert (second["view"], second["op"]) == (5, 1042)
    assert second["fields"] == {"view": 5, "since_left_ns": 12_000_000, "cause": "start"}


def test_a_line_for_people(written: Written) -> None:
    log = made(written, form=as_text)
    log.where = lambda: (4, 17)
    log.note(ABDICATED)
    log.close()
    assert written.lines == [
        "kimberlite: 2027-01-15T08:00:00.250Z warning: replica 1 gives up the lead of view 4: lagging "
        "[abdicated view=4 op=17]\n"
    ]


def test_what_is_below_the_level_is_not_a_line(written: Written) -> None:
    log = made(written, level=Level.WARNING)
    assert [log.takes(kind) for kind in (EventKind.COMMITTED, EventKind.PRIMARY, EventKind.ABDICATED)] == [0, 0, 1]
    log.say("stopping", drain_ms=1)
    log.note(ABDICATED)
    log.close()
    assert [document["id"] for document in written.documents] == ["abdicated"]


def test_text_from_elsewhere_stays_one_short_line() -> None:
    assert clean("a\nb\x1b[31m\u2028c") == "a?b?[31m?c"
    assert len(clean("x" * 10_000)) == TEXT_MAX


def test_a_primary_does_not_suspect_itself(log: Log, written: Written) -> None:
    log.note(Event(EventKind.SUSPECTED, 4, ViewChangeCause.PRIMARY_SILENT, 0))
    log.note(Event(EventKind.SUSPECTED, 5, ViewChangeCause.PRIMARY_SILENT, -1))
    log.close()
    assert [document["fields"]["view"] for document in written.documents] == [5]


# Storms, and a standard error that does not take them


def test_a_storm_of_one_kind_leaves_room_for_the_others(log: Log, written: Written) -> None:
    for _ in range(5000):
        log.note(STUCK)
    log.note(ABDICATED)
    log.look(PERIOD_NS + PERIOD_NS // 2)  # the period is not over
    log.note(STUCK)
    log.look(2 * PERIOD_NS)
    log.note(STUCK)
    log.close()
    ids = [document["id"] for document in written.documents]
    assert ids == ["stuck"] * LINES_MAX + ["abdicated", "suppressed", "stuck"], "a new period begins anew"
    (said,) = [document for document in written.documents if document["id"] == "suppressed"]
    left_out = 5001 - LINES_MAX
    assert said["level"] == "error"
    assert said["fields"] == {"of": "stuck", "line_count": left_out, "period_ns": PERIOD_NS}
    assert log.counts == (LINES_MAX + 3, left_out, 0)


def test_nothing_is_said_of_a_quiet_period(log: Log, written: Written) -> None:
    log.note(STUCK)
    for period in range(2, 5):
        log.look(period * PERIOD_NS)
    log.close()
    assert len(written.lines) == 1


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    line = BY_KIND[EventKind.STUCK]._replace(lines_max=10 * WAITING_MAX)
    monkeypatch.setattr(module, "BY_KIND", {**BY_KIND, EventKind.STUCK: line})
    monkeypatch.setattr(module, "LINES", {**LINES, "stuck": line})


def test_lines_that_were_lost_are_counted(log: Log, written: Written, no_limit: None) -> None:
    written.goes_on.clear()
    log.note(STUCK)
    until(log._writer._waiting.empty)
    for _ in range(WAITING_MAX + 5):
        log.note(STUCK)
    written.goes_on.set()
    until(log._writer._waiting.empty)
    log.look(2 * PERIOD_NS)
    log.look(3 * PERIOD_NS)
    log.close()
    (said,) = [document for document in written.documents if document["id"] == "lines_lost"]
    assert said["fields"] == {"line_count": 5}
    assert log.counts[2] == 5


def test_lines_that_were_refused_are_counted(log: Log, written: Written) -> None:
    written.takes = False
    log.note(STUCK)
    log.note(ABDICATED)
    until(lambda: log.counts[2] == 2)
    written.takes = True
    log.look(2 * PERIOD_NS)
    log.close()
    assert written.documents[-1]["fields"] == {"line_count": 2}


def test_a_log_that_hangs_does_not_hold_up_the_end(written: Written, no_limit: None) -> None:
    log = made(written)
    written.goes_on.clear()
    for _ in range(WAITING_MAX * 2):
        log.note(STUCK)
    began = time.monotonic()
    log.close(0.05)
    log.close(0.05)
    assert time.monotonic() - began < 5
    log.note(STUCK)
    written.goes_on.set()
    log._writer._thread.join(10)
    assert not log._writer._thread.is_alive(), "it ends when standard error goes on"


def test_no_thread_is_no_log(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    log = made(written)
    log.note(STUCK)
    log.look(2 * PERIOD_NS)
    log.close()
    assert written.lines == []


# As node.toml has it


@pytest.mark.parametrize("form", ["auto", "json", "pretty"])
def test_a_form(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    log = open_log(CLUSTER, 1, "info", form, "stderr")
    log.note(ABDICATED)
    log.close()
    said = capfd.readouterr().err
    assert said.startswith("kimberlite: " if form == "pretty" else "{"), "no terminal: for programs"


def test_a_terminal_gets_sentences(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "_is_terminal", lambda: True)
    log = open_log(CLUSTER, 1, "info", "auto", "stderr")
    log.note(ABDICATED)
    log.close()
    assert capfd.readouterr().err.startswith("kimberlite: ")


def test_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    log = open_log(CLUSTER, 1, "info", "json", "none")
    log.note(ABDICATED)
    log.close()
    assert capfd.readouterr().err == ""
    assert log.counts == (1, 0, 0)
