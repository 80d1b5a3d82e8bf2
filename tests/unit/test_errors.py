"""Errors carry their data in attributes that are declared, and typed, by their class."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from pathlib import Path

import pytest

from kimberlite import errors
from kimberlite.errors import KimberliteError, PositionError, UnavailableError

SOURCE = Path(errors.__file__).parent


def declared(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in inspect.get_annotations(base)}


def raised() -> list[tuple[str, str, set[str]]]:
    """(where, class, keywords) of every error that is made somewhere."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                kind = getattr(errors, node.func.id, None)
                if isinstance(kind, type) and issubclass(kind, KimberliteError):
                    keywords = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                    found.append((f"{path.relative_to(SOURCE)}:{node.lineno}", node.func.id, keywords))
    return found


def test_what_errors_are_given_their_classes_declare() -> None:
    calls = raised()
    assert len(calls) > 100
    wrong = [
        f"{where}: {name} does not declare {sorted(extra)}"
        for where, name, keywords in calls
        if name != "InvariantError" and (extra := keywords - declared(getattr(errors, name)))
    ]
    assert not wrong, "\n".join(wrong)


def test_attributes_are_there_whether_they_were_given_or_not() -> None:
    error = PositionError("gone", position=5, first=7, end=None)
    assert (error.position, error.first, error.end, error.details["first"]) == (5, 7, None, 7)
    assert UnavailableError("nobody").addresses == () and UnavailableError("nobody").problems is None
    with pytest.raises(AttributeError):
        error.unknown  # type: ignore[attr-defined]  # noqa: B018


def test_errors_travel_between_processes() -> None:
    error = PositionError("gone", position=5, first=7, end=None)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(other), other.position, other.first, other.details) == ("gone", 5, 7, error.details)
