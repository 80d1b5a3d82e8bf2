"""When a primary gives its view up.

Two things make a primary useless to its clients: nothing is committed (`is_stuck`), or what the others commit is
not executed here (`lags`): its disk hangs, or is much slower than theirs, or a damaged entry is not repaired.
Then it falls silent and asks to be replaced: this module says when, view_change.abdicate does it.

It does not for a successor that would be no better:

- while a quorum has the oldest op, or comes nearer to it;
- while its disk is slow, and theirs took about as long for the same op; what takes long here alone adds up from one
  op to the next, for a client that appends one event after another waits for each of them;
- while nothing but its own write is missing, and only just a quorum is heard: whoever leads waits for that
  disk. It is given PATIENCE times as long;
- before it is `ready`, while it comes nearer to what the last view left.

Time in which this process did not run does not count. Who gave its view up because of its disk is not elected
again while that hangs: to take part in a view change is to have it on the disk.
Imports types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.types import Status
from kimberlite.vsr import quorum, verdict
from kimberlite.vsr.events import GaveUp
from kimberlite.vsr.state import Lag, Peer, Prepared

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica

PATIENCE = 5
ROW = 4  # ops that take longer here than this part of abdicate_ns add up


def look_at_pipeline(r: Replica) -> GaveUp | None:
    """The oldest op has just been sent again: whether this primary is to give up because it never commits here."""
    # For want of room on the disks of others nobody else could commit it either.
    may_others = r.is_disk_full or not verdict.is_short_of_room(r)
    if is_stuck(r) and not r.scope.abdicated and r.peers and may_others:
        return GaveUp.ABDICATED
    return None


def look_at_lag(r: Replica) -> GaveUp | None:
    """Whether this primary is to give up because it does not keep up with its backups."""
    if r.is_primary and r.status == Status.NORMAL and r.peers:
        _look(r)
        if not r.scope.abdicated and lags(r):
            return GaveUp.LAGGING
    return None


# Nothing is committed


def is_stuck(r: Replica) -> bool:
    """Whether the oldest op waits for abdicate_ns, and no quorum has it or comes nearer to it: while one does,
    another primary would have to wait for the same replicas."""
    oldest, patience = r.pipeline[0], r.config.abdicate_ns
    if is_waited_for_by_all(r, oldest):
        patience *= PATIENCE
    since = r.now - patience
    return oldest.prepared_at < since and not quorum.reached(moving(r, oldest, since), r.quorums.replication)


def is_waited_for_by_all(r: Replica, oldest: Prepared) -> bool:
    """Whether the own write alone is missing, and without this replica there is no quorum."""
    with_own = oldest.acks | 1 << r.index
    return quorum.reached(with_own, r.quorums.replication) and verdict.quorum_margin(r) == 0


def moving(r: Replica, oldest: Prepared, since: int) -> int:
    """Who has the oldest op of the pipeline, or has come nearer to it since then: a bit set."""
    bits = oldest.acks | (r.progress_at > since) << r.index
    for replica, peer in r.peers.items():
        bits |= (peer.said.progress_at > since) << replica
    return bits


def on_returned(r: Replica, peer: Peer) -> None:
    """A replica is heard again after a silence: it gets the time of a new op to come nearer, once, and a primary
    that fell silent for want of a quorum leads again."""
    if peer.said.is_awaited:
        return
    peer.said.progress_at, peer.said.is_awaited = r.now, True
    may_lead = r.scope.abdicated and not r.draining and r.status == Status.NORMAL and not lags(r)
    if may_lead and r.pipeline and not is_stuck(r):
        r.scope.abdicated = r.scope.suspecting = False
        r.scope.votes.pop(r.index, None)
        r.vote_timer.stop()
        r.heartbeat_timer.start(r.now)


def on_committed(r: Replica) -> None:
    """The commit number grew: a primary that gave up because it did not leads again."""
    if r.scope.abdicated and not lags(r):
        r.scope.abdicated = r.scope.suspecting = False


# What is committed is not executed here


def lags(r: Replica) -> bool:
    """Whether for abdicate_ns, and for as long again as the others took, within bounds, what the others committed has
    not been executed here: one op, or several in a row each of which took long."""
    patience = r.config.abdicate_ns + min(r.scope.lag.took, r.config.abdicate_ns)
    return bool(r.scope.lag.op) and r.now - r.scope.lag.began > patience


def is_held_up(r: Replica, op: int) -> bool:
    """Whether `op` is committed and can not be executed here: it is not on this disk, or one before it is damaged."""
    return r.log.durable < op or (r.applied < op and r.applied + 1 in r.log.faulty)


def took_long(r: Replica, lag: Lag) -> bool:
    """Whether the op that this primary was seen behind at took long here: longer than the others took for it."""
    return bool(lag.op) and r.now - lag.since > max(r.config.abdicate_ns // ROW, lag.took)


def _look(r: Replica) -> None:
    lag = r.scope.lag
    has_slept = r.now - lag.looked_at > r.config.contact_ns
    reached = r.applied + r.log.durable
    comes_nearer = not r.scope.ready and reached != lag.reached
    lag.looked_at, lag.reached = r.now, reached
    is_excused = has_slept or comes_nearer
    if lag.op and is_held_up(r, lag.op) and not is_excused:
        return
    is_in_a_row = took_long(r, lag) and not is_excused
    lag.op = r.commit_max if is_held_up(r, r.commit_max) else 0
    lag.since = r.now
    if not lag.op or not is_in_a_row:
        lag.began = r.now
    prepared = r.committing.get(lag.op)
    lag.took = r.now - prepared.prepared_at if prepared is not None else 0
