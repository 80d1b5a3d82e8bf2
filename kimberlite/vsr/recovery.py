"""From what storage found on the disk to the state of a replica.

A restart reads the disk; it never asks others what it had promised (diskless recovery
forgets promises: Michael et al., DISC'17). Imports types and vsr only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kimberlite.types import EntryState, Recovered
from kimberlite.vsr.events import EventKind

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


def fill(s: State, recovered: Recovered) -> None:
    """Fill the state of a replica that has just been constructed."""
    state = recovered.view_state
    s.commit_max = max(state.commit, recovered.commit)
    _fill_log(s, recovered)
    for op in sorted(s.log.faulty):
        s.emit(EventKind.FAULTY, op)
    # What has lost its place is about to be written over: first remember that it may have been acknowledged.
    doubt = max((op for op in s.log.faulty if op > recovered.written), default=0)
    if doubt > state.doubt:
        s.promised = replace(s.promised, doubt=doubt)
        s.persist_view()
    s.execution.replay_to = s.execution.recover_to = s.commit_max


def _fill_log(s: State, recovered: Recovered) -> None:
    log = s.log
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
    log.committed = max(recovered.view_state.base, min(s.commit_max, log.linked))
