# cython: language_level=3
"""Event batches and batches of requests: building, checking, counting and slicing in C.

The skin over c/km_events.c, where the layout of an event batch is drawn. A BATCH prepare
holds several client requests:

    count u32 | reserved u32 = 0 | count records of 48 bytes | bodies, each padded with zeros to 8 bytes
    record: client 16 | session u64 | request u64 | events u32 | size u32 | operation u8 | zeros 3 | extension u32 = 0

`extension` is room: how many bytes later releases put behind a body (frames.ROOM). This one refuses what is not 0.

Everything that comes from outside is checked before it is used; malformed input raises
FrameError, an event above the limit EventTooLargeError with the numbers.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from typing import NamedTuple

from kimberlite.errors import EventTooLargeError, FrameError, UsageError
from kimberlite.types import FrameReason

cdef extern from "km_events.h" nogil:
    enum:
        KM_EVENTS_OK
        KM_EVENTS_TRUNCATED
        KM_EVENTS_RESERVED
        KM_EVENTS_OFFSETS
        KM_EVENTS_LARGE
    size_t km_events_payload(uint32_t count)
    size_t km_events_size(uint32_t count, size_t payload)
    int km_events_validate(const uint8_t *body, size_t length, uint32_t event_max, uint32_t *count, uint32_t *bad)
    size_t km_events_offset(const uint8_t *body, uint32_t count, uint32_t i)
    uint32_t km_events_count_lines(
        const uint8_t *data, size_t length, uint32_t count_max, size_t bytes_max, size_t *payload, size_t *consumed)
    void km_events_build_lines(const uint8_t *data, uint32_t count, uint8_t *body)

cdef uint32_t NO_LIMIT = 0xFFFFFFFF
cdef size_t BODY_MAX = 1 << 30
cdef size_t RECORD = 48

_WHY = {
    KM_EVENTS_TRUNCATED: "it is shorter than its table of offsets says",
    KM_EVENTS_RESERVED: "reserved or padding bytes are not zero",
    KM_EVENTS_OFFSETS: "its offsets do not ascend from 0 to the length of the payload",
}


class SubRequest(NamedTuple):
    """One client's request inside a BATCH prepare. `events` is the number of events in `body`."""

    client: bytes
    session: int
    request: int
    operation: int
    events: int
    body: object


cdef object _malformed(str what):
    return FrameError(f"malformed batch: {what}", reason=FrameReason.BAD_SIZE)


cdef int _check(const uint8_t *data, size_t length, uint32_t event_max, uint32_t *count) except -1:
    cdef uint32_t bad = 0
    cdef int status = km_events_validate(data, length, event_max, count, &bad)
    cdef size_t size
    if status == KM_EVENTS_LARGE:
        size = km_events_offset(data, count[0], bad + 1) - km_events_offset(data, count[0], bad)
        raise EventTooLargeError(
            f"event {bad} of the batch has {size} bytes, the limit is {event_max}; split it or raise "
            "limits.event_bytes_max",
            index=bad, size=size, limit=event_max,
        )
    if status != KM_EVENTS_OK:
        raise _malformed(_WHY[status])
    return 0


_CHANGED = "an event changed its length, or the list of events did, while the batch was built"
_CHANGED_BATCH = "a batch changed while it was joined with others"
_CHANGED_REQUEST = "a request body changed its length while it was packed"


cdef inline void _store32(uint8_t *to, uint32_t value) noexcept nogil:
    memcpy(to, &value, 4)


cdef inline uint32_t _load32(const uint8_t *data) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, data, 4)
    return value


cdef inline uint64_t _load64(const uint8_t *data) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, data, 8)
    return value


