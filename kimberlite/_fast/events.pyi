"""Typed surface of the compiled event-batch module: see events.pyx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kimberlite.types import Bytes, ClientId

def build(events: Sequence[Bytes]) -> bytes:
    """One batch body from N events: count u32, reserved u32 (zero), offsets u32[count + 1]
    relative to the payload, zero padding to 8 bytes, payload."""

def build_lines(data: Bytes, start: int, count_max: int, bytes_max: int) -> tuple[bytes, int, int]:
    """A batch of the newline-terminated lines (without the newline) found in data[start:].
    Returns (body, count, next_start); an unterminated tail is left."""

def validate(body: Bytes, event_max: int = ...) -> int:
    """Number of events, or raises FrameError/EventTooLargeError: every offset is checked."""

def count(body: Bytes) -> int: ...
def slice(body: Bytes, first: int, last: int) -> list[bytes]:
    """Events first..last-1 of a validated batch, as bytes."""

def sub_batch(body: Bytes, first: int, last: int) -> bytes:
    """A batch body of events first..last-1."""

def join(body: Bytes, separator: bytes = b"\n") -> bytes:
    """All events, each followed by `separator`, in one bytes object."""

def concat(bodies: Sequence[Bytes]) -> bytes:
    """One batch body holding the events of several, in order."""

class SubRequest(NamedTuple):
    """One client's request inside a BATCH prepare."""

    client: ClientId
    session: int
    request: int
    operation: int
    events: int
    body: Bytes

def pack_requests(requests: Sequence[SubRequest]) -> bytes:
    """Body of a BATCH prepare: count u32, reserved u32, then for each request a 48-byte
    record (client 16, session u64, request u64, count u32, size u32, operation u8, zero 7),
    then the bodies, each padded with zeros to 8 bytes."""

def unpack_requests(body: Bytes) -> list[SubRequest]:
    """The inverse, bodies as views; everything checked. Raises FrameError."""
