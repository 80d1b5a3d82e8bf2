# cython: language_level=3, freethreading_compatible=False, binding=False
"""Counters, gauges and histograms that another process can read while this one writes.

The skin over c/km_metrics.c, where the file is drawn. A Region is a set of series in a
file that is mapped into memory. Its writer records through handles, at the cost of a few
loads and stores; readers map the same file and need neither a lock nor the writer's help,
dead or alive. Regions of one process have nothing in common.

Memory stays mapped as long as the region or one of its handles lives.

Thread rules: what holds the GIL may call anything here. A series that threads without the
GIL write as well must be `shared`. After a fork only one of the processes may record.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from libc.float cimport DBL_MAX
from libc.stdint cimport INT64_MAX, INT64_MIN, UINT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from kimberlite.errors import MetricsFileError, UsageError

cdef extern from "km_metrics.h" nogil:
    enum:
        KM_METRICS_COUNTER
        KM_METRICS_GAUGE
        KM_METRICS_HISTOGRAM
        KM_METRICS_BOUNDS_MAX
        KM_METRICS_LAYOUT
        KM_METRICS_LIVE
        KM_METRICS_ENDED
        KM_METRICS_BAD_SIZE
        KM_METRICS_BAD_MAGIC
        KM_METRICS_BAD_LAYOUT_VERSION
        KM_METRICS_BAD_CHECKSUM
        KM_METRICS_BAD_BOUNDS
        KM_METRICS_BAD_RESERVED
        KM_METRICS_BINS
        KM_METRICS_STEPS
        KM_METRICS_BIN_UNIT_MAX
        KM_METRICS_TIME_STORE
        KM_METRICS_TIME_LOCKED
        KM_METRICS_TIME_COUNTER
        KM_METRICS_TIME_SHARED_COUNTER
        KM_METRICS_TIME_HISTOGRAM
        KM_STAGES_MAX

    ctypedef struct km_atomic_u64:
        pass

    ctypedef struct km_metrics_header:
        uint32_t slot_count
        uint64_t info_offset
        uint64_t info_size
        uint64_t cells_offset
        uint64_t pid
        uint64_t started_unix_ns
        uint64_t started_monotonic_ns
        uint64_t bin_unit_ns
        km_atomic_u64 generation
        km_atomic_u64 state

    ctypedef struct km_metrics_slot:
        uint64_t name_offset
        uint32_t name_size
        uint8_t kind
        uint8_t value
        uint8_t shared
        uint8_t group
        uint64_t cell_offset
        uint64_t bounds_offset
        uint32_t bound_count

    ctypedef struct km_metrics_row:
        const char *name
        uint32_t name_size
        uint8_t kind
        uint8_t value
        uint8_t shared
        uint8_t group
        const int64_t *bounds
        uint32_t bound_count

    ctypedef struct km_metrics_map:
        uint8_t *base
        size_t size

    ctypedef struct km_metrics_bins:
        int64_t *bounds
        int32_t first

    ctypedef struct km_histogram:
        km_atomic_u64 *sum
        km_atomic_u64 *buckets
        km_atomic_u64 *bins
        const int64_t *bounds
        const uint8_t *hints
        const km_metrics_bins *scale
        int shared

    ctypedef struct km_stage_clock:
        km_atomic_u64 **stages
        km_atomic_u64 *turned_at
        km_histogram turn
        uint64_t since
        uint64_t turn_began
        uint32_t stage
        uint32_t stage_count

    int km_metrics_create(const char *path, const char *temporary, const km_metrics_row *rows, uint32_t count,
                          const char *info, size_t info_size, uint64_t bin_unit_ns, km_metrics_map *map)
    int km_metrics_open(const char *path, km_metrics_map *map)
    void km_metrics_close(km_metrics_map *map)
    void km_metrics_reset(km_metrics_map *map)
    int km_metrics_copy(const km_metrics_map *map, uint64_t *out, int tries)
    int km_metrics_is_current(const km_metrics_map *map, const char *path)
    void km_metrics_fill_bins(uint64_t unit_ns, km_metrics_bins *bins)
    uint64_t km_metrics_calibrate(int what, uint64_t n)
    uint64_t km_metrics_clock_ns()
    const km_metrics_header *km_metrics_head(const km_metrics_map *map)
    const km_metrics_slot *km_metrics_slots(const km_metrics_map *map)
    void km_metrics_add(km_atomic_u64 *cell, int shared, uint64_t amount)
    void km_metrics_add_float(km_atomic_u64 *cell, int shared, double amount)
    uint64_t km_metrics_bits(double value)
    double km_metrics_float(uint64_t bits)
    void km_histogram_hints(const int64_t *bounds, uint8_t *hints)
    void km_histogram_observe(const km_histogram *histogram, int64_t value)
    uint32_t km_stage_switch(km_stage_clock *clock, uint32_t stage, uint64_t now)
    uint64_t km_atomic_load_relaxed(const km_atomic_u64 *cell)
    uint64_t km_atomic_load_acquire(const km_atomic_u64 *cell)
    void km_atomic_store_relaxed(km_atomic_u64 *cell, uint64_t value)
    void km_atomic_store_release(km_atomic_u64 *cell, uint64_t value)
    int km_atomic_exchange_if_relaxed(km_atomic_u64 *cell, uint64_t *expected, uint64_t desired)

cdef enum:
    SERIES_MAX = 65536
    TEXT_MAX = 1 << 20  # of one name, and of info
    PATIENCE = 1000  # milliseconds: a reset takes far less than one


class Kind(IntEnum):
    """What a series is."""

    COUNTER = KM_METRICS_COUNTER
    GAUGE = KM_METRICS_GAUGE
    HISTOGRAM = KM_METRICS_HISTOGRAM


class Refusal(IntEnum):
    """Why a file is not read (MetricsFileError.reason)."""

    BAD_SIZE = KM_METRICS_BAD_SIZE
    BAD_MAGIC = KM_METRICS_BAD_MAGIC
    BAD_LAYOUT_VERSION = KM_METRICS_BAD_LAYOUT_VERSION
    BAD_CHECKSUM = KM_METRICS_BAD_CHECKSUM
    BAD_BOUNDS = KM_METRICS_BAD_BOUNDS
    BAD_RESERVED = KM_METRICS_BAD_RESERVED
    RESET_CUT_SHORT = KM_METRICS_BAD_RESERVED + 1


_WHY = {
    Refusal.BAD_SIZE: "it is shorter than a header, or not as long as its header says: it was cut or copied in part",
    Refusal.BAD_MAGIC: "it does not begin like one",
    Refusal.BAD_LAYOUT_VERSION: f"its layout is not {KM_METRICS_LAYOUT}: read it with the release that writes it",
    Refusal.BAD_CHECKSUM: "its description of the series is damaged",
    Refusal.BAD_BOUNDS: "its description of the series contradicts itself",
    Refusal.BAD_RESERVED: "its state is unknown, or reserved bytes are not zero",
    Refusal.RESET_CUT_SHORT: "its writer ended in the middle of a reset",
}
_AGAIN = "; a replica makes a new one when it starts"


class Series(NamedTuple):
    """One series of a region: see metrics.pyi."""

    name: str
    kind: Kind
    floating: bool = False
    shared: bool = False
    group: int = 0
    bounds_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """What a histogram held in one pass. `count` is the sum of `buckets`; `bins` maps the number of a bin
    (Region.bins) to its count, where that is not 0."""

    count: int
    sum_ns: int
    buckets: tuple[int, ...]
    bins: dict[int, int]


class Bins(NamedTuple):
    """The exponential bins of a unit: see metrics.pyi."""

    unit_ns: int
    bounds: tuple[int, ...]
    first: int


def exponential_bins(object unit_ns, /):
    """The Bins of a unit of so many nanoseconds. Raises UsageError when it is not 1 to a second."""
    cdef km_metrics_bins bins
    cdef uint32_t i
    km_metrics_fill_bins(_checked_unit(unit_ns), &bins)
    return Bins(unit_ns, tuple([bins.bounds[i] for i in range(KM_METRICS_BINS)]), bins.first)


cdef uint64_t _checked_unit(object unit_ns) except 0:
    if type(unit_ns) is not int or not 1 <= unit_ns <= KM_METRICS_BIN_UNIT_MAX:
        raise UsageError(f"the unit of bins is 1 to {KM_METRICS_BIN_UNIT_MAX} nanoseconds, not {unit_ns!r}")
    return unit_ns


cdef object _refuse(object path, int status):
    """The exception for a file that cannot be had, from the status of the kernel."""
    if status < 0:
        return OSError(-status, os.strerror(-status), path)
    reason = Refusal(status)
    return MetricsFileError(
        f"{path} cannot be read as a file of metrics: {_WHY[reason]}{_AGAIN}", path=path, reason=reason
    )


cdef bytes _path_bytes(object path):
    cdef bytes encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise UsageError(f"a path has no zero bytes: {path!r}")
    return encoded


cdef object _checked(object series):
    """`series` as a Series that the kernel can take; raises UsageError."""
    try:
        name, kind, floating, shared, group, bounds = series
        one = Series(name, Kind(kind), bool(floating), bool(shared), int(group), tuple(bounds))
        if type(name) is not str:  # what is encoded twice must be the same both times
            raise TypeError(f"its name is a {type(name).__name__}, not a str")
        size = len(name.encode())
    except (AttributeError, TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise UsageError(f"{series!r} is no series: {error}") from error
    if not 0 < size <= TEXT_MAX:
        raise UsageError(f"the name of a series has 1 to {TEXT_MAX} bytes, not {size}")
    if not 0 <= one.group <= 255:
        raise UsageError(f"series {name}: a group is 0 to 255, not {group}")
    if one.kind != KM_METRICS_HISTOGRAM:
        if one.bounds_ns:
            raise UsageError(f"series {name}: only a histogram has bounds")
        return one
    if one.floating:
        raise UsageError(f"series {name}: a histogram counts whole nanoseconds")
    if len(one.bounds_ns) > KM_METRICS_BOUNDS_MAX:
        raise UsageError(f"series {name}: {len(one.bounds_ns)} bounds, the most is {KM_METRICS_BOUNDS_MAX}")
    before = -1
    for bound in one.bounds_ns:
        if type(bound) is not int or not before < bound < INT64_MAX:
            raise UsageError(f"series {name}: bounds are whole nanoseconds that ascend: {bound!r} after {before}")
        before = bound
    return one


@cython.final
cdef class _Rows:
    """The kernel's form of a list of series, with the memory that it points to."""

    cdef km_metrics_row *rows
    cdef int64_t *bounds
    cdef list names

    def __cinit__(self, list series):
        cdef Py_ssize_t i = 0, b = 0
        cdef bytes name
        cdef km_metrics_row *row
        self.names = []
        self.rows = <km_metrics_row *> PyMem_Malloc(max(1, len(series)) * sizeof(km_metrics_row))
        self.bounds = <int64_t *> PyMem_Malloc(max(1, sum([len(one.bounds_ns) for one in series])) * sizeof(int64_t))
        if self.rows == NULL or self.bounds == NULL:
            raise MemoryError("no memory for the description of the series")
        for one in series:
            name = one.name.encode()
            self.names.append(name)
            row = &self.rows[i]
            row.name = PyBytes_AS_STRING(name)
            row.name_size = <uint32_t> PyBytes_GET_SIZE(name)
            row.kind = one.kind
            row.value = one.floating
            row.shared = one.shared
            row.group = one.group
            row.bounds = &self.bounds[b]
            row.bound_count = <uint32_t> len(one.bounds_ns)
            for bound in one.bounds_ns:
                self.bounds[b] = bound
                b += 1
            i += 1

    def __dealloc__(self):
        PyMem_Free(self.rows)
        PyMem_Free(self.bounds)


