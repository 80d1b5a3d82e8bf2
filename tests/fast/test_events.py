"""Event batches and batches of requests against a twin in Python, and malformed ones of every kind.

The twin is written from the drawings at the head of c/km_events.h and events.pyx with struct alone.
"""

from __future__ import annotations

import array
import itertools
import random
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimberlite._fast import events
from kimberlite._fast.events import SubRequest
from kimberlite.errors import EventTooLargeError, FrameError, UsageError
from kimberlite.types import FrameReason

ANY_EVENTS = st.lists(st.binary(max_size=40), max_size=30)
CLIENT = bytes(range(16))


# --- the twin --------------------------------------------------------------------------------


def encode(items: Sequence[bytes]) -> bytes:
    """count u32 | reserved u32 = 0 | offsets u32[count + 1] | zeros to 8 bytes | payload"""
    offsets = [0]
    for item in items:
        offsets.append(offsets[-1] + len(item))
    table = struct.pack(f"<II{len(offsets)}I", len(items), 0, *offsets)
    return table + bytes(-len(table) % 8) + b"".join(items)


def decode(body: bytes) -> list[bytes] | str:
    """The events, or a word of the complaint."""
    if len(body) < 12:
        return "shorter"
    count, reserved = struct.unpack_from("<II", body)
    start = (8 + 4 * (count + 1) + 7) // 8 * 8
    if start > len(body):
        return "shorter"
    offsets = struct.unpack_from(f"<{count + 1}I", body, 8)
    if reserved or any(body[8 + 4 * (count + 1) : start]):
        return "not zero"
    payload = body[start:]
    if offsets[0] or offsets[-1] != len(payload) or list(offsets) != sorted(offsets):
        return "ascend"
    return [payload[a:b] for a, b in itertools.pairwise(offsets)]


def encode_requests(requests: Sequence[SubRequest]) -> bytes:
    """count u32 | reserved u32 = 0 | records of 48 bytes | bodies, each padded with zeros to 8 bytes"""
    head = struct.pack("<II", len(requests), 0)
    for client, session, request, operation, count, body in requests:
        head += struct.pack("<16sQQIIB7x", client, session, request, count, len(body), operation)
    return head + b"".join(bytes(r.body) + bytes(-len(r.body) % 8) for r in requests)


def refused(call: Callable[[], object], why: str) -> None:
    with pytest.raises(FrameError, match=f"malformed batch: .*{why}") as caught:
        call()
    assert caught.value.reason is FrameReason.BAD_SIZE


# --- building and reading --------------------------------------------------------------------


@given(items=ANY_EVENTS)
def test_a_batch_is_built_and_read_as_the_twin_does(items: list[bytes]) -> None:
    body = events.build(items)
    assert body == encode(items)
    assert decode(body) == items
    assert events.count(body) == events.validate(body) == len(items)
    assert events.slice(body, 0, len(items)) == items
    assert events.join(body) == b"".join(item + b"\n" for item in items)
    assert events.join(body, b"") == b"".join(items)
    assert events.join(body, b"--") == b"".join(item + b"--" for item in items)


@given(items=ANY_EVENTS, data=st.data())
def test_any_part_of_a_batch(items: list[bytes], data: st.DataObject) -> None:
    body = events.build(items)
    first = data.draw(st.integers(0, len(items)))
    last = data.draw(st.integers(first, len(items)))
    assert events.slice(body, first, last) == items[first:last]
    assert events.sub_batch(body, first, last) == encode(items[first:last])


@given(batches=st.lists(ANY_EVENTS, max_size=5))
def test_batches_are_joined_in_order(batches: list[list[bytes]]) -> None:
    bodies = [encode(items) for items in batches]
    together = encode([item for items in batches for item in items])
    assert events.concat(bodies) == together
    assert events.concat([memoryview(bytearray(body)) for body in bodies]) == together


def test_one_batch_is_not_copied_but_checked() -> None:
    body = encode([b"a", b"b"])
    assert events.concat([body]) is body
    refused(lambda: events.concat([body + b"c"]), "ascend")


def test_pinned_bytes() -> None:
    """Bytes on disks: never to be edited."""
    assert events.build([]).hex() == "00000000000000000000000000000000"
    assert events.build([b"ab", b"", b"c"]).hex() == ("030000000000000000000000020000000200000003000000616263")
    assert events.pack_requests([SubRequest(CLIENT, 1, 2, 128, 3, b"abc")]).hex() == (
        "01000000"
        "00000000" + CLIENT.hex() + "0100000000000000"
        "0200000000000000"
        "03000000"
        "03000000"
        "80"
        "00000000000000"
        "6162630000000000"
    )


