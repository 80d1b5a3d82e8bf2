"""Planted bugs of repair, and of what frames bring that nobody asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kimberlite._fast import framing
from kimberlite.errors import FrameError
from kimberlite.types import HEADER_SIZE, Command, Header, Message
from kimberlite.vopr import network
from kimberlite.vopr.canaries.registry import Patch, Unverified, canary
from kimberlite.vsr import conflict, repair, replica
from kimberlite.vsr.log import Log
from kimberlite.vsr.pacing import Pacing
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.state import State
from kimberlite.vsr.work import ServePrepare


@canary("the body of a frame is not verified when it arrives")
def _frame_body_unverified() -> list[Patch]:
    def parse(buffer: bytes, start: int, end: int, limit: int) -> Any:
        try:
            return framing.parse(buffer, start, end, limit)
        except FrameError:
            header = framing.decode_header(buffer)
            return [(header, buffer[HEADER_SIZE : header.size])], 0, 0

    return [(network, "framing", Unverified(parse=parse))]


@canary("repairs are asked, served and taken by number alone")
def _repair_by_number_alone() -> list[Patch]:
    original = Replica._admit

    def admit(self: Replica, message: Message) -> None:
        header, s = message.header, self.state
        is_wanted = header.op in s.log.headers and header.op in s.repairs.requests and not s.log.knows(header)
        if header.command == Command.PREPARE and is_wanted:
            repair.on_body(s, message)
        else:
            original(self, message)

    def on_request_prepare(s: State, message: Message) -> None:
        header = message.header
        held, known = s.log.bodies.get(header.op), s.log.headers.get(header.op)
        if held is not None:
            s.send(header.replica, held)
        elif known is not None:
            s.serve(ServePrepare(header.replica, header.op, known.checksum))

    return [
        (Replica, "_admit", admit),
        (replica._HANDLERS, Command.REQUEST_PREPARE, on_request_prepare),
    ]


@canary("a repair that is never answered is never asked again")
def _repair_never_expires() -> list[Patch]:
    original = repair._plan

    def plan_repairs(s: State) -> None:
        for request in s.repairs.requests.values():
            request.sent_at = s.now
        original(s)

    return [(repair, "_plan", plan_repairs)]


@canary("who is silent is asked for what is missing like anybody else")
def _silent_peer_asked() -> list[Patch]:
    return [(repair, "is_worth_asking", lambda s, replica: True)]


@canary("damage below a trim is repaired like any other")
def _damage_outlives_its_trim() -> list[Patch]:
    return [(Log, "trim", lambda self, first_op: None)]


@canary("a view change forgets what was asked for")
def _repair_forgotten_in_a_view_change() -> list[Patch]:
    original = State.enter_view

    def enter_view(self: State, view: int) -> None:
        original(self, view)
        self.repairs.requests.clear()
        for peer in self.peers.values():
            peer.repairs = 0

    return [(State, "enter_view", enter_view)]


@canary("what brings nothing is asked for again as soon as that is known")
def _barren_questions_repeated() -> list[Patch]:
    return [(Pacing, "may_ask", lambda self, question, now: True)]


@canary("what another log has left, as a header shows, is cut off when there is time for it")
def _divergence_cut_later() -> list[Patch]:
    learn, cut = repair._learn_headers, repair._truncate_divergent
    learning: list[State] = []

    def learn_headers(s: State, headers: Sequence[Header]) -> bool:
        learning.append(s)
        is_news = learn(s, headers)
        learning.pop()
        return is_news

    def truncate_divergent(s: State) -> None:
        if s not in learning:
            cut(s)

    return [(repair, "_learn_headers", learn_headers), (repair, "_truncate_divergent", truncate_divergent)]


@canary("a journal that is cut below what was repaired in its place still has that, as the core believes")
def _cut_takes_nothing_above() -> list[Patch]:
    original = Log.drop_candidates

    def drop_candidates(self: Log) -> None:
        there = set(self.on_disk)
        original(self)
        self.on_disk |= there

    return [(Log, "drop_candidates", drop_candidates)]


@canary("more headers are asked for than an answer holds, from the far end")
def _asked_for_from_too_far_below() -> list[Patch]:
    return [(conflict, "first_asked", lambda s, op: max(op - conflict.ASK_OPS + 1, 1))]


@canary("an entry is asked for without end by the name that a damaged disk gave it")
def _identity_never_doubted() -> list[Patch]:
    return [(repair, "doubt_identity", lambda s, op: None)]
