"""What a replica says when, and what the disk owes it."""

from __future__ import annotations

import pytest
from lab import ping, prepares, start_view_change

from kimberlite.types import Message, ViewState
from kimberlite.vsr.outbox import VIEWS_MAX, Outbox
from kimberlite.vsr.work import ToReplica


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def promised(outbox: Outbox, view: int) -> int:
    """Promise to be in that view; the token."""
    outbox.make_promise(ViewState(view=view), None, 10)
    token = outbox.promise
    assert token is not None
    return token


def said(outbox: Outbox) -> list[tuple[int, Message]]:
    return [(frame.replica, frame.message) for frame in outbox.take().send if isinstance(frame, ToReplica)]


def test_what_reveals_nothing_new_leaves_at_once(outbox: Outbox) -> None:
    frame = ToReplica(1, ping(0))
    outbox.reveal(frame)
    assert said(outbox) == [(1, frame.message)]


def test_a_frame_waits_until_what_it_reveals_is_durable(outbox: Outbox) -> None:
    token = promised(outbox, 1)
    frame = ToReplica(1, ping(0, view=1))
    outbox.reveal(frame)
    assert said(outbox) == []
    outbox.completed(token, 20)
    assert said(outbox) == [(1, frame.message)]
    assert said(outbox) == [], "once"


def test_the_last_promise_counts(outbox: Outbox) -> None:
    first = promised(outbox, 1)
    second = promised(outbox, 2)
    outbox.reveal(ToReplica(1, ping(0, view=2)))
    outbox.completed(first, 20)
    assert said(outbox) == []
    outbox.completed(second, 30)
    assert len(said(outbox)) == 1


def test_writes_of_entries_reveal_nothing(outbox: Outbox) -> None:
    outbox.append(tuple(prepares(2)), 0, 10)
    outbox.reveal(ToReplica(1, ping(0)))
    assert len(said(outbox)) == 1


def test_what_was_to_be_said_in_a_view_that_is_left_is_never_said(outbox: Outbox) -> None:
    promised(outbox, 1)
    outbox.reveal(ToReplica(1, ping(0, view=1)))
    outbox.withdraw()
    outbox.completed(promised(outbox, 2), 20)
    assert said(outbox) == []


def test_of_what_waits_the_last_of_each_kind_is_kept(outbox: Outbox) -> None:
    """Somebody who is behind in views is told at each of its frames which view this is: a disk that hangs must not
    collect the answers."""
    token = promised(outbox, 1)
    last = ping(0, op=5, view=1)
    for op in range(6):
        outbox.reveal(ToReplica(1, last if op == 5 else ping(0, op=op, view=1)))
        outbox.reveal(ToReplica(1, start_view_change(0, 1)))
        outbox.reveal(ToReplica(2, ping(0, op=op, view=1)))
    outbox.completed(token, 20)
    found = said(outbox)
    assert len(found) == 3
    assert (1, last) in found


def test_no_more_views_are_entered_than_the_disk_follows(outbox: Outbox) -> None:
    tokens = []
    while outbox.may_promise:
        tokens.append(promised(outbox, len(tokens) + 1))
    assert len(tokens) == VIEWS_MAX
    outbox.completed(tokens[0], 20)
    assert outbox.may_promise
