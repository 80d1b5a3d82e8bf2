"""A telemetry process that was slow to begin outlived its replica, took the metrics of the replica's next life for its
own, and kept the port: that start ended with 21. Now it has them as a descriptor, yields to the next start, and is
ended when it does not: a replica that was killed starts again at once, however often.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from lab import Case, Cluster, main, until

SECONDS = 240
SAMPLE = False
ROUNDS = 20
WATCH_S = 4.0


def telemetry_pid(cluster: Cluster) -> int | None:
    """Of the telemetry process that the replica has started, from the first moment on."""
    pid = cluster.process(0).pid
    with contextlib.suppress(OSError, ValueError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if "kimberlite.telemetry" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
    return None


def runs(case: Case, cluster: Cluster, what: str) -> None:
    ready = until(lambda: cluster.exit_codes[0] is not None or cluster.primary() == 0, 30)
    case.check(ready and cluster.exit_codes[0] is None, f"{what}: {cluster.exit_codes}: {cluster.log(0)[-300:]}")


def run(case: Case) -> None:
    cluster = case.cluster(1, start=False)
    for is_continued in (True, False):
        cluster.start(0)
        old = until(lambda: telemetry_pid(cluster), 20, every=0.001)
        os.kill(old, signal.SIGSTOP)
        cluster.kill(0)
        cluster.start(0)
        if is_continued:
            time.sleep(1.0)
            with contextlib.suppress(ProcessLookupError):
                os.kill(old, signal.SIGCONT)
        what = f"a telemetry process stopped before it began{', and continued' if is_continued else ''}"
        runs(case, cluster, what)
        time.sleep(WATCH_S)  # the wait of the start for the port
        runs(case, cluster, what)
        page = until(lambda: "vsr_replica_up" in cluster.scrape(0), 20)
        case.check(page, f"{what}: no page is served")
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGKILL)
        case.check(cluster.stop(0) == 0, "the replica ends in order")

    codes = []
    for _ in range(ROUNDS):
        cluster.start(0)
        time.sleep(random.uniform(0.2, 1.5))
        codes.append(cluster.exit_codes[0])
        cluster.kill(0)
    case.say(f"{ROUNDS} times killed and started at once: {codes}")
    case.check(codes == [None] * ROUNDS, f"a start ended by itself: {codes}: {cluster.log(0)[-300:]}")
    cluster.start(0)
    runs(case, cluster, "after all of them")


if __name__ == "__main__":
    main(run)
