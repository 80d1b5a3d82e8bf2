"""Whether this machine's clock may be believed, by what it said before and by what other replicas stamp.

Retention by age is the one decision that asks what time it is, and what it removes is gone. Two rules, until the
replicas agree on a time:

- the age of a segment counts from the earlier of what the clocks of a replication quorum say (vsr/clocks.py) and the
  log's own last timestamp (retention.is_old): a clock that is ahead removes nothing by itself, whenever it was set
  wrong, and nothing goes by age while nothing is appended;
- a clock that has moved by more than JUMP_NS against the time that passed, forward or back, since it was last believed
  is not believed (`Clock`). Then nothing goes by age, until the clock is again within JUMP_NS of what it was believed
  to be, or is that of another replica: an op that one of them stamped by its own clock is that near to it.

A single replica has its own clock alone: one that was wrong already when the process started makes clock and log agree
with the first append. And an op whose timestamp only follows on that of the op before says nothing of the clock of who
made it: see `is_of_a_clock`.

Pure but for `now`. Imports nothing.
"""

from __future__ import annotations

import time
from typing import NamedTuple

S = 1_000_000_000
JUMP_NS = 600 * S


def now() -> tuple[int, int]:
    """This machine's clock, nanoseconds since 1970, and a time that nobody sets, which goes on while the machine
    sleeps: what it had missed would look like a jump."""
    return time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Stamp(NamedTuple):
    """The last op of the log: its timestamp (nanoseconds since 1970), that of the op before, and the replica that
    gave it."""

    timestamp: int
    previous: int
    replica: int


def has_jumped(offset_ns: int, believed_ns: int) -> bool:
    """Whether a clock has moved too far. Both: the clock less the time that runs steadily, now and when believed."""
    return abs(offset_ns - believed_ns) > JUMP_NS


def is_of_a_clock(stamp: Stamp) -> bool:
    """Whether a timestamp tells the clock of the replica that gave it. Timestamps increase: one that is the next
    possible one may be that of a clock which is behind the log."""
    return stamp.timestamp > stamp.previous + 1


def is_confirmed(own_ns: int, stamp: Stamp, own: int) -> bool:
    """Whether another replica stamped the last op of the log with a clock that agrees with ours. own: our index."""
    return stamp.replica != own and is_of_a_clock(stamp) and abs(own_ns - stamp.timestamp) <= JUMP_NS


class Clock:
    """Watches this machine's clock. offset: nanoseconds by which it has moved against the time that passed, since it
    was believed last. jump: the same while it is not believed because of that, otherwise 0. ahead: nanoseconds by which
    the log's last timestamp is ahead of it, 0 when it is not."""

    def __init__(self, wall_ns: int, steady_ns: int, own: int) -> None:
        """wall_ns: the clock, since 1970; steady_ns: a time that nobody sets. own: index of this replica. The clock is
        believed at the start: there is nothing to hold it against."""
        self.offset = 0
        self.jump = 0
        self.ahead = 0
        self._believed = wall_ns - steady_ns
        self._own = own

    def look(self, wall_ns: int, steady_ns: int, stamp: Stamp) -> bool:
        """Whether the clock may be believed now. stamp: of the last op of the log."""
        offset = wall_ns - steady_ns
        if has_jumped(offset, self._believed) and is_confirmed(wall_ns, stamp, self._own):
            self._believed = offset
        self.offset = offset - self._believed
        self.jump = self.offset if has_jumped(offset, self._believed) else 0
        self.ahead = max(stamp.timestamp - wall_ns, 0)
        return not self.jump

    @property
    def is_behind_the_log(self) -> bool:
        return self.ahead > JUMP_NS

    def document(self) -> dict[str, float]:
        """For the status document: seconds."""
        return {"jump_s": round(self.jump / S, 3), "log_ahead_s": round(self.ahead / S, 3)}

    def reason(self) -> str:
        """Why what is too old is kept, in a sentence; empty when nothing is in the way."""
        if self.jump:
            way = "forward" if self.jump > 0 else "back"
            return (
                f"the clock of this machine went {way} by {span(abs(self.jump))} while this replica ran, so retention "
                "by age waits: set it right, or, when it is right now, restart this replica or append while another "
                "one is primary"
            )
        if self.is_behind_the_log:
            return (
                f"the log's last timestamp is {span(self.ahead)} ahead of the clock of this machine: events with such "
                "timestamps are kept until their age by this clock is retention.age_max_s, so that the log grows; "
                "retention.bytes_max bounds it"
            )
        return ""


def span(ns: int) -> str:
    """A time in a unit that fits it: `650 s`, `25 h`, `365 d`."""
    seconds = ns // S
    for unit, length in (("d", 86_400), ("h", 3_600)):
        if seconds >= 10 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
