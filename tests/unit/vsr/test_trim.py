"""Trims as the core sees them: when one may be proposed, and what a replica says that comes too late."""

from __future__ import annotations

from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.errors import FrameError
from kimberlite.node.driver import FastCodec
from kimberlite.types import (
    Command,
    Header,
    Message,
    Operation,
    Recovered,
    Restored,
    Room,
    Status,
    ViewState,
    root_header,
)
from kimberlite.vsr.codec import Evidence, decode_trim, encode_evidence, encode_trim
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.work import ToReplica, Work

CLUSTER = b"d" * 16
ROOT = root_header(make_header, CLUSTER)
COMMITTED = 40  # ops of the log of all replicas, all executed


def frame(command: Command, body: bytes = b"", **fields: Any) -> Message:
    return Message(make_header(body, cluster=CLUSTER, command=command, **fields), body)


def chain() -> list[Header]:
    headers = [ROOT]
    for op in range(1, COMMITTED + 1):
        fields = {"op": op, "parent": headers[-1].checksum, "view": 0, "operation": Operation.NOOP}
        headers.append(frame(Command.PREPARE, replica=0, **fields).header)
    return headers


LOG = chain()


def replica(index: int, view: int, checkpoint: int) -> Replica:
    """A replica that has the whole log, restarted from its checkpoint."""
    core = Replica(
        config=CoreConfig(CLUSTER, index, 3),
        codec=FastCodec(),
        recovered=Recovered(
            ViewState(view, view, COMMITTED, COMMITTED, COMMITTED, (LOG[-1],)),
            COMMITTED,
            LOG[-1],
            COMMITTED,
            COMMITTED,
            commit=COMMITTED,
            restored=Restored(checkpoint, 0, 1, b"", b""),
        ),
        headers=[],
        seed=3,
        now=10,
    )
    core.room = Room(1 << 20, 64 << 10, spare=100)
    return core


def settle(core: Replica) -> Work:
    everything = Work()
    while work := core.take_work():
        everything.send += work.send
        everything.events += work.events
        for persist in work.persist:
            core.durable(persist.token, core.now)
        for apply in work.apply:
            core.applied_op(apply.op, [], core.now)
    return everything


def primary(checkpoint: int = 30) -> Replica:
    """The primary of view 3."""
    core = replica(0, 2, checkpoint)
    settle(core)
    for other in (1, 2):
        core.step(frame(Command.START_VIEW_CHANGE, replica=other, view=2), 20)
    settle(core)
    evidence = encode_evidence(Evidence(COMMITTED, 1, 1, 0, (LOG[-1],)))
    fields = {"view": 3, "log_view": 2, "op": COMMITTED, "commit": COMMITTED, "count": 1}
    core.step(frame(Command.DO_VIEW_CHANGE, evidence, replica=1, **fields), 30)
    settle(core)
    assert (core.status, core.is_primary, core.ready, core.applied) == (Status.NORMAL, True, True, COMMITTED)
    return core


def tell(core: Replica, backup: int, checkpoint: int) -> None:
    """A backup acknowledges everything and says what its checkpoint is."""
    fields = {"view": 3, "op": COMMITTED, "context": LOG[-1].checksum, "checkpoint_op": checkpoint}
    core.step(frame(Command.PREPARE_OK, replica=backup, **fields), 40)
    settle(core)


def prepared(work: Work) -> list[Message]:
    return [
        send.message
        for send in work.send
        if isinstance(send, ToReplica) and send.message.header.operation == Operation.TRIM
    ]


def test_a_log_is_trimmed_as_far_as_every_replica_has_a_checkpoint() -> None:
    core = primary(30)
    assert not core.propose_trim(2, 7, 50), "nothing is known of the others yet"
    tell(core, 1, 20)
    assert core.trimmable_op == 1
    tell(core, 2, 25)
    assert core.trimmable_op == 21
    assert not core.propose_trim(22, 7, 50)
    assert core.propose_trim(21, 7, 50)
    frames = prepared(settle(core))
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
    core = replica(1, 0, 30)
    settle(core)
    assert core.status == Status.NORMAL and not core.is_primary
    assert not core.propose_trim(2, 7, 50)


def test_what_is_damaged_below_the_beginning_is_nobodys_concern() -> None:
    core = replica(1, 0, 30)
    settle(core)
    core.entry_faulty(5, LOG[5], 50)
    core.entry_faulty(39, LOG[39], 50)
    core.trimmed(21)
    assert core.log.faulty == {39}
    assert core.first_op == 21
    assert [event.a for event in settle(core).events if event.kind is EventKind.TRIMMED] == [21]


def test_a_replica_whose_log_ends_before_the_primarys_begins_says_so() -> None:
    core = replica(1, 0, 30)
    settle(core)
    heartbeat = {"view": 0, "op": 90, "commit": 0, "replica": 0}
    core.step(frame(Command.COMMIT, request=COMMITTED + 1, **heartbeat), 50)
    assert "begins with op" not in core.snapshot().unhealthy
    core.step(frame(Command.COMMIT, request=COMMITTED + 2, **heartbeat), 60)
    assert f"up to op {COMMITTED}, the primary's begins with op {COMMITTED + 2}" in core.snapshot().unhealthy


@pytest.mark.parametrize("body", [b"", bytes(15), bytes(17)])
def test_a_trim_of_another_size_is_refused(body: bytes) -> None:
    assert decode_trim(encode_trim(9, 8)) == (9, 8)
    with pytest.raises(FrameError):
        decode_trim(body)
