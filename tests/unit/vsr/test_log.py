"""The log's bookkeeping: linking, durability, holes, installation, candidates."""

from __future__ import annotations

import pytest
from lab import chain, prepare

from kimberlite.errors import InvariantError
from kimberlite.types import ROOM_UNBOUNDED, Header, Message, Room
from kimberlite.vsr.log import BODIES_BYTES, ENTRY_BYTES, WINDOW, Log


def filled(headers: list[Header], durable: int | None = None) -> Log:
    """A log of those headers, all written, durable up to `durable`."""
    log = Log(headers[0])
    for header in headers[1:]:
        log.append(Message(header))
    log.take_writes(ROOM_UNBOUNDED)
    for header in headers[1:]:
        if durable is None or header.op <= durable:
            log.mark_durable(header)
    return log


def test_durable_is_a_prefix() -> None:
    headers = chain(3)
    log = filled(headers, durable=0)
    log.mark_durable(headers[2])
    assert log.durable == 0
    log.mark_durable(headers[1])
    assert log.durable == 2


def test_a_broken_chain_is_an_invariant() -> None:
    headers = chain(2)
    other = chain(1, view=9)
    log = filled(headers[:2])
    stranger = prepare(other[1], op=2).header
    with pytest.raises(InvariantError, match="one hash chain"):
        log.append(Message(stranger))


def test_entries_are_written_once_and_in_order() -> None:
    headers = chain(3)
    log = Log(headers[0])
    for header in headers[1:]:
        log.append(Message(header))
    assert [message.header.op for message in log.take_writes(ROOM_UNBOUNDED)] == [1, 2, 3]
    assert log.take_writes(ROOM_UNBOUNDED) == []


def test_what_has_no_room_is_held_back_until_there_is() -> None:
    headers = chain(4, body=b"x" * 5000)
    log = Log(headers[0])
    for header in headers[1:]:
        log.append(Message(header, b"x" * 5000))
    written = log.take_writes(Room(2 * 4096, 1 << 20))
    assert [message.header.op for message in written] == [1]
    assert (log.journal_head, log.is_waiting_for_room) == (1, True)
    assert log.take_writes(Room(4096, 1 << 20)) == []
    assert [message.header.op for message in log.take_writes(Room(4096, 1 << 20, spare=1))] == [2, 3, 4]
    assert not log.is_waiting_for_room


@pytest.mark.parametrize(
    ("room", "size", "left"),
    [
        (Room(4096, 16384), 1, Room(0, 16384)),
        (Room(8192, 16384), 4097, Room(0, 16384)),
        (Room(4096, 16384), 4097, None),
        (Room(4096, 16384, spare=2), 4097, Room(8192, 16384, spare=1)),
        (Room(0, 16384, spare=1, is_exhausted=True), 16384, Room(0, 16384, is_exhausted=True)),
        (Room(0, 16384, spare=1), 16385, None),
    ],
)
def test_room_after_an_entry(room: Room, size: int, left: Room | None) -> None:
    assert room.after(size) == left


def test_a_missing_body_holds_back_what_follows() -> None:
    headers = chain(3)
    log = Log(headers[0])
    for header in headers[1:]:
        assert log.extend(header)
    log.keep(Message(headers[2]))
    log.keep(Message(headers[3]))
    assert log.take_writes(ROOM_UNBOUNDED) == []
    assert [header.op for header in log.missing(10)] == [1]
    log.keep(Message(headers[1]))
    assert [message.header.op for message in log.take_writes(ROOM_UNBOUNDED)] == [1, 2, 3]


def test_a_header_that_does_not_continue_is_refused() -> None:
    headers = chain(3)
    log = filled(headers[:2])
    assert not log.extend(headers[3])
    assert log.extend(headers[2])


def test_installing_the_same_suffix_keeps_everything() -> None:
    headers = chain(4)
    log = filled(headers)
    assert log.install(headers[2:], 2) == 4
    assert (log.op, log.linked, log.durable, log.journal_head) == (4, 4, 4, 4)


def test_installing_a_divergent_suffix_cuts_at_the_last_common_entry() -> None:
    old = chain(5)
    new = chain(3, view=2, after=old[2])
    log = filled(old)
    assert log.install([old[1], old[2], *new[1:]], 1) == 2
    assert (log.op, log.linked, log.durable, log.journal_head) == (5, 5, 2, 2)
    assert [header.op for header in log.missing(10)] == [3, 4, 5]
    assert not log.mark_durable(old[3]), "a write of the old log completes late"
    assert log.durable == 2


