"""The checkers: silent about what is right, and each shown to fire at what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import pytest
from lab import core_of

from kimberlite._fast import framing
from kimberlite.types import Command, Message, Status
from kimberlite.vopr import drill, limits
from kimberlite.vopr.checkers import Acknowledged, Promises, Violation, check_history, durable_promises
from kimberlite.vopr.disk import corrupt
from kimberlite.vopr.liveness import check_rest
from kimberlite.vopr.nodes import SimNode
from kimberlite.vopr.plan import MS, draw
from kimberlite.vopr.world import World
from kimberlite.vsr.codec import Evidence, encode_evidence
from kimberlite.vsr.following import Following

# E2 by brute force

INTERVALS = ((0, 1), (0, 3), (1, 2), (2, 3))
OUTCOMES: tuple[tuple[int | None, bool], ...] = ((0, False), (1, False), (2, False), (None, False), (None, True))


def is_linearizable(history: Sequence[Acknowledged], log: Sequence[bytes]) -> bool:
    """By the definition: some order of some of the appends explains the log."""
    for size in range(len(history) + 1):
        for chosen in itertools.permutations(history, size):
            if explains(chosen, history, log):
                return True
    return False


def explains(chosen: Sequence[Acknowledged], history: Sequence[Acknowledged], log: Sequence[bytes]) -> bool:
    if [event for append in chosen for event in append.events] != list(log):
        return False
    if any(append.refused for append in chosen):
        return False
    if any(append.position is not None and append not in chosen for append in history):
        return False
    position = 0
    for append in chosen:
        if append.position not in (None, position):
            return False
        position += len(append.events)
    return not any(
        later.position is not None and later.returned_at is not None and later.returned_at < earlier.called_at
        for index, earlier in enumerate(chosen)
        for later in chosen[index + 1 :]
    )


def accepts(history: Sequence[Acknowledged], log: Sequence[bytes]) -> bool:
    try:
        check_history(history, log)
    except Violation:
        return False
    return True


def appends(client: int, events: tuple[bytes, ...]) -> list[Acknowledged]:
    return [
        Acknowledged(client, 0, events, called, returned, position, refused)
        for (called, returned), (position, refused) in itertools.product(INTERVALS, OUTCOMES)
    ]


def compare(histories: Sequence[Sequence[Acknowledged]], logs: Sequence[Sequence[bytes]]) -> tuple[int, int]:
    """Cases accepted and refused; fails where the checker and the definition differ."""
    counts = [0, 0]
    for history in itertools.product(*histories):
        for log in logs:
            expected = is_linearizable(history, log)
            assert accepts(history, log) == expected, (history, log)
            counts[not expected] += 1
    return counts[0], counts[1]


def test_history_checker_is_right_on_all_small_histories_of_three() -> None:
    events = (b"a", b"b", b"c")
    logs = [log for size in range(4) for log in itertools.permutations(events, size)]
    # One append is always acknowledged: three free ones would be the same cases over and over.
    first = [append for append in appends(0, (b"a",)) if append.position is not None][::2]
    accepted, refused = compare([first, appends(1, (b"b",))[::2], appends(2, (b"c",))[::3]], logs)
    assert accepted > 200 and refused > 5000


def test_history_checker_is_right_on_all_logs_of_two_appends() -> None:
    """Batches that are torn or interleaved, events twice, events of nobody."""
    logs = [log for size in range(4) for log in itertools.product((b"a", b"A", b"b", b"x"), repeat=size)]
    accepted, refused = compare([appends(0, (b"a", b"A")), appends(1, (b"b",))], logs)
    assert accepted > 300 and refused > 10_000


# The drill


def test_the_drill_passes() -> None:
    drill.drill()


@pytest.mark.parametrize("what", drill.CASES)
def test_the_drill_notices_a_silent_checker(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = drill.CASES[what]
    monkeypatch.setitem(drill.CASES, what, (name, lambda: None))
    with pytest.raises(Violation, match=f"{what}: {name} says nothing"):
        drill.drill()


def test_the_drill_notices_a_checker_that_refuses_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(history: Sequence[Acknowledged], log: Sequence[bytes]) -> None:
        raise Violation("E2 anything", "no")

    monkeypatch.setattr(drill, "check_history", refuse)
    with pytest.raises(Violation, match="a good history is refused"):
        drill.drill()


# Checks that look at a world


CALM = replace(
    draw(0, 20),
    replica_count=3,
    client_count=2,
    loss=0.0,
    duplication=0.0,
    reorder=0.0,
    corruption=0.0,
    replay=0.0,
    ring=0.0,  # a second copy of what is damaged here
    clock_skew_ns=0,
    sessions_max=64,
    late_ops=0,
    persistent="",
    event_bytes=64,
)


def is_normal(node: SimNode) -> bool:
    return node.driver.core.state.status == Status.NORMAL


def calm_world() -> World:
    """Three replicas after twenty appends without any fault, and what their last restart leads to."""
    world = World(CALM, faults=())
    world.run()
    assert world.run_until(world.now + 5000 * MS, lambda: all(is_normal(node) for node in world.nodes))
    world.run_until(world.now + 500 * MS, lambda: False)
    return world


@pytest.fixture(scope="module")
def finished() -> World:
    return calm_world()


@pytest.fixture
def world() -> World:
    return calm_world()


def leader(world: World) -> SimNode:
    return next(node for node in world.nodes if node.driver.core.leading is not None)


def head(world: World) -> int:
    return core_of(world.nodes[0]).log.op


def wipe_journal(world: World, replica: int) -> None:
    for name, content in world.files[replica].durable.items():
        if name.startswith("journal"):
            content[:] = bytes(len(content))


def message(command: Command, body: bytes = b"", **fields: int) -> Message:
    return Message(framing.make_header(body, cluster=bytes(16), command=command, **fields), body)


def promise(world: World, replica: int, promises: Promises) -> None:
    """Let that replica's superblock seem to say that."""
    world._promises[replica] = (world.files[replica].versions.get("superblock", 0), promises)


