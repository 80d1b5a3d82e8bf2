"""The laboratory itself: links that hold back and lose, disks that are off, places that are checked."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from lab import FOR_EVER, ROOT, Cluster, between, chain, prepares, started

from kimberlite.types import Command


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register()
    cluster.run(500)
    return cluster


def test_a_chain_is_one_and_its_index_is_the_op() -> None:
    headers = chain(5)
    assert [header.op for header in headers] == list(range(6))
    assert all(after.parent == before.checksum for before, after in itertools.pairwise(headers))
    assert [message.header for message in prepares(5)] == headers[1:]
    assert chain(2, headers[3], view=4)[0] == headers[3]


def test_what_is_held_back_arrives_when_it_is_released_and_before_what_came_later(cluster: Cluster) -> None:
    backup = cluster.backups[0]
    cluster.held = lambda source, target, message: target == backup.index and message.header.command == Command.PREPARE
    cluster.append(1, b"a")
    cluster.run(20)
    assert backup.store.head == 1
    assert [message.header.op for _, _, message in cluster.waiting] == [2]
    cluster.release()
    assert (cluster.waiting, cluster.queue[0][2].header.op) == ([], 2)
    cluster.run(50)
    assert backup.machine.applied == [b"a"]


def test_what_is_lost_never_arrives(cluster: Cluster) -> None:
    backup = cluster.backups[0]
    cluster.lost = between({node.index for node in cluster.up} - {backup.index})
    cluster.append(1, b"a")
    cluster.run(20)
    cluster.lost = lambda source, target, message: False
    cluster.deliver()
    assert backup.store.head == 1


def test_a_disk_that_is_off_does_what_it_is_told_and_the_rest_when_it_is_on_again(cluster: Cluster) -> None:
    backup = cluster.backups[0]
    backup.disk_off()
    for number in (1, 2):
        cluster.append(number, b"a")
    cluster.run(30)
    assert (backup.store.head, backup.core.log.durable) == (3, 1)
    assert backup.disk.submissions == 2 and backup.bytes_waiting > 0
    backup.make_durable()
    assert backup.core.log.durable == 2
    assert all(submission.done_at[-1] >= FOR_EVER for submission in backup.disk._queue)
    backup.disk_on()
    cluster.run(30)
    assert backup.core.log.durable == backup.core.applied == 3
    assert not backup.disk.submissions


def test_a_restart_has_what_was_on_the_disk_and_a_format_nothing(cluster: Cluster) -> None:
    cluster.append(1, b"a")
    index = cluster.backups[0].index
    assert cluster.node(index).restart().store.head == 2
    cluster.crash(index)
    cluster.format(index)
    assert cluster.start(index).store.head == 0


def test_a_place_is_read_and_set_and_one_that_there_is_not_is_refused() -> None:
    core = started(1)
    core.known_head = 7
    assert core.scope.known_head == core.known_head == 7
    with pytest.raises(AttributeError, match="tests do not look at `colour` of a core"):
        core.colour  # noqa: B018
    with pytest.raises(AttributeError):
        core.colour = 3
    assert core.log.op == ROOT.op


CHECKOUT = Path(__file__).parents[2]


def collected(*arguments: str) -> set[str]:
    """Names of the tests of one module that pytest would run."""
    models = "tests/unit/vsr/test_models.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *arguments, models]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}


def test_what_others_are_a_sample_of_runs_when_it_is_asked_for_and_a_verb_asks() -> None:
    usual, whole = collected(), collected("--whole", "-m", "whole")
    assert "test_more_histories_of_a_membership" in whole
    assert "test_a_membership_that_changes_loses_nothing" in usual
    assert not usual & whole
    verb = (CHECKOUT / "Makefile").read_text().partition("\nenumerate:")[2].partition("\n\n")[0]
    assert "--whole -m whole" in verb
