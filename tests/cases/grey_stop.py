"""A replica whose disk hung did not end on SIGTERM: it waited for the disk, and its event loop with it. Now it ends
within twice timing.drain_ms, as in a crash: what its disk had not completed, nobody was told of."""

from __future__ import annotations

import time
from pathlib import Path

from grey import ON_THE_THREAD, frozen
from lab import Case, main, until

SECONDS = 90
SAMPLE = False

DRAIN_S = 2.0  # the default of timing.drain_ms


def has_ended(pid: int) -> bool:
    """Also when a thread of it is still traced, so that it can not be waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def run(case: Case) -> None:
    cluster = case.cluster(3, ON_THE_THREAD)
    for _ in range(5):
        cluster.append([b"before"])
    for what in ("a backup", "the primary"):
        roles = cluster.roles()
        victim = roles[0] if what == "the primary" else roles[1]
        process = cluster.process(victim)
        with frozen(process.pid):
            for _ in range(5):
                cluster.append([b"meanwhile"], timeout=20)
            began = time.monotonic()
            process.terminate()
            ended = until(lambda pid=process.pid: has_ended(pid), 20)
            took = time.monotonic() - began
            case.check(ended, f"{what}, whose disk hangs, has not ended {took:.0f} s after SIGTERM")
            case.say(f"{what}, whose disk hangs, has ended {took:.1f} s after SIGTERM")
            case.check(took < 3 * DRAIN_S + 2, f"{what} took {took:.1f} s to end")
        case.check(
            "as in a crash" in cluster.log(victim), f"it does not say how it ended: {cluster.log(victim)[-300:]}"
        )
        process.wait(5)
        cluster.append([b"without it"])
        cluster.start(victim)
        cluster.wait()
        level = until(cluster.is_level, 20)
        case.check(level, f"{what} does not catch up after a restart")


if __name__ == "__main__":
    main(run)