def case_quorum_audit(world: World) -> None:
    for replica in (1, 2):
        wipe_journal(world, replica)
    world.checkers.on_commit(world, 0, head(world))


def case_quorum_of_an_older_log_view(world: World) -> None:
    core_of(world.nodes[0]).view += 3
    world.checkers.on_commit(world, 0, head(world))


def case_two_primaries(world: World) -> None:
    world.checkers.on_commit(world, 1, head(world))
    world.checkers.on_commit(world, 2, head(world))


def case_unfounded_commit(world: World) -> None:
    core_of(world.nodes[1]).commit_max += 1
    world.checkers.on_step(world, 1)


def case_commit_goes_back(world: World) -> None:
    world.checkers.commit_floor[1] += 1
    world.checkers.on_step(world, 1)


def case_applied_above_commit(world: World) -> None:
    core_of(world.nodes[1]).applied += 1
    world.checkers.on_step(world, 1)


def case_log_view_above_view(world: World) -> None:
    core_of(world.nodes[1]).log_view = core_of(world.nodes[1]).view + 1
    world.checkers.on_step(world, 1)


def case_view_not_on_disk(world: World) -> None:
    world.checkers.on_send(world, 1, message(Command.PING, view=99))


def case_log_view_not_on_disk(world: World) -> None:
    promise(world, 1, Promises(view=9, log_view=8))
    world.checkers.on_send(world, 1, message(Command.START_VIEW, view=9))


def case_log_view_claimed(world: World) -> None:
    promise(world, 1, Promises(view=9, log_view=2))
    world.checkers.on_send(world, 1, message(Command.DO_VIEW_CHANGE, view=9, log_view=5))


def case_acknowledged_before_durable(world: World) -> None:
    wipe_journal(world, 2)
    world.checkers.acknowledged[2].clear()
    world.checkers.on_send(world, 2, message(Command.PREPARE_OK, op=head(world)))


def case_acknowledged_with_a_gap(world: World) -> None:
    """Its own entry is there, one below it is not."""
    world.checkers.acknowledged[2].clear()
    header = core_of(world.nodes[2]).log.headers[head(world) - 1]
    for name, content in world.files[2].durable.items():
        at = content.find(header.raw)
        if name.startswith("journal") and at >= 0:
            content[at : at + 256] = bytes(256)
    world.checkers.on_send(world, 2, message(Command.PREPARE_OK, op=head(world)))


