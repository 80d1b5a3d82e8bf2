"""Each check, passing and failing, with the sentence that says why."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from kimberlite._fast.metrics import now_ns
from kimberlite.telemetry import health
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.recorder import Recorder

SECOND = 1_000_000_000
Put = Callable[..., None]


def failing(reader: Reader) -> dict[str, str]:
    return {check.name: check.reason for check in health.evaluate(health.READY, reader.observe()) if not check.ok}


def test_a_healthy_primary_passes(reader: Reader, healthy: Put) -> None:
    assert failing(reader) == {}
    assert [check.name for check in health.evaluate(health.LIVE, reader.observe())] == ["process", "event_loop"]


def test_nothing_recorded_yet_is_not_ready(reader: Reader, recorder: Recorder) -> None:
    assert set(failing(reader)) == {"quorum", "disk"}


@pytest.mark.parametrize(
    ("cell", "value", "check", "words"),
    [
        ("replica_status", lambda now: 1, "status", "view_change in view 17"),
        ("replica_status", lambda now: 77, "status", "unknown in view 17"),
        ("disk_free", lambda now: 1 << 20, "disk", "1 MiB free, one journal segment is 16 MiB"),
        ("disk_full", lambda now: 1, "disk", "no room for more: 1048576 MiB free, one journal segment is 16 MiB"),
        ("draining", lambda now: 1, "draining", "being stopped"),
        ("oldest_uncommitted", lambda now: now - 3 * SECOND, "commit", r"op 42 has 0 of 2 acks and waits for 3\.\d s"),
        ('replica_lag{peer="1"}', lambda now: 4 * SECOND, "commit", "0 committed ops are not applied here, for 4.0 s"),
        (
            "journal_wait",
            lambda now: now - 3 * SECOND,
            "disk",
            r"the disk has completed nothing for 3\.\d s, though more was asked of it",
        ),
        (
            "event_loop_last_turn",
            lambda now: now - 7 * SECOND,
            "event_loop",
            r"last turned 7\.\d s ago, the limit is 5 s",
        ),
    ],
)
def test_one_check_fails(
    cell: str, value: Callable[[int], float], check: str, words: str, reader: Reader, healthy: Put
) -> None:
    healthy(cell, value(now_ns()))
    ((found, reason),) = failing(reader).items()
    assert found == check and re.fullmatch(words, reason), reason  # a busy machine takes its time


def test_an_op_that_waits_briefly_is_no_stall(reader: Reader, healthy: Put) -> None:
    healthy("oldest_uncommitted", now_ns() - SECOND)
    assert failing(reader) == {}


def test_a_primary_may_miss_one_of_three(reader: Reader, healthy: Put) -> None:
    healthy('peer_last_heard{peer="0"}', now_ns() - 9 * SECOND)
    assert failing(reader) == {}
    healthy('peer_last_heard{peer="2"}', 0)
    assert failing(reader) == {
        "quorum": "1 of 3 replicas, 2 needed; replica 0 last heard 9.0 s ago; replica 2 never heard"
    }


def test_silence_counts_as_for_the_replica_itself(reader: Reader, healthy: Put) -> None:
    """One bound, Timing.contact_ns: what can not commit for want of a quorum is not ready."""
    for peer, seconds in (("0", 1.5), ("2", 1.5)):
        healthy(f'peer_last_heard{{peer="{peer}"}}', now_ns() - int(seconds * SECOND))
    assert set(failing(reader)) == {"quorum"}


def test_a_disk_that_is_only_slow_is_there(reader: Reader, healthy: Put) -> None:
    healthy("journal_wait", now_ns() - SECOND // 4)
    assert failing(reader) == {}


def test_a_backup_needs_its_primary_only(reader: Reader, healthy: Put) -> None:
    healthy("view_number", 16)  # replica 0 leads
    healthy("is_primary", 0)
    healthy('peer_last_heard{peer="2"}', 0)
    assert failing(reader) == {}
    healthy('peer_last_heard{peer="0"}', now_ns() - 9 * SECOND)
    assert failing(reader) == {"quorum": "the primary, replica 0, last heard 9.0 s ago"}


def test_a_process_that_has_ended(reader: Reader, healthy: Put) -> None:
    reader.replica_gone = True
    assert list(failing(reader)) == ["process"]


def test_an_end_in_order_is_an_end(recorder: Recorder, reader: Reader, healthy: Put) -> None:
    recorder.close()
    assert "process" in failing(reader)
