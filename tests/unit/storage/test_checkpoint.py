"""Checkpoints: the file, and how a store writes, commits, reads back and trims by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import xxhash
from lab import CLUSTER, ROOT, prepare

from kimberlite._fast.framing import make_header
from kimberlite.errors import CheckpointError, FormatVersionError
from kimberlite.storage import checkpoint
from kimberlite.storage.checkpoint_writer import CheckpointWriter
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.interface import RETRY_NS, SECTOR
from kimberlite.storage.journal import RECORD_BYTES, witness_name
from kimberlite.storage.store import Store, format_store
from kimberlite.types import Birth, EntryState, Header, Identity, Operation
from kimberlite.vopr.corruption import copied
from kimberlite.vopr.disk import Files, SimDisk, corrupt, fill, make_unreadable

SEGMENT = 64 << 10
SNAPSHOT = Random(5).randbytes(checkpoint.CHUNK + 10_000)  # more than a chunk


def content(**changes: Any) -> checkpoint.Content:
    whole = checkpoint.Content(CLUSTER, ROOT, 3, b"sessions", b"snapshot" * 100, record=b"a record")
    return replace(whole, **changes)


# The file


VERSIONS = [(checkpoint.VERSION_UNBORN, b""), (checkpoint.VERSION, b""), (checkpoint.VERSION, b"r" * 2560)]


@pytest.mark.parametrize("sessions", [b"", b"s", b"s" * 5000])
@pytest.mark.parametrize("snapshot", [b"", b"x", b"x" * 4096])
@pytest.mark.parametrize(("version", "record"), VERSIONS)
def test_a_file_comes_back(sessions: bytes, snapshot: bytes, version: int, record: bytes) -> None:
    whole = content(sessions=sessions, snapshot=snapshot, version=version, record=record)
    data = checkpoint.encode(whole)
    assert len(data) % 4096 == 0
    read = checkpoint.decode(data)
    assert checkpoint.encode(read) == data
    assert (read.version, read.record) == (version, record)
    assert (read.machine, read.sessions, read.snapshot) == (3, sessions, snapshot)
    assert (read.cluster, read.header.checksum) == (CLUSTER, whole.header.checksum)


def resealed(data: bytearray) -> bytes:
    """A file whose header's checksum fits what was changed in it."""
    data[4080:4096] = xxhash.xxh3_128_digest(bytes(data[:4080]))
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (4, 3, FormatVersionError),  # version
        (8, 1, FormatVersionError),  # a feature
        (40, 2, CheckpointError),  # the first section is another one
        (44, 1, CheckpointError),  # between kind and size
        (72, 3, FormatVersionError),  # a section of a later release
        (104, 1, CheckpointError),  # a third section of a known kind
        (112, 1, CheckpointError),  # what is behind the last one
        (6, 9, CheckpointError),  # a shorter record than there is
        (4079, 1, CheckpointError),  # the padding
    ],
)
def test_a_header_that_contradicts_itself_is_refused(at: int, value: int, error: type[Exception]) -> None:
    data = bytearray(checkpoint.encode(content(record=b"a longer record")))
    data[at] = value
    with pytest.raises(error):
        checkpoint.decode(resealed(data))


@pytest.mark.parametrize("version", [checkpoint.VERSION_UNBORN, checkpoint.VERSION])
def test_every_flipped_bit_of_a_file_is_noticed(version: int) -> None:
    data = checkpoint.encode(content(version=version, record=b"r" if version == checkpoint.VERSION else b""))
    for bit in range(len(data) * 8):
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CheckpointError, FormatVersionError)):
            checkpoint.decode(bytes(spoiled))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8191])
def test_a_file_cut_short_is_noticed(size: int) -> None:
    with pytest.raises(CheckpointError):
        checkpoint.decode(checkpoint.encode(content())[:size])


# The store


class Log:
    """A store over a simulated disk, and its entries."""

    def __init__(self) -> None:
        self.files = Files()
        self.sizes = Random(1)
        format_store(self.disk(), make_header, cluster=CLUSTER, replica=0, replica_count=1, segment_bytes=SEGMENT)
        self.headers: list[Header] = [ROOT]
        self.start()

    def disk(self) -> SimDisk:
        return SimDisk(self.files, lambda: 0, lambda: 0)

    def start(self) -> Any:
        self.store = Store(self.disk(), make_header)
        self.recovered = self.store.recover()
        return self.recovered

    def append(self, count: int, size: int = 3000) -> None:
        for _ in range(count):
            body = self.sizes.randbytes(size)
            message = prepare(self.headers[-1], body, replicas=1, operation=Operation.APPLY, count=2)
            self.headers.append(message.header)
            self.store.append(1, [message])
            self.finish()

    def checkpoint(self, op: int, snapshot: bytes = SNAPSHOT) -> None:
        mark = self.store.mark(op)
        assert mark is not None
        self.store.write_checkpoint(mark, 1, b"sessions of %d" % op, snapshot)
        self.finish()

    def finish(self) -> None:
        """Until nothing is under way, not even a file to be removed."""
        for _ in range(60):
            self.store.completions()

    def names(self, kind: str) -> list[str]:
        return [name for name in sorted(self.files.durable) if name.startswith(kind)]


