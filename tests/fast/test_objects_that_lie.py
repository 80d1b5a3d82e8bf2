"""What compiled code is given need not hold what its length says, nor stay what it was while it is looked at.

A length that an object gives is a bound for what follows and nothing more: each of these objects ends in a typed
error, or does no harm, and whoever gave it can go on. Without that they write, or read, past the end of memory:
`make asan` runs these tests with a guard behind every piece of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kimberlite._fast import append, events, framing, metrics
from kimberlite._fast.append import INLINE_ALWAYS, AlignedBuffer, Writer
from kimberlite.errors import UsageError

SECTOR = 4096
CLUSTER = bytes(16)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(fd, 64 * SECTOR)
    yield fd
    os.close(fd)


class Says:
    """A sequence that says it has `length` elements and gives `real`."""

    def __init__(self, length: int, real: list[Any]) -> None:
        self._length = length
        self._real = real

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real)


class Grows:
    """A sequence that has one element when it is asked, and more each time it is gone through."""

    def __init__(self, element: Callable[[int], Any], more: int) -> None:
        self._element = element
        self._more = more
        self._size = 1

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield from map(self._element, range(self._size))
        self._size += self._more


class Number:
    """An integer whose taking runs code: `act` is called when somebody makes a C integer of it."""

    def __init__(self, value: int, act: Callable[[], None]) -> None:
        self._value = value
        self._act = act

    def __index__(self) -> int:
        self._act()
        return self._value

    __int__ = __index__


def buffer(sectors: int = 1) -> memoryview:
    return memoryview(AlignedBuffer(sectors * SECTOR))


def works(writer: Writer, file: int, token: int = 77) -> None:
    """Nothing was written yet, and the writer goes on."""
    assert os.pread(file, 64 * SECTOR, 0) == bytes(64 * SECTOR)
    written = buffer()
    written[:] = b"\x07" * SECTOR
    writer.submit(token, [[(file, SECTOR, written)]])
    writer.flush()
    assert writer.completions() == [token]
    assert os.pread(file, SECTOR, SECTOR) == b"\x07" * SECTOR


# The write engine


@pytest.mark.parametrize("length", [0, 1, 2, 20_001, 1 << 40, (1 << 62) - 1])
def test_a_phase_of_another_length_than_it_says(length: int, file: int) -> None:
    writer = Writer()
    phase: Any = Says(length, [(file, SECTOR * at, buffer()) for at in range(3)])
    with pytest.raises(UsageError, match=r"length says|at most 1048576"):
        writer.submit(1, [phase])
    works(writer, file)


@pytest.mark.parametrize("way", [0, INLINE_ALWAYS])
def test_a_phase_that_yields_ever_more(way: int, file: int) -> None:
    writer = Writer(inline_below_ns=way)
    phase: Any = Grows(lambda at: (file, SECTOR * at, buffer()), 20_000)
    for _ in range(3):
        with pytest.raises(UsageError, match="length says"):
            writer.submit(1, [phase, phase])
    works(writer, file)


def test_lengths_whose_sum_does_not_fit_a_machine_word(file: int) -> None:
    writer = Writer()
    phases: Any = [Says((1 << 63) - 1, []), Says((1 << 63) - 1, []), [(file, 0, buffer())] * 4]
    with pytest.raises(UsageError, match="at most 1048576"):
        writer.submit(1, phases)
    works(writer, file)


@pytest.mark.parametrize("more", [5_000, -1])
def test_more_or_fewer_phases_than_when_they_were_counted(more: int, file: int) -> None:
    class Phases(Grows):
        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()
            self._size = max(self._size, 0)

    writer = Writer()
    phases: Any = Phases(lambda at: [(file, SECTOR * (at % 64), buffer())], more)
    with pytest.raises(UsageError, match="phases changed"):
        writer.submit(1, phases)
    works(writer, file)


def test_a_phase_that_changes_while_its_numbers_are_taken(file: int) -> None:
    writer = Writer()
    phase: list[Any] = []
    phase.append((Number(file, lambda: phase.extend([(file, 0, buffer())] * 100)), 0, buffer()))
    with pytest.raises(UsageError, match="phases changed"):
        writer.submit(1, [phase])
    works(writer, file)
    emptied: list[Any] = [
        (file, 0, buffer()),
        (Number(file, lambda: emptied.clear()), 0, buffer()),
        (file, 0, buffer()),
    ]
    with pytest.raises(UsageError, match="phases changed"):
        writer.submit(1, [emptied])


def test_a_token_that_comes_into_use_while_its_phases_are_read(file: int) -> None:
    """The buffers of the first of the two would be let go while the disk thread writes them."""
    writer = Writer()
    inner: list[Any] = [(file, SECTOR, buffer())]
    outer: list[Any] = [(Number(file, lambda: writer.submit(1, [inner])), 0, buffer())]
    with pytest.raises(UsageError, match="token 1 is in use"):
        writer.submit(1, [outer])
    writer.flush()
    assert writer.completions() == [1]


@pytest.mark.parametrize(
    ("offset", "size", "error"),
    [
        (0, 0, UsageError),  # a write of nothing is reported by the kernel as one that failed
        ((1 << 63), SECTOR, UsageError),
        ((1 << 64) - SECTOR, SECTOR, UsageError),
        (-SECTOR, SECTOR, OverflowError),
        (512, SECTOR, UsageError),
        (0, SECTOR - 512, UsageError),
    ],
)
def test_a_write_of_no_possible_place(offset: int, size: int, error: type[Exception], file: int) -> None:
    writer = Writer()
    with pytest.raises(error):
        writer.submit(1, [[(file, offset, buffer()[:size])]])
    works(writer, file)


def test_buffers_with_gaps_and_buffers_that_are_none(file: int) -> None:
    writer = Writer()
    for given in (buffer(2)[::2], "text", None, 5, [b""]):
        with pytest.raises((BufferError, TypeError)):
            writer.submit(1, [[(file, 0, buffer()), (file, SECTOR, given)]])  # type: ignore[list-item]
    works(writer, file)


def test_a_buffer_can_not_be_resized_before_its_write_is_done(file: int) -> None:
    """A readonly one is as good as another: it is only read."""
    memory = bytearray(3 * SECTOR)
    start = -_address(memory) % SECTOR
    writer = Writer()
    writer.submit(1, [[(file, 0, memoryview(memory)[start : start + SECTOR].toreadonly())]])
    with pytest.raises(BufferError):
        memory.extend(b"more")
    writer.flush()
    assert writer.completions() == [1]
    memory.extend(b"more")


def _address(memory: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_the_yardstick_is_asked_for_nothing(file: int) -> None:
    for count, size in ((0, SECTOR), (1, 0)):
        with pytest.raises(UsageError, match=f"{count} writes of {size} bytes"):
            append.calibrate(file, 0, buffer()[:size], count)


# Batches


class Body:
    """As a request body: says one length, and is no buffer of another one."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


