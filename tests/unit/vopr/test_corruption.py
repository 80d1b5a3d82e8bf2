"""Corruption by enumeration, a part of it: `make enumerate` does all. And the judge finds what is wrong."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kimberlite.storage import superblock
from kimberlite.storage.journal import examine_entry, journal_name
from kimberlite.storage.journal_writer import JournalWriter
from kimberlite.storage.scan import Decision
from kimberlite.storage.store import Store
from kimberlite.types import Message
from kimberlite.vopr import corruption
from kimberlite.vopr.corruption import Damage, Report, Wrong, copied, judge, kinds, long, small

pytestmark = pytest.mark.slow

EVERY = 601


@pytest.fixture(scope="module")
def report() -> Report:
    return merged(corruption.enumerate_part(0, 1, EVERY))


def merged(parts: Iterable[Report]) -> Report:
    whole = Report()
    for part in parts:
        assert part.images <= corruption.PART
        whole.merge(part)
    return whole


def test_nothing_goes_wrong(report: Report) -> None:
    print(report.images, report.totals, report.outcomes)
    assert report.failures == []
    assert report.wrong == 0
    assert report.images == corruption.total(EVERY) > 1800


def test_every_kind_of_damage_ends_as_it_should(report: Report) -> None:
    ways = {kind: set(counts) for kind, counts in report.outcomes.items()}
    assert ways["bits of a superblock"] == {"healed"}
    behind = {"healed"}  # what stands where the next entry would is zeroed by a start
    assert ways["bits of a journal"] - behind == {"repaired", "harmless"}
    assert ways["bits of a checkpoint"] == {"healed"}
    assert ways["bits of a witness"] == {"healed", "harmless"}
    assert ways["superblock copy rolled back"] == {"healed", "harmless"}
    assert ways["superblock cut short"] == {"healed", "refused"}
    assert ways["journal cut short"] - behind == {"repaired", "harmless"}
    assert ways["witness cut short"] <= {"healed", "harmless"}
    assert ways["file gone"] == {"refused", "healed"}, "one copy of the checkpoint is enough"
    for kind in ("sector zeroed", "sector of ones", "sector unreadable", "sectors swapped", "sector misdirected"):
        assert "repaired" in ways[kind] and ways[kind] <= {"repaired", "healed", "harmless"}, kind


def test_the_whole_is_every_bit_and_every_byte() -> None:
    specimen = small()
    counts = {kind.name: kind.count for kind in kinds(specimen)}
    assert counts["bits of a superblock"] == superblock.COPIES * superblock.COPY_BYTES * 8
    assert counts["bits of a witness"] == len(specimen.files.durable["witness-00000000"]) * 8
    assert counts["bits of a journal"] >= specimen.matters[journal_name(0)].stop * 8
    assert counts["superblock cut short"] == superblock.COPIES * superblock.COPY_BYTES
    assert corruption.total(1) > 900_000


def test_several_processes_share_the_images() -> None:
    shared, alone = (merged(corruption.enumerate_all(1_000_003, jobs)) for jobs in (2, 1))
    assert shared == alone
    assert shared.failures == []
    assert shared.images == sum(shared.totals.values()) == corruption.total(1_000_003)


def first(name: str, number: int) -> Damage:
    return next(kind for kind in kinds(small()) if kind.name == name).make(number)


def test_a_wrong_byte_that_is_served_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from kimberlite._fast import framing

    monkeypatch.setattr("kimberlite.storage.journal.framing", Trusting(framing))
    with pytest.raises(Wrong, match="served"):
        judge(small(), first("bits of a journal", 260 * 8))


class Trusting:
    """The framing module, but for bodies: all of them are held to be good."""

    def __init__(self, framing: object) -> None:
        self._framing = framing

    def __getattr__(self, name: str) -> object:
        return getattr(self._framing, name)

    def verify_body(self, header: object, body: object) -> bool:
        return True


def test_damage_that_is_called_absent_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import kimberlite.storage.scan as scans

    decide = scans.decide

    def forgetful(*evidence: object) -> object:
        row = decide(*evidence)  # type: ignore[arg-type]
        return row._replace(decision=Decision.ABSENT) if row.decision is Decision.FAULTY else row

    monkeypatch.setattr(scans, "decide", forgetful)
    with pytest.raises(Wrong, match="absent"):
        judge(small(), first("bits of a journal", 0))


def test_a_repair_that_does_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(self: Store, token: int, entries: object) -> None:
        self._submissions.submit([], token)

    monkeypatch.setattr(Store, "repair", lazy)
    with pytest.raises(Wrong, match="repaired"):
        judge(small(), first("bits of a journal", 0))


def test_a_start_that_is_refused_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superblock, "READ_QUORUM", 4)
    with pytest.raises(Wrong, match="refused"):
        judge(small(), first("bits of a superblock", 0))


def test_a_witness_that_is_not_written_again_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JournalWriter, "fix_witnesses", lambda self, ops: None)
    with pytest.raises(Wrong, match="witness-damaged"):
        judge(small(), first("bits of a witness", 0))


def test_what_goes_wrong_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(*arguments: object) -> object:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("kimberlite.vopr.corruption.judge", crashing)
    report = merged(corruption.enumerate_part(0, 1, 50_021))
    assert report.wrong == report.images == report.totals["wrong"]
    assert len(report.failures) == corruption.FAILURES_SHOWN
    assert "boom" in report.failures[0] and "one segment, bit 0 of byte 0 of journal-00000000" in report.failures[0]


def test_the_long_log_has_every_kind_of_segment() -> None:
    """One that a restart trusts by its witness, two that it reads, one that an older view has left behind."""
    specimen = long()
    store = Store(corruption.ImageDisk(copied(specimen.files)), corruption.make_header)
    store.recover()
    assert store.segment_count == 4
    disk = corruption.ImageDisk(specimen.files)
    old = examine_entry(disk, disk.open(journal_name(4)), 0, corruption.SEGMENT_BYTES)
    assert isinstance(old, Message) and old.header.view == 0
