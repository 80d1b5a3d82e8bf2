"""The phase *late return*: one replica was away while the others went on, and when it comes back another fails.

Commits need the replica that is behind now, and clients wait. It has to be caught up with what the others kept for
it, and while it comes nearer nobody may give up: not the primary for want of a quorum, nor a view. No other faults:
what is measured is how long nothing is committed (check E5).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kimberlite.storage.journal import segment_number
from kimberlite.vopr.checkers import COMMIT_QUORUM, VIEW_CHANGE_QUORUM, Violation
from kimberlite.vopr.disk import PROMISE, WRITE
from kimberlite.vopr.plan import MS

if TYPE_CHECKING:
    from kimberlite.vopr.world import World

HOWS = ("third dies", "third dies", "third hangs", "third flaps", "primary dies")
AWAY_NS_MAX = 600_000 * MS  # for the ops that are missed
SETTLED_NS_MAX = 30_000 * MS
PAUSE_NS = 50 * MS  # between the failure and the return: what was on its way has arrived
FLAP_NS = 150 * MS
# How long nothing may be committed: a start, then so much for each op missed.
START_NS = 1000 * MS
OP_NS = 1 * MS
SLOW_DISK, SLOW_DISK_NS = 10, 3000 * MS  # times as slow as the others, and what that may cost
WRITE_PHASES = 3  # of each write that has to be made: entries, witnesses, and what checkpoints write between
# Larger events, in bytes, make entries of which repair holds a few only, and a segment holds a few.
SMALL_EVENTS_MAX, LARGE_FACTOR = 9000, 3
ABDICATE_NS_MIN = 1000 * MS  # writes of a slow disk do not take longer, nor does it to lose an entry twice
FAR_NS, FAR_LIMIT_NS = 20 * MS, 2000 * MS
LOSS, LOSS_LIMIT_NS = 0.05, 3000 * MS
FAILOVER_NS = 5000 * MS


def late_return(world: World) -> None:
    """Carry the phase out, from a cluster that is level and whole to one with clients served. Raises Violation."""
    plan = world.plan
    random = Random(f"late return {plan.seed}")
    how = random.choice(HOWS)
    primary = leader(world)
    others = [index for index in range(plan.replica_count) if index != primary]
    late = random.choice(others)
    others.remove(late)
    world.crash(late)
    _miss_ops(world, plan.late_ops)
    primary = leader(world)
    others = [index for index in range(plan.replica_count) if index not in (primary, late)]
    random.shuffle(others)
    if how == "primary dies":
        victims = [primary, *others[VIEW_CHANGE_QUORUM[plan.replica_count] - 1 :]]
    else:
        victims = others[COMMIT_QUORUM[plan.replica_count] - 2 :]
    view = world.nodes[primary].driver.core.state.view
    head = max(node.driver.core.state.log.op for node in world.nodes if node.up)
    missed = head - world.nodes[late].store.head
    world.trace.add(world.now, "late", how.encode(), late, missed, *victims)
    world.counts[f"LATE_{how.replace(' ', '_')}"] = 1
    limit = START_NS + OP_NS * plan.late_ops * (LARGE_FACTOR if plan.event_bytes > SMALL_EVENTS_MAX else 1)
    phases = WRITE_PHASES * _writes_missed(world, late, primary) * plan.disk_latency_ns
    limit += phases + _hinder(world, random, late, phases)
    if how == "primary dies":
        limit += FAILOVER_NS
    for victim in victims:
        if how == "third hangs":
            world.nodes[victim].paused_until = world.now + AWAY_NS_MAX
        else:
            world.crash(victim)
    world.run_until(world.now + PAUSE_NS, lambda: False)
    _give_work(world, 2)
    world.restart(late)
    if how == "third flaps":
        _flap(world, victims[0], world.now + limit)
    if not world.run_until(world.now + limit, lambda: world.checkers.decided > head):
        cores = "; ".join(
            f"{node.index}: {state.status.name.lower()} view {state.view} op {state.log.op} durable {state.log.durable}"
            for node in world.nodes
            if node.up
            for state in [node.driver.core.state]
        )
        raise Violation(
            "E5 availability",
            f"replica {late} came back {missed} ops behind, {how} ({victims}): nothing was committed for "
            f"{limit // MS} ms; {cores}",
        )
    now = world.nodes[primary].driver.core.state.view
    if how in ("third dies", "third hangs") and now != view:
        raise Violation(
            "E5 availability",
            f"replica {late} came back {missed} ops behind, {how} ({victims}): view {view} was left for {now} while it "
            "came nearer",
        )
    _end(world, victims)


def _hinder(world: World, random: Random, late: int, phases_ns: int) -> int:
    """In some runs the way to the replica that is behind is long or loses frames, or its disk is slow. What that may
    cost. phases_ns: of the writes it has to make one after the other, as its disk is."""
    chance = random.random()
    if chance < 0.7:
        world.network.distance[late] = FAR_NS
        return FAR_LIMIT_NS
    if world.plan.abdicate_ns < ABDICATE_NS_MIN:
        return 0
    if chance < 0.8:
        world.network.lossy[late] = LOSS
        return LOSS_LIMIT_NS
    if chance < 0.95 and world.plan.event_bytes <= SMALL_EVENTS_MAX:
        world.slow_down(late, (WRITE, PROMISE), SLOW_DISK)
        return SLOW_DISK_NS + phases_ns * (SLOW_DISK - 1)
    return 0


def _writes_missed(world: World, late: int, primary: int) -> int:
    """At most so many writes, one after the other: a replica keeps so many bytes of entries that wait for its disk, and
    no write is of more; nor does one go beyond the segment that is prepared for it."""

    def last(index: int) -> int:
        return max(segment_number(name) or 0 for name in world.files[index].durable)

    segments = max(last(primary) - last(late), 0) + 1
    kept = world.nodes[primary].driver.core.state.config.held_bytes_max
    return max(segments, -(-segments * world.plan.segment_bytes // kept))


def _end(world: World, victims: list[int]) -> None:
    world.cure()
    world.network.distance.clear()
    world.network.lossy.clear()
    for victim in victims:
        world.resume(victim)
    for index in range(world.plan.replica_count):
        world.restart(index)


def leader(world: World) -> int:
    """Who leads, when somebody does: in the newest view, for who does not hear of it believes to lead the one before.
    Raises Violation."""

    def leaders() -> list[int]:
        return [
            node.index
            for node in world.nodes
            if node.up and (leading := node.driver.core.leading) is not None and leading.ready
        ]

    if not world.run_until(world.now + SETTLED_NS_MAX, lambda: bool(leaders())):
        raise Violation("E5 availability", "nobody leads though nothing fails")
    return max(leaders(), key=lambda index: world.nodes[index].driver.core.state.view)


def _miss_ops(world: World, ops: int) -> None:
    """Have the others commit so many."""
    wanted = world.checkers.decided + ops
    _give_work(world, ops)
    done = world.run_until(world.now + AWAY_NS_MAX, lambda: world.checkers.decided >= wanted)
    for client in world.clients:
        client.quota = 0
    if not done:
        raise Violation("E5 availability", f"{ops} ops were not committed with one replica away")
    world.run_until(world.now + SETTLED_NS_MAX, lambda: not any(client.busy for client in world.clients))


def _give_work(world: World, appends: int) -> None:
    for client in world.clients:
        client.quota += appends * world.plan.burst  # those of a burst share a request
        client.append()


def _flap(world: World, index: int, until: int) -> None:
    """A replica comes and goes."""

    def turn() -> None:
        if world.now >= until or not world.is_late_return:
            return
        if world.nodes[index].up:
            world.crash(index)
        else:
            world.restart(index)
        world.at(world.now + FLAP_NS, turn)

    world.at(world.now + FLAP_NS, turn)
