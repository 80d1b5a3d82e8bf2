"""The audit of a disk: every damage is found, named and placed; what is harmless is called so; nothing is changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import superblock
from kimberlite.storage.audit import Audit, Cause, Finding
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, encode_record, journal_name, round_up, witness_name
from kimberlite.storage.log_reader import CHUNK
from kimberlite.types import Command, Message, Operation, ViewState
from kimberlite.vopr.disk import Files, SimDisk, make_unreadable

JOURNAL, WITNESS = journal_name(0), witness_name(0)
SIZES = [100, 9000, 0, 300]
OFFSETS = [0, SECTOR, 4 * SECTOR, 5 * SECTOR]
END = 6 * SECTOR


@dataclass
class Result:
    audit: Audit
    findings: list[Finding]
    advanced: int

    @property
    def causes(self) -> list[Cause]:
        return [finding.cause for finding in self.findings]

    @property
    def damage(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.harmless]


def audited(files: Files) -> Result:
    """Reads everything; checks what holds for every audit."""
    before = {name: bytes(content) for name, content in files.durable.items()}
    counts: list[int] = []
    disk = SimDisk(files, lambda: 0, lambda: 0)
    audit = Audit(disk, counts.append)
    findings = list(audit.findings())
    assert {name: bytes(content) for name, content in files.durable.items()} == before
    assert disk.writes == 0
    assert all(count > 0 for count in counts)
    for finding in findings:
        assert finding.text and finding.file
    return Result(audit, findings, sum(counts))


@pytest.fixture(scope="module")
def small(kit: Any) -> Any:
    """Four entries in six sectors."""
    bench = kit.fresh()
    for message in kit.chain(SIZES):
        bench.append([message])
    return bench


@pytest.fixture
def image(kit: Any, small: Any) -> Files:
    """A copy of it, to be damaged."""
    copy: Files = kit.copied(small.files)
    return copy


def flip(files: Files, name: str, offset: int) -> None:
    files.durable[name][offset] ^= 0x40


def test_what_is_whole_has_no_findings(image: Files) -> None:
    result = audited(image)
    assert result.findings == []
    assert (result.audit.entries, result.audit.entry_bytes, result.audit.segments) == (4, END, 1)
    assert result.advanced == result.audit.total_bytes == sum(map(len, image.durable.values()))


def test_a_log_without_entries(kit: Any) -> None:
    result = audited(kit.fresh().files)
    assert (result.findings, result.audit.entries) == ([], 0)
    assert result.advanced == result.audit.total_bytes


def parts() -> Iterator[tuple[int, int, Cause]]:
    """Bytes of the journal, the op that each belongs to, and what is wrong when it changes."""
    for op, (size, offset) in enumerate(zip(SIZES, OFFSETS, strict=True), 1):
        for at in range(offset, offset + round_up(256 + size), 61):
            within = at - offset
            if within < 256:
                yield at, op, Cause.ENTRY_HEADER
            else:
                yield at, op, Cause.ENTRY_BODY if within < 256 + size else Cause.ENTRY_PADDING


def test_every_part_of_every_entry(kit: Any, small: Any) -> None:
    seen = set()
    for at, op, cause in parts():
        image = kit.copied(small.files)
        flip(image, JOURNAL, at)
        (finding,) = audited(image).findings
        assert (finding.cause, finding.op, finding.segment) == (cause, op, 0)
        assert (finding.file, finding.offset, finding.harmless) == (JOURNAL, OFFSETS[op - 1], False)
        seen.add((op, cause))
    assert len(seen) == 11  # op 3 has no body


def test_every_part_of_every_witness(kit: Any, small: Any) -> None:
    for at in range(0, 4 * RECORD_BYTES, 13):
        image = kit.copied(small.files)
        flip(image, WITNESS, at)
        (finding,) = audited(image).findings
        index = at // RECORD_BYTES
        assert (finding.cause, finding.op, finding.file) == (Cause.WITNESS_DAMAGED, index + 1, WITNESS)
        assert (finding.offset, finding.harmless) == (index * RECORD_BYTES, True)


def test_an_entry_and_its_witness(image: Files) -> None:
    flip(image, JOURNAL, OFFSETS[1] + 300)
    flip(image, WITNESS, RECORD_BYTES + 10)
    result = audited(image)
    assert [(f.cause, f.op, f.harmless) for f in result.findings] == [
        (Cause.ENTRY_BODY, 2, False),
        (Cause.WITNESS_DAMAGED, 2, False),
    ]
    assert result.audit.entries == 3


def test_sectors_zeroed_and_unreadable(kit: Any, small: Any) -> None:
    for op, offset in enumerate(OFFSETS, 1):
        image = kit.copied(small.files)
        image.durable[JOURNAL][offset : offset + SECTOR] = bytes(SECTOR)
        (finding,) = audited(image).findings
        assert (finding.cause, finding.op, finding.offset) == (Cause.ENTRY_MISSING, op, offset)
        image = kit.copied(small.files)
        make_unreadable(image, JOURNAL, offset // SECTOR)
        (finding,) = audited(image).findings
        assert (finding.cause, finding.op, finding.offset) == (Cause.ENTRY_UNREADABLE, op, offset)
    image = kit.copied(small.files)
    make_unreadable(image, WITNESS, 0)
    result = audited(image)
    assert [(f.cause, f.harmless) for f in result.findings if f.op] == [(Cause.WITNESS_UNREADABLE, True)] * 4
    assert result.damage == []


def test_entries_that_have_changed_places(image: Files) -> None:
    journal = image.durable[JOURNAL]
    first, last = slice(0, SECTOR), slice(OFFSETS[3], END)
    journal[first], journal[last] = journal[last], journal[first]
    result = audited(image)
    assert [(f.cause, f.op, f.harmless) for f in result.findings] == [
        (Cause.ENTRY_OTHER, 1, False),
        (Cause.ENTRY_OTHER, 4, False),
    ]
    assert "op 4" in result.findings[0].text


def test_a_witness_of_another_entry(image: Files) -> None:
    # The record of an entry of another view, for the same place: what a lost write leaves.
    other = make_header(cluster=b"storage-cluster!", command=Command.PREPARE, op=3, view=7, operation=Operation.APPLY)
    image.durable[WITNESS][2 * RECORD_BYTES : 3 * RECORD_BYTES] = encode_record(other, OFFSETS[2], 0, 2)
    image.durable[WITNESS][3 * RECORD_BYTES : 4 * RECORD_BYTES] = bytes(RECORD_BYTES)
    result = audited(image)
    assert [(f.cause, f.op, f.harmless) for f in result.findings] == [
        (Cause.WITNESS_OTHER, 3, True),
        (Cause.WITNESS_MISSING, 4, True),
    ]


def test_an_entry_that_does_not_continue_the_one_before(kit: Any) -> None:
    """Intact, witnessed, and of another history: no restart makes that, so it is below what one looks at."""
    bench = kit.fresh()
    entries = kit.chain([SECTOR - 256] * 60)
    bench.append(entries)  # four segments: the first is trusted by its witness
    stray = kit.chain([SECTOR - 256] * 6, salt=99)[5]
    bench.files.durable[JOURNAL][5 * SECTOR : 6 * SECTOR] = stray.header.raw + bytes(stray.body)
    record = encode_record(stray.header, 5 * SECTOR, 0, 5)
    bench.files.durable[WITNESS][5 * RECORD_BYTES : 6 * RECORD_BYTES] = record
    causes = {(finding.cause, finding.op) for finding in audited(bench.files).damage}
    assert (Cause.ENTRY_CHAIN, 6) in causes


def test_segments_that_a_restart_trusts_are_read(kit: Any) -> None:
    bench = kit.fresh()
    bench.append(kit.chain([SECTOR - 256] * 200))
    assert audited(bench.files).findings == []
    last = max(bench.files.durable)
    assert last == witness_name(12)
    for number, sector in itertools.product((0, 5, 12), (0, 3)):
        image = kit.copied(bench.files)
        flip(image, journal_name(number), sector * SECTOR + 1000)
        flip(image, witness_name(number), (sector + 1) * RECORD_BYTES + 100)
        result = audited(image)
        op = number * 16 + sector + 1
        assert [(f.cause, f.segment, f.offset, f.op) for f in result.findings] == [
            (Cause.ENTRY_BODY, number, sector * SECTOR, op),
            (Cause.WITNESS_DAMAGED, number, (sector + 1) * RECORD_BYTES, op + 1),
        ]
        assert (result.audit.entries, result.audit.segments) == (199, 13)
        assert result.advanced == result.audit.total_bytes


def test_superblock_copies(kit: Any, small: Any) -> None:
    for copies in itertools.chain.from_iterable(itertools.combinations(range(4), count) for count in (1, 2, 3, 4)):
        image = kit.copied(small.files)
        for copy in copies:
            flip(image, superblock.NAME, copy * superblock.COPY_BYTES + 5000)
        result = audited(image)
        damaged = [finding for finding in result.findings if finding.cause is Cause.COPY_DAMAGED]
        assert [finding.offset for finding in damaged] == [copy * superblock.COPY_BYTES for copy in copies]
        lost = len(copies) > 2
        assert {finding.harmless for finding in damaged} == {not lost}
        assert (result.audit.superblock_error is not None) == lost
        assert (result.causes[-1] is Cause.SUPERBLOCK_LOST) == lost
        assert result.audit.entries == (0 if lost else 4)


def test_a_superblock_copy_that_an_update_did_not_reach(kit: Any, small: Any) -> None:
    old = kit.copied(small.files)
    bench = kit.open(kit.copied(small.files))
    bench.promise(ViewState(view=1, log_view=0, suffix=(kit.root,)))
    size = superblock.COPY_BYTES
    bench.files.durable[superblock.NAME][3 * size :] = old.durable[superblock.NAME][3 * size :]
    (finding,) = audited(bench.files).findings
    assert (finding.cause, finding.offset, finding.harmless) == (Cause.COPY_OLD, 3 * size, True)


def test_files_that_are_cut_short(kit: Any, small: Any) -> None:
    image = kit.copied(small.files)
    del image.durable[JOURNAL][OFFSETS[3] + 100 :]
    result = audited(image)
    assert [(f.cause, f.op, f.harmless) for f in result.findings] == [
        (Cause.FILE_SIZE, None, True),
        (Cause.ENTRY_UNREADABLE, 4, False),
    ]
    image = kit.copied(small.files)
    del image.durable[JOURNAL][END + 10 :]
    result = audited(image)
    assert (result.causes, result.damage) == ([Cause.FILE_SIZE], [])
    image = kit.copied(small.files)
    del image.durable[WITNESS][:]
    result = audited(image)
    assert result.damage == []
    assert Cause.FILE_SIZE in result.causes
    assert [f.op for f in result.findings if f.cause is Cause.WITNESS_UNREADABLE and f.op] == [1, 2, 3, 4]


def test_files_that_are_gone(kit: Any) -> None:
    bench = kit.fresh()
    bench.append(kit.chain([SECTOR - 256] * 60))
    for name, entries in ((journal_name(1), 44), (witness_name(2), 44), (journal_name(0), 44)):
        image = kit.copied(bench.files)
        del image.durable[name]
        result = audited(image)
        assert {(f.cause, f.file) for f in result.findings} == {(Cause.FILE_MISSING, name)}
        assert not any(finding.harmless for finding in result.findings)
        assert result.audit.entries == entries, "what is left is read"


def test_what_a_crash_leaves_is_harmless(kit: Any, small: Any, image: Files) -> None:
    # An entry whose witness was not written yet; then one that was cut short.
    (late, torn) = kit.chain([500, 5000], after=small.store.header(4))
    raw = (late.header.raw + bytes(late.body)).ljust(SECTOR, b"\0")
    image.durable[JOURNAL][END : END + SECTOR] = raw
    image.durable[JOURNAL][END + SECTOR : END + SECTOR + 512] = (torn.header.raw + bytes(torn.body))[:512]
    image.durable[WITNESS][9 * RECORD_BYTES + 4] = 1  # in another sector than the records
    result = audited(image)
    assert result.damage == []
    assert [(f.cause, f.op, f.offset) for f in result.findings] == [
        (Cause.WITNESS_MISSING, 5, 4 * RECORD_BYTES),
        (Cause.ENTRY_TORN, None, END + SECTOR),
        (Cause.WITNESS_DAMAGED, None, 9 * RECORD_BYTES),
    ]
    assert result.audit.entries == 5


def test_what_was_never_written_here_is_no_damage(kit: Any) -> None:
    """The log of the view goes on to op 6, of which this replica has none above 2."""
    bench = kit.fresh()
    entries: list[Message] = kit.chain([10, 10, 10, 10, 10, 10])
    bench.append(entries[:2])
    suffix = tuple(message.header for message in entries[3:])
    bench.promise(ViewState(view=1, log_view=1, commit=4, base=2, suffix_head=6, suffix=suffix))
    result = audited(bench.files)
    assert result.damage == []
    assert [(f.cause, f.op) for f in result.findings] == [(Cause.ENTRY_ABSENT, op) for op in (3, 4, 5, 6)]


def test_ops_of_which_nothing_is_left(kit: Any) -> None:
    bench = kit.fresh()
    entries: list[Message] = kit.chain([10] * 6)
    bench.append(entries)
    bench.promise(
        ViewState(view=1, log_view=1, commit=6, base=5, suffix_head=6, suffix=tuple(m.header for m in entries[-1:]))
    )
    for name in (JOURNAL, WITNESS):
        unit = SECTOR if name == JOURNAL else RECORD_BYTES
        bench.files.durable[name][3 * unit :] = bytes(len(bench.files.durable[name]) - 3 * unit)
    result = audited(bench.files)
    assert [(f.cause, f.op) for f in result.damage] == [(Cause.ENTRY_LOST, 4), (Cause.ENTRY_LOST, 5)]
    assert [(f.cause, f.op) for f in result.findings][2:] == [
        (Cause.ENTRY_ABSENT, 6)
    ]  # its identity is known, and it is not said to have been here
    assert result.audit.entries == 3


def test_what_a_running_replica_changes_is_no_damage(kit: Any) -> None:
    """Between the superblock and the journal a view change replaces the tail."""
    bench = kit.fresh()
    old: list[Message] = kit.chain([SECTOR - 256] * 4)
    bench.append(old)

    class Moving(SimDisk):
        def read(self, file: int, offset: int, length: int) -> memoryview:
            places.append((self._handles[file], offset))
            if places.count((JOURNAL, 3 * SECTOR)) == 2 and places[-1] == (JOURNAL, 3 * SECTOR):  # not the restart's
                new = kit.chain([SECTOR - 256] * 2, after=old[1].header, view=1, salt=5)
                bench.promise(ViewState(view=1, log_view=1, base=2, suffix_head=2, suffix=(old[1].header,)))
                bench.store.truncate(2)
                bench.append(new)
            return super().read(file, offset, length)

    places: list[tuple[str, int]] = []
    findings = list(Audit(Moving(bench.files, lambda: 0, lambda: 0)).findings())
    assert [finding.cause for finding in findings] == [Cause.ENTRY_OTHER]
    assert all(finding.harmless for finding in findings)
    assert audited(bench.files).findings == []


def test_memory_is_bounded(kit: Any) -> None:
    """Beyond what a restart reads, nothing larger than an entry or a chunk is read at once."""
    bench = kit.fresh()
    bench.append(kit.chain([SECTOR - 256] * 100 + [20_000]))

    class Counting(SimDisk):
        def read(self, file: int, offset: int, length: int) -> memoryview:
            lengths.append(length)
            return super().read(file, offset, length)

    lengths: list[int] = []
    assert list(Audit(Counting(bench.files, lambda: 0, lambda: 0)).findings()) == []
    assert max(lengths) <= max(CHUNK, round_up(20_256), superblock.COPY_BYTES)


def checkpointed(kit: Any) -> tuple[Any, list[Message]]:
    """Sixty entries, a checkpoint of the fortieth."""
    bench = kit.fresh()
    entries: list[Message] = kit.chain([SECTOR - 256] * 60)
    bench.append(entries)
    bench.store.write_checkpoint(bench.store.mark(40), 1, b"sessions", bytes(100_000))
    for _ in range(20):
        bench.store.completions()
    assert bench.store.checkpoint.op == 40
    return bench, entries


def test_checkpoint_copies(kit: Any) -> None:
    bench, _ = checkpointed(kit)
    result = audited(bench.files)
    assert (result.findings, result.audit.entries) == ([], 60)
    assert result.advanced == result.audit.total_bytes
    for copy in checkpoints.COPIES:
        name = checkpoints.file_name(40, copy)
        for how in range(3):
            image = kit.copied(bench.files)
            if how == 0:
                flip(image, name, 50_000)
            elif how == 1:
                make_unreadable(image, name, 2)
            else:
                del image.durable[name]
            result = audited(image)
            assert [(f.cause, f.file, f.op, f.harmless) for f in result.findings] == [
                (Cause.COPY_DAMAGED, name, 40, True)
            ]
    for copy in checkpoints.COPIES:
        flip(bench.files, checkpoints.file_name(40, copy), 50_000)
    result = audited(bench.files)
    assert result.causes == [Cause.COPY_DAMAGED, Cause.COPY_DAMAGED, Cause.CHECKPOINT_LOST]
    assert (result.damage, result.audit.entries) == ([], 60), "the log is executed from its beginning"


def test_damage_below_the_checkpoint_is_found(kit: Any) -> None:
    bench, _ = checkpointed(kit)
    flip(bench.files, journal_name(0), 5 * SECTOR + 1000)
    flip(bench.files, journal_name(2), 3 * SECTOR + 1000)  # of the segment where a restart begins
    assert [(f.cause, f.op) for f in audited(bench.files).damage] == [(Cause.ENTRY_BODY, 6), (Cause.ENTRY_BODY, 36)]


def test_an_entry_and_all_witnesses_below_the_checkpoint(kit: Any) -> None:
    """What follows the damaged entry is where a restart finds it: from the checkpoint's own entry down."""
    bench, entries = checkpointed(kit)
    bench.files.durable[witness_name(2)][:] = b"\xff" * len(bench.files.durable[witness_name(2)])
    for damaged, at in (({35}, 2), ({35, 40}, 7)):
        flip(bench.files, journal_name(2), at * SECTOR + 100)
        assert {finding.op for finding in audited(bench.files).damage} == damaged
        store = bench.reopen().store
        assert {op for op in range(1, 61) if store.read(op, entries[op - 1].header.checksum) is None} == damaged


