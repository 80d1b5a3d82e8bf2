"""Where entries stand when the log has been cut and grown again, or when damage hides a part of it.

Segments here hold sixteen sectors: an entry of WHOLE bytes takes one of them, DOUBLE two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, Contents, journal_name, witness_name
from kimberlite.storage.open_segment import OpenSegment
from kimberlite.storage.places import Start
from kimberlite.types import EntryState, Message, ViewState
from kimberlite.vopr.disk import Files, corrupt, make_unreadable

WHOLE = SECTOR - 256
DOUBLE = 2 * SECTOR - 256
SECTORS = 16


def damage_entry(files: Files, segment: int, offset: int) -> None:
    corrupt(files, journal_name(segment), offset, 16, random.Random(1))


def damage_witness(files: Files, segment: int, index: int) -> None:
    corrupt(files, witness_name(segment), index * RECORD_BYTES, 16, random.Random(2))


def states(recovered: Any) -> dict[int, tuple[EntryState, bool]]:
    """Of the ops above the settled ones: state, and whether the identity is known."""
    return {entry.op: (entry.state, entry.header is not None) for entry in recovered.entries}


def cut_and_grown(kit: Any, bench: Any, sizes: Sequence[int] = (DOUBLE, WHOLE)) -> list[Message]:
    """Op 16 of view 0 filled the first segment; view 1 replaced it by one that begins the second."""
    old = kit.chain([WHOLE] * SECTORS)
    bench.append(old)
    new = kit.chain(sizes, after=old[-2].header, view=1, salt=7)
    suffix = (old[-2].header,)
    bench.promise(ViewState(view=1, log_view=1, base=15, suffix_head=15, suffix=suffix))
    bench.store.truncate(15)
    bench.append(new)
    return [*old[:-1], *new]


def test_an_entry_of_an_older_log_at_the_end_of_a_segment_is_not_taken_for_the_next(kit: Any, bench: Any) -> None:
    """It continues the same parent: only its place tells that it is void."""
    log = cut_and_grown(kit, bench)
    head = log[-1].header
    bench.promise(ViewState(view=2, log_view=2, base=17, suffix_head=17, suffix=(head,)))
    again = bench.reopen()
    assert again.recovered.settled_header == head
    assert again.store.read(16).header == log[15].header


def test_nor_when_the_witness_of_the_true_one_is_damaged(kit: Any, bench: Any) -> None:
    log = cut_and_grown(kit, bench)
    bench.promise(ViewState(view=2, log_view=2, base=17, suffix_head=17, suffix=(log[-1].header,)))
    damage_witness(bench.files, 1, 0)
    again = bench.reopen()
    assert again.recovered.settled == 17
    assert again.store.read(16).header == log[15].header


@pytest.mark.parametrize("is_old_one_damaged", [False, True])
def test_the_head_of_the_log_is_not_forgotten_where_an_older_one_stands_before_it(
    kit: Any, bench: Any, is_old_one_damaged: bool
) -> None:
    """Entry and witness of op 16 are gone. That what stands at the end of the segment before was never acknowledged
    says nothing of op 16, which may stand behind it."""
    log = cut_and_grown(kit, bench, [DOUBLE])
    damage_entry(bench.files, 1, 0)
    damage_witness(bench.files, 1, 0)
    if is_old_one_damaged:
        damage_entry(bench.files, 0, 15 * SECTOR)
    again = bench.reopen()
    assert again.recovered.settled == 15
    assert states(again.recovered)[16] == (EntryState.FAULTY, False)
    again.append(log[15:])
    assert again.reopen().recovered.settled == 16


def test_nor_where_an_older_one_stands_behind_it(kit: Any, bench: Any) -> None:
    """Op 16 of view 0 began the second segment, that of view 1 fits in the first, and entry and witness of it are gone:
    the beginning of the second segment speaks of the older log."""
    old = kit.chain([WHOLE] * 15 + [DOUBLE])
    bench.append(old)
    (new,) = kit.chain([WHOLE], after=old[14].header, view=1, salt=7)
    bench.promise(ViewState(view=1, log_view=1, base=15, suffix_head=15, suffix=(old[14].header,)))
    bench.store.truncate(15)
    bench.append([new])
    damage_entry(bench.files, 0, 15 * SECTOR)
    damage_witness(bench.files, 0, 15)
    again = bench.reopen()
    assert again.recovered.settled == 15
    assert states(again.recovered)[16] == (EntryState.FAULTY, False)
    again.append([new])
    assert again.reopen().recovered.settled == 16


def test_a_segment_used_again_holds_no_witness_of_its_former_log(kit: Any, bench: Any) -> None:
    old = kit.chain([WHOLE] * (2 * SECTORS))
    bench.append(old)
    bench.promise(ViewState(view=1, log_view=1, base=10, suffix_head=10, suffix=(old[9].header,)))
    bench.store.truncate(10)
    log = old[:10] + kit.chain([DOUBLE] * 4, after=old[9].header, view=1)
    bench.append(log[10:])
    witness = bench.files.durable[witness_name(1)]
    assert bench.store.segment_count == 2
    assert witness[:RECORD_BYTES] != bytes(RECORD_BYTES)
    assert not any(witness[RECORD_BYTES:])
    assert bench.reopen().recovered.settled_header == log[-1].header


def test_what_follows_damage_is_found_in_its_segment(kit: Any, bench: Any) -> None:
    """Entry and witness of one op are gone, the chain from the suffix ends there: nothing above may
    count as never written, for it was acknowledged."""
    log = kit.chain([WHOLE] * (2 * SECTORS + 4))
    bench.append(log[:4])
    suffix = tuple(message.header for message in log[33:35])
    bench.append(log[4:35])
    bench.promise(ViewState(view=1, log_view=1, base=4, suffix_head=35, suffix=suffix))
    damage_entry(bench.files, 1, 3 * SECTOR)
    damage_witness(bench.files, 1, 3)  # op 20
    found = states(bench.reopen().recovered)
    assert bench.reopen().recovered.written == 35
    assert found[20][0] is not EntryState.PRESENT
    assert all(found[op] == (EntryState.PRESENT, True) for op in range(21, 36))


def test_what_has_lost_its_place_stays_faulty(kit: Any, bench: Any) -> None:
    """Nothing tells any more where the second segment begins: its acknowledged ops are neither
    acknowledged again nor absent, and the journal grows over them."""
    log = kit.chain([WHOLE] * (SECTORS + 4))
    bench.append(log)
    damage_entry(bench.files, 0, 15 * SECTOR)
    damage_witness(bench.files, 0, 15)
    make_unreadable(bench.files, witness_name(1), 0)
    for index in range(4):
        damage_entry(bench.files, 1, index * SECTOR)
    again = bench.reopen()
    found = states(again.recovered)
    assert again.recovered.written == 15
    assert again.recovered.head >= 20
    assert all(found[op] == (EntryState.FAULTY, False) for op in range(16, 21))
    again.append(log[again.recovered.written : 20])
    assert again.reopen().recovered.settled == 20


def test_doubt_outlives_what_proved_it(kit: Any, bench: Any) -> None:
    log = kit.chain([WHOLE] * 6)
    bench.append(log[:3])
    suffix = tuple(message.header for message in log[2:6])
    bench.promise(ViewState(view=1, log_view=1, base=3, suffix_head=6, suffix=suffix, doubt=5))
    found = states(bench.reopen().recovered)
    assert found == {
        4: (EntryState.FAULTY, True),
        5: (EntryState.FAULTY, True),
        6: (EntryState.ABSENT, True),
    }


def test_what_was_in_doubt_and_never_existed_is_not_feared_again(kit: Any, bench: Any) -> None:
    """A lost tail marks the witnesses that share a sector with what is written anew, until the superblock says it."""
    log = kit.chain([WHOLE] * 6)
    bench.append(log)
    for op in (5, 6):
        damage_entry(bench.files, 0, (op - 1) * SECTOR)
        damage_witness(bench.files, 0, op - 1)
    feared = dict.fromkeys(range(5, 9), (EntryState.FAULTY, False))  # the sector has room for eight witnesses
    again = bench.reopen()
    assert states(again.recovered) == feared
    view = ViewState(suffix=(kit.root,), doubt=8)
    again.promise(view)
    again = again.reopen()
    assert states(again.recovered) == feared
    again.promise(replace(view, doubt=4))
    assert again.store.completions() == []
    assert states(again.reopen().recovered) == {}


def test_what_was_in_doubt_in_the_segment_that_follows_is_not_feared_again(kit: Any, bench: Any) -> None:
    """The log ends where its segment does; what is damaged stands in the next one, which an older log had used."""
    log = kit.chain([WHOLE] * (SECTORS + 1))
    bench.append(log)
    head = log[SECTORS - 1].header
    view = ViewState(1, 1, head.op, head.op, head.op, (head,))
    bench.promise(view)
    damage_entry(bench.files, 1, 0)
    damage_witness(bench.files, 1, 0)
    feared = dict.fromkeys(range(SECTORS + 1, SECTORS + 9), (EntryState.FAULTY, False))
    again = bench.reopen()
    assert states(again.recovered) == feared
    again.promise(replace(view, doubt=SECTORS + 8))
    again = again.reopen()
    assert states(again.recovered) == feared
    again.promise(replace(view, doubt=SECTORS))
    assert states(again.reopen().recovered) == {}


def test_what_is_damaged_at_the_head_is_appended_anew_wherever_its_identity_belongs(kit: Any, bench: Any) -> None:
    """Its size is unknown: it may turn out to begin the next segment."""
    log = kit.chain([WHOLE] * (SECTORS - 1) + [DOUBLE])
    bench.append(log[:-1])
    bench.append(kit.chain([WHOLE], after=log[-2].header, salt=9))
    damage_entry(bench.files, 0, 15 * SECTOR)
    damage_witness(bench.files, 0, 15)
    again = bench.reopen()
    assert states(again.recovered) == {16: (EntryState.FAULTY, False)}
    assert again.recovered.written == 15
    again.append([log[-1]])
    assert again.store.segment_count == 2
    assert again.reopen().recovered.settled_header == log[-1].header


def test_a_torn_witness_behind_the_log_does_not_make_a_torn_entry_look_acknowledged(kit: Any, bench: Any) -> None:
    log = kit.chain([WHOLE] * 3)
    bench.append(log[:2])
    damage_witness(bench.files, 0, 2)  # garbage in the unit behind, from the tear of a sector
    again = bench.reopen()
    assert again.recovered.head == 2
    damage_entry(again.files, 0, 2 * SECTOR)  # the next append is torn before its witness is written
    assert again.reopen().recovered.head == 2


def test_an_entry_found_without_witness_has_one_before_anything_is_said_of_it(kit: Any, bench: Any) -> None:
    log = kit.chain([WHOLE] * 2)
    bench.append(log)
    damage_witness(bench.files, 0, 1)
    again = bench.reopen()
    assert again.recovered.settled == 2
    damage_entry(again.files, 0, SECTOR)
    assert states(again.reopen().recovered) == {2: (EntryState.FAULTY, True)}


def test_the_end_of_the_log_in_a_cold_segment_is_where_the_walk_found_it(kit: Any, bench: Any) -> None:
    """Nothing continues op 4, whose witness is damaged, and several segments follow: what the walk let go of on its
    way is read back as it was decided, and the log grows."""
    log = kit.chain([WHOLE] * (4 * SECTORS))
    bench.append(log)
    suffix = tuple(message.header for message in kit.chain([WHOLE] * (4 * SECTORS + 2), view=1, salt=5)[-2:])
    bench.promise(ViewState(view=1, log_view=1, base=4, suffix_head=4 * SECTORS + 2, suffix=suffix))
    damage_witness(bench.files, 0, 3)
    damage_witness(bench.files, 0, 4)
    damage_entry(bench.files, 0, 4 * SECTOR)
    again = bench.reopen()
    assert (again.recovered.settled, again.recovered.written) == (4, 4)
    assert again.store.header(4) == log[3].header
    again.append([log[4]])
    assert again.store.read(5).header == log[4].header


def old_witness_in_a_cold_segment(kit: Any, bench: Any) -> list[Message]:
    """The witness of op 5 is what it was before the log was cut at op 3 and grew again, larger."""
    old = kit.chain([WHOLE] * 8)
    bench.append(old)
    bench.promise(ViewState(view=1, log_view=1, base=3, suffix_head=3, suffix=(old[2].header,)))
    bench.store.truncate(3)
    record = slice(4 * RECORD_BYTES, 5 * RECORD_BYTES)
    before = bench.files.durable[witness_name(0)][record]
    log = old[:3] + kit.chain([DOUBLE] * (5 * SECTORS // 2), after=old[2].header, view=1)
    bench.append(log[3:])
    # Committed long ago, and read by their witness alone.
    bench.append(kit.chain([WHOLE] * 80, after=log[-1].header, view=1))
    head = bench.store.header(bench.store.head)
    bench.promise(ViewState(view=2, log_view=2, commit=head.op, base=head.op, suffix_head=head.op, suffix=(head,)))
    bench.files.durable[witness_name(0)][record] = before
    return log


def test_an_old_witness_in_a_cold_segment_is_written_anew(kit: Any, bench: Any) -> None:
    log = old_witness_in_a_cold_segment(kit, bench)
    again = bench.reopen()
    assert again.store.header(5) == log[4].header
    assert again.store.read(5, log[4].header.checksum) is not None
    damage_entry(again.files, 0, 5 * SECTOR)  # from now on only the witness tells
    assert again.reopen().store.header(5) == log[4].header


def test_nor_does_it_say_where_a_damaged_entry_is_repaired(kit: Any, bench: Any) -> None:
    log = old_witness_in_a_cold_segment(kit, bench)
    damage_entry(bench.files, 0, 5 * SECTOR)
    again = bench.reopen()
    assert again.store.faulty == {5}
    again.repair([log[4]])
    assert all(again.store.read(message.header.op, message.header.checksum) for message in log[3:7])
    assert again.reopen().recovered.entries == ()


def many_segments(kit: Any, bench: Any) -> list[Message]:
    log = kit.chain([WHOLE] * (12 * SECTORS))
    for first in range(0, len(log), SECTORS):
        bench.append(log[first : first + SECTORS])
    return log


def test_a_repair_in_many_segments_at_once(kit: Any, bench: Any) -> None:
    """A segment that is let go while it is written would have its file closed under the write."""
    log = many_segments(kit, bench)
    for segment in range(8):
        damage_entry(bench.files, segment, 2 * SECTOR)
        damage_witness(bench.files, segment, 2)
    again = bench.reopen()
    repaired = [log[segment * SECTORS + 2] for segment in range(8)]
    assert again.store.faulty == {message.header.op for message in repaired}
    again.repair(repaired)
    assert not again.store.faulty
    third = again.reopen()
    assert third.recovered.entries == ()
    assert all(third.store.read(message.header.op, message.header.checksum) for message in log)


def test_witnesses_written_anew_in_many_segments_at_once(kit: Any, bench: Any) -> None:
    log = many_segments(kit, bench)
    for segment in range(8):
        damage_witness(bench.files, segment, 2)
    again = bench.reopen()
    assert again.recovered.settled == len(log)
    assert all(again.store.read(message.header.op, message.header.checksum) for message in log)
    third = again.reopen()
    assert third.store.bytes_written == 0


def test_what_was_written_while_it_grew_cold_is_let_go_later(kit: Any, bench: Any) -> None:
    log = kit.chain([WHOLE] * (14 * SECTORS))
    bench.append(log[: 6 * SECTORS])
    bench.append(log[6 * SECTORS :])
    for message in log:
        bench.store.header(message.header.op)
    bench.store.completions()
    assert [segment.number for segment in bench.store._segments.open] == [13]


def test_a_witness_sector_that_was_written_over_proves_of_no_entry_that_it_was_never_written(
    kit: Any, bench: Any
) -> None:
    """One record of it is damaged, the others are zeros: what came over them may have taken them away."""
    entries = kit.chain([WHOLE, WHOLE, WHOLE, 10])
    bench.append(entries)
    for damaged in range(4):
        image = kit.copied(bench.files)
        damage_entry(image, 0, damaged * SECTOR)
        witness = image.durable[witness_name(0)]
        witness[:] = bytes(len(witness))
        damage_witness(image, 0, 0)
        recovered = kit.open(image).recovered
        assert recovered.settled == damaged
        assert recovered.head >= 4, "acknowledged"
        assert {state for state, _ in states(recovered).values()} == {EntryState.FAULTY}
        # The witnesses of the intact entries were written again: what is in doubt stays so.
        again = kit.open(image).recovered
        assert (again.settled, again.head) == (recovered.settled, recovered.head)


def test_a_log_grows_behind_an_entry_whose_witness_was_lost_with_its_sector(kit: Any, bench: Any) -> None:
    """As a segment is found again that is written once more: nine entries, and the witnesses of eight."""
    log = kit.chain([WHOLE] * 10)
    bench.append(log[:9])
    image = bench.files.durable[witness_name(0)][:SECTOR]
    headers, offsets = [message.header for message in log[:9]], [SECTOR * index for index in range(9)]
    segment = OpenSegment.of(0, Start(1, 0), Contents(bytearray(image), headers, offsets))
    assert segment.wipe() is None
    assert segment.end is not None
    segment.add(log[9].header, segment.end)
    assert [segment.header(index) for index in range(10)] == [message.header for message in log]
    assert segment.place(9) == 9 * SECTOR


def test_nothing_at_or_below_the_base_was_never_written(kit: Any, bench: Any) -> None:
    """A disk has lost the last entries and their witnesses without a trace; the base says that they were there."""
    log = kit.chain([WHOLE] * 6)
    bench.append(log)
    bench.promise(ViewState(view=1, log_view=1, commit=6, base=6, suffix_head=6, suffix=(log[5].header,)))
    bench.files.durable[journal_name(0)][4 * SECTOR :] = bytes(len(bench.files.durable[journal_name(0)]) - 4 * SECTOR)
    witness = bench.files.durable[witness_name(0)]
    witness[4 * RECORD_BYTES :] = bytes(len(witness) - 4 * RECORD_BYTES)
    for _ in range(2):
        recovered = kit.open(bench.files).recovered
        assert states(recovered) == {5: (EntryState.FAULTY, False), 6: (EntryState.FAULTY, True)}


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (witness_name, {}),
        (journal_name, {4: (EntryState.FAULTY, True), 5: (EntryState.FAULTY, True), 6: (EntryState.FAULTY, True)}),
    ],
)
def test_what_a_lost_write_has_left_of_an_older_log_is_told_by_the_chain(
    kit: Any, bench: Any, lost: Any, expected: dict[int, tuple[EntryState, bool]]
) -> None:
    """View 1 wrote ops 4 to 6 over those of view 0, all are committed now, and the disk has not done some of that: the
    old op 4 continues op 3 as the new one does."""
    old = kit.chain([WHOLE] * 6)
    bench.append(old)
    stale = {name: bytes(bench.files.durable[name]) for name in (journal_name(0), witness_name(0))}
    new = kit.chain([WHOLE] * 3, after=old[2].header, view=1, salt=7)
    bench.promise(ViewState(view=1, log_view=1, base=3, suffix_head=3, suffix=(old[2].header,)))
    bench.store.truncate(3)
    bench.append(new)
    head = new[-1].header
    bench.promise(ViewState(view=2, log_view=2, commit=6, base=6, suffix_head=6, suffix=(head,)))
    image = kit.copied(bench.files)
    image.durable[lost(0)][:] = stale[lost(0)]
    again = kit.open(image)
    assert states(again.recovered) == expected
    if not expected:
        assert again.recovered.settled_header == head


def test_rooted_reaches_over_damage_whose_place_is_known(kit: Any, bench: Any) -> None:
    log = kit.chain([WHOLE] * 9)
    bench.append(log)
    damage_entry(bench.files, 0, 2 * SECTOR)
    damage_entry(bench.files, 0, 6 * SECTOR)
    damage_witness(bench.files, 0, 6)
    recovered = bench.reopen().recovered
    assert (recovered.settled, recovered.rooted) == (2, 6)


def test_rooted_ends_below_the_entry_of_another_log(kit: Any, bench: Any) -> None:
    """Written over an entry that was durable, by a log that came to nothing; its witness was not written any more."""
    log = kit.chain([WHOLE] * 5)
    bench.append(log)
    (other,) = kit.chain([WHOLE], after=log[2].header, view=1, salt=7)
    raw = bytes(other.header.raw) + bytes(other.body)
    bench.files.durable[journal_name(0)][3 * SECTOR : 3 * SECTOR + len(raw)] = raw
    recovered = bench.reopen().recovered
    assert states(recovered)[4] == (EntryState.FAULTY, True)
    assert (recovered.settled, recovered.rooted) == (3, 3)


def test_what_is_intact_between_two_damages_is_kept_over_a_view_change(kit: Any, bench: Any) -> None:
    """The first was not yet repaired when the view changed; the second cuts the chain that proves what is between."""
    log = kit.chain([WHOLE] * 9)
    bench.append(log)
    damage_entry(bench.files, 0, 2 * SECTOR)
    again = bench.reopen()
    base = min(8, again.recovered.rooted)
    again.promise(ViewState(view=1, log_view=1, base=base, suffix_head=9, suffix=(log[7].header, log[8].header)))
    damage_entry(again.files, 0, 5 * SECTOR)
    damage_witness(again.files, 0, 5)
    found = states(again.reopen().recovered)
    present, faulty = EntryState.PRESENT, EntryState.FAULTY
    assert {op: state for op, (state, _) in found.items()} == {
        3: faulty, 4: present, 5: present, 6: faulty, 7: present, 8: present, 9: present,
    }  # fmt: skip


def test_what_stands_below_a_missing_op_is_a_candidate(kit: Any, bench: Any) -> None:
    """The view began with op 9, committed, when this journal ended with op 6: what it has above its base may be the
    log's, and was perhaps acknowledged."""
    log = kit.chain([WHOLE] * 9)
    bench.append(log[:6])
    bench.promise(ViewState(view=1, log_view=1, commit=9, base=2, suffix_head=9, suffix=(log[8].header,)))
    recovered = bench.reopen().recovered
    found = {entry.op: (entry.state, entry.header, entry.is_candidate) for entry in recovered.entries}
    assert found == {
        **{op: (EntryState.PRESENT, log[op - 1].header, True) for op in range(3, 7)},
        **dict.fromkeys((7, 8), (EntryState.ABSENT, None, False)),
        9: (EntryState.ABSENT, log[8].header, False),
    }
    assert (recovered.settled, recovered.written, recovered.rooted) == (2, 6, 2)