def test_a_restart_begins_at_the_checkpoint() -> None:
    log = Log()
    log.append(40)
    log.checkpoint(30)
    recovered = log.start()
    assert recovered.restored is not None
    assert (recovered.restored.op, recovered.restored.positions) == (30, 60)
    assert (recovered.restored.sessions, recovered.restored.snapshot) == (b"sessions of 30", SNAPSHOT)
    assert (recovered.settled, recovered.head) == (40, 40)
    for op in range(1, 41):
        message = log.store.read(op)
        assert message is not None and message.header.checksum == log.headers[op].checksum
    log.append(20)
    assert log.start().head == 60


@pytest.mark.parametrize("index", [0, 7, 8, 9])
def test_a_witness_below_the_checkpoint_is_written_again_at_the_start(index: int) -> None:
    """Nothing looks at what the checkpoint has settled, but it shares its sector with what is written next."""
    log = Log()
    log.append(10)
    log.checkpoint(10)
    witness = log.files.durable[witness_name(0)]
    record = slice(index * RECORD_BYTES, (index + 1) * RECORD_BYTES)
    good, witness[record] = bytes(witness[record]), bytes(RECORD_BYTES)
    log.start()
    assert bytes(witness[record]) == good


def test_only_the_latest_checkpoint_is_kept_and_none_goes_back() -> None:
    log = Log()
    log.append(12)
    log.checkpoint(4)
    assert log.store.mark(4) is None and log.store.mark(3) is None
    log.checkpoint(9)
    assert log.names("checkpoint") == [checkpoint.file_name(9, "a"), checkpoint.file_name(9, "b")]
    assert log.start().restored.op == 9


