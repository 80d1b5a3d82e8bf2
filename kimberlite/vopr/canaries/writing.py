"""Planted bugs of writing: order and outcome of writes, space, what the superblock keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kimberlite.errors import WriteFailedError
from kimberlite.storage import store, superblock
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import ViewState, Write
from kimberlite.storage.journal_writer import JournalWriter
from kimberlite.storage.submissions import Submissions
from kimberlite.types import ROOM_UNBOUNDED, Message, Reason, Room
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import transitions
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.log import Log
from kimberlite.vsr.outbox import Outbox
from kimberlite.vsr.role import EnterView
from kimberlite.vsr.state import State
from kimberlite.vsr.work import Admission


@canary("a failed write counts as done")
def _sync_error_ignored() -> list[Patch]:
    original = Submissions.completions

    def completions(self: Submissions) -> list[int]:
        try:
            return original(self)
        except WriteFailedError:
            tokens = []
            for token, done, _ in self._pending.values():
                if done is not None:
                    done()
                if token is not None:
                    tokens.append(token)
            self._pending.clear()
            return tokens

    return [(Submissions, "completions", completions)]


@canary("a file is released while something is written to it")
def _file_released_while_written() -> list[Patch]:
    original = Handles._release_idle

    def release_idle(self: Handles, but: str, count: int) -> int:
        held, self._held = self._held, Counter()
        try:
            return original(self, but, count)
        finally:
            self._held = held

    return [(Handles, "_release_idle", release_idle)]


@canary("do_view_change is sent before the view is on the disk")
def _do_view_change_before_durable() -> list[Patch]:
    original = transitions.enter_view

    def enter_view(s: State, entered: EnterView) -> None:
        original(s, entered)
        under_way, s.outbox.promise = s.outbox.promise, None
        if isinstance(s.role, ChangingView):
            transitions.carry_out(s, s.role._send_evidence(s))
        s.outbox.promise = s.outbox.promise or under_way

    return [(transitions, "enter_view", enter_view)]


@canary("what a frame reveals need not be durable when it leaves")
def _said_before_durable() -> list[Patch]:
    return [(Outbox, "reveal", lambda self, frame: self.work.send.append(frame))]


@canary("log_view is not written to the superblock")
def _log_view_not_persisted() -> list[Patch]:
    original = store.Store.set_view_state

    def set_view_state(self: store.Store, token: int, state: ViewState, *more: Any) -> None:
        original(self, token, replace(state, log_view=self.view_state.log_view), *more)

    return [(store.Store, "set_view_state", set_view_state)]


@canary("the view is not written to the superblock when it is left")
def _view_not_persisted() -> list[Patch]:
    original = store.Store.set_view_state

    def set_view_state(self: store.Store, token: int, state: ViewState, *more: Any) -> None:
        original(self, token, replace(state, view=max(state.log_view, self.view_state.view)), *more)

    return [(store.Store, "set_view_state", set_view_state)]


@canary("the journal is not cut where a view change says so")
def _divergent_tail_kept() -> list[Patch]:
    return [(store.Store, "truncate", lambda self, op: None)]


@canary("all copies of the superblock are written at once")
def _superblock_copies_at_once() -> list[Patch]:
    original = superblock.SuperblockFile.update

    def update(self: superblock.SuperblockFile, *what: Any, **more: Any) -> Any:
        block, phases = original(self, *what, **more)
        return block, [[write for phase in phases for write in phase]]

    return [(superblock.SuperblockFile, "update", update)]


@canary("an entry and its witness are written at once")
def _witness_with_its_entry() -> list[Patch]:
    original = Submissions.submit

    def submit(self: Submissions, phases: Sequence[Sequence[Write]], *arguments: Any, **named: Any) -> int:
        if len(phases) == 2:
            phases = [[*phases[0], *phases[1]]]
        return original(self, phases, *arguments, **named)

    return [(Submissions, "submit", submit)]


@canary("entries that a full disk has no room for are acknowledged with those before them")
def _acknowledged_without_room() -> list[Patch]:
    original = Log.take_writes

    def take_writes(self: Log, room: Room, is_patient: bool = True) -> list[Message]:
        writes = original(self, room, is_patient)
        if self.is_waiting_for_room:
            self.on_disk.update(range(self.journal_head + 1, self.linked + 1))
            self.link()
        return writes

    return [(Log, "take_writes", take_writes)]


@canary("a journal that is full is handed entries all the same")
def _written_without_room() -> list[Patch]:
    original = Log.take_writes
    return [(Log, "take_writes", lambda self, room, is_patient=True: original(self, ROOM_UNBOUNDED, is_patient))]


@canary("a request is refused for a full disk when it is in the queue already")
def _refused_after_it_was_queued() -> list[Patch]:
    original = Leading.refuse

    def refuse(self: Leading, s: State, message: Message, reason: Reason) -> Admission:
        if reason == Reason.DISK_FULL and self.ready:
            self.requests.put(message, s.now)
        return original(self, s, message, reason)

    return [(Leading, "refuse", refuse), (Leading, "refuse_all", lambda self, s: None)]


@canary("what a torn write or a cut has left stands where the next entry would, while witnesses are written")
def _remains_behind_the_log() -> list[Patch]:
    original = JournalWriter._entries_write

    def entries_write(
        self: JournalWriter, number: int, messages: Sequence[Message], offset: int, remains: int = 0
    ) -> Write:
        return original(self, number, messages, offset)

    return [
        (JournalWriter, "_entries_write", entries_write),
        (JournalWriter, "_zeros_behind", lambda self, held: []),
    ]
