"""A replica that is far behind: whom it asks, what it keeps, and who waits for it."""

from __future__ import annotations

from typing import Any

import pytest
from views import start_view

from kimberlite._fast.framing import make_header
from kimberlite.node.driver import FastCodec
from kimberlite.types import (
    HEADER_SIZE,
    Command,
    Header,
    Message,
    Operation,
    Recovered,
    Room,
    Status,
    ViewState,
    root_header,
)
from kimberlite.vsr.codec import Evidence, encode_evidence, encode_headers
from kimberlite.vsr.config import MS, CoreConfig
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.log import ENTRY_BYTES
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.work import ToReplica, Work

CLUSTER = b"u" * 16
ROOT = root_header(make_header, CLUSTER)
HEAD = 600


def frame(command: Command, body: bytes = b"", **fields: Any) -> Message:
    return Message(make_header(body, cluster=CLUSTER, command=command, **fields), body)


def chain(count: int, view: int = 0, size: int = 0, parent: Message | None = None) -> list[Message]:
    """A log of `count` ops behind `parent`, which comes first: the root when None."""
    messages = [parent or Message(ROOT)]
    first = messages[0].header.op + 1
    for op in range(first, first + count):
        before = messages[-1].header.checksum
        fields = {"op": op, "parent": before, "view": view, "operation": Operation.NOOP}
        messages.append(frame(Command.PREPARE, bytes(size), replica=view % 3, **fields))
    return messages


LOG = chain(HEAD)


def replica(
    index: int,
    *,
    head: int = 0,
    view: int = 0,
    log_view: int | None = None,
    commit: int | None = None,
    count: int = 3,
    **config: Any,
) -> Replica:
    """One of three whose disk holds LOG up to `head`, committed up to `commit` or all of it, as a backup of `view`; in
    the view change to it when log_view is lower."""
    commit = head if commit is None else commit
    suffix = tuple(message.header for message in LOG[head : head + 1])
    core = Replica(
        config=CoreConfig(CLUSTER, index, count, **config),
        codec=FastCodec(),
        recovered=Recovered(
            ViewState(view, view if log_view is None else log_view, commit, commit, head, suffix),
            head,
            LOG[head].header,
            head,
            head,
            commit=commit,
        ),
        headers=[message.header for message in LOG[max(head - 50, 0) : head]],
        seed=3,
        now=10 * MS,
    )
    core.room = Room(1 << 40, 1 << 40)
    return core


def settle(core: Replica) -> Work:
    """Complete writes and executions until nothing is asked for; everything that was sent meanwhile."""
    whole = Work()
    while work := core.take_work():
        whole.send += work.send
        whole.serve += work.serve
        whole.events += work.events
        for persist in work.persist:
            core.durable(persist.token, core.now)
        for apply in work.apply:
            core.applied_op(apply.op, [], core.now)
    return whole


def sent(work: Work, command: Command) -> list[tuple[int, Header]]:
    return [
        (one.replica, one.message.header)
        for one in work.send
        if isinstance(one, ToReplica) and one.message.header.command == command
    ]


def heartbeat(head: int = HEAD, view: int = 0) -> Message:
    return frame(Command.COMMIT, replica=view % 3, view=view, op=head, commit=head)


def headers(first: int, last: int, nonce: int, by: int = 0, view: int = 0) -> Message:
    body = encode_headers([message.header for message in LOG[first : last + 1]])
    return frame(
        Command.HEADERS, body, replica=by, view=view, op=first, count=last - first + 1, position=HEAD, nonce=nonce
    )


def behind(**config: Any) -> tuple[Replica, list[tuple[int, Header]]]:
    """Backup 1 with an empty log that has just heard of 600 ops, and what it asks for."""
    core = replica(1, **config)
    settle(core)
    core.step(heartbeat(), 20 * MS)
    core.tick(60 * MS)
    return core, sent(settle(core), Command.REQUEST_HEADERS)


