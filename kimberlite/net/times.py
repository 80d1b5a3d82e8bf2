"""When events were appended: the table behind the event batch of a READ_REPLY.

An op gives all of its events one timestamp, so a run of events costs 12 bytes: first the timestamps of all
runs (u64, nanoseconds since 1970), then how many events each has (u32), little-endian, in the order of the log.
May import: errors, types.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from kimberlite.errors import FrameError
from kimberlite.types import Bytes, FrameReason

RUN_BYTES = 12


def encode(runs: Mapping[int, int]) -> bytes:
    """runs: how many events each op appended, by its timestamp."""
    return struct.pack(f"<{len(runs)}Q{len(runs)}I", *runs, *runs.values())


def split(body: Bytes, runs: int, events: int) -> tuple[memoryview, tuple[int, ...], tuple[int, ...]]:
    """Of the body of an answer with so many runs and events: the event batch, the timestamps, how many events of each.

    Raises FrameError when the table does not fit the body or the events.
    """
    view = memoryview(body)
    batch_bytes = len(view) - RUN_BYTES * runs
    if batch_bytes >= 0:
        numbers = struct.unpack_from(f"<{runs}Q{runs}I", view, batch_bytes)
        if sum(numbers[runs:]) == events:
            return view[:batch_bytes], numbers[:runs], numbers[runs:]
    raise FrameError(
        f"an answer of {events} events and {len(view)} bytes does not fit its table of {runs} runs",
        reason=FrameReason.BAD_SIZE,
    )
