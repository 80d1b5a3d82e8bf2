"""The trace of a run: everything that happens, in order, in one hash.

In it: every frame that arrives, every fault, every outcome a client is given, every start of a replica, every change
of a disk (file, offset, length, checksum of the bytes), every promise that has become durable, and every event that the
core hands to its recorder. Two runs with the same hash did the same.

Numbers are hashed as they are, without making text of them: text is made of the lines that are kept, when somebody
wants to read them. Imports types and vsr.events only.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from itertools import chain

import xxhash

from kimberlite.types import Bytes, Message
from kimberlite.vsr.events import Event, brief

TRACE_TAIL = 120
# One kind of line each: its length and its first byte tell it from the others.
_DELIVER = struct.Struct("<cQqq").pack
_WRITE = struct.Struct("<cQqqqQ").pack
_EVENT = b"%d %d %d %d;"
_EVENTS = struct.Struct("<cQqq").pack


class Trace:
    """Hashes what happens, in order; keeps the tail for people."""

    def __init__(self, keep_all: bool = False) -> None:
        self._hash = xxhash.xxh3_64()
        self.tail: deque[tuple[object, ...]] = deque(maxlen=None if keep_all else TRACE_TAIL)
        self.lines = 0

    def add(self, now: int, kind: str, *values: object) -> None:
        """Something rare."""
        self.lines += 1
        self.tail.append((now, kind, *values))
        self._hash.update(b"%d %s %s\n" % (now, kind.encode(), b" ".join(_canonical(value) for value in values)))

    def delivered(self, now: int, source: int | bytes, destination: int | bytes, message: Message) -> None:
        """A frame has arrived."""
        self.lines += 1
        self.tail.append((now, "deliver", source, destination, message))
        sender = source if isinstance(source, int) else _number(source)
        receiver = destination if isinstance(destination, int) else _number(destination)
        self._hash.update(_DELIVER(b"d", now, sender, receiver) + message.header.checksum)

    def written(self, now: int, replica: int, name: str, offset: int, data: Bytes) -> None:
        """Bytes of a file of a replica's disk have changed."""
        self.lines += 1
        checksum = xxhash.xxh3_64_intdigest(data)
        self.tail.append((now, "write", replica, name, offset, len(data), checksum))
        self._hash.update(_WRITE(b"w", now, replica, offset, len(data), checksum) + name.encode())

    def recorded(self, now: int, replica: int, events: Sequence[tuple[int, int, int, int]]) -> None:
        """Events were handed to a replica's recorder, all at once."""
        self.lines += 1
        self.tail.append((now, "events", replica, *events))
        count = len(events)
        values = events[0] if count == 1 else tuple(chain.from_iterable(events))
        self._hash.update(_EVENTS(b"e", now, replica, count) + _EVENT * count % values)

    def text(self) -> str:
        return "\n".join(
            f"{entry[0]!s:>14} {entry[1]!s:10} {' '.join(map(_readable, entry[2:]))}" for entry in self.tail
        )

    def digest(self) -> str:
        return self._hash.hexdigest()


def _canonical(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.header.checksum if isinstance(value, Message) else str(value).encode()


def _readable(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode() if value.isascii() and value.decode().isprintable() else value.hex()[:8]
    if isinstance(value, Event):
        return f"{brief(value)};"
    return str(value)


def _number(client: bytes) -> int:
    """Of a client, whose name ends with its number: -1 and below, for others are replicas."""
    return -1 - int(client[7:])
