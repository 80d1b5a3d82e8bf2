"""A part of the cases: load with kills in it, and whether counters and gauges say of it what happened.

The story, on three replicas of which one, the witness, lives throughout: clients append; a backup is killed and started
again; then the primary is killed, and that backup once more, while clients append; both come back. What happened is
known from the clients (acknowledged, unknown), from the log, from the kernel (/proc/PID/io) and from strace.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from lab import Case, Cluster, until

CLIENTS = 4
EVENTS_PER_APPEND = (1, 2, 5)
BYTES = 1000
TOLERANCE = 0.02  # bytes of the disk: what a process reads of programs, and prints
LOST_S = 2.0  # so soon after its loss a lost quorum is known everywhere
APPEND_S = 1.0  # an append that takes longer has no outcome, or an unknown one
OF_THE_SERVER = "vsr_telemetry_"  # who serves the page, and lives on
GONE = {"vsr_replica_up", "vsr_is_primary", "vsr_can_commit"}  # the gauges of a replica that a dead one has


class Load:
    """Clients that append until they are stopped; what they were told."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self.acknowledged = self.unknown = self.refused = 0  # events
        self.is_over = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def _client(self, number: int) -> None:
        import kimberlite
        from kimberlite.errors import KimberliteError, OutcomeUnknownError

        async with kimberlite.connect(self._addresses) as log:
            made = number
            while not self.is_over:
                count = EVENTS_PER_APPEND[made % len(EVENTS_PER_APPEND)]
                made += 1
                try:
                    await log.append([b"x" * BYTES] * count, timeout=APPEND_S)
                except OutcomeUnknownError:
                    self.unknown += count
                except KimberliteError:
                    self.refused += count
                else:
                    self.acknowledged += count


def page(cluster: Cluster, index: int) -> dict[str, float]:
    """What the metrics of a replica say, by name with its labels but those that are constant."""
    found = {}
    for name, labels, value in re.findall(r"^(vsr_\w+)\{(\S*)\} (\S+)$", cluster.scrape(index), re.MULTILINE):
        kept = [pair for pair in labels.split(",") if not pair.startswith(("cluster=", "replica_id="))]
        found[f"{name}{{{','.join(kept)}}}" if kept else name] = float(value)
    return found


def kinds(cluster: Cluster, index: int) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\w+)$", cluster.scrape(index), re.MULTILINE))