def test_nothing_below_the_checkpoint_is_read_at_the_start() -> None:
    log = Log()
    log.append(200)
    log.checkpoint(190)
    first = log.names("journal")[0]
    for name in (first, first.replace("journal", "witness")):
        for sector in range(len(log.files.durable[name]) // 4096):
            make_unreadable(log.files, name, sector)
    recovered = log.start()
    assert (recovered.settled, recovered.head, recovered.faulty) == (200, 200, 0)


@pytest.mark.parametrize("copy", checkpoint.COPIES)
def test_one_damaged_copy_is_made_good_from_the_other(copy: str) -> None:
    log = Log()
    log.append(12)
    log.checkpoint(9)
    name = checkpoint.file_name(9, copy)
    good = bytes(log.files.durable[name])
    corrupt(log.files, name, 5000, 1, Random(0))
    assert log.start().restored.op == 9
    log.finish()
    assert bytes(log.files.durable[name]) == good


def test_a_trim_that_comes_while_a_copy_is_made_good_is_not_forgotten() -> None:
    log = Log()
    log.append(100)
    log.checkpoint(90)
    first_op, first_position, *_ = list(log.store.extents())[2]
    corrupt(log.files, checkpoint.file_name(90, "b"), 5000, 1, Random(0))
    log.start()
    log.store.trim(first_op, first_position)
    log.finish()
    assert log.store.first_op == first_op


def test_without_a_copy_the_whole_log_is_executed_again_while_it_is_there() -> None:
    log = Log()
    log.append(12)
    log.checkpoint(9)
    for copy in checkpoint.COPIES:
        corrupt(log.files, checkpoint.file_name(9, copy), 0, 16, Random(0))
    recovered = log.start()
    assert recovered.restored is None
    assert (recovered.settled, recovered.commit >= 9) == (12, True)


def test_without_a_copy_nothing_is_trimmed_before_there_is_another_checkpoint() -> None:
    log = Log()
    log.append(100)
    first_op, first_position, *_ = list(log.store.extents())[2]
    log.checkpoint(90)
    for copy in checkpoint.COPIES:
        corrupt(log.files, checkpoint.file_name(90, copy), 0, 16, Random(0))
    log.start()
    assert log.store.checkpoint_op == 0
    log.store.trim(first_op, first_position)
    log.finish()
    assert log.store.first_op == 1 and log.names("journal")[0] == "journal-00000000"
    log.checkpoint(95)
    assert (log.store.checkpoint_op, log.store.first_op) == (95, first_op)
    assert log.start().restored.op == 95


def test_without_a_copy_a_trimmed_log_is_refused() -> None:
    log = Log()
    log.append(100)
    log.checkpoint(90)
    log.store.trim(33, 64)
    log.finish()
    for copy in checkpoint.COPIES:
        del log.files.durable[checkpoint.file_name(90, copy)]
    with pytest.raises(CheckpointError, match="replace this replica"):
        log.start()


@pytest.mark.parametrize("copies", [0, 1])
def test_a_checkpoint_without_space_waits_for_it_and_holds_no_trim_back(copies: int) -> None:
    """It may be the trim that makes the space. copies: as many of the checkpoint still find room."""
    log = Log()
    log.append(100)
    log.checkpoint(60, b"small")
    third = list(log.store.extents())[2]
    fill(log.files)
    assert log.files.capacity is not None
    log.files.capacity += copies * len(log.files.durable[checkpoint.file_name(60, "a")])
    log.checkpoint(90, b"small")
    assert log.store.checkpoint.op == 60
    log.store.trim(third.first_op, third.first_position)
    log.finish()
    assert (log.store.first_op, log.names("journal")[0]) == (third.first_op, "journal-00000002")
    log.append(1)
    log.store.make_room(RETRY_NS, needed=False)
    log.finish()
    assert log.store.checkpoint.op == 90
    assert log.names("checkpoint") == [checkpoint.file_name(90, copy) for copy in checkpoint.COPIES]
    assert log.start().restored.op == 90


def waiting_for_space() -> Log:
    """The checkpoint of op 90 waits for it, that of op 60 is in force."""
    log = Log()
    log.append(100)
    log.checkpoint(60, b"small")
    fill(log.files)
    log.checkpoint(90, b"small")
    return log


def test_a_damaged_copy_is_made_good_while_the_next_checkpoint_waits_for_space() -> None:
    """It may wait for long, and the other copy is the only one."""
    log = waiting_for_space()
    a, b = (checkpoint.file_name(60, copy) for copy in checkpoint.COPIES)
    good = log.files.durable[b]
    log.files.durable[a][100] ^= 1
    assert log.store.rewrite_checkpoint("a", bytes(good))
    log.finish()
    assert log.files.durable[a] == good == log.files.durable[b]
    log.files.capacity = None
    log.store.make_room(2 * RETRY_NS, needed=False)
    log.finish()
    assert log.store.checkpoint.op == 90
    assert log.names("checkpoint") == [checkpoint.file_name(90, copy) for copy in checkpoint.COPIES]


def test_no_copy_is_relied_on_that_is_lost_while_the_next_checkpoint_waits_for_space() -> None:
    log = waiting_for_space()
    log.store.lose_checkpoint(60)
    assert log.store.checkpoint_op == 0
    third = list(log.store.extents())[2]
    log.store.trim(third.first_op, third.first_position)
    log.finish()
    assert log.store.first_op == 1, "without it nothing could be executed again"
    log.files.capacity = None
    log.store.make_room(RETRY_NS, needed=False)
    log.finish()
    assert (log.store.checkpoint_op, log.store.first_op) == (90, third.first_op)


def test_a_trim_gives_space_back_and_is_not_forgotten() -> None:
    log = Log()
    log.append(100)
    log.checkpoint(90)
    extents = list(log.store.extents())
    third = extents[2]
    log.store.trim(third.first_op, third.first_position)
    log.finish()
    for _ in range(2):
        assert log.names("journal")[0] == "journal-00000002"
        assert log.names("witness")[0] == "witness-00000002"
        assert (log.store.first_op, log.store.first_position) == (third.first_op, third.first_position)
        assert log.store.read(third.first_op - 1) is None and log.store.find(third.first_position - 1) is None
        assert not log.store.faulty
        for op in range(third.first_op, 101):
            assert log.store.read(op) is not None
        assert log.store.find(third.first_position) == third.first_op
        log.start()


def test_a_trim_waits_for_the_checkpoint_that_no_longer_needs_what_goes() -> None:
    log = Log()
    log.append(100)
    first_op, first_position, *_ = list(log.store.extents())[2]
    log.store.trim(first_op, first_position)
    log.finish()
    assert log.store.first_op == 1 and log.names("journal")[0] == "journal-00000000"
    log.checkpoint(first_op - 2)
    assert log.store.first_op == 1
    log.checkpoint(first_op - 1)
    assert log.store.first_op == first_op and log.names("journal")[0] == "journal-00000002"
    assert log.start().first_op == first_op


def test_a_trim_may_take_everything_that_is_in_the_checkpoint() -> None:
    log = Log()
    log.append(60)
    first_op, first_position, *_ = list(log.store.extents())[2]
    log.checkpoint(first_op - 1)  # the last entry of its segment, which goes
    log.store.trim(first_op, first_position)
    log.finish()
    assert log.names("journal")[0] == "journal-00000002"
    for _ in range(2):
        recovered = log.start()
        assert (recovered.settled, recovered.head, recovered.restored.op) == (60, 60, first_op - 1)
        assert log.store.find(first_position) == first_op
        for op in range(first_op, 61):
            assert log.store.read(op) is not None


def test_what_a_crash_left_of_an_unfinished_checkpoint_is_removed() -> None:
    log = Log()
    log.append(12)
    log.checkpoint(5)
    log.files.durable[checkpoint.file_name(9, "a")] = bytearray(4096)
    log.start()
    log.finish()
    assert log.names("checkpoint") == [checkpoint.file_name(5, copy) for copy in checkpoint.COPIES]


def test_chunks_leave_room_for_others() -> None:
    log = Log()
    log.append(3)
    mark = log.store.mark(3)
    assert mark is not None
    log.store.write_checkpoint(mark, 1, b"", SNAPSHOT)
    submitted = log.store._disk.writes
    assert submitted > 0
    log.store.completions()
    assert log.store._disk.writes == submitted + 1, "a chunk at a time"
    assert log.store.checkpoint.op == 0, "not before all of it is durable"


def test_on_a_real_disk(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path, unsafe=True)
    format_store(disk, make_header, cluster=CLUSTER, replica=0, replica_count=1, segment_bytes=SEGMENT)
    disk.close()
    log = Log.__new__(Log)
    log.sizes = Random(1)
    log.headers = [ROOT]
    disk = FileDisk(tmp_path, unsafe=True)
    log.store = Store(disk, make_header)
    log.store.recover()

    def finish() -> None:
        while True:
            disk.flush()
            log.store.completions()
            if log.store._checkpoints.is_idle:
                return

    log.finish = finish  # type: ignore[method-assign]
    log.append(100)
    log.checkpoint(90)
    extent = list(log.store.extents())[1]
    log.store.trim(extent.first_op, extent.first_position)
    log.finish()
    log.store.close()
    disk = FileDisk(tmp_path, unsafe=True)
    store = Store(disk, make_header)
    recovered = store.recover()
    assert recovered.restored is not None and recovered.restored.snapshot == SNAPSHOT
    assert (recovered.first_op, recovered.head) == (extent.first_op, 100)
    assert not (tmp_path / "journal-00000000").exists()
    store.close()


def test_what_is_above_the_checkpoint_is_not_denied_for_damage_below_it_in_its_sector_of_the_witnesses() -> None:
    """The records of the entries below the checkpoint are of no use, but that they are damaged says that the record of
    the last entry may have been there as well."""
    log = Log()
    log.append(6)
    log.checkpoint(4)
    log.files.durable["journal-00000000"][5 * SECTOR + 1000] ^= 1
    log.files.durable["witness-00000000"][:SECTOR] = b"\xff" * RECORD_BYTES + bytes(SECTOR - RECORD_BYTES)
    recovered = log.start()
    assert recovered.entries[0].op == 6
    assert {entry.state for entry in recovered.entries} == {EntryState.FAULTY}, "and maybe what would follow it"


def test_damage_to_what_was_trimmed_takes_nothing_along() -> None:
    """Nobody can repair it: what stands behind it in its segment has its place in spite of it."""
    log = Log()
    log.append(30)
    log.checkpoint(28)
    log.store.trim(20, 38)
    log.finish()
    assert log.names("journal")[0] == "journal-00000001", "which holds op 17 to 19 as well"
    log.files.durable["journal-00000001"][0] ^= 1
    log.files.durable["witness-00000001"][:SECTOR] = b"\xff" * SECTOR
    log.start()
    assert log.store.faulty == set()
    for op in range(20, 31):
        message = log.store.read(op)
        assert message is not None and message.header.checksum == log.headers[op].checksum


# A checkpoint of which no copy can be read any more, in a log that was trimmed


def steps_of_replacing(snapshot: bytes) -> tuple[Log, list[Files]]:
    """Both copies can not be read for a while, and the state is written in their place. The log when that is done, and
    what is on the disk after every step: copies that were reported may be good, and must not be relied on to be bad."""
    log = Log()
    log.append(100)
    log.checkpoint(90)
    third = list(log.store.extents())[2]
    log.store.trim(third.first_op, third.first_position)
    log.finish()
    log.store.lose_checkpoint(90)
    assert log.store.checkpoint_op == 0
    mark = log.store.mark(90)
    assert mark is not None
    log.store.write_checkpoint(mark, 1, b"sessions of 90", snapshot)
    images = [copied(log.files)]
    while log.store.checkpoint_op == 0:
        log.store.completions()
        images.append(copied(log.files))
    return log, images


def restart(files: Files) -> Any:
    return Store(SimDisk(files, lambda: 0, lambda: 0), make_header).recover()


@pytest.mark.parametrize("snapshot", [SNAPSHOT, b"as another version writes it" * 20_000])
def test_the_op_of_a_lost_checkpoint_is_written_again_without_a_moment_that_has_no_copy(snapshot: bytes) -> None:
    log, images = steps_of_replacing(snapshot)
    assert len(images) > 4
    for files in images:
        assert restart(files).restored.snapshot in (SNAPSHOT, snapshot)
    assert restart(log.files).restored.snapshot == snapshot
    assert all(not checkpoint.check_copy(log.disk(), log.store.checkpoint, copy) for copy in checkpoint.COPIES)


def test_both_copies_before_the_superblock_would_lose_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        CheckpointWriter, "_is_due", lambda self, copying: copying.names_at is not None and not copying.copies
    )
    _, images = steps_of_replacing(b"as another version writes it" * 20_000)
    refused = 0
    for files in images:
        try:
            restart(files)
        except CheckpointError:
            refused += 1
    assert refused


