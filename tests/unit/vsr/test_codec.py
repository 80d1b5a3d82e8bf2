"""Bodies that carry headers: what goes in comes out, and what contradicts itself is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import chain, prepare

from kimberlite.errors import FrameError
from kimberlite.node.driver import FastCodec
from kimberlite.types import Header
from kimberlite.vsr.codec import Evidence, decode_chain, decode_evidence, encode_evidence, encode_headers

CODEC = FastCodec()
HEADERS = chain(63)


@given(first=st.integers(0, 20), known=st.integers(0, (1 << 40) - 1), present=st.integers(0, 1 << 40))
def test_evidence_comes_back_as_it_was(first: int, known: int, present: int) -> None:
    headers = tuple(HEADERS[first + bit] for bit in range(40) if known >> bit & 1)
    evidence = Evidence(first, known, present, ~present & ((1 << 40) - 1), headers)
    assert decode_evidence(CODEC, encode_evidence(evidence)) == evidence


def raw(first: int, known: int, present: int, nack: int, *headers: Header) -> bytes:
    return struct.pack("<QQQQ", first, known, present, nack) + encode_headers(headers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(31),
        raw(1, 0b1, 0, 0),  # a header is missing
        raw(1, 0, 0, 0, HEADERS[1]),  # one too many
        raw(1, 0b11, 0, 0, HEADERS[1], HEADERS[3]),  # of another op
        raw(1, 0b11, 0, 0, HEADERS[2], HEADERS[1]),  # in another order
        raw(1, 0b11, 0, 0, HEADERS[1], HEADERS[1]),  # twice
        raw(1, 0, 0b10, 0b10),  # present and never acknowledged
        raw(1, 0b1, 0, 0, HEADERS[1])[:-1],
        raw(1, 0b1, 0, 0, HEADERS[1])[:-1] + b"\xff",
    ],
)
def test_evidence_that_contradicts_itself_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode_evidence(CODEC, body)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 64), (5, 9)])
def test_a_chain_comes_back_as_it_was(first: int, last: int) -> None:
    assert decode_chain(CODEC, encode_headers(HEADERS[first:last])) == HEADERS[first:last]
    assert decode_chain(CODEC, memoryview(encode_headers(HEADERS[first:last]))) == HEADERS[first:last]


@pytest.mark.parametrize(
    "headers",
    [[], [HEADERS[1], HEADERS[3]], [HEADERS[2], HEADERS[1]], [HEADERS[1], HEADERS[1]]],
    ids=["empty", "gap", "backward", "twice"],
)
def test_what_is_no_chain_is_refused(headers: list[Header]) -> None:
    with pytest.raises(FrameError):
        decode_chain(CODEC, encode_headers(headers))


def test_an_op_of_another_history_does_not_continue_a_chain() -> None:
    other = prepare(op=3, parent=bytes(16)).header
    with pytest.raises(FrameError, match="not chained"):
        decode_chain(CODEC, encode_headers([HEADERS[1], HEADERS[2], other]))


@pytest.mark.parametrize("cut", [1, 255, 257, 300])
def test_a_chain_that_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(FrameError):
        decode_chain(CODEC, encode_headers(HEADERS[1:4])[:-cut])
