"""The recorder: turns what the replica does into additions to its shared memory.

The replica only adds. A handle is bound to its cell once; recording is then a list index and a
call into C, without a lock and without allocation. Events of the core carry durations that
are differences of the `now` values handed in; this module reads a clock for what the core
cannot see: stages of the event loop, the state machine, garbage collection.

What an event moves is in its row of vsr.events.TABLE; those of a level go to the log as well.

What has a reason, a type or a cause is counted by the member of an enum, and each table has a cell for every member
of its enum: a Recorder without one can not be made (see `_by_member`), and nothing is counted as "other".

Thread rules: the thread of the replica's event loop. May import: types, vsr.work, _fast.
"""

from __future__ import annotations

import gc
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, IntEnum
from typing import NamedTuple, TypeVar

from kimberlite._fast.metrics import Counter, Gauge, Histogram, Kind, Region, StageClock, now_ns
from kimberlite.errors import InvariantError
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.catalogue import BY_NAME, cell_name
from kimberlite.telemetry.catalogue.labels import LOOP_PARTS, SCRUBBED, label_value
from kimberlite.telemetry.log import PATIENCE_S, EventLines
from kimberlite.types import Access, Command, Dropped, Ended, FrameReason, Header, Reason
from kimberlite.vsr.events import TABLE, DropReason, Event, EventKind, GaveUp, Level, ViewChangeCause
from kimberlite.vsr.work import CannotCommit, Snapshot

# Positions in LOOP_PARTS.
POLL, PARSE, PROTOCOL, DISK_WAIT, SEND, OTHER_PART = range(len(LOOP_PARTS))
CHECKSUM_REASONS = (FrameReason.BAD_HEADER_CHECKSUM, FrameReason.BAD_BODY_CHECKSUM)
NAN = math.nan
Member = TypeVar("Member", bound=Enum)
HISTORY = 1024  # commit numbers remembered, to say for how long a replica has been behind
Handler = Callable[[Event], None]


class StorageSample(NamedTuple):
    """What storage says of itself. Totals since the start; latencies since the last sample, in nanoseconds."""

    write_latencies: Sequence[int]
    sync_latencies: Sequence[int]
    reads: int
    read_bytes: int
    writes: int
    bytes: int
    switches: int
    inline: bool
    entry_bytes: int  # of entries, witnesses and checkpoints, handed to the disk
    log_bytes: int
    entries: int
    first_position: int
    checkpoint_op: int
    trim_due_at: int  # when a trim began to wait for a replica; 0 while none waits
    free_bytes: int | None  # None: as before