@cython.final
cdef class Region:
    """A set of series: Region.create makes one to write, Region.open maps one to read."""

    cdef km_metrics_map map
    cdef bytes encoded_path
    cdef dict hints_of  # index -> bytes
    cdef km_metrics_bins scale
    cdef readonly object bins
    cdef readonly object path
    cdef readonly tuple series
    cdef readonly bytes info
    cdef readonly bint writable

    def __init__(self):
        raise TypeError("a Region is made by Region.create or Region.open")

    def __dealloc__(self):
        km_metrics_close(&self.map)

    @classmethod
    def create(cls, path, series, bytes info=b"", bin_unit_ns=1_000_000):
        """A new region with all cells 0, to write.

        path: its file; None for memory of this process alone. A file that stands there is
        replaced at once, and keeps its content for whoever has it open. series: a sequence of
        Series; a handle names one by its place in it. info: what readers may know of the
        writer, up to 1 MiB; not interpreted. bin_unit_ns: the unit in which histograms are
        exposed: their bins are exact in it.
        Raises UsageError for a series that cannot be, OSError; nothing is left behind then.
        Cost: some 30 us and a page fault for each page of cells, so that none comes later.
        """
        cdef Region region = Region.__new__(Region)
        cdef list checked = [_checked(one) for one in series]
        cdef _Rows rows
        cdef bytes temporary = b""
        cdef const char *name = NULL
        cdef int status
        cdef uint64_t unit_ns = _checked_unit(bin_unit_ns)
        if len(checked) > SERIES_MAX:
            raise UsageError(f"{len(checked)} series, the most of one region is {SERIES_MAX}")
        if len({one.name for one in checked}) != len(checked):
            names = [one.name for one in checked]
            raise UsageError(f"two series have the name {next(name for name in names if names.count(name) > 1)}")
        if len(info) > TEXT_MAX:
            raise UsageError(f"info of {len(info)} bytes is above {TEXT_MAX}")
        if path is not None:
            region.path = os.fspath(path)
            region.encoded_path = _path_bytes(path)
            folder, base = os.path.split(region.encoded_path)
            temporary = os.path.join(folder, b"." + base + b"." + os.urandom(8).hex().encode() + b".new")
            name = PyBytes_AS_STRING(region.encoded_path)
        rows = _Rows(checked)
        status = km_metrics_create(name, PyBytes_AS_STRING(temporary), rows.rows, <uint32_t> len(checked),
                                   PyBytes_AS_STRING(info), PyBytes_GET_SIZE(info), unit_ns, &region.map)
        if status != 0:
            raise _refuse(region.path, status)
        region.fill_scale()
        region.series = tuple(checked)
        region.info = info
        region.writable = True
        return region

    @classmethod
    def open(cls, path):
        """The region of another process, or of one that has ended, to read.

        Everything but the cells is verified. Raises MetricsFileError (path, reason: a Refusal)
        for a file that is none or is damaged, OSError for one that cannot be opened.
        """
        cdef Region region = Region.__new__(Region)
        cdef int status
        region.path = os.fspath(path)
        region.encoded_path = _path_bytes(path)
        status = km_metrics_open(PyBytes_AS_STRING(region.encoded_path), &region.map)
        if status != 0:
            raise _refuse(region.path, status)
        region.fill_scale()
        region.series = region.read_series()
        region.info = PyBytes_FromStringAndSize(
            <const char *> region.map.base + region.head().info_offset, region.head().info_size)
        region.writable = False
        return region

    cdef int fill_scale(self) except -1:
        self.bins = exponential_bins(self.head().bin_unit_ns)
        km_metrics_fill_bins(self.head().bin_unit_ns, &self.scale)
        self.hints_of = {}
        return 0

    cdef const km_metrics_header *head(self) noexcept:
        return km_metrics_head(&self.map)

    cdef tuple read_series(self):
        cdef const km_metrics_slot *slot
        cdef const int64_t *bounds
        cdef list found = []
        cdef uint32_t i, b
        for i in range(self.head().slot_count):
            slot = &km_metrics_slots(&self.map)[i]
            bounds = <const int64_t *> (self.map.base + slot.bounds_offset)
            try:
                name = PyBytes_FromStringAndSize(<const char *> self.map.base + slot.name_offset, slot.name_size).decode()
            except UnicodeDecodeError as error:
                raise _refuse(self.path, KM_METRICS_BAD_BOUNDS) from error
            found.append(Series(
                name, Kind(slot.kind), bool(slot.value), bool(slot.shared), slot.group,
                tuple([bounds[b] for b in range(slot.bound_count)]) if slot.kind == KM_METRICS_HISTOGRAM else (),
            ))
        return tuple(found)

    # --- what the file says of itself

    @property
    def pid(self):
        """Process that made the region."""
        return self.head().pid

    @property
    def started_unix_ns(self):
        """When it was made, nanoseconds since 1970."""
        return self.head().started_unix_ns

    @property
    def started_monotonic_ns(self):
        """When it was made, on the monotonic clock of the machine."""
        return self.head().started_monotonic_ns

    @property
    def size(self):
        """Bytes of the region in memory and of its file."""
        return self.map.size

    @property
    def generation(self):
        """Changes with every reset; odd while one is under way."""
        return km_atomic_load_acquire(&self.head().generation)

    @property
    def ended(self):
        """Whether the writer has said that it writes no more. A killed one says nothing: look at `pid`."""
        return km_atomic_load_acquire(&self.head().state) == KM_METRICS_ENDED

    def is_current(self):
        """Whether `path` still names this region: not after its writer has started again. Cost: a stat."""
        return self.path is not None and bool(km_metrics_is_current(&self.map, PyBytes_AS_STRING(self.encoded_path)))

    def __repr__(self):
        return f"<Region {self.path or 'in memory'}: {len(self.series)} series of process {self.pid}>"

    # --- writing

    cdef int check_writable(self) except -1:
        if not self.writable:
            raise UsageError(f"{self.path} was opened to read: process {self.pid} writes it")
        return 0

    cdef const km_metrics_slot *slot(self, Py_ssize_t index, int kind) except NULL:
        """The slot of a series of that kind, to write."""
        self.check_writable()
        if not 0 <= index < len(self.series):
            raise UsageError(f"there is no series {index}, only 0 to {len(self.series) - 1}")
        if self.series[index].kind != kind:
            raise UsageError(
                f"series {index}, {self.series[index].name}, is a {self.series[index].kind.name.lower()}, "
                f"not a {Kind(kind).name.lower()}"
            )
        return &km_metrics_slots(&self.map)[index]

    cdef km_atomic_u64 *cell(self, const km_metrics_slot *slot) noexcept:
        return <km_atomic_u64 *> (self.map.base + slot.cell_offset)

    cdef int fill_histogram(self, Py_ssize_t index, km_histogram *histogram) except -1:
        cdef const km_metrics_slot *slot = self.slot(index, KM_METRICS_HISTOGRAM)
        cdef bytes hints = self.hints_of.get(index)
        histogram.sum = self.cell(slot)
        histogram.buckets = histogram.sum + 1
        histogram.bins = histogram.buckets + slot.bound_count + 1
        histogram.bounds = <const int64_t *> (self.map.base + slot.bounds_offset)
        histogram.scale = &self.scale
        histogram.shared = slot.shared
        if hints is None:
            hints = PyBytes_FromStringAndSize(NULL, KM_METRICS_STEPS)
            km_histogram_hints(histogram.bounds, <uint8_t *> PyBytes_AS_STRING(hints))
            self.hints_of[index] = hints
        histogram.hints = <const uint8_t *> PyBytes_AS_STRING(hints)
        return 0

    def counter(self, Py_ssize_t index):
        """The handle that adds to series `index`. Raises UsageError when it is no counter, or not ours to write."""
        cdef const km_metrics_slot *slot = self.slot(index, KM_METRICS_COUNTER)
        cdef Counter handle = Counter.__new__(Counter)
        handle.region = self
        handle.index = index
        handle.cell = self.cell(slot)
        handle.shared = slot.shared
        handle.floating = slot.value
        return handle

    def gauge(self, Py_ssize_t index):
        """The handle that sets series `index`. Raises UsageError when it is no gauge, or not ours to write."""
        cdef const km_metrics_slot *slot = self.slot(index, KM_METRICS_GAUGE)
        cdef Gauge handle = Gauge.__new__(Gauge)
        handle.region = self
        handle.index = index
        handle.cell = self.cell(slot)
        handle.shared = slot.shared
        handle.floating = slot.value
        return handle

    def histogram(self, Py_ssize_t index):
        """The handle that records into series `index`. Raises UsageError when it is no histogram, or not ours."""
        cdef Histogram handle = Histogram.__new__(Histogram)
        self.fill_histogram(index, &handle.histogram)
        handle.region = self
        handle.index = index
        return handle

    def stage_clock(self, stages, *, Py_ssize_t turn, Py_ssize_t turned_at):
        """A StageClock over counters of nanoseconds, which begins in stages[0], waiting.

        stages: 2 to 16 indices of counters of whole numbers. turn: the histogram of what lies
        between two waits. turned_at: the gauge that holds the monotonic clock at the end of
        the last turn, and now at first. Raises UsageError.
        """
        cdef StageClock clock = StageClock.__new__(StageClock)
        cdef const km_metrics_slot *slot
        cdef list indices = list(stages)
        cdef uint32_t i
        if not 2 <= len(indices) <= KM_STAGES_MAX:
            raise UsageError(f"a stage clock has 2 to {KM_STAGES_MAX} stages, not {len(indices)}")
        for i in range(<uint32_t> len(indices)):
            slot = self.slot(indices[i], KM_METRICS_COUNTER)
            if slot.value:
                raise UsageError(f"series {indices[i]}: a stage counts whole nanoseconds, not floats")
            clock.clock.stages[i] = self.cell(slot)
        clock.clock.stage_count = <uint32_t> len(indices)
        self.fill_histogram(turn, &clock.clock.turn)
        slot = self.slot(turned_at, KM_METRICS_GAUGE)
        if slot.value:
            raise UsageError(f"series {turned_at}: the clock is whole nanoseconds, not a float")
        clock.clock.turned_at = self.cell(slot)
        clock.region = self
        clock.clock.since = clock.clock.turn_began = km_metrics_clock_ns()
        km_atomic_store_relaxed(clock.clock.turned_at, clock.clock.since)
        return clock

    def end(self):
        """Say that nothing is recorded from here on; readers see it as `ended`."""
        self.check_writable()
        km_atomic_store_release(<km_atomic_u64 *> &self.head().state, KM_METRICS_ENDED)

    def reset(self):
        """Set all cells to 0, for tests. Threads without the GIL must not record meanwhile.

        A reader sees all cells of before or all of after.
        """
        self.check_writable()
        km_metrics_reset(&self.map)

    # --- reading

    def read(self):
        """The values of all series in their order, each cell read once: integers, floats and HistogramValues.

        There is no order between cells: what one event has changed in two of them may be
        seen in one alone. Cost: about 1 ns a cell and 20 us a histogram. Raises
        MetricsFileError when the writer has died inside of a reset.
        """
        cdef size_t cells_offset = self.head().cells_offset
        cdef uint64_t *cells = <uint64_t *> PyMem_Malloc(max(<size_t> 1, self.map.size - cells_offset))
        cdef const km_metrics_slot *slot
        cdef const uint64_t *at
        cdef list values = []
        cdef uint32_t i
        cdef int whole
        if cells == NULL:
            raise MemoryError("no memory for a copy of the metrics")
        try:
            if not km_metrics_copy(&self.map, cells, 1):
                with nogil:
                    whole = km_metrics_copy(&self.map, cells, PATIENCE)
                if not whole:
                    raise _refuse(self.path, Refusal.RESET_CUT_SHORT)
            for i in range(self.head().slot_count):
                slot = &km_metrics_slots(&self.map)[i]
                at = cells + (slot.cell_offset - cells_offset) // 8
                if slot.kind == KM_METRICS_HISTOGRAM:
                    values.append(_histogram_value(at, slot.bound_count + 1))
                else:
                    values.append(_value(at[0], slot.kind, slot.value))
            return values
        finally:
            PyMem_Free(cells)


