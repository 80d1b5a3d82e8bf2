"""Retention: with which op the log should begin, by its size and the age of its events.

A pure decision over what the store knows of its segments; the primary asks now and then, and proposes
the answer as an operation. Whole segments only: trimming less would give no space back. A trim that
is due waits for the checkpoints of all replicas, and it is said when that takes long: the log grows.

Ages count by two clocks: the latest time that has passed by the clocks of a replication quorum (vsr/clocks.py), and the
log's own last timestamp. This machine's clock is one of the quorum's; node/clock.py says when it is not believed. Then
nothing goes by age at all.

May import: errors, storage.interface, vsr, node.clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kimberlite.errors import DiskFullError
from kimberlite.node.clock import JUMP_NS, Clock, Stamp, span
from kimberlite.storage.interface import Extent, LogStore
from kimberlite.vsr.replica import Replica

SEGMENTS_MAX = 256  # trimmed at a time: each takes a look at its file
PATIENCE_NS = 10_000_000_000  # replicas make their checkpoints one a little after the other
LOOKS_PER_QUESTION = 10  # each replica is asked that seldom what time it is


class Choice(NamedTuple):
    """trim: (first op, position of its first event) to begin the log with; None to leave it as it is.
    held: first op of the next segment that the log would begin with, were that not above `last_op`."""

    trim: tuple[int, int] | None = None
    held: int | None = None


def is_old(before_ns: int, *, age_max_ns: int, now_ns: int, log_ns: int) -> bool:
    """Whether all that was stamped before `before_ns` is older than age_max_ns, by the clocks of the replicas and by
    the log's last timestamp: one clock that is wrong must not be enough to remove anything."""
    return before_ns <= min(now_ns, log_ns) - age_max_ns


def choose(
    extents: Iterable[Extent], *, bytes_max: int, age_max_ns: int, now_ns: int, log_ns: int = 0, last_op: int
) -> Choice:
    """With which op the log should begin.

    extents: the segments of the log, oldest first; looked at only as far as needed. A segment goes when what
    comes after it is bytes_max at least, or when all its events are older than age_max_ns (0: no
    such limit). now_ns: by the clocks of a replication quorum, 0 while too few have told; log_ns: the timestamp of
    the log's last op, 0 when it is not known or this clock is not believed: nothing goes by age then. last_op:
    the highest op that the log may begin with.
    """
    if not bytes_max and not age_max_ns:
        return Choice()
    trim: tuple[int, int] | None = None
    for count, extent in enumerate(extents):
        if count == 0:
            continue  # the segment that the log begins with
        large = bytes_max and extent.bytes_from_here >= bytes_max
        old = age_max_ns and is_old(extent.first_timestamp, age_max_ns=age_max_ns, now_ns=now_ns, log_ns=log_ns)
        if count > SEGMENTS_MAX or not (large or old):
            break
        if extent.first_op > last_op:
            return Choice(trim, extent.first_op)
        trim = extent.first_op, extent.first_position
    return Choice(trim)


class Wait:
    """For which replicas a trim that is due waits. since: nanoseconds, when that began; 0 while none waits."""

    def __init__(self) -> None:
        self.since = 0
        self._first_op = 0
        self._needed = 0
        self._late: dict[int, int] = {}  # replica -> the op of its checkpoint

    def look(self, first_op: int, held: int | None, own: int, others: Mapping[int, int], now: int) -> None:
        """first_op: with which the log begins; held: of the Choice. own, others: the op of the durable
        checkpoint here, and by replica elsewhere. While there is none here for it, a trim is not due."""
        needed = held - 1 if held is not None and own >= held - 1 else 0
        self._late = {replica: op for replica, op in others.items() if op < needed}
        if not self._late:
            self.since = 0
        elif not self.since or first_op != self._first_op:
            self.since = now
        self._first_op, self._needed = first_op, needed

    def reason(self, now: int) -> str:
        """A sentence, empty while nothing waits for long."""
        if not self.since or now - self.since < PATIENCE_NS:
            return ""
        late = ", ".join(f"replica {replica} (which has that of op {op})" for replica, op in sorted(self._late.items()))
        return (
            f"retention has waited {(now - self.since) / 1e9:.0f} s for a checkpoint of op {self._needed} on {late}: "
            "the log grows until it has one; bring it back, or see to room on the disks"
        )


