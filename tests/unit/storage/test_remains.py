"""What crashes leave behind the end of a log, and cuts: two and three of them in a row, by enumeration.

An entry that a crash has torn stays where it was; the next one may be shorter, and end in the middle of it. When then
the sector of its witness is torn too, what stands behind looks like an entry that was acknowledged, and is damaged
now: nobody can say on a replica that is alone that it never was. No crash alone may bring a log there.

Segments here hold sixteen sectors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, journal_name, witness_name
from kimberlite.storage.store import format_store
from kimberlite.types import Birth, EntryState, Identity, Message, ViewState
from kimberlite.vopr.disk import Files

GARBAGE = random.Random(5).randbytes(SECTOR)


def sectors(count: int) -> int:
    """Bytes of the body of an entry that takes so many sectors."""
    return count * SECTOR - 256


def after_crashes(files: Files, events: Sequence[Any]) -> Iterator[tuple[str, Files]]:
    """What a crash may leave while these were carried out on `files`: of each sector that a phase writes the old one,
    the new one, or garbage; of witnesses also garbage in the last record alone."""
    seen: set[tuple[bytes, ...]] = set()
    disk = {name: bytes(content) for name, content in files.durable.items()}
    for number, event in enumerate(events):
        if isinstance(event, tuple):
            disk[event[0]] = bytes(event[1])
            continue
        places = [(name, offset + at) for name, offset, data in event for at in range(0, len(data), SECTOR)]
        new = [data[at : at + SECTOR] for _, _, data in event for at in range(0, len(data), SECTOR)]
        fates = [
            fates_of(name, disk[name][at : at + SECTOR], data) for (name, at), data in zip(places, new, strict=True)
        ]
        for contents in product(*fates):
            if contents not in seen:
                seen.add(contents)
                image = {name: bytearray(content) for name, content in disk.items()}
                for (name, at), content in zip(places, contents, strict=True):
                    image[name][at : at + SECTOR] = content
                words = (
                    "old" if at == 0 else "new" if at == 1 else "garbage" for at in map(list.index, fates, contents)
                )
                yield f"{number}: {', '.join(map(str, zip(places, words, strict=True)))}", Files(image)
        for (name, at), data in zip(places, new, strict=True):
            disk[name] = disk[name][:at] + data + disk[name][at + SECTOR :]


def fates_of(name: str, old: bytes, new: bytes) -> list[bytes]:
    """What a crash may leave of a sector."""
    if name.startswith("journal"):
        return [old, new, GARBAGE]
    return [old, new, GARBAGE, *(kept[:-RECORD_BYTES] + GARBAGE[:RECORD_BYTES] for kept in (old, new))]


def start(kit: Any, files: Files, log: Sequence[Message], text: str) -> Any:
    """Open, and check: nothing is in doubt, and all that was acknowledged is there."""
    bench = kit.open(kit.copied(files))
    assert not bench.store.faulty and bench.recovered.faulty == 0, text
    assert bench.recovered.head == bench.recovered.settled, text
    for message in log:
        read = bench.store.read(message.header.op, message.header.checksum)
        assert read is not None and read.body == message.body, f"{text}: op {message.header.op}"
    return bench


def opened(kit: Any, files: Files, log: Sequence[Message], text: str) -> tuple[Any, list[Any]]:
    """The same, and what that has written."""
    bench = start(kit, files, log, text)
    return bench, list(bench.recorder.events)


def appended(kit: Any, files: Files, sizes: Sequence[int], view: int, salt: int) -> tuple[list[Message], list[Any]]:
    """What is written when a log that has started again on `files` grows by a group."""
    bench = kit.open(kit.copied(files))
    done = len(bench.recorder.events)
    before = bench.store.header(bench.store.head)
    new = kit.chain(sizes, after=before, view=view, salt=salt)
    bench.append(new)
    return new, bench.recorder.events[done:]


def grown(kit: Any, bench: Any, entries: Sequence[Message]) -> list[Message]:
    bench.append(entries)
    return list(entries)


def of_one_log(kit: Any) -> tuple[Files, list[Message], int]:
    """Three entries, one view."""
    bench = kit.fresh()
    log = grown(kit, bench, kit.chain([10, 20, 30]))
    return bench.files, log, 0


def of_a_cut(kit: Any) -> tuple[Files, list[Message], int]:
    """A view has cut a long entry off, and nothing has come in its place yet."""
    bench = kit.fresh()
    log = grown(kit, bench, kit.chain([10, 20, 30]))
    bench.append(kit.chain([sectors(3), sectors(2)], after=log[-1].header))
    bench.promise(ViewState(view=1, log_view=1, base=3, suffix_head=3, suffix=(log[-1].header,)))
    bench.store.truncate(3)
    return bench.files, log, 1


def of_an_end(kit: Any) -> tuple[Files, list[Message], int]:
    """The same at the end of a segment: the next one was begun by what was cut off."""
    bench = kit.fresh()
    log = grown(kit, bench, kit.chain([sectors(13), 10]))
    bench.append(kit.chain([sectors(1), sectors(2), sectors(3)], after=log[-1].header))
    bench.promise(ViewState(view=1, log_view=1, base=2, suffix_head=2, suffix=(log[-1].header,)))
    bench.store.truncate(2)
    return bench.files, log, 1


SHORT, LONG = [sectors(1)], [sectors(3)]
GROUPS = {
    "long, short": (LONG, SHORT),
    "two, short": ([sectors(1), sectors(2)], SHORT),
    "three times": ([sectors(2)], SHORT, SHORT),
}


def journeys(kit: Any, files: Files, log: list[Message], view: int, groups: Sequence[Sequence[int]]) -> Iterator[str]:
    """Append, crash, start; crash in the start, start; append, crash, start: every image of every crash."""
    first, rest = groups[0], groups[1:]
    new, events = appended(kit, files, first, view, len(rest))
    for text, image in after_crashes(files, events):
        bench, fixes = opened(kit, image, log, text)
        have = [*log, *new][: bench.recovered.head]
        yield text
        for again, second in after_crashes(image, fixes):
            where = f"{text}; start {again}"
            start(kit, second, have, where)
            yield where
        if rest:
            settled = kit.copied(bench.files)
            for further in journeys(kit, settled, have, view, rest):
                yield f"{text}; {further}"


@pytest.mark.slow
@pytest.mark.parametrize("made", [of_one_log, of_a_cut, of_an_end])
@pytest.mark.parametrize("groups", [*list(GROUPS)[:-1], pytest.param("three times", marks=pytest.mark.whole)])
def test_no_row_of_crashes_makes_a_log_doubt_what_it_never_had(kit: Any, made: Any, groups: str) -> None:
    files, log, view = made(kit)
    count = sum(1 for _ in journeys(kit, files, log, view, GROUPS[groups]))
    print(groups, count)
    assert count > 100


def in_doubt(kit: Any) -> Files:
    """The last op of a segment was acknowledged. Its entry is damaged, garbage came over the witness before its own and
    zeros over its own, and an older log had begun the next segment with an op of that number."""
    files = Files()
    identity = Identity(Birth.FORMED, 1, digest=b"d" * 16, record=b"the first record")
    format_store(
        kit.disk(files),
        make_header,
        cluster=kit.cluster,
        replica=0,
        replica_count=3,
        segment_bytes=kit.segment,
        identity=identity,
    )
    bench = kit.open(files)
    log = grown(kit, bench, kit.chain([sectors(1)] * 15))
    bench.append(kit.chain([sectors(2)], after=log[-1].header))
    bench.promise(ViewState(view=1, log_view=1, base=15, suffix_head=15, suffix=(log[-1].header,)))
    bench.store.truncate(15)
    bench.append(kit.chain([sectors(1)], after=log[-1].header, view=1, salt=9))
    bench.files.durable[journal_name(0)][15 * SECTOR : 16 * SECTOR] = GARBAGE
    records = bench.files.durable[witness_name(0)]
    records[14 * RECORD_BYTES : 15 * RECORD_BYTES] = GARBAGE[:RECORD_BYTES]
    records[15 * RECORD_BYTES : 16 * RECORD_BYTES] = bytes(RECORD_BYTES)
    return Files({name: bytearray(content) for name, content in bench.files.durable.items()})


def doubted(recovered: Any) -> set[int]:
    return {entry.op for entry in recovered.entries if entry.state is EntryState.FAULTY}


def test_no_crash_in_a_start_takes_a_doubt_away(kit: Any) -> None:
    """The damage that tells of it may be what the start mends."""
    files = in_doubt(kit)
    bench = kit.open(kit.copied(files))
    assert 16 in doubted(bench.recovered)
    images = [*after_crashes(files, bench.recorder.events)]
    assert len(images) > 10
    for text, image in images:
        assert 16 in doubted(kit.open(image).recovered), text


@pytest.mark.parametrize(("segment", "feared"), [(0, set()), (1, {21, 22, 23})])
def test_only_a_witness_that_may_have_been_its_own_makes_an_op_feared(kit: Any, segment: int, feared: set[int]) -> None:
    """A view names ops that are not here yet, and a crash has torn the witness of another one. The n-th record of a
    segment is of its n-th op: those of the first have no place for them."""
    bench = kit.fresh()
    if segment:
        bench.store.make_room(0, needed=True)
        bench.disk.flush()
    log = kit.chain([10] * 23)
    bench.append(log[:2])
    suffix = tuple(message.header for message in log[20:])
    bench.promise(ViewState(view=1, log_view=1, commit=21, base=0, suffix_head=23, suffix=suffix))
    bench.files.durable[witness_name(segment)][4 * RECORD_BYTES : 5 * RECORD_BYTES] = GARBAGE[:RECORD_BYTES]
    found = kit.open(bench.files).recovered
    assert {entry.op for entry in found.entries if entry.state is EntryState.FAULTY} == feared
