#!/usr/bin/env python3
"""Durable appends on three-replica clusters, side by side on this machine.

    peers.py all --out results.jsonl --table results.md
    peers.py etcd --seconds 5
    peers.py failover --signal STOP --trials 30
    peers.py table results.jsonl

Each system's cluster is started on loopback in a fresh temporary directory, measured, stopped and removed. One JSON
object a row goes to standard output (and to --out); progress goes to standard error. Exit code 1: a system failed, or
one that was asked for by name was skipped, or lost an acknowledged append. See README.md.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from sidebyside import failover
from sidebyside.rows import WORKLOADS, Results, Row, concurrency_of, shortfalls
from sidebyside.systems import etcd, kimberlite, machine, nats, pysyncobj, redis, tigerbeetle
from sidebyside.tables import read_rows, table
from sidebyside.workspace import Skip, note

Bench = Callable[[argparse.Namespace, Results], None]

BENCHES: dict[str, Bench] = {
    "limits": machine.bench,
    "etcd": etcd.bench,
    "nats": nats.bench,
    "pysyncobj": pysyncobj.bench,
    "tigerbeetle": tigerbeetle.bench,
    "redis": redis.bench,
    "kimberlite": kimberlite.bench,
}
NAMES = [*BENCHES, "failover"]


def run_bench(bench: Bench, system: str, args: argparse.Namespace, results: Results, **of: str) -> list[Row]:
    """Measure a system; the rows. `of` is said of it when it is skipped or fails."""
    before = len(results.rows)
    started = time.monotonic()
    name = " ".join([system, *of.values()])
    note(f"== {name}")
    try:
        bench(args, results)
    except Skip as reason:
        note(f"skip {name}: {reason}")
        results.skip(system, reason, **of)
    except Exception as error:  # one system's failure leaves the others to measure
        traceback.print_exc()
        said = str(error).strip() or type(error).__name__
        results.add({"system": system, **of, "error": said.splitlines()[-1][:300]})
    note(f"== {name}: {time.monotonic() - started:.0f} s")
    return results.rows[before:]


def run_named(name: str, args: argparse.Namespace, results: Results) -> list[Row]:
    """One of NAMES."""
    if name != "failover":
        return run_bench(BENCHES[name], name, args, results)
    rows = []
    for target in args.targets:
        rows += run_bench(functools.partial(failover.bench, target), target, args, results, workload="failover")
    return rows


def workload_list(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name != "batch" and not concurrency_of(name):
            raise argparse.ArgumentTypeError(f"{name!r} is neither batch nor cN")
    return names


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        given = text.split(",")
        if unknown := set(given) - set(known):
            said = ", ".join(map(repr, sorted(unknown)))
            raise argparse.ArgumentTypeError(f"no system {said}; there are {', '.join(known)}")
        return given

    return names


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return number


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sub = parser.add_subparsers(dest="command", required=True)
    for name in [*NAMES, "all"]:
        p = sub.add_parser(name)
        p.add_argument("--seconds", type=float, default=4.0, help="measured time of a workload")
        p.add_argument("--workloads", type=workload_list, default=workload_list(WORKLOADS))
        p.add_argument("--dir", help="where the data goes, on the disk to measure")
        p.add_argument("--out", help="append the rows to this file too")
        p.add_argument("--table", help="write the table of these rows here")
        p.add_argument(
            "--no-variants",
            dest="variants",
            action="store_false",
            help="leave out the second shapes of etcd's and TigerBeetle's clients",
        )
        p.add_argument("--rounds", type=at_least(1), default=1, help="repeat; the table has the medians")
        if name == "all":
            p.add_argument("--only", type=names_of(NAMES), help="these alone, as etcd,kimberlite")
        if name in ("all", "failover"):
            add_failover_arguments(p)
    p = sub.add_parser("table")
    p.add_argument("files", nargs="+")
    p.add_argument("--base", default="kimberlite", help="the system the ratios are of")
    return parser.parse_args(argv)


def add_failover_arguments(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("failover")
    known = failover.TARGETS
    group.add_argument("--targets", type=names_of(known), default=list(known), help="of these systems, as etcd")
    group.add_argument("--signal", choices=failover.SIGNALS, default="KILL", help="what the leader gets")
    group.add_argument("--trials", type=at_least(1), default=5)
    group.add_argument("--timeout-ms", type=at_least(1), default=250, help="of a request to one etcd member")
    group.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a setting of Kimberlite's replicas",
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.command == "table":
        print(table(read_rows(args.files), args.base))
        return 0
    by_name = args.command != "all" or args.only is not None
    names = [args.command] if args.command != "all" else args.only or NAMES
    results = Results(args.out)
    wrong: list[str] = []
    for _ in range(args.rounds):
        for name in names:
            wrong += shortfalls(run_named(name, args, results), skips=by_name)
    text = table(results.rows, "kimberlite")
    note("\n" + text)
    if args.table:
        with open(args.table, "w") as file:
            file.write(text + "\n")
    for sentence in dict.fromkeys(wrong):
        note(f"peers.py: {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
