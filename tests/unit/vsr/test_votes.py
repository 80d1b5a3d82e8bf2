"""Votes to leave a view: each counts in the view it names, once a replica, and only while it is fresh."""

from __future__ import annotations

from lab import Core, start_view_change, started

from kimberlite.types import Status


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


def test_a_restarted_primary_does_not_lead_its_view_whatever_becomes_durable() -> None:
    core = fresh(1, view=4)
    core.persist_view()
    for persist in core.take_work().persist:
        core.durable(persist.token, 20)
    assert core.status == Status.RECOVERING