def build(object events):
    """One batch body from a sequence of bytes-like events. Two passes: sizes, then copies."""
    cdef list items = events if type(events) is list else list(events)
    cdef uint32_t count = <uint32_t> len(items)
    cdef size_t payload = 0, start
    cdef uint32_t offset = 0
    cdef Py_buffer view
    cdef bytes body
    cdef uint8_t *to
    cdef object item
    for item in items:
        if type(item) is bytes:
            payload += PyBytes_GET_SIZE(item)
        else:
            PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
            payload += view.len
            PyBuffer_Release(&view)
    if payload > BODY_MAX:
        raise EventTooLargeError(f"a batch of {payload} bytes is above {BODY_MAX}", size=payload, limit=BODY_MAX)
    body = PyBytes_FromStringAndSize(NULL, km_events_size(count, payload))
    to = <uint8_t *> PyBytes_AS_STRING(body)
    start = km_events_payload(count)
    memset(to, 0, start)
    _store32(to, count)
    cdef size_t i = 0
    for item in items:
        # Taking a buffer can run code of the caller, which can change both the event and the list.
        if type(item) is bytes:
            if i >= count or offset + <size_t> PyBytes_GET_SIZE(item) > payload:
                raise UsageError(_CHANGED)
            memcpy(to + start + offset, PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item))
            offset += <uint32_t> PyBytes_GET_SIZE(item)
        else:
            PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
            if i >= count or offset + <size_t> view.len > payload:
                PyBuffer_Release(&view)
                raise UsageError(_CHANGED)
            memcpy(to + start + offset, view.buf, view.len)
            offset += <uint32_t> view.len
            PyBuffer_Release(&view)
        i += 1
        _store32(to + 8 + i * 4, offset)
    if i != count or offset != payload:
        raise UsageError(_CHANGED)
    return body


def build_lines(object data, Py_ssize_t start, uint32_t count_max, size_t bytes_max):
    """A batch of the newline-terminated lines found in data[start:], without their newlines.

    At most `count_max` lines and `bytes_max` bytes. Returns (body, count, next_start); an
    unterminated tail is left, and so is a line that does not fit. count 0 gives an empty batch.
    """
    cdef Py_buffer view
    cdef uint32_t count
    cdef size_t payload = 0, consumed = 0
    cdef bytes body
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if start < 0 or start > view.len:
            raise UsageError(f"start {start} is outside of {view.len} bytes")
        count = km_events_count_lines(
            <const uint8_t *> view.buf + start, view.len - start, count_max, min(bytes_max, BODY_MAX), &payload, &consumed)
        body = PyBytes_FromStringAndSize(NULL, km_events_size(count, payload))
        km_events_build_lines(<const uint8_t *> view.buf + start, count, <uint8_t *> PyBytes_AS_STRING(body))
        return body, count, start + <Py_ssize_t> consumed
    finally:
        PyBuffer_Release(&view)


def validate(object body, uint32_t event_max=NO_LIMIT):
    """Number of events of a batch, after checking every byte of its table.

    Raises FrameError when malformed, EventTooLargeError (index, size, limit) for an event
    above `event_max`. Cost: about 1 ns an event.
    """
    cdef Py_buffer view
    cdef uint32_t count = 0
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        _check(<const uint8_t *> view.buf, view.len, event_max, &count)
        return count
    finally:
        PyBuffer_Release(&view)


def count(object body):
    """Number of events that a batch claims to have; nothing else is checked."""
    cdef Py_buffer view
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        if view.len < 12:
            raise _malformed("it is shorter than 12 bytes")
        return _load32(<const uint8_t *> view.buf)
    finally:
        PyBuffer_Release(&view)


cdef int _range(uint32_t count, Py_ssize_t first, Py_ssize_t last) except -1:
    if first < 0 or last < first or last > <Py_ssize_t> count:
        raise UsageError(f"events {first} to {last} are outside of a batch of {count}")
    return 0


def slice(object body, Py_ssize_t first, Py_ssize_t last):
    """Events first..last-1 as a list of bytes. The batch is checked."""
    cdef Py_buffer view
    cdef uint32_t count = 0
    cdef const uint8_t *data
    cdef size_t here, following
    cdef Py_ssize_t i
    cdef list result = []
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        data = <const uint8_t *> view.buf
        _check(data, view.len, NO_LIMIT, &count)
        _range(count, first, last)
        here = km_events_offset(data, count, first)
        for i in range(first, last):
            following = km_events_offset(data, count, i + 1)
            result.append(PyBytes_FromStringAndSize(<const char *> data + here, following - here))
            here = following
        return result
    finally:
        PyBuffer_Release(&view)


