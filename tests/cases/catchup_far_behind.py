"""A backup 30,000 ops behind that came back just after the third replica had died: no commit within 75 s.

Promised now: while clients wait it is caught up with at half the rate, or more, at which the same two replicas commit
ops of one request each; and the view stays."""

from behind import UNBATCHED, check, come_back, load
from lab import Case, main

SECONDS = 240
SAMPLE = False
MISSED = 30_000
SHARE = 0.5


def run(case: Case) -> None:
    cluster = case.cluster(3, UNBATCHED)
    _, late, third = cluster.roles()
    found = come_back(case, cluster, late, MISSED, lambda: cluster.kill(third), 75.0)
    check(case, "the third one is dead", found, 75.0, 0)
    assert found.after is not None
    rate = MISSED / (found.after - found.start)
    usual = load(cluster, 1 << 30, 5.0)
    case.say(f"caught up with at {rate:.0f} ops/s; the same two commit {usual:.0f}/s: {rate / usual:.2f}")
    case.check(rate >= SHARE * usual, f"caught up with at {rate:.0f} ops/s, the same two commit {usual:.0f} a second")


if __name__ == "__main__":
    main(run)
