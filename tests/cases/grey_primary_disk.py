"""A primary whose disk hung, without an error, led on: the backups committed without it, and clients waited for ever.
Now another one leads within five seconds, the hung one says what is wrong with it, and it catches up afterwards."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from grey import ON_THE_THREAD, Load, frozen
from lab import Case, Cluster, main, until

SECONDS = 150
SAMPLE = False

WRITERS = 4
GAP = 5.0  # without a commit, at most
FAULT = 12.0


def run(case: Case) -> None:
    cluster = case.cluster(3, ON_THE_THREAD)
    cluster.append([b"first"])
    with Load(cluster.addresses, WRITERS, b"x" * 1000) as load:
        until(lambda: len(load.answered) > 200, 10)
        for what in ("under load", "once more, of the one that leads now"):
            _freeze_the_primary(case, cluster, load, what)
        case.check(not load.lost, f"appends failed: {load.lost[:3]}")

    # Nothing is asked of the disk while it begins to hang: the next append finds out.
    primary = cluster.roles()[0]
    with frozen(cluster.process(primary).pid):
        time.sleep(2)
        began = time.monotonic()
        cluster.append([b"after silence"], timeout=20)
        took = time.monotonic() - began
        case.check(took < GAP, f"an append to an idle cluster whose primary's disk hangs took {took:.1f} s")
        case.say(f"an append to an idle cluster whose primary's disk hangs: {took:.1f} s")
    case.check(until(lambda: cluster.is_level(500), 20), f"not level again: {cluster.applied()}")


def _freeze_the_primary(case: Case, cluster: Cluster, load: Load, what: str) -> None:
    primary = cluster.roles()[0]
    begin = time.monotonic()
    with frozen(cluster.process(primary).pid):
        time.sleep(FAULT)
        end = time.monotonic()
        gap = load.longest_gap(begin, end)
        answers = sum(begin < at < end for at in load.answered)
        case.say(f"replica {primary}, {what}: {gap:.1f} s without an answer, {answers} in {FAULT:.0f} s")
        case.check(gap < GAP, f"the disk of the primary hangs: {gap:.1f} s without a commit, {what}")
        case.check(cluster.roles()[0] != primary, f"replica {primary}, whose disk hangs, still leads")
        _says_so(case, cluster, primary)
    well = until(lambda: cluster.is_level(500) and not _unwell(cluster, primary), 30)
    case.check(well, f"30 s after its disk answers again: {cluster.applied()}, {_unwell(cluster, primary)}")


def _says_so(case: Case, cluster: Cluster, hung: int) -> None:
    """The replica with the hung disk: in its log, in its status, in the table, in /readyz, in its metrics."""
    said = re.findall(r"replica \d gives up the lead of view \d+: \w+", cluster.log(hung))
    case.check(said, "its log does not say that it gave up the lead")
    case.say(f"its log: {said[-1:]}")
    status = cluster.tells(hung)
    case.say(f"its status: {status['unhealthy']!r}, {status.get('cannot_commit')}")
    words = r"disk has (completed|answered) nothing for \d"
    case.check(re.search(words, status["unhealthy"]), f"its status does not say that its disk hangs: {status}")
    why = status.get("cannot_commit", [])
    case.check("disk_stalled" in why, f"it can not commit because of {why}")
    shown = case.command("status", "--json", "--addresses", ",".join(cluster.addresses))
    row = next(row for row in _rows(shown.stdout) if row["replica"] == hung)
    case.check(row["lag"] > 0, f"`kimberlite status` does not show that it is behind: {row['lag']}")
    case.check(shown.returncode == 35, f"`kimberlite status` ended with {shown.returncode}, not with 35, degraded")
    ready = cluster.scrape(hung, "/readyz")
    case.check(" 503 " in ready.splitlines()[0], f"/readyz: {ready}")
    disk = cluster.scrape(hung, "/readyz/disk")
    case.check(re.search(words, disk), f"/readyz/disk: {disk}")
    page = cluster.scrape(hung)
    case.check(re.search(r"^vsr_can_commit\{\S*\} 0(\.0)?$", page, re.MULTILINE), "its metrics say that it can commit")
    case.check(
        re.search(r'^vsr_cannot_commit\{\S*reason="disk_stalled"\S*\} 1(\.0)?$', page, re.MULTILINE),
        "its metrics do not say why",
    )
    waits = re.search(r"^vsr_journal_wait_seconds\{\S*\} (\S+)$", page, re.MULTILINE)
    case.check(waits and float(waits[1]) > FAULT / 2, f"vsr_journal_wait_seconds: {waits and waits[1]}")


def _rows(document: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(document)["replicas"]
    return rows


def _unwell(cluster: Cluster, index: int) -> str:
    status = cluster.status(index)
    if status is None:
        return "no answer"
    ready = cluster.scrape(index, "/readyz")
    return "; ".join(filter(None, [status["unhealthy"], "" if " 200 " in ready.splitlines()[0] else ready]))


if __name__ == "__main__":
    main(run)
