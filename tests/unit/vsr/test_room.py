"""A full disk as the core sees it: what is refused, what is held back, what the others are told, who may lead."""

from __future__ import annotations

import pytest
from lab import (
    ROOT,
    Core,
    answers,
    do_view_change,
    frame,
    heartbeat,
    leading,
    ping,
    prepare_ok,
    prepares,
    refusals,
    request,
    sent,
    start_view_change,
    started,
)

from kimberlite.types import FLAG_DISK_FULL, FLAG_PREPARED, Command, Message, Operation, Reason, Room, Status
from kimberlite.vsr.config import PIPELINE_LIMIT
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.state import Pace
from kimberlite.vsr.work import Admission, Append

FULL = Room(8192, 64 << 10, is_exhausted=True)
NONE = Room(0, 64 << 10, is_exhausted=True)
PLENTY = Room(64 << 10, 64 << 10, spare=1000)


def backup(room: Room = PLENTY) -> Core:
    """Replica 1 in view 0, with an empty log."""
    made = started(1, room=room)
    made.settle()
    return made


def register(number: int = 1) -> Message:
    return request(0, client=number)


def acknowledge(core: Core, by: int, flags: int = 0) -> None:
    core.step(prepare_ok(by, core.log.headers[core.log.op], core.view, flags=flags), core.now)


def test_a_primary_refuses_when_its_own_disk_is_full() -> None:
    core = leading(room=PLENTY)
    core.room = FULL
    assert core.propose(register(), 40) is Admission.REJECTED
    assert refusals(core.settle()) == [Reason.DISK_FULL]
    core.room = PLENTY
    assert core.propose(register(), 50) is Admission.ACCEPTED


def test_a_primary_refuses_when_the_file_system_has_little_left() -> None:
    core = leading(room=PLENTY)
    core.is_short_of_space = True
    assert core.propose(register(), 40) is Admission.REJECTED
    core.is_short_of_space = False
    assert core.propose(register(), 50) is Admission.ACCEPTED


@pytest.mark.parametrize(("full", "admission"), [([1], Admission.ACCEPTED), ([1, 2], Admission.REJECTED)])
def test_a_primary_refuses_when_no_quorum_has_room(full: list[int], admission: Admission) -> None:
    core = leading(room=PLENTY)
    for by in full:
        acknowledge(core, by, FLAG_DISK_FULL)
    assert core.propose(register(), 40) is admission
    if admission is Admission.REJECTED:
        assert refusals(core.settle()) == [Reason.DISK_FULL]
        assert "disk full on replica 1, 2: appends are refused" in core.snapshot().unhealthy
        acknowledge(core, 2)
        assert core.propose(register(), 50) is Admission.ACCEPTED


def test_who_is_silent_does_not_count_when_another_is_full() -> None:
    core = leading(room=PLENTY)
    acknowledge(core, 2)
    acknowledge(core, 1, FLAG_DISK_FULL)
    assert core.propose(register(), 40) is Admission.ACCEPTED
    later = 41 + core.config.timing.contact_ns
    core.step(ping(1, core.view), later)
    assert core.propose(register(2), later) is Admission.REJECTED
    core.step(ping(2, core.view), later)
    assert core.propose(register(3), later) is Admission.ACCEPTED


@pytest.mark.parametrize("is_heard", [False, True])
def test_what_was_said_of_a_disk_is_no_reason_when_no_quorum_is_heard(is_heard: bool) -> None:
    """A primary that hears nobody any more may be the only one whom the others do not reach. With one that is heard,
    and full, nobody else could commit either."""
    core = leading(room=PLENTY)
    acknowledge(core, 2)
    core.propose(register(), 40)
    core.settle()
    core.step(prepare_ok(1, core.log.headers[0], core.view, flags=FLAG_DISK_FULL), 50)
    told = []
    for now in range(50, 2 * core.config.timing.abdicate_ns, core.config.timing.prepare_resend_ns):
        if is_heard:
            core.step(ping(1, core.view), now)
        core.tick(now)
        told += [event.kind for event in core.settle().events]
    assert (EventKind.ABDICATED in told) is not is_heard
    assert core.can_journal is not is_heard


def stuck(flags: int) -> Core:
    """A primary that leads with an op of the last view which nobody else has, and that waits for a quorum of it."""
    made = started(0, view=2)
    made.settle()
    made.step(prepares(1, view=2)[0], 15)
    made.settle()
    made.leave_view(20)
    made.settle()
    made.step(do_view_change(1, 3, [ROOT], log_view=2, flags=flags), 30)
    made.settle()
    assert (made.is_primary, made.status, made.ready, len(made.pipeline)) == (True, Status.NORMAL, False, 1)
    return made


def test_what_waits_for_a_new_primary_is_refused_when_no_quorum_has_room() -> None:
    core = stuck(FLAG_DISK_FULL)
    assert core.propose(register(), 40) is Admission.ACCEPTED, "replica 2 may have room"
    assert refusals(core.settle()) == []
    core.step(ping(1, core.view), 40 + core.config.timing.contact_ns)
    assert refusals(core.settle()) == [Reason.DISK_FULL]
    assert core.propose(register(), core.now) is Admission.REJECTED


@pytest.mark.parametrize("flags", [0, FLAG_DISK_FULL])
def test_a_primary_that_waits_for_room_elsewhere_goes_on_leading(flags: int) -> None:
    core = stuck(flags)
    for at in range(1, 10):
        core.step(ping(1, core.view), at * core.config.timing.abdicate_ns)
        core.tick(at * core.config.timing.abdicate_ns)
        core.settle()
    assert core.abdicated is not bool(flags)


