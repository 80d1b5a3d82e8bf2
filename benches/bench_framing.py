"""Frames: parsing what a socket has delivered, and making what is sent."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import repeat

import pytest

from kimberlite._fast import metrics
from kimberlite._fast.framing import HEADER_SIZE, encode_into, make_header, parse
from kimberlite.types import Command

LOCKED_ADD_NS = 2.6  # one relaxed fetch_add on the machine of the targets
LOOP = 50_000
FRAMES = 256
CLUSTER = bytes(range(16))


def locked_adds() -> None:
    metrics.calibrate("locked", LOOP)


def stream(body: bytes) -> bytearray:
    data = bytearray()
    for op in range(FRAMES):
        data += make_header(body, cluster=CLUSTER, command=Command.REQUEST, op=op).raw + body
    return data


@pytest.mark.benchmark(group="framing")
def test_parse(gate: Callable[..., None]) -> None:
    """The target is 5 million a second with 128-byte bodies, everything verified and made an object."""
    data = stream(random.Random(1).randbytes(128))
    gate(
        lambda: parse(data, 0, len(data), 1 << 20, CLUSTER),
        locked_adds,
        at_most=200 / LOCKED_ADD_NS,
        operations=(FRAMES, LOOP),
    )


@pytest.mark.benchmark(group="framing")
def test_parse_without_body(gate: Callable[..., None]) -> None:
    """Against views of the same places: objects as well, which a neighbour on the core slows alike."""
    data = stream(b"")

    def views() -> None:
        view = memoryview(data)
        for start in range(0, len(data), HEADER_SIZE):
            view[start : start + HEADER_SIZE]

    gate(lambda: parse(data, 0, len(data), 1 << 20, CLUSTER), views, at_most=0.9, operations=(FRAMES, FRAMES))


@pytest.mark.benchmark(group="framing")
def test_make_header(gate: Callable[..., None]) -> None:
    body = random.Random(2).randbytes(128)

    def make() -> None:
        for op in range(FRAMES):
            make_header(body, cluster=CLUSTER, command=Command.PREPARE, view=3, op=op, commit=op, count=1)

    gate(make, locked_adds, at_most=600 / LOCKED_ADD_NS, operations=(FRAMES, LOOP))


@pytest.mark.benchmark(group="framing")
def test_encode_into(gate: Callable[..., None]) -> None:
    """Against slice assignment of the same bytes, which is two copies as well."""
    body = random.Random(3).randbytes(1024)
    header = make_header(body, cluster=CLUSTER, command=Command.PREPARE)
    raw, buffer = header.raw, bytearray(2048)

    def encode() -> None:
        for _ in repeat(None, FRAMES):
            encode_into(buffer, 64, header, body)

    def assign() -> None:
        for _ in repeat(None, FRAMES):
            buffer[64 : 64 + HEADER_SIZE] = raw
            buffer[64 + HEADER_SIZE : 64 + HEADER_SIZE + 1024] = body

    gate(encode, assign, at_most=1.5, operations=(FRAMES, FRAMES))
