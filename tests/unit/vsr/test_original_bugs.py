"""Bugs that a project of this kind once had, each as a test by its name.

The cluster is the one of tests/lab.
"""

from __future__ import annotations

import pytest
from lab import MS, Cluster, between

from kimberlite.errors import WriteFailedError
from kimberlite.node.driver import FastCodec
from kimberlite.storage import superblock
from kimberlite.types import Command, Message, Reason, Status
from kimberlite.vopr.disk import SimDisk
from kimberlite.vsr.events import EventKind


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register()
    return cluster


def test_heartbeat_timer_is_reset(cluster: Cluster) -> None:
    """An idle cluster stays in its view: heartbeats go out for ever and are heard."""
    view = cluster.primary.core.view
    cluster.sent.clear()
    cluster.run(20_000)
    assert {node.core.view for node in cluster.up} == {view}
    period = cluster.primary.core.config.timing.heartbeat_ns // MS
    assert len(cluster.frames(Command.COMMIT)) >= 2 * 20_000 // period // 2
    assert not cluster.frames(Command.START_VIEW_CHANGE)


def test_view_change_timer_is_armed(cluster: Cluster) -> None:
    """A view change all of whose frames were lost is tried again, and gets through once they are not."""
    old = cluster.primary
    cluster.crash(old.index)
    cluster.lost = lambda source, target, message: (
        message.header.command
        in (
            Command.DO_VIEW_CHANGE,
            Command.START_VIEW,
        )
    )
    cluster.run(8000)
    assert not any(node.leads for node in cluster.up)
    cluster.lost = lambda source, target, message: False
    assert cluster.settle().core.view > old.core.view


def test_recovery_timer_is_armed(cluster: Cluster) -> None:
    """A cluster that restarts as a whole without hearing anything at first leads again later."""
    cluster.append(1, b"before")
    cluster.restart()
    cluster.lost = lambda source, target, message: True
    cluster.run(5000)
    cluster.lost = lambda source, target, message: False
    cluster.settle()
    assert cluster.append(2, b"after").header.position == 1


def test_the_new_primary_counts_its_own_do_view_change(cluster: Cluster) -> None:
    """Two of three are a quorum only if the one that is to lead takes part."""
    cluster.append(1, b"a")
    cluster.crash(cluster.primary.index)
    cluster.settle()
    assert cluster.append(2, b"b").header.position == 1


def test_an_uncommitted_tail_is_not_taken_as_committed(cluster: Cluster) -> None:
    """What a view change brings along is committed by acknowledgements of the new view, not by being there."""
    old = cluster.primary
    backups = cluster.backups
    committed = old.core.commit_max
    holder = backups[0].index
    # The request reaches one backup; no acknowledgement gets anywhere.
    cluster.lost = lambda source, target, message: (
        message.header.command == Command.PREPARE_OK or (message.header.command == Command.PREPARE and target != holder)
    )
    old.driver.on_input(requests=[cluster.request(1, b"tail")])
    cluster.run(50)
    assert backups[0].store.head == old.store.head == committed + 1
    cluster.crash(old.index)
    keep = cluster.lost
    cluster.run(20_000, lambda: any(node.leads for node in cluster.up))
    assert {node.core.commit_max for node in cluster.up} == {committed}
    cluster.lost = lambda source, target, message: (
        keep(source, target, message) if message.header.command == Command.PREPARE_OK else False
    )
    cluster.run(1000)
    assert {node.core.commit_max for node in cluster.up} == {committed}, "no acknowledgement, no commit"
    cluster.lost = lambda source, target, message: False
    cluster.run(10_000, lambda: all(node.machine.applied == [b"tail"] for node in cluster.up))


