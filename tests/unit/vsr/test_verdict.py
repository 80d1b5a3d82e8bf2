"""Whether a replica can commit, as far as it knows: true on an idle cluster, on every replica, in every status."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from small_cluster import Cluster

from kimberlite._fast.framing import make_header
from kimberlite.node.driver import FastCodec
from kimberlite.types import (
    FLAG_DISK_FULL,
    HEADER_SIZE,
    Command,
    Message,
    Operation,
    Recovered,
    Status,
    ViewState,
    root_header,
)
from kimberlite.vopr.disk import corrupt
from kimberlite.vsr import verdict
from kimberlite.vsr.codec import Evidence, encode_evidence
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.events import EventKind, GaveUp
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.work import CannotCommit

CLUSTER = b"v" * 16
ROOT = root_header(make_header, CLUSTER)


def frame(command: Command, body: bytes = b"", **fields: Any) -> Message:
    return Message(make_header(body, cluster=CLUSTER, command=command, **fields), body)


def replica(index: int, view: int, log_view: int | None = None) -> Replica:
    """One of three with an empty log, as it starts in `view`."""
    state = ViewState(view=view, log_view=view if log_view is None else log_view, suffix=(ROOT,))
    return Replica(
        config=CoreConfig(CLUSTER, index, 3),
        codec=FastCodec(),
        recovered=Recovered(state, 0, ROOT, 0, 0),
        headers=[],
        seed=3,
        now=10,
    )


def settle(core: Replica) -> None:
    """Complete writes and executions until nothing is asked for."""
    while work := core.take_work():
        for persist in work.persist:
            core.durable(persist.token, core.now)
        for apply in work.apply:
            core.applied_op(apply.op, [], core.now)


def primary() -> Replica:
    """The primary of view 3, index 0, ready; both others were heard at 30."""
    core = replica(0, view=3, log_view=2)
    evidence = encode_evidence(Evidence(0, 1, 1, 0, (ROOT,)))
    for by in (1, 2):
        core.step(frame(Command.DO_VIEW_CHANGE, evidence, replica=by, view=3, log_view=2, count=1), 30)
    settle(core)
    core.tick(40)  # its own evidence
    settle(core)
    assert (core.status, core.is_primary, core.ready) == (Status.NORMAL, True, True)
    return core


def said(core: Replica, now: int) -> tuple[tuple[CannotCommit, ...], int]:
    core.now = now
    snapshot = core.snapshot()
    return snapshot.cannot_commit, snapshot.quorum_margin


def test_an_idle_primary_whose_backups_are_silent() -> None:
    core = primary()
    heard = max(peer.last_heard for peer in core.peers.values())
    assert said(core, heard)[0] == ()
    bound = core.config.contact_ns
    assert said(core, heard + bound)[0] == ()
    assert said(core, heard + bound + 1) == ((CannotCommit.NO_QUORUM,), -1)
    core.step(frame(Command.PREPARE_OK, replica=2, view=core.view), heard + bound + 2)
    assert said(core, heard + bound + 2) == ((), 0)


def test_a_backup_that_hears_no_primary() -> None:
    core = replica(1, view=3)  # the primary is replica 0
    assert said(core, 10)[0] == (CannotCommit.NO_PRIMARY, CannotCommit.NO_QUORUM)
    core.step(frame(Command.COMMIT, replica=0, view=3), 20)
    assert said(core, 20) == ((), 0)
    core.scope.suspecting = True
    assert said(core, 21)[0] == (CannotCommit.NO_PRIMARY,)
    core.scope.suspecting = False
    later = 21 + core.config.contact_ns
    assert said(core, later)[0] == (CannotCommit.NO_PRIMARY, CannotCommit.NO_QUORUM)
    core.step(frame(Command.PING, replica=2, view=3), later)
    assert said(core, later) == ((CannotCommit.NO_PRIMARY,), 0)


def test_a_view_change_with_and_without_a_quorum() -> None:
    core = replica(1, view=3)
    core.step(frame(Command.START_VIEW_CHANGE, replica=2, view=3), 20)
    core.step(frame(Command.START_VIEW_CHANGE, replica=0, view=3), 20)
    assert said(core, 20) == ((CannotCommit.VIEW_CHANGE,), 1)
    settle(core)
    assert said(core, 21 + core.config.contact_ns) == ((CannotCommit.VIEW_CHANGE, CannotCommit.NO_QUORUM), -1)


def test_a_start_that_would_lead() -> None:
    core = replica(0, view=3)
    assert said(core, 10) == ((CannotCommit.RECOVERING, CannotCommit.NO_QUORUM), -1)


def test_a_primary_that_is_not_acknowledged() -> None:
    core = primary()
    core.propose(frame(Command.REQUEST, client=b"c" * 16, operation=Operation.REGISTER), 40)
    settle(core)
    later = 41 + core.config.contact_ns
    for peer in core.peers.values():
        peer.last_heard = later  # heartbeats are answered, the entry is not
    assert said(core, later) == ((CannotCommit.STALLED,), 1)


def test_disk_and_end() -> None:
    core = primary()
    for by in (1, 2):
        core.step(
            frame(Command.PREPARE_OK, replica=by, view=3, context=ROOT.checksum, flags=FLAG_DISK_FULL),
            core.now,
        )
    assert said(core, core.now)[0] == (CannotCommit.DISK_FULL,)
    core.drain()
    assert said(core, core.now)[0] == (CannotCommit.DISK_FULL, CannotCommit.DRAINING)


def test_the_bound_is_above_the_time_between_heartbeats() -> None:
    config = primary().config
    assert config.contact_ns == 1_000_000_000
    assert replace(config, heartbeat_ns=600_000_000).contact_ns == 2_400_000_000


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
    core = primary()
    core.drain()
    core.step_down(50)
    for by in (1, 2):
        core.step(frame(Command.START_VIEW_CHANGE, replica=by, view=3), 60)
    assert core.gave_up == (3, GaveUp.DRAINED)
    assert "this replica would not lead view 3 any more: it is being stopped" in core.snapshot().unhealthy


def test_every_way_to_give_up_has_words() -> None:
    assert set(verdict._GAVE_UP) == set(GaveUp)
