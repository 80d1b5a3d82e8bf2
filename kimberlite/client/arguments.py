"""What callers give a client: checked, and frozen, at the call.

Every function gives back what was meant, in a form that the caller can not change any more, or
raises: TypeError for a value of the wrong kind, UsageError for one outside of its bounds (EventTooLargeError
above a limit). Messages name the argument and show the value. May import: errors, types, _fast.
"""

from __future__ import annotations

import inspect
import math
import operator
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Set
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from kimberlite._fast import events as event_batches
from kimberlite.errors import EventTooLargeError, FrameError, UsageError
from kimberlite.types import Bytes

SECONDS_MAX = 1_000_000_000  # some thirty years
POSITION_MAX = (1 << 63) - 1
SHOWN_MAX = 60  # characters of a value in a message
BYTE_FORMATS = ("B", "b", "c")

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, object]])
Frozen: TypeAlias = tuple[bytes, int]  # events as they were at the call: the body of a batch, and their number


def shown(value: object) -> str:
    """A value for a message, cut when it is long. Never raises, whatever the value's own code does."""
    try:
        text = repr(value)
    except Exception:  # the caller's code
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def seconds(value: float, name: str = "timeout") -> float:
    """A span of time."""
    if (type(value) is float or type(value) is int) and 0 <= value <= SECONDS_MAX:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {shown(value)} ({type(value).__name__})")
    if not 0 <= value <= SECONDS_MAX or math.isnan(value):
        raise UsageError(f"{name} is {shown(value)}: it must be from 0 to {SECONDS_MAX} seconds", argument=name)
    return float(value)


def whole(value: int, name: str, least: int = 0, most: int = POSITION_MAX) -> int:
    """A whole number: a position, a limit, a count."""
    if isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, not {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {shown(value)} ({type(value).__name__})") from None
    if not least <= number <= most:
        raise UsageError(f"{name} is {shown(number)}: it must be from {least} to {most}", argument=name)
    return number


def freeze(events: Iterable[Bytes], events_max: int) -> Frozen:
    """Events as one batch. Cost: one look at each type and one copy."""
    if type(events) is list and len(events) == 1 and type(events[0]) is bytes:
        return event_batches.build(events), 1  # by far the most frequent
    items = events if type(events) is list else _listed(events, events_max)
    if len(items) > events_max:
        raise EventTooLargeError(
            f"an append of {len(items)} events is above the limit of {events_max} events for one request; split it",
            count=len(items),
            limit=events_max,
        )
    if not items:
        raise UsageError("an append needs at least one event, and was given none")
    if set(map(type, items)) != {bytes}:
        items = [_frozen(event, index) for index, event in enumerate(items)]
    body = event_batches.build(items)
    count = event_batches.count(body)  # of what was copied: the list may be another thread's as well
    return body, count


def freeze_batch(body: Bytes, count: int, events_max: int) -> Frozen:
    """A batch that the caller built, checked to be one. Cost: about 1 ns an event."""
    count = whole(count, "count", 1, events_max)
    if type(body) is not bytes:
        body = _frozen(body, None)
    try:
        found = event_batches.validate(body)
    except FrameError as error:
        raise UsageError(f"body is no batch of events, as kimberlite.events.build makes them: {error}") from None
    if found != count:
        raise UsageError(f"count is {count}, but the batch holds {found} events", argument="count")
    return body, count


def coroutine_function(function: F) -> F:
    """Mark a function that returns a coroutine as the coroutine function that it is for its callers.

    Unlike an `async def` it can freeze its arguments when it is called, not when it is awaited.
    """
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    # Before 3.12 `inspect` knows them by this flag only; the interpreter itself goes by the byte code.
    code = function.__code__
    function.__code__ = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)
    return function


def _listed(events: Iterable[Bytes], events_max: int) -> list[Bytes]:
    """The events in a list of our own: a tuple, a generator, a deque; one more than the limit when there are more."""
    if isinstance(events, str | bytes | bytearray | memoryview):
        raise TypeError(
            f"append takes a list of events, and was given one {type(events).__name__}: write [event], of bytes"
        )
    if isinstance(events, Mapping | Set):
        raise TypeError(f"append takes a list of events in their order, not a {type(events).__name__}")
    try:
        return list(islice(events, events_max + 1))
    except Exception as error:  # the caller's code may have made it
        raise TypeError(f"append takes a list of events, not {shown(events)} ({type(events).__name__})") from error


def _frozen(value: Bytes, index: int | None) -> bytes:
    """The bytes of a buffer, copied. index: of the event, for messages; None for a whole batch."""
    if type(value) is bytes:
        return value
    what = "body" if index is None else f"event {index}"
    try:
        view = memoryview(value)
    except Exception as error:  # the caller's code may have made it
        raise TypeError(f"{what} is {shown(value)} ({type(value).__name__}), not bytes") from error
    with view:
        if not view.c_contiguous:
            raise TypeError(f"{what} is a buffer with gaps: give bytes(...) of it")
        if isinstance(value, memoryview) and view.format not in BYTE_FORMATS:
            raise TypeError(
                f"{what} is a memoryview of items of format {view.format!r}, not of bytes: give .cast('B') of it"
            )
        return view.tobytes()
