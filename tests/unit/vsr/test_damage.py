"""Damage as the core sees it: what is damaged is neither acknowledged anew, nor given away as certain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab import MS, ROOT, Cluster, Core, chain, headers_of, messages_sent, ping, prepare, restarted, sent

from kimberlite.types import Command, EntryState, Header, Message, Recovered, RecoveredEntry, ViewState
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.state import HeadersRequest
from kimberlite.vsr.work import Promise, ServeHeaders, Work


def acknowledged(work: Work) -> list[int]:
    return [header.op for _, header in sent(work, Command.PREPARE_OK)]


def test_a_damaged_uncommitted_entry_is_not_acknowledged_until_it_is_repaired() -> None:
    log = chain(3)
    core = restarted(Recovered(ViewState(suffix=(ROOT,)), 3, log[3], 3, 3, commit=1), log[1:3])
    assert acknowledged(core.take_work()) == [3]
    core.entry_faulty(3, log[3], 20)
    core.ack_due = True
    assert acknowledged(core.take_work()) == [2]
    core.log.keep(Message(log[3]))
    assert acknowledged(core.make_durable(30)) == [3]


def test_damage_to_what_is_committed_holds_nothing_back() -> None:
    log = chain(3)
    core = restarted(Recovered(ViewState(suffix=(ROOT,)), 3, log[3], 3, 3, commit=2), log[2:3])
    core.take_work()
    core.entry_faulty(2, log[2], 20)
    core.ack_due = True
    assert acknowledged(core.take_work()) == [3]


def test_a_journal_header_above_the_linked_log_is_not_believed() -> None:
    """Where headers are missing the journal may still hold the entry of an older log."""
    log = chain(1)
    stranger = prepare(op=3, parent=bytes(16)).header
    core = restarted(Recovered(ViewState(suffix=(ROOT,)), 1, log[1], 1, 1), [])
    core.log.op = core.log.journal_head = 5
    core.entry_faulty(3, stranger, 20)
    assert 3 not in core.log.headers
    assert 3 in core.log.faulty


def test_damage_in_what_is_about_to_be_cut_off_is_not_repaired() -> None:
    """The superblock that says so is under way: until it is written the journal still has those entries."""
    log = chain(3)
    core = restarted(Recovered(ViewState(suffix=(ROOT,)), 3, log[3], 3, 3, commit=1), log[1:3])
    core.begin_view(2, log[1:3], 20, commit=1)
    core.entry_faulty(3, None, 21)
    assert core.log.faulty == set()
    core.entry_faulty(2, None, 21)
    assert core.log.faulty == {2}


def lost_tail(log: list[Header], feared: int) -> Recovered:
    """A journal that ends at log[-1], above which `feared` ops may have been acknowledged."""
    head = log[-1].op
    entries = tuple(RecoveredEntry(head + 1 + at, EntryState.FAULTY, None) for at in range(feared))
    return Recovered(ViewState(suffix=(ROOT,)), head, log[-1], head + feared, head, entries=entries, commit=head)


def test_doubt_is_durable_before_the_journal_grows_over_what_is_doubted() -> None:
    log = chain(4)
    core = restarted(lost_tail(log[:3], 2), [])
    core.log.extend(log[3])
    core.log.keep(Message(log[3]))
    (persist,) = core.take_work().persist
    assert (type(persist), persist.state.doubt) == (Promise, 4)
    core.durable(persist.token, 20)
    (persist,) = core.take_work().persist
    assert [entry.header.op for entry in persist.entries] == [3]


def test_the_primary_says_what_never_existed() -> None:
    log = chain(2)
    backup = restarted(lost_tail(log, 3), [])
    primary = restarted(Recovered(ViewState(suffix=(ROOT,)), 2, log[2], 2, 2, commit=2), [], index=0)
    primary.role = Leading(0, set())
    backup.make_durable(20)
    backup.step(ping(0, op=2), 90 * MS)
    backup.tick(100 * MS)
    (request,) = messages_sent(backup.take_work(), Command.REQUEST_HEADERS)
    primary.step(request, 110 * MS)
    (serve,) = primary.take_work().serve
    assert isinstance(serve, ServeHeaders)
    answer = primary.headers_message([log[2]], serve.nonce)
    assert answer is not None
    backup.step(answer, 120 * MS)
    assert (backup.log.op, backup.log.faulty) == (2, set())
    (persist,) = backup.take_work().persist
    assert (type(persist), persist.state.doubt) == (Promise, 2), "nor is it feared again after a restart"


def test_an_answer_to_a_question_of_an_earlier_life_settles_nothing() -> None:
    log = chain(2)
    backup = restarted(lost_tail(log, 3), [])
    backup.make_durable(20)
    backup.step(headers_of(0, [log[2]], 9, commit=2), 30)
    assert backup.log.op == 5


def base_after_start_view(core: Core, log: list[Header]) -> int:
    """What becomes of the base when view 2 begins with log[5], committed."""
    core.take_work()
    core.begin_view(2, log[5:6], 20, commit=5)
    persist = core.take_work().persist[-1]
    assert persist.state.log_view == 2
    return persist.state.base


def test_the_base_ends_below_what_is_missing() -> None:
    """A committed op that is not here may have the entry of another log in its place on the disk."""
    log = chain(6)
    entries = (
        RecoveredEntry(3, EntryState.ABSENT, log[3]),
        RecoveredEntry(4, EntryState.PRESENT, log[4]),
        RecoveredEntry(5, EntryState.PRESENT, log[5]),
    )
    state = ViewState(base=2, suffix_head=5, suffix=tuple(log[3:6]))
    core = restarted(Recovered(state, 2, log[2], 5, 5, entries=entries, commit=5), [])
    assert base_after_start_view(core, log) == 2


def test_the_base_reaches_over_what_is_damaged_in_its_place() -> None:
    log = chain(6)
    entries = (
        RecoveredEntry(3, EntryState.FAULTY, log[3]),
        RecoveredEntry(4, EntryState.PRESENT, log[4]),
        RecoveredEntry(5, EntryState.PRESENT, log[5]),
    )
    state = ViewState(suffix=(ROOT,))
    core = restarted(Recovered(state, 2, log[2], 5, 5, entries=entries, commit=5, rooted=4), [])
    assert base_after_start_view(core, log) == 4


def late(log: list[Header], own: list[Header], state: EntryState = EntryState.PRESENT) -> Recovered:
    """Restarted in a view that begins with log[5]: op 4 never came, and of `own`, from op 2 on, nothing tells
    whether it is this log's."""
    suffix = ViewState(view=1, log_view=1, commit=5, base=1, suffix_head=5, suffix=(log[5],))
    entries = [RecoveredEntry(header.op, EntryState.PRESENT, header, is_candidate=True) for header in own]
    entries[0] = replace(entries[0], state=state)
    missing = RecoveredEntry(4, EntryState.ABSENT, None)
    head = RecoveredEntry(5, EntryState.ABSENT, log[5])
    return Recovered(suffix, 1, log[1], 5, own[-1].op, entries=(*entries, missing, head), commit=5, rooted=1)


