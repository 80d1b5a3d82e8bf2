"""kill -9 while events are appended: what was acknowledged is there exactly once, in order, on every replica."""

from __future__ import annotations

import asyncio
import filecmp
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.errors import OutcomeUnknownError

EVENTS_PER_APPEND = 20
APPENDERS = 8
LINES_BEFORE = 20_000  # appended before the first fault


class Appenders:
    """Clients that append numbered events without pause and write down what was acknowledged.

    Event texts are unique, so that one that was executed twice shows.
    """

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses
        self._stopping = False
        self.acknowledged: dict[int, list[bytes]] = {}  # first position -> events
        self.unknown: list[list[bytes]] = []

    async def run(self, faults: Callable[[], None], least: int) -> None:
        """Append while `faults` runs in a thread, and until `least` more appends are acknowledged after it."""
        async with (
            kimberlite.connect(list(self._addresses)) as first,
            kimberlite.connect(list(self._addresses)) as second,
        ):
            tasks = [
                asyncio.create_task(self._append(log, f"{name}-{number}"))
                for name, log in (("a", first), ("b", second))
                for number in range(APPENDERS)
            ]
            await self._progress(least)
            await asyncio.to_thread(faults)
            await self._progress(least)
            self._stopping = True
            await asyncio.gather(*tasks)

    async def _progress(self, least: int) -> None:
        before = len(self.acknowledged)
        async with asyncio.timeout(60):
            while len(self.acknowledged) < before + least:
                await asyncio.sleep(0.01)

    async def _append(self, log: Any, name: str) -> None:
        number = 0
        while not self._stopping:
            events = [f"{name} {number + index}".encode() for index in range(EVENTS_PER_APPEND)]
            number += EVENTS_PER_APPEND
            try:
                position = await log.append(events, timeout=60.0)
            except OutcomeUnknownError:
                self.unknown.append(events)
                continue
            assert position not in self.acknowledged, f"position {position} acknowledged twice"
            self.acknowledged[position] = events

    def check(self, log: list[bytes]) -> None:
        """Compare with the events that a replica holds."""
        for position, events in self.acknowledged.items():
            assert log[position : position + len(events)] == events
        assert len(set(log)) == len(log), "an event is in the log twice"
        expected = {event for events in self.acknowledged.values() for event in events}
        possible = expected | {event for events in self.unknown for event in events}
        assert set(log) <= possible


def kill_primary(cluster: Any, primary: int) -> None:
    cluster.kill(primary)
    cluster.wait_ready(need=cluster.replica_count - 1)
    cluster.start(primary)
    cluster.wait_ready()


def kill_backup(cluster: Any, primary: int) -> None:
    backup = (primary + 1) % cluster.replica_count
    cluster.kill(backup)
    cluster.start(backup)
    cluster.wait_ready()


def kill_all(cluster: Any, primary: int) -> None:
    for replica in cluster.replicas:
        assert replica.process is not None
        replica.process.send_signal(signal.SIGKILL)
    for replica in cluster.replicas:
        cluster.kill(replica.index)
    cluster.start_all()
    cluster.wait_ready(60)


def kill_all_in_turn(cluster: Any, primary: int) -> None:
    for index in range(cluster.replica_count):
        cluster.kill(index)
        cluster.start(index)
        cluster.wait_ready()


def stop_all_in_turn(cluster: Any, primary: int) -> None:
    """A rolling restart: SIGTERM drains, and a primary hands over."""
    for index in range(cluster.replica_count):
        assert cluster.kill(index, signal.SIGTERM) == 0
        cluster.start(index)
        cluster.wait_ready()


def pause_primary(cluster: Any, primary: int) -> None:
    """It stands still until another one leads, and goes on where it was."""
    process = cluster.replicas[primary].process
    process.send_signal(signal.SIGSTOP)
    try:
        cluster.wait_ready(need=cluster.replica_count - 1)
    finally:
        process.send_signal(signal.SIGCONT)
    cluster.wait_ready()


@pytest.mark.parametrize(
    "fault", [kill_primary, kill_backup, kill_all, kill_all_in_turn, stop_all_in_turn, pause_primary]
)
def test_kill_while_appending(
    fault: Callable[[Any, int], None],
    start_cluster: Any,
    primary_of: Callable[[Any], int],
    settled: Callable[[Any], None],
    kimberlite_command: Any,
) -> None:
    cluster = start_cluster(3)
    appenders = Appenders(cluster.addresses)
    asyncio.run(appenders.run(lambda: fault(cluster, primary_of(cluster)), least=200))
    settled(cluster)
    logs = [kimberlite_command("read", "--only", addresses=[address]).stdout for address in cluster.addresses]
    assert logs[0] == logs[1] == logs[2]
    appenders.check(logs[0].split(b"\n")[:-1])
    assert appenders.unknown == []


