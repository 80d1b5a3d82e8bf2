"""Planted bugs of who cannot keep up: abdication, bounds of queues and tables."""

from __future__ import annotations

from kimberlite.types import FLAG_DISK_FULL, Command, Header, Message
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import abdication, leading, repair
from kimberlite.vsr.following import Following
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.outbox import Outbox
from kimberlite.vsr.requests import Requests
from kimberlite.vsr.role import Votes
from kimberlite.vsr.state import State
from kimberlite.vsr.work import Admission


@canary("a primary gives up while others come nearer to what they lack")
def _abdicates_while_others_come_nearer() -> list[Patch]:
    return [(abdication, "moving", lambda s, oldest, since: oldest.acks)]


@canary("a primary leads on though its disk hangs, or its next op is damaged")
def _hung_primary_leads_on() -> list[Patch]:
    return [(abdication, "lags", lambda s, leading: False)]


@canary("who is silent counts as one whose disk is full, when another's is")
def _silence_counts_as_a_full_disk() -> list[Patch]:
    def is_short_of_room(self: Leading, s: State) -> bool:
        with_room = 1 + sum(s.is_heard(replica) for replica in s.peers if replica not in self.full_peers)
        return bool(self.full_peers) and with_room < s.membership.quorums.replication

    return [(Leading, "is_short_of_room", is_short_of_room)]


@canary("a primary that hangs before it is ready is never given up")
def _unready_primary_never_given_up() -> list[Patch]:
    original = abdication.lags
    return [(abdication, "lags", lambda s, leading: leading.ready and original(s, leading))]


@canary("writes that take long one after another are each forgiven")
def _slow_writes_forgiven_one_by_one() -> list[Patch]:
    return [(abdication, "took_long", lambda s, lag: False)]


@canary("more views are entered than a disk that hangs follows")
def _views_entered_without_a_bound() -> list[Patch]:
    return [(Outbox, "may_promise", property(lambda self: True))]


@canary("a peer whose disk was full once counts as full for ever")
def _full_peer_for_ever() -> list[Patch]:
    def note_disk(full_peers: set[int], header: Header) -> None:
        if header.flags & FLAG_DISK_FULL:
            full_peers.add(header.replica)

    return [(leading, "note_disk", note_disk)]


@canary("who has voted against a primary and hears it again never votes again")
def _vote_not_withdrawn() -> list[Patch]:
    original = Following.heard_primary

    def heard_primary(self: Following, s: State) -> None:
        is_cast = self.votes.is_cast
        original(self, s)
        self.votes.is_cast = is_cast

    return [(Following, "heard_primary", heard_primary)]


@canary("a vote that was withdrawn counts on where it was cast")
def _withdrawn_vote_counts_on() -> list[Patch]:
    def withdraw(self: Votes, replica: int) -> None:
        self.is_cast = False
        self.timer.stop()

    return [(Votes, "withdraw", withdraw)]


@canary("what waits for a disk that does not keep up has no bound")
def _backlog_without_a_bound() -> list[Patch]:
    return [(State, "is_backed_up", property(lambda s: False))]


@canary("what a new primary holds until it is ready has no bound, and is held as often as it comes")
def _requests_held_without_a_bound() -> list[Patch]:
    def hold(self: Leading, s: State, message: Message) -> Admission:
        requests = self.requests
        requests.waiting[s.make(Command.PING, nonce=len(requests.waiting)).header.checksum] = message, s.now
        requests.bytes += len(message.body)
        return Admission.ACCEPTED

    return [(Leading, "hold", hold)]


@canary("a queue that is full takes one request more")
def _queue_without_a_bound() -> list[Patch]:
    return [(Requests, "is_full", lambda self, config, message: False)]


@canary("what was heard and promised in a view outlives it")
def _view_scope_kept() -> list[Patch]:
    def enter_view(self: State, view: int) -> None:
        self.view = view

    return [(State, "enter_view", enter_view)]


@canary("prepares that come early are kept without a bound")
def _early_prepares_all_kept() -> list[Patch]:
    def keep_early(self: Following, s: State, message: Message) -> None:
        s.repairs.early[message.header.op] = message

    return [(Following, "keep_early", keep_early)]


@canary("entries of a log that was replaced are still asked for")
def _wanted_when_the_log_is_another() -> list[Patch]:
    return [(repair, "on_installed", lambda s: None)]


@canary("headers are asked for though nothing is missing")
def _headers_asked_for_ever() -> list[Patch]:
    original = repair._request_headers

    def request_headers(s: State) -> None:
        original(s)
        if not s.scope.headers_requests and not s.is_primary:
            repair._ask_for_headers(s, s.log.linked + 1)

    return [(repair, "_request_headers", request_headers), (repair, "_is_wanting", lambda s: True)]


@canary("a primary does not wait for its own write when nobody else could lead without that")
def _own_write_not_waited_for() -> list[Patch]:
    return [(abdication, "is_waited_for_by_all", lambda s, oldest: False)]


@canary("requests that were refused go on counting against the bytes of the queue")
def _refused_requests_count_on() -> list[Patch]:
    original = Requests.refused

    def refused(self: Requests) -> list[Message]:
        size = self.bytes
        found = original(self)
        self.bytes = size
        return found

    return [(Requests, "refused", refused)]
