"""The simulated network loses, repeats, delays, damages and cuts: as told, and only then."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from kimberlite._fast import framing
from kimberlite.types import Command, Message
from kimberlite.vopr.network import KEEP_EVERY, Address, SimNetwork
from kimberlite.vopr.plan import MS, Plan, draw

CALM = replace(
    draw(0), replica_count=3, loss=0.0, duplication=0.0, reorder=0.0, corruption=0.0, replay=0.0, latency_ns=MS
)


class Bench:
    """A network with a clock of its own."""

    def __init__(self, plan: Plan, seed: int = 1) -> None:
        self.now = 0
        self.arrived: list[tuple[Address, Address, Message, int]] = []
        self._queue: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self.network = SimNetwork(plan, Random(seed), lambda: self.now, self._schedule, self._deliver)

    def _schedule(self, at: int, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._queue, (at, len(self._queue) + self.network.sent * 1000, action, arguments))

    def _deliver(self, source: Address, destination: Address, message: Message) -> None:
        self.arrived.append((source, destination, message, self.now))

    def run(self) -> list[int]:
        """Let everything arrive; the ops of what did."""
        while self._queue:
            self.now, _, action, arguments = heapq.heappop(self._queue)
            action(*arguments)
        return [message.header.op for _, _, message, _ in self.arrived]

    def send(self, count: int, source: Address = 0, destination: Address = 1) -> None:
        for op in range(1, count + 1):
            self.network.send(source, destination, frame(op))


def frame(op: int) -> Message:
    body = b"body of %d" % op
    return Message(framing.make_header(body, cluster=bytes(16), command=Command.PREPARE, replica=0, op=op), body)


def test_a_calm_network_delivers_everything_once_within_its_latency() -> None:
    bench = Bench(CALM)
    bench.send(100)
    assert sorted(bench.run()) == list(range(1, 101))
    assert all(MS // 2 <= at <= 3 * MS // 2 for *_, at in bench.arrived)
    network = bench.network
    assert (network.sent, network.received, network.dropped, network.corrupted, network.in_flight) == (
        100,
        100,
        0,
        0,
        0,
    )


def test_loss() -> None:
    bench = Bench(replace(CALM, loss=0.5))
    bench.send(200)
    arrived = bench.run()
    assert 60 < len(arrived) < 140 and len(set(arrived)) == len(arrived)
    assert bench.network.dropped == 200 - len(arrived)


def test_duplication_among_replicas_and_never_on_the_connection_of_a_client() -> None:
    bench = Bench(replace(CALM, duplication=0.5, replay=0.5))
    bench.send(100)
    bench.send(100, b"client 0", 1)
    bench.send(100, 1, b"client 0")
    bench.run()
    clients = [
        message
        for source, destination, message, _ in bench.arrived
        if isinstance(source, bytes) or isinstance(destination, bytes)
    ]
    assert len(clients) == 200
    assert len(bench.arrived) > 300


def test_reordering() -> None:
    bench = Bench(replace(CALM, reorder=0.5))
    bench.send(50)
    arrived = bench.run()
    assert sorted(arrived) == list(range(1, 51)) and arrived != sorted(arrived)
    assert max(at for *_, at in bench.arrived) > 2 * MS


def test_a_flipped_bit_is_refused_by_the_decoder() -> None:
    bench = Bench(replace(CALM, corruption=1.0))
    bench.send(300)
    assert bench.run() == []
    assert bench.network.corrupted == 300


def test_frames_of_long_ago_arrive_again_where_they_went_and_elsewhere() -> None:
    bench = Bench(replace(CALM, replay=0.2))
    bench.send(20 * KEEP_EVERY)
    first = len(bench.run())
    assert first > 20 * KEEP_EVERY
    bench.send(KEEP_EVERY * 20, 2, 0)
    bench.run()
    later = [(source, destination) for source, destination, *_ in bench.arrived[first:]]
    assert (0, 1) in later and (2, 0) in later
    assert {destination for _, destination in later} == set(range(CALM.replica_count))


def test_a_cut_is_one_way_and_also_stops_what_is_under_way() -> None:
    bench = Bench(CALM)
    bench.send(10)
    bench.network.cuts.add((0, 1))
    bench.send(10)
    bench.send(10, 1, 0)
    assert len(bench.run()) == 10
    assert all((source, destination) == (1, 0) for source, destination, *_ in bench.arrived)
    bench.network.heal()
    bench.send(10)
    assert len(bench.run()) == 20


def test_a_clogged_link_holds_messages_back() -> None:
    bench = Bench(CALM)
    bench.network.clogs[(0, 1)] = 50 * MS
    bench.send(10)
    assert len(bench.run()) == 10
    assert all(at >= 50 * MS for *_, at in bench.arrived)


def test_one_kind_of_frame_is_lost_for_a_while_to_one_or_to_all() -> None:
    bench = Bench(CALM)
    bench.network.muted = {(Command.PREPARE, 1): 50 * MS, (Command.COMMIT, None): 50 * MS}
    bench.send(10)
    assert bench.run() == []
    bench.send(10, 0, 2)
    assert len(bench.run()) == 10
    bench.now = 50 * MS
    bench.send(10)
    assert len(bench.run()) == 20
    bench.now = 0
    bench.network.heal()
    bench.send(10)
    assert len(bench.run()) == 30


@pytest.mark.parametrize("seed", range(3))
def test_without_faults_nothing_is_lost(seed: int) -> None:
    wild = replace(CALM, loss=0.9, duplication=0.9, reorder=0.9, corruption=0.9, replay=0.9)
    bench = Bench(wild, seed)
    bench.network.faults_on = False
    bench.send(50)
    assert sorted(bench.run()) == list(range(1, 51))


def test_a_long_way_is_long_in_one_direction_until_it_is_healed() -> None:
    bench = Bench(CALM)
    bench.network.longer[0, 1] = 300 * MS
    bench.send(10)
    bench.send(10, 1, 0)
    bench.run()
    assert all(at > 300 * MS for source, *_, at in bench.arrived if source == 0)
    assert all(at < 2 * MS for source, *_, at in bench.arrived if source == 1)
    bench.network.heal()
    assert not bench.network.longer
