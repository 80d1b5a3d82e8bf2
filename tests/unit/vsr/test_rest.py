"""Who is at rest has nothing to do: held against whole simulated runs, in which a round is made all the same."""

from __future__ import annotations

from collections import Counter

import pytest

from kimberlite.vopr.plan import draw
from kimberlite.vopr.world import World
from kimberlite.vsr import rest
from kimberlite.vsr.replica import Replica


@pytest.mark.parametrize("seed", range(3))
def test_a_round_at_rest_would_ask_for_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[bool] = Counter()

    def is_at_rest(self: Replica) -> bool:
        s = self.state
        said = rest.is_at_rest(s)
        found[said] += 1
        if said:
            told = list(s.outbox.work.events)
            known = s.log.committed, s.commit_max, s.execution.emitted, s.log.journal_head, s.prng._state
            work = self.take_work()
            assert work.events == told
            assert not (work.send or work.persist or work.apply or work.serve or work.refused)
            assert known == (s.log.committed, s.commit_max, s.execution.emitted, s.log.journal_head, s.prng._state)
            s.outbox.work.events = work.events
        return said

    monkeypatch.setattr(Replica, "is_at_rest", property(is_at_rest))
    World(draw(seed)).run()
    assert found[True] > 100 and found[False] > 100