def test_backups_say_that_their_disk_is_full() -> None:
    core = backup()
    for room, flags in ((PLENTY, 0), (FULL, FLAG_DISK_FULL), (PLENTY, 0)):
        core.room = room
        core.step(heartbeat(), 20)
        assert [header.flags for _, header in sent(core.settle(), Command.PREPARE_OK)] == [flags]


def test_a_full_backup_acknowledges_what_fits_and_no_more_and_catches_up() -> None:
    core = backup(FULL)
    entries = prepares(4)
    for message in entries:
        core.step(message, 20)
    work = core.settle()
    assert [header.op for _, header in sent(work, Command.PREPARE_OK)] == [2]
    assert core.wants_room
    assert core.next_deadline() == core.now
    core.step(heartbeat(0, 4, 4), 30)
    core.room = NONE
    work = core.settle()
    assert (core.log.durable, core.applied) == (2, 2), "what is committed elsewhere but not here waits"
    assert "disk full: the journal has room for 0 more bytes; 2 ops wait" in core.snapshot().unhealthy
    core.room = PLENTY
    assert [header.op for _, header in sent(core.settle(), Command.PREPARE_OK)] == [4]
    assert (core.applied, core.wants_room) == (4, False)


def test_a_full_backup_keeps_a_bounded_number_of_bodies() -> None:
    core = backup(NONE)
    for message in prepares(3 * PIPELINE_LIMIT):
        core.step(message, 20)
        core.settle()
    assert len(core.log.bodies) + len(core.stash) == PIPELINE_LIMIT
    assert core.known_head == 3 * PIPELINE_LIMIT
    core.tick(10**9)
    assert sent(core.settle(), Command.REQUEST_PREPARE) == [], "what can not be written is not asked for"
    core.room = PLENTY
    core.settle()
    assert core.log.durable == PIPELINE_LIMIT
    core.step(heartbeat(0, 3 * PIPELINE_LIMIT), 2 * 10**9)
    core.tick(2 * 10**9)
    assert sent(core.settle(), Command.REQUEST_HEADERS)


def test_what_was_held_back_is_given_away_as_never_acknowledged_in_a_view_change() -> None:
    core = backup(FULL)
    entries = prepares(3)
    for message in entries:
        core.step(message, 20)
    core.settle()
    core.leave_view(30)
    core.settle()
    assert (core.view, core.status) == (1, Status.VIEW_CHANGE)
    evidence = core.evidence[1].evidence
    assert [bool(evidence.present >> op & 1) for op in range(4)][1:] == [True, True, False]
    assert [bool(evidence.nack >> op & 1) for op in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("room", [PLENTY, FULL])
def test_a_full_replica_that_lacks_entries_leaves_the_lead_to_another(room: Room) -> None:
    """It could neither apply nor answer before there is room."""
    core = backup(room)
    entries = prepares(4)
    for message in entries[:2]:
        core.step(message, 20)
    core.settle()
    core.leave_view(30)
    core.settle()
    core.step(do_view_change(2, 1, [ROOT, *(message.header for message in entries)]), 40)
    work = core.settle()
    forfeited = [event for event in work.events if event.kind is EventKind.FORFEITED]
    if room is PLENTY:
        assert not forfeited
        assert core.log_view == 1
    else:
        assert forfeited
        assert (core.log_view, core.suspecting) == (0, True)
        assert core.log.op == 2


def test_a_full_backup_takes_part_in_view_changes() -> None:
    core = backup(NONE)
    entries = prepares(2)
    core.step(entries[0], 20)
    core.settle()
    core.begin_view(2, [ROOT, *(message.header for message in entries)], 30)
    work = core.settle()
    assert (core.status, core.view, core.log_view) == (Status.NORMAL, 2, 2)
    assert [header.op for _, header in sent(work, Command.PREPARE_OK)] == [0]
    assert not [persist for persist in work.persist if isinstance(persist, Append)]


def test_evidence_says_that_the_disk_is_full() -> None:
    full = backup(FULL)
    for by in (0, 2):
        full.step(start_view_change(by, 1), 30)
    work = full.settle()
    assert [header.flags for _, header in sent(work, Command.DO_VIEW_CHANGE)] == [FLAG_DISK_FULL]
    leader = started(2, view=1)
    leader.settle()
    leader.step(do_view_change(1, 2, [ROOT], log_view=1, flags=FLAG_DISK_FULL), 30)
    leader.settle()
    assert leader.full_peers == {1}


# A full queue


def fill_queue(core: Core, first: int) -> None:
    for number in range(first, first + core.config.queue_max):
        client = number.to_bytes(16, "little")
        core.propose(frame(Command.REQUEST, client=client, operation=Operation.REGISTER), core.now)


def busy_wait_ms(core: Core, now: int) -> int:
    """What one more client is told."""
    assert core.propose(register(255), now) is Admission.REJECTED
    (header,) = answers(core.settle())
    assert header.reason == Reason.BUSY_QUEUE
    return header.count


def test_a_full_queue_says_how_long_to_wait_from_the_pace_of_commits() -> None:
    core = leading(room=PLENTY)
    core.pace.request = 100_000  # ten thousand requests a second
    fill_queue(core, 1)
    assert busy_wait_ms(core, core.now) == pytest.approx(core.config.queue_max / 2 / 10, abs=1)


def test_a_full_queue_that_does_not_move_says_longer_and_longer_up_to_a_bound() -> None:
    core = leading(room=PLENTY)
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
    core = leading(room=PLENTY)
    core.propose(register(1), core.now)
    core.settle()
    core.propose(register(2), core.now)
    core.leave_view(core.now)
    assert [(header.client[0], header.reason, header.flags) for header in answers(core.settle())] == [
        (1, Reason.NOT_PRIMARY, FLAG_PREPARED),
        (2, Reason.NOT_PRIMARY, 0),
    ]
