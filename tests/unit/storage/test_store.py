"""The store: what goes in comes out, where it stands on the disk, and which rule each write obeys."""

from __future__ import annotations

from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.errors import (
    DataExistsError,
    DataMissingError,
    DiskFullError,
    InvariantError,
    StorageError,
    WriteFailedError,
)
from kimberlite.storage import superblock
from kimberlite.storage.interface import RETRY_NS, SECTOR
from kimberlite.storage.journal import RECORD_BYTES, decode_record, journal_name, witness_bytes, witness_name
from kimberlite.storage.store import Store, format_store
from kimberlite.types import HEADER_SIZE, EntryState, Room, ViewState
from kimberlite.vopr.disk import Files, SimDisk, empty, fill, make_unreadable

WHOLE = SECTOR - HEADER_SIZE  # a body that fills a sector exactly


def contents(store: Store, first: int = 1) -> list[bytes]:
    result = []
    for op in range(first, store.head + 1):
        message = store.read(op)
        assert message is not None, op
        result.append(bytes(message.body))
    return result


# Format


def test_a_new_replica_holds_nothing(bench: Any, kit: Any) -> None:
    recovered = bench.recovered
    assert (recovered.settled, recovered.head, recovered.commit, recovered.entries) == (0, 0, 0, ())
    assert recovered.settled_header == kit.root
    assert (bench.store.head, bench.store.read(0), bench.store.read(1), bench.store.find(0)) == (0, None, None, None)
    assert bench.store.header(0) == kit.root
    assert bench.store.bytes_used == 0
    assert (bench.store.cluster, bench.store.replica, bench.store.replica_count) == (kit.cluster, 0, 3)


@pytest.mark.parametrize("left", ["superblock", "journal-00000000", "witness-00000003"])
def test_format_over_existing_data_changes_nothing(kit: Any, left: str) -> None:
    files = Files({left: bytearray(b"precious")})
    with pytest.raises(DataExistsError, match="nothing was changed"):
        format_store(kit.disk(files), make_header, cluster=kit.cluster, replica=0, replica_count=3)
    assert files.durable == {left: bytearray(b"precious")}


@pytest.mark.parametrize("size", [0, SECTOR, (64 << 10) - SECTOR, (64 << 10) + 512])
def test_segment_sizes_that_can_not_work_are_refused(kit: Any, size: int) -> None:
    files = Files()
    with pytest.raises(StorageError, match="64 KiB"):
        format_store(kit.disk(files), make_header, cluster=kit.cluster, replica=0, replica_count=3, segment_bytes=size)
    assert not files.durable


def test_the_superblock_appears_last_and_whole(kit: Any) -> None:
    class Crash(Exception):
        pass

    class Crashing(kit.disk):  # type: ignore[misc]
        files_max = 0

        def create(self, name: str, size: int, zeroed: bool = True) -> int:
            if len(self.files.durable) == self.files_max:
                raise Crash
            return super().create(name, size)

        def rename(self, old: str, new: str) -> None:
            raise Crash

    for allowed in range(4):  # journal, witness, superblock.new; then the rename
        files = Files()
        disk = Crashing(files)
        disk.files_max = allowed
        with pytest.raises(Crash):
            format_store(disk, make_header, cluster=kit.cluster, replica=0, replica_count=3)
        assert superblock.NAME not in files.durable


# Append and read


@pytest.mark.parametrize(
    "sizes",
    [[0], [1], [WHOLE], [WHOLE + 1], [0, 1, WHOLE - 1, WHOLE, WHOLE + 1, 3 * SECTOR], [64 << 10 >> 1, 100]],
)
def test_what_is_appended_is_read_back(bench: Any, kit: Any, sizes: list[int]) -> None:
    entries = kit.chain(sizes)
    bench.append(entries)
    for store in (bench.store, bench.reopen().store):
        assert store.head == len(sizes)
        assert contents(store) == [message.body for message in entries]
        assert store.headers(1, store.head) == [message.header for message in entries]


def test_one_group_or_many_give_the_same_bytes(kit: Any) -> None:
    entries = kit.chain([10, WHOLE, 9000, 0, 70, 20000, 1] * 3)
    whole, single = kit.fresh(), kit.fresh()
    whole.append(entries)
    for message in entries:
        single.append([message])
    assert whole.files.durable == single.files.durable


