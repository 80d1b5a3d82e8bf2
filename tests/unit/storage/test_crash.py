"""Every crash: a scripted run, cut at every phase, every write of it at every 512 bytes, with and without garbage.

The script appends (one by one, in groups, across segments), changes views (keeping, replacing and cutting the
suffix), repairs in place. For each image: open it and hold it against what was acknowledged by then.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import journal_name
from kimberlite.types import EntryState, Message, ViewState
from kimberlite.vopr.disk import UNIT, Files

GARBAGE = random.Random(11).randbytes(UNIT)
WHOLE = SECTOR - 256


@dataclass
class Step:
    """A call of the script: what was durable before, what it writes, what is promised before and after."""

    name: str
    before: Files
    events: list[Any]
    acknowledged: dict[int, Message]  # stands before the call and after it
    possible: set[bytes]  # identities that may stand in the log while the call is under way
    states: tuple[ViewState, ViewState]
    faulty: frozenset[int] = frozenset()  # damaged on purpose, before and perhaps after


@dataclass
class Script:
    bench: Any
    kit: Any
    log: dict[int, Message] = field(default_factory=dict)
    state: ViewState = field(default_factory=ViewState)
    faulty: frozenset[int] = frozenset()
    steps: list[Step] = field(default_factory=list)

    def _step(self, name: str, call: Any, log: dict[int, Message], state: ViewState) -> None:
        before = self.kit.copied(self.bench.files)
        start = len(self.bench.recorder.events)
        call()
        kept = {op: message for op, message in self.log.items() if log.get(op) is message}
        possible = {message.header.checksum for message in (*self.log.values(), *log.values())}
        self.steps.append(
            Step(
                name,
                before,
                self.bench.recorder.events[start:],
                kept,
                possible,
                (self.state, state),
                self.faulty,
            )
        )
        self.log, self.state = log, state

    def append(self, entries: list[Message]) -> None:
        log = self.log | {message.header.op: message for message in entries}
        self._step(f"append to {entries[-1].header.op}", lambda: self.bench.append(entries), log, self.state)

    def repair(self, op: int, offset: int, name: str) -> None:
        self.bench.files.durable[name][offset + 300] ^= 1
        assert self.bench.store.read(op) is None
        self.faulty = frozenset({op})
        self._step(f"repair {op}", lambda: self.bench.repair([self.log[op]]), self.log, self.state)
        self.faulty = frozenset()

    def promise(self, state: ViewState, keep: int | None = None) -> None:
        """A superblock update; `keep`: the log above it is void once it is durable."""
        log = self.log if keep is None else {op: message for op, message in self.log.items() if op <= keep}
        self._step(f"view {state.view}/{state.log_view}", lambda: self.bench.promise(state), log, state)
        if keep is not None:
            self.bench.store.truncate(keep)


def script(kit: Any) -> Script:
    bench = kit.fresh()
    run = Script(bench, kit, state=bench.store.view_state)
    first = kit.chain([10, WHOLE, 5000])
    run.append(first[:1])
    run.append(first[1:])
    group = kit.chain([1, 0, 9000], after=first[-1].header, salt=3)
    run.append(group)
    run.repair(3, 2 * SECTOR, journal_name(0))
    # Leave the view, then enter another one whose log differs from op 5 on.
    run.promise(ViewState(1, 0, commit=3, suffix=(kit.root,)))
    other = kit.chain([20, 30, 9000], after=run.log[4].header, view=1, salt=5)
    suffix = tuple(message.header for message in (run.log[3], run.log[4], *other[:2]))
    run.promise(ViewState(1, 1, commit=3, base=3, suffix_head=6, suffix=suffix), keep=4)
    run.append(other[:2])
    run.append(other[2:])
    # Into the next segment, alone and within a group.
    run.append(kit.chain([WHOLE, 20000], after=other[-1].header, view=1, salt=7))
    run.append(kit.chain([10], after=run.log[9].header, view=1))
    # A view whose log is shorter; then it grows again over the old entries.
    suffix = tuple(run.log[op].header for op in (6, 7))
    run.promise(ViewState(2, 2, commit=6, base=6, suffix_head=7, suffix=suffix), keep=7)
    run.append(kit.chain([40, 41], after=run.log[7].header, view=2, salt=8))
    run.append(kit.chain([30000], after=run.log[9].header, view=2, salt=9))
    return run


@pytest.fixture(scope="module")
def run(kit: Any) -> Script:
    return script(kit)


def apply(files: Files, writes: list[tuple[str, int, bytes]]) -> None:
    for name, offset, data in writes:
        files.durable[name][offset : offset + len(data)] = data


def images(kit: Any, step: Step) -> Iterator[tuple[str, Files]]:
    """Everything a crash within the step may leave on the disk."""
    done = kit.copied(step.before)
    for number, event in enumerate(step.events):
        if isinstance(event, tuple):
            yield f"{number}: before {event[0]} exists", kit.copied(done)
            done.durable[event[0]] = bytearray(event[1])
            continue
        for at, (name, offset, data) in enumerate(event):
            # The other writes of the phase: all of them there, or none.
            for others in ([], event[:at] + event[at + 1 :]) if len(event) > 1 else ([],):
                base = kit.copied(done)
                apply(base, others)
                for cut in range(0, len(data) + 1, UNIT):
                    image = kit.copied(base)
                    apply(image, [(name, offset, data[:cut])])
                    yield f"{number}: {name}+{offset} up to {cut}", image
                    if cut < len(data):
                        image = kit.copied(base)
                        apply(image, [(name, offset, data[:cut]), (name, offset + cut, GARBAGE)])
                        yield f"{number}: {name}+{offset} garbage at {cut}", image
                        # The rest arrived, this unit did not.
                        image = kit.copied(base)
                        apply(image, [(name, offset, data[:cut]), (name, offset + cut + UNIT, data[cut + UNIT :])])
                        yield f"{number}: {name}+{offset} hole at {cut}", image
        apply(done, event)
    yield "complete", done


def check(kit: Any, step: Step, image: Files, garbage: bool) -> int:
    """Open the image; returns how many entries were cut as torn."""
    bench = kit.open(image)
    recovered, store = bench.recovered, bench.store
    assert recovered.view_state in step.states
    assert not (store.faulty - step.faulty) & step.acknowledged.keys()
    if garbage:
        # Garbage in the unit of a record that was not being changed, where remains of a void entry stand: nothing
        # tells it from a damaged entry whose witness is damaged too (R11 c). Faulty is safe: the others nack it.
        assert store.faulty - step.faulty <= {recovered.head}
    else:
        assert store.faulty <= step.faulty
    states = {entry.op: entry for entry in recovered.entries}
    for op, message in step.acknowledged.items():
        if op in step.faulty:
            continue
        assert op <= recovered.settled or states[op].state is EntryState.PRESENT, f"op {op} is lost"
        read = store.read(op, message.header.checksum)
        assert read is not None, f"op {op} can not be read"
        assert read.body == message.body
    for op in range(1, recovered.head + 1):
        known = states.get(op)
        if known is not None and known.state is not EntryState.PRESENT:
            continue
        header = store.header(op)
        assert header is not None
        assert header.checksum in step.possible, f"op {op} was never written"
    state = recovered.view_state
    doubted = [one.op for one in recovered.entries if one.state is EntryState.FAULTY and one.op > recovered.written]
    if doubted:
        # That they may have been there is remembered before anything is said, as vsr.recovery does: what told of it
        # may have been the damage of a neighbour's witness, which has been written again.
        state = replace(state, doubt=max(doubted))
        bench.promise(state)
    # Opening again finds the same, with everything repaired.
    again = bench.reopen()
    assert again.recovered.view_state == state
    assert again.recovered.head == recovered.head
    assert again.recovered.settled == recovered.settled
    assert doubted or not again.recorder.events
    return int(recovered.torn)


STEPS = 13


@pytest.mark.parametrize("number", range(STEPS))
def test_nothing_acknowledged_is_lost_in_any_crash(kit: Any, run: Script, number: int) -> None:
    assert len(run.steps) == STEPS
    step = run.steps[number]
    count = torn = 0
    for name, image in images(kit, step):
        try:
            torn += check(kit, step, image, "garbage" in name)
        except Exception as error:
            error.add_note(f"{step.name}, {name}")
            raise
        count += 1
    assert count >= 8
    if step.name.startswith("append"):
        assert torn, "a torn tail was among the images"
