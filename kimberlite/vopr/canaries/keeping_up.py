"""Planted bugs of who cannot keep up: abdication, bounds of queues and tables."""

from __future__ import annotations

from kimberlite.types import Command, Message
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import abdication, normal, repair, verdict
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.work import Admission


@canary("a primary gives up while others come nearer to what they lack")
def _abdicates_while_others_come_nearer() -> list[Patch]:
    return [(abdication, "moving", lambda r, oldest, since: oldest.acks)]


@canary("a primary leads on though its disk hangs, or its next op is damaged")
def _hung_primary_leads_on() -> list[Patch]:
    return [(abdication, "lags", lambda r: False)]


@canary("who is silent counts as one whose disk is full, when another's is")
def _silence_counts_as_a_full_disk() -> list[Patch]:
    def is_short_of_room(r: Replica) -> bool:
        with_room = 1 + sum(verdict.is_heard(r, replica) for replica in r.peers if replica not in r.scope.full_peers)
        return bool(r.scope.full_peers) and with_room < r.quorums.replication

    return [(verdict, "is_short_of_room", is_short_of_room)]


@canary("what waits for a disk that does not keep up has no bound")
def _backlog_without_a_bound() -> list[Patch]:
    return [(normal, "is_backed_up", lambda r: False)]


@canary("what a new primary holds until it is ready has no bound, and is held as often as it comes")
def _requests_held_without_a_bound() -> list[Patch]:
    def hold(r: Replica, message: Message) -> Admission:
        r.waiting[r.make(Command.PING, nonce=len(r.waiting)).header.checksum] = message, r.now
        r.queue_bytes += len(message.body)
        return Admission.ACCEPTED

    return [(normal, "_hold", hold)]


@canary("a queue that is full takes one request more")
def _queue_without_a_bound() -> list[Patch]:
    return [(normal, "is_full", lambda r, message: False)]


@canary("what was heard and promised in a view outlives it")
def _view_scope_kept() -> list[Patch]:
    def enter_view(self: Replica, view: int) -> None:
        self.view = view

    return [(Replica, "enter_view", enter_view)]


@canary("prepares that come early are kept without a bound")
def _early_prepares_all_kept() -> list[Patch]:
    def stash(r: Replica, message: Message) -> None:
        r.stash[message.header.op] = message

    return [(normal, "_stash", stash)]


@canary("entries of a log that was replaced are still asked for")
def _wanted_when_the_log_is_another() -> list[Patch]:
    return [(repair, "on_installed", lambda r: None)]


@canary("headers are asked for though nothing is missing")
def _headers_asked_for_ever() -> list[Patch]:
    original = repair._request_headers

    def request_headers(r: Replica) -> None:
        original(r)
        if not r.scope.headers_requests and not r.is_primary:
            repair._ask_for_headers(r, r.log.linked + 1)

    return [(repair, "_request_headers", request_headers), (repair, "_is_wanting", lambda r: True)]
