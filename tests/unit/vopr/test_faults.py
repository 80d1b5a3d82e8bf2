"""Each kind of fault changes something when it is counted, and is not counted when it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from calm import calm
from lab import core_of

from kimberlite._fast import framing
from kimberlite.storage.journal import RECORD_BYTES, encode_record, witness_name
from kimberlite.types import Command
from kimberlite.vopr.disk import OPERATIONS, READ, WRITE
from kimberlite.vopr.faults import KINDS, STRIKES
from kimberlite.vopr.nodes import SimNode
from kimberlite.vopr.plan import MS
from kimberlite.vopr.world import World

ENDS = ("heal", "restart", "disk_space", "cure")
CALM = calm(client_count=2, latency_ns=100_000, disk_latency_ns=100_000, clock_skew_ns=0, ring=1.0)


def busy(count: int = 3, clients: int = 2, **weights: float) -> World:
    """A cluster in the middle of its work; nothing but the test injects a fault. weights: kinds that the plan has."""
    plan = replace(CALM, replica_count=count, client_count=clients, weights=weights)
    world = World(plan, faults=(), keep_trace=True)
    for client in world.clients:
        world.at(world.now, client.begin)
    assert world.run_until(world.now + 5000 * MS, lambda: world.checkers.decided >= 10)
    return world


def counted(world: World, kind: str, argument: int) -> bool:
    before = len(world.injected)
    world.inject(kind, argument)
    assert world.counts.get(f"FAULT_{kind}", 0) == sum(name == kind for _, name, _ in world.injected)
    return len(world.injected) > before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*ENDS, "trim", "trim_rot", "old_witness")])
def test_a_fault_strikes_a_cluster_at_work(kind: str) -> None:
    world = busy(**{kind: 1.0})
    assert any(counted(world, kind, argument) for argument in range(1, 8))


@pytest.mark.parametrize(
    ("fault", "argument", "ends"),
    [
        ("crash", 1, "restart"),
        ("crash_all", 0, "restart"),
        ("isolate", 2, "heal"),
        ("partition", 1, "heal"),
        ("one_way", 1, "heal"),
        ("clog", 301, "heal"),
        ("disk_full", 1, "disk_space"),
        ("disk_full_all", 0, "disk_space"),
        ("disk_hang", 1, "cure"),
        ("disk_slow", 1, "cure"),
        ("slow_node", 1, "cure"),
        ("mute", 2_999_999_999, "heal"),
        ("long_way", 1, "heal"),
    ],
)
def test_a_fault_that_is_there_already_is_not_counted_nor_is_the_end_of_none(
    fault: str, argument: int, ends: str
) -> None:
    world = busy()
    assert not counted(world, ends, 0)
    assert counted(world, fault, argument)
    assert not counted(world, fault, argument)
    assert counted(world, ends, 0)
    assert not counted(world, ends, 0)


@pytest.mark.parametrize("kind", ["pause", "crash_writing", "crash_promising", "sync_error", "clock_jump", "hostile"])
def test_nothing_happens_to_who_is_down(kind: str) -> None:
    world = busy()
    world.crash(1)
    assert not counted(world, kind, 3001)


@pytest.mark.parametrize("kind", ["one_way", "clog", "isolate", "partition", "bit_rot", "foreign", "hostile"])
def test_a_replica_alone_has_no_peers(kind: str) -> None:
    world = busy(count=1)
    assert not any(counted(world, kind, argument) for argument in range(100, 110))


def test_a_cut_is_from_one_replica_to_another() -> None:
    world = busy()
    for argument in range(100):
        world.network.heal()
        assert counted(world, "one_way", argument)
        ((source, target),) = world.network.cuts
        assert source != target


def test_a_pause_does_not_end_a_longer_one() -> None:
    world = busy()
    assert counted(world, "pause", 3 * 400)  # 1200 ms
    assert not counted(world, "pause", 3 * 100)
    assert world.nodes[0].paused_until == world.now + 1200 * MS


def test_no_fault_is_carried_out_after_the_faults_have_ended() -> None:
    world = busy()
    world.network.faults_on = False
    assert not any(counted(world, kind, 1) for kind in KINDS)


def backup_of(world: World) -> SimNode:
    return next(node for node in world.nodes if not core_of(node).is_primary)


def test_a_disk_that_hangs_hangs_through_restarts_and_its_replica_does_not_start_before_it_goes_on() -> None:
    world = busy()
    index = backup_of(world).index
    world.hang(index, (WRITE,))
    head = core_of(world.nodes[index]).log.durable
    decided = world.checkers.decided
    assert world.run_until(world.now + 5000 * MS, lambda: world.checkers.decided > decided + 10)
    assert core_of(world.nodes[index]).log.durable == head
    world.crash(index)
    assert not counted(world, "restart", 0)
    world.cure()
    assert counted(world, "restart", 0)
    assert world.run_until(world.now + 5000 * MS, lambda: core_of(world.nodes[index]).applied == world.checkers.decided)


def test_a_stall_ends_by_itself() -> None:
    world = busy()
    log = core_of(backup_of(world)).log
    world.hang(backup_of(world).index, OPERATIONS, world.now + 500 * MS)
    world.run_until(world.now + 499 * MS, lambda: False)
    behind = log.durable
    assert world.run_until(world.now + 1000 * MS, lambda: log.durable > behind)
    assert not any(device.hung for device in world.devices)


def test_who_reads_from_a_disk_that_hangs_does_nothing_else() -> None:
    world = busy()
    backup = backup_of(world)
    assert world.run_until(world.now + 500 * MS, lambda: core_of(backup).log.durable > 0)
    world.hang(backup.index, (READ,))
    world.act(backup.index, backup.life, lambda: backup.store.read(1) and None)
    durable = core_of(backup).log.durable
    world.run_until(world.now + 500 * MS, lambda: False)
    assert core_of(backup).log.durable == durable
    world.cure()
    assert world.run_until(world.now + 500 * MS, lambda: core_of(backup).log.durable > durable)


def test_who_dies_waiting_for_a_disk_lives_on_without_that() -> None:
    world = busy()
    index = backup_of(world).index
    world.hang(index, (READ,))
    world.nodes[index].store.read(1)
    world.crash(index)
    world.cure()
    world.restart(index)
    assert world.run_until(world.now + 5000 * MS, lambda: core_of(world.nodes[index]).applied == world.checkers.decided)


def test_a_slow_replica_takes_its_inputs_in_order_one_after_another() -> None:
    world = busy()
    world.slow_nodes[1] = 10 * MS
    seen: list[tuple[int, int]] = []
    node = world.nodes[1]
    world.run_until(world.now + 20 * MS, lambda: False)
    for number in range(5):
        world.act(1, node.life, lambda number=number: seen.append((number, world.now)))  # type: ignore[misc]
    world.run_until(world.now + 3000 * MS, lambda: len(seen) == 5)
    assert [number for number, _ in seen] == list(range(5))
    assert all(later - earlier >= 10 * MS for (_, earlier), (_, later) in pairwise(seen))


def struck_now(world: World) -> list[tuple[object, ...]]:
    return [entry for entry in world.trace.tail if entry[1] == "strike"]


def test_the_primary_is_struck_while_it_has_prepares_under_way_and_its_successor_while_the_view_changes() -> None:
    struck: dict[str, int] = {}
    for argument in range(20):
        world = busy(count=5)
        view = max(core_of(node).view for node in world.nodes)
        assert counted(world, "strike_primary", argument)
        assert not counted(world, "strike_primary", argument), "one at a time"
        world.run_until(world.now + 2500 * MS, lambda world=world: len(struck_now(world)) == 2)  # type: ignore[misc]
        strikes = struck_now(world)
        for label, times in world.counts.items():
            if label.startswith("STRIKE_"):
                struck[label] = struck.get(label, 0) + times
        assert all(entry[3] in (view % 5, (view + 1) % 5) for entry in strikes[:1])
    assert set(struck) == {f"STRIKE_{how.replace(' ', '_')}" for how in STRIKES}
    assert sum(struck.values()) > 20, "some of the successors too"


def test_a_trim_that_can_not_be_is_not_counted() -> None:
    world = busy()
    assert not any(counted(world, "trim", argument) for argument in range(5))


def leader_of(world: World) -> SimNode:
    return next(node for node in world.nodes if (leading := node.driver.core.leading) is not None and leading.ready)


def test_a_primary_steps_down() -> None:
    world = busy()
    view = leader_of(world).driver.core.state.view
    assert counted(world, "step_down", 0)
    assert world.run_until(
        world.now + 2000 * MS, lambda: all(node.driver.core.state.view > view for node in world.nodes)
    )


def test_views_change_one_after_another() -> None:
    world = busy(clients=4)
    assert counted(world, "restless", 3)
    assert not counted(world, "restless", 4)
    view = max(node.driver.core.state.view for node in world.nodes)
    assert world.run_until(
        world.now + 8000 * MS, lambda: any(node.driver.core.state.view >= view + 3 for node in world.nodes)
    )


def test_the_disk_of_a_successor_stops_as_it_begins_to_lead() -> None:
    world = busy()
    view = leader_of(world).driver.core.state.view
    assert counted(world, "successor_hangs", 6)
    assert world.run_until(world.now + 5000 * MS, lambda: any(device.hung for device in world.devices))
    (hung,) = [index for index, device in enumerate(world.devices) if device.hung]
    state = world.nodes[hung].driver.core.state
    assert state.view > view
    assert state.is_primary


def test_a_false_alarm_ends_by_itself() -> None:
    world = busy()
    argument = next(number for number in range(100) if counted(world, "false_alarm", number))
    assert argument == 0
    ((source, _),) = world.network.cuts
    assert source == leader_of(world).index
    assert world.run_until(world.now + 1000 * MS, lambda: not world.network.cuts)


@pytest.mark.parametrize("argument", range(8))
def test_the_end_of_a_log_is_damaged_and_mended(argument: int) -> None:
    world = busy()
    assert world.rot_victim is not None
    assert counted(world, "end_rot", argument)
    assert world.rotten
    node = world.nodes[world.rot_victim]
    assert not node.up
    victim = world.rot_victim
    assert world.run_until(world.now + 1000 * MS, lambda: world.nodes[victim].up)
    assert world.run_until(world.now + 5000 * MS, lambda: not world.nodes[victim].driver.core.state.log.faulty)


def test_what_no_client_asks_for_is_not_executed() -> None:
    world = busy()
    assert all(counted(world, "hostile_client", argument) for argument in range(40))
    world.run_until(world.now + 3000 * MS, lambda: not any(client.busy for client in world.clients))
    assert b"forged" not in world.checkers.log


def test_what_no_client_asks_for_arrives_before_the_client_goes_on() -> None:
    """Later its number might be the next one of that client, and nothing would tell it from a request of the client."""
    world = busy()
    before = world.network.received
    assert counted(world, "hostile_client", 0)
    world.run_until(world.now, lambda: False)
    assert world.network.received == before + 1


def test_what_no_client_asks_for_waits_nowhere() -> None:
    """Nor before a replica that stands still."""
    world = busy()
    for node in world.nodes:
        node.paused_until = world.now + 1000 * MS
    assert not counted(world, "hostile_client", 0)


def test_the_beginning_of_a_segment_is_damaged_before_a_trim() -> None:
    plan = replace(CALM, client_count=4, segment_bytes=64 << 10, event_bytes=9000, requests=300, checkpoint_ops=4)
    world = World(plan, faults=())
    for client in world.clients:
        world.at(world.now, client.begin)
    assert world.run_until(world.now + 5000 * MS, lambda: world.checkers.decided > 40)
    assert counted(world, "trim_rot", 5)
    assert world.rotten


@pytest.mark.parametrize("argument", range(8))
def test_a_hole_in_a_log_is_mended(argument: int) -> None:
    world = busy()
    victim = world.rot_victim
    assert victim is not None
    assert counted(world, "hole_rot", argument)
    assert not world.nodes[victim].up
    assert world.run_until(world.now + 1000 * MS, lambda: world.nodes[victim].up)
    assert world.run_until(world.now + 5000 * MS, lambda: not world.nodes[victim].driver.core.state.log.faulty)


def test_a_damaged_entry_is_called_by_an_old_witness_what_nobody_has_and_is_repaired_all_the_same() -> None:
    plan = replace(CALM, checkpoint_ops=4, snapshot_ns=0, weights={"old_witness": 1.0})
    world = World(plan, faults=())
    for client in world.clients:
        world.at(world.now, client.begin)
    victim = world.rot_victim
    assert victim is not None
    assert world.run_until(world.now + 5000 * MS, lambda: world.promises(victim).checkpoint_op > 4)
    assert not counted(world, "old_witness", 1), "nothing was written over anything"
    number, index, header, offset = world.nodes[victim].store.place_of(4)
    assert header is not None
    assert offset is not None
    other = framing.make_header(
        cluster=world.cluster, command=Command.PREPARE, operation=header.operation, op=4, parent=header.parent
    )
    old = encode_record(other, offset, number, index)
    replaced = world.devices[victim].replaced
    assert replaced is not None
    replaced.records.append((witness_name(number), index * RECORD_BYTES, old))
    assert counted(world, "old_witness", 1)
    assert world.run_until(world.now + 1000 * MS, lambda: world.nodes[victim].up)
    store = world.nodes[victim].store
    assert world.run_until(world.now + 1000 * MS, lambda: store.read(4) is None and 4 in store.faulty)
    world.act(victim, world.nodes[victim].life, world.nodes[victim].driver.on_damage)
    assert world.run_until(world.now + 9000 * MS, lambda: not world.nodes[victim].driver.core.state.log.faulty)
    assert (found := store.read(4)) is not None
    assert found.header.checksum == header.checksum
