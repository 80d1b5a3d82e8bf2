"""A disk that hangs or is slow, under load: what its replica keeps in memory, and that the others go on."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from lab import MS, Cluster, Node, ping, start_view_change

from kimberlite.types import Command, Reason, Status
from kimberlite.vsr.log import BODIES_BYTES, ENTRY_BYTES, WINDOW
from kimberlite.vsr.outbox import VIEWS_MAX, WRITES_MAX
from kimberlite.vsr.work import Promise

BACKLOG = 256 << 10
SIZE = 1000


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register()
    for node in cluster.up:
        node.core.config = replace(node.core.config, backlog_bytes=BACKLOG, repair_bytes=BACKLOG // 4)
    cluster.run(500)
    return cluster


def held(node: Node) -> int:
    """Bytes of the bodies in memory that the log does not keep to serve others."""
    applied = {op for op, _ in node.core.log._applied}
    return sum(message.header.size + ENTRY_BYTES for op, message in node.core.log.bodies.items() if op not in applied)


def load(cluster: Cluster, first: int, count: int) -> int:
    """Appends, one after another; how many of them were answered."""
    answered = 0
    for number in range(first, first + count):
        leading = cluster.primary
        leading.driver.on_input(requests=[cluster.request(number, b"x" * SIZE)])
        cluster.run(10)
        for node in cluster.up:
            assert node.core.log.held_bytes == held(node)
        answered += sum(answer.header.command == Command.REPLY for answer in leading.answers)
        leading.answers.clear()
    return answered


def test_a_backup_whose_disk_hangs_keeps_a_bounded_part_and_catches_up_later(cluster: Cluster) -> None:
    backup = cluster.backups[0]
    backup.disk_off()
    assert load(cluster, 1, 300) == 300
    core = backup.core
    limit = BACKLOG + core.config.repair_bytes + 2 * (SIZE + 1000 + ENTRY_BYTES)
    assert BACKLOG <= held(backup) <= limit
    assert backup.bytes_waiting <= limit + WRITES_MAX * 8192, "witnesses beside the entries"
    assert len(core.log.headers) <= core.log.durable + core.config.headers_ahead + WINDOW
    assert len(core.stash) <= core.config.pipeline_max
    snapshot = core.snapshot()
    assert snapshot.queues.backlog == (held(backup), BACKLOG)
    assert "the disk does not keep up" in snapshot.unhealthy
    assert snapshot.cannot_commit == (), "its cluster can"
    seen = {peer.replica: peer.op for peer in cluster.primary.core.snapshot().peers}[backup.index]
    assert seen is not None
    assert cluster.primary.core.commit_max - seen >= 290, "the lag is seen"
    backup.disk_on()
    cluster.run(5000, lambda: core.applied == cluster.primary.core.applied)
    assert held(backup) == core.log.held_bytes == 0
    assert sum(message.header.size for message in core.log.bodies.values()) <= BODIES_BYTES


def test_a_backup_whose_disk_is_slow_stays_within_the_bound_too(cluster: Cluster) -> None:
    backup = cluster.backups[0]
    random = Random(5)
    backup.slow_disk(lambda: random.randrange(200 * MS))
    most = 0
    for first in range(1, 400, 10):
        load(cluster, first, 10)
        most = max(most, held(backup))
    assert most <= BACKLOG + backup.core.config.repair_bytes + 2 * (SIZE + 1000 + ENTRY_BYTES)
    backup.disk_on()
    cluster.run(5000, lambda: backup.core.applied == cluster.primary.core.applied)


def test_a_primary_prepares_no_more_than_its_disk_can_take(cluster: Cluster) -> None:
    """As long as it leads: nobody hears that it wants to be replaced."""
    leading = cluster.primary
    cluster.lost = lambda source, target, message: message.header.command == Command.START_VIEW_CHANGE
    leading.core.config = replace(leading.core.config, queue_max=20)
    leading.disk_off()
    for client in range(2, 250):
        request = cluster.request(0, client=client)
        leading.driver.on_input(requests=[request])
        cluster.run(5)
    assert held(leading) <= BACKLOG + 2 * (SIZE + ENTRY_BYTES)
    assert len(leading.core.queue) == 20
    assert leading.answers[-1].header.reason == Reason.BUSY_QUEUE
    assert leading.answers[-1].header.count > 0, "and when to come back"
    leading.disk_on()
    cluster.run(2000, lambda: not leading.core.queue and leading.core.applied == leading.core.log.op)
    assert held(leading) == leading.core.log.held_bytes == 0


def test_a_backup_that_can_not_execute_goes_on_writing(cluster: Cluster) -> None:
    """As for an op that is damaged and not repaired: what is on the disk need not be in memory."""
    backup = cluster.backups[0]
    core = backup.core
    core.hold_execution()
    assert load(cluster, 1, 200) == 200
    assert core.log.durable == cluster.primary.core.log.durable
    assert held(backup) <= BACKLOG + SIZE + 1000 + ENTRY_BYTES
    core.go_on_with_execution()
    cluster.run(5000, lambda: core.applied == cluster.primary.core.applied)
    assert backup.machine.applied == cluster.primary.machine.applied


def test_a_backup_that_can_not_execute_does_not_keep_what_repair_brings(cluster: Cluster) -> None:
    """It comes back behind, and a snapshot holds its execution up."""
    backup = cluster.backups[0]
    cluster.lost = lambda source, target, message: backup.index in (source, target)
    load(cluster, 1, 300)
    core = backup.core
    core.hold_execution()
    cluster.lost = lambda source, target, message: False
    limit = BACKLOG + core.config.repair_bytes + 2 * (SIZE + 1000 + ENTRY_BYTES)
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, held(backup))

    cluster.run(5000, lambda: core.log.durable == cluster.primary.core.log.op, each=look)
    assert most <= limit
    core.go_on_with_execution()
    cluster.run(2000, lambda: core.applied == cluster.primary.core.applied)


def test_no_more_views_are_entered_than_the_disk_follows(cluster: Cluster) -> None:
    node = cluster.backups[0]
    node.disk_off()
    other = next(one.index for one in cluster.up if one is not node)
    view = node.core.view
    for number in range(view + 1, view + 100):
        node.driver.on_input(messages=[ping(other, number)])
    assert node.core.view == view + VIEWS_MAX
    for voter in {0, 1, 2} - {node.index}:
        node.driver.on_input(messages=[start_view_change(voter, node.core.view)])
    assert node.core.view == view + VIEWS_MAX, "by votes neither"
    waiting = node.core.pending
    assert len(waiting) <= VIEWS_MAX + WRITES_MAX
    assert sum(isinstance(persist, Promise) for persist in waiting) == VIEWS_MAX
    assert node.bytes_waiting < 1 << 20
    node.disk_on()
    cluster.run(20_000, lambda: node.core.status == Status.NORMAL and node.core.view > view)
