"""The border to a state machine that somebody else wrote.

Whatever it raises, and whatever it gives that is no reply, becomes StateMachineError: it names the class, the operation
and what to do, for it is that program that must be corrected and not this one. What was committed can not be left
out, so the replica ends; its data is whole.

May import: errors, state_machine, process.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Sequence
from time import monotonic
from typing import BinaryIO, TypeVar

from kimberlite import process
from kimberlite.errors import StateMachineError, UsageError
from kimberlite.state_machine import Batch, EventLog, Frozen, StateMachine

REPLY_BYTES_MAX = 1 << 20
SLOW_S = 1.0  # the replica does nothing else meanwhile: an execution that takes longer is said
VERSION_END = 1 << 64
# All but KeyboardInterrupt, which comes from outside.
RAISED = (Exception, SystemExit, GeneratorExit, CancelledError)
IN_APPLY = (
    "The operation is committed: every replica ends at it, and again at each start. Correct `apply` so that an event "
    "that makes no sense to it does nothing, the same on every replica, and start the replicas again; nothing is lost"
)
IN_SNAPSHOT = "Every replica ends there, and again after each start, until it is corrected; nothing is lost"
IN_RESTORE = (
    "Nothing was started and nothing changed. Correct it, or start the version of the program that wrote the snapshot"
)

T = TypeVar("T")


def check_machine(machine: object) -> StateMachine:
    """That object, if it has what a state machine has; raises UsageError."""
    if isinstance(machine, type):
        raise UsageError(f"{machine.__module__}.{machine.__qualname__} is a class; a Node takes an instance of it")
    version = getattr(machine, "version", None)
    if type(version) is not int or not 0 <= version < VERSION_END:
        raise UsageError(f"{name_of(machine)}.version is {version!r}, but must be a whole number, 0 or more")
    if not isinstance(getattr(machine, "needs_body", None), bool):
        raise UsageError(f"{name_of(machine)}.needs_body must be True, or False when `apply` never looks at Batch.body")
    for method in ("apply", "snapshot", "restore"):
        if not callable(getattr(machine, method, None)):
            raise UsageError(f"{name_of(machine)} has no method {method}: see kimberlite.StateMachine")
    return machine  # type: ignore[return-value]


def _unsaid(machine: str, op: int, took_ns: int) -> None:
    """Told of an execution that took longer than SLOW_S."""


def guarded(machine: StateMachine, on_slow: Callable[[str, int, int], None] = _unsaid) -> StateMachine:
    """A state machine that raises StateMachineError only. Cost: 0.2 us an operation; none for the built-in one.

    on_slow: told the class, the first op and the nanoseconds of an execution that took longer than SLOW_S."""
    if type(machine) is EventLog:
        return machine
    guard = FreezingGuard(machine, machine.freeze) if hasattr(machine, "freeze") else Guard(machine)
    guard.on_slow = on_slow
    return guard


def name_of(machine: object) -> str:
    """The class of a state machine, as its author would look for it."""
    kind = type(machine)
    return f"{kind.__module__}.{kind.__qualname__}"


def _call(method: Callable[[], T], failed: Callable[[str], StateMachineError]) -> T:
    try:
        return method()
    except RAISED as error:
        raise failed(f"raised {process.what(error)}") from error


class FrozenGuard:
    """A frozen copy, whose snapshot is written on a thread. op: the last that is in it."""

    def __init__(self, frozen: Frozen, op: int) -> None:
        self._frozen = frozen
        self._op = op

    def snapshot(self, writer: BinaryIO) -> None:
        _call(lambda: self._frozen.snapshot(writer), self._failed)

    def _failed(self, how: str) -> StateMachineError:
        return _about_snapshot(self._frozen, "snapshot", self._op, how)


def _about_snapshot(machine: object, method: str, op: int, how: str) -> StateMachineError:
    return StateMachineError(
        f"{name_of(machine)}.{method} {how}, for the checkpoint after op {op}. {IN_SNAPSHOT}",
        machine=name_of(machine),
        method=method,
        op=op,
        position=None,
    )


class Guard:
    """See the module. One thread, but for the snapshot of what `freeze` gives."""

    def __init__(self, machine: StateMachine) -> None:
        self._machine = machine
        self._op = 0  # the last one applied
        self.on_slow: Callable[[str, int, int], None] = _unsaid
        self.version = machine.version
        self.needs_body = machine.needs_body

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        began = monotonic()
        self._op = batches[0].op
        try:
            replies = self._machine.apply(batches)
        except RAISED as error:
            raise self._about_apply(batches, f"raised {process.what(error)}") from error
        if (took := monotonic() - began) > SLOW_S:
            self.on_slow(name_of(self._machine), self._op, int(took * 1e9))
        if (wrong := _wrong(replies, len(batches))) is not None:
            raise self._about_apply(batches, f"gave {wrong}")
        return replies

    def _about_apply(self, batches: Sequence[Batch], how: str) -> StateMachineError:
        return StateMachineError(
            f"{name_of(self._machine)}.apply {how}, {_place(batches)}. {IN_APPLY}",
            machine=name_of(self._machine),
            method="apply",
            op=self._op,
            position=batches[0].position,
        )

    def snapshot(self, writer: BinaryIO) -> None:
        _call(lambda: self._machine.snapshot(writer), lambda how: self._about_state("snapshot", how))

    def _about_state(self, method: str, how: str) -> StateMachineError:
        return _about_snapshot(self._machine, method, self._op, how)

    def restore(self, reader: BinaryIO) -> None:
        def failed(how: str) -> StateMachineError:
            return StateMachineError(
                f"{name_of(self._machine)}.restore {how}, with the snapshot of the last checkpoint. {IN_RESTORE}",
                machine=name_of(self._machine),
                method="restore",
                op=None,
                position=None,
            )

        _call(lambda: self._machine.restore(reader), failed)


class FreezingGuard(Guard):
    """Of a machine that has `freeze`."""

    def __init__(self, machine: StateMachine, freeze: Callable[[], Frozen]) -> None:
        super().__init__(machine)
        self._freeze = freeze

    def freeze(self) -> Frozen:
        frozen = _call(self._freeze, lambda how: self._about_state("freeze", how))
        if not callable(getattr(frozen, "snapshot", None)):
            raise self._about_state("freeze", f"gave {type(frozen).__name__}, which has no method snapshot")
        return FrozenGuard(frozen, self._op)


def _place(batches: Sequence[Batch]) -> str:
    """Of which events of the log an execution is."""
    first, last = batches[0].position, batches[-1].position + batches[-1].count - 1
    return f"at op {batches[0].op}, {f'position {first}' if first == last else f'positions {first} to {last}'}"


def _wrong(replies: object, wanted: int) -> str | None:
    """What is no list of replies about it; None when it is one."""
    if not isinstance(replies, Sequence) or isinstance(replies, str | bytes):
        return f"{type(replies).__name__}, not a list of replies"
    if len(replies) != wanted:
        return f"{len(replies)} replies, not {wanted}, one for each batch"
    for reply in replies:
        if type(reply) is not bytes:
            return f"a reply that is {type(reply).__name__}, not bytes"
        if len(reply) > REPLY_BYTES_MAX:
            return f"a reply of {len(reply)} bytes, above {REPLY_BYTES_MAX}"
    return None
