"""Planted bugs of counting: quorums, acknowledgements, and what is promised before it is durable."""

from __future__ import annotations

from kimberlite.types import Message
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import normal, quorum, view_change
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.state import Prepared


@canary("a quorum is one replica too few")
def _quorum_off_by_one() -> list[Patch]:
    def may_commit(r: Replica, prepared: Prepared) -> bool:
        return quorum.reached(prepared.acks, max(r.quorums.replication - 1, 1))

    return [(normal, "may_commit", may_commit)]


@canary("a second acknowledgement of the same replica counts as another one")
def _replica_counted_twice() -> list[Patch]:
    original = normal._count

    def count(r: Replica, index: int, op: int) -> None:
        for prepared in r.pipeline:
            if prepared.header.op <= op and prepared.acks >> index & 1:
                prepared.acks |= (prepared.acks + 1) & ~prepared.acks
        original(r, index, op)

    return [(normal, "_count", count)]


@canary("a backup acknowledges its highest entry, with gaps below it")
def _ack_with_gap_below() -> list[Patch]:
    def acknowledged_op(r: Replica) -> int:
        return max(r.log.on_disk, default=r.log.durable)

    return [(normal, "acknowledged_op", acknowledged_op)]


@canary("the primary counts itself when it sends, not when it has written")
def _primary_counts_itself_early() -> list[Patch]:
    original = normal._prepare

    def prepare(r: Replica, batch: list[tuple[Message, int]]) -> None:
        original(r, batch)
        normal._count(r, r.index, r.log.op)

    return [(normal, "_prepare", prepare)]


@canary("a backup acknowledges what it has received, not what it has written")
def _ack_before_durable() -> list[Patch]:
    return [(normal, "acknowledged_op", lambda r: r.log.linked)]


@canary("a backup acknowledges its log when it leaves the view")
def _ack_in_view_change() -> list[Patch]:
    original = view_change.enter

    def enter(r: Replica, view: int, cause: int) -> None:
        original(r, view, cause)
        r.scope.ack_due = True

    return [(view_change, "enter", enter), (normal, "may_acknowledge", lambda r: not r.is_primary)]


@canary("the new primary commits old ops by what it heard in the view change")
def _old_ops_committed_by_old_acks() -> list[Patch]:
    original = view_change._lead

    def lead(r: Replica) -> None:
        evidence = list(r.scope.evidence.values())
        original(r)
        for prepared in r.pipeline:
            for message in evidence:
                if view_change.has_copy(message, prepared.header.op, prepared.header):
                    prepared.acks |= 1 << message.replica
        normal._count(r, r.index, r.log.durable)

    return [(view_change, "_lead", lead)]
