"""What the core reports: for each kind of event, what moves the metrics of its row in vsr.events.TABLE.

Events carry durations that are differences of the `now` values handed to the core. Those of every op are taken apart by
position: that is quicker than by name.
"""

from __future__ import annotations

from collections.abc import Callable

from kimberlite.telemetry.log import Log
from kimberlite.telemetry.recording.executions import Executions
from kimberlite.telemetry.recording.handles import Handles
from kimberlite.telemetry.recording.slow import SlowOps
from kimberlite.types import Reason
from kimberlite.vsr.events import TABLE, DropReason, Event, EventKind, GaveUp, ViewChangeCause

Handler = Callable[[Event], None]


def event_handlers(
    handles: Handles,
    replica: int,
    replica_count: int,
    executions: Executions,
    opened_at: int,
    now: Callable[[], int],
    log: Log | None,
    slow: SlowOps,
) -> list[Handler]:
    """What is to be done with an event, by the number of its kind. opened_at: when the data began to be read, by the
    clock `now`: recovery counts from there. log: for events that it takes. slow: for ops that take long."""
    moves = {
        **_of_ops(handles, replica, replica_count, executions, slow),
        **_of_requests(handles, slow),
        **_of_views_and_repair(handles, replica_count, opened_at, now),
    }
    table: list[Handler] = [_nothing] * (max(EventKind) + 1)
    for kind in TABLE:
        table[kind] = _both(moves.get(kind), log.note if log is not None and log.takes(kind) else None)
    return table


def _of_ops(
    handles: Handles, own: int, replica_count: int, executions: Executions, slow: SlowOps
) -> dict[EventKind, Handler]:
    part, stages, journaled, acked, executed = slow.part, slow.stages, slow.journaled, slow.acked, slow.committed
    forget = executions.forget
    op_number = handles.gauge("op_number").set
    prepare = handles.histogram("prepare_latency").record
    commit = handles.histogram("commit_latency").record
    queue = handles.histogram("commit_stage_latency", "queue").record
    journal = handles.histogram("commit_stage_latency", "journal").record
    replicate = handles.histogram("commit_stage_latency", "replicate").record
    committed = handles.counter("operations", "committed").add
    events = handles.counter("events").add
    replayed = handles.counter("operations_replayed").add
    decided = [
        handles.counter("commit_critical_path", str(replica), "journal" if replica == own else "replicate").add
        for replica in range(replica_count)
    ]

    def on_queued(event: Event) -> None:
        queue(event[1])

    def on_acked(event: Event) -> None:
        prepare(event[2])
        replicate(event[2])
        decided[event[3]]()
        if event[2] > part:
            acked(event)

    def on_journaled(event: Event) -> None:
        journal(event[2])
        if not event[3]:
            prepare(event[2])
        if event[2] > part:
            journaled(event)

    def on_committed(event: Event) -> None:
        committed()
        events(event[2])
        forget(event[1], None)
        if event[3] >= 0:
            commit(event[3])
        if event[3] > part or stages:
            executed(event)

    return {
        EventKind.PREPARED: lambda event: op_number(event[1]),
        EventKind.QUEUED: on_queued,
        EventKind.PREPARE_ACKED: on_acked,
        EventKind.JOURNALED: on_journaled,
        EventKind.COMMITTED: on_committed,
        EventKind.REPLAYED: lambda event: replayed(),
    }


def _of_requests(handles: Handles, slow: SlowOps) -> dict[EventKind, Handler]:
    slow_ns, replied = slow.slow, slow.replied
    request = handles.histogram("request_latency").record
    client = handles.histogram("client_latency").record
    duplicate = handles.counter("duplicate_requests").add
    registered = handles.counter("client_sessions_registered").add
    evicted = handles.counter("client_sessions_evicted").add
    dropped = handles.by_number("messages_dropped", DropReason)
    rejected = handles.by_number("requests_rejected", (reason for reason in Reason if reason))

    def on_replied(event: Event) -> None:
        request(event[2])
        if event[3]:
            client(event[3])
        if event[2] >= slow_ns:
            replied(event)

    return {
        EventKind.REPLIED: on_replied,
        EventKind.REJECTED: lambda event: rejected[event[1]](),
        EventKind.DUPLICATE: lambda event: duplicate(),
        EventKind.SESSION_REGISTERED: lambda event: registered(),
        EventKind.SESSION_EVICTED: lambda event: evicted(),
        EventKind.DROPPED: lambda event: dropped[event[2]](),
    }


def _of_views_and_repair(
    handles: Handles, replica_count: int, opened_at: int, now: Callable[[], int]
) -> dict[EventKind, Handler]:
    view_change = handles.histogram("view_change_latency").record
    repair = handles.histogram("repair_latency").record
    recovery = handles.histogram("recovery_latency").record
    round_trips = [
        handles.histogram("peer_round_trip_latency", str(replica)).record for replica in range(replica_count)
    ]
    causes = handles.by_number("view_changes", ViewChangeCause)
    repaired = handles.counter("repairs", "repaired").add
    expired = handles.counter("repairs", "expired").add
    failed = handles.counter("operations", "failed").add
    abandoned = handles.counter("operations_failed", "view_change").add
    cut = handles.counter("operations_failed", "suffix_dropped").add
    faulty = handles.counter("checksum_failures", "journal").add
    conflict = handles.counter("identity_conflicts").add
    status, view = handles.gauge("replica_status").set, handles.gauge("view_number").set
    is_primary, stuck = handles.gauge("is_primary").set, handles.gauge("stuck_op").set
    requested = handles.counter("repairs", "requested").add
    checkpointed = handles.counter("checkpoints").add
    gave_up = handles.by_number("leadership_given_up", GaveUp)

    def on_repaired(event: Event) -> None:
        repaired()
        repair(event.b)

    def on_abandoned(event: Event) -> None:
        failed(event.b)
        abandoned(event.b)

    def on_cut(event: Event) -> None:
        failed(event.b)
        cut(event.b)

    def on_status(event: Event) -> None:
        status(event.a)
        view(event.b)

    return {
        EventKind.VIEW_CHANGE_STARTED: lambda event: causes[event.b](),
        EventKind.VIEW_CHANGED: lambda event: view_change(event.b),
        EventKind.PRIMARY: lambda event: is_primary(event.a),
        EventKind.ABDICATED: lambda event: gave_up[event.b](),
        EventKind.FORFEITED: lambda event: gave_up[event.c](),
        EventKind.STUCK: lambda event: stuck(event.a),
        EventKind.CHECKPOINTED: lambda event: checkpointed(),
        EventKind.REPAIR_REQUESTED: lambda event: requested(),
        EventKind.REPAIRED: on_repaired,
        EventKind.REPAIR_EXPIRED: lambda event: expired(),
        EventKind.FAULTY: lambda event: faulty(),
        EventKind.IDENTITY_CONFLICT: lambda event: conflict(),
        EventKind.ABANDONED: on_abandoned,
        EventKind.SUFFIX_DROPPED: on_cut,
        EventKind.STATUS: on_status,
        # The core's own duration begins when the journal has been read: this one before.
        EventKind.RECOVERED: lambda event: recovery(now() - opened_at),
        EventKind.PEER_ROUND_TRIP: lambda event: round_trips[event.a](event.b),
    }


def _nothing(event: Event) -> None:
    """An event that goes to the log only, where there is none."""


def _both(first: Handler | None, second: Handler | None) -> Handler:
    """What does what both do; None does nothing."""
    if first is None or second is None:
        return first or second or _nothing

    def handle(event: Event) -> None:
        first(event)
        second(event)

    return handle
