"""Votes to leave a view: each counts in the view it names, once a replica, and only while it is fresh."""

from __future__ import annotations

from kimberlite._fast.framing import make_header
from kimberlite.node.driver import FastCodec
from kimberlite.types import Command, Message, Recovered, Status, ViewState, root_header
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.replica import Replica

CLUSTER = b"v" * 16
ROOT = root_header(make_header, CLUSTER)


def replica(index: int, view: int, count: int = 3, log_view: int | None = None) -> Replica:
    """A replica that has just started in `view`, with an empty log."""
    state = ViewState(view=view, log_view=view if log_view is None else log_view, suffix=(ROOT,))
    core = Replica(
        config=CoreConfig(CLUSTER, index, count),
        codec=FastCodec(),
        recovered=Recovered(state, 0, ROOT, 0, 0),
        headers=(),
        seed=1,
        now=1,
    )
    core.take_work()
    return core


def vote(sender: int, view: int) -> Message:
    return Message(make_header(cluster=CLUSTER, command=Command.START_VIEW_CHANGE, replica=sender, view=view))


def test_a_vote_that_was_enough_does_not_count_in_the_next_view() -> None:
    """The primary's vote makes a backup vote too, and the view is left: both votes were of that view."""
    core = replica(2, view=4)
    core.step(vote(1, 4), 10)
    assert (core.view, core.status) == (5, Status.VIEW_CHANGE)
    assert core.scope.votes == {}


def test_one_replica_is_not_a_quorum() -> None:
    core = replica(2, view=4)
    for at in range(10, 60, 10):
        core.step(vote(0, 4), at)
    assert core.view == 4


def test_a_vote_that_is_no_longer_fresh_does_not_count() -> None:
    core = replica(2, view=4, count=5)
    core.step(vote(0, 4), 10)
    core.step(vote(1, 4), 10 + core.config.vote_window_ns)
    core.step(vote(3, 4), 20 + core.config.vote_window_ns)
    assert core.view == 4
    core.step(vote(0, 4), 30 + core.config.vote_window_ns)
    assert core.view == 5


def test_a_restarted_primary_does_not_lead_its_view_whatever_becomes_durable() -> None:
    core = replica(1, view=4)
    core.persist_view()
    for persist in core.take_work().persist:
        core.durable(persist.token, 20)
    assert core.status == Status.RECOVERING