# Cython's own conversions cut a float to an integer without a word. What is recorded may come from a frame, and
# no number of somebody else's may end the process that counts it: what does not fit is cut to what does.

cdef inline int64_t _whole(object value, int *beyond) except? -1:
    """A whole number; `beyond` is -1 or 1 when it is below or above what 64 bits with a sign hold."""
    if not PyLong_Check(value):
        value = PyNumber_Index(value)
    return PyLong_AsLongLongAndOverflow(value, beyond)


cdef inline int64_t _signed(object value) except? -1:
    cdef int beyond = 0
    cdef int64_t whole = _whole(value, &beyond)
    if beyond == 0:
        return whole
    return INT64_MAX if beyond > 0 else INT64_MIN


cdef inline uint64_t _unsigned(object value) except? <uint64_t> -1:
    cdef int beyond = 0
    cdef int64_t whole = _whole(value, &beyond)
    if beyond <= 0:
        return <uint64_t> whole if beyond == 0 and whole > 0 else 0
    value = PyNumber_Index(value)
    return <uint64_t> value if value <= UINT64_MAX else UINT64_MAX


cdef inline double _double(object value) except? -1.0:
    """A float, or an integer of any size."""
    try:
        return <double> value
    except OverflowError:
        return DBL_MAX if value > 0 else -DBL_MAX


