"""Bounds on time that a busy machine does not disturb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


async def soon(attempt: Callable[[], Awaitable[float]], bound: float, tries: int = 3) -> None:
    """One of so many attempts takes less than `bound` seconds, each of which gives what it took: what takes longer by
    itself always does, what was held up by other work does not."""
    took = []
    for _ in range(tries):
        took.append(await attempt())
        if took[-1] < bound:
            return
    raise AssertionError(f"it took {took} seconds, and never less than {bound}")


def soon_in_thread(attempt: Callable[[], float], bound: float, tries: int = 3) -> None:
    """The same of a call that blocks."""
    took = []
    for _ in range(tries):
        took.append(attempt())
        if took[-1] < bound:
            return
    raise AssertionError(f"it took {took} seconds, and never less than {bound}")