def test_a_log_that_was_trimmed(kit: Any) -> None:
    bench, _ = checkpointed(kit)
    bench.store.trim(21, 20)
    for _ in range(20):
        bench.store.completions()
    assert journal_name(0) not in bench.files.durable
    result = audited(bench.files)
    assert (result.findings, result.audit.entries, result.audit.segments) == ([], 44, 3)
    image = kit.copied(bench.files)
    flip(image, journal_name(1), 2 * SECTOR + 1000)  # op 19, of the segment where the log now begins
    flip(image, journal_name(1), 7 * SECTOR + 1000)
    spoiled = kit.copied(image)
    flip(spoiled, witness_name(1), 2 * RECORD_BYTES)  # of op 19
    assert [finding.op for finding in audited(spoiled).damage] == [24]
    assert [(f.cause, f.op, f.harmless) for f in audited(image).findings] == [
        (Cause.ENTRY_BODY, 19, True),
        (Cause.ENTRY_BODY, 24, False),
    ]
    for copy in checkpoints.COPIES:
        flip(bench.files, checkpoints.file_name(40, copy), 50_000)
    assert [finding.cause for finding in audited(bench.files).damage] == [Cause.CHECKPOINT_LOST]


def test_what_was_trimmed_says_nothing_of_the_first_entry_of_the_log(kit: Any) -> None:
    """The witness of the op before it is of an older log, and nobody repairs it any more."""
    bench, entries = checkpointed(kit)
    bench.store.trim(21, 20)
    for _ in range(20):
        bench.store.completions()
    older = kit.chain([SECTOR - 256], after=entries[18].header, salt=77)[0].header
    bench.files.durable[witness_name(1)][3 * RECORD_BYTES : 4 * RECORD_BYTES] = encode_record(older, 3 * SECTOR, 1, 3)
    result = audited(bench.files)
    assert [(f.cause, f.op, f.harmless) for f in result.findings] == [(Cause.ENTRY_OTHER, 20, True)]


def test_causes_are_stable_words() -> None:
    assert sorted(Cause) == [
        "checkpoint-lost",
        "copy-damaged",
        "copy-old",
        "entry-absent",
        "entry-body",
        "entry-chain",
        "entry-header",
        "entry-lost",
        "entry-missing",
        "entry-other",
        "entry-padding",
        "entry-size",
        "entry-torn",
        "entry-unreadable",
        "file-missing",
        "file-size",
        "superblock-lost",
        "witness-damaged",
        "witness-missing",
        "witness-other",
        "witness-unreadable",
    ]
