"""What brings nothing is asked for less and less, whatever it is, and asked for again when that may have changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab import MS, Cluster, Node, prepare

from kimberlite.node.checkpoints import CheckpointPolicy
from kimberlite.types import Command, Message, Status
from kimberlite.vsr.pacing import FREE, QUESTIONS_MAX, Pacing

QUESTION = ("entry", 7)
IDLE_PER_S = (
    100  # frames of one replica of three: two heartbeats, or their answer, each 50 ms; signs of life; questions
)


def test_the_first_times_cost_nothing_then_each_wait_is_twice_as_long() -> None:
    pacing = Pacing(100, 1000)
    now, waits = 0, []
    for _ in range(FREE + 6):
        pacing.brought_nothing(QUESTION, now)
        begun = now
        while not pacing.may_ask(QUESTION, now):
            now += 1
        waits.append(now - begun)
    assert waits == [0] * FREE + [100, 200, 400, 800, 1000, 1000]
    assert pacing.may_ask(("headers", 7), now)
    pacing.brought_nothing(QUESTION, now)
    pacing.brought_something(QUESTION)
    assert pacing.may_ask(QUESTION, now)


def test_what_was_asked_for_long_ago_is_a_new_question() -> None:
    pacing = Pacing(100, 1000)
    for _ in range(20):
        pacing.brought_nothing(QUESTION, 0)
    assert not pacing.may_ask(QUESTION, 900)
    pacing.brought_nothing(QUESTION, 10_000)
    assert pacing.may_ask(QUESTION, 10_000)


def test_who_is_heard_again_is_asked_but_not_each_time_that_several_come_and_go() -> None:
    pacing = Pacing(100, 1000)
    for _ in range(20):
        pacing.brought_nothing(QUESTION, 0)
    assert not pacing.may_ask(QUESTION, 500)
    pacing.renew(500)
    assert pacing.may_ask(QUESTION, 500)
    asked = []
    for now in range(500, 1500):
        pacing.renew(now)
        if pacing.may_ask(QUESTION, now):
            asked.append(now)
            pacing.brought_nothing(QUESTION, now)
    assert asked == list(range(500, 1500, 100))


def test_a_bounded_number_of_questions_is_remembered() -> None:
    pacing = Pacing(100, 1000)
    for number in range(2 * QUESTIONS_MAX):
        pacing.brought_nothing(("entry", number), 0)
    assert len(pacing._barren) == QUESTIONS_MAX


def trimmed_cluster() -> Cluster:
    """Three replicas whose log begins behind its first segments."""
    cluster = Cluster(checkpoints=CheckpointPolicy(ops=8))
    cluster.register()
    for number in range(1, 61):
        cluster.append(number, b"y" * 3000)
    settled(cluster)
    return cluster


def settled(cluster: Cluster) -> None:
    cluster.run(500)
    for _ in range(20):
        for node in cluster.up:
            node.driver.on_disk()


def trim(cluster: Cluster) -> int:
    """As far as possible: the first op then."""
    primary = cluster.primary
    extent = [each for each in primary.store.extents() if each.first_op <= primary.core.trimmable_op][-1]
    primary.driver.trim(extent.first_op, extent.first_position)
    settled(cluster)
    assert {node.store.first_op for node in cluster.up} == {extent.first_op}
    return extent.first_op


def per_second(cluster: Cluster, node: Node, *commands: Command, ms: int = 10_000) -> float:
    """Frames that a replica sends, of those commands or in all."""
    cluster.sent.clear()
    cluster.run(ms)
    sent = [message for source, _, message in cluster.sent if source == node.index]
    return sum(not commands or message.header.command in commands for message in sent) * 1000 / ms


ASKING = (Command.REQUEST_HEADERS, Command.REQUEST_PREPARE)


def test_a_replica_formatted_anew_asks_little_for_a_log_that_was_trimmed() -> None:
    cluster = trimmed_cluster()
    trim(cluster)
    node = cluster.backups[0]
    cluster.crash(node.index)
    cluster.run(100)
    cluster.format(node.index)
    node = cluster.start(node.index)
    cluster.run(1000)
    assert (node.core.status, node.core.log.linked) == (Status.NORMAL, 0)
    assert per_second(cluster, node, *ASKING) <= 1
    for each in cluster.up:
        assert per_second(cluster, each) <= IDLE_PER_S


@pytest.mark.parametrize("answered", ["not at all", "without what is wanted"])
def test_an_op_that_nobody_has_is_asked_for_less_and_less_and_soon_when_somebody_returns(answered: str) -> None:
    cluster = trimmed_cluster()
    node = cluster.backups[0]
    bad = {20, 21, 22}

    def lost(source: int, target: int, message: Message) -> bool:
        return target == node.index and message.header.command == Command.PREPARE and message.header.op in bad

    cluster.lost = lost
    for op in bad:
        header = node.store.header(op)
        node.core.log.bodies.pop(op, None)
        node.core.entry_faulty(op, header if answered == "not at all" else None, cluster.now)
        if answered != "not at all":
            node.core.log.headers.pop(op, None)
    if answered != "not at all":
        cluster.lost = lambda source, target, message: (
            lost(source, target, message) or (target == node.index and message.header.command == Command.HEADERS)
        )
    cluster.run(5000)
    assert node.core.log.faulty == bad
    assert per_second(cluster, node, *ASKING) <= len(bad)
    assert per_second(cluster, node) <= IDLE_PER_S
    # A replica that is heard again may have it.
    silent = next(each for each in cluster.up if each is not node and not each.core.is_primary)
    cluster.lost = lambda source, target, message: source == silent.index or lost(source, target, message)
    cluster.run(3000)
    cluster.lost = lambda source, target, message: False
    cluster.run(1000)
    assert not node.core.log.faulty


def test_an_identity_that_nobody_has_is_asked_for_anew() -> None:
    """The disk lost the last write of a witness, and gives that of an older log's entry, intact."""
    cluster = trimmed_cluster()
    node = cluster.backups[0]
    stale = prepare(op=20, parent=bytes(16)).header
    node.core.log.bodies.pop(20, None)
    node.core.log.headers.pop(20, None)
    node.core.entry_faulty(20, stale, cluster.now)
    assert node.core.log.headers[20] == stale
    cluster.run(1500)
    node.core.entry_faulty(20, stale, cluster.now)  # a tour finds it again
    cluster.run(1500)
    assert not node.core.log.faulty
    assert node.core.log.headers[20] != stale


