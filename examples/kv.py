"""A dictionary that is replicated: the smallest useful state machine, embedded.

    python examples/kv.py [DIR]

runs three replicas in this one process (each with its own data directory and its own sockets, as if
they were on three machines: docs/python.md shows the program for one of those), sets a few keys through
one client and shows that every replica arrives at the same dictionary. Run it again with the same DIR: the
dictionaries come back, from the last checkpoint and the log after it.

A command is one event: a JSON list, ["set", key, value] or ["delete", key]. `apply` is the only
place that changes the dictionary, and it is a function of the committed commands alone: no clock, no
random numbers, nothing that differs between replicas. What it replies to a batch, a JSON list of the values that
its commands replaced, is what the client's `apply` gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import kimberlite
from kimberlite import Batch, events

REPLICAS = 3


class KeyValue:
    """The state machine. Every replica has one; `data` is safe to read between turns of the event loop."""

    version = 1
    needs_body = True

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.applied = 0

    def apply(self, batches: Sequence[Batch]) -> Sequence[bytes]:
        replies = []
        for batch in batches:
            replaced = [self._execute(event) for event in events.slice(batch.body, 0, batch.count)]
            self.applied += batch.count
            replies.append(json.dumps(replaced).encode())
        return replies

    def _execute(self, event: bytes) -> str | None:
        # A committed command cannot be refused any more: one that makes no sense must do nothing, the
        # same nothing on every replica.
        try:
            command = json.loads(event)
        except ValueError:
            return None
        replaced = None
        match command:
            case ["set", str(key), str(value)]:
                replaced, self.data[key] = self.data.get(key), value
            case ["delete", str(key)]:
                replaced = self.data.pop(key, None)
        return replaced

    def freeze(self) -> KeyValue:
        """A quick copy, which is then written by another thread while commands go on."""
        frozen = KeyValue()
        frozen.data, frozen.applied = dict(self.data), self.applied
        return frozen

    def snapshot(self, writer: BinaryIO) -> None:
        writer.write(json.dumps([self.applied, self.data], sort_keys=True).encode())

    def restore(self, reader: BinaryIO) -> None:
        self.applied, self.data = json.loads(reader.read())


async def run(
    directory: Path, commands: Sequence[Sequence[str]], settings: dict[str, object]
) -> tuple[list[KeyValue], list[str | None]]:
    """Start the replicas, execute the commands, and give the machines once all have applied the same, and the reply."""
    machines: list[KeyValue] = []

    def machine() -> KeyValue:
        machines.append(KeyValue())
        return machines[-1]

    async with (
        kimberlite.testing.Cluster(REPLICAS, machine, directory=directory, settings={"storage": settings}) as cluster,
        cluster.connect() as log,
    ):
        reply = await log.apply([json.dumps(command).encode() for command in commands], timeout=30.0)
        end = await log.end()
        # An acknowledgement says that a majority has the commands; each replica applies them
        # when it hears that they are committed.
        async with asyncio.timeout(30.0):
            while any(machine.applied < end for machine in machines):
                await asyncio.sleep(0.01)
    return machines, json.loads(reply)


def main() -> None:
    commands = [["set", "colour", "blue"], ["set", "size", "7"], ["set", "colour", "green"], ["delete", "size"]]
    with contextlib.ExitStack() as stack:
        directory = Path(sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        machines, replaced = asyncio.run(run(directory, commands, {}))
        print(f"replaced: {replaced}")
        for index, machine in enumerate(machines):
            print(f"replica {index}: {machine.applied} commands, {machine.data}")


if __name__ == "__main__":
    main()
