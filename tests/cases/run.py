"""Runs the cases beside this script, one after another, and says which promises hold.

    python tests/cases/run.py [--sample] [--list] [--python PATH] [NAME ...]

--sample: the short form, the cases marked SAMPLE. --python: the interpreter, and so the installed
version, to ask. Exit code: 0 when every case passes, 1 otherwise; 2 when a name is unknown.
A case that takes longer than its SECONDS has failed.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PARTS = {"behind", "grey", "lab", "run", "truth"}  # scripts here that are no cases
GRACE_SECONDS = 20.0  # to end what a case has started


class Entry(NamedTuple):
    path: Path
    sentence: str
    seconds: float
    sample: bool


def entry(path: Path) -> Entry:
    """What a case says of itself, without running it."""
    tree = ast.parse(path.read_text())
    constants = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("SECONDS", "SAMPLE")
    }
    return Entry(path, (ast.get_docstring(tree) or "").split("\n\n")[0], constants["SECONDS"], constants["SAMPLE"])


def entries() -> dict[str, Entry]:
    return {path.stem: entry(path) for path in sorted(HERE.glob("*.py")) if path.stem not in PARTS}


def run(case: Entry, python: str) -> bool:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}  # lab.py is beside it
    process = subprocess.Popen([python, str(case.path)], stdin=subprocess.DEVNULL, env=environment)
    try:
        return process.wait(case.seconds) == 0
    except subprocess.TimeoutExpired:
        print(f"{case.path.stem}: FAIL: not done within {case.seconds} s", flush=True)
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--sample", action="store_true", help="the short form")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the version to ask")
    chosen = parser.parse_args()
    known = entries()
    unknown = sorted(set(chosen.names) - set(known))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    selected = [
        case
        for name, case in known.items()
        if (not chosen.names or name in chosen.names) and (case.sample or not chosen.sample)
    ]
    if chosen.list:
        for case in selected:
            print(f"{case.path.stem}: {' '.join(case.sentence.split())}")
        return 0
    started = time.monotonic()
    failed = [case.path.stem for case in selected if not run(case, chosen.python)]
    took = time.monotonic() - started
    print(f"{len(selected) - len(failed)} of {len(selected)} cases passed in {took:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
