"""Loss of the quorum together with the primary showed in no gauge, and an idle primary whose backups are stopped looked
well. Now each replica says whether it can commit and why not, without traffic, within a few seconds."""

from __future__ import annotations

import contextlib
import re

from lab import Case, Cluster, main, until

SECONDS = 90
SAMPLE = False

SOON = 15.0  # a replica counts as silent after 1 s; suspicion and view change take up to 3 s on a busy machine


def said(cluster: Cluster, index: int) -> tuple[bool, list[str], float | None, list[str]]:
    """can_commit and its reasons: of the status document, and of the page of metrics."""
    status = cluster.status(index) or {}
    page = ""
    with contextlib.suppress(OSError):  # it has just been started
        page = cluster.scrape(index)
    gauge = re.search(r"^vsr_can_commit\{\S*\} (\S+)$", page, re.MULTILINE)
    reasons = re.findall(r'^vsr_cannot_commit\{\S*reason="(\w+)"\S*\} 1(?:\.0)?$', page, re.MULTILINE)
    return status.get("can_commit", True), status.get("cannot_commit", []), gauge and float(gauge[1]), reasons


def run(case: Case) -> None:
    cluster = case.cluster(3)
    cluster.append([b"event"])
    primary, second, third = cluster.roles()
    for index in range(3):
        well = until(lambda index=index: said(cluster, index) == (True, [], 1.0, []), SOON)
        case.check(well, f"replica {index} of a healthy cluster says {said(cluster, index)}")
        margin = until(lambda index=index: _margin(cluster, index) == 1, SOON)
        case.check(margin, f"the quorum margin of replica {index} of a healthy cluster is {_margin(cluster, index)}")

    case.check(_of_cluster(cluster, 0, 1, 2) == 1, "a healthy cluster can not commit, say its metrics")

    cluster.pause(second)
    cluster.pause(third)
    lone = until(lambda: (found := said(cluster, primary))[:1] + found[2:3] == (False, 0.0) and found, SOON)
    case.check(lone, f"an idle primary without backups says {said(cluster, primary)}")
    case.say(f"idle primary, both backups stopped: {lone}")
    case.check("no_quorum" in lone[1] and "no_quorum" in lone[3], f"it does not say no_quorum: {lone}")
    cluster.resume(second)
    cluster.resume(third)
    cluster.wait()

    primary, second, third = cluster.roles()
    cluster.kill(primary)
    cluster.kill(second)
    left = until(lambda: (found := said(cluster, third))[:1] + found[2:3] == (False, 0.0) and found, SOON)
    case.check(left, f"the only replica left says {said(cluster, third)}")
    case.say(f"primary and another one killed, the third: {left}")
    case.check(_of_cluster(cluster, 0, 1, 2) == 0, "with one of three replicas left the metrics say that it can commit")
    case.check("no_primary" in left[1] or "no_quorum" in left[1], f"the reason is not said: {left}")
    margin = until(lambda: "vsr_quorum_margin" in cluster.scrape(third) and _margin(cluster, third) == -1, SOON)
    case.check(margin, f"the quorum margin of the one left is {_margin(cluster, third)}")
    cluster.start(second)
    case.check(
        until(lambda: all(said(cluster, index)[2] == 1.0 for index in (second, third)), 30),
        f"with a quorum again they say {[said(cluster, index) for index in (second, third)]}",
    )


def _of_cluster(cluster: Cluster, *indexes: int) -> float:
    """max without(replica_id) (vsr_can_commit * vsr_is_primary), of these pages."""
    found = []
    for page in map(cluster.scrape, indexes):
        values = dict(re.findall(r"^(vsr_can_commit|vsr_is_primary)\{\S*\} (\S+)$", page, re.MULTILINE))
        found.append(float(values.get("vsr_can_commit", 1)) * float(values["vsr_is_primary"]))
    return max(found)


def _margin(cluster: Cluster, index: int) -> float | None:
    found = re.search(r"^vsr_quorum_margin\{\S*\} (\S+)$", cluster.scrape(index), re.MULTILINE)
    return float(found[1]) if found else None


if __name__ == "__main__":
    main(run)
