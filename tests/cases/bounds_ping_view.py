"""One PING with a view of 2^63 ended a replica at every restart. A view far above the own is refused."""

from __future__ import annotations

from lab import Case, main, make_header

from kimberlite.types import Command

SECONDS = 60
SAMPLE = True


def run(case: Case) -> None:
    cluster = case.cluster(3)
    cluster.append([b"before"])
    primary, backup, other = cluster.roles()
    cluster.kill(other)  # who is alive is not spoken for
    for view in (2**63, 2**64 - 1, 2**56 + 1, 2**40):
        ping = make_header(cluster=cluster.cluster, command=Command.PING, replica=other, view=view)
        for to in (primary, backup):
            cluster.inject(to, other, [(ping, b"")], hold=0.2)
    codes = [cluster.exit_codes[index] for index in (primary, backup)]
    case.check(codes == [None, None], f"replicas ended: exit codes {codes}")
    status = cluster.tells(backup)
    case.check(status["view"] < 2**32, f"the backup went to view {status['view']}")
    case.check("view" in str(status.get("refused")), "status says what was refused")
    case.check(cluster.append([b"after"]) == 1, "the second event has position 1")
    for index in range(3):
        cluster.kill(index)
        cluster.start(index)
    case.check(cluster.leader(30) is not None, f"nobody leads after a restart: {cluster.exit_codes}")
    case.check(cluster.append([b"again"], timeout=30) == 2, "the third event has position 2")


if __name__ == "__main__":
    main(run)
