"""The simulator of two installed versions against each other: what a delivered message costs, all checks included.

    python benches/simulator.py --old OLD/bin/python --new NEW/bin/python [--seeds 0:60] [--plans old] [--instructions]

Seed by seed, in alternating order, each version in one process of its own, so that both meet the same machine. A
seed is not the same run in two versions: what counts is processor time per message that was delivered, over all
seeds. Above 1 the ratio says that the new one is faster; its 95 % interval is of bootstrap resamples of the seeds.

--plans own: each version draws its own plans, and the ratio compares campaigns, with the faults that each knows.
--plans old: both carry out the plans that the old version draws, and the ratio compares the programs.

--instructions counts instructions instead (valgrind's callgrind; start and imports taken off): slow, some seeds will
do, and independent of what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from contextlib import ExitStack
from typing import NamedTuple

RESAMPLES = 10_000
# What each version runs. It is given lines, each a seed and perhaps the fields of its plan, and answers each with
# seconds and messages.
CHILD = """
import dataclasses, gc, json, sys, time
from kimberlite.vopr.plan import Plan, draw
from kimberlite.vopr.world import World
for line in sys.stdin:
    seed, fields = json.loads(line)
    if fields == "shown":
        print(json.dumps(dataclasses.asdict(draw(seed))), flush=True)
        continue
    began = time.process_time()
    world = World(Plan(**fields) if fields is not None else draw(seed))
    world.run()
    print(json.dumps([time.process_time() - began, world.network.received]), flush=True)
    del world
    gc.collect()
"""


class Cost(NamedTuple):
    """What seeds took, seconds or instructions, and the messages that were delivered in them."""

    spent: float
    messages: int

    @property
    def per_message(self) -> float:
        return self.spent / self.messages


class Version:
    """One installed version: a process that runs the seeds it is given."""

    def __init__(self, python: str, under: tuple[str, ...] = ()) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [*under, python, "-P", "-c", CHILD],
            env={**environment, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if under else None,
            text=True,
        )

    def ask(self, seed: int, fields: object = None) -> object:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([seed, fields]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"seed {seed} did not end well; see above, or `kimberlite vopr run --seeds {seed}:{seed + 1}`"
            )
        return json.loads(line)

    def run(self, seed: int, fields: object) -> Cost:
        seconds, messages = self.ask(seed, fields)  # type: ignore[misc]
        return Cost(seconds, messages)

    def end(self) -> str:
        """What it wrote to standard error, when that was asked for."""
        _, errors = self.process.communicate()
        return errors or ""

    def __enter__(self) -> Version:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def ratio(pairs: list[tuple[Cost, Cost]]) -> float:
    """Of what a message costs, old to new."""
    old, new = (
        Cost(sum(cost.spent for cost in side), sum(cost.messages for cost in side)) for side in zip(*pairs, strict=True)
    )
    return old.per_message / new.per_message


def interval(pairs: list[tuple[Cost, Cost]]) -> tuple[float, float]:
    """The 95 % interval of the ratio."""
    generator = random.Random(len(pairs))
    ratios = sorted(ratio(generator.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES)]


def plans_of(python: str, seeds: range) -> dict[int, object]:
    with Version(python) as version:
        return {seed: version.ask(seed, "shown") for seed in seeds}


def timed(old: str, new: str, plans: dict[int, object]) -> dict[str, object]:
    pairs: list[tuple[Cost, Cost]] = []
    with ExitStack() as stack:
        versions = [stack.enter_context(Version(python)) for python in (old, new)]
        for number, (seed, fields) in enumerate(plans.items()):
            order = (1, 0) if number % 2 else (0, 1)
            costs = {side: versions[side].run(seed, fields) for side in order}
            pairs.append((costs[0], costs[1]))
    low, high = interval(pairs)
    total = [sum(cost.messages for cost in side) for side in zip(*pairs, strict=True)]
    spent = [sum(cost.spent for cost in side) for side in zip(*pairs, strict=True)]
    return {
        "unit": "us",
        "old_messages": total[0],
        "new_messages": total[1],
        "old_per_message": round(1e6 * spent[0] / total[0], 2),
        "new_per_message": round(1e6 * spent[1] / total[1], 2),
        "ratio": round(ratio(pairs), 3),
        "low": round(low, 3),
        "high": round(high, 3),
    }


def instructions(python: str, plans: dict[int, object]) -> Cost:
    """Of all seeds together, less those of a process that runs none."""
    counts, messages = [], 0
    with ExitStack() as stack:
        command = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        for asked in (plans, {}):
            version = stack.enter_context(Version(python, command))
            messages += sum(version.run(seed, fields).messages for seed, fields in asked.items())
            found = re.search(r"Collected : (\d+)", version.end())
            if found is None:
                raise SystemExit("valgrind did not say how many instructions it has counted")
            counts.append(int(found[1]))
    return Cost(counts[0] - counts[1], messages)


def counted(old: str, new: str, plans: dict[int, object]) -> dict[str, object]:
    before, after = instructions(old, plans), instructions(new, plans)
    return {
        "unit": "instructions",
        "old_messages": before.messages,
        "new_messages": after.messages,
        "old_per_message": round(before.per_message),
        "new_per_message": round(after.per_message),
        "ratio": round(before.per_message / after.per_message, 3),
    }


def seed_range(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="interpreter of the version to compare with")
    parser.add_argument("--new", default=sys.executable, help="interpreter of the version in question")
    parser.add_argument("--seeds", type=seed_range, default=range(60), metavar="A:B", help="A up to B-1; default 0:60")
    parser.add_argument("--plans", choices=("own", "old"), default="own", help="whose plans; see above")
    parser.add_argument("--instructions", action="store_true", help="count instructions")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if len(chosen.seeds) < 2:
        parser.error("at least two seeds")
    plans = plans_of(chosen.old, chosen.seeds) if chosen.plans == "old" else dict.fromkeys(chosen.seeds)
    row = (counted if chosen.instructions else timed)(chosen.old, chosen.new, plans)
    row = {"seeds": f"{chosen.seeds.start}:{chosen.seeds.stop}", "plans": chosen.plans, **row}
    if chosen.json:
        print(json.dumps(row))
        return
    text = "seeds {seeds}, plans {plans}: new {new_per_message} {unit} a message, old {old_per_message}, ratio {ratio}"
    text += " ({low} to {high})" if "low" in row else ""
    print((text + "; {new_messages} and {old_messages} messages").format(**row))


if __name__ == "__main__":
    main()
