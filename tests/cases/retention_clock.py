"""A primary whose clock was a year ahead for three seconds trimmed all but the last segment, under a limit of thirty
days. Now age counts by the log's own last timestamp too, and a clock that jumped is not believed until it is right."""

from __future__ import annotations

import time

from grey import ShiftedClock
from lab import Case, Cluster, main, until

SECONDS = 120
SAMPLE = False

YEAR = 365 * 86_400
MONTH = 30 * 86_400
APPENDS = 60
EVENT = b"z" * 500_000
LOOKS = 3.5  # retention is looked at once a second


def firsts(cluster: Cluster) -> list[int]:
    return [cluster.tells(index)["storage"]["first_position"] for index in range(cluster.size)]


def checkpoints(cluster: Cluster) -> list[int]:
    return [cluster.tells(index)["storage"]["checkpoint_op"] for index in range(cluster.size)]


def run(case: Case) -> None:
    cluster = case.cluster(
        3, f"retention.age_max_s={MONTH}", "checkpoint.ops=16", "checkpoint.bytes=1048576", start=False
    )
    clocks = [ShiftedClock(case, str(index)) for index in range(3)]
    for index, clock in enumerate(clocks):
        cluster.start(index, env=clock.environment)
    cluster.wait()
    for _ in range(APPENDS):
        cluster.append([EVENT])
    case.check(until(lambda: min(checkpoints(cluster)) > APPENDS - 20, 20), f"checkpoints: {checkpoints(cluster)}")
    primary = cluster.roles()[0]

    clocks[primary].set(YEAR)
    time.sleep(LOOKS)
    said = cluster.tells(primary)
    case.say(f"primary {primary}, a year ahead, nothing appended: {said.get('unhealthy')!r} {said.get('clock')}")
    case.check(
        firsts(cluster) == [0, 0, 0], f"the primary's clock alone trimmed the log: it begins at {firsts(cluster)}"
    )
    case.check("retention by age waits" in said["unhealthy"], "nothing says that the clock is not believed")
    case.check(abs(said["clock"]["jump_s"] - YEAR) < 60, f"the jump is told as {said['clock']}")

    cluster.append([b"stamped by a wrong clock"])
    cluster.append([b"and another one"])
    time.sleep(LOOKS)
    case.check(firsts(cluster) == [0, 0, 0], f"its clock and its stamp trimmed the log: it begins at {firsts(cluster)}")

    clocks[primary].set(0)
    well = until(lambda: cluster.tells(primary)["clock"]["jump_s"] == 0, 10)
    case.check(well, "a clock that is right again is not believed")
    time.sleep(LOOKS)
    ahead = [cluster.tells(index)["clock"]["log_ahead_s"] for index in range(3)]
    case.check(all(abs(seconds - YEAR) < 60 for seconds in ahead), f"the log is a year ahead, its status says {ahead}")
    shown = case.command("status", "--addresses", ",".join(cluster.addresses)).stdout
    case.check("ahead of the clock" in shown, f"`kimberlite status` does not show a log that is ahead: {shown}")
    case.check(firsts(cluster) == [0, 0, 0], f"the log begins at {firsts(cluster)}")

    from kimberlite import sync

    with sync.connect(cluster.addresses) as log:
        case.check(next(iter(log.read(0, raw=True))) == EVENT, "the first event is not what it was")


if __name__ == "__main__":
    main(run)
