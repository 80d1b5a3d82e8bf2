"""A replica that is far behind: whom it asks, what it keeps, and who waits for it."""

from __future__ import annotations

from typing import Any

import pytest
from lab import (
    MS,
    ROOT,
    Core,
    chain,
    do_view_change,
    headers_of,
    heartbeat,
    leading,
    ping,
    prepare,
    prepare_ok,
    prepares,
    request,
    sent,
    start_view_change,
    started,
)

from kimberlite.types import HEADER_SIZE, Command, Header, Message, Status
from kimberlite.vsr.codec import Evidence
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.log import ENTRY_BYTES
from kimberlite.vsr.work import Work

HEAD = 600
LOG = [Message(ROOT), *prepares(HEAD)]
HEADERS = [message.header for message in LOG]


def replica(index: int, *, head: int = 0, **options: Any) -> Core:
    """One of three whose disk holds LOG up to `head`."""
    return started(index, log=HEADERS[: head + 1], now=10 * MS, **options)


def beat(head: int = HEAD) -> Message:
    return heartbeat(0, head, head)


def headers(first: int, last: int, nonce: int, by: int = 0, view: int = 0) -> Message:
    return headers_of(by, HEADERS[first : last + 1], nonce, view, position=HEAD)


def behind(**config: Any) -> tuple[Core, list[tuple[int, Header]]]:
    """Backup 1 with an empty log that has just heard of 600 ops, and what it asks for."""
    core = replica(1, **config)
    core.settle()
    core.step(beat(), 20 * MS)
    core.tick(60 * MS)
    return core, sent(core.settle(), Command.REQUEST_HEADERS)


def caught_on(**config: Any) -> tuple[Core, list[tuple[int, Header]]]:
    """The same after the first answer: the entries that it asks for."""
    core, asked = behind(**config)
    core.step(headers(1, 256, asked[0][1].nonce), 61 * MS)
    return core, sent(core.settle(), Command.REQUEST_PREPARE)


# Who is asked


def test_only_who_was_heard_is_asked_and_several_questions_are_under_way() -> None:
    core, asked = behind()
    assert [(peer, header.op, header.position) for peer, header in asked] == [
        (0, 1, 256),
        (0, 257, 512),
        (0, 513, 768),
    ]
    core, entries = caught_on()
    assert {peer for peer, _ in entries} == {0}
    assert len(entries) == core.peers[0].window


def test_who_says_that_it_lacks_an_op_is_not_asked_for_it() -> None:
    core = replica(1)
    core.settle()
    core.step(ping(2, op=100), 19 * MS)
    core.step(beat(), 20 * MS)
    core.tick(60 * MS)
    asked = sent(core.settle(), Command.REQUEST_HEADERS)
    assert {peer for peer, header in asked if header.op > 100} == {0}
    core.peers[0].window = 500
    core.step(headers(1, 256, asked[0][1].nonce), 61 * MS)
    entries = sent(core.settle(), Command.REQUEST_PREPARE)
    assert {peer for peer, header in entries if header.op > 100} == {0}
    assert {peer for peer, header in entries if header.op <= 100} == {0, 2}


def test_a_peer_that_falls_silent_is_asked_for_less_and_then_not_at_all() -> None:
    core, entries = caught_on()
    before = core.peers[0].window
    core.step(ping(2, op=HEAD), 70 * MS)
    core.peers[2].window = 50
    core.tick(400 * MS)
    again = sent(core.settle(), Command.REQUEST_PREPARE)
    assert core.peers[0].window < before
    assert {header.op for _, header in again} >= {header.op for _, header in entries}
    assert {peer for peer, _ in again} == {2}, "the other one rests"
    core.tick(3000 * MS)
    assert core.peers[0].repairs == core.peers[2].repairs == 0
    assert sent(core.settle(), Command.REQUEST_PREPARE) == [], "nobody was heard for longer than contact_ns"


def test_what_follows_is_asked_for_as_soon_as_answers_come() -> None:
    core, entries = caught_on()
    asked = len(entries)
    for op in range(1, asked + 1):
        core.step(LOG[op], 62 * MS)
    more = [header.op for _, header in sent(core.settle(), Command.REQUEST_PREPARE)]
    assert more == list(range(asked + 1, asked + len(more) + 1))
    assert len(more) == core.peers[0].window == 2 * asked
    assert core.log.durable == asked


