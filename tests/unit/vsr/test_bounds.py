"""Numbers in frames: what is above its bound is refused, before anything is persisted, and nothing ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lab import Cluster, Node, chain, frame, prepare

from kimberlite import frames
from kimberlite._fast import events
from kimberlite.errors import InvariantError
from kimberlite.storage.store import Store
from kimberlite.types import OP_MAX, VIEW_MAX, Command, Header, Message, Operation, Reason, Status
from kimberlite.vsr.codec import Evidence, encode_evidence, encode_headers, encode_trim
from kimberlite.vsr.events import DropReason, EventKind
from kimberlite.vsr.work import CannotCommit

U64_MAX = 2**64 - 1


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register()
    for number in (1, 2, 3):
        cluster.append(number, b"event %d" % number)
    cluster.run(500)
    for node in cluster.up:
        node.events.clear()
    return cluster


def roles(cluster: Cluster) -> tuple[Node, Node, Node]:
    """The primary and its two backups."""
    primary = cluster.primary
    one, two = cluster.backups
    return primary, one, two


def send(cluster: Cluster, to: Node, *messages: Message) -> None:
    to.driver.on_input(messages=list(messages))


def refused(node: Node) -> int:
    return sum(event.b in (DropReason.OUT_OF_BOUNDS, DropReason.MALFORMED) for event in node.kinds(EventKind.DROPPED))


def goes_on(cluster: Cluster) -> None:
    """Everything is as before: the same log everywhere, and it grows."""
    before = len(cluster.primary.machine.applied)
    cluster.append(before + 1, b"after")
    cluster.run(2000, lambda: all(len(node.machine.applied) == before + 1 for node in cluster.up))
    assert len({tuple(node.entries()) for node in cluster.up}) == 1


def changes_views(cluster: Cluster) -> None:
    """The primary dies, the others elect one and go on; then it comes back."""
    primary = cluster.primary
    before = len(primary.machine.applied)
    cluster.crash(primary.index)
    cluster.settle()
    cluster.append(before + 1, b"without it")
    cluster.start(primary.index)
    cluster.run(5000, lambda: all(len(node.machine.applied) == before + 1 for node in cluster.up))


@pytest.mark.parametrize("view", [U64_MAX, U64_MAX - 1, 2**63, 2**63 - 1, VIEW_MAX + 1, frames.VIEW_AHEAD_MAX * 2])
@pytest.mark.parametrize(
    "command",
    [
        *(Command.PING, Command.COMMIT, Command.PREPARE, Command.PREPARE_OK, Command.START_VIEW_CHANGE),
        *(Command.DO_VIEW_CHANGE, Command.START_VIEW, Command.HEADERS, Command.REQUEST_HEADERS),
    ],
)
def test_a_view_far_above_the_own_is_refused(cluster: Cluster, command: Command, view: int) -> None:
    _, backup, other = roles(cluster)
    before = backup.store.view_state
    send(cluster, backup, frame(command, replica=other.index, view=view, op=5, operation=Operation.NOOP))
    assert refused(backup) == 1
    assert backup.core.view == before.view and backup.store.view_state == before
    assert backup.core.refusal is not None and backup.core.refusal.field == "view"
    goes_on(cluster)


@pytest.mark.parametrize("command", [7, 11, 18, 30, 200, Command.REQUEST])
def test_a_command_that_no_replica_sends_is_passed_over(cluster: Cluster, command: int) -> None:
    _, backup, other = roles(cluster)
    send(cluster, backup, frame(command, replica=other.index, view=backup.core.view + 5, op=9))  # type: ignore[arg-type]
    dropped = backup.kinds(EventKind.DROPPED)
    assert [(event.a, event.b) for event in dropped] == [(command, DropReason.UNKNOWN_COMMAND)]
    goes_on(cluster)


def test_a_view_that_is_not_far_above_is_followed(cluster: Cluster) -> None:
    _, backup, other = roles(cluster)
    view = backup.core.view + frames.VIEW_AHEAD_MAX
    send(cluster, backup, frame(Command.PING, replica=other.index, view=view))
    assert (backup.core.view, backup.core.status) == (view, Status.VIEW_CHANGE)
    cluster.settle()
    assert cluster.primary.core.view >= view
    goes_on(cluster)


def test_a_request_with_numbers_out_of_bounds_never_enters_the_log(cluster: Cluster) -> None:
    """The number of a REGISTER is not compared with anything, and would stand in a prepare that no backup takes."""
    primary = cluster.primary
    head = primary.core.log.op
    for session, request in ((0, U64_MAX), (U64_MAX, 0), (OP_MAX + 1, frames.REQUEST_MAX + 1)):
        fields = {"session": session, "request": request, "operation": Operation.REGISTER, "client": b"x" * 16}
        primary.driver.on_input(requests=[frame(Command.REQUEST, **fields)])
        assert primary.answers.pop().header.reason == Reason.MALFORMED
    assert primary.core.log.op == head
    goes_on(cluster)


# Commit numbers


@pytest.mark.parametrize("commit", [U64_MAX, U64_MAX - 5, 2**63, 2**41, 1000])
@pytest.mark.parametrize("head", [0, None])
def test_no_heartbeat_makes_a_replica_believe_in_ops_that_nobody_has(
    cluster: Cluster, commit: int, head: int | None
) -> None:
    """Whether the frame contradicts itself (head 0) or not: what a backup believes, keeps and passes on ends with its
    log, so that the next view is chosen, and what it heard ends with the primary's next word."""
    primary, *backups = roles(cluster)
    view, op = primary.core.view, primary.core.log.op
    forged = frame(Command.COMMIT, replica=primary.index, view=view, op=commit if head is None else head, commit=commit)
    for backup in backups:
        send(cluster, backup, forged)
        assert backup.core.commit_max <= op
    cluster.run(200)
    assert {node.core.snapshot().known_commit for node in cluster.up} == {op}
    for backup in backups:
        send(cluster, backup, forged)
    changes_views(cluster)
    assert all(node.store.view_state.commit <= node.core.log.op for node in cluster.up)


