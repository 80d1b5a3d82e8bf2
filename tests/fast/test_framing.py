"""Frames against a twin in Python: the layout, every reason for a refusal, many frames in one buffer.

The twin is written from the table FIELDS with struct and the xxhash package. FIELDS and the
digests in PINNED pin format version 1: what was written once must be read for ever.
"""

from __future__ import annotations

import array
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kimberlite._fast import framing
from kimberlite._fast.framing import HEADER_SIZE, Header, decode_header, decode_headers, encode_into, make_header, parse
from kimberlite.errors import FrameError, UsageError
from kimberlite.types import NO_REPLICA, RELEASE, ZERO16, Command, FrameReason

# name, offset, code of struct. Gaps: magic "KMBL" at 48, zeros from 208 to the end.
FIELDS = {
    "checksum": (0, "16s"),
    "checksum_body": (16, "16s"),
    "cluster": (32, "16s"),
    "magic": (48, "4s"),
    "version": (52, "<H"),
    "command": (54, "<B"),
    "replica": (55, "<B"),
    "size": (56, "<I"),
    "release": (60, "<I"),
    "epoch": (64, "<I"),
    "operation": (68, "<B"),
    "flags": (69, "<B"),
    "reason": (70, "<H"),
    "view": (72, "<Q"),
    "op": (80, "<Q"),
    "commit": (88, "<Q"),
    "parent": (96, "16s"),
    "client": (112, "16s"),
    "session": (128, "<Q"),
    "request": (136, "<Q"),
    "timestamp": (144, "<Q"),
    "position": (152, "<Q"),
    "count": (160, "<I"),
    "latency_us": (164, "<I"),
    "context": (168, "16s"),
    "log_view": (184, "<Q"),
    "checkpoint_op": (192, "<Q"),
    "nonce": (200, "<Q"),
}
LATER = {"trace": (208, "25s"), "principal": (233, "<Q"), "birth_tag": (241, "<Q")}  # may hold anything by now
END = 249
FREE = tuple(
    name for name in FIELDS if name not in ("checksum", "checksum_body", "magic", "version", "size", "release")
)
CLUSTER = bytes(range(100, 116))
OTHER = bytes(range(16))
FRAME_MAX = 1 << 20


# --- the twin --------------------------------------------------------------------------------


def seal(raw: bytearray) -> bytes:
    """`raw` with a header checksum that is right."""
    raw[:16] = xxhash.xxh3_128_digest(bytes(raw[16:HEADER_SIZE]))
    return bytes(raw)


def encode(body: bytes, **fields: int | bytes) -> bytes:
    """The frame that make_header and encode_into must make."""
    raw = bytearray(HEADER_SIZE)
    fields = {"replica": NO_REPLICA, **fields}
    fields |= {"magic": b"KMBL", "version": 1, "release": RELEASE, "size": HEADER_SIZE + len(body)}
    fields["checksum_body"] = xxhash.xxh3_128_digest(body)
    for name, value in fields.items():
        struct.pack_into(FIELDS[name][1], raw, FIELDS[name][0], value)
    return seal(raw) + body


def field(data: bytes, name: str) -> int | bytes:
    offset, code = FIELDS[name]
    [value] = struct.unpack_from(code, data, offset)
    assert isinstance(value, int | bytes)
    return value


def judge_header(data: bytes, frame_max: int) -> FrameReason | None:
    if len(data) < HEADER_SIZE:
        return FrameReason.TRUNCATED
    if field(data, "magic") != b"KMBL":
        return FrameReason.BAD_MAGIC
    if field(data, "checksum") != xxhash.xxh3_128_digest(data[16:HEADER_SIZE]):
        return FrameReason.BAD_HEADER_CHECKSUM
    if field(data, "version") != 1:
        return FrameReason.BAD_VERSION
    if field(data, "command") == 0:
        return FrameReason.BAD_COMMAND
    if not HEADER_SIZE <= int(field(data, "size")) <= frame_max:
        return FrameReason.BAD_SIZE
    if any(data[END:HEADER_SIZE]):
        return FrameReason.BAD_RESERVED
    return None


@dataclass
class Parsed:
    frames: list[tuple[bytes, bytes]]  # raw header, body
    end: int
    need: int = 0
    reason: FrameReason | None = None


