"""What type checkers say of a program with a state machine of its own. Checked by `make lint`, never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, assert_type

import kimberlite
from kimberlite import Batch, events


class Counter:
    version = 1
    needs_body = True

    def __init__(self) -> None:
        self.total = 0

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        replies: list[bytes] = []
        for batch in batches:
            assert_type(batch.position, int)
            assert_type(batch.timestamp, int)
            assert_type(events.slice(batch.body, 0, batch.count), list[bytes])
            self.total += batch.count
            replies.append(b"%d" % self.total)
        return replies

    def snapshot(self, writer: BinaryIO) -> None:
        writer.write(b"%d" % self.total)

    def restore(self, reader: BinaryIO) -> None:
        self.total = int(reader.read())


class NoRestore:
    version = 1
    needs_body = True

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        return [b""] * len(batches)

    def snapshot(self, writer: BinaryIO) -> None:
        return None


async def embedded(config: kimberlite.Config, directory: Path) -> None:
    machine: kimberlite.StateMachine = Counter()
    async with kimberlite.Node(config, directory, machine) as node:
        assert_type(node, kimberlite.Node)
    kimberlite.Node(config, directory, NoRestore())  # type: ignore[arg-type]
