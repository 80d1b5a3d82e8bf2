"""A full disk as the core sees it: what is refused, what is held back, what the others are told, who may lead."""

from __future__ import annotations

from typing import Any

import pytest
from views import start_view

from kimberlite._fast.framing import make_header
from kimberlite.node.driver import FastCodec
from kimberlite.types import (
    FLAG_DISK_FULL,
    FLAG_PREPARED,
    Command,
    Header,
    Message,
    Operation,
    Reason,
    Recovered,
    Room,
    Status,
    ViewState,
    root_header,
)
from kimberlite.vsr.codec import Evidence, encode_evidence
from kimberlite.vsr.config import PIPELINE_LIMIT, CoreConfig
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.state import Pace
from kimberlite.vsr.work import Admission, PersistKind, ToClient, ToReplica, Work

CLUSTER = b"d" * 16
CLIENT = b"c" * 16
ROOT = root_header(make_header, CLUSTER)
FULL = Room(8192, 64 << 10, is_exhausted=True)
NONE = Room(0, 64 << 10, is_exhausted=True)
PLENTY = Room(64 << 10, 64 << 10, spare=1000)


def frame(command: Command, body: bytes = b"", **fields: Any) -> Message:
    return Message(make_header(body, cluster=CLUSTER, command=command, **fields), body)


def chain(length: int, view: int, before: Header = ROOT) -> list[Message]:
    messages: list[Message] = []
    for _ in range(length):
        message = frame(
            Command.PREPARE,
            replica=view % 3,
            view=view,
            op=before.op + 1,
            parent=before.checksum,
            operation=Operation.NOOP,
        )
        messages.append(message)
        before = message.header
    return messages


def replica(index: int, view: int = 0, count: int = 3, room: Room = PLENTY) -> Replica:
    """A replica with an empty log, in normal status of `view` when it is a backup."""
    state = ViewState(view=view, log_view=view, suffix=(ROOT,))
    core = Replica(
        config=CoreConfig(CLUSTER, index, count),
        codec=FastCodec(),
        recovered=Recovered(state, 0, ROOT, 0, 0),
        headers=[],
        seed=3,
        now=10,
    )
    core.room = room
    return core


def settle(core: Replica) -> Work:
    """Complete writes and executions until nothing is asked for, and use up the room; everything, in one Work."""
    everything = Work()
    while work := core.take_work():
        everything.send += work.send
        everything.events += work.events
        everything.persist += work.persist
        for persist in work.persist:
            for entry in persist.entries:
                left = core.room.after(entry.header.size)
                assert left is not None, "only what fits is handed to the journal"
                core.room = left
            core.durable(persist.token, core.now)
        for apply in work.apply:
            core.applied_op(apply.op, [], core.now)
    return everything


def to_replicas(work: Work, command: Command) -> list[Header]:
    messages = [send.message.header for send in work.send if isinstance(send, ToReplica)]
    return [header for header in messages if header.command == command]


def refusals(work: Work) -> list[int]:
    return [send.message.header.reason for send in work.send if isinstance(send, ToClient)]


def primary(room: Room = PLENTY) -> Replica:
    """The primary of view 3 (index 0 of three), ready."""
    core = replica(0, view=2, room=room)
    settle(core)
    core.step(frame(Command.START_VIEW_CHANGE, replica=1, view=2), 20)
    core.step(frame(Command.START_VIEW_CHANGE, replica=2, view=2), 20)
    settle(core)
    evidence = encode_evidence(Evidence(0, 1, 1, 0, (ROOT,)))
    core.step(frame(Command.DO_VIEW_CHANGE, evidence, replica=1, view=3, log_view=2, count=1), 30)
    settle(core)
    assert (core.status, core.is_primary, core.ready) == (Status.NORMAL, True, True)
    return core


def register(number: int = 1) -> Message:
    return frame(Command.REQUEST, client=bytes([number]) * 16, operation=Operation.REGISTER)


