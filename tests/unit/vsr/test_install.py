"""A log that was just installed, and is not yet durable, is replaced by the next view's."""

from __future__ import annotations

from lab import ROOT, chain, restarted

from kimberlite.types import Recovered, ViewState


def test_what_was_applied_stays_committed_through_a_second_installation() -> None:
    """The installed log is canonical at once; the next one, of which too little is known here,
    must not take back what was applied."""
    log = chain(5)
    recovered = Recovered(ViewState(view=1, log_view=1, suffix=(ROOT,)), 3, log[3], 3, 3, commit=2)
    core = restarted(recovered, log[2:3], index=0, now=1)
    core.execute(2)
    assert core.applied == 2
    core.begin_view(2, [log[3]], 10, commit=3)
    core.execute(11)
    assert core.applied == 3
    core.begin_view(4, [log[5]], 20, commit=5)
    core.take_work()
    assert core.log.durable == 3
    assert core.log.committed == 3
