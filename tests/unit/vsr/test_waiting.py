"""Requests that come before a new primary knows what has been answered: how many it holds, and which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab import Cluster, Node

from kimberlite.types import Command, Message, Reason
from kimberlite.vsr.work import Admission


@pytest.fixture
def cluster() -> Cluster:
    """The primary is not ready: nobody acknowledges the op that the last view left."""
    cluster = Cluster()
    cluster.register()
    cluster.lost = lambda source, target, message: message.header.command == Command.PREPARE_OK
    old = cluster.primary
    old.driver.on_input(requests=[cluster.request(1, b"left behind")])
    cluster.run(50)
    cluster.crash(old.index)
    cluster.run(20_000, lambda: any(node.leads for node in cluster.up))
    assert not cluster.primary.core.ready
    return cluster


def refusals(node: Node) -> list[tuple[int, int]]:
    node.driver.on_tick()
    found = [(answer.header.reason, answer.header.count) for answer in node.answers]
    node.answers.clear()
    return found


def held(node: Node) -> list[Message]:
    return [message for message, _ in node.core.waiting.values()]


def test_a_request_is_held_once(cluster: Cluster) -> None:
    core = cluster.primary.core
    request = cluster.request(2, b"x" * 1000)
    assert core.propose(request, cluster.now) is Admission.ACCEPTED
    for _ in range(3):
        assert core.propose(request, cluster.now) is Admission.DUPLICATE
    assert (held(cluster.primary), core.queue_bytes) == ([request], len(request.body))


def test_the_newest_request_of_a_client_is_the_one_that_waits(cluster: Cluster) -> None:
    core = cluster.primary.core
    first, second = cluster.request(2, b"x" * 1000), cluster.request(3, b"y")
    assert core.propose(first, cluster.now) is Admission.ACCEPTED
    assert core.propose(second, cluster.now) is Admission.ACCEPTED, "the last primary has answered the first"
    assert core.propose(first, cluster.now) is Admission.DUPLICATE, "a copy that comes late"
    assert (held(cluster.primary), core.queue_bytes) == ([second], len(second.body))


def test_what_waits_has_the_bounds_of_the_queue(cluster: Cluster) -> None:
    node = cluster.primary
    core = node.core
    core.config = replace(core.config, queue_max=5, queue_bytes_max=3000)
    for client in range(1, 6):
        request = cluster.request(0, client=client)
        assert core.propose(request, cluster.now) is Admission.ACCEPTED
    assert core.propose(cluster.request(0, client=6), cluster.now) is Admission.REJECTED
    assert [reason for reason, _ in refusals(node)] == [Reason.BUSY_QUEUE]
    core.waiting.clear()
    body = cluster.request(1, b"x" * 1400).body
    assert core.propose(cluster.request(1, b"x" * 1400, client=1), cluster.now) is Admission.ACCEPTED
    assert core.propose(cluster.request(1, b"x" * 1400, client=2), cluster.now) is Admission.ACCEPTED
    assert core.propose(cluster.request(1, b"x" * 1400, client=3), cluster.now) is Admission.REJECTED
    assert core.queue_bytes == 2 * len(body)


@pytest.mark.parametrize(("after_ms", "wait_ms"), [(0, 50), (300, 300), (900, 900), (60_000, 1000)])
def test_who_comes_too_early_is_told_to_wait_as_long_as_it_has_taken(
    cluster: Cluster, after_ms: int, wait_ms: int
) -> None:
    node = cluster.primary
    core = node.core
    core.config = replace(core.config, queue_max=0)
    core.propose(cluster.request(0, client=6), core.view_left_at + after_ms * 1_000_000)
    assert refusals(node) == [(Reason.BUSY_QUEUE, wait_ms)]


def test_what_waited_is_prepared_and_leaves_no_bytes_behind(cluster: Cluster) -> None:
    node = cluster.primary
    for client in range(2, 6):
        node.driver.on_input(requests=[cluster.request(0, client=client)])
    node.driver.on_input(requests=[cluster.request(0, client=2), cluster.request(2, b"x" * 100)])
    cluster.lost = lambda source, target, message: False
    cluster.run(5000, lambda: len([answer for answer in node.answers if answer.header.command == Command.REPLY]) == 5)
    assert (node.core.waiting, node.core.queue_bytes, len(node.core.queue), node.core.in_flight) == ({}, 0, 0, {})


def test_a_view_change_sends_what_waits_elsewhere(cluster: Cluster) -> None:
    node = cluster.primary
    node.driver.on_input(requests=[cluster.request(5, b"x" * 100)])
    other = next(one for one in cluster.up if one is not node)
    view = node.core.view
    cluster.start(3 - node.index - other.index)
    cluster.lost = lambda source, target, message: node.index in (source, target)
    cluster.run(20_000, lambda: other.core.view > view)
    cluster.lost = lambda source, target, message: False
    cluster.run(20_000, lambda: node.core.view > view)
    assert (node.core.waiting, node.core.queue_bytes) == ({}, 0)
    assert [answer.header.reason for answer in node.answers] == [Reason.NOT_PRIMARY]
