"""The session table: committed facts only, bounded, evicted in the order of the log."""

from __future__ import annotations

from kimberlite.types import Operation
from kimberlite.vsr.sessions import Result, SessionTable


def register(client: bytes) -> Result:
    return Result(client, 0, 0, Operation.REGISTER, 0, 0, b"")


def request(client: bytes, session: int, number: int) -> Result:
    return Result(client, session, number, Operation.APPLY, 10 * number, 1, b"reply %d" % number)


def test_the_session_number_is_the_op_that_registered_it() -> None:
    table = SessionTable(4)
    assert table.commit(17, register(b"a")) == 0
    session = table.get(b"a")
    assert session is not None
    assert (session.number, session.request) == (17, 0)


def test_registering_twice_changes_nothing() -> None:
    table = SessionTable(4)
    table.commit(1, register(b"a"))
    table.commit(2, request(b"a", 1, 1))
    table.commit(3, register(b"a"))
    session = table.get(b"a")
    assert session is not None
    assert (session.number, session.request, session.body) == (1, 1, b"reply 1")


def test_the_least_recently_committed_session_is_evicted() -> None:
    table = SessionTable(2)
    table.commit(1, register(b"a"))
    table.commit(2, register(b"b"))
    table.commit(3, request(b"a", 1, 1))
    assert table.commit(4, register(b"c")) == 2
    assert table.get(b"b") is None
    assert table.get(b"a") is not None
    assert len(table) == 2


def test_a_request_commits_once_and_in_order() -> None:
    table = SessionTable(2)
    table.commit(1, register(b"a"))
    table.commit(2, request(b"a", 1, 1))
    for number in (0, 1, 3, 2**64 - 1):
        assert table.commit(3, request(b"a", 1, number)) == 0, "no honest primary prepares it, and it ends nobody"
    session = table.get(b"a")
    assert session is not None and (session.request, session.op) == (1, 2)


def test_a_request_of_an_evicted_session_is_not_recorded() -> None:
    table = SessionTable(1)
    table.commit(1, register(b"a"))
    table.commit(2, register(b"b"))
    assert table.commit(3, request(b"a", 1, 1)) == 0
    assert table.get(b"a") is None
