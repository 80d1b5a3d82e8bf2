"""What a seed means: every run draws its own shape and its own fault rates (swarm testing).

Three independent random streams come out of a seed, for the schedule, the faults and the
workload, so that one more draw in one of them does not reshuffle the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

MS = 1_000_000
REQUESTS = 100  # appends of a run unless told otherwise


def streams(seed: int) -> tuple[Random, Random, Random]:
    """(schedule, faults, workload)."""
    return Random(f"schedule {seed}"), Random(f"faults {seed}"), Random(f"workload {seed}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of one run. Probabilities are per message or per fault step."""

    seed: int
    replica_count: int
    client_count: int
    requests: int  # appends that all clients make together
    segment_bytes: int
    pipeline_max: int
    sessions_max: int
    loss: float
    duplication: float
    reorder: float
    corruption: float
    latency_ns: int  # mean one-way
    disk_latency_ns: int  # mean per phase
    fault_gap_ns: int  # mean time between faults
    weights: dict[str, float] = field(default_factory=dict)  # of the kinds of fault
    garbage: float = 0.0  # share of torn units that become garbage
    event_bytes: int = 64
    replay: float = 0.0  # a frame sent long ago arrives again
    forfeit_gap: int = 4096  # as CoreConfig.forfeit_gap
    checkpoint_ops: int = 4096  # executed between two checkpoints
    scrub_bytes_per_s: int = 0  # read by the scrubber of each replica; it also makes a tour at the end
    clock_skew_ns: int = 0  # clocks of replicas differ by up to twice this
    abdicate_ns: int = 2000 * MS  # as CoreConfig.abdicate_ns
    repairs_max: int = 256  # as CoreConfig.repairs_max
    late_ops: int = 0  # ops that a replica misses in the phase late return; 0 leaves it out


FAULTS = (
    "crash",
    "crash_writing",
    "crash_promising",
    "crash_all",
    "restart",
    "pause",
    "partition",
    "one_way",
    "isolate",
    "heal",
    "clog",
    "bit_rot",
    "sync_error",
    "clock_jump",
    "foreign",
    "evict",
    "disk_full",
    "disk_full_all",
    "disk_space",
    "trim",
    "hostile",
)


def draw(seed: int, requests: int = REQUESTS) -> Plan:
    """The plan of a seed."""
    random = Random(f"plan {seed}")

    def some(limit: float) -> float:
        """0 in a third of the runs, else up to `limit`: many runs lack any one fault."""
        return 0.0 if random.random() < 0.33 else random.random() * limit

    weights = {kind: (0.0 if random.random() < 0.3 else random.random()) for kind in FAULTS if kind != "hostile"}
    weights["heal"] = max(weights["heal"], 0.4)
    weights["restart"] = max(weights["restart"], 0.6)
    weights["disk_space"] = max(weights["disk_space"], 0.4)
    plan = Plan(
        seed=seed,
        replica_count=random.choices((1, 2, 3, 4, 5, 6), (1, 2, 8, 1, 3, 1))[0],
        client_count=random.choice((1, 2, 4, 8)),
        requests=requests,
        segment_bytes=random.choice((128, 256, 1024)) << 10,
        pipeline_max=random.choice((1, 2, 4, 8, 16)),
        sessions_max=random.choice((4, 64)),
        loss=some(0.15),
        duplication=some(0.15),
        reorder=some(0.3),
        corruption=some(0.01),
        latency_ns=random.choice((100_000, 500_000, 5 * MS)),
        disk_latency_ns=random.choice((100_000, 300_000, 3 * MS)),
        fault_gap_ns=random.choice((60, 150, 400)) * MS,
        weights=weights,
        garbage=random.choice((0.0, 0.0, 0.05)),
        event_bytes=random.choice((8, 64, 2000, 9000)),
        replay=some(0.02),
        clock_skew_ns=random.choice((0, 20, 2000)) * MS,
        forfeit_gap=random.choice((8, 4096)),
        checkpoint_ops=random.choice((4, 16, 50, 4096)),
        scrub_bytes_per_s=random.choice((0, 64 << 10, 1 << 20)),
        abdicate_ns=random.choice((400, 400, 2000)) * MS,
        repairs_max=random.choice((8, 256)),
        late_ops=random.choice((0, 0, 0, 0, 400)),
    )
    # Drawn last, so that the others of a seed are what they were before there was this one.
    return replace(plan, weights={**weights, "hostile": 0.0 if random.random() < 0.5 else random.random()})
