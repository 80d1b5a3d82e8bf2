"""A peer whose process has ended: its listener refuses, and the connection to it was reset."""

from __future__ import annotations

from lab import Cluster

from kimberlite.types import Status
from kimberlite.vsr.events import EventKind, ViewChangeCause


def led() -> Cluster:
    cluster = Cluster()
    cluster.settle()
    cluster.register()
    cluster.append(1, b"one")
    cluster.deliver()
    return cluster


def tell(cluster: Cluster, gone: int) -> None:
    """Everybody else is told so, and time stands still."""
    for node in cluster.up:
        if node.index != gone:
            node.driver.on_peer_gone(gone)


def test_backups_replace_a_primary_that_is_gone_without_waiting() -> None:
    cluster = led()
    old = cluster.primary
    view, before = old.core.view, cluster.now
    cluster.crash(old.index)
    tell(cluster, old.index)
    cluster.deliver()
    assert cluster.now == before
    assert cluster.primary.core.view == view + 1
    causes = {event.b for node in cluster.up for event in node.kinds(EventKind.VIEW_CHANGE_STARTED)[-1:]}
    assert ViewChangeCause.PRIMARY_GONE in causes
    cluster.append(2, b"two")
    cluster.deliver()
    assert cluster.primary.machine.applied == [b"one", b"two"]


def test_one_backup_that_finds_it_gone_replaces_nobody() -> None:
    """Its network may be what is wrong. The next heartbeat takes its vote back."""
    cluster = led()
    view = cluster.primary.core.view
    doubter = cluster.backups[0]
    doubter.driver.on_peer_gone(cluster.primary.index)
    assert doubter.core.votes
    cluster.run(2_000)
    assert {node.core.view for node in cluster.up} == {view}
    assert doubter.core.state.is_heard(cluster.primary.index)


def test_who_is_gone_does_not_lead_the_next_view_either() -> None:
    cluster = Cluster(5)
    cluster.settle()
    cluster.deliver()
    view = cluster.primary.core.view
    first, second = (view % 5, (view + 1) % 5)
    cluster.crash(first, second)
    tell(cluster, second)
    tell(cluster, first)
    cluster.run(100, lambda: any(node.leads for node in cluster.up))
    assert cluster.primary.core.view == view + 2


def test_a_backup_that_is_gone_is_no_longer_heard_and_nothing_else_changes() -> None:
    cluster = led()
    primary, gone = cluster.primary, cluster.backups[0]
    view, margin = primary.core.view, primary.core.state.quorum_margin
    cluster.crash(gone.index)
    tell(cluster, gone.index)
    assert primary.core.state.quorum_margin == margin - 1
    cluster.deliver()
    assert (primary.core.view, primary.core.status) == (view, Status.NORMAL)
    cluster.start(gone.index)
    cluster.run(500, lambda: primary.core.state.quorum_margin == margin)


def test_what_comes_from_it_later_is_a_sign_of_life() -> None:
    """The process that listens there now is the next one."""
    cluster = led()
    primary = cluster.primary
    for node in cluster.backups[:1]:
        node.driver.on_peer_gone(primary.index)
        assert not node.core.state.is_heard(primary.index)
        cluster.run(1_000, lambda node=node: node.core.state.is_heard(primary.index))  # type: ignore[misc]


def test_nobody_else_can_be_gone() -> None:
    cluster = led()
    primary = cluster.primary
    for replica in (primary.index, 3, 255, -1):
        primary.driver.on_peer_gone(replica)
    assert primary.leads