def caught_on(**config: Any) -> tuple[Replica, list[tuple[int, Header]]]:
    """The same after the first answer: the entries that it asks for."""
    core, asked = behind(**config)
    core.step(headers(1, 256, asked[0][1].nonce), 61 * MS)
    return core, sent(settle(core), Command.REQUEST_PREPARE)


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
    settle(core)
    core.step(frame(Command.PING, replica=2, op=100), 19 * MS)
    core.step(heartbeat(), 20 * MS)
    core.tick(60 * MS)
    asked = sent(settle(core), Command.REQUEST_HEADERS)
    assert {peer for peer, header in asked if header.op > 100} == {0}
    core.peers[0].window = 500
    core.step(headers(1, 256, asked[0][1].nonce), 61 * MS)
    entries = sent(settle(core), Command.REQUEST_PREPARE)
    assert {peer for peer, header in entries if header.op > 100} == {0}
    assert {peer for peer, header in entries if header.op <= 100} == {0, 2}


def test_a_peer_that_falls_silent_is_asked_for_less_and_then_not_at_all() -> None:
    core, entries = caught_on()
    before = core.peers[0].window
    core.step(frame(Command.PING, replica=2, op=HEAD), 70 * MS)
    core.peers[2].window = 50
    core.tick(400 * MS)
    again = sent(settle(core), Command.REQUEST_PREPARE)
    assert core.peers[0].window < before
    assert {header.op for _, header in again} >= {header.op for _, header in entries}
    assert {peer for peer, _ in again} == {2}, "the other one rests"
    core.tick(3000 * MS)
    assert core.peers[0].repairs == core.peers[2].repairs == 0
    assert sent(settle(core), Command.REQUEST_PREPARE) == [], "nobody was heard for longer than contact_ns"


def test_what_follows_is_asked_for_as_soon_as_answers_come() -> None:
    core, entries = caught_on()
    asked = len(entries)
    for op in range(1, asked + 1):
        core.step(LOG[op], 62 * MS)
    more = [header.op for _, header in sent(settle(core), Command.REQUEST_PREPARE)]
    assert more == list(range(asked + 1, asked + len(more) + 1))
    assert len(more) == core.peers[0].window == 2 * asked
    assert core.log.durable == asked


def test_an_answer_without_news_is_not_followed_by_the_same_question_at_once() -> None:
    core, asked = behind()
    for _, header in asked:  # as of a peer whose log begins later
        core.step(headers(500, 510, header.nonce), 61 * MS)
    assert core.scope.headers_requests == {}
    assert sent(settle(core), Command.REQUEST_HEADERS) == []
    core.tick(200 * MS)
    assert sent(settle(core), Command.REQUEST_HEADERS)


def test_the_window_has_a_bound_in_bytes() -> None:
    entries = chain(20, size=1000)
    core, asked = behind(repair_bytes=5000)
    body = encode_headers([message.header for message in entries[1:]])
    core.step(frame(Command.HEADERS, body, replica=0, op=1, count=20, position=20, nonce=asked[0][1].nonce), 61 * MS)
    requested = [header.op for _, header in sent(settle(core), Command.REQUEST_PREPARE)]
    assert requested == [1, 2, 3]
    core.step(entries[15], 62 * MS)
    assert 15 not in core.log.bodies, "what nobody asked for is not kept"
    large, asked = behind(repair_bytes=500)
    large.step(frame(Command.HEADERS, body, replica=0, op=1, count=20, position=20, nonce=asked[0][1].nonce), 61 * MS)
    assert [header.op for _, header in sent(settle(large), Command.REQUEST_PREPARE)] == [1], "one at least"


