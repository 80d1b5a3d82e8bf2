"""Trims as the core sees them: when one may be proposed, and what a replica says that comes too late."""

from __future__ import annotations

import pytest
from lab import Core, chain, heartbeat, leading, messages_sent, prepare_ok, started

from kimberlite.errors import FrameError
from kimberlite.types import Command, Message, Operation, Room, Status
from kimberlite.vsr.codec import decode_trim, encode_trim
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.work import Work

COMMITTED = 40  # ops of the log of all replicas, all executed
LOG = chain(COMMITTED)
ROOM = Room(1 << 20, 64 << 10, spare=100)


def primary(checkpoint: int = 30) -> Core:
    """The primary of view 3, restarted from its checkpoint."""
    return leading(LOG, checkpoint=checkpoint, room=ROOM)


def backup(checkpoint: int = 30) -> Core:
    made = started(1, 0, LOG, checkpoint=checkpoint, room=ROOM)
    made.settle()
    return made


def tell(core: Core, backup: int, checkpoint: int) -> None:
    """A backup acknowledges everything and says what its checkpoint is."""
    core.step(prepare_ok(backup, LOG[-1], 3, checkpoint_op=checkpoint), 40)
    core.settle()


def prepared(work: Work) -> list[Message]:
    return [message for message in messages_sent(work, Command.PREPARE) if message.header.operation == Operation.TRIM]


def test_a_log_is_trimmed_as_far_as_every_replica_has_a_checkpoint() -> None:
    core = primary(30)
    assert not core.propose_trim(2, 7, 50), "nothing is known of the others yet"
    tell(core, 1, 20)
    assert core.trimmable_op == 1
    tell(core, 2, 25)
    assert core.trimmable_op == 21
    assert not core.propose_trim(22, 7, 50)
    assert core.propose_trim(21, 7, 50)
    frames = prepared(core.settle())
    assert len(frames) == 2 and decode_trim(frames[0].body) == (21, 7)
    assert frames[0].header.op == COMMITTED + 1


def test_a_replaced_replica_holds_trims_up() -> None:
    core = primary(30)
    tell(core, 1, 20)
    tell(core, 2, 20)
    tell(core, 2, 0)
    assert not core.propose_trim(2, 7, 50)


@pytest.mark.parametrize("first_op", [0, 1])
def test_a_log_is_not_trimmed_to_where_it_begins(first_op: int) -> None:
    core = primary()
    tell(core, 1, 20)
    tell(core, 2, 20)
    assert not core.propose_trim(first_op, 0, 50)


def test_only_the_primary_proposes() -> None:
    core = backup()
    assert core.status == Status.NORMAL and not core.is_primary
    assert not core.propose_trim(2, 7, 50)


def test_what_is_damaged_below_the_beginning_is_nobodys_concern() -> None:
    core = backup()
    core.entry_faulty(5, LOG[5], 50)
    core.entry_faulty(39, LOG[39], 50)
    core.trimmed(21)
    assert core.log.faulty == {39}
    assert core.first_op == 21
    assert [event.a for event in core.settle().events if event.kind is EventKind.TRIMMED] == [21]


def test_a_replica_whose_log_ends_before_the_primarys_begins_says_so() -> None:
    core = backup()
    core.step(heartbeat(0, 90, request=COMMITTED + 1), 50)
    assert "begins with op" not in core.snapshot().unhealthy
    core.step(heartbeat(0, 90, request=COMMITTED + 2), 60)
    assert f"up to op {COMMITTED}, the primary's begins with op {COMMITTED + 2}" in core.snapshot().unhealthy


@pytest.mark.parametrize("body", [b"", bytes(15), bytes(17)])
def test_a_trim_of_another_size_is_refused(body: bytes) -> None:
    assert decode_trim(encode_trim(9, 8)) == (9, 8)
    with pytest.raises(FrameError):
        decode_trim(body)