def acknowledge(core: Replica, by: int, flags: int = 0) -> None:
    head = core.log.headers[core.log.op]
    core.step(
        frame(Command.PREPARE_OK, replica=by, view=core.view, op=head.op, context=head.checksum, flags=flags), core.now
    )


def test_a_primary_refuses_when_its_own_disk_is_full() -> None:
    core = primary()
    core.room = FULL
    assert core.propose(register(), 40) is Admission.REJECTED
    assert refusals(settle(core)) == [Reason.DISK_FULL]
    core.room = PLENTY
    assert core.propose(register(), 50) is Admission.ACCEPTED


def test_a_primary_refuses_when_the_file_system_has_little_left() -> None:
    core = primary()
    core.is_short_of_space = True
    assert core.propose(register(), 40) is Admission.REJECTED
    core.is_short_of_space = False
    assert core.propose(register(), 50) is Admission.ACCEPTED


@pytest.mark.parametrize(("full", "admission"), [([1], Admission.ACCEPTED), ([1, 2], Admission.REJECTED)])
def test_a_primary_refuses_when_no_quorum_has_room(full: list[int], admission: Admission) -> None:
    core = primary()
    for by in full:
        acknowledge(core, by, FLAG_DISK_FULL)
    assert core.propose(register(), 40) is admission
    if admission is Admission.REJECTED:
        assert refusals(settle(core)) == [Reason.DISK_FULL]
        assert "disk full on replica 1, 2: appends are refused" in core.snapshot().unhealthy
        acknowledge(core, 2)
        assert core.propose(register(), 50) is Admission.ACCEPTED


def test_who_is_silent_does_not_count_when_another_is_full() -> None:
    core = primary()
    acknowledge(core, 2)
    acknowledge(core, 1, FLAG_DISK_FULL)
    assert core.propose(register(), 40) is Admission.ACCEPTED
    later = 40 + core.config.suspect_max_ns
    core.step(frame(Command.PING, replica=1, view=core.view), later)
    assert core.propose(register(2), later) is Admission.REJECTED
    core.step(frame(Command.PING, replica=2, view=core.view), later)
    assert core.propose(register(3), later) is Admission.ACCEPTED


def stuck(flags: int) -> Replica:
    """A primary that leads with an op of the last view which nobody else has, and that waits for a quorum of it."""
    core = replica(0, view=2)
    settle(core)
    (message,) = chain(1, view=2)
    core.step(message, 15)
    settle(core)
    for by in (1, 2):
        core.step(frame(Command.START_VIEW_CHANGE, replica=by, view=2), 20)
    settle(core)
    evidence = encode_evidence(Evidence(0, 1, 1, 0, (ROOT,)))
    core.step(frame(Command.DO_VIEW_CHANGE, evidence, replica=1, view=3, log_view=2, count=1, flags=flags), 30)
    settle(core)
    assert (core.is_primary, core.status, core.ready, len(core.pipeline)) == (True, Status.NORMAL, False, 1)
    return core


def test_what_waits_for_a_new_primary_is_refused_when_no_quorum_has_room() -> None:
    core = stuck(FLAG_DISK_FULL)
    assert core.propose(register(), 40) is Admission.ACCEPTED, "replica 2 may have room"
    assert refusals(settle(core)) == []
    core.now = 30 + core.config.suspect_max_ns
    assert refusals(settle(core)) == [Reason.DISK_FULL]
    assert core.propose(register(), core.now) is Admission.REJECTED


@pytest.mark.parametrize("flags", [0, FLAG_DISK_FULL])
def test_a_primary_that_waits_for_room_elsewhere_goes_on_leading(flags: int) -> None:
    core = stuck(flags)
    for at in range(1, 10):
        core.step(frame(Command.PING, replica=1, view=core.view), at * core.config.abdicate_ns)
        core.tick(at * core.config.abdicate_ns)
        settle(core)
    assert core.scope.abdicated is not bool(flags)


def test_backups_say_that_their_disk_is_full() -> None:
    core = replica(1)
    for room, flags in ((PLENTY, 0), (FULL, FLAG_DISK_FULL), (PLENTY, 0)):
        core.room = room
        core.step(frame(Command.COMMIT, replica=0, view=0), 20)
        assert [header.flags for header in to_replicas(settle(core), Command.PREPARE_OK)] == [flags]


