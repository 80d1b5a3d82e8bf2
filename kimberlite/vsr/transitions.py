"""From one role to the next: the one place where a role begins and ends.

    Following, Leading, ChangingView, Recovering  --EnterView-->  ChangingView, of the next view or a later one
    ChangingView  --BecomeLeader-->  Leading
    ChangingView  --BecomeFollower-->  Following
    Unborn  --Born-->  any of them, as after a start

Imports errors, types and vsr only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kimberlite.errors import invariant
from kimberlite.vsr import identity, repair
from kimberlite.vsr.birth import Unborn
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.events import EventKind, ViewChangeCause
from kimberlite.vsr.following import Following
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.recovering import Recovering
from kimberlite.vsr.role import BecomeLeader, Born, EnterView, Role, Story, Transition

if TYPE_CHECKING:
    from kimberlite.vsr.state import State


def begin(s: State) -> None:
    """The first role after a start. A backup whose log is that of its view goes on as a backup. A replica that was
    changing views goes on changing. One that would be the primary of its persisted view never acts as such again."""
    if not s.own.is_formed:
        s.role = unborn = Unborn()
        unborn.begin(s)
    elif s.log_view < s.view:
        changing = ChangingView(Story(s.now))
        changing.resume(s)
        s.role = changing
    elif s.is_primary:
        s.role = Recovering(s.now)
    else:
        s.role = Following()
        repair.wake(s)
    s.emit(EventKind.STATUS, s.status, s.view)
    if s.own.identity is not None:  # others take up with this life when they have heard of it
        s.broadcast(identity.sign_of_life(s, asks=True))


def carry_out(s: State, transition: Transition | None) -> None:
    """Do what a role asked for when it ended; nothing, when it did not."""
    if transition is None:
        return
    if isinstance(transition, EnterView):
        if s.outbox.may_promise:
            enter_view(s, transition)
    elif isinstance(transition, BecomeLeader):
        lead(s, transition)
    elif isinstance(transition, Born):
        begin(s)
    else:
        _begin_view(s, Following(), transition.story)


def on_newer_view(s: State, view: int) -> None:
    """A frame of a newer view: a quorum has left ours. Passed over while the disk does not follow."""
    carry_out(s, EnterView(view, ViewChangeCause.NEWER_VIEW))


def enter_view(s: State, entered: EnterView) -> None:
    """Leave the present view for another: persist it, then give evidence to its primary. What repair has and has
    asked for stays: see there."""
    invariant(entered.view > s.view, "views only increase", view=entered.view, own=s.view)
    leader = s.peers.get(s.primary)
    if leader is not None:
        leader.held = max(leader.held or 0, s.scope.known_head)
    old = s.role
    story = old.story(s)
    if story.cause is None:
        story.cause = entered.cause
    changing = ChangingView(story)
    old.leave(s)
    s.enter_view(entered.view)
    _take(s, changing)
    s.emit(EventKind.VIEW_CHANGE_STARTED, entered.view, entered.cause)
    old.dismiss(s)
    changing.begin(s)


def lead(s: State, transition: BecomeLeader) -> None:
    """This replica is the primary of its view now."""
    leading = Leading(transition.story.left_at, transition.full_peers)
    _begin_view(s, leading, transition.story)
    leading.begin(s, transition.nonces)


def _begin_view(s: State, role: Role, story: Story) -> None:
    """The own view has begun, and this replica has its log."""
    _take(s, role)
    s.detector.reset(s.now)
    s.emit(EventKind.VIEW_CHANGED, s.view, s.now - story.left_at, -1 if story.cause is None else story.cause)
    repair.wake(s)


def _take(s: State, role: Role) -> None:
    is_other = role.status != s.status
    s.role = role
    if is_other:
        s.emit(EventKind.STATUS, role.status, s.view)
