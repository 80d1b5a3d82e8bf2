"""A primary with something under way whose peers were frozen waited two seconds on SIGTERM for what could not come.
Now it ends at once when too few replicas are heard for a commit.
"""

from __future__ import annotations

import contextlib
import threading
import time

from lab import Case, main, until

from kimberlite import sync
from kimberlite.errors import KimberliteError

SECONDS = 60
SAMPLE = True
OLD_WAIT_S = 2.0


def run(case: Case) -> None:
    cluster = case.cluster(3)
    cluster.append([b"x"])
    primary, *backups = cluster.roles()
    for backup in backups:
        cluster.pause(backup)

    def append() -> None:
        with contextlib.suppress(KimberliteError), sync.connect([cluster.addresses[primary]], timeout=8) as log:
            log.append([b"y"], timeout=8)

    threading.Thread(target=append, daemon=True).start()

    def is_under_way() -> bool:
        status = cluster.status(primary)
        return bool(status and status["pipeline"]["depth"] and all(p["last_heard_s"] > 1.1 for p in status["peers"]))

    case.check(until(is_under_way, 10), "an append is under way, and nobody is heard")
    began = time.monotonic()
    code = cluster.stop(primary, 20)
    took = time.monotonic() - began
    for backup in backups:
        cluster.resume(backup)
    case.say(f"exit code {code} after {took:.2f} s")
    case.check(code == 0, f"exit code {code}")
    case.check(took < OLD_WAIT_S * 0.8, f"it took {took:.2f} s to end with nobody to wait for")


if __name__ == "__main__":
    main(run)
