"""A small store on a simulated disk whose every write is on record, and the log that goes into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.storage.interface import Write
from kimberlite.storage.store import Store, format_store
from kimberlite.types import ClusterId, Header, Message, Recovered, ViewState
from kimberlite.vopr.corruption import CLUSTER, ROOT, chain, copied, prepare
from kimberlite.vopr.disk import Files, SimDisk

SEGMENT = 64 << 10


@dataclass
class Recorder:
    """What a disk was asked to make durable, in order: file creations, and phases of writes."""

    events: list[tuple[str, int] | list[tuple[str, int, bytes]]] = field(default_factory=list)


class RecordingDisk(SimDisk):
    """Writes take no time, and are put on record."""

    def __init__(self, files: Files, recorder: Recorder | None = None) -> None:
        super().__init__(files, lambda: 0, lambda: 0)
        self.recorder = recorder or Recorder()
        self.released: list[str] = []

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        self.recorder.events.append((name, size))
        return super().create(name, size)

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None:
        super().submit(token, phases)
        for phase in phases:
            self.recorder.events.append(
                [(self._handles[write.file], write.offset, bytes(write.buffer)) for write in phase]
            )

    def release(self, file: int) -> None:
        super().release(file)
        self.released.append(self._handles[file])


@dataclass
class Bench:
    """A formatted store and the means to open it again from any image."""

    files: Files
    recorder: Recorder
    disk: RecordingDisk
    store: Store
    recovered: Recovered
    token: int = 0

    def wait(self, token: int) -> None:
        assert self.store.completions() == [token]

    def append(self, entries: Sequence[Message]) -> None:
        self.token += 1
        self.store.append(self.token, entries)
        self.wait(self.token)

    def repair(self, entries: Sequence[Message]) -> None:
        self.token += 1
        self.store.repair(self.token, entries)
        self.wait(self.token)

    def promise(self, state: ViewState) -> None:
        self.token += 1
        self.store.set_view_state(self.token, state)
        self.wait(self.token)

    def reopen(self) -> Bench:
        return open_bench(copied(self.files))


def open_bench(files: Files, recorder: Recorder | None = None) -> Bench:
    disk = RecordingDisk(files, recorder)
    store = Store(disk, make_header)
    recovered = store.recover()
    disk.flush()
    assert store.completions() == []  # what opening writes needs no token
    return Bench(files, disk.recorder, disk, store, recovered)


def fresh() -> Bench:
    files = Files()
    format_store(RecordingDisk(files), make_header, cluster=CLUSTER, replica=0, replica_count=3, segment_bytes=SEGMENT)
    return open_bench(files)


@dataclass(frozen=True)
class Kit:
    """The helpers above, for test modules: they cannot import this one."""

    cluster: ClusterId = CLUSTER
    segment: int = SEGMENT
    root: Header = ROOT
    chain: Callable[..., list[Message]] = chain
    prepare: Callable[..., Message] = prepare
    fresh: Callable[[], Bench] = fresh
    open: Callable[..., Bench] = open_bench
    copied: Callable[[Files], Files] = copied
    disk: type[RecordingDisk] = RecordingDisk


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture
def bench() -> Bench:
    """A store that was just formatted."""
    return fresh()
