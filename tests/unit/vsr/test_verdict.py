"""Whether a replica can commit, as far as it knows: true on an idle cluster, on every replica, in every status."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from lab import ROOT, Cluster, Core, heartbeat, leading, ping, prepare_ok, prepares, request, start_view_change, started

from kimberlite.types import FLAG_DISK_FULL, HEADER_SIZE
from kimberlite.vopr.disk import corrupt
from kimberlite.vsr import verdict
from kimberlite.vsr.events import EventKind, GaveUp
from kimberlite.vsr.work import CannotCommit


def said(core: Core, now: int) -> tuple[tuple[CannotCommit, ...], int]:
    snapshot = core.snapshot(now)
    return snapshot.cannot_commit, snapshot.quorum_margin


def test_an_idle_primary_whose_backups_are_silent() -> None:
    core = leading()
    heard = max(peer.last_heard for peer in core.peers.values())
    assert said(core, heard)[0] == ()
    bound = core.config.timing.contact_ns
    assert said(core, heard + bound)[0] == ()
    assert said(core, heard + bound + 1) == ((CannotCommit.NO_QUORUM,), -1)
    core.step(prepare_ok(2, ROOT, core.view), heard + bound + 2)
    assert said(core, heard + bound + 2) == ((), 0)


def test_a_backup_that_hears_no_primary() -> None:
    core = started(1, view=3)  # the primary is replica 0
    assert said(core, 10)[0] == (CannotCommit.NO_PRIMARY, CannotCommit.NO_QUORUM)
    core.step(heartbeat(3), 20)
    assert said(core, 20) == ((), 0)
    core.suspecting = True
    assert said(core, 21)[0] == (CannotCommit.NO_PRIMARY,)
    core.suspecting = False
    later = 21 + core.config.timing.contact_ns
    assert said(core, later)[0] == (CannotCommit.NO_PRIMARY, CannotCommit.NO_QUORUM)
    core.step(ping(2, 3), later)
    assert said(core, later) == ((CannotCommit.NO_PRIMARY,), 0)


def test_a_view_change_with_and_without_a_quorum() -> None:
    core = started(1, view=3)
    core.step(start_view_change(2, 3), 20)
    core.step(start_view_change(0, 3), 20)
    assert said(core, 20) == ((CannotCommit.VIEW_CHANGE,), 1)
    core.settle()
    assert said(core, 21 + core.config.timing.contact_ns) == ((CannotCommit.VIEW_CHANGE, CannotCommit.NO_QUORUM), -1)


@pytest.mark.parametrize("view", [3, 6])
def test_a_primary_whose_log_is_not_here_yet_lives_as_its_prepares_show(view: int) -> None:
    """Prepares take the place of heartbeats under load. One that is asked for by its identity anybody sends."""
    core = started(1, view=3, log_view=2)
    core.settle()
    late = 20 + core.config.timing.contact_ns
    message = prepares(1, view=view)[0]
    core.step(message, late)
    assert core.state.is_heard(0)
    core.step(prepares(1, view=0)[0], 2 * late)
    assert not core.state.is_heard(0), "it may be as old as its view"


def test_a_start_that_would_lead() -> None:
    core = started(0, view=3)
    assert said(core, 10) == ((CannotCommit.RECOVERING, CannotCommit.NO_QUORUM), -1)


def test_a_primary_that_is_not_acknowledged() -> None:
    core = leading()
    core.propose(request(0), 40)
    core.settle()
    later = 41 + core.config.timing.contact_ns
    for peer in core.peers.values():
        peer.last_heard = later  # heartbeats are answered, the entry is not
    assert said(core, later) == ((CannotCommit.STALLED,), 1)


def test_disk_and_end() -> None:
    core = leading()
    for by in (1, 2):
        core.step(prepare_ok(by, ROOT, 3, flags=FLAG_DISK_FULL), core.now)
    assert said(core, core.now)[0] == (CannotCommit.DISK_FULL,)
    core.drain()
    assert said(core, core.now)[0] == (CannotCommit.DISK_FULL, CannotCommit.DRAINING)


def test_the_bound_is_above_the_time_between_heartbeats() -> None:
    config = leading().config
    assert config.timing.contact_ns == 1_000_000_000
    assert replace(config.timing, heartbeat_ns=600_000_000).contact_ns == 2_400_000_000


def test_a_view_change_that_waits_for_an_op_that_nobody_has() -> None:
    """Its last copy is damaged on all replicas: each candidate says which op it is, and not that all is well."""
    cluster = Cluster()
    cluster.register()
    for number in (1, 2, 3):
        cluster.append(number, b"event %d" % number)
    cluster.run(500)
    head = cluster.node(0).store.head
    places = [node.store.place_of(head)[3] for node in cluster.up]
    for index in range(3):
        cluster.crash(index)
    cluster.queue.clear()
    for index in range(3):
        corrupt(cluster.files[index], "journal-00000000", places[index] + HEADER_SIZE, 64, Random(index))
        cluster.start(index)
    cluster.run(10_000, lambda: all(node.core.stuck_op for node in cluster.up))
    for node in cluster.up:
        snapshot = node.core.snapshot()
        assert snapshot.stuck_op == head
        assert {CannotCommit.VIEW_CHANGE, CannotCommit.STUCK} <= set(snapshot.cannot_commit)
        assert f"op {head} is damaged or missing on every replica whose log is known" in snapshot.unhealthy
        assert node.kinds(EventKind.STUCK)


def test_who_leaves_the_lead_says_why() -> None:
    core = leading()
    core.drain()
    core.step_down(50)
    core.leave_view(60)
    assert core.gave_up == (3, GaveUp.DRAINED)
    assert "this replica would not lead view 3 any more: it is being stopped" in core.snapshot().unhealthy


def test_every_way_to_give_up_has_words() -> None:
    assert set(verdict._GAVE_UP) == set(GaveUp)
