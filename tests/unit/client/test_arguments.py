"""What callers give a client: checked, and frozen, at the call."""

from __future__ import annotations

import array
import asyncio
import inspect
import itertools
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from kimberlite._fast import events as event_batches
from kimberlite.client import arguments
from kimberlite.errors import EventTooLargeError, UsageError

EVENTS_MAX = 100


class Hostile:
    """Every look at it raises."""

    def __len__(self) -> int:
        raise ZeroDivisionError

    def __iter__(self) -> Iterator[bytes]:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError


class LongBytes(bytes):
    def __len__(self) -> int:
        return 1 << 40


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


def raising() -> Iterator[bytes]:
    yield b"a"
    raise ZeroDivisionError


def frozen(events: Any) -> list[bytes]:
    body, count = arguments.freeze(events, EVENTS_MAX)
    return event_batches.slice(body, 0, count)


@pytest.mark.parametrize(
    "events",
    [
        "text",
        b"bytes",
        bytearray(b"bytes"),
        memoryview(b"bytes"),
        5,
        None,
        object(),
        Hostile(),
        raising(),
        {b"a": 1},
        {b"a"},
        ["text"],
        [b"a", "text", b"c"],
        [1],
        [None],
        [[b"a"]],
        [(b"a",)],
        [Hostile()],
        [released()],
        [memoryview(b"abcdef")[::2]],
        [memoryview(array.array("i", [1, 2]))],
        [b"a", memoryview(b"abcd").cast("H")],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_of_bytes_is_a_type_error(events: Any) -> None:
    with pytest.raises(TypeError):
        arguments.freeze(events, EVENTS_MAX)


@pytest.mark.parametrize("events", [[], (), deque(), iter([]), (event for event in ())])
def test_nothing_is_a_usage_error(events: Any) -> None:
    with pytest.raises(UsageError, match="at least one event"):
        arguments.freeze(events, EVENTS_MAX)


@pytest.mark.parametrize("events", [[b"a"] * (EVENTS_MAX + 1), itertools.repeat(b"a")])
def test_too_many_are_refused_even_without_an_end(events: Any) -> None:
    with pytest.raises(EventTooLargeError):
        arguments.freeze(events, EVENTS_MAX)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([b"a", b""], [b"a", b""]),
        ((b"a",), [b"a"]),
        (deque([b"a", b"b"]), [b"a", b"b"]),
        ((bytes([n]) for n in range(3)), [b"\0", b"\1", b"\2"]),
        ([bytearray(b"a"), memoryview(b"xbc")[1:], array.array("B", [1, 2])], [b"a", b"bc", b"\1\2"]),
        ([LongBytes(b"abc")], [b"abc"]),
    ],
)
def test_what_can_be_meant_is_taken(events: Any, expected: list[bytes]) -> None:
    assert frozen(events) == expected


def test_a_change_afterwards_changes_nothing() -> None:
    buffer = bytearray(b"hello")
    events = [buffer, b"there"]
    body, count = arguments.freeze(events, EVENTS_MAX)
    buffer[:] = b"XXXXX"
    events.clear()
    assert event_batches.slice(body, 0, count) == [b"hello", b"there"]
    whole = bytearray(body)
    batch, _ = arguments.freeze_batch(whole, count, EVENTS_MAX)
    whole[:] = bytes(len(whole))
    assert batch == body


BATCH = event_batches.build([b"a", b"b"])


@pytest.mark.parametrize(
    ("body", "count", "error"),
    [
        (BATCH, 3, UsageError),
        (BATCH, 0, UsageError),
        (BATCH, -1, UsageError),
        (BATCH, EVENTS_MAX + 1, UsageError),
        (BATCH, 1 << 64, UsageError),
        (BATCH, True, TypeError),
        (BATCH, 2.0, TypeError),
        (BATCH, None, TypeError),
        (b"", 1, UsageError),
        (BATCH[:-1], 2, UsageError),
        (b"no batch, but long enough to be one", 1, UsageError),
        ("text", 1, TypeError),
        (5, 1, TypeError),
        ([BATCH], 2, TypeError),
        (memoryview(BATCH)[::2], 2, TypeError),
    ],
)
def test_a_batch_that_is_none(body: Any, count: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        arguments.freeze_batch(body, count, EVENTS_MAX)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -0.001, 1 << 64, 1e300], ids=repr)
def test_a_span_of_time_out_of_bounds(value: float) -> None:
    with pytest.raises(UsageError, match="timeout"):
        arguments.seconds(value)


@pytest.mark.parametrize("value", ["5", None, True, b"5", 1j, [1]])
def test_what_is_no_span_of_time(value: Any) -> None:
    with pytest.raises(TypeError, match="timeout"):
        arguments.seconds(value)


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, arguments.SECONDS_MAX])
def test_a_span_of_time(value: float) -> None:
    assert arguments.seconds(value) == value


def test_a_number_too_long_to_be_shown_is_refused_all_the_same() -> None:
    with pytest.raises(UsageError):
        arguments.seconds(10**5000)


def test_whole_numbers() -> None:
    assert arguments.whole(arguments.POSITION_MAX, "start") == arguments.POSITION_MAX
    for value in (-1, 1 << 63, 1 << 64, 10**5000):
        with pytest.raises(UsageError, match="start"):
            arguments.whole(value, "start")
    for wrong in (True, 1.0, math.nan, "1", None):
        with pytest.raises(TypeError, match="start"):
            arguments.whole(wrong, "start")  # type: ignore[arg-type]


def test_a_function_that_gives_a_coroutine_counts_as_one() -> None:
    async def inner() -> int:
        return 5

    @arguments.coroutine_function
    def outer() -> Any:
        return inner()

    assert inspect.iscoroutinefunction(outer)
    assert asyncio.run(outer()) == 5