cdef object _value(uint64_t bits, int kind, bint floating):
    if floating:
        return km_metrics_float(bits)
    if kind == KM_METRICS_GAUGE:
        return <int64_t> bits
    return bits


cdef object _histogram_value(const uint64_t *at, uint32_t bucket_count):
    cdef list buckets = []
    cdef dict bins = {}
    cdef uint64_t count = 0
    cdef uint32_t i
    for i in range(bucket_count):
        count += at[1 + i]
        buckets.append(at[1 + i])
    at += 1 + bucket_count
    for i in range(KM_METRICS_BINS):
        if at[i]:
            bins[i] = at[i]
    return HistogramValue(count, (at - 1 - bucket_count)[0], tuple(buckets), bins)


cdef double _amount(object value) except? -1.0:
    """What a floating counter may be raised by."""
    cdef double amount = _double(value)
    if not amount > 0.0:  # and what is no number
        return 0.0
    return amount if amount < DBL_MAX else DBL_MAX


@cython.final
cdef class Counter:
    """Adds to one series. Made by Region.counter."""

    cdef km_atomic_u64 *cell
    cdef Region region
    cdef readonly Py_ssize_t index
    cdef bint shared
    cdef bint floating

    def __init__(self):
        raise TypeError("a Counter is made by Region.counter")

    def add(self, object amount=1, /):
        """Add `amount`, a whole number from 0 (a float only where the series is floating).

        A counter only grows: below 0 and NaN add nothing; beyond 64 bits, as much as fits. Raises
        TypeError for what is no number of that kind. Cost: some 40 ns, 2 of them here.
        """
        if self.floating:
            km_metrics_add_float(self.cell, self.shared, _amount(amount))
        else:
            km_metrics_add(self.cell, self.shared, _unsigned(amount))

    def advance_to(self, object total, /):
        """Set the counter to a total that is counted elsewhere. A total below the present one changes nothing.

        Arguments, errors and cost as of add.
        """
        cdef uint64_t bits
        cdef double amount = 0
        cdef uint64_t seen = km_atomic_load_relaxed(self.cell)
        if self.floating:
            amount = _amount(total)
            bits = km_metrics_bits(amount)
        else:
            bits = _unsigned(total)
        while (amount > km_metrics_float(seen)) if self.floating else (bits > seen):
            if km_atomic_exchange_if_relaxed(self.cell, &seen, bits):
                break

    def value(self):
        """What has been counted."""
        return _value(km_atomic_load_relaxed(self.cell), KM_METRICS_COUNTER, self.floating)