class Times(NamedTuple):
    """One moment by three clocks, in nanoseconds: since 1970, as this machine has it; a time that nobody sets and that
    goes on while the machine sleeps; the monotonic time of the core."""

    wall: int
    steady: int
    now: int


class Retention:
    """What one replica does about retention, looked at now and then. bytes_max, age_max_s: 0 for no such limit."""

    def __init__(self, bytes_max: int, age_max_s: int, clock: Clock) -> None:
        self.clock = clock
        self._bytes_max = bytes_max
        self._age_max_ns = age_max_s * 1_000_000_000
        self._wait = Wait()
        self._looks = 0  # as primary
        self._ahead = 0  # of the clocks of a quorum, as last heard: nanoseconds

    def look(self, core: Replica, store: LogStore, times: Times) -> tuple[int, int] | None:
        """With which op, and the position of its first event, the log should begin; None to leave it as it is. The
        clock is watched on every replica: it may be the primary next."""
        try:
            return self._look(core, store, times)
        except DiskFullError:  # no descriptor to read the log with: it is looked at again in a moment
            return None

    def _look(self, core: Replica, store: LogStore, times: Times) -> tuple[int, int] | None:
        stamp = last_stamp(store, core.applied)
        is_believed = self.clock.look(times.wall, times.steady, stamp)
        if not core.state.is_primary:
            self._wait, self._looks, self._ahead = Wait(), 0, 0
            return None
        told = self._ask(core, times)
        choice = choose(
            store.extents(),
            bytes_max=self._bytes_max,
            age_max_ns=self._age_max_ns,
            now_ns=told or 0,
            log_ns=stamp.timestamp if is_believed else 0,
            last_op=min(core.trimmable_op, core.applied),
        )
        checkpoints = {replica: peer.checkpoint for replica, peer in core.state.peers.items()}
        self._wait.look(core.state.log.first_op, choice.held, core.checkpoint_op, checkpoints, times.now)
        return choice.trim

    def _ask(self, core: Replica, times: Times) -> int | None:
        """What time it is by the clocks of a quorum; None while too few have told it. Nobody is asked where age is no
        limit."""
        if not self._age_max_ns:
            return None
        if self._looks % LOOKS_PER_QUESTION == 0:
            core.ask_clocks(times.now)
        self._looks += 1
        told = core.time_of_a_quorum(times.wall, times.now)
        self._ahead = times.wall - told if told is not None else 0
        return told

    @property
    def is_suspended(self) -> bool:
        """Whether nothing goes by age, though a limit of age is set, because the clock is not believed."""
        return bool(self._age_max_ns and self.clock.jump)

    @property
    def waits_since(self) -> int:
        """When a trim that is due began to wait for a replica, by the core's time; 0 while none waits."""
        return self._wait.since

    def reason(self, now: int) -> str:
        """Why something stays longer than it should, in a sentence; empty when nothing does."""
        return self._wait.reason(now) or (self._clock_reason() if self._age_max_ns else "")

    def _clock_reason(self) -> str:
        if self._ahead > JUMP_NS and not self.clock.jump:
            return (
                f"the clock of this machine is {span(self._ahead)} ahead of those of a quorum of the replicas: what is "
                "too old by it alone is kept; set the clocks right"
            )
        return self.clock.reason()


def last_stamp(store: LogStore, op: int) -> Stamp:
    """Of that op, the last that is executed. One that can not be read counts as unknown: of time 0."""
    header, before = store.header(op), store.header(op - 1) if op else None
    if header is None:
        return Stamp(0, 0, 0)
    return Stamp(header.timestamp, before.timestamp if before is not None else header.timestamp, header.replica)
