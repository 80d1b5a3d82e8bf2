"""What a client tells of its appends, with the request that follows: how long they took, and how they failed.

Fields of a REQUEST (kimberlite.frames) say it:

    latency_us   of one append that was answered, when nothing else is to be told: most clients append one at a time
    flags        TELLS: there is more
    parent, context    of the appends beside: eight pairs of u16, a latency and how many appends took that long
    timestamp    eight counts of a byte each, by ClientFailure: appends that failed

A latency is rounded to one of 32 steps of its power of two, so that it is right within 1.6 %. All of it is bounded:
whatever a client says adds TOLD_MAX latencies and 255 failures of a kind at most, none above LATENCY_US_MAX. Only
metrics are made of it: the core reads none of it but latency_us.

Imports errors and types only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from kimberlite import errors
from kimberlite.types import ZERO16, ClientFailure, Header

TELLS = 1  # header.flags of REQUEST
TOLD_MAX = 4096  # latencies told with one request
LATENCY_US_MAX = 0xFFFF_FFFF
_PAIRS = struct.Struct("<16H")
_PAIRS_MAX = 8
_COUNT_MAX = 255
_STEPS = 32
_STEP_BITS = 5
_CODE_MAX = (32 - _STEP_BITS) * _STEPS + _STEPS - 1
FAILURES: dict[type[errors.KimberliteError], ClientFailure] = {
    errors.OutcomeUnknownError: ClientFailure.UNKNOWN,
    errors.UnavailableError: ClientFailure.UNAVAILABLE,
    errors.BusyError: ClientFailure.BUSY,
    errors.NoSpaceError: ClientFailure.NO_SPACE,
    errors.SessionEvictedError: ClientFailure.EVICTED,
    errors.EventTooLargeError: ClientFailure.TOO_LARGE,
    errors.RejectedError: ClientFailure.REJECTED,
}


def code_of(latency_us: int) -> int:
    """The step that a latency is rounded to."""
    if latency_us < _STEPS:
        return max(latency_us, 0)
    shift = min(latency_us, LATENCY_US_MAX).bit_length() - _STEP_BITS - 1
    return shift * _STEPS + (min(latency_us, LATENCY_US_MAX) >> shift)


def latency_of(code: int) -> int:
    """The middle of a step, microseconds."""
    if code < 2 * _STEPS:
        return code
    shift = min(code, _CODE_MAX) // _STEPS - 1
    return ((min(code, _CODE_MAX) % _STEPS + _STEPS) << shift) + (1 << shift >> 1)


class Telling:
    """What a client has to tell. `fields` is what the next request says; it is told when that is answered, and to be
    told again when it is `refused`."""

    __slots__ = ("_failures", "_latencies", "_one_us", "_under_way")

    def __init__(self) -> None:
        self._one_us = 0  # of the only append there is to be told of
        self._latencies: dict[int, int] = {}  # by their step, how many appends took that long
        self._failures = [0] * (max(ClientFailure) + 1)
        self._under_way: tuple[int, Sequence[tuple[int, int]], Sequence[int]] = (0, (), ())

    def answered(self, began_at: Sequence[int], now: int) -> None:
        """Appends that were answered now: when each was called, nanoseconds."""
        if len(began_at) == 1 and not self._one_us and not self._latencies:
            self._one_us = min(max((now - began_at[0]) // 1000, 1), LATENCY_US_MAX)
            return
        latencies, low, high, code, count = self._latencies, 0, 0, 0, 0
        if self._one_us:
            self._add(code_of(self._one_us), 1)
            self._one_us = 0
        for began in began_at:
            latency = (now - began) // 1000
            if not low <= latency < high:
                if count:
                    latencies[code] = latencies.get(code, 0) + count
                code, count = code_of(latency), 0
                low, high = latency, latency + 1  # those called at once are told together without another look
            count += 1
        if count:
            latencies[code] = latencies.get(code, 0) + count

    def failed(self, error: type[errors.KimberliteError]) -> None:
        """An append ended with this error."""
        self._failures[FAILURES[error]] += 1

    def fields(self) -> dict[str, Any]:
        """Of the header of the next request."""
        latencies, failures = self._latencies, self._failures
        if not latencies and not any(failures):
            self._under_way = self._one_us, (), ()
            one, self._one_us = self._one_us, 0
            return {"latency_us": one}
        if self._one_us:
            self._add(code_of(self._one_us), 1)
            self._one_us = 0
        room, pairs = TOLD_MAX, []
        for code in list(latencies)[:_PAIRS_MAX]:
            count = min(latencies[code], room)
            if count:
                pairs.append((code, count))
                self._add(code, -count)
                room -= count
        told = [min(count, _COUNT_MAX) for count in failures]
        self._failures = [count - taken for count, taken in zip(failures, told, strict=True)]
        self._under_way = 0, pairs, told
        numbers = [number for pair in pairs for number in pair]
        packed = _PAIRS.pack(*numbers, *[0] * (2 * _PAIRS_MAX - len(numbers)))
        return {
            "flags": TELLS,
            "parent": packed[:16],
            "context": packed[16:],
            "timestamp": int.from_bytes(bytes(told), "little"),
        }

    def refused(self) -> None:
        """Nobody took the request that these fields were in."""
        one, pairs, failures = self._under_way
        self._under_way = 0, (), ()
        for code, count in pairs:
            self._add(code, count)
        for outcome, count in enumerate(failures):
            self._failures[outcome] += count
        if one:
            if self._one_us or self._latencies:
                self._add(code_of(one), 1)
            else:
                self._one_us = one

    def _add(self, code: int, count: int) -> None:
        left = self._latencies.get(code, 0) + count
        if left:
            self._latencies[code] = left
        else:
            del self._latencies[code]


def latencies_of(header: Header) -> Iterator[tuple[int, int]]:
    """What a REQUEST with TELLS says of appends: nanoseconds, and how many took so long. TOLD_MAX at most."""
    if header.parent == ZERO16:
        return
    numbers = _PAIRS.unpack(header.parent + header.context)
    room = TOLD_MAX
    for code, count in zip(numbers[::2], numbers[1::2], strict=True):
        taken = min(count, room)
        room -= taken
        if taken:
            yield 1000 * latency_of(code), taken


def failures_of(header: Header) -> Iterator[tuple[ClientFailure, int]]:
    """What it says of appends that failed. A count without a name is of a later release."""
    counts = header.timestamp.to_bytes(8, "little")
    for outcome in ClientFailure:
        if counts[outcome]:
            yield outcome, counts[outcome]