@pytest.mark.parametrize("length", [0, 7, 1 << 29, 1 << 40, (1 << 63) - 1])
def test_request_bodies_whose_length_is_not_that_of_their_buffer(length: int) -> None:
    class Longer(bytearray):
        def __len__(self) -> int:
            return length

    request = (bytes(16), 1, 1, 128, 1, Longer(b"x" * 100))
    with pytest.raises((UsageError, MemoryError)):
        events.pack_requests([request])
    with pytest.raises((UsageError, MemoryError)):
        events.pack_requests([request] * 3)
    with pytest.raises((UsageError, TypeError, MemoryError)):
        events.pack_requests([(bytes(16), 1, 1, 128, 1, Body(length))])


def test_a_request_body_of_words_is_counted_in_bytes() -> None:
    words = memoryview(bytes(64)).cast("Q")
    with pytest.raises(UsageError, match="changed its length"):
        events.pack_requests([(bytes(16), 1, 1, 128, 1, words)])


@pytest.mark.parametrize("client", [None, b"", bytes(15), bytes(17)])
def test_a_client_id_of_another_size(client: Any) -> None:
    with pytest.raises(UsageError, match="a client id has 16 bytes"):
        events.pack_requests([(client, 1, 1, 128, 0, b"")])


def test_no_separator() -> None:
    with pytest.raises(TypeError):
        events.join(events.build([b"a"]), None)  # type: ignore[arg-type]


def test_views_of_words_are_unpacked_as_bytes() -> None:
    packed = events.pack_requests([(bytes(16), 1, 1, 128, 1, events.build([b"abc"]))] * 2)
    found = events.unpack_requests(memoryview(packed + bytes(-len(packed) % 8)).cast("Q"))
    assert [bytes(request.body) for request in found] == [events.build([b"abc"])] * 2


# Frames and metrics


def test_frames_in_a_view_of_words() -> None:
    body = bytes(64)
    header = framing.make_header(body, cluster=CLUSTER, command=1)
    frames, consumed, need = framing.parse(memoryview(header.raw + body).cast("Q"), 0, 320, 1 << 20)
    assert [(found.checksum, bytes(part)) for found, part in frames] == [(header.checksum, body)]
    assert (consumed, need) == (320, 0)


@pytest.mark.parametrize("said", [None, b"x" * 100_000, "no bytes"])
def test_a_name_that_is_encoded_otherwise_the_second_time(said: Any) -> None:
    class Name(str):
        count = 0

        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> Any:
            self.count += 1
            return b"name" if self.count == 1 else said

    with pytest.raises(UsageError, match="is no series"):
        metrics.Region.create(None, [metrics.Series(Name("name"), metrics.Kind.COUNTER)])


def test_numbers_that_change_a_list_while_it_is_recorded() -> None:
    region = metrics.Region.create(None, [metrics.Series("h", metrics.Kind.HISTOGRAM, bounds_ns=(10,))])
    durations: list[Any] = [1, 2]
    durations.append(Number(3, lambda: durations.extend([4] * 1000) if len(durations) < 1000 else None))
    durations.append(Number(5, durations.clear))
    region.histogram(0).record_many(durations)
    (value,) = region.read()
    assert isinstance(value, metrics.HistogramValue) and value.count >= 4
