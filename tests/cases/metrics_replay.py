"""A restarted replica counted what it executed again as new commits: Prometheus saw 18,775 events a second on it, 60 on
the others. What a start replays counts in vsr_operations_replayed_total only; a kill may count one pipeline again."""

from __future__ import annotations

from lab import Case, Cluster, main, until

SECONDS = 60
SAMPLE = True

OPS = 400
PIPELINE = 8  # limits.pipeline_max


def values(cluster: Cluster, index: int) -> dict[str, float]:
    """Counters of a page, by name with the labels that are not constant."""
    found = {}
    for line in cluster.scrape(index).splitlines():
        if line.startswith("vsr_") and " " in line:
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0] + ("/" + name.partition('outcome="')[2][:9] if "outcome=" in name else "")] = (
                float(value)
            )
    return found


def run(case: Case) -> None:
    from kimberlite import sync

    cluster = case.cluster(3, "checkpoint.ops=1000000")
    with sync.connect(cluster.addresses) as log:
        for number in range(OPS):
            log.append([b"event %d" % number] * 3)
    primary, victim, _ = cluster.roles()
    head = cluster.tells(primary)["commit"]
    level = until(lambda: (cluster.status(victim) or {}).get("applied") == head, 20)
    case.check(level, f"replica {victim} has not applied {head} ops")
    before = values(cluster, victim)
    cluster.kill(victim)
    cluster.start(victim)
    case.check(
        until(lambda: (cluster.status(victim) or {}).get("applied") == head, 20),
        f"replica {victim} did not come back to op {head}: {cluster.status(victim)}",
    )
    after = until(lambda: (seen := values(cluster, victim)).get("vsr_applied_number") == head and seen, 10)
    counted = after["vsr_operations_total/committed"]
    events = after["vsr_events_total"]
    replayed = after.get("vsr_operations_replayed_total", 0)
    case.say(
        f"before the kill {before['vsr_operations_total/committed']:.0f} ops were counted as committed; the restart "
        f"counts {counted:.0f} ops with {events:.0f} events as committed, {replayed:.0f} ops as replayed"
    )
    case.check(counted <= PIPELINE, f"a restart counted {counted:.0f} ops as committed again; a pipeline is {PIPELINE}")
    case.check(events <= 3 * PIPELINE, f"a restart counted {events:.0f} events again")
    case.check(counted + replayed == head, f"{counted:.0f} committed and {replayed:.0f} replayed ops are not {head}")
    with sync.connect(cluster.addresses) as log:
        log.append([b"more"] * 5)
    moved = until(lambda: values(cluster, victim)["vsr_events_total"] >= events + 5, 10)
    case.check(moved, "what is committed after the restart is not counted")


if __name__ == "__main__":
    main(run)