def judge(data: bytes, start: int, end: int, frame_max: int, cluster: bytes | None) -> Parsed:
    """What parse must answer, in the slow way: one field at a time."""
    frames: list[tuple[bytes, bytes]] = []
    while start < end:
        rest = data[start:end]
        reason = judge_header(rest, frame_max)
        if reason is FrameReason.TRUNCATED:
            return Parsed(frames, start)
        if reason is None and cluster is not None and field(rest, "cluster") != cluster:
            reason = FrameReason.WRONG_CLUSTER
        if reason is not None:
            return Parsed(frames, start, reason=reason)
        size = int(field(rest, "size"))
        if len(rest) < size:
            return Parsed(frames, start, need=size)
        body = rest[HEADER_SIZE:size]
        if field(rest, "checksum_body") != xxhash.xxh3_128_digest(body):
            return Parsed(frames, start, reason=FrameReason.BAD_BODY_CHECKSUM)
        frames.append((rest[:HEADER_SIZE], body))
        start += size
    return Parsed(frames, start)


def parsed(data: bytes | bytearray, start: int, end: int, frame_max: int, cluster: bytes | None) -> Parsed:
    """What parse answers, as the twin puts it."""
    try:
        frames, consumed, need = parse(data, start, end, frame_max, cluster)
    except FrameError as error:
        assert isinstance(error.frames, list) and isinstance(error.offset, int)
        frames, consumed, need, reason = error.frames, error.offset, 0, error.reason
    else:
        reason = None
    assert reason is None or isinstance(reason, FrameReason)
    return Parsed([(header.raw, bytes(body)) for header, body in frames], consumed, need, reason)


def agree(data: bytes | bytearray, start: int, end: int, frame_max: int, cluster: bytes | None) -> Parsed:
    answer = parsed(data, start, end, frame_max, cluster)
    assert answer == judge(bytes(data), start, end, frame_max, cluster)
    return answer


def frame(body: bytes = b"", **fields: int | bytes) -> bytes:
    return encode(body, **{"cluster": CLUSTER, "command": Command.PREPARE, **fields})


def values() -> st.SearchStrategy[dict[str, int | bytes]]:
    """Any value of every field a caller sets."""
    strategies: dict[str, st.SearchStrategy[int] | st.SearchStrategy[bytes] | st.SearchStrategy[Command]] = {}
    for name in FREE:
        code = FIELDS[name][1]
        if code == "16s":
            strategies[name] = st.binary(min_size=16, max_size=16)
        else:
            strategies[name] = st.integers(0, (1 << 8 * struct.calcsize(code)) - 1)
    return st.fixed_dictionaries({**strategies, "command": st.sampled_from(Command)})  # type: ignore[return-value]


# --- one header ------------------------------------------------------------------------------


def test_fields_fill_the_header_without_gaps() -> None:
    at = 0
    for offset, code in (*FIELDS.values(), *LATER.values()):
        assert offset == at
        at += struct.calcsize(code)
    assert at == END < HEADER_SIZE == 256


# Format version 1: never to be edited. The root of a cluster's chain, and a prepare that uses every field.
PINNED = {
    "root": "36946234a94e6be8ee944fd54f508ba5",
    "prepare": "9cb23dc8cce6788bc72621c7666f15d0",
}


def test_a_command_of_a_later_release_is_a_frame() -> None:
    for number in sorted(set(range(1, 256)) - set(Command)):
        parsed = parse(altered(command=number), 0, HEADER_SIZE + 4, FRAME_MAX, CLUSTER)
        assert [(header.command, bytes(body)) for header, body in parsed[0]] == [(number, b"body")]


def test_what_later_releases_say_in_a_header_is_passed_over() -> None:
    for at in range(LATER["trace"][0], END):
        assert decode_header(reserved(at)).raw == reserved(at)[:HEADER_SIZE]


def test_frames_of_format_version_1_are_what_they_were() -> None:
    root = make_header(cluster=CLUSTER, command=Command.PREPARE, replica=0, operation=1)
    fields = {name: (bytes([i] * 16) if FIELDS[name][1] == "16s" else i) for i, name in enumerate(FREE, 1)}
    prepare = make_header(b"a body", **{**fields, "command": Command.PREPARE})
    assert {"root": root.checksum.hex(), "prepare": prepare.checksum.hex()} == PINNED


