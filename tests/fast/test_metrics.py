"""The metrics region: what is recorded, what a reader in another process sees, what is refused.

`Twin` is a second reader of the file, written from the drawing at the head of km_metrics.h
with struct and the xxhash package. It pins the layout, and it makes the damaged files.
"""

from __future__ import annotations

import bisect
import gc
import itertools
import math
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kimberlite._fast import metrics
from kimberlite._fast.metrics import HistogramValue, Kind, Refusal, Region, Series
from kimberlite.errors import MetricsFileError, UsageError

CHECKOUT = Path(__file__).parents[2]
C_SOURCES = CHECKOUT / "kimberlite/_fast/c"
COMPILER = shutil.which(os.environ.get("CC", "cc"))

PAGE = 4096
INT64_MAX = (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1
MS, S = 1_000_000, 1_000_000_000
BIN_BOUNDS = metrics.exponential_bins(MS).bounds
BINS = len(BIN_BOUNDS)
BOUNDS = (100_000, 500_000, 1 * MS, 2 * MS, 5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS)

COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
OPERATIONS, SECONDS, VIEW, OFFSET, LATENCY, PLAIN, SHARED = range(7)
SERIES = (
    Series("operations{outcome=ok}", COUNTER),
    Series("cpu_seconds", COUNTER, floating=True),
    Series("view_number", GAUGE),
    Series("clock_offset_ms", GAUGE, floating=True, group=3),
    Series("prepare_latency", HISTOGRAM, bounds_ns=BOUNDS),
    Series("Zeit ohne Grenzen, µs", HISTOGRAM, group=255),
    Series("failures", COUNTER, shared=True, group=3),
)


@pytest.fixture
def region() -> Region:
    return Region.create(None, SERIES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


# --- counters and gauges ---------------------------------------------------------------------


def test_everything_is_zero_at_first(region: Region) -> None:
    nothing = HistogramValue(0, 0, (0,) * 10, {})
    assert region.read() == [0, 0.0, 0, 0.0, nothing, HistogramValue(0, 0, (0,), {}), 0]


@pytest.mark.parametrize("index", [OPERATIONS, SHARED])
def test_a_counter_adds(region: Region, index: int) -> None:
    counter = region.counter(index)
    counter.add()
    counter.add(5)
    counter.add(0)
    assert counter.value() == region.read()[index] == 6
    assert counter.index == index
    counter.add(UINT64_MAX)
    assert counter.value() == 5  # as the C type wraps
    counter.advance_to(UINT64_MAX)
    assert counter.value() == region.read()[index] == UINT64_MAX


def test_a_floating_counter_adds_fractions(region: Region) -> None:
    counter = region.counter(SECONDS)
    counter.add(0.25)
    counter.add(2)
    counter.add()
    assert counter.value() == 3.25
    assert type(region.read()[SECONDS]) is float


def test_a_counter_only_grows(region: Region) -> None:
    whole, fraction = region.counter(OPERATIONS), region.counter(SECONDS)
    whole.advance_to(7)
    whole.advance_to(3)
    fraction.advance_to(1.5)
    fraction.advance_to(0.5)
    for refused in (whole.add, whole.advance_to):
        refused(-1)
        refused(-(1 << 70))
        with pytest.raises(TypeError):
            refused(1.5)
        with pytest.raises(TypeError):
            refused("1")  # type: ignore[arg-type]
    for refused in (fraction.add, fraction.advance_to):
        for value in (-0.5, math.nan, -math.inf, -(10**400)):
            refused(value)
        with pytest.raises(TypeError):
            refused("1")  # type: ignore[arg-type]
    assert (whole.value(), fraction.value()) == (7, 1.5)


@pytest.mark.parametrize("value", [0, 1, -1, INT64_MAX, -INT64_MAX - 1])
def test_a_gauge_holds_any_signed_number(region: Region, value: int) -> None:
    gauge = region.gauge(VIEW)
    gauge.set(value)
    assert gauge.value() == region.read()[VIEW] == value


def test_a_gauge_goes_up_and_down(region: Region) -> None:
    whole, fraction = region.gauge(VIEW), region.gauge(OFFSET)
    whole.add(5)
    whole.add(-7)
    fraction.add(0.5)
    fraction.add(-1.0)
    assert (whole.value(), fraction.value()) == (-2, -0.5)
    with pytest.raises(TypeError):
        whole.set(0.5)
    with pytest.raises(TypeError):
        fraction.set("0.5")  # type: ignore[arg-type]
    assert (whole.value(), fraction.value()) == (-2, -0.5)
    fraction.set(-math.inf)
    assert region.read()[OFFSET] == -math.inf
    fraction.set(math.nan)
    value = fraction.value()
    assert value != value


# --- histograms ------------------------------------------------------------------------------


def bin_of(value: int) -> int:
    return bisect.bisect_left(BIN_BOUNDS, max(0, value))


def model(values: list[int], bounds: tuple[int, ...]) -> HistogramValue:
    """What a histogram must hold, counted slowly. A bucket holds what is at or below its bound."""
    buckets = Tally(bisect.bisect_left(bounds, max(0, value)) for value in values)
    bins = Tally(map(bin_of, values))
    return HistogramValue(
        count=len(values),
        sum_ns=sum(max(0, value) for value in values),
        buckets=tuple(buckets[i] for i in range(len(bounds) + 1)),
        bins=dict(sorted(bins.items())),
    )


@pytest.mark.parametrize("unit", [1, 7, MS, S])
def test_bins_end_at_powers_of_the_eighth_root_of_two(unit: int) -> None:
    """In the unit, exactly: as a native histogram of schema 3 says it."""
    bins = metrics.exponential_bins(unit)
    assert bins.unit_ns == unit and bins.bounds[0] == 0 and bins.bounds[-1] == INT64_MAX and len(bins.bounds) == BINS
    assert bins.bounds[1] == 1  # the shortest duration there is
    for index, bound in enumerate(bins.bounds[1:-1], bins.first):
        # bound <= unit * 2 ** (index / 8) < bound + 1, to the eighth power and without fractions
        power, by = (unit**8 << index, 1) if index >= 0 else (unit**8, 1 << -index)
        assert by * bound**8 <= power < by * (bound + 1) ** 8
    assert bins.first + BINS - 2 >= 8 * math.log2((1 << 40) / unit)  # the last, without its rest, goes as far


def test_bins_are_narrow_enough_for_five_percent() -> None:
    for unit in (MS, S):
        bins = metrics.exponential_bins(unit)
        for number, (low, high) in enumerate(itertools.pairwise(bins.bounds), 1):
            middle = metrics.quantile({number: 1}, 0.5, bins)
            for value in (low + 1, min(high, 1 << 40)):
                assert high == low or abs(middle - value) <= 0.045 * value


@pytest.mark.parametrize("unit", [0, -1, S + 1, 0.5, None, True])
def test_bins_of_no_unit(unit: object) -> None:
    for refused in (metrics.exponential_bins, lambda unit: Region.create(None, SERIES, bin_unit_ns=unit)):
        with pytest.raises(UsageError, match="1 to 1000000000 nanoseconds"):
            refused(unit)


def interesting() -> list[int]:
    near = [*BIN_BOUNDS[:-1], *BOUNDS, INT64_MAX, 1 << 62]
    return [-1, -INT64_MAX - 1, *(value + d for value in near for d in (-1, 0, 1) if value + d <= INT64_MAX)]


def test_every_edge_counts_where_it_should(region: Region) -> None:
    histogram, other = region.histogram(LATENCY), region.histogram(PLAIN)
    values = [value for value in interesting() if value < 1 << 52]  # the sum stays below 2**64
    for value in values:
        histogram.record(value)
        other.record(value)
    assert region.read()[LATENCY] == model(values, BOUNDS)
    assert region.read()[PLAIN] == model(values, ())
    for value in (1 << 62, INT64_MAX):
        region.reset()
        histogram.record(value)
        assert region.read()[LATENCY] == model([value], BOUNDS)


@given(
    values=st.lists(st.one_of(st.integers(-10, 1 << 45), st.sampled_from(BIN_BOUNDS[:-1]))),
    bounds=st.sets(st.one_of(st.integers(0, 1 << 41), st.sampled_from(BIN_BOUNDS[:-1])), max_size=255),
)
def test_any_values_in_any_buckets(values: list[int], bounds: set[int]) -> None:
    ordered = tuple(sorted(bounds))
    region = Region.create(None, [Series("one", HISTOGRAM, bounds_ns=ordered), Series("many", HISTOGRAM)])
    histogram = region.histogram(0)
    for value in values:
        histogram.record(value)
    region.histogram(1).record_many(values)
    assert region.read() == [model(values, ordered), model(values, ())]


def test_record_many_takes_any_sequence_and_stops_at_what_is_no_duration(region: Region) -> None:
    histogram = region.histogram(LATENCY)
    histogram.record_many((1, 2))
    histogram.record_many(range(3))
    histogram.record_many([])
    with pytest.raises(TypeError):
        histogram.record_many([5, 1.5, 6])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        histogram.record_many(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        histogram.record(0.5)  # type: ignore[arg-type]
    assert region.read()[LATENCY] == model([1, 2, 0, 1, 2, 5], BOUNDS)


@given(st.one_of(st.sampled_from([INT64_MAX + 1, UINT64_MAX, UINT64_MAX + 1, -INT64_MAX - 2]), st.integers()))
@settings(max_examples=50)
def test_no_integer_is_too_large_to_be_recorded(value: int) -> None:
    """Numbers of frames are recorded: none may end the process. What does not fit is cut to what does."""
    region = Region.create(None, [Series("c", COUNTER), Series("g", GAUGE), Series("h", HISTOGRAM, bounds_ns=BOUNDS)])
    counter, gauge, histogram = region.counter(0), region.gauge(1), region.histogram(2)
    counter.advance_to(value)
    gauge.set(value)
    histogram.record(value)
    histogram.record_many([value])
    assert counter.value() == min(max(value, 0), UINT64_MAX)
    assert gauge.value() == min(max(value, -INT64_MAX - 1), INT64_MAX)
    assert region.read()[2] == model([min(max(value, 0), INT64_MAX)] * 2, BOUNDS)
    floats = Region.create(None, [Series("c", COUNTER, floating=True), Series("g", GAUGE, floating=True)])
    floats.counter(0).add(abs(value) * 10**400)
    floats.gauge(1).set(value * 10**400)
    floats.gauge(1).add(-value * 10**400)


@given(
    values=st.lists(st.integers(0, (1 << 40) - 1), min_size=1),
    q=st.one_of(st.floats(0, 1), st.sampled_from([0.5, 0.99, 0.999])),
)
def test_quantiles_are_within_five_percent(values: list[int], q: float) -> None:
    ranked = sorted(values)
    found = metrics.quantile(dict(Tally(map(bin_of, values))), q, metrics.exponential_bins(MS))
    share = [value for rank, value in enumerate(ranked, 1) if rank >= q * len(ranked)]
    assert abs(found - share[0]) <= 0.044 * share[0]


def test_quantile_of_nothing_and_of_nonsense() -> None:
    bins = metrics.exponential_bins(MS)
    assert metrics.quantile({}, 0.99, bins) == 0.0
    assert metrics.quantile({7: 0}, 0.99, bins) == 0.0
    assert metrics.quantile({0: 1}, 0.99, bins) == 0.0
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            metrics.quantile({1: 1}, q, bins)


# --- the stage clock -------------------------------------------------------------------------

STAGED = (
    *(Series(f"loop_ns{{stage={stage}}}", COUNTER) for stage in ("wait", "parse", "send")),
    Series("turn", HISTOGRAM, bounds_ns=BOUNDS),
    Series("turned_at", GAUGE),
    Series("other", COUNTER, floating=True),
    Series("offset", GAUGE, floating=True),
)


def test_stages_add_up_to_the_time_that_has_passed() -> None:
    region = Region.create(None, STAGED)
    before = metrics.now_ns()
    clock = region.stage_clock([0, 1, 2], turn=3, turned_at=4)
    [began] = [region.gauge(4).value()]
    assert before <= began <= metrics.now_ns()
    left = [clock.switch(stage) for stage in (1, 2, 1, 0, 0, 2, 2, 0)]
    assert left == [0, 1, 2, 1, 0, 0, 2, 2]
    wait, parse, send, turn, turned_at, *_ = region.read()
    assert isinstance(turn, HistogramValue) and turn.count == 2
    # The last switch ended a turn, so everything up to `turned_at` is charged, and nothing twice.
    assert wait + parse + send == turned_at - began  # type: ignore[operator]
    assert turn.sum_ns == parse + send  # type: ignore[operator]
    assert turned_at <= metrics.now_ns()  # type: ignore[operator]


def test_a_stage_clock_of_what_it_can_not_be() -> None:
    region = Region.create(None, STAGED)
    clock = region.stage_clock([0, 1], turn=3, turned_at=4)
    with pytest.raises(UsageError, match="no stage 2, only 0 to 1"):
        clock.switch(2)
    with pytest.raises(UsageError, match="no stage -1, only 0 to 1"):
        clock.switch(-1)
    with pytest.raises(TypeError):
        clock.switch(1.5)  # type: ignore[arg-type]
    for stages, turn, turned_at, why in (
        ([0], 3, 4, "2 to 16 stages, not 1"),
        ([0] * 17, 3, 4, "2 to 16 stages, not 17"),
        ([0, 5], 3, 4, "whole nanoseconds"),
        ([0, 4], 3, 4, "is a gauge, not a counter"),
        ([0, 1], 2, 4, "is a counter, not a histogram"),
        ([0, 1], 3, 6, "not a float"),
        ([0, 1], 3, 9, "no series 9"),
    ):
        with pytest.raises(UsageError, match=why):
            region.stage_clock(stages, turn=turn, turned_at=turned_at)


# --- regions ---------------------------------------------------------------------------------


def test_a_reader_finds_what_the_writer_declared_and_recorded(path: Path) -> None:
    before = metrics.now_ns()
    region = Region.create(path, SERIES, info=b"replica 1\0")
    region.counter(OPERATIONS).add(3)
    region.gauge(OFFSET).set(-0.5)
    region.histogram(PLAIN).record(77)
    reader = Region.open(path)
    assert reader.series == region.series == SERIES
    assert all(type(series.kind) is Kind for series in reader.series)
    assert (reader.info, reader.pid, reader.path) == (b"replica 1\0", os.getpid(), str(path))
    assert before <= reader.started_monotonic_ns <= metrics.now_ns()
    assert reader.started_unix_ns == region.started_unix_ns
    assert reader.size == path.stat().st_size == region.size
    assert (region.writable, reader.writable) == (True, False)
    assert reader.read() == region.read() == [3, 0.0, 0, -0.5, model([], BOUNDS), model([77], ()), 0]
    region.counter(OPERATIONS).add()
    assert reader.read()[OPERATIONS] == 4  # the same memory, not a copy
    assert str(path) in repr(reader) and "7 series" in repr(reader)


def test_a_file_is_private_and_has_all_its_blocks(path: Path) -> None:
    region = Region.create(path, SERIES)
    status = path.stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 >= region.size
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics"]


def test_a_new_region_takes_the_name_and_leaves_the_readers_of_the_old_one(path: Path) -> None:
    first = Region.create(path, SERIES)
    reader = Region.open(path)
    first.counter(OPERATIONS).add(1)
    assert first.is_current() and reader.is_current()
    second = Region.create(path, SERIES[:1])
    assert (first.is_current(), reader.is_current(), second.is_current()) == (False, False, True)
    second.counter(OPERATIONS).add(2)
    assert (reader.read()[OPERATIONS], Region.open(path).read()) == (1, [2])
    path.unlink()
    assert not second.is_current()
    assert second.read() == [2]


def test_regions_of_one_process_are_independent(tmp_path: Path) -> None:
    regions = [Region.create(None, SERIES), Region.create(None, SERIES)]
    regions += [Region.create(tmp_path / str(i), SERIES) for i in range(3)]
    for amount, region in enumerate(regions, 1):
        region.counter(OPERATIONS).add(amount)
        region.histogram(LATENCY).record(amount)
    regions[0].reset()
    assert [region.read()[OPERATIONS] for region in regions] == [0, 2, 3, 4, 5]
    assert [region.read()[LATENCY].sum_ns for region in regions] == [0, 2, 3, 4, 5]  # type: ignore[union-attr]


def test_handles_of_one_series_write_the_same_cell(region: Region) -> None:
    for _ in range(2):
        region.counter(OPERATIONS).add()
        region.histogram(LATENCY).record(1)
    assert region.read()[OPERATIONS] == 2
    assert region.read()[LATENCY] == model([1, 1], BOUNDS)


def test_memory_lives_as_long_as_a_handle(path: Path) -> None:
    region = Region.create(path, SERIES)
    counter, histogram = region.counter(OPERATIONS), region.histogram(LATENCY)
    reader = Region.open(path)
    del region
    gc.collect()
    counter.add(2)
    histogram.record(3)
    assert reader.read()[OPERATIONS] == 2
    assert reader.read()[LATENCY] == model([3], BOUNDS)


def test_in_memory_there_is_no_path(region: Region) -> None:
    assert region.path is None and not region.is_current() and region.pid == os.getpid()
    assert "in memory" in repr(region)


def test_a_region_without_series(path: Path) -> None:
    Region.create(path, [])
    assert Region.open(path).read() == [] and Region.open(path).series == ()


def test_reset_zeroes_and_is_seen(path: Path) -> None:
    region = Region.create(path, SERIES)
    reader = Region.open(path)
    for index in (OPERATIONS, SECONDS, SHARED):
        region.counter(index).add(3)
    region.histogram(LATENCY).record(4)
    before = reader.generation
    region.reset()
    assert (reader.generation, before % 2) == (before + 2, 0)
    assert reader.read() == Region.create(None, SERIES).read()


def test_a_writer_says_when_it_ends(path: Path) -> None:
    region = Region.create(path, SERIES)
    reader = Region.open(path)
    assert not reader.ended
    region.end()
    assert reader.ended and Region.open(path).ended


def test_a_reader_can_not_write(path: Path) -> None:
    Region.create(path, SERIES)
    reader = Region.open(path)
    for refused in (
        lambda: reader.counter(OPERATIONS),
        lambda: reader.gauge(VIEW),
        lambda: reader.histogram(LATENCY),
        lambda: reader.stage_clock([OPERATIONS, SHARED], turn=LATENCY, turned_at=VIEW),
        reader.reset,
        reader.end,
    ):
        with pytest.raises(UsageError, match=f"opened to read: process {os.getpid()} writes"):
            refused()


@pytest.mark.parametrize(
    ("take", "index", "why"),
    [
        (Region.counter, VIEW, "view_number, is a gauge, not a counter"),
        (Region.gauge, OPERATIONS, "is a counter, not a gauge"),
        (Region.histogram, SECONDS, "is a counter, not a histogram"),
        (Region.counter, 7, "no series 7, only 0 to 6"),
        (Region.counter, -1, "no series -1"),
    ],
)
def test_a_handle_of_the_wrong_kind(region: Region, take: Callable[..., object], index: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        take(region, index)


def test_only_a_region_makes_handles(region: Region) -> None:
    for made in (Region, metrics.Counter, metrics.Gauge, metrics.Histogram, metrics.StageClock):
        with pytest.raises(TypeError, match=r"made by Region\."):
            made()
    for thing in (region, region.counter(OPERATIONS), region.histogram(LATENCY)):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


@pytest.mark.parametrize(
    ("series", "why"),
    [
        (Series("", COUNTER), "1 to 1048576 bytes, not 0"),
        (Series("x" * ((1 << 20) + 1), COUNTER), "not 1048577"),
        (Series("\ud800", COUNTER), "no series"),
        (Series("a", 4), "no series"),  # type: ignore[arg-type]
        (Series(b"a", COUNTER), "no series"),  # type: ignore[arg-type]
        (("a", COUNTER), "no series"),
        (Series("a", COUNTER, group=256), "0 to 255, not 256"),
        (Series("a", COUNTER, group=-1), "0 to 255, not -1"),
        (Series("a", COUNTER, bounds_ns=(1,)), "only a histogram has bounds"),
        (Series("a", HISTOGRAM, floating=True), "whole nanoseconds"),
        (Series("a", HISTOGRAM, bounds_ns=(1, 1)), "ascend: 1 after 1"),
        (Series("a", HISTOGRAM, bounds_ns=(2, 1)), "ascend: 1 after 2"),
        (Series("a", HISTOGRAM, bounds_ns=(-1,)), "ascend: -1"),
        (Series("a", HISTOGRAM, bounds_ns=(0.5,)), "ascend: 0.5"),  # type: ignore[arg-type]
        (Series("a", HISTOGRAM, bounds_ns=(INT64_MAX,)), "ascend"),
        (Series("a", HISTOGRAM, bounds_ns=tuple(range(256))), "256 bounds, the most is 255"),
    ],
)
def test_a_series_that_can_not_be(path: Path, series: Series, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Region.create(path, [series])
    assert not path.exists()


def test_limits_of_a_region(path: Path) -> None:
    with pytest.raises(UsageError, match="two series have the name b"):
        Region.create(path, [Series("a", COUNTER), Series("b", COUNTER), Series("b", GAUGE)])
    with pytest.raises(UsageError, match="65537 series, the most of one region is 65536"):
        Region.create(path, [Series(str(i), COUNTER) for i in range(65537)])
    with pytest.raises(UsageError, match="info of 1048577 bytes is above 1048576"):
        Region.create(path, [], info=bytes((1 << 20) + 1))
    with pytest.raises(UsageError, match="no zero bytes"):
        Region.create("a\0b", [])
    with pytest.raises(UsageError, match="no zero bytes"):
        Region.open("a\0b")
    assert not path.exists()


def test_what_the_system_refuses_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Region.create(tmp_path / "nowhere/metrics", SERIES)
    assert caught.value.filename == str(tmp_path / "nowhere/metrics")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        Region.create(tmp_path / "folder", SERIES)
    with pytest.raises(FileNotFoundError):
        Region.open(tmp_path / "metrics")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_no_room_for_the_file_is_said_at_the_start(path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from kimberlite._fast.metrics import Region\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: Region.create(sys.argv[1], [])\n"
        "except OSError as error: print(error.errno, error.filename)\n"
    )
    series = "[Series('a', Kind.HISTOGRAM)]"
    code = code.replace("import Region", "import Kind, Region, Series").replace("[])", series + ")")
    assert run(code, str(path)).split() == ["27", str(path)]  # EFBIG, not a signal later
    assert list(path.parent.iterdir()) == []


# --- the file --------------------------------------------------------------------------------

HEADER = struct.Struct("<QIIQQQQQQQQQ16sQQ")  # up to 120; zeros to 256
SLOT = struct.Struct("<QIBBBBQQI28x")


class Twin:
    """The file, taken apart and put together again without the kernel."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    @property
    def header(self) -> list[int | bytes]:
        return list(HEADER.unpack_from(self.data))

    def word(self, offset: int, value: int | None = None, code: str = "<Q") -> int:
        """Read a word, or set it."""
        if value is not None:
            struct.pack_into(code, self.data, offset, value)
        return int(struct.unpack_from(code, self.data, offset)[0])

    def seal(self) -> bytes:
        """With a checksum that is right again."""
        self.data[88:104] = self.checksum()
        return bytes(self.data)

    def checksum(self) -> bytes:
        cells = self.word(48)
        parts = xxhash.xxh3_128_digest(bytes(self.data[:88])) + xxhash.xxh3_128_digest(bytes(self.data[256:cells]))
        return xxhash.xxh3_128_digest(parts)

    def slots(self) -> Iterator[tuple[int, ...]]:
        return (SLOT.unpack_from(self.data, 256 + 64 * i) for i in range(self.word(12, code="<I")))


def test_the_layout_is_the_one_that_is_drawn(path: Path) -> None:
    region = Region.create(path, SERIES, info=b"who")
    region.counter(OPERATIONS).add(1)
    region.counter(SECONDS).add(0.5)
    region.gauge(VIEW).set(-2)
    region.gauge(OFFSET).set(2.5)
    region.histogram(LATENCY).record_many([1, 400_000, 1 << 50])
    region.counter(SHARED).add(9)
    region.end()
    twin = Twin(path.read_bytes())
    magic, layout, count, size, text, info, info_size, cells, pid, unix, monotonic, unit, digest, generation, state = (
        twin.header
    )
    assert (magic, layout, count) == (int.from_bytes(b"KMMETC01", "little"), 2, len(SERIES))
    assert (size, pid, generation, state) == (len(twin.data), os.getpid(), 0, 2)
    assert (unix, monotonic) == (region.started_unix_ns, region.started_monotonic_ns)
    assert (digest, unit) == (twin.checksum(), MS)
    assert not any(twin.data[120:256])
    assert twin.data[info : info + info_size] == b"who"  # type: ignore[operator, misc]
    assert cells % PAGE == size % PAGE == 0  # type: ignore[operator]

    found, values, groups = [], [], {}
    for name_at, name_size, kind, value, shared, group, cell, bounds_at, bound_count in twin.slots():
        name = twin.data[name_at : name_at + name_size].decode()
        bounds = struct.unpack_from(f"<{bound_count}q", twin.data, bounds_at) if kind == HISTOGRAM else ()
        found.append(Series(name, Kind(kind), bool(value), bool(shared), group, bounds))
        assert name_at >= text and cell >= cells  # type: ignore[operator]
        words = 1
        if kind == HISTOGRAM:
            assert twin.word(bounds_at + 8 * bound_count) == INT64_MAX
            words = 1 + bound_count + 1 + BINS
            total, *rest = struct.unpack_from(f"<{words}Q", twin.data, cell)
            buckets, bins = rest[: bound_count + 1], rest[bound_count + 1 :]
            in_use = {i: n for i, n in enumerate(bins) if n}
            values.append(HistogramValue(sum(buckets), total, tuple(buckets), in_use))
        else:
            values.append(struct.unpack_from("<d" if value else "<q", twin.data, cell)[0])
        groups.setdefault(group, []).append((cell, cell + 8 * words))
    assert tuple(found) == SERIES
    assert values == region.read() == Region.open(path).read()

    # No two series share a word, no two groups a pair of cache lines.
    spans = sorted(span for members in groups.values() for span in members)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    lines = {group: {at // 128 for b, e in members for at in range(b, e, 8)} for group, members in groups.items()}
    owners = Tally(line for owned in lines.values() for line in owned)
    assert set(owners.values()) == {1}


def refused(path: Path, data: bytes) -> Refusal:
    path.write_bytes(data)
    with pytest.raises(
        MetricsFileError, match=rf"{path.name} cannot be read as a file of metrics: .*makes a new one"
    ) as error:
        Region.open(path)
    assert error.value.path == str(path)
    reason = error.value.reason
    assert isinstance(reason, Refusal)
    return reason


def small(path: Path) -> bytes:
    Region.create(path, [Series("a", COUNTER), Series("h", HISTOGRAM, bounds_ns=(5, 9)), Series("g", GAUGE)], b"info")
    return path.read_bytes()


def test_every_flip_of_a_constant_bit_is_refused(path: Path) -> None:
    data = bytearray(small(path))
    cells = Twin(data).word(48)
    reasons: Tally[tuple[str, Refusal]] = Tally()
    with path.open("r+b", buffering=0) as file:
        for at in [at for at in range(cells) if not 104 <= at < 112]:
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([data[at] ^ 1 << bit]), at)
                with pytest.raises(MetricsFileError) as caught:
                    Region.open(path)
                where = "magic" if at < 8 else "layout" if at < 12 else "state" if 112 <= at < 256 else "rest"
                reasons[where, caught.value.reason] += 1  # type: ignore[index]
            os.pwrite(file.fileno(), data[at : at + 1], at)
    assert Region.open(path).read()[0] == 0
    assert reasons["magic", Refusal.BAD_MAGIC] == 64
    assert reasons["layout", Refusal.BAD_LAYOUT_VERSION] == 32
    assert reasons["state", Refusal.BAD_RESERVED] == (256 - 112) * 8
    assert {reason for where, reason in reasons if where == "rest"} == {
        Refusal.BAD_CHECKSUM,
        Refusal.BAD_SIZE,
        Refusal.BAD_BOUNDS,
    }


def test_a_flip_in_the_generation_is_harmless_or_says_what_it_looks_like(path: Path) -> None:
    data = small(path)
    for bit in range(1, 64):
        twin = Twin(data)
        twin.word(104, 1 << bit)
        path.write_bytes(bytes(twin.data))
        reader = Region.open(path)
        assert reader.generation == 1 << bit
        assert reader.read() == [0, model([], (5, 9)), 0]


def test_a_writer_that_died_inside_of_a_reset_is_found(path: Path) -> None:
    twin = Twin(small(path))
    twin.word(104, 1)
    path.write_bytes(bytes(twin.data))
    reader = Region.open(path)
    with pytest.raises(MetricsFileError, match="ended in the middle of a reset") as caught:
        reader.read()
    assert caught.value.reason is Refusal.RESET_CUT_SHORT


def test_a_file_of_another_size(path: Path) -> None:
    data = small(path)
    for size in [0, 1, 8, 100, 255, 256, 300, *range(PAGE - 1, len(data), 1013), len(data) - 1]:
        assert refused(path, data[:size]) is Refusal.BAD_SIZE, size
    for more in (1, 8, PAGE):
        assert refused(path, data + bytes(more)) is Refusal.BAD_SIZE


def test_what_is_no_file_of_metrics(path: Path) -> None:
    assert refused(path, b"\n" * 5000) is Refusal.BAD_MAGIC
    assert refused(path, bytes(5000)) is Refusal.BAD_MAGIC
    assert refused(path, random.Random(1).randbytes(100_000)) is Refusal.BAD_MAGIC
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(MetricsFileError) as caught:  # and does not wait for a writer
        Region.open(path)
    assert caught.value.reason is Refusal.BAD_SIZE
    with pytest.raises(OSError):
        Region.open(path.parent)


WILD = (1, 7, 255, 256, PAGE, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, UINT64_MAX - 7, UINT64_MAX)
SLOT_FIELDS = {  # of the histogram, slot 1: offset in the slot, code, values that cannot be
    "name offset": (0, "<Q", (0, *WILD)),
    "name size": (8, "<I", (1 << 31, (1 << 32) - 1)),
    "kind": (12, "<B", (0, 4, 255)),
    "value": (13, "<B", (2, 255)),
    "shared": (14, "<B", (2, 255)),
    "cell offset": (16, "<Q", (0, *(value for value in WILD if value != PAGE))),  # the cells begin at PAGE
    "bounds offset": (24, "<Q", (0, *WILD)),
    "bound count": (32, "<I", (3, 255, 256, 1 << 20, (1 << 32) - 1)),
}


@pytest.mark.parametrize("field", SLOT_FIELDS)
def test_a_sealed_slot_that_leads_astray(path: Path, field: str) -> None:
    """With a checksum that is right: a writer that is wrong must not take its readers with it."""
    offset, code, values = SLOT_FIELDS[field]
    data = small(path)
    for value in values:
        twin = Twin(data)
        twin.word(256 + 64 + offset, value, code)
        assert refused(path, twin.seal()) is Refusal.BAD_BOUNDS, value


def test_a_sealed_counter_has_no_bounds(path: Path) -> None:
    data = small(path)
    for offset, code, values in ((24, "<Q", WILD), (32, "<I", (1, 255))):
        for value in values:
            twin = Twin(data)
            twin.word(256 + offset, value, code)
            assert refused(path, twin.seal()) is Refusal.BAD_BOUNDS, value


def test_a_sealed_header_that_leads_astray(path: Path) -> None:
    data = small(path)
    twin = Twin(data)
    for value in (0, 8, 256, PAGE + 8, len(data) + PAGE, 1 << 40, UINT64_MAX & -PAGE, UINT64_MAX):
        twin = Twin(data)
        twin.word(48, value)
        assert refused(path, bytes(twin.data)) is Refusal.BAD_BOUNDS, value  # before anything is hashed
    for offset, values in {32: (0, 8, *WILD[-4:]), 40: WILD[4:]}.items():  # info: offset, size
        for value in values:
            twin = Twin(data)
            twin.word(offset, value)
            assert refused(path, twin.seal()) is Refusal.BAD_BOUNDS, (offset, value)
    for count in (PAGE // 64, 1 << 20, (1 << 32) - 1):
        twin = Twin(data)
        twin.word(12, count, "<I")
        assert refused(path, twin.seal()) is Refusal.BAD_BOUNDS, count


def test_sealed_bounds_and_names_that_can_not_be(path: Path) -> None:
    data = small(path)
    bounds_at = list(Twin(data).slots())[1][7]
    for offset, value in ((0, 9), (0, 10), (0, UINT64_MAX), (8, 5), (8, INT64_MAX), (16, INT64_MAX - 1), (16, 0)):
        twin = Twin(data)
        twin.word(bounds_at + offset, value)
        assert refused(path, twin.seal()) is Refusal.BAD_BOUNDS, (offset, value)
    for unit in (0, S + 1, UINT64_MAX):
        twin = Twin(data)
        twin.word(80, unit)
        assert refused(path, twin.seal()) is Refusal.BAD_BOUNDS, unit
    twin = Twin(data)
    twin.data[list(twin.slots())[1][0]] = 0xFF
    assert refused(path, twin.seal()) is Refusal.BAD_BOUNDS


@given(damage=st.lists(st.tuples(st.integers(0, 2 * PAGE - 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_any_damage_under_any_seal_is_refused_or_reads(
    damage: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damage") / "metrics"
    twin = Twin(small(path))
    for at, value in damage:
        twin.data[at] = value
    cells = twin.word(48)
    path.write_bytes(twin.seal() if 256 <= cells <= len(twin.data) else bytes(twin.data))
    try:
        reader = Region.open(path)
        reader.read()
    except MetricsFileError as error:
        assert error.reason in Refusal
    else:
        assert len(reader.series) == len(reader.read())


# --- other processes, other threads ----------------------------------------------------------


def run(code: str, *arguments: str) -> str:
    """Run `code` in a fresh interpreter that imports what this one does."""
    search = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WRITER = """
import sys
from kimberlite._fast.metrics import Kind, Region, Series
region = Region.create(sys.argv[1], [Series("n", Kind.COUNTER), Series("h", Kind.HISTOGRAM, bounds_ns=(10, 1000)),
                                     Series("after", Kind.COUNTER)])
counter, histogram, after = region.counter(0), region.histogram(1), region.counter(2)
n = 0
while True:
    for _ in range(1000):
        counter.add()
        histogram.record(n % 2000)
        after.add()
        n += 1
    print(n, flush=True)
"""


@pytest.fixture
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    search = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER, str(path)],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(writer: subprocess.Popen[str]) -> int:
    assert writer.stdout is not None
    return int(writer.stdout.readline())


def test_another_process_reads_while_one_writes(path: Path, writer: subprocess.Popen[str]) -> None:
    told = said(writer)
    reader = Region.open(path)
    assert reader.pid == writer.pid
    before = (0, 0, 0)
    for _ in range(300):
        told = said(writer)
        counter, histogram, after = reader.read()
        assert isinstance(histogram, HistogramValue)
        now = (int(counter), histogram.count, int(after)) if not isinstance(counter, HistogramValue) else before
        assert told <= min(now) and all(a >= b for a, b in zip(now, before, strict=True))
        assert histogram.count == sum(histogram.buckets)
        before = now


def test_a_killed_writer_leaves_what_it_has_recorded(path: Path, writer: subprocess.Popen[str]) -> None:
    for _ in range(5):
        told = said(writer)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert writer.stdout is not None
    lines = writer.stdout.read().splitlines(keepends=True)
    told = int(lines[-1]) if lines and lines[-1].endswith("\n") else told
    reader = Region.open(path)
    counter, histogram, after = reader.read()
    assert isinstance(histogram, HistogramValue)
    assert told <= after <= histogram.count <= counter <= after + 1  # type: ignore[operator]
    assert (reader.pid, reader.ended, reader.is_current()) == (writer.pid, False, True)
    assert Region.create(path, SERIES).is_current() and not reader.is_current()


def compile_check(at: Path, *flags: str) -> Path:
    """Build tests/c/check_metrics.c with the kernel, or skip."""
    if COMPILER is None or not C_SOURCES.exists():
        pytest.skip("needs a C compiler and the sources")
    program = at / "check_metrics"
    sources = [CHECKOUT / "tests/c/check_metrics.c", C_SOURCES / "km_metrics.c", C_SOURCES / "km_xxh3.c"]
    warnings = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run([COMPILER, *warnings, *flags, f"-I{C_SOURCES}", *map(str, sources), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize(
    "flags", [("-O3",), ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")]
)
def test_threads_without_the_lock_lose_nothing(tmp_path: Path, path: Path, flags: tuple[str, ...]) -> None:
    threads, rounds = 4, 100_000
    program = compile_check(tmp_path, *flags)
    done = subprocess.run([program, str(path), str(threads), str(rounds)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counter, floating, histogram, gauge, *own = Region.open(path).read()
    assert (counter, floating, gauge, own) == (3 * rounds * threads, rounds * threads / 2, 0, [rounds] * threads)
    each = list(range(rounds))
    expected = model(each, (10, 1000, 100_000))
    assert histogram == HistogramValue(
        count=threads * expected.count,
        sum_ns=threads * expected.sum_ns,
        buckets=tuple(threads * n for n in expected.buckets),
        bins={i: threads * n for i, n in expected.bins.items()},
    )


LEAKS = """
import gc, os, sys, tracemalloc
from kimberlite._fast import metrics
from kimberlite._fast.metrics import Kind, Region, Series
from kimberlite.errors import MetricsFileError, UsageError
path = sys.argv[1]
series = [Series("a", Kind.COUNTER), Series("b", Kind.GAUGE, floating=True),
          Series("h", Kind.HISTOGRAM, bounds_ns=(5, 9))]

def round():
    for where in (path, None):
        region = Region.create(where, series, b"info")
        region.counter(0).add(1 << 62)
        region.gauge(1).set(0.5)
        region.histogram(2).record_many([1 << 35] * 100)
        region.reset()
        region.read()
    reader = Region.open(path)
    reader.read(), reader.is_current(), repr(reader)
    for wrong in (lambda: reader.counter(0), lambda: Region.create(path, [*series, *series]), lambda: region.counter(1),
                  lambda: Region.create(path, [Series("a", 9)]), lambda: region.histogram(2).record_many([1, 2.5])):
        try:
            wrong()
        except (UsageError, TypeError):
            pass
        else:
            raise SystemExit("not refused")
    try:
        Region.open("/dev/null")
    except MetricsFileError:
        pass
    metrics.quantile({300: 10**6}, 0.5, reader.bins)

def state():
    gc.collect()
    with open("/proc/self/maps") as maps:
        mapped = sum(path in line for line in maps)
    return tracemalloc.get_traced_memory()[0], mapped, len(os.listdir("/proc/self/fd"))

for _ in range(20):
    round()
tracemalloc.start()
for _ in range(20):
    round()
memory, mapped, files = state()
for _ in range(500):
    round()
after = state()
print(after[0] - memory, after[1] - mapped, after[2] - files)
"""


def test_nothing_leaks(path: Path) -> None:
    grown, maps, files = map(int, run(LEAKS, str(path)).split())
    assert (maps, files) == (0, 0)
    assert grown < 500  # less than a byte for each of the 500 rounds


# --- the yardsticks of benches ---------------------------------------------------------------


@pytest.mark.parametrize("loop", ["store", "locked", "counter", "shared_counter", "histogram"])
def test_every_loop_runs(loop: str) -> None:
    assert metrics.calibrate(loop, 1000) > 0


def test_an_unknown_loop() -> None:
    with pytest.raises(UsageError, match="no loop 'lock', only store, locked, counter"):
        metrics.calibrate("lock", 1)
