"""`append`: events from files and pipes.

A line of text is an event without its newline. `read` puts a newline after every event,
so that a file of terminated lines comes back byte for byte. A file whose last line has
no newline holds the same events as one whose last line has one; `append` says so, and
`read --no-trailing-newline` gives such a file back. Events that contain newlines need
--binary: each event with its length before it, a little-endian 32-bit number.

However it ends, by an error, Ctrl-C, SIGTERM, or an output that can not be written, it says which events are known to
be in the log and how many may be.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import click

from kimberlite._fast import events
from kimberlite.cli.common import (
    ProgressBar,
    addresses_option,
    bytes_text,
    cluster_option,
    connect,
    input_file,
    json_option,
    note,
    print_json,
    run,
    timeout_option,
)
from kimberlite.cli.sources import EncodedBatch, FrameSource, LineSource, is_regular, read_chunks
from kimberlite.client.aio import Log
from kimberlite.errors import EventTooLargeError, KimberliteError, OutcomeUnknownError, StorageError
from kimberlite.storage.trouble import explain
from kimberlite.types import ClusterId

BATCHES_IN_FLIGHT = 8  # enough for one to be built and one to be on its way while others wait
GRACE_S = 1.0  # after a signal, for what is under way to be answered
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Appended:
    """How far it got: what was sent, and what of it was acknowledged; the signal that ended it."""

    sent: int = 0
    events: int = 0
    bytes: int = 0
    first: int | None = None
    last: int | None = None
    refused: int = 0  # events: surely not in the log
    signal: signal.Signals | None = None

    @property
    def unknown(self) -> int:
        """Events that may be in the log, or come into it."""
        return self.sent - self.events - self.refused

    def text(self) -> str:
        """For people: `12 events, positions 3 to 14, were appended`."""
        known = f"{self.events} events, positions {self.first} to {self.last}," if self.events else "no events"
        more = f"; {self.unknown} more were under way and may be in the log" if self.unknown else ""
        return f"{known} were appended{more}"


@click.command(short_help="Append events from a file, one per line.")
@addresses_option
@cluster_option
@click.option("--binary", is_flag=True, help="Events with a 32-bit little-endian length before each, instead of lines.")
@timeout_option(30.0, "How long one batch may take before its outcome is called unknown.")
@json_option
@click.argument("file", type=input_file, default="-")
def append(
    addresses: tuple[str, ...], cluster: ClusterId | None, binary: bool, timeout: float, as_json: bool, file: BinaryIO
) -> int:
    """Append events from FILE, one per line; `-` is standard input.

    Prints the positions of the first and the last event when the cluster has all of them
    durably. A file is checked against the limits first, so that a refusal appends nothing. When it
    fails in the middle, the message says how many events are known to be in the log, and how many may be. Ctrl-C and
    SIGTERM end it and print how far it got, as at the end.
    """
    source = FrameSource() if binary else LineSource()
    seekable = is_regular(file)
    if seekable:
        source.check(file)
    total = os.fstat(file.fileno()).st_size if seekable else None
    done = Appended()
    try:
        run(Appending(file, source, timeout, total, done).run(addresses, cluster))
    except KimberliteError as error:
        if not done.events and not done.unknown:
            raise
        raise type(error)(f"{error}; before that {done.text()}", **how_far(error, done)) from None
    try:
        report(done, source.terminated, as_json)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            note(f"kimberlite: nobody reads standard output; {done.text()}")
            raise
        raise StorageError(f"standard output: {explain(error)}; {done.text()}") from error
    if done.signal is not None:
        note(f"kimberlite: ended by {done.signal.name}; {done.text()}")
        return 128 + done.signal
    return 0


def how_far(error: KimberliteError, done: Appended) -> dict[str, object]:
    """The attributes of an error that ended it in the middle."""
    return {**error.details, "appended": done.events, "unknown": done.unknown}


def report(done: Appended, terminated: bool, as_json: bool) -> None:
    """Print the result."""
    if as_json:
        row: dict[str, object] = {
            "events": done.events,
            "bytes": done.bytes,
            "first": done.first,
            "last": done.last,
            "terminated": terminated,
        }
        if done.signal is not None:
            row |= {"unknown": done.unknown, "signal": done.signal.name}
        print_json(row)
        return
    if done.events:
        click.echo(f"{done.first} {done.last}")
    if done.signal is None:
        positions = f"{done.events} events, {bytes_text(done.bytes)}: positions {done.first} to {done.last}"
        note(positions if done.events else "no events")
        if not terminated:
            note("the last line had no newline; `read --no-trailing-newline` gives the file back as it was")


class Appending:
    """Sends all batches of a source, a few at a time, and counts what is acknowledged into `done`.

    Of two tasks: one reads and sends, one waits for the answers in the order of the batches, so that a failure is seen
    at once even while the input keeps us waiting.
    """

    def __init__(
        self, file: BinaryIO, source: LineSource | FrameSource, timeout: float, total: int | None, done: Appended
    ) -> None:
        self._file = file
        self._source = source
        self._timeout = timeout
        self._total = total
        self._done = done
        self._sent: asyncio.Queue[tuple[EncodedBatch, asyncio.Future[int]] | None] = asyncio.Queue()
        self._slots = asyncio.Semaphore(BATCHES_IN_FLIGHT)
        self._work: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    async def run(self, addresses: tuple[str, ...], cluster: ClusterId | None) -> None:
        """Until everything is acknowledged, or a signal: then `done.signal` says which."""
        self._work = asyncio.create_task(self._append(addresses, cluster))
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self._work
        except asyncio.CancelledError:
            if self._done.signal is None:
                raise
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        """Send no more, and give what is under way a moment; the second time none."""
        if self._work is None:
            return
        if self._done.signal is None and self._sender is not None:
            self._sender.cancel()
            asyncio.get_running_loop().call_later(GRACE_S, self._work.cancel)
        else:
            self._work.cancel()
        self._done.signal = self._done.signal or signal.Signals(number)

    async def _append(self, addresses: tuple[str, ...], cluster: ClusterId | None) -> None:
        with ProgressBar("appending", self._total) as advance:
            async with connect(addresses, cluster, self._timeout) as log:
                self._sender = asyncio.create_task(self._send_all(log))
                try:
                    while (item := await self._sent.get()) is not None:
                        self._count(item[0], await self._answer(*item))
                        advance(item[0].consumed)
                    if self._done.signal is None:
                        await self._sender
                finally:
                    self._sender.cancel()
                    await asyncio.gather(self._sender, return_exceptions=True)

    async def _send_all(self, log: Log) -> None:
        try:
            async for chunk in read_chunks(self._file):
                await self._send(log, self._source.feed(chunk))
            await self._send(log, self._source.end())
        finally:
            self._sent.put_nowait(None)

    async def _send(self, log: Log, batches: Iterator[EncodedBatch]) -> None:
        for batch in batches:
            await self._slots.acquire()
            reply = asyncio.ensure_future(log.append_batch(batch.body, batch.count, timeout=self._timeout))
            reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())  # seen, if not awaited
            self._done.sent += batch.count
            self._sent.put_nowait((batch, reply))
            await asyncio.sleep(0)  # let it leave while the next one is built

    async def _answer(self, batch: EncodedBatch, reply: asyncio.Future[int]) -> int:
        try:
            return await reply
        except KimberliteError as error:
            if not isinstance(error, OutcomeUnknownError):
                self._done.refused += batch.count
            if isinstance(error, EventTooLargeError):
                raise EventTooLargeError(f"{error}; {longest(batch, self._source.noun)}", **error.details) from None
            raise

    def _count(self, batch: EncodedBatch, position: int) -> None:
        self._slots.release()
        done = self._done
        done.first = position if done.first is None else done.first
        done.last = position + batch.count - 1
        done.events += batch.count
        done.bytes += batch.consumed


def longest(batch: EncodedBatch, noun: str) -> str:
    """Which event a cluster with a smaller limit has refused a batch for."""
    sizes = [len(event) for event in events.slice(batch.body, 0, batch.count)]
    size = max(sizes)
    return (
        f"the longest of the {noun}s {batch.number} to {batch.number + batch.count - 1} is {noun} "
        f"{batch.number + sizes.index(size)} with {size} bytes"
    )
