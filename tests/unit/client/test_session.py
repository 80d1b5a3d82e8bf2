"""The client session without I/O: one behaviour a test, then all of it against a model of a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kimberlite._fast import events as event_batches
from kimberlite._fast.framing import make_header
from kimberlite.client import session as session_module
from kimberlite.client.appends import Outcome
from kimberlite.client.session import MS, Session
from kimberlite.errors import (
    BusyError,
    EventTooLargeError,
    NoSpaceError,
    OutcomeUnknownError,
    RejectedError,
    SessionEvictedError,
    UnavailableError,
    UsageError,
)
from kimberlite.told import TELLS, failures_of, latencies_of
from kimberlite.types import FLAG_PREPARED, ClientFailure, Command, Message, Operation, Reason

CLUSTER = b"k" * 16
CLIENT = b"c" * 16


def make(replicas: int = 3, connected: tuple[int, ...] = (0, 1, 2), **options: Any) -> Session:
    options = {"seed": 7, **options}
    session = Session(make_header=make_header, cluster=CLUSTER, client_id=CLIENT, replica_count=replicas, **options)
    for replica in connected:
        session.connected(replica, 0)
    return session


def sent(session: Session) -> list[tuple[int, Message]]:
    sends, done = session.take_output()
    assert not done
    return sends


def only(session: Session) -> tuple[int, Message]:
    (send,) = sent(session)
    return send


def outcomes(session: Session) -> list[Outcome]:
    return session.take_output()[1]


def reply(to: Message, body: bytes = b"", replica: int = 0, view: int = 0, **fields: Any) -> Message:
    about = to.header
    fields = {"session": about.session, "count": about.count, "op": 1, **fields}
    return Message(
        make_header(
            body,
            cluster=CLUSTER,
            command=Command.REPLY,
            replica=replica,
            view=view,
            operation=about.operation,
            client=about.client,
            request=about.request,
            context=about.checksum,
            **fields,
        ),
        body,
    )


def reject(to: Message, reason: Reason, replica: int = 0, view: int = 0, **fields: Any) -> Message:
    return Message(
        make_header(
            cluster=CLUSTER,
            command=Command.REJECT,
            replica=replica,
            view=view,
            reason=reason,
            client=to.header.client,
            request=to.header.request,
            context=to.header.checksum,
            **fields,
        )
    )


def registered(**options: Any) -> Session:
    """A session with a number, nothing in flight."""
    session = make(**options)
    session.append([b"first"], 0)
    session.flush(0)
    _, register = only(session)
    assert register.header.operation == Operation.REGISTER
    session.step(reply(register, session=11), 0)
    _, first = only(session)
    session.step(reply(first), 0)
    assert [outcome.position for outcome in outcomes(session)] == [0]
    assert session.idle
    return session


def begin(session: Session, *payloads: bytes, now: int = 0, deadline: int | None = None) -> tuple[int, Message]:
    for payload in payloads or (b"x",):
        session.append([payload], now, deadline)
    session.flush(now)
    return only(session)


# Whom to ask


def news(view: int, replica: int = 1) -> Message:
    return Message(make_header(cluster=CLUSTER, command=Command.HELLO, replica=replica, view=view, count=3))


def test_a_request_goes_to_the_primary_of_a_view_that_a_replica_tells_of() -> None:
    session = registered()
    target, request = begin(session)
    assert target == 0
    session.step(news(1), MS)
    assert only(session) == (1, request)
    session.step(news(1, replica=2), 2 * MS)  # no news any more
    session.step(news(0, replica=0), 3 * MS)
    assert sent(session) == []


def test_news_of_a_view_whose_primary_has_the_request_sends_nothing() -> None:
    session = registered()
    _, request = begin(session)
    session.disconnected(0, MS)
    assert only(session) == (1, request)
    session.step(news(1), 2 * MS)
    assert sent(session) == []
    session.step(reject(request, Reason.NOT_PRIMARY, replica=1, view=1), 3 * MS)
    assert sent(session) == []  # it waits a little
    session.step(news(4), 4 * MS)
    assert only(session) == (1, request)


def test_news_while_nothing_is_under_way_is_where_the_next_request_goes() -> None:
    session = registered()
    session.step(news(2), MS)
    assert begin(session)[0] == 2


def test_a_silent_replica_is_not_asked_again_while_others_answer() -> None:
    """A primary that is frozen: who is asked next says that it leads, and it is not asked for a second."""
    session = registered()
    target, request = begin(session)
    asked = [target]
    now = 0
    while now < 900 * MS:
        now = session.next_deadline() or 0
        session.tick(now)
        for target, message in sent(session):
            asked.append(target)
            if target != 0:
                session.step(reject(message, Reason.NOT_PRIMARY, replica=target, view=0), now)
    assert asked[:2] == [0, 1]
    assert 0 not in asked[1:]
    session.step(news(3, replica=2), now)  # of a newer view it may be the primary all the same
    assert only(session) == (0, request)


def test_silent_replicas_are_asked_in_turn_when_nobody_answers() -> None:
    session = registered()
    asked = [begin(session)[0]]
    before = 0
    while len(asked) < 30:
        now = session.next_deadline() or 0
        assert now - before <= 150 * MS
        before = now
        session.tick(now)
        asked += [target for target, _ in sent(session)]
    assert asked == [number % 3 for number in range(30)]


def test_where_answers_take_long_attempts_are_further_apart() -> None:
    """More copies would only be more to do for whoever is slow."""
    session = registered()
    for _ in range(30):
        _, request = begin(session)
        session.step(reply(request), 800 * MS)
        outcomes(session)
        session.tick(800 * MS)
    begin(session, now=1000 * MS)
    assert (session.next_deadline() or 0) >= 2000 * MS


# Registration and coalescing


def test_a_session_is_registered_before_the_first_request_and_once() -> None:
    session = make()
    session.append([b"a"], 0)
    session.flush(0)
    target, register = only(session)
    assert (target, register.header.operation, register.header.client) == (0, Operation.REGISTER, CLIENT)
    session.append([b"b"], 0)
    session.flush(0)
    assert sent(session) == []
    session.step(reply(register, session=42), 0)
    _, request = only(session)
    assert (request.header.session, request.header.request) == (42, 1)
    assert event_batches.slice(request.body, 0, 2) == [b"a", b"b"]


def test_appends_that_wait_travel_together_and_learn_their_own_positions() -> None:
    session = registered()
    handles = [session.append([b"a"], 0), session.append([b"b", b"c"], 0)]
    session.flush(0)
    handles += [session.append([b"d"], 0), session.append_batch(event_batches.build([b"e", b"f"]), 2, 0)]
    _, first = only(session)
    session.step(reply(first, position=100), 0)
    sends, done = session.take_output()
    assert [(outcome.handle, outcome.position, outcome.events) for outcome in done] == [
        (handles[0], 100, 1),
        (handles[1], 101, 2),
    ]
    ((_, second),) = sends
    assert second.header.request == first.header.request + 1
    assert event_batches.slice(second.body, 0, 3) == [b"d", b"e", b"f"]
    session.step(reply(second, position=200), 0)
    assert [(outcome.handle, outcome.position) for outcome in outcomes(session)] == [
        (handles[2], 200),
        (handles[3], 201),
    ]


def test_a_request_stays_within_its_limits() -> None:
    session = registered(request_bytes_max=1000, events_max=5)
    for _ in range(9):
        session.append([b"x" * 150] * 2, 0)
    session.flush(0)
    sizes = []
    while not session.idle:
        ((_, request),) = session.take_output()[0]
        assert len(request.body) <= 1000
        assert request.header.count <= 5
        sizes.append(request.header.count)
        session.step(reply(request), 0)
    assert sum(sizes) == 18


@pytest.mark.parametrize(
    ("events", "limits"),
    [([b"x" * 2000], {"request_bytes_max": 1000}), ([b""] * 6, {"events_max": 5})],
)
def test_what_no_request_can_hold_is_refused_at_once(events: list[bytes], limits: dict[str, int]) -> None:
    session = registered(**limits)
    with pytest.raises(EventTooLargeError, match="split it"):
        session.append(events, 0)
    assert session.idle


def test_an_append_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        make().append([], 0)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "WAITING_MAX", 3)
    monkeypatch.setattr(session_module, "WAITING_BYTES_MAX", 1000)
    session = registered()
    session.append([b"x" * 900], 0)
    with pytest.raises(BusyError):
        session.append([b"x" * 200], 0)
    session.append([b""], 0)
    session.append([b""], 0)
    with pytest.raises(BusyError):
        session.append([b""], 0)
    session.flush(0)
    session.append([b"x" * 900], 0)  # what is under way waits no more


# Who gets it


@pytest.mark.parametrize("view", [0, 1, 2, 3, 301])
def test_requests_go_to_the_primary_of_the_view_that_is_known(view: int) -> None:
    session = registered()
    session.step(Message(make_header(cluster=CLUSTER, command=Command.HELLO, replica=1, view=view, count=3)), 0)
    assert begin(session)[0] == view % 3


def test_a_redirection_is_followed() -> None:
    session = registered()
    target, request = begin(session)
    session.step(reject(request, Reason.NOT_PRIMARY, replica=target, view=5), 0)
    at = session.next_deadline()
    assert at is not None
    assert at < 15 * MS
    session.tick(at)
    assert only(session) == (2, request)


def test_a_replica_that_claims_to_lead_and_refuses_is_left() -> None:
    session = registered()
    _, request = begin(session)
    session.step(reject(request, Reason.NOT_PRIMARY, replica=0, view=0), 0)
    session.tick(session.next_deadline() or 0)
    assert only(session)[0] != 0


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("view", range(6))
def test_a_view_that_nobody_is_in_keeps_a_client_from_nobody(replicas: int, view: int) -> None:
    """A replica told of it, and died before it had written it down: its primary goes on saying that it does not lead,
    and each of the others is asked in turn."""
    session = make(replicas, tuple(range(replicas)))
    session.append([b"a"], 0)
    session.flush(0)
    asked, now = set(), 0
    for _ in range(2 * replicas):
        target, request = only(session)
        asked.add(target)
        session.step(reject(request, Reason.NOT_PRIMARY, replica=target, view=view if not now else 0), now)
        deadline = session.next_deadline()
        assert deadline is not None
        now = deadline
        session.tick(now)
    assert asked == set(range(replicas))


def test_a_replica_that_is_silent_is_left_for_the_next() -> None:
    session = registered()
    targets = [begin(session)[0]]
    for _ in range(5):
        session.tick(session.next_deadline() or 0)
        targets.append(only(session)[0])
    assert targets == [0, 1, 2, 0, 1, 2]


def test_only_connected_replicas_are_asked() -> None:
    session = registered()
    session.disconnected(0, 0)
    session.disconnected(1, 0)
    target, request = begin(session)
    assert target == 2
    session.disconnected(2, 0)
    assert sent(session) == []
    assert session.next_deadline() is None, "nothing to do until there is a connection"
    session.connected(1, 50)
    assert only(session) == (1, request)


# Retries


def test_a_retry_is_the_very_same_frame_and_has_one_outcome() -> None:
    session = registered()
    _, request = begin(session)
    copies = []
    for _ in range(4):
        session.tick(session.next_deadline() or 0)
        copies.append(only(session)[1])
    assert all(copy is request for copy in copies)
    session.step(reply(request, position=5), 0)
    session.step(reply(request, position=5), 0)
    assert [outcome.position for outcome in outcomes(session)] == [5]


def test_retries_back_off_and_are_bounded() -> None:
    session = registered()
    begin(session)
    now, gaps = 0, []
    for _ in range(12):
        at = session.next_deadline()
        assert at is not None
        gaps.append(at - now)
        now = at
        session.tick(now)
        sent(session)
    assert gaps[0] >= session_module.RETRY_MIN_NS
    assert max(gaps) <= session_module.RETRY_MAX_NS * 3 // 2
    assert gaps[-1] > gaps[0]
    assert len(set(gaps)) == len(gaps), "jittered"


def test_nothing_is_sent_before_its_time() -> None:
    session = registered()
    begin(session)
    at = session.next_deadline()
    assert at is not None
    session.tick(at - 1)
    assert sent(session) == []


@pytest.mark.parametrize("reason", [Reason.BUSY_PIPELINE, Reason.BUSY_QUEUE, Reason.NOT_READY, Reason.DISK_FULL])
def test_a_busy_primary_is_asked_again_later_and_later(reason: Reason) -> None:
    session = registered()
    _, request = begin(session)
    now, gaps = 0, []
    for _ in range(8):
        session.step(reject(request, reason), now)
        at = session.next_deadline()
        assert at is not None
        gaps.append(at - now)
        now = at
        session.tick(now)
        assert only(session) == (0, request), "the same primary"
    assert gaps[-1] > 4 * gaps[0]


def test_answers_to_something_else_change_nothing() -> None:
    session = registered()
    _, old = begin(session, b"old")
    session.step(reply(old), 0)
    session.take_output()
    _, request = begin(session, b"new")
    for strange in (
        reply(old, position=9),
        reject(old, Reason.NO_SESSION),
        reject(old, Reason.MALFORMED),
        Message(make_header(cluster=CLUSTER, command=Command.PONG, context=request.header.checksum)),
    ):
        session.step(strange, 0)
        assert session.take_output() == ([], [])
    session.step(reply(request, position=77), 0)
    assert outcomes(session)[0].position == 77


# Deadlines


def test_a_deadline_before_anything_was_sent_is_no_unknown_outcome() -> None:
    session = make(connected=())
    session.append([b"a"], 0, 100)
    session.flush(0)
    assert session.next_deadline() == 100
    session.tick(100)
    (outcome,) = outcomes(session)
    assert isinstance(outcome.error, UnavailableError)
    assert session.next_deadline() is None


def test_a_deadline_while_under_way_is_an_unknown_outcome_and_the_request_goes_on() -> None:
    session = registered()
    handle = session.append([b"mine"], 0, 1000)
    other = session.append([b"other", b"two"], 0)
    session.flush(0)
    _, request = only(session)
    session.tick(999)
    assert session.take_output() == ([], [])
    session.tick(1000)
    (outcome,) = outcomes(session)
    assert (outcome.handle, type(outcome.error)) == (handle, OutcomeUnknownError)
    assert isinstance(outcome.error, TimeoutError)
    session.tick(session.next_deadline() or 0)
    assert only(session)[1] is request, "what follows stays in order behind it"
    session.step(reply(request, position=30), 0)
    (outcome,) = outcomes(session)
    assert (outcome.handle, outcome.position) == (other, 31), "the place of the expired one is kept"


def test_an_append_behind_a_stuck_request_expires_unsent() -> None:
    session = registered()
    begin(session, b"stuck")
    handle = session.append([b"waits"], 0, 1000)
    kept = session.append([b"waits longer"], 0, 10**12)
    session.flush(0)
    session.tick(1000)
    (outcome,) = outcomes(session)
    assert (outcome.handle, type(outcome.error)) == (handle, UnavailableError)
    assert not session.idle
    assert kept != handle


def test_a_request_that_never_left_is_taken_apart() -> None:
    session = registered()
    for replica in range(3):
        session.disconnected(replica, 0)
    gone = session.append([b"gone"], 0, 1000)
    kept = session.append([b"kept"], 0)
    session.flush(0)
    session.tick(1000)
    (outcome,) = outcomes(session)
    assert (outcome.handle, type(outcome.error)) == (gone, UnavailableError)
    session.connected(1, 2000)
    session.flush(2000)
    _, request = only(session)
    assert (request.header.request, event_batches.slice(request.body, 0, 1)) == (2, [b"kept"])
    session.step(reply(request, position=1), 0)
    assert [outcome.handle for outcome in outcomes(session)] == [kept]


def test_an_append_refused_for_lack_of_space_until_its_deadline_is_certainly_not_in_the_log() -> None:
    session = registered()
    gone = session.append([b"gone"], 0, 1000 * MS)
    kept = session.append([b"kept"], 0, 10**13)
    session.flush(0)
    _, request = only(session)
    now = attempts = 0
    while not (done := outcomes(session)):
        session.step(reject(request, Reason.DISK_FULL), now)
        now = session.next_deadline() or 0
        session.tick(now)
        attempts += 1
    (outcome,) = done
    assert (outcome.handle, type(outcome.error), now) == (gone, NoSpaceError, 1000 * MS)
    assert attempts > 5, "room may be made meanwhile"
    waits = session.append([b"waits"], now, now + 10**12)
    now = session.next_deadline() or 0
    session.tick(now)
    _, request = only(session)
    assert event_batches.slice(request.body, 0, 2) == [b"kept", b"waits"], "without what has failed"
    assert request.header.request == 2, "its number is free"
    session.step(reply(request, position=5), now)
    assert [(outcome.handle, outcome.position) for outcome in outcomes(session)] == [(kept, 5), (waits, 6)]


def test_what_waits_behind_a_refusal_for_lack_of_space_says_so_too() -> None:
    session = make()
    session.append([b"a"], 0, 1000 * MS)
    session.flush(0)
    _, register = only(session)
    assert register.header.operation == Operation.REGISTER
    session.step(reject(register, Reason.DISK_FULL), 0)
    session.tick(1000 * MS)
    (outcome,) = session.take_output()[1]
    assert type(outcome.error) is NoSpaceError


def test_a_copy_without_an_answer_leaves_the_outcome_unknown_in_spite_of_a_later_refusal() -> None:
    session = registered()
    _, request = begin(session, deadline=1000 * MS)
    session.tick(session.next_deadline() or 0)  # the first copy was not answered
    assert only(session) == (1, request)
    session.step(reject(request, Reason.DISK_FULL, replica=1), 500 * MS)
    session.tick(1000 * MS)
    (outcome,) = session.take_output()[1]
    assert type(outcome.error) is OutcomeUnknownError


def test_what_is_left_of_a_request_that_never_left_is_sent_by_itself() -> None:
    session = registered()
    for replica in range(3):
        session.disconnected(replica, 0)
    session.append([b"gone"], 0, 1000)
    session.append([b"kept"], 0)
    session.flush(0)
    session.tick(1000)
    outcomes(session)
    session.connected(1, 2000)
    _, request = only(session)
    assert event_batches.slice(request.body, 0, 1) == [b"kept"]


# Refusals and eviction


def test_a_refusal_says_that_nothing_happened_and_its_number_is_used_again() -> None:
    session = registered()
    _, request = begin(session)
    session.step(reject(request, Reason.BUSY_QUEUE), 0)
    session.tick(session.next_deadline() or 0)
    assert only(session) == (0, request)
    session.step(reject(request, Reason.MALFORMED), 0)  # both copies were refused
    (outcome,) = outcomes(session)
    assert type(outcome.error) is RejectedError
    assert outcome.error.details["reason"] == Reason.MALFORMED
    assert begin(session)[1].header.request == request.header.request


@pytest.mark.parametrize("reason", [Reason.TOO_LARGE, Reason.MALFORMED, Reason.NO_SESSION])
def test_a_primary_that_is_voted_out_may_have_prepared_what_it_sends_elsewhere(reason: Reason) -> None:
    session = registered()
    _, request = begin(session)
    session.step(reject(request, Reason.NOT_PRIMARY, view=1, flags=FLAG_PREPARED), 0)
    session.tick(session.next_deadline() or 0)
    assert only(session) == (1, request)
    session.step(reject(request, reason, replica=1), 0)
    session.tick(session.next_deadline() or 0)
    assert [type(outcome.error) for outcome in outcomes(session)] == [OutcomeUnknownError]


@pytest.mark.parametrize("reason", [Reason.TOO_LARGE, Reason.MALFORMED])
def test_a_refusal_of_a_retry_says_nothing_of_the_copies_before(reason: Reason) -> None:
    """The first copy may be in the log: its number must not be given to other events, whose append would be
    answered as a duplicate of it and lost."""
    session = registered()
    _, request = begin(session)
    session.tick(session.next_deadline() or 0)
    target, _ = only(session)
    session.step(reject(request, reason, replica=target), 0)
    (outcome,) = outcomes(session)
    assert isinstance(outcome.error, OutcomeUnknownError)
    _, following = begin(session, b"other events")
    assert following.header.operation == Operation.REGISTER
    assert following.header.client != CLIENT


def test_one_append_too_large_does_not_fail_those_that_travelled_with_it() -> None:
    session = registered()
    handles = [session.append([payload], 0) for payload in (b"a", b"large", b"c")]
    session.flush(0)
    number = None
    done: dict[int, Outcome] = {}
    while not session.idle:
        sends, finished = session.take_output()
        done |= {outcome.handle: outcome for outcome in finished}
        for _, request in sends:
            payloads = event_batches.slice(request.body, 0, request.header.count)
            if b"large" in payloads:
                number = request.header.request
                session.step(reject(request, Reason.TOO_LARGE), 0)
            else:
                assert number is None or request.header.request >= number
                session.step(reply(request), 0)
    done |= {outcome.handle: outcome for outcome in outcomes(session)}
    assert [type(done[handle].error) for handle in handles] == [type(None), EventTooLargeError, type(None)]


def test_a_refused_registration_ends_what_waits_for_it() -> None:
    session = make()
    handles = [session.append([b"a"], 0), session.append([b"b"], 0)]
    session.flush(0)
    session.step(reject(only(session)[1], Reason.VERSION), 0)
    sends, done = session.take_output()
    assert sends == [], "no endless loop of refusals"
    assert [(outcome.handle, type(outcome.error)) for outcome in done] == [
        (handle, RejectedError) for handle in handles
    ]
    assert session.idle


def test_what_an_eviction_left_undone_is_done_in_a_new_session() -> None:
    session = registered()
    handle = session.append([b"evicted"], 0)
    session.flush(0)
    _, request = only(session)
    waiting = session.append([b"waiting"], 0)
    session.step(reject(request, Reason.NO_SESSION), 0)
    sends, done = session.take_output()
    assert done == []
    ((_, register),) = sends
    assert register.header.operation == Operation.REGISTER
    assert register.header.client != CLIENT, "a number of the old session can never be taken for one of the new"
    session.step(reply(register, session=99), 0)
    _, again = only(session)
    assert (again.header.session, again.header.request, again.header.client) == (99, 1, register.header.client)
    assert event_batches.slice(again.body, 0, 2) == [b"evicted", b"waiting"]
    session.step(reply(again, position=3), 0)
    assert [(outcome.handle, outcome.position) for outcome in outcomes(session)] == [(handle, 3), (waiting, 4)]


def test_sessions_that_evict_each_other_are_begun_later_and_later_and_the_error_says_so() -> None:
    session = registered()
    session.append([b"a"], 0, 2000 * MS)
    session.flush(0)
    now = evictions = 0
    while not (output := session.take_output())[1]:
        for _, message in output[0]:
            if message.header.operation == Operation.REGISTER:
                session.step(reply(message, session=evictions + 20), now)
            else:
                evictions += 1
                session.step(reject(message, Reason.NO_SESSION), now)
        if not output[0]:
            now = session.next_deadline() or 0
            session.tick(now)
    (outcome,) = output[1]
    assert isinstance(outcome.error, SessionEvictedError)
    assert now == 2000 * MS
    assert 5 < evictions < 40


def test_eviction_of_a_request_sent_twice_is_certain_when_both_copies_are_answered() -> None:
    session = registered()
    handle = session.append([b"x"], 0)
    session.flush(0)
    _, request = only(session)
    session.tick(session.next_deadline() or 0)
    target, _ = only(session)
    session.step(reject(request, Reason.NO_SESSION), 0)
    assert sent(session) == [], "the other copy may have been executed before the eviction"
    session.step(reject(request, Reason.NOT_PRIMARY, replica=target), 0)
    _, register = only(session)
    session.step(reply(register, session=99), 0)
    session.step(reply(only(session)[1], position=3), 0)
    assert [(outcome.handle, outcome.position) for outcome in outcomes(session)] == [(handle, 3)]


def test_eviction_of_a_request_sent_twice_is_not_certain_when_a_copy_has_no_answer() -> None:
    session = registered()
    _, request = begin(session)
    session.tick(session.next_deadline() or 0)
    only(session)
    session.step(reject(request, Reason.NO_SESSION), 0)
    assert outcomes(session) == []
    session.tick(session.next_deadline() or 0)
    assert [type(outcome.error) for outcome in outcomes(session)] == [OutcomeUnknownError]
    _, following = begin(session, b"other events", now=10**9)
    assert following.header.operation == Operation.REGISTER


# Busy, cancelled, closed


def test_a_busy_primary_says_how_long_to_wait() -> None:
    waits = []
    for seed in range(20):
        session = make(seed=seed)
        session.append([b"a"], 0, 10**12)
        session.flush(0)
        _, request = only(session)
        session.step(reject(request, Reason.BUSY_QUEUE, count=200), 0)
        waits.append(session.next_deadline() or 0)
        session.tick(waits[-1] - 1)
        assert sent(session) == []
        session.tick(waits[-1])
        assert only(session) == (0, request), "the same primary"
    assert min(waits) >= 200 * MS and max(waits) <= 300 * MS
    assert len(set(waits)) == len(waits), "jittered"


def test_a_wait_without_measure_is_not_believed() -> None:
    session = registered()
    _, request = begin(session)
    session.step(reject(request, Reason.BUSY_QUEUE, count=0xFFFFFFFF), 0)
    assert (session.next_deadline() or 0) <= 2 * session_module.BUSY_WAIT_MAX_NS


@pytest.mark.parametrize("leads", [1, 2])
def test_who_should_lead_a_view_and_can_not_be_asked_keeps_nobody_from_being_asked(leads: int) -> None:
    """A view that nobody is in is told of before its replica dies: the others do not all send to it, one leads."""
    session = registered()
    _, request = begin(session)
    session.step(reject(request, Reason.NOT_PRIMARY, replica=0, view=6), 0)
    session.disconnected(0, 0)
    asked = []
    done: list[Outcome] = []
    while not done and len(asked) < 20:
        sends, done = session.take_output()
        now = session.next_deadline() or 0
        for replica, message in sends:
            asked.append(replica)
            answer = (
                reply(message) if replica == leads else reject(message, Reason.NOT_PRIMARY, replica=replica, view=5)
            )
            session.step(answer, now)
        session.tick(session.next_deadline() or 0)
    assert [outcome.error for outcome in done] == [None], asked


def test_who_was_answered_late_still_tries_more_than_once_before_a_deadline() -> None:
    """A request of an outage was answered after a second. Its view is one that nobody is in: the replica that should
    lead it is asked in vain, and who leads is the last of the others."""
    session = registered()
    for number in range(1, 9):
        _, request = begin(session, now=number * 1000 * MS)
        session.step(reply(request, view=5), (number + 1) * 1000 * MS - 1)
        session.take_output()
    now = 9000 * MS
    for _ in range(3):  # each append has its own deadline, and what one has learned the next one knows
        handle = session.append([b"x"], now, now + 500 * MS)
        session.flush(now)
        asked = []
        done: list[Outcome] = []
        while not done:
            sends, done = session.take_output()
            for replica, message in sends:
                asked.append(replica)
                if replica == 1:
                    session.step(reply(message, replica=1, view=4), now + MS)
                else:
                    session.step(reject(message, Reason.NOT_PRIMARY, replica=replica, view=4), now + MS)
            if not sends and not done:
                now = session.next_deadline() or 0
                session.tick(now)
        assert [(outcome.handle, outcome.error) for outcome in done] == [(handle, None)], asked
        now += 10 * MS


@pytest.mark.parametrize(("reason", "error"), [(Reason.BUSY_QUEUE, BusyError), (Reason.NOT_PRIMARY, UnavailableError)])
def test_what_was_refused_until_its_deadline_is_certainly_not_in_the_log(reason: Reason, error: type) -> None:
    session = registered()
    session.append([b"a"], 0, 1000 * MS)
    session.flush(0)
    now = 0
    while not (output := session.take_output())[1]:
        for target, message in output[0]:
            session.step(reject(message, reason, replica=target), now)
        now = session.next_deadline() or 0
        session.tick(now)
    assert [type(outcome.error) for outcome in output[1]] == [error]
    assert now == 1000 * MS


def test_a_cancelled_append_that_never_left_is_not_sent() -> None:
    session = registered()
    _, request = begin(session, b"under way")
    gone, kept = session.append([b"gone"], 0), session.append([b"kept"], 0)
    session.cancel(gone)
    session.step(reply(request), 0)
    ((_, following),), _ = session.take_output()
    assert event_batches.slice(following.body, 0, following.header.count) == [b"kept"]
    session.cancel(kept)
    session.step(reply(following, position=5), 0)
    assert [(outcome.handle, outcome.position) for outcome in outcomes(session)] == [(kept, 5)], "it was under way"


def test_a_cancelled_append_without_a_connection_is_not_sent_when_there_is_one() -> None:
    session = make(connected=())
    handle = session.append([b"gone"], 0)
    session.flush(0)
    session.cancel(handle)
    session.connected(0, 0)
    session.flush(0)
    assert sent(session) == []
    assert session.idle


def test_a_cancelled_append_that_was_surely_refused_is_not_sent_again() -> None:
    session = registered()
    gone, kept = session.append([b"gone"], 0), session.append([b"kept"], 0)
    session.flush(0)
    _, request = only(session)
    session.cancel(gone)
    session.step(reject(request, Reason.BUSY_QUEUE), 0)
    session.tick(session.next_deadline() or 0)
    _, again = only(session)
    assert event_batches.slice(again.body, 0, again.header.count) == [b"kept"]
    assert again.header.request == request.header.request
    session.step(reply(again, position=1), 0)
    assert [outcome.handle for outcome in outcomes(session)] == [kept]


def test_closing_gives_every_append_its_end() -> None:
    session = registered()
    begin(session, b"under way")
    session.append([b"waits"], 0)
    session.close()
    assert [type(outcome.error) for outcome in outcomes(session)] == [OutcomeUnknownError, UnavailableError]
    assert session.idle
    assert session.next_deadline() is None


def test_the_reply_of_the_state_machine_comes_with_the_outcome() -> None:
    session = registered()
    alone = session.append_batch(event_batches.build([b"a"]), 1, 0, alone=True)
    other = session.append([b"b"], 0)
    session.flush(0)
    _, request = only(session)
    assert request.header.count == 1, "in a request of its own"
    session.step(reply(request, b"the answer"), 0)
    ((_, following),), (outcome,) = session.take_output()
    assert (outcome.handle, outcome.reply) == (alone, b"the answer")
    session.step(reply(following), 0)
    assert [outcome.handle for outcome in outcomes(session)] == [other]


def test_the_latency_that_was_observed_rides_on_the_next_request() -> None:
    session = registered()
    _, request = begin(session, now=10 * MS)
    session.step(reply(request), 12 * MS)
    session.take_output()
    assert begin(session, now=13 * MS)[1].header.latency_us == 2000


def test_the_latency_of_an_append_begins_with_the_call() -> None:
    """Before, it began when the request first left, and the first one told the latency of the registration."""
    session = make(connected=())
    session.append([b"x"], 0)
    session.connected(0, 100 * MS)
    _, register = only(session)
    session.step(reply(register, session=11), 150 * MS)
    _, request = only(session)
    assert request.header.latency_us == 0, "a registration is no append"
    session.step(reject(request, Reason.BUSY_QUEUE, count=20), 160 * MS)
    session.tick(200 * MS)
    ((_, again),) = sent(session)
    session.step(reply(again), 210 * MS)
    session.take_output()
    assert begin(session, now=300 * MS)[1].header.latency_us == 210_000


def test_each_append_of_a_request_is_told() -> None:
    session = registered()
    _, request = begin(session, now=10 * MS)
    for number in range(3):
        session.append([b"waits"], (11 + number) * MS)
    session.step(reply(request), 20 * MS)
    ((_, following),), _ = session.take_output()
    assert following.header.latency_us == 10_000
    session.step(reply(following), 30 * MS)
    session.take_output()
    told = begin(session, now=31 * MS)[1].header
    assert told.flags & TELLS
    assert {(round(latency / MS), count) for latency, count in latencies_of(told)} == {(17, 1), (18, 1), (19, 1)}


def test_failures_are_told_with_the_next_request() -> None:
    session = make(connected=())
    session.append([b"x"], 0, 10 * MS)
    session.tick(10 * MS)
    (failed,) = outcomes(session)
    assert isinstance(failed.error, UnavailableError)
    session.connected(0, 20 * MS)
    session.append([b"y"], 20 * MS)
    session.flush(20 * MS)
    _, register = only(session)
    session.step(reply(register, session=11), 30 * MS)
    assert dict(failures_of(only(session)[1].header)) == {ClientFailure.UNAVAILABLE: 1}


def test_what_a_refused_request_told_is_told_again() -> None:
    session = registered()
    _, request = begin(session, now=10 * MS, deadline=5000 * MS)
    session.step(reply(request), 12 * MS)
    session.take_output()
    _, second = begin(session, now=13 * MS, deadline=60 * MS)
    assert second.header.latency_us == 2000
    session.step(reject(second, Reason.DISK_FULL), 14 * MS)
    session.tick(60 * MS)
    (failed,) = outcomes(session)
    assert isinstance(failed.error, NoSpaceError)
    _, third = begin(session, now=70 * MS)
    assert [(round(latency / MS), count) for latency, count in latencies_of(third.header)] == [(2, 1)]
    assert dict(failures_of(third.header)) == {ClientFailure.NO_SPACE: 1}


def test_the_same_inputs_give_the_same_outputs() -> None:
    def run() -> list[Any]:
        session = registered()
        trace: list[Any] = [begin(session)]
        for _ in range(6):
            now = session.next_deadline() or 0
            session.tick(now)
            trace.append((now, *((target, message.header.raw) for target, message in sent(session))))
        return [item if index else (item[0], item[1].header.raw) for index, item in enumerate(trace)]

    assert run() == run()


# Against a model


class Cluster:
    """What replicas do, as far as a client can tell: one log, sessions, a primary that moves."""

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.view = 0
        self.log: list[bytes] = []
        self.sessions: dict[bytes, tuple[int, int, Message | None]] = {}  # client -> number, request, reply
        self.next_session = 1

    def receive(self, replica: int, message: Message) -> Message | None:
        header = message.header
        if replica != self.view % self.replicas:
            return reject(message, Reason.NOT_PRIMARY, replica, self.view)
        known = self.sessions.get(header.client)
        if header.operation == Operation.REGISTER:
            if known is None:
                known = self.sessions[header.client] = (self.next_session, 0, None)
                self.next_session += 1
            return reply(message, b"", replica, self.view, session=known[0])
        if known is None or known[0] != header.session:
            return reject(message, Reason.NO_SESSION, replica, self.view)
        number, last, stored = known
        if header.request < last:
            return None
        if header.request == last:
            return stored
        assert header.request == last + 1, "request numbers have no gaps"
        answer = reply(message, b"", replica, self.view, position=len(self.log))
        self.log += event_batches.slice(message.body, 0, header.count)
        self.sessions[header.client] = (number, header.request, answer)
        return answer


class SessionMachine(RuleBasedStateMachine):
    """Links lose what is on them when they break, keep order, and never duplicate, as TCP does."""

    replicas = 3

    def __init__(self) -> None:
        super().__init__()
        self.session = make(self.replicas, (), request_bytes_max=400)
        self.cluster = Cluster(self.replicas)
        self.now = 0
        self.connected: set[int] = set()
        self.requests: dict[int, list[Message]] = {replica: [] for replica in range(self.replicas)}
        self.answers: dict[int, list[Message]] = {replica: [] for replica in range(self.replicas)}
        self.appended: dict[int, list[bytes]] = {}
        self.done: dict[int, Outcome] = {}
        self.cancelled: set[int] = set()
        self.never_left: set[int] = set()
        self.sent_events: set[bytes] = set()
        self.counter = 0

    def pump(self) -> None:
        sends, done = self.session.take_output()
        for target, message in sends:
            assert target in self.connected, "sent to nobody"
            self.requests[target].append(message)
            self.sent_events.update(event_batches.slice(message.body, 0, message.header.count) if message.body else ())
        for outcome in done:
            assert outcome.handle not in self.done, "one outcome each"
            self.done[outcome.handle] = outcome
            if outcome.error is None:
                events = self.appended[outcome.handle]
                assert self.cluster.log[outcome.position : outcome.position + len(events)] == events

    @rule(count=st.integers(1, 3), size=st.integers(0, 100), deadline=st.none() | st.integers(0, 400))
    def append(self, count: int, size: int, deadline: int | None) -> None:
        events = []
        for _ in range(count):
            self.counter += 1
            events.append(b"%d:" % self.counter + b"x" * size)
        at = None if deadline is None else self.now + deadline * MS
        self.appended[self.session.append(events, self.now, at)] = events

    @rule(which=st.integers(0, 3))
    def cancel(self, which: int) -> None:
        open_ones = [handle for handle in self.appended if handle not in self.done and handle not in self.cancelled]
        for handle in open_ones[which : which + 1]:
            if not self.session.idle and handle in self.session._waiting and not self.was_sent(handle):
                self.never_left.add(handle)
            self.session.cancel(handle)
            self.cancelled.add(handle)

    def was_sent(self, handle: int) -> bool:
        return bool(set(self.appended[handle]) & self.sent_events)

    @rule()
    def flush(self) -> None:
        self.session.flush(self.now)
        self.pump()

    @rule(replica=st.integers(0, 2))
    def connect(self, replica: int) -> None:
        if replica not in self.connected:
            self.connected.add(replica)
            self.session.connected(replica, self.now)
            self.pump()

    @rule(replica=st.integers(0, 2), arrives=st.integers(0, 3))
    def disconnect(self, replica: int, arrives: int) -> None:
        """Some of what was sent still arrives; no answer does."""
        if replica in self.connected:
            self.connected.discard(replica)
            for message in self.requests[replica][:arrives]:
                self.cluster.receive(replica, message)
            self.requests[replica].clear()
            self.answers[replica].clear()
            self.session.disconnected(replica, self.now)
            self.pump()

    @rule(replica=st.integers(0, 2))
    def request_arrives(self, replica: int) -> None:
        if self.requests[replica]:
            answer = self.cluster.receive(replica, self.requests[replica].pop(0))
            if answer is not None:
                self.answers[replica].append(answer)

    @rule()
    def all_is_well_for_a_while(self) -> None:
        """Connected, and every frame arrives: without this, few runs get beyond the registration."""
        for replica in range(self.replicas):
            self.connect(replica)
        self.flush()
        for _ in range(8):
            for replica in range(self.replicas):
                self.request_arrives(replica)
                self.answer_arrives(replica)

    @rule(first=st.sampled_from(["prepared", "lost", "busy"]), second=st.sampled_from(["too large", "evicted"]))
    def a_retry_is_refused(self, first: str, second: str) -> None:
        """The request in flight meets one fate, its next copy another."""
        self.append(1, 0, None)
        self.flush()
        for fate in (first, second):
            for replica in range(self.replicas):
                if self.requests[replica]:
                    if fate == "prepared":
                        self.request_is_prepared_and_sent_elsewhere(replica)
                    elif fate == "lost":
                        self.requests[replica].pop(0)
                    elif fate == "busy":
                        self.request_is_refused(replica, Reason.BUSY_QUEUE)
                    elif fate == "too large":
                        self.request_is_too_large(replica)
                    else:
                        self.evict()
                        self.request_arrives(replica)
                self.answer_arrives(replica)
            self.next_timer()

    @rule(replica=st.integers(0, 2), reason=st.sampled_from([Reason.BUSY_QUEUE, Reason.NOT_READY, Reason.DRAINING]))
    def request_is_refused(self, replica: int, reason: Reason) -> None:
        if self.requests[replica]:
            message = self.requests[replica].pop(0)
            self.answers[replica].append(reject(message, reason, replica, self.cluster.view))

    @rule(replica=st.integers(0, 2))
    def request_is_prepared_and_sent_elsewhere(self, replica: int) -> None:
        """The primary is voted out with the request in its pipeline; the next view commits it."""
        if self.requests[replica]:
            message = self.requests[replica].pop(0)
            self.cluster.receive(replica, message)
            self.cluster.view += 1
            self.answers[replica].append(
                reject(message, Reason.NOT_PRIMARY, replica, self.cluster.view, flags=FLAG_PREPARED)
            )

    @rule(replica=st.integers(0, 2))
    def request_is_too_large(self, replica: int) -> None:
        """For the limits of one replica; by chance, not by size."""
        if self.requests[replica]:
            message = self.requests[replica].pop(0)
            if message.header.operation == Operation.APPLY:
                self.answers[replica].append(reject(message, Reason.TOO_LARGE, replica, self.cluster.view))

    @rule(replica=st.integers(0, 2))
    def answer_arrives(self, replica: int) -> None:
        if self.answers[replica]:
            self.session.step(self.answers[replica].pop(0), self.now)
            self.pump()

    @rule(by=st.integers(1, 3))
    def view_change(self, by: int) -> None:
        self.cluster.view += by

    @rule()
    def evict(self) -> None:
        self.cluster.sessions.clear()

    @rule(ms=st.integers(1, 600))
    def time_passes(self, ms: int) -> None:
        self.now += ms * MS
        self.session.tick(self.now)
        self.pump()

    @rule()
    def next_timer(self) -> None:
        at = self.session.next_deadline()
        if at is not None:
            self.now = max(self.now, at)
            self.session.tick(self.now)
            self.pump()
            following = self.session.next_deadline()
            assert following is None or following > self.now, "a timer that fired is set anew or gone"

    @invariant()
    def nothing_is_appended_twice_or_out_of_order(self) -> None:
        log = self.cluster.log
        assert len(set(log)) == len(log)
        numbers = [int(event.partition(b":")[0]) for event in log]
        assert numbers == sorted(numbers)

    @invariant()
    def what_failed_for_certain_is_not_in_the_log(self) -> None:
        log = set(self.cluster.log)
        for handle, outcome in self.done.items():
            if isinstance(outcome.error, UnavailableError | RejectedError | EventTooLargeError):
                assert not log & set(self.appended[handle])
        for handle in self.never_left:
            assert not log & set(self.appended[handle]), "cancelled before it left, and sent"

    def teardown(self) -> None:
        """Healed, everything comes to an end, and every outcome is the truth."""
        for replica in range(self.replicas):
            self.connect(replica)
        self.flush()
        for _ in range(200):
            if self.session.idle:
                break
            for replica in range(self.replicas):
                while self.requests[replica]:
                    self.request_arrives(replica)
                while self.answers[replica]:
                    self.answer_arrives(replica)
            self.next_timer()
        assert self.session.idle
        assert self.done.keys() | self.cancelled == self.appended.keys()
        self.nothing_is_appended_twice_or_out_of_order()
        self.what_failed_for_certain_is_not_in_the_log()


@pytest.mark.parametrize("first", ["prepared", "lost", "busy"])
@pytest.mark.parametrize("second", ["too large", "evicted"])
def test_a_retry_that_is_refused_tells_the_truth_whatever_befell_the_first_copy(first: str, second: str) -> None:
    machine = SessionMachine()
    machine.append(1, 0, None)
    machine.all_is_well_for_a_while()
    assert machine.cluster.log
    machine.a_retry_is_refused(first, second)
    machine.append(2, 0, None)
    machine.what_failed_for_certain_is_not_in_the_log()
    machine.teardown()


TestAgainstAModel = SessionMachine.TestCase
TestAgainstAModel.settings = settings(max_examples=50, stateful_step_count=40)
