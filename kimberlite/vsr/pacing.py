"""How often a question is put that brings nothing: the one place for all that a replica asks of others.

A question is named by what it is about: an op whose entry is wanted, the first op of headers that are. It may be put
again as soon as it is known to have brought nothing, FREE times: frames get lost. After that each time twice as late
as the time before, at most `most_ns`: then nobody has what is asked for, or nobody says it, and asking goes on only
in case that changes. A log that is installed forgets all. A replica that is heard again may have what nobody else has:
each question may be put once more then, but not for every one of several that come and go.

Bounded: the questions that were put least recently are forgotten. Imports nothing.
"""

from __future__ import annotations

from typing import TypeAlias

Question: TypeAlias = tuple[str, int]

FREE = 3
QUESTIONS_MAX = 1024


class Pacing:
    """See the module docstring. Times in nanoseconds."""

    def __init__(self, first_ns: int, most_ns: int) -> None:
        self._first_ns = first_ns
        self._most_ns = most_ns
        self._barren: dict[Question, tuple[int, int]] = {}  # times it brought nothing; not to be put before
        self._renewed_at = -first_ns

    def may_ask(self, question: Question, now: int) -> bool:
        known = self._barren.get(question)
        return known is None or now >= known[1]

    def is_barren(self, question: Question) -> bool:
        """Whether it brought nothing more often than frames get lost."""
        return self._barren.get(question, (0, 0))[0] > FREE

    def brought_nothing(self, question: Question, now: int) -> None:
        times, due = self._barren.pop(question, (0, now))
        if now > due + 2 * self._most_ns:  # long ago
            times = 0
        wait = min(self._first_ns << times - FREE, self._most_ns) if times >= FREE else 0
        self._barren[question] = times + 1, now + wait
        if len(self._barren) > QUESTIONS_MAX:
            del self._barren[next(iter(self._barren))]

    def brought_something(self, question: Question) -> None:
        self._barren.pop(question, None)

    def renew(self, now: int) -> None:
        """Somebody else may be asked: each question once more, as if it had been free so far."""
        due = max(now, self._renewed_at + self._first_ns)
        if due == now:
            self._renewed_at = now
        for question, (times, put_off) in self._barren.items():
            if put_off > due:
                self._barren[question] = min(times, FREE), due

    def clear(self) -> None:
        """All may have become another matter."""
        self._barren.clear()
