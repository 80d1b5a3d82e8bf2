"""Planted bugs of requests, sessions and replies, and of the client."""

from __future__ import annotations

from kimberlite._fast import framing
from kimberlite.client import session as client
from kimberlite.errors import UnavailableError
from kimberlite.storage import store
from kimberlite.types import Message, Operation, Status
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import normal
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.sessions import Result, SessionTable
from kimberlite.vsr.sessions import Session as SessionEntry
from kimberlite.vsr.work import Admission, Apply


@canary("a request that is under way is prepared a second time")
def _in_flight_prepared_twice() -> list[Patch]:
    return [(normal, "is_in_flight", lambda r, message: False)]


@canary("a request that is committed is prepared again")
def _session_dedupe_off() -> list[Patch]:
    original = normal.propose

    def propose(r: Replica, message: Message) -> Admission:
        header = message.header
        session = r.sessions.get(header.client)
        known = session is not None and session.number == header.session and header.request == session.request
        if (
            known
            and header.operation == Operation.APPLY
            and r.is_primary
            and r.scope.ready
            and r.status == Status.NORMAL
        ):
            r.queue.append((message, r.now))
            r.queue_bytes += len(message.body)
            return Admission.ACCEPTED
        return original(r, message)

    return [(normal, "propose", propose)]


@canary("a repeated request is answered with the reply of another client")
def _reply_of_another_request() -> list[Patch]:
    original = normal._resend_reply

    def resend_reply(r: Replica, message: Message, session: SessionEntry) -> None:
        newest = r.sessions.get(r.sessions.clients[-1])
        original(r, message, newest if newest is not None else session)

    return [(normal, "_resend_reply", resend_reply)]


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


@canary("a client reports a timeout as a refusal")
def _timeout_reported_as_refusal() -> list[Patch]:
    return [(client, "OutcomeUnknownError", UnavailableError)]


@canary("a client asks the primary of its view and the next replica by turns, and nobody else")
def _two_replicas_by_turns() -> list[Patch]:
    return [(client.Session, "_another", lambda self, preferred, attempts: self._next_target())]


@canary("timestamps are what the clock says")
def _timestamp_repeats() -> list[Patch]:
    return [(normal, "next_timestamp", lambda r, previous: r.now + r.clock_offset)]


@canary("a client is answered before its request is committed")
def _reply_before_commit() -> list[Patch]:
    original = normal._prepare

    def prepare(r: Replica, batch: list[tuple[Message, int]]) -> None:
        original(r, batch)
        head = r.log.headers[r.log.op]
        position = head.position
        for request, _ in batch:
            header = request.header
            if header.operation == Operation.APPLY:
                normal._send_reply(r, request, header.session, head.op, position, header.count, b"")
            position += header.count

    return [(normal, "_prepare", prepare)]


@canary("what is durable here is executed, committed or not")
def _executed_before_commit() -> list[Patch]:
    def emit_applies(self: Replica) -> None:
        for op in range(self.apply_emitted + 1, self.log.durable + 1):
            if op in self.log.faulty:
                break
            self._work.apply.append(Apply(op, self.log.headers.get(op), self.log.bodies.get(op)))
            self.apply_emitted = op

    return [(Replica, "_emit_applies", emit_applies)]


@canary("a reply that is sent again has lost its body")
def _reply_sent_again_without_its_body() -> list[Patch]:
    def resend_reply(r: Replica, message: Message, session: SessionEntry) -> None:
        normal._send_reply(r, message, session.number, session.op, session.position, session.count, b"")

    return [(normal, "_resend_reply", resend_reply)]


@canary("an entry that a peer asks for by its identity is read by its number")
def _served_by_number_alone() -> list[Patch]:
    original = store.Store.read

    def read(self: store.Store, op: int, checksum: bytes | None = None, ahead: int = 0) -> Message | None:
        return original(self, op, None, ahead)

    return [(store.Store, "read", read)]