def case_nack_of_what_was_acknowledged(world: World) -> None:
    core = core_of(world.nodes[1])
    header = core.log.headers[core.log.op]
    evidence = Evidence(header.op, known=1, present=0, nack=1, headers=(header,))
    world.checkers.acknowledged[1] = {header.op: header.checksum}
    world.checkers.on_send(world, 1, message(Command.DO_VIEW_CHANGE, encode_evidence(evidence), op=header.op))


def case_shorter_log_in_evidence(world: World) -> None:
    core = core_of(world.nodes[1])
    header = core.log.headers[core.log.op]
    world.checkers.acknowledged[1] = {header.op: header.checksum}
    world.checkers.on_send(world, 1, message(Command.DO_VIEW_CHANGE, op=header.op - 1))


def case_forgotten_at_restart(world: World) -> None:
    world.checkers.acknowledged[1] = {core_of(world.nodes[1]).log.op + 1: bytes(16)}
    world.checkers.on_restart(world, 1)


def case_views_go_back_at_restart(world: World) -> None:
    world.checkers.views[1] = (99, 0)
    world.checkers.on_restart(world, 1)


def case_starts_below_its_disk(world: World) -> None:
    promise(world, 1, Promises(view=core_of(world.nodes[1]).view + 1))
    world.checkers.on_restart(world, 1)


def case_not_converged(world: World) -> None:
    world.checkers.committed[head(world) + 1] = world.checkers.committed[head(world)]
    world.checkers.check_end(world, [record for client in world.clients for record in client.history])


def case_logs_differ(world: World) -> None:
    core_of(world.nodes[2]).applied -= 1
    world.read_log()


def case_other_reply(world: World) -> None:
    for position in (3, 4):
        header = framing.make_header(
            cluster=bytes(16), command=Command.REPLY, op=5, operation=128, request=1, position=position, count=1
        )
        world.checkers.on_reply(0, Message(header, b""))


def case_store_hands_out_another_entry(world: World) -> None:
    """The journal holds under one op the entry of another: as after a late write in a later view."""
    store = world.nodes[1].store
    segment = store._segments.active
    index = segment.count - 1
    segment.apart[index] = segment.header(index - 1), segment.place(index - 1)
    store.read(segment.last)


def case_store_hands_out_what_was_not_committed(world: World) -> None:
    op = head(world)
    world.checkers.committed[op] = world.checkers.committed[op - 1]
    world.nodes[1].store.headers(op - 1, op)


def case_store_ends_elsewhere(world: World) -> None:
    world.nodes[1].store._segments.head -= 1
    world.checkers.on_step(world, 1)


def case_queue_above_its_bound(world: World) -> None:
    node = leader(world)
    core_of(node).requests.bytes = 1 << 40
    node.watch.look(world, node)


def case_requests_counted_wrongly(world: World) -> None:
    core = core_of(leader(world))
    core.queue.append((Message(world.checkers.committed[3], b"body"), 0))
    limits.weigh(core.replica)


def case_damage_left_at_rest(world: World) -> None:
    node = world.nodes[1]
    node.store._faulty.ops.add(1)
    limits.check_rest(1, limits.held(node.driver.core, node.store, node.disk))


def case_left_at_rest(world: World) -> None:
    core_of(leader(world)).state.scope.entered[10**6] = 0
    check_rest(world)


