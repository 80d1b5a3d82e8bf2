"""Whose turn it is: the time of the event loop that clients get for what is no append.

Reads, the status and refusals take time in which everybody's commits wait. While something is being committed they
get one part in SHARE of the loop's time together; on an idle replica they get all of it. It is shared out one after
another: a connection has one read or one status executed, or some refusals, and is then behind all others that wait.
The next follows when the answer was taken by the socket, so that whoever does not read holds one answer.

Thread rules: one event loop. May import: net.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from kimberlite.net.transport import FrameConnection

SHARE = 8
BURST_NS = 2_000_000  # may be taken at once
BUSY_NS = 100_000_000  # since the last op: until then something is being committed
# What they count for at least. More than the loop is busy with them: an answer also costs the kernel, and wakes up
# whoever gets it, on the processors that replicas need.
READ_NS = 200_000
STATUS_NS = 2_000_000
BYTE_NS = 2  # of an answer: the kernel copies it twice, and its reader a third time on the same processors
REFUSAL_NS = 100_000  # with the frame that it is about
LATER_NS = 30_000  # a refusal that is no fault of the client's
REFUSALS_PER_TURN = 32


class Waiter(Protocol):
    """Who waits for a turn."""

    connection: FrameConnection
    owed: int  # nanoseconds that were taken without a turn
    has_turn: bool


class Turns:
    """progress: the number of the last op: when it grows, something is being committed."""

    def __init__(self, progress: Callable[[], int]) -> None:
        self._progress = progress
        self._op = -1
        self._busy_until = 0
        self._credit = BURST_NS
        self._earned_at = 0
        self._queue: dict[Waiter, None] = {}
        self._congested: set[Waiter] = set()
        self._next: asyncio.Handle | None = None

    def take(self, waiter: Waiter) -> bool:
        """Whether it may go on now. Otherwise its connection goes on when its turn has come: until then it keeps its
        frames."""
        if waiter.has_turn:
            waiter.has_turn = False
        else:
            self._earn()
            if self._queue or self._credit <= 0 or waiter.connection.is_congested:
                self.wait(waiter)
                return False
        self._credit -= waiter.owed
        waiter.owed = 0
        return True

    def wait(self, waiter: Waiter) -> None:
        """It has had its turn, and keeps frames for another."""
        if waiter.connection.is_congested:
            self._congested.add(waiter)
        else:
            self._queue[waiter] = None
            self._schedule()

    def on_writable(self, waiter: Waiter) -> None:
        """The socket has taken what it was given."""
        if waiter in self._congested:
            self._congested.discard(waiter)
            self.wait(waiter)

    def forget(self, waiter: Waiter) -> None:
        """Its connection is gone."""
        self._queue.pop(waiter, None)
        self._congested.discard(waiter)

    def charge(self, ns: int) -> None:
        """So much of the loop's time was taken."""
        self._credit -= ns

    def _earn(self) -> None:
        now, op = time.monotonic_ns(), self._progress()
        if op != self._op:
            if self._op >= 0:  # the first look says nothing of what is under way
                self._busy_until = now + BUSY_NS
            self._op = op
        if now < self._busy_until:
            self._credit = min(self._credit + (now - self._earned_at) // SHARE, BURST_NS)
        else:
            self._credit = BURST_NS
        self._earned_at = now

    def _schedule(self) -> None:
        if self._next is not None or not self._queue:
            return
        loop = asyncio.get_running_loop()
        if self._credit > 0:
            self._next = loop.call_soon(self._go)
        else:
            self._next = loop.call_later(-self._credit * SHARE / 1e9, self._go)

    def _go(self) -> None:
        self._next = None
        self._earn()
        if self._queue and self._credit > 0:
            waiter = next(iter(self._queue))
            del self._queue[waiter]
            waiter.has_turn = True
            waiter.connection.go_on()
            waiter.has_turn = False
        self._schedule()