def sub_batch(object body, Py_ssize_t first, Py_ssize_t last):
    """A batch body of events first..last-1. The batch is checked."""
    cdef Py_buffer view
    cdef uint32_t count = 0
    cdef const uint8_t *data
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        data = <const uint8_t *> view.buf
        _check(data, view.len, NO_LIMIT, &count)
        _range(count, first, last)
        return _assemble(data, count, first, last)
    finally:
        PyBuffer_Release(&view)


cdef bytes _assemble(const uint8_t *data, uint32_t count, Py_ssize_t first, Py_ssize_t last):
    cdef size_t begin = km_events_offset(data, count, first)
    cdef size_t payload = km_events_offset(data, count, last) - begin
    cdef uint32_t kept = <uint32_t> (last - first)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, km_events_size(kept, payload))
    cdef uint8_t *to = <uint8_t *> PyBytes_AS_STRING(result)
    cdef size_t start = km_events_payload(kept)
    cdef size_t i
    memset(to, 0, start)
    _store32(to, kept)
    for i in range(1, kept + 1):
        _store32(to + 8 + i * 4, <uint32_t> (km_events_offset(data, count, <uint32_t> (first + i)) - begin))
    memcpy(to + start, data + begin, payload)
    return result


def join(object body, bytes separator not None=b"\n"):
    """All events, each followed by `separator`, in one bytes object. The batch is checked."""
    cdef Py_buffer view
    cdef uint32_t count = 0
    cdef const uint8_t *data
    cdef size_t here, following, gap = PyBytes_GET_SIZE(separator)
    cdef uint32_t i
    cdef bytes result
    cdef uint8_t *to
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        data = <const uint8_t *> view.buf
        _check(data, view.len, NO_LIMIT, &count)
        here = km_events_payload(count)
        result = PyBytes_FromStringAndSize(NULL, view.len - here + count * gap)
        to = <uint8_t *> PyBytes_AS_STRING(result)
        for i in range(count):
            following = km_events_offset(data, count, i + 1)
            memcpy(to, data + here, following - here)
            to += following - here
            memcpy(to, PyBytes_AS_STRING(separator), gap)
            to += gap
            here = following
        return result
    finally:
        PyBuffer_Release(&view)


def concat(object bodies):
    """One batch body holding the events of several batches, in order. Each is checked."""
    cdef list items = list(bodies)
    cdef Py_buffer view
    cdef uint32_t count = 0, events = 0, i
    cdef size_t payload = 0, start, offset = 0, begin, entry = 0
    cdef const uint8_t *data
    cdef bytes result
    cdef uint8_t *to
    if len(items) == 1 and type(items[0]) is bytes:
        validate(items[0])
        return items[0]
    for item in items:
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
        try:
            _check(<const uint8_t *> view.buf, view.len, NO_LIMIT, &count)
            events += count
            payload += view.len - km_events_payload(count)
        finally:
            PyBuffer_Release(&view)
    if payload > BODY_MAX:
        raise EventTooLargeError(f"a batch of {payload} bytes is above {BODY_MAX}", size=payload, limit=BODY_MAX)
    result = PyBytes_FromStringAndSize(NULL, km_events_size(events, payload))
    to = <uint8_t *> PyBytes_AS_STRING(result)
    start = km_events_payload(events)
    memset(to, 0, start)
    _store32(to, events)
    for item in items:
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
        try:
            data = <const uint8_t *> view.buf
            count = _load32(data) if view.len >= 12 else 0
            begin = km_events_payload(count)
            if begin > <size_t> view.len or entry + count > events or offset + view.len - begin > payload:
                raise UsageError(_CHANGED_BATCH)
            for i in range(1, count + 1):
                _store32(to + 8 + (entry + i) * 4, <uint32_t> (offset + km_events_offset(data, count, i) - begin))
            memcpy(to + start + offset, data + begin, view.len - begin)
            offset += view.len - begin
            entry += count
        finally:
            PyBuffer_Release(&view)
    if entry != events or offset != payload:
        raise UsageError(_CHANGED_BATCH)
    return result


