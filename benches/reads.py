"""Reads of a real log against a plain file: the same bytes, read with O_DIRECT from the same files.

    python benches/make_log.py DIRECTORY --events 3000000 --event-bytes 1024 --events-per-op 8
    python benches/reads.py DIRECTORY

random: one event at a random position through LogReader; the limit is one preadv of the entry that holds it.
sequential: all events of a part of the log, in order, in answers of at most a MiB; the limit reads that part of
the journal in pieces of a MiB. Both are measured in turns, round after round; what counts are the ratios of one
run. The first round is not counted. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from kimberlite._fast.append import AlignedBuffer
from kimberlite._fast.framing import make_header
from kimberlite.node.reader import LogReader
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.journal import journal_name, round_up
from kimberlite.storage.store import Store

ANSWER_BYTES = 1 << 20
ROUNDS = 5


class PlainFiles:
    """The journal files, opened past the page cache."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptors: dict[int, int] = {}
        self._buffer = memoryview(AlignedBuffer(ANSWER_BYTES))

    def read(self, number: int, offset: int, length: int) -> None:
        descriptor = self._descriptors.get(number)
        if descriptor is None:
            path = self._directory / journal_name(number)
            descriptor = self._descriptors[number] = os.open(path, os.O_RDONLY | os.O_DIRECT)
        while length > 0:
            length -= os.preadv(descriptor, [self._buffer[: min(length, ANSWER_BYTES)]], offset)
            offset += ANSWER_BYTES


def places_of(store: Store, positions: list[int]) -> list[tuple[int, int, int]]:
    """Segment, offset and length of the entries that hold the events."""
    places = []
    for position in positions:
        op = store.find(position)
        if op is None:
            raise SystemExit(f"position {position} is not in the log")
        number, _, header, offset = store.place_of(op)
        if header is None or offset is None:
            raise SystemExit(f"op {op} is damaged: measure on a sound log")
        places.append((number, offset, round_up(header.size)))
    return places


def read_each(reader: LogReader, positions: list[int]) -> None:
    for position in positions:
        reader.read(position, 1, 1)


def follow(reader: LogReader, position: int, until: int) -> None:
    while position < until:
        position += reader.read(position, until - position, ANSWER_BYTES)[1]


def read_plain(plain: PlainFiles, places: list[tuple[int, int, int]]) -> None:
    for number, offset, length in places:
        plain.read(number, offset, length)


def seconds(call: Callable[..., None], *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def measure(directory: Path, reads: int, span: int) -> dict[str, float]:
    disk = FileDisk(directory, unsafe=True)  # nothing is appended
    store = Store(disk, make_header)
    store.recover()
    store.completions()
    last = store.header(store.head)
    if last is None:
        raise SystemExit("the log is empty")
    end = last.position + last.count
    reader = LogReader(store, end=lambda: end, applied=lambda: store.head, damaged=lambda op: None)
    plain = PlainFiles(directory)
    rng = random.Random(1)
    results: dict[str, list[float]] = {"random": [], "random_plain": [], "sequential": [], "sequential_plain": []}
    for _ in range(ROUNDS + 1):
        positions = [rng.randrange(end) for _ in range(reads)]
        results["random"].append(reads / seconds(read_each, reader, positions))
        results["random_plain"].append(reads / seconds(read_plain, plain, places_of(store, positions)))
        first = rng.randrange(max(end - span, 1))
        until = min(first + span, end)
        results["sequential"].append((until - first) / seconds(follow, reader, first, until))
        (low, start, _), (high, stop, length) = places_of(store, [first, until - 1])
        whole = []
        for number in range(low, high + 1):
            begin = start if number == low else 0
            whole.append((number, begin, (stop + length if number == high else store.segment_bytes) - begin))
        results["sequential_plain"].append((until - first) / seconds(read_plain, plain, whole))
    store.close()
    rates = {name: statistics.median(values[1:]) for name, values in results.items()}
    return {
        "events": end,
        **{f"{name}_per_s": round(rate) for name, rate in rates.items()},
        "random_ratio": round(rates["random"] / rates["random_plain"], 3),
        "sequential_ratio": round(rates["sequential"] / rates["sequential_plain"], 3),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Reads of a log against a plain file.")
    parser.add_argument("directory", type=Path, help="data of a replica that is not running: see make_log.py")
    parser.add_argument("--reads", type=int, default=5000, help="at random positions, each round")
    parser.add_argument("--span", type=int, default=200_000, help="events read in order, each round")
    given = parser.parse_args(arguments)
    print(json.dumps(measure(given.directory, given.reads, given.span)))


if __name__ == "__main__":
    main()
