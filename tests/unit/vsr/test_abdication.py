"""A primary that does not execute what its backups commit: when it gives its view up, and when not."""

from __future__ import annotations

import pytest
from lab import MS, Cluster, ping
from lab.cluster import Links

from kimberlite.types import Command, Message, Reason, Status
from kimberlite.vsr import abdication
from kimberlite.vsr.events import EventKind, GaveUp
from kimberlite.vsr.work import CannotCommit


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register()
    cluster.append(1, b"a")
    cluster.run(500)
    return cluster


def test_a_primary_whose_disk_hangs_gives_its_view_up(cluster: Cluster) -> None:
    old = cluster.primary
    old.disk_off()
    old.driver.on_input(requests=[cluster.request(2, b"b")])
    cluster.run(1200)
    assert old.core.commit_max > old.core.applied, "the others have committed it"
    snapshot = old.core.snapshot()
    assert snapshot.cannot_commit == (CannotCommit.DISK_STALLED,)
    assert "the others have committed op 3, and this primary has not executed it for" in snapshot.unhealthy
    assert "its disk has the log up to op 2; the disk has completed nothing for" in snapshot.unhealthy
    cluster.run(2000)
    assert [(event.a, event.b) for event in old.kinds(EventKind.ABDICATED)] == [(old.core.view - 1, GaveUp.LAGGING)]
    leading = cluster.primary
    assert leading is not old
    assert leading.core.ready
    leading.driver.on_input(requests=[cluster.request(2, b"b")])
    assert leading.answers[-1].header.command == Command.REPLY
    view = leading.core.view
    for number in range(3, 30):
        leading.driver.on_input(requests=[cluster.request(number, b"%d" % number)])
        cluster.run(300)
    assert [answer.header.request for answer in leading.answers] == list(range(2, 30))
    assert (leading.core.view, cluster.primary) == (view, leading), "nobody elects it while its disk hangs"
    assert set(old.core.snapshot().cannot_commit) >= {CannotCommit.VIEW_CHANGE, CannotCommit.DISK_STALLED}
    assert "the view can not be made durable: the disk has completed nothing for" in old.core.snapshot().unhealthy
    old.disk_on()
    cluster.run(2000)
    assert (old.core.status, old.core.view, old.core.applied) == (Status.NORMAL, view, leading.core.applied)
    assert old.machine.applied == leading.machine.applied


def test_a_primary_whose_disk_is_much_slower_than_theirs_gives_its_view_up(cluster: Cluster) -> None:
    """It writes on and on; but each of its clients would wait for five seconds."""
    old = cluster.primary
    old.slow_disk(1500 * MS)
    number = 2

    def append() -> None:
        nonlocal number
        if old.core.is_primary and old.core.status == Status.NORMAL and not old.core.in_flight:
            old.driver.on_input(requests=[cluster.request(number, b"x")])
            number += 1

    cluster.run(3000, each=append)
    assert old.kinds(EventKind.ABDICATED)
    assert cluster.primary is not old


@pytest.mark.parametrize(("phase_ms", "gives_up"), [(700, True), (150, False)])
def test_writes_that_take_long_one_after_another_add_up(cluster: Cluster, phase_ms: int, gives_up: bool) -> None:
    """Each of them takes less than abdicate_ms; a client that appends one event after another waits for each."""
    old = cluster.primary
    old.slow_disk(phase_ms * MS)
    number = 2

    def append() -> None:
        nonlocal number
        if old.core.is_primary and old.core.status == Status.NORMAL and not old.core.in_flight:
            old.driver.on_input(requests=[cluster.request(number, b"x")])
            number += 1

    cluster.run(2700, each=append)
    assert bool(old.kinds(EventKind.ABDICATED)) == gives_up


def test_the_moment_between_an_answer_and_the_next_request_ends_no_row(cluster: Cluster) -> None:
    """A client that is some way away: nothing is asked of the primary while its answer and the next request travel."""
    old = cluster.primary
    number, answered_at = 2, 0

    def append() -> None:
        nonlocal number, answered_at
        if not old.core.is_primary or old.core.status != Status.NORMAL or old.core.in_flight:
            answered_at = cluster.now
        elif cluster.now - answered_at > 100 * MS:
            old.driver.on_input(requests=[cluster.request(number, b"x")])
            number += 1

    old.slow_disk(700 * MS)
    cluster.run(3500, each=append)
    assert old.kinds(EventKind.ABDICATED)


