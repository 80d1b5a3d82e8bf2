"""Typed surface of the compiled framing module: see framing.pyx."""

from __future__ import annotations

from kimberlite.types import Bytes, Checksum, ClientId, ClusterId

HEADER_SIZE: int

class Header:
    """Compiled, immutable implementation of kimberlite.types.Header. Equality and hash
    are those of `checksum`."""

    checksum: Checksum
    checksum_body: Checksum
    cluster: ClusterId
    command: int
    replica: int
    size: int
    release: int
    epoch: int
    operation: int
    flags: int
    reason: int
    view: int
    op: int
    commit: int
    parent: Checksum
    client: ClientId
    session: int
    request: int
    timestamp: int
    position: int
    count: int
    latency_us: int
    context: Checksum
    log_view: int
    checkpoint_op: int
    nonce: int
    raw: bytes

def make_header(body: Bytes = b"", **fields: object) -> Header:
    """kimberlite.types.HeaderFactory."""

def decode_header(buffer: Bytes, offset: int = 0, frame_max: int = ...) -> Header:
    """Verify and decode one header (not its body). Raises FrameError with .reason."""

def decode_headers(buffer: Bytes) -> list[Header]:
    """A concatenation of headers, each verified. Raises FrameError."""

def verify_body(header: Header, body: Bytes) -> bool: ...
def parse(
    buffer: Bytes, start: int, end: int, frame_max: int, cluster: ClusterId | None = None
) -> tuple[list[tuple[Header, memoryview]], int, int]:
    """All whole frames in buffer[start:end]: verified headers with verified bodies as
    read-only views of `buffer` (no copy). Returns (frames, consumed_to, need) where
    `need` is the number of bytes that the next, incomplete frame has in all (0: not yet
    known). Raises FrameError (.reason, .offset, .frames: those parsed before the bad one).
    A frame of another cluster raises WRONG_CLUSTER when `cluster` is given."""

def encode_into(buffer: bytearray | memoryview, offset: int, header: Header, body: Bytes = b"") -> int:
    """Copy header and body to buffer[offset:], return the end offset. BufferError when it does not fit."""