def test_damage_below_a_trim_that_comes_while_it_is_repaired_concerns_nobody_any_more() -> None:
    cluster = trimmed_cluster()
    node = cluster.backups[0]
    primary = cluster.primary
    bad = {20, 21, 22}
    cluster.lost = lambda source, target, message: (
        target == node.index and message.header.command == Command.PREPARE and message.header.op in bad
    )
    for op in bad:
        node.store._faulty.mark(op)
        node.core.log.bodies.pop(op, None)
    node.driver.on_damage()
    cluster.run(30)
    assert node.core.repairs.keys() == bad
    disk = node.store._disk
    disk._latency = lambda: 3 * MS  # type: ignore[attr-defined]  # the superblock takes 12 ms
    extent = [each for each in primary.store.extents() if each.first_op <= primary.core.trimmable_op][-1]
    assert max(bad) < extent.first_op
    answers = [primary.store.read(op) for op in sorted(bad)]
    primary.driver.trim(extent.first_op, extent.first_position)
    seen = False
    for _ in range(40):
        cluster.deliver()
        cluster.now += MS
        for each in cluster.up:
            each.driver.on_tick()
        if node.core.first_op > node.store.first_op and not seen:  # executed, and not durable yet
            seen = True
            node.store.read(20)  # a reader, and an answer that comes late
            node.driver.on_damage()
            node.driver.on_input(messages=[answer for answer in answers if answer is not None])
        assert all(op >= node.core.first_op for op in (*node.core.log.faulty, *node.core.repairs))
        assert all(op >= node.core.first_op for op in node.store.faulty)
    assert seen
    assert node.store.first_op == node.core.first_op == extent.first_op
    assert not bad & set(node.core.log.bodies)
    cluster.run(1000)
    assert per_second(cluster, node, *ASKING) == 0
    assert cluster.append(61, b"on").header.op > 60