@given(fields=values(), body=st.binary(max_size=300))
def test_a_header_is_encoded_and_decoded_as_the_twin_does(fields: dict[str, int | bytes], body: bytes) -> None:
    header = make_header(body, **fields)
    expected = encode(body, **fields)
    assert header.raw == expected[:HEADER_SIZE]
    for decoded in (header, decode_header(expected)):
        for name in FIELDS:
            if name not in ("magic", "version"):
                assert getattr(decoded, name) == field(expected, name), name
    buffer = bytearray(len(expected) + 7)
    assert encode_into(buffer, 5, header, body) == 5 + len(expected)
    assert buffer == bytes(5) + expected + bytes(2)
    assert agree(buffer, 5, 5 + len(expected), FRAME_MAX, None).frames == [(header.raw, body)]


def test_headers_are_equal_when_their_identity_is() -> None:
    one, same, other = (make_header(b"x", cluster=CLUSTER, command=Command.PREPARE, op=op) for op in (1, 1, 2))
    assert one == same and hash(one) == hash(same) and one != other
    assert one != one.raw and one != 1
    assert len({one, same, other}) == 2
    assert decode_header(one.raw) == one
    assert "prepare" in repr(one) and "op=1" in repr(one)
    with pytest.raises(AttributeError):
        one.op = 3
    with pytest.raises(TypeError, match="make_header or decode_header"):
        Header()


def test_a_checksum_that_is_given_is_not_computed() -> None:
    digest = xxhash.xxh3_128_digest(b"body")
    given_one = make_header(b"body", cluster=CLUSTER, command=Command.REQUEST, checksum_body=digest)
    assert given_one == make_header(b"body", cluster=CLUSTER, command=Command.REQUEST)
    assert make_header(b"body", cluster=CLUSTER, command=Command.REQUEST, checksum_body=OTHER).checksum_body == OTHER


@pytest.mark.parametrize("name", [name for name in FREE if FIELDS[name][1] == "16s"] + ["checksum_body"])
@pytest.mark.parametrize("value", [b"", bytes(15), bytes(17), bytearray(16), "x" * 16, None])
def test_an_identity_has_16_bytes(name: str, value: object) -> None:
    if name == "checksum_body" and value is None:
        return  # stands for: compute it
    with pytest.raises(UsageError, match=f"{name} must be 16 bytes"):
        make_header(b"", **{"cluster": CLUSTER, "command": Command.PREPARE, name: value})


@pytest.mark.parametrize("name", [name for name in FREE if FIELDS[name][1] != "16s"])
def test_a_number_beyond_its_field(name: str) -> None:
    for value in (-1, 1 << 8 * struct.calcsize(FIELDS[name][1])):
        with pytest.raises(OverflowError):
            make_header(b"", **{"cluster": CLUSTER, "command": Command.PREPARE, name: value})


def test_a_body_beyond_any_frame() -> None:
    most = (64 << 20) - HEADER_SIZE
    body = memoryview(bytes(most + 1))
    with pytest.raises(UsageError, match=f"{most + 1} bytes is above {most}"):
        make_header(body, cluster=CLUSTER, command=Command.PREPARE, checksum_body=ZERO16)
    largest = make_header(body[:-1], cluster=CLUSTER, command=Command.PREPARE, checksum_body=ZERO16)
    assert decode_header(largest.raw).size == 64 << 20  # what is made can be read


# --- refusals --------------------------------------------------------------------------------


def altered(**fields: int | bytes) -> bytes:
    """A sealed frame with fields that make_header would never write."""
    raw = bytearray(frame(b"body", op=7))
    for name, value in fields.items():
        struct.pack_into(FIELDS[name][1], raw, FIELDS[name][0], value)
    return seal(raw) if "checksum" not in fields else bytes(raw)


def reserved(offset: int) -> bytes:
    raw = bytearray(frame(b"body"))
    raw[offset] = 1
    return seal(raw)


