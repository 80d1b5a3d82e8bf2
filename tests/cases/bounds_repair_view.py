"""A view that an older release let a frame write made a replica end at every start. It is taken back offline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lab import Case, main, until

from kimberlite.storage.disk import FileDisk
from kimberlite.storage.superblock import SuperblockFile

SECONDS = 60
SAMPLE = True
POISON = 2**63


def poison(data: Path) -> None:
    """As an older release left it behind after one PING."""
    disk = FileDisk(data, unsafe=True)
    file = SuperblockFile(disk)
    _, phases = file.update(replace(file.current.state, view=POISON))
    disk.submit(1, phases)
    disk.flush()
    disk.completions()
    disk.close()


def run(case: Case) -> None:
    cluster = case.cluster(3)
    cluster.append([b"before"])
    _, victim, other = cluster.roles()
    cluster.stop(victim)
    poison(cluster.directories[victim])
    cluster.start(victim)
    code = until(lambda: cluster.exit_codes[victim], 20)
    case.check(code == 14, f"a start on the poisoned data ended with {code}: {cluster.log(victim)[-300:]}")
    case.check("kimberlite repair-view" in cluster.log(victim), "the message names the command")
    others = [index for index in range(3) if index != victim]
    where = [cluster.addresses[others[0]], cluster.addresses[others[1]]]
    refused = case.command("repair-view", str(cluster.directories[victim]), "--others", where[0])
    case.check(refused.returncode == 2, f"with one other unknown: exit code {refused.returncode}, {refused.stderr}")
    done = case.command("repair-view", str(cluster.directories[victim]), "--others", *where, "--json")
    case.check(done.returncode == 0, f"repair-view: exit code {done.returncode}, {done.stderr}")
    told = json.loads(done.stdout)
    case.check(told["view"] == 1 + max(told["others"].values()), f"the view is one above the others: {told}")
    cluster.start(victim)
    cluster.wait()
    case.check(cluster.append([b"after"]) == 1, "the second event has position 1")
    cluster.kill(other)
    case.check(cluster.append([b"with the repaired one"], timeout=30) == 2, "it is one of the quorum")


if __name__ == "__main__":
    main(run)
