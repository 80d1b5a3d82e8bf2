"""Metrics in the simulator: each replica records as a node does, in virtual time; a model says what is to be counted.

`RecordedWorld` is the world with a `Recorder` for each life of a replica. Its model makes nothing of the events that
the recorder is fed with: it looks at what goes over the network, at what the state machine executes, at what is handed
to the disk, and at a replica before and after each step. Then each cell that is modelled must have the value of the
model (check M1). MODELLED says which those are; what the simulator does not have (real disks, sockets, processes) is
proved elsewhere: tests/unit/telemetry/test_truth.py names the place for each metric.

What is recorded changes nothing of a run. A world that is not recorded knows nothing of this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kimberlite._fast.metrics import HistogramValue, Region
from kimberlite.state_machine import Batch
from kimberlite.storage.interface import Write
from kimberlite.storage.ring import NAME as RING
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.storage import StorageSample
from kimberlite.types import ClientId, Command, Dropped, Header, Identity, Message, Reason, Status, ViewState
from kimberlite.vopr.checkers import COMMIT_QUORUM, Checkers, SessionOracle, Violation
from kimberlite.vopr.disk import SimDisk
from kimberlite.vopr.nodes import SimNode
from kimberlite.vopr.plan import Plan
from kimberlite.vopr.world import World
from kimberlite.vsr.birth import Unborn
from kimberlite.vsr.codec import ClientRequest
from kimberlite.vsr.events import Event
from kimberlite.vsr.leading import Leading

COUNTED_FILES = ("journal-", "witness-", "checkpoint-", RING)  # whose bytes are in bytes_written
METRICS = "M1 metrics"
CONNECTIONS_MAX = 1024  # said by no node here
# Metrics whose cells a model knows at every step.
MODELLED = frozenset(
    {
        *("operations", "operations_replayed", "operations_failed", "events", "bytes_written", "checkpoints"),
        *("messages_sent", "messages_received", "network", "requests_rejected", "duplicate_requests"),
        *("client_sessions_registered", "client_sessions_evicted", "repairs", "view_changes", "checksum_failures"),
        *("commit_critical_path", "commit_stage_latency", "apply_latency"),
        *("replica_status", "is_primary", "view_number", "op_number", "commit_number", "applied_number"),
        *("log_event_count", "quorum_size", "cluster_size", "prepare_ok_votes", "oldest_uncommitted"),
        *("pipeline_depth", "pipeline_limit", "client_sessions_active", "client_sessions_limit", "journal_faulty"),
        *("draining", "log_first_event"),
    }
)


@dataclass(slots=True)
class Before:
    """A replica before a step."""

    role: object
    op: int
    commit: int
    view: int
    faulty: frozenset[int]
    waiting: tuple[Message, ...]  # requests that it holds until it is ready


@dataclass(slots=True)
class Model:
    """What one life of a replica must have counted, by the names of the cells."""

    counts: Counter[str] = field(default_factory=Counter)
    gauges: dict[str, float] = field(default_factory=dict)
    executed: int = 0  # the last op, 0: none in this life
    end: int = 0  # of the log, behind that op
    prepared_at: dict[int, int] = field(default_factory=dict)  # op that this primary waits for -> since when
    acked: dict[int, int] = field(default_factory=dict)  # replica -> the highest op that it acknowledged in this view
    checkpoint_op: int = 0
    mended: int = 0  # bytes that a start has written in its own log: no new work, and not counted
    is_unborn: bool = False  # before this step
    rejected: set[bytes] = field(default_factory=set)  # requests that were refused in this step


@dataclass(slots=True)
class Life:
    """A replica that runs: its recorder, and what it must say."""

    recorder: Recorder
    model: Model
    places: dict[str, int]  # of the cells, by name
    has_started: bool = False  # what it found at its start is recorded with its first round

    def values(self) -> dict[str, int | float | HistogramValue]:
        read = self.recorder.region.read()
        return {name: read[place] for name, place in self.places.items()}


class _Teller:
    """The recorder of a driver: the simulator's own hears everything first."""

    def __init__(self, first: Any, recorder: Recorder) -> None:
        self._first, self._recorder = first, recorder

    def record(self, events: list[Event]) -> None:
        self._first.record(events)
        self._recorder.record(events)