def test_replicas_that_have_nothing_to_say_to_each_other_give_a_sign_of_life() -> None:
    core = replica(1, head=5, count=5)
    settle(core)
    pings: list[tuple[int, Header]] = []
    for at in range(20, 10_000, 10):
        if at % 50 == 0:
            core.step(heartbeat(5), at * MS)
        core.tick(at * MS)
        pings += sent(settle(core), Command.PING)
    assert {peer for peer, _ in pings} == {2, 3, 4}, "its primary hears it anyway"
    assert {header.op for _, header in pings} == {5}
    assert 3 * 30 <= len(pings) <= 3 * 60, "about four a second to each"


# What is kept


def test_a_view_change_takes_nothing_away_that_stays_true() -> None:
    core, entries = caught_on()
    wanted = {header.op for _, header in entries}
    core.step(frame(Command.PING, replica=2, view=1, op=HEAD), 62 * MS)
    settle(core)
    assert (core.view, core.status, set(core.repairs)) == (1, Status.VIEW_CHANGE, wanted)
    for op in sorted(wanted):
        core.step(LOG[op], 63 * MS)
    work = settle(core)
    assert core.log.durable == max(wanted), "committed entries are taken in the middle of a view change"
    following = [header.op for _, header in sent(work, Command.REQUEST_PREPARE)]
    assert following[:3] == [max(wanted) + 1, max(wanted) + 2, max(wanted) + 3]
    assert not sent(work, Command.PREPARE_OK)
    core.step(frame(Command.PING, replica=2, view=2, op=HEAD), 64 * MS)  # it would have led view 1
    settle(core)
    start_view(core, [LOG[HEAD].header], 65 * MS, view=2, commit=HEAD)
    settle(core)
    assert core.status == Status.NORMAL
    assert (core.log.op, core.log.linked, core.log.durable) == (HEAD, 256, max(wanted))
    assert set(following) <= set(core.repairs)


def test_what_another_log_replaces_is_not_waited_for() -> None:
    core = replica(1, head=5)
    other = chain(6, view=0)[:6]
    lost = frame(Command.PREPARE, replica=0, op=6, parent=LOG[5].header.checksum, operation=Operation.NOOP, count=1)
    core.step(heartbeat(6), 20 * MS)
    core.commit_max = core.scope.commit_heard = 5
    core.log.extend(lost.header)
    core.scope.known_head = 6
    core.tick(60 * MS)
    settle(core)
    assert set(core.repairs) == {6}
    assert core.peers[0].repairs == 1
    start_view(core, [other[5].header], 65 * MS, view=2, commit=5)
    settle(core)
    assert (core.repairs, core.peers[0].repairs, core.log.op) == ({}, 0, 5)


def test_a_prepare_that_came_early_is_used_when_its_turn_comes() -> None:
    core, _ = behind()
    core.step(LOG[300], 121 * MS)
    core.step(frame(Command.PING, replica=2, view=2, op=HEAD), 122 * MS)
    settle(core)
    assert set(core.stash) == {300}
    start_view(core, [message.header for message in LOG[296:301]], 123 * MS, view=2, commit=296)
    settle(core)
    assert set(core.stash) == {300}, "it is part of the new log"
    core.tick(200 * MS)
    nonce = sent(settle(core), Command.REQUEST_HEADERS)[0][1].nonce
    core.peers[2].window = 500
    core.step(headers(1, 299, nonce, by=2, view=2), 201 * MS)
    assert 300 not in [header.op for _, header in sent(settle(core), Command.REQUEST_PREPARE)]
    for op in range(1, 300):
        core.step(LOG[op], 202 * MS)
    settle(core)
    assert (core.log.durable, core.stash) == (300, {})


def test_damage_in_what_was_trimmed_is_not_repaired() -> None:
    core = replica(1, head=50)
    core.trimmed(20)
    core.entry_faulty(10, None, 20 * MS)
    assert core.log.faulty == set()
    core.entry_faulty(20, LOG[20].header, 20 * MS)
    assert core.log.faulty == {20}


# Who waits