def test_a_commit_number_above_the_own_log_counts_when_the_log_gets_there(cluster: Cluster) -> None:
    """A backup that is behind learns at once what is committed of what it is sent later."""
    primary, backup, _ = roles(cluster)
    lost = {Command.PREPARE, Command.HEADERS}
    cluster.lost = lambda source, target, message: target == backup.index and message.header.command in lost
    cluster.append(4, b"missed")
    cluster.run(200)
    op = primary.core.log.op
    assert (backup.core.commit_max, backup.core.snapshot().known_commit) == (op - 1, op)
    cluster.lost = lambda source, target, message: False
    cluster.run(1000, lambda: len(backup.machine.applied) == 4)


def test_a_commit_number_that_an_older_release_kept_is_no_more_believed(cluster: Cluster) -> None:
    """It believed what a frame said, wrote it down, and no view could be chosen any more."""
    for node in cluster.up:
        state = replace(node.store.view_state, commit=U64_MAX - 5)
        node.store.set_view_state(-1, state)
        node.store.completions()
    for index in range(3):
        cluster.crash(index)
    for index in range(3):
        cluster.start(index)
    cluster.settle()
    goes_on(cluster)


# Acknowledgements


@pytest.mark.parametrize(
    "fields",
    [
        {"op": 1, "nonce": U64_MAX},
        {"op": 1, "nonce": 2**62},
        {"op": U64_MAX, "commit": U64_MAX, "checkpoint_op": U64_MAX, "nonce": 1},
        {"op": 2**39},
        {"op": 4, "checkpoint_op": 5},
    ],
)
def test_an_acknowledgement_of_what_the_primary_has_not_is_refused(cluster: Cluster, fields: dict[str, int]) -> None:
    primary, backup, _ = roles(cluster)
    peer = primary.core.peers[backup.index]
    before = (peer.said.op, peer.checkpoint, peer.round_trip)
    send(cluster, primary, frame(Command.PREPARE_OK, replica=backup.index, view=primary.core.view, **fields))
    assert refused(primary) == 1
    assert (peer.said.op, peer.checkpoint, peer.round_trip) == before
    goes_on(cluster)


def test_an_acknowledgement_of_another_entry_says_nothing(cluster: Cluster) -> None:
    primary, backup, _ = roles(cluster)
    peer = primary.core.peers[backup.index]
    peer.said.op = 0
    send(
        cluster,
        primary,
        frame(Command.PREPARE_OK, replica=backup.index, view=primary.core.view, op=4, context=b"\3" * 16),
    )
    assert peer.said.op == 0
    goes_on(cluster)


# Prepares