class _Port:
    """The network of a driver, with what a node counts of it, and what the model knows of that."""

    def __init__(self, world: World, port: Any, life: Life) -> None:
        self._world, self._port, self._life = world, port, life

    def send(self, replica: int, message: Message) -> None:
        self._sent(message.header)
        self._port.send(replica, message)

    def send_client(self, client: ClientId, message: Message) -> None:
        header, model = message.header, self._life.model
        if header.command == Command.REJECT:
            model.counts[f'requests_rejected{{reason="{Reason(header.reason).name.lower()}"}}'] += 1
            model.rejected.add(header.context)
        if self._world.client_of(client) is None:
            self._life.recorder.traffic.message_dropped(Dropped.NO_CLIENT)
        else:
            self._sent(header)
        self._port.send_client(client, message)
        if header.command == Command.REPLY:
            self._life.recorder.executions.replied(header.op)

    def refuse(self, message: Message) -> None:
        self._port.refuse(message)

    def _sent(self, header: Header) -> None:
        self._life.recorder.traffic.message_sent(header.command, header.size)


class CountedSessions(SessionOracle):
    """The session table as it should be, and how many each op opens and evicts."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.counted: dict[int, tuple[int, int]] = {}

    def commit(self, op: int, requests: Sequence[ClientRequest]) -> None:
        opened = evicted = 0
        for request in requests:
            before = dict(self._table)
            super().commit(op, [request])
            opened += len(self._table.keys() - before.keys())
            evicted += len(before.keys() - self._table.keys())
        super().commit(op, ())
        self.counted[op] = opened, evicted


class HeardCheckers(Checkers):
    """All checks of a run; the models hear what is executed."""

    world: RecordedWorld

    def on_executed(self, replica: int, op: int, digest: bytes, clients: Sequence[ClientId]) -> None:
        super().on_executed(replica, op, digest, clients)
        self.world.on_executed(replica, op)


class RecordedDisk(SimDisk):
    """Knows what the journal, its witnesses, checkpoints and the ring were given."""

    given = 0

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None:
        super().submit(token, phases)
        for phase in phases:
            for write in phase:
                if self._handles[write.file].startswith(COUNTED_FILES):
                    self.given += len(write.buffer)


class RecordedWorld(World):
    """See the module docstring. `run` raises Violation with the name `M1 metrics` too."""

    def __init__(self, plan: Plan, **options: Any) -> None:
        self.lives: dict[int, Life] = {}  # by replica, the one that it is in
        self._of: dict[int, int] = {}  # replica -> the number of that life
        super().__init__(plan, **options)
        checkers = HeardCheckers(plan.replica_count, plan.sessions_max)
        checkers.membership = self.checkers.membership
        checkers.world = self
        self.checkers = checkers
        self.sessions = checkers.sessions = CountedSessions(plan.sessions_max)
        send = self.network.send

        def watched(source: Any, destination: Any, message: Message) -> None:
            if isinstance(source, int):
                self._on_sent(source, message)
            send(source, destination, message)

        self.network.send = watched  # type: ignore[method-assign]

    def make_disk(self, index: int, latency: Callable[[], int], wake: Callable[[int], None]) -> SimDisk:
        return RecordedDisk(self.files[index], lambda: self.now, latency, wake, self.devices[index])

    # What is recorded

    def _life(self, node: SimNode) -> Life:
        """Of a replica that is about to act: its recorder is there before it does so for the first time."""
        if self._of.get(node.index) != node.life:
            self._of[node.index] = node.life
            self.lives[node.index] = self._begin(node)
        return self.lives[node.index]

    def _begin(self, node: SimNode) -> Life:
        count, driver = self.plan.replica_count, node.driver
        region = Region.create(None, catalogue.layout(count))
        recorder = Recorder(region, node.index, count, None, self.now, lambda: self.now)
        recorder.executions.replay_to = driver.core.state.execution.replay_to
        recorder.storage.superblock_damaged(node.store.superblock_damaged)
        places = {
            series.name: place
            for place, series in enumerate(region.series)
            if series.name.partition("{")[0] in MODELLED
        }
        life = Life(recorder, Model(checkpoint_op=node.store.checkpoint_op), places)
        life.model.mended = node.store.bytes_written - _given(node)
        life.model.counts['checksum_failures{component="superblock"}'] = node.store.superblock_damaged
        life.model.counts['checksum_failures{component="journal"}'] = len(driver.core.state.log.faulty)
        driver.recorder, driver.network = _Teller(driver.recorder, recorder), _Port(self, driver.network, life)
        apply = driver.machine.apply

        def measured(batches: Sequence[Batch]) -> Sequence[bytes]:
            replies = apply(batches)
            recorder.executions.applied(batches[0].op, self.now)
            if batches[0].op > driver.core.state.execution.replay_to:
                life.model.counts["apply_latency"] += 1
                life.model.counts['commit_stage_latency{stage="apply"}'] += 1
            return replies

        driver.machine.apply = measured  # type: ignore[method-assign]
        self._watch_promises(node, life.model)
        return life

    def _watch_promises(self, node: SimNode, model: Model) -> None:
        """A view is entered by a promise in the superblock; a birth is no change of views."""
        persist, promised = node.store.set_view_state, node.store.view_state.view

        def watched(token: int, state: ViewState, identity: Identity | None = None) -> None:
            nonlocal promised
            if state.view > promised:
                model.counts["views entered"] += not model.is_unborn
                promised = state.view
            persist(token, state, identity)

        node.store.set_view_state = watched  # type: ignore[method-assign]

    # What the model hears

    def on_executed(self, replica: int, op: int) -> None:
        model, header = self.lives[replica].model, self.checkers.committed[op]
        model.executed, model.end = op, header.position + header.count
        if op <= self.nodes[replica].driver.core.state.execution.replay_to:
            model.counts["operations_replayed"] += 1
            return
        model.counts['operations{outcome="committed"}'] += 1
        model.counts["events"] += header.count
        registered, evicted = self.sessions.counted[op]
        model.counts["client_sessions_registered"] += registered
        model.counts["client_sessions_evicted"] += evicted

    def _on_sent(self, replica: int, message: Message) -> None:
        if replica not in self.lives:
            return
        model, header = self.lives[replica].model, message.header
        if header.command == Command.HELLO:  # of who holds its connections, whom the simulator has no recorder for
            return
        model.counts[f'messages_sent{{message_type="{Command(header.command).name.lower()}"}}'] += 1
        model.counts['network{direction="sent"}'] += len(header.raw) + len(message.body)
        if header.command == Command.REQUEST_PREPARE:
            model.counts['repairs{outcome="requested"}'] += 1

    # A step

    def _carry_out(self, node: SimNode, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        life = self._life(node)
        state, model = node.driver.core.state, life.model
        role = state.role
        waiting = tuple(held for held, _ in role.requests.waiting.values()) if isinstance(role, Leading) else ()
        before = Before(role, state.log.op, state.commit_max, state.view, frozenset(state.log.faulty), waiting)
        model.rejected.clear()
        model.is_unborn = isinstance(role, Unborn)
        messages, requests = _frames(node, action, arguments)
        for message in (*messages, *requests):
            life.recorder.traffic.received([(message.header, memoryview(message.body))], message.header.size)
            model.counts[f'messages_received{{message_type="{_command(message.header)}"}}'] += 1
            model.counts['network{direction="received"}'] += len(message.header.raw) + len(message.body)
        super()._carry_out(node, action, arguments)
        if node.up and self.nodes[node.index] is node:
            self._learn(node, life.model, before, messages, requests)
            life.has_started = life.has_started or action == node.driver.start
            if life.has_started and not node.driver.behind:  # else the last round is not recorded yet
                self._check(node, life)

    def _learn(
        self, node: SimNode, model: Model, before: Before, messages: Sequence[Message], requests: Sequence[Message]
    ) -> None:
        """What a step has changed."""
        state, counts = node.driver.core.state, model.counts
        role, log = state.role, state.log
        if role is not before.role:
            model.acked.clear()
        for message in messages if before.role is role and isinstance(role, Leading) else ():
            header = message.header
            known = log.headers.get(header.op)
            is_of_log = header.op <= log.op and (known is None or known.checksum == header.context)
            peer = state.peers.get(header.replica)
            # A life that is over, or not heard of yet, acknowledges nothing.
            is_known = peer is not None and peer.life == header.session
            if header.command == Command.PREPARE_OK and header.view == state.view and is_of_log and is_known:
                model.acked[header.replica] = max(model.acked.get(header.replica, 0), header.op)
        self._learn_commits(node, model, before, messages)
        checkpoint = node.store.checkpoint_op
        counts["checkpoints"] += checkpoint > model.checkpoint_op
        model.checkpoint_op = max(checkpoint, model.checkpoint_op)
        counts['checksum_failures{component="journal"}'] += len(log.faulty - before.faulty)
        if isinstance(before.role, Leading):
            newer = {request.header.client for request in requests if _is_held(role, request)}
            for request in (*before.waiting, *requests):
                is_replaced = request in before.waiting and request.header.client in newer
                if not (request.header.checksum in model.rejected or _is_held(role, request) or is_replaced):
                    counts["duplicate_requests"] += 1

    def _learn_commits(self, node: SimNode, model: Model, before: Before, messages: Sequence[Message]) -> None:
        """Which ops this primary waits for, and since when; which of them are committed now."""
        state, counts = node.driver.core.state, model.counts
        role, log = state.role, state.log
        has_led, leads = isinstance(before.role, Leading), isinstance(role, Leading)
        if has_led and role is not before.role:
            left = before.op - before.commit
            counts['operations_failed{reason="view_change"}'] += left
            model.prepared_at.clear()
        if not leads:
            return
        first = before.commit if role is not before.role else before.op
        for op in range(first + 1, log.op + 1):
            model.prepared_at.setdefault(op, self.now)
        decided_by = next((m.header.replica for m in messages if m.header.command == Command.PREPARE_OK), node.index)
        stage = "journal" if decided_by == node.index else "replicate"
        for op in [op for op in model.prepared_at if op <= state.commit_max]:
            del model.prepared_at[op]
            counts[f'commit_critical_path{{replica="{decided_by}",stage="{stage}"}}'] += 1
            counts['commit_stage_latency{stage="replicate"}'] += 1

    def _gauges(self, node: SimNode, model: Model) -> dict[str, float]:
        """How a replica is, as far as a model knows."""
        plan, state = self.plan, node.driver.core.state
        leads = isinstance(state.role, Leading)
        gauges: dict[str, float] = {
            "replica_status": _STATUS[type(state.role).__name__],
            "is_primary": leads,
            "view_number": state.view,
            "op_number": state.log.op,
            "quorum_size": COMMIT_QUORUM[plan.replica_count],
            "cluster_size": plan.replica_count,
            "pipeline_limit": plan.pipeline_max,
            "client_sessions_limit": plan.sessions_max,
            "pipeline_depth": len(model.prepared_at),
            "journal_faulty": len(state.log.faulty),
            "draining": 0,
            "oldest_uncommitted": min(model.prepared_at.values(), default=0),
        }
        if model.executed:
            gauges["applied_number"] = model.executed
            gauges["log_event_count"] = model.end
            gauges["client_sessions_active"] = len(self.checkers.sessions.after[model.executed])
        first = node.store.first_op
        if first in self.checkers.committed:
            gauges["log_first_event"] = self.checkers.committed[first].position
        if leads:
            gauges["commit_number"] = min(state.log.op - len(model.prepared_at), state.log.linked)
        if model.prepared_at and plan.replica_count > 1:
            oldest = min(model.prepared_at)
            own = oldest <= state.log.durable
            gauges["prepare_ok_votes"] = own + sum(op >= oldest for op in model.acked.values())
        return gauges

    def _check(self, node: SimNode, life: Life) -> None:
        """M1: every cell that is modelled says what its model says."""
        model, recorder = life.model, life.recorder
        recorder.update(node.driver.core.snapshot(), self.now, 0, CONNECTIONS_MAX)
        recorder.storage.update(_sample(node))
        gauges = self._gauges(node, model)
        cells = life.values()
        self._check_sums(node, model, cells)
        for name, value in cells.items():
            found = value.count if isinstance(value, HistogramValue) else value
            expected = gauges.get(name) if name in gauges else model.counts.get(name, 0)
            is_known = name in gauges or name in model.counts
            if not is_known and name.partition("{")[0] in IN_PART:
                continue
            if found != expected:
                raise self._wrong(node, name, found, expected)

    def _check_sums(self, node: SimNode, model: Model, cells: Mapping[str, int | float | HistogramValue]) -> None:
        """M1: what a model knows of several cells together, or as a bound."""

        def total(metric: str) -> float:
            found = (value for name, value in cells.items() if name.partition("{")[0] == metric)
            return sum(value.count if isinstance(value, HistogramValue) else value for value in found)

        sent = model.counts['messages_sent{message_type="request_prepare"}']
        checks = {
            "view_changes": (total("view_changes"), model.counts["views entered"]),
            "repairs": (cells['repairs{outcome="requested"}'], sent),
            "bytes_written": (cells["bytes_written"], model.mended + _given(node)),
            "operations": (cells['operations{outcome="failed"}'], total("operations_failed")),
        }
        for name, (found, expected) in checks.items():
            if found != expected:
                raise self._wrong(node, name, found, expected)

    def _wrong(self, node: SimNode, name: str, found: object, expected: object) -> Violation:
        where = self.describe([node.index])
        return Violation(METRICS, f"{name} of replica {node.index} is {found}, and should be {expected}; {where}")


# Of these a model knows some cells, or their sum, or each in some moments.
IN_PART = frozenset(
    {
        *("applied_number", "commit_number", "log_first_event", "log_event_count", "client_sessions_active"),
        *("operations", "operations_failed", "repairs", "view_changes", "bytes_written", "commit_stage_latency"),
        *("prepare_ok_votes",),
    }
)
_STATUS = {
    "Leading": Status.NORMAL,
    "Following": Status.NORMAL,
    "ChangingView": Status.VIEW_CHANGE,
    "Recovering": Status.RECOVERING,
    "Unborn": Status.UNBORN,
}


def _sample(node: SimNode) -> StorageSample:
    """What the storage of a node says of itself, as far as the simulator has it."""
    store, disk = node.store, node.disk
    return StorageSample(
        write_latencies=(),
        sync_latencies=(),
        reads=0,
        read_bytes=0,
        writes=disk.writes,
        bytes=disk.write_bytes,
        switches=0,
        inline=False,
        entry_bytes=store.bytes_written,
        log_bytes=store.bytes_used,
        entries=store.head - store.first_op + 1,
        first_position=store.first_position,
        checkpoint_op=store.checkpoint_op,
        trim_due_at=0,
        free_bytes=None,
    )


def _given(node: SimNode) -> int:
    disk = node.disk
    return disk.given if isinstance(disk, RecordedDisk) else 0


def _command(header: Header) -> str:
    return Command(header.command).name.lower()


def _frames(
    node: SimNode, action: Callable[..., None], arguments: tuple[Any, ...]
) -> tuple[Sequence[Message], Sequence[Message]]:
    """Frames of replicas and requests that a step hands to a replica."""
    if action != node.driver.on_input:
        return (), ()
    return arguments[0], arguments[1] if len(arguments) > 1 else ()


def _is_held(role: object, request: Message) -> bool:
    """Whether a primary has that request, this copy of it, in its queue or in an op that is not answered yet."""
    if not isinstance(role, Leading):
        return False
    made = (held for prepared in (*role.pipeline, *role.committing.values()) for held, _ in prepared.requests)
    return any(held is request for held in (*role.requests, *made))