def test_start_view_carries_the_suffix(cluster: Cluster) -> None:
    cluster.append(1, b"a")
    cluster.sent.clear()
    cluster.crash(cluster.primary.index)
    cluster.settle()
    frames = cluster.frames(Command.START_VIEW)
    assert frames
    for source, _, message in frames:
        headers = FastCodec().decode_headers(message.body)
        assert len(headers) == message.header.count >= 1
        assert headers[-1].op == message.header.op
        assert headers[-1].checksum in cluster.node(source).entries()


def test_a_backup_truncates_its_divergent_tail_and_acknowledges_by_identity(cluster: Cluster) -> None:
    """The old primary holds op n, the new view makes another op n."""
    old = cluster.primary
    others = {0, 1, 2} - {old.index}
    cluster.append(1, b"common")
    cluster.lost = between({old.index}, others)
    old.driver.on_input(requests=[cluster.request(2, b"divergent")])
    divergent = old.store.header(old.store.head)
    cluster.run(
        20_000,
        lambda: any(node.core.is_primary and node.core.ready for node in cluster.up if node is not old),
    )
    (new,) = [node for node in cluster.up if node is not old and node.core.is_primary]
    new.driver.on_input(requests=[cluster.request(2, b"canonical")])
    cluster.run(5000, lambda: new.machine.applied == [b"common", b"canonical"])
    assert divergent is not None
    assert new.store.head >= divergent.op
    cluster.sent.clear()
    cluster.lost = lambda source, target, message: False
    cluster.run(20_000, lambda: old.machine.applied == [b"common", b"canonical"])
    assert divergent.checksum not in old.entries()
    assert old.entries() == new.entries()[: len(old.entries())]
    for source, _, message in cluster.frames(Command.PREPARE_OK):
        if source == old.index and message.header.view == new.core.view:
            assert message.header.context != divergent.checksum


def test_a_retransmitted_prepare_is_accepted(cluster: Cluster) -> None:
    lost: list[Message] = []

    def first_copies(source: int, target: int, message: Message) -> bool:
        if message.header.command == Command.PREPARE and len(lost) < 2:
            lost.append(message)
            return True
        return False

    cluster.lost = first_copies
    view = cluster.primary.core.view
    assert cluster.append(1, b"a").header.position == 0
    assert len(lost) == 2
    assert cluster.primary.core.view == view


def test_recovery_applies_what_it_commits(cluster: Cluster) -> None:
    payloads = [b"%d" % number for number in range(20)]
    for number, payload in enumerate(payloads):
        cluster.append(number + 1, payload)
    cluster.restart()
    cluster.settle()
    cluster.run(10_000, lambda: all(node.machine.applied == payloads for node in cluster.up))
    for node in cluster.up:
        assert node.core.applied == node.core.commit_max
        assert node.core.positions == len(payloads)


def test_catching_up_keeps_what_was_there(cluster: Cluster) -> None:
    """A replica that was away gets what it lacks; what it has is neither cleared nor written again."""
    cluster.append(1, b"early")
    away = next(node for node in cluster.up if not node.core.is_primary)
    before = away.entries()
    written = bytes(cluster.files[away.index].durable["journal-00000000"][: 4096 * len(before)])
    cluster.lost = between({0, 1, 2} - {away.index})
    for number in range(2, 30):
        primary = next(node for node in cluster.up if node.core.is_primary and node is not away)
        primary.driver.on_input(requests=[cluster.request(number, b"%d" % number)])
        cluster.run(5000, lambda primary=primary: bool(primary.answers))  # type: ignore[misc]
        primary.answers.clear()
    cluster.lost = lambda source, target, message: False
    cluster.run(20_000, lambda: len(away.machine.applied) == 29)
    assert away.entries()[: len(before)] == before
    assert bytes(cluster.files[away.index].durable["journal-00000000"][: len(written)]) == written


