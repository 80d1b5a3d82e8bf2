# cython: language_level=3
"""The journal's write path: aligned memory and the write engine of c/km_append.c.

`Writer` takes submissions (ordered phases of writes), holds their buffers until they are
durable, and hands their tokens back in order. All waiting happens without the GIL.
Thread rules: one thread calls a Writer; its disk thread is inside.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t, UINT64_MAX
from libc.stdlib cimport free
from libc.string cimport memset

import os

from kimberlite.errors import UsageError, WriteFailedError

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)

cdef extern from "km_append.h" nogil:
    ctypedef struct km_write:
        int fd
        uint64_t offset
        const void *data
        size_t length

    ctypedef struct km_submission:
        int64_t token
        uint32_t phase_count
        uint32_t *phase_ends
        km_write *writes
        uint64_t duration_ns
        uint64_t sync_ns
        km_submission *next

    ctypedef struct km_engine:
        pass

    ctypedef struct km_failure:
        int error
        int fd
        uint64_t offset

    ctypedef struct km_engine_stats:
        uint64_t writes
        uint64_t bytes
        uint64_t submissions
        uint64_t groups
        uint64_t switches
        uint64_t latency_ns
        uint64_t queued
        int inline_now

    km_engine *km_engine_new(int sync_each, uint64_t inline_below_ns)
    void km_engine_free(km_engine *engine)
    int km_engine_eventfd(const km_engine *engine)
    void km_engine_submit(km_engine *engine, km_submission *submission)
    km_submission *km_engine_collect(km_engine *engine)
    void km_engine_flush(km_engine *engine)
    km_failure km_engine_failure(km_engine *engine)
    km_engine_stats km_engine_read_stats(km_engine *engine)
    uint64_t km_append_calibrate(int fd, uint64_t offset, const void *data, size_t size, uint32_t count)

cdef size_t ALIGNMENT = 4096
cdef Py_ssize_t WRITES_MAX = 1 << 20  # of one submission, and its phases: no product of it with a size overflows
cdef uint64_t OFFSET_MAX = <uint64_t> 1 << 62
INLINE_ALWAYS = UINT64_MAX

_CHANGED = "a phase does not hold the writes that its length says, or the phases changed while they were read"

# Freed aligned memory, kept for the next buffer of the same size: fresh pages cost a fault each.
cdef dict _pool = {}
cdef size_t _pool_bytes = 0
cdef size_t POOL_BYTES_MAX = 32 << 20


cdef class AlignedBuffer:
    """`length` bytes at an address that is a multiple of 4096, writable, zeroed.

    memoryview(buffer) gives access; the memory returns to a bounded pool when the last
    reference is gone.
    """

    cdef void *data
    cdef readonly Py_ssize_t length

    def __cinit__(self, Py_ssize_t length, bint zero=True):
        global _pool_bytes
        cdef list free_list
        if length <= 0 or length % <Py_ssize_t> ALIGNMENT:
            raise UsageError(f"an aligned buffer has a positive multiple of {ALIGNMENT} bytes, not {length}")
        self.length = length
        free_list = _pool.get(length)
        if free_list:
            self.data = <void *> <size_t> free_list.pop()
            _pool_bytes -= length
        elif posix_memalign(&self.data, ALIGNMENT, length) != 0:
            self.data = NULL
            raise MemoryError(f"no memory for an aligned buffer of {length} bytes")
        else:
            zero = True
        if zero:
            memset(self.data, 0, length)

    def __dealloc__(self):
        global _pool_bytes
        if self.data == NULL:
            return
        if _pool_bytes + self.length <= POOL_BYTES_MAX:
            _pool.setdefault(self.length, []).append(<size_t> self.data)
            _pool_bytes += self.length
        else:
            free(self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.length, 0, flags)

    def __len__(self):
        return self.length


cdef class _Held:
    """A submission and the buffers it needs."""

    cdef km_submission submission
    cdef Py_buffer *views
    cdef Py_ssize_t view_count

    def __cinit__(self):
        self.views = NULL
        self.view_count = 0

    def __dealloc__(self):
        self.release()
        PyMem_Free(self.submission.phase_ends)
        PyMem_Free(self.submission.writes)
        PyMem_Free(self.views)

    cdef void release(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self.view_count):
            PyBuffer_Release(&self.views[i])
        self.view_count = 0


# Untracked: it can not be part of a cycle, but it can hang on one, and the collector would then clear `held`
# while the disk thread still reads the buffers.
@cython.no_gc
cdef class Writer:
    """The write engine: see c/km_append.h.

    sync_each: files lack O_DSYNC, so every phase ends with fdatasync.
    inline_below_ns: write in the caller while the latency is below this; 0 never, INLINE_ALWAYS always.
    """

    cdef km_engine *engine
    cdef dict held  # token -> _Held
    cdef list latencies
    cdef list syncs

    def __cinit__(self, *, bint sync_each=False, uint64_t inline_below_ns=0):
        self.held = {}
        self.latencies = []
        self.syncs = []
        self.engine = km_engine_new(sync_each, inline_below_ns)
        if self.engine == NULL:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        cdef km_engine *engine = self.engine
        if engine != NULL:
            with nogil:
                km_engine_free(engine)

    def fileno(self):
        """A descriptor that is readable when the disk thread has completed something, or anything failed."""
        return km_engine_eventfd(self.engine)

    def submit(self, int64_t token, object phases):
        """Carry out `phases`, a sequence of sequences of (fd, offset, buffer), in order.

        Buffers can not be resized until completion; their content must not be changed.
        Raises, before anything is written: UsageError for an offset, length or address that is not aligned, an empty
        buffer, a token in use, and phases that do not hold what their lengths say or change meanwhile; TypeError,
        BufferError and OverflowError for what is no number or no contiguous buffer.
        """
        cdef _Held held = _Held.__new__(_Held)
        cdef km_submission *submission = &held.submission
        cdef Py_ssize_t total = 0, count = 0, size, i = 0, p = 0
        cdef km_engine *engine = self.engine
        cdef km_write *write
        cdef Py_buffer *view
        for phase in phases:
            size = len(phase)
            if size > WRITES_MAX - total or count == WRITES_MAX:
                raise UsageError(f"a submission has at most {WRITES_MAX} writes and phases")
            total += size
            count += 1
        submission.token = token
        submission.phase_count = <uint32_t> count
        submission.phase_ends = <uint32_t *> PyMem_Malloc(max(1, count) * sizeof(uint32_t))
        submission.writes = <km_write *> PyMem_Malloc(max(1, total) * sizeof(km_write))
        held.views = <Py_buffer *> PyMem_Malloc(max(1, total) * sizeof(Py_buffer))
        if submission.phase_ends == NULL or submission.writes == NULL or held.views == NULL:
            raise MemoryError("no memory for a submission")
        # Taking a length, an element, a number or a buffer can run code of the caller's, which can change what is still
        # to be read, or submit something itself: the counts above are bounds here, and nothing else is believed.
        for phase in phases:
            if p == count:
                raise UsageError(_CHANGED)
            for fd, offset, buffer in phase:
                if i == total:
                    raise UsageError(_CHANGED)
                view = &held.views[i]
                write = &submission.writes[i]
                PyObject_GetBuffer(buffer, view, PyBUF_SIMPLE)
                held.view_count += 1
                i += 1
                write.fd = fd
                write.offset = offset
                write.data = view.buf
                write.length = view.len
                if (write.offset | <size_t> view.len | <size_t> view.buf) % ALIGNMENT or view.len <= 0:
                    raise UsageError(
                        f"a write of {view.len} bytes at offset {offset} from address {<size_t> view.buf:#x} "
                        f"is not aligned to {ALIGNMENT}, or empty"
                    )
                if write.offset > OFFSET_MAX or <uint64_t> view.len > OFFSET_MAX:
                    raise UsageError(f"a write of {view.len} bytes at offset {offset} is beyond the end of any file")
            submission.phase_ends[p] = <uint32_t> i
            p += 1
        if i != total or p != count:
            raise UsageError(_CHANGED)
        if token in self.held:
            raise UsageError(f"token {token} is in use")
        self.held[token] = held
        with nogil:
            km_engine_submit(engine, submission)

    def completions(self):
        """Tokens that became durable, in order. Raises WriteFailedError (errno, fd, offset) once
        anything failed; nothing submitted after that is carried out."""
        cdef km_engine *engine = self.engine
        cdef km_submission *done = km_engine_collect(engine)
        cdef km_submission *following
        cdef km_failure failure
        cdef list tokens = []
        cdef _Held held
        while done != NULL:
            following = done.next
            tokens.append(done.token)
            self.latencies.append(done.duration_ns)
            if done.sync_ns:
                self.syncs.append(done.sync_ns)
            held = self.held.pop(done.token)
            held.release()
            done = following
        if not tokens:
            failure = km_engine_failure(engine)
            if failure.error:
                raise WriteFailedError(
                    f"a write at offset {failure.offset} failed: {os.strerror(failure.error)}",
                    errno=failure.error, fd=failure.fd, offset=failure.offset,
                )
        return tokens

    def take_latencies(self):
        """Nanoseconds from submission to durability of what completed since the last call."""
        latencies, self.latencies = self.latencies, []
        return latencies

    def take_sync_latencies(self):
        """Nanoseconds of the slowest synchronous write of each group that completed since the last call."""
        syncs, self.syncs = self.syncs, []
        return syncs

    def flush(self):
        """Block until nothing is under way, or something failed."""
        cdef km_engine *engine = self.engine
        with nogil:
            km_engine_flush(engine)

    def stats(self):
        """Counters since the start: see km_engine_stats in c/km_append.h."""
        return km_engine_read_stats(self.engine)


def calibrate(int fd, uint64_t offset, object buffer, uint32_t count):
    """Nanoseconds that a plain C loop takes for `count` writes of `buffer`: the yardstick of benches.

    Raises UsageError for no writes or an empty buffer, OSError for one that fails.
    """
    cdef Py_buffer view
    cdef uint64_t took
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if not count or not view.len:
            raise UsageError(f"{count} writes of {view.len} bytes take no time: give at least one of at least one byte")
        with nogil:
            took = km_append_calibrate(fd, offset, view.buf, view.len, count)
        if not took:
            raise OSError(errno, os.strerror(errno))
        return took
    finally:
        PyBuffer_Release(&view)
