"""The simulated disk keeps what was durable, tears what was under way, and forgets the rest."""

from __future__ import annotations

import errno
from random import Random

import pytest

from kimberlite.errors import WriteFailedError
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.vopr.disk import (
    FOREVER,
    LIES,
    PROMISE,
    READ,
    UNIT,
    WRITE,
    Device,
    Files,
    Lies,
    SimDisk,
    TearPolicy,
    corrupt,
    make_unreadable,
)

LATENCY = 10


class Clock:
    def __init__(self) -> None:
        self.now = 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(clock: Clock) -> SimDisk:
    return SimDisk(Files(), lambda: clock.now, lambda: LATENCY)


def sectors(value: int, count: int = 1) -> bytes:
    return bytes([value]) * SECTOR * count


def test_a_write_is_durable_after_its_latency_and_not_before(disk: SimDisk, clock: Clock) -> None:
    file = disk.create("a", 2 * SECTOR)
    disk.submit(7, [[Write(file, SECTOR, sectors(1))]])
    clock.now = LATENCY - 1
    assert disk.completions() == []
    assert bytes(disk.read(file, 0, 2 * SECTOR)) == bytes(2 * SECTOR)
    clock.now = LATENCY
    assert disk.completions() == [7]
    assert bytes(disk.read(file, 0, 2 * SECTOR)) == bytes(SECTOR) + sectors(1)


def test_phases_and_submissions_follow_one_another(disk: SimDisk, clock: Clock) -> None:
    file = disk.create("a", 3 * SECTOR)
    disk.submit(1, [[Write(file, 0, sectors(1))], [Write(file, SECTOR, sectors(2))]])
    disk.submit(2, [[Write(file, 2 * SECTOR, sectors(3))]])
    seen = []
    for clock.now in (LATENCY, 2 * LATENCY, 3 * LATENCY):
        tokens = disk.completions()
        content = bytes(disk.read(file, 0, 3 * SECTOR))
        seen.append((tokens, [content[at] for at in (0, SECTOR, 2 * SECTOR)]))
    assert seen == [([], [1, 0, 0]), ([1], [1, 2, 0]), ([2], [1, 2, 3])]


def test_the_buffer_may_be_used_again_at_once(disk: SimDisk, clock: Clock) -> None:
    file = disk.create("a", SECTOR)
    buffer = disk.aligned(SECTOR)
    buffer[:] = sectors(1)
    disk.submit(1, [[Write(file, 0, buffer)]])
    buffer[:] = sectors(2)
    disk.flush()
    assert bytes(disk.read(file, 0, SECTOR)) == sectors(1)


@pytest.mark.parametrize("write", [Write(0, 1, bytes(SECTOR)), Write(0, 0, bytes(SECTOR - 1))])
def test_unaligned_writes_are_refused(disk: SimDisk, write: Write) -> None:
    disk.create("a", SECTOR)
    with pytest.raises(ValueError, match="unaligned"):
        disk.submit(1, [[write]])


@pytest.mark.parametrize("seed", range(20))
def test_a_crash_tears_the_phase_under_way_in_whole_units_and_drops_what_follows(seed: int) -> None:
    clock = Clock()
    files = Files()
    disk = SimDisk(files, lambda: clock.now, lambda: LATENCY)
    file = disk.create("a", 16 * SECTOR)
    disk.submit(
        1,
        [
            [Write(file, 0, sectors(1, 4))],
            [Write(file, 4 * SECTOR, sectors(2, 4))],
            [Write(file, 8 * SECTOR, sectors(3, 4))],
        ],
    )
    disk.submit(2, [[Write(file, 12 * SECTOR, sectors(4, 4))]])
    clock.now = LATENCY + 5  # in the second phase
    disk.crash(Random(seed), TearPolicy(old=0.5, new=0.5, garbage=0.0))
    content = bytes(files.durable["a"])
    assert content[: 4 * SECTOR] == sectors(1, 4)
    torn = content[4 * SECTOR : 8 * SECTOR]
    units = [torn[at : at + UNIT] for at in range(0, len(torn), UNIT)]
    assert all(unit in (bytes(UNIT), b"\2" * UNIT) for unit in units)
    assert 0 < sum(unit == b"\2" * UNIT for unit in units) < len(units)
    assert content[8 * SECTOR :] == bytes(8 * SECTOR)
    clock.now = 1000
    assert disk.completions() == []


