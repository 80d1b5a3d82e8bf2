"""The built-in state machine: nothing to apply, one reply a batch, no state."""

from __future__ import annotations

import io

from kimberlite._fast import events
from kimberlite.state_machine import Batch, EventLog


def test_one_empty_reply_for_each_batch() -> None:
    machine = EventLog()
    batches = [Batch(events.build([b"x"] * count), count, 0, 1, 1) for count in (1, 2, 3)]
    assert list(machine.apply(batches)) == [b"", b"", b""]
    assert list(machine.apply([])) == []


def test_bodies_are_not_needed_and_the_snapshot_is_empty() -> None:
    machine = EventLog()
    assert not machine.needs_body
    writer = io.BytesIO()
    machine.snapshot(writer)
    assert writer.getvalue() == b""
    machine.restore(io.BytesIO())
