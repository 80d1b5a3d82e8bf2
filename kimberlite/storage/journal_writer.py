"""Writing entries and their witnesses: appended, repaired in place, or the witness alone.

An entry is written in two phases: the entry itself, then its witness; only when both are durable is the submission
done. What an older log, or a torn write, has left is taken away where it could be believed: witnesses in a segment that
is begun, whatever stands behind the last entry of a segment that is left, damaged witnesses behind the end of the log.

**While a sector of witnesses is written, nothing but zeros or an intact entry stands where the next entry would.**
Torn, that sector says nothing, and remains of a longer entry there would look like an entry that was acknowledged and
is damaged. So entries that end before the remains do are written with a zeroed sector behind them; what stands at the
end of the log after a start goes before any witness is written; and what stands at the end of a segment that is left,
and the witnesses of the one that is begun, in a phase of their own before the entries.

May import: errors, types, _fast, storage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from kimberlite._fast import framing
from kimberlite.errors import InvariantError, invariant
from kimberlite.storage.faulty import FaultyOps
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Disk, Write
from kimberlite.storage.journal import round_up
from kimberlite.storage.log_reader import is_remains
from kimberlite.storage.open_segment import OpenSegment
from kimberlite.storage.places import Spot
from kimberlite.storage.segments import Segments
from kimberlite.storage.submissions import Submissions
from kimberlite.types import Header, Message

NOT_WRITTEN = 0  # the disk knows no write by it

Run: TypeAlias = tuple[OpenSegment, list[Message], int]  # segment, consecutive entries, offset of the first


class Placed(NamedTuple):
    """An entry that has its place in the journal, and is not written there yet."""

    message: Message
    spot: Spot


class JournalWriter:
    """Of one store. One thread uses it."""

    def __init__(
        self, disk: Disk, handles: Handles, segments: Segments, submissions: Submissions, faulty: FaultyOps
    ) -> None:
        self._disk = disk
        self._handles = handles
        self._segments = segments
        self._submissions = submissions
        self._faulty = faulty
        self.in_flight: dict[int, int] = {}  # op -> what the disk knows the write of it by
        self.bytes_written = 0  # of entries and witnesses, and what clears or mends them, handed to the disk

    # Entries

    def append(
        self,
        token: int | None,
        entries: Sequence[Message],
        placed: Sequence[Placed] = (),
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """See LogStore. placed: what `place` gave, and goes in front. done: called when all is durable."""
        segments, hold = self._segments, self._submissions.hold
        segment_bytes = segments.segment_bytes
        held: set[int] = set()
        before: list[Write] = []
        wipes: list[Write] = []
        runs: list[Run] = self._enter(placed, held)
        for message in entries:
            op, size = message.header.op, round_up(message.header.size)
            if op != segments.head + 1:
                invariant(False, "the journal grows by the next op", op=op, head=segments.head)
            if size > segment_bytes:
                invariant(
                    False,
                    "an entry fits a segment: segments must be larger than the largest frame",
                    entry=size,
                    segment=segment_bytes,
                )
            segment = segments.open[-1]
            hold(segment.number, held)
            offset = segment.end
            if offset is None:
                raise InvariantError("the place of the next entry is known", op=op)
            if offset + size > segment_bytes:
                (before if segment.remains > offset else wipes).extend(self._wipe_entry(segment, offset))
                wipes += self._wipe_witness(segment)
                hold(segment.number + 1, held)
                segment = segments.begin_next(message.header)
                before += self._wipe_witness(segment)  # so that all it holds agree on which op is its first
                offset = 0
            segment.add(message.header, offset)
            segments.head = op
            if runs and runs[-1][0] is segment:
                runs[-1][1].append(message)
            else:
                runs.append((segment, [message], offset))
        entry_writes, witness_writes = wipes, []
        for segment, messages, offset in runs:
            entry_writes.append(self._entries_write(segment.number, messages, offset, segment.remains))
            low = messages[0].header.op - segment.base
            high = messages[-1].header.op - segment.base
            witness_writes.append(self._witness_write(segment, low, high))
        first = runs[0][1][0].header.op
        ops = range(first, runs[-1][1][-1].header.op + 1)
        self._write(token, ops, entry_writes, witness_writes, held, before=before, done=done)

    def place(self, entries: Sequence[Message]) -> list[Placed]:
        """Give entries of the next ops their places behind the last one of the open segment, where they fit. They are
        the log from now on, and written by a later `append`."""
        segments = self._segments
        segment = segments.active
        result: list[Placed] = []
        for message in entries:
            op, offset = message.header.op, segment.end
            if op != segments.head + 1 or offset is None:
                raise InvariantError("the journal grows by the next op", op=op, head=segments.head)
            result.append(Placed(message, Spot(segment.number, segment.count, offset)))
            segment.add_apart(message.header, offset)
            segments.head = op
            self.in_flight[op] = NOT_WRITTEN
        return result

    def _enter(self, placed: Sequence[Placed], held: set[int]) -> list[Run]:
        """Enter what has its place already into the image of its segment, the one that is written."""
        if not placed:
            return []
        segment = self._segments.active
        self._submissions.hold(segment.number, held)
        for message, spot in placed:
            if spot.number != segment.number:
                invariant(False, "what has its place is written before a segment is begun", op=message.header.op)
            segment.put(spot.at, message.header, spot.offset)
        return [(segment, [message for message, _ in placed], placed[0].spot.offset)]

    def repair(self, token: int, entries: Sequence[Message], first_op: int) -> list[int]:
        """See LogStore. first_op: the log begins with it after a restart too."""
        held: set[int] = set()
        entry_writes, witness_writes, cold = [], [], []
        ops: list[int] = []

        def write(message: Message, spot: Spot | None = None) -> bool:
            """Whether its place is known."""
            header = message.header
            segment = self._segments.open_at(header.op)
            if spot is None:
                spot = self._segments.cold.prove(header) if segment is None else self._place_of_repair(segment, header)
            if spot is None:
                return False
            self._submissions.hold(spot.number, held)
            if segment is None:
                witness = self._segments.cold.rewrite(header, spot)
                self.bytes_written += len(witness.buffer)
                cold.append((spot.number, witness))
            else:
                segment.put(spot.at, header, spot.offset)
                witness = self._witness_write(segment, spot.at, spot.at)
            witness_writes.append(witness)
            entry_writes.append(self._entries_write(spot.number, [message], spot.offset))
            ops.append(header.op)
            return True

        # Each stands behind the one below it, or, where that is not known, before the one above.
        unplaced = [message for message in entries if not write(message)]
        unplaced = [message for message in reversed(unplaced) if not write(message)]
        unplaced.reverse()
        if unplaced and unplaced[0].header.op == first_op:
            spot = self._segments.cold.begin_anew([message.header for message in unplaced])
            if spot is not None:
                write(unplaced[0], spot)
                unplaced = [message for message in unplaced[1:] if not write(message)]
        if ops:
            self._write(token, ops, entry_writes, witness_writes, held, cold)
        return [message.header.op for message in unplaced]

    def _place_of_repair(self, segment: OpenSegment, header: Header) -> Spot | None:
        at = header.op - segment.base
        offset = segment.place(at)
        is_known = offset is not None and offset + round_up(header.size) <= self._segments.segment_bytes
        return Spot(segment.number, at, offset or 0) if is_known else None

    def _write(
        self,
        token: int | None,
        ops: Sequence[int],
        entry_writes: list[Write],
        witness_writes: list[Write],
        held: set[int],
        cold: Sequence[tuple[int, Write]] = (),
        before: Sequence[Write] = (),
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """held: the segments written to. cold: those of the witness writes that ColdSegments waits for. before: what
        must be durable before the entries are written."""

        def written() -> None:
            for op in ops:
                if self.in_flight.get(op) == disk_token:
                    del self.in_flight[op]
                    self._faulty.ops.discard(op)
            for number, write in cold:
                self._segments.cold.written(number, write)
            done()

        phases = [before, entry_writes, witness_writes] if before else [entry_writes, witness_writes]
        disk_token = self._submissions.submit(phases, token, written, held)
        for op in ops:
            self.in_flight[op] = disk_token

    def _entries_write(self, number: int, messages: Sequence[Message], offset: int, remains: int = 0) -> Write:
        """One write of consecutive entries: each copied once, into aligned zeroed memory. remains: see Segments; where
        there may be any behind the last entry, it is followed by a sector of zeros."""
        length = sum(round_up(message.header.size) for message in messages)
        if offset + length < remains:
            length += SECTOR
        buffer = self._disk.aligned(length)
        at = 0
        for message in messages:
            framing.encode_into(buffer, at, message.header, message.body)  # type: ignore[arg-type]
            at += round_up(message.header.size)
        self.bytes_written += len(buffer)
        return Write(self._handles.journal(number), offset, buffer)

    def _witness_write(self, segment: OpenSegment, first: int, last: int) -> Write:
        """The witness sectors that hold the records first..last."""
        start, content = segment.sectors(first, last)
        buffer = self._disk.aligned(len(content))
        buffer[:] = content
        self.bytes_written += len(content)
        return Write(self._handles.witness(segment.number), start, buffer)

    # What an older log has left

    def _wipe_entry(self, segment: OpenSegment, end: int) -> list[Write]:
        """With the witnesses there, leave nothing of an older log behind the last entry of a segment, which goes on
        in the next: what stood there would be taken for what follows, for it too has its parent before it.
        """
        if end + SECTOR > self._segments.segment_bytes:
            return []
        self.bytes_written += SECTOR
        return [Write(self._handles.journal(segment.number), end, self._disk.aligned(SECTOR))]

    def _wipe_witness(self, segment: OpenSegment) -> list[Write]:
        wiped = segment.wipe()
        if wiped is None:
            return []
        start, content = wiped
        buffer = self._disk.aligned(len(content))
        buffer[:] = content
        self.bytes_written += len(content)
        return [Write(self._handles.witness(segment.number), start, buffer)]

    def clear_behind(self, in_spare: bool) -> bool:
        """What a crash has left behind the end of the log, or what was in doubt there: first what stands where the next
        entry would, then witness records that are damaged, which would make a torn entry look like a damaged one.
        in_spare: those of the segments that follow too, which at the end of a segment hold what is behind the log.
        Whether anything is written."""
        segments = self._segments
        held: set[int] = set()
        zeros = self._zeros_behind(held)
        witnesses = self._clear_damage(segments.active, held)
        for at, spare in enumerate(segments.spare if in_spare else ()):
            image = spare.image if spare.image is not None else segments.cold.image(spare.number)
            segment = OpenSegment(spare.number, segments.head + 1, 0, image)
            cleared = self._clear_damage(segment, held)
            if cleared:
                witnesses += cleared
                segments.spare[at] = spare._replace(image=segment.image)
        phases = [writes for writes in (zeros, witnesses) if writes]
        if phases:
            self._submissions.submit(phases, held=held)
        return bool(phases)

    def _zeros_behind(self, held: set[int]) -> list[Write]:
        """Where the next entry would stand, at the end of the log or in a segment that follows, when that is neither
        zero nor an intact entry. An intact one is void whatever its witness says; half overwritten it would not be."""
        segments, writes = self._segments, []
        active = segments.active
        places = [(spare.number, 0, spare.remains) for spare in segments.spare]
        if active.end is not None:
            places.append((active.number, active.end, active.remains))
        for number, end, remains in places:
            if end >= remains:
                continue
            journal = self._handles.journal(number)
            if is_remains(self._disk, journal, end, segments.segment_bytes):
                self._submissions.hold(number, held)
                self.bytes_written += SECTOR
                writes.append(Write(journal, end, self._disk.aligned(SECTOR)))
        return writes

    def _clear_damage(self, segment: OpenSegment, held: set[int]) -> list[Write]:
        damaged = segment.clear_damage_behind()
        if damaged is None:
            return []
        self._submissions.hold(segment.number, held)
        return [self._witness_write(segment, *damaged)]

    # Witnesses alone

    def fix_witnesses(self, ops: Sequence[int], done: Callable[[], None] = lambda: None) -> None:
        """Write the witnesses of these intact entries again; `done` for each of those that it can be done for."""
        for op in ops:
            held: set[int] = set()
            segment = self._segments.open_at(op)
            if segment is None:
                self._fix_cold_witness(op, held, done)
                continue
            index = op - segment.base
            header, offset = segment.header(index), segment.place(index)
            if header is not None and offset is not None:
                segment.put(index, header, offset)
                self._submissions.hold(segment.number, held)
                self._submissions.submit([[self._witness_write(segment, index, index)]], done=done, held=held)

    def _fix_cold_witness(self, op: int, held: set[int], done: Callable[[], None]) -> None:
        cold = self._segments.cold
        number = cold.segment_of(op)
        self._submissions.hold(number, held)
        write = cold.rewrite_witness(op)
        if write is None:
            self._handles.let_go(held)
            done()
            return

        def written() -> None:
            cold.written(number, write)
            done()

        self.bytes_written += len(write.buffer)
        self._submissions.submit([[write]], done=written, held=held)
