"""When the file of a replica's metrics was removed while it ran, as logind does with what users leave in /dev/shm, its
telemetry process could not be started again, and `inspect metrics` said that there was none. Now both have it by a
descriptor. Who cuts the file short ends the replica, as with any mapping, and the next start is as good as new.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from lab import Case, Cluster, main, until

SECONDS = 60
SAMPLE = True


def path_of(cluster: Cluster) -> Path:
    """Where the metrics are: named after user, device and inode of the data directory."""
    status = cluster.directories[0].stat()
    return Path(f"/dev/shm/kimberlite-metrics-{os.getuid()}-{status.st_dev:x}-{status.st_ino:x}")


def inspected(case: Case, cluster: Cluster) -> dict[str, object]:
    done = case.command("inspect", "metrics", "--json", str(cluster.directories[0]))
    return json.loads(done.stdout) if done.returncode == 0 else {"refused": done.stderr}


def run(case: Case) -> None:
    cluster = case.cluster(1)
    path = path_of(cluster)
    cluster.append([b"x"])
    path.unlink()
    found = inspected(case, cluster)
    case.check(found.get("running") is True, f"inspect metrics: {found.get('refused')}")
    case.check(found["pid"] == cluster.process(0).pid, "they are those of the replica that runs")

    def telemetry() -> dict[str, object]:
        status = cluster.status(0)
        return status["telemetry"] if status else {}

    first = cluster.tells(0)["telemetry"]["pid"]
    os.kill(first, signal.SIGKILL)
    case.check(until(lambda: telemetry().get("pid") not in (None, first), 20), "it is started again")
    case.check(until(lambda: "vsr_events_total" in cluster.scrape(0), 20), f"no page is served: {telemetry()}")
    cluster.append([b"y"])
    cluster.kill(0)
    found = inspected(case, cluster)
    case.check(found.get("running") is False, f"the last values, while telemetry lingers: {found.get('refused')}")
    cluster.start(0)
    cluster.wait()
    case.check(path.exists(), "the next start has a file again")

    os.truncate(path, 0)
    code = until(lambda: cluster.exit_codes[0], 20)
    case.say(f"with the file cut short the replica ends: {code}")
    case.check(code == -signal.SIGBUS, f"exit code {code}")
    cluster.start(0)
    cluster.wait()
    cluster.append([b"z"])
    case.check(cluster.tells(0)["positions"] == 3, "every event is there")


if __name__ == "__main__":
    main(run)
