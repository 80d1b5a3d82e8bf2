"""Why an append was not taken before its deadline, in words. Nothing was appended, in each of these.

Imports errors and types.
"""

from __future__ import annotations

from kimberlite.errors import BusyError, KimberliteError, NoSpaceError, SessionEvictedError, UnavailableError
from kimberlite.types import Reason


def in_the_way(reason: int, evictions: int, is_connected: bool) -> KimberliteError:
    """reason: of the last refusal, NONE when there was none. evictions: of this client's session since its last
    answer. is_connected: to any replica."""
    if evictions and reason == Reason.NONE:
        reason = Reason.NO_SESSION
    if reason == Reason.DISK_FULL:
        return NoSpaceError(
            "the cluster refused the append until its deadline, because the disks of too many replicas are full: "
            "nothing was appended; make room, or have the log trimmed, see `kimberlite status`",
            reason=reason,
        )
    if reason == Reason.NO_SESSION:
        return SessionEvictedError(
            f"the session of this client was evicted {evictions} times until the deadline: nothing was "
            "appended; more clients append at a time than limits.sessions_max allows",
            reason=reason,
        )
    if reason in (Reason.BUSY_QUEUE, Reason.BUSY_PIPELINE):
        return BusyError(
            "the primary was busy until the deadline: nothing was appended; send less at a time, or wait longer",
            reason=reason,
        )
    if not is_connected:
        return UnavailableError(
            "no replica could be reached before the deadline: nothing was sent; check the addresses and that the "
            "replicas are running"
        )
    return UnavailableError(
        "no replica took the append before its deadline: nothing was appended; check that a quorum is running"
    )
