"""From what storage found on the disk to the right status.

A restart reads the disk; it never asks others what it had promised (diskless recovery
forgets promises: Michael et al., DISC'17). A backup whose log is that of its view goes
on as a backup. A replica that would be the primary of its persisted view never acts
as such again, for it may have sent prepares that its disk does not have: it votes to leave
the view. A replica that was changing views goes on changing.
Imports types and vsr only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kimberlite.types import EntryState, Recovered, Status
from kimberlite.vsr import repair
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.state import LogState

if TYPE_CHECKING:
    from kimberlite.vsr.replica import Replica


def begin(r: Replica, recovered: Recovered) -> None:
    """Fill the state of a replica that has just been constructed."""
    state = recovered.view_state
    r.log_state = LogState(state.base, state.suffix_head, state.suffix, state.doubt)
    r.commit_max = max(state.commit, recovered.commit)
    r.view_left_at = r.now
    _fill_log(r, recovered)
    for op in sorted(r.log.faulty):
        r.emit(EventKind.FAULTY, op)
    # What has lost its place is about to be written over: first remember that it may have been acknowledged.
    doubt = max((op for op in r.log.faulty if op > recovered.written), default=0)
    if doubt > state.doubt:
        r.log_state = replace(r.log_state, doubt=doubt)
        r.persist_view()
    if r.log_view < r.view:
        r.status = Status.VIEW_CHANGE
        r.do_view_change_timer.start(r.now)
        r.view_change_timer.start(r.now + r.config.view_change_ns + r.prng.below(r.config.view_change_ns))
    elif r.is_primary:
        r.view_change_timer.start(r.now)
    else:
        r.status = Status.NORMAL
        r.scope.ack_due = True
        repair.wake(r)
    r.emit(EventKind.STATUS, r.status, r.view)


def _fill_log(r: Replica, recovered: Recovered) -> None:
    log = r.log
    for entry in recovered.entries:
        if entry.op <= recovered.settled:
            continue
        if entry.header is not None:
            (log.candidates if entry.is_candidate else log.headers)[entry.op] = entry.header
        if entry.state == EntryState.PRESENT and not entry.is_candidate:
            log.on_disk.add(entry.op)
        elif entry.state == EntryState.FAULTY:
            log.faulty.add(entry.op)
    log.journal_head = recovered.written
    log.rooted = recovered.rooted
    log.op = recovered.head
    log.link()
    log.committed = max(recovered.view_state.base, min(r.commit_max, log.linked))
