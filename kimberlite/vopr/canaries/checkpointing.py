"""Planted bugs of checkpoints, trims, retention and reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from kimberlite.node import clock, reader, retention
from kimberlite.node.driver import Driver, snapshot_of
from kimberlite.storage import checkpoint as checkpoint_files
from kimberlite.storage import journal, store
from kimberlite.storage.checkpoint_writer import CheckpointWriter
from kimberlite.storage.interface import Extent
from kimberlite.types import Checkpoint, Header, Message
from kimberlite.vopr.canaries.registry import Patch, canary
from kimberlite.vsr import clocks, execution, leading
from kimberlite.vsr.sessions import SessionTable
from kimberlite.vsr.state import State


@canary("the sessions are not in the checkpoint")
def _sessions_not_in_the_checkpoint() -> list[Patch]:
    return [(SessionTable, "encode", lambda self: b"")]


@canary("the log is trimmed by the primary's checkpoint alone")
def _trim_by_own_checkpoint() -> list[Patch]:
    def trimmable_op(s: State) -> int:
        return s.execution.checkpoint_op + 1

    return [(execution, "trimmable_op", trimmable_op), (leading, "trimmable_op", trimmable_op)]


@canary("the superblock names a checkpoint before its file is written")
def _checkpoint_named_before_it_is_written() -> list[Patch]:
    write_chunk, begin_mark = CheckpointWriter._write_chunk, CheckpointWriter.begin_mark
    early: WeakKeyDictionary[CheckpointWriter, Any] = WeakKeyDictionary()

    def early_chunk(self: CheckpointWriter, copying: Any) -> None:
        if copying.is_unnamed:
            copying.names_at = None
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


@canary("a clock goes on being believed when it has jumped")
def _clock_believed_after_a_jump() -> list[Patch]:
    return [(clock, "has_jumped", lambda offset_ns, believed_ns: False)]


@canary("the age of events counts by the own clock alone")
def _age_by_the_own_clock_alone() -> list[Patch]:
    def is_old(before_ns: int, *, age_max_ns: int, now_ns: int, log_ns: int) -> bool:
        return before_ns <= now_ns - age_max_ns

    return [(retention, "is_old", is_old)]


@canary("the age of events counts by the clock that is furthest ahead, not by those of a quorum")
def _age_by_the_furthest_clock() -> list[Patch]:
    return [(clocks, "quorum_of", lambda told, needed: max(told))]


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
        write, sessions = type(self.store).write_checkpoint, self.core.state.sessions

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


@canary("a snapshot is begun while another one is under way")
def _two_snapshots_at_once() -> list[Patch]:
    original = Driver._make_checkpoint

    def make_checkpoint(self: Driver, op: int) -> None:
        self._snapshot_under_way = False
        original(self, op)

    return [(Driver, "_make_checkpoint", make_checkpoint)]
