"""Crashes by enumeration, a part of it: `make enumerate` does all. And planted bugs are found by it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import pytest

from kimberlite.storage import superblock
from kimberlite.storage.journal import journal_name, witness_bytes, witness_name
from kimberlite.storage.segments import Segments, Spare
from kimberlite.types import Operation
from kimberlite.vopr import crashes, starts
from kimberlite.vopr.canaries import planted
from kimberlite.vopr.crash_images import GARBAGE, find, images, variants
from kimberlite.vopr.crashes import Report
from kimberlite.vopr.disk import UNIT
from kimberlite.vopr.recording import Event, Promised, Recording, record

pytestmark = pytest.mark.slow

EVERY = 53


@pytest.fixture(scope="module")
def world() -> Recording:
    return record()


@pytest.fixture(scope="module")
def report(world: Recording) -> Report:
    return merged(crashes.enumerate_part(world, 0, 1, EVERY))


def merged(parts: Iterable[Report]) -> Report:
    whole = Report()
    for part in parts:
        assert part.images <= crashes.PART
        whole.merge(part)
    return whole


def test_nothing_acknowledged_is_lost_and_no_start_refused(world: Recording, report: Report) -> None:
    print(report.images, report.kinds)
    assert report.failures == []
    assert report.wrong == 0
    assert report.images == crashes.total(world, EVERY) == sum(report.kinds.values()) > 1000


def test_the_whole_is_more_than_fifty_thousand_images(world: Recording) -> None:
    assert crashes.total(world) > 50_000


def test_the_script_reaches_everything(world: Recording) -> None:
    for recorded in world.records:
        kinds = {crashes.kind(event) for event in recorded.events}
        assert kinds >= {
            *(f"write {name}" for name in ("journal", "witness", "superblock", "checkpoint")),
            *(f"create {name}" for name in ("journal", "witness", "checkpoint")),
            *(f"remove {name}" for name in ("journal", "witness", "checkpoint")),
        }
        promised = recorded.promised
        assert promised.view >= 3 and promised.log_view == promised.view
        assert promised.first_op > 1 and promised.checkpoint_op > promised.first_op
        assert any(event.company for event in recorded.events)
        assert any(len(data) > 16 * UNIT for event in recorded.events for _, _, data in event.writes)
    assert any(event.kind == "torn" for recorded in world.records for event in recorded.events)
    counts = world.counts
    assert counts["FAULT_crash_all"] == 1 and counts["FAULT_trim"] == 3
    assert counts["REPAIRED"] and counts["ABANDONED"]
    operations = {message.header.operation for recorded in world.records for message in recorded.messages.values()}
    assert operations >= {Operation.BATCH, Operation.APPLY, Operation.TRIM}


def test_the_run_and_its_images_are_the_same_every_time(world: Recording) -> None:
    again = record()
    assert again.trace.digest() == world.trace.digest()
    assert [image.text for image in islice(images(again), 0, None, 997)] == [
        image.text for image in islice(images(world), 0, None, 997)
    ]


def test_every_image_of_a_write_is_another_one() -> None:
    base = {"f": bytearray(3 * UNIT), "g": bytearray(UNIT)}
    data = b"1" * UNIT + bytes(UNIT) + b"3" * UNIT
    event = Event(0, "write", Promised(), (("f", 0, data), ("g", 0, b"4" * UNIT)))
    seen = [tuple(bytes(content) for content in make().values()) for _, _, make in variants(base, event)]
    assert len(seen) <= len(set(seen)) + 1  # a prefix of all of it may be one write alone
    old, garbage = bytes(UNIT), GARBAGE
    for other in (old, b"4" * UNIT):
        for first in (
            data[:UNIT] + bytes(2 * UNIT),  # a prefix
            bytes(2 * UNIT) + data[2 * UNIT :],  # all but the first unit
            data[:UNIT] + garbage + old,
            data[: 2 * UNIT] + garbage,
            garbage + 2 * old,
        ):
            assert (first, other) in seen
    assert (data, old) in seen and (3 * old, b"4" * UNIT) in seen and (3 * old, old) in seen
    assert (3 * old, garbage) in seen and (data, garbage) in seen and (garbage + 2 * old, garbage) in seen
    assert (data, b"4" * UNIT) not in seen  # the event after it begins with that
    assert base == {"f": bytearray(3 * UNIT), "g": bytearray(UNIT)}


def test_what_waits_may_be_carried_out_together() -> None:
    """Its entries are all there, when the witnesses of both are torn."""
    base = {"journal": bytearray(2 * UNIT), "witness": bytearray(2 * UNIT)}
    event = Event(
        0,
        "write",
        Promised(),
        (("witness", 0, b"1" * UNIT),),
        company=(((("journal", UNIT, b"b" * UNIT),), (("witness", UNIT, b"2" * UNIT),)),),
    )
    seen = [tuple(bytes(content) for content in make().values()) for _, _, make in variants(base, event)]
    assert (bytes(UNIT) + b"b" * UNIT, bytes(UNIT) + b"2" * UNIT) in seen
    assert (bytes(UNIT) + b"b" * UNIT, b"1" * UNIT + GARBAGE) in seen
    assert all(journal[UNIT:] == b"b" * UNIT for journal, witness in seen if witness[UNIT:] != bytes(UNIT))


def test_a_failure_names_the_image_that_replays_it(world: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(*arguments: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(crashes, "judge", crashing)
    report = merged(crashes.enumerate_part(world, 0, 1, 5003))
    assert report.wrong == report.images > 10
    label = report.failures[1].split(",")[0]
    image = find(world, label)
    assert image is not None and crashes.try_one(world, image) == report.failures[1]
    assert "ZeroDivisionError: boom" in report.failures[1]
    assert find(world, "0:999999") is None


def test_several_processes_share_the_images(world: Recording) -> None:
    shared, alone = (merged(crashes.enumerate_all(world, 3001, jobs)) for jobs in (2, 1))
    assert shared == alone
    assert shared.failures == []
    assert shared.images == crashes.total(world, 3001)


# A planted bug, which events to look at, and how it shows.
PLANTED = {
    "checkpoint-named-before-it-is-written": ("superblock", "the checkpoint of op"),
    "checkpoint-kept-once": ("checkpoint", "a copy of the checkpoint is gone"),
    "trim-before-it-is-durable": ("superblock", "DataMissingError"),
    "superblock-copies-at-once": ("superblock", "SuperblockError"),
    "witness-with-its-entry": ("journal", "are called damaged"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "check_fears", lambda *arguments: None)  # the run itself would find one of them
    file, text = PLANTED[name]
    with planted(name):
        world = record()
        failures = (
            failure
            for image in images(world)
            if file in crashes.kind(image.source) or image.source.kind == "remove"
            if (failure := crashes.try_one(world, image))
        )
        found = next(failures, "")
    assert text in found, found


def test_a_journal_made_before_its_witness_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(self: Segments, number: int) -> None:
        self._handles.adopt(number, self._disk.create(journal_name(number), self.segment_bytes), None)
        size = witness_bytes(self.segment_bytes)
        self._handles.adopt(number, None, self._disk.create(witness_name(number), size))
        self.spare.append(Spare(number, bytearray()))

    monkeypatch.setattr(Segments, "create", create)
    world = record()
    created = (image for image in images(world) if image.source.name.startswith("witness-"))
    assert "is missing" in crashes.try_one(world, next(created))


def test_entries_given_up_for_one_that_is_missing_above_are_found(
    world: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that came late into its view keeps what it has below an op that it misses."""
    late = [image for image in images(world) if image.variant == 0 and image.source.promised.view > 1]
    assert all(crashes.try_one(world, image) == "" for image in late)
    with planted("candidates-given-up"):
        assert any("is lost" in crashes.try_one(world, image) for image in late)