def test_a_hole_keeps_own_entries_until_headers_tell() -> None:
    headers = chain(9)
    log = filled(headers[:6])  # own head is 5; the new log is known from op 8 on
    assert log.install(headers[8:], 2) == 5
    assert (log.op, log.linked, log.durable) == (9, 2, 2)
    for header in headers[3:8]:
        assert log.extend(header)
    assert log.linked == 9
    assert log.durable == 5, "own entries turned out to be canonical: nothing is fetched again"
    assert [header.op for header in log.missing(10)] == [6, 7, 8, 9]


def test_a_divergent_candidate_is_found_before_it_is_believed() -> None:
    old = chain(5)
    new = chain(6, view=2, after=old[3])
    log = filled(old)
    canonical = [*old[:4], *new[1:]]
    assert log.install(canonical[8:], 2) == 5
    assert log.extend(canonical[3])
    assert not log.extend(canonical[4]) or log.divergence() == 3
    assert log.divergence() == 3
    log.drop_candidates()
    assert (log.journal_head, log.linked) == (3, 4)
    for header in canonical[5:8]:
        assert log.extend(header)
    assert log.durable == 3
    assert log.linked == 9


@pytest.mark.parametrize("is_next_here", [True, False])
def test_another_log_has_left_its_witness_alone_where_what_stands_behind_is_of_this_one(is_next_here: bool) -> None:
    """As a restart finds it that a crash kept from writing witnesses: of op 3 the one of an older log, and the entry
    damaged; behind it op 4, or nothing but op 5. What a cut takes away is neither here nor certainly absent."""
    log, old = Log(chain(5)[2]), chain(3, view=9)
    new = chain(5)
    log.candidates[3] = old[3]
    log.faulty.add(3)
    log.headers.update({header.op: header for header in new[4:]})
    log.on_disk = {4, 5} if is_next_here else {5}
    log.op, log.journal_head = 5, 5
    assert log.extend(new[3])
    if is_next_here:
        assert (log.divergence(), log.linked, log.journal_head) == (None, 5, 5)
        assert log.mark_durable(new[3])
        assert log.durable == 5
    else:
        assert (log.divergence(), log.linked) == (2, 2)
        log.drop_candidates()
        assert (log.journal_head, log.linked, log.faulty) == (2, 5, {3, 5})
        assert log.mark_durable(new[3])
        assert log.mark_durable(new[4])
        assert log.durable == 4, "op 5 is not in the journal any more"


def test_damage_is_neither_held_nor_absent_and_is_repaired_in_place() -> None:
    headers = chain(3)
    log = filled(headers)
    log.bodies.clear()
    log.mark_faulty(2)
    assert not log.holds(2)
    assert log.durable == 3
    assert [header.op for header in log.missing(10)] == [2]
    log.keep(Message(headers[2]))
    assert [message.header.op for message in log.take_writes(ROOM_UNBOUNDED)] == [2]
    log.mark_durable(headers[2])
    assert log.holds(2)


def test_memory_is_bounded_by_the_window() -> None:
    headers = chain(3 * WINDOW)
    log = filled(headers)
    for op in range(1, 3 * WINDOW + 1):
        log.forget(op)
    assert len(log.headers) <= WINDOW + 2
    assert len(log.bodies) <= WINDOW + 2


