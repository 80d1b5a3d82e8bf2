"""What clients tell of their appends: each is told once, waits and retries are in it, and no number does harm."""

from __future__ import annotations

import tracemalloc
from random import Random
from typing import Any

import pytest

from kimberlite import told
from kimberlite._fast.framing import make_header
from kimberlite.errors import BusyError, OutcomeUnknownError
from kimberlite.told import LATENCY_US_MAX, TELLS, TOLD_MAX, Telling, code_of, failures_of, latencies_of, latency_of
from kimberlite.types import ClientFailure, Command, Header

US = 1000


def request(fields: dict[str, Any]) -> Header:
    return make_header(cluster=b"k" * 16, command=Command.REQUEST, client=b"c" * 16, **fields)


def heard(fields: dict[str, Any]) -> tuple[list[int], dict[ClientFailure, int]]:
    """What a replica counts of it: latencies in microseconds, ascending, and failures."""
    header = request(fields)
    if not header.flags & TELLS:
        return [header.latency_us] if header.latency_us else [], {}
    latencies = sorted(latency // US for latency, count in latencies_of(header) for _ in range(count))
    return latencies, dict(failures_of(header))


@pytest.mark.parametrize("latency", [0, 1, 31, 32, 63, 64, 65, 1000, 12_345, 1 << 20, LATENCY_US_MAX, 1 << 40])
def test_a_latency_is_right_within_a_step(latency: int) -> None:
    said, true = latency_of(code_of(latency)), min(latency, LATENCY_US_MAX)
    assert abs(said - true) <= true / 64
    assert 0 <= code_of(latency) < 1 << 16


def test_steps_ascend() -> None:
    codes = [code_of(latency) for latency in range(5000)]
    assert codes == sorted(codes)
    assert [latency_of(code) for code in sorted(set(codes))] == sorted({latency_of(code) for code in codes})


def test_one_append_is_told_exactly() -> None:
    telling = Telling()
    telling.answered([10 * US], 1_244 * US)
    assert telling.fields() == {"latency_us": 1234}
    assert heard(telling.fields()) == ([], {}), "once"


def test_each_append_of_a_request_is_told_with_its_own_wait() -> None:
    telling = Telling()
    telling.answered([0, 0, 600 * US], 1000 * US)
    latencies, _ = heard(telling.fields())
    assert len(latencies) == 3
    assert latencies == pytest.approx([400, 1000, 1000], rel=1 / 32)


def test_nothing_is_lost_when_more_is_told_than_fits() -> None:
    telling, random = Telling(), Random(1)
    began = [random.randrange(10**9) for _ in range(20_000)]
    telling.answered(began, 2 * 10**9)
    found: list[int] = []
    for _ in range(1000):
        latencies, _ = heard(telling.fields())
        if not latencies:
            break
        assert len(latencies) <= TOLD_MAX
        found += latencies
    assert sorted(found) == pytest.approx(sorted((2 * 10**9 - at) // US for at in began), rel=1 / 32)


def test_failures_are_told_by_their_kind() -> None:
    telling = Telling()
    for _ in range(300):
        telling.failed(BusyError)
    telling.failed(OutcomeUnknownError)
    first, second = heard(telling.fields())[1], heard(telling.fields())[1]
    assert first == {ClientFailure.UNKNOWN: 1, ClientFailure.BUSY: 255}
    assert second == {ClientFailure.BUSY: 45}
    assert heard(telling.fields()) == ([], {})


def test_what_was_refused_is_told_again() -> None:
    telling = Telling()
    telling.answered([0], 50 * US)
    assert heard(telling.fields()) == ([50], {})
    telling.refused()
    telling.failed(BusyError)
    assert heard(telling.fields()) == ([50], {ClientFailure.BUSY: 1})
    telling.refused()
    telling.answered([0, 0], 50 * US)
    assert heard(telling.fields()) == ([50, 50, 50], {ClientFailure.BUSY: 1})
    assert heard(telling.fields()) == ([], {})


def test_every_failure_of_an_append_has_a_place() -> None:
    assert set(told.FAILURES.values()) == set(ClientFailure)
    assert max(ClientFailure) < 8, "a byte each"


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0xFF])
def test_whatever_a_client_says_is_bounded(byte: int) -> None:
    lie = {"flags": TELLS, "parent": bytes([byte]) * 16, "context": bytes([byte]) * 16}
    header = request(lie | {"timestamp": int.from_bytes(bytes([byte]) * 8, "little")})
    tracemalloc.start()
    pairs, failures = list(latencies_of(header)), dict(failures_of(header))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(count for _, count in pairs) <= TOLD_MAX
    assert all(0 <= latency <= 1000 * LATENCY_US_MAX for latency, _ in pairs)
    assert set(failures) <= set(ClientFailure) and all(count <= 255 for count in failures.values())
    assert most < 1 << 16


def test_what_a_client_holds_back_is_bounded() -> None:
    """A cluster that answers nothing for long, and then everything."""
    telling, random = Telling(), Random(2)
    for _ in range(300):
        telling.answered([random.randrange(1 << 45) for _ in range(100)], 1 << 45)
    assert len(telling._latencies) <= code_of(LATENCY_US_MAX) + 1 < 1024
