"""What a reader is given is the log, or the run is over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calm import calm

from kimberlite.node.reader import LogReader
from kimberlite.vopr.checkers import Violation, check_history
from kimberlite.vopr.clients import APPEND_DEADLINE_NS, SimReader
from kimberlite.vopr.plan import MS
from kimberlite.vopr.world import World

CALM = calm()


def world_with_readers(**plan: int) -> World:
    world = World(replace(CALM, **{"reader_count": 2, **plan}), faults=())  # type: ignore[arg-type]
    for client in world.clients:
        world.at(world.now, client.begin)
    for reader in world.readers:
        world.at(world.now, reader.step)
    return world


def test_readers_follow_the_log_to_its_end() -> None:
    world = world_with_readers()
    world.run_until(world.now + 10_000 * MS, lambda: False)
    assert world.counts["READ"] > 100
    assert all(reader._position == len(world.checkers.log) > 20 for reader in world.readers)


def test_a_client_that_dies_leaves_its_timer_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its next life waits for comes to an end in time, though nobody answers."""
    world = World(replace(CALM, requests=1), faults=())
    monkeypatch.setattr(world.network, "send", lambda source, target, message: None)
    client = world.clients[0]
    client.quota = 2
    client.begin()
    world.run_until(world.now + 60 * MS, lambda: False)
    client.restart()
    world.run_until(world.now + 2 * APPEND_DEADLINE_NS, lambda: not client.waiting)
    assert not client.waiting


def test_appends_of_a_burst_share_requests_and_have_outcomes_of_their_own() -> None:
    world = World(replace(CALM, burst=5, requests=200), faults=())
    for client in world.clients:
        world.at(world.now, client.begin)
    assert world.run_until(world.now + 30_000 * MS, lambda: not world.is_client_busy())
    history = [record for client in world.clients for record in client.history]
    acknowledged = [record for record in history if record.position is not None]
    assert len(history) == 200 > len(acknowledged) > 140  # some had too little time, some were taken back
    check_history(history, world.checkers.log)
    assert max(node.driver.core.state.log.op for node in world.nodes) < 150


def test_nobody_reads_when_the_faults_have_ended() -> None:
    world = world_with_readers()
    world.network.faults_on = False
    world.run_until(world.now + 1000 * MS, lambda: False)
    assert "READ" not in world.counts


@pytest.mark.parametrize("wrong", ["shifted", "none", "too many"])
def test_what_is_not_the_log_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LogReader.read

    def read(self: LogReader, position: int, count_max: int, bytes_max: int) -> tuple[bytes, int, dict[int, int]]:
        body, count, runs = original(self, max(position - (wrong == "shifted"), 0), count_max, bytes_max)
        return body, count if wrong == "shifted" else 0 if wrong == "none" else count + 1, runs

    monkeypatch.setattr(LogReader, "read", read)
    world = world_with_readers()
    with pytest.raises(Violation, match="I14 reads"):
        world.run_until(world.now + 10_000 * MS, lambda: False)


def test_a_refusal_inside_the_log_is_found() -> None:
    world = world_with_readers(reader_count=0)
    world.run_until(world.now + 3000 * MS, lambda: False)
    node = world.nodes[0]
    node.reader._end = lambda: 0
    with pytest.raises(Violation, match="I14 reads") as caught:
        world.checkers.log.clear()
        node.reader._end = lambda: 1
        SimReader(world, 0)._read(node, 0, (1, 1), True)
    assert "replica 0 gives from position 0 on" in str(caught.value)
