"""Votes to leave a view: each counts in the view it names, once a replica, and only while it is fresh."""

from __future__ import annotations

from lab import Cluster, Core, start_view_change, started
from lab.cluster import between

from kimberlite.types import Command, Status


def fresh(index: int, view: int, replicas: int = 3) -> Core:
    """A replica that has just started in `view`, with an empty log."""
    made = started(index, view, replicas=replicas, now=1)
    made.take_work()
    return made


def test_a_vote_that_was_enough_does_not_count_in_the_next_view() -> None:
    """The primary's vote makes a backup vote too, and the view is left: both votes were of that view."""
    core = fresh(2, view=4)
    core.step(start_view_change(1, 4), 10)
    assert (core.view, core.status) == (5, Status.VIEW_CHANGE)
    assert core.votes == {}


def test_one_replica_is_not_a_quorum() -> None:
    core = fresh(2, view=4)
    for at in range(10, 60, 10):
        core.step(start_view_change(0, 4), at)
    assert core.view == 4


def test_a_vote_that_is_no_longer_fresh_does_not_count() -> None:
    core = fresh(2, view=4, replicas=5)
    core.step(start_view_change(0, 4), 10)
    core.step(start_view_change(1, 4), 10 + core.config.timing.vote_window_ns)
    core.step(start_view_change(3, 4), 20 + core.config.timing.vote_window_ns)
    assert core.view == 4
    core.step(start_view_change(0, 4), 30 + core.config.timing.vote_window_ns)
    assert core.view == 5


def test_a_vote_that_was_withdrawn_does_not_count_where_it_was_cast_either() -> None:
    """Who heard the primary again is not half of a quorum for another one that does not a moment later."""
    cluster = Cluster()
    cluster.register()
    cluster.run(500)
    primary, view = cluster.primary, cluster.primary.core.view
    one, other = cluster.backups
    cluster.lost = between({one.index}, {primary.index, other.index})
    cluster.run(800)
    assert one.core.suspecting, "it has voted, and nobody heard of that"
    cluster.lost = lambda source, target, message: source == one.index
    cluster.run(200)
    assert one.core.votes == {}
    cluster.lost = lambda source, target, message: (source, target) == (primary.index, other.index)
    cluster.run(600)
    assert other.core.suspecting
    assert {node.core.view for node in cluster.up} == {view}


def test_a_primary_that_goes_on_takes_its_vote_against_itself_back() -> None:
    """It gave up because nothing was committed. Then the others acknowledge it after all, and it leads on, with
    heartbeats; one of them alone does not replace it."""
    cluster = Cluster()
    cluster.register()
    cluster.run(500)
    primary, view = cluster.primary, cluster.primary.core.view
    no_votes = (Command.START_VIEW_CHANGE,)
    lost = (*no_votes, Command.PREPARE)
    cluster.lost = lambda source, target, message: message.header.command in lost
    primary.driver.on_input(requests=[cluster.request(1, b"a")])
    cluster.run(2600)
    assert primary.core.abdicated
    assert primary.core.index in primary.core.votes
    lost = no_votes
    cluster.run(300, lambda: not primary.core.abdicated)
    assert primary.core.index not in primary.core.votes
    cluster.run(300)
    backup = cluster.backups[0]
    assert (backup.core.suspecting, backup.core.votes) == (False, {})
    primary.core.step(start_view_change(backup.index, view), cluster.now)
    assert (primary.core.view, primary.core.status) == (view, Status.NORMAL)


def test_a_restarted_primary_does_not_lead_its_view_whatever_becomes_durable() -> None:
    core = fresh(1, view=4)
    core.persist_view()
    for persist in core.take_work().persist:
        core.durable(persist.token, 20)
    assert core.status == Status.RECOVERING
