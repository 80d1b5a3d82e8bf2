"""The birth of a cluster: all are needed, once, in two phases; a member is enough for who comes late."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab import Cluster, Node, entries, frame

from kimberlite.types import VIEW_BORN, ZERO16, Birth, Command, Header, Reason, Status
from kimberlite.vsr import birth
from kimberlite.vsr.choice import DoViewChange, choose
from kimberlite.vsr.codec import Evidence
from kimberlite.vsr.members import Membership
from kimberlite.vsr.record import Record, birth_digest, born, decode, encode


def state_of(node: Node) -> Birth:
    identity = node.core.state.own.identity
    assert identity is not None
    return identity.birth


def born_all(cluster: Cluster) -> bool:
    return all(node.core.state.own.is_formed for node in cluster.up)


def waits(node: Node) -> str:
    return node.core.snapshot().unhealthy


@pytest.mark.parametrize("count", range(1, 7))
def test_a_cluster_is_born_when_all_have_met(count: int) -> None:
    cluster = Cluster(count, identity=entries.unborn)
    cluster.run(2000, lambda: born_all(cluster))
    cluster.register()
    cluster.append(1, b"event")
    records = {node.store.identity.record for node in cluster.up}
    assert len(records) == 1 and {node.store.identity.birth for node in cluster.up} == {Birth.FORMED}
    record = decode(records.pop())
    assert record.epoch == 1 and record.voters == tuple(range(count))
    cluster.restart()
    cluster.append(2, b"another")


@pytest.mark.parametrize("count", range(2, 7))
def test_without_one_of_them_nothing_happens(count: int) -> None:
    cluster = Cluster(count, identity=entries.unborn)
    missing = count - 1
    cluster.crash(missing)
    cluster.queue = [sent for sent in cluster.queue if sent[0] != missing]
    cluster.run(10_000)
    for node in cluster.up:
        assert state_of(node) is Birth.UNBORN and node.core.status == Status.UNBORN
        assert f"replica {missing} at replica-{missing}:1 was not heard yet" in waits(node)
        node.driver.on_input(requests=[cluster.request(0)])
        assert node.refusals() == [Reason.NOT_READY]
        assert not [sent for _, _, sent in cluster.sent if sent.header.command not in (Command.PING, Command.PONG)]
    cluster.start(missing)
    cluster.run(2000, lambda: born_all(cluster))


def test_one_that_is_formed_suffices_when_another_is_gone() -> None:
    """A is bound, B is formed, C dies: A learns from B that all were bound, itself included."""
    cluster = Cluster(identity=entries.unborn)
    cluster.lost = lambda source, target, message: target == 0 and message.header.parent != ZERO16  # who is bound
    cluster.run(3000, lambda: cluster.node(1).core.state.own.is_formed and cluster.node(2).core.state.own.is_formed)
    assert state_of(cluster.node(0)) is Birth.BOUND
    cluster.crash(2)
    cluster.lost = lambda source, target, message: False
    cluster.run(5000, lambda: born_all(cluster))
    assert cluster.node(0).store.identity.record == cluster.node(1).store.identity.record
    cluster.settle()


def test_a_record_that_does_not_name_this_disk_is_not_taken() -> None:
    cluster = Cluster(identity=entries.unborn)
    cluster.crash(1, 2)
    cluster.queue.clear()
    alone = cluster.node(0)
    foreign = decode(entries.formed(0, 3).record)
    others = tuple(replace(m, incarnation=bytes([m.slot + 50]) * 16) for m in foreign.members)
    record = replace(foreign, members=others)
    fields = {"replica": 1, "epoch": 1, "client": others[1].incarnation, "session": 7}
    alone.driver.on_input(messages=[frame(Command.CONFIG, encode(record), **fields)])
    alone.driver.on_input(messages=[frame(Command.CONFIG, b"no record", **fields)])
    cluster.run(100)
    assert state_of(alone) is Birth.UNBORN


def test_a_binding_is_durable_before_it_is_said() -> None:
    cluster = Cluster(identity=entries.unborn)
    node = cluster.node(0)
    node.disk_off()
    cluster.run(3000)
    said = [sent.header for source, _, sent in cluster.sent if source == 0]
    assert state_of(node) is Birth.BOUND and all(header.parent == ZERO16 for header in said)
    assert {state_of(other) for other in cluster.up} == {Birth.BOUND}
    assert "replica 0 at replica-0:1 has not heard all others yet" in waits(cluster.node(1))
    node.disk_on()
    cluster.run(3000, lambda: born_all(cluster))


def test_a_disk_that_is_formatted_anew_before_the_birth_is_over() -> None:
    """Nothing was acknowledged: the others say so, and all can be formatted again."""
    cluster = Cluster(identity=entries.unborn)
    cluster.lost = lambda source, target, message: message.header.parent != ZERO16
    cluster.run(2000, lambda: all(state_of(node) is Birth.BOUND for node in cluster.up))
    cluster.crash(2)
    cluster.format(2)
    cluster.start(2)
    cluster.lost = lambda source, target, message: False
    cluster.run(5000)
    assert not any(node.core.state.own.is_formed for node in cluster.up)
    assert "nothing was acknowledged" in waits(cluster.node(2))


def test_every_crash_in_a_birth_leads_to_the_same_cluster() -> None:
    """One replica is stopped after each of its first writes, and started again."""
    for writes in range(8):
        cluster = Cluster(identity=entries.unborn)
        node = cluster.node(1)
        node.disk_off()
        for _ in range(writes):
            cluster.run(200)
            node.make_durable()
        cluster.crash(1)
        cluster.run(500)
        cluster.start(1)
        cluster.run(5000, lambda cluster=cluster: born_all(cluster))  # type: ignore[misc]
        assert len({node.store.identity.record for node in cluster.up}) == 1
        cluster.register()


def converted(record: Record) -> Record:
    return replace(record, origin=ZERO16)


def test_a_log_older_than_identities_goes_on_above_all_that_the_first_release_led() -> None:
    """Replica view % 3 led before, slot view % 16 does now: no view of before is led again. In its first view everybody
    gives evidence, also who has nothing left."""
    cluster = Cluster()
    cluster.register()
    cluster.append(1, b"before")
    cluster.run(500)
    before = cluster.primary.entries()
    cluster.identity = entries.unborn
    cluster.crash(0, 1, 2)
    cluster.queue.clear()
    for index in range(3):
        cluster.start(index, identity=entries.converted(index, 3))
    cluster.run(5000, lambda: born_all(cluster))
    cluster.settle()
    for node in cluster.up:
        assert node.core.view >= VIEW_BORN and node.core.log_view >= VIEW_BORN
        assert node.store.view_state.view >= VIEW_BORN and node.store.identity.birth is Birth.FORMED
    assert cluster.primary.entries()[: len(before)] == before
    assert birth.view_of_birth(5) == VIEW_BORN and birth.view_of_birth(VIEW_BORN + 3) == VIEW_BORN + 3


def test_before_a_converted_log_is_chosen_everybody_is_asked() -> None:
    record = converted(decode(entries.formed(0, 3).record))
    membership = Membership.of_record(record)
    assert membership.is_converted and not membership.may_begin_view(0b011, VIEW_BORN - 1)


def test_the_digest_is_of_what_all_must_agree_on() -> None:
    record = decode(entries.formed(0, 3).record)
    draft = replace(record, epoch=0, birth=ZERO16)
    assert born(draft) == record and record.birth == birth_digest(draft)
    assert birth_digest(converted(draft)) != record.birth


def test_headers_of_entries_do_not_tell_who_passed_them_on() -> None:
    cluster = Cluster(identity=entries.formed)
    cluster.register()
    prepares: list[Header] = [sent.header for _, _, sent in cluster.sent if sent.header.command == Command.PREPARE]
    assert prepares and all(header.epoch == 0 for header in prepares)


@pytest.mark.parametrize("lost", ["formatted anew", "put back to an older image"])
def test_what_one_disk_alone_still_has_of_a_converted_log_is_kept(lost: str) -> None:
    """Op 5 was acknowledged by two of three; then one of these disks lost it, and no record of before tells that. The
    two that never had it, as far as they know, were a quorum to drop it."""
    log = entries.chain(5, view=3)

    def says(replica: int, log_view: int, head: int, commit: int) -> DoViewChange:
        headers = tuple(log[commit : head + 1])
        bits = (1 << len(headers)) - 1
        return DoViewChange(replica, log_view, head, commit, Evidence(commit, bits, bits, 0, headers))

    wiped = says(1, 0, 0, 0) if lost == "formatted anew" else says(1, 3, 4, 3)
    given = [says(0, 3, 5, 4), wiped, says(2, 3, 4, 4)]
    record = decode(entries.formed(0, 3).record)
    assert choose(given, Membership.of_record(record)).suffix[-1].op == 4
    choice = choose(given, Membership.of_record(converted(record)))
    assert (choice.suffix[-1].op, choice.dropped) == (5, 0)


def test_nor_is_it_dropped_in_the_next_view_by_those_that_only_know_of_it() -> None:
    """The first view after the birth keeps op 5; its primary, which alone has it, stops before the others have it."""
    log = entries.chain(5, view=3)
    record = converted(decode(entries.formed(0, 3).record))
    membership = Membership.of_record(record)

    def says(replica: int, present: int, nack: int) -> DoViewChange:
        evidence = Evidence(4, 0b11, present, nack, tuple(log[4:6]))
        return DoViewChange(replica, VIEW_BORN, 5, 4, evidence)

    without = [says(1, 0b01, 0b10), says(2, 0b01, 0b10)]
    assert choose(without, membership).stuck_op == 5
    assert choose([*without, says(0, 0b11, 0)], membership).suffix[-1].op == 5
    assert choose(without, Membership.of_record(decode(entries.formed(0, 3).record))).dropped == 1
