"""Planted bugs of requests, sessions and replies, and of the client."""

from __future__ import annotations

from kimberlite._fast import framing
from kimberlite.client import session as client
from kimberlite.client.appends import Append, Request
from kimberlite.client.routing import Routing
from kimberlite.errors import UnavailableError
from kimberlite.storage import store
from kimberlite.types import Message, Operation
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import execution
from kimberlite.vsr.leading import Leading, _send_reply
from kimberlite.vsr.requests import Requests
from kimberlite.vsr.sessions import Result, SessionTable
from kimberlite.vsr.sessions import Session as SessionEntry
from kimberlite.vsr.state import Clock, State
from kimberlite.vsr.work import Admission, Apply


@canary("a request that is under way is prepared a second time")
def _in_flight_prepared_twice() -> list[Patch]:
    return [(Requests, "is_in_flight", lambda self, message: False)]


@canary("a request that is committed is prepared again")
def _session_dedupe_off() -> list[Patch]:
    original = Leading.propose

    def propose(self: Leading, s: State, message: Message) -> Admission:
        header = message.header
        session = s.sessions.get(header.client)
        known = session is not None and session.number == header.session and header.request == session.request
        if known and header.operation == Operation.APPLY and self.ready:
            self.requests.put(message, s.now)
            return Admission.ACCEPTED
        return original(self, s, message)

    return [(Leading, "propose", propose)]


@canary("a repeated request is answered with the reply of another client")
def _reply_of_another_request() -> list[Patch]:
    original = Leading.resend_reply

    def resend_reply(self: Leading, s: State, message: Message, session: SessionEntry) -> None:
        newest = s.sessions.get(s.sessions.clients[-1])
        original(self, s, message, newest if newest is not None else session)

    return [(Leading, "resend_reply", resend_reply)]


@canary("the session evicted is the one registered first, not the one idle longest")
def _eviction_by_registration() -> list[Patch]:
    def commit(self: SessionTable, op: int, result: Result) -> int:
        session = self._table.get(result.client)
        if result.operation == Operation.REGISTER or session is None or session.number != result.session:
            return original(self, op, result)
        order = list(self._table)
        evicted = original(self, op, result)
        self._table = {client: self._table[client] for client in order}
        return evicted

    original = SessionTable.commit
    return [(SessionTable, "commit", commit)]


@canary("each replica evicts as its own table happens to be ordered")
def _eviction_by_hash_order() -> list[Patch]:
    original = SessionTable.commit

    def commit(self: SessionTable, op: int, result: Result) -> int:
        full = len(self._table) >= self.limit
        if full and result.operation == Operation.REGISTER and result.client not in self._table:
            # What iterating a set gives in one process and not in another.
            self._table = dict(sorted(self._table.items(), key=lambda item: (id(self) >> 4) ^ item[0][0]))
        return original(self, op, result)

    return [(SessionTable, "commit", commit)]


@canary("a client gives a retry a new number")
def _retry_under_a_new_number() -> list[Patch]:
    original = client.Session._send

    def send(self: client.Session, now: int) -> None:
        request = self._request
        if request is not None and request.attempts and request.message.header.operation == Operation.APPLY:
            self._request_number += 1
            header, body = request.message.header, request.message.body
            renumbered = framing.make_header(
                body,
                cluster=header.cluster,
                command=header.command,
                client=header.client,
                session=header.session,
                request=self._request_number,
                operation=header.operation,
                count=header.count,
            )
            request.message = Message(renumbered, body)
        original(self, now)

    return [(client.Session, "_send", send)]


@canary("a client sends again after an eviction though another copy has no answer yet")
def _sent_again_after_an_eviction() -> list[Patch]:
    original = client.Session._without_session

    def without_session(self: client.Session, request: Request, now: int) -> None:
        request.refused = request.attempts
        original(self, request, now)

    return [(client.Session, "_without_session", without_session)]


@canary("a client reports a timeout as a refusal")
def _timeout_reported_as_refusal() -> list[Patch]:
    return [(client, "OutcomeUnknownError", UnavailableError)]


@canary("a client asks the primary of its view and the next replica by turns, and nobody else")
def _two_replicas_by_turns() -> list[Patch]:
    def another(self: Routing, attempts: int, now: int) -> int:
        self.next()
        return self.target

    return [(Routing, "another", another)]


@canary("an append that has expired leaves no place for its events")
def _expired_leaves_no_place() -> list[Patch]:
    original = Append.keep_place

    def keep_place(self: Append) -> None:
        original(self)
        self.count = 0

    return [(Append, "keep_place", keep_place)]


@canary("a request that was taken back keeps its number")
def _taken_back_keeps_its_number() -> list[Patch]:
    original = client.Session._take_back

    def take_back(self: client.Session, request: Request, now: int) -> None:
        number = self._request_number
        original(self, request, now)
        self._request_number = number

    return [(client.Session, "_take_back", take_back)]


@canary("timestamps are what the clock says")
def _timestamp_repeats() -> list[Patch]:
    return [(Clock, "stamp", lambda self, now, previous: now + self.offset)]


@canary("a client is answered before its request is committed")
def _reply_before_commit() -> list[Patch]:
    original = Leading.prepare

    def prepare(self: Leading, s: State, batch: list[tuple[Message, int]]) -> None:
        original(self, s, batch)
        head = s.log.headers[s.log.op]
        position = head.position
        for request, _ in batch:
            header = request.header
            if header.operation == Operation.APPLY:
                _send_reply(s, request, header.session, head.op, position, header.count, b"")
            position += header.count

    return [(Leading, "prepare", prepare)]


@canary("what is durable here is executed, committed or not")
def _executed_before_commit() -> list[Patch]:
    def hand_out(s: State) -> None:
        log, done = s.log, s.execution
        for op in range(done.emitted + 1, log.durable + 1):
            if op in log.faulty:
                break
            s.outbox.work.apply.append(Apply(op, log.headers.get(op), log.bodies.get(op)))
            done.emitted = op

    return [(execution, "hand_out", hand_out)]


@canary("a reply that is sent again has lost its body")
def _reply_sent_again_without_its_body() -> list[Patch]:
    def resend_reply(self: Leading, s: State, message: Message, session: SessionEntry) -> None:
        _send_reply(s, message, session.number, session.op, session.position, session.count, b"")

    return [(Leading, "resend_reply", resend_reply)]


@canary("an entry that a peer asks for by its identity is read by its number")
def _served_by_number_alone() -> list[Patch]:
    original = store.Store.read

    def read(self: store.Store, op: int, checksum: bytes | None = None, ahead: int = 0) -> Message | None:
        return original(self, op, None, ahead)

    return [(store.Store, "read", read)]