@pytest.mark.parametrize(("policy", "expected"), [(TearPolicy(1, 0, 0), {0}), (TearPolicy(0, 1, 0), {1})])
def test_a_tear_policy_of_one_kind(disk: SimDisk, clock: Clock, policy: TearPolicy, expected: set[int]) -> None:
    file = disk.create("a", SECTOR)
    disk.submit(1, [[Write(file, 0, sectors(1))]])
    disk.crash(Random(0), policy)
    assert set(disk.files.durable["a"]) == expected


def test_garbage_is_neither_old_nor_new(disk: SimDisk) -> None:
    file = disk.create("a", SECTOR)
    disk.submit(1, [[Write(file, 0, sectors(1))]])
    disk.crash(Random(0), TearPolicy(0, 0, 1))
    assert len(set(disk.files.durable["a"])) > 2


def test_a_failed_write_is_final(disk: SimDisk, clock: Clock) -> None:
    file = disk.create("a", SECTOR)
    disk.fail_next_write = errno.EIO
    disk.submit(1, [[Write(file, 0, sectors(1))]])
    clock.now = LATENCY
    for _ in range(2):
        with pytest.raises(WriteFailedError) as caught:
            disk.completions()
        assert (caught.value.file, caught.value.offset, caught.value.errno) == ("a", 0, errno.EIO)
    disk.submit(2, [[Write(file, 0, sectors(2))]])
    clock.now = 1000
    with pytest.raises(WriteFailedError):
        disk.completions()
    assert bytes(disk.files.durable["a"]) == bytes(SECTOR)


def test_an_unreadable_sector_fails_until_it_is_written(disk: SimDisk) -> None:
    file = disk.create("a", 3 * SECTOR)
    make_unreadable(disk.files, "a", 1)
    disk.read(file, 0, SECTOR)
    for offset, length in ((SECTOR, SECTOR), (0, 3 * SECTOR), (2 * SECTOR - 1, 1)):
        with pytest.raises(OSError, match="unreadable") as caught:
            disk.read(file, offset, length)
        assert caught.value.errno == errno.EIO
    disk.submit(1, [[Write(file, SECTOR, sectors(1))]])
    disk.flush()
    assert bytes(disk.read(file, SECTOR, SECTOR)) == sectors(1)


def test_corruption_changes_every_byte_it_touches_and_no_other() -> None:
    files = Files({"a": bytearray(b"x" * 100)})
    corrupt(files, "a", 90, 50, Random(1))
    assert files.durable["a"][:90] == b"x" * 90
    assert all(byte != ord("x") for byte in files.durable["a"][90:])
    assert len(files.durable["a"]) == 100


def test_what_is_being_written_is_known(disk: SimDisk) -> None:
    a, b = disk.create("a", SECTOR), disk.create("b", SECTOR)
    assert not disk.is_writing("a")
    disk.submit(1, [[Write(a, 0, sectors(1))]])
    assert disk.is_writing("a") and not disk.is_writing("b")
    disk.submit(2, [[Write(b, 0, sectors(1))]])
    assert disk.is_writing("b")


def test_files_are_created_once_renamed_and_removed(disk: SimDisk) -> None:
    disk.create("a", SECTOR)
    with pytest.raises(FileExistsError):
        disk.create("a", SECTOR)
    disk.rename("a", "b")
    assert disk.names() == ["b"] and disk.exists("b")
    with pytest.raises(FileNotFoundError):
        disk.open("a")
    disk.remove("b")
    assert disk.names() == []


