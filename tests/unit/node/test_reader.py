"""Reads by position: exact runs of events, limits, damage."""

from __future__ import annotations

import pytest
from lab import ROOT, prepare

from kimberlite._fast import events
from kimberlite.errors import CorruptEntryError, PositionError
from kimberlite.node.reader import LogReader
from kimberlite.types import Message, Operation


class Journal:
    """A store of ops in memory, as far as a reader asks."""

    def __init__(self) -> None:
        self.ops: list[Message] = []
        self.position = 0
        self.first_position = 0
        self.first_op = 1
        self.log: list[bytes] = []
        self.damaged: set[int] = set()
        self.reads: list[int] = []

    def _add(self, body: bytes, operation: int, count: int) -> None:
        before = self.ops[-1].header if self.ops else ROOT
        self.ops.append(prepare(before, body, operation=operation, count=count, timestamp=1_000 + len(self.ops)))
        self.position += count

    def apply(self, *payloads: bytes) -> None:
        self._add(events.build(payloads), Operation.APPLY, len(payloads))
        self.log += payloads

    def batch(self, *requests: list[bytes] | None) -> None:
        """Several requests in one prepare; None registers a session."""
        packed = []
        for number, payloads in enumerate(requests):
            operation = Operation.REGISTER if payloads is None else Operation.APPLY
            body = b"" if payloads is None else events.build(payloads)
            packed.append(events.SubRequest(bytes([number]) * 16, 1, 1, operation, len(payloads or ()), body))
            self.log += payloads or ()
        self._add(events.pack_requests(packed), Operation.BATCH, sum(len(payloads or ()) for payloads in requests))

    def other(self, operation: int) -> None:
        self._add(b"", operation, 0)

    def find(self, position: int) -> int | None:
        for message in self.ops:
            header = message.header
            if header.position <= position < header.position + header.count:
                return int(header.op)
        return None

    def read(self, op: int, checksum: bytes | None = None, ahead: int = 0) -> Message | None:
        self.reads.append(op)
        return None if op in self.damaged or op < self.first_op else self.ops[op - 1]


@pytest.fixture
def journal() -> Journal:
    journal = Journal()
    journal.other(Operation.REGISTER)
    journal.apply(b"a", b"bb", b"ccc")
    journal.other(Operation.NOOP)
    journal.batch([b"d" * 40], None, [b"e", b"f"], [b"", b"g"])
    journal.apply(*(b"%d" % n for n in range(30)))
    journal.batch(None)
    journal.apply(b"h" * 500)
    return journal


def reader(journal: Journal, applied: int | None = None) -> tuple[LogReader, list[int]]:
    asked: list[int] = []
    last = len(journal.ops) if applied is None else applied
    end = sum(message.header.count for message in journal.ops[:last])
    return LogReader(journal, end=lambda: end, applied=lambda: last, damaged=asked.append), asked  # type: ignore[arg-type]


def all_of(body: bytes, count: int, runs: dict[int, int]) -> list[bytes]:
    assert events.validate(body) == count == sum(runs.values())
    return events.slice(body, 0, count)


def test_every_position_and_count_gives_exactly_that_run(journal: Journal) -> None:
    log = journal.log
    source, _ = reader(journal)
    for position in range(len(log)):
        for count_max in (1, 2, 3, 7, 1000):
            found = all_of(*source.read(position, count_max, 1 << 20))
            assert found == log[position : position + count_max]


@pytest.mark.parametrize("bytes_max", [0, 1, 40, 64, 100, 200, 400, 2000])
def test_reading_on_from_where_a_limit_stopped_gives_the_whole_log(journal: Journal, bytes_max: int) -> None:
    source, _ = reader(journal)
    found: list[bytes] = []
    while len(found) < len(journal.log):
        body, count, runs = source.read(len(found), 1000, bytes_max)
        assert count >= 1, "at least one, however small the limit"
        assert count == 1 or len(body) <= bytes_max + 64
        found += all_of(body, count, runs)
    assert found == journal.log


