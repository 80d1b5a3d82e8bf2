"""Planted bugs of the view change, and of frames that come from another view, or from nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary

from kimberlite.errors import FrameError, invariant
from kimberlite.node.driver import Driver
from kimberlite.types import Command, Header, Message
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import (
    admission,
    bounds,
    changing_view,
    choice,
    conflict,
    evidence,
    following,
    installation,
    leading,
    repair,
    replica,
    transitions,
)
from kimberlite.vsr.admission import Act, Ruling
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.choice import Choice, DoViewChange
from kimberlite.vsr.events import EventKind, GaveUp
from kimberlite.vsr.following import Following
from kimberlite.vsr.members import Membership
from kimberlite.vsr.recovering import Recovering
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.role import BecomeLeader, Between, EnterView, Role, Transition
from kimberlite.vsr.state import State


@canary("a view is left on one vote")
def _view_left_on_one_vote() -> list[Patch]:
    return [(Role, "enough_votes", lambda self, s, fresh: True)]


@canary("a view is left when one replica finds that the process of its primary has ended")
def _gone_is_left_by_one() -> list[Patch]:
    def on_gone(self: Role, s: State, index: int) -> Transition | None:
        return (
            EnterView(s.membership.next_view(s.view), self.cause(s))
            if index == s.primary and s.outbox.may_promise
            else None
        )

    return [(Role, "on_gone", on_gone)]


@canary("a view begins after one message too few")
def _view_begins_too_early() -> list[Patch]:
    def enough_evidence(self: ChangingView, s: State) -> bool:
        return len(self.evidence) >= max(s.membership.quorums.view_change - 1, 1) and s.index in self.evidence

    return [(ChangingView, "enough_evidence", enough_evidence)]


@canary("a candidate that gives its view up waits until the others lose patience")
def _forfeits_in_silence() -> list[Patch]:
    def forfeit(self: ChangingView, s: State, commit: int, gap: int, why: GaveUp) -> Transition | None:
        self._story.gave_up = s.view, why
        s.emit(EventKind.FORFEITED, commit, gap, why)
        return None

    return [(ChangingView, "_forfeit", forfeit)]


@canary("a candidate that is far behind leads its view though another has the log")
def _leads_far_behind() -> list[Patch]:
    return [(ChangingView, "is_far_behind", lambda self, s, choice, gap: False)]


@canary("the longest log wins, of whatever view")
def _choice_by_op_only() -> list[Patch]:
    original = choice.choose

    def choose(messages: list[DoViewChange], membership: Membership) -> Choice:
        log_view = max(message.log_view for message in messages)
        blind = [replace(message, log_view=0) for message in messages]
        return replace(original(blind, membership), log_view=log_view)

    return [(changing_view, "choose", choose)]


@canary("the first log of the newest view wins, however short")
def _choice_by_view_only() -> list[Patch]:
    original = choice.choose

    def choose(messages: list[DoViewChange], membership: Membership) -> Choice:
        chosen = original(messages, membership)
        head = next(message.op for message in messages if message.log_view == chosen.log_view)
        if not chosen.suffix:
            return chosen
        return replace(chosen, suffix=tuple(known for known in chosen.suffix if known.op <= head) or chosen.suffix[:1])

    return [(changing_view, "choose", choose)]


@canary("everything in the winner's log counts as committed")
def _whole_tail_committed() -> list[Patch]:
    return [(choice, "highest_commit", lambda messages: max(message.op for message in messages))]


@canary("one replica too few says that it never had an op, and it is dropped")
def _nack_quorum_off_by_one() -> list[Patch]:
    original = choice.choose

    def choose(messages: list[DoViewChange], membership: Membership) -> Choice:
        quorums = membership.quorums
        return original(messages, membership._replace(quorums=quorums._replace(nack=max(quorums.nack - 1, 1))))

    return [(changing_view, "choose", choose)]


@canary("evidence for an older view is kept for the next one")
def _old_evidence_kept() -> list[Patch]:
    original, newest = transitions.enter_view, WeakKeyDictionary[State, dict[int, DoViewChange]]()

    def enter_view(s: State, entered: EnterView) -> None:
        if isinstance(s.role, ChangingView):
            newest[s] = s.role.evidence
        original(s, entered)
        if isinstance(s.role, ChangingView):
            s.role.evidence.update(newest.get(s, {}))

    return [(transitions, "enter_view", enter_view)]


def _also_admitting(matches: Callable[[State, Header], bool]) -> Callable[..., Ruling]:
    """`admission.look` that lets these frames in as well."""
    original = admission.look

    def look(s: State, header: Header, may_be_newer: bool = True) -> Ruling:
        return Ruling(Act.ACCEPT) if matches(s, header) else original(s, header, may_be_newer)

    return look


@canary("a late start_view of this view is installed again")
def _stale_start_view_accepted() -> list[Patch]:
    def is_late(s: State, header: Header) -> bool:
        return header.command == Command.START_VIEW and header.view == s.view and not s.is_primary

    def on_log(self: Role, s: State, message: Message, suffix: tuple[Header, ...]) -> None:
        s.learn_commit(message.header.commit)
        installation.install(s, suffix, s.log.committed)

    return [
        (admission, "look", _also_admitting(is_late)),
        (installation, "is_wanted", lambda s, view: view >= s.view and not s.is_primary),
        (Role, "on_log", on_log),
        (ChangingView, "on_log", on_log),
        (installation, "agrees", lambda s, suffix, canonical: suffix[-1].op >= s.log.committed),
    ]


@canary("a refusal of what had been prepared does not say so")
def _refused_though_prepared() -> list[Patch]:
    return [(leading, "FLAG_PREPARED", 0)]


@canary("evidence is not held against the head that its frame names")
def _evidence_without_its_head() -> list[Patch]:
    return [(evidence, "check", lambda s, header, given: None)]


@canary("any view that a frame names is entered")
def _view_without_a_bound() -> list[Patch]:
    return [(bounds, "find", _unless("view"))]


@canary("a heartbeat's commit number is believed and kept, whatever it is")
def _commit_without_a_bound() -> list[Patch]:
    def note_commit(self: State) -> None:
        self.commit_max = max(self.commit_max, self.scope.commit_heard)

    return [(bounds, "find", _unless("commit", "position")), (State, "note_commit", note_commit)]


def _unless(*fields: str) -> Callable[[State, Header], bounds.OutOfBounds | None]:
    """`bounds.find` that does not look at these fields."""
    original = bounds.find

    def find(s: State, header: Header) -> bounds.OutOfBounds | None:
        found = original(s, header)
        return None if found is not None and found.field in fields else found

    return find


@canary("a heartbeat that names another entry ends the process, whoever sent it")
def _identity_of_a_heartbeat_believed() -> list[Patch]:
    def look(s: State, header: Header) -> None:
        own = s.log.headers.get(header.position)
        if own is not None and header.position <= s.log.linked and any(header.context):
            invariant(own.checksum == header.context, "the committed entry is the same on every replica")

    return [(conflict, "look", look)]


@canary("any start_view is installed, whether it answers the own evidence or not")
def _forged_start_view_installed() -> list[Patch]:
    return [(ChangingView, "is_answer", lambda self, header: True)]


@canary("a start_view is installed without a look at what is committed here")
def _start_view_unchecked() -> list[Patch]:
    return [
        (ChangingView, "is_answer", lambda self, header: True),
        (installation, "agrees", lambda s, suffix, canonical: True),
    ]


@canary("headers are learned that nobody asked for")
def _headers_learned_unasked() -> list[Patch]:
    return [(repair, "is_asked_for", lambda s, header: True)]


@canary("a prepare is appended without a look at its parent")
def _prepare_without_its_parent() -> list[Patch]:
    return [(following, "follows", lambda before, after: True)]


@canary("the body of a prepare is not held against its header")
def _prepare_body_not_looked_at() -> list[Patch]:
    return [(Driver, "_is_sound", lambda self, message: True)]


@canary("a prepare of an older view is appended when its number is next")
def _stale_prepare_accepted() -> list[Patch]:
    original = Following.on_prepare

    def is_next(s: State, header: Header) -> bool:
        head = s.log.headers.get(s.log.op)
        normal_backup = isinstance(s.role, Following) and s.log.linked == s.log.op
        is_stale = header.command == Command.PREPARE and header.view < s.view
        return is_stale and normal_backup and head is not None and header.parent == head.checksum

    def on_prepare(self: Following, s: State, message: Message) -> Transition | None:
        if message.header.view < s.view:
            s.log.append(message)
            return None
        return original(self, s, message)

    return [(admission, "look", _also_admitting(is_next)), (Following, "on_prepare", on_prepare)]


@canary("the uncommitted log is cut on hearing of a newer view")
def _truncation_on_rumour() -> list[Patch]:
    original = transitions.on_newer_view

    def on_newer_view(s: State, view: int) -> None:
        original(s, view)
        head = s.log.headers.get(s.log.committed)
        if head is not None and head.op < s.log.op and s.log.linked >= head.op:
            cut = s.log.install((head,), head.op)
            s.promised = replace(s.promised, base=min(s.log.committed, cut), suffix_head=head.op, suffix=(head,))
            s.persist_view(truncate_to=cut)

    return [(transitions, "on_newer_view", on_newer_view)]


@canary("a primary goes on as primary of its view after a restart")
def _primary_resumes_after_restart() -> list[Patch]:
    original = transitions.begin

    def begin(s: State) -> None:
        original(s)
        if isinstance(s.role, Recovering):
            transitions.lead(s, BecomeLeader(s.role.story(s), {}, set()))

    return [(transitions, "begin", begin)]


@canary("the timer of a view change that takes too long is never armed")
def _view_change_timer_never_armed() -> list[Patch]:
    return [(Between, "start_timer", lambda self, s: self._timer.stop())]


@canary("frames of another cluster are accepted")
def _wrong_cluster_accepted() -> list[Patch]:
    original = Replica.step

    def step(self: Replica, message: Message, now: int) -> None:
        header, s = message.header, self.state
        is_known = header.command in replica._HANDLERS
        if header.cluster != s.config.cluster and is_known and header.replica != s.index:
            s.now = now
            try:
                self._admit(message)
            except FrameError:
                return
        else:
            original(self, message, now)

    return [(Replica, "step", step)]
