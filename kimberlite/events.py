"""Event batches, for state machines: the events inside of a Batch.body.

    for event in events.slice(batch.body, 0, batch.count): ...

A batch body is a table of offsets and the events' bytes, one after the other; see
_fast/events. All of it is one call into C, whatever the number of events.

May import: _fast.
"""

from __future__ import annotations

from kimberlite._fast.events import build, count, join, slice

__all__ = ["build", "count", "join", "slice"]
