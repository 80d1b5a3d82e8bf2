"""What belongs to a view ends with it."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

import pytest
from lab import MS, Cluster, Node, ping

from kimberlite.types import Status
from kimberlite.vsr.state import Said, ViewScope

ELSEWHERE = 12345  # no value that a new object has


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register()
    cluster.append(1, b"a")
    cluster.run(500)
    return cluster


def fill(scope: Any) -> None:
    """Give every field a value of its kind that a new object does not have."""
    for field in fields(scope):
        value = getattr(scope, field.name)
        if isinstance(value, dict):
            value[ELSEWHERE] = ELSEWHERE
        elif isinstance(value, set):
            value.add(ELSEWHERE)
        elif isinstance(value, bool):
            setattr(scope, field.name, not value)
        elif isinstance(value, int) or value is None:
            setattr(scope, field.name, ELSEWHERE)
        else:
            fill(value)


def new_value(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]


def backup(cluster: Cluster) -> tuple[Node, int]:
    """A backup, and the other one."""
    first, second = cluster.backups
    return first, second.index


@pytest.mark.parametrize("leads", [False, True])
def test_nothing_of_a_view_is_left_in_the_next(cluster: Cluster, leads: bool) -> None:
    node = cluster.primary if leads else backup(cluster)[0]
    core = node.core
    for key in list(core.peers):
        fill(core.peers[key].said)
    fill(core.scope)
    core.enter_view(core.view + 1)
    for field in fields(ViewScope):
        assert getattr(core.scope, field.name) == new_value(field), field.name
    assert all(peer.said == Said() for peer in core.peers.values())


def test_a_view_is_entered_in_one_place(cluster: Cluster) -> None:
    node, other = backup(cluster)
    core, before = node.core, node.core.scope
    node.driver.on_input(messages=[ping(other, core.view + 1, op=3)])
    assert core.status == Status.VIEW_CHANGE
    assert core.scope is not before
    assert core.peers[other].said.op == 3, "what a frame of the new view says belongs to the new view"


def test_how_far_a_replica_came_in_an_old_view_is_no_word_of_the_new_one(cluster: Cluster) -> None:
    """Nothing is said of its lag before it has said something; whom to ask for entries, its last word is good for."""
    old = cluster.primary
    node, other = backup(cluster)
    node.driver.on_input(messages=[ping(other, node.core.view, op=2)])
    said = {peer.replica: peer.op for peer in node.core.snapshot().peers}
    assert said == {old.index: 2, other: 2}
    node.driver.on_input(messages=[ping(other, node.core.view + 1, op=1)])
    assert {peer.replica: peer.op for peer in node.core.snapshot().peers} == {old.index: None, other: 1}
    assert node.core.peers[old.index].held == 2


def test_a_full_disk_of_an_old_view_refuses_nothing_in_the_next(cluster: Cluster) -> None:
    old = cluster.primary
    old.core.full_peers = {node.index for node in cluster.backups}
    assert not old.core.can_journal
    cluster.lost = lambda source, target, message: old.index in (source, target)
    view = old.core.view
    cluster.run(20_000, lambda: any(node.core.view > view and node.core.ready for node in cluster.up))
    cluster.lost = lambda source, target, message: False
    cluster.run(20_000, lambda: old.core.view > view and old.core.status == Status.NORMAL)
    assert old.core.full_peers == set()


def test_who_returned_in_an_old_view_gets_its_time_in_the_next(cluster: Cluster) -> None:
    node, other = backup(cluster)
    core = node.core
    core.peers[other].last_heard = cluster.now - 5000 * MS
    node.driver.on_input(messages=[ping(other, core.view)])
    assert core.peers[other].said.is_awaited
    node.driver.on_input(messages=[ping(other, core.view + 1)])
    assert not core.peers[other].said.is_awaited
    core.peers[other].last_heard = cluster.now - 5000 * MS
    node.driver.on_input(messages=[ping(other, core.view)])
    assert core.peers[other].said.progress_at == core.now
