"""The page of a crashed replica went on claiming the state of its last moment: normal, primary, lag 0. Counters stay;
of its gauges replica_up, is_primary and can_commit are left, and say 0, from the first scrape after its end."""

from __future__ import annotations

import re

from lab import Case, main

SECONDS = 60
SAMPLE = True


def run(case: Case) -> None:
    cluster = case.cluster(1)
    cluster.append([b"event"] * 3)
    before = cluster.scrape(0)
    case.check("vsr_view_number{" in before, "a running replica does not say its view")
    cluster.kill(0)
    page = cluster.scrape(0)
    gauges = set(re.findall(r"^# TYPE (\S+) gauge$", page, re.MULTILINE))
    gauges = {name for name in gauges if not name.startswith("vsr_telemetry_")}  # of who serves the page, and lives on
    found = {
        name: float(value)
        for name, value in re.findall(r"^(vsr_\w+)\{\S*\} (\S+)$", page, re.MULTILINE)
        if name in gauges
    }
    case.check(
        found == dict.fromkeys(("vsr_replica_up", "vsr_is_primary", "vsr_can_commit"), 0),
        f"a dead replica claims {len(found)} gauges: {dict(list(found.items())[:6])} ...",
    )
    case.check(re.search(r"^vsr_events_total\{\S*\} 3(\.0)?$", page, re.MULTILINE), "the counter of events is lost")


if __name__ == "__main__":
    main(run)