def test_a_full_backup_acknowledges_what_fits_and_no_more_and_catches_up() -> None:
    core = replica(1, room=FULL)
    settle(core)
    prepares = chain(4, view=0)
    for message in prepares:
        core.step(message, 20)
    work = settle(core)
    assert [header.op for header in to_replicas(work, Command.PREPARE_OK)] == [2]
    assert core.wants_room
    assert core.next_deadline() == core.now
    core.step(frame(Command.COMMIT, replica=0, view=0, op=4, commit=4), 30)
    core.room = NONE
    work = settle(core)
    assert (core.log.durable, core.applied) == (2, 2), "what is committed elsewhere but not here waits"
    assert "disk full: the journal has room for 0 more bytes; 2 ops wait" in core.snapshot().unhealthy
    core.room = PLENTY
    assert [header.op for header in to_replicas(settle(core), Command.PREPARE_OK)] == [4]
    assert (core.applied, core.wants_room) == (4, False)


def test_a_full_backup_keeps_a_bounded_number_of_bodies() -> None:
    core = replica(1, room=NONE)
    settle(core)
    for message in chain(3 * PIPELINE_LIMIT, view=0):
        core.step(message, 20)
        settle(core)
    assert len(core.log.bodies) + len(core.stash) == PIPELINE_LIMIT
    assert core.scope.known_head == 3 * PIPELINE_LIMIT
    core.tick(10**9)
    assert to_replicas(settle(core), Command.REQUEST_PREPARE) == [], "what can not be written is not asked for"
    core.room = PLENTY
    settle(core)
    assert core.log.durable == PIPELINE_LIMIT
    core.step(frame(Command.COMMIT, replica=0, view=0, op=3 * PIPELINE_LIMIT), 2 * 10**9)
    core.tick(2 * 10**9)
    assert to_replicas(settle(core), Command.REQUEST_HEADERS)


