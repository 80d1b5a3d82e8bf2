"""Who speaks: one row for every input, and strangers, copies and lives that are over have no effect."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from lab import Cluster, Node, entries, frame

from kimberlite.errors import NotMemberError
from kimberlite.types import ZERO16, Command, Message, Reason, Status, life_of, life_sequence
from kimberlite.vsr.codec import Evidence, encode_evidence
from kimberlite.vsr.events import DropReason, EventKind
from kimberlite.vsr.identity import TABLE, Act, Epoch, Kind, Life, Receiver, Row, Sender

INPUTS = list(product(Receiver, Epoch, Sender, Life, Kind))


def matching(receiver: int, epoch: int, sender: int, life: int, kind: int) -> list[Row]:
    return [
        row
        for row in TABLE
        if receiver in row.receiver
        and epoch in row.epoch
        and sender in row.sender
        and life in row.life
        and kind in row.kind
    ]


def test_there_is_one_row_for_every_input() -> None:
    for found in INPUTS:
        assert len(matching(*found)) == 1, (found, [row.name for row in matching(*found)])
    reached = {matching(*found)[0].name for found in INPUTS}
    assert {row.name for row in TABLE} == reached and len(TABLE) == len(reached)


def test_answers_are_never_answered_and_only_members_are_handled() -> None:
    for receiver, epoch, sender, life, kind in INPUTS:
        [row] = matching(receiver, epoch, sender, life, kind)
        if kind is Kind.ANSWER:
            assert row.ruling.act in (Act.HEED, Act.DROP)
        if row.ruling.act in (Act.HANDLE, Act.ADOPT):
            assert receiver is Receiver.FORMED and sender is Sender.MEMBER and epoch is not Epoch.UNBORN
            assert life in (Life.CURRENT, Life.NEW)
        assert (row.ruling.told is not Reason.NONE) == (row.ruling.act is Act.REFUSE)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster(identity=entries.formed)
    cluster.register()
    for number in (1, 2, 3):
        cluster.append(number, b"event %d" % number)
    cluster.run(500)
    for node in cluster.up:
        node.events.clear()
    return cluster


def who(node: Node, **other: Any) -> dict[str, Any]:
    """Fields by which that replica is known, but for those that are said."""
    own = node.core.state.own
    return {"replica": node.index, "epoch": own.epoch, "client": own.incarnation, "session": own.life, **other}


def step(node: Node, message: Message) -> None:
    node.driver.on_input(messages=[message])


def dropped(node: Node) -> list[int]:
    return [event.b for event in node.kinds(EventKind.DROPPED)]


def told(cluster: Cluster, node: Node, about: Message) -> list[int]:
    """What was answered to that frame."""
    return [
        sent.header.reason
        for source, _, sent in cluster.sent
        if source == node.index and sent.header.command == Command.REJECT
        if sent.header.context == about.header.checksum
    ]


STRANGE: list[tuple[dict[str, Any], DropReason, list[Reason]]] = [
    ({"client": b"x" * 16}, DropReason.REPLACED, [Reason.REPLACED]),
    ({"client": ZERO16, "session": 0}, DropReason.REPLACED, [Reason.REPLACED]),
    ({"client": b"x" * 16, "epoch": 0}, DropReason.UNBORN, [Reason.UNBORN]),
    ({"client": b"x" * 16, "epoch": 2}, DropReason.LATER_EPOCH, []),
    ({"epoch": 0}, DropReason.UNBORN, []),
    ({"session": life_of(1, 99)}, DropReason.OLD_LIFE, []),
]


@pytest.mark.parametrize(("fields", "reason", "answer"), STRANGE)
@pytest.mark.parametrize("command", [Command.PREPARE_OK, Command.START_VIEW_CHANGE, Command.DO_VIEW_CHANGE])
def test_a_stranger_has_no_effect(
    cluster: Cluster, command: Command, fields: dict[str, Any], reason: DropReason, answer: list[Reason]
) -> None:
    primary, backup = cluster.primary, cluster.backups[0]
    view, op = primary.core.view, primary.core.log.op
    state = primary.core.state
    before = state.peers[backup.index].life, state.view, dict(primary.core.votes)
    body = encode_evidence(Evidence(op, 0, 0, 0, ())) if command == Command.DO_VIEW_CHANGE else b""
    context = primary.core.log.headers[op].checksum if command == Command.PREPARE_OK else ZERO16
    sent = frame(command, body, **who(backup, view=view, op=op, context=context, **fields))
    step(primary, sent)
    assert dropped(primary) == [reason]
    assert told(cluster, primary, sent) == answer
    assert (state.peers[backup.index].life, state.view, dict(primary.core.votes)) == before


def test_a_disk_that_was_formatted_anew_is_refused_and_nothing_is_lost(cluster: Cluster) -> None:
    """A and B commit, B's disk is formatted anew, A stops: B and C put other entries where acknowledged ones were."""
    primary, lost, behind = cluster.primary, *cluster.backups
    cluster.lost = lambda source, target, message: behind.index in (source, target)
    for number in (4, 5):
        cluster.append(number, b"acknowledged %d" % number)
    acknowledged = primary.entries()
    cluster.crash(primary.index, lost.index)
    cluster.lost = lambda source, target, message: False
    cluster.format(lost.index)
    anew = cluster.start(lost.index)
    with pytest.raises(NotMemberError, match=f"knows other data of replica {lost.index}") as caught:
        cluster.run(10_000)
    assert caught.value.exit_code == 26 and caught.value.reason == Reason.UNBORN
    assert anew.core.status == Status.UNBORN and not anew.entries()
    cluster.crash(lost.index)
    cluster.run(10_000)
    assert not behind.leads
    cluster.start(primary.index)
    assert cluster.settle().entries()[: len(acknowledged)] == acknowledged


