"""One PING with a view of 2^63 ended a replica at every restart. A view far above the own is refused."""

from __future__ import annotations

from lab import Case, main, make_header

from kimberlite.types import Command

SECONDS = 60
SAMPLE = True


def run(case: Case) -> None:
    cluster = case.cluster(3)
    cluster.append([b"before"])
    _, backup, other = cluster.roles()
    for view in (2**63, 2**64 - 1, 2**56 + 1, 2**40):
        ping = make_header(cluster=cluster.cluster, command=Command.PING, replica=other, view=view)
        cluster.inject(backup, other, [(ping, b"")], hold=0.2)
    case.check(cluster.exit_codes == [None] * 3, f"replicas ended: exit codes {cluster.exit_codes}")
    status = cluster.status(backup)
    case.check(status is not None and status["view"] < 2**32, f"the backup went to view {status and status['view']}")
    case.check(cluster.append([b"after"]) == 1, "the second event has position 1")


if __name__ == "__main__":
    main(run)