def test_a_repair_that_has_no_certain_place_ends_nobody_and_is_tried_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = trimmed_cluster()
    node = cluster.backups[0]
    bad = {20, 21, 22}
    for op in bad:
        node.store._faulty.mark(op)
        node.core.log.bodies.pop(op, None)
    with monkeypatch.context() as context:
        context.setattr(node.store._segments.cold, "prove", lambda header: None)
        node.driver.on_damage()
        cluster.run(5000)
        assert node.core.log.faulty == node.store.faulty == bad
        assert per_second(cluster, node, *ASKING) <= len(bad)
    cluster.run(10_000)
    assert not node.core.log.faulty
    assert not node.store.faulty


def test_an_identity_that_nobody_tells_does_not_keep_the_rest_of_the_log_away() -> None:
    cluster = trimmed_cluster()
    node = cluster.backups[0]
    trim(cluster)
    op = node.core.first_op
    node.core.log.faulty.add(op)
    node.core.log.headers.pop(op, None)
    cluster.lost = lambda source, target, message: (
        target == node.index
        and message.header.command
        in (
            Command.PREPARE,
            Command.HEADERS,
        )
    )
    for number in range(61, 64):
        cluster.primary.driver.on_input(requests=[cluster.request(number, b"z")])
        cluster.run(50)
    cluster.run(8000)

    def lost(source: int, target: int, message: Message) -> bool:
        if target != node.index or message.header.command != Command.HEADERS:
            return target == node.index and message.header.command == Command.PREPARE and message.header.op <= op
        return message.header.op <= op

    cluster.lost = lost
    cluster.run(10_000, lambda: node.core.log.linked == cluster.primary.core.log.op)
    assert node.core.log.faulty == {op}


def test_identities_that_the_others_have_trimmed_do_not_keep_the_rest_of_the_log_away() -> None:
    """Each of them may be asked for now and then, so that one of many always may: nobody would ever ask for the rest,
    the trim among it."""
    cluster = trimmed_cluster()
    node = cluster.backups[0]
    node.core.config = replace(node.core.config, headers_per_message=3)
    cluster.lost = lambda source, target, message: node.index in (source, target)
    primary = cluster.primary
    extent = [each for each in primary.store.extents() if each.first_op <= primary.core.trimmable_op][-1]
    primary.driver.trim(extent.first_op, extent.first_position)
    cluster.run(300)
    for number in range(61, 71):
        primary.driver.on_input(requests=[cluster.request(number, b"z")])
        cluster.run(50)
    assert primary.store.first_op == extent.first_op > node.store.first_op
    for op in range(node.core.first_op, extent.first_op):
        node.core.log.faulty.add(op)
        node.core.log.headers.pop(op, None)
    cluster.lost = lambda source, target, message: False
    cluster.run(10_000, lambda: node.core.log.linked == cluster.primary.core.log.op)


def test_what_is_held_of_damage_does_not_keep_the_entry_away_that_it_waits_for() -> None:
    """The lowest of a run of damaged entries, whose answer was lost, is asked for whatever is held of those above."""
    cluster = trimmed_cluster()
    node = cluster.backups[0]
    node.core.config = replace(node.core.config, backlog_bytes=20_000)
    bad = set(range(20, 32))
    answers = 0

    def lost(source: int, target: int, message: Message) -> bool:
        nonlocal answers
        is_answer = target == node.index and message.header.command == Command.PREPARE and message.header.op == min(bad)
        answers += is_answer
        return is_answer and answers < 3

    cluster.lost = lost
    for op in bad:
        node.store._faulty.mark(op)
        node.core.log.bodies.pop(op, None)
    node.driver.on_damage()
    cluster.run(20_000)
    assert answers == 3
    assert not node.core.log.faulty
