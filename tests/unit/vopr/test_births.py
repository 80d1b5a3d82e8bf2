"""Disks that are formatted anew: the new one counts nowhere, and what was acknowledged stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kimberlite.types import Birth, Status
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.faults import KINDS
from kimberlite.vopr.identities import identity_on
from kimberlite.vopr.liveness import end_faults, liveness
from kimberlite.vopr.plan import MS, Plan, draw
from kimberlite.vopr.run import Script, run
from kimberlite.vopr.world import World
from kimberlite.vsr import identity


def calm(count: int, **more: int | bool) -> Plan:
    """Nothing fails but what a test lets fail."""
    plan = replace(
        draw(1, 12), replica_count=count, client_count=1, loss=0, duplication=0, reorder=0, corruption=0, replay=0
    )
    plan = replace(plan, latency_ns=100_000, disk_latency_ns=100_000, weights={}, garbage=0, clock_skew_ns=0)
    return replace(plan, scrub_bytes_per_s=0, checkpoint_ops=4096, reader_count=0, retention_bytes=0, **more)


def append(world: World, count: int, seconds: int = 20) -> list[int]:
    """So many more appends; the positions of all that are acknowledged by then."""
    client = world.clients[0]
    client.quota += count
    world.at(world.now, client.append if client.history else client.begin)
    world.run_until(world.now + seconds * 1000 * MS, lambda: not client.busy)
    return [record.position for record in client.history if record.position is not None and record.position >= 0]


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_a_disk_that_is_formatted_anew_is_no_part_of_a_quorum(count: int) -> None:
    """A quorum acknowledges while the others are cut off; a disk of it is formatted anew, all others of it stop. With
    the new disk the rest would be a quorum: it elected, and put other entries where acknowledged ones were."""
    world = World(calm(count, birth=False), faults=[])
    known = len(append(world, 1))
    first = next(node.index for node in world.nodes if node.driver.core.leading is not None)
    size = world.membership.quorums.replication
    quorum = [first, *(index for index in range(count) if index != first)][:size]
    rest = [index for index in range(count) if index not in quorum]
    world.network.cuts |= {link for one in quorum for other in rest for link in ((one, other), (other, one))}
    acknowledged = append(world, 6)
    assert len(acknowledged) == known + 6
    before = dict(world.checkers.committed)
    lost = quorum[-1]
    for index in quorum:
        world.crash(index)
    world.network.cuts.clear()
    world.wipe(lost)
    append(world, 1, seconds=10)
    assert world.counts["DISK_REFUSED"] >= 1 and not world.nodes[lost].up
    assert all(node.driver.core.leading is None for node in world.nodes if node.up)
    for index in quorum[:-1]:
        world.restart(index)
    survivors = [index for index in range(count) if index != lost]
    assert len(append(world, 3)) >= len(acknowledged) + 3
    for op, header in before.items():
        for index in survivors:
            known = world.nodes[index].store.header(op)
            assert known is None or known.checksum == header.checksum
    world.put_back(lost)
    world.run_until(world.now + 5000 * MS, lambda: False)
    assert world.nodes[lost].driver.core.state.status == Status.NORMAL


def test_a_cluster_is_born_in_a_run() -> None:
    world = World(calm(3, birth=True), faults=[])
    assert all(identity_on(files).birth is Birth.UNBORN for files in world.files)
    assert append(world, 3)
    assert all(identity_on(files).birth is Birth.FORMED for files in world.files)


def test_the_plan_that_lost_what_was_acknowledged() -> None:
    for seed in (2, 16):
        assert run(Script(seed, name="wiped")).check == ""


def test_the_disk_of_a_cluster_of_one_is_not_taken_for_lost() -> None:
    """There is no other copy, and nobody who could know the new disk for another one: it would be a cluster of its own
    under the old name, and what the first one had acknowledged would be missed. Seed 410 had that."""
    aim = KINDS["wipe"].aim
    assert aim(World(calm(1), faults=[]), 0) is None and aim(World(calm(2), faults=[]), 0) is not None
    assert run(Script(410)).check == ""


@pytest.mark.parametrize("count", [3, 4])
def test_a_disk_may_be_lost_for_good(count: int) -> None:
    world = World(calm(count, birth=False, late_ops=0, persistent=""), faults=[])
    append(world, 3, seconds=2)
    world.wipe(0)
    world.drawer.given_up.add(0)
    liveness(world)
    assert world.whole == list(range(1, count)) and not world.nodes[0].up
    assert world.counts["DISK_LOST"] == 1 and world.nodes[1].driver.core.state.execution.applied >= 4
    world.checkers.check_end(world, world.clients[0].history)


def test_a_disk_that_others_need_comes_back() -> None:
    """Nothing of what it has may be on the replica where bits have rotted."""
    world = World(calm(3, birth=False), faults=[])
    append(world, 3, seconds=2)
    world.wipe(0)
    world.drawer.given_up.add(0)
    world.rotten = True
    end_faults(world)
    assert world.whole == [0, 1, 2] and not world.drawer.disks


def test_an_older_image_is_refused_and_goes_on_being_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was told is on its disk; else it counts, once its superblock has come far enough."""
    script = Script(51, name="wiped")
    outcome = run(script)
    assert outcome.check == "" and outcome.labels["COPY_PUT_IN"]
    monkeypatch.setattr(identity, "is_older_image", lambda known: False)
    assert run(script).check


def test_a_new_disk_that_is_let_in_is_a_violation() -> None:
    world = World(calm(3, birth=False), faults=[])
    append(world, 3, seconds=2)
    world.drawer.lost.add(0)
    with pytest.raises(Violation, match="N3 refused"):
        liveness(world)