def test_a_later_life_is_taken_from_its_sign_of_life(cluster: Cluster) -> None:
    backup = cluster.backups[0]
    before = cluster.primary.core.state.peers[backup.index].life
    assert before == backup.core.state.own.life
    backup = backup.restart()
    cluster.settle()
    cluster.append(4, b"after")
    cluster.run(1000)
    life = cluster.primary.core.state.peers[backup.index].life
    assert life == backup.core.state.own.life and life_sequence(life) > life_sequence(before)
    assert backup.entries() == cluster.primary.entries()


def test_who_has_not_said_that_it_begun_anew_is_asked(cluster: Cluster) -> None:
    primary, backup = cluster.primary, cluster.backups[0]
    later = life_of(life_sequence(backup.core.state.own.life) + 5, 1)
    cluster.sent.clear()
    step(primary, frame(Command.PREPARE_OK, **who(backup, session=later, view=primary.core.view, op=1)))
    assert dropped(primary) == [DropReason.OLD_LIFE]
    asked = [sent.header for source, target, sent in cluster.sent if (source, target) == (primary.index, backup.index)]
    assert [(header.command, header.flags) for header in asked] == [(Command.PING, 2)]


def test_an_older_image_and_a_copy_are_not_counted(cluster: Cluster) -> None:
    """Of an image the superblock is not beyond what was heard; of a copy that is started too, other bits."""
    primary, backup = cluster.primary, cluster.backups[0]
    peer = primary.core.state.peers[backup.index]
    peer.sequence = life_sequence(peer.life) + 10
    known = peer.life
    for begun in (life_sequence(known), life_sequence(known) + 10):
        sent = frame(Command.PING, **who(backup, session=life_of(begun, 77), view=primary.core.view))
        step(primary, sent)
        assert told(cluster, primary, sent) == [Reason.ROLLED_BACK]
    assert peer.life == known and dropped(primary) == [DropReason.ROLLED_BACK] * 2
    sent = frame(Command.PING, **who(backup, session=life_of(peer.sequence + 1, 77), view=primary.core.view))
    step(primary, sent)
    assert peer.life == sent.header.session


def test_an_older_image_that_was_told_so_says_nothing_in_later_lives_either(cluster: Cluster) -> None:
    """Each start and each promise brought its superblock further: the next start but some was beyond what others had
    heard, and a replica counted that had forgotten what it acknowledged."""
    index = cluster.backups[0].index
    image = cluster.files[index].copy()
    for _ in range(3):
        cluster.primary.driver.step_down()
        cluster.run(1000)
    later = cluster.files[index]
    cluster.crash(index)
    cluster.files[index] = image
    cluster.start(index)
    with pytest.raises(
        NotMemberError, match=f"of this cluster knows? a later state of the disk of replica {index}"
    ) as caught:
        cluster.run(10_000)
    assert caught.value.reason == Reason.ROLLED_BACK and index not in caught.value.replicas
    for _ in range(12):
        cluster.crash(index)
        with pytest.raises(
            NotMemberError, match=f"^others of this cluster know a later state of the disk of replica {index}"
        ):
            cluster.start(index)
    cluster.crash(index)
    cluster.run(2000)
    cluster.files[index] = later
    cluster.start(index)
    cluster.append(4, b"after")
    cluster.run(2000)
    assert cluster.node(index).entries() == cluster.primary.entries()


