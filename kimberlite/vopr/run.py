"""Runs of the simulator: one seed, a range of seeds on several processes, and what came of them.

A `Script` says which run; an `Outcome` says what happened. Outcomes come in the order of their seeds, whatever number
of processes shared them.

`python -m kimberlite.vopr.run FIRST LAST STEP REQUESTS PLAN [1]` prints one outcome a line, as JSON: the
workers of a campaign. 1: recorded.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kimberlite.errors import UsageError
from kimberlite.vopr import persistent
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.drill import drill
from kimberlite.vopr.faults import Fault, check
from kimberlite.vopr.plan import DEFAULT, REQUESTS, Plan, draw, select
from kimberlite.vopr.truth import METRICS, RecordedWorld
from kimberlite.vopr.workers import Workers, show
from kimberlite.vopr.world import World


@dataclass(frozen=True, slots=True)
class Script:
    """Which run. overrides: fields of the plan that differ from what the seed draws.
    faults: instead of those that the seed draws; None keeps them. name: of the plan, as in plan.PLANS. record: with the
    metrics of the replicas held against a model (vopr/truth.py): the same run, at three times the cost.

    Raises UsageError for a fault that no run can carry out, or a plan that there is not.
    """

    seed: int
    requests: int = REQUESTS
    overrides: Mapping[str, int | float | str] = field(default_factory=dict)
    faults: tuple[Fault, ...] | None = None
    name: str = DEFAULT
    record: bool = False

    def __post_init__(self) -> None:
        check(self.faults or ())
        select(self.name)

    def plan(self) -> Plan:
        # The overrides come from this program or from a file that `parse` has checked.
        drawn = draw(self.seed, self.requests, self.name)
        return dataclasses.replace(drawn, **self.overrides)  # type: ignore[arg-type]

    def to_json(self) -> str:
        lines = [json.dumps(list(fault)) for fault in self.faults or ()]
        faults = "null" if self.faults is None else "[\n    " + ",\n    ".join(lines) + "\n  ]" if lines else "[]"
        return (
            f'{{\n  "plan": {json.dumps(self.name)},\n  "seed": {self.seed},\n  "requests": {self.requests},\n'
            f'  "overrides": {json.dumps(dict(self.overrides))},\n  "faults": {faults}\n}}\n'
        )

    @classmethod
    def parse(cls, text: str) -> Script:
        """The inverse of to_json. Raises UsageError."""
        try:
            value = json.loads(text)
            script = cls(
                _whole(value["seed"]),
                _whole(value["requests"]),
                {str(name): number for name, number in value["overrides"].items()},
                None
                if value["faults"] is None
                else tuple((_whole(when), str(kind), _whole(argument)) for when, kind, argument in value["faults"]),
                str(value.get("plan", DEFAULT)),
            )
            persistent.check(script.plan().persistent)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"no script of a run: {error!r}; make one with `kimberlite vopr minimize`") from error
        return script


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. check: the name of the broken invariant, empty when all held."""

    seed: int
    trace_hash: str
    messages: int
    check: str
    violation: str
    tail: str
    labels: dict[str, int]
    faults: tuple[Fault, ...]


def run(script: Script, *, full_trace: bool = False) -> Outcome:
    """Carry out one run. Cost: some tenths of a second for a hundred requests."""
    gc.collect()  # the world of the run before is one large cycle: left to pile up, they make all memory cold
    world: World | None = None
    check = text = ""
    try:
        kind = RecordedWorld if script.record else World
        world = kind(script.plan(), keep_trace=full_trace, faults=script.faults)
        world.run()
    except Violation as violation:
        check, text = violation.name, str(violation)
    except Exception as error:
        # Whatever stops the code under test is a finding of that seed, to be reported with it.
        where = traceback.extract_tb(error.__traceback__)[-1]
        check = "exception"
        text = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno} of {where.filename})"
    if world is None:
        return Outcome(script.seed, "", 0, check, text, "", {}, ())
    labels = dict(world.counts)
    labels["agreements"] = world.checkers.agreements
    labels["quorum_audits"] = world.checkers.quorum_audits
    labels["corrupted"] = world.network.corrupted
    return Outcome(
        script.seed,
        world.trace.digest(),
        world.network.sent,
        check,
        text,
        world.trace.text(),
        labels,
        tuple(world.injected),
    )


def outcomes(
    first: int, last: int, requests: int, jobs: int = 1, plan: str = DEFAULT, record: bool = False
) -> Generator[Outcome, None, None]:
    """The runs of seeds first..last-1, in order. With several jobs, that many processes share them.

    Begins with the drill of the checkers: a checker that does not fire proves nothing.
    """
    drill()
    if jobs <= 1:
        for seed in range(first, last):
            yield run(Script(seed, requests, name=plan, record=record))
        return
    count = min(jobs, last - first)
    shares = [(first + index, last, count, requests, plan, int(record)) for index in range(count)]
    with Workers(__name__, shares) as workers:
        for seed in range(first, last):
            yield decode(workers.next_of((seed - first) % count))


def decode(value: dict[str, Any]) -> Outcome:
    """The inverse of dataclasses.asdict, by way of JSON."""
    value["faults"] = tuple((when, kind, argument) for when, kind, argument in value["faults"])
    return Outcome(**value)


def check_determinism(seed: int, trace_hash: str, requests: int, plan: str = DEFAULT) -> Outcome | None:
    """Run a seed again: None when it is the same run, else an outcome that says so."""
    again = run(Script(seed, requests, name=plan))
    if again.trace_hash == trace_hash:
        return None
    return dataclasses.replace(
        again,
        check="E0 determinism",
        violation=f"E0 determinism: the trace of seed {seed} is {trace_hash}, then {again.trace_hash}",
    )


def replay_command(outcome: Outcome, requests: int, plan: str = DEFAULT) -> str:
    command = f"kimberlite vopr replay {outcome.seed}"
    if outcome.check == METRICS:
        command += " --record"
    if plan != DEFAULT:
        command += f" --plan {plan}"
    return command + (f" --requests {requests}" if requests != REQUESTS else "")


def _worker(arguments: Sequence[str]) -> None:
    first, last, step, requests = map(int, arguments[:4])
    plan, record = arguments[4], arguments[5:] == ["1"]
    for seed in range(first, last, step):
        show(dataclasses.asdict(run(Script(seed, requests, name=plan, record=record))))


if __name__ == "__main__":
    _worker(sys.argv[1:])
