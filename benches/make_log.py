"""Make the data of a replica with a long log, without a cluster: to measure start-up, memory and reads on.

    python benches/make_log.py DIRECTORY --events 10000000                     batches of 1,000 events
    python benches/make_log.py DIRECTORY --events 1000000 --events-per-op 1    every event an op of its own

The data are those of the only replica of a cluster: `kimberlite start DIRECTORY` runs it. Everything is
written by storage.store.Store, in groups of GROUP_BYTES, and read-only tools find nothing wrong with it. There
is no checkpoint: the first start executes the log and makes them. An event is its position, in twelve digits,
and a text. Prints what it has made as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from kimberlite._fast import events
from kimberlite._fast.framing import make_header
from kimberlite.config import ClusterConfig, Config
from kimberlite.node.format import format_replica
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.journal import round_up
from kimberlite.storage.store import Store
from kimberlite.types import Command, Header, Message, Operation

GROUP_BYTES = 4 << 20
CLUSTER = "6d616b65206c6f6720666f7220746573"
CLIENT = b"benches.make_log"
DIGITS = 12


class QuickDisk(FileDisk):
    """Files are reserved and not zeroed first: nobody waits for a write of it to be quick."""

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        return super().create(name, size, zeroed=False)


class Maker:
    """The entries of a log, one after another, as a primary that serves one client makes them."""

    def __init__(self, root: Header, event_bytes: int) -> None:
        self.last = root
        text = random.Random(1).randbytes(event_bytes).hex().encode()
        self._text = text[: max(event_bytes - DIGITS, 0)]
        self._session = 0
        self._started_ns = time.time_ns()

    def register(self) -> Message:
        message = self._entry(b"", Operation.REGISTER, 0, session=0, request=0)
        self._session = message.header.op
        return message

    def apply(self, count: int) -> Message:
        first = self.last.position + self.last.count
        text = self._text
        body = events.build([b"%012d" % position + text for position in range(first, first + count)])
        request = self.last.op + 1 - self._session
        return self._entry(body, Operation.APPLY, count, session=self._session, request=request)

    def _entry(self, body: bytes, operation: int, count: int, session: int, request: int) -> Message:
        before = self.last
        self.last = make_header(
            body,
            cluster=before.cluster,
            command=Command.PREPARE,
            replica=0,
            op=before.op + 1,
            commit=before.op,
            parent=before.checksum,
            operation=operation,
            client=CLIENT,
            session=session,
            request=request,
            timestamp=self._started_ns + before.op,
            position=before.position + before.count,
            count=count,
        )
        return Message(self.last, body)


def make_log(directory: Path, count: int, events_per_op: int, event_bytes: int, address: str, unsafe: bool) -> None:
    """Format a replica in `directory` and append `count` events."""
    format_replica(Config(ClusterConfig(id=CLUSTER, replica=0, addresses=(address,))), directory)
    disk = QuickDisk(directory, unsafe=unsafe)
    store = Store(disk, make_header)
    maker = Maker(store.recover().settled_header, event_bytes)
    group, size, left = [maker.register()], 0, count
    while left or group:
        if left and size < GROUP_BYTES:
            group.append(maker.apply(min(events_per_op, left)))
            size += round_up(group[-1].header.size)
            left -= group[-1].header.count
            continue
        store.append(group[-1].header.op, group)
        store.completions()
        group, size = [], 0
    disk.flush()
    store.completions()
    store.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the data of a replica with a long log.")
    parser.add_argument("directory", type=Path, help="is made; must hold no replica")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--events-per-op", type=int, default=1000)
    parser.add_argument("--event-bytes", type=int, default=128)
    parser.add_argument("--address", default="127.0.0.1:7100", metavar="HOST:PORT", help="of the replica, for clients")
    parser.add_argument("--unsafe", action="store_true", help="on a file system that keeps no promise")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    make_log(given.directory, given.events, given.events_per_op, given.event_bytes, given.address, given.unsafe)
    used = sum(path.stat().st_size for path in given.directory.iterdir())
    made = {"events": given.events, "bytes_on_disk": used, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