@cython.final
cdef class Gauge:
    """Sets one series. Made by Region.gauge."""

    cdef km_atomic_u64 *cell
    cdef Region region
    cdef readonly Py_ssize_t index
    cdef bint shared
    cdef bint floating

    def __init__(self):
        raise TypeError("a Gauge is made by Region.gauge")

    def set(self, object value, /):
        """Set to `value`: an integer, or any float where the series is floating.

        An integer beyond a signed one of 64 bits is cut to the nearest. Raises TypeError. Cost: some 35 ns.
        """
        if self.floating:
            km_atomic_store_relaxed(self.cell, km_metrics_bits(_double(value)))
        else:
            km_atomic_store_relaxed(self.cell, <uint64_t> _signed(value))

    def add(self, object amount, /):
        """Add `amount`, which may be negative. An integer gauge wraps at 64 bits. Errors and cost as of set."""
        if self.floating:
            km_metrics_add_float(self.cell, self.shared, _double(amount))
        else:
            km_metrics_add(self.cell, self.shared, <uint64_t> _signed(amount))

    def value(self):
        """What it is set to."""
        return _value(km_atomic_load_relaxed(self.cell), KM_METRICS_GAUGE, self.floating)


@cython.final
cdef class Histogram:
    """Records durations into one series. Made by Region.histogram."""

    cdef km_histogram histogram
    cdef Region region
    cdef readonly Py_ssize_t index

    def __init__(self):
        raise TypeError("a Histogram is made by Region.histogram")

    def record(self, object duration_ns, /):
        """Count one duration in nanoseconds; one below 0 counts as 0, one beyond 64 bits as the longest.

        Raises TypeError for what is no integer. Cost: some 45 ns, 5 of them here.
        """
        km_histogram_observe(&self.histogram, _signed(duration_ns))

    def record_many(self, object durations_ns, /):
        """Count each duration of a sequence, at some 10 ns each. Errors as of record: those before the bad one count."""
        for duration in durations_ns if type(durations_ns) is list else list(durations_ns):
            km_histogram_observe(&self.histogram, _signed(duration))


