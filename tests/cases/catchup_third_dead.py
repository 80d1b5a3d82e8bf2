"""A backup 5,000 ops behind that came back just after the third replica had died was not caught up with: no commit
for half a minute, and views went round.

Promised now: commits go on within 5 s, in the same view."""

from behind import UNBATCHED, check, come_back
from lab import Case, main

SECONDS = 60
SAMPLE = True
MISSED = 5000
COMMIT_SECONDS = 5.0


def run(case: Case) -> None:
    cluster = case.cluster(3, UNBATCHED)
    _, late, third = cluster.roles()
    found = come_back(case, cluster, late, MISSED, lambda: cluster.kill(third), 30.0)
    check(case, "the third one is dead", found, COMMIT_SECONDS + found.start, 0)


if __name__ == "__main__":
    main(run)
