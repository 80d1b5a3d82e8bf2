"""A replica's data on this disk, with small segments and a log to choose; and what is in a restored one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab import prepare

from kimberlite import config as configuration
from kimberlite._fast import events
from kimberlite._fast.framing import make_header
from kimberlite.config import Config
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.store import Store, format_store
from kimberlite.types import Header, Message, Operation, ViewState, root_header

CLUSTER = b"the-old-cluster!"
NEW = "5f0c7b9a3f6e4d6ab2c1d0e9f8a7b6c5"
SEGMENT = 64 << 10  # 16 entries of one sector each
CLIENT = b"a-client-of-long"


@dataclass
class SmallReplica:
    """Appends two events an op, each with its position in it. commit: what every entry says is how far behind it."""

    path: Path
    replica_count: int = 3
    behind: int = 1
    view: int = 3
    segment_bytes: int = SEGMENT
    disk: FileDisk = field(init=False)
    store: Store = field(init=False)
    last: Header = field(init=False)

    def __post_init__(self) -> None:
        self.path.mkdir()
        self.disk = FileDisk(self.path, unsafe=True)
        format_store(
            self.disk,
            make_header,
            cluster=CLUSTER,
            replica=0,
            replica_count=self.replica_count,
            segment_bytes=self.segment_bytes,
        )
        self.store = Store(self.disk, make_header)
        self.store.recover()
        self.last = root_header(make_header, CLUSTER)
        self.promise(ViewState(view=self.view, log_view=self.view, suffix=(self.last,)))

    def promise(self, state: ViewState) -> None:
        self.store.set_view_state(1, state)
        self.settle()

    def settle(self) -> None:
        self.disk.flush()
        self.store.completions()

    def prepare(self, size: int = 100, salt: bytes = b"") -> Message:
        position = self.last.position + self.last.count
        body = events.build([b"%d" % position + salt, b"%d " % (position + 1) + bytes(size)])
        return prepare(
            self.last,
            body,
            view=self.view,
            replicas=self.replica_count,
            cluster=CLUSTER,
            commit=max(self.last.op + 1 - self.behind, 0),
            timestamp=1_000 + self.last.op,
            operation=Operation.APPLY,
            client=CLIENT,
            session=1,
            request=self.last.op + 1,
            count=2,
        )

    def append(self, count: int, size: int = 100, salt: bytes = b"") -> None:
        for _ in range(count):
            message = self.prepare(size, salt)
            self.store.append(2, [message])
            self.settle()
            self.last = message.header

    def checkpoint(self) -> None:
        """Of the last op."""
        mark = self.store.mark(self.last.op)
        assert mark is not None
        self.store.write_checkpoint(mark, 1, b"sessions of %d" % self.last.op, b"snapshot of %d" % self.last.op)
        while self.store.checkpoint.op != self.last.op:
            self.settle()

    def trim(self, first_op: int) -> None:
        self.store.trim(first_op, 2 * (first_op - 1))
        while self.store.first_op != first_op:
            self.settle()
        for _ in range(20):  # files go one at a time
            self.settle()


@pytest.fixture
def small_replica(tmp_path: Path) -> Iterator[Callable[..., SmallReplica]]:
    """Make one, which is closed at the end: keyword arguments are the fields of SmallReplica."""
    made: list[SmallReplica] = []

    def make(name: str = "replica", **fields: int) -> SmallReplica:
        made.append(SmallReplica(tmp_path / name, **fields))
        return made[-1]

    yield make
    for replica in made:
        replica.disk.close()


@pytest.fixture
def new_config() -> Callable[..., Config]:
    """The configuration of a replica of the new cluster."""

    def make(replica: int = 0, replicas: int = 3, cluster: str = NEW) -> Config:
        addresses = [f"127.0.0.1:{7100 + index}" for index in range(replicas)]
        settings = ["storage.unsafe=true", f"storage.segment_bytes={8 << 20}", f"limits.frame_bytes_max={4 << 20}"]
        return configuration.new_replica(cluster, replica, addresses, settings, "test")

    return make
