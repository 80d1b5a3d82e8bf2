"""An op that is damaged on every replica held the cluster up without a word, and the exit code that the documents have
for it (19) was never used. Three replicas name the op in status and metrics; a lone one, with nobody to ask, ends."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from lab import Case, Cluster, main, until

SECONDS = 120
SAMPLE = False


def flip_last_entry(case: Case, directory: Path) -> int:
    """Damage the entry with the highest op; gives the op."""
    rows = case.command("inspect", "journal", "--json", str(directory), check=True).stdout.splitlines()
    last = json.loads(rows[-1])
    with (directory / f"journal-{last['segment']:08d}").open("r+b") as file:
        at = last["offset"] + 300
        os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, at)[0] ^ 0xFF]), at)
        os.fsync(file.fileno())
    return int(last["op"])


def prepared(case: Case, replicas: int) -> tuple[Cluster, int]:
    """A cluster that was killed after a few appends, with the last entry damaged on every replica, started again."""
    cluster = case.cluster(replicas, "storage.ring=false")  # else the last entries stand in the ring as well
    for _ in range(3):
        cluster.append([b"event" * 100])
    level = until(lambda: len({(cluster.status(i) or {}).get("op", -i) for i in range(replicas)}) == 1, 20)
    case.check(level, "the replicas do not get level")
    for index in range(replicas):
        cluster.kill(index)
    ops = {flip_last_entry(case, directory) for directory in cluster.directories}
    for index in range(replicas):
        cluster.start(index)
    return cluster, ops.pop()


def run(case: Case) -> None:
    lone, op = prepared(case, 1)
    until(lambda: lone.exit_codes[0] is not None, 15)
    case.say(f"one replica, op {op} damaged: exit code {lone.exit_codes[0]}: {lone.log(0).strip()[-160:]}")
    case.check(lone.exit_codes[0] == 19, f"a lone replica whose op {op} is damaged has exit code {lone.exit_codes[0]}")
    case.check(f"op {op} is damaged on the only replica" in lone.log(0), "it does not name the op")

    three, op = prepared(case, 3)

    def found() -> str:
        return next((s["unhealthy"] for i in range(3) if (s := three.status(i)) and s.get("stuck_op") == op), "")

    sentence = until(found, 20) or str((three.status(0) or {}).get("unhealthy"))
    case.say(f"three replicas, op {op} damaged on all: {sentence}")
    case.check(f"op {op} is damaged or missing on every replica" in sentence, f"the status says only: {sentence}")
    pattern = rf"^vsr_stuck_op\{{\S*\}} {op}(\.0)?$"
    metric = until(lambda: re.search(pattern, "".join(map(three.scrape, range(3))), re.MULTILINE), 20)
    case.check(metric, "no metric names the op")


if __name__ == "__main__":
    main(run)
