"""I17: how much a replica may hold at every step, what must be left of it at rest, and what replicas may say then.

`NAMES`, `held` and `limits` are three columns of one table: what a queue or table is called, how much is in it, and the
most that the configuration allows. `fits` compares them at every step, and makes nothing on the way; what it does not
find within its bound is looked at closely (`check_held`). The bodies of entries, which have to be added up, are weighed
now and then.

Looks into the core and the store, and changes nothing. May import: types, storage, vsr.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import gt

from kimberlite.storage.store import Store
from kimberlite.types import HEADER_SIZE, OP_MAX, Command
from kimberlite.vopr.checkers import Violation
from kimberlite.vopr.disk import SimDisk
from kimberlite.vsr.changing_view import ChangingView
from kimberlite.vsr.config import PIPELINE_LIMIT, CoreConfig
from kimberlite.vsr.leading import Leading
from kimberlite.vsr.log import BODIES_BYTES, ENTRY_BYTES, WINDOW
from kimberlite.vsr.outbox import VIEWS_MAX, WRITES_MAX
from kimberlite.vsr.repair import HEADERS_REQUESTS_MAX
from kimberlite.vsr.replica import Replica

# Promises that wait for a disk: one for each view that is entered, and the last of these is installed.
PROMISES_MAX = VIEWS_MAX + 2

NAMES = (
    "requests queued",
    "bytes of requests queued",
    "requests that wait for a new primary",
    "clients with a request in flight",
    "uncommitted ops of a primary",
    "committed ops that were not applied",
    "prepares that came early",
    "requests for headers",
    "requests for headers that are overdue",
    "requests for entries",
    "votes",
    "evidence",
    "sessions",
    "headers in memory",
    "bodies in memory",
    "ops that were not applied yet",
    "writes that the core waits for",
    "writes that the disk has not done",
    "ops that are being written",
    "damaged ops",
    "spare segments",
    "open segments",
)
NOTHING_LED = (0, 0, 0, 0, 0, 0)  # the first of NAMES, of who leads no view
# What stays when nothing is done: a question of no interest any more is dropped with the next one.
KEPT = (
    "requests for headers",
    "requests for headers that are overdue",
    "sessions",
    "headers in memory",
    "bodies in memory",
    "votes",
    "evidence",
    "spare segments",
    "open segments",
)


def held(core: Replica, store: Store, disk: SimDisk) -> tuple[int, ...]:
    """How much there is of each of NAMES."""
    state, writes = core.state, disk.submissions
    if writes:  # without what is found damaged and made good: a start, or a tour, may find any number
        writes -= store._submissions.unasked
    log, scope, repairs, role = state.log, state.scope, state.repairs, state.role
    led = NOTHING_LED
    if isinstance(role, Leading):
        requests = role.requests
        led = (
            len(requests.queue),
            requests.bytes,
            len(requests.waiting),
            len(requests.in_flight),
            len(role.pipeline),
            len(role.committing),
        )
    return (
        *led,
        len(repairs.early),
        len(scope.headers_requests),
        len(scope.headers_overdue),
        len(repairs.requests),
        len(role.votes.at),
        len(role.evidence) if isinstance(role, ChangingView) else 0,
        len(state.sessions),
        len(log.headers),
        len(log.bodies),
        len(scope.entered),
        len(state.outbox.owed),
        writes,
        len(store._writer.in_flight),
        len(log.faulty) + len(store.faulty),
        len(store._segments.spare),
        len(store._segments.open),
    )


def fits(core: Replica, store: Store, disk: SimDisk, most: tuple[int, ...]) -> bool:
    """Whether there is no more of each of NAMES than `most`, what `limits` allows. Among the writes that a disk has not
    done are those that nobody asked for, and which `held` leaves out: so it may say no where all is well."""
    (
        queue, queue_bytes, waiting, in_flight, pipeline, committing, early, headers_requests, headers_overdue,
        requests, votes, evidence, sessions, headers, bodies, entered, owed, writes, writing, faulty, spare, opened,
    ) = most  # fmt: skip
    state = core.state
    log, scope, repairs, role = state.log, state.scope, state.repairs, state.role
    if not (
        len(log.headers) <= headers
        and len(log.bodies) <= bodies
        and len(scope.entered) <= entered
        and len(state.outbox.owed) <= owed
        and len(disk._queue) <= writes
        and len(store._writer.in_flight) <= writing
        and len(repairs.requests) <= requests
        and len(repairs.early) <= early
        and len(scope.headers_requests) <= headers_requests
        and len(scope.headers_overdue) <= headers_overdue
        and len(role.votes.at) <= votes
        and len(state.sessions._table) <= sessions
        and len(log.faulty) + len(store._faulty.ops) <= faulty
        and len(store._segments.spare) <= spare
        and len(store._segments.open) <= opened
    ):
        return False
    if isinstance(role, Leading):
        asked = role.requests
        return (
            len(asked.queue) <= queue
            and asked.bytes <= queue_bytes
            and len(asked.waiting) <= waiting
            and len(asked.in_flight) <= in_flight
            and len(role.pipeline) <= pipeline
            and len(role.committing) <= committing
        )
    return not isinstance(role, ChangingView) or len(role.evidence) <= evidence


def limits(config: CoreConfig, segment_bytes: int, found: int = 0) -> tuple[int, ...]:
    """The most there may be of each of NAMES. found: segments that the start of this life found behind its checkpoint:
    where damage hides which of two an entry stands in, all behind it are spare until they are written again."""
    segments = PIPELINE_LIMIT + config.repair_bytes // segment_bytes + 2  # that entries being written are in
    asked = HEADERS_REQUESTS_MAX * config.headers_per_message
    # Above what the own disk, or execution, does not keep up with nothing more is taken.
    unapplied = config.repair_window + PIPELINE_LIMIT + config.held_bytes_max // ENTRY_BYTES
    return (
        config.queue_max,
        config.queue_bytes_max,
        config.queue_max,
        config.queue_max + PIPELINE_LIMIT * config.prepare_requests_max,
        PIPELINE_LIMIT,
        unapplied,
        config.pipeline_max,
        HEADERS_REQUESTS_MAX,
        HEADERS_REQUESTS_MAX,
        config.repairs_max,
        config.replica_count,
        config.replica_count,
        config.sessions_max,
        WINDOW + max(config.headers_ahead, unapplied) + asked,  # heard ahead of the disk, or written and not executed
        WINDOW + unapplied,
        unapplied,
        WRITES_MAX + PROMISES_MAX,
        2 * WRITES_MAX + PROMISES_MAX,  # one group may be written in place and appended
        unapplied,
        OP_MAX,  # as much as a disk can lose; but all of it is repaired
        # What a cut gives back is not committed, and a new one is made when none is left.
        max(PIPELINE_LIMIT + 1, found),
        segments,
    )


def weigh(core: Replica) -> None:
    """What is added up: whether requests take what the core counts for them, and what bodies take: those that wait
    for the disk or to be executed, among them what repair holds ahead, and those applied that are kept for others."""
    state, config = core.state, core.state.config
    if core.leading is not None:
        requests = core.leading.requests
        found = sum(len(message.body) for message in requests)
        check_held(state.index, (found,), (requests.bytes,), ("bytes of requests queued",))
    entry = max(config.prepare_bytes_max, config.request_bytes_max) + HEADER_SIZE
    bodies = state.log.bodies
    found = sum([message.header.size for message in bodies.values()])
    most = config.held_bytes_max + config.repair_bytes + 2 * entry
    if found > most:  # else those that wait are not more
        waiting = sum([message.header.size for op, message in bodies.items() if op > state.execution.applied])
        check_held(state.index, (waiting,), (most,), ("bytes of bodies that wait",))
    most += BODIES_BYTES + PIPELINE_LIMIT * entry
    check_held(state.index, (found,), (most,), ("bytes of bodies in memory",))


def check_held(replica: int, there: tuple[int, ...], most: tuple[int, ...], names: tuple[str, ...] = NAMES) -> None:
    """there: what `held` found. most: what `limits` allows."""
    if any(map(gt, there, most)):
        what = next(number for number, found in enumerate(there) if found > most[number])
        raise Violation("I17 bounds", f"replica {replica} has {there[what]} {names[what]}, {most[what]} is the most")


def check_idle(frames: Mapping[tuple[int, int, int], int], config: CoreConfig, duration: int) -> None:
    """frames: sent in `duration` nanoseconds in which nothing happened, by sender, receiver and command."""
    most = {
        Command.COMMIT: 1 + duration // config.timing.heartbeat_ns,
        Command.PREPARE_OK: 1 + duration // config.timing.heartbeat_ns,
        Command.PONG: 0,
        Command.PING: 1 + 2 * duration // config.timing.ping_ns,  # jittered: half of it at least
    }
    for (sender, receiver, command), count in frames.items():
        if count > most.get(Command(command), 0):
            raise Violation(
                "I17 idle",
                f"nothing happens, and replica {sender} sends {count} {Command(command).name} to replica {receiver} "
                f"in {duration // 1_000_000} ms",
            )


def check_rest(replica: int, there: tuple[int, ...]) -> None:
    """there: what `held` found when nothing happens. What there is only while something is done is gone."""
    left = {name: size for name, size in zip(NAMES, there, strict=True) if size and name not in KEPT}
    if left:
        what = ", ".join(f"{size} {name}" for name, size in left.items())
        raise Violation("I17 rest", f"nothing happens, and replica {replica} still has {what}")
