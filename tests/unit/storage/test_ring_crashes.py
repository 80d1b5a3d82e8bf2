"""Crashes and damage of a store with a ring, enumerated: torn writes, restarts within restarts, damaged sectors.

A story appends entries of one to four sectors and does what else moves the log. Whatever a crash leaves of each phase
of writes is opened (vopr.crash_images), and so is what a crash within that start leaves; before or after, one sector
is damaged. What was acknowledged is there, or is called damaged when something is; and what never was acknowledged is
never called damaged when nothing is. Counts are asserted, and printed with `pytest -s`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kimberlite._fast.framing import make_header
from kimberlite.errors import InvariantError
from kimberlite.storage import ring, ring_writer
from kimberlite.storage.interface import SECTOR
from kimberlite.storage.journal import RECORD_BYTES, journal_name, witness_name
from kimberlite.storage.open_segment import OpenSegment
from kimberlite.storage.ring_writer import Group, RingWriter
from kimberlite.storage.store import Store, format_store
from kimberlite.storage.superblock import COPIES, COPY_BYTES
from kimberlite.storage.superblock import NAME as SUPERBLOCK
from kimberlite.types import EntryState, Header, Identity, Message, Recovered, ViewState
from kimberlite.vopr.corruption import CLUSTER, ROOT, prepare
from kimberlite.vopr.crash_images import Disk, after, variants
from kimberlite.vopr.disk import Files, ImageDisk
from kimberlite.vopr.recording import Event, Record, RecordingDisk

NONCE = bytes(range(16))
SEGMENT = 64 << 10
SMALL, TWO, FOUR, LARGE = 100, 5000, 13_000, 20_000  # bodies: one, two and four sectors, and what fits no frame


@dataclass
class Told:
    """What the replica had acknowledged when something was written, and what is void by then."""

    acked: dict[int, Header] = field(default_factory=dict)
    cut: int | None = None  # view 1 has only the entries of view 0 up to here
    feared: range = range(0)  # may be called damaged


class Script:
    """A store on a disk whose every phase is on record."""

    def __init__(self, segment_bytes: int = SEGMENT) -> None:
        self.files = Files()
        format_store(
            ImageDisk(self.files),
            make_header,
            cluster=CLUSTER,
            replica=0,
            replica_count=3,
            segment_bytes=segment_bytes,
            identity=Identity(),
            ring_nonce=NONCE,
        )
        self.record = Record(0)
        self.told: list[Told] = []  # one for each event
        self.acked: dict[int, Header] = {}
        self.cut: int | None = None
        self.view = 0
        self.before = ROOT
        self.waiting: dict[int, list[Header]] = {}
        self.token = 0
        self.now = 0
        self.start()

    def start(self) -> None:
        self.disk = RecordingDisk(self.files, lambda: self.now, lambda: 1, lambda at: None, self.record)
        self.store = Store(self.disk, make_header, uses_ring=True)
        recovered = self.store.recover()
        self.store.begin_life(self.store.identity, 1)
        header = self.store.header(recovered.head)
        assert header is not None
        self.before = header
        self.wait()

    def note(self) -> None:
        while len(self.told) < len(self.record.events):
            self.told.append(Told(dict(self.acked), self.cut))

    def append(self, *sizes: int) -> None:
        """One group, not waited for."""
        entries: list[Message] = []
        for size in sizes:
            body = bytes((self.before.op + at) % 251 for at in range(size))
            entries.append(prepare(self.before, body, view=self.view))
            self.before = entries[-1].header
        self.token += 1
        self.waiting[self.token] = [message.header for message in entries]
        self.store.append(self.token, entries)
        self.collect()

    def collect(self) -> None:
        self.note()
        for token in self.store.completions():
            for header in self.waiting.pop(token, []):
                self.acked[header.op] = header
        self.note()

    def step(self) -> None:
        """Until the next phase is durable."""
        self.now += 1
        self.disk.complete_until(self.now)
        self.collect()

    def wait(self) -> None:
        while self.disk.submissions:
            self.step()
        self.collect()

    def write_back(self) -> None:
        self.store.write_back(is_quiet=True)
        self.collect()

    def promise(self) -> None:
        """The superblock is written, and nothing else changes."""
        self.token += 1
        self.store.set_view_state(self.token, self.store.view_state)
        self.collect()

    def change_view(self, cut: int) -> None:
        """View 1, of a log that ends with op `cut`: acknowledged above it, and void now."""
        header = self.store.header(cut)
        assert header is not None
        self.token += 1
        self.store.set_view_state(self.token, ViewState(1, 1, cut, cut, cut, (header,)))
        self.cut = cut
        self.wait()
        self.store.truncate(cut)
        self.view, self.before = 1, header
        self.acked = {op: known for op, known in self.acked.items() if op <= cut}

    def checkpoint(self) -> None:
        mark = self.store.mark(self.store.head)
        assert mark is not None
        self.store.write_checkpoint(mark, 1, b"sessions", b"snapshot")
        self.collect()

    def crash(self) -> None:
        """The process ends with nothing under way, and starts again."""
        self.wait()
        self.start()


# Stories


def small_ones(s: Script) -> None:
    s.append(SMALL)
    s.wait()
    for sizes in ((SMALL,), (TWO,), (SMALL, SMALL, TWO - 800), (SMALL,)):
        s.append(*sizes)
        s.wait()
    s.write_back()
    s.append(SMALL)
    s.wait()
    s.append(TWO)
    s.wait()
    s.write_back()
    s.wait()


def pipelined(s: Script) -> None:
    """Frames that wait for one another, and a flush between them."""
    s.append(SMALL)
    s.wait()
    for _ in range(2):
        s.append(SMALL)
        s.step()
        for sizes in ((SMALL,), (TWO,), (SMALL,), (TWO,)):
            s.append(*sizes)
        s.write_back()
        s.append(SMALL)
        s.wait()


def mixed(s: Script) -> None:
    """Small, large, small: under way together."""
    for sizes in ((SMALL,), (TWO,), (FOUR,), (SMALL,), (SMALL,), (LARGE,), (TWO,)):
        s.append(*sizes)
    s.wait()
    s.append(SMALL)
    s.wait()
    s.append(LARGE, SMALL)
    s.append(SMALL)
    s.wait()


def segments(s: Script) -> None:
    """Over the ends of segments, with what is only in the ring before them."""
    for _ in range(7):
        for sizes in ((SMALL,), (TWO,), (SMALL,)):
            s.append(*sizes)
        s.wait()
    s.append(LARGE)
    s.append(SMALL)
    s.wait()


def wrap(s: Script) -> None:
    """More frames than the ring has slots, and than may be pending."""
    for _ in range(ring.SLOTS + 6):
        s.append(SMALL)
        s.wait()


def views(s: Script) -> None:
    """A view change that cuts what is only in the ring, and others in its place."""
    for sizes in ((SMALL,), (TWO,), (SMALL,), (SMALL,)):
        s.append(*sizes)
        s.wait()
    s.append(SMALL)
    s.change_view(3)
    for sizes in ((TWO,), (SMALL,), (SMALL, SMALL)):
        s.append(*sizes)
        s.wait()
    s.write_back()
    s.wait()


def checkpoints(s: Script) -> None:
    """A checkpoint of what has not reached the journal; appends meanwhile."""
    for sizes in ((SMALL,), (SMALL,), (TWO,)):
        s.append(*sizes)
        s.wait()
    s.checkpoint()
    s.append(SMALL)
    s.step()
    s.append(SMALL)
    s.wait()
    s.append(TWO)
    s.wait()


def restarts(s: Script) -> None:
    for _ in range(3):
        for sizes in ((SMALL,), (TWO,)):
            s.append(*sizes)
            s.wait()
        s.crash()


def promises(s: Script) -> None:
    """Appends while the superblock is written."""
    for sizes in ((SMALL,), (SMALL,)):
        s.append(*sizes)
        s.wait()
    s.promise()
    s.append(SMALL)
    s.step()
    s.append(TWO)
    s.wait()
    s.append(SMALL)
    s.promise()
    s.wait()
    s.append(SMALL)
    s.wait()


STORIES = (small_ones, pipelined, mixed, segments, wrap, views, checkpoints, restarts, promises)


# What is looked at


class Lost(AssertionError):
    """Something that must not happen."""


def opened(disk: Disk, unreadable: dict[str, set[int]] | None = None) -> tuple[ImageDisk, Store, Recovered]:
    image = ImageDisk(Files(dict(disk), dict(unreadable or {})))
    store = Store(image, make_header, uses_ring=True)
    return image, store, store.recover()


def judge(told: Told, store: Store, recovered: Recovered, *, is_damaged: bool, is_garbage: bool = False) -> None:
    states = {entry.op: entry.state for entry in recovered.entries}
    is_cut = recovered.view_state.log_view == 1
    for op, header in told.acked.items():
        if is_cut and header.view == 0 and told.cut is not None and op > told.cut:
            continue
        if op < store.first_op:
            continue
        state = EntryState.PRESENT if op <= recovered.settled else states.get(op, EntryState.ABSENT)
        if state is EntryState.ABSENT or (state is EntryState.FAULTY and not is_damaged):
            raise Lost(f"op {op} is {state.name}")
        known = store.header(op)
        if state is EntryState.PRESENT and (known is None or known.checksum != header.checksum):
            raise Lost(f"op {op} is another one")
    faulty = {op for op, state in states.items() if state is EntryState.FAULTY} - told.acked.keys() - {*told.feared}
    if faulty and not is_damaged and not is_garbage:
        raise Lost(f"ops {sorted(faulty)} are called damaged, and nothing is")


def again(told: Told, store: Store, recovered: Recovered, *, is_garbage: bool) -> None:
    """A start goes on; what is appended next is there after another one, and what was there is."""
    store.begin_life(store.identity, 2)
    if any(entry.state is not EntryState.PRESENT for entry in recovered.entries):
        return
    before = store.header(store.head)
    assert before is not None
    new = prepare(before, b"new", view=recovered.view_state.log_view)
    store.append(1, [new])
    if store.completions() != [1]:
        raise Lost("an append is not done")
    _, third, found = opened(store._disk.files.durable)  # type: ignore[attr-defined]
    told = Told({**told.acked, new.header.op: new.header}, told.cut)
    kept = {op: header for op, header in told.acked.items() if op <= new.header.op}
    judge(Told(kept, told.cut), third, found, is_damaged=False, is_garbage=is_garbage)
    message = third.read(new.header.op, new.header.checksum)
    if message is None or bytes(message.body) != b"new":
        raise Lost("what was appended can not be read")


def told_images(script: Script) -> Iterator[tuple[Told, Event, Disk, list[tuple[str, bool, Callable[[], Disk]]]]]:
    disk: Disk = script.record.base
    for told, event in zip(script.told, script.record.events, strict=True):
        yield told, event, disk, list(variants(disk, event))
        disk = after(disk, event)


def crash_all(script: Script, every: int = 1, nested: int = 40) -> int:
    """Every image, and of every nested-th also those of a crash within its start."""
    images = number = 0
    for told, _, _, found in told_images(script):
        for text, is_garbage, make in found:
            number += 1
            if number % every:
                continue
            images += 1
            _, store, recovered = opened(make())
            try:
                judge(told, store, recovered, is_damaged=False, is_garbage=is_garbage)
                if not is_garbage:
                    again(told, store, recovered, is_garbage=is_garbage)
                    if number % (nested * every) == 0:
                        images += crash_within_start(told, make())
            except Lost as lost:
                raise Lost(f"{text}: {lost}") from lost
    return images


def crash_within_start(told: Told, disk: Disk) -> int:
    """What a crash leaves of each write of a start and of the first append after it."""
    record = Record(0)
    files = Files({name: bytearray(content) for name, content in disk.items()})
    now = [0]
    restarted = RecordingDisk(files, lambda: now[0], lambda: 1, lambda at: None, record)
    store = Store(restarted, make_header, uses_ring=True)
    store.recover()
    store.begin_life(store.identity, 3)
    images = 0
    base = record.base
    for event in record.events:
        for text, is_garbage, make in variants(base, event):
            images += 1
            _, third, found = opened(make())
            try:
                judge(told, third, found, is_damaged=False, is_garbage=is_garbage)
            except Lost as lost:
                raise Lost(f"within a start, {event.text()}: {text}: {lost}") from lost
        base = after(base, event)
    return images


def damages(disk: Disk, old: Disk) -> Iterator[tuple[str, Disk, dict[str, set[int]]]]:
    """One sector of what is in use: zeros, garbage, what was there before, and not to be read."""
    for name, content in disk.items():
        size = COPIES * COPY_BYTES if name == SUPERBLOCK else len(bytes(content).rstrip(b"\0"))
        for at in range(0, size, SECTOR):
            here = bytes(content[at : at + SECTOR])
            before = bytes(old.get(name, b"")[at : at + SECTOR]).ljust(SECTOR, b"\0")
            for what, data in (("zeros", bytes(SECTOR)), ("garbage", b"\x55" * SECTOR), ("lost", before)):
                if data != here:
                    changed = bytearray(content)
                    changed[at : at + SECTOR] = data
                    yield f"{what} at {name}+{at}", {**disk, name: changed}, {}
            yield f"{name}+{at} unreadable", disk, {name: {at // SECTOR}}


def damage_all(script: Script, every: int) -> int:
    """Of every state between two writes, and of every-th crash image, each damaged sector."""
    images = number = 0
    for told, event, base, found in told_images(script):
        later = after(base, event)
        for text, is_garbage, make in [*found, ("whole", False, lambda later=later: later)]:  # type: ignore[misc]
            number += 1
            if is_garbage or (text != "whole" and number % every):
                continue
            for what, disk, unreadable in damages(make(), script.record.base):
                images += 1
                _, store, recovered = opened(disk, unreadable)
                try:
                    judge(told, store, recovered, is_damaged=True)
                except Lost as lost:
                    raise Lost(f"{event.text()}: {text}; {what}: {lost}") from lost
    return images


def told_by(story: Callable[[Script], None]) -> Script:
    script = Script(1 << 20 if story is wrap else SEGMENT)
    story(script)
    script.wait()
    assert not script.waiting
    return script


# Of the stories that have many crashes, one in so many. All of them: pytest --whole.
SAMPLE: dict[Callable[[Script], None], int] = {
    wrap: 31,
    segments: 23,
    mixed: 23,
    pipelined: 11,
    views: 7,
    checkpoints: 7,
}


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES)
def test_no_crash_loses_or_strands(story: Callable[[Script], None]) -> None:
    script = told_by(story)
    images = crash_all(script, every=SAMPLE.get(story, 3), nested=60)
    print(f"{story.__name__}: {len(script.record.events)} events, {images} images")
    assert images > 80


@pytest.mark.whole
@pytest.mark.parametrize("story", STORIES)
def test_no_crash_at_all_loses_or_strands(story: Callable[[Script], None]) -> None:
    script = told_by(story)
    images = crash_all(script, nested=60)
    print(f"{story.__name__}: {len(script.record.events)} events, all {images} images")
    assert images > 600


@pytest.mark.parametrize("story", [small_ones, mixed, views])
def test_one_damaged_sector_takes_nothing_that_was_acknowledged(story: Callable[[Script], None]) -> None:
    script = told_by(story)
    images = damage_all(script, every=400)
    print(f"{story.__name__}: {images} images")
    assert images > 500


def without_frame(script: Script, sequence: int) -> Disk:
    """The disk with a whole frame as it was before: a lost write of both copies."""
    disk = {name: bytearray(content) for name, content in script.files.durable.items()}
    at = ring.place(sequence)
    disk[ring.NAME][at : at + ring.SLOT_BYTES] = script.record.base[ring.NAME][at : at + ring.SLOT_BYTES]
    return disk


def test_a_whole_frame_that_is_lost_is_missed_by_what_is_above_it() -> None:
    script = Script()
    for _ in range(5):
        script.append(SMALL)
        script.wait()
    told = Told(dict(script.acked))
    for sequence in range(3):  # of ops 2 to 4
        _, store, recovered = opened(without_frame(script, sequence))
        judge(told, store, recovered, is_damaged=True)
        assert [entry.op for entry in recovered.entries if entry.state is EntryState.FAULTY] == [2 + sequence]
    script.write_back()
    script.wait()
    for sequence in range(4):  # the journal has it
        _, store, recovered = opened(without_frame(script, sequence))
        judge(told, store, recovered, is_damaged=False)


def test_what_is_given_up_is_the_last_frame_alone() -> None:
    """Both copies lost without a trace, nothing written since, and then a crash."""
    script = Script()
    for _ in range(3):
        script.append(SMALL)
        script.wait()
    _, _, recovered = opened(without_frame(script, 1))
    assert (recovered.settled, recovered.head) == (2, 2)
    assert max(script.acked) == 3


def test_what_a_start_fears_is_written_down_after_what_the_ring_alone_has() -> None:
    """Damage behind the log makes a start write the superblock before anything is mended."""
    script = Script()
    for _ in range(3):
        script.append(SMALL)
        script.wait()
    disk = {name: bytearray(content) for name, content in script.files.durable.items()}
    end = script.store.head  # entries of one sector each
    disk[journal_name(0)][end * SECTOR : (end + 1) * SECTOR] = b"\x55" * SECTOR
    disk[witness_name(0)][end * RECORD_BYTES : (end + 1) * RECORD_BYTES] = b"\x55" * RECORD_BYTES
    _, store, recovered = opened(disk)
    assert store.head == end < recovered.head
    told = Told(dict(script.acked), feared=range(end + 1, recovered.head + 1))
    assert crash_within_start(told, disk) > 50


# Planted bugs: each must be found


def second_copy_later(patch: pytest.MonkeyPatch) -> None:
    """Acknowledged after the first copy."""
    encode = ring.encode_into

    def encode_into(buffer: memoryview, frame: ring.Frame, nonce: bytes) -> None:
        encode(buffer, frame, nonce)
        buffer[len(buffer) // 2 :] = bytes(len(buffer) // 2)

    patch.setattr(ring, "encode_into", encode_into)


def frames_at_once(patch: pytest.MonkeyPatch) -> None:
    """A frame is written while another one is: what a buffered disk may put in any order."""
    original = RingWriter.append

    def append(self: RingWriter, token: int, entries: Any) -> None:
        under_way, self._under_way = self._under_way, []
        original(self, token, entries)
        self._under_way = [*under_way, *self._under_way]

    def frame_written(self: RingWriter) -> None:
        groups, self._under_way = self._under_way[:1], self._under_way[1:]
        for group in groups:
            for message, _ in group.entries:
                self.bodies[message.header.op] = message
            if not group.is_taken:
                self._behind += group.entries
            self._submissions.complete(group.token)
        self._go_on()

    patch.setattr(RingWriter, "append", append)
    patch.setattr(RingWriter, "_frame_written", frame_written)


def any_life(patch: pytest.MonkeyPatch) -> None:
    """A frame counts whatever the superblock was."""
    patch.setattr(ring, "is_live", lambda frame, superblock: True)


def slots_reused(patch: pytest.MonkeyPatch) -> None:
    """A slot is written again before the journal has what it held."""
    patch.setattr(ring_writer, "pending_max", lambda slots: 1 << 30)
    patch.setattr(ring_writer, "WRITE_BACK_OPS", 1 << 30)
    patch.setattr(RingWriter, "write_back", lambda self, is_quiet: None)


def not_replayed(patch: pytest.MonkeyPatch) -> None:
    """The superblock is written before what the ring has is in the journal: the replica speaks too early."""
    patch.setattr(ring, "replay", lambda disk, shown, handle: [])


def not_read(patch: pytest.MonkeyPatch) -> None:
    """A start passes over the ring."""
    patch.setattr(ring, "read", lambda disk, nonce, superblock: [])


def not_drained(patch: pytest.MonkeyPatch) -> None:
    """The superblock is written while entries are in the ring alone."""
    patch.setattr(RingWriter, "drain", lambda self: None)


def witness_of_what_is_under_way(patch: pytest.MonkeyPatch) -> None:
    """A sector of witnesses names entries that are not in the journal yet."""

    def add_apart(self: OpenSegment, header: Header, offset: int) -> None:
        self.add(header, offset)

    patch.setattr(OpenSegment, "add_apart", add_apart)


def large_alone(patch: pytest.MonkeyPatch) -> None:
    """An entry that fits no frame goes into the journal without the small ones before it."""
    original = RingWriter._append_plain

    def append_plain(self: RingWriter, token: int | None, entries: Any) -> None:
        if not entries:
            original(self, token, entries)
            return
        behind, self._behind = self._behind, []
        waiting, self._waiting = self._waiting, []
        under_way, self._under_way = self._under_way, [Group(0, [])]
        original(self, token, entries)
        self._behind, self._waiting, self._under_way = behind, waiting, under_way

    patch.setattr(RingWriter, "_append_plain", append_plain)


def written_before_its_own_superblock(patch: pytest.MonkeyPatch) -> None:
    """The ring is used by a process that has not written the superblock yet, or while it is written."""
    patch.setattr(RingWriter, "is_open", property(lambda self: True))


BUGS = [
    (second_copy_later, small_ones, damage_all),
    (frames_at_once, pipelined, crash_all),
    (any_life, views, crash_all),
    (slots_reused, wrap, crash_all),
    (not_replayed, restarts, crash_all),
    (not_read, small_ones, crash_all),
    (not_drained, views, crash_all),
    (witness_of_what_is_under_way, pipelined, crash_all),
    (large_alone, mixed, crash_all),
    (written_before_its_own_superblock, promises, crash_all),
]


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "story", "look"), BUGS, ids=[bug.__name__ for bug, _, _ in BUGS])
def test_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None],
    story: Callable[[Script], None],
    look: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bug(monkeypatch)
    with pytest.raises((Lost, AssertionError, InvariantError)) as caught:
        look(told_by(story), *((1, 1 << 30) if look is crash_all else (50,)))
    print(f"{bug.__name__}: {caught.value}")


def test_slots_are_enough_for_what_may_be_pending() -> None:
    assert ring.SLOTS > ring.PENDING_MAX
