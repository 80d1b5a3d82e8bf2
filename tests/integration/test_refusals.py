"""What is refused: each with its exit code, a message that says what to do, and nothing changed."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kimberlite import config as configuration

CLUSTER = "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"
OTHER_CLUSTER = "00112233445566778899aabbccddeeff"

# Each start that is heard of by others begins a life in the superblock before; the first one makes the ring.
LIVES = ("superblock", "ring")


def fingerprint(directory: Path, *, but: Sequence[str] = ()) -> dict[str, str]:
    """Digest of every file below a directory, but for logs, what only says that a process is there, and `but`."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".log" and path.name not in ("lock", *but)
    }


def cluster_id(cluster: Any) -> str:
    return configuration.load(cluster.replicas[0].data / "node.toml").cluster.id


@pytest.fixture
def format_one(kimberlite_command: Any, settings: tuple[str, ...], tmp_path: Path) -> Callable[..., Path]:
    """Format one replica through the command line."""

    def run(name: str, *, addresses: str, replica: int = 0, cluster: str = CLUSTER, code: int = 0) -> Path:
        data = tmp_path / name
        items = [item for setting in settings for item in ("--set", setting)]
        where = ["--cluster", cluster, "--replica", str(replica), "--addresses", addresses]
        kimberlite_command("format", *where, *items, data, code=code)
        return data

    return run


@pytest.fixture
def free_address() -> str:
    from kimberlite.cli.local import free_port

    return f"127.0.0.1:{free_port(1)}"


def test_format_over_data(format_one: Any, kimberlite_command: Any, free_address: str) -> None:
    data = format_one("data", addresses=free_address)
    before = fingerprint(data)
    done = kimberlite_command(
        "format", "--cluster", OTHER_CLUSTER, "--replica", "0", "--addresses", free_address, data, code=11
    )
    assert b"nothing was changed" in done.stderr
    assert fingerprint(data) == before
    (data / "node.toml").unlink()
    kimberlite_command("format", "--cluster", CLUSTER, "--replica", "0", "--addresses", free_address, data, code=11)
    del before["node.toml"]
    assert fingerprint(data) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "abc", "--replica", "0", "--addresses", "h:1"], b"32 hexadecimal digits"),
        (["--cluster", CLUSTER, "--replica", "3", "--addresses", "h:1,h:2,h:3"], b"3 addresses"),
        (["--cluster", CLUSTER, "--replica", "0", "--addresses", "h:1,h:2,h:3,h:4,h:5,h:6,h:7"], b"from 1 to 6"),
        (["--cluster", CLUSTER, "--replica", "0", "--addresses", "h"], b"not host:port"),
        (["--cluster", CLUSTER, "--replica", "0", "--addresses", "h:1,h:1"], b"h:1"),
        (
            ["--cluster", CLUSTER, "--replica", "0", "--addresses", "h:1", "--set", "storage.sgment_bytes=1"],
            b"segment_bytes",
        ),
    ],
)
def test_format_with_wrong_arguments_makes_nothing(
    arguments: list[str], words: bytes, kimberlite_command: Any, tmp_path: Path
) -> None:
    done = kimberlite_command("format", *arguments, tmp_path / "data", code=2)
    assert words in done.stderr
    assert not (tmp_path / "data").exists()


def test_start_without_data(kimberlite_command: Any, tmp_path: Path) -> None:
    done = kimberlite_command("start", tmp_path / "none", code=12)
    assert b"kimberlite format" in done.stderr
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    done = kimberlite_command("start", tmp_path / "empty", code=12)
    assert b"node.toml" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []


def test_start_with_configuration_but_no_data(
    format_one: Any, kimberlite_command: Any, free_address: str, tmp_path: Path
) -> None:
    data = format_one("data", addresses=free_address)
    (tmp_path / "empty").mkdir()
    kimberlite_command("start", "--config", data / "node.toml", tmp_path / "empty", code=12)
    assert fingerprint(tmp_path / "empty") == {}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("timing.hartbeat_ms=50", b"did you mean timing.heartbeat_ms?"),
        ("timing.heartbeat_ms=0", b"from 5 to 10000"),
        ("limits.pipeline_max=100", b"from 1 to 32"),
        ("storage.mode=fast", b"auto, direct, buffered"),
    ],
)
def test_start_with_wrong_configuration(
    setting: str, words: bytes, format_one: Any, kimberlite_command: Any, free_address: str
) -> None:
    data = format_one("data", addresses=free_address)
    before = fingerprint(data)
    done = kimberlite_command("start", "--set", setting, data, code=2)
    assert words in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert fingerprint(data) == before