def test_a_device_that_hangs_completes_nothing_of_that_kind_until_it_goes_on(clock: Clock) -> None:
    files, device, woken = Files(), Device(), []
    disk = SimDisk(files, lambda: clock.now, lambda: LATENCY, woken.append, device)
    file, promise = disk.create("a", SECTOR), disk.create("superblock", SECTOR)
    disk.submit(1, [[Write(file, 0, sectors(1))]])
    disk.submit(2, [[Write(promise, 0, sectors(2))]])
    disk.submit(3, [[Write(file, 0, sectors(3))]])
    device.hung[PROMISE] = FOREVER
    clock.now = 1000
    assert disk.completions() == [1]
    assert bytes(files.durable["superblock"]) == bytes(SECTOR)
    device.heal()
    disk.go_on()
    assert disk.completions() == [], "what waited begins when the device goes on"
    assert woken[-1] == 1000 + 2 * LATENCY
    clock.now = woken[-1]
    assert disk.completions() == [2, 3]


def test_a_crash_of_a_device_that_hangs_tears_what_it_hangs_in(clock: Clock) -> None:
    files, device = Files(), Device(hung={WRITE: FOREVER})
    disk = SimDisk(files, lambda: clock.now, lambda: LATENCY, device=device)
    file = disk.create("a", 2 * SECTOR)
    disk.submit(1, [[Write(file, 0, sectors(1))], [Write(file, SECTOR, sectors(2))]])
    clock.now = 1000
    disk.crash(Random(1), TearPolicy(old=0, new=1, garbage=0))
    assert bytes(files.durable["a"]) == sectors(1) + bytes(SECTOR)


def test_a_slow_device_takes_so_many_times_as_long(clock: Clock) -> None:
    device = Device(slow={WRITE: 10})
    disk = SimDisk(Files(), lambda: clock.now, lambda: LATENCY, device=device)
    file, promise = disk.create("a", SECTOR), disk.create("superblock", SECTOR)
    disk.submit(1, [[Write(promise, 0, sectors(1))], [Write(file, 0, sectors(1))]])
    for clock.now, done in ((LATENCY, []), (11 * LATENCY - 1, []), (11 * LATENCY, [1])):
        assert disk.completions() == done


def test_reads_cost_time_on_a_device_that_is_slow_or_hangs(disk: SimDisk, clock: Clock) -> None:
    file = disk.create("a", SECTOR)
    disk.read(file, 0, SECTOR)
    assert disk.device.waited_ns == 0
    disk.device.slow[READ] = 3
    disk.read(file, 0, SECTOR)
    disk.read(file, 0, SECTOR)
    assert disk.device.waited_ns == 6 * LATENCY
    disk.device.hung[READ] = clock.now + 1000
    disk.read(file, 0, SECTOR)
    assert disk.device.waited_ns == 1000


@pytest.mark.parametrize("kind", LIES)
def test_a_disk_that_lies_does_so_as_often_as_told_and_about_one_kind_of_file(kind: str, clock: Clock) -> None:
    lies = Lies("journal-")
    disk = SimDisk(Files(), lambda: clock.now, lambda: 1, device=Device(lies=lies))
    files = [disk.create(name, 8 * SECTOR) for name in ("journal-1", "witness-1")]
    for file in files:
        disk.submit(1, [[Write(file, 0, sectors(1, 8))]])
        disk.submit(2, [[Write(file, 0, sectors(2))]])
    disk.flush()
    lies.kind, lies.left = kind, 1
    for file in files:
        disk.submit(3, [[Write(file, SECTOR, sectors(3))]])
    disk.flush()
    assert disk.completions() == [1, 2, 1, 2, 3, 3]
    journal, witness = (bytes(disk.read(file, 0, 8 * SECTOR))[::SECTOR] for file in files)
    true = b"\2\3" + b"\1" * 6
    assert witness == true
    assert journal != true or kind == "misdirected"
    assert lies.left == 0
    if kind == "stale":
        assert bytes(disk.read(files[0], 0, 8 * SECTOR))[::SECTOR] == true
    elif kind == "lost":
        assert journal == b"\2" + b"\1" * 7
    else:
        assert journal.count(b"\3") == 1
