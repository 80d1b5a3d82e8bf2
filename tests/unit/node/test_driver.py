"""The driver: the order of its effects, completions, damage found while applying, the bound of a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from lab import Cluster, Node, alone, ping, prepare, request

from kimberlite._fast import events as event_batches
from kimberlite.errors import FormatVersionError, InvariantError, UnrecoverableError
from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.node.driver import ROUNDS_MAX
from kimberlite.state_machine import Batch, EventLog
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage.interface import RETRY_NS, SECTOR
from kimberlite.storage.journal import RECORD_BYTES, encode_record
from kimberlite.types import Command, Header, Message, Operation, Reason, Room, ViewState
from kimberlite.vopr.disk import corrupt, empty, fill, make_unreadable
from kimberlite.vsr.codec import encode_trim
from kimberlite.vsr.events import Event, EventKind
from kimberlite.vsr.work import Apply, ServeHeaders, ToReplica, Work


class Machine(EventLog):
    needs_body = True

    def __init__(self, extra: int = 0) -> None:
        self.batches: list[Batch] = []
        self.extra = extra

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        self.batches += batches
        return [b"reply"] * (len(batches) + self.extra)


def replica(**options: Any) -> Node:
    """The only one of its cluster."""
    return alone(**{"make_machine": Machine, **options})


def test_a_request_is_journaled_applied_and_answered_in_one_call_when_the_disk_is_quick() -> None:
    node = replica()
    node.cluster.register()
    node.driver.on_input(requests=[node.cluster.request(1, b"a", b"b")])
    (reply,) = node.replies()
    assert (reply.header.position, reply.header.count, reply.body) == (0, 2, b"reply")
    (batch,) = node.machine.batches
    assert (batch.position, batch.count, event_batches.slice(batch.body, 0, 2)) == (0, 2, [b"a", b"b"])
    assert batch.op == node.store.head


def test_nothing_is_answered_before_it_is_durable() -> None:
    node = replica().cluster.settle()
    node.slow_disk(1000)
    node.driver.on_input(requests=[node.cluster.request(0)])
    assert node.replies() == []
    node.cluster.now += 1000
    node.driver.on_disk()
    assert node.replies() == [], "the entry is durable, its witness is not"
    node.cluster.now += 1000
    node.driver.on_disk()
    assert len(node.replies()) == 1


def test_after_a_restart_everything_is_applied_again_in_order() -> None:
    node = replica()
    node.cluster.register()
    for number in range(1, 40):
        node.driver.on_input(requests=[node.cluster.request(number, b"%d" % number)])
    node.replies()
    again = node.restart().cluster.settle()
    assert [event_batches.slice(batch.body, 0, 1)[0] for batch in again.machine.batches] == [
        b"%d" % number for number in range(1, 40)
    ]
    # The reply to the last request is remembered.
    again.driver.on_input(requests=[node.cluster.request(39, b"39")])
    (reply,) = again.replies()
    assert (reply.header.position, reply.body) == (38, b"reply")


def test_a_replay_is_no_new_work() -> None:
    """What the disk knows to be committed is executed again as REPLAYED; at most a pipeline counts twice."""
    node = replica()
    node.cluster.register()
    for number in range(1, 40):
        node.driver.on_input(requests=[node.cluster.request(number, b"%d" % number)])
    committed = [event.a for event in node.events if event.kind is EventKind.COMMITTED]
    assert committed == list(range(1, 41))
    again = node.restart().cluster.settle()
    replayed = [event.a for event in again.events if event.kind is EventKind.REPLAYED]
    twice = [event.a for event in again.events if event.kind is EventKind.COMMITTED]
    assert [*replayed, *twice] == committed
    assert len(twice) <= again.core.config.pipeline_max
    assert not any(event.kind is EventKind.SESSION_REGISTERED for event in again.events)
    again.driver.on_input(requests=[node.cluster.request(40, b"new")])
    assert [event.b for event in again.events if event.kind is EventKind.COMMITTED and event.a == 41] == [1]


def test_applying_stops_at_a_damaged_entry() -> None:
    node = replica()
    node.cluster.register()
    for number in range(1, 6):
        node.driver.on_input(requests=[node.cluster.request(number, b"%d" % number)])
    damaged = 4
    again = node.restart(lambda: make_unreadable(node.disk.files, "journal-00000000", damaged - 1))
    with pytest.raises(UnrecoverableError, match="op 4 is damaged on the only replica") as raised:
        for _ in range(50):
            again.cluster.now += 5_000_000
            again.driver.on_tick()
    assert (raised.value.op, raised.value.exit_code) == (damaged, 19)
    assert [batch.op for batch in again.machine.batches] == [2, 3]  # op 1 registers the session
    assert again.core.applied == damaged - 1
    assert damaged in again.core.log.faulty
    assert any(event.kind == EventKind.FAULTY and event.a == damaged for event in again.events)


def test_the_only_replica_stops_when_it_can_not_tell_what_it_acknowledged() -> None:
    """The last op is damaged: nothing on the disk says whether it was committed."""
    node = replica()
    node.cluster.register()
    for number in range(1, 6):
        node.driver.on_input(requests=[node.cluster.request(number, b"%d" % number)])
    again = node.restart(lambda: make_unreadable(node.disk.files, "journal-00000000", node.store.head - 1))
    with pytest.raises(UnrecoverableError, match=f"op {node.store.head} is damaged"):
        for _ in range(1000):
            again.cluster.now += 5_000_000
            again.driver.on_tick()


def with_a_witness_of_an_older_log(op: int, count: int, **options: Any) -> Node:
    """A replica that starts again on a log of `count` settled ops, of which the witness of one is another entry's that
    stood there before: its write was lost."""
    node = replica(**options)
    node.cluster.register()
    appended(node, range(1, count))
    last, before = node.store.header(count), node.store.header(op - 1)
    assert last is not None and before is not None
    state = ViewState(view=1, log_view=1, commit=count, base=count, suffix_head=count, suffix=(last,))
    node.store.set_view_state(1000, state)
    node.store.completions()
    older = prepare(before, replicas=1)
    record = encode_record(older.header, (op - 1) * SECTOR, 0, op - 1)
    node.cluster.crash(node.index)
    node.disk.files.durable["witness-00000000"][(op - 1) * RECORD_BYTES : op * RECORD_BYTES] = record
    return node.cluster.start(node.index)


def test_what_only_a_witness_says_is_not_executed() -> None:
    with pytest.raises(UnrecoverableError, match="op 10 is damaged"):
        with_a_witness_of_an_older_log(10, 150, make_machine=EventLog).cluster.settle()


def test_a_witness_of_an_older_log_stops_no_trim() -> None:
    node = replica(make_machine=EventLog)
    node.cluster.register()
    appended(node, range(1, 40), 9000)
    extent = [each for each in node.store.extents() if each.first_op <= node.core.trimmable_op][-1]
    header = node.store.header
    older = prepare(header(extent.first_op - 1), replicas=1, position=7).header  # type: ignore[arg-type]
    node.store.header = lambda op: older if op == extent.first_op else header(op)  # type: ignore[method-assign]
    node.store.read = lambda op, *_: None  # type: ignore[method-assign,assignment]
    last = header(node.store.head)
    assert last is not None
    trim = encode_trim(extent.first_op, extent.first_position)
    node.driver._trim(prepare(last, trim, operation=Operation.TRIM, replicas=1))
    assert node.store.first_op == extent.first_op


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_state_machine_that_does_not_answer_each_batch_is_named(extra: int) -> None:
    node = replica(make_machine=lambda: Machine(extra))
    node.cluster.register()
    with pytest.raises(InvariantError, match="one reply for each batch"):
        node.driver.on_input(requests=[node.cluster.request(1, b"a")])


class Endless:
    """A core that always has work."""

    rounds = 0
    wants_room = False
    is_at_rest = False

    def set_room(self, room: Room) -> None:
        assert room.bytes

    def take_work(self) -> Work:
        self.rounds += 1
        work = Work()
        work.send.append(ToReplica(0, ping(0)))
        work.serve.append(ServeHeaders(0, 1, 0, 0))  # what the disk says may be news to it
        return work

    def take_events(self) -> list[Event]:
        return []

    def headers_message(self, headers: Sequence[Header], nonce: int) -> None:
        return None


def test_a_call_does_a_bounded_amount_and_says_when_there_is_more() -> None:
    node = replica().cluster.settle()
    assert not node.driver.behind
    core = node.driver.core = Endless()  # type: ignore[assignment]
    node.cluster.sent.clear()
    node.driver._run()
    assert node.driver.behind
    assert core.rounds == len(node.cluster.sent) == ROUNDS_MAX


def test_a_round_that_tells_the_core_nothing_is_the_last() -> None:
    class Sending(Endless):
        def take_work(self) -> Work:
            work = super().take_work()
            work.serve.clear()
            return work

    node = replica().cluster.settle()
    core = node.driver.core = Sending()  # type: ignore[assignment]
    node.driver._run()
    assert core.rounds == 1 and not node.driver.behind


def test_no_round_is_made_for_a_core_at_rest() -> None:
    class Resting(Endless):
        is_at_rest = True

    node = replica().cluster.settle()
    core = node.driver.core = Resting()  # type: ignore[assignment]
    node.driver._run()
    assert core.rounds == 0 and not node.driver.behind


def test_what_is_durable_is_acknowledged_before_what_is_committed_is_executed() -> None:
    """And a reply leaves before anything of its op is recorded."""
    cluster = Cluster(3)
    cluster.settle()
    cluster.register()
    did: list[tuple[int, str]] = []

    def noted(node: Node, name: str, what: Callable[[Any], str]) -> None:
        owner = node.machine if name == "apply" else node
        before = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            did.append((node.index, what(arguments[-1])))
            return before(*arguments)

        setattr(owner, name, call)

    for node in cluster.up:
        noted(node, "send", lambda message: Command(message.header.command).name)
        noted(node, "send_client", lambda message: Command(message.header.command).name)
        noted(node, "apply", lambda batches: "execute")
        noted(node, "record", lambda batch: "record " + " ".join(event.kind.name for event in batch))
    primary = cluster.primary.index
    for number in (1, 2):
        did.clear()
        cluster.append(number, b"%d" % number)
    backup = (primary + 1) % 3
    of_backup = [what for index, what in did if index == backup]
    assert of_backup[:2] == ["PREPARE_OK", "execute"], "op 1 is executed when op 2 is acknowledged"
    of_primary = [what for index, what in did if index == primary]
    replied = of_primary.index("REPLY")
    assert not any("COMMITTED" in what for what in of_primary[:replied])
    assert any("COMMITTED" in what for what in of_primary[replied + 1 :])


# A full disk


class Freezing(Machine):
    def freeze(self) -> Freezing:
        return self


def appended(node: Node, numbers: range, size: int = 1) -> None:
    for number in numbers:
        node.driver.on_input(requests=[node.cluster.request(number, b"a" * size)])
        for _ in range(3):
            node.driver.on_tick()


def test_a_checkpoint_that_comes_due_while_one_is_written_is_left_out_and_shifts_nothing() -> None:
    under_way: list[tuple[Callable[[], bytes], Callable[[bytes], None]]] = []
    node = replica(
        make_machine=Freezing,
        checkpoints=CheckpointPolicy(ops=3, bytes=1 << 30),
        background=lambda work, done: under_way.append((work, done)),
    )
    node.cluster.register()
    appended(node, range(1, 7))
    assert (node.core.applied, len(under_way)) == (7, 1), "that of op 3 is being written, that of 6 left out"
    work, done = under_way.pop()
    done(work())
    for _ in range(10):
        node.driver.on_tick()
    assert node.store.checkpoint_op == 3
    appended(node, range(7, 8))
    assert not under_way, "nor is one made of another op in its place"
    appended(node, range(8, 9))
    assert node.core.applied == 9
    work, done = under_way.pop()
    done(work())
    for _ in range(10):
        node.driver.on_tick()
    assert node.store.checkpoint_op == 9


def checkpoints_made(
    policy: CheckpointPolicy, sizes: Sequence[int], restart_at: Sequence[int] = (), lost_at: int = 0
) -> list[int]:
    """Ops of the checkpoints of a replica that executes requests of these sizes."""
    node = replica(checkpoints=policy)
    node.cluster.register()
    made = []
    for number, size in enumerate(sizes, 1):
        appended(node, range(number, number + 1), size)
        if number in restart_at:
            node = node.restart().cluster.settle()
        if number == lost_at:
            node.store.lose_checkpoint(node.store.checkpoint.op)
            for _ in range(5):
                node.driver.on_tick()
            assert node.store.checkpoint_op == node.core.applied, "at once"
        if node.store.checkpoint_op and node.store.checkpoint_op not in made:
            made.append(node.store.checkpoint_op)
    return made


SIZES = [10, 3000, 10, 9000, 10, 10, 20_000, 10, 5000, 5000, 10, 10, 10, 10, 9000, 3000, 10, 10, 10, 7000, 7000, 10, 10]


def test_checkpoints_are_due_at_ops_that_follow_from_the_log_alone() -> None:
    """Op 1 registers, request n is op n + 1."""
    policy = CheckpointPolicy(ops=8, bytes=12_000)
    made = checkpoints_made(policy, SIZES)
    assert made == [5, 8, 16, 22, 24]
    for restarts in ([1], [6], [4, 9, 10], [17, 18], list(range(1, len(SIZES) + 1))):
        assert checkpoints_made(policy, SIZES, restarts) == made


@pytest.mark.parametrize("lost_at", [5, 10, 11, 18])
def test_a_lost_checkpoint_that_is_made_anew_shifts_nothing(lost_at: int) -> None:
    """Neither in this life nor after restarts that begin with it."""
    policy = CheckpointPolicy(ops=8, bytes=12_000)
    regular = checkpoints_made(policy, SIZES)
    for restarts in ([], [lost_at], [lost_at, lost_at + 1], [lost_at + 2]):
        made = checkpoints_made(policy, SIZES, restarts, lost_at)
        assert [op for op in made if op != lost_at + 1] == [op for op in regular if op != lost_at + 1], restarts


@pytest.mark.parametrize("more", [0, 1])
def test_a_checkpoint_of_which_no_copy_is_left_is_made_again_at_once(more: int) -> None:
    """more: ops executed since."""
    node = replica(checkpoints=CheckpointPolicy(ops=3, bytes=1 << 30))
    node.cluster.register()
    for number in range(1, 3 + more):
        node.driver.on_input(requests=[node.cluster.request(number, b"a")])
    for _ in range(10):
        node.driver.on_tick()
    op = node.store.checkpoint.op
    assert (op, node.store.checkpoint_op, node.core.applied) == (3, 3, 3 + more)
    for copy in checkpoints.COPIES:
        corrupt(node.disk.files, checkpoints.file_name(op, copy), 0, 16, Random(0))
    node.store.lose_checkpoint(op)
    for _ in range(10):
        node.cluster.now += 1_000_000
        node.driver.on_tick()
    assert node.store.checkpoint_op == 3 + more
    again = node.restart()
    assert again.store.checkpoint_op == 3 + more
    assert all(not checkpoints.check_copy(again.disk, again.store.checkpoint, copy) for copy in checkpoints.COPIES)


@pytest.mark.parametrize("last", range(32, 44))
def test_a_restart_behind_a_trim_asks_for_nothing_that_is_gone(last: int) -> None:
    """What is due behind its checkpoint follows from ops that were trimmed with their segments."""
    policy = CheckpointPolicy(bytes=40_000)
    node = replica(checkpoints=policy)
    node.cluster.register()
    appended(node, range(1, last), 9000)
    assert node.store.checkpoint_op % policy.ops
    extent = [each for each in node.store.extents() if each.first_op <= node.core.trimmable_op][-1]
    node.driver.trim(extent.first_op, extent.first_position)
    for _ in range(20):
        node.cluster.now += 1_000_000
        node.driver.on_tick()
    assert node.store.first_op == extent.first_op
    again = node.restart().cluster.settle()
    assert again.core.applied == node.core.applied
    assert again.store.headers(1, again.store.head)[0].op <= extent.first_op


# Operations that this release does not know


def foreign(node: Node, operation: int, op: int) -> Message:
    """An entry that another release has written, behind op - 1."""
    before = node.store.header(op - 1)
    assert before is not None
    return prepare(before, operation=operation, view=before.view, replicas=1)


@pytest.mark.parametrize("operation", [6, 127, 129, 255])
def test_an_operation_in_the_log_that_is_not_known_ends_the_start_and_nothing_is_written(operation: int) -> None:
    node = replica()
    node.cluster.register()
    appended(node, range(1, 4))
    node.store.append(1000, [foreign(node, operation, node.store.head + 1)])
    node.store.completions()
    before = {name: bytes(data) for name, data in node.disk.files.durable.items()}
    with pytest.raises(
        FormatVersionError, match=f"op 5 of the log is of operation {operation}, .* start that release"
    ) as found:
        node.restart()
    assert (found.value.exit_code, found.value.op, found.value.operation) == (15, 5, operation)
    assert {name: bytes(data) for name, data in node.disk.files.durable.items()} == before


def test_an_operation_that_is_not_known_is_never_executed_as_nothing() -> None:
    node = replica()
    node.cluster.register()
    appended(node, range(1, 4))
    with pytest.raises(FormatVersionError, match="op 5 of the log is of operation 6"):
        node.driver._apply(Apply(5, foreign(node, 6, 5).header, None))
    assert node.core.applied == 4


def test_a_committed_entry_of_an_operation_that_is_not_known_ends_the_replica_that_asked_for_it() -> None:
    """The same frame is refused as long as nothing says that it is part of the log."""
    node = replica()
    node.cluster.register()
    appended(node, range(1, 4))
    core = node.core
    entry = foreign(node, 6, 5)
    node.driver.on_input(messages=[entry])
    assert (core.log.op, core.applied) == (4, 4)
    core.log.headers[5] = entry.header
    core.log.committed = 5
    with pytest.raises(FormatVersionError, match="op 5 of the log is of operation 6"):
        node.driver.on_input(messages=[entry])
    assert node.store.head == 4


@pytest.mark.parametrize("operation", [0, 1, 3, 4, 5, 6, 127, 129])
def test_a_client_that_asks_for_an_operation_that_is_not_for_clients_is_refused(operation: int) -> None:
    node = replica()
    node.cluster.register()
    head = node.store.head
    node.driver.on_input(requests=[request(1, session=node.cluster.session, operation=operation)])
    assert node.refusals() == [Reason.MALFORMED]
    assert (node.store.head, node.core.log.op) == (head, head)


def test_a_full_disk_refuses_appends_before_anything_fails_and_takes_them_again_when_there_is_space() -> None:
    node = replica()
    node.cluster.register()
    fill(node.disk.files)
    number = 0
    while not (refused := node.refusals()):
        number += 1
        node.cluster.now += 1000
        node.driver.on_input(requests=[node.cluster.request(number, b"%d" % number)])
    assert refused == [Reason.DISK_FULL]
    assert node.store.room.rest >= 32 << 10, "before it is full"
    assert node.core.snapshot().disk.is_full
    assert "disk full on replica 0: appends are refused" in node.core.snapshot().unhealthy
    assert not node.disk.has_failed
    # What it has done already it answers; who is new is refused.
    node.driver.on_input(requests=[node.cluster.request(number - 1, b"again")])
    (reply,) = node.replies()
    assert reply.header.position == number - 2
    assert node.store.read(node.store.head) is not None
    empty(node.disk.files)
    node.cluster.now += RETRY_NS
    node.driver.on_tick()
    assert not node.core.snapshot().disk.is_full
    node.driver.on_input(requests=[node.cluster.request(number, b"%d" % number)])
    (reply,) = node.replies()
    assert reply.header.position == number - 1
    batches = [event_batches.slice(batch.body, 0, 1)[0] for batch in node.machine.batches]
    assert batches == [b"%d" % count for count in range(1, number + 1)]


def test_what_is_accepted_and_finds_no_room_is_refused_and_not_appended() -> None:
    node = replica().cluster.settle()
    clients = range(1, 4)
    node.driver.on_input(requests=[node.cluster.request(0, client=client) for client in clients])
    sessions = [reply.header.session for reply in node.replies()]
    requests = [
        node.cluster.request(1, b"x" * (20 << 10), session=session, client=client)
        for session, client in zip(sessions, clients, strict=True)
    ]
    fill(node.disk.files)
    head = node.store.head
    node.driver.on_input(requests=requests)
    assert node.refusals() == [Reason.DISK_FULL] * 3
    assert (node.store.head, node.core.log.op, node.core.in_flight) == (head, head, {})
    empty(node.disk.files)
    node.cluster.now += RETRY_NS
    node.driver.on_tick()
    node.driver.on_input(requests=requests)
    assert [reply.header.position for reply in node.replies()] == [0, 1, 2]


# What the core answers to requests that it does not accept


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"session": 999}, Reason.NO_SESSION),
        ({"number": 3}, Reason.REQUEST_TOO_NEW),
        ({"number": 0, "payloads": (b"x" * (3 << 20),)}, Reason.TOO_LARGE),
    ],
)
def test_a_request_that_is_refused_is_not_journaled(fields: dict[str, Any], reason: Reason) -> None:
    node = replica()
    node.cluster.register()
    head = node.store.head
    options = {"number": 1, "payloads": (b"a",), "session": None, **fields}
    request = node.cluster.request(options["number"], *options["payloads"], session=options["session"])
    node.driver.on_input(requests=[request])
    (answer,) = node.answers
    assert (answer.header.command, answer.header.reason) == (Command.REJECT, reason)
    assert answer.header.context == request.header.checksum
    assert node.store.head == head


def test_a_draining_replica_answers_what_it_has_and_takes_nothing_new() -> None:
    node = replica()
    node.cluster.register()
    node.core.drain()
    node.driver.on_input(requests=[node.cluster.request(1, b"a")])
    (answer,) = node.answers
    assert answer.header.reason == Reason.DRAINING


def test_an_old_request_is_ignored_and_the_last_one_answered_again() -> None:
    node = replica()
    node.cluster.register()
    for number in (1, 2):
        node.driver.on_input(requests=[node.cluster.request(number, b"%d" % number)])
    first = node.replies()
    node.driver.on_input(requests=[node.cluster.request(1, b"1")])
    assert node.replies() == []
    node.driver.on_input(requests=[node.cluster.request(2, b"2")])
    assert [reply.header.position for reply in node.replies()] == [first[-1].header.position]
    assert len(node.machine.batches) == 2


def test_what_an_inline_write_and_the_state_machine_take_is_in_the_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    node = replica()
    node.cluster.register()
    append, apply = node.store.append, node.machine.apply

    def slow_append(token: int, entries: Sequence[Message]) -> None:
        append(token, entries)
        node.cluster.now += 300

    def slow_apply(batches: Sequence[Batch]) -> Sequence[bytes]:
        node.cluster.now += 20
        return apply(batches)

    monkeypatch.setattr(node.store, "append", slow_append)
    monkeypatch.setattr(node.machine, "apply", slow_apply)
    node.events.clear()
    node.driver.on_input(requests=[node.cluster.request(1, b"a")])
    took = {event.kind: event for event in node.events}
    assert took[EventKind.JOURNALED].b == 300
    assert took[EventKind.COMMITTED].c == took[EventKind.REPLIED].b == 320
