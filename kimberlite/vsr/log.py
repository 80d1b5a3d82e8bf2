"""The replica's view of its log: which headers it knows, which entries its disk holds.

    root ... durable ........ linked .. (hole) .. op
    |  on disk, chained  | header known, chained | headers of a newer suffix |

- `op`: the head. Every replica of a log_view holds a prefix of one canonical log.
- `linked`: headers are known and hash-chained from the root up to here. Below `op`
  only while headers are missing (a hole), which repair fills.
- `durable`: entries are on this replica's disk up to here: what may be acknowledged.
- `rooted`: what the disk holds up to here is this log, intact or damaged. Above `durable` only
  after a restart that found damage.
- `committed`: this log is known to be committed up to here: never dropped.
- `journal_head`: highest op handed to the journal; entries are appended in order.
- `candidates`: entries of an older view on the disk, above `linked`, that may or may
  not be canonical; decided one by one as `linked` reaches them.

Memory: headers of ops above min(applied, durable) and WINDOW below; bodies not yet applied, which
callers keep within a bound (`held_bytes`), and BODIES_BYTES of the applied ones.
Imports errors and types only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from kimberlite.errors import invariant
from kimberlite.types import Checksum, Header, Message, Room

WINDOW = 256  # headers kept below the applied op, and bodies at most, to serve retransmissions
# Bodies are views of receive buffers: one that is kept keeps its buffer from being used again, and
# fresh memory costs a fault for each page. Retransmissions of older ops are read from the journal.
BODIES_BYTES = 1 << 20
ENTRY_BYTES = 4 << 10  # what a held body takes besides itself, at most: header, tables, the rest of a sector written


class Log:
    """See the module docstring. Holds no policy: callers decide what to accept."""

    def __init__(self, head: Header, below: Sequence[Header] = (), first_op: int = 1) -> None:
        """`head` and everything under it is on disk; `below` are headers under it, to keep. What is below first_op
        was trimmed."""
        self.first_op = first_op
        self.gone_below = first_op  # the primary's log begins there, as it said last: nobody may have what is below
        self.headers: dict[int, Header] = {header.op: header for header in (*below, head)}
        self.bodies: dict[int, Message] = {}
        self.op = head.op
        self.linked = head.op
        self.durable = head.op
        self.rooted = head.op
        self.committed = 0
        self.journal_head = head.op
        self.on_disk: set[int] = set()  # durable above `durable`
        self.writing: dict[int, Checksum] = {}
        self.faulty: set[int] = set()
        self.candidates: dict[int, Header] = {}
        self.is_waiting_for_room = False  # the last take_writes held back what did not fit
        self.held_bytes = 0  # of bodies, without the applied ones that are kept to serve others
        self._let_go_to = 0  # bodies of written entries were let go up to here
        self._applied: deque[tuple[int, int]] = deque()  # (op, size) of applied bodies still kept
        self._applied_bytes = 0

    # Growing

    def append(self, message: Message) -> None:
        """The next prepare of this view."""
        header = message.header
        if header.op != self.op + 1:
            invariant(False, "prepares are appended in order", op=header.op, head=self.op)
        self.headers[header.op] = header
        self.bodies[header.op] = message
        self.held_bytes += header.size + ENTRY_BYTES
        self.op = header.op
        self.link()

    def extend(self, header: Header) -> bool:
        """A canonical header learned from a peer; False when it does not continue `linked`, or what is known above
        does not continue it."""
        if header.op != self.linked + 1 or header.parent != self.headers[self.linked].checksum:
            return False
        known = self.headers.get(header.op)
        following = self.headers.get(header.op + 1)
        if known is not None and known.checksum != header.checksum:
            return False
        if following is not None and following.parent != header.checksum:
            return False
        self.headers[header.op] = header
        self.op = max(self.op, header.op)
        self.link()
        return True

    def link(self) -> None:
        """Move `linked` and `durable` up as far as headers and disk allow."""
        headers = self.headers
        while self.linked < self.op:
            following = headers.get(self.linked + 1)
            if following is None:
                break
            if following.parent != headers[self.linked].checksum:
                invariant(
                    False,
                    "the log is one hash chain",
                    op=following.op,
                    view=following.view,
                    parent=following.parent.hex(),
                    expected=headers[self.linked].checksum.hex(),
                )
            if self.candidates and not self._settle_candidate(following):
                break
            self.linked += 1
        while self.durable < self.linked and self.durable + 1 in self.on_disk:
            self.durable += 1
            self.on_disk.discard(self.durable)

    def _settle_candidate(self, header: Header) -> bool:
        """Whether linking may pass `header`: the candidate there, if any, is the same entry, or stands in its place."""
        candidate = self.candidates.get(header.op)
        if candidate is None:
            return True
        is_same = candidate.checksum == header.checksum
        if not is_same and header.op + 1 not in self.on_disk:
            return False  # divergent: the journal must be truncated first, see divergence()
        del self.candidates[header.op]
        if not is_same:  # what stands behind it is of this log: it is written there again, and nothing is cut
            self.faulty.add(header.op)
        elif header.op not in self.faulty:
            self.on_disk.add(header.op)
        return True

    def divergence(self) -> int | None:
        """The op above which the journal holds entries of another log, when that is known."""
        following = self.headers.get(self.linked + 1)
        candidate = self.candidates.get(self.linked + 1)
        if following is not None and candidate is not None and candidate.checksum != following.checksum:
            return self.linked
        return None

    def drop_candidates(self) -> None:
        """The journal is truncated to `linked`: what stands above, of this log or not, is not there any more."""
        self.candidates.clear()
        self.journal_head = self.linked
        cut_off = {op for op in self.on_disk if op > self.linked}
        self.on_disk -= cut_off
        self.faulty |= cut_off  # they were here: never to be denied
        self.rooted = min(self.rooted, self.linked)
        self.writing = {op: checksum for op, checksum in self.writing.items() if op <= self.linked}
        self.link()

    # Bodies

    def keep(self, message: Message) -> None:
        """The body of a known header, to be written or executed."""
        header = message.header
        if header.op not in self.bodies:
            self.held_bytes += header.size + ENTRY_BYTES
        self.bodies[header.op] = message

    def let_go(self, op: int) -> None:
        """A body that is of no use any more, whatever it was kept for."""
        if self.bodies.pop(op, None) is not None:
            self._applied = deque(kept for kept in self._applied if kept[0] != op)
            self._applied_bytes = sum(size for _, size in self._applied)
            self._recount()

    def let_go_of_written(self, applied: int) -> None:
        """Bodies that wait to be applied, of entries on this disk: whoever applies them reads them there."""
        for op in range(max(applied, self._let_go_to) + 1, self.durable + 1):
            if op not in self.faulty:
                message = self.bodies.pop(op, None)
                self.held_bytes -= message.header.size + ENTRY_BYTES if message is not None else 0
        self._let_go_to = max(self.durable, self._let_go_to)

    def _recount(self) -> None:
        applied = {op for op, _ in self._applied}
        self.held_bytes = sum(
            message.header.size + ENTRY_BYTES for op, message in self.bodies.items() if op not in applied
        )

    # Durability

    def mark_durable(self, header: Header) -> bool:
        """An entry was written; False when the log has moved on to another identity."""
        op = header.op
        self.writing.pop(op, None)
        known = self.headers.get(op)
        if known is None or known.checksum != header.checksum:
            return False
        self.faulty.discard(op)
        if op > self.durable:
            self.on_disk.add(op)
            self.link()
        return True

    def knows(self, header: Header) -> bool:
        """This very entry has a place in the log, whether its body is here or not."""
        known = self.headers.get(header.op)
        return known is not None and known.checksum == header.checksum

    def holds(self, op: int) -> bool:
        """The canonical entry of `op` is on this disk."""
        return op not in self.faulty and (op <= self.durable or op in self.on_disk)

    def mark_faulty(self, op: int) -> None:
        """A read found the entry damaged. `durable` stays: what was acknowledged was true."""
        self.faulty.add(op)
        self.on_disk.discard(op)

    def not_written(self, op: int) -> None:
        """The entry that was to be written could not be, and has to be had again."""
        self.writing.pop(op, None)
        self.let_go(op)

    def give_up_above(self, op: int) -> bool:
        """No entry above `op` was ever part of this log: drop what was only feared to be. Whether anything was."""
        head = self.op
        while self.op > op and self.op in self.faulty and self.op not in self.headers:
            self.faulty.discard(self.op)
            self.op -= 1
        return self.op < head

    def trim(self, first_op: int) -> None:
        """The log begins with `first_op` now: damage below it concerns nobody any more, nor what came to repair it."""
        self.first_op = first_op = max(self.first_op, first_op)
        self.faulty = {op for op in self.faulty if op >= first_op}
        for op in [op for op in self.bodies if op < first_op]:
            self.let_go(op)

    # Planning

    def window_end(self, ops: int, size: int) -> int:
        """The last linked op within that many ops and bytes above the durable prefix; one at least."""
        end = self.durable
        for op in range(self.durable + 1, min(self.linked, self.durable + ops) + 1):
            size -= self.headers[op].size
            if size < 0 and end > self.durable:
                break
            end = op
        return end

    def missing(self, end: int) -> Iterator[Header]:
        """Headers of linked entries up to op `end` that are neither on disk nor in memory, lowest first;
        then damaged ones of the durable prefix."""
        for op in range(self.durable + 1, min(self.linked, end) + 1):
            if op not in self.on_disk and op not in self.bodies and op not in self.writing:
                yield self.headers[op]
        for op in sorted(self.faulty):
            header = self.headers.get(op)
            if op <= self.durable and header is not None and op not in self.bodies and op not in self.writing:
                yield header

    def take_writes(self, room: Room, is_patient: bool = True) -> list[Message]:
        """Entries to write now: damaged or missing ones in place, then appends in order, as far as there is
        room for them. The others stay here, not durable and so not acknowledged, until there is.
        is_patient: more bodies may come, so that those wait whose place they may tell."""
        writes: list[Message] = []
        bodies, head = self.bodies, self.journal_head
        self.is_waiting_for_room = False
        if self.durable < head or self.faulty:
            self._in_place(writes, is_patient)
        if not writes and self.linked <= head:
            return writes
        settled = head <= self.durable or head in self.on_disk or head in self.writing
        if not settled and not any(message.header.op == head for message in writes):
            return self._begin(writes)  # the place of what follows may depend on its repair
        following = head + 1
        while following <= self.linked and following in bodies:
            left = room.after(bodies[following].header.size)
            if left is None:
                self.is_waiting_for_room = True
                break
            room = left
            writes.append(bodies[following])
            self.journal_head = following
            following += 1
        return self._begin(writes)

    def _begin(self, writes: list[Message]) -> list[Message]:
        for message in writes:
            self.writing[message.header.op] = message.header.checksum
        return writes

    def _in_place(self, writes: list[Message], is_patient: bool) -> None:
        """Rewrites at or below the journal's head. Ascending: the place of an entry whose
        neighbour below is unknown follows only when that one is rewritten, or from what stands above it when that one
        is to be had from nobody any more, or not while so much is held. What has no place then is let go of, which
        makes room for the neighbour."""
        last, on_disk, writing = min(self.journal_head, self.linked), self.on_disk, self.writing
        wanted = [op for op in range(self.durable + 1, last + 1) if op not in on_disk and op not in writing]
        if self.faulty:
            wanted = sorted(op for op in self.faulty if op <= self.durable and op not in writing) + wanted
        blocked = -1
        for op in wanted:
            message = self.bodies.get(op)
            if message is None or (is_patient and blocked == op - 1):
                blocked = op if op >= self.gone_below else blocked
            else:
                writes.append(message)

    # View changes

    def same_up_to(self, suffix: Sequence[Header], canonical: int) -> int:
        """The highest op at or below which this log is known to be the one that ends with `suffix`; `canonical` as
        for install. The same identity means the same history: it suffices to find one, whatever is missing below."""
        same = canonical
        for header in suffix:
            own = self.headers.get(header.op) or self.candidates.get(header.op)
            if own is not None and own.checksum == header.checksum:
                same = max(same, header.op)
        return same

    def install(self, suffix: Sequence[Header], canonical: int) -> int:
        """Replace everything above what is known to be canonical by `suffix`.

        suffix: headers from some committed op to the new head, ascending and chained.
        canonical: an op at or below which this log agrees with the new one.
        Returns the op to truncate the journal to. Entries between `canonical` and the
        suffix whose place in the new log is not known become candidates.
        """
        head = suffix[-1].op
        first = suffix[0].op
        match = self.same_up_to(suffix, canonical)
        # Damaged beyond recognition, or damaged and known to be this very entry: it may have been
        # acknowledged here. It stays faulty, wherever the journal is cut.
        doubted = {
            header.op
            for header in suffix
            if header.op in self.faulty
            and ((own := self.headers.get(header.op)) is None or own.checksum == header.checksum)
        }
        old_head = self.journal_head
        if match >= first or old_head <= match:
            # Everything up to `match` is canonical by the chain; the rest is not.
            truncate_to = min(match, old_head)
            candidates = {op: header for op, header in self.candidates.items() if op <= truncate_to}
        else:
            # A hole: own entries between `match` and `first` are kept until headers tell.
            # Writes still under way count: they end before the superblock write that follows.
            truncate_to = min(old_head, first - 1)
            candidates = {
                op: self.headers[op]
                for op in range(match + 1, truncate_to + 1)
                if op in self.headers and (op in self.faulty or op in self.writing or self.holds(op))
            }
            candidates.update((op, header) for op, header in self.candidates.items() if op <= truncate_to)
        for op in [op for op in self.headers if op > match]:
            del self.headers[op]
        identities = {header.op: header.checksum for header in suffix}
        for op in [op for op in self.bodies if op > match]:
            if identities.get(op) != self.bodies[op].header.checksum:
                del self.bodies[op]
        self._recount()
        self._let_go_to = min(self._let_go_to, match)
        self.on_disk = {op for op in self.on_disk if op <= match}
        self.faulty = {op for op in self.faulty if op <= truncate_to} | doubted
        self.writing = {op: checksum for op, checksum in self.writing.items() if op <= match}
        for header in suffix:
            self.headers[header.op] = header
        self.op = head
        self.linked = min(self.linked, match)
        self.durable = min(self.durable, match)
        self.rooted = min(self.rooted, match, truncate_to)
        self.journal_head = truncate_to
        for header in suffix:  # identities of the suffix are known: nothing is left to be decided there
            candidate = candidates.get(header.op)
            if candidate is not None and candidate.checksum == header.checksum:
                del candidates[header.op]
                if header.op not in self.faulty:
                    self.on_disk.add(header.op)
        self.candidates = candidates
        self.link()
        return truncate_to

    def forget(self, applied: int) -> None:
        """Drop what retransmission will not need: called as the applied op advances."""
        low = min(applied, self.durable) - WINDOW
        if low > 0 and low not in self.faulty:
            self.headers.pop(low, None)
        body = self.bodies.get(applied)
        if body is None:
            return
        self.held_bytes -= body.header.size + ENTRY_BYTES
        self._applied.append((applied, body.header.size))
        self._applied_bytes += body.header.size
        while len(self._applied) > WINDOW or self._applied_bytes > BODIES_BYTES:
            op, size = self._applied.popleft()
            self._applied_bytes -= size
            self.bodies.pop(op, None)