def test_who_was_left_behind_is_told_and_heeds_only_what_it_has_said(cluster: Cluster) -> None:
    """A sign of an earlier life may be of an older image; who says so reaches the one that goes on, mostly."""
    primary, backup = cluster.primary, cluster.backups[0]
    sent = frame(Command.PING, **who(backup, session=life_of(1, 99), view=primary.core.view))
    step(primary, sent)
    assert told(cluster, primary, sent) == [Reason.ROLLED_BACK] and dropped(primary) == [DropReason.OLD_LIFE]
    cluster.run(500)
    assert backup.driver.core.refused_for is None and DropReason.UNWANTED in dropped(backup)


def test_what_was_heard_of_others_is_on_the_disk_with_the_next_promise(cluster: Cluster) -> None:
    primary, backup = cluster.primary, cluster.backups[0]
    life = backup.core.state.own.life
    primary.driver.step_down()
    cluster.settle()
    index = primary.index
    restarted = primary.restart()
    assert restarted.index == index and restarted.core.state.peers[backup.index].life == life


def test_a_refusal_counts_only_when_it_is_about_what_was_said(cluster: Cluster) -> None:
    primary, backup = cluster.primary, cluster.backups[0]
    step(primary, frame(Command.REJECT, **who(backup, reason=Reason.REPLACED, context=b"c" * 16)))
    step(primary, frame(Command.REJECT, **who(backup, client=b"x" * 16, reason=Reason.REPLACED, context=b"c" * 16)))
    assert primary.driver.core.refused_for is None
    assert dropped(primary) == [DropReason.UNWANTED, DropReason.REPLACED]


def test_data_of_the_first_release_asks_for_no_identity_and_has_none() -> None:
    cluster = Cluster()
    cluster.register()
    cluster.append(1, b"event")
    assert {sent.header.client for _, _, sent in cluster.sent if sent.header.command == Command.PREPARE_OK} == {ZERO16}
    primary, backup = cluster.primary, cluster.backups[0]
    primary.events.clear()
    strange = frame(Command.START_VIEW_CHANGE, replica=backup.index, client=b"x" * 16, epoch=1, session=7)
    step(primary, strange)
    assert dropped(primary) == [DropReason.NOT_MEMBER]


def test_greetings_are_judged_on_both_sides(cluster: Cluster) -> None:
    primary, backup = cluster.primary, cluster.backups[0]
    judge = primary.driver.core.doorkeeper.judge_greeting
    hello = who(backup)
    assert judge(frame(Command.HELLO, **hello).header) is Reason.NONE
    assert judge(frame(Command.HELLO, **{**hello, "session": 1}).header) is Reason.NONE
    assert judge(frame(Command.HELLO, **{**hello, "client": b"x" * 16}).header) is Reason.REPLACED
    assert judge(frame(Command.HELLO, **{**hello, "client": b"x" * 16, "epoch": 0}).header) is Reason.UNBORN
    assert judge(frame(Command.HELLO, replica=backup.index).header) is Reason.VERSION
    legacy = Cluster().node(0).driver.core.doorkeeper
    assert legacy.judge_greeting(frame(Command.HELLO, replica=1).header) is Reason.NONE
    assert legacy.judge_greeting(frame(Command.HELLO, **hello).header) is Reason.VERSION


def test_who_does_not_let_a_member_in_is_believed_if_he_is_one(cluster: Cluster) -> None:
    """A process of an earlier formatting of the same cluster says the same of everybody."""
    primary, backup = cluster.primary, cluster.backups[0]
    door, state = primary.driver.core.doorkeeper, primary.driver.core.state
    said = {**who(backup), "reason": Reason.REPLACED}
    for stranger in ({"client": b"x" * 16}, {"client": ZERO16, "epoch": 0}):
        door.refused_by(frame(Command.REJECT, **{**said, **stranger}).header)
    assert state.own.refusals == {} and primary.driver.core.refused_for is None
    door.refused_by(frame(Command.REJECT, **said).header)
    assert state.own.refusals == {backup.index: Reason.REPLACED}
