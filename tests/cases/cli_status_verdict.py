"""An idle primary whose backups were stopped was shown as "ok", and `status` ended with 0 whatever it had seen. Now it
gives a verdict over the cluster, which is its exit code too, true without traffic and right after the event."""

from __future__ import annotations

import json

from lab import Case, Cluster, main, until

SECONDS = 120
SAMPLE = False

HEALTHY, NO_ANSWER, DEGRADED, NO_QUORUM = 0, 24, 35, 36


def look(case: Case, cluster: Cluster) -> tuple[int, str, str]:
    """Exit code, verdict, and what the table says."""
    addresses = ",".join(cluster.addresses)
    table = case.command("status", "--addresses", addresses).stdout
    done = case.command("status", "--json", "--addresses", addresses)
    return done.returncode, json.loads(done.stdout).get("cluster", {}).get("verdict", "none"), table


def expect(case: Case, cluster: Cluster, what: str, code: int, verdict: str) -> str:
    """Until it is so: a machine may be busy. The verdict that something is wrong must come at once."""
    found = until(lambda: (seen := look(case, cluster))[0] == code and seen, 30 if code == HEALTHY else 0)
    case.check(found, f"{what}: status ends with another exit code than {code}")
    case.check(code == HEALTHY or found[1] == verdict, f"{what}: the verdict is {found[1]}, not {verdict}")
    case.say(f"{what}: {found[0]}, {found[1]}")
    table: str = found[2]
    return table


def run(case: Case) -> None:
    cluster = case.cluster(3)
    cluster.append([b"event"])
    expect(case, cluster, "three replicas", HEALTHY, "healthy")
    primary, second, third = cluster.roles()
    cluster.pause(third)
    expect(case, cluster, "one backup stopped", DEGRADED, "degraded")
    cluster.pause(second)
    table = expect(case, cluster, "both backups stopped, no traffic", NO_QUORUM, "no quorum")
    line = next(line for line in table.splitlines() if " primary " in line)
    case.check(not line.endswith(" ok"), f"the primary is called ok: {line}")
    cluster.resume(second)
    cluster.resume(third)
    expect(case, cluster, "all go on", HEALTHY, "healthy")
    for index in (primary, second, third):
        cluster.kill(index)
    expect(case, cluster, "all killed", NO_ANSWER, "no answer")


if __name__ == "__main__":
    main(run)
