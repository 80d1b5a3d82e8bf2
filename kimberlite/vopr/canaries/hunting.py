"""Looks for a planted bug with the seeds of an ordinary campaign, nothing tuned, until a check fires.

A seed that fails without the bug as well does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

from kimberlite.vopr import checkers
from kimberlite.vopr.campaign import Campaign
from kimberlite.vopr.canaries.registry import CANARIES, planted
from kimberlite.vopr.drill import drill
from kimberlite.vopr.plan import REQUESTS
from kimberlite.vopr.run import Script, run

SEEDS_MAX = 500


@dataclass(frozen=True, slots=True)
class Hunt:
    """How a planted bug was found: after how many seeds, by which check; check is empty when it was not."""

    name: str
    seeds: int
    check: str
    violation: str
    seed: int | None = None


def hunt(name: str, seeds_max: int = SEEDS_MAX, requests: int = REQUESTS, first: int = 0) -> Hunt:
    """Run seeds from `first` on with the bug inside until a check finds it."""
    kind = CANARIES[name]
    with planted(name):
        try:
            drill()
        except checkers.Violation as violation:
            return Hunt(name, 0, violation.name, str(violation))
    campaign = Campaign()
    for count, seed in enumerate(range(first, first + seeds_max), 1):
        script = Script(seed, requests)
        with planted(name):
            outcome = run(script)
            check, text = outcome.check, outcome.violation
            if kind.twice and not check and (again := run(script)).trace_hash != outcome.trace_hash:
                check = "E0 determinism"
                text = f"the trace of seed {seed} is {outcome.trace_hash}, then {again.trace_hash}"
        campaign.add(outcome)
        if kind.labels and not check and (unreached := campaign.unreached()):
            return Hunt(name, count, "E4 coverage", f"never reached: {', '.join(unreached)}")
        if check and not run(script).check:
            return Hunt(name, count, check, text, seed)
    return Hunt(name, seeds_max, "", "")
