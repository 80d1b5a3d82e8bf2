"""Long commands that are cut short tell what they have found so far."""

from __future__ import annotations

import signal
from collections.abc import Generator
from types import FrameType, TracebackType
from typing import Any, TypeVar

import click

from kimberlite.cli.common import note

SIGNALS = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")


class _CutShort(BaseException):
    """Not an Exception: whoever looks for whatever goes wrong must not take it for that."""


class Interruption:
    """Within the block SIGINT and SIGTERM end the wait for another result, and nothing else: what the caller does with
    a result is done whole, and so is what it does afterwards. For the main thread only."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # the first that came
        self._is_waiting = False
        self._before: list[Any] = []  # handlers

    def __enter__(self) -> Interruption:
        self._before = [signal.signal(number, self._on_signal) for number in SIGNALS]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            return  # it is ending already
        self.signal = signal.Signals(number)
        if self._is_waiting:
            raise _CutShort

    def until(self, results: Generator[T, None, None]) -> Generator[T, None, None]:
        """The results, up to a signal. The generator is closed: it ends what works for it."""
        try:
            while self.signal is None:
                self._is_waiting = True
                try:
                    result = next(results)
                finally:
                    self._is_waiting = False
                yield result
        except (StopIteration, _CutShort):
            return
        finally:
            results.close()

    def finish(self, done: str) -> None:
        """When a signal came, say how much is `done`, and end the command as a shell reports that signal."""
        if self.signal is not None:
            note(f"kimberlite: ended by {self.signal.name} after {done}: what was printed is not all")
            click.get_current_context().exit(128 + self.signal)