class Recorder:
    """Writes one region. Constructed with every handle bound; `close` when the replica ends in order.

    turn_pending: set by the owner of the loop while a callback of this turn is scheduled, so that the
    turn is not over yet.
    """

    def __init__(self, region: Region, replica: int, replica_count: int, lines: EventLines | None = None) -> None:
        """lines: the log of events, None for none; the recorder closes it."""
        self.region = region
        self._lines = lines
        self.turn_pending = False
        self._replica = replica
        self._replica_count = replica_count
        self._index = {series.name: index for index, series in enumerate(region.series)}
        self._commit = -1
        self._commits: list[int] = []  # commit numbers, ascending, and when each was first seen
        self._commits_at: list[int] = []
        self._behind: dict[int, tuple[int, int]] = {}  # replica -> the last op it has, and since when there is another
        self.replay_to = 0  # ops up to here are executed again by this start: see Replica.replay_to
        self._applied_at: dict[int, int] = {}  # op whose execution no reply followed yet -> when it ended
        self._gc_began = 0
        self._opened_at = now_ns()
        self._clock = self._stage_clock()
        self.switch = self._clock.switch
        """switch(part): charge the loop's time to another part; returns the part left."""
        self._bind_network()
        self._bind_gauges()
        self._handlers: list[Handler] = self._bind_events()

    # Handles

    def _counter(self, name: str, *values: str) -> Counter:
        return self.region.counter(self._index[cell_name(BY_NAME[name], values)])

    def _gauge(self, name: str, *values: str) -> Gauge:
        return self.region.gauge(self._index[cell_name(BY_NAME[name], values)])

    def _histogram(self, name: str, *values: str) -> Histogram:
        return self.region.histogram(self._index[cell_name(BY_NAME[name], values)])

    def _replicas(self, name: str) -> list[Gauge]:
        return [self._gauge(name, str(replica)) for replica in range(self._replica_count)]

    def _by_member(self, name: str, members: Iterable[Member]) -> dict[Member, Counter]:
        """A counter for each member of an enum, which its label values name. Raises InvariantError for a member that
        the catalogue has no value for."""
        found: dict[Member, Counter] = {}
        for member in members:
            cell = cell_name(BY_NAME[name], (label_value(member),))
            if cell not in self._index:
                raise InvariantError(f"the catalogue has a series for every {type(member).__name__}", missing=cell)
            found[member] = self.region.counter(self._index[cell])
        return found

    def _by_number(self, name: str, members: Iterable[IntEnum]) -> dict[int, Callable[[], None]]:
        """The same for what is told by number: `add` of each counter."""
        return {int(member): counter.add for member, counter in self._by_member(name, members).items()}

    def _stage_clock(self) -> StageClock:
        return self.region.stage_clock(
            [self._index[cell_name(BY_NAME["event_loop_time"], (part,))] for part in LOOP_PARTS],
            turn=self._index["event_loop_turn"],
            turned_at=self._index["event_loop_last_turn"],
        )

    def _bind_network(self) -> None:
        self._received = self._by_number("messages_received", Command)
        self._sent = self._by_number("messages_sent", Command)
        self._received_bytes = self._counter("network", "received").add
        self._sent_bytes = self._counter("network", "sent").add
        self._dropped = self._by_member("messages_dropped", Dropped)
        self._rejected = self._by_member("requests_rejected", (reason for reason in Reason if reason))
        self._ended = self._by_member("client_connections_ended", Ended)
        self._journal_errors = self._by_member("journal_errors", Access)
        self._bad_frame = self._counter("checksum_failures", "network").add
        self._apply = self._histogram("apply_latency").record
        self._apply_stage = self._histogram("commit_stage_latency", "apply").record
        self._reply_stage = self._histogram("commit_stage_latency", "reply").record
        self._gc_pause = self._histogram("gc_pause").record

    def _bind_gauges(self) -> None:
        self._set = {
            metric.name: self._gauge(metric.name).set
            for metric in catalogue.METRICS
            if metric.kind is Kind.GAUGE and metric.has_cells and not metric.labels
        }
        self._cannot_commit = {reason: self._gauge("cannot_commit", reason) for reason in CannotCommit}
        self._lag_operations = self._replicas("replica_lag_operations")
        self._lag_seconds = self._replicas("replica_lag")
        self._last_heard = self._replicas("peer_last_heard")
        self._repair_ewma = self._replicas("repair_ewma_latency")
        for gauge in (*self._lag_operations, *self._lag_seconds):
            gauge.set(NAN)
        self._write_latency = self._histogram("journal_write_latency").record_many
        self._sync_latency = self._histogram("fsync_latency").record_many
        self._reads = self._counter("disk_operations", "read").advance_to
        self._read = self._counter("disk", "read").advance_to
        self._writes = self._counter("disk_operations", "write").advance_to
        self._written = self._counter("disk", "write").advance_to
        self._entry_bytes = self._counter("bytes_written").advance_to
        self._switches = self._counter("journal_mode_switches").advance_to
        self._scrub_tours = self._counter("scrub_tours").advance_to
        self._scrub_bytes = self._counter("scrub").advance_to
        self._scrub_damage = {what: self._counter("scrub_damage", what).advance_to for what in SCRUBBED.values}

    # Events of the core

    def record(self, events: Sequence[Event]) -> None:
        """Count what the core reports."""
        handlers = self._handlers
        for event in events:
            handlers[event[0]](event)

    def _bind_events(self) -> list[Handler]:
        """A handler for each kind of event, by its number."""
        moves = {**self._commit_handlers(), **self._request_handlers(), **self._rare_handlers()}
        table: list[Handler] = [_nothing] * (max(EventKind) + 1)
        for kind, row in TABLE.items():
            note = self._lines.note if self._lines is not None and row.level is not Level.COUNTED else None
            table[kind] = _both(moves.get(kind), note)
        return table

    def _commit_handlers(self) -> dict[EventKind, Handler]:
        op_number = self._gauge("op_number").set
        prepare = self._histogram("prepare_latency").record
        commit = self._histogram("commit_latency").record
        queue = self._histogram("commit_stage_latency", "queue").record
        journal = self._histogram("commit_stage_latency", "journal").record
        replicate = self._histogram("commit_stage_latency", "replicate").record
        committed = self._counter("operations", "committed").add
        events = self._counter("events").add
        replayed = self._counter("operations_replayed").add
        decided = [
            self._counter(
                "commit_critical_path", str(replica), "journal" if replica == self._replica else "replicate"
            ).add
            for replica in range(self._replica_count)
        ]

        def on_queued(event: Event) -> None:
            queue(event[1])

        def on_acked(event: Event) -> None:
            prepare(event[2])
            replicate(event[2])
            decided[event[3]]()

        def on_journaled(event: Event) -> None:
            journal(event[2])
            if not event[3]:
                prepare(event[2])

        def on_committed(event: Event) -> None:
            committed()
            events(event[2])
            self._applied_at.pop(event[1], None)
            if event[3] >= 0:
                commit(event[3])

        return {
            EventKind.PREPARED: lambda event: op_number(event[1]),
            EventKind.QUEUED: on_queued,
            EventKind.PREPARE_ACKED: on_acked,
            EventKind.JOURNALED: on_journaled,
            EventKind.COMMITTED: on_committed,
            EventKind.REPLAYED: lambda event: replayed(),
        }

    def _request_handlers(self) -> dict[EventKind, Handler]:
        request = self._histogram("request_latency").record
        client = self._histogram("client_latency").record
        duplicate = self._counter("duplicate_requests").add
        registered = self._counter("client_sessions_registered").add
        evicted = self._counter("client_sessions_evicted").add
        dropped = self._by_number("messages_dropped", DropReason)
        rejected = self._by_number("requests_rejected", self._rejected)

        def on_replied(event: Event) -> None:
            request(event[2])
            if event[3]:
                client(event[3])

        return {
            EventKind.REPLIED: on_replied,
            EventKind.REJECTED: lambda event: rejected[event[1]](),
            EventKind.DUPLICATE: lambda event: duplicate(),
            EventKind.SESSION_REGISTERED: lambda event: registered(),
            EventKind.SESSION_EVICTED: lambda event: evicted(),
            EventKind.DROPPED: lambda event: dropped[event[2]](),
        }

    def _rare_handlers(self) -> dict[EventKind, Handler]:
        view_change = self._histogram("view_change_latency").record
        repair = self._histogram("repair_latency").record
        recovery = self._histogram("recovery_latency").record
        round_trips = [
            self._histogram("peer_round_trip_latency", str(replica)).record for replica in range(self._replica_count)
        ]
        causes = self._by_number("view_changes", ViewChangeCause)
        repaired = self._counter("repairs", "repaired").add
        expired = self._counter("repairs", "expired").add
        failed = self._counter("operations", "failed").add
        abandoned = self._counter("operations_failed", "view_change").add
        cut = self._counter("operations_failed", "suffix_dropped").add
        faulty = self._counter("checksum_failures", "journal").add
        conflict = self._counter("identity_conflicts").add
        status, view = self._gauge("replica_status").set, self._gauge("view_number").set
        is_primary, stuck = self._gauge("is_primary").set, self._gauge("stuck_op").set
        requested = self._counter("repairs", "requested").add
        checkpointed = self._counter("checkpoints").add
        gave_up = self._by_number("leadership_given_up", GaveUp)

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
            EventKind.RECOVERED: lambda event: recovery(now_ns() - self._opened_at),
            EventKind.PEER_ROUND_TRIP: lambda event: round_trips[event.a](event.b),
        }

    def opened(self, at_ns: int) -> None:
        """When the data began to be read: recovery counts from there."""
        self._opened_at = at_ns

    # Network: see net.transport.Counters

    def receiving(self) -> None:
        self.switch(PARSE)

    def received(self, frames: Sequence[tuple[Header, memoryview]], size: int) -> None:
        counts = self._received
        for header, _ in frames:
            counts[header.command]()
        self._received_bytes(size)

    def handled(self) -> None:
        self.switch(OTHER_PART if self.turn_pending else POLL)

    def message_sent(self, command: int, size: int) -> None:
        self._sent[command]()
        self._sent_bytes(size)

    def message_dropped(self, reason: Dropped) -> None:
        self._dropped[reason].add()

    def request_rejected(self, reason: Reason) -> None:
        self._rejected[reason].add()

    def frame_refused(self, reason: FrameReason) -> None:
        is_foreign = reason == FrameReason.WRONG_CLUSTER
        self._dropped[Dropped.WRONG_CLUSTER if is_foreign else Dropped.MALFORMED].add()
        if reason in CHECKSUM_REASONS:
            self._bad_frame()

    def connection_ended(self, reason: Ended) -> None:
        self._ended[reason].add()

    # What the core cannot see

    def applied(self, op: int, began_ns: int) -> None:
        """The state machine has executed `op` since `began_ns`."""
        if op <= self.replay_to:
            return
        self._applied_at[op] = now = now_ns()
        self._apply(now - began_ns)
        self._apply_stage(now - began_ns)

    def replied(self, op: int) -> None:
        """A reply to a request of `op` was handed to the network: the first one ends its commit. Replies leave before
        the core's COMMITTED is recorded; what nobody here waited for is forgotten there."""
        applied_at = self._applied_at.pop(op, 0)
        if applied_at:
            self._reply_stage(now_ns() - applied_at)

    def journal_failed(self, access: Access) -> None:
        """A read or write of the data directory was failed by the system."""
        self._journal_errors[access].add()

    def superblock_damaged(self, copies: int) -> None:
        self._counter("checksum_failures", "superblock").add(copies)

    def watch_gc(self) -> None:
        """Time the interpreter's garbage collections, until `close`."""
        gc.callbacks.append(self._on_gc)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_began = now_ns()
        elif self._gc_began:
            self._gc_pause(now_ns() - self._gc_began)

    # Gauges, at a bounded rate

    def update(self, snapshot: Snapshot, now: int, connections: int, connections_limit: int) -> None:
        """Set the gauges of the protocol."""
        values = {
            "replica_status": snapshot.status,
            "is_primary": snapshot.is_primary,
            "view_number": snapshot.view,
            "op_number": snapshot.op,
            "commit_number": snapshot.commit,
            "applied_number": snapshot.applied,
            "log_event_count": snapshot.positions,
            "quorum_size": snapshot.quorum,
            "cluster_size": snapshot.replica_count,
            "quorum_margin": snapshot.quorum_margin,
            "can_commit": not snapshot.cannot_commit,
            "stuck_op": snapshot.stuck_op,
            "prepare_ok_votes": snapshot.oldest_uncommitted_votes,
            "oldest_uncommitted": snapshot.oldest_uncommitted_at,
            "pending_requests": snapshot.queue_depth,
            "pending_requests_limit": snapshot.queue_limit,
            "pipeline_depth": snapshot.pipeline_depth,
            "pipeline_limit": snapshot.pipeline_limit,
            "journal_faulty": snapshot.faulty,
            "draining": snapshot.draining,
            "disk_full": snapshot.is_disk_full,
            "client_sessions_active": snapshot.sessions,
            "client_sessions_limit": snapshot.sessions_limit,
            "client_connections": connections,
            "client_connections_limit": connections_limit,
            "repair_budget_available": snapshot.repair_budget,
            "repair_inflight_count": snapshot.repairs_in_flight,
            "journal_backlog": snapshot.held_bytes,
            "journal_backlog_limit": snapshot.held_bytes_limit,
            "journal_wait": now - snapshot.disk_waits if snapshot.disk_waits else 0,
        }
        if snapshot.commit != self._commit:
            values["last_commit"] = now if self._commit >= 0 else 0
            self._commit = snapshot.commit
        for name, value in values.items():
            self._set[name](value)
        for reason, gauge in self._cannot_commit.items():
            gauge.set(reason in snapshot.cannot_commit)
        self._update_peers(snapshot, now)
        if self._lines is not None:
            self._lines.look(now)

    def _update_peers(self, snapshot: Snapshot, now: int) -> None:
        lags: dict[int, float] = {self._replica: max(snapshot.known_commit - snapshot.applied, 0)}
        for peer in snapshot.peers:
            self._last_heard[peer.replica].set(peer.last_heard)
            self._repair_ewma[peer.replica].set(peer.repair_latency)
            is_known = snapshot.is_primary and peer.op is not None
            lags[peer.replica] = max(snapshot.commit - (peer.op or 0), 0) if is_known else NAN
        self._note_commit(snapshot.known_commit, now)
        levels = {self._replica: snapshot.applied, **{peer.replica: peer.op or 0 for peer in snapshot.peers}}
        for replica, lag in lags.items():
            self._lag_operations[replica].set(lag)
            since = self._behind_since(replica, levels[replica], now) if lag > 0 else now
            self._lag_seconds[replica].set(lag if math.isnan(lag) else float(now - since))

    def _note_commit(self, commit: int, now: int) -> None:
        """Remember when the commit number moved, finely for lately and coarsely for long ago."""
        if not self._commits or commit > self._commits[-1]:
            self._commits.append(commit)
            self._commits_at.append(now)
            if len(self._commits) > HISTORY:
                del self._commits[1 : HISTORY // 2 : 2], self._commits_at[1 : HISTORY // 2 : 2]

    def _behind_since(self, replica: int, op: int, now: int) -> int:
        """When something above `op`, the last that a replica has, was first known to be committed."""
        known_op, since = self._behind.get(replica, (-1, 0))
        if op != known_op:
            found = bisect_right(self._commits, op)
            since = self._commits_at[found] if found < len(self._commits) else now
            self._behind[replica] = op, since
        return since

    def update_storage(self, sample: StorageSample) -> None:
        """Record what storage did since the last sample."""
        if sample.write_latencies:
            self._write_latency(sample.write_latencies)
        if sample.sync_latencies:
            self._sync_latency(sample.sync_latencies)
        self._reads(sample.reads)
        self._read(sample.read_bytes)
        self._writes(sample.writes)
        self._written(sample.bytes)
        self._entry_bytes(sample.entry_bytes)
        self._switches(sample.switches)
        self._set["journal_inline"](sample.inline)
        self._set["log_size"](sample.log_bytes)
        self._set["log_entry_count"](sample.entries)
        self._set["log_first_event"](sample.first_position)
        self._set["checkpoint_number"](sample.checkpoint_op)
        self._set["trim_wait"](sample.trim_due_at)
        if sample.free_bytes is not None:
            self._set["disk_free"](sample.free_bytes)

    def update_clock(self, offset_ns: int, ahead_ns: int, is_suspended: bool) -> None:
        """Set the gauges of this machine's clock: by how much it has moved against the time that passed, by how much
        the log is ahead of it, and whether retention by age waits because of it."""
        self._set["clock_offset"](offset_ns)
        self._set["clock_log_ahead"](ahead_ns)
        self._set["retention_suspended"](is_suspended)

    def update_scrub(
        self, tours: int, ended_at: int, read: int, fraction: float, damage: Iterable[tuple[str, int]]
    ) -> None:
        """Record how far the scrubber is: completed tours and when the last of them was, bytes read, the part of the
        present tour, and by what it was how much was found damaged. Totals since the start."""
        self._scrub_tours(tours)
        self._set["scrub_last_tour"](ended_at)
        self._scrub_bytes(read)
        self._set["scrub_progress"](fraction)
        for what, count in damage:
            self._scrub_damage[what](count)

    def end_log(self, patience_s: float = PATIENCE_S) -> None:
        """No event goes to the log any more; those that did are written, in so many seconds at most."""
        if self._lines is not None:
            self._lines.close(patience_s)

    def close(self, in_order: bool = True) -> None:
        """The replica ends; when in order, say so to the readers. Nothing may be recorded afterwards."""
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)
        self.end_log()
        if in_order:
            self.region.end()


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
