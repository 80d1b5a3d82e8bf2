"""Cutting input into batches: every byte of it, in order, within the limits."""

from __future__ import annotations

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite._fast import events
from kimberlite.cli import data, sources
from kimberlite.cli.sources import EVENT_BYTES_MAX, EncodedBatch, FrameSource, LineSource
from kimberlite.errors import EventTooLargeError, UsageError

REQUEST_BYTES_MAX = 2 << 20


def batches_of(source: LineSource | FrameSource, text: bytes, piece: int = sources.CHUNK_BYTES) -> list[EncodedBatch]:
    found: list[EncodedBatch] = []
    for start in range(0, len(text), piece):
        found += source.feed(text[start : start + piece])
    return [*found, *source.end()]


def all_events(source: LineSource | FrameSource, text: bytes, piece: int = sources.CHUNK_BYTES) -> list[bytes]:
    found: list[bytes] = []
    for batch in batches_of(source, text, piece):
        assert batch.count == events.count(batch.body) > 0
        assert len(batch.body) <= REQUEST_BYTES_MAX
        found += events.slice(batch.body, 0, batch.count)
    return found


def framed(items: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


@given(
    st.lists(st.binary(max_size=50).map(lambda line: line.replace(b"\n", b"")), max_size=40),
    st.booleans(),
    st.integers(1, 300),
)
def test_lines_are_what_is_between_newlines(lines: list[bytes], terminated: bool, piece: int) -> None:
    text = b"".join(line + b"\n" for line in lines)
    if lines and lines[-1] and not terminated:
        text = text[:-1]
    else:
        terminated = True
    source = LineSource()
    source.check(io.BytesIO(text))
    assert all_events(source, text, piece) == lines
    assert source.terminated is terminated


def test_lines_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 7)
    lines = [b"x" * length for length in (0, 1, 5, 6, 7, 8, 30, 0, 0, 14)]
    text = b"".join(line + b"\n" for line in lines)
    source = LineSource(event_bytes_max=30)
    source.check(io.BytesIO(text))
    assert all_events(source, text, 7) == lines


def test_consumed_adds_up_to_the_file() -> None:
    text = b"".join(b"line %d\n" % number for number in range(200_000))
    batches = batches_of(LineSource(), text)
    assert sum(batch.consumed for batch in batches) == len(text)
    assert sum(batch.count for batch in batches) == 200_000
    assert len(batches) > 1


def test_the_largest_event_and_one_more() -> None:
    largest = b"x" * EVENT_BYTES_MAX
    for text in (largest, largest + b"\n", b"a\n" + largest + b"\n" + largest + b"\nb"):
        source = LineSource()
        source.check(io.BytesIO(text))
        assert largest in all_events(source, text)
    for text in (largest + b"x", largest + b"x\n", b"a\n" * 5_000_000 + largest + b"x\nb\n"):
        with pytest.raises(EventTooLargeError, match=str(EVENT_BYTES_MAX)):
            LineSource().check(io.BytesIO(text))
        with pytest.raises(EventTooLargeError, match="line"):
            all_events(LineSource(), text)


@given(st.binary(max_size=200), st.integers(1, 12), st.integers(1, 9))
def test_check_finds_exactly_the_lines_above_the_limit(text: bytes, limit: int, chunk: int) -> None:
    text = text.replace(b"\x00", b"\n").replace(b"\x01", b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK_BYTES", chunk)
        source = LineSource(event_bytes_max=limit)
        sizes = [len(line) for line in text.split(b"\n")]
        first = next((number for number, size in enumerate(sizes, 1) if size > limit), None)
        if first is not None:
            with pytest.raises(EventTooLargeError, match=f"^line {first} has {sizes[first - 1]} bytes, above"):
                source.check(io.BytesIO(text))
        else:
            source.check(io.BytesIO(text))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 30), st.integers(1, 50))
def test_a_line_that_comes_through_a_pipe_is_named_too(sizes: list[int], limit: int, piece: int) -> None:
    text = b"".join(b"x" * size + b"\n" for size in sizes)
    first = next((number for number, size in enumerate(sizes, 1) if size > limit), None)
    source = LineSource(event_bytes_max=limit)
    if first is None:
        assert [len(event) for event in all_events(source, text, piece)] == sizes
        return
    with pytest.raises(EventTooLargeError, match=rf"^line {first} has (at least )?\d+ bytes, above") as caught:
        all_events(source, text, piece)
    size = caught.value.size
    assert size is not None and caught.value.index == first - 1
    assert limit < size <= sizes[first - 1]
    assert size == sizes[first - 1] or "at least" in str(caught.value)


def test_batches_know_the_number_of_their_first_event() -> None:
    text = b"".join(b"line %d\n" % number for number in range(150_000)) + b"last"
    for source, data_in in ((LineSource(), text), (FrameSource(), framed(text.split(b"\n")))):
        number = 1
        for batch in batches_of(source, data_in):
            assert batch.number == number
            number += batch.count
        assert number == 150_002


@given(st.lists(st.binary(max_size=50), max_size=40), st.integers(1, 300))
def test_frames(items: list[bytes], piece: int) -> None:
    source = FrameSource()
    source.check(io.BytesIO(framed(items)))
    assert all_events(source, framed(items), piece) == items


def test_frames_are_batched_by_size() -> None:
    items = [b"x" * (600 << 10)] * 5
    batches = batches_of(FrameSource(), framed(items))
    assert [batch.count for batch in batches] == [1] * 5
    assert sum(batch.consumed for batch in batches) == len(framed(items))


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_a_frame_that_ends_early(cut: int) -> None:
    text = framed([b"whole", b"ends early"])
    short = text[: 9 + cut]
    with pytest.raises(UsageError, match="in the middle of event 2"):
        FrameSource().check(io.BytesIO(short))
    with pytest.raises(UsageError, match="in the middle of event 2"):
        all_events(FrameSource(), short)


def test_a_frame_above_the_limit() -> None:
    with pytest.raises(EventTooLargeError, match=r"^event 2 has 1048577 bytes"):
        FrameSource().check(io.BytesIO(framed([b"fits", b"x" * (EVENT_BYTES_MAX + 1)])))


def printed(writer: data.Writer, batches: list[list[bytes]]) -> bytes:
    position, text = 0, b""
    for batch in batches:
        text += writer(position, len(batch), events.build(batch))
        position += len(batch)
    return text


BATCHES = [[b"one", b""], [b"\xff\xfe"], ["größer".encode(), b"a\nb"]]


def test_writers() -> None:
    lines = b"one\n\n\xff\xfe\n" + "größer".encode() + b"\na\nb\n"
    assert printed(data.choose_writer(False, False, False), BATCHES) == lines
    assert printed(data.choose_writer(False, True, False), BATCHES) == lines[:-1]
    assert printed(data.choose_writer(True, False, False), BATCHES) == framed(
        [event for batch in BATCHES for event in batch]
    )
    rows = [json.loads(row) for row in printed(data.choose_writer(False, False, True), BATCHES).splitlines()]
    assert rows == [
        {"position": 0, "event": "one"},
        {"position": 1, "event": ""},
        {"position": 2, "event_base64": "//4="},
        {"position": 3, "event": "größer"},
        {"position": 4, "event": "a\nb"},
    ]


@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=5), max_size=5))
def test_binary_output_is_binary_input(batches: list[list[bytes]]) -> None:
    text = printed(data.choose_writer(True, False, False), batches)
    assert all_events(FrameSource(), text) == [event for batch in batches for event in batch]