def test_events_of_every_kind_of_buffer() -> None:
    items = [b"one", bytearray(b"two"), memoryview(b"three"), array.array("I", [1, 2]), b""]
    expected = encode([bytes(memoryview(item).cast("B")) for item in items])
    assert events.build(items) == expected  # type: ignore[arg-type]
    assert events.build(tuple(items)) == expected  # type: ignore[arg-type]
    assert events.build(iter(items)) == expected  # type: ignore[arg-type]
    for item in ("text", 5, None):
        with pytest.raises(TypeError):
            events.build([b"", item])  # type: ignore[list-item]
    with pytest.raises(BufferError):
        events.build([memoryview(b"abcd")[::2]])
    growing = items[1]
    assert isinstance(growing, bytearray)
    growing.append(0)  # no view is held


def test_a_batch_above_a_gigabyte() -> None:
    large = memoryview(bytes(1 << 20))
    with pytest.raises(EventTooLargeError, match="1074790400 bytes is above 1073741824") as caught:
        events.build([large] * 1025)
    assert (caught.value.size, caught.value.limit) == (1025 << 20, 1 << 30)
    with pytest.raises(UsageError, match="do not fit one prepare"):
        events.pack_requests([SubRequest(CLIENT, 1, 1, 128, 1, large)] * 1024)


def test_the_limit_of_an_event() -> None:
    body = encode([b"12345", b"", b"1234567", b"123456"])
    assert events.validate(body, 7) == 4
    with pytest.raises(EventTooLargeError, match="event 2 of the batch has 7 bytes, the limit is 6") as caught:
        events.validate(body, 6)
    assert (caught.value.index, caught.value.size, caught.value.limit) == (2, 7, 6)
    assert events.validate(encode([b"", b""]), 0) == 2


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (0, 4), (2, 1), (4, 4), (sys.maxsize, sys.maxsize)])
def test_events_outside_of_a_batch(first: int, last: int) -> None:
    body = encode([b"a", b"b", b"c"])
    for part in (events.slice, events.sub_batch):
        with pytest.raises(UsageError, match=f"events {first} to {last} are outside of a batch of 3"):
            part(body, first, last)


# --- lines -----------------------------------------------------------------------------------


def lines_of(data: bytes, start: int, count_max: int, bytes_max: int) -> tuple[bytes, int, int]:
    """What build_lines must answer."""
    lines, total = [], 0
    while len(lines) < count_max and (newline := data.find(b"\n", start)) >= 0:
        line = data[start:newline]
        if total + len(line) > bytes_max:
            break
        lines.append(line)
        total += len(line)
        start = newline + 1
    return encode(lines), len(lines), start


@given(
    data=st.lists(st.sampled_from((b"\n", b"a", b"\r\n", b"\0", b"longer"))).map(b"".join),
    count_max=st.integers(0, 10),
    bytes_max=st.integers(0, 40),
    pick=st.randoms(use_true_random=False),
)
def test_lines_become_events(data: bytes, count_max: int, bytes_max: int, pick: random.Random) -> None:
    for start in (0, pick.randrange(len(data) + 1)):
        assert events.build_lines(data, start, count_max, bytes_max) == lines_of(data, start, count_max, bytes_max)


def test_all_lines_of_a_text_in_batches() -> None:
    source = random.Random(3)
    lines = [bytes(source.choices(b"abc\0\xff", k=source.choice((0, 1, 50, 3000)))) for _ in range(500)]
    data, start, found = b"\n".join(lines) + b"\n", 0, []
    while start < len(data):
        body, count, start = events.build_lines(data, start, 64, 10_000)
        assert 0 < count <= 64 and events.validate(body) == count
        found += events.slice(body, 0, count)
    assert found == lines
    for start in (-1, len(data) + 1):
        with pytest.raises(UsageError, match=f"start {start} is outside"):
            events.build_lines(data, start, 1, 1)


# --- malformed batches -----------------------------------------------------------------------

READERS: list[Callable[[bytes], object]] = [
    events.validate,
    events.join,
    lambda body: events.slice(body, 0, 0),
    lambda body: events.sub_batch(body, 0, 0),
    lambda body: events.concat([body, encode([])]),
]


