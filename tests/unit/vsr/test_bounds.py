"""Numbers in frames: what is above its bound is refused, before anything is persisted, and nothing ends."""

from __future__ import annotations

from typing import Any

import pytest
from small_cluster import CLUSTER, Cluster, Node

from kimberlite._fast.framing import make_header
from kimberlite.types import Command, Message, Operation, Reason, Status
from kimberlite.vsr import bounds
from kimberlite.vsr.work import DropReason, EventKind

U64_MAX = 2**64 - 1


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register()
    for number in (1, 2, 3):
        cluster.append(number, b"event %d" % number)
    cluster.run(500)
    return cluster


def frame(command: Command, replica: int, body: bytes = b"", **fields: Any) -> Message:
    """A well-formed frame, as anybody can make it."""
    return Message(make_header(body, cluster=CLUSTER, command=command, replica=replica, **fields), body)


def roles(cluster: Cluster) -> tuple[Node, Node, Node]:
    """The primary and its two backups."""
    primary = cluster.primary
    one, two = (node for node in cluster.up if node is not primary)
    return primary, one, two


def send(cluster: Cluster, to: Node, *messages: Message) -> None:
    to.driver.on_input(messages=list(messages))


def refused(node: Node) -> int:
    return sum(event.b in (DropReason.OUT_OF_BOUNDS, DropReason.MALFORMED) for event in node.kinds(EventKind.DROPPED))


def goes_on(cluster: Cluster) -> None:
    """Everything is as before: the same log everywhere, and it grows."""
    before = len(cluster.primary.machine.applied)
    cluster.append(before + 1, b"after")
    cluster.run(2000, lambda: all(len(node.machine.applied) == before + 1 for node in cluster.up))
    assert len({tuple(node.entries()) for node in cluster.up}) == 1


def changes_views(cluster: Cluster) -> None:
    """The primary dies, the others elect one and go on; then it comes back."""
    primary = cluster.primary
    before = len(primary.machine.applied)
    cluster.crash(primary.index)
    cluster.settle()
    cluster.append(before + 1, b"without it")
    cluster.start(primary.index)
    cluster.run(5000, lambda: all(len(node.machine.applied) == before + 1 for node in cluster.up))


@pytest.mark.parametrize(
    "view", [U64_MAX, U64_MAX - 1, 2**63, 2**63 - 1, bounds.VIEW_MAX + 1, bounds.VIEW_AHEAD_MAX * 2]
)
@pytest.mark.parametrize(
    "command",
    [
        *(Command.PING, Command.COMMIT, Command.PREPARE, Command.PREPARE_OK, Command.START_VIEW_CHANGE),
        *(Command.DO_VIEW_CHANGE, Command.START_VIEW, Command.HEADERS, Command.REQUEST_HEADERS),
    ],
)
def test_a_view_far_above_the_own_is_refused(cluster: Cluster, command: Command, view: int) -> None:
    _, backup, other = roles(cluster)
    before = backup.store.view_state
    send(cluster, backup, frame(command, other.index, view=view, op=5, operation=Operation.APPLY))
    assert refused(backup) == 1
    assert backup.core.view == before.view and backup.store.view_state == before
    assert backup.core.refusal is not None and backup.core.refusal.field == "view"
    goes_on(cluster)


def test_a_view_that_is_not_far_above_is_followed(cluster: Cluster) -> None:
    _, backup, other = roles(cluster)
    view = backup.core.view + bounds.VIEW_AHEAD_MAX
    send(cluster, backup, frame(Command.PING, other.index, view=view))
    assert (backup.core.view, backup.core.status) == (view, Status.VIEW_CHANGE)
    cluster.settle()
    assert cluster.primary.core.view >= view
    goes_on(cluster)


def test_a_request_with_numbers_out_of_bounds_never_enters_the_log(cluster: Cluster) -> None:
    """The number of a REGISTER is not compared with anything, and would stand in a prepare that no backup takes."""
    primary = cluster.primary
    head = primary.core.log.op
    for session, request in ((0, U64_MAX), (U64_MAX, 0), (bounds.OP_MAX + 1, bounds.REQUEST_MAX + 1)):
        fields = {"session": session, "request": request, "operation": Operation.REGISTER, "client": b"x" * 16}
        send_request = Message(make_header(cluster=CLUSTER, command=Command.REQUEST, **fields))  # type: ignore[arg-type]
        primary.driver.on_input(requests=[send_request])
        assert primary.answers.pop().header.reason == Reason.MALFORMED
    assert primary.core.log.op == head
    goes_on(cluster)