def test_what_was_held_back_is_given_away_as_never_acknowledged_in_a_view_change() -> None:
    core = replica(1, room=FULL)
    settle(core)
    prepares = chain(3, view=0)
    for message in prepares:
        core.step(message, 20)
    settle(core)
    core.step(frame(Command.START_VIEW_CHANGE, replica=0, view=0), 30)
    core.step(frame(Command.START_VIEW_CHANGE, replica=2, view=0), 30)
    settle(core)
    assert (core.view, core.status) == (1, Status.VIEW_CHANGE)
    evidence = core.scope.evidence[1].evidence
    assert [bool(evidence.present >> op & 1) for op in range(4)][1:] == [True, True, False]
    assert [bool(evidence.nack >> op & 1) for op in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("room", [PLENTY, FULL])
def test_a_full_replica_that_lacks_entries_leaves_the_lead_to_another(room: Room) -> None:
    """It could neither apply nor answer before there is room."""
    core = replica(1, room=room)
    settle(core)
    prepares = chain(4, view=0)
    for message in prepares[:2]:
        core.step(message, 20)
    settle(core)
    for by in (0, 2):
        core.step(frame(Command.START_VIEW_CHANGE, replica=by, view=0), 30)
    settle(core)
    headers = (ROOT, *(message.header for message in prepares))
    evidence = encode_evidence(Evidence(0, 31, 31, 0, headers))
    core.step(frame(Command.DO_VIEW_CHANGE, evidence, replica=2, view=1, op=4, log_view=0, count=5), 40)
    work = settle(core)
    forfeited = [event for event in work.events if event.kind is EventKind.FORFEITED]
    if room is PLENTY:
        assert not forfeited
        assert core.log_view == 1
    else:
        assert forfeited
        assert (core.log_view, core.scope.suspecting) == (0, True)
        assert core.log.op == 2


def test_a_full_backup_takes_part_in_view_changes() -> None:
    core = replica(1, room=NONE)
    settle(core)
    prepares = chain(2, view=0)
    core.step(prepares[0], 20)
    settle(core)
    suffix = [ROOT, *(message.header for message in prepares)]
    start_view(core, suffix, 30, view=2)
    work = settle(core)
    assert (core.status, core.view, core.log_view) == (Status.NORMAL, 2, 2)
    assert [header.op for header in to_replicas(work, Command.PREPARE_OK)] == [0]
    assert not [persist for persist in work.persist if persist.kind is PersistKind.WRITE]


def test_evidence_says_that_the_disk_is_full() -> None:
    core = replica(1, room=FULL)
    settle(core)
    for by in (0, 2):
        core.step(frame(Command.START_VIEW_CHANGE, replica=by, view=1), 30)
    work = settle(core)
    assert [header.flags for header in to_replicas(work, Command.DO_VIEW_CHANGE)] == [FLAG_DISK_FULL]
    leader = replica(2, view=1)
    settle(leader)
    evidence = encode_evidence(Evidence(0, 1, 1, 0, (ROOT,)))
    message = frame(Command.DO_VIEW_CHANGE, evidence, replica=1, view=2, log_view=1, count=1, flags=FLAG_DISK_FULL)
    leader.step(message, 30)
    settle(leader)
    assert leader.scope.full_peers == {1}


# A full queue


def fill_queue(core: Replica, first: int) -> None:
    for number in range(first, first + core.config.queue_max):
        client = number.to_bytes(16, "little")
        core.propose(frame(Command.REQUEST, client=client, operation=Operation.REGISTER), core.now)


def busy_wait_ms(core: Replica, now: int) -> int:
    """What one more client is told."""
    assert core.propose(register(255), now) is Admission.REJECTED
    (header,) = [send.message.header for send in settle(core).send if isinstance(send, ToClient)]
    assert header.reason == Reason.BUSY_QUEUE
    return header.count


def test_a_full_queue_says_how_long_to_wait_from_the_pace_of_commits() -> None:
    core = primary()
    core.pace.request = 100_000  # ten thousand requests a second
    fill_queue(core, 1)
    assert busy_wait_ms(core, core.now) == pytest.approx(core.config.queue_max / 2 / 10, abs=1)


def test_a_full_queue_that_does_not_move_says_longer_and_longer_up_to_a_bound() -> None:
    core = primary()
    began = core.now
    core.pace.committed(1, began, is_more=True)
    waits = []
    for turn, after in enumerate((0, 300_000_000, 3600 * 10**9)):
        fill_queue(core, 1 + turn * 5000)
        waits.append(busy_wait_ms(core, began + after))
    assert waits[0] >= 1
    assert waits[1] >= 300
    assert waits[2] == 1000


def test_the_pace_of_commits_is_that_of_requests_which_wait() -> None:
    pace = Pace()
    pace.committed(1, 0, is_more=False)
    pace.committed(1, 10**9, is_more=True)  # after an idle second
    assert pace.request == 0
    pace.committed(10, 10**9 + 1000, is_more=True)
    assert pace.request == 100
    for turn in range(2, 100):
        pace.committed(10, 10**9 + turn * 2000, is_more=True)
    assert pace.request == pytest.approx(200, rel=0.1)
    assert pace.wait(50, 10**9 + 99 * 2000) == pytest.approx(10_000, rel=0.1)
    assert pace.wait(50, 2 * 10**9) > 900_000_000, "nothing was committed for so long"


def test_a_primary_that_is_voted_out_says_what_it_had_prepared() -> None:
    core = primary()
    core.propose(register(1), core.now)
    settle(core)
    core.propose(register(2), core.now)
    for by in (1, 2):
        core.step(frame(Command.START_VIEW_CHANGE, replica=by, view=4), core.now)
    headers = [send.message.header for send in settle(core).send if isinstance(send, ToClient)]
    assert [(header.client[0], header.reason, header.flags) for header in headers] == [
        (1, Reason.NOT_PRIMARY, FLAG_PREPARED),
        (2, Reason.NOT_PRIMARY, 0),
    ]
