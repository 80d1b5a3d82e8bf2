"""What a page says of others: on a healthy cluster backups seemed to fall silent for ever, under load no round trip was
measured, the lag of a dead former primary was NaN, a refusal on a backup made a sample of its reply stage."""

from __future__ import annotations

import asyncio
import math
import re
import time

from lab import Case, Cluster, Raw, main, make_header, until

from kimberlite.types import Command

SECONDS = 120
SAMPLE = False

IDLE_S = 4.0
LOAD_S = 4.0
CLIENTS = 32


def peers(cluster: Cluster, index: int, name: str, suffix: str = "") -> dict[int, float]:
    """A metric by peer, of the page of one replica."""
    pattern = rf'^vsr_{name}{suffix}\{{\S*peer="(\d)"\S*\}} (\S+)$'
    return {int(peer): float(value) for peer, value in re.findall(pattern, cluster.scrape(index), re.MULTILINE)}


def stage_count(cluster: Cluster, index: int, stage: str) -> float:
    pattern = rf'^vsr_commit_stage_latency_ms_count\{{\S*stage="{stage}"\S*\}} (\S+)$'
    (found,) = re.findall(pattern, cluster.scrape(index), re.MULTILINE)
    return float(found)


async def load(cluster: Cluster, seconds: float) -> int:
    """So many requests at a time that prepares follow each other without a pause; how many were committed."""
    import kimberlite

    end = time.monotonic() + seconds
    async with kimberlite.connect(cluster.addresses) as log:

        async def client() -> int:
            made = 0
            while time.monotonic() < end:
                await log.append([b"x" * 100], timeout=20)
                made += 1
            return made

        return sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))


def run(case: Case) -> None:
    cluster = case.cluster(3)
    cluster.append([b"event"])
    primary, *backups = cluster.roles()

    time.sleep(IDLE_S)
    for index in range(3):
        ages = peers(cluster, index, "peer_last_heard_seconds")
        others = {peer: age for peer, age in ages.items() if peer != index}
        case.say(f"idle: replica {index} last heard {others}")
        case.check(all(age < 1.5 for age in others.values()), f"healthy and idle, replica {index} last heard {others}")

    before = peers(cluster, primary, "peer_round_trip_latency_ms", "_count")
    made = asyncio.run(load(cluster, LOAD_S))
    primary_after = cluster.leader(20)
    after = peers(cluster, primary, "peer_round_trip_latency_ms", "_count")
    moved = {peer: after[peer] - before[peer] for peer in backups}
    case.say(f"{made} appends in {LOAD_S:.0f} s: round trips measured {moved}")
    case.check(primary_after == primary, "the primary changed under load: nothing to compare")
    case.check(
        min(moved.values()) >= 3 * LOAD_S, f"{made} appends, and only so many round trips were measured: {moved}"
    )

    # A refusal on a backup ends no commit.
    replies = stage_count(cluster, backups[0], "reply")
    for _ in range(3):
        with Raw("127.0.0.1", cluster.ports[backups[0]]) as client:
            client.greet()
            client.send(
                make_header(cluster=cluster.cluster, command=Command.REQUEST, client=client.client, operation=2)
            )
            client.receive()
    time.sleep(0.3)
    invented = stage_count(cluster, backups[0], "reply")
    case.check(replies == invented == 0, f"a backup that answers nobody has {invented:.0f} samples of the reply stage")

    cluster.kill(primary)
    leading = until(lambda: (found := cluster.primary()) not in (None, primary) and (found,), 30)
    case.check(leading, "nobody leads after the primary was killed")
    for _ in range(5):
        cluster.append([b"more"])
    lag = until(
        lambda: (found := peers(cluster, leading[0], "replica_lag_operations")).get(primary, 0) >= 1 and found, 10
    )
    lag = lag or peers(cluster, leading[0], "replica_lag_operations")
    seconds = peers(cluster, leading[0], "replica_lag_seconds")[primary]
    case.say(f"the killed primary, as its successor sees it: {lag[primary]:.0f} ops, {seconds:.2f} s behind")
    case.check(not math.isnan(lag[primary]) and not math.isnan(seconds), f"the lag of a dead primary is {lag[primary]}")


if __name__ == "__main__":
    main(run)
