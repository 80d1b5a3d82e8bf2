"""What a damaged pattern means: the decision table of restart recovery.

Every op of the log has two pieces of evidence on disk: the *entry* (header and body in a
journal segment) and the *witness* (a copy of the header in its own file, written only after
the entry was durable, and always before the entry was acknowledged). Hence:

- a valid witness proves that the entry was once durable: if it is damaged now, it may have
  been acknowledged: FAULTY, never absent;
- no witness, or one of another entry, proves that this entry was never acknowledged;
- a damaged witness proves nothing.

The tail of the log may have been cut by a crash in the middle of a write ("torn"): it is
dropped only where the witness proves that it was never acknowledged and nothing above it
was ever witnessed. Rules R11 and R12; source: Protocol-Aware Recovery (FAST'18).

Imports nothing but types.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Entry(IntEnum):
    """The bytes where the entry of an op should stand."""

    GOOD = 0  # the expected entry, header, body and padding verified
    OTHER = 1  # an intact entry that is not the expected one: void, left by an older view
    ZERO = 2  # never written
    DAMAGED = 3  # neither, or the sector can not be read


class Witness(IntEnum):
    """The witness record of an op."""

    MATCH = 0  # intact, of the expected entry (or of an acceptable one, when none is known)
    OTHER = 1  # intact, of an entry that is void
    ZERO = 2
    DAMAGED = 3


class Place(IntEnum):
    """Where the op stands in the log."""

    CANONICAL = 0  # its identity is known: from the superblock, the chain, or its own evidence
    UNKNOWN = 1  # below witnessed entries, identity unknown
    TAIL = 2  # above everything ever witnessed
    DOUBTED = 3  # its identity is known, and the superblock says that it may have been acknowledged
    HOLE = 4  # between base and suffix of the superblock, not reached backward by the chain: committed elsewhere
    # under an identity that is still to be learned, and not to be spoken of before


class Decision(IntEnum):
    PRESENT = 0
    PRESENT_FIX_WITNESS = 1  # intact but not witnessed: write the witness again
    ABSENT = 2  # certainly never acknowledged under its identity
    FAULTY = 3
    END = 4  # the log ends before this op
    TORN = 5  # the log ends before this op, and a write to it was cut short


class Row(NamedTuple):
    """A row matches when every field does; an empty set means any."""

    name: str
    place: frozenset[Place]
    entry: frozenset[Entry]
    witness: frozenset[Witness]
    decision: Decision


def _row(name: str, places: set[Place], entries: set[Entry], witnesses: set[Witness], decision: Decision) -> Row:
    return Row(name, frozenset(places), frozenset(entries), frozenset(witnesses), decision)


_HERE = {Place.CANONICAL, Place.DOUBTED, Place.UNKNOWN, Place.TAIL}
_FOUND = _HERE | {Place.HOLE}
_BAD = {Entry.OTHER, Entry.ZERO, Entry.DAMAGED}
_UNWITNESSED = {Witness.OTHER, Witness.ZERO}

TABLE: tuple[Row, ...] = (
    _row("clean", _FOUND, {Entry.GOOD}, {Witness.MATCH}, Decision.PRESENT),
    _row(
        "entry without witness",
        _FOUND,
        {Entry.GOOD},
        {Witness.OTHER, Witness.ZERO, Witness.DAMAGED},
        Decision.PRESENT_FIX_WITNESS,
    ),
    _row(
        "witnessed entry damaged",
        _FOUND,
        _BAD,
        {Witness.MATCH},
        Decision.FAULTY,
    ),
    _row("never written under this identity", {Place.CANONICAL}, _BAD, _UNWITNESSED, Decision.ABSENT),
    _row("nothing known for certain", {Place.CANONICAL}, _BAD, {Witness.DAMAGED}, Decision.FAULTY),
    _row("no longer provable", {Place.DOUBTED}, _BAD, {Witness.OTHER, Witness.ZERO, Witness.DAMAGED}, Decision.FAULTY),
    _row("identity lost", {Place.UNKNOWN}, _BAD, {Witness.OTHER, Witness.ZERO, Witness.DAMAGED}, Decision.FAULTY),
    _row("not here yet", {Place.HOLE}, _BAD, set(Witness) - {Witness.MATCH}, Decision.ABSENT),
    _row("end of the log", {Place.TAIL}, {Entry.OTHER, Entry.ZERO}, _UNWITNESSED, Decision.END),
    _row("torn entry", {Place.TAIL}, {Entry.DAMAGED}, _UNWITNESSED, Decision.TORN),
    # The witness is written after the entry: without an entry it can only have been damaged
    # as a neighbour, when the sector it shares was torn.
    _row("torn witness of a neighbour", {Place.TAIL}, {Entry.ZERO, Entry.OTHER}, {Witness.DAMAGED}, Decision.TORN),
    _row("both damaged at the tail", {Place.TAIL}, {Entry.DAMAGED}, {Witness.DAMAGED}, Decision.FAULTY),
)


def decide(place: Place, entry: Entry, witness: Witness) -> Row:
    """The one row that matches: a test shows that there is exactly one for every input."""
    for row in TABLE:
        if place in row.place and entry in row.entry and witness in row.witness:
            return row
    raise AssertionError(f"no row for {place!r}, {entry!r}, {witness!r}")