def altered(at: int, value: int) -> bytes:
    """A batch of three events with one word of its table changed."""
    body = bytearray(encode([b"aa", b"bb", b"cc"]))
    struct.pack_into("<I", body, at, value)
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        *((encode([b"aa", b"b"])[:length], "shorter") for length in range(24)),
        (struct.pack("<II", (1 << 32) - 1, 0) + bytes(100), "shorter"),
        (altered(0, 4), "shorter"),
        (altered(0, 1000), "shorter"),
        (altered(0, 2), "not zero"),
        (altered(0, 0), "not zero"),
        (altered(4, 1), "not zero"),
        (altered(8, 1), "ascend"),
        (altered(12, 5), "ascend"),
        (altered(16, 1), "ascend"),
        (altered(16, 7), "ascend"),
        (altered(16, (1 << 32) - 1), "ascend"),
        (altered(20, 5), "ascend"),
        (altered(20, 7), "ascend"),
        (encode([b"aa", b"b"])[:-1], "ascend"),
        (encode([b"aa", b"b"]) + b"c", "ascend"),
        (encode([b"a"] * 2)[:20] + b"\1" + encode([b"a"] * 2)[21:], "not zero"),
    ],
)
def test_a_malformed_batch_is_refused_by_every_reader(body: bytes, why: str) -> None:
    assert decode(body) == why
    for read in READERS:
        refused(lambda read=read: read(body), why)  # type: ignore[misc]


def test_count_asks_for_a_table_only() -> None:
    assert events.count(encode([b"a"])) == 1
    assert events.count(altered(0, 1000)) == 1000
    refused(lambda: events.count(bytes(11)), "shorter than 12 bytes")


@given(items=ANY_EVENTS, damage=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_is_judged_as_the_twin_does(items: list[bytes], damage: list[tuple[int, int]]) -> None:
    body = bytearray(encode(items))
    for at, value in damage:
        body[at % len(body)] = value
    check(bytes(body))


@given(body=st.binary(max_size=100))
def test_noise_is_judged_as_the_twin_does(body: bytes) -> None:
    check(body)


@given(words=st.lists(st.integers(0, 6), min_size=3, max_size=9), payload=st.binary(max_size=8))
def test_small_tables_are_judged_as_the_twin_does(words: list[int], payload: bytes) -> None:
    check(struct.pack(f"<{len(words)}I", *words) + payload)


def check(body: bytes) -> None:
    expected = decode(body)
    for read in READERS:
        if isinstance(expected, str):
            refused(lambda read=read: read(body), expected)  # type: ignore[misc]
        else:
            read(body)
    if not isinstance(expected, str):
        assert events.slice(body, 0, len(expected)) == expected


def test_every_flip_in_the_table_is_judged_as_the_twin_does() -> None:
    body = bytearray(encode([b"event %d" % i for i in range(5)] + [b""]))
    for at in range(40):
        for bit in range(8):
            body[at] ^= 1 << bit
            check(bytes(body))
            body[at] ^= 1 << bit


# --- batches of requests ---------------------------------------------------------------------

REQUESTS = st.lists(
    st.builds(
        SubRequest,
        client=st.binary(min_size=16, max_size=16),
        session=st.integers(0, (1 << 64) - 1),
        request=st.integers(0, (1 << 64) - 1),
        operation=st.integers(0, 255),
        events=st.integers(0, (1 << 32) - 1),
        body=st.binary(max_size=30),
    ),
    max_size=8,
)


@given(requests=REQUESTS)
def test_requests_are_packed_and_unpacked(requests: list[SubRequest]) -> None:
    body = events.pack_requests(requests)
    assert body == encode_requests(requests)
    assert events.unpack_requests(body) == requests
    assert events.pack_requests(events.unpack_requests(body)) == body


def test_bodies_of_requests_are_read_only_views() -> None:
    buffer = bytearray(encode_requests([SubRequest(CLIENT, 1, 2, 128, 3, b"abc"), SubRequest(CLIENT, 1, 3, 2, 0, b"")]))
    first, second = events.unpack_requests(buffer)
    assert isinstance(first.body, memoryview) and first.body.readonly and first.body.obj is buffer
    assert (first.client, first.session, first.request, first.operation, first.events) == (CLIENT, 1, 2, 128, 3)
    assert second.body == b""
    wide = array.array("I", bytes(buffer))
    assert events.unpack_requests(wide)[0].body == b"abc"  # type: ignore[arg-type]
    del first, second
    buffer.append(0)


@pytest.mark.parametrize("client", [b"", bytes(15), bytes(17)])
def test_a_client_has_16_bytes(client: bytes) -> None:
    with pytest.raises(UsageError, match=f"a client id has 16 bytes, not {len(client)}"):
        events.pack_requests([SubRequest(client, 1, 1, 128, 1, b"")])


@pytest.mark.parametrize("name", ["session", "request", "operation", "events"])
def test_a_number_beyond_its_field(name: str) -> None:
    for value in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            events.pack_requests([SubRequest(CLIENT, 1, 1, 128, 1, b"")._replace(**{name: value})])


TWO = encode_requests([SubRequest(CLIENT, 1, 2, 128, 3, b"abc"), SubRequest(CLIENT, 4, 5, 129, 6, b"12345678")])


def requests_with(at: int, code: str, value: int) -> bytes:
    body = bytearray(TWO)
    struct.pack_into(code, body, at, value)
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        *((TWO[:length], "shorter than 8") for length in range(8)),
        *((TWO[:length], "can not hold 2") for length in (8, 50, 103)),
        *((TWO[:length], "request 0 is cut short") for length in (104, 111)),
        *((TWO[:length], "request 1 is cut short") for length in (112, 119)),
        (TWO + b"\0", "1 bytes follow"),
        (requests_with(0, "<I", 1), "follow the last request|not zero"),
        (requests_with(0, "<I", 3), "can not hold|cut short|not zero"),
        (requests_with(0, "<I", (1 << 32) - 1), "can not hold 4294967295"),
        (requests_with(4, "<I", 1), "can not hold"),
        *((requests_with(at, "<B", 1), "reserved bytes of request 0") for at in range(49, 56)),
        *((requests_with(at, "<B", 1), "reserved bytes of request 1") for at in range(97, 104)),
        *((requests_with(at, "<B", 1), "padding after request 0") for at in range(107, 112)),
        (requests_with(44, "<I", 9), "padding after request 0"),
        (requests_with(44, "<I", (1 << 32) - 1), "request 0 is cut short"),
        (requests_with(92, "<I", 0), "8 bytes follow"),
    ],
)
def test_malformed_requests_are_refused(body: bytes, why: str) -> None:
    refused(lambda: events.unpack_requests(body), why)


