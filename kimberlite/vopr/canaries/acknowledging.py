"""Planted bugs of counting: quorums, acknowledgements, and what is promised before it is durable."""

from __future__ import annotations

from itertools import product

from kimberlite.types import Command, Message
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import following, journaling, leading, quorum, transitions
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.choice import has_copy
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.role import BecomeLeader, Role
from kimberlite.vsr.state import Prepared, State


@canary("a quorum is one replica too few")
def _quorum_off_by_one() -> list[Patch]:
    def may_commit(self: Leading, s: State, prepared: Prepared) -> bool:
        return quorum.reached(prepared.acks, max(s.membership.quorums.replication - 1, 1))

    return [(Leading, "may_commit", may_commit)]


@canary("a second acknowledgement of the same replica counts as another one")
def _replica_counted_twice() -> list[Patch]:
    original = Leading.count

    def count(self: Leading, s: State, index: int, op: int) -> None:
        for prepared in self.pipeline:
            if prepared.header.op <= op and prepared.acks >> index & 1:
                prepared.acks |= (prepared.acks + 1) & ~prepared.acks
        original(self, s, index, op)

    return [(Leading, "count", count)]


@canary("a backup acknowledges its highest entry, with gaps below it")
def _ack_with_gap_below() -> list[Patch]:
    def acknowledged_op(s: State) -> int:
        return max(s.log.on_disk, default=s.log.durable)

    return [(following, "acknowledged_op", acknowledged_op), (leading, "acknowledged_op", acknowledged_op)]


@canary("the primary counts itself when it sends, not when it has written")
def _primary_counts_itself_early() -> list[Patch]:
    original = Leading.prepare

    def prepare(self: Leading, s: State, batch: list[tuple[Message, int]]) -> None:
        original(self, s, batch)
        self.count(s, s.index, s.log.op)

    return [(Leading, "prepare", prepare)]


@canary("a backup acknowledges what it has received, not what it has written")
def _ack_before_durable() -> list[Patch]:
    def acknowledged_op(s: State) -> int:
        return s.log.linked

    return [(following, "acknowledged_op", acknowledged_op), (leading, "acknowledged_op", acknowledged_op)]


@canary("a backup acknowledges its log when it leaves the view")
def _ack_in_view_change() -> list[Patch]:
    def acknowledge(self: Role, s: State) -> None:
        header = s.log.headers.get(journaling.acknowledged_op(s))
        if isinstance(self, ChangingView) and not self.nonce and not s.is_primary and header is not None:
            s.send(s.primary, s.make(Command.PREPARE_OK, op=header.op, context=header.checksum))

    return [(Role, "acknowledge", acknowledge)]


@canary("the new primary commits old ops by what it heard in the view change")
def _old_ops_committed_by_old_acks() -> list[Patch]:
    original = transitions.lead

    def lead(s: State, transition: BecomeLeader) -> None:
        evidence = list(s.role.evidence.values()) if isinstance(s.role, ChangingView) else []
        original(s, transition)
        if isinstance(s.role, Leading):
            for prepared, given in product(s.role.pipeline, evidence):
                if has_copy(given, prepared.header.op, prepared.header):
                    prepared.acks |= 1 << given.replica
            s.role.count(s, s.index, s.log.durable)

    return [(transitions, "lead", lead)]
