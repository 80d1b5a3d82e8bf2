"""The border to a state machine of somebody else: what it raises or gives becomes one error that says what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import kimberlite
from kimberlite.cli.local import free_port
from kimberlite.config import Config, from_mapping
from kimberlite.errors import EventTooLargeError, KimberliteError, StateMachineError, UsageError
from kimberlite.node import machine as border
from kimberlite.node.format import format_replica
from kimberlite.node.machine import check_machine, guarded
from kimberlite.state_machine import Batch, EventLog

BATCHES = [Batch(b"", 2, 40, 17, 0), Batch(b"", 3, 42, 17, 0)]
OWN = f"{__name__}.Machine"
APPENDS = 20  # more than make a checkpoint due


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even that")


class Machine:
    """Does what it is told to in one of its methods, and nothing wrong in the others."""

    version = 1
    needs_body = True

    def __init__(self, **methods: Callable[..., Any]) -> None:
        for name, method in methods.items():
            setattr(self, name, method)

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        return [b"ok"] * len(batches)

    def snapshot(self, writer: BinaryIO) -> None:
        writer.write(b"state")

    def restore(self, reader: BinaryIO) -> None:
        reader.read()


def raising(error: BaseException) -> Callable[..., Any]:
    def method(*_: object) -> Any:
        raise error

    return method


def giving(value: object) -> Callable[..., Any]:
    return lambda *_: value


async def coroutine(batches: object) -> list[bytes]:
    return []


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (raising(ValueError("no number")), "raised ValueError: no number"),
        (raising(KeyError("x")), "raised KeyError: 'x'"),
        (raising(EventTooLargeError("mine")), "raised EventTooLargeError: mine"),
        (raising(SystemExit(3)), "raised SystemExit: 3"),
        (raising(asyncio.CancelledError()), "raised CancelledError"),
        (raising(MemoryError()), "raised MemoryError"),
        (raising(Unprintable()), "raised Unprintable: its text can not be had"),
        (giving(None), "gave NoneType, not a list of replies"),
        (giving(b"12"), "gave bytes, not a list of replies"),
        (giving("ab"), "gave str, not a list of replies"),
        (giving(iter([b"", b""])), "gave list_iterator, not a list of replies"),
        (giving([b""]), "gave 1 replies, not 2"),
        (giving([b""] * 3), "gave 3 replies, not 2"),
        (giving([b"", "text"]), "gave a reply that is str, not bytes"),
        (giving([b"", None]), "gave a reply that is NoneType, not bytes"),
        (giving([bytearray(), b""]), "gave a reply that is bytearray, not bytes"),
        (giving([b"", bytes((1 << 20) + 1)]), "gave a reply of 1048577 bytes, above 1048576"),
    ],
)
def test_what_apply_must_not_do(apply: Callable[..., Any], words: str) -> None:
    with pytest.raises(StateMachineError) as caught:
        guarded(Machine(apply=apply)).apply(BATCHES)
    said = str(caught.value)
    assert said.startswith(f"{OWN}.apply {words}")
    assert "at op 17, positions 40 to 44" in said
    assert "Correct `apply`" in said
    assert "bug" not in said
    assert (caught.value.machine, caught.value.method, caught.value.op, caught.value.position) == (OWN, "apply", 17, 40)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_apply_is_no_coroutine() -> None:
    with pytest.raises(StateMachineError, match="gave coroutine, not a list of replies"):
        guarded(Machine(apply=coroutine)).apply(BATCHES)


def test_one_position_is_one() -> None:
    with pytest.raises(StateMachineError, match=r"at op 9, position 5\."):
        guarded(Machine(apply=raising(OSError()))).apply([Batch(b"", 1, 5, 9, 0)])


def test_what_snapshot_freeze_and_restore_must_not_do() -> None:
    for method in ("snapshot", "freeze"):
        machine: Any = guarded(Machine(**{"freeze": Machine, method: raising(TypeError("a set"))}))
        machine.apply(BATCHES)
        with pytest.raises(StateMachineError) as caught:
            getattr(machine, method)(*[BytesIO()] * (method == "snapshot"))
        assert str(caught.value).startswith(f"{OWN}.{method} raised TypeError: a set, for the checkpoint after op 17.")
    machine = guarded(Machine(freeze=giving(7)))
    with pytest.raises(StateMachineError, match="freeze gave int, which has no method snapshot"):
        machine.freeze()
    machine = guarded(Machine(freeze=lambda: Machine(snapshot=lambda writer: writer.write("text"))))
    with pytest.raises(StateMachineError, match=f"{OWN}.snapshot raised TypeError"):
        machine.freeze().snapshot(BytesIO())
    with pytest.raises(StateMachineError, match=f"{OWN}.restore raised ValueError: old.*Nothing was started"):
        guarded(Machine(restore=raising(ValueError("old")))).restore(BytesIO())


def test_what_is_right_goes_through() -> None:
    machine: Any = guarded(Machine(freeze=Machine))
    assert machine.apply(BATCHES) == [b"ok", b"ok"]
    assert (machine.version, machine.needs_body) == (1, True)
    for writes in (machine, machine.freeze()):
        written = BytesIO()
        writes.snapshot(written)
        assert written.getvalue() == b"state"
    machine.restore(BytesIO())
    assert not hasattr(guarded(Machine()), "freeze")
    log = EventLog()
    assert guarded(log) is log


def test_ctrl_c_is_none_of_its_faults() -> None:
    with pytest.raises(KeyboardInterrupt):
        guarded(Machine(apply=raising(KeyboardInterrupt()))).apply(BATCHES)


def test_an_execution_that_takes_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int, int]] = []
    monkeypatch.setattr(border, "SLOW_S", 0.01)
    machine = guarded(Machine(apply=lambda batches: time.sleep(0.02) or [b"", b""]), lambda *told: said.append(told))
    machine.apply(BATCHES)
    ((kind, op, took_ns),) = said
    assert (kind, op) == (f"{OWN}", 17)
    assert took_ns > 20_000_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1"}, "version is '1'"),
        ({"version": -1}, "version is -1"),
        ({"version": True}, "version is True"),
        ({"version": 1 << 64}, "version is"),
        ({"needs_body": None}, "needs_body must be True"),
        ({"apply": None}, "has no method apply"),
        ({"snapshot": 3}, "has no method snapshot"),
        ({"restore": b""}, "has no method restore"),
    ],
)
def test_what_is_no_state_machine_is_refused_at_the_call(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        check_machine(Machine(**change))
    config = from_mapping({"cluster": {"id": "6d" * 16, "replica": 0, "addresses": ["127.0.0.1:1"]}})
    with pytest.raises(UsageError, match=words):
        kimberlite.Node(config, tmp_path, Machine(**change))
    with pytest.raises(UsageError, match="is a class"):
        kimberlite.Node(config, tmp_path, Machine)  # type: ignore[arg-type]


def formatted(data: Path) -> tuple[Config, str]:
    """A replica alone that takes checkpoints often, and where it will listen."""
    address = f"127.0.0.1:{free_port(1)}"
    config = from_mapping(
        {
            "cluster": {"id": "6d" * 16, "replica": 0, "addresses": [address]},
            "telemetry": {"enabled": False},
            "storage": {"segment_bytes": 8 << 20, "unsafe": True, "free_bytes_min": 0},
            "checkpoint": {"ops": 16},
        }
    )
    format_replica(config, data)
    return config, address


@pytest.mark.parametrize("method", ["apply", "snapshot", "frozen snapshot", "freeze"])
def test_a_replica_ends_with_it(method: str, tmp_path: Path) -> None:
    """A checkpoint is made beside the appends: any number of them may be answered before it breaks."""
    config, address = formatted(tmp_path / "0")
    broken = raising(ValueError("put in by the test"))
    wrong = {"frozen snapshot": {"freeze": lambda: Machine(snapshot=broken)}}.get(method, {method: broken})

    async def append_until(told: asyncio.Future[KimberliteError]) -> None:
        """Until the replica has ended; on a busy machine an append may fail before, for its time alone."""
        async with kimberlite.connect([address], timeout=30.0) as log:
            while True:
                try:
                    await log.append([b"x"], timeout=1.0)
                except KimberliteError:
                    if told.done():
                        raise

    async def life() -> KimberliteError:
        told: asyncio.Future[KimberliteError] = asyncio.get_running_loop().create_future()
        node = kimberlite.Node(config, tmp_path / "0", Machine(**wrong), on_fatal=told.set_result)
        async with node, asyncio.timeout(60):
            with pytest.raises(KimberliteError):
                await append_until(told)
        return told.result()

    error = asyncio.run(life())
    assert isinstance(error, StateMachineError)
    assert "put in by the test" in str(error)
    assert method.split()[-1] == error.method


def test_a_restore_that_raises_refuses_the_start(tmp_path: Path) -> None:
    config, address = formatted(tmp_path / "0")

    async def run(machine: Machine) -> None:
        async with kimberlite.Node(config, tmp_path / "0", machine) as node, kimberlite.connect([address]) as log:
            for _ in range(APPENDS):
                await log.append([b"x"])
            async with asyncio.timeout(30):
                while not node.status()["storage"]["checkpoint_op"]:  # type: ignore[index]
                    await asyncio.sleep(0.01)

    asyncio.run(run(Machine()))
    with pytest.raises(StateMachineError, match="restore raised ValueError"):
        asyncio.run(run(Machine(restore=raising(ValueError("old")))))
    asyncio.run(run(Machine()))
