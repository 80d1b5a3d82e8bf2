"""Prepares and headers in a chain, and every other frame that a core gets.

Everything is of one cluster, CLUSTER, whose hash chain begins with ROOT, and is well-formed: `fields` of any function
overwrite what it would put in, so that a test also makes what no honest replica sends. `client` is a small number
here; its identity on the wire is that byte sixteen times. A `by` is the index of who sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kimberlite._fast import events
from kimberlite._fast.framing import make_header
from kimberlite.types import ZERO16, Birth, Command, Header, Identity, Message, Operation, root_header
from kimberlite.vsr.codec import Evidence, encode_evidence, encode_headers
from kimberlite.vsr.record import Address, Record, Settings, bind, born, draft, encode

CLUSTER = b"l" * 16
ROOT = root_header(make_header, CLUSTER)
MS = 1_000_000


def frame(command: Command, body: bytes = b"", **fields: Any) -> Message:
    return Message(make_header(body, **{"cluster": CLUSTER, "command": command, **fields}), body)


# The log


def prepare(after: Header = ROOT, body: bytes = b"", *, view: int = 0, replicas: int = 3, **fields: Any) -> Message:
    """The entry behind `after`, as the primary of `view` makes it: one that does nothing, unless `fields` say more."""
    following = {
        "replica": view % replicas,
        "view": view,
        "op": after.op + 1,
        "parent": after.checksum,
        "operation": Operation.NOOP,
        "position": after.position + after.count,
        "timestamp": after.timestamp + 1,
    }
    return frame(Command.PREPARE, body, **{**following, **fields})


def prepares(length: int, after: Header = ROOT, body: bytes = b"", **fields: Any) -> list[Message]:
    """So many entries behind `after`, each chained to the one before."""
    made: list[Message] = []
    for _ in range(length):
        made.append(prepare(after, body, **fields))
        after = made[-1].header
    return made


def chain(length: int, after: Header = ROOT, body: bytes = b"", **fields: Any) -> list[Header]:
    """`after`, and the headers of so many entries behind it: behind the root, the index is the op."""
    return [after, *(message.header for message in prepares(length, after, body, **fields))]


def appended(after: Header, *payloads: bytes, client: int = 1, **fields: Any) -> Message:
    """The entry behind `after` that appends these events for a client of session 1."""
    given = {
        "operation": Operation.APPLY,
        "client": bytes([client]) * 16,
        "session": 1,
        "request": after.op + 1,
        "count": len(payloads),
    }
    return prepare(after, events.build(payloads), **{**given, **fields})


# From clients


def request(number: int, *payloads: bytes, client: int = 1, session: int = 0, **fields: Any) -> Message:
    """To append these events; to open a session when there are none."""
    given = {
        "client": bytes([client]) * 16,
        "session": session,
        "request": number,
        "operation": Operation.APPLY if payloads else Operation.REGISTER,
        "count": len(payloads),
    }
    return frame(Command.REQUEST, events.build(payloads) if payloads else b"", **{**given, **fields})


# From replicas


def heartbeat(view: int = 0, op: int = 0, commit: int = 0, *, replicas: int = 3, **fields: Any) -> Message:
    given = {"replica": view % replicas, "view": view, "op": op, "commit": commit}
    return frame(Command.COMMIT, **{**given, **fields})


def prepare_ok(by: int, head: Header, view: int, **fields: Any) -> Message:
    """The log of that backup is on its disk up to `head`."""
    return frame(Command.PREPARE_OK, **{"replica": by, "view": view, "op": head.op, "context": head.checksum, **fields})


def ping(by: int, view: int = 0, op: int = 0, **fields: Any) -> Message:
    return frame(Command.PING, **{"replica": by, "view": view, "op": op, **fields})


def headers_of(by: int, headers: Sequence[Header], nonce: int, view: int = 0, **fields: Any) -> Message:
    """The answer to the question of that nonce; the log of who gives it ends with the last of the headers."""
    first, last = (headers[0].op, headers[-1].op) if headers else (0, 0)
    given = {"replica": by, "view": view, "op": first, "count": len(headers), "position": last, "nonce": nonce}
    return frame(Command.HEADERS, encode_headers(headers), **{**given, **fields})


def start_view_change(by: int, view: int, **fields: Any) -> Message:
    """A vote to leave `view`."""
    return frame(Command.START_VIEW_CHANGE, **{"replica": by, "view": view, **fields})


def do_view_change(by: int, view: int, evidence: Evidence | Sequence[Header], **fields: Any) -> Message:
    """What a replica that has left for `view` says of its log: evidence, or the headers at its end, all of whose
    entries it has."""
    if not isinstance(evidence, Evidence):
        every = (1 << len(evidence)) - 1
        evidence = Evidence(evidence[0].op, every, every, 0, tuple(evidence))
    op = evidence.headers[-1].op if evidence.headers else evidence.first
    given = {"replica": by, "view": view, "op": op, "count": len(evidence.headers)}
    return frame(Command.DO_VIEW_CHANGE, encode_evidence(evidence), **{**given, **fields})


def start_view(view: int, suffix: Sequence[Header], nonce: int, *, replicas: int = 3, **fields: Any) -> Message:
    """The log of `view` ends with these headers: the answer to the evidence of that nonce."""
    given = {
        "replica": view % replicas,
        "view": view,
        "log_view": view,
        "op": suffix[-1].op,
        "count": len(suffix),
        "nonce": nonce,
    }
    return frame(Command.START_VIEW, encode_headers(suffix), **{**given, **fields})


# Who replicas are


def incarnation(index: int, formatting: int = 0) -> bytes:
    return bytes([index + 1, formatting + 1]) * 8


def _draft(count: int, origin: bytes = ROOT.checksum) -> Record:
    addresses = [(Address(f"replica-{i}", 1), Address(f"replica-{i}", 2)) for i in range(count)]
    return draft(Settings(64, 1, 1, 1, 1, 1, 1), origin, addresses)


def unborn(index: int, count: int, formatting: int = 0) -> Identity:
    """Of a disk that has just been formatted, for the so-manyth time from 0, by somebody who knows the addresses."""
    own = incarnation(index, formatting)
    return Identity(slot=index, incarnation=own, record=encode(bind(_draft(count), index, own)))


def formed(index: int, count: int, formatting: int = 0) -> Identity:
    """Of a member of a cluster that is born; later disks are nobody's."""
    if formatting:
        return unborn(index, count, formatting)
    record = _draft(count)
    for slot in range(count):
        record = bind(record, slot, incarnation(slot))
    record = born(record)
    return Identity(Birth.FORMED, index, incarnation(index), record.birth, record=encode(record))


def converted(index: int, count: int) -> Identity:
    """Of data of the first release that meets this one."""
    own = incarnation(index)
    return Identity(slot=index, incarnation=own, record=encode(bind(_draft(count, ZERO16), index, own)))
