"""SIGHUP, SIGUSR1, SIGUSR2 and SIGALRM ended a replica and its telemetry process, and SIGHUP ended `dev` without its
replicas being stopped in order. Now `start` and telemetry go on, `dev` takes SIGHUP like SIGTERM, and commands of a
client end as any program does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

from lab import Case, main, until

SECONDS = 60
SAMPLE = True
STRAY = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


def run(case: Case) -> None:
    cluster = case.cluster(1)
    replica = cluster.process(0)
    telemetry = cluster.tells(0)["telemetry"]
    until(lambda: "200 OK" in cluster.scrape(0, "/livez"), 20)
    for number in STRAY:
        os.kill(replica.pid, number)
        os.kill(telemetry["pid"], number)
    time.sleep(0.5)
    now = cluster.tells(0)["telemetry"]
    case.check(replica.poll() is None, f"a stray signal ended the replica: {replica.poll()}")
    case.check(now == telemetry, f"a stray signal ended the telemetry process: {telemetry} became {now}")
    cluster.append([b"x"])

    follow = case.popen("read", "--follow", "--addresses", cluster.addresses[0], stdout=subprocess.PIPE)
    assert follow.stdout is not None
    case.check(follow.stdout.readline() == b"x\n", "read --follow shows the event")
    follow.send_signal(signal.SIGHUP)
    code = follow.wait(10)
    case.check(code == -signal.SIGHUP, f"read --follow ended with {code} on SIGHUP")
    case.check(cluster.stop(0) == 0, "the replica ends in order")

    base = case.free_block(1)
    settings = [part for setting in case.storage_settings for part in ("--set", setting)]
    place = case.directory / "dev"
    dev = case.popen(
        *("dev", "--replicas", "1", "--port", str(base), "--dir", str(place), *settings),
        stderr=subprocess.PIPE,
        cwd=case.directory,
    )
    assert dev.stderr is not None
    said = iter(dev.stderr.readline, b"")
    case.check(any(b"Ctrl-C stops" in line for line in said), "dev is ready")
    dev.send_signal(signal.SIGHUP)
    code = dev.wait(15)
    last = dev.stderr.read().decode()
    case.check(code == 0 and "stopped" in last, f"dev ended with {code} on SIGHUP and said {last!r}")


if __name__ == "__main__":
    main(run)