def test_what_is_quick_ends_a_row(cluster: Cluster) -> None:
    old = cluster.primary
    for number in range(2, 20, 2):
        for quick, phase_ms in enumerate((700, 1)):
            old.slow_disk(phase_ms * MS)
            old.driver.on_input(requests=[cluster.request(number + quick, b"x")])
            cluster.run(1500 if phase_ms == 700 else 100)
    assert old.kinds(EventKind.ABDICATED) == []
    assert len(old.answers) >= 18


def test_writes_that_take_long_now_and_then_do_not_add_up(cluster: Cluster) -> None:
    old = cluster.primary
    for number in range(2, 8):
        old.slow_disk(700 * MS)
        old.driver.on_input(requests=[cluster.request(number, b"x")])
        cluster.run(2000)
    assert old.kinds(EventKind.ABDICATED) == []


def test_disks_that_are_all_slow_change_no_view(cluster: Cluster) -> None:
    """The others take as long: a successor would be no better."""
    old = cluster.primary
    view = old.core.view
    for node in cluster.up:
        node.slow_disk((2500 if node is old else 1000) * MS)
    old.driver.on_input(requests=[cluster.request(2, b"x")])
    cluster.run(8000)
    assert old.answers[-1].header.command == Command.REPLY
    assert (old.core.view, cluster.primary, old.kinds(EventKind.ABDICATED)) == (view, old, [])


def test_no_view_is_given_up_when_everybody_left_has_to_take_part(cluster: Cluster) -> None:
    """One of three is down: whoever leads waits for the slow disk of the other."""
    old = cluster.primary
    other = cluster.backups[0]
    cluster.crash(other.index)
    cluster.run(1500)
    old.slow_disk(2000 * MS)
    old.driver.on_input(requests=[cluster.request(2, b"x")])
    cluster.run(6000)
    assert old.answers[-1].header.command == Command.REPLY
    assert old.kinds(EventKind.ABDICATED) == []
    old.disk_off()
    old.driver.on_input(requests=[cluster.request(3, b"x")])
    cluster.run(8000)
    assert old.kinds(EventKind.ABDICATED) == []
    assert CannotCommit.DISK_STALLED in old.core.snapshot().cannot_commit
    cluster.start(other.index)
    cluster.run(8000)
    assert cluster.primary is not old, "who came back can do without it"


def test_time_in_which_the_process_did_not_run_says_nothing_of_its_disk(cluster: Cluster) -> None:
    old = cluster.primary
    old.slow_disk(50 * MS)
    old.driver.on_input(requests=[cluster.request(2, b"x")])
    cluster.deliver()
    cluster.deliver()
    cluster.run(30)
    assert old.core.lag.op == 0 or old.core.commit_max > old.core.applied
    for submission in old.disk._queue:
        submission.done_at = [cluster.now + 5020 * MS] * 2
    cluster.now += 5000 * MS
    old.driver.on_tick()
    assert old.kinds(EventKind.ABDICATED) == []


def test_damage_that_holds_execution_up_gives_the_view_up(cluster: Cluster) -> None:
    """The next op is committed, durable and then found damaged; the others do not answer for it."""
    old = cluster.primary
    old.slow_disk(500 * MS)
    old.driver.on_input(requests=[cluster.request(2, b"x")])
    cluster.run(100)
    assert (old.core.commit_max, old.core.applied) == (3, 2)
    old.core.log.bodies.pop(3)
    old.core.entry_faulty(3, None, cluster.now)
    cluster.lost = lambda source, target, message: message.header.command == Command.REQUEST_PREPARE
    old.core.log.mark_durable = lambda header: False  # type: ignore[method-assign]
    old.core.log.durable = 3
    cluster.run(1500)
    snapshot = old.core.snapshot()
    assert snapshot.cannot_commit == (CannotCommit.CATCHING_UP,)
    assert "op 3 is damaged here, and being repaired" in snapshot.unhealthy
    cluster.run(2000)
    assert [event.b for event in old.kinds(EventKind.ABDICATED)] == [GaveUp.LAGGING]
    assert cluster.primary is not old


def test_a_primary_that_catches_up_is_given_time_as_long_as_it_comes_nearer(cluster: Cluster) -> None:
    core = cluster.primary.core
    core.ready = False
    core.commit_max, core.log.op = 50, 50
    core.now = cluster.now
    for _ in range(100):
        core.now += 300 * MS
        why = abdication.look_at_lag(core.state, core.role)
    assert why is GaveUp.LAGGING, "it has not moved for long"
    core.lag.op = 0
    for step in range(40):
        core.log.durable += step % 5 == 0  # every 1.5 s
        core.now += 300 * MS
        assert abdication.look_at_lag(core.state, core.role) is None


