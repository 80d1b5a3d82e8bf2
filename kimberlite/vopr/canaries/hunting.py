"""Looks for a planted bug with the seeds of an ordinary campaign, nothing tuned, until a check fires.

A seed that fails without the bug as well does not count. What has been tried can be kept in a file (`Notes`): all
bugs take an hour or so, and what was cut short goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kimberlite.errors import CampaignStateError
from kimberlite.vopr import checkers
from kimberlite.vopr.campaign import Campaign, fingerprint
from kimberlite.vopr.canaries.registry import CANARIES, planted
from kimberlite.vopr.drill import drill
from kimberlite.vopr.plan import REQUESTS
from kimberlite.vopr.run import Script, run

SEEDS_MAX = 500
SLICE = 20  # seeds of a bug at most that are tried again after an end in the midst of them


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


class Notes:
    """What has been tried, a line for each piece of work, in a file that only grows: the last line of a bug counts.
    The first line says of which code and runs; those of others are others' notes."""

    def __init__(self, path: Path, requests: int = REQUESTS) -> None:
        """Raises CampaignStateError, having changed nothing, when the file is of something else."""
        self.hunts: dict[str, Hunt] = {}
        self._path = path
        key = {"planted": 1, "requests": requests, "code": fingerprint()}
        if not path.exists():
            self._write(key)
            return
        try:
            found, *hunts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self.hunts = {hunt["name"]: Hunt(**hunt) for hunt in hunts}
        except (ValueError, KeyError, TypeError) as error:
            raise CampaignStateError(f"{path} holds no notes of planted bugs: {error!r}; name another file") from error
        if found != key:
            raise CampaignStateError(
                f"{path} is of other code or runs: it says {found}, here it is {key}; name another file", path=str(path)
            )

    def add(self, hunt: Hunt) -> None:
        self.hunts[hunt.name] = hunt
        self._write(asdict(hunt))

    def _write(self, value: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def hunt_all(
    names: Sequence[str], seeds_max: int = SEEDS_MAX, requests: int = REQUESTS, notes: Notes | None = None
) -> Generator[Hunt, None, None]:
    """The end of the hunt for each of these bugs; what the notes have is not tried again."""
    for name in names:
        known = notes.hunts.get(name) if notes is not None else None
        while known is None or (not known.check and known.seeds < seeds_max):
            tried = known.seeds if known is not None else 0
            whole = notes is None or CANARIES[name].labels  # what a campaign does not reach shows in one go only
            step = hunt(name, seeds_max - tried if whole else min(SLICE, seeds_max - tried), requests, tried)
            known = replace(step, seeds=0 if step.check == "drill" else tried + step.seeds)
            if notes is not None:
                notes.add(known)
        yield known
