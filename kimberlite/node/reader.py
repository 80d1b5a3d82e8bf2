"""Reading events by position out of the journal of any replica.

Only what this replica has applied is given out, and every entry is verified when it is read.
Positions count events; an op holds a run of them, in one batch or in several requests.
May import: errors, types, _fast, storage.
"""

from __future__ import annotations

from collections.abc import Callable

from kimberlite._fast import events
from kimberlite.errors import CorruptEntryError, PositionError
from kimberlite.storage.interface import LogStore
from kimberlite.types import Bytes, Message, Operation

OPS_PER_READ_MAX = 4096  # ops looked at for one answer: bounds the time a read takes
AHEAD_BYTES = 256 << 10  # read from the disk at once, of entries that are read one after another


class LogReader:
    """Events of the applied log.

    end: number of events in it. applied: its last op. damaged: told the op whose entry could not
    be read, so that it gets repaired.
    """

    def __init__(
        self,
        store: LogStore,
        *,
        end: Callable[[], int],
        applied: Callable[[], int],
        damaged: Callable[[int], None],
    ) -> None:
        self._store = store
        self._end = end
        self._applied = applied
        self._damaged = damaged
        self._last: Message | None = None  # the entry read last: sequential reads come back to it
        self._next: tuple[int, int | None] = (-1, None)  # the position behind the last read, and an op at or below it

    @property
    def end(self) -> int:
        """Position of the event that will be appended next, as far as this replica knows."""
        return self._end()

    @property
    def applied(self) -> int:
        return self._applied()

    def read(self, position: int, count_max: int, bytes_max: int) -> tuple[bytes, int, dict[int, int]]:
        """A batch of events from `position` on, and how many: at least one, then as many as fit.
        And how many of them each op appended, by its timestamp: no two ops have the same.

        Raises PositionError outside of the log, CorruptEntryError when the entry is damaged
        here: another replica has it, and the repair has been asked for.
        """
        end = self.end
        if not 0 <= position < end:
            raise PositionError(
                f"position {position} is not in the log, which has positions 0 to {end - 1}"
                if end
                else f"position {position} is not in the log, which is empty",
                position=position,
                first=self._store.first_position,
                end=end,
            )
        first_position = self._store.first_position
        if position < first_position:
            raise PositionError(
                f"position {position} was trimmed: the log has positions {first_position} to {end - 1}",
                position=position,
                first=first_position,
                end=end,
            )
        count_max = max(min(count_max, end - position), 1)
        bytes_max = max(bytes_max, 1)
        parts: list[Bytes] = []
        runs: dict[int, int] = {}
        count = size = 0
        # Where the last read ended may be trimmed by now, though its position is not: ops without events lie between.
        following = self._next[1] if self._next[0] == position else None
        goes_on = following is not None and following >= self._store.first_op
        op = last = following if goes_on else self._store.find(position)
        ahead = min(AHEAD_BYTES, bytes_max) if goes_on else 0
        for _ in range(OPS_PER_READ_MAX):
            if op is None or op > self.applied or count >= count_max or size >= bytes_max:
                break
            for first, events_here, body, timestamp in self._batches(op, ahead):
                skip = max(position + count - first, 0)
                take = min(events_here - skip, count_max - count)
                if take <= 0:
                    continue
                part, take = self._within(body, events_here, skip, take, bytes_max - size, bool(parts))
                if take:
                    last = op
                    parts.append(part)
                    count += take
                    runs[timestamp] = runs.get(timestamp, 0) + take
                    size += len(part)
                if skip + take < events_here or size >= bytes_max:
                    # The next batch would leave a gap behind what did not fit.
                    self._next = position + count, op
                    return events.concat(parts), count, runs
            op += 1
            ahead = min(AHEAD_BYTES, bytes_max)
        if not parts:
            raise CorruptEntryError(f"position {position} can not be read here now", position=position)
        self._next = position + count, last
        return events.concat(parts), count, runs

    def _within(
        self, body: Bytes, events_here: int, skip: int, take: int, room: int, may_be_empty: bool
    ) -> tuple[Bytes, int]:
        """At most `take` events of a batch after `skip`, and no more bytes than `room`, but one event at least."""
        if skip == 0 and take == events_here and len(body) <= room:
            return body, take
        while take > 1 and len(part := events.sub_batch(body, skip, skip + take)) > room:
            take = max(take * room // (len(part) + 1), 1) if room > 0 else 1
        part = events.sub_batch(body, skip, skip + take)
        if len(part) > room and may_be_empty:
            return b"", 0
        return part, take

    def _batches(self, op: int, ahead: int) -> list[tuple[int, int, Bytes, int]]:
        """(first position, count, batch body, timestamp) of each request of an op that holds events."""
        message = self._entry(op, ahead)
        header = message.header
        if header.operation == Operation.APPLY:
            return [(header.position, header.count, message.body, header.timestamp)]
        if header.operation != Operation.BATCH:
            return []
        result = []
        position = header.position
        for request in events.unpack_requests(message.body):
            if request.operation == Operation.APPLY:
                result.append((position, request.events, request.body, header.timestamp))
                position += request.events
        return result

    def _entry(self, op: int, ahead: int) -> Message:
        if self._last is not None and self._last.header.op == op:
            return self._last
        message = self._store.read(op, ahead=ahead)
        if message is None:
            self._damaged(op)
            raise CorruptEntryError(
                f"op {op} is damaged on this replica and being repaired; read from another one", op=op
            )
        self._last = message
        return message