def votes_and_prepares_from(op: int) -> Links:
    """Links that lose those."""

    def lost(source: int, target: int, message: Message) -> bool:
        header = message.header
        return header.command == Command.START_VIEW_CHANGE or (header.command == Command.PREPARE and header.op >= op)

    return lost


def test_a_commit_does_not_bring_back_who_lags(cluster: Cluster) -> None:
    """It gave up, its votes are lost, and the others go on committing what it sends."""
    old = cluster.primary
    op = old.core.log.op + 2
    cluster.lost = votes_and_prepares_from(op)
    old.disk_off()
    for request in (cluster.request(2, b"b"), cluster.request(0, client=9)):
        old.driver.on_input(requests=[request])
    cluster.run(2600)
    assert old.core.abdicated
    assert old.core.commit_max == op - 1
    cluster.lost = votes_and_prepares_from(op + 1)
    cluster.run(500)
    assert old.core.commit_max == op
    assert old.core.abdicated
    assert len(old.kinds(EventKind.ABDICATED)) == 1


def test_who_returns_does_not_bring_back_who_lags(cluster: Cluster) -> None:
    old = cluster.primary
    first, second = (node.index for node in cluster.up if node is not old)
    old.disk_off()
    cluster.lost = votes_and_prepares_from(old.core.log.op + 2)
    for request in (cluster.request(2, b"b"), cluster.request(0, client=9)):
        old.driver.on_input(requests=[request])
    cluster.run(2600)
    assert old.core.abdicated
    assert old.core.pipeline
    cluster.lost = lambda source, target, message: True
    for index in (first, second):
        old.core.peers[index].last_heard = cluster.now - 5000 * MS
        old.driver.on_input(messages=[ping(index, old.core.view)])
    assert old.core.abdicated


def test_progress_does_not_excuse_who_is_far_behind(cluster: Cluster) -> None:
    """Its disk completes something every second; but what it completes was committed by the others long ago."""
    old = cluster.primary
    old.slow_disk(500 * MS)
    client = 10

    def load() -> None:
        nonlocal client
        client += 1
        if client < 250 and old.core.is_primary:
            old.driver.on_input(requests=[cluster.request(0, client=client)])

    cluster.run(6000, each=load)
    assert [event.b for event in old.kinds(EventKind.ABDICATED)] == [GaveUp.LAGGING]


def test_others_that_could_do_without_this_disk_are_no_reason_to_wait_for_it() -> None:
    """Two of five lack the op, and are there: with them there is a quorum without the primary."""
    cluster = Cluster(5)
    cluster.register()
    cluster.run(500)
    old = cluster.primary
    away = {node.index for node in cluster.up if node is not old} - {(old.index + 1) % 5, (old.index + 2) % 5}
    old.disk_off()
    cluster.lost = lambda source, target, message: (
        target in away and message.header.command in (Command.PREPARE, Command.HEADERS)
    )
    old.driver.on_input(requests=[cluster.request(1, b"x")])
    cluster.run(3500)
    assert [event.b for event in old.kinds(EventKind.ABDICATED)] == [GaveUp.ABDICATED]


def test_a_disk_counts_as_stalled_from_its_last_completion_on(cluster: Cluster) -> None:
    """Neither after a long time in which nothing was asked of it, nor while it goes on completing something."""
    backup = cluster.backups[0]
    cluster.run(10_000)
    backup.slow_disk(300 * MS)
    number = 2
    for _ in range(8):
        cluster.primary.driver.on_input(requests=[cluster.request(number, b"x")])
        number += 1
        cluster.run(250)
        assert backup.core.disk_waits <= 700 * MS
        assert "completed nothing" not in backup.core.snapshot().unhealthy
    assert backup.core.disk_waits > 0
    backup.disk_off()
    cluster.run(4000)
    cluster.primary.driver.on_input(requests=[cluster.request(number, b"x")])
    cluster.run(1200)
    assert "the disk has completed nothing for 1.2 s" in backup.core.snapshot().unhealthy


def test_who_asks_to_be_replaced_sends_its_clients_away(cluster: Cluster) -> None:
    """Cut off from the others, it may not hear for long who leads now; to its clients it speaks as before."""
    old = cluster.primary
    cluster.lost = lambda source, target, message: old.index in (source, target)
    old.driver.on_input(requests=[cluster.request(2, b"b")])
    cluster.run(3000)
    assert old.core.abdicated
    for client in (1, 7):
        old.driver.on_input(requests=[cluster.request(3, b"c", client=client)])
    assert old.refusals() == [Reason.NOT_PRIMARY] * 2
