# cython: boundscheck=False, wraparound=False, binding=False
"""XXH3 checksums of one contiguous buffer: the thin side of c/km_xxh3.c.

XXH3-128 in canonical (big-endian) form is the protocol's checksum: the identity of
headers, bodies and journal entries. It detects accidents, it resists no attacker.

Importing this module fails when KIMBERLITE_KERNEL demands a kernel that cannot be had.
The kernels read exactly the bytes of the buffer; length 0 is a message like any other.

GIL: kept up to HOLD_MAX bytes. Taking it back from a thread that computes costs one
switch interval (5 ms; measured for a digest of 15 us), which no checksum of a frame is
worth; HOLD_MAX is the default frame limit, 0.06 ms of work in cache, 0.15 ms from memory.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

import os

from kimberlite.errors import KernelNotBuiltError, KernelUnknownError, KernelUnsupportedError

cdef extern from "km_xxh3.h" nogil:
    enum:
        KM_XXH3_KERNELS
        KM_XXH3_USABLE
        KM_XXH3_UNKNOWN
        KM_XXH3_NOT_BUILT
        KM_XXH3_UNSUPPORTED
    uint64_t km_xxh3_64_seeded(const void *data, size_t length, uint64_t seed)
    void km_xxh3_128(const void *data, size_t length, uint8_t *out)
    int km_xxh3_kernel()
    const char *km_xxh3_kernel_name(int kernel)
    int km_xxh3_kernel_status(int kernel)
    int km_xxh3_demand()
    uint64_t km_xxh3_64_with(int kernel, const void *data, size_t length, uint64_t seed)
    void km_xxh3_128_with(int kernel, const void *data, size_t length, uint64_t seed, uint8_t *out)

cdef enum:
    HOLD_MAX = 4 << 20


cdef int open_buffer(object data, Py_buffer *view) except -1:
    """Set view.buf and view.len. True if the caller must release the view: bytes need no view."""
    if PyBytes_CheckExact(data):
        view.buf = PyBytes_AS_STRING(data)
        view.len = PyBytes_GET_SIZE(data)
        return False
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except BufferError:
        refuse_strided(data)
        raise
    return True


cdef int refuse_strided(object data) except -1:
    """Raise a BufferError that says what to do if the buffer has gaps; else return."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_STRIDED_RO)
    try:
        strides = tuple(view.strides[axis] for axis in range(view.ndim))
    finally:
        PyBuffer_Release(&view)
    raise BufferError(
        f"a checksum needs one contiguous buffer; this {type(data).__name__} has strides {strides}: copy it with bytes()"
    )


def xxh3_64(data, /, uint64_t seed=0):
    """XXH3-64 of `data` as an integer.

    data: any object with a contiguous buffer. seed: 0 .. 2**64 - 1; a seed other than 0
    costs some 30 ns more above 240 bytes.
    Raises TypeError without a buffer, BufferError if it has gaps, OverflowError for a seed
    out of range. Copies nothing. Thread-safe if nobody writes to the buffer meanwhile.
    """
    cdef Py_buffer view
    cdef uint64_t digest
    cdef bint held = open_buffer(data, &view)
    if view.len > HOLD_MAX:
        with nogil:
            digest = km_xxh3_64_seeded(view.buf, <size_t>view.len, seed)
    else:
        digest = km_xxh3_64_seeded(view.buf, <size_t>view.len, seed)
    if held:
        PyBuffer_Release(&view)
    return digest


def xxh3_128(data, /):
    """XXH3-128 of `data` with seed 0: 16 bytes in canonical order, most significant first.

    Arguments, errors and thread rules as of xxh3_64.
    """
    cdef Py_buffer view
    cdef bytes digest = PyBytes_FromStringAndSize(NULL, 16)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(digest)
    cdef bint held = open_buffer(data, &view)
    if view.len > HOLD_MAX:
        with nogil:
            km_xxh3_128(view.buf, <size_t>view.len, out)
    else:
        km_xxh3_128(view.buf, <size_t>view.len, out)
    if held:
        PyBuffer_Release(&view)
    return digest


def kernel():
    """Name of the kernel in use for messages above 240 bytes, for example "avx2"."""
    return km_xxh3_kernel_name(km_xxh3_kernel()).decode()


def kernels():
    """Names of the kernels this processor can run, slowest first. KIMBERLITE_KERNEL takes one of them."""
    return tuple(
        km_xxh3_kernel_name(number).decode()
        for number in range(KM_XXH3_KERNELS)
        if km_xxh3_kernel_status(number) == KM_XXH3_USABLE
    )


cdef object kernel_error(str name, int status):
    """Why the kernel `name` cannot be had, as the exception to raise."""
    known = [km_xxh3_kernel_name(number).decode() for number in range(KM_XXH3_KERNELS)]
    usable = ", ".join(kernels())
    if status == KM_XXH3_UNKNOWN:
        return KernelUnknownError(
            f"there is no checksum kernel {name!r}, only {', '.join(known)}; this processor can run {usable}", kernel=name
        )
    if status == KM_XXH3_NOT_BUILT:
        return KernelNotBuiltError(
            f"the checksum kernel {name!r} is not built for this processor architecture; it can run {usable}", kernel=name
        )
    return KernelUnsupportedError(
        f"the checksum kernel {name!r} needs instructions that this processor or system lacks; it can run {usable}",
        kernel=name,
    )


cdef int find_kernel(str name) except -1:
    """Number of the usable kernel `name`; raises a KernelUnknownError and so on."""
    cdef int number = 0
    cdef int status
    while number < KM_XXH3_KERNELS and km_xxh3_kernel_name(number).decode() != name:
        number += 1
    status = km_xxh3_kernel_status(number)
    if status != KM_XXH3_USABLE:
        raise kernel_error(name, status)
    return number


def xxh3_64_with(str kernel, data, uint64_t seed=0):
    """xxh3_64 by the kernel of that name, for tests and benchmarks. Raises the kernel errors of kimberlite.errors."""
    cdef int number = find_kernel(kernel)
    cdef Py_buffer view
    cdef uint64_t digest
    cdef bint held = open_buffer(data, &view)
    digest = km_xxh3_64_with(number, view.buf, <size_t>view.len, seed)
    if held:
        PyBuffer_Release(&view)
    return digest


def xxh3_128_with(str kernel, data, uint64_t seed=0):
    """xxh3_128 by the kernel of that name, for tests and benchmarks, with a seed. Raises as xxh3_64_with."""
    cdef int number = find_kernel(kernel)
    cdef Py_buffer view
    cdef bytes digest = PyBytes_FromStringAndSize(NULL, 16)
    cdef bint held = open_buffer(data, &view)
    km_xxh3_128_with(number, view.buf, <size_t>view.len, seed, <uint8_t *>PyBytes_AS_STRING(digest))
    if held:
        PyBuffer_Release(&view)
    return digest


if km_xxh3_demand() != KM_XXH3_USABLE:
    raise kernel_error(os.environ.get("KIMBERLITE_KERNEL", ""), km_xxh3_demand())
