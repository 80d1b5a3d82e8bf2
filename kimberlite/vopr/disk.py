"""A simulated disk: what is durable, what is under way, and what a crash or a fault does to it.

Implements storage.interface.Disk over byte arrays. Writes complete only when the world lets
time pass (`complete_until`), phase by phase and submission by submission, like the
production disk. A crash tears what was under way in units of 512 bytes. Every random
decision comes from the generator handed in: one seed, one run.
"""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from kimberlite.errors import DiskFullError, WriteFailedError, invariant
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.ring import FRAME_HEADER_BYTES
from kimberlite.storage.ring import NAME as RING
from kimberlite.storage.superblock import NAME as SUPERBLOCK
from kimberlite.types import Bytes
from kimberlite.vopr.draws import below

MAGIC, MAGIC_AT, SIZE_AT = b"KMBL", 48, 56  # in the header of an entry
UNIT = 512  # what a torn write leaves whole
NOTHING = bytes(UNIT)
FOREVER = 1 << 62

# What a device does. The superblock is written by the same queue as the rest, but a promise that comes late is
# another fault than an entry that does.
READ, WRITE, PROMISE = "read", "write", "promise"
OPERATIONS = (READ, WRITE, PROMISE)


@dataclass(slots=True)
class TearPolicy:
    """What a crash leaves of each 512-byte unit under way: the weights of old, new, garbage."""

    old: float = 0.45
    new: float = 0.45
    garbage: float = 0.1


_write = partial(tuple.__new__, Write)  # of its fields, in half of the time

LOST, MISDIRECTED, STALE = "lost", "misdirected", "stale"
LIES = (LOST, MISDIRECTED, STALE)
OLD_MAX = 32  # writes of which the content that they replaced is remembered


