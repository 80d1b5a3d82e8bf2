"""Timers that read no clock, the jitter source, and the failure detector.

All times are nanoseconds handed in. Imports nothing of Kimberlite.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


class Prng:
    """xorshift64* (Vigna 2014): jitter that is a function of the seed alone."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + 0x1234567) & _MASK or 1

    def below(self, bound: int) -> int:
        """An integer in [0, bound); 0 when bound is not positive."""
        x = self._state
        x ^= x >> 12
        x = (x ^ (x << 25)) & _MASK
        x ^= x >> 27
        self._state = x
        return ((x * 0x2545F4914F6CDD1D & _MASK) >> 11) % bound if bound > 0 else 0

    def jitter(self, interval: int) -> int:
        """`interval` spread uniformly over [0.5, 1.5): two fixed timers cannot resonate."""
        return interval // 2 + self.below(interval)


class Timer:
    """A deadline that may be absent."""

    __slots__ = ("deadline",)

    def __init__(self) -> None:
        self.deadline: int | None = None

    def start(self, deadline: int) -> None:
        self.deadline = deadline

    def start_if_idle(self, deadline: int) -> None:
        if self.deadline is None:
            self.deadline = deadline

    def start_no_later_than(self, deadline: int) -> None:
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline

    def stop(self) -> None:
        self.deadline = None

    def due(self, now: int) -> bool:
        """True once per expiry: the timer is stopped by the call."""
        if self.deadline is None or now < self.deadline:
            return False
        self.deadline = None
        return True


class FailureDetector:
    """When a silent primary is suspected.

    The timeout follows the observed gaps between signs of life (EWMA, weight 1/5) times
    four, within [min, max], plus up to half of itself of jitter so that backups do not
    all vote at the same moment. A sign of life resets it.
    """

    __slots__ = ("_ewma", "_last", "_max", "_min", "_prng", "deadline")

    def __init__(self, minimum: int, maximum: int, prng: Prng, now: int) -> None:
        self._min = minimum
        self._max = maximum
        self._prng = prng
        self._ewma = minimum // 4
        self._last = now
        self.deadline = 0
        self.reset(now)

    def reset(self, now: int) -> None:
        """Begin to wait anew, without a sample."""
        self._last = now
        timeout = min(max(4 * self._ewma, self._min), self._max)
        self.deadline = now + timeout + self._prng.below(timeout // 2)

    def heard(self, now: int) -> None:
        """A sign of life of the primary. Samples are clamped: one long pause must not blind us."""
        sample = min(max(now - self._last, 0), self._max)
        self._ewma += (sample - self._ewma) // 5
        self.reset(now)
