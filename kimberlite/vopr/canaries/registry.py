"""The list of planted bugs, and how one is planted and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

from kimberlite._fast import framing
from kimberlite.errors import UsageError

# Owner, attribute (or key, when the owner is a dict), and what takes its place.
Owner: TypeAlias = ModuleType | type | dict[int, Any]
Patch: TypeAlias = tuple[Owner, Any, Any]


@dataclass(frozen=True, slots=True)
class Canary:
    """A planted bug. what: one line. patches: made anew each time, for some keep state.

    twice: found by running each seed twice. labels: found by what a campaign does not reach.
    """

    name: str
    what: str
    patches: Callable[[], list[Patch]]
    twice: bool = False
    labels: bool = False


CANARIES: dict[str, Canary] = {}


def canary(what: str, *, twice: bool = False, labels: bool = False) -> Callable[[Callable[[], list[Patch]]], None]:
    """Enter a function that makes patches into the list, under its own name."""

    def enter(function: Callable[[], list[Patch]]) -> None:
        name = function.__name__.strip("_").replace("_", "-")
        CANARIES[name] = Canary(name, what, function, twice, labels)

    return enter


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """With that bug inside; None plants nothing. Raises UsageError for an unknown name."""
    if name is None:
        yield
        return
    (name,) = select([name])
    undo: list[Patch] = []
    try:
        for owner, key, value in CANARIES[name].patches():
            if isinstance(owner, dict):
                undo.append((owner, key, owner[key]))
                owner[key] = value
            else:
                undo.append((owner, key, vars(owner)[key]))
                setattr(owner, key, value)
        yield
    finally:
        for owner, key, value in reversed(undo):
            if isinstance(owner, dict):
                owner[key] = value
            else:
                setattr(owner, key, value)


def select(only: Sequence[str]) -> list[str]:
    """The names asked for, all when none. Raises UsageError."""
    for name in only:
        if name not in CANARIES:
            raise UsageError(f"no planted bug is called {name!r}; there are {', '.join(CANARIES)}")
    return list(only) or list(CANARIES)


class Unverified:
    """The module framing, with decisions replaced."""

    def __init__(self, **replaced: Any) -> None:
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(framing, name)
