"""How a line of the log looks: JSON for programs, a sentence for people.

Both are one line of printable characters, and short enough for a pipe to take as a whole (PIPE_BUF), so that lines of
two processes do not mix. May import: vsr.events, telemetry.log.catalogue.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from kimberlite.telemetry.log.catalogue import Line
from kimberlite.vsr.events import Field, Level

Value: TypeAlias = int | str
TEXT_MAX = 600  # characters of a value
LEVELS = {Level.INFO: "info", Level.WARNING: "warning", Level.ERROR: "error"}


class Said(NamedTuple):
    """What a line says. wall: seconds since 1970. view, op: where the replica was; None before it knew."""

    wall: float
    level: Level
    line: Line
    values: Mapping[str, Value]
    cluster: str
    replica: int
    view: int | None
    op: int | None


def stamp(wall: float) -> str:
    """UTC, to the millisecond."""
    seconds, ms = divmod(int(wall * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ms:03}Z"


def sentence(said: Said) -> str:
    """What happened, in words. Its subject is the replica."""
    fields = {field.name: field for field in said.line.fields}
    words = {
        name: clean(value) if isinstance(value, str) else fields[name].said(value)
        for name, value in said.values.items()
    }
    return said.line.sentence.format(**words)


def as_json(said: Said) -> str:
    """A JSON object, always of the same keys; what is particular to the id is in `fields`."""
    fields = {field.name: field for field in said.line.fields}
    document = {
        "time": stamp(said.wall),
        "level": LEVELS[said.level],
        "id": said.line.id,
        "cluster": said.cluster,
        "replica": said.replica,
        "view": said.view,
        "op": said.op,
        "message": f"replica {said.replica} {sentence(said)}",
        "fields": {
            name: clean(value) if isinstance(value, str) else _number(fields[name], value)
            for name, value in said.values.items()
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def _number(field: Field, value: int) -> Value:
    """A member of an enum by its name; a duration is a number whatever is said of it in words."""
    return value if field.name.endswith("_ns") else field.words.get(value, value)


def as_text(said: Said) -> str:
    """For people; the id is at the end, to be looked up in docs/logs.md."""
    where = "" if said.view is None else f" view={said.view} op={said.op}"
    head = f"kimberlite: {stamp(said.wall)} {LEVELS[said.level]}: replica {said.replica}"
    return f"{head} {sentence(said)} [{said.line.id}{where}]\n"


def clean(text: str) -> str:
    """Printable and short."""
    return "".join(character if character.isprintable() else "?" for character in text[:TEXT_MAX])
