"""Relatives of a late return: the primary dies or hangs and the replica that is behind is the next candidate, the third
one hangs or comes and goes, two of five are down. Nothing was committed for as long as in the first case.

Promised now: the one with the log leads, views do not go round, and commits go on within seconds."""

import threading
import time
from collections.abc import Callable
from functools import partial

from behind import UNBATCHED, check, come_back
from lab import Case, Cluster, main

SECONDS = 240
SAMPLE = False
MISSED = 5000
# Seconds until the next commit, beside a start; views that may be left.
SAME_VIEW = (5.0, 0)
ANOTHER_LEADS = (8.0, 4)


def flap(cluster: Cluster, index: int) -> None:
    """Dies, and comes back and dies again, as long as the case runs."""
    cluster.kill(index)

    def turn() -> None:
        for _ in range(8):
            time.sleep(0.5)
            cluster.start(index)
            time.sleep(0.7)
            cluster.kill(index)

    threading.Thread(target=turn, daemon=True).start()


def attempt(case: Case, what: str, replicas: int, promise: tuple[float, int], fail: Callable[[Cluster], None]) -> None:
    case.say(what)
    cluster = case.cluster(replicas, UNBATCHED)
    late = cluster.roles()[1]
    found = come_back(case, cluster, late, MISSED, partial(fail, cluster), 40.0)
    check(case, what, found, promise[0] + found.start, promise[1])
    for index in range(replicas):
        if cluster.exit_codes[index] is None:
            cluster.kill(index)


def run(case: Case) -> None:
    attempt(case, "the third one hangs", 3, SAME_VIEW, lambda cluster: cluster.pause(cluster.roles()[2]))
    attempt(case, "the primary dies", 3, ANOTHER_LEADS, lambda cluster: cluster.kill(cluster.roles()[0]))
    attempt(case, "the primary hangs", 3, ANOTHER_LEADS, lambda cluster: cluster.pause(cluster.roles()[0]))
    attempt(case, "the third one comes and goes", 3, ANOTHER_LEADS, lambda cluster: flap(cluster, cluster.roles()[2]))
    attempt(
        case,
        "two of five are dead",
        5,
        SAME_VIEW,
        lambda cluster: [cluster.kill(index) for index in cluster.roles()[3:]] and None,
    )


if __name__ == "__main__":
    main(run)