def test_an_answer_without_news_is_not_followed_by_the_same_question_at_once() -> None:
    core, asked = behind()
    for _, header in asked:  # as of a peer whose log begins later
        core.step(headers(500, 510, header.nonce), 61 * MS)
    assert core.headers_requests == {}
    assert sent(core.settle(), Command.REQUEST_HEADERS) == []
    core.tick(200 * MS)
    assert sent(core.settle(), Command.REQUEST_HEADERS)


def test_the_window_has_a_bound_in_bytes() -> None:
    entries = [Message(ROOT), *prepares(20, body=bytes(1000))]
    core, asked = behind(repair_bytes=5000)
    told = [message.header for message in entries[1:]]
    core.step(headers_of(0, told, asked[0][1].nonce), 61 * MS)
    requested = [header.op for _, header in sent(core.settle(), Command.REQUEST_PREPARE)]
    assert requested == [1, 2, 3]
    core.step(entries[15], 62 * MS)
    assert 15 not in core.log.bodies, "what nobody asked for is not kept"
    large, asked = behind(repair_bytes=500)
    large.step(headers_of(0, told, asked[0][1].nonce), 61 * MS)
    assert [header.op for _, header in sent(large.settle(), Command.REQUEST_PREPARE)] == [1], "one at least"


def test_replicas_that_have_nothing_to_say_to_each_other_give_a_sign_of_life() -> None:
    core = replica(1, head=5, replicas=5)
    core.settle()
    pings: list[tuple[int, Header]] = []
    for at in range(20, 10_000, 10):
        if at % 50 == 0:
            core.step(beat(5), at * MS)
        core.tick(at * MS)
        pings += sent(core.settle(), Command.PING)
    assert {peer for peer, _ in pings} == {2, 3, 4}, "its primary hears it anyway"
    assert {header.op for _, header in pings} == {5}
    assert 3 * 30 <= len(pings) <= 3 * 60, "about four a second to each"


# What is kept


def test_a_view_change_takes_nothing_away_that_stays_true() -> None:
    core, entries = caught_on()
    wanted = {header.op for _, header in entries}
    core.step(ping(2, 1, HEAD), 62 * MS)
    core.settle()
    assert (core.view, core.status, set(core.repairs)) == (1, Status.VIEW_CHANGE, wanted)
    for op in sorted(wanted):
        core.step(LOG[op], 63 * MS)
    work = core.settle()
    assert core.log.durable == max(wanted), "committed entries are taken in the middle of a view change"
    following = [header.op for _, header in sent(work, Command.REQUEST_PREPARE)]
    assert following[:3] == [max(wanted) + 1, max(wanted) + 2, max(wanted) + 3]
    assert not sent(work, Command.PREPARE_OK)
    core.step(ping(2, 2, HEAD), 64 * MS)  # it would have led view 1
    core.settle()
    core.begin_view(2, [HEADERS[HEAD]], 65 * MS, commit=HEAD)
    core.settle()
    assert core.status == Status.NORMAL
    assert (core.log.op, core.log.linked, core.log.durable) == (HEAD, 256, max(wanted))
    assert set(following) <= set(core.repairs)


def test_what_another_log_replaces_is_not_waited_for() -> None:
    core = replica(1, head=5)
    lost = prepare(HEADERS[5], count=1)
    core.step(beat(6), 20 * MS)
    core.commit_max = core.commit_heard = 5
    core.log.extend(lost.header)
    core.known_head = 6
    core.tick(60 * MS)
    core.settle()
    assert set(core.repairs) == {6}
    assert core.peers[0].repairs == 1
    core.begin_view(2, [HEADERS[5]], 65 * MS, commit=5)
    core.settle()
    assert (core.repairs, core.peers[0].repairs, core.log.op) == ({}, 0, 5)