def disk_bytes(pid: int) -> dict[str, int]:
    """Of the process, as the kernel counts them."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return {way: int(fields[f"{way}_bytes"]) for way in ("read", "write")}


@contextlib.contextmanager
def counted_writes(case: Case, pid: int, data: Path) -> Iterator[list[int]]:
    """A list that holds, afterwards, how many writes to files below `data` strace has seen; none without strace."""
    seen: list[int] = []
    if shutil.which("strace") is None:
        case.say("no strace here: the write calls are not compared")
        yield seen
        return
    log = data.parent / "strace"
    command = ["strace", "-f", "-y", "-e", "trace=pwrite64,pwritev,pwritev2", "-e", "signal=none"]
    strace = case.own(subprocess.Popen([*command, "-o", str(log), "-p", str(pid)], stderr=subprocess.PIPE))
    assert strace.stderr is not None
    case.check(b"attached" in strace.stderr.readline(), f"strace does not follow process {pid}")
    try:
        yield seen
    finally:
        strace.terminate()
        strace.wait()
        strace.stderr.close()
    calls = re.compile(rf"pwrite\w+\(\d+<{re.escape(str(data.resolve()))}/")
    seen.append(sum(1 for line in log.read_text(errors="replace").splitlines() if calls.search(line)))


def check_dead(case: Case, cluster: Cluster, index: int, before: dict[str, float]) -> None:
    """The last metrics of a replica that was killed can be read; it claims no state."""
    after, types = page(cluster, index), kinds(cluster, index)
    gauges = {name.partition("{")[0] for name in after if types.get(name.partition("{")[0]) == "gauge"}
    claimed = {name for name in gauges - GONE if not name.startswith(OF_THE_SERVER)}
    case.check(not claimed, f"replica {index} is dead, and claims {sorted(claimed)}")
    case.check(all(after[name] == 0 for name in GONE), f"replica {index} is dead, and says {after}")
    lower = [name for name, value in before.items() if name.partition("{")[0].endswith("_total") and value > 0]
    lost = [name for name in lower if after.get(name, -1.0) < before[name]]
    case.check(not lost, f"replica {index} is dead, and has lost {lost}")


def play(case: Case, seconds: float) -> None:
    cluster = case.cluster(3)
    cluster.append([b"event"])
    _, backup, witness = cluster.roles()
    pid = cluster.process(witness).pid
    mode = cluster.tells(witness)["storage"]["mode"]

    def settled() -> bool:
        """Nothing is under way, and the gauges of all have been set since."""
        ends = [cluster.status(index) for index in range(3)]
        return all(ends) and len({(end["commit"], end["applied"], end["view"]) for end in ends if end}) == 1

    def rest() -> None:
        case.check(until(settled, 30), f"the replicas do not come to rest: {cluster.applied()}")

    def stands() -> dict[str, float]:
        """The page of the witness, when two looks at it show the same."""
        names = ("vsr_events_total", 'vsr_disk_operations_total{operation="write"}', "vsr_applied_number")
        last: dict[str, float] = {}
        for _ in range(50):
            now = page(cluster, witness)
            if last and all(now[name] == last[name] for name in names):
                return now
            last = now
            time.sleep(0.3)
        return last

    rest()
    before, end_before = stands(), _end(cluster)
    kernel_before = disk_bytes(pid)
    with counted_writes(case, pid, cluster.directories[witness]) as calls:
        load = asyncio.run(_story(case, cluster, seconds, backup, witness))
        rest()
        after, end_after = stands(), _end(cluster)
    kernel_after = disk_bytes(pid)

    grown, length = after["vsr_events_total"] - before["vsr_events_total"], end_after - end_before
    case.say(
        f"events_total of replica {witness} grew by {grown:.0f}, the log by {length}: {load.acknowledged} events "
        f"acknowledged, {load.unknown} unknown, {load.refused} refused"
    )
    case.check(load.acknowledged > 0, "nothing was acknowledged")
    case.check(grown == length, f"events_total grew by {grown:.0f}, the log by {length}")
    case.check(
        load.acknowledged <= grown <= load.acknowledged + load.unknown,
        f"{load.acknowledged} events are acknowledged, {load.unknown} unknown, and {grown:.0f} counted",
    )
    if mode == "direct":
        for way in ("read", "write"):
            name = f'vsr_disk_bytes_total{{operation="{way}"}}'
            counted, kernel = after[name] - before[name], kernel_after[way] - kernel_before[way]
            case.say(f"{way}: {counted:.0f} bytes counted, {kernel} by the kernel")
            slack = max(TOLERANCE * kernel, 1 << 16)
            case.check(abs(counted - kernel) <= slack, f"{way}: {counted:.0f} bytes counted, {kernel} by the kernel")
    else:
        case.say(f"no direct I/O here ({mode}): the kernel does not count what the page cache takes")
    if calls:
        name = 'vsr_disk_operations_total{operation="write"}'
        counted = after[name] - before[name]
        case.say(f"write calls: {counted:.0f} counted, {calls[0]} seen by strace")
        case.check(
            abs(counted - calls[0]) <= 0.001 * calls[0], f"{counted:.0f} writes counted, {calls[0]} seen by strace"
        )


async def _story(case: Case, cluster: Cluster, seconds: float, backup: int, witness: int) -> Load:
    """Load, and who is killed meanwhile."""
    load = Load(cluster.addresses)
    running = asyncio.create_task(load.run())
    thread = asyncio.to_thread
    await asyncio.sleep(seconds / 4)
    last = await thread(page, cluster, backup)
    await thread(cluster.kill, backup)
    await thread(check_dead, case, cluster, backup, last)
    await asyncio.sleep(seconds / 4)
    await thread(cluster.start, backup)
    await thread(cluster.wait)
    await asyncio.sleep(seconds / 4)
    primary = (await thread(cluster.roles))[0]
    case.check(primary != witness, "the witness leads: it is not to be killed")
    pages = [await thread(page, cluster, index) for index in (primary, backup)]
    for victim in {primary, backup}:
        await thread(cluster.kill, victim)
    lost_at = time.monotonic()

    def is_known() -> bool:
        said = [page(cluster, index) for index in range(3)]
        return not any(found["vsr_can_commit"] or found["vsr_is_primary"] for found in said)

    known = await thread(until, is_known, LOST_S)
    took = time.monotonic() - lost_at
    case.say(f"{took:.2f} s after the primary and another one were killed: can_commit and is_primary 0 everywhere")
    case.check(known, f"{took:.2f} s after the quorum was lost somebody says that it can commit, or leads")
    for victim, last in zip((primary, backup), pages, strict=True):
        await thread(check_dead, case, cluster, victim, last)
    await asyncio.sleep(seconds / 8)
    for victim in {primary, backup}:
        await thread(cluster.start, victim)
    await thread(cluster.wait)
    await asyncio.sleep(seconds / 8)
    load.is_over = True
    await running
    return load


def _end(cluster: Cluster) -> int:
    from kimberlite import sync

    with sync.connect(cluster.addresses) as log:
        end: int = log.end()
        return end