REFUSED: dict[FrameReason, list[Callable[[], bytes]]] = {
    FrameReason.BAD_MAGIC: [
        lambda: b"GET / HTTP/1.1\r\n" * 20,
        lambda: bytes(400),
        lambda: altered(magic=b"KMBM"),
        lambda: altered(magic=b"kmbl"),
    ],
    FrameReason.BAD_VERSION: [lambda: altered(version=0), lambda: altered(version=2), lambda: altered(version=65535)],
    FrameReason.BAD_HEADER_CHECKSUM: [lambda: altered(checksum=ZERO16), lambda: altered(checksum=b"\xff" * 16)],
    FrameReason.BAD_BODY_CHECKSUM: [
        lambda: frame(b"body")[:-1] + b"Y",
        lambda: altered(checksum_body=ZERO16),
    ],
    FrameReason.BAD_SIZE: [
        lambda: altered(size=0),
        lambda: altered(size=HEADER_SIZE - 1),
        lambda: altered(size=FRAME_MAX + 1),
        lambda: altered(size=(1 << 32) - 1),
    ],
    FrameReason.BAD_RESERVED: [lambda at=at: reserved(at) for at in range(END, HEADER_SIZE)],
    FrameReason.BAD_COMMAND: [lambda: altered(command=0)],
    FrameReason.WRONG_CLUSTER: [lambda: frame(b"body", cluster=OTHER), lambda: frame(b"body", cluster=ZERO16)],
}
CASES = [(reason, i) for reason, made in REFUSED.items() for i in range(len(made))]


def test_every_reason_but_a_short_header_is_covered() -> None:
    assert set(REFUSED) | {FrameReason.TRUNCATED} == set(FrameReason)


@pytest.mark.parametrize(("reason", "number"), CASES, ids=[f"{reason.name}-{i}" for reason, i in CASES])
def test_a_bad_frame_is_refused_with_its_reason(reason: FrameReason, number: int) -> None:
    bad = REFUSED[reason][number]()
    good = frame(b"good", op=1)
    data = good + bad + good
    answer = agree(data, 0, len(data), FRAME_MAX, CLUSTER)
    assert (answer.reason, answer.end) == (reason, len(good))
    assert answer.frames == [(good[:HEADER_SIZE], b"good")]  # what came before it is not lost
    with pytest.raises(FrameError, match=f"offset {len(good)} are no valid frame") as caught:
        parse(data, 0, len(data), FRAME_MAX, CLUSTER)
    assert caught.value.offset == len(good)
    if reason in (FrameReason.BAD_BODY_CHECKSUM, FrameReason.WRONG_CLUSTER):
        assert decode_header(data, len(good)).op in (0, 7)  # it looks at the header alone, of any cluster
    else:
        with pytest.raises(FrameError) as caught:
            decode_header(data, len(good), FRAME_MAX)
        assert (caught.value.reason, caught.value.offset) == (reason, len(good))


def test_a_short_header() -> None:
    good = frame()
    for length in range(HEADER_SIZE):
        with pytest.raises(FrameError, match="cut short") as caught:
            decode_header(good[:length])
        assert caught.value.reason is FrameReason.TRUNCATED


def test_every_flipped_bit_is_found() -> None:
    good = frame(b"a body of some bytes", op=3, view=2)
    reasons = set()
    for at in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            answer = agree(bad, 0, len(bad), FRAME_MAX, CLUSTER)
            assert answer.reason is not None and answer.frames == [], (at, bit)
            reasons.add(answer.reason)
    assert reasons == {FrameReason.BAD_MAGIC, FrameReason.BAD_HEADER_CHECKSUM, FrameReason.BAD_BODY_CHECKSUM}


# --- many frames in one buffer ---------------------------------------------------------------


def test_many_frames_out_of_one_buffer() -> None:
    source = random.Random(7)
    bodies = [source.randbytes(source.choice((0, 1, 7, 128, 1000, 5000))) for _ in range(200)]
    data = b"".join(frame(body, op=i) for i, body in enumerate(bodies))
    frames, consumed, need = parse(data, 0, len(data), FRAME_MAX, CLUSTER)
    assert (consumed, need) == (len(data), 0)
    assert [header.op for header, _ in frames] == list(range(200))
    assert [bytes(body) for _, body in frames] == bodies


def test_every_cut_of_a_buffer() -> None:
    """A socket delivers bytes, not frames: wherever it stops, nothing is lost and nothing is asked twice."""
    data = frame(b"first", op=1) + frame(op=2) + frame(b"third" * 20, op=3)
    for end in range(len(data) + 1):
        answer = agree(data, 0, end, FRAME_MAX, CLUSTER)
        assert answer.reason is None
        if answer.end < len(data) and end - answer.end >= HEADER_SIZE:
            assert answer.need > end - answer.end
        rest = agree(data, answer.end, len(data), FRAME_MAX, CLUSTER)
        assert len(answer.frames) + len(rest.frames) == 3


