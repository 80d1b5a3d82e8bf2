"""The choice of the log with which a view begins: pure functions of the evidence.

Evidence carries headers of the uncommitted suffix with what is *present* and what was certainly *never acknowledged*
(nack), so that a damaged entry is told from an absent one (Protocol-Aware Recovery, FAST'18).
Imports types, codec and membership only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kimberlite.types import Header
from kimberlite.vsr.codec import Evidence
from kimberlite.vsr.members import Membership, bit_set


@dataclass(frozen=True, slots=True)
class DoViewChange:
    """One replica's evidence."""

    replica: int
    log_view: int
    op: int
    commit: int
    evidence: Evidence
    nonce: int = 0  # for the start_view that answers it

    def header(self, op: int) -> Header | None:
        for header in self.evidence.headers:
            if header.op == op:
                return header
        return None

    def bit(self, bits: int, op: int) -> bool:
        return op >= self.evidence.first and bool(bits >> (op - self.evidence.first) & 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """The canonical log, or why it cannot be chosen yet.

    suffix: headers commit..head when chosen, else empty. stuck_op: the op whose copies
    and nacks are both too few, 0 when chosen. dropped: ops cut by a nack quorum.
    """

    commit: int
    suffix: tuple[Header, ...]
    stuck_op: int = 0
    dropped: int = 0
    log_view: int = 0


def canonical_log_view(messages: Iterable[DoViewChange]) -> int:
    """The newest log wins: one view's log extends that of every view before it."""
    return max(message.log_view for message in messages)


def highest_commit(messages: Iterable[DoViewChange]) -> int:
    """Commit numbers are facts, whoever knows them."""
    return max(message.commit for message in messages)


def made_in(op: int, header: Header | None, log_view: int, begun: int) -> int:
    """The earliest view in which what the canonical log has under `op` can have been made: that of its header, when
    that is known. begun: the lowest head of a log of `log_view`, the view of the canonical log. All of them held at
    least what that view began with, and have only grown: what stands above it was made in that view."""
    if header is not None:
        return header.view
    return log_view if op > begun else 0


def never_acknowledged(message: DoViewChange, op: int, header: Header | None, made: int) -> bool:
    """Whether this replica certainly never acknowledged `op` under that identity, which was made in view `made` or
    later: who acknowledges in a view has its log, and remembers that."""
    if op > message.op or message.log_view < made:
        return True
    own = message.header(op)
    if own is not None and header is not None and own.checksum != header.checksum:
        return True
    return message.bit(message.evidence.nack, op)


def has_copy(message: DoViewChange, op: int, header: Header) -> bool:
    own = message.header(op)
    return own is not None and own.checksum == header.checksum and message.bit(message.evidence.present, op)


def choose(messages: list[DoViewChange], membership: Membership) -> Choice:
    """Choose the log of the new view from at least a view-change quorum of evidence.

    The ops up to the highest known commit number are beyond doubt. Above, lowest first:
    a nack quorum cuts the log there; a known header with a copy keeps the op; anything else
    waits for more evidence (stuck_op), and is never cut.
    """
    log_view = canonical_log_view(messages)
    canonical = [message for message in messages if message.log_view == log_view]
    commit = highest_commit(messages)
    begun, head = min(message.op for message in canonical), max(message.op for message in canonical)
    everybody = bit_set(message.replica for message in messages)
    suffix: list[Header] = []
    for op in range(commit, head + 1):
        header = next((known for m in canonical if (known := m.header(op)) is not None), None)
        if op == commit:
            if header is None:
                return Choice(commit, (), stuck_op=op, log_view=log_view)
            suffix.append(header)
            continue
        made = made_in(op, header, log_view, begun)
        nacks = bit_set(m.replica for m in messages if never_acknowledged(m, op, header, made))
        is_there = header is not None and any(has_copy(m, op, header) for m in messages)
        if membership.may_drop(nacks, everybody, made, is_there):
            return Choice(commit, tuple(suffix), dropped=head - op + 1, log_view=log_view)
        if header is None or not is_there:
            return Choice(commit, (), stuck_op=op, log_view=log_view)
        suffix.append(header)
    if head < commit:
        return Choice(commit, (), stuck_op=head + 1, log_view=log_view)
    return Choice(commit, tuple(suffix), log_view=log_view)
