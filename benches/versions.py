"""Two installed versions against each other: `kimberlite bench` of each in turn, pair after pair.

    python benches/versions.py --old OLD/bin/python --new NEW/bin/python [--pairs 10] [--seconds 4] [LOAD ...]

A pair is one run of each version, a few seconds apart, in alternating order, so that both meet the
same machine. What counts is the ratio of a pair, new to old, in operations a second: above 1 the new
one is faster. Prints for each load the geometric mean of the ratios with its 95 % interval (of
bootstrap resamples of the pairs); --json one line with all of it. Needs an idle machine with two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys

LOADS = {
    "1": ("--concurrency", "1"),
    "64": ("--concurrency", "64"),
    "256": ("--concurrency", "256"),
    "batch": ("--concurrency", "1", "--batch", "8192"),
}
RESAMPLES = 10_000


def rate(python: str, load: str, seconds: float) -> float:
    """Operations a second of one run."""
    command = [python, "-P", "-m", "kimberlite", "bench", "--json", "--seconds", str(seconds), *LOADS[load]]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return float(json.loads(done.stdout)["ops_per_s"])


def interval(logarithms: list[float]) -> tuple[float, float]:
    """The 95 % interval of the geometric mean."""
    generator = random.Random(len(logarithms))
    means = sorted(statistics.fmean(generator.choices(logarithms, k=len(logarithms))) for _ in range(RESAMPLES))
    return math.exp(means[int(0.025 * RESAMPLES)]), math.exp(means[int(0.975 * RESAMPLES)])


def compare(old: str, new: str, load: str, pairs: int, seconds: float) -> dict[str, object]:
    rates: list[tuple[float, float]] = []
    for number in range(pairs):
        if number % 2:
            after, before = rate(new, load, seconds), rate(old, load, seconds)
        else:
            before, after = rate(old, load, seconds), rate(new, load, seconds)
        rates.append((before, after))
    logarithms = [math.log(after / before) for before, after in rates]
    low, high = interval(logarithms)
    return {
        "load": load,
        "pairs": pairs,
        "old_per_s": round(statistics.median(before for before, _ in rates), 1),
        "new_per_s": round(statistics.median(after for _, after in rates), 1),
        "ratio": round(math.exp(statistics.fmean(logarithms)), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"of {', '.join(LOADS)}; default: all")
    parser.add_argument("--old", required=True, help="interpreter of the version to compare with")
    parser.add_argument("--new", default=sys.executable, help="interpreter of the version in question")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured in each run")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    unknown = [load for load in chosen.loads if load not in LOADS]
    if unknown or chosen.pairs < 2:
        parser.error(f"unknown loads: {unknown}" if unknown else "at least two pairs")
    rows = []
    for load in chosen.loads or LOADS:
        row = compare(chosen.old, chosen.new, load, chosen.pairs, chosen.seconds)
        rows.append(row)
        if not chosen.json:
            sentence = "{load:>6}: new {new_per_s}/s, old {old_per_s}/s, ratio {ratio} ({low} to {high}), {pairs} pairs"
            print(sentence.format(**row), flush=True)
    if chosen.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