def test_applied_bodies_are_kept_up_to_a_number_of_bytes() -> None:
    headers = chain(10, body=bytes(BODIES_BYTES // 4))
    log = filled(headers)
    for op in range(1, 11):
        log.forget(op)
    assert sum(message.header.size for message in log.bodies.values()) <= BODIES_BYTES
    assert 10 in log.bodies
    assert set(range(11)) <= set(log.headers)


def test_damage_beyond_recognition_is_no_nack_when_its_identity_is_learned() -> None:
    """It may be the very entry that the suffix names, acknowledged before it was damaged."""
    headers = chain(6)
    log = filled(headers)
    for op in (5, 6):
        log.mark_faulty(op)
        del log.headers[op]
    assert log.install(headers[5:], 2) == 4
    assert log.faulty == {5, 6}
    assert not log.holds(6)


def test_damage_of_another_entry_is_forgotten_with_it() -> None:
    old = chain(5)
    new = chain(3, view=2, after=old[2])
    log = filled(old)
    log.mark_faulty(4)
    log.install([old[2], *new[1:]], 2)
    assert log.faulty == set()


def test_a_candidate_that_the_suffix_names_is_held() -> None:
    headers = chain(9)
    log = filled(headers[:7])
    log.install(headers[8:], 2)  # a hole from 3 to 7: own entries up to 6 become candidates
    assert sorted(log.candidates) == [3, 4, 5, 6]
    assert log.install(headers[5:], 2) == 6
    assert log.holds(5)
    assert log.holds(6)
    assert not log.holds(7)
    for header in headers[3:5]:
        assert log.extend(header)
    assert log.durable == 6


def test_what_was_only_feared_is_given_up_and_nothing_else() -> None:
    headers = chain(4)
    log = filled(headers)
    log.op = 7
    log.faulty = {3, 5, 6, 7}
    log.give_up_above(6)
    assert (log.op, log.faulty) == (6, {3, 5, 6})
    log.give_up_above(2)
    assert (log.op, log.faulty) == (4, {3})


def counted(log: Log) -> int:
    return sum(message.header.size + ENTRY_BYTES for message in log.bodies.values())


def test_bodies_that_are_held_are_counted_once() -> None:
    headers = chain(4, body=b"x" * 100)
    log = Log(headers[0])
    for header in headers[1:4]:
        log.append(Message(header, b"x" * 100))
    assert log.held_bytes == counted(log) == 3 * (headers[1].size + ENTRY_BYTES)
    log.keep(Message(headers[2], b"x" * 100))
    assert log.held_bytes == counted(log)
    log.take_writes(ROOM_UNBOUNDED)
    log.mark_durable(headers[1])
    log.forget(1)
    assert 1 in log.bodies, "kept to serve others"
    assert log.held_bytes == counted(log) - headers[1].size - ENTRY_BYTES


def test_an_installed_log_holds_what_it_names() -> None:
    headers, others = chain(4, body=b"x" * 100), chain(2, view=1)
    log = Log(headers[0])
    for header in headers[1:]:
        log.append(Message(header, b"x" * 100))
    log.install([*headers[:3], *chain(1, view=1, after=headers[2])[1:]], 0)
    assert set(log.bodies) == {1, 2}
    assert log.held_bytes == counted(log)
    log.install([others[0], others[1]], 0)
    assert (log.bodies, log.held_bytes) == ({}, 0)


def test_what_is_written_is_let_go_and_what_is_damaged_is_held() -> None:
    headers = chain(6)
    log = filled(headers, durable=4)
    log.mark_faulty(3)
    log.let_go_of_written(1)
    assert set(log.bodies) == {1, 3, 5, 6}, "applied; damaged, and to be written again; not written yet"
    assert log.held_bytes == counted(log)
    for header in headers[5:]:
        log.mark_durable(header)
    log.let_go_of_written(1)
    assert set(log.bodies) == {1, 3}
    log.install([*headers[:3], *chain(3, view=1, after=headers[2])[1:]], 2)
    for op in (3, 4, 5):
        log.keep(Message(log.headers[op]))
    for message in log.take_writes(ROOM_UNBOUNDED):
        log.mark_durable(message.header)
    assert log.durable == 5
    log.let_go_of_written(2)
    assert set(log.bodies) == {1}, "of another log"


def without_the_lowest() -> Log:
    """Of the damaged ops 2, 3 and 4 the last two have come from the others."""
    headers = chain(5)
    log = filled(headers)
    log.bodies.clear()
    for op in (2, 3, 4):
        log.mark_faulty(op)
    for op in (3, 4):
        log.keep(Message(headers[op]))
    return log


def test_damage_that_nobody_can_repair_any_more_blocks_nothing_above_it() -> None:
    """Where an entry stands may be told by the one below it alone, which is waited for, unless it was trimmed."""
    log = without_the_lowest()
    assert log.take_writes(ROOM_UNBOUNDED) == []
    log.gone_below = 3
    assert [message.header.op for message in log.take_writes(ROOM_UNBOUNDED)] == [3, 4]


def test_what_is_held_waits_for_the_one_below_only_while_that_may_still_be_asked_for() -> None:
    """So much may be held that no more is asked for: each would wait for ever for the one that does not come."""
    log = without_the_lowest()
    assert log.take_writes(ROOM_UNBOUNDED, is_patient=True) == []
    assert [message.header.op for message in log.take_writes(ROOM_UNBOUNDED, is_patient=False)] == [3, 4]
    log.not_written(3)
    assert log.held_bytes == log.bodies[4].header.size + ENTRY_BYTES, "there is room for others again"
