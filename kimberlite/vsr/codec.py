"""Bodies of the frames that carry headers, and what the core needs from outside to make frames.

The core imports no codec: a Codec is handed in (the compiled one in production, the
same in the simulator). Imports errors and types only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from kimberlite.errors import FrameError
from kimberlite.types import HEADER_SIZE, Bytes, ClientId, FrameReason, Header, HeaderFactory

SUFFIX_OPS_MAX = 48  # ops that a view-change frame describes: one bit each in 64-bit sets
_EVIDENCE = struct.Struct("<QQQQ")
_TRIM = struct.Struct("<QQ")


class ClientRequest(NamedTuple):
    """One client's request inside a prepare (see _fast/events)."""

    client: ClientId
    session: int
    request: int
    operation: int
    events: int
    body: Bytes


class Codec(Protocol):
    """Functions of the state of nothing: same input, same output."""

    make_header: HeaderFactory

    def decode_headers(self, buffer: Bytes) -> list[Header]:
        """Verified headers of a concatenation; raises FrameError."""

    def pack_requests(self, requests: Sequence[ClientRequest]) -> bytes:
        """Body of a BATCH prepare."""


class Evidence(NamedTuple):
    """What a do_view_change says of the ops `first` .. `first + n - 1`.

    Bit i of each set speaks of op first + i. `known`: the header is given. `present`: the
    entry is on this replica's disk. `nack`: this replica certainly never acknowledged it.
    """

    first: int
    known: int
    present: int
    nack: int
    headers: tuple[Header, ...]


def encode_evidence(evidence: Evidence) -> bytes:
    fixed = _EVIDENCE.pack(evidence.first, evidence.known, evidence.present, evidence.nack)
    return fixed + b"".join(header.raw for header in evidence.headers)


def decode_evidence(codec: Codec, body: Bytes) -> Evidence:
    """Raises FrameError when the sets and the headers do not agree."""
    if len(body) < _EVIDENCE.size:
        raise FrameError(f"view-change evidence of {len(body)} bytes is too short", reason=FrameReason.BAD_SIZE)
    first, known, present, nack = _EVIDENCE.unpack_from(body)
    headers = tuple(codec.decode_headers(memoryview(body)[_EVIDENCE.size :]))
    ops = [first + bit for bit in range(64) if known >> bit & 1]
    if [header.op for header in headers] != ops or present & nack:
        raise FrameError("view-change evidence contradicts itself", reason=FrameReason.BAD_SIZE)
    return Evidence(first, known, present, nack, headers)


def encode_headers(headers: Sequence[Header]) -> bytes:
    return b"".join(header.raw for header in headers)


def follows(before: Header, after: Header) -> bool:
    """Whether `after` can stand in a log right behind `before`: by its parent, and by what is counted along a log."""
    return (
        after.parent == before.checksum
        and after.op == before.op + 1
        and after.position == before.position + before.count
        and after.view >= before.view
        and after.timestamp >= before.timestamp
    )


def decode_chain(codec: Codec, body: Bytes) -> list[Header]:
    """Headers of consecutive ops, each the parent of the next. Raises FrameError."""
    if not body or len(body) % HEADER_SIZE:
        raise FrameError(f"{len(body)} bytes are no list of headers", reason=FrameReason.BAD_SIZE)
    headers = codec.decode_headers(body)
    for before, after in pairwise(headers):
        if not follows(before, after):
            raise FrameError(f"headers of ops {before.op} and {after.op} are not chained", reason=FrameReason.BAD_SIZE)
    return headers


def encode_trim(first_op: int, first_position: int) -> bytes:
    """Body of a TRIM prepare: the log begins with that op, whose first event has that position."""
    return _TRIM.pack(first_op, first_position)


def decode_trim(body: Bytes) -> tuple[int, int]:
    """The inverse. Raises FrameError."""
    if len(body) != _TRIM.size:
        raise FrameError(f"a trim of {len(body)} bytes has {_TRIM.size}", reason=FrameReason.BAD_SIZE)
    first_op, first_position = _TRIM.unpack(body)
    return first_op, first_position
