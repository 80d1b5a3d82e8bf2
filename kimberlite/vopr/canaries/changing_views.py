"""Planted bugs of the view change, and of frames that come from another view, or from nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from kimberlite.errors import FrameError, invariant
from kimberlite.node.driver import Driver
from kimberlite.types import Command, Header, Message, Status
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import admission, bounds, conflict, normal, recovery, repair, replica, view_change
from kimberlite.vsr.admission import Act, Ruling
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.quorum import Quorums
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.state import LogState
from kimberlite.vsr.view_change import Choice, DoViewChange


@canary("a view is left on one vote")
def _view_left_on_one_vote() -> list[Patch]:
    return [(view_change, "enough_votes", lambda r, fresh: True)]


@canary("a view begins after one message too few")
def _view_begins_too_early() -> list[Patch]:
    def enough_evidence(r: Replica) -> bool:
        return len(r.scope.evidence) >= max(r.quorums.view_change - 1, 1) and r.index in r.scope.evidence

    return [(view_change, "enough_evidence", enough_evidence)]


@canary("a candidate that gives its view up waits until the others lose patience")
def _forfeits_in_silence() -> list[Patch]:
    give_up, suspect = view_change._give_up, view_change.suspect
    silent: WeakSet[Replica] = WeakSet()

    def give_up_in_silence(r: Replica, kind: EventKind, *told: int) -> None:
        if kind is EventKind.FORFEITED:
            silent.add(r)
        give_up(r, kind, *told)

    def say_nothing(r: Replica) -> None:
        if r in silent:
            silent.discard(r)
        else:
            suspect(r)

    return [(view_change, "_give_up", give_up_in_silence), (view_change, "suspect", say_nothing)]


@canary("a candidate that is far behind leads its view though another has the log")
def _leads_far_behind() -> list[Patch]:
    return [(view_change, "is_far_behind", lambda r, choice, gap: False)]


@canary("the longest log wins, of whatever view")
def _choice_by_op_only() -> list[Patch]:
    original = view_change.choose

    def choose(messages: list[DoViewChange], quorums: Quorums) -> Choice:
        log_view = max(message.log_view for message in messages)
        blind = [replace(message, log_view=0) for message in messages]
        return replace(original(blind, quorums), log_view=log_view)

    return [(view_change, "choose", choose)]


@canary("the first log of the newest view wins, however short")
def _choice_by_view_only() -> list[Patch]:
    original = view_change.choose

    def choose(messages: list[DoViewChange], quorums: Quorums) -> Choice:
        choice = original(messages, quorums)
        head = next(message.op for message in messages if message.log_view == choice.log_view)
        if not choice.suffix:
            return choice
        return replace(choice, suffix=tuple(known for known in choice.suffix if known.op <= head) or choice.suffix[:1])

    return [(view_change, "choose", choose)]


@canary("everything in the winner's log counts as committed")
def _whole_tail_committed() -> list[Patch]:
    return [(view_change, "highest_commit", lambda messages: max(message.op for message in messages))]


@canary("one replica too few says that it never had an op, and it is dropped")
def _nack_quorum_off_by_one() -> list[Patch]:
    original = view_change.choose

    def choose(messages: list[DoViewChange], quorums: Quorums) -> Choice:
        return original(messages, quorums._replace(nack=max(quorums.nack - 1, 1)))

    return [(view_change, "choose", choose)]


@canary("evidence for an older view is kept for the next one")
def _old_evidence_kept() -> list[Patch]:
    entered, settled = view_change.enter, view_change._become_normal

    def enter(r: Replica, view: int, cause: int) -> None:
        kept = dict(r.scope.evidence)
        entered(r, view, cause)
        r.scope.evidence.update(kept)

    def become_normal(r: Replica) -> None:
        kept = dict(r.scope.evidence)
        settled(r)
        r.scope.evidence.update(kept)

    return [(view_change, "enter", enter), (view_change, "_become_normal", become_normal)]


def _also_admitting(matches: Callable[[Replica, Header], bool]) -> Callable[..., Ruling]:
    """`admission.look` that lets these frames in as well."""
    original = admission.look

    def look(r: Replica, header: Header, may_be_newer: bool = True) -> Ruling:
        return Ruling(Act.ACCEPT) if matches(r, header) else original(r, header, may_be_newer)

    return look


@canary("a late start_view of this view is installed again")
def _stale_start_view_accepted() -> list[Patch]:
    def is_start_view_wanted(r: Replica, message: Message) -> bool:
        return message.header.view >= r.view and not r.is_primary

    def is_late(r: Replica, header: Header) -> bool:
        return header.command == Command.START_VIEW and header.view == r.view and not r.is_primary

    return [
        (admission, "look", _also_admitting(is_late)),
        (view_change, "is_start_view_wanted", is_start_view_wanted),
        (view_change, "is_answer", lambda r, header: header.view == r.view),
        (view_change, "agrees", lambda r, suffix, canonical: suffix[-1].op >= r.log.committed),
    ]


@canary("any view that a frame names is entered")
def _view_without_a_bound() -> list[Patch]:
    return [(bounds, "find", _unless("view"))]


@canary("a heartbeat's commit number is believed and kept, whatever it is")
def _commit_without_a_bound() -> list[Patch]:
    def note_commit(self: Replica) -> None:
        self.commit_max = max(self.commit_max, self.scope.commit_heard)

    return [(bounds, "find", _unless("commit", "position")), (Replica, "note_commit", note_commit)]


def _unless(*fields: str) -> Callable[[Replica, Header], bounds.OutOfBounds | None]:
    """`bounds.find` that does not look at these fields."""
    original = bounds.find

    def find(r: Replica, header: Header) -> bounds.OutOfBounds | None:
        found = original(r, header)
        return None if found is not None and found.field in fields else found

    return find


@canary("a heartbeat that names another entry ends the process, whoever sent it")
def _identity_of_a_heartbeat_believed() -> list[Patch]:
    def look(r: Replica, header: Header) -> None:
        own = r.log.headers.get(header.position)
        if own is not None and header.position <= r.log.linked and any(header.context):
            invariant(own.checksum == header.context, "the committed entry is the same on every replica")

    return [(conflict, "look", look)]


@canary("any start_view is installed, whether it answers the own evidence or not")
def _forged_start_view_installed() -> list[Patch]:
    return [(view_change, "is_answer", lambda r, header: True)]


@canary("a start_view is installed without a look at what is committed here")
def _start_view_unchecked() -> list[Patch]:
    return [
        (view_change, "is_answer", lambda r, header: True),
        (view_change, "agrees", lambda r, suffix, canonical: True),
    ]


@canary("headers are learned that nobody asked for")
def _headers_learned_unasked() -> list[Patch]:
    return [(repair, "is_asked_for", lambda r, header: True)]


@canary("a prepare is appended without a look at its parent")
def _prepare_without_its_parent() -> list[Patch]:
    return [(normal, "follows", lambda before, after: True)]


@canary("the body of a prepare is not held against its header")
def _prepare_body_not_looked_at() -> list[Patch]:
    return [(Driver, "_is_sound", lambda self, message: True)]


@canary("a prepare of an older view is appended when its number is next")
def _stale_prepare_accepted() -> list[Patch]:
    original = normal.on_prepare

    def is_next(r: Replica, header: Header) -> bool:
        head = r.log.headers.get(r.log.op)
        normal_backup = r.status == Status.NORMAL and not r.is_primary and r.log.linked == r.log.op
        is_stale = header.command == Command.PREPARE and header.view < r.view
        return is_stale and normal_backup and head is not None and header.parent == head.checksum

    def on_prepare(r: Replica, message: Message) -> None:
        if message.header.view < r.view:
            r.log.append(message)
        else:
            original(r, message)

    return [
        (admission, "look", _also_admitting(is_next)),
        (replica._HANDLERS, Command.PREPARE, on_prepare),
    ]


@canary("the uncommitted log is cut on hearing of a newer view")
def _truncation_on_rumour() -> list[Patch]:
    original = view_change.on_newer_view

    def on_newer_view(r: Replica, view: int) -> None:
        original(r, view)
        head = r.log.headers.get(r.log.committed)
        if head is not None and head.op < r.log.op and r.log.linked >= head.op:
            cut = r.log.install((head,), head.op)
            r.log_state = LogState(min(r.log.committed, cut), head.op, (head,))
            r.persist_view(truncate_to=cut)

    return [(view_change, "on_newer_view", on_newer_view)]


@canary("a primary goes on as primary of its view after a restart")
def _primary_resumes_after_restart() -> list[Patch]:
    original = recovery.begin

    def begin(r: Replica, recovered: Any) -> None:
        original(r, recovered)
        if r.is_primary and r.log_view == r.view and r.status == Status.RECOVERING:
            r.view_change_timer.stop()
            view_change._lead(r)

    return [(recovery, "begin", begin)]


@canary("the timer of a view change that takes too long is never armed")
def _view_change_timer_never_armed() -> list[Patch]:
    return [(view_change, "_start_view_change_timer", lambda r: r.view_change_timer.stop())]


@canary("frames of another cluster are accepted")
def _wrong_cluster_accepted() -> list[Patch]:
    original = Replica.step

    def step(self: Replica, message: Message, now: int) -> None:
        header = message.header
        handler = replica._HANDLERS.get(header.command)
        if header.cluster != self.config.cluster and handler is not None and header.replica != self.index:
            self.now = now
            try:
                self._admit(message, handler)
            except FrameError:
                return
        else:
            original(self, message, now)

    return [(Replica, "step", step)]
