"""Tools see what only the ring has, change nothing of it, and write no superblock over it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.backup.source import Source, read_superblock
from kimberlite.cli import inspect, repair_view
from kimberlite.errors import DataMissingError
from kimberlite.node import assessing
from kimberlite.storage import ring
from kimberlite.storage.audit import Audit, Cause
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import journal_name
from kimberlite.storage.ring_writer import RingWriter
from kimberlite.storage.store import Store, format_store
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import Identity, Message
from kimberlite.vopr.disk import Files, ImageDisk

SEGMENT = 64 << 10
NONCE = bytes(range(1, 17))


@pytest.fixture
def made(kit: Any) -> tuple[Files, list[Message]]:
    """Five entries; the last four are in the ring alone."""
    return made_by(kit)


def made_by(kit: Any, replica_count: int = 1) -> tuple[Files, list[Message]]:
    files = Files()
    disk = ImageDisk(files)
    format_store(
        disk,
        make_header,
        cluster=kit.cluster,
        replica=0,
        replica_count=replica_count,
        segment_bytes=SEGMENT,
        identity=Identity(),
        ring_nonce=NONCE,
    )
    store = Store(disk, make_header, uses_ring=True)
    store.recover()
    store.begin_life(store.identity, 1)
    entries: list[Message] = kit.chain((100, 100, 5000, 0, 100))
    for token, message in enumerate(entries, 1):
        store.append(token, [message])
        assert store.completions() == [token]
    assert bytes(files.durable[journal_name(0)][SECTOR : 2 * SECTOR]) == bytes(SECTOR)
    return files, entries


def copied(files: Files) -> ImageDisk:
    return ImageDisk(Files({name: bytearray(content) for name, content in files.durable.items()}))


def look_audit(disk: ImageDisk) -> object:
    audit = Audit(disk)
    return list(audit.findings()), audit.entries


def look_backup(disk: ImageDisk) -> object:
    source = Source(disk, read_superblock(disk))
    return source.last_op, source.last.checksum


def look_assess(disk: ImageDisk) -> object:
    return assessing.look(disk, "here").op


def look_inspect(disk: ImageDisk) -> object:
    return [(row["op"], row["entry"], row["witness"]) for row in inspect.journal_rows(ring.shown(disk), 0)]


LOOKS = {
    look_audit: lambda entries: ([], 5),
    look_backup: lambda entries: (5, entries[-1].header.checksum),
    look_assess: lambda entries: 5,
    look_inspect: lambda entries: [(op, "good", "good") for op in range(1, 6)],
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_tool_sees_what_only_the_ring_has_and_changes_nothing(
    look: Callable[[ImageDisk], object], made: tuple[Files, list[Message]]
) -> None:
    files, entries = made
    disk = copied(files)
    assert look(disk) == LOOKS[look](entries)  # type: ignore[index]
    assert disk.files.durable == files.durable
    assert disk.writes == 0


@pytest.mark.parametrize("look", LOOKS)
def test_a_tool_that_passes_over_the_ring_is_found(
    look: Callable[[ImageDisk], object], made: tuple[Files, list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "read", lambda disk, nonce, superblock: [])
    files, entries = made
    assert look(copied(files)) != LOOKS[look](entries)  # type: ignore[index]


def test_a_lost_ring_is_told(made: tuple[Files, list[Message]]) -> None:
    files, _ = made
    disk = copied(files)
    del disk.files.durable[ring.NAME]
    findings, _ = look_audit(disk)  # type: ignore[misc]
    assert [(finding.cause, finding.file, finding.harmless) for finding in findings[:1]] == [
        (Cause.FILE_MISSING, ring.NAME, False)
    ]
    for look in (look_backup, look_assess):
        with pytest.raises(DataMissingError):
            look(disk)
    with pytest.raises(DataMissingError):
        Store(disk, make_header).recover()


def test_a_view_that_is_taken_back_takes_nothing_with_it(kit: Any) -> None:
    files, entries = made_by(kit, replica_count=3)
    disk = copied(files)
    file = SuperblockFile(disk)
    repair_view.lower(disk, file, 0)  # type: ignore[arg-type]
    recovered = Store(ImageDisk(disk.files), make_header).recover()
    assert recovered.head == len(entries)


def test_a_store_that_does_not_use_the_ring_reads_it(made: tuple[Files, list[Message]], kit: Any) -> None:
    files, entries = made
    disk = copied(files)
    store = Store(disk, make_header)
    assert store.recover().settled == len(entries)
    store.begin_life(store.identity, 2)
    more = kit.chain((50, 60), after=entries[-1].header)
    before = bytes(disk.files.durable[ring.NAME])
    for token, message in enumerate(more, 1):
        store.append(token, [message])
        assert store.completions() == [token]
    assert bytes(disk.files.durable[ring.NAME]) == before
    again = Store(ImageDisk(disk.files), make_header)
    assert again.recover().settled == len(entries) + 2


# How entries go


class Watched(SimpleNamespace):
    """A store with a ring, whose writes are on record."""


def watched(kit: Any) -> Watched:
    files, entries = made_by(kit, replica_count=3)
    disk = kit.disk(copied(files).files)
    store = Store(disk, make_header, uses_ring=True)
    store.recover()
    store.begin_life(store.identity, 2)
    disk.recorder.events.clear()
    return Watched(store=store, disk=disk, last=entries[-1].header, files=disk.files)


def names(events: list[Any]) -> list[set[str]]:
    return [{name for name, _, _ in phase} for phase in events]


def append(kit: Any, w: Watched, *sizes: int) -> list[Message]:
    entries: list[Message] = kit.chain(sizes, after=w.last)
    w.last = entries[-1].header
    w.store.append(len(w.disk.recorder.events) + 1, entries)
    w.store.completions()
    return entries


def test_a_small_group_takes_one_write_and_is_read_from_memory(kit: Any) -> None:
    w = watched(kit)
    for sizes in ((100,), (10, 20, 5000), (0,)):
        entries = append(kit, w, *sizes)
        for message in entries:
            assert w.store.read(message.header.op, message.header.checksum) is message
            assert w.store.read(message.header.op, b"x" * 16) is None
            assert w.store.header(message.header.op).checksum == message.header.checksum
    assert names(w.disk.recorder.events) == [{ring.NAME}] * 3
    assert w.store.bytes_written > 0


def test_what_is_written_back_is_read_from_the_journal(kit: Any) -> None:
    w = watched(kit)
    entries = [message for size in (100, 5000, 10) for message in append(kit, w, size)]
    w.disk.recorder.events.clear()
    w.store.write_back(is_quiet=False)
    assert not w.disk.recorder.events
    w.store.write_back(is_quiet=True)
    w.store.completions()
    assert names(w.disk.recorder.events) == [{"journal-00000000"}, {"witness-00000000"}]
    for message in entries:
        found = w.store.read(message.header.op, message.header.checksum)
        assert found is not None
        assert found is not message
        assert bytes(found.body) == bytes(message.body)
    w.store.write_back(is_quiet=True)
    assert len(w.disk.recorder.events) == 2


@pytest.mark.parametrize("sizes", [(20_000,), (8100,), (3000, 3000, 3000)])
def test_what_fits_no_frame_takes_the_small_ones_with_it(kit: Any, sizes: tuple[int, ...]) -> None:
    w = watched(kit)
    append(kit, w, 100)
    w.disk.recorder.events.clear()
    append(kit, w, *sizes)
    first, second = w.disk.recorder.events
    assert names([first, second]) == [{"journal-00000000"}, {"witness-00000000"}]
    assert [len(data) for _, _, data in first] == [SECTOR + sum(-(-(256 + size) // SECTOR) * SECTOR for size in sizes)]


def test_the_superblock_is_written_behind_all_that_the_ring_has(kit: Any) -> None:
    w = watched(kit)
    append(kit, w, 100)
    w.disk.recorder.events.clear()
    w.store.set_view_state(9, w.store.view_state)
    assert names(w.disk.recorder.events)[:3] == [{"journal-00000000"}, {"witness-00000000"}, {"superblock"}]
    append(kit, w, 10)  # while it is under way: two writes
    assert names(w.disk.recorder.events)[-2:] == [{"journal-00000000"}, {"witness-00000000"}]


def test_no_more_is_pending_than_the_ring_holds(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "PENDING_MAX", 4)
    w = watched(kit)
    for _ in range(4):
        append(kit, w, 10)
    w.disk.recorder.events.clear()
    append(kit, w, 10)
    assert names(w.disk.recorder.events) == [{"journal-00000000"}, {"witness-00000000"}]
    append(kit, w, 10)
    assert names(w.disk.recorder.events)[-1] == {ring.NAME}


def test_one_frame_at_a_time_and_none_beside_an_entry_that_takes_two_writes(kit: Any) -> None:
    w = watched(kit)
    ring_writer: RingWriter = w.store._ring
    for sizes in ((10,), (20,), (30,)):
        entries = kit.chain(sizes, after=w.last)
        w.last = entries[-1].header
        w.store.append(len(w.disk.recorder.events) + 100, entries)
    assert names(w.disk.recorder.events) == [{ring.NAME}]
    assert sorted(w.store.completions()) == [100, 101, 101]
    assert names(w.disk.recorder.events) == [{ring.NAME}] * 2  # both that waited
    large = kit.chain((20_000,), after=w.last)
    small = kit.chain((10,), after=large[-1].header)
    w.disk.recorder.events.clear()
    w.store.append(200, large)
    w.store.append(201, small)
    assert {ring.NAME} not in names(w.disk.recorder.events)
    assert w.store.completions() == [200, 201]
    assert names(w.disk.recorder.events)[-1] == {ring.NAME}
    assert not ring_writer._waiting


def test_a_store_that_ends_leaves_everything_in_the_journal(kit: Any) -> None:
    w = watched(kit)
    (message,) = append(kit, w, 100)
    w.disk.recorder.events.clear()
    w.store.close()
    assert names(w.disk.recorder.events) == [{"journal-00000000"}, {"witness-00000000"}]
    assert w.store.head == message.header.op


# A ring for data that has none


def test_data_gets_a_ring_and_goes_on(kit: Any) -> None:
    files = Files()
    disk = ImageDisk(files)
    format_store(
        disk,
        make_header,
        cluster=kit.cluster,
        replica=0,
        replica_count=3,
        segment_bytes=SEGMENT,
        identity=Identity(),
    )
    files.durable[ring.NAME] = bytearray(SECTOR)  # of a crash before the superblock named it
    store = Store(disk, make_header, uses_ring=True)
    store.recover()
    assert store.add_ring(NONCE)
    assert store.add_ring(bytes(16))
    assert store.ring_mark.nonce == NONCE
    entries = kit.chain((100, 200, 300))
    for token, message in enumerate(entries, 1):
        store.append(token, [message])
        assert store.completions() == [token]
    assert any(files.durable[ring.NAME])
    again = Store(ImageDisk(files), make_header, uses_ring=True)
    assert again.recover().settled == 3
    assert again.add_ring(bytes(16))
    assert again.ring_mark.nonce == NONCE


def test_without_space_there_is_no_ring(kit: Any) -> None:
    files = Files()
    format_store(
        ImageDisk(files),
        make_header,
        cluster=kit.cluster,
        replica=0,
        replica_count=3,
        segment_bytes=SEGMENT,
        identity=Identity(),
    )
    files.capacity = sum(map(len, files.durable.values()))
    store = Store(ImageDisk(files), make_header, uses_ring=True)
    store.recover()
    assert not store.add_ring(NONCE)
    assert ring.NAME not in files.durable
    assert Store(ImageDisk(files), make_header).recover().settled == 0


def test_data_of_the_first_release_gets_no_ring(kit: Any) -> None:
    bench = kit.fresh()
    assert not bench.store.add_ring(NONCE)
    assert ring.NAME not in bench.files.durable
