"""When a primary gives its view up.

Two things make a primary useless to its clients: nothing is committed (`is_stuck`), or what the others commit is
not executed here (`lags`): its disk hangs, or is much slower than theirs, or a damaged entry is not repaired.
Then it falls silent and asks to be replaced: this module says when, Leading.abdicate does it.

It does not for a successor that would be no better:

- while a quorum has the oldest op, or comes nearer to it;
- while its disk is slow, and theirs took about as long for the same op; what takes long here alone adds up from one
  op to the next, for a client that appends one event after another waits for each of them. A moment in which nothing
  is asked of it, as between an answer and the next request of that client, does not end such a row;
- while nothing but its own write is missing, and only just a quorum is heard: whoever leads waits for that
  disk. It is given PATIENCE times as long;
- before it is `ready`, while it comes nearer to what the last view left.

Time in which this process did not run does not count. Who gave its view up because of its disk is not elected
again while that hangs: to take part in a view change is to have it on the disk.
Imports types and vsr only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kimberlite.vsr.events import GaveUp
from kimberlite.vsr.execution import is_held_up
from kimberlite.vsr.state import Prepared

if TYPE_CHECKING:
    from kimberlite.vsr.leading import Leading
    from kimberlite.vsr.state import State

PATIENCE = 5
ROW = 4  # ops that take longer here than this part of abdicate_ns add up, if pauses between them are shorter


@dataclass(slots=True)
class Lag:
    """How far a primary is behind what its backups have committed: see the module docstring. Nanoseconds."""

    op: int = 0  # committed, and not executed here when it was looked; 0: none
    since: int = 0  # when
    row: int = 0  # how long the ops before it took that are of one row, each of which took long
    ended_at: int = 0  # when the last of them was executed here
    seen: int = 0  # what the others had committed at the last look
    took: int = 0  # from the prepare of `op` to its commit
    reached: int = 0  # ops durable and executed here at the last look
    looked_at: int = 0


def look_at_pipeline(s: State, leading: Leading) -> GaveUp | None:
    """The oldest op has just been sent again: whether this primary is to give up because it never commits here."""
    # For want of room on the disks of others nobody else could commit it either.
    may_others = s.is_disk_full or not leading.is_short_of_room(s)
    if is_stuck(s, leading) and leading.gave_up is None and s.peers and may_others:
        return GaveUp.ABDICATED
    return None


def look_at_lag(s: State, leading: Leading) -> GaveUp | None:
    """Whether this primary is to give up because it does not keep up with its backups."""
    if s.peers:
        _look(s, leading)
        if leading.gave_up is None and lags(s, leading):
            return GaveUp.LAGGING
    return None


# Nothing is committed


def is_stuck(s: State, leading: Leading) -> bool:
    """Whether the oldest op waits for abdicate_ns, and no quorum has it or comes nearer to it: while one does,
    another primary would have to wait for the same replicas."""
    oldest, patience = leading.pipeline[0], s.config.timing.abdicate_ns
    if is_waited_for_by_all(s, oldest):
        patience *= PATIENCE
    since = s.now - patience
    return oldest.prepared_at < since and not s.membership.committed(moving(s, oldest, since))


def is_waited_for_by_all(s: State, oldest: Prepared) -> bool:
    """Whether the own write alone is missing, and without this replica there is no quorum."""
    with_own = oldest.acks | 1 << s.index
    return s.membership.committed(with_own) and s.quorum_margin == 0


def moving(s: State, oldest: Prepared, since: int) -> int:
    """Who has the oldest op of the pipeline, or has come nearer to it since then: a bit set."""
    bits = oldest.acks | (s.disk.progress_at > since) << s.index
    for replica, peer in s.peers.items():
        bits |= (peer.said.progress_at > since) << replica
    return bits


def on_returned(s: State, leading: Leading) -> None:
    """A replica is heard again after a silence: a primary that fell silent for want of a quorum leads again."""
    if leading.gave_up is None or s.draining or lags(s, leading):
        return
    if leading.pipeline and not is_stuck(s, leading):
        _go_on(s, leading)


def on_committed(s: State, leading: Leading) -> None:
    """The commit number grew: a primary that gave up because it did not leads again."""
    if leading.gave_up is not None and not lags(s, leading):
        _go_on(s, leading)


def _go_on(s: State, leading: Leading) -> None:
    leading.gave_up = None
    leading.votes.withdraw(s.index)
    leading.heartbeat_timer.start(s.now)


# What is committed is not executed here


def lags(s: State, leading: Leading) -> bool:
    """Whether for abdicate_ns, and for as long again as the others took, within bounds, what the others committed has
    not been executed here: one op, or several in a row each of which took long."""
    abdicate_ns = s.config.timing.abdicate_ns
    patience = abdicate_ns + min(leading.lag.took, abdicate_ns)
    return bool(leading.lag.op) and leading.lag.row + s.now - leading.lag.since > patience


def took_long(s: State, lag: Lag) -> bool:
    """Whether the op that this primary was seen behind at took long here: longer than the others took for it."""
    return bool(lag.op) and s.now - lag.since > max(s.config.timing.abdicate_ns // ROW, lag.took)


def ends_row(s: State, lag: Lag, is_behind: bool) -> bool:
    """Whether something did not take long here, or nothing was asked for a while. is_behind: on the newest op."""
    is_quick = bool(lag.op) or (s.commit_max > lag.seen and not is_behind)
    return is_quick or s.now - lag.ended_at > s.config.timing.abdicate_ns // ROW


def _look(s: State, leading: Leading) -> None:
    lag = leading.lag
    has_slept = s.now - lag.looked_at > s.config.timing.contact_ns
    reached = s.execution.applied + s.log.durable
    comes_nearer = not leading.ready and reached != lag.reached
    lag.looked_at, lag.reached = s.now, reached
    is_excused = has_slept or comes_nearer
    if lag.op and is_held_up(s, lag.op) and not is_excused:
        return
    is_behind = is_held_up(s, s.commit_max)
    if took_long(s, lag) and not is_excused:
        lag.row += s.now - lag.since
        lag.ended_at = s.now
    elif is_excused or ends_row(s, lag, is_behind):
        lag.row = 0
    lag.op = s.commit_max if is_behind else 0
    lag.since, lag.seen = s.now, s.commit_max
    prepared = leading.committing.get(lag.op)
    lag.took = s.now - prepared.prepared_at if prepared is not None else 0