def test_a_lost_checkpoint_is_followed_by_that_of_a_later_op() -> None:
    log = Log()
    log.append(100)
    log.checkpoint(90)
    for copy in checkpoint.COPIES:
        corrupt(log.files, checkpoint.file_name(90, copy), 0, 16, Random(0))
    log.store.lose_checkpoint(90)
    assert log.store.mark(89) is None
    log.checkpoint(95)
    assert log.store.checkpoint_op == 95
    assert log.start().restored.op == 95


def test_a_checkpoint_waits_for_a_copy_that_is_made_good_since_it_was_marked() -> None:
    log = Log()
    log.append(20)
    log.checkpoint(9, bytes(20 * checkpoint.CHUNK))
    data = bytes(log.files.durable[checkpoint.file_name(9, "a")])
    mark = log.store.mark(15)
    assert mark is not None
    assert log.store.rewrite_checkpoint("b", data)
    log.store.write_checkpoint(mark, 1, b"sessions of 15", b"small")
    assert log.store.mark(16) is None, "one is to be written"
    log.finish()
    assert log.store.checkpoint.op == 15
    assert log.names("checkpoint") == [checkpoint.file_name(15, copy) for copy in checkpoint.COPIES]
    assert log.start().restored.op == 15


def test_a_trim_that_comes_with_the_superblock_of_a_checkpoint_is_not_forgotten() -> None:
    log = Log()
    log.append(100)
    third = list(log.store.extents())[2]
    mark = log.store.mark(90)
    assert mark is not None
    log.store.write_checkpoint(mark, 1, b"", b"small")
    while log.store._superblock.last.checkpoint.op != 90:
        log.store.completions()
    assert log.store.checkpoint.op == 0, "under way"
    log.store.trim(third.first_op, third.first_position)
    log.finish()
    assert log.store.first_op == third.first_op


# Versions: what a superblock knows


def test_a_store_writes_what_the_first_release_reads_until_its_replica_is_formed() -> None:
    log = Log()
    log.append(4)
    log.checkpoint(2)
    named = log.store.checkpoint
    assert checkpoint.read(log.disk(), named)[0].version == checkpoint.VERSION_UNBORN
    who = Identity(Birth.FORMED, 0, b"i" * 16, b"d" * 16, record=b"the record")
    log.store.begin_life(replace(who, birth=Birth.BOUND), 1)
    log.store.set_view_state(1, log.store.view_state, who)
    log.finish()
    # A damaged copy of the older one is made good as what it is.
    corrupt(log.files, checkpoint.file_name(2, "a"), 5000, 10, Random(1))
    log.start()
    log.finish()
    assert not any(checkpoint.check_copy(log.disk(), named, copy) for copy in checkpoint.COPIES)
    assert log.store.identity == who
    log.checkpoint(4)
    found, bad = checkpoint.read(log.disk(), log.store.checkpoint)
    assert (found.version, found.record, bad) == (checkpoint.VERSION, b"the record", [])
