"""One heartbeat with a commit number of 2^64-6, and no view was ever chosen again. It is believed by nobody."""

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
    known = cluster.tells(primary)
    cluster.kill(primary)
    for head in (0, 2**64 - 6):  # a frame that contradicts itself, and one that does not
        fields = {"cluster": cluster.cluster, "replica": primary, "view": known["view"], "op": head}
        forged = make_header(command=Command.COMMIT, commit=2**64 - 6, **fields)
        near = make_header(command=Command.COMMIT, commit=2**39, **{**fields, "op": 2**39})
        for backup in backups:
            cluster.inject(backup, primary, [(near, b"")], hold=0.05)
            cluster.inject(backup, primary, [(forged, b"")], hold=0.05)
    leads = cluster.leader(30)
    case.check(leads in backups, f"nobody leads without the old primary: {[cluster.status(b) for b in backups]}")
    case.check(cluster.append([b"without it"], timeout=20) == 3, "the fourth event has position 3")
    cluster.start(primary)
    cluster.wait()
    case.check(cluster.append([b"with it"], timeout=20) == 4, "the fifth event has position 4")
    case.check(cluster.exit_codes == [None] * 3, f"replicas ended: exit codes {cluster.exit_codes}")


if __name__ == "__main__":
    main(run)
