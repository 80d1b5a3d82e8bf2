"""A backup whose disk hung kept all that came meanwhile, up to 2 GB in 25 s, and its status said that it was well. Now
what it holds has a bound, the others go on at their pace, its lag is shown, and it catches up when its disk answers."""

from __future__ import annotations

import json
import re
import time

from grey import ON_THE_THREAD, Load, frozen
from lab import Case, Cluster, main, until

SECONDS = 240
SAMPLE = False

EVENT = b"x" * 8_000
WRITERS = 12  # so many share prepares, and wait for the slower of two disks together
USUAL = 6.0  # seconds of load before the fault,
FAULT = 25.0  # and of the fault
MIB = 1 << 20
HELD = 33 * MIB  # twice a full pipeline of the largest entries: CoreConfig.held_bytes_max
BESIDE = 64 * MIB  # what a process may grow by beside what waits for its disk: buffers, headers, fragments


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def run(case: Case) -> None:
    cluster = case.cluster(3, ON_THE_THREAD)
    primary, hung, _ = cluster.roles()
    pid = cluster.process(hung).pid
    with Load(cluster.addresses, WRITERS, EVENT) as load:
        load.rate(2)
        usual = load.rate(USUAL)
        before = resident(pid)
        highest = before
        with frozen(pid):
            began, answered = time.monotonic(), len(load.answered)
            while time.monotonic() < began + FAULT:
                time.sleep(0.2)
                highest = max(highest, resident(pid))
            rate = (len(load.answered) - answered) / (time.monotonic() - began)
            grown = highest - before
            case.say(
                f"backup {hung}: {rate:.0f} appends of {len(EVENT)} bytes a second, {usual:.0f} before; "
                f"its memory {before / MIB:.0f} MiB, and {grown / MIB:.0f} more after {FAULT:.0f} s"
            )
            case.check(grown <= HELD + BESIDE, f"its memory has grown by {grown / MIB:.0f} MiB in {FAULT:.0f} s")
            case.check(rate > usual / 2, f"{rate:.0f} appends a second with one disk hung, {usual:.0f} before")
            _says_so(case, cluster, hung)
            case.check(cluster.roles()[0] == primary, "the lead has changed for a backup's disk")
        case.check(not load.lost, f"appends failed: {load.lost[:3]}")
    case.check(until(cluster.is_level, 90, 0.5), f"90 s after its disk answers again: {cluster.applied()}")
    well = until(lambda: not cluster.tells(hung)["unhealthy"], 10)
    case.check(well, f"level again, it says {cluster.tells(hung)['unhealthy']!r}")
    case.say(f"level again: {cluster.applied()}")


def _says_so(case: Case, cluster: Cluster, hung: int) -> None:
    status = cluster.tells(hung)
    case.say(f"its status: {status['unhealthy']!r}")
    backlog = status["backlog"]
    case.say(f"what waits for its disk: {backlog}")
    case.check(backlog["bytes"] <= backlog["limit"] + 4 * MIB, f"more waits for its disk than may: {backlog}")
    case.check(backlog["limit"] <= HELD, f"the bound is {backlog['limit']}, not {HELD}")
    case.check(
        re.search(r"disk (does not keep up|has completed nothing)", status["unhealthy"]), "nothing says why it lags"
    )
    shown = case.command("status", "--json", "--addresses", ",".join(cluster.addresses))
    row = next(row for row in json.loads(shown.stdout)["replicas"] if row["replica"] == hung)
    case.check(row["lag"] > 1000, f"`kimberlite status` shows a lag of {row['lag']}")
    case.check(shown.returncode == 35, f"`kimberlite status` ended with {shown.returncode}, not with 35, degraded")
    page = cluster.scrape(hung)
    waits = re.search(r"^vsr_journal_wait_seconds\{\S*\} (\S+)$", page, re.MULTILINE)
    case.check(waits and float(waits[1]) > FAULT / 2, f"vsr_journal_wait_seconds: {waits and waits[1]}")
    lag = re.search(rf'^vsr_replica_lag_seconds\{{\S*peer="{hung}"\S*\}} (\S+)$', page, re.MULTILINE)
    case.check(lag and float(lag[1]) > FAULT / 2, f"vsr_replica_lag_seconds: {lag and lag[1]}")
    ready = cluster.scrape(hung, "/readyz")
    case.check(" 503 " in ready.splitlines()[0], f"/readyz: {ready}")


if __name__ == "__main__":
    main(run)
