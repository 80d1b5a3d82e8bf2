"""A heartbeat that named another entry for a committed op ended its receiver, whoever sent it. All are asked first."""

from __future__ import annotations

from lab import Case, main, make_header

from kimberlite.types import Command

SECONDS = 90
SAMPLE = True


def run(case: Case) -> None:
    cluster = case.cluster(3)
    for number in range(3):
        cluster.append([b"before %d" % number])
    primary, *backups = cluster.roles()
    known = cluster.tells(backups[0])
    cluster.kill(primary)
    commit = known["commit"]
    fields = {"view": known["view"], "op": commit, "commit": commit, "position": commit, "context": b"\6" * 16}
    beat = make_header(cluster=cluster.cluster, command=Command.COMMIT, replica=primary, **fields)
    for backup in backups:
        cluster.inject(backup, primary, [(beat, b"")], hold=0.05)
    codes = [cluster.exit_codes[index] for index in backups]
    case.check(codes == [None, None], f"replicas ended: exit codes {codes}")
    case.check(cluster.leader(30) in backups, "nobody leads")
    case.check(cluster.append([b"without it"], timeout=20) == 3, "the fourth event has position 3")
    counted = sum("vsr_identity_conflicts_total{" in line for line in cluster.scrape(backups[0]).splitlines())
    case.check(counted, "the metric is there")
    cluster.start(primary)
    cluster.wait()
    case.check(cluster.append([b"with it"], timeout=20) == 4, "the fifth event has position 4")
    case.check(cluster.exit_codes == [None] * 3, f"replicas ended: exit codes {cluster.exit_codes}")


if __name__ == "__main__":
    main(run)