@dataclass(slots=True)
class Lies:
    """What a disk says is done and is not: writes that are lost, or put somewhere else in their file, and reads that
    give what was there before the last write. Only of one part of the data, for what lies elsewhere must tell of it
    (docs/simulator.md). `begin`, `end`: of the names of files."""

    begin: str
    end: str = ""
    kind: str = ""
    left: int = 0  # so many times
    _old: deque[tuple[str, int, bytes]] = field(default_factory=lambda: deque(maxlen=OLD_MAX))

    def concern(self, name: str) -> bool:
        return name.startswith(self.begin) and name.endswith(self.end)

    def on_write(self, name: str, offset: int, content: bytearray, length: int, used: int) -> int | None:
        """Where a write really goes; None when nowhere."""
        if not self.concern(name):
            return offset
        if self.left and self.kind == LOST:
            self.left -= 1
            return None
        if self.left and self.kind == MISDIRECTED and used > length:
            self.left -= 1
            return random.Random(f"{name} {offset} {used}").randrange((used - length) // SECTOR + 1) * SECTOR
        self._old.append((name, offset, bytes(content[offset : offset + length])))
        return offset

    def on_read(self, name: str, offset: int, data: bytearray) -> None:
        """Put what was there before in the place of what is there."""
        if not self.left or self.kind != STALE or not self.concern(name):
            return
        for where, at, old in reversed(self._old):
            if where == name and offset <= at and at + len(old) <= offset + len(data):
                self.left -= 1
                data[at - offset : at - offset + len(old)] = old
                return


@dataclass(slots=True)
class Replaced:
    """What stood where a witness was written over that of another entry: what a lost write would have left there."""

    records: deque[tuple[str, int, bytes]] = field(default_factory=lambda: deque(maxlen=OLD_MAX))

    def note(self, name: str, offset: int, content: bytearray, data: Bytes) -> None:
        """`data` is about to be put there."""
        for at in range(0, len(data), UNIT):
            old = bytes(content[offset + at : offset + at + UNIT])
            if old != NOTHING and old != data[at : at + UNIT]:
                self.records.append((name, offset + at, old))


@dataclass(slots=True)
class Device:
    """How fast the disk of a replica is, whether it goes on at all, and where it lies. Outlives the replica."""

    slow: dict[str, int] = field(default_factory=dict)  # operation -> so many times as long
    hung: dict[str, int] = field(default_factory=dict)  # operation -> until when it does not end
    lies: Lies | None = None
    replaced: Replaced | None = None  # of its witnesses; None: not remembered
    waited_ns: int = 0  # for reads since that was taken: who reads does nothing else meanwhile

    def heal(self) -> None:
        self.slow.clear()
        self.hung.clear()


@dataclass(slots=True)
class Submission:
    token: int
    phases: list[list[Write]]
    operations: list[str]  # what each phase is
    done_at: list[int]  # when each phase is durable
    applied: int = 0  # phases already durable


@dataclass(slots=True)
class Files:
    """What survives a crash: the durable bytes of every file by name."""

    durable: dict[str, bytearray] = field(default_factory=dict)
    unreadable: dict[str, set[int]] = field(default_factory=dict)  # name -> sector numbers
    versions: dict[str, int] = field(default_factory=dict)  # counts the changes of a file, and of what can be read
    used: dict[str, int] = field(default_factory=dict)  # bytes of a file up to the last that was ever written
    # By the first 16 bytes of an entry in a journal, its identity: every place where it was ever put. Where to
    # look, for checkers that search the journals; never what is there now.
    places: dict[bytes, list[tuple[str, int]]] = field(default_factory=dict)
    torn_places: set[tuple[bytes, str, int]] = field(default_factory=set)  # those of torn writes alone
    capacity: int | None = None  # bytes that all files may have together; None: any number
    on_write: Callable[[str, int, Bytes], None] | None = None  # told of every change that a write makes

    def copy(self) -> Files:
        """All of it as it is now: an image of the disk."""
        return replace(
            self,
            durable={name: bytearray(content) for name, content in self.durable.items()},
            unreadable={name: set(sectors) for name, sectors in self.unreadable.items()},
            versions=dict(self.versions),
            used=dict(self.used),
            places={identity: list(places) for identity, places in self.places.items()},
            torn_places=set(self.torn_places),
        )

    def changed(self, name: str) -> None:
        self.versions[name] = self.versions.get(name, 0) + 1

    def note(self, name: str, offset: int, data: Bytes, torn: bool = False) -> None:
        """`data` has just been put at `offset`."""
        self.versions[name] = self.versions.get(name, 0) + 1
        end = offset + len(data)
        if end > self.used.get(name, -1):
            self.used[name] = end
        if self.on_write is not None:
            self.on_write(name, offset, data)
        if name == RING and not torn:
            self._note_frame(offset, data)
        if not name.startswith("journal-"):
            return
        for at in range(-offset % SECTOR, len(data), SECTOR):
            if data[at + MAGIC_AT : at + MAGIC_AT + 4] != MAGIC:
                continue  # the middle of an entry
            identity, place = bytes(data[at : at + 16]), (name, offset + at)
            known = self.places.setdefault(identity, [])
            if place not in known:
                known.append(place)
                if torn:
                    self.torn_places.add((identity, *place))
            elif not torn:
                self.torn_places.discard((identity, *place))

    def note_whole(self, name: str, offset: int, data: Bytes) -> None:
        """A write of `data` at `offset` was torn. Entries of it that stand there all the same are whole."""
        content = self.durable[name]
        if name == RING:
            self._note_frame(offset, data)
        begin = [at for at in range(-offset % SECTOR, len(data), SECTOR) if data[at + MAGIC_AT :][:4] == MAGIC]
        for at, end in pairwise([*begin, len(data)]):
            if content[offset + at : offset + end] == data[at:end]:
                self.torn_places.discard((bytes(data[at : at + 16]), name, offset + at))

    def _note_frame(self, offset: int, data: Bytes) -> None:
        """Where the entries of a frame stand that was written to the ring, whole or not: in both copies."""
        length, at = len(data) // 2, FRAME_HEADER_BYTES
        while data[at + MAGIC_AT : at + MAGIC_AT + 4] == MAGIC:
            identity = bytes(data[at : at + 16])
            known = self.places.setdefault(identity, [])
            for name, place in ((RING, offset + at), (f"{RING} {offset + length}", offset + length + at)):
                if (name, place) not in known:
                    known.append((name, place))
                if self.content(name, place, len(data))[: length - at] != data[at:length]:
                    self.torn_places.add((identity, name, place))
            at += int.from_bytes(data[at + SIZE_AT : at + SIZE_AT + 4], "little")

    def content(self, name: str, offset: int, length: int) -> Bytes:
        """What is at a place where an entry was put. The second copy of a frame, of which the name says where it
        begins, has the bits of all but its first sector inverted."""
        name, _, begin = name.partition(" ")
        content = self.durable.get(name, b"")[offset : offset + length]
        if not begin:
            return content
        plain = max(int(begin) + SECTOR - offset, 0)
        return bytes(content[:plain]) + bytes(byte ^ 255 for byte in content[plain:])

    def ever_held(self, identity: bytes) -> bool:
        """Whether an entry was once put whole, whatever has become of it."""
        return any((identity, *place) not in self.torn_places for place in self.places.get(identity, ()))


class SimDisk:
    """One incarnation of a replica's disk. `files` outlives it."""

    mode = "simulated"

    def __init__(
        self,
        files: Files,
        clock: Callable[[], int],
        latency: Callable[[], int],
        wake: Callable[[int], None] = lambda at: None,
        device: Device | None = None,
    ) -> None:
        """clock: now in nanoseconds. latency: duration of the next phase, and of a read when it costs time. wake:
        called with the time at which a submission will have completed."""
        self.files = files
        self.device = device if device is not None else Device()
        self._clock = clock
        self._latency = latency
        self._wake = wake
        self._handles: list[str] = []
        self._released: set[int] = set()
        self._queue: deque[Submission] = deque()
        self._completed: list[int] = []
        self._free_at = 0
        self._failure: WriteFailedError | None = None
        self.fail_next_write: int | None = None  # an errno: the next phase fails with it
        self.writes = 0
        self.write_bytes = 0

    # Files

    def exists(self, name: str) -> bool:
        return name in self.files.durable

    def names(self) -> list[str]:
        return sorted(self.files.durable)

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        if name in self.files.durable:
            raise FileExistsError(errno.EEXIST, "exists", name)
        if self.files.capacity is not None:
            used = sum(map(len, self.files.durable.values()))
            if used + size > self.files.capacity:
                raise DiskFullError(
                    f"{name}: no space for {size} bytes, {used} of {self.files.capacity} are used", file=name, size=size
                )
        self.files.durable[name] = bytearray(size)
        self.files.changed(name)
        return self.open(name)

    def prepare(self, name: str, size: int, zeroed: bool = True) -> None:
        """Creating costs no time here."""

    def is_prepared(self, name: str) -> bool:
        return True

    def open(self, name: str) -> int:
        if name not in self.files.durable:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        self._handles.append(name)
        return len(self._handles) - 1

    def release(self, file: int) -> None:
        """Handles cost nothing here; but on a real disk its number is the next file's."""
        for submission in self._queue:
            for phase in submission.phases[submission.applied :]:
                for write in phase:
                    if write.file == file:
                        invariant(False, "a file that is being written stays open", file=self._handles[file])
        self._released.add(file)

    def size(self, file: int) -> int:
        return len(self.files.durable[self._handles[file]])

    def remove(self, name: str) -> None:
        del self.files.durable[name]
        self.files.unreadable.pop(name, None)
        self.files.used.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        self.files.durable[new] = self.files.durable.pop(old)

    def read(self, file: int, offset: int, length: int) -> memoryview:
        name = self._handles[file]
        if file in self._released:
            invariant(False, "a file that is read is open", file=name)
        files, device = self.files, self.device
        if device.slow or device.hung:
            self._wait_for_read()
        bad = files.unreadable.get(name) if files.unreadable else None
        if bad and not bad.isdisjoint(range(offset // SECTOR, (offset + length + SECTOR - 1) // SECTOR)):
            raise OSError(errno.EIO, "unreadable sector", name)
        if device.lies is not None:
            data = files.durable[name][offset : offset + length]
            device.lies.on_read(name, offset, data)
            return memoryview(bytes(data))
        return memoryview(memoryview(files.durable[name])[offset : offset + length].tobytes())

    def _wait_for_read(self) -> None:
        device = self.device
        if READ in device.hung:
            device.waited_ns = max(device.waited_ns, device.hung[READ] - self._clock())
        elif READ in device.slow:
            device.waited_ns += self._latency() * device.slow[READ]

    def aligned(self, length: int) -> memoryview:
        return memoryview(bytearray(length))

    # Writes

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None:
        if self._failure is not None:
            return
        kept, operations = [], []
        for phase in phases:
            writes, operation = [], WRITE
            for file, offset, buffer in phase:
                name, length = self._handles[file], len(buffer)
                if file in self._released:
                    invariant(False, "a file that is written is open", file=name)
                if offset % SECTOR or length % SECTOR:
                    raise ValueError(f"unaligned write: offset {offset}, length {length}")
                if name == SUPERBLOCK:
                    operation = PROMISE
                self.writes += 1
                self.write_bytes += length
                writes.append(_write((file, offset, bytes(buffer))))
            kept.append(writes)
            operations.append(operation)
        submission = Submission(token, kept, operations, [])
        self._queue.append(submission)
        self._time(submission, max(self._clock(), self._free_at))

    def _time(self, submission: Submission, start: int) -> None:
        """Say when what is left of a submission will be durable, if it begins at `start`."""
        slow = self.device.slow
        del submission.done_at[submission.applied :]
        for operation in submission.operations[submission.applied :]:
            start += self._latency() * slow.get(operation, 1)
            submission.done_at.append(start)
        self._free_at = start
        self._wake(start)

    def go_on(self) -> None:
        """The device has another speed than before, or does not hang any more: what waits begins now."""
        start = self._clock()
        for submission in self._queue:
            self._time(submission, start)
            start = self._free_at

    @property
    def submissions(self) -> int:
        """How many are not done."""
        return len(self._queue)

    def is_writing(self, name: str) -> bool:
        """Whether the submission made last goes to that file."""
        return bool(self._queue) and any(
            self._handles[write.file] == name for phase in self._queue[-1].phases for write in phase
        )

    def complete_until(self, now: int) -> None:
        """Make durable what is durable by `now`."""
        while self._queue and self._failure is None:
            submission = self._queue[0]
            done_at = submission.done_at
            while submission.applied < len(done_at) and done_at[submission.applied] <= now:
                if self.device.hung and submission.operations[submission.applied] in self.device.hung:
                    return
                if self.fail_next_write is not None:
                    self._fail(submission)
                    return
                self._complete_phase(submission)
            if submission.applied < len(done_at):
                return
            self._queue.popleft()
            self._completed.append(submission.token)

    def _complete_phase(self, submission: Submission) -> None:
        for file, offset, buffer in submission.phases[submission.applied]:
            self._put(file, offset, buffer)
        submission.applied += 1

    def _fail(self, submission: Submission) -> None:
        number = self.fail_next_write or errno.EIO
        write = submission.phases[submission.applied][0]
        name = self._handles[write.file]
        self._failure = WriteFailedError(
            f"write of {len(write.buffer)} bytes at offset {write.offset} of {name} failed: errno {number}",
            file=name,
            offset=write.offset,
            errno=number,
        )

    def completions(self) -> list[int]:
        if self._queue:
            self.complete_until(self._clock())
        if self._failure is not None:
            raise self._failure
        done, self._completed = self._completed, []
        return done

    @property
    def has_failed(self) -> bool:
        """Whether a write has failed, reported or not."""
        return self._failure is not None

    def flush(self) -> None:
        if self._queue:
            self.complete_until(self._queue[-1].done_at[-1])

    def close(self) -> None:
        self._queue.clear()

    def _put(self, file: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        name, files = self._handles[file], self.files
        content = files.durable[name]
        if offset > len(content):  # one that was cut short
            content.extend(bytes(offset - len(content)))
        if self.device.lies is not None:
            place = self.device.lies.on_write(name, offset, content, len(data), self.files.used.get(name, 0))
            if place != offset:
                self.files.note(name, offset, data)  # its replica was told that it is there
            if place is None:
                return
            offset = place
        elif self.device.replaced is not None and name.startswith("witness-"):
            self.device.replaced.note(name, offset, content, data)
        content[offset : offset + len(data)] = data
        files.note(name, offset, data)
        if files.unreadable:
            self._make_readable(name, offset, len(data))

    def _make_readable(self, name: str, offset: int, length: int) -> None:
        """A sector that is written can be read again."""
        bad = self.files.unreadable.get(name)
        if bad:
            bad.difference_update(range(offset // SECTOR, (offset + length) // SECTOR))

    # Faults

    def crash(self, rng: random.Random, policy: TearPolicy | None = None) -> None:
        """Lose power: the phase under way is torn, what comes after it never happened."""
        policy = policy or TearPolicy()
        self.complete_until(self._clock())
        if self._queue:
            submission = self._queue[0]
            for write in submission.phases[submission.applied]:
                self._tear(write, rng, policy)
        self._queue.clear()
        self._completed.clear()

    def _tear(self, write: Write, rng: random.Random, policy: TearPolicy) -> None:
        units = len(write.buffer) // UNIT
        weights = (policy.old, policy.new, policy.garbage)
        for unit in range(units):
            fate = rng.choices((0, 1, 2), weights)[0]
            if fate == 0:
                continue
            start = unit * UNIT
            data = write.buffer[start : start + UNIT] if fate == 1 else rng.randbytes(UNIT)
            name = self._handles[write.file]
            content = self.files.durable[name]
            content[write.offset + start : write.offset + start + UNIT] = data
            self.files.note(name, write.offset + start, data, torn=True)
        self.files.note_whole(self._handles[write.file], write.offset, write.buffer)


class ImageDisk(SimDisk):
    """A disk on which writes take no time, and which shares the contents of its files until they are written.

    What is in `files` is replaced, never changed in place: many images may have one content in common. The books that
    checkers of a run keep (`Files.note`) are not kept.
    """

    def __init__(self, files: Files) -> None:
        super().__init__(files, lambda: 0, lambda: 0)
        self._own: set[str] = set()  # files whose content nobody else has

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        file = super().create(name, size, zeroed)
        self._own.add(name)
        return file

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self._own.discard(new)

    def read(self, file: int, offset: int, length: int) -> memoryview:
        name = self._handles[file]
        if name in self._own or self.files.unreadable:
            return super().read(file, offset, length)
        invariant(file not in self._released, "a file that is read is open", file=name)
        return memoryview(self.files.durable[name]).toreadonly()[offset : offset + length]

    def _put(self, file: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        name = self._handles[file]
        if name not in self._own:
            self.files.durable[name] = bytearray(self.files.durable[name])
            self._own.add(name)
        content = self.files.durable[name]
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        self._make_readable(name, offset, len(data))

    @property
    def is_busy(self) -> bool:
        return bool(self._queue)


def corrupt(files: Files, name: str, offset: int, length: int, rng: random.Random) -> None:
    """Silently replace durable bytes by other ones."""
    content = files.durable[name]
    files.changed(name)
    for at in range(offset, min(offset + length, len(content))):
        content[at] ^= 1 + below(rng, 255)


def fill(files: Files) -> None:
    """No space for one more file, until `empty`."""
    files.capacity = sum(map(len, files.durable.values()))


def is_full(files: Files) -> bool:
    return files.capacity == sum(map(len, files.durable.values()))


def empty(files: Files) -> None:
    files.capacity = None


def make_unreadable(files: Files, name: str, sector: int) -> None:
    """Reads of that 4 KiB sector give EIO until it is written again."""
    files.unreadable.setdefault(name, set()).add(sector)
    files.changed(name)