def test_each_event_has_the_timestamp_of_its_op(journal: Journal) -> None:
    source, _ = reader(journal)
    expected: list[int] = []
    for message in journal.ops:
        expected += [message.header.timestamp] * message.header.count
    for position, count_max in ((0, 1000), (1, 5), (3, 1), (4, 4)):
        _, count, runs = source.read(position, count_max, 1 << 20)
        found = [stamp for stamp, many in runs.items() for _ in range(many)]
        assert found == expected[position : position + count_max] and len(found) == count


@pytest.mark.parametrize("position", [-1, 38, 39, 1 << 60])
def test_outside_of_the_log(journal: Journal, position: int) -> None:
    source, _ = reader(journal)
    assert source.end == 39 == len(journal.log)
    if position == 38:
        assert source.read(position, 1, 100)[1] == 1
        return
    with pytest.raises(PositionError, match="0 to 38") as raised:
        source.read(position, 1, 100)
    assert raised.value.details == {"position": position, "first": 0, "end": 39}


def test_an_empty_log_says_so() -> None:
    with pytest.raises(PositionError, match="empty"):
        reader(Journal())[0].read(0, 1, 1)


def test_only_what_is_applied_is_given_out(journal: Journal) -> None:
    source, _ = reader(journal, applied=4)
    assert all_of(*source.read(0, 1000, 1 << 20)) == journal.log[: source.end]
    with pytest.raises(PositionError):
        source.read(source.end, 1, 100)


def test_damage_is_reported_for_repair_and_nothing_is_made_up(journal: Journal) -> None:
    journal.damaged = {4}
    source, asked = reader(journal)
    with pytest.raises(CorruptEntryError):
        source.read(3, 1, 100)
    assert asked == [4]


def test_sequential_reads_read_an_entry_once(journal: Journal) -> None:
    source, _ = reader(journal)
    first = journal.find(8)
    for position in range(8, 38):
        source.read(position, 1, 100)
    assert journal.reads.count(first or 0) == 1


def test_a_trimmed_position_says_where_the_log_begins() -> None:
    journal = Journal()
    journal.apply(b"a", b"b")
    journal.apply(b"c")
    journal.first_position = 2
    with pytest.raises(PositionError, match="position 1 was trimmed: the log has positions 2 to 2") as raised:
        reader(journal)[0].read(1, 1, 100)
    assert (raised.value.position, raised.value.first, raised.value.end) == (1, 2, 3)
    assert reader(journal)[0].read(2, 1, 100)[1] == 1


def test_a_read_that_continues_the_last_one_searches_nothing(journal: Journal) -> None:
    searched: list[int] = []
    find = journal.find
    journal.find = lambda position: searched.append(position) or find(position)  # type: ignore[method-assign, func-returns-value]
    last = len(journal.ops)
    reader = LogReader(
        journal,  # type: ignore[arg-type]
        end=lambda: journal.position,
        applied=lambda: last,
        damaged=lambda op: None,
    )
    for count_max in (1, 2, 3, 7, 100):
        searched.clear()
        position, got = 0, []
        while position < reader.end:
            body, count, _ = reader.read(position, count_max, 1 << 20)
            got += events.slice(body, 0, count)
            position += count
        assert got == journal.log
        assert searched == [0]


def test_a_read_goes_on_at_the_beginning_of_a_log_that_was_trimmed_up_to_there() -> None:
    journal = Journal()
    journal.apply(b"a", b"b")
    journal.other(Operation.REGISTER)
    journal.apply(b"c")
    log, damaged = reader(journal)
    assert all_of(*log.read(0, 2, 1000)) == [b"a", b"b"]
    journal.first_op, journal.first_position = 3, 2
    assert all_of(*log.read(2, 2, 1000)) == [b"c"]
    assert not damaged
