"""kill -9 while events are appended: what was acknowledged is there exactly once, in order, on every replica."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kimberlite
from kimberlite.errors import OutcomeUnknownError

EVENTS_PER_APPEND = 20
APPENDERS = 8


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


@pytest.mark.parametrize("fault", [kill_primary, kill_backup, kill_all, kill_all_in_turn])
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
    logs = [kimberlite_command("read", addresses=[address]).stdout for address in cluster.addresses]
    assert logs[0] == logs[1] == logs[2]
    appenders.check(logs[0].split(b"\n")[:-1])
    assert appenders.unknown == []


def test_kill_while_a_file_is_appended(
    start_cluster: Any,
    primary_of: Callable[[Any], int],
    settled: Callable[[Any], None],
    kimberlite_command: Any,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """The command line as well: one session rides through three kills, and the file is in the log exactly once."""
    cluster = start_cluster(3)
    generator = random.Random(5)
    lines = [f"{number} {generator.randbytes(generator.randrange(400)).hex()}".encode() for number in range(100_000)]
    text = b"".join(line + b"\n" for line in lines)
    command = subprocess.Popen(
        [sys.executable, "-P", "-m", "kimberlite", "append", "--timeout", "60", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "KIMBERLITE_ADDRESSES": ",".join(cluster.addresses)},
        cwd=tmp_path,
    )
    assert command.stdin is not None
    pieces = [text[start : start + len(text) // 4] for start in range(0, len(text), len(text) // 4)]
    for piece, fault in zip(pieces, [kill_primary, kill_backup, kill_all, None, None], strict=False):
        command.stdin.write(piece)
        command.stdin.flush()
        if fault is not None:
            fault(cluster, primary_of(cluster))
    output, errors = command.communicate(timeout=120)
    assert command.returncode == 0, errors.decode()
    assert output == b"0 99999\n"
    settled(cluster)
    for address in cluster.addresses:
        assert kimberlite_command("read", addresses=[address]).stdout == text


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
        assert kimberlite_command("read", addresses=[address]).stdout == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("replicas", [1, 2, 4, 5, 6])
def test_other_sizes(
    replicas: int, start_cluster: Any, settled: Callable[[Any], None], kimberlite_command: Any
) -> None:
    cluster = start_cluster(replicas)
    text = b"".join(b"event %d\n" % number for number in range(1000))
    assert kimberlite_command("append", "-", addresses=cluster.addresses, input=text).stdout == b"0 999\n"
    settled(cluster)
    for address in cluster.addresses:
        assert kimberlite_command("read", addresses=[address]).stdout == text


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
        assert kimberlite_command("read", addresses=[address]).stdout == b"one\ntwo\n"