CASES: list[tuple[str, Callable[[World], None]]] = [
    ("I8 quorum audit", case_quorum_audit),
    ("I8 quorum audit", case_quorum_of_an_older_log_view),
    ("I5 one primary", case_two_primaries),
    ("I8 founded commits", case_unfounded_commit),
    ("I3 monotone commit", case_commit_goes_back),
    ("I7 order", case_applied_above_commit),
    ("I4 monotone views", case_log_view_above_view),
    ("I9 durable promises", case_view_not_on_disk),
    ("I9 durable promises", case_log_view_not_on_disk),
    ("I9 durable promises", case_log_view_claimed),
    ("I9 durable promises", case_acknowledged_before_durable),
    ("I9 durable promises", case_acknowledged_with_a_gap),
    ("I12 true nacks", case_nack_of_what_was_acknowledged),
    ("I12 no forgetting", case_shorter_log_in_evidence),
    ("I12 no forgetting", case_forgotten_at_restart),
    ("I4 monotone views", case_views_go_back_at_restart),
    ("I4 monotone views", case_starts_below_its_disk),
    ("E1 convergence", case_not_converged),
    ("E2 same log", case_logs_differ),
    ("I10 same reply", case_other_reply),
    ("I2 what is read", case_store_hands_out_another_entry),
    ("I2 what is read", case_store_hands_out_what_was_not_committed),
    ("I7 journal", case_store_ends_elsewhere),
    ("I17 bounds", case_queue_above_its_bound),
    ("I17 bounds", case_requests_counted_wrongly),
    ("I17 rest", case_left_at_rest),
    ("I17 rest", case_damage_left_at_rest),
]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_check_fires(world: World, name: str, case: Callable[[World], None]) -> None:
    with pytest.raises(Violation) as caught:
        case(world)
    assert caught.value.name == name


def test_the_same_inputs_unharmed_raise_nothing(finished: World) -> None:
    checkers = finished.checkers
    for replica in range(3):
        checkers.on_step(finished, replica)
        core = core_of(finished.nodes[replica])
        checkers.acknowledged[replica].clear()
        if isinstance(core.role, Following):
            checkers.on_send(finished, replica, message(Command.PREPARE_OK, op=core.log.op, view=core.view))
            assert core.log.op in checkers.acknowledged[replica]
    checkers.check_end(finished, [record for client in finished.clients for record in client.history])
    assert checkers.quorum_audits > 10 and checkers.agreements > 20


# What the checkers read from a disk


def test_promises_need_two_copies_that_agree(world: World) -> None:
    files = world.files[0]
    whole = durable_promises(files)
    assert whole.suffix
    for copy in (0, 1):
        corrupt(files, "superblock", copy * 16384 + 200, 1, Random(1))
        assert durable_promises(files) == whole
    corrupt(files, "superblock", 2 * 16384 + 200, 1, Random(1))
    assert durable_promises(files) == Promises()


def test_entries_that_a_view_change_made_void_do_not_count(finished: World) -> None:
    log = core_of(finished.nodes[0]).log
    entry, other = log.headers[log.op - 1], log.headers[log.op]
    assert not Promises(log_view=entry.view).is_void(entry)
    assert Promises(log_view=entry.view + 1).is_void(entry)
    log_view, head = entry.view + 1, log.op
    assert not Promises(log_view=log_view, suffix_head=head, suffix={entry.op: entry.checksum}).is_void(entry)
    assert Promises(log_view=log_view, suffix_head=head, suffix={entry.op: other.checksum}).is_void(entry)
    assert not Promises(log_view=log_view, suffix_head=head, suffix={other.op: other.checksum}).is_void(entry)


def test_what_is_looked_at_in_every_step_is_all_that_has_a_bound(world: World) -> None:
    """`fits` is the quick form of `held` and `check_held`: each of NAMES that is above its bound is found by it."""
    follower = next(node for node in world.nodes if node.driver.core.leading is None)
    for node in (leader(world), follower):
        core = node.driver.core
        there = limits.held(core, node.store, node.disk)
        assert limits.fits(core, node.store, node.disk, there)
        for number, name in enumerate(limits.NAMES):
            most = (*there[:number], there[number] - 1, *there[number + 1 :])
            is_led = number < len(limits.NOTHING_LED)
            is_looked_at = name != "evidence" and (not is_led or core.leading is not None)
            assert limits.fits(core, node.store, node.disk, most) is not is_looked_at, name


def test_spare_segments_are_as_many_as_a_start_has_found() -> None:
    config, spare = World(CALM, faults=()).nodes[0].driver.core.state.config, limits.NAMES.index("spare segments")
    most = [limits.limits(config, 64 << 10, found)[spare] for found in (0, 33, 40)]
    assert most == [33, 33, 40]