def test_unknown_key_in_the_file(format_one: Any, kimberlite_command: Any, free_address: str) -> None:
    data = format_one("data", addresses=free_address)
    with (data / "node.toml").open("a") as file:
        file.write("\n[limits]\nqueue_maximum = 7\n")
    before = fingerprint(data)
    done = kimberlite_command("start", data, code=2)
    assert fingerprint(data) == before
    assert b"node.toml: unknown key limits.queue_maximum; did you mean limits.queue_max?" in done.stderr


def test_start_as_another_replica_or_cluster(format_one: Any, kimberlite_command: Any, free_address: str) -> None:
    """The superblock knows who it is: a configuration that says otherwise is refused."""
    data = format_one("data", addresses=f"{free_address},127.0.0.1:1,127.0.0.1:2")
    before = fingerprint(data)
    for setting in ("cluster.replica=1", f"cluster.id={OTHER_CLUSTER}", f'cluster.addresses=["{free_address}"]'):
        done = kimberlite_command("start", "--set", setting, data, code=2)
        assert b"nothing was started" in done.stderr, setting
        assert fingerprint(data) == before, setting


def test_second_process_on_the_same_data(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1)
    done = kimberlite_command("start", cluster.replicas[0].data, code=13)
    assert str(cluster.replicas[0].data).encode() in done.stderr
    assert kimberlite_command("append", "-", addresses=cluster.addresses, input=b"x\n").stdout == b"0 0\n"


@pytest.mark.parametrize("offset", [0, 1000])
def test_address_in_use(offset: int, format_one: Any, kimberlite_command: Any, free_address: str) -> None:
    host, _, port = free_address.rpartition(":")
    data = format_one("data", addresses=f"{free_address},127.0.0.1:1" if offset else free_address)
    before = fingerprint(data)
    with socket.create_server((host, int(port) + offset)):
        done = kimberlite_command("start", data, code=21)
    assert f"{host}:{int(port) + offset}".encode() in done.stderr
    assert fingerprint(data) == before


def test_an_event_above_the_limit(start_cluster: Any, kimberlite_command: Any, tmp_path: Path) -> None:
    cluster = start_cluster(1)
    source = tmp_path / "lines"
    source.write_bytes(b"fits\n" * 100_000 + b"x" * ((1 << 20) + 1) + b"\n")
    done = kimberlite_command("append", source, addresses=cluster.addresses, code=3)
    assert b"1048576 bytes" in done.stderr
    assert kimberlite_command("read", addresses=cluster.addresses).stdout == b""
    source.write_bytes(b"x" * (1 << 20) + b"\n" + b"y" * (1 << 20))
    assert kimberlite_command("append", source, addresses=cluster.addresses).stdout == b"0 1\n"
    assert (
        kimberlite_command("read", "--no-trailing-newline", addresses=cluster.addresses).stdout == source.read_bytes()
    )


def test_an_event_above_the_limit_of_the_cluster(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1, settings=["limits.event_bytes_max=1000"])
    done = kimberlite_command("append", "-", addresses=cluster.addresses, input=b"x" * 1001 + b"\n", code=3)
    assert done.stdout == b""
    assert kimberlite_command("read", addresses=cluster.addresses).stdout == b""


def test_no_quorum(start_cluster: Any, kimberlite_command: Any, primary_of: Callable[[Any], int]) -> None:
    cluster = start_cluster(3)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"kept\n")
    last = primary_of(cluster)
    for index in {0, 1, 2} - {last}:
        cluster.kill(index)
    done = kimberlite_command("append", "--timeout", "3", "-", addresses=cluster.addresses, input=b"x\n", code=None)
    assert done.returncode in (24, 40), done.stderr
    assert done.stdout == b""
    shown = json.loads(kimberlite_command("status", "--json", addresses=cluster.addresses, code=36).stdout)
    assert (shown["cluster"]["verdict"], shown["cluster"]["can_commit"]) == ("no quorum", False)
    rows = shown["replicas"]
    assert [row["reachable"] for row in rows].count(True) == 1
    table = kimberlite_command("status", addresses=cluster.addresses, code=36).stdout.decode()
    assert table.count(" unreachable ") == 2
    assert table.splitlines()[-1].startswith("cluster: no quorum: ")
    assert kimberlite_command("read", "--only", addresses=[cluster.addresses[last]]).stdout.startswith(b"kept\n")