def leading() -> Replica:
    """Primary 0 of view 3, whose log ends at op 5, with one op more that nobody has acknowledged."""
    core = replica(0, head=5, view=3, log_view=2)
    evidence = encode_evidence(Evidence(5, 1, 1, 0, (LOG[5].header,)))
    for by in (1, 2):
        core.step(
            frame(Command.DO_VIEW_CHANGE, evidence, replica=by, view=3, log_view=2, op=5, commit=5, count=1), 20 * MS
        )
    settle(core)
    core.tick(30 * MS)
    settle(core)
    assert (core.is_primary, core.status) == (True, Status.NORMAL)
    request = frame(Command.REQUEST, client=b"c" * 16, operation=Operation.REGISTER)
    core.propose(request, 31 * MS)
    settle(core)
    assert core.pipeline
    return core


def acknowledged(by: int, op: int) -> Message:
    return frame(Command.PREPARE_OK, replica=by, view=3, op=op, context=LOG[op].header.checksum, commit=0)


def test_nobody_abdicates_while_a_quorum_member_comes_nearer() -> None:
    core = leading()
    for at in range(1, 100):
        core.step(acknowledged(1, at // 20), at * 100 * MS)  # an op in two seconds is little, and counts
        core.tick(at * 100 * MS)
        settle(core)
        assert not core.scope.abdicated
    for at in range(100, 150):
        core.step(acknowledged(1, 4), at * 100 * MS)
        core.tick(at * 100 * MS)
        settle(core)
    assert core.scope.abdicated, "it has stopped to come nearer"


def test_a_primary_alone_leads_again_when_a_replica_returns_and_gives_it_time_once() -> None:
    core = leading()
    for at in range(1, 40):
        core.tick(at * 100 * MS)
        settle(core)
    assert core.scope.abdicated
    core.step(frame(Command.START_VIEW_CHANGE, replica=1, view=3), 4000 * MS)
    core.tick(4001 * MS)
    work = settle(core)
    assert (core.scope.abdicated, core.view, core.scope.votes.get(0)) == (False, 3, None), (
        "the vote of the other is not enough"
    )
    assert {peer for peer, _ in sent(work, Command.COMMIT)} == {1, 2}
    for at in range(41, 120, 15):  # it is heard now and then, and comes no nearer
        core.step(frame(Command.PING, replica=1, view=3), at * 100 * MS)
        core.tick(at * 100 * MS)
        settle(core)
    assert core.scope.abdicated


def test_a_draining_primary_does_not_come_back() -> None:
    core = leading()
    core.drain()
    core.step_down(100 * MS)
    core.step(frame(Command.PING, replica=1, view=3), 3000 * MS)
    assert core.scope.abdicated


def candidate(gap: int, own: int, evidence_of_2: Evidence) -> Work:
    """Replica 1, whose log ends at `own`, is to lead view 1 with the evidence of replica 2."""
    core = replica(1, head=own, forfeit_gap=gap)
    settle(core)
    core.step(frame(Command.PING, replica=2, view=1), 20 * MS)
    settle(core)
    body = encode_evidence(evidence_of_2)
    message = frame(
        Command.DO_VIEW_CHANGE, body, replica=2, view=1, op=HEAD, commit=HEAD, count=len(evidence_of_2.headers)
    )
    core.step(message, 21 * MS)
    return settle(core)


def test_who_has_the_log_leads_and_nobody_else_gives_up_its_view() -> None:
    head = (LOG[HEAD].header,)
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
    settle(core)
    newer = chain(40, view=3, parent=LOG[20])[-1].header
    core.step(frame(Command.PING, replica=2, view=4), 20 * MS)
    settle(core)
    body = encode_evidence(Evidence(60, 1, 1, 0, (newer,)))
    core.step(frame(Command.DO_VIEW_CHANGE, body, replica=2, view=4, log_view=3, op=60, commit=60, count=1), 21 * MS)
    given_up = [event.b for event in settle(core).events if event.kind is EventKind.FORFEITED]
    assert given_up == ([40] if gap < 40 else [])


def test_a_view_that_its_candidate_gives_up_is_left_at_once() -> None:
    core = replica(2, head=50)
    settle(core)
    core.step(frame(Command.PING, replica=1, view=1), 20 * MS)
    settle(core)
    core.step(frame(Command.START_VIEW_CHANGE, replica=1, view=1), 21 * MS)
    work = settle(core)
    assert core.view == 2
    assert {header.view for _, header in sent(work, Command.START_VIEW_CHANGE)} == {1}


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_view_whose_candidate_is_silent_is_left_sooner(is_heard: bool) -> None:
    core = replica(0, head=50, view=0)
    core.peers[1].last_heard = 10 * MS if is_heard else 0
    core.step(frame(Command.PING, replica=2, view=1), 20 * MS)
    assert core.view_change_timer.deadline is not None
    left = core.view_change_timer.deadline - 20 * MS
    whole = core.config.view_change_ns
    assert (whole <= left) if is_heard else (whole // 4 <= left < whole // 2)


# What is said of others


def test_the_last_word_of_a_replica_counts_and_that_of_a_former_primary_stays_a_hint() -> None:
    core = leading()
    core.step(acknowledged(1, 5), 40 * MS)
    core.step(acknowledged(1, 0), 41 * MS)
    said = {peer.replica: peer.op for peer in core.snapshot().peers}
    assert said[1] == 0, "its disk is a new one"
    backup = replica(1, head=50)
    backup.step(heartbeat(50), 20 * MS)
    backup.scope.known_head = 60
    backup.step(frame(Command.PING, replica=2, view=1, op=55), 21 * MS)
    assert {replica: peer.held for replica, peer in backup.peers.items()} == {0: 60, 2: 55}
    assert {peer.replica: peer.op for peer in backup.snapshot().peers} == {0: None, 2: 55}, "in the new view"
    assert {peer.op for peer in replica(2).snapshot().peers} == {None}


def test_damage_is_repaired_no_faster_than_the_disk_takes_it() -> None:
    """Damage below what is durable has no window of its own: with a disk that hangs its bodies would add up."""
    most = 10 * (ENTRY_BYTES + HEADER_SIZE)
    core = replica(1, head=50, backlog_bytes=most)
    settle(core)
    core.step(heartbeat(50), 20 * MS)
    for op in range(10, 50):
        core.entry_faulty(op, LOG[op].header, 20 * MS)
    for at in range(60, 3000, 60):
        core.step(heartbeat(50), at * MS)
        core.tick(at * MS)
        for _, header in sent(core.take_work(), Command.REQUEST_PREPARE):
            core.step(LOG[header.op], at * MS)  # answered at once; nothing is ever written
    assert 10 <= len(core.log.bodies) <= 10 + 16, "what one peer is asked for at once comes on top"


def test_the_body_of_a_repaired_entry_that_was_executed_is_let_go() -> None:
    for op in (50, 40):
        core = replica(1, head=50)
        settle(core)
        core.step(heartbeat(50), 20 * MS)
        core.entry_faulty(op, LOG[op].header, 20 * MS)
        core.tick(60 * MS)
        settle(core)
        core.step(LOG[op], 61 * MS)
        assert set(core.log.bodies) == {op}
        settle(core)
        assert (core.log.bodies, core.log.held_bytes, core.log.faulty) == ({}, 0, set())


def test_what_is_to_be_executed_next_is_repaired_whatever_is_held() -> None:
    core = replica(1, head=50, backlog_bytes=1)
    settle(core)
    core.applied = core.apply_emitted = 20
    core.log.keep(LOG[45])
    core.step(heartbeat(50), 20 * MS)
    for op in (30, 21, 25):
        core.entry_faulty(op, LOG[op].header, 20 * MS)
    core.tick(60 * MS)
    assert [header.op for _, header in sent(core.take_work(), Command.REQUEST_PREPARE)] == [21]
