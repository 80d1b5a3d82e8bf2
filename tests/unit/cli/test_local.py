"""Directories, ports and ends of local replica processes; the processes here are stand-ins."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kimberlite.cli import local
from kimberlite.cli.local import LocalCluster, Replica, ReplicaEndedError, free_port, is_free, telemetry_port
from kimberlite.errors import UsageError


def stand_in(path: Path, script: str) -> Replica:
    replica = Replica(1, "127.0.0.1:1", path / "1", path / "1.log")
    with replica.log.open("wb") as log:
        replica.process = subprocess.Popen([sys.executable, "-c", script], stderr=log)
    return replica


def test_free_port_leaves_room_for_peers() -> None:
    first = free_port(3)
    assert first + 2 + local.PEER_PORT_OFFSET < 32_768
    assert all(is_free(first + index) for index in range(3))


def test_no_two_ports_of_the_blocks_meet() -> None:
    first_of_clients = [port for block in local.BLOCKS for port in block]
    all_ports = [
        port + offset
        for port in first_of_clients
        for offset in (0, local.PEER_PORT_OFFSET, local.TELEMETRY_PORT_OFFSET)
    ]
    assert len(set(all_ports)) == len(all_ports)
    assert max(all_ports) < 32_768


def test_two_processes_choose_among_other_ports() -> None:
    script = "from kimberlite.cli.local import free_port; print(free_port(3), flush=True); input()"
    others = [
        subprocess.Popen([sys.executable, "-P", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    chosen = [range(port, port + 3) for port in (free_port(3), free_port(3))]
    for other in others:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert not any(port in block for block in (local.own_ports(os.getpid()).ports, *chosen))
        chosen.append(range(port, port + 3))
    assert len({port for ports in chosen for port in ports}) == 12
    for other in others:
        assert other.communicate("\n", 10) == ("", None)


def test_a_process_gives_its_ports_round_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    block = local.own_ports(os.getpid()).ports
    given = [free_port(3) for _ in range(len(block))]
    assert all(port in block and port + 2 in block for port in given)
    assert len(set(given)) < len(given)
    monkeypatch.setattr(local, "is_free", lambda port: False)
    with pytest.raises(UsageError, match="no 3 free ports in a row"):
        free_port(3)


def test_no_block_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "BLOCKS", (local.own_ports(os.getpid()).ports,))
    with pytest.raises(UsageError, match="all 1 blocks of free ports belong to processes that run"):
        local.PortBlock()


def test_a_taken_port_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert telemetry_port(port) != port
    assert is_free(port)
    assert telemetry_port(port) == port


def test_another_number_of_replicas_is_refused(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "node.toml").touch()
    with pytest.raises(UsageError, match="holds the replicas 0, 1, 2, not 5"):
        LocalCluster(tmp_path, 5).prepare()
    assert LocalCluster(tmp_path, 3).prepare() is False


@pytest.mark.parametrize("count", [0, 7])
def test_impossible_sizes(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 6"):
        LocalCluster(tmp_path / "none", count).prepare()
    assert not (tmp_path / "none").exists()


def test_an_end_is_reported_once_with_its_code_and_last_words(tmp_path: Path) -> None:
    replica = stand_in(
        tmp_path, "import sys; print('first', file=sys.stderr); print('last words', file=sys.stderr); sys.exit(21)"
    )
    assert replica.process is not None
    replica.process.wait()
    cluster = LocalCluster(tmp_path, replicas=[replica])
    assert list(cluster.ended()) == [(replica, 21)]
    assert list(cluster.ended()) == []
    error = ReplicaEndedError(replica, 21)
    assert str(error) == "replica 1 ended with exit code 21: last words"
    assert error.exit_code == 21


def test_an_end_by_signal(tmp_path: Path) -> None:
    replica = stand_in(tmp_path, "import time; time.sleep(1000)")
    cluster = LocalCluster(tmp_path, replicas=[Replica(0, "127.0.0.1:1", tmp_path / "0", tmp_path / "0.log"), replica])
    assert replica.pid is not None
    cluster.kill(1)
    assert replica.pid is None
    assert list(cluster.ended()) == []
    error = ReplicaEndedError(replica, -9)
    assert "was killed by signal 9" in str(error)
    assert error.exit_code == 1


def test_stop_ends_what_runs(tmp_path: Path) -> None:
    replica = stand_in(tmp_path, "import time; time.sleep(1000)")
    process = replica.process
    assert process is not None
    with LocalCluster(tmp_path, replicas=[replica]) as cluster:
        assert cluster.cpu_seconds() >= 0
    assert process.poll() is not None
