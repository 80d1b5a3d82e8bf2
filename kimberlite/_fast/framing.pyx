# cython: language_level=3, freethreading_compatible=False, binding=False
"""Frames: the fixed 256-byte header of every message and journal entry, and whole frames in a buffer.

The skin over c/km_frame.c: argument checks, Python objects, errors. The layout is the
struct in c/km_frame.h. A header is verified before any of its fields is believed, its
length first of all; a body before it is handed out.

Cost (one core of a 2-core x86-64 virtual machine): about 0.6 us to make a header, 0.25 us to
decode one. One call parses everything a socket has delivered.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from kimberlite.errors import FrameError, UsageError
from kimberlite.types import FORMAT_VERSION, NO_REPLICA, RELEASE, ZERO16, Command, FrameReason

cdef extern from "km_frame.h" nogil:
    enum:
        KM_HEADER_SIZE
        KM_FORMAT_VERSION
        KM_FRAME_OK
        KM_FRAME_TRUNCATED

    ctypedef struct km_header:
        uint8_t checksum[16]
        uint8_t checksum_body[16]
        uint8_t cluster[16]
        uint16_t version
        uint8_t command
        uint8_t replica
        uint32_t size
        uint32_t release
        uint32_t epoch
        uint8_t operation
        uint8_t flags
        uint16_t reason
        uint64_t view
        uint64_t op
        uint64_t commit
        uint8_t parent[16]
        uint8_t client[16]
        uint64_t session
        uint64_t request
        uint64_t timestamp
        uint64_t position
        uint32_t count
        uint32_t latency_us
        uint8_t context[16]
        uint64_t log_view
        uint64_t checkpoint_op
        uint64_t nonce

    void km_frame_seal(km_header *header, const void *body, size_t body_length, const uint8_t *body_checksum)
    int km_frame_check_header(const uint8_t *data, size_t length, uint32_t frame_max)
    int km_frame_check_body(const uint8_t *header, const uint8_t *body, size_t length)
    int km_frame_next(const uint8_t *data, size_t length, uint32_t frame_max, const uint8_t *cluster, size_t *size)

HEADER_SIZE = KM_HEADER_SIZE
cdef uint32_t FRAME_MAX = 64 << 20  # for callers that give no limit of their own
cdef uint32_t RELEASE_NUMBER = RELEASE

if KM_FORMAT_VERSION != FORMAT_VERSION:
    raise ImportError(f"framing was built for format version {KM_FORMAT_VERSION}, this package has {FORMAT_VERSION}")

_WHY = {
    FrameReason.BAD_MAGIC: "it does not begin like a Kimberlite frame: another protocol, or a broken stream",
    FrameReason.BAD_VERSION: "its format version is unknown to this release: upgrade this side",
    FrameReason.BAD_HEADER_CHECKSUM: "its header is damaged",
    FrameReason.BAD_BODY_CHECKSUM: "its body is damaged",
    FrameReason.BAD_SIZE: "its size is below that of a header or above the limit",
    FrameReason.BAD_RESERVED: "its reserved bytes are not zero",
    FrameReason.BAD_COMMAND: "it has no command",
    FrameReason.WRONG_CLUSTER: "it belongs to another cluster",
    FrameReason.TRUNCATED: "it is cut short",
}


cdef inline bytes _bytes16(const uint8_t *data):
    return PyBytes_FromStringAndSize(<const char *> data, 16)


cdef int _copy16(uint8_t *to, object value, str name) except -1:
    if type(value) is not bytes or PyBytes_GET_SIZE(value) != 16:
        raise UsageError(f"{name} must be 16 bytes, not {value!r}")
    memcpy(to, PyBytes_AS_STRING(value), 16)
    return 0


cdef class Header:
    """Immutable, compiled implementation of kimberlite.types.Header.

    Equality and hash are those of `checksum`. Integer fields cost one C read and one
    Python integer; `checksum` is made once, the other identities on every read.
    """

    cdef km_header h
    cdef readonly bytes checksum
    cdef bytes _raw

    def __init__(self, *args, **fields):
        raise TypeError("a Header is made by make_header or decode_header")

    @property
    def checksum_body(self): return _bytes16(self.h.checksum_body)
    @property
    def cluster(self): return _bytes16(self.h.cluster)
    @property
    def command(self): return self.h.command
    @property
    def replica(self): return self.h.replica
    @property
    def size(self): return self.h.size
    @property
    def release(self): return self.h.release
    @property
    def epoch(self): return self.h.epoch
    @property
    def operation(self): return self.h.operation
    @property
    def flags(self): return self.h.flags
    @property
    def reason(self): return self.h.reason
    @property
    def view(self): return self.h.view
    @property
    def op(self): return self.h.op
    @property
    def commit(self): return self.h.commit
    @property
    def parent(self): return _bytes16(self.h.parent)
    @property
    def client(self): return _bytes16(self.h.client)
    @property
    def session(self): return self.h.session
    @property
    def request(self): return self.h.request
    @property
    def timestamp(self): return self.h.timestamp
    @property
    def position(self): return self.h.position
    @property
    def count(self): return self.h.count
    @property
    def latency_us(self): return self.h.latency_us
    @property
    def context(self): return _bytes16(self.h.context)
    @property
    def log_view(self): return self.h.log_view
    @property
    def checkpoint_op(self): return self.h.checkpoint_op
    @property
    def nonce(self): return self.h.nonce

    @property
    def raw(self):
        """The 256 encoded bytes."""
        if self._raw is None:
            self._raw = PyBytes_FromStringAndSize(<const char *> &self.h, KM_HEADER_SIZE)
        return self._raw

    def __eq__(self, other):
        if type(other) is not Header:
            return NotImplemented
        return self.checksum == (<Header> other).checksum

    def __hash__(self):
        return hash(self.checksum)

    def __repr__(self):
        try:
            name = Command(self.h.command).name.lower()
        except ValueError:
            name = str(self.h.command)
        return (
            f"<Header {name} replica={self.h.replica} view={self.h.view} op={self.h.op} commit={self.h.commit} "
            f"size={self.h.size} {self.checksum[:4].hex()}>"
        )


cdef Header _wrap(const uint8_t *data):
    cdef Header header = Header.__new__(Header)
    memcpy(&header.h, data, KM_HEADER_SIZE)
    header.checksum = _bytes16(header.h.checksum)
    return header


cdef object _error(int status, Py_ssize_t offset, list frames=None):
    reason = FrameReason(status)
    return FrameError(
        f"bytes at offset {offset} are no valid frame: {_WHY[reason]}",
        reason=reason,
        offset=offset,
        frames=frames if frames is not None else [],
    )


def make_header(
    object body=b"",
    *,
    object cluster,
    uint8_t command,
    uint8_t replica=255,
    uint32_t epoch=0,
    uint8_t operation=0,
    uint8_t flags=0,
    uint16_t reason=0,
    uint64_t view=0,
    uint64_t op=0,
    uint64_t commit=0,
    object parent=ZERO16,
    object client=ZERO16,
    uint64_t session=0,
    uint64_t request=0,
    uint64_t timestamp=0,
    uint64_t position=0,
    uint32_t count=0,
    uint32_t latency_us=0,
    object context=ZERO16,
    uint64_t log_view=0,
    uint64_t checkpoint_op=0,
    uint64_t nonce=0,
    object checksum_body=None,
):
    """A sealed header for `body`: see kimberlite.types.HeaderFactory.

    Raises OverflowError when a number does not fit its field, UsageError when an
    identity is not 16 bytes. Cost: about 0.6 us, and hashing the body unless
    `checksum_body`, which must then be right, is given.
    """
    cdef Header header = Header.__new__(Header)
    cdef km_header *h = &header.h
    cdef uint8_t given[16]
    cdef Py_buffer view_of_body
    memset(h, 0, KM_HEADER_SIZE)
    _copy16(h.cluster, cluster, "cluster")
    h.command = command
    h.replica = replica
    h.release = RELEASE_NUMBER
    h.epoch = epoch
    h.operation = operation
    h.flags = flags
    h.reason = reason
    h.view = view
    h.op = op
    h.commit = commit
    if parent is not ZERO16:
        _copy16(h.parent, parent, "parent")
    if client is not ZERO16:
        _copy16(h.client, client, "client")
    h.session = session
    h.request = request
    h.timestamp = timestamp
    h.position = position
    h.count = count
    h.latency_us = latency_us
    if context is not ZERO16:
        _copy16(h.context, context, "context")
    h.log_view = log_view
    h.checkpoint_op = checkpoint_op
    h.nonce = nonce
    if checksum_body is not None:
        _copy16(given, checksum_body, "checksum_body")
    PyObject_GetBuffer(body, &view_of_body, PyBUF_SIMPLE)
    try:
        if view_of_body.len > FRAME_MAX - KM_HEADER_SIZE:
            raise UsageError(
                f"a body of {view_of_body.len} bytes is above {FRAME_MAX - KM_HEADER_SIZE}, the most a frame can hold"
            )
        km_frame_seal(h, view_of_body.buf, view_of_body.len, given if checksum_body is not None else NULL)
    finally:
        PyBuffer_Release(&view_of_body)
    header.checksum = _bytes16(h.checksum)
    return header


def decode_header(object buffer, Py_ssize_t offset=0, uint32_t frame_max=FRAME_MAX):
    """Verify and decode the header at `offset`, not its body. Raises FrameError (reason, offset)."""
    cdef Py_buffer view
    cdef int status
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if offset < 0 or offset > view.len:
            raise UsageError(f"offset {offset} is outside of a buffer of {view.len} bytes")
        status = km_frame_check_header(<const uint8_t *> view.buf + offset, view.len - offset, frame_max)
        if status != KM_FRAME_OK:
            raise _error(status, offset)
        return _wrap(<const uint8_t *> view.buf + offset)
    finally:
        PyBuffer_Release(&view)


def decode_headers(object buffer):
    """Headers of a concatenation of them, each verified. Raises FrameError."""
    cdef Py_buffer view
    cdef int status
    cdef Py_ssize_t offset = 0
    cdef list headers = []
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        while offset < view.len:
            status = km_frame_check_header(<const uint8_t *> view.buf + offset, view.len - offset, FRAME_MAX)
            if status != KM_FRAME_OK:
                raise _error(status, offset)
            headers.append(_wrap(<const uint8_t *> view.buf + offset))
            offset += KM_HEADER_SIZE
        return headers
    finally:
        PyBuffer_Release(&view)


def verify_body(Header header not None, object body):
    """Whether `body` is the one that `header` was made for: its length and its checksum."""
    cdef Py_buffer view
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        return (
            <size_t> view.len + KM_HEADER_SIZE == header.h.size
            and km_frame_check_body(<const uint8_t *> &header.h, <const uint8_t *> view.buf, view.len) == KM_FRAME_OK
        )
    finally:
        PyBuffer_Release(&view)


cdef object _part(object whole, Py_ssize_t start, Py_ssize_t length):
    """whole[start : start + length] of a memoryview of bytes, inside of its bounds.

    A second view of the same memory, narrowed: a slice costs two integers and a slice object
    more, a fifth of all that a small frame costs.
    """
    cdef object part = PyMemoryView_FromObject(whole)
    cdef Py_buffer *view = PyMemoryView_GET_BUFFER(part)
    view.buf = <char *> view.buf + start
    view.len = length
    view.shape[0] = length
    return part


def parse(object buffer, Py_ssize_t start, Py_ssize_t end, uint32_t frame_max, object cluster=None):
    """All whole frames in buffer[start:end], in one call.

    Returns (frames, consumed, need): frames are (header, body) with the body a read-only
    view of `buffer` (b"" when empty); `consumed` is where the first incomplete frame
    begins; `need` is how many bytes that frame has in all, 0 while its header is incomplete.

    Raises FrameError (reason, offset, frames: the good ones before it); WRONG_CLUSTER when
    `cluster` is given and a frame names another.
    """
    cdef Py_buffer view
    cdef const uint8_t *data
    cdef const uint8_t *wanted = NULL
    cdef size_t size = 0
    cdef int status
    cdef list frames = []
    cdef Header header
    cdef object whole = None
    if cluster is not None:
        if type(cluster) is not bytes or PyBytes_GET_SIZE(cluster) != 16:
            raise UsageError(f"cluster must be 16 bytes, not {cluster!r}")
        wanted = <const uint8_t *> PyBytes_AS_STRING(cluster)
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if start < 0 or end < start or end > view.len:
            raise UsageError(f"bytes {start} to {end} are outside of a buffer of {view.len} bytes")
        data = <const uint8_t *> view.buf
        while start < end:
            status = km_frame_next(data + start, end - start, frame_max, wanted, &size)
            if status == KM_FRAME_TRUNCATED:
                return frames, start, size
            if status != KM_FRAME_OK:
                raise _error(status, start, frames)
            header = _wrap(data + start)
            if size == KM_HEADER_SIZE:
                frames.append((header, b""))
            else:
                if whole is None:
                    whole = memoryview(buffer).toreadonly().cast("B")
                    if PyMemoryView_GET_BUFFER(whole).len != view.len:  # an exporter may give what it likes, each time
                        raise UsageError("the buffer changed its length while frames were taken from it")
                frames.append((header, _part(whole, start + KM_HEADER_SIZE, <Py_ssize_t> size - KM_HEADER_SIZE)))
            start += size
        return frames, start, 0
    finally:
        PyBuffer_Release(&view)


def encode_into(object buffer, Py_ssize_t offset, Header header not None, object body=b""):
    """Copy header and body to buffer[offset:] and return the offset behind them.

    Raises BufferError when they do not fit, UsageError when the body has another length
    than the header says; nothing is written then.
    """
    cdef Py_buffer to, source
    cdef Py_ssize_t size = header.h.size
    PyObject_GetBuffer(buffer, &to, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(body, &source, PyBUF_SIMPLE)
        try:
            if source.len + KM_HEADER_SIZE != size:
                raise UsageError(f"the header is of a body of {size - KM_HEADER_SIZE} bytes, not of {source.len}")
            if offset < 0 or offset > to.len or size > to.len - offset:
                raise BufferError(f"a frame of {size} bytes does not fit at offset {offset} of {to.len} bytes")
            memmove(<char *> to.buf + offset + KM_HEADER_SIZE, source.buf, source.len)  # it may lie in `buffer`
            memcpy(<char *> to.buf + offset, &header.h, KM_HEADER_SIZE)
            return offset + size
        finally:
            PyBuffer_Release(&source)
    finally:
        PyBuffer_Release(&to)