def test_a_session_table_that_is_not_in_the_checkpoint_is_found(world: Recording) -> None:
    image = next(image for image in images(world) if image.source.promised.checkpoint_op > 0)
    op = image.source.promised.checkpoint_op
    sessions = world.ledger.session_tables
    before = sessions[op]
    sessions[op] = b""
    try:
        assert f"the sessions are not those of op {op}" in crashes.try_one(world, image)
    finally:
        sessions[op] = before


def test_a_promise_that_is_not_kept_is_found(world: Recording) -> None:
    image = next(image for image in images(world) if image.source.promised.view > 1)
    promised = image.source.promised
    for name, text in (
        ("view", "promised"),
        ("log_view", "promised"),
        ("checkpoint_op", "promised"),
        ("first_op", "again"),
    ):
        kept = getattr(promised, name)
        setattr(promised, name, 10_000)
        try:
            assert text in crashes.try_one(world, image)
        finally:
            setattr(promised, name, kept)
    last = promised.applied
    promised.entries[last + 50] = promised.entries[last]
    try:
        assert "is lost" in crashes.try_one(world, image) or "is void" in crashes.try_one(world, image)
    finally:
        del promised.entries[last + 50]
    assert crashes.try_one(world, image) == ""
    assert superblock.NAME in image.make()