def next_prepare(node: Node, body: bytes | None = None, **fields: Any) -> Message:
    """What the primary of that node's view would send next."""
    core = node.core
    content = events.build([b"forged"]) if body is None else body
    given = {"view": core.view, "commit": core.commit_max, "operation": Operation.APPLY, "count": 1}
    return prepare(core.log.headers[core.log.op], content, **{**given, **fields})


BATCH = events.pack_requests([events.SubRequest(b"x" * 16, 1, 1, Operation.APPLY, 1, events.build([b"forged"]))])
WRONG_PREPARES: dict[str, dict[str, Any]] = {
    "another parent": {"parent": b"\2" * 16},
    "a position in the middle": {"position": 1},
    "a position far away": {"position": 2**59},
    "an earlier time": {"timestamp": 1},
    "committed itself": {"commit": 5},
    "fewer events than it holds": {"count": 0},
    "more events than it holds": {"count": 2**32 - 1},
    "no batch of events": {"body": b"forged"},
    "another operation": {"operation": 77},
    "the root": {"operation": Operation.ROOT, "body": b"", "count": 0},
    "a session with a body": {"operation": Operation.REGISTER, "count": 0},
    "a session with a count": {"operation": Operation.REGISTER, "body": b""},
    "requests that do not unpack": {"operation": Operation.BATCH},
    "requests with another count": {"operation": Operation.BATCH, "body": BATCH, "count": 2},
    "requests of another operation": {
        "operation": Operation.BATCH,
        "body": events.pack_requests([events.SubRequest(b"x" * 16, 1, 1, Operation.TRIM, 1, b"")]),
    },
    "a trim that is none": {"operation": Operation.TRIM, "body": b"forged", "count": 0},
    "of another replica than leads its view": {"replica": 7},
    "a checkpoint above what is committed": {"checkpoint_op": 5},
}


@pytest.mark.parametrize("name", WRONG_PREPARES)
def test_a_prepare_that_no_primary_makes_is_not_taken(cluster: Cluster, name: str) -> None:
    _, backup, other = roles(cluster)
    head = backup.core.log.op
    fields = {key: other.index if key == "replica" else value for key, value in WRONG_PREPARES[name].items()}
    send(cluster, backup, next_prepare(backup, **fields))
    assert backup.core.log.op == head
    assert len(backup.kinds(EventKind.DROPPED)) == 1
    goes_on(cluster)


# Two identities of one op


def forged_beat(node: Node, op: int, **fields: Any) -> Message:
    """A heartbeat of the primary of that node's view that names another entry for `op`."""
    core = node.core
    given = {"view": core.view, "op": core.log.op, "commit": op, "position": op, "context": b"\6" * 16, "nonce": 5}
    return frame(Command.COMMIT, replica=core.primary, **{**given, **fields})


def test_a_heartbeat_that_names_another_entry_stops_execution_until_the_primary_has_spoken(cluster: Cluster) -> None:
    _, backup, _ = roles(cluster)
    send(cluster, backup, next_prepare(backup))
    op = backup.core.log.op
    cluster.lost = lambda source, target, message: True
    cluster.run(20)
    send(cluster, backup, forged_beat(backup, op))
    assert (backup.core.commit_max, backup.core.applied) == (op - 1, op - 1)
    assert [event.a for event in backup.kinds(EventKind.IDENTITY_CONFLICT)] == [op]
    snapshot = backup.core.snapshot()
    assert CannotCommit.IDENTITY_CONFLICT in snapshot.cannot_commit
    for identity in (b"\6" * 16, backup.core.log.headers[op].checksum):
        assert identity.hex() in snapshot.unhealthy
    asked = [message for source, target, message in cluster.sent if message.header.nonce == backup.core.conflict.nonce]
    assert len(asked) == 2 and all(message.header.command == Command.REQUEST_HEADERS for message in asked)


def test_a_forged_heartbeat_is_refuted_by_the_primary_and_all_goes_on(cluster: Cluster) -> None:
    _, backup, _ = roles(cluster)
    for op in (4, 2, 1):
        send(cluster, backup, forged_beat(backup, op))
        assert backup.core.conflict is not None and backup.core.conflict.op == op
        cluster.run(400, lambda: backup.core.conflict is None)
    assert backup.core.snapshot().unhealthy == ""
    goes_on(cluster)