def test_an_entry_under_way_is_not_served(bench: Any, kit: Any) -> None:
    clock = 0
    disk = SimDisk(bench.files, lambda: clock, lambda: 10)
    store = Store(disk, make_header)
    store.recover()
    (message,) = kit.chain([5])
    store.append(1, [message])
    assert (store.head, store.read(1), store.header(1)) == (1, None, message.header)
    clock = 10  # the entry is durable, its witness is not
    assert store.completions() == []
    assert store.read(1) is None
    clock = 20
    assert store.completions() == [1]
    assert store.read(1) is not None


def test_the_identity_asked_for_is_the_one_served(bench: Any, kit: Any) -> None:
    first, second = kit.chain([5, 5])
    bench.append([first, second])
    assert bench.store.read(1, first.header.checksum) is not None
    assert bench.store.read(1, second.header.checksum) is None
    assert bench.store.faulty == set()  # asking for something else is no damage


def test_the_journal_grows_by_the_next_op_only(bench: Any, kit: Any) -> None:
    entries = kit.chain([1, 1, 1])
    bench.append(entries[:1])
    for wrong in (entries[2:], entries[:1]):
        with pytest.raises(InvariantError, match="next op"):
            bench.store.append(9, wrong)
    assert bench.store.head == 1


def test_every_entry_of_an_append_is_the_next_op(bench: Any, kit: Any) -> None:
    entries = kit.chain([1, 1, 1])
    for wrong in ([entries[0], entries[2]], [entries[1], entries[1]]):
        with pytest.raises(InvariantError, match="next op"):
            bench.store.append(9, wrong)


def test_an_entry_larger_than_a_segment_is_refused_before_anything_changes(bench: Any, kit: Any) -> None:
    before = kit.copied(bench.files).durable
    with pytest.raises(InvariantError, match="fits a segment"):
        bench.store.append(9, kit.chain([kit.segment]))
    assert bench.files.durable == before
    assert bench.store.head == 0


def test_headers_stop_where_the_chain_is_unknown(bench: Any, kit: Any) -> None:
    entries = kit.chain([1] * 5)
    bench.append(entries)
    wanted = [message.header for message in entries]
    assert bench.store.headers(2, 4) == wanted[1:4]
    assert bench.store.headers(0, 99) == [kit.root, *wanted]
    assert bench.store.headers(4, 3) == []
    assert bench.store.header(6) is None


def test_positions_are_found(bench: Any, kit: Any) -> None:
    entries: list[Any] = []
    counts = [3, 1, 0, 5, 2] * 8  # an op without events holds no position
    for count in counts:
        entries.append(kit.prepare(entries[-1].header if entries else kit.root, b"x" * 5000, events=count))
    bench.append(entries)
    assert bench.store.segment_count > 4
    expected = [entry.header.op for entry, count in zip(entries, counts, strict=True) for _ in range(count)]
    for store in (bench.store, bench.reopen().store):
        assert [store.find(position) for position in range(sum(counts))] == expected
        assert store.find(sum(counts)) is None
        assert store.find(-1) is None


# Segments


def test_an_entry_that_does_not_fit_begins_the_next_segment(bench: Any, kit: Any) -> None:
    half = kit.segment // 2
    entries = kit.chain([half, half, 10, kit.segment - HEADER_SIZE, 10])
    for message in entries:
        bench.append([message])
    names = [name for name in bench.files.durable if name.startswith("journal-")]
    # half + header is more than half a segment, so the second one does not fit beside the first.
    assert sorted(names) == [journal_name(number) for number in range(4)]
    again = bench.reopen()
    assert contents(again.store) == [message.body for message in entries]
    assert again.store.bytes_used == bench.store.bytes_used


