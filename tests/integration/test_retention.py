"""Checkpoints and retention on real clusters: space is given back, restarts begin at the checkpoint."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from kimberlite import sync
from kimberlite.cli import probe
from kimberlite.errors import PositionError

MIB = 1 << 20
SEGMENT = 8 * MIB
KEEP = 2 * SEGMENT
CHECKPOINT_OPS = 16
SETTINGS = (
    f"storage.segment_bytes={SEGMENT}",
    f"checkpoint.ops={CHECKPOINT_OPS}",
    f"retention.bytes_max={KEEP}",
)
EVENT_BYTES = 30_000
BATCH = 30
APPENDS = 60  # of BATCH events: 54 MB


def storage_of(address: str) -> dict[str, Any]:
    found = probe.fetch_status(address, 5)["storage"]
    assert isinstance(found, dict)
    return found


def is_at_rest(address: str) -> bool:
    """Nothing more is trimmed and no checkpoint is due: the next ones come with the next appends."""
    status: dict[str, Any] = probe.fetch_status(address, 5)
    storage = status["storage"]
    is_small: bool = storage["bytes"] < KEEP + SEGMENT
    return is_small and status["commit"] - storage["checkpoint_op"] < CHECKPOINT_OPS


def files(data: Path, kind: str) -> list[str]:
    return sorted(path.name for path in data.glob(f"{kind}-*"))


def is_tidy(data: Path) -> bool:
    """Nothing is left that a trim or a checkpoint has made superfluous: files are removed one at a time."""
    journals, witnesses = files(data, "journal"), files(data, "witness")
    return (
        journals[0] != "journal-00000000"
        and [name.replace("journal", "witness") for name in journals] == witnesses
        and len(files(data, "checkpoint")) == 2
    )


@pytest.fixture
def trimmed(start_cluster: Any, wait_until: Any, settled: Any) -> tuple[Any, list[bytes], int]:
    """A cluster that had to trim, all events ever appended, and the first position that is left everywhere."""
    cluster = start_cluster(3, settings=SETTINGS)
    generator = random.Random(7)
    events: list[bytes] = []
    with sync.connect(list(cluster.addresses)) as log:
        for _ in range(APPENDS):
            batch = [generator.randbytes(EVENT_BYTES) for _ in range(BATCH)]
            assert log.append(batch, timeout=30) == len(events)
            events += batch
    settled(cluster)

    def is_trimmed() -> bool:
        return (
            all(is_at_rest(address) for address in cluster.addresses)
            and len({storage_of(address)["first_position"] for address in cluster.addresses}) == 1
            and all(is_tidy(replica.data) for replica in cluster.replicas)
        )

    wait_until(is_trimmed, "every replica has trimmed its log")
    first = storage_of(cluster.addresses[0])["first_position"]
    return cluster, events, first


def test_the_log_keeps_what_it_should_and_says_what_it_has(
    trimmed: tuple[Any, list[bytes], int], kimberlite_command: Any, tmp_path: Path
) -> None:
    cluster, events, first = trimmed
    kept = (len(events) - first) * EVENT_BYTES
    assert KEEP * 0.9 <= kept <= KEEP + 3 * SEGMENT
    for replica in cluster.replicas:
        assert len(files(replica.data, "journal")) <= 5
    with sync.connect(list(cluster.addresses)) as log:
        assert list(log.read(start=first, raw=True)) == events[first:]
        with pytest.raises(PositionError, match=f"the log begins with position {first}") as raised:
            list(log.read(start=first - 1, raw=True))
        assert raised.value.first == first
    done = kimberlite_command("read", "--from", "0", "--limit", "1", addresses=cluster.addresses, code=33)
    assert str(first) in done.stderr.decode()


def test_a_restart_begins_at_the_checkpoint(
    trimmed: tuple[Any, list[bytes], int], kimberlite_command: Any, settled: Any
) -> None:
    cluster, events, _ = trimmed
    for index in range(3):
        cluster.kill(index)
    shown = [
        json.loads(kimberlite_command("inspect", "checkpoint", "--json", replica.data).stdout)
        for replica in cluster.replicas
    ]
    for facts in shown:
        assert facts["copies"] == {"a": "good", "b": "good"}
        assert facts["op"] > 16 and facts["sessions"]
    made = {facts["op"]: facts["digest"] for facts in shown}
    for facts in shown:
        assert made[facts["op"]] == facts["digest"], "the same op gives the same checkpoint on every replica"
    assert "sessions" in kimberlite_command("inspect", "checkpoint", cluster.replicas[0].data).stdout.decode()
    first_entry = kimberlite_command("inspect", "journal", "--limit", "1", "--json", cluster.replicas[0].data)
    assert json.loads(first_entry.stdout)["segment"] == int(files(cluster.replicas[0].data, "journal")[0][8:])
    for index in range(3):
        cluster.start(index)
    cluster.wait_ready(60)
    with sync.connect(list(cluster.addresses)) as log:
        assert log.append([b"after"], timeout=30) == len(events)
    settled(cluster)
    for address in cluster.addresses:
        first = storage_of(address)["first_position"]
        with sync.connect([address], only=True) as log:
            assert list(log.read(start=first, raw=True)) == [*events[first:], b"after"]


def test_a_damaged_checkpoint_is_made_good(trimmed: tuple[Any, list[bytes], int], wait_until: Any) -> None:
    cluster, _, _ = trimmed
    cluster.kill(0)
    data = cluster.replicas[0].data
    name = files(data, "checkpoint")[0]
    good = (data / name).read_bytes()
    with (data / name).open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(16))
    cluster.start(0)

    def is_good() -> bool:
        try:
            return (data / name).read_bytes() == good
        except FileNotFoundError:  # a new checkpoint was made
            return True

    wait_until(is_good, "the damaged copy is made good, or a new checkpoint was made")


def test_without_any_checkpoint_a_trimmed_replica_says_what_to_do(
    trimmed: tuple[Any, list[bytes], int], kimberlite_command: Any
) -> None:
    cluster, _, _ = trimmed
    cluster.kill(0)
    data = cluster.replicas[0].data
    for name in files(data, "checkpoint"):
        (data / name).write_bytes(b"")
    done = kimberlite_command("start", data, code=27)
    assert "replace this replica" in done.stderr.decode()


AGE_MAX_S = 3


def test_events_that_are_too_old_go_and_no_others(start_cluster: Any, wait_until: Any, settled: Any) -> None:
    settings = (
        f"storage.segment_bytes={SEGMENT}",
        f"checkpoint.ops={CHECKPOINT_OPS}",
        f"retention.age_max_s={AGE_MAX_S}",
    )
    cluster = start_cluster(3, settings=settings)
    generator = random.Random(8)
    events: list[bytes] = []
    begun: list[float] = []  # when the append of an event was called: its timestamp is not before that
    with sync.connect(list(cluster.addresses)) as log:

        def append(batch: list[bytes]) -> None:
            begun.extend([time.time()] * len(batch))
            assert log.append(batch, timeout=30) == len(events)
            events.extend(batch)

        while len(events) * EVENT_BYTES < 3 * SEGMENT:
            append([generator.randbytes(EVENT_BYTES) for _ in range(BATCH)])
        filled = len(events)

        def is_trimmed() -> bool:
            append([b"later"])  # for checkpoints to be made: nothing is trimmed that one still needs
            first = max(storage_of(address)["first_position"] for address in cluster.addresses)
            assert first == 0 or begun[first - 1] <= time.time() - AGE_MAX_S, "trimmed before its time"
            return all(storage_of(address)["bytes"] < SEGMENT for address in cluster.addresses)

        # The segment that is written stays, however old: from then on no reader is in the way of a trim.
        wait_until(is_trimmed, "every replica has trimmed all but the last segment", timeout=60)
    settled(cluster)
    first = max(storage_of(address)["first_position"] for address in cluster.addresses)
    assert 0 < first < filled
    wait_until(lambda: all(is_tidy(replica.data) for replica in cluster.replicas), "their files are removed")
    for address in cluster.addresses:
        with sync.connect([address], only=True) as log:
            assert list(log.read(start=first, raw=True)) == events[first:]
            with pytest.raises(PositionError):
                list(log.read(start=0, raw=True))
