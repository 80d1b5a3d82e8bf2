"""What a seed means: every run draws its own shape and its own fault rates (swarm testing).

Three independent random streams come out of a seed, for the schedule, the faults and the
workload, so that one more draw in one of them does not reshuffle the others.

A named plan says what its seeds draw from:

    default   everything that campaigns try; a run has some of it, many lack any one thing
    crowded   many clients, a small pipeline, large events in small segments, three times the work
    grey      disks and replicas that are slow or hang, frames of one kind that are lost, primaries that fail
              in the middle of their work, and their successors after them
    lying     the disk of one replica loses writes, puts them elsewhere in their file, or gives what was there before
    wiped     one disk is lost and formatted anew under its old name, among replicas that are cut off from each other
              and start again: the new disk must count nowhere; or an older image of it takes its place, likewise
    ringed    as default, of small events, with replicas that all acknowledge after one write to a ring
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from kimberlite.errors import UsageError
from kimberlite.vopr.faults import KINDS, Kind

MS = 1_000_000
PREPARE_BYTES_MAX = 64 << 10
BACKLOG_BYTES = 2 * PREPARE_BYTES_MAX
REPAIR_BYTES = 4 * PREPARE_BYTES_MAX
EPOCH_NS = 1_700_000_000_000 * MS  # what the clocks of replicas say when a run begins, but for their skew
REQUESTS = 100  # appends of a run unless told otherwise


def streams(seed: int) -> tuple[Random, Random, Random]:
    """(schedule, faults, workload)."""
    return Random(f"schedule {seed}"), Random(f"faults {seed}"), Random(f"workload {seed}")


CORE_BOUNDS = ("prepare_requests_max", "repair_window", "headers_per_message", "headers_ahead", "apply_per_round")


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
    checkpoint_ops: int = 4096  # as CheckpointPolicy.ops
    checkpoint_bytes: int = 64 << 20  # as CheckpointPolicy.bytes
    scrub_bytes_per_s: int = 0  # read by the scrubber of each replica; it also makes a tour at the end
    clock_skew_ns: int = 0  # clocks of replicas differ by up to twice this
    abdicate_ns: int = 2000 * MS  # as Timing.abdicate_ns
    repairs_max: int = 256  # as CoreConfig.repairs_max
    late_ops: int = 0  # ops that a replica misses in the phase late return; 0 leaves it out
    queue_max: int = 1024  # as CoreConfig.queue_max
    backlog_bytes: int = 0  # as CoreConfig.backlog_bytes
    persistent: str = ""  # the fault of the phase of that name: one of persistent.FAULTS, "any", or "" for none
    reader_count: int = 0  # of those that read and follow the log
    snapshot_ns: int = 0  # a snapshot takes up to so long
    retention_bytes: int = 0  # the log keeps so much, or more; 0: as much as there is
    retention_age_s: int = 0  # and events until they are so old; 0: of any age
    prepare_requests_max: int = 512  # CORE_BOUNDS: as in CoreConfig
    repair_window: int = 512
    headers_per_message: int = 256
    headers_ahead: int = 1024
    apply_per_round: int = 256
    handles_max: int = 256  # segment files that a replica has open
    burst: int = 1  # appends that a client makes at a time
    pause_ns: int = 0  # for which a client thinks at most, now and then, between an answer and the next append
    far_ns: int = 0  # who comes back when faults have ended is so far away from the others
    ring: float = 0.0  # share of the lives of replicas in which small groups are durable after one write (storage.ring)
    ring_slots: int = 80  # of the ring that are used: few are written again and again
    converted: bool = False  # the run begins on data of the first release
    birth: bool = False  # the cluster is born in the run, and begins without a record

    @property
    def repair_bytes(self) -> int:
        """A small window, but where a replica has to catch up in so much time."""
        return 8 << 20 if self.late_ops else REPAIR_BYTES

    @property
    def core_bounds(self) -> dict[str, int]:
        """Fields of CoreConfig; those that it has by itself where a replica has to catch up in so much time."""
        return {} if self.late_ops else {name: getattr(self, name) for name in CORE_BOUNDS}

    @property
    def prepare_bytes_max(self) -> int:
        """An entry must fit a segment."""
        return min(PREPARE_BYTES_MAX, self.segment_bytes // 2)


def _crowded(plan: Plan, random: Random) -> Plan:
    return replace(
        plan,
        client_count=random.choice((16, 32, 64)),
        requests=3 * plan.requests,
        pipeline_max=random.choice((1, 2, 4)),
        event_bytes=random.choice((2000, 9000, 20_000)),
        segment_bytes=random.choice((64, 128)) << 10,
        checkpoint_ops=random.choice((4, 16)),
        persistent="",  # its limit is for as much as a healthy cluster has done within a second
    )


GREY = ("disk_stall", "disk_hang", "disk_slow", "slow_node", "mute", "strike_primary")


def _grey(plan: Plan, random: Random) -> Plan:
    others = {name: max(KINDS[name].floor, weight / 5) for name, weight in plan.weights.items()}
    return replace(plan, weights={**others, **{name: random.random() for name in GREY}})


def _lying(plan: Plan, random: Random) -> Plan:
    replica_count = random.choice((3, 3, 5))
    return replace(plan, replica_count=replica_count, weights={**plan.weights, "disk_lie": 2.0})


WIPED = {
    "wipe": 1.0,
    "old_image": 1.0,
    "step_down": 0.5,
    "restart": 1.0,
    "heal": 1.0,
    "isolate": 1.0,
    "crash": 1.0,
    "one_way": 0.5,
}


def _wiped(plan: Plan, random: Random) -> Plan:
    return replace(plan, replica_count=random.choice((3, 3, 5)), weights=WIPED, retention_bytes=0, retention_age_s=0)


CROWDED_SHARE, GREY_SHARE, FEW_SHARE = 0.12, 0.2, 0.2
BIRTH_SHARE, CONVERSION_SHARE = 0.2, 0.1
FEW, FEW_GAP_NS = 4, 150 * MS


def _few(plan: Plan, random: Random) -> Plan:
    """Few kinds of faults: what many of them together prevent (a log that is trimmed, a long view) has its time."""
    drawn = [name for name, weight in plan.weights.items() if weight]
    kept = random.sample(drawn, min(FEW, len(drawn)))
    if plan.retention_age_s:
        kept.append("clock_step")
    weights = {name: weight if name in kept else KINDS[name].floor for name, weight in plan.weights.items()}
    return replace(plan, weights=weights, loss=plan.loss / 5, fault_gap_ns=max(plan.fault_gap_ns, FEW_GAP_NS))


def _default(plan: Plan, random: Random) -> Plan:
    """Some runs are those of another plan: a crowded one costs as much as three others."""
    chance = random.random()
    if chance < CROWDED_SHARE:
        plan = _crowded(plan, random)
    elif chance < CROWDED_SHARE + GREY_SHARE:
        return _grey(plan, random)
    return _few(plan, random) if random.random() < FEW_SHARE else plan


def _ringed(plan: Plan, random: Random) -> Plan:
    return replace(_default(plan, random), ring=1.0, event_bytes=random.choice((64, 64, 1500, 5000)))


DEFAULT = "default"
PLANS: dict[str, Callable[[Plan, Random], Plan]] = {
    DEFAULT: _default,
    "crowded": _crowded,
    "grey": _grey,
    "lying": _lying,
    "wiped": _wiped,
    "ringed": _ringed,
}


def select(name: str) -> Callable[[Plan, Random], Plan]:
    """The plan of that name. Raises UsageError."""
    if name not in PLANS:
        raise UsageError(f"no plan is called {name!r}; there are {', '.join(PLANS)}")
    return PLANS[name]


def draw(seed: int, requests: int = REQUESTS, name: str = DEFAULT) -> Plan:
    """The plan of a seed. Raises UsageError for a name that there is not."""
    chance = Random(f"birth of {seed}").random()
    is_birth, is_conversion = chance < BIRTH_SHARE, BIRTH_SHARE <= chance < BIRTH_SHARE + CONVERSION_SHARE
    drawn = replace(_draw(seed, requests), birth=is_birth, converted=is_conversion)
    return select(name)(_with_ring(_with_small_bounds(_with_retention(drawn))), Random(f"{name} {seed}"))


SMALL = {  # so few ops, or files, are met by every run
    "prepare_requests_max": 2,
    "repair_window": 4,
    "headers_per_message": 3,
    "headers_ahead": 8,
    "apply_per_round": 2,
    "handles_max": 4,
}


def _weight(seed: int, kind: Kind) -> float:
    """Of a kind of fault in a run; one more kind leaves those of the others alone."""
    random = Random(f"weight of {kind.name} {seed}")
    return max(kind.floor, random.random() if random.random() < kind.share else 0.0)


def _with_small_bounds(plan: Plan) -> Plan:
    """Bounds that are made for thousands of ops are never met by a hundred: in many runs some are so small that they
    are."""
    random = Random(f"bounds {plan.seed}")
    small: dict[str, Any] = {name: value for name, value in SMALL.items() if random.random() < 0.5}
    return replace(plan, **small)


def _with_ring(plan: Plan) -> Plan:
    """Most runs have a ring; in some it is used by one life of a replica and not by the next."""
    random = Random(f"ring of {plan.seed}")
    return replace(plan, ring=random.choice((0.0, 0.5, 1.0, 1.0, 1.0)), ring_slots=random.choice((2, 5, 16, 80)))


def _with_retention(plan: Plan) -> Plan:
    """In some runs the log is trimmed all the time, by its size or by age; then it has segments and checkpoints enough
    for that. An age of 20 s is above all that believed clocks are wrong by: who trims by it trims too early, mostly."""
    random = Random(f"retention {plan.seed}")
    by = random.choice(("", "", "size", "age"))
    if not by:
        return plan
    weights, skew_ns = plan.weights, plan.clock_skew_ns
    if by == "age":
        weights = {**weights, "clock_step": random.random()}
        if random.random() < 0.5:  # what goes too early shows where all other clocks are right
            weights, skew_ns = {**weights, "clock_jump": 0.0}, min(skew_ns, 20 * MS)
    return replace(
        plan,
        weights=weights,
        clock_skew_ns=skew_ns,
        segment_bytes=64 << 10,
        event_bytes=max(plan.event_bytes, 2000),
        checkpoint_ops=min(plan.checkpoint_ops, 16),
        retention_bytes=random.choice((50_000, 200_000)) if by == "size" else 0,
        retention_age_s=random.choice((1, 20, 20)) if by == "age" else 0,
    )


def _draw(seed: int, requests: int) -> Plan:
    """What all plans begin with."""
    random = Random(f"plan {seed}")

    def some(limit: float) -> float:
        """0 in a third of the runs, else up to `limit`: many runs lack any one fault."""
        return 0.0 if random.random() < 0.33 else random.random() * limit

    return Plan(
        seed=seed,
        replica_count=random.choices((1, 2, 3, 4, 5, 6), (1, 2, 8, 1, 3, 1))[0],
        client_count=random.choice((1, 2, 4, 8)),
        requests=requests,
        segment_bytes=random.choice((64, 64, 128, 1024)) << 10,
        pipeline_max=random.choice((1, 2, 4, 8, 16)),
        sessions_max=random.choice((4, 64)),
        loss=some(0.15),
        duplication=some(0.15),
        reorder=some(0.3),
        corruption=some(0.01),
        latency_ns=random.choice((100_000, 500_000, 5 * MS)),
        disk_latency_ns=random.choice((100_000, 300_000, 3 * MS)),
        fault_gap_ns=random.choice((60, 150, 400)) * MS,
        weights={kind.name: _weight(seed, kind) for kind in KINDS.values() if kind.share},
        garbage=random.choice((0.0, 0.0, 0.05)),
        event_bytes=random.choice((8, 64, 2000, 9000, 20_000)),
        replay=some(0.02),
        clock_skew_ns=random.choice((0, 20, 2000)) * MS,
        forfeit_gap=random.choice((8, 4096)),
        checkpoint_ops=random.choice((4, 16, 50, 4096)),
        scrub_bytes_per_s=random.choice((0, 64 << 10, 1 << 20)),
        abdicate_ns=random.choice((400, 400, 2000)) * MS,
        repairs_max=random.choice((8, 256)),
        late_ops=random.choice((0, 0, 0, 0, 400)),
        persistent=random.choice(("", "any")),
        queue_max=random.choice((4, 1024)),
        backlog_bytes=random.choice((0, BACKLOG_BYTES)),
        checkpoint_bytes=random.choice((64 << 20, 64 << 20, 32 << 10)),
        reader_count=random.choice((0, 1, 3)),
        snapshot_ns=random.choice((0, 20, 500, 3000)) * MS,
        burst=random.choice((1, 1, 2, 5)),
        pause_ns=random.choice((0, 600)) * MS,
        far_ns=random.choice((0, 0, 0, 150, 300)) * MS,
    )
