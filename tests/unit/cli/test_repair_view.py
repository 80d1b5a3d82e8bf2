"""repair-view on real data directories: what it changes, what it refuses, and a crash in the middle of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kimberlite._fast import framing
from kimberlite.cli import main
from kimberlite.config import new_replica
from kimberlite.node.format import format_replica
from kimberlite.storage import superblock
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.superblock import Superblock, SuperblockFile
from kimberlite.types import VIEW_MAX, Command

CLUSTER = "00112233445566778899aabbccddeeff"
POISON = 2**63


def make(place: Path, replica: int, cluster: str = CLUSTER) -> Path:
    addresses = ("127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102")
    settings = ("storage.unsafe=true", "storage.segment_bytes=8388608")
    data = place / f"{cluster[:4]}-{replica}"
    format_replica(new_replica(cluster, replica, addresses, settings, "format"), data)
    return data


@pytest.fixture
def replicas(tmp_path: Path) -> list[Path]:
    """Three replicas in views 3 (poisoned), 5 and 4, with logs of view 3."""
    found = [make(tmp_path, replica) for replica in range(3)]
    for data, view in zip(found, (POISON, 5, 4), strict=True):
        write(data, view, 3)
    return found


def write(data: Path, view: int, log_view: int) -> None:
    disk = FileDisk(data, unsafe=True)
    file = SuperblockFile(disk)
    _, phases = file.update(replace(file.current.state, view=view, log_view=log_view))
    disk.submit(1, phases)
    disk.flush()
    disk.completions()
    disk.close()


def read(data: Path) -> Superblock:
    disk = FileDisk(data, readonly=True)
    try:
        return SuperblockFile(disk).current
    finally:
        disk.close()


def run(*arguments: object) -> int:
    return main(["repair-view", *map(str, arguments)])


def test_the_view_is_one_above_that_of_all_others_and_nothing_else_changes(
    replicas: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned, *others = replicas
    before = read(poisoned)
    assert run(poisoned, "--others", *others, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "replica": 0,
        "before": POISON,
        "view": 6,
        "others": {"1": 5, "2": 4},
    }
    after = read(poisoned)
    assert after.state == replace(before.state, view=6)
    assert (after.checkpoint, after.sequence) == (before.checkpoint, before.sequence + 1)
    assert run(poisoned, "--others", others[0], "--others", others[1]) == 0
    assert "nothing was changed" in capsys.readouterr().err
    assert read(poisoned).checksum == after.checksum


@pytest.mark.parametrize(
    ("chosen", "code", "why"),
    [
        (lambda place, others: [others[0]], 2, "the others of replica 0 are 1, 2, and 1 were given"),
        (lambda place, others: [others[0], others[0]], 2, "and 1, 1 were given"),
        (lambda place, others: [*others, make(place, 0, "ff" * 16)], 2, "is of cluster ffff"),
        (lambda place, others: [others[0], "127.0.0.1:9"], 24, "127.0.0.1:9"),
        (lambda place, others: [others[0], place], 12, "holds no replica"),
    ],
    ids=["one missing", "one twice", "another cluster", "no answer", "no replica"],
)
def test_it_refuses_when_one_is_not_known(
    replicas: list[Path],
    tmp_path: Path,
    chosen: Callable[[Path, list[Path]], list[object]],
    code: int,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poisoned, *others = replicas
    before = read(poisoned).checksum
    assert run(poisoned, "--others", *chosen(tmp_path, others)) == code
    assert why in capsys.readouterr().err
    assert read(poisoned).checksum == before


def test_it_refuses_while_a_process_holds_the_data(replicas: list[Path]) -> None:
    poisoned, *others = replicas
    disk = FileDisk(poisoned, unsafe=True)
    try:
        assert run(poisoned, "--others", *others) == 13
    finally:
        disk.close()
    assert read(poisoned).state.view == POISON


def test_it_refuses_a_log_of_a_view_that_nobody_else_knows(
    replicas: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned, *others = replicas
    write(poisoned, POISON, 7)
    assert run(poisoned, "--others", *others) == 14
    assert "the log itself is of a view that nobody else knows" in capsys.readouterr().err
    assert read(poisoned).state.view == POISON


def test_when_all_are_poisoned_the_views_of_their_logs_count(replicas: list[Path]) -> None:
    """Nobody is in such a view: nothing was decided above the newest log. One after another is taken back."""
    for data in replicas[1:]:
        write(data, POISON, 3)
    write(replicas[2], POISON, 4)
    for index, data in enumerate(replicas):
        assert run(data, "--others", *(other for other in replicas if other is not data)) == 0
        assert 5 <= read(data).state.view <= 5 + index
    assert [read(data).state.log_view for data in replicas] == [3, 3, 4]


def test_a_poisoned_other_must_not_run(replicas: list[Path]) -> None:
    poisoned, *others = replicas
    write(others[0], POISON, 3)
    disk = FileDisk(others[0], unsafe=True)
    try:
        assert run(poisoned, "--others", *others) == 13
    finally:
        disk.close()
    assert read(poisoned).state.view == POISON


def test_an_other_may_be_an_address(replicas: list[Path]) -> None:
    poisoned, other, running = replicas
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server, {"replica": 2, "replica_count": 3, "view": 9}))
        thread.start()
        assert run(poisoned, "--others", other, f"127.0.0.1:{server.getsockname()[1]}") == 0
        thread.join()
    assert read(poisoned).state.view == 10
    assert read(running).state.view == 4


def answer(server: socket.socket, status: dict[str, int]) -> None:
    """A replica that is asked for its status once."""
    connection, _ = server.accept()
    with connection:
        connection.recv(1 << 16)
        body = json.dumps({"cluster": CLUSTER, **status}).encode()
        header = framing.make_header(
            body, cluster=bytes.fromhex(CLUSTER), command=Command.STATUS_REPLY, replica=2, client=bytes(16)
        )
        connection.sendall(header.raw + body)
        connection.recv(1)


def test_a_crash_in_the_middle_leaves_the_old_view_or_the_new_one(replicas: list[Path], tmp_path: Path) -> None:
    poisoned, *others = replicas
    old = (poisoned / superblock.NAME).read_bytes()
    assert run(poisoned, "--others", *others) == 0
    new = (poisoned / superblock.NAME).read_bytes()
    size = superblock.COPY_BYTES
    views = []
    for copies in range(superblock.COPIES + 1):
        for torn in (b"", os.urandom(size)):
            crashed = tmp_path / f"crash-{copies}-{bool(torn)}"
            shutil.copytree(poisoned, crashed)
            written = new[: copies * size] + torn
            (crashed / superblock.NAME).write_bytes((written + old[len(written) :])[: len(old)])
            views.append(read(crashed).state.view)
            assert run(crashed, "--others", *others) == 0
            assert read(crashed).state.view == 6
    assert set(views) == {POISON, 6}
    assert views[0] == POISON and views[-1] == 6


def test_the_bound_is_that_of_the_frames() -> None:
    from kimberlite.vsr import bounds

    assert bounds.TABLE[Command.PING]["view"].most == VIEW_MAX