def learn(core: Core, log: list[Header], last: int = 5) -> None:
    """The primary of view 1 tells the headers of ops 2 to `last`."""
    core.make_durable(20)
    core.headers_requests[9] = HeadersRequest(1, 2, 5, 20)
    core.step(headers_of(1, log[2 : last + 1], 9, view=1, commit=5), 30)


def test_what_a_replica_has_below_an_op_that_it_misses_is_still_there_after_a_restart() -> None:
    log = chain(5)
    core = restarted(late(log, log[2:4]), [], index=2)
    assert core.log.durable == 1
    learn(core, log)
    assert (core.log.durable, core.log.linked, core.log.journal_head) == (3, 5, 3)
    assert [header.op for header in core.log.missing(9)] == [4, 5]


@pytest.mark.parametrize("last", [3, 4, 5])
def test_unless_it_is_that_of_another_log(last: int) -> None:
    """The header that says so may be the last of an answer: to ask for it again would bring the same again."""
    log, other = chain(5), chain(3, view=9)
    core = restarted(late(log, [log[2], other[3]]), [], index=2)
    learn(core, log, last)
    work = core.take_work()
    assert not sent(work, Command.REQUEST_HEADERS)
    (persist,) = work.persist
    assert (type(persist), persist.truncate_to) == (Promise, 2)
    core.durable(persist.token, 40)
    assert (core.log.durable, core.log.journal_head) == (2, 2)


def test_what_stands_above_it_in_the_journal_goes_with_it() -> None:
    """The last op was repaired in its place before: what is cut off below takes it away."""
    log, other = chain(5), chain(4, view=9)
    found = late(log, [log[2], other[3], other[4]])
    entries = (*found.entries[:3], RecoveredEntry(5, EntryState.PRESENT, log[5]))
    core = restarted(replace(found, written=5, entries=entries), [], index=2)
    learn(core, log)
    (persist,) = core.take_work().persist
    assert (type(persist), persist.truncate_to) == (Promise, 2)
    core.durable(persist.token, 40)
    learn(core, log)
    for op in (3, 4):
        core.log.keep(Message(log[op]))
    core.make_durable(50)
    assert (core.log.durable, core.log.journal_head) == (4, 4)
    assert [header.op for header in core.log.missing(9)] == [5]


def test_what_is_damaged_of_it_is_asked_for_by_the_identity_that_is_learned() -> None:
    log = chain(5)
    core = restarted(late(log, log[2:4], EntryState.FAULTY), [], index=2)
    learn(core, log)
    assert core.log.durable == 1
    assert [header.op for header in core.log.missing(9)] == [2, 4, 5]
    core.log.keep(Message(log[2]))
    (persist,) = core.take_work().persist
    assert [entry.header.op for entry in persist.entries] == [2]
    core.durable(persist.token, 40)
    assert core.log.durable == 3


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_identity_that_nobody_has_is_asked_of_the_others(in_memory: bool) -> None:
    """The witness of a damaged entry was left by an older log, where a disk lost the write that came over it."""
    cluster = Cluster(3)
    cluster.settle()
    cluster.register()
    for number in range(1, 6):
        cluster.append(number, b"event")
    cluster.run(500)
    backup = cluster.backups[0]
    log = backup.core.log
    true = log.headers.pop(3)
    if not in_memory:
        log.let_go(3)
    backup.core.entry_faulty(3, chain(1, log.headers[2], b"of an older log")[1], cluster.now)
    cluster.run(10_000, lambda: not log.faulty)
    assert log.headers[3] == true