def test_nobody_there(kimberlite_command: Any, free_address: str) -> None:
    for arguments in (["status"], ["append", "--timeout", "1", "-"], ["read", "--timeout", "1"]):
        done = kimberlite_command(*arguments, addresses=[free_address], input=b"x\n", code=24)
        assert done.stderr.startswith(b"kimberlite: ")


def test_corrupt_superblock(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"x\n")
    cluster.stop()
    data = cluster.replicas[0].data
    path = data / "superblock"
    image = bytearray(path.read_bytes())
    for offset in range(100, len(image), 4096):
        image[offset] ^= 0xFF
    path.write_bytes(image)
    before = fingerprint(data)
    done = kimberlite_command("start", data, code=14)
    assert b"superblock" in done.stderr
    assert fingerprint(data) == before


def test_read_beyond_the_end(start_cluster: Any, kimberlite_command: Any) -> None:
    cluster = start_cluster(1)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\n")
    done = kimberlite_command("read", "--from", "3", addresses=cluster.addresses, code=33)
    assert b"positions 0 to 1" in done.stderr
    assert done.stdout == b""
    assert kimberlite_command("read", "--from", "2", addresses=cluster.addresses).stdout == b""


def test_a_client_of_another_cluster(start_cluster: Any) -> None:
    import asyncio

    import kimberlite
    from kimberlite.errors import WrongClusterError

    cluster = start_cluster(1)

    async def attempt() -> None:
        async with kimberlite.connect(list(cluster.addresses), cluster=OTHER_CLUSTER) as log:
            await log.append([b"x"], timeout=5)

    with pytest.raises(WrongClusterError):
        asyncio.run(attempt())


def test_a_replica_of_another_cluster_does_not_join(
    start_cluster: Any, format_one: Any, kimberlite_command: Any, settled: Callable[[Any], None]
) -> None:
    """A replica with a wrong cluster id at the address of another: it ends, the cluster goes on."""
    cluster = start_cluster(3)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\n")
    victim = cluster.replicas[2]
    cluster.kill(2)
    foreign = format_one("foreign", addresses=",".join(cluster.addresses), replica=2, cluster=OTHER_CLUSTER)
    before = fingerprint(foreign, but=LIVES)
    done = kimberlite_command("start", "--set", "telemetry.enabled=false", foreign, code=23)
    assert cluster_id(cluster).encode() in done.stderr
    assert OTHER_CLUSTER.encode() in done.stderr
    assert fingerprint(foreign, but=LIVES) == before
    kimberlite_command("append", "-", addresses=cluster.addresses[:2], input=b"two\n")
    cluster.start(victim.index)
    cluster.wait_ready()
    settled(cluster)
    assert kimberlite_command("read", addresses=cluster.addresses).stdout == b"one\ntwo\n"


def test_a_wrong_number_or_order_of_addresses_shows_when_replicas_meet(
    start_cluster: Any, format_one: Any, kimberlite_command: Any
) -> None:
    cluster = start_cluster(3)
    cluster.kill(2)
    first, second, third = cluster.addresses
    data = format_one("too few", addresses=f"{first},{third}", replica=1, cluster=cluster_id(cluster))
    order = f'cluster.addresses=["{second}", "{first}", "{third}"]'
    for path, settings, words in (
        (data, (), b"belongs to a cluster of 3 replicas"),
        (cluster.replicas[2].data, ("--set", order), b"is replica 1"),
    ):
        before = fingerprint(path, but=LIVES)
        done = kimberlite_command("start", "--set", "telemetry.enabled=false", *settings, path, code=2)
        assert words in done.stderr
        assert fingerprint(path, but=LIVES) == before
    assert kimberlite_command("append", "-", addresses=(first, second), input=b"x\n").stdout == b"0 0\n"