def test_a_prepare_that_came_early_is_used_when_its_turn_comes() -> None:
    core, _ = behind()
    core.step(LOG[300], 121 * MS)
    core.step(ping(2, 2, HEAD), 122 * MS)
    core.settle()
    assert set(core.stash) == {300}
    core.begin_view(2, HEADERS[296:301], 123 * MS, commit=296)
    core.settle()
    assert set(core.stash) == {300}, "it is part of the new log"
    core.tick(200 * MS)
    nonce = sent(core.settle(), Command.REQUEST_HEADERS)[0][1].nonce
    core.peers[2].window = 500
    core.step(headers(1, 299, nonce, by=2, view=2), 201 * MS)
    assert 300 not in [header.op for _, header in sent(core.settle(), Command.REQUEST_PREPARE)]
    for op in range(1, 300):
        core.step(LOG[op], 202 * MS)
    core.settle()
    assert (core.log.durable, core.stash) == (300, {})


def test_damage_in_what_was_trimmed_is_not_repaired() -> None:
    core = replica(1, head=50)
    core.trimmed(20)
    core.entry_faulty(10, None, 20 * MS)
    assert core.log.faulty == set()
    core.entry_faulty(20, HEADERS[20], 20 * MS)
    assert core.log.faulty == {20}


# Who waits


def waiting() -> Core:
    """Primary 0 of view 3, whose log ends at op 5, with one op more that nobody has acknowledged."""
    core = leading(HEADERS[:6], 20 * MS)
    core.propose(request(0), 31 * MS)
    core.settle()
    assert core.pipeline
    return core


def acknowledged(by: int, op: int) -> Message:
    return prepare_ok(by, HEADERS[op], 3)