def test_kill_while_a_file_is_appended(
    start_cluster: Any,
    primary_of: Callable[[Any], int],
    settled: Callable[[Any], None],
    kimberlite_command: Any,
    environment: dict[str, str],
    mixed_lines: Any,
    tmp_path: Path,
) -> None:
    """The command line as well: it gets lines without a pause while replicas are killed, and goes on by itself."""
    cluster = start_cluster(3)
    done: list[str] = []

    def faults() -> None:
        for fault in (kill_primary, kill_backup, kill_all):
            fault(cluster, primary_of(cluster))
            done.append(fault.__name__)

    count = 0
    source = tmp_path / "lines"
    with (
        source.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "kimberlite", "append", "--timeout", "60", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, "KIMBERLITE_ADDRESSES": ",".join(cluster.addresses)},
            cwd=tmp_path,
        ) as command,
    ):
        assert command.stdin is not None
        killer = threading.Thread(target=faults)
        for line in mixed_lines(2_000_000, seed=5):
            command.stdin.write(line)
            file.write(line)
            count += 1
            if count == LINES_BEFORE:
                killer.start()
            elif count > LINES_BEFORE and not killer.is_alive():
                break
        killer.join()
        output, errors = command.communicate(timeout=120)
    assert done == ["kill_primary", "kill_backup", "kill_all"], errors.decode()
    assert command.returncode == 0, errors.decode()
    assert output == f"0 {count - 1}\n".encode()
    settled(cluster)
    copy = tmp_path / "copy"
    for index, address in enumerate(cluster.addresses):
        kimberlite_command("read", "--addresses", address, output=copy)
        assert filecmp.cmp(source, copy, shallow=False), f"replica {index} gave other bytes"


def test_replicas_that_start_one_after_another(
    start_cluster: Any, kimberlite_command: Any, wait_until: Callable[..., None]
) -> None:
    """One alone runs, says what it lacks and refuses; as soon as there are two, they work."""
    cluster = start_cluster(3)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\n")
    cluster.stop()
    cluster.start(2)
    address = cluster.addresses[2]

    def status() -> dict[str, Any]:
        shown = kimberlite_command("status", "--json", addresses=[address], code=None).stdout
        rows: list[dict[str, Any]] = json.loads(shown)["replicas"]
        return rows[0]

    wait_until(lambda: bool(status()["reachable"] and status()["unhealthy"]), "it answers, and says what it lacks")
    assert status()["role"] != "primary"
    refused = kimberlite_command("append", "--timeout", "1", addresses=[address], input=b"x\n", code=None)
    assert refused.returncode in (24, 40)
    cluster.start(0)
    cluster.wait_ready(need=2)
    done = kimberlite_command("append", "-", addresses=cluster.addresses, input=b"two\n")
    read = kimberlite_command("read", addresses=cluster.addresses).stdout.splitlines()
    assert done.stdout == f"{len(read) - 1} {len(read) - 1}\n".encode()
    # What was refused as unknown may be in the log: once.
    assert read in ([b"one", b"two"], [b"one", b"x", b"two"])


def test_the_cluster_goes_on_with_its_data_after_an_orderly_stop(
    start_cluster: Any, settled: Callable[[Any], None], kimberlite_command: Any
) -> None:
    cluster = start_cluster(3)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\ntwo\n")
    cluster.stop()
    cluster.start_all()
    cluster.wait_ready()
    assert kimberlite_command("append", "-", addresses=cluster.addresses, input=b"three\n").stdout == b"2 2\n"
    settled(cluster)
    for address in cluster.addresses:
        assert kimberlite_command("read", "--only", addresses=[address]).stdout == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("replicas", [1, 2, 4, 5, 6])
def test_other_sizes(
    replicas: int, start_cluster: Any, settled: Callable[[Any], None], kimberlite_command: Any
) -> None:
    cluster = start_cluster(replicas)
    text = b"".join(b"event %d\n" % number for number in range(1000))
    assert kimberlite_command("append", "-", addresses=cluster.addresses, input=text).stdout == b"0 999\n"
    settled(cluster)
    for address in cluster.addresses:
        assert kimberlite_command("read", "--only", addresses=[address]).stdout == text


def test_five_replicas_survive_two(
    start_cluster: Any, primary_of: Callable[[Any], int], settled: Callable[[Any], None], kimberlite_command: Any
) -> None:
    cluster = start_cluster(5)
    kimberlite_command("append", "-", addresses=cluster.addresses, input=b"one\n")
    first = primary_of(cluster)
    second = (first + 1) % 5
    cluster.kill(first)
    cluster.kill(second)
    assert kimberlite_command("append", "-", addresses=cluster.addresses, input=b"two\n").stdout == b"1 1\n"
    cluster.start(first)
    cluster.start(second)
    cluster.wait_ready()
    settled(cluster)
    for address in cluster.addresses:
        assert kimberlite_command("read", "--only", addresses=[address]).stdout == b"one\ntwo\n"