def test_bodies_are_read_only_views_of_the_buffer() -> None:
    buffer = bytearray(frame(b"first", op=1) + frame(op=2) + frame(b"third", op=3))
    frames, _, _ = parse(buffer, 0, len(buffer), FRAME_MAX)
    bodies = [body for _, body in frames]
    assert isinstance(bodies[0], memoryview) and bodies[0].readonly and bodies[0].obj is buffer
    assert bodies[1] == b"" and type(bodies[1]) is bytes
    with pytest.raises(BufferError):
        buffer.append(0)  # a view is held
    buffer[HEADER_SIZE : HEADER_SIZE + 5] = b"FIRST"
    assert bodies[0] == b"FIRST"
    del frames, bodies
    buffer.append(0)


def test_a_frame_without_body_holds_no_view() -> None:
    buffer = bytearray(frame(op=2))
    frames, _, _ = parse(buffer, 0, len(buffer), FRAME_MAX)
    buffer.append(0)
    assert frames[0][0].op == 2


def test_the_limit_of_a_frame() -> None:
    for size in (HEADER_SIZE, HEADER_SIZE + 1, 4096):
        data = frame(bytes(size - HEADER_SIZE))
        assert agree(data, 0, size, size, None).frames != []
        assert agree(data, 0, size, size - 1, None).reason is FrameReason.BAD_SIZE
        # The limit speaks before the rest has come: nobody waits for a gigabyte.
        assert agree(data, 0, HEADER_SIZE, size - 1, None).reason is FrameReason.BAD_SIZE


def test_a_view_of_wide_items_counts_bytes() -> None:
    data = frame(b"12345678", op=1)
    frames, consumed, _ = parse(array.array("I", data), 0, len(data), FRAME_MAX)  # type: ignore[arg-type]
    assert consumed == len(data) and bytes(frames[0][1]) == b"12345678"


@pytest.mark.parametrize(("start", "end"), [(-1, 10), (5, 4), (0, 257), (300, 300), (sys.maxsize, sys.maxsize)])
def test_bytes_outside_of_the_buffer(start: int, end: int) -> None:
    with pytest.raises(UsageError, match="outside of a buffer of 256 bytes"):
        parse(frame(), start, end, FRAME_MAX)


def test_an_empty_range_holds_no_frame() -> None:
    assert parse(frame(), 256, 256, FRAME_MAX) == ([], 256, 0)
    assert parse(b"", 0, 0, FRAME_MAX) == ([], 0, 0)