def test_a_duplicate_of_a_request_in_flight_is_not_prepared_twice(cluster: Cluster) -> None:
    primary = cluster.primary
    head = primary.store.head
    cluster.lost = lambda source, target, message: message.header.command == Command.PREPARE_OK
    request = cluster.request(1, b"once")
    for _ in range(3):
        primary.driver.on_input(requests=[request])
        cluster.run(20)
    assert primary.store.head == head + 1
    cluster.lost = lambda source, target, message: False
    cluster.run(2000, lambda: bool(primary.answers))
    primary.driver.on_input(requests=[request])
    assert [answer.header.position for answer in primary.answers] == [0, 0], "the stored reply"
    cluster.run(500)
    assert primary.machine.applied == [b"once"]


def test_repair_requests_expire_and_are_made_again(cluster: Cluster) -> None:
    cluster.append(1, b"a")
    away = next(node for node in cluster.up if not node.core.is_primary)
    primary = cluster.primary
    cluster.lost = lambda source, target, message: target == away.index and message.header.command == Command.PREPARE
    for number in range(2, 40):
        primary.driver.on_input(requests=[cluster.request(number, b"%d" % number)])
        cluster.run(5000, lambda: bool(primary.answers))
        primary.answers.clear()
    cluster.run(3000)  # every answer is lost, more often than there are slots
    limit = away.core.config.repairs_max
    assert len(away.kinds(EventKind.REPAIR_REQUESTED)) > 2 * 38
    assert away.kinds(EventKind.REPAIR_EXPIRED)
    assert len(away.core.repairs) <= limit
    cluster.lost = lambda source, target, message: False
    cluster.run(10_000, lambda: len(away.machine.applied) == 39)
    assert not away.core.repairs


def test_the_superblock_is_read_back(cluster: Cluster) -> None:
    """A disk that says yes and keeps nothing: the promise is never acted upon."""
    victim = next(node for node in cluster.up if not node.core.is_primary)
    before = bytes(cluster.files[victim.index].durable[superblock.NAME])
    put = SimDisk._put

    def forgetful(disk: SimDisk, file: int, offset: int, data: bytes) -> None:
        if disk.files is not cluster.files[victim.index] or disk._handles[file] != superblock.NAME:
            put(disk, file, offset, data)

    SimDisk._put = forgetful  # type: ignore[method-assign, assignment]
    try:
        cluster.crash(cluster.primary.index)
        cluster.sent.clear()
        with pytest.raises(WriteFailedError, match="read back"):
            cluster.run(20_000)
    finally:
        SimDisk._put = put  # type: ignore[method-assign]
    assert bytes(cluster.files[victim.index].durable[superblock.NAME]) == before
    promised = [
        message
        for source, _, message in cluster.sent
        if source == victim.index and message.header.command == Command.DO_VIEW_CHANGE
    ]
    assert not promised


def test_a_view_is_on_the_disk_before_its_frames_leave(cluster: Cluster) -> None:
    promises: list[tuple[int, int, int, int]] = []
    deliver = cluster.deliver

    def watched() -> None:
        for source, _, message in cluster.queue:
            if message.header.command in (Command.DO_VIEW_CHANGE, Command.START_VIEW, Command.PREPARE_OK):
                node = cluster.nodes[source]
                if node is not None:
                    block = superblock.SuperblockFile(SimDisk(cluster.files[source], lambda: cluster.now, lambda: 0))
                    state = block.current.state
                    log_view = message.header.view if message.header.command != Command.DO_VIEW_CHANGE else 0
                    promises.append((message.header.view, state.view, log_view, state.log_view))
        deliver()

    cluster.deliver = watched  # type: ignore[method-assign]
    cluster.append(1, b"a")
    old = cluster.primary
    cluster.crash(old.index)
    cluster.queue = [sent for sent in cluster.queue if sent[0] != old.index]
    cluster.settle()
    cluster.append(2, b"b")
    assert any(view > old.core.view for view, _, _, _ in promises)
    for view, durable_view, log_view, durable_log_view in promises:
        assert view <= durable_view
        assert log_view <= durable_log_view


