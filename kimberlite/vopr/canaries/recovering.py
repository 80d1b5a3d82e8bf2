"""Planted bugs of what a restart, a reader or the scrubber makes of a disk."""

from __future__ import annotations

from kimberlite.errors import invariant
from kimberlite.storage import handles, journal, scan, scrub, store
from kimberlite.storage.index import ColdSegments
from kimberlite.storage.places import Spot
from kimberlite.storage.recovery import TABLE, Decision, Entry, Place, Row, Witness
from kimberlite.storage.recovery import decide as decide_as_written
from kimberlite.storage.submissions import Submissions
from kimberlite.types import Header
from kimberlite.vopr.canaries.registry import Patch, Unverified, canary
from kimberlite.vsr import evidence
from kimberlite.vsr.log import Log


def _rows(decision: Decision) -> Row:
    return next(row for row in TABLE if row.decision is decision)


@canary("a damaged entry is the end of the log")
def _torn_tail_without_proof() -> list[Patch]:
    original = decide_as_written

    def decide(place: Place, entry: Entry, witness: Witness) -> Row:
        row = original(place, entry, witness)
        return _rows(Decision.TORN) if entry is Entry.DAMAGED and row.decision is Decision.FAULTY else row

    return [(scan, "decide", decide)]


@canary("a damaged entry counts as one that was never there")
def _faulty_treated_as_absent() -> list[Patch]:
    def is_certainly_absent(log: Log, op: int) -> bool:
        return op in log.headers and not log.holds(op)

    return [(evidence, "is_certainly_absent", is_certainly_absent)]


@canary("recovery reports damaged entries as absent")
def _recovery_reports_faulty_as_absent() -> list[Patch]:
    original = decide_as_written

    def decide(place: Place, entry: Entry, witness: Witness) -> Row:
        row = original(place, entry, witness)
        if row.decision is Decision.FAULTY and place is Place.CANONICAL:
            return _rows(Decision.ABSENT)
        return row

    return [(scan, "decide", decide)]


@canary("what stands below an op that is missing is given up by a restart")
def _candidates_given_up() -> list[Patch]:
    original = scan._Walk.acceptable

    def acceptable(self: scan._Walk, header: Header, op: int, before: Header | None) -> bool:
        return not self.is_hole(op) and original(self, header, op, before)

    return [(scan._Walk, "acceptable", acceptable)]


@canary("a repair is written where its segment is guessed to begin")
def _repair_at_a_guessed_place() -> list[Patch]:
    def prove(self: ColdSegments, header: Header) -> Spot | None:
        number, at, _, offset = self.locate(header.op)
        invariant(
            offset is not None and offset + journal.round_up(header.size) <= self._segment_bytes,
            "the place of a repaired entry is known and holds it",
            op=header.op,
            offset=offset,
        )
        return Spot(number, at, offset or 0)

    return [(ColdSegments, "prove", prove)]


@canary("the body of an entry is not verified when it is read")
def _entry_body_unverified() -> list[Patch]:
    return [(journal, "framing", Unverified(verify_body=lambda header, body: True))]


@canary("a segment is let go while it is written")
def _segment_let_go_while_written() -> list[Patch]:
    # Few segments are written at once in a run of the simulator: keep fewer files open than these.
    return [(Submissions, "hold", lambda self, number, held: None), (handles, "HANDLES_MAX", 2)]


@canary("a tour of the scrubber ends at the head of the log instead of wrapping")
def _scrub_without_wrapping() -> list[Patch]:
    original = scrub.Scrubber._next

    def following(self: scrub.Scrubber) -> scrub.Checked:
        if self._op > self._last:
            self._left = 0
        return original(self)

    return [(scrub.Scrubber, "_next", following)]


@canary("the scrubber looks at what is in memory, not at the disk")
def _scrub_of_memory() -> list[Patch]:
    def check_entry(self: store.Store, op: int) -> scrub.Checked:
        header = self.header(op)
        return scrub.Checked(header.size if header is not None else 0)

    return [(store.Store, "check_entry", check_entry)]
