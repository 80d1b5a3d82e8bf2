"""What a replica can prove of its uncommitted log to whoever is to lead the next view.

Imports errors, types and vsr only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from kimberlite.errors import FrameError
from kimberlite.types import FrameReason, Header, Message
from kimberlite.vsr import bounds
from kimberlite.vsr.choice import DoViewChange
from kimberlite.vsr.codec import SUFFIX_OPS_MAX, Evidence, decode_evidence, follows

if TYPE_CHECKING:
    from kimberlite.vsr.log import Log
    from kimberlite.vsr.state import State


def suffix_first(s: State) -> int:
    """The first op that a view change tells of: what is committed, unless that is too far below the head."""
    return max(min(s.commit_max, s.log.op), s.log.op - SUFFIX_OPS_MAX + 1)


def own(s: State) -> Evidence:
    """Headers of the uncommitted suffix, what of it is on this disk, and what never was."""
    log = s.log
    first = suffix_first(s)
    known = present = nack = 0
    headers: list[Header] = []
    for op in range(first, log.op + 1):
        bit = 1 << (op - first)
        header = log.headers.get(op)
        if header is not None:
            known |= bit
            headers.append(header)
            if log.holds(op):
                present |= bit
        if is_certainly_absent(log, op):
            nack |= bit
    return Evidence(first, known, present, nack, tuple(headers))


def is_certainly_absent(log: Log, op: int) -> bool:
    """Its header is known, it was never written here, and nothing here is damaged."""
    return op in log.headers and not log.holds(op) and op not in log.faulty and op not in log.candidates


def read(s: State, message: Message) -> DoViewChange:
    """The evidence of another replica, or of this one. Raises FrameError."""
    header = message.header
    evidence = decode_evidence(s.codec, message.body)
    check(s, header, evidence)
    return DoViewChange(header.replica, header.log_view, header.op, header.commit, evidence, header.nonce)


def check(s: State, header: Header, evidence: Evidence) -> None:
    """That the evidence is of the end of one log, of which the frame says the head. Raises FrameError."""
    span = header.op - evidence.first + 1
    bits = evidence.known | evidence.present | evidence.nack
    if not 0 < span <= SUFFIX_OPS_MAX or bits >> span or evidence.present & ~evidence.known:
        raise FrameError(
            f"evidence of ops {evidence.first} to {header.op} speaks of others", reason=FrameReason.BAD_SIZE
        )
    for known in evidence.headers:
        bounds.check_header(s, known, header.log_view)
    for before, after in pairwise(evidence.headers):
        if after.op == before.op + 1 and not follows(before, after):
            raise FrameError(f"evidence of ops {before.op} and {after.op} is no chain", reason=FrameReason.BAD_SIZE)
