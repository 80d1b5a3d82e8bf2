"""The decision table of restart recovery: total, unambiguous, and never wrong about what may have been acknowledged.

Rule R11 is checked against the story that leads to a pattern, not against the rows: a small model writes an
entry and its witness in the order the journal does, crashes anywhere, damages one thing at most, and knows
whether the entry can have been acknowledged.
"""

from __future__ import annotations

import itertools

import pytest

from kimberlite.storage.recovery import TABLE, Decision, Entry, Place, Row, Witness, decide

INPUTS = list(itertools.product(Place, Entry, Witness))
PRESENT = {Decision.PRESENT, Decision.PRESENT_FIX_WITNESS}


def matching(place: Place, entry: Entry, witness: Witness) -> list[Row]:
    return [row for row in TABLE if place in row.place and entry in row.entry and witness in row.witness]


@pytest.mark.parametrize(("place", "entry", "witness"), INPUTS)
def test_r11_every_pattern_matches_exactly_one_row(place: Place, entry: Entry, witness: Witness) -> None:
    rows = matching(place, entry, witness)
    assert [row.name for row in rows] == [decide(place, entry, witness).name]


def test_every_row_is_reached_and_named_apart() -> None:
    reached = {decide(*pattern).name for pattern in INPUTS}
    assert reached == {row.name for row in TABLE}
    assert len(reached) == len(TABLE)


def test_all_inputs_are_there() -> None:
    assert len(INPUTS) == 5 * 4 * 4
    for place, entry, witness in INPUTS:
        assert decide(place, entry, witness).decision in Decision


def test_only_verified_bytes_are_present() -> None:
    for place, entry, witness in INPUTS:
        if decide(place, entry, witness).decision in PRESENT:
            assert entry is Entry.GOOD, (place, entry, witness)


def test_good_bytes_are_used_wherever_an_identity_can_be_theirs() -> None:
    for place, witness in itertools.product(Place, Witness):
        decision = decide(place, Entry.GOOD, witness).decision
        assert decision is (Decision.PRESENT if witness is Witness.MATCH else Decision.PRESENT_FIX_WITNESS)


def test_r12_faulty_is_not_absent_a_witnessed_entry_is_never_given_up() -> None:
    for place, entry in itertools.product(Place, set(Entry) - {Entry.GOOD}):
        assert decide(place, entry, Witness.MATCH).decision is Decision.FAULTY


def test_the_log_is_cut_at_its_tail_only() -> None:
    for place, entry, witness in INPUTS:
        if decide(place, entry, witness).decision in (Decision.END, Decision.TORN):
            assert place is Place.TAIL


def test_absence_is_certain_only_where_the_identity_is_known() -> None:
    for place, entry, witness in INPUTS:
        if decide(place, entry, witness).decision is Decision.ABSENT:
            # HOLE: spoken of only once its identity has been learned from others.
            assert place in (Place.CANONICAL, Place.HOLE)
            assert place is Place.HOLE or witness in (Witness.OTHER, Witness.ZERO)


# Stories

SLOT_BEFORE = (Entry.ZERO, Entry.OTHER)  # never used, or left by a void entry of an older view
RECORD_BEFORE = (Witness.ZERO, Witness.OTHER)


def stories() -> list[tuple[Entry, Witness, bool]]:
    """(entry, witness, acknowledged) after a crash at every point of one write, without any other fault."""
    result = []
    for entry, witness in itertools.product(SLOT_BEFORE, RECORD_BEFORE):
        result.append((entry, witness, False))  # before the write
        result.append((Entry.DAMAGED, witness, False))  # within the entry
        result.append((Entry.GOOD, witness, False))  # between entry and witness
        result.append((Entry.GOOD, Witness.DAMAGED, False))  # within the witness
        result.append((Entry.GOOD, Witness.MATCH, True))  # after it
    return result


@pytest.mark.parametrize("place", [Place.CANONICAL, Place.TAIL, Place.HOLE])
def test_a_crash_alone_leaves_nothing_faulty(place: Place) -> None:
    for entry, witness, acknowledged in stories():
        decision = decide(place, entry, witness).decision
        assert decision is not Decision.FAULTY
        if acknowledged:
            assert decision in PRESENT


@pytest.mark.parametrize("place", [Place.CANONICAL, Place.TAIL, Place.UNKNOWN, Place.HOLE])
def test_r11a_one_damaged_thing_never_makes_an_acknowledged_entry_absent(place: Place) -> None:
    for entry, witness, acknowledged in stories():
        if not acknowledged:
            continue
        for damaged_entry, damaged_witness in [
            *((bad, witness) for bad in (Entry.DAMAGED, Entry.ZERO, Entry.OTHER)),
            *((entry, bad) for bad in (Witness.DAMAGED, Witness.ZERO, Witness.OTHER)),
        ]:
            decision = decide(place, damaged_entry, damaged_witness).decision
            assert decision in PRESENT | {Decision.FAULTY}, (damaged_entry, damaged_witness)


def test_r11c_where_entry_and_witness_are_both_damaged_nothing_is_cut() -> None:
    for place in set(Place) - {Place.HOLE}:
        assert decide(place, Entry.DAMAGED, Witness.DAMAGED).decision is Decision.FAULTY