def test_one_answer_reaches_the_op_in_question_however_little_a_frame_holds(cluster: Cluster) -> None:
    for node in cluster.up:
        node.core.state.config = replace(node.core.config, headers_per_message=2)
    _, backup, _ = roles(cluster)
    send(cluster, backup, forged_beat(backup, 4))
    cluster.run(400, lambda: backup.core.conflict is None)
    assert backup.core.conflict is None
    goes_on(cluster)


@pytest.mark.parametrize("op", [0, 1, 2])
def test_nobody_is_asked_for_what_the_log_began_with(cluster: Cluster, op: int) -> None:
    """No answer could settle it: the root is none's to give, and what was trimmed is gone."""
    _, backup, _ = roles(cluster)
    if op:
        for node in cluster.up:
            node.core.log.trim(3)
    send(cluster, backup, forged_beat(backup, op))
    assert backup.core.conflict is None
    goes_on(cluster)


def test_a_conflict_about_what_the_others_have_trimmed_is_refuted_by_what_follows(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others trim the op while the question is on its way: what the primary has above names all below it."""
    primary, backup, _ = roles(cluster)
    cluster.lost = lambda source, target, message: message.header.command == Command.REQUEST_HEADERS
    send(cluster, backup, forged_beat(backup, 2))
    assert backup.core.conflict is not None
    for node in cluster.up:
        if node is not backup:
            node.core.log.trim(4)
    all_headers = Store.headers
    monkeypatch.setattr(Store, "headers", lambda store, first, last: all_headers(store, max(first, 4), last))
    cluster.lost = lambda source, target, message: False
    cluster.run(5000, lambda: backup.core.conflict is None)
    assert backup.core.view == primary.core.view
    goes_on(cluster)


def test_a_conflict_about_the_last_op_of_a_log_that_starts_again_is_refuted(cluster: Cluster) -> None:
    """Nothing below it is in memory: that the primary says the same suffices."""
    _, backup, _ = roles(cluster)
    for op in range(4):
        del backup.core.log.headers[op]
    send(cluster, backup, forged_beat(backup, 4))
    assert backup.core.conflict is not None
    cluster.run(400, lambda: backup.core.conflict is None)
    goes_on(cluster)


def test_headers_that_nobody_asked_for_neither_confirm_nor_refute_it(cluster: Cluster) -> None:
    primary, backup, other = roles(cluster)
    cluster.lost = lambda source, target, message: True
    head = backup.core.log.headers[3]
    forged = chain(1, head, view=backup.core.view)[1:]
    send(cluster, backup, forged_beat(backup, 4, context=forged[0].checksum))
    conflict = backup.core.conflict
    assert conflict is not None
    given = {"view": backup.core.view, "op": 4, "position": 4, "count": 1}
    for replica in (primary.index, other.index):
        for nonce in (0, conflict.nonce - 1, conflict.nonce + 1):
            send(cluster, backup, frame(Command.HEADERS, encode_headers(forged), replica=replica, nonce=nonce, **given))
    assert backup.core.conflict is conflict


def test_headers_that_nobody_asked_for_are_not_taken(cluster: Cluster) -> None:
    primary, backup, other = roles(cluster)
    cluster.lost = lambda source, target, message: True
    head = backup.core.log.headers[4]
    forged = chain(2, head, view=backup.core.view)[1:]
    given = {"view": backup.core.view, "op": 5, "position": 6, "count": 2, "commit": 6}
    for replica, nonce in ((primary.index, 0), (other.index, 7)):
        send(cluster, backup, frame(Command.HEADERS, encode_headers(forged), replica=replica, nonce=nonce, **given))
    assert backup.core.log.op == 4
    cluster.lost = lambda source, target, message: False
    goes_on(cluster)


def test_a_verified_chain_that_says_the_same_ends_the_process(cluster: Cluster) -> None:
    """A backup took a forged prepare; the primary names, and proves, another entry. What is above it can not be
    trusted. In the next view the backup gets the log that is chosen."""
    primary, backup, _ = roles(cluster)
    send(cluster, backup, next_prepare(backup))
    assert backup.core.log.op == 5
    with pytest.raises(InvariantError, match="the committed entry is the same on every replica") as ended:
        for number in (4, 5, 6):
            cluster.append(number, b"real")
    assert ended.value.exit_code == 50 and backup.core.applied == 4
    cluster.queue.clear()
    for node in (primary, backup):
        cluster.crash(node.index)
    cluster.start(backup.index)
    cluster.settle()
    cluster.start(primary.index)
    cluster.run(5000, lambda: len({tuple(node.entries()) for node in cluster.up}) == 1)


def test_prepares_far_ahead_do_not_take_the_place_of_those_that_come_next(cluster: Cluster) -> None:
    _, backup, _ = roles(cluster)
    limit = backup.core.config.pipeline_max
    send(cluster, backup, *(next_prepare(backup, op=2**30 + index) for index in range(limit)))
    assert len(backup.core.stash) == limit
    send(cluster, backup, next_prepare(backup, op=backup.core.log.op + 2))
    assert len(backup.core.stash) == limit and backup.core.log.op + 2 in backup.core.stash
    cluster.run(200)
    goes_on(cluster)


@pytest.mark.parametrize(("first_op", "first_position"), [(2, 17), (U64_MAX, 0), (2**40, 3)])
def test_a_trim_to_where_no_log_can_begin_changes_nothing(cluster: Cluster, first_op: int, first_position: int) -> None:
    _, backup, _ = roles(cluster)
    trim = next_prepare(backup, encode_trim(first_op, first_position), operation=Operation.TRIM, count=0)
    op = trim.header.op
    beat = frame(Command.COMMIT, replica=backup.core.primary, view=backup.core.view, op=op, commit=op)
    before = backup.store.checkpoint
    send(cluster, backup, trim, beat)
    assert backup.core.applied == op
    assert (backup.core.first_op, backup.store.checkpoint) == (1, before)


# View changes


def strangers(count: int, view: int, op: int) -> list[Header]:
    """Headers from `op` on that nobody has, of which not even the parent is known."""
    return chain(count, frame(Command.PREPARE, op=op - 1, parent=b"\7" * 16).header, view=view)[1:]


def test_a_start_view_shorter_than_what_is_committed_is_refused(cluster: Cluster) -> None:
    _, backup, other = roles(cluster)
    view = next(view for view in range(backup.core.view + 1, backup.core.view + 4) if view % 3 == other.index)
    before = backup.store.view_state
    first = backup.store.headers(1, 1)
    forged = strangers(1, 0, 1)
    for suffix in (first, forged):
        fields = {"view": view, "op": 1, "log_view": view, "count": 1, "commit": 1}
        send(cluster, backup, frame(Command.START_VIEW, encode_headers(suffix), replica=other.index, **fields))
    assert refused_chains(backup) == 2
    assert backup.core.view == before.view and backup.store.view_state == before
    goes_on(cluster)


def refused_chains(node: Node) -> int:
    return sum(event.b == DropReason.BROKEN_CHAIN for event in node.kinds(EventKind.DROPPED))


def test_a_start_view_that_contradicts_what_is_committed_is_refused(cluster: Cluster) -> None:
    """Another entry at a committed op, or a parent that is not the committed one, would break the own chain."""
    _, backup, other = roles(cluster)
    view = next(view for view in range(backup.core.view + 1, backup.core.view + 4) if view % 3 == other.index)
    before = backup.store.view_state
    head = backup.core.log.op
    for op in (head - 1, head, head + 1):
        suffix = strangers(4, view, op)
        fields = {"view": view, "op": suffix[-1].op, "log_view": view, "count": 4, "commit": op}
        send(cluster, backup, frame(Command.START_VIEW, encode_headers(suffix), replica=other.index, **fields))
    assert refused_chains(backup) == 3
    assert backup.store.view_state == before
    goes_on(cluster)


@pytest.mark.parametrize(
    ("change", "count"),
    [({"op": 7}, 4), ({"commit": 4}, 4), ({"log_view": 0}, 4), ({}, 49), ({"commit": 2**50}, 4)],
)
def test_a_start_view_that_contradicts_itself_is_refused(cluster: Cluster, change: dict[str, int], count: int) -> None:
    _, backup, other = roles(cluster)
    view = next(view for view in range(backup.core.view + 1, backup.core.view + 4) if view % 3 == other.index)
    before = backup.store.view_state
    head = backup.core.log.headers[backup.core.log.op]
    suffix = chain(count, head, view=view)[1:]
    fields = {"view": view, "op": suffix[-1].op, "log_view": view, "count": count, "commit": head.op + 1, **change}
    send(cluster, backup, frame(Command.START_VIEW, encode_headers(suffix), replica=other.index, **fields))
    assert refused(backup) == 1
    assert backup.store.view_state == before
    goes_on(cluster)


def test_a_start_view_that_answers_no_evidence_only_tells_of_a_view(cluster: Cluster) -> None:
    """Forged ones that contradict nothing known here: a new op behind the last, or an end far away. One of them,
    installed, would be evidence of a log that nobody has in every later view."""
    primary, backup, other = roles(cluster)
    view = next(view for view in range(backup.core.view + 1, backup.core.view + 4) if view % 3 == other.index)
    head = backup.core.log.headers[backup.core.log.op]
    for op in (head.op + 1, 1000):
        suffix = chain(1, head, view=view, op=op)[1:]
        fields = {"view": view, "op": op, "log_view": view, "count": 1, "commit": op}
        for nonce in (0, 0, 1, backup.core.evidence_nonce + 1):
            forged = frame(Command.START_VIEW, encode_headers(suffix), replica=other.index, nonce=nonce, **fields)
            send(cluster, backup, forged)
            send(cluster, primary, forged)
        assert backup.core.view == view and backup.core.log_view < view
        assert (backup.core.log.op, backup.core.commit_max) == (head.op, head.op)
    cluster.settle()
    goes_on(cluster)
    changes_views(cluster)


def wrong_evidence(node: Node) -> dict[str, tuple[Evidence, dict[str, int]]]:
    """Evidence that no replica gives, with what its frame says."""
    head = node.core.log.headers[node.core.log.op]
    op = head.op
    future = strangers(1, node.core.view + 5, op)[0]
    foreign = frame(Command.PREPARE, cluster=b"f" * 16, op=op).header
    loose = (head, *strangers(1, 0, op + 1))
    return {
        "of ops far below the head": (Evidence(op, 1, 1, 0, (head,)), {"op": op + 48}),
        "of ops above the head": (Evidence(op, 3, 3, 0, (head, loose[1])), {"op": op}),
        "that begins above the head": (Evidence(op + 1, 0, 0, 0, ()), {"op": op}),
        "of the highest op there is": (Evidence(U64_MAX, 0, 0, 1, ()), {"op": op}),
        "present but not known": (Evidence(op, 0, 1, 0, ()), {"op": op}),
        "of a later view": (Evidence(op, 1, 1, 0, (future,)), {"op": op}),
        "of another cluster": (Evidence(op, 1, 1, 0, (foreign,)), {"op": op}),
        "that is no chain": (Evidence(op, 3, 3, 0, loose), {"op": op + 1}),
        "a log of a view to come": (Evidence(op, 1, 1, 0, (head,)), {"op": op, "log_view": 2**40}),
    }


@pytest.mark.parametrize("index", range(9))
def test_evidence_that_contradicts_itself_is_refused(cluster: Cluster, index: int) -> None:
    primary, backup, other = roles(cluster)
    view = next(view for view in range(primary.core.view + 1, primary.core.view + 4) if view % 3 == backup.index)
    evidence, fields = list(wrong_evidence(backup).values())[index]
    given = {"view": view, "log_view": primary.core.log_view, "commit": 4, "count": len(evidence.headers), **fields}
    send(cluster, backup, frame(Command.DO_VIEW_CHANGE, encode_evidence(evidence), replica=other.index, **given))
    assert refused(backup) == 1
    assert other.index not in backup.core.evidence
    cluster.settle()
    goes_on(cluster)


def test_forged_evidence_against_the_own_committed_log_does_not_end_the_candidate(cluster: Cluster) -> None:
    """Two entries for one committed op: one is forged. The choice waits for what the others really have."""
    primary, backup, other = roles(cluster)
    view = next(view for view in range(primary.core.view + 1, primary.core.view + 4) if view % 3 == backup.index)
    op = backup.core.log.op
    forged = strangers(3, 0, op)
    evidence = Evidence(op, 7, 7, 0, tuple(forged))
    given = {"view": view, "log_view": primary.core.log_view, "op": op + 2, "commit": op, "count": 3}
    lost = cluster.lost
    cluster.lost = lambda source, target, message: True
    send(cluster, backup, frame(Command.DO_VIEW_CHANGE, encode_evidence(evidence), replica=other.index, **given))
    assert backup.core.view == view and backup.core.log.headers[op].checksum != forged[0].checksum
    cluster.lost = lost
    cluster.settle()
    goes_on(cluster)