def test_a_segment_is_filled_to_its_last_byte(bench: Any, kit: Any) -> None:
    entries = kit.chain([WHOLE] * (kit.segment // SECTOR))
    bench.append(entries)
    assert bench.store.segment_count == 1
    assert bench.reopen().recovered.head == len(entries)
    (message,) = kit.chain([1], after=entries[-1].header)
    bench.append([message])
    assert bench.store.segment_count == 2
    assert contents(bench.reopen().store)[-1] == message.body


def test_memory_does_not_grow_with_the_log(bench: Any, kit: Any) -> None:
    before = kit.root
    for _ in range(12):
        entries = kit.chain([WHOLE] * (kit.segment // SECTOR), after=before)
        bench.append(entries)
        before = entries[-1].header
    for store in (bench.store, bench.reopen().store):
        assert contents(store)
        store.completions()
        assert [segment.number for segment in store._segments.open] == [11]
        assert store.segment_count == 12


def test_a_segment_that_is_gone_is_named(bench: Any, kit: Any) -> None:
    bench.append(kit.chain([WHOLE] * 40))
    for name in (journal_name(1), witness_name(1), journal_name(0), witness_name(2)):
        files = kit.copied(bench.files)
        del files.durable[name]
        with pytest.raises(DataMissingError, match=name):
            kit.open(files)


# Repair and truncation


def test_a_repair_writes_in_place_and_heals(bench: Any, kit: Any) -> None:
    entries = kit.chain([10, 9000, 10])
    bench.append(entries)
    sound = kit.copied(bench.files).durable
    for victim in entries:
        bench.files.durable[journal_name(0)][_offset(entries, victim) + 300] ^= 1
        assert bench.store.read(victim.header.op) is None
        assert bench.store.faulty == {victim.header.op}
        assert bench.store.read(victim.header.op) is None  # until it is repaired
        bench.repair([victim])
        assert bench.store.faulty == set()
        assert contents(bench.store) == [message.body for message in entries]
        assert bench.files.durable == sound


def _offset(entries: list[Any], wanted: Any) -> int:
    offset = 0
    for message in entries:
        if message is wanted:
            return offset
        offset += (message.header.size + SECTOR - 1) // SECTOR * SECTOR
    raise AssertionError


def test_a_repair_after_a_restart_uses_the_place_it_had(bench: Any, kit: Any) -> None:
    entries = kit.chain([10, 9000, 10, 10])
    bench.append(entries)
    sound = kit.copied(bench.files).durable
    for victim in entries:
        files = kit.copied(bench.files)
        files.durable[journal_name(0)][_offset(entries, victim) + 3] ^= 1
        again = kit.open(files)
        op = victim.header.op
        assert again.store.faulty == {op}
        (found,) = [entry for entry in again.recovered.entries if entry.state is not EntryState.PRESENT]
        assert (found.op, found.state, found.header) == (op, EntryState.FAULTY, victim.header)
        again.repair([victim])
        assert files.durable == sound


def test_an_unreadable_sector_is_damage_and_heals_by_writing(bench: Any, kit: Any) -> None:
    """R15: a read error marks the entry faulty; it is not fatal."""
    entries = kit.chain([10, 10])
    bench.append(entries)
    make_unreadable(bench.files, journal_name(0), 1)
    assert bench.store.read(2) is None
    assert bench.reopen().store.faulty == {2}
    bench.repair(entries[1:])
    assert bench.reopen().store.faulty == set()


def test_a_truncated_suffix_is_replaced_in_place(bench: Any, kit: Any) -> None:
    old = kit.chain([10] * 5)
    bench.append(old)
    new = kit.chain([20, 9000, 20], after=old[1].header, view=1, salt=9)
    bench.promise(
        ViewState(1, 1, base=1, suffix_head=3, suffix=tuple(message.header for message in (old[0], old[1], new[0])))
    )
    bench.store.truncate(2)
    assert (bench.store.head, bench.store.read(3), bench.store.header(3)) == (2, None, None)
    bench.append(new)
    for store in (bench.store, bench.reopen().store):
        assert contents(store) == [message.body for message in (*old[:2], *new)]


def test_a_truncation_across_segments_uses_their_files_again(bench: Any, kit: Any) -> None:
    old = kit.chain([WHOLE] * 40)
    bench.append(old)
    files = sorted(bench.files.durable)
    bench.promise(ViewState(1, 1, base=4, suffix_head=5, suffix=tuple(message.header for message in old[3:5])))
    bench.store.truncate(5)
    assert bench.store.segment_count == 1
    new = kit.chain([WHOLE - 1] * 30, after=old[4].header, view=1, salt=3)
    for message in new:
        bench.append([message])
    assert sorted(bench.files.durable) == files
    for store in (bench.store, bench.reopen().store):
        assert contents(store) == [message.body for message in (*old[:5], *new)]
        assert store.find(39) is None
        assert store.find(34) == 35


def test_faults_above_a_truncation_are_forgotten(bench: Any, kit: Any) -> None:
    bench.append(kit.chain([10] * 4))
    for sector in (1, 3):
        make_unreadable(bench.files, journal_name(0), sector)
    assert (bench.store.read(2), bench.store.read(4)) == (None, None)
    bench.store.truncate(3)
    assert bench.store.faulty == {2}
    with pytest.raises(InvariantError):
        bench.store.truncate(4)


# The rules


def test_r1_padding_is_zero_and_checked(bench: Any, kit: Any) -> None:
    bench.append(kit.chain([10, 5000]))
    journal = bench.files.durable[journal_name(0)]
    for at in (HEADER_SIZE + 10, SECTOR - 1, SECTOR + HEADER_SIZE + 5000, 3 * SECTOR - 1):
        assert journal[at] == 0
        journal[at] = 1
        assert bench.reopen().store.faulty == {1 if at < SECTOR else 2}
        journal[at] = 0
    assert not any(journal[3 * SECTOR :])
    record = bench.files.durable[witness_name(0)][:RECORD_BYTES]
    for at in range(HEADER_SIZE + 16, RECORD_BYTES - 16):
        assert record[at] == 0


def test_r2_r4_witness_records_name_their_place(bench: Any, kit: Any) -> None:
    entries = kit.chain([10, 9000, 10])
    bench.append(entries)
    image = bench.files.durable[witness_name(0)]
    assert len(image) == witness_bytes(kit.segment)
    for index, message in enumerate(entries):
        data = bytes(image[index * RECORD_BYTES : (index + 1) * RECORD_BYTES])
        record = decode_record(data, 0, index)
        assert record is not None
        assert record.header == message.header
        assert record.offset == _offset(entries, message)
        # A record copied to another place or segment is no witness there.
        assert decode_record(data, 1, index) is None
        assert decode_record(data, 0, index + 1) is None


def test_r3_no_two_entries_share_a_sector_and_no_acknowledged_one_is_rewritten(bench: Any, kit: Any) -> None:
    entries = kit.chain([1, WHOLE, 5000, 0] * 6)
    for message in entries:
        bench.append([message])
    seen: set[tuple[str, int]] = set()
    for event in bench.recorder.events:
        if isinstance(event, tuple):
            continue
        for name, offset, data in event:
            if name.startswith("journal-"):
                sectors = {(name, sector) for sector in range(offset // SECTOR, (offset + len(data)) // SECTOR)}
                assert not sectors & seen
                seen |= sectors
            assert offset % SECTOR == 0
            assert len(data) % SECTOR == 0


def test_r4_files_never_change_their_size(bench: Any, kit: Any) -> None:
    bench.append(kit.chain([WHOLE] * 40))
    for name, content in bench.files.durable.items():
        if name.startswith("journal-"):
            assert len(content) == kit.segment
        elif name.startswith("witness-"):
            assert len(content) == witness_bytes(kit.segment)


@pytest.mark.parametrize("operation", ["append", "repair", "promise"])
@pytest.mark.parametrize("phase", [0, 1])
def test_r5_no_write_error_is_ever_acknowledged_or_retried(bench: Any, kit: Any, operation: str, phase: int) -> None:
    entries = kit.chain([10, 10, 10])
    bench.append(entries[:2])
    clock = 0
    disk = SimDisk(bench.files, lambda: clock, lambda: 10)
    store = Store(disk, make_header)
    store.recover()
    if operation == "append":
        store.append(1, entries[2:])
    elif operation == "repair":
        store.repair(1, entries[:1])
    else:
        store.set_view_state(1, ViewState(1, 0, suffix=(kit.root,)))
    clock = 10 * phase
    assert store.completions() == []
    disk.fail_next_write = 5
    clock = 1000
    before = kit.copied(bench.files).durable
    for _ in range(3):
        with pytest.raises(WriteFailedError) as raised:
            store.completions()
        details = raised.value.details
        assert details["errno"] == 5
        assert str(details["file"]).startswith(
            "superblock" if operation == "promise" else ("journal-", "witness-")[phase]
        )
    store.append(2, kit.chain([1], after=(entries[2] if operation == "append" else entries[1]).header))
    clock = 2000
    with pytest.raises(WriteFailedError):
        store.completions()
    assert bench.files.durable == before


def test_r7_the_witness_follows_the_durable_entry_and_the_acknowledgement_follows_both(bench: Any, kit: Any) -> None:
    bench.append(kit.chain([10, 9000]))
    phases = [event for event in bench.recorder.events if isinstance(event, list)]
    assert [{name for name, _, _ in phase} for phase in phases] == [{journal_name(0)}, {witness_name(0)}]


def test_r8_a_promise_is_in_force_only_when_it_is_read_back(bench: Any, kit: Any) -> None:
    clock = 0
    store = Store(SimDisk(bench.files, lambda: clock, lambda: 10), make_header)
    store.recover()
    state = ViewState(4, 3, commit=0, suffix=(kit.root,))
    store.set_view_state(7, state)
    for time in (0, 10, 20, 30, 39):
        clock = time
        assert store.completions() == []
        assert store.view_state.view == 0
    clock = 40
    assert store.completions() == [7]
    assert store.view_state == state
    assert bench.reopen().recovered.view_state == state


def test_r12_r16_a_damaged_witness_and_a_missing_entry_are_faulty_not_absent(bench: Any, kit: Any) -> None:
    entries = kit.chain([10, 10, 10])
    bench.append(entries)
    for op in (1, 2):
        files = kit.copied(bench.files)
        files.durable[journal_name(0)][(op - 1) * SECTOR : op * SECTOR] = bytes(SECTOR)
        for record in (bytes(RECORD_BYTES), b"\xaa" * RECORD_BYTES):
            files.durable[witness_name(0)][(op - 1) * RECORD_BYTES : op * RECORD_BYTES] = record
            again = kit.open(kit.copied(files))
            assert again.recovered.head == 3
            assert again.store.faulty == {op}, "an op above it was acknowledged: it is never the end of the log"


def test_r13_what_was_acknowledged_is_never_below_the_cut(bench: Any, kit: Any) -> None:
    """Entries above the last witnessed one may be cut, whatever state they are in; no other."""
    entries = kit.chain([10] * 6)
    bench.append(entries[:4])
    image = kit.copied(bench.files)
    bench.append(entries[4:])
    for damage in (bytes(SECTOR), b"\x55" * SECTOR):
        files = kit.copied(image)
        journal = files.durable[journal_name(0)]
        journal[:] = bench.files.durable[journal_name(0)]
        journal[4 * SECTOR : 5 * SECTOR] = damage  # op 5 torn; op 6 whole behind it; neither was witnessed
        again = kit.open(files)
        assert again.recovered.head == 4
        assert again.recovered.settled == 4
        assert again.recovered.faulty == 0
        # The log goes on where it was cut, over what is left of the torn writes.
        again.append(entries[4:5])
        # What stood behind it is gone: it might be the middle of a longer entry just as well.
        assert again.reopen().recovered.head == 5


def test_r16_an_empty_witness_file_does_not_end_the_log(bench: Any, kit: Any) -> None:
    entries = kit.chain([10] * 5)
    bench.append(entries)
    bench.files.durable[witness_name(0)][:] = bytes(witness_bytes(kit.segment))
    again = bench.reopen()
    assert again.recovered.settled == 5
    assert contents(again.store) == [message.body for message in entries]
    # Opening wrote the witnesses again.
    assert again.files.durable[witness_name(0)][: 5 * RECORD_BYTES] != bytes(5 * RECORD_BYTES)


def test_opening_is_idempotent(bench: Any, kit: Any) -> None:
    bench.append(kit.chain([10, 9000, WHOLE] * 10))
    before = bench.files.durable
    again = bench.reopen()
    assert again.files.durable == before
    assert not again.recorder.events


def test_the_commit_number_is_the_highest_that_anything_knows(bench: Any, kit: Any) -> None:
    first = kit.prepare(kit.root, b"a", commit=0)
    second = kit.prepare(first.header, b"b", commit=1)
    bench.append([first, second])
    assert bench.reopen().recovered.commit == 1
    bench.promise(ViewState(1, 0, commit=2, suffix=(kit.root,)))
    assert bench.reopen().recovered.commit == 2


def test_one_append_over_more_segments_than_are_kept(kit: Any, bench: Any) -> None:
    """Segments that are left within an append must not be let go before their witnesses are written."""
    entries = kit.chain([SECTOR - 256] * 200)  # thirteen segments
    bench.append(entries)
    for reader in (bench, bench.reopen()):
        assert reader.store.faulty == set()
        assert [reader.store.read(message.header.op).header for message in entries] == [m.header for m in entries]
    records = [bench.files.durable[witness_name(number)][:RECORD_BYTES] for number in range(13)]
    assert all(any(record) for record in records)


# Room, and none left


def test_room_is_what_is_left_of_the_segment_in_use(bench: Any, kit: Any) -> None:
    assert bench.store.room == Room(kit.segment, kit.segment)
    bench.append(kit.chain([1, SECTOR]))
    assert bench.store.room == Room(kit.segment - 3 * SECTOR, kit.segment)
    assert bench.reopen().store.room == bench.store.room
    bench.store.truncate(1)
    assert bench.store.room == Room(kit.segment - SECTOR, kit.segment)


def test_the_next_segment_is_reserved_when_a_quarter_is_used(bench: Any, kit: Any) -> None:
    sectors = kit.segment // SECTOR
    entries = kit.chain([1] * sectors)
    bench.append(entries[: sectors // 4])
    assert not bench.store.make_room(0, needed=False)
    bench.append(entries[sectors // 4 : sectors // 4 + 1])
    assert bench.store.make_room(0, needed=False)
    rest = kit.segment - (sectors // 4 + 1) * SECTOR
    assert bench.store.room == Room(rest, kit.segment, spare=1)
    assert not bench.store.make_room(0, needed=False), "one is enough"
    assert bench.store.make_room(0, needed=True), "unless more is asked for"
    assert bench.store.room.spare == 2
    again = bench.reopen()
    assert again.store.room == bench.store.room, "found again after a restart"
    assert again.store.head == sectors // 4 + 1
    more = kit.chain([2] * sectors, after=again.store.header(again.store.head))
    again.append(more)
    assert contents(again.store)[-sectors:] == [message.body for message in more]


def test_a_full_disk_is_remembered_and_asked_again_at_intervals(bench: Any, kit: Any) -> None:
    entries = kit.chain([1] * (kit.segment // SECTOR))
    bench.append(entries[:-1])
    fill(bench.files)
    before = bench.disk.names()
    assert bench.store.make_room(1000, needed=False), "that there is none is news"
    assert isinstance(bench.store.disk_full, DiskFullError)
    assert bench.store.room == Room(SECTOR, kit.segment, is_exhausted=True)
    assert bench.disk.names() == before
    bench.append(entries[-1:])  # what fits goes on being written
    assert contents(bench.store) == [message.body for message in entries]
    empty(bench.files)
    assert not bench.store.make_room(1000 + RETRY_NS - 1, needed=True)
    assert bench.store.make_room(1000 + RETRY_NS, needed=False)
    assert (bench.store.room, bench.store.disk_full) == (Room(0, kit.segment, spare=1), None)


def test_a_disk_that_is_full_behind_the_witness_file(bench: Any, kit: Any) -> None:
    """The pair is made by two creations; a start between them, and a second attempt, find the first."""
    bench.append(kit.chain([1] * (kit.segment // SECTOR)))
    fill(bench.files)
    bench.files.capacity += witness_bytes(kit.segment)
    assert bench.store.make_room(0, needed=True)
    assert (bench.disk.exists(witness_name(1)), bench.disk.exists(journal_name(1))) == (True, False)
    again = bench.reopen()
    for one in (bench, again):
        empty(one.files)
        assert one.store.make_room(RETRY_NS, needed=True)
        assert one.store.room == Room(0, kit.segment, spare=1)
        one.append(kit.chain([2], after=one.store.header(one.store.head)))


def test_format_on_a_full_disk_can_be_tried_again(kit: Any) -> None:
    files = Files(capacity=kit.segment)
    for _ in range(2):
        with pytest.raises(DiskFullError):
            format_store(
                kit.disk(files), make_header, cluster=kit.cluster, replica=0, replica_count=3, segment_bytes=kit.segment
            )
        assert not files.durable
