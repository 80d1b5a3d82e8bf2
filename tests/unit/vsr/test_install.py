"""A log that was just installed, and is not yet durable, is replaced by the next view's."""

from __future__ import annotations

from views import start_view

from kimberlite._fast.framing import make_header
from kimberlite.node.driver import FastCodec
from kimberlite.types import Command, Header, Operation, Recovered, ViewState, root_header
from kimberlite.vsr.config import CoreConfig
from kimberlite.vsr.replica import Replica

CLUSTER = b"i" * 16
ROOT = root_header(make_header, CLUSTER)


def following(before: Header) -> Header:
    return make_header(
        cluster=CLUSTER,
        command=Command.PREPARE,
        op=before.op + 1,
        parent=before.checksum,
        operation=Operation.NOOP,
    )


def test_what_was_applied_stays_committed_through_a_second_installation() -> None:
    """The installed log is canonical at once; the next one, of which too little is known here,
    must not take back what was applied."""
    log = [ROOT]
    for _ in range(5):
        log.append(following(log[-1]))
    core = Replica(
        config=CoreConfig(CLUSTER, 0, 3),
        codec=FastCodec(),
        recovered=Recovered(ViewState(view=1, log_view=1, suffix=(ROOT,)), 3, log[3], 3, 3, commit=2),
        headers=log[2:3],
        seed=1,
        now=1,
    )
    for apply in core.take_work().apply:
        core.applied_op(apply.op, (), 2)
    assert core.applied == 2
    start_view(core, [log[3]], 10, view=2, commit=3)
    for apply in core.take_work().apply:
        core.applied_op(apply.op, (), 11)
    assert core.applied == 3
    start_view(core, [log[5]], 20, view=4, commit=5)
    core.take_work()
    assert core.log.durable == 3
    assert core.log.committed == 3