@pytest.mark.parametrize("cluster", [b"", bytes(15), bytearray(16), "x" * 16])
def test_a_cluster_of_another_length(cluster: bytes) -> None:
    with pytest.raises(UsageError, match="cluster must be 16 bytes"):
        parse(frame(), 0, HEADER_SIZE, FRAME_MAX, cluster)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames, most of them good, with damage that is sealed over now and then."""
    data = bytearray()
    for _ in range(draw(st.integers(1, 5))):
        body = draw(st.binary(max_size=60))
        made = bytearray(frame(body, cluster=draw(st.sampled_from((CLUSTER, CLUSTER, OTHER)))))
        for _ in range(draw(st.integers(0, 1))):
            at = draw(st.integers(0, len(made) - 1))
            made[at] = draw(st.integers(0, 255))
            if draw(st.booleans()):
                seal(made)
        data += made
    return bytes(data)


@given(data=streams(), frame_max=st.sampled_from((HEADER_SIZE, 290, FRAME_MAX)), pick=st.randoms(use_true_random=False))
def test_any_stream_is_judged_as_the_twin_does(data: bytes, frame_max: int, pick: random.Random) -> None:
    start = pick.choice((0, pick.randrange(len(data) + 1)))
    end = pick.choice((len(data), pick.randrange(start, len(data) + 1)))
    for cluster in (None, CLUSTER):
        agree(data, start, end, frame_max, cluster)


@given(data=st.binary(max_size=600), tail=st.binary(max_size=10))
def test_noise_is_refused_or_asks_for_more(data: bytes, tail: bytes) -> None:
    agree(data, 0, len(data), FRAME_MAX, None)
    prefix = b"\0" * 48 + b"KMBL" + data
    agree(prefix + tail, 0, len(prefix), FRAME_MAX, None)


# --- the other functions ---------------------------------------------------------------------


def test_headers_without_bodies() -> None:
    headers = [make_header(b"x" * i, cluster=CLUSTER, command=Command.PREPARE, op=i) for i in range(5)]
    raw = b"".join(header.raw for header in headers)
    assert decode_headers(raw) == headers
    assert decode_headers(b"") == []
    with pytest.raises(FrameError) as caught:
        decode_headers(raw[:-1])
    assert (caught.value.reason, caught.value.offset) == (FrameReason.TRUNCATED, 4 * HEADER_SIZE)
    bad = bytearray(raw)
    bad[2 * HEADER_SIZE + 90] ^= 1
    with pytest.raises(FrameError) as caught:
        decode_headers(bad)
    assert (caught.value.reason, caught.value.offset) == (FrameReason.BAD_HEADER_CHECKSUM, 2 * HEADER_SIZE)


@pytest.mark.parametrize("offset", [-1, 257, sys.maxsize])
def test_a_header_outside_of_the_buffer(offset: int) -> None:
    with pytest.raises(UsageError, match="outside of a buffer of 256 bytes"):
        decode_header(frame(), offset)


def test_verify_body() -> None:
    header = make_header(b"body", cluster=CLUSTER, command=Command.PREPARE)
    assert framing.verify_body(header, b"body") and framing.verify_body(header, memoryview(b"body"))
    for other in (b"Body", b"bod", b"body\0", b""):
        assert not framing.verify_body(header, other)
    with pytest.raises(TypeError):
        framing.verify_body(None, b"")  # type: ignore[arg-type]


def test_encode_into_writes_a_whole_frame_or_nothing() -> None:
    header = make_header(b"body", cluster=CLUSTER, command=Command.PREPARE)
    buffer = bytearray(b"\xee" * 300)
    for offset in (-1, 41, 300, 301, sys.maxsize, -sys.maxsize):
        with pytest.raises(BufferError, match="260 bytes does not fit"):
            encode_into(buffer, offset, header, b"body")
    for body in (b"", b"bod", b"body\0"):
        with pytest.raises(UsageError, match="of a body of 4 bytes"):
            encode_into(buffer, 0, header, body)
    with pytest.raises(BufferError):
        encode_into(bytes(300), 0, header, b"body")  # type: ignore[arg-type]
    assert buffer == b"\xee" * 300
    assert encode_into(buffer, 40, header, b"body") == 300
    buffer.append(0)  # no view is held


def test_a_body_may_lie_where_the_frame_goes() -> None:
    body = bytes(range(200))
    header = make_header(body, cluster=CLUSTER, command=Command.PREPARE)
    for at in (0, 100, 256, 300):
        buffer = bytearray(700)
        buffer[at : at + 200] = body
        encode_into(buffer, 50, header, memoryview(buffer)[at : at + 200])
        assert agree(buffer, 50, 50 + 456, FRAME_MAX, CLUSTER).frames == [(header.raw, body)]


ROUND = """
from kimberlite._fast.framing import decode_header, decode_headers, encode_into, make_header, parse, verify_body
from kimberlite.errors import FrameError, UsageError
cluster = bytes(16)

def round():
    header = make_header(b"body", cluster=cluster, command=1, op=1 << 60)
    buffer = bytearray(600)
    end = encode_into(buffer, encode_into(buffer, 0, header, b"body"), header, b"body")
    parse(buffer, 0, end, 1000, cluster)
    decode_headers(header.raw * 3), decode_header(header.raw).raw
    verify_body(header, b"body"), repr(header), hash(header)
    bad = bytearray(buffer)
    bad[500] ^= 1
    for wrong in (lambda: parse(bad, 0, end, 1000), lambda: decode_header(bad, 260), lambda: decode_headers(bytes(256)),
                  lambda: make_header(b"", cluster=b"", command=1), lambda: encode_into(buffer, 500, header, b"body")):
        try:
            wrong()
        except (FrameError, UsageError, BufferError):
            pass
        else:
            raise SystemExit("not refused")
    buffer.append(0)
"""


def test_nothing_leaks(bytes_kept: Any) -> None:
    assert bytes_kept(ROUND, 2000) < 2000  # less than a byte a round