def test_a_candidate_that_is_damaged_is_no_proof_that_it_was_never_there(kit: Any, bench: Any) -> None:
    log = kit.chain([WHOLE] * 9)
    bench.append(log[:6])
    bench.promise(ViewState(view=1, log_view=1, commit=9, base=2, suffix_head=9, suffix=(log[8].header,)))
    damage_entry(bench.files, 0, 3 * SECTOR)
    recovered = bench.reopen().recovered
    found = {entry.op: entry.state for entry in recovered.entries if entry.is_candidate}
    assert found == dict.fromkeys((3, 5, 6), EntryState.PRESENT) | {4: EntryState.FAULTY}


def test_nor_is_an_entry_a_candidate_that_continues_another_log(kit: Any, bench: Any) -> None:
    log = kit.chain([WHOLE] * 9)
    stale = kit.chain([WHOLE] * 6, salt=3)
    bench.append(stale)
    bench.promise(ViewState(view=1, log_view=1, base=2, suffix_head=2, suffix=(stale[1].header,)))
    bench.store.truncate(2)
    bench.append(kit.chain([WHOLE], after=stale[1].header, view=1))
    bench.promise(ViewState(view=2, log_view=2, commit=9, base=2, suffix_head=9, suffix=(log[8].header,)))
    recovered = bench.reopen().recovered
    assert [entry.op for entry in recovered.entries if entry.is_candidate] == [3]
    assert recovered.written == 3


def test_a_log_that_has_lost_more_than_two_segments_at_its_end_opens(kit: Any, bench: Any) -> None:
    """The walk over the journal has let go of the segment that the log ends in after all."""
    large = 13 * SECTOR - 256
    log = kit.chain([large] * 6)
    bench.append(log)
    suffix = tuple(message.header for message in log)
    bench.promise(ViewState(view=1, log_view=1, base=1, suffix_head=len(log), suffix=suffix, doubt=len(log)))
    for number in range(1, bench.store.segment_count):
        for at in range(SECTORS):
            corrupt(bench.files, journal_name(number), at * SECTOR, 16, random.Random(1))
            corrupt(bench.files, witness_name(number), at * RECORD_BYTES, 16, random.Random(2))
    again = bench.reopen()
    assert (again.recovered.settled, again.recovered.written) == (1, 1)
    assert {entry.state for entry in again.recovered.entries} == {EntryState.FAULTY}
    again.append(log[again.recovered.written :])
    assert again.reopen().recovered.settled == len(log)
