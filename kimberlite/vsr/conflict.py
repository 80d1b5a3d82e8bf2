"""A heartbeat that names another identity for an op than this replica's log has.

One of the two is wrong: the frame is forged, or the logs of one view differ, which must never be. A
frame alone can not tell. So nothing at or above that op is taken for committed or executed any more, all
peers are asked for the headers up to it, and status and metrics show both identities, until

- a chain of headers that meets this log below the op says what the frame said: then this log is wrong,
  what is above can not be trusted, and the process ends (InvariantError);
- the replica that the frame named as its sender says, in its chain, what this log says, of that op or of one above,
  which names all below it: forged. Of one above it is asked when it has trimmed that op;
- the log of another view is installed: what the view change chose is right.

An answer counts only with the nonce of the question, which goes to the configured addresses: who can
not read there can not answer. Imports errors, types and vsr only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kimberlite.errors import invariant
from kimberlite.types import ZERO16, Checksum, Command, Header
from kimberlite.vsr.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kimberlite.vsr.state import State

CONFLICT = "conflict"  # a kind of question, for s.repairs.pacing
ASK_OPS = 64  # headers asked for: the op and what is below it; memory holds more


@dataclass(slots=True)
class Conflict:
    """Two identities of one op."""

    op: int
    own: Checksum
    named: Checksum
    replica: int  # whose heartbeat named it
    asked_at: int = 0  # when the peers were asked last
    nonce: int = 0  # of that question

    def __str__(self) -> str:
        return f"op {self.op} is {self.own.hex()} here and {self.named.hex()} in a heartbeat of replica {self.replica}"


def look(s: State, header: Header) -> None:
    """What a heartbeat of this view's primary says of the op `position`."""
    own = s.log.headers.get(header.position)
    is_other = own is not None and header.position <= s.log.linked and header.context not in (ZERO16, own.checksum)
    if own is not None and is_other and can_be_answered(s, header.position):
        known = s.conflict
        if known is None or header.position < known.op:
            s.conflict = Conflict(header.position, own.checksum, header.context, header.replica)
            s.emit(EventKind.IDENTITY_CONFLICT, header.position, header.replica)
    conflict = s.conflict
    if conflict is None or s.now - conflict.asked_at <= s.config.timing.repair_expiry_ns:
        return
    if s.repairs.pacing.may_ask((CONFLICT, conflict.op), s.now):
        s.repairs.pacing.brought_nothing((CONFLICT, conflict.op), s.now)  # unless the answer resolves it
        _ask(s, conflict, first_answer(s, conflict, header))


def can_be_answered(s: State, op: int) -> bool:
    """Whether others may still have the headers that settle it. Who names another root than that of this cluster, or
    an op that was trimmed, is wrong: what this log began with is what everybody's did."""
    return op >= s.log.first_op


def first_answer(s: State, conflict: Conflict, beat: Header) -> int:
    """The lowest op of which the primary can say something that settles it: that of the conflict, unless its log
    begins behind that, as a heartbeat says."""
    return max(conflict.op, min(beat.request, s.log.linked))


def _ask(s: State, conflict: Conflict, last: int) -> None:
    conflict.asked_at, conflict.nonce = s.now, s.next_nonce()
    first = first_asked(s, last)
    s.broadcast(s.make(Command.REQUEST_HEADERS, op=first, position=last, nonce=conflict.nonce))


def first_asked(s: State, last: int) -> int:
    """One answer reaches from there to `last`: what it leaves out is at the end of what was asked for."""
    return max(last - min(ASK_OPS, s.config.headers_per_message) + 1, 1)


def on_headers(s: State, header: Header, chain: Sequence[Header]) -> bool:
    """Whether a chain of headers answers what was asked because of a conflict. Raises InvariantError when it
    confirms it."""
    conflict = s.conflict
    if conflict is None or header.nonce != conflict.nonce:
        return False
    below = [known for known in chain if known.op <= conflict.op]
    if below and below[-1].op == conflict.op and _meets(s, below):
        invariant(
            below[-1].checksum != conflict.named,
            "the committed entry is the same on every replica",
            op=conflict.op,
            own=conflict.own.hex(),
            committed=conflict.named.hex(),
            view=s.view,
            says=header.replica,
        )
    if header.replica == conflict.replica and any(_is_own(s, known) for known in chain if known.op >= conflict.op):
        s.conflict = None
    return True


def _is_own(s: State, header: Header) -> bool:
    own = s.log.headers.get(header.op)
    return own is not None and own.checksum == header.checksum


def _meets(s: State, chain: Sequence[Header]) -> bool:
    """Whether the chain has an op below its last in common with this log."""
    below = s.log.headers.get(chain[0].op - 1)
    if below is not None and chain[0].parent == below.checksum:
        return True
    return any(_is_own(s, header) for header in chain[:-1])
