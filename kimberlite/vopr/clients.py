"""The clients of a run: what they ask of the cluster, and what they remember of the answers.

A client is the production Session. What it appends comes from the workload stream of the seed. A reader asks the
production LogReader of any replica, and compares what it gives out with the log (check I14).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kimberlite._fast import events as event_batches
from kimberlite._fast import framing
from kimberlite.client.session import Session
from kimberlite.errors import CorruptEntryError, OutcomeUnknownError, PositionError
from kimberlite.types import Message
from kimberlite.vopr.checkers import Acknowledged, Violation
from kimberlite.vopr.draws import below, one_of
from kimberlite.vopr.plan import MS

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World

READ_GAP_NS = 100 * MS
READ_EVENTS_MAX, READ_BYTES_MAX = (1, 10, 1000), (1, 5000, 100_000)
APPEND_DEADLINE_NS = 1500 * MS
# Of appends in a burst: how many have little time, how many are taken back, and how soon at the latest.
SHORT_SHARE, CANCELLED_SHARE, SHORT_NS = 0.2, 0.1, 60 * MS
PAUSE_SHARE, AT_ONCE_NS = 0.1, 1000
AROUND_BYTES = 2000  # of a prepare, what goes around the events


class SimClient:
    """A client: appends one batch after another, and remembers what it saw."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.name = b"client %d" % index
        self.session = self._new_session()
        self.history: list[Acknowledged] = []
        self.waiting: dict[int, Acknowledged] = {}
        self.timer_at: int | None = None
        self.quota = 0
        self.life = 0

    def _new_session(self) -> Session:
        world = self.world
        return Session(
            make_header=framing.make_header,
            cluster=world.cluster,
            client_id=world.workload.randbytes(16),
            replica_count=world.plan.replica_count,
            seed=world.workload.getrandbits(64),
        )

    def begin(self) -> None:
        for node in self.world.nodes:
            if node.up:
                self.session.connected(node.index, self.world.now)
        self.append()

    def restart(self) -> None:
        """The client dies: what it waited for has no outcome; another session begins."""
        self.waiting.clear()
        self.life += 1
        self.timer_at = None
        self.session = self._new_session()
        self.begin()

    def append(self) -> None:
        """The next appends, when those before have their outcomes: one, or a burst, of which some have little time and
        some are taken back."""
        world = self.world
        if self.quota <= 0 or self.waiting:
            return
        count = min(self.quota, world.plan.burst)
        self.quota -= count
        for _ in range(count):
            deadline = APPEND_DEADLINE_NS
            if count > 1 and world.workload.random() < SHORT_SHARE:
                deadline = world.workload.randrange(SHORT_NS)
            handle = self._append(deadline)
            if count > 1 and world.workload.random() < CANCELLED_SHARE:
                world.at(world.now + world.workload.randrange(SHORT_NS), self._cancel, self.life, handle)
        self.session.flush(world.now)
        self.pump()

    def _append(self, deadline_ns: int) -> int:
        world = self.world
        number = len(self.history)
        random = world.workload
        stem = b"%d-%d-" % (self.index, number)
        size = world.plan.event_bytes
        count = min(one_of(random, (1, 1, 2, 7)), max((world.plan.prepare_bytes_max - AROUND_BYTES) // size, 1))
        events = tuple(stem + b"%d-" % i + b"x" * below(random, size) for i in range(count))
        record = Acknowledged(self.index, number, events, world.now)
        self.history.append(record)
        handle = self.session.append(events, world.now, world.now + deadline_ns)
        self.waiting[handle] = record
        return handle

    def _cancel(self, life: int, handle: int) -> None:
        """Nobody waits for that append any more; what becomes of it is unknown, unless that is known already."""
        if life == self.life and self.waiting.pop(handle, None) is not None:
            self.session.cancel(handle)
            self.pump()
            self.append()

    def step(self, message: Message) -> None:
        self.session.step(message, self.world.now)
        self.pump()

    def pump(self) -> None:
        world = self.world
        sends, done = self.session.take_output()
        for replica, message in sends:
            world.network.send(self.name, replica, message)
        for outcome in done:
            record = self.waiting.pop(outcome.handle, None)
            if record is None:
                continue
            record.returned_at = world.now
            if outcome.error is None:
                record.position = outcome.position
            elif not isinstance(outcome.error, OutcomeUnknownError):
                record.refused = True
                label = type(outcome.error).__name__
                world.counts[label] = world.counts.get(label, 0) + 1
            world.trace.add(world.now, "outcome", self.name, record.number, outcome.position)
        deadline = self.session.next_deadline()
        if deadline is not None and (self.timer_at is None or deadline < self.timer_at):
            self.timer_at = deadline
            world.at(max(deadline, world.now), self._on_timer, self.life, deadline)
        if done:
            world.at(world.now + self._pause(), self.append)

    def _pause(self) -> int:
        """Until the next append; most follow at once."""
        longest = self.world.plan.pause_ns
        if not longest or self.world.workload.random() > PAUSE_SHARE:
            return AT_ONCE_NS
        return AT_ONCE_NS + self.world.workload.randrange(longest)

    def _on_timer(self, life: int, deadline: int) -> None:
        if life != self.life:
            return
        if self.timer_at == deadline:
            self.timer_at = None
        self.session.tick(self.world.now)
        self.pump()

    @property
    def busy(self) -> bool:
        return True if self.quota > 0 or self.waiting else not self.session.idle

    def is_answered(self, since: int, may_refuse: bool = False) -> bool:
        """Whether something that it asked for since then was acknowledged, or refused with the reason."""
        for record in reversed(self.history):
            if record.called_at < since:
                return False
            if record.position is not None or (may_refuse and record.refused):
                return True
        return False


def serve_all(world: World, appends: int, limit_ns: int, may_refuse: bool = False) -> list[int]:
    """Every client appends until something that it asked for from now on is acknowledged, or it is told why not.
    Those for whom that takes longer than the limit."""
    since = world.now
    waiting = list(world.clients)

    def done() -> bool:
        waiting[:] = [client for client in waiting if not client.is_answered(since, may_refuse)]
        for client in waiting:
            if not client.busy:  # never used, or refused, or given up: it tries again
                client.quota += 1
                client.append()
        return not waiting

    for client in world.clients:
        client.quota += appends
        client.append()
    return [] if world.run_until(since + limit_ns, done) else [client.index for client in waiting]


class SimReader:
    """Reads here and there, and follows the log from its beginning, at whatever replica."""

    def __init__(self, world: World, index: int) -> None:
        self._world = world
        self._random = Random(f"reader {world.plan.seed} {index}")
        self._position = 0  # up to where it has followed

    def step(self) -> None:
        world, random = self._world, self._random
        if not world.network.faults_on:
            return
        world.at(world.now + below(random, READ_GAP_NS), self.step)
        node = one_of(random, world.nodes)
        follows = random.random() < 0.7
        position = self._position if follows else below(random, len(world.checkers.log) + 1)
        limits = one_of(random, READ_EVENTS_MAX), one_of(random, READ_BYTES_MAX)
        world.act(node.index, node.life, self._read, node, position, limits, follows)

    def _read(self, node: SimNode, position: int, limits: tuple[int, int], follows: bool) -> None:
        world = self._world
        first, end = node.store.first_position, node.reader.end
        try:
            body, count, runs = node.reader.read(position, *limits)
        except PositionError as error:
            if first <= position < end:
                raise self._wrong(node, position, str(error)) from error
            if follows and position < first:
                self._position = first  # what it missed was trimmed
            return
        except CorruptEntryError as error:
            if not world.rotten or node.index != world.rot_victim:
                raise self._wrong(node, position, str(error)) from error
            world.count("READ_DAMAGED")
            return
        log = world.checkers.log
        if count < 1 or sum(runs.values()) != count or end > len(log):
            raise self._wrong(node, position, f"{count} events, {runs} by time, of {end}; the log has {len(log)}")
        if list(event_batches.slice(body, 0, count)) != log[position : position + count]:
            raise self._wrong(node, position, f"{count} events that are not those of the log")
        world.count("READ")
        if follows:
            self._position = position + count

    def _wrong(self, node: SimNode, position: int, what: str) -> Violation:
        return Violation("I14 reads", f"replica {node.index} gives from position {position} on: {what}")
