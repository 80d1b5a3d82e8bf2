"""Planted bugs: the simulator must find each, or it proves nothing about the bugs nobody planted.

A canary replaces decisions of the code under test, or of the checkers, at run time and puts
them back afterwards (`planted`). The code itself holds no flag and pays nothing. Each is written as
the mistake it stands for: what somebody could have written and what looks right at a glance.

`hunt` runs the seeds of an ordinary campaign, nothing tuned, until a check fires. A seed that fails without
the bug as well does not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from random import Random
from types import ModuleType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from kimberlite._fast import framing
from kimberlite.client import session as client
from kimberlite.errors import FrameError, UnavailableError, UsageError, WriteFailedError, invariant
from kimberlite.node import clock, reader, retention
from kimberlite.node.driver import Driver, snapshot_of
from kimberlite.storage import checkpoint as checkpoint_files
from kimberlite.storage import handles, journal, scan, scrub, store, superblock
from kimberlite.storage.checkpoint_writer import CheckpointWriter
from kimberlite.storage.interface import Extent, ViewState, Write
from kimberlite.storage.recovery import TABLE, Decision, Entry, Place, Row, Witness
from kimberlite.storage.recovery import decide as decide_as_written
from kimberlite.types import (
    HEADER_SIZE,
    ROOM_UNBOUNDED,
    Checkpoint,
    Command,
    Header,
    Message,
    Operation,
    Reason,
    Room,
    Status,
)
from kimberlite.vopr import checkers, network, plan, world
from kimberlite.vopr.campaign import Campaign
from kimberlite.vopr.drill import drill
from kimberlite.vopr.plan import REQUESTS, Plan
from kimberlite.vopr.run import Script, run
from kimberlite.vsr import (
    abdication,
    admission,
    bounds,
    conflict,
    normal,
    quorum,
    recovery,
    repair,
    replica,
    view_change,
)
from kimberlite.vsr.admission import Act, Ruling
from kimberlite.vsr.events import EventKind
from kimberlite.vsr.log import Log
from kimberlite.vsr.pacing import Pacing
from kimberlite.vsr.quorum import Quorums
from kimberlite.vsr.replica import Replica
from kimberlite.vsr.sessions import Result, SessionTable
from kimberlite.vsr.sessions import Session as SessionEntry
from kimberlite.vsr.state import LogState, Prepared
from kimberlite.vsr.view_change import Choice, DoViewChange
from kimberlite.vsr.work import Admission, Apply, ServePrepare

SEEDS_MAX = 500

# Owner, attribute (or key, when the owner is a dict), and what takes its place.
Owner: TypeAlias = ModuleType | type | dict[int, Any]
Patch: TypeAlias = tuple[Owner, Any, Any]


@dataclass(frozen=True, slots=True)
class Canary:
    """A planted bug. what: one line. patches: made anew each time, for some keep state.

    twice: found by running each seed twice. labels: found by what a campaign does not reach.
    """

    name: str
    what: str
    patches: Callable[[], list[Patch]]
    twice: bool = False
    labels: bool = False


CANARIES: dict[str, Canary] = {}


def canary(what: str, *, twice: bool = False, labels: bool = False) -> Callable[[Callable[[], list[Patch]]], None]:
    """Enter a function that makes patches into the list, under its own name."""

    def enter(function: Callable[[], list[Patch]]) -> None:
        name = function.__name__.strip("_").replace("_", "-")
        CANARIES[name] = Canary(name, what, function, twice, labels)

    return enter


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """With that bug inside; None plants nothing. Raises UsageError for an unknown name."""
    if name is None:
        yield
        return
    (name,) = select([name])
    undo: list[Patch] = []
    try:
        for owner, key, value in CANARIES[name].patches():
            if isinstance(owner, dict):
                undo.append((owner, key, owner[key]))
                owner[key] = value
            else:
                undo.append((owner, key, vars(owner)[key]))
                setattr(owner, key, value)
        yield
    finally:
        for owner, key, value in reversed(undo):
            if isinstance(owner, dict):
                owner[key] = value
            else:
                setattr(owner, key, value)


def select(only: Sequence[str]) -> list[str]:
    """The names asked for, all when none. Raises UsageError."""
    for name in only:
        if name not in CANARIES:
            raise UsageError(f"no planted bug is called {name!r}; there are {', '.join(CANARIES)}")
    return list(only) or list(CANARIES)


@dataclass(frozen=True, slots=True)
class Hunt:
    """How a planted bug was found: after how many seeds, by which check; check is empty when it was not."""

    name: str
    seeds: int
    check: str
    violation: str
    seed: int | None = None


def hunt(name: str, seeds_max: int = SEEDS_MAX, requests: int = REQUESTS, first: int = 0) -> Hunt:
    """Run seeds from `first` on with the bug inside until a check finds it."""
    kind = CANARIES[name]
    with planted(name):
        try:
            drill()
        except checkers.Violation as violation:
            return Hunt(name, 0, violation.name, str(violation))
    campaign = Campaign()
    for count, seed in enumerate(range(first, first + seeds_max), 1):
        script = Script(seed, requests)
        with planted(name):
            outcome = run(script)
            check, text = outcome.check, outcome.violation
            if kind.twice and not check and (again := run(script)).trace_hash != outcome.trace_hash:
                check = "E0 determinism"
                text = f"the trace of seed {seed} is {outcome.trace_hash}, then {again.trace_hash}"
        campaign.add(outcome)
        if kind.labels and not check and (unreached := campaign.unreached()):
            return Hunt(name, count, "E4 coverage", f"never reached: {', '.join(unreached)}")
        if check and not run(script).check:
            return Hunt(name, count, check, text, seed)
    return Hunt(name, seeds_max, "", "")


# Quorums and acknowledgements


@canary("a quorum is one replica too few")
def _quorum_off_by_one() -> list[Patch]:
    def may_commit(r: Replica, prepared: Prepared) -> bool:
        return quorum.reached(prepared.acks, max(r.quorums.replication - 1, 1))

    return [(normal, "may_commit", may_commit)]


@canary("a second acknowledgement of the same replica counts as another one")
def _replica_counted_twice() -> list[Patch]:
    original = normal._count

    def count(r: Replica, index: int, op: int) -> None:
        for prepared in r.pipeline:
            if prepared.header.op <= op and prepared.acks >> index & 1:
                prepared.acks |= (prepared.acks + 1) & ~prepared.acks
        original(r, index, op)

    return [(normal, "_count", count)]


@canary("a backup acknowledges its highest entry, with gaps below it")
def _ack_with_gap_below() -> list[Patch]:
    def acknowledged_op(r: Replica) -> int:
        return max(r.log.on_disk, default=r.log.durable)

    return [(normal, "acknowledged_op", acknowledged_op)]


@canary("the primary counts itself when it sends, not when it has written")
def _primary_counts_itself_early() -> list[Patch]:
    original = normal._prepare

    def prepare(r: Replica, batch: list[tuple[Message, int]]) -> None:
        original(r, batch)
        normal._count(r, r.index, r.log.op)

    return [(normal, "_prepare", prepare)]


@canary("a backup acknowledges what it has received, not what it has written")
def _ack_before_durable() -> list[Patch]:
    return [(normal, "acknowledged_op", lambda r: r.log.linked)]


@canary("a backup acknowledges its log when it leaves the view")
def _ack_in_view_change() -> list[Patch]:
    original = view_change.enter

    def enter(r: Replica, view: int, cause: int) -> None:
        original(r, view, cause)
        r.scope.ack_due = True

    return [(view_change, "enter", enter), (normal, "may_acknowledge", lambda r: not r.is_primary)]


@canary("the new primary commits old ops by what it heard in the view change")
def _old_ops_committed_by_old_acks() -> list[Patch]:
    original = view_change._lead

    def lead(r: Replica) -> None:
        evidence = list(r.scope.evidence.values())
        original(r)
        for prepared in r.pipeline:
            for message in evidence:
                if view_change.has_copy(message, prepared.header.op, prepared.header):
                    prepared.acks |= 1 << message.replica
        normal._count(r, r.index, r.log.durable)

    return [(view_change, "_lead", lead)]


# Durability


@canary("a failed write counts as done")
def _sync_error_ignored() -> list[Patch]:
    original = store.Store.completions

    def completions(self: store.Store) -> list[int]:
        try:
            return original(self)
        except WriteFailedError:
            tokens = []
            for token, done, _ in self._pending.values():
                if done is not None:
                    done()
                if token is not None:
                    tokens.append(token)
            self._pending.clear()
            return tokens

    return [(store.Store, "completions", completions)]


@canary("do_view_change is sent before the view is on the disk")
def _do_view_change_before_durable() -> list[Patch]:
    original = view_change.enter

    def enter(r: Replica, view: int, cause: int) -> None:
        original(r, view, cause)
        view_change._send_evidence(r)

    return [(view_change, "enter", enter)]


@canary("log_view is not written to the superblock")
def _log_view_not_persisted() -> list[Patch]:
    original = store.Store.set_view_state

    def set_view_state(self: store.Store, token: int, state: ViewState) -> None:
        original(self, token, replace(state, log_view=self.view_state.log_view))

    return [(store.Store, "set_view_state", set_view_state)]


@canary("the view is not written to the superblock when it is left")
def _view_not_persisted() -> list[Patch]:
    original = store.Store.set_view_state

    def set_view_state(self: store.Store, token: int, state: ViewState) -> None:
        original(self, token, replace(state, view=max(state.log_view, self.view_state.view)))

    return [(store.Store, "set_view_state", set_view_state)]


@canary("the journal is not cut where a view change says so")
def _divergent_tail_kept() -> list[Patch]:
    return [(store.Store, "truncate", lambda self, op: None)]


@canary("all copies of the superblock are written at once")
def _superblock_copies_at_once() -> list[Patch]:
    original = superblock.SuperblockFile.update

    def update(
        self: superblock.SuperblockFile, state: ViewState | None = None, checkpoint: Checkpoint | None = None
    ) -> Any:
        block, phases = original(self, state, checkpoint)
        return block, [[write for phase in phases for write in phase]]

    return [(superblock.SuperblockFile, "update", update)]


@canary("an entry and its witness are written at once")
def _witness_with_its_entry() -> list[Patch]:
    original = store.Store._submit

    def submit(self: store.Store, phases: Sequence[Sequence[Write]], *arguments: Any) -> int:
        if len(phases) == 2:
            phases = [[*phases[0], *phases[1]]]
        return original(self, phases, *arguments)

    return [(store.Store, "_submit", submit)]


@canary("entries that a full disk has no room for are acknowledged with those before them")
def _acknowledged_without_room() -> list[Patch]:
    original = Log.take_writes

    def take_writes(self: Log, room: Room) -> list[Message]:
        writes = original(self, room)
        if self.is_waiting_for_room:
            self.on_disk.update(range(self.journal_head + 1, self.linked + 1))
            self.link()
        return writes

    return [(Log, "take_writes", take_writes)]


@canary("a journal that is full is handed entries all the same")
def _written_without_room() -> list[Patch]:
    original = Log.take_writes
    return [(Log, "take_writes", lambda self, room: original(self, ROOM_UNBOUNDED))]


@canary("a request is refused for a full disk when it is in the queue already")
def _refused_after_it_was_queued() -> list[Patch]:
    original = normal._refuse

    def refuse(r: Replica, message: Message, reason: Reason) -> Admission:
        if reason == Reason.DISK_FULL and r.ready:
            r.in_flight[message.header.client] = message.header.request
            r.queue.append((message, r.now))
            r.queue_bytes += len(message.body)
        return original(r, message, reason)

    return [(normal, "_refuse", refuse), (normal, "_refuse_queue", lambda r: None)]


# The view change


@canary("a view is left on one vote")
def _view_left_on_one_vote() -> list[Patch]:
    return [(view_change, "enough_votes", lambda r, fresh: True)]


@canary("a view begins after one message too few")
def _view_begins_too_early() -> list[Patch]:
    def enough_evidence(r: Replica) -> bool:
        return len(r.scope.evidence) >= max(r.quorums.view_change - 1, 1) and r.index in r.scope.evidence

    return [(view_change, "enough_evidence", enough_evidence)]


@canary("a candidate that gives its view up waits until the others lose patience")
def _forfeits_in_silence() -> list[Patch]:
    give_up, suspect = view_change._give_up, view_change.suspect
    silent: WeakSet[Replica] = WeakSet()

    def give_up_in_silence(r: Replica, kind: EventKind, *told: int) -> None:
        if kind is EventKind.FORFEITED:
            silent.add(r)
        give_up(r, kind, *told)

    def say_nothing(r: Replica) -> None:
        if r in silent:
            silent.discard(r)
        else:
            suspect(r)

    return [(view_change, "_give_up", give_up_in_silence), (view_change, "suspect", say_nothing)]


@canary("a candidate that is far behind leads its view though another has the log")
def _leads_far_behind() -> list[Patch]:
    return [(view_change, "is_far_behind", lambda r, choice, gap: False)]


@canary("the longest log wins, of whatever view")
def _choice_by_op_only() -> list[Patch]:
    original = view_change.choose

    def choose(messages: list[DoViewChange], quorums: Quorums) -> Choice:
        log_view = max(message.log_view for message in messages)
        blind = [replace(message, log_view=0) for message in messages]
        return replace(original(blind, quorums), log_view=log_view)

    return [(view_change, "choose", choose)]


@canary("the first log of the newest view wins, however short")
def _choice_by_view_only() -> list[Patch]:
    original = view_change.choose

    def choose(messages: list[DoViewChange], quorums: Quorums) -> Choice:
        choice = original(messages, quorums)
        head = next(message.op for message in messages if message.log_view == choice.log_view)
        if not choice.suffix:
            return choice
        return replace(choice, suffix=tuple(known for known in choice.suffix if known.op <= head) or choice.suffix[:1])

    return [(view_change, "choose", choose)]


@canary("everything in the winner's log counts as committed")
def _whole_tail_committed() -> list[Patch]:
    return [(view_change, "highest_commit", lambda messages: max(message.op for message in messages))]


@canary("one replica too few says that it never had an op, and it is dropped")
def _nack_quorum_off_by_one() -> list[Patch]:
    original = view_change.choose

    def choose(messages: list[DoViewChange], quorums: Quorums) -> Choice:
        return original(messages, quorums._replace(nack=max(quorums.nack - 1, 1)))

    return [(view_change, "choose", choose)]


@canary("evidence for an older view is kept for the next one")
def _old_evidence_kept() -> list[Patch]:
    entered, settled = view_change.enter, view_change._become_normal

    def enter(r: Replica, view: int, cause: int) -> None:
        kept = dict(r.scope.evidence)
        entered(r, view, cause)
        r.scope.evidence.update(kept)

    def become_normal(r: Replica) -> None:
        kept = dict(r.scope.evidence)
        settled(r)
        r.scope.evidence.update(kept)

    return [(view_change, "enter", enter), (view_change, "_become_normal", become_normal)]


def _also_admitting(matches: Callable[[Replica, Header], bool]) -> Callable[..., Ruling]:
    """`admission.look` that lets these frames in as well."""
    original = admission.look

    def look(r: Replica, header: Header, may_be_newer: bool = True) -> Ruling:
        return Ruling(Act.ACCEPT) if matches(r, header) else original(r, header, may_be_newer)

    return look


@canary("a late start_view of this view is installed again")
def _stale_start_view_accepted() -> list[Patch]:
    def is_start_view_wanted(r: Replica, message: Message) -> bool:
        return message.header.view >= r.view and not r.is_primary

    def is_late(r: Replica, header: Header) -> bool:
        return header.command == Command.START_VIEW and header.view == r.view and not r.is_primary

    return [
        (admission, "look", _also_admitting(is_late)),
        (view_change, "is_start_view_wanted", is_start_view_wanted),
        (view_change, "is_answer", lambda r, header: header.view == r.view),
        (view_change, "agrees", lambda r, suffix, canonical: suffix[-1].op >= r.log.committed),
    ]


@canary("any view that a frame names is entered")
def _view_without_a_bound() -> list[Patch]:
    return [(bounds, "find", _unless("view"))]


@canary("a heartbeat's commit number is believed and kept, whatever it is")
def _commit_without_a_bound() -> list[Patch]:
    def note_commit(self: Replica) -> None:
        self.commit_max = max(self.commit_max, self.scope.commit_heard)

    return [(bounds, "find", _unless("commit", "position")), (Replica, "note_commit", note_commit)]


def _unless(*fields: str) -> Callable[[Replica, Header], bounds.OutOfBounds | None]:
    """`bounds.find` that does not look at these fields."""
    original = bounds.find

    def find(r: Replica, header: Header) -> bounds.OutOfBounds | None:
        found = original(r, header)
        return None if found is not None and found.field in fields else found

    return find


@canary("a heartbeat that names another entry ends the process, whoever sent it")
def _identity_of_a_heartbeat_believed() -> list[Patch]:
    def look(r: Replica, header: Header) -> None:
        own = r.log.headers.get(header.position)
        if own is not None and header.position <= r.log.linked and any(header.context):
            invariant(own.checksum == header.context, "the committed entry is the same on every replica")

    return [(conflict, "look", look)]


@canary("any start_view is installed, whether it answers the own evidence or not")
def _forged_start_view_installed() -> list[Patch]:
    return [(view_change, "is_answer", lambda r, header: True)]


@canary("a start_view is installed without a look at what is committed here")
def _start_view_unchecked() -> list[Patch]:
    return [
        (view_change, "is_answer", lambda r, header: True),
        (view_change, "agrees", lambda r, suffix, canonical: True),
    ]


@canary("headers are learned that nobody asked for")
def _headers_learned_unasked() -> list[Patch]:
    return [(repair, "is_asked_for", lambda r, header: True)]


@canary("a prepare is appended without a look at its parent")
def _prepare_without_its_parent() -> list[Patch]:
    return [(normal, "follows", lambda before, after: True)]


@canary("the body of a prepare is not held against its header")
def _prepare_body_not_looked_at() -> list[Patch]:
    return [(Driver, "_is_sound", lambda self, message: True)]


@canary("a prepare of an older view is appended when its number is next")
def _stale_prepare_accepted() -> list[Patch]:
    original = normal.on_prepare

    def is_next(r: Replica, header: Header) -> bool:
        head = r.log.headers.get(r.log.op)
        normal_backup = r.status == Status.NORMAL and not r.is_primary and r.log.linked == r.log.op
        is_stale = header.command == Command.PREPARE and header.view < r.view
        return is_stale and normal_backup and head is not None and header.parent == head.checksum

    def on_prepare(r: Replica, message: Message) -> None:
        if message.header.view < r.view:
            r.log.append(message)
        else:
            original(r, message)

    return [
        (admission, "look", _also_admitting(is_next)),
        (replica._HANDLERS, Command.PREPARE, on_prepare),
    ]


@canary("the uncommitted log is cut on hearing of a newer view")
def _truncation_on_rumour() -> list[Patch]:
    original = view_change.on_newer_view

    def on_newer_view(r: Replica, view: int) -> None:
        original(r, view)
        head = r.log.headers.get(r.log.committed)
        if head is not None and head.op < r.log.op and r.log.linked >= head.op:
            cut = r.log.install((head,), head.op)
            r.log_state = LogState(min(r.log.committed, cut), head.op, (head,))
            r.persist_view(truncate_to=cut)

    return [(view_change, "on_newer_view", on_newer_view)]


@canary("a primary goes on as primary of its view after a restart")
def _primary_resumes_after_restart() -> list[Patch]:
    original = recovery.begin

    def begin(r: Replica, recovered: Any) -> None:
        original(r, recovered)
        if r.is_primary and r.log_view == r.view and r.status == Status.RECOVERING:
            r.view_change_timer.stop()
            view_change._lead(r)

    return [(recovery, "begin", begin)]


@canary("the timer of a view change that takes too long is never armed")
def _view_change_timer_never_armed() -> list[Patch]:
    return [(view_change, "_start_view_change_timer", lambda r: r.view_change_timer.stop())]


# Recovery and repair


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
    def is_certainly_absent(r: Replica, op: int) -> bool:
        return op in r.log.headers and not r.log.holds(op)

    return [(view_change, "is_certainly_absent", is_certainly_absent)]


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


class _Unverified:
    """framing, with decisions replaced."""

    def __init__(self, **replaced: Any) -> None:
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(framing, name)


@canary("the body of an entry is not verified when it is read")
def _entry_body_unverified() -> list[Patch]:
    return [(journal, "framing", _Unverified(verify_body=lambda header, body: True))]


@canary("a segment is let go while it is written")
def _segment_let_go_while_written() -> list[Patch]:
    # Few segments are written at once in a run of the simulator: keep fewer files open than these.
    return [(store.Store, "_hold", lambda self, number, held: None), (handles, "HANDLES_MAX", 2)]


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


@canary("the body of a frame is not verified when it arrives")
def _frame_body_unverified() -> list[Patch]:
    def parse(buffer: bytes, start: int, end: int, limit: int) -> Any:
        try:
            return framing.parse(buffer, start, end, limit)
        except FrameError:
            header = framing.decode_header(buffer)
            return [(header, buffer[HEADER_SIZE : header.size])], 0, 0

    return [(network, "framing", _Unverified(parse=parse))]


@canary("repairs are asked, served and taken by number alone")
def _repair_by_number_alone() -> list[Patch]:
    original = Replica._admit

    def admit(r: Replica, message: Message, handler: Callable[[Replica, Message], None]) -> None:
        header = message.header
        is_wanted = header.op in r.log.headers and header.op in r.repairs and not r.log.knows(header)
        if header.command == Command.PREPARE and is_wanted:
            repair.on_body(r, message)
        else:
            original(r, message, handler)

    def on_request_prepare(r: Replica, message: Message) -> None:
        header = message.header
        held, known = r.log.bodies.get(header.op), r.log.headers.get(header.op)
        if held is not None:
            r.send(header.replica, held)
        elif known is not None:
            r.serve(ServePrepare(header.replica, header.op, known.checksum))

    return [
        (Replica, "_admit", admit),
        (replica._HANDLERS, Command.REQUEST_PREPARE, on_request_prepare),
    ]


@canary("a repair that is never answered is never asked again")
def _repair_never_expires() -> list[Patch]:
    original = repair._plan

    def plan_repairs(r: Replica) -> None:
        for request in r.repairs.values():
            request.sent_at = r.now
        original(r)

    return [(repair, "_plan", plan_repairs)]


@canary("who is silent is asked for what is missing like anybody else")
def _silent_peer_asked() -> list[Patch]:
    return [(repair, "is_worth_asking", lambda r, replica: True)]


@canary("damage below a trim is repaired like any other")
def _damage_outlives_its_trim() -> list[Patch]:
    return [(Log, "trim", lambda self, first_op: None)]


@canary("a view change forgets what was asked for")
def _repair_forgotten_in_a_view_change() -> list[Patch]:
    original = Replica.enter_view

    def enter_view(self: Replica, view: int) -> None:
        original(self, view)
        self.repairs.clear()
        for peer in self.peers.values():
            peer.repairs = 0

    return [(Replica, "enter_view", enter_view)]


@canary("what brings nothing is asked for again as soon as that is known")
def _barren_questions_repeated() -> list[Patch]:
    return [(Pacing, "may_ask", lambda self, question, now: True)]


@canary("a primary gives up while others come nearer to what they lack")
def _abdicates_while_others_come_nearer() -> list[Patch]:
    return [(abdication, "moving", lambda r, oldest, since: oldest.acks)]


@canary("a primary leads on though its disk hangs, or its next op is damaged")
def _hung_primary_leads_on() -> list[Patch]:
    return [(abdication, "lags", lambda r: False)]


@canary("what waits for a disk that does not keep up has no bound")
def _backlog_without_a_bound() -> list[Patch]:
    return [(normal, "is_backed_up", lambda r: False)]


@canary("what a new primary holds until it is ready has no bound, and is held as often as it comes")
def _requests_held_without_a_bound() -> list[Patch]:
    def hold(r: Replica, message: Message) -> Admission:
        r.waiting[r.make(Command.PING, nonce=len(r.waiting)).header.checksum] = message, r.now
        r.queue_bytes += len(message.body)
        return Admission.ACCEPTED

    return [(normal, "_hold", hold)]


@canary("a queue that is full takes one request more")
def _queue_without_a_bound() -> list[Patch]:
    return [(normal, "is_full", lambda r, message: False)]


@canary("what was heard and promised in a view outlives it")
def _view_scope_kept() -> list[Patch]:
    def enter_view(self: Replica, view: int) -> None:
        self.view = view

    return [(Replica, "enter_view", enter_view)]


# Requests, sessions, time


@canary("a request that is under way is prepared a second time")
def _in_flight_prepared_twice() -> list[Patch]:
    return [(normal, "is_in_flight", lambda r, message: False)]


@canary("a request that is committed is prepared again")
def _session_dedupe_off() -> list[Patch]:
    original = normal.propose

    def propose(r: Replica, message: Message) -> Admission:
        header = message.header
        session = r.sessions.get(header.client)
        known = session is not None and session.number == header.session and header.request == session.request
        if (
            known
            and header.operation == Operation.APPLY
            and r.is_primary
            and r.scope.ready
            and r.status == Status.NORMAL
        ):
            r.queue.append((message, r.now))
            r.queue_bytes += len(message.body)
            return Admission.ACCEPTED
        return original(r, message)

    return [(normal, "propose", propose)]


@canary("a repeated request is answered with the reply of another client")
def _reply_of_another_request() -> list[Patch]:
    original = normal._resend_reply

    def resend_reply(r: Replica, message: Message, session: SessionEntry) -> None:
        newest = r.sessions.get(r.sessions.clients[-1])
        original(r, message, newest if newest is not None else session)

    return [(normal, "_resend_reply", resend_reply)]


@canary("the session evicted is the one registered first, not the one idle longest")
def _eviction_by_registration() -> list[Patch]:
    def commit(self: SessionTable, op: int, result: Result) -> int:
        session = self._table.get(result.client)
        if result.operation == Operation.REGISTER or session is None or session.number != result.session:
            return original(self, op, result)
        order = list(self._table)
        evicted = original(self, op, result)
        self._table = {client: self._table[client] for client in order}
        return evicted

    original = SessionTable.commit
    return [(SessionTable, "commit", commit)]


@canary("each replica evicts as its own table happens to be ordered")
def _eviction_by_hash_order() -> list[Patch]:
    original = SessionTable.commit

    def commit(self: SessionTable, op: int, result: Result) -> int:
        full = len(self._table) >= self.limit
        if full and result.operation == Operation.REGISTER and result.client not in self._table:
            # What iterating a set gives in one process and not in another.
            self._table = dict(sorted(self._table.items(), key=lambda item: (id(self) >> 4) ^ item[0][0]))
        return original(self, op, result)

    return [(SessionTable, "commit", commit)]


@canary("a client gives a retry a new number")
def _retry_under_a_new_number() -> list[Patch]:
    original = client.Session._send

    def send(self: client.Session, now: int) -> None:
        request = self._request
        if request is not None and request.attempts and request.message.header.operation == Operation.APPLY:
            self._request_number += 1
            header, body = request.message.header, request.message.body
            renumbered = framing.make_header(
                body,
                cluster=header.cluster,
                command=header.command,
                client=header.client,
                session=header.session,
                request=self._request_number,
                operation=header.operation,
                count=header.count,
            )
            request.message = Message(renumbered, body)
        original(self, now)

    return [(client.Session, "_send", send)]


@canary("a client reports a timeout as a refusal")
def _timeout_reported_as_refusal() -> list[Patch]:
    return [(client, "OutcomeUnknownError", UnavailableError)]


@canary("a client asks the primary of its view and the next replica by turns, and nobody else")
def _two_replicas_by_turns() -> list[Patch]:
    return [(client.Session, "_another", lambda self, preferred, attempts: self._next_target())]


@canary("timestamps are what the clock says")
def _timestamp_repeats() -> list[Patch]:
    return [(normal, "next_timestamp", lambda r, previous: r.now + r.clock_offset)]


@canary("a client is answered before its request is committed")
def _reply_before_commit() -> list[Patch]:
    original = normal._prepare

    def prepare(r: Replica, batch: list[tuple[Message, int]]) -> None:
        original(r, batch)
        head = r.log.headers[r.log.op]
        position = head.position
        for request, _ in batch:
            header = request.header
            if header.operation == Operation.APPLY:
                normal._send_reply(r, request, header.session, head.op, position, header.count, b"")
            position += header.count

    return [(normal, "_prepare", prepare)]


@canary("what is durable here is executed, committed or not")
def _executed_before_commit() -> list[Patch]:
    def emit_applies(self: Replica) -> None:
        for op in range(self.apply_emitted + 1, self.log.durable + 1):
            if op in self.log.faulty:
                break
            self._work.apply.append(Apply(op, self.log.headers.get(op), self.log.bodies.get(op)))
            self.apply_emitted = op

    return [(Replica, "_emit_applies", emit_applies)]


@canary("the sessions are not in the checkpoint")
def _sessions_not_in_the_checkpoint() -> list[Patch]:
    return [(SessionTable, "encode", lambda self: b"")]


@canary("the log is trimmed by the primary's checkpoint alone")
def _trim_by_own_checkpoint() -> list[Patch]:
    return [(Replica, "trimmable_op", property(lambda self: self.checkpoint_op + 1))]


@canary("the superblock names a checkpoint before its file is written")
def _checkpoint_named_before_it_is_written() -> list[Patch]:
    write_chunk, begin_mark = CheckpointWriter._write_chunk, CheckpointWriter.begin_mark
    early: WeakKeyDictionary[CheckpointWriter, Any] = WeakKeyDictionary()

    def early_chunk(self: CheckpointWriter, copying: Any) -> None:
        if copying.commits:
            copying.commits = False
            early[self] = copying
            self._commit(copying.mark)
        write_chunk(self, copying)

    def mark_when_written(self: CheckpointWriter, op: int) -> Checkpoint | None:
        return begin_mark(self, op) if self not in early or not early[self].copies else None

    return [(CheckpointWriter, "_write_chunk", early_chunk), (CheckpointWriter, "begin_mark", mark_when_written)]


@canary("a trim removes files before the superblock says so")
def _trim_before_it_is_durable() -> list[Patch]:
    original = CheckpointWriter._commit

    def commit(self: CheckpointWriter, checkpoint: Checkpoint, then: Callable[[], None] = lambda: None) -> None:
        original(self, checkpoint, then)
        number = self._superblock.current.checkpoint.first_segment
        if number < self._superblock.last.checkpoint.first_segment:
            for name in (journal.journal_name(number), journal.witness_name(number)):
                if self._disk.exists(name):
                    self._disk.remove(name)

    return [(CheckpointWriter, "_commit", commit)]


@canary("a checkpoint is kept once")
def _checkpoint_kept_once() -> list[Patch]:
    return [(checkpoint_files, "COPIES", ("a",))]


@canary("a checkpoint that comes due while one is written is made at a later op")
def _checkpoint_made_late() -> list[Patch]:
    make, execute = Driver._make_checkpoint, Driver._execute
    owing: WeakSet[Driver] = WeakSet()

    def make_or_owe(self: Driver, op: int) -> None:
        if self._snapshot_under_way or self.store.mark(op) is None:
            owing.add(self)
        else:
            owing.discard(self)
            make(self, op)

    def execute_and_pay(self: Driver, header: Header, message: Message | None) -> None:
        execute(self, header, message)
        if self in owing:
            self._make_checkpoint(header.op)

    return [(Driver, "_make_checkpoint", make_or_owe), (Driver, "_execute", execute_and_pay)]


@canary("a checkpoint has the sessions in whatever order a replica finds them")
def _checkpoint_of_one_replica() -> list[Patch]:
    original = SessionTable.encode
    is_reversed = cycle((False, True))

    def encode(self: SessionTable) -> bytes:
        other = SessionTable(self.limit)
        other._table = dict(sorted(self._table.items(), reverse=next(is_reversed)))
        return original(other)

    return [(SessionTable, "encode", encode)]


@canary("a checkpoint says that one operation more is in it than is")
def _checkpoint_one_op_ahead() -> list[Patch]:
    original = store.Store.mark

    def mark(self: store.Store, op: int) -> Checkpoint | None:
        return original(self, op + 1 if self.header(op + 1) is not None else op)

    return [(store.Store, "mark", mark)]


@canary("frames of another cluster are accepted")
def _wrong_cluster_accepted() -> list[Patch]:
    original = Replica.step

    def step(self: Replica, message: Message, now: int) -> None:
        header = message.header
        handler = replica._HANDLERS.get(header.command)
        if header.cluster != self.config.cluster and handler is not None and header.replica != self.index:
            self.now = now
            try:
                self._admit(message, handler)
            except FrameError:
                return
        else:
            original(self, message, now)

    return [(Replica, "step", step)]


# What is held, what is said at rest, what is answered again


@canary("a reply that is sent again has lost its body")
def _reply_sent_again_without_its_body() -> list[Patch]:
    def resend_reply(r: Replica, message: Message, session: SessionEntry) -> None:
        normal._send_reply(r, message, session.number, session.op, session.position, session.count, b"")

    return [(normal, "_resend_reply", resend_reply)]


@canary("an entry that a peer asks for by its identity is read by its number")
def _served_by_number_alone() -> list[Patch]:
    original = store.Store.read

    def read(self: store.Store, op: int, checksum: bytes | None = None, ahead: int = 0) -> Message | None:
        return original(self, op, None, ahead)

    return [(store.Store, "read", read)]


@canary("prepares that come early are kept without a bound")
def _early_prepares_all_kept() -> list[Patch]:
    def stash(r: Replica, message: Message) -> None:
        r.stash[message.header.op] = message

    return [(normal, "_stash", stash)]


@canary("entries of a log that was replaced are still asked for")
def _wanted_when_the_log_is_another() -> list[Patch]:
    return [(repair, "on_installed", lambda r: None)]


@canary("headers are asked for though nothing is missing")
def _headers_asked_for_ever() -> list[Patch]:
    original = repair._request_headers

    def request_headers(r: Replica) -> None:
        original(r)
        if not r.scope.headers_requests and not r.is_primary:
            repair._ask_for_headers(r, r.log.linked + 1)

    return [(repair, "_request_headers", request_headers), (repair, "_is_wanting", lambda r: True)]


# Retention, snapshots, reads


@canary("a clock goes on being believed when it has jumped")
def _clock_believed_after_a_jump() -> list[Patch]:
    return [(clock, "has_jumped", lambda offset_ns, believed_ns: False)]


@canary("the age of events counts by the own clock alone")
def _age_by_the_own_clock_alone() -> list[Patch]:
    def is_old(before_ns: int, *, age_max_ns: int, now_ns: int, log_ns: int) -> bool:
        return before_ns <= now_ns - age_max_ns

    return [(retention, "is_old", is_old)]


@canary("a segment goes when its first event is old, not its last")
def _age_of_the_first_event() -> list[Patch]:
    original = retention.choose

    def choose(extents: Iterable[Extent], **given: Any) -> Any:
        listed = list(extents)
        younger = [listed[0], *listed[:-1]] if listed else []
        return original(
            [one._replace(first_timestamp=before.first_timestamp) for one, before in zip(listed, younger, strict=True)],
            **given,
        )

    return [(retention, "choose", choose)]


@canary("the snapshot of a checkpoint is taken when there is time for it, of the state as it is then")
def _snapshot_of_a_later_state() -> list[Patch]:
    original = Driver._make_checkpoint

    def make_checkpoint(self: Driver, op: int) -> None:
        background = self._background
        self._background = lambda work, done: background(lambda: snapshot_of(self.machine), done)
        original(self, op)
        self._background = background

    return [(Driver, "_make_checkpoint", make_checkpoint)]


@canary("the sessions of a checkpoint are taken when its snapshot is written")
def _sessions_of_a_later_op() -> list[Patch]:
    original = Driver._make_checkpoint

    def make_checkpoint(self: Driver, op: int) -> None:
        write, sessions = type(self.store).write_checkpoint, self.core.sessions

        def write_checkpoint(mark: Checkpoint, machine: int, earlier: bytes, snapshot: bytes) -> None:
            write(self.store, mark, machine, sessions.encode(), snapshot)

        vars(self.store)["write_checkpoint"] = write_checkpoint
        original(self, op)

    return [(Driver, "_make_checkpoint", make_checkpoint)]


@canary("a read that begins within a batch is given the batch from its beginning")
def _read_from_the_beginning_of_a_batch() -> list[Patch]:
    original = reader.LogReader._within

    def within(self: Any, body: Any, events_here: int, skip: int, *rest: Any) -> Any:
        return original(self, body, events_here, 0, *rest)

    return [(reader.LogReader, "_within", within)]


@canary("what was trimmed is looked for like anything else")
def _trimmed_positions_are_served() -> list[Patch]:
    return [(store.Store, "first_position", property(lambda self: 0))]


# The simulator itself


@canary("agreement is compared with itself")
def _agreement_with_itself() -> list[Patch]:
    original = checkers.Checkers.on_applied

    def on_applied(self: checkers.Checkers, index: int, header: Header, requests: Any) -> None:
        if header.op in self.committed:
            self.committed[header.op] = header
        original(self, index, header, requests)

    return [(checkers.Checkers, "on_applied", on_applied)]


@canary("liveness is asserted too early")
def _liveness_too_early() -> list[Patch]:
    return [(world, "CORE_NS_MAX", plan.MS), (world, "CONVERGE_NS_MAX", plan.MS)]


@canary("the probability of faults is zero", labels=True)
def _faults_silently_zero() -> list[Patch]:
    original = plan.draw

    def draw(seed: int, requests: int = REQUESTS, name: str = plan.DEFAULT) -> Plan:
        return replace(original(seed, requests, name), weights={"heal": 1.0}, loss=0.0, corruption=0.0)

    from kimberlite.vopr import run as runs

    return [(runs, "draw", draw)]


@canary("an append whose outcome is unknown counts as refused")
def _unknown_outcome_is_refused() -> list[Patch]:
    original = checkers.check_history

    def check_history(history: Any, log: Any) -> None:
        original([replace(record, refused=record.position is None) for record in history], log)

    return [(checkers, "check_history", check_history)]


@canary("a second source of entropy", twice=True)
def _second_source_of_entropy() -> list[Patch]:
    class Impure(Random):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(int.from_bytes(os.urandom(8)) if str(seed).startswith("tear") else seed)

    return [(world, "Random", Impure)]