cdef inline size_t _padded(size_t size) noexcept nogil:
    return (size + 7) & ~(<size_t> 7)


def pack_requests(object requests):
    """Body of a BATCH prepare from a sequence of SubRequest. Bodies are copied once."""
    cdef list items = list(requests)
    cdef size_t count = len(items), total = 8 + count * RECORD, at, i = 0
    cdef Py_buffer view
    cdef bytes result, client
    cdef uint8_t *to
    cdef uint8_t *record
    cdef uint64_t session, request
    cdef uint32_t events
    cdef uint8_t operation
    for item in items:
        total += _padded(len(item[5]))
    if total > BODY_MAX:
        raise UsageError(f"requests of {total} bytes in all do not fit one prepare")
    result = PyBytes_FromStringAndSize(NULL, total)
    to = <uint8_t *> PyBytes_AS_STRING(result)
    memset(to, 0, 8 + count * RECORD)
    _store32(to, <uint32_t> count)
    at = 8 + count * RECORD
    for client, session, request, operation, events, body in items:
        if client is None or PyBytes_GET_SIZE(client) != 16:
            raise UsageError(f"a client id has 16 bytes, not {None if client is None else len(client)}")
        record = to + 8 + i * RECORD
        memcpy(record, PyBytes_AS_STRING(client), 16)
        memcpy(record + 16, &session, 8)
        memcpy(record + 24, &request, 8)
        memcpy(record + 32, &events, 4)
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            if at + _padded(view.len) > total:
                raise UsageError(_CHANGED_REQUEST)
            _store32(record + 36, <uint32_t> view.len)
            memcpy(to + at, view.buf, view.len)
            memset(to + at + view.len, 0, _padded(view.len) - view.len)
            at += _padded(view.len)
        finally:
            PyBuffer_Release(&view)
        record[40] = operation
        i += 1
    if at != total:
        raise UsageError(_CHANGED_REQUEST)
    return result


def unpack_requests(object body):
    """The SubRequests of a BATCH prepare, with bodies as read-only views. Raises FrameError."""
    cdef Py_buffer view
    cdef const uint8_t *data
    cdef const uint8_t *record
    cdef size_t count, at, size, i, j
    cdef list result = []
    cdef object whole = memoryview(body).toreadonly().cast("B")
    PyObject_GetBuffer(whole, &view, PyBUF_SIMPLE)  # the same memory that the bodies are views of
    try:
        data = <const uint8_t *> view.buf
        if view.len < 8:
            raise _malformed("it is shorter than 8 bytes")
        count = _load32(data)
        at = 8 + count * RECORD
        if _load32(data + 4) != 0 or at > <size_t> view.len:
            raise _malformed(f"it can not hold {count} requests")
        for i in range(count):
            record = data + 8 + i * RECORD
            size = _load32(record + 36)
            if at + _padded(size) > <size_t> view.len:
                raise _malformed(f"request {i} is cut short")
            for j in range(at + size, at + _padded(size)):
                if data[j] != 0:
                    raise _malformed(f"padding after request {i} is not zero")
            for j in range(41, 48):
                if record[j] != 0:
                    raise _malformed(f"reserved bytes of request {i} are not zero")
            result.append(SubRequest(
                PyBytes_FromStringAndSize(<const char *> record, 16),
                _load64(record + 16),
                _load64(record + 24),
                record[40],
                _load32(record + 32),
                whole[at : at + size],
            ))
            at += _padded(size)
        if at != <size_t> view.len:
            raise _malformed(f"{view.len - at} bytes follow the last request")
        return result
    finally:
        PyBuffer_Release(&view)