@cython.final
cdef class StageClock:
    """Where the time of one thread goes: at every moment exactly one stage is charged, so the
    stages add up to the time that has passed. Made by Region.stage_clock."""

    cdef km_stage_clock clock
    cdef Region region

    def __init__(self):
        raise TypeError("a StageClock is made by Region.stage_clock")

    def switch(self, object stage, /):
        """Charge the time since the last switch to the present stage and enter `stage`; returns the one left.

        stage: its position in `stages`. Leaving stage 0 begins a turn, entering it ends one. Raises
        UsageError. Cost: some 40 ns and a reading of the clock.
        """
        cdef int64_t entered = _signed(stage)
        if not 0 <= entered < self.clock.stage_count:
            raise UsageError(f"there is no stage {stage}, only 0 to {self.clock.stage_count - 1}")
        return km_stage_switch(&self.clock, <uint32_t> entered, km_metrics_clock_ns())


def quantile(dict counts not None, double q, bins not None):
    """The q-quantile, in nanoseconds, of counts by bin (HistogramValue.bins, or differences of them).

    bins: the Bins that they are of. Within 4.4 % of the duration of that rank, if that is below 2**40 ns; 0.0 when there
    is none.
    Raises UsageError for a q outside of 0 to 1.
    """
    cdef object total = sum(counts.values())
    cdef object rank, seen = 0
    if not 0.0 <= q <= 1.0:
        raise UsageError(f"a quantile is between 0 and 1, not {q}")
    if total <= 0:
        return 0.0
    rank = max(1, min(total, -int(-q * total // 1)))  # the smallest rank with at least a share of q at or below it
    for index in sorted(counts):
        seen += counts[index]
        if seen >= rank:
            break
    if index == 0:
        return 0.0
    low, high = bins.bounds[index - 1] + 1, bins.bounds[index]
    if index == len(bins.bounds) - 1:  # what is longer counts here too
        high = 1 << 40
    return 2 * low * high / (low + high)


def now_ns():
    """The monotonic clock, in nanoseconds: the one of started_monotonic_ns and of StageClock."""
    return km_metrics_clock_ns()


_LOOPS = {
    "store": KM_METRICS_TIME_STORE,
    "locked": KM_METRICS_TIME_LOCKED,
    "counter": KM_METRICS_TIME_COUNTER,
    "shared_counter": KM_METRICS_TIME_SHARED_COUNTER,
    "histogram": KM_METRICS_TIME_HISTOGRAM,
}


def calibrate(str what not None, uint64_t rounds):
    """Nanoseconds for `rounds` rounds of a loop in C, for benches: see km_metrics.h.

    what: "store" (relaxed load and store) and "locked" (relaxed fetch_add) are the yardsticks;
    "counter", "shared_counter" and "histogram" are measured by them. Releases the GIL.
    """
    cdef int loop
    cdef uint64_t took
    if what not in _LOOPS:
        raise UsageError(f"there is no loop {what!r}, only {', '.join(_LOOPS)}")
    loop = _LOOPS[what]
    with nogil:
        took = km_metrics_calibrate(loop, rounds)
    return took
