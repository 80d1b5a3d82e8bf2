"""The embedding contract: what a replicated state machine provides, and the built-in EventLog.

A state machine is a deterministic function of the committed operations. It must not
read a clock, a random source, an environment or an iteration order that depends on
hashing: every replica applies the same batches in the same order and must give the same
replies. `kimberlite vopr` checks that by running it twice.

May import: types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, NamedTuple, Protocol

from kimberlite.types import Bytes


class Batch(NamedTuple):
    """One client's committed request.

    body: an event batch (kimberlite.events.slice gives its events).
    count: number of events. position: log index of the first one.
    op: the operation that committed it. timestamp: nanoseconds since 1970, not
    decreasing along the log and the same on every replica: the only clock allowed.
    """

    body: Bytes
    count: int  # type: ignore[assignment]
    position: int
    op: int
    timestamp: int


class Frozen(Protocol):
    """A state that changes no more."""

    def snapshot(self, writer: BinaryIO) -> None:
        """Write the whole state. The bytes must be the same on every replica."""


class StateMachine(Frozen, Protocol):
    """What Node replicates. `needs_body` False promises that `apply` never looks at
    Batch.body: after a restart nothing but headers is then read back.

    Every few thousand operations a checkpoint is made: `snapshot` is called between two operations, which
    wait for it. When that would take too long (about a millisecond for each MiB in plain Python), have a
    method `freeze() -> Frozen` as well: a quick copy, whose `snapshot` is then called on another thread while
    operations go on.
    """

    version: int
    needs_body: bool

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        """Apply committed batches, all of one op, in order; one reply per batch, `bytes` of at most 1 MiB.

        It must not raise: what is committed can not be refused any more, and a replica that can not execute it ends
        with StateMachineError, as all others do, and again at every start. An event that makes no sense must do
        nothing, the same nothing on every replica. It runs on the event loop: the replica does nothing else
        meanwhile, and when it takes longer than timing.suspect_min_ms another one is elected.
        """

    def restore(self, reader: BinaryIO) -> None:
        """Replace the whole state by a snapshot, of this version or an older one. What it raises refuses the start."""


class EventLog:
    """The built-in state machine: the log itself is the state, so there is nothing to
    apply; positions are assigned by the protocol and the reply is the header's."""

    version = 1
    needs_body = False

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        return [b""] * len(batches)

    def snapshot(self, writer: BinaryIO) -> None:
        return None

    def restore(self, reader: BinaryIO) -> None:
        return None