@given(requests=REQUESTS, damage=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_requests_are_refused_or_are_the_requests_they_say(
    requests: list[SubRequest], damage: list[tuple[int, int]]
) -> None:
    body = bytearray(encode_requests(requests))
    for at, value in damage:
        body[at % len(body)] = value
    try:
        found = events.unpack_requests(bytes(body))
    except FrameError as error:
        assert error.reason is FrameReason.BAD_SIZE
    else:
        assert encode_requests(found) == body  # one form for each list of requests


ROUND = """
from kimberlite._fast import events
from kimberlite._fast.events import SubRequest
from kimberlite.errors import KimberliteError
client = bytes(16)

def round():
    body = events.build([b"a" * 50, bytearray(b"b"), memoryview(b"c")] * 20)
    events.build(iter([b"a"])), events.build_lines(b"a\\nb\\nc", 0, 10, 100)
    events.validate(body), events.count(body), events.slice(body, 3, 40), events.sub_batch(body, 3, 40)
    events.join(body), events.concat([body, bytearray(body)])
    packed = events.pack_requests([SubRequest(client, 1 << 60, 1 << 60, 128, 1, bytearray(b"body"))] * 5)
    events.unpack_requests(packed)
    for wrong in (lambda: events.build([b"", memoryview(b"abcd")[::2]]), lambda: events.validate(body + b"c"),
                  lambda: events.validate(body, 10), lambda: events.slice(body, 0, 100), lambda: events.join(b""),
                  lambda: events.concat([body, b""]), lambda: events.unpack_requests(packed[:-1]),
                  lambda: events.pack_requests([SubRequest(b"", 1, 1, 1, 1, b"")])):
        try:
            wrong()
        except (KimberliteError, BufferError):
            pass
        else:
            raise SystemExit("not refused")
"""


def test_nothing_leaks(bytes_kept: Any) -> None:
    assert bytes_kept(ROUND, 2000) < 2000  # less than a byte a round


if sys.version_info >= (3, 12):  # an object of Python has no buffer before

    class Changing:
        """An event that changes the list it stands in when its buffer is asked for the second time: after the sizes."""

        def __init__(self, change: Callable[[], object]) -> None:
            self.change = change
            self.asked = 0

        def __buffer__(self, flags: int, /) -> memoryview:
            self.asked += 1
            if self.asked == 2:
                self.change()
            return memoryview(b"1234")

    def test_a_list_that_changes_while_a_batch_is_built() -> None:
        for change in (
            lambda items: items.append(b"more" * 100),
            lambda items: items.pop(),
            lambda items: items.__setitem__(-1, b"longer"),
        ):
            items: list[bytes | Changing] = []
            items += [Changing(lambda items=items, change=change: change(items)), b"end"]
            with pytest.raises(UsageError, match="while the batch was built"):
                events.build(items)  # type: ignore[arg-type]
