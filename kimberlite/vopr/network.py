"""The simulated network: loss, duplication, reordering, corruption, cuts and clogs.

Messages travel as encoded bytes and are parsed again by the production decoder on arrival,
so that a flipped bit meets the real check: it must be refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from kimberlite._fast import framing
from kimberlite.errors import FrameError
from kimberlite.types import Message
from kimberlite.vopr.draws import below
from kimberlite.vopr.plan import MS, Plan

FRAME_MAX = 4 << 20
KEPT = 128  # old frames that may arrive again
KEEP_EVERY = 8
EARLY_MAX = 64
STRAY = 0.3  # of the old frames, to whatever replica
Address = int | bytes  # a replica's index, or a client's name


class SimNetwork:
    """Delivers messages through the world's event queue.

    schedule(at, action, *arguments): run later. deliver(source, destination, message): hand over.
    """

    def __init__(
        self,
        plan: Plan,
        random: Random,
        now: Callable[[], int],
        schedule: Callable[..., None],
        deliver: Callable[[Address, Address, Message], None],
    ) -> None:
        self._plan = plan
        self._random = random
        self._now = now
        self._schedule = schedule
        self._deliver = deliver
        self.cuts: set[tuple[Address, Address]] = set()
        self.clogs: dict[tuple[Address, Address], int] = {}  # link -> until when it holds messages back
        self.longer: dict[tuple[Address, Address], int] = {}  # link -> what goes over it takes so much longer
        self.distance: dict[Address, int] = {}  # who is far away: what is sent to or by it takes so much longer
        self.muted: dict[tuple[int, Address | None], int] = {}  # command, and to whom if not to all -> lost until then
        self.lossy: dict[Address, float] = {}  # of what is sent to or by it so much is lost, faults or none
        self.silenced: set[tuple[Address, Address, int]] = set()  # sender, receiver, command: lost, faults or none
        self.kept: deque[tuple[Address, Address, bytes]] = deque(maxlen=KEPT)
        self.early: list[tuple[Address, Address, bytes]] = []  # the first frames of a run that begins with a birth
        self.faults_on = True
        self.sent = self.received = self.dropped = self.corrupted = self.in_flight = 0

    def send(self, source: Address, destination: Address, message: Message) -> None:
        self.sent += 1
        random, plan, faults_on = self._random.random, self._plan, self.faults_on
        if (self.cuts or self.silenced or self.muted or self.lossy) and self._is_lost(source, destination, message):
            self.dropped += 1
            return
        if not faults_on:
            self.launch(source, destination, b"".join((message.header.raw, message.body)))
            return
        among_replicas = type(source) is int and type(destination) is int
        copies = 1
        if random() < plan.loss:
            self.dropped += 1
            return
        # A client's connection carries what was sent once at most once.
        if among_replicas and random() < plan.duplication:
            copies = 2
            self.sent += 1
        data = b"".join((message.header.raw, message.body))
        if among_replicas:
            self._replay(source, destination, data)
        for _ in range(copies):
            damaged = data
            if plan.corruption and random() < plan.corruption:
                damaged = self._flip(data)
            self.launch(source, destination, damaged)

    def _replay(self, source: Address, destination: Address, data: bytes) -> None:
        """Keep a frame that replicas send each other, now and then, and send one of those that were kept."""
        random, plan = self._random, self._plan
        if self.sent % KEEP_EVERY == 0:
            self.kept.append((source, destination, data))
        if plan.birth and len(self.early) < EARLY_MAX:
            self.early.append((source, destination, data))
        if plan.replay and self.kept and random.random() < plan.replay:
            self.sent += 1
            old_source, old_destination, old_data = self.kept[random.randrange(len(self.kept))]
            if random.random() < STRAY:  # what another replica was sent: an address changed hands
                old_destination = random.randrange(plan.replica_count)
            self.launch(old_source, old_destination, old_data)

    def _is_lost(self, source: Address, destination: Address, message: Message) -> bool:
        """Whether something that lasts a while keeps a message from its link."""
        command = message.header.command
        if (source, destination) in self.cuts or (source, destination, command) in self.silenced:
            return True
        if self.muted and self._is_muted(command, destination):
            return True
        lossy = self.lossy
        return bool(lossy) and self._random.random() < max(lossy.get(source, 0.0), lossy.get(destination, 0.0))

    def _is_muted(self, command: int, destination: Address) -> bool:
        muted = self.muted
        return self._now() < max(muted.get((command, None), 0), muted.get((command, destination), 0))

    def _flip(self, data: bytes) -> bytes:
        at = self._random.randrange(len(data) * 8)
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << (at % 8)
        return bytes(damaged)

    def launch(self, source: Address, destination: Address, data: bytes, at_once: bool = False) -> None:
        """Put bytes on a link; they arrive after its delay. At once: what is wrong now might be right by then."""
        random, plan = self._random, self._plan
        delay = plan.latency_ns // 2 + below(random, plan.latency_ns)
        if self.distance:
            delay += self.distance.get(source, 0) + self.distance.get(destination, 0)
        if self.longer:
            delay += self.longer.get((source, destination), 0)
        if self.faults_on and random.random() < plan.reorder:
            delay += below(random, 20 * plan.latency_ns + MS)
        begins = self._now()
        if self.clogs:
            begins = max(begins, self.clogs.get((source, destination), 0))
        self.in_flight += 1
        self._schedule(self._now() if at_once else begins + delay, self._arrive, source, destination, data)

    def _arrive(self, source: Address, destination: Address, data: bytes) -> None:
        self.in_flight -= 1
        if self.cuts and (source, destination) in self.cuts:
            self.dropped += 1
            return
        try:
            frames, _, _ = framing.parse(data, 0, len(data), FRAME_MAX)
        except FrameError:
            self.corrupted += 1
            return
        self.received += 1
        for header, body in frames:
            self._deliver(source, destination, Message(header, body))

    def heal(self) -> None:
        self.cuts.clear()
        self.clogs.clear()
        self.longer.clear()
        self.muted.clear()
