"""What the enumerations of damage and of crashes have in common: how something that is wrong is said."""

from __future__ import annotations

import traceback

FAILURES_SHOWN = 20


class Wrong(AssertionError):
    """Something that must not happen."""


def check(condition: bool, text: str) -> None:
    if not condition:
        raise Wrong(text)


def failure_text(error: Exception) -> str:
    """What was wrong; of whatever else has crashed, what and where."""
    if isinstance(error, Wrong):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.name})"
