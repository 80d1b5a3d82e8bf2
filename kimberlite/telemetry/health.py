"""Liveness and readiness, judged from the shared memory by another process.

Liveness asks whether restarting the replica could help: it fails when the process is gone or its
event loop does not turn, and never because a quorum is lost. Readiness asks whether to send it
work. Every check says why it fails, in a sentence with the numbers.

May import: types, telemetry.reading, vsr.members.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from kimberlite.telemetry.reading import LOOP_STALL_S, Observation
from kimberlite.types import Status
from kimberlite.vsr.members import leader_of

COMMIT_STALL_S = 2.0  # an op that waits longer for its quorum, or to be applied, is stuck


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `reason` says what was found, either way."""

    name: str
    ok: bool
    reason: str


def check_process(seen: Observation) -> Check:
    if seen.alive:
        return Check("process", True, f"process {seen.pid} runs")
    return Check("process", False, f"process {seen.pid} has ended; what it counted is still served")


def check_event_loop(seen: Observation) -> Check:
    age = seen.age_s("event_loop_last_turn")
    return Check("event_loop", age < LOOP_STALL_S, f"last turned {age:.1f} s ago, the limit is {LOOP_STALL_S:.0f} s")


def check_status(seen: Observation) -> Check:
    number = seen.number("replica_status")
    status = Status(int(number)).name.lower() if number in set(Status) else "unknown"
    return Check("status", number == Status.NORMAL, f"{status} in view {seen.number('view_number'):.0f}")


def check_quorum(seen: Observation) -> Check:
    """The primary hears a quorum; a backup hears the primary."""
    count = int(seen.info["replica_count"])
    bound = seen.info["contact_ms"] / 1000
    own = int(seen.info["replica"])
    ages = {replica: seen.age_s("peer_last_heard", str(replica)) for replica in range(count) if replica != own}
    silent = [f"replica {replica} {_silence(age)}" for replica, age in ages.items() if not age < bound]
    primary = leader_of(int(seen.number("view_number")))
    if primary == own:
        live, need = 1 + len(ages) - len(silent), int(seen.number("quorum_size"))
        return Check("quorum", live >= need, "; ".join([f"{live} of {count} replicas, {need} needed", *silent]))
    age = ages.get(primary, math.inf)  # of a replica that is no member
    return Check("quorum", age < bound, f"the primary, replica {primary}, {_silence(age)}")


def _silence(age: float) -> str:
    return "never heard" if math.isnan(age) else f"last heard {age:.1f} s ago"


def check_commit(seen: Observation) -> Check:
    """What waits to be committed, or applied, does not wait long."""
    waiting, last = seen.age_s("oldest_uncommitted"), seen.age_s("last_commit")
    op = int(seen.number("commit_number"))
    if waiting > COMMIT_STALL_S:
        votes, need = int(seen.number("prepare_ok_votes")), int(seen.number("quorum_size"))
        return Check("commit", False, f"op {op + 1} has {votes} of {need} acks and waits for {waiting:.1f} s")
    own = str(seen.info["replica"])
    lag, behind_s = seen.number("replica_lag_operations", own), seen.number("replica_lag", own) / 1e9
    if behind_s > COMMIT_STALL_S:
        return Check("commit", False, f"{lag:.0f} committed ops are not applied here, for {behind_s:.1f} s")
    since = "no commit yet" if math.isnan(last) else f"last commit {last:.1f} s ago"
    return Check("commit", True, f"commit number {op}, {since}, nothing is stuck")


def check_disk(seen: Observation) -> Check:
    """It answers, and there is room."""
    waits, bound = seen.age_s("journal_wait"), seen.info["contact_ms"] / 1000
    if waits > bound:
        return Check("disk", False, f"the disk has completed nothing for {waits:.1f} s, though more was asked of it")
    free, need = seen.number("disk_free"), int(seen.info["segment_bytes"])
    told = f"{free / 2**20:.0f} MiB free, one journal segment is {need / 2**20:.0f} MiB"
    if seen.number("disk_full") > 0:
        return Check("disk", False, f"no room for more: {told}")
    return Check("disk", free >= need, told)


def check_draining(seen: Observation) -> Check:
    draining = bool(seen.number("draining"))
    return Check("draining", not draining, "being stopped" if draining else "not being stopped")


LIVE: dict[str, Callable[[Observation], Check]] = {"process": check_process, "event_loop": check_event_loop}
READY: dict[str, Callable[[Observation], Check]] = {
    **LIVE,
    "status": check_status,
    "quorum": check_quorum,
    "commit": check_commit,
    "disk": check_disk,
    "draining": check_draining,
}


def evaluate(checks: dict[str, Callable[[Observation], Check]], seen: Observation) -> list[Check]:
    return [check(seen) for check in checks.values()]