def test_nobody_abdicates_while_a_quorum_member_comes_nearer() -> None:
    core = waiting()
    for at in range(1, 100):
        core.step(acknowledged(1, at // 20), at * 100 * MS)  # an op in two seconds is little, and counts
        core.tick(at * 100 * MS)
        core.settle()
        assert not core.abdicated
    for at in range(100, 150):
        core.step(acknowledged(1, 4), at * 100 * MS)
        core.tick(at * 100 * MS)
        core.settle()
    assert core.abdicated, "it has stopped to come nearer"


def test_a_primary_alone_leads_again_when_a_replica_returns_and_gives_it_time_once() -> None:
    core = waiting()
    for at in range(1, 40):
        core.tick(at * 100 * MS)
        core.settle()
    assert core.abdicated
    core.step(start_view_change(1, 3), 4000 * MS)
    core.tick(4001 * MS)
    work = core.settle()
    assert (core.abdicated, core.view, core.votes.get(0)) == (False, 3, None), "the vote of the other is not enough"
    assert {peer for peer, _ in sent(work, Command.COMMIT)} == {1, 2}
    for at in range(41, 120, 15):  # it is heard now and then, and comes no nearer
        core.step(ping(1, 3), at * 100 * MS)
        core.tick(at * 100 * MS)
        core.settle()
    assert core.abdicated


def test_a_draining_primary_does_not_come_back() -> None:
    core = waiting()
    core.drain()
    core.step_down(100 * MS)
    core.step(ping(1, 3), 3000 * MS)
    assert core.abdicated


def candidate(gap: int, own: int, evidence_of_2: Evidence) -> Work:
    """Replica 1, whose log ends at `own`, is to lead view 1 with the evidence of replica 2."""
    core = replica(1, head=own, forfeit_gap=gap)
    core.settle()
    core.step(ping(2, 1), 20 * MS)
    core.settle()
    core.step(do_view_change(2, 1, evidence_of_2, op=HEAD, commit=HEAD), 21 * MS)
    return core.settle()


def test_who_has_the_log_leads_and_nobody_else_gives_up_its_view() -> None:
    head = (HEADERS[HEAD],)
    has, lost = Evidence(HEAD, 1, 1, 0, head), Evidence(HEAD, 1, 0, 0, head)
    work = candidate(500, 50, has)
    assert [event.kind for event in work.events].count(EventKind.FORFEITED) == 1
    assert {header.view for _, header in sent(work, Command.START_VIEW_CHANGE)} == {1}
    assert sent(candidate(550, 50, has), Command.START_VIEW)
    assert sent(candidate(500, 50, lost), Command.START_VIEW), "nobody who gave evidence has it"


@pytest.mark.parametrize("gap", [39, 40])
def test_what_is_held_of_an_older_log_is_nothing_that_a_candidate_has(gap: int) -> None:
    """Replica 1 holds 60 ops of view 0, 20 of them committed. What is committed above these is another log's."""
    core = replica(1, head=60, commit=20, forfeit_gap=gap)
    core.settle()
    newer = chain(40, HEADERS[20], view=3)[-1:]
    core.step(ping(2, 4), 20 * MS)
    core.settle()
    core.step(do_view_change(2, 4, newer, log_view=3, commit=60), 21 * MS)
    given_up = [event.b for event in core.settle().events if event.kind is EventKind.FORFEITED]
    assert given_up == ([40] if gap < 40 else [])


def test_a_view_that_its_candidate_gives_up_is_left_at_once() -> None:
    core = replica(2, head=50)
    core.settle()
    core.step(ping(1, 1), 20 * MS)
    core.settle()
    core.step(start_view_change(1, 1), 21 * MS)
    work = core.settle()
    assert core.view == 2
    assert {header.view for _, header in sent(work, Command.START_VIEW_CHANGE)} == {1}


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_view_whose_candidate_is_silent_is_left_sooner(is_heard: bool) -> None:
    core = replica(0, head=50, view=0)
    core.peers[1].last_heard = 10 * MS if is_heard else 0
    core.step(ping(2, 1), 20 * MS)
    assert core.view_change_timer.deadline is not None
    left = core.view_change_timer.deadline - 20 * MS
    whole = core.config.timing.view_change_ns
    assert (whole <= left) if is_heard else (whole // 4 <= left < whole // 2)


# What is said of others


def test_the_last_word_of_a_replica_counts_and_that_of_a_former_primary_stays_a_hint() -> None:
    core = waiting()
    core.step(acknowledged(1, 5), 40 * MS)
    core.step(acknowledged(1, 0), 41 * MS)
    said = {peer.replica: peer.op for peer in core.snapshot().peers}
    assert said[1] == 0, "its disk is a new one"
    backup = replica(1, head=50)
    backup.step(beat(50), 20 * MS)
    backup.known_head = 60
    backup.step(ping(2, 1, 55), 21 * MS)
    assert {replica: peer.held for replica, peer in backup.peers.items()} == {0: 60, 2: 55}
    assert {peer.replica: peer.op for peer in backup.snapshot().peers} == {0: None, 2: 55}, "in the new view"
    assert {peer.op for peer in replica(2).snapshot().peers} == {None}


def test_damage_is_repaired_no_faster_than_the_disk_takes_it() -> None:
    """Damage below what is durable has no window of its own: with a disk that hangs its bodies would add up."""
    most = 10 * (ENTRY_BYTES + HEADER_SIZE)
    core = replica(1, head=50, backlog_bytes=most)
    core.settle()
    core.step(beat(50), 20 * MS)
    for op in range(10, 50):
        core.entry_faulty(op, HEADERS[op], 20 * MS)
    for at in range(60, 3000, 60):
        core.step(beat(50), at * MS)
        core.tick(at * MS)
        for _, header in sent(core.take_work(), Command.REQUEST_PREPARE):
            core.step(LOG[header.op], at * MS)  # answered at once; nothing is ever written
    assert 10 <= len(core.log.bodies) <= 10 + 16, "what one peer is asked for at once comes on top"


def test_the_body_of_a_repaired_entry_that_was_executed_is_let_go() -> None:
    for op in (50, 40):
        core = replica(1, head=50)
        core.settle()
        core.step(beat(50), 20 * MS)
        core.entry_faulty(op, HEADERS[op], 20 * MS)
        core.tick(60 * MS)
        core.settle()
        core.step(LOG[op], 61 * MS)
        assert set(core.log.bodies) == {op}
        core.settle()
        assert (core.log.bodies, core.log.held_bytes, core.log.faulty) == ({}, 0, set())


def test_what_is_to_be_executed_next_is_repaired_whatever_is_held() -> None:
    core = replica(1, head=50, backlog_bytes=1)
    core.settle()
    core.applied = core.apply_emitted = 20
    core.entry_faulty(45, HEADERS[45], 20 * MS)
    core.log.keep(LOG[45])
    core.step(beat(50), 20 * MS)
    for op in (30, 21, 25):
        core.entry_faulty(op, HEADERS[op], 20 * MS)
    core.tick(60 * MS)
    assert [header.op for _, header in sent(core.take_work(), Command.REQUEST_PREPARE)] == [21]
