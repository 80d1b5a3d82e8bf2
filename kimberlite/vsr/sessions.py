"""Client sessions: exactly-once execution with a bounded table.

Only committed requests enter the table, so every replica holds the same one. When it
is full the session whose last commit is oldest goes: the table is kept in the order
of last commit, which is the order of the log and nothing else. Source: VRR section 4,
without its client recovery (+2), which can reuse a request number.
Imports errors and types only.
"""

from __future__ import annotations

import struct
from collections.abc import ItemsView
from typing import NamedTuple

from kimberlite.types import Bytes, ClientId, Operation

REGISTER = Operation.REGISTER  # bound once: a member of an enum is slow to look up
_SESSION = struct.Struct("<16sQQQQII")


class Result(NamedTuple):
    """Outcome of one request of a committed op, as the state machine gave it."""

    client: ClientId
    session: int
    request: int
    operation: int
    position: int
    events: int
    body: bytes


class Session:
    """The last committed request of a client and its reply."""

    __slots__ = ("body", "count", "number", "op", "position", "request")

    def __init__(self, number: int) -> None:
        self.number = number
        self.request = 0
        self.op = number
        self.position = 0
        self.count = 0
        self.body: Bytes = b""


class SessionTable:
    """client id -> Session, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._table: dict[ClientId, Session] = {}  # in order of last commit

    def __len__(self) -> int:
        return len(self._table)

    def items(self) -> ItemsView[ClientId, Session]:
        """Client and session, the next to be evicted first."""
        return self._table.items()

    @property
    def clients(self) -> list[ClientId]:
        """Who has a session, the next to be evicted first."""
        return list(self._table)

    def encode(self) -> bytes:
        """The whole table in the order of eviction: client, number, request, op, position, count and size of
        the reply, then the reply, of each. The same on every replica after the same op."""
        parts: list[Bytes] = []
        for client, session in self._table.items():
            numbers = (session.number, session.request, session.op, session.position, session.count)
            parts += [_SESSION.pack(client, *numbers, len(session.body)), session.body]
        return b"".join(parts)

    @classmethod
    def decode(cls, limit: int, data: bytes) -> SessionTable:
        """The inverse."""
        table = cls(limit)
        offset = 0
        while offset < len(data):
            client, number, request, op, position, count, size = _SESSION.unpack_from(data, offset)
            offset += _SESSION.size
            session = table._table[client] = Session(number)
            session.request, session.op, session.position, session.count = request, op, position, count
            session.body = data[offset : offset + size]
            offset += size
        return table

    def get(self, client: ClientId) -> Session | None:
        return self._table.get(client)

    def commit(self, op: int, result: Result) -> int:
        """Enter a committed request; returns the number of the session evicted for it, or 0.

        A REGISTER of a client that has a session changes nothing. A request of a session
        that was evicted while it was in the pipeline is executed but not recorded, and so is one that
        is not the next of its session: no honest primary prepares that, and it must end nobody.
        """
        session = self._table.get(result.client)
        if result.operation == REGISTER:
            if session is not None:
                return 0
            evicted = 0
            if len(self._table) >= self.limit:
                oldest = next(iter(self._table))
                evicted = self._table.pop(oldest).number
            self._table[result.client] = Session(op)
            return evicted
        if session is None or session.number != result.session or result.request != session.request + 1:
            return 0
        session.request = result.request
        session.op = op
        session.position = result.position
        session.count = result.events
        session.body = result.body
        del self._table[result.client]
        self._table[result.client] = session
        return 0