def test_the_primary_counts_its_own_commits(cluster: Cluster) -> None:
    cluster.run(1000)
    before = [len(node.kinds(EventKind.COMMITTED)) for node in cluster.up]
    for number in range(1, 6):
        cluster.append(number, b"%d" % number)
    cluster.run(1000)
    after = [len(node.kinds(EventKind.COMMITTED)) for node in cluster.up]
    assert [now - then for then, now in zip(before, after, strict=True)] == [5, 5, 5]
    assert len(cluster.primary.kinds(EventKind.REPLIED)) >= 5


def test_waiting_clients_are_answered_when_the_view_changes(cluster: Cluster) -> None:
    old = cluster.primary
    cluster.lost = between({old.index}, {0, 1, 2} - {old.index})
    for client in range(1, 4):
        old.driver.on_input(requests=[cluster.request(1, b"%d" % client, client=client)])
    assert not [answer for answer in old.answers if answer.header.client == b"\x01" * 16]
    cluster.run(20_000, lambda: any(node.core.is_primary and node.core.ready for node in cluster.up if node is not old))
    cluster.lost = lambda source, target, message: False
    cluster.run(20_000, lambda: old.core.status == Status.NORMAL and not old.core.is_primary)
    answered = [answer for answer in old.answers if answer.header.client == b"\x01" * 16]
    assert [(answer.header.command, answer.header.reason) for answer in answered] == [
        (Command.REJECT, Reason.NOT_PRIMARY)
    ]
    primary = cluster.settle()
    primary.driver.on_input(requests=[cluster.request(1, b"1")])
    cluster.run(5000, lambda: bool(primary.answers))
    cluster.run(1000)
    assert primary.machine.applied == [b"1"]


def test_what_a_dropped_op_was_measured_by_is_forgotten(cluster: Cluster) -> None:
    old = cluster.primary
    cluster.lost = between({old.index}, {0, 1, 2} - {old.index})
    for client in range(1, 9):
        old.driver.on_input(requests=[cluster.request(1, b"%d" % client, client=client)])
        cluster.run(5)
    assert old.core.entered
    cluster.run(20_000, lambda: any(node.core.is_primary and node.core.ready for node in cluster.up if node is not old))
    cluster.lost = lambda source, target, message: False
    cluster.run(20_000, lambda: old.core.status == Status.NORMAL and not old.core.is_primary)
    cluster.run(2000)
    for node in cluster.up:
        assert not node.core.entered
        assert not node.core.committing
        assert not node.core.in_flight


def test_a_silent_peer_is_not_asked_for_headers_again_and_again(cluster: Cluster) -> None:
    """The nearest peer hangs: what the restarted replica missed comes from the other one at once."""
    leading = cluster.primary.core.index
    victim, silent = (leading + 1) % 3, (leading + 2) % 3  # the victim asks that one first
    cluster.crash(victim)
    for number in range(1, 4):
        cluster.append(number, b"missed")
    cluster.lost = lambda source, target, message: silent in (source, target)
    core = cluster.start(victim).core
    cluster.run(2000, lambda: core.log.durable == cluster.node(leading).core.log.op)


def test_a_replica_with_an_empty_disk_is_not_called_level(cluster: Cluster) -> None:
    """What it acknowledged with its former disk says nothing of the new one."""
    for number in range(1, 41):
        cluster.append(number, b"event %d" % number)
    cluster.run(500)
    primary = cluster.primary
    victim = next(node.index for node in cluster.up if node is not primary)
    assert {peer.replica: peer.op for peer in primary.core.snapshot().peers}[victim] == primary.core.commit
    cluster.crash(victim)
    cluster.queue.clear()
    cluster.format(victim)
    cluster.lost = lambda source, target, message: (
        target == victim and message.header.command in (Command.PREPARE, Command.HEADERS)
    )
    cluster.start(victim)
    cluster.run(3000)
    assert cluster.primary is primary
    assert {peer.replica: peer.op for peer in primary.core.snapshot().peers}[victim] == 0
