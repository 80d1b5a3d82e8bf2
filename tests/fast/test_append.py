"""The write engine: order of phases and submissions, group commit, both ways to carry them out, the first error.

What the kernel was asked to do, and in which order, is read from strace; a delay injected there stops the disk
thread in its first write, so that what is submitted meanwhile forms a group.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import re
import resource
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimberlite._fast.append import INLINE_ALWAYS, AlignedBuffer, Writer
from kimberlite.errors import UsageError, WriteFailedError

SECTOR = 4096
WAYS = {"inline": INLINE_ALWAYS, "thread": 0}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> int:
    return WAYS[request.param]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = make(tmp_path, "file", 64)
    yield fd
    os.close(fd)


def make(path: Path, name: str, sectors: int) -> int:
    fd = os.open(path / name, os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(fd, sectors * SECTOR)
    return fd


def filled(byte: int, sectors: int = 1) -> memoryview:
    buffer = memoryview(AlignedBuffer(sectors * SECTOR))
    buffer[:] = bytes([byte]) * (sectors * SECTOR)
    return buffer


def readable(writer: Writer) -> bool:
    return bool(select.select([writer.fileno()], [], [], 0)[0])


# Aligned memory


@pytest.mark.parametrize("sectors", [1, 2, 3, 16, 257])
def test_buffers_are_aligned_zeroed_and_writable(sectors: int) -> None:
    for _ in range(3):  # from the allocator, then from the pool
        view = memoryview(AlignedBuffer(sectors * SECTOR))
        assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % SECTOR == 0
        assert view == bytes(sectors * SECTOR)
        assert (len(view), view.readonly) == (sectors * SECTOR, False)
        view[:] = b"\xff" * len(view)
        del view


def test_buffers_that_live_do_not_share_memory() -> None:
    buffers = [memoryview(AlignedBuffer(SECTOR)) for _ in range(50)]
    for number, buffer in enumerate(buffers):
        buffer[:] = bytes([number]) * SECTOR
    assert [buffer[0] for buffer in buffers] == list(range(50))
    assert [buffer[-1] for buffer in buffers] == list(range(50))


def test_a_view_keeps_its_memory() -> None:
    view = memoryview(AlignedBuffer(SECTOR))[100:200]
    view[:] = b"a" * 100
    for _ in range(100):
        memoryview(AlignedBuffer(SECTOR))[:] = b"b" * SECTOR
    assert view == b"a" * 100


@pytest.mark.parametrize("length", [0, -1, -SECTOR, 1, SECTOR - 1, SECTOR + 512])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(UsageError, match=str(length)):
        AlignedBuffer(length)


def test_too_much_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        AlignedBuffer(1 << 62)


# Order


def test_phases_follow_one_another(file: int, way: int) -> None:
    writer = Writer(inline_below_ns=way)
    phases = [[(file, 0, filled(phase)), (file, phase * SECTOR, filled(phase))] for phase in range(1, 9)]
    writer.submit(1, phases)
    writer.flush()
    assert writer.completions() == [1]
    assert os.pread(file, SECTOR, 0) == bytes([8]) * SECTOR
    assert [os.pread(file, 1, phase * SECTOR)[0] for phase in range(1, 9)] == list(range(1, 9))


WRITES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7), st.integers(1, 3), st.integers(1, 255)), max_size=4)
SUBMISSIONS = st.lists(st.lists(WRITES, max_size=4), min_size=1, max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    submissions=SUBMISSIONS,
    below=st.sampled_from([0, 1, 20_000, INLINE_ALWAYS]),
    sync_each=st.booleans(),
    collect_each=st.booleans(),
)
def test_whatever_overlaps_the_last_write_stands(
    tmp_path: Path, submissions: list[Any], below: int, sync_each: bool, collect_each: bool
) -> None:
    """Against a model that writes one after another; completions in the order of submission."""
    files = [make(tmp_path, f"f{number}", 10) for number in range(2)]
    try:
        for fd in files:
            os.pwrite(fd, bytes(10 * SECTOR), 0)
        model = [bytearray(10 * SECTOR) for _ in files]
        writer = Writer(sync_each=sync_each, inline_below_ns=below)
        done: list[int] = []
        size = 0
        for token, phases in enumerate(submissions):
            writer.submit(
                token,
                [
                    [(files[fd], sector * SECTOR, filled(byte, count)) for fd, sector, count, byte in phase]
                    for phase in phases
                ],
            )
            for phase in phases:
                for fd, sector, count, byte in phase:
                    model[fd][sector * SECTOR : (sector + count) * SECTOR] = bytes([byte]) * (count * SECTOR)
                    size += count * SECTOR
            if collect_each:
                done += writer.completions()
        writer.flush()
        done += writer.completions()
        assert done == list(range(len(submissions)))
        assert [os.pread(fd, 10 * SECTOR, 0) for fd in files] == model
        stats = writer.stats()
        assert (stats["submissions"], stats["bytes"], stats["queued"]) == (len(submissions), size, 0)
        assert len(writer.take_latencies()) == len(submissions)
        assert writer.take_latencies() == []
    finally:
        for fd in files:
            os.close(fd)


def test_more_writes_than_one_system_call_takes(file: int, tmp_path: Path, way: int) -> None:
    fd = make(tmp_path, "large", 700)
    writer = Writer(inline_below_ns=way)
    writer.submit(1, [[(fd, at * SECTOR, filled(at % 251)) for at in range(700)]])
    writer.flush()
    assert writer.completions() == [1]
    assert writer.stats()["writes"] == 3  # 256 buffers a call
    assert [os.pread(fd, 1, at * SECTOR)[0] for at in range(700)] == [at % 251 for at in range(700)]
    os.close(fd)


def test_more_files_than_are_remembered_for_a_sync(tmp_path: Path, way: int) -> None:
    files = [make(tmp_path, f"f{number}", 2) for number in range(40)]
    writer = Writer(sync_each=True, inline_below_ns=way)
    writer.submit(1, [[(fd, 0, filled(number)) for number, fd in enumerate(files)]])
    writer.flush()
    assert writer.completions() == [1]
    assert [os.pread(fd, 1, 0)[0] for fd in files] == list(range(40))
    for fd in files:
        os.close(fd)


# Inline or on the thread


def test_a_slow_write_moves_the_work_to_the_thread_and_quick_ones_move_it_back(file: int) -> None:
    always = Writer(inline_below_ns=INLINE_ALWAYS)
    never = Writer()
    writer = Writer(inline_below_ns=5_000)
    # 4 MiB in sixteen system calls: some machines copy 256 KiB to a file in less than 5 microseconds.
    slow = [(file, 0, filled(1, 64))] * 16
    for engine in (always, never, writer):
        engine.submit(1, [slow])
        engine.flush()
    assert always.stats()["inline_now"]
    assert not never.stats()["inline_now"]
    for token in range(2, 50):
        writer.submit(token, [slow])
        writer.flush()
    assert not writer.stats()["inline_now"]
    assert writer.stats()["switches"] == 1
    # Nothing to write is quick: the average falls, and the caller's thread takes over again.
    for token in range(50, 100_000):
        writer.submit(token, [[]])
        writer.flush()
        if writer.stats()["inline_now"]:
            break
    assert writer.stats()["switches"] == 2
    assert writer.completions() == list(range(1, token + 1))


def test_the_descriptor_is_readable_when_the_thread_has_completed_something(file: int) -> None:
    writer = Writer()
    assert not readable(writer)
    for token in range(3):
        writer.submit(token, [[(file, 0, filled(1))]])
        writer.flush()
        select.select([writer.fileno()], [], [])
        assert writer.completions() == [token]
        assert not readable(writer)


def test_what_is_inline_is_complete_when_submit_returns(file: int) -> None:
    writer = Writer(inline_below_ns=INLINE_ALWAYS)
    writer.submit(5, [[(file, 0, filled(9))], [(file, SECTOR, filled(9))]])
    assert os.pread(file, 2 * SECTOR, 0) == b"\x09" * (2 * SECTOR)
    assert writer.completions() == [5]
    assert writer.completions() == []


def test_ending_a_writer_waits_for_what_is_under_way(file: int) -> None:
    for round in range(1, 20):
        writer = Writer()
        for token in range(20):
            writer.submit(token, [[(file, token * SECTOR, filled(round))]])
        del writer
        assert os.pread(file, 20 * SECTOR, 0) == bytes([round]) * (20 * SECTOR)


# Memory


def test_buffers_are_held_until_their_completion_is_collected(file: int, way: int) -> None:
    memory = mmap.mmap(-1, 2 * SECTOR)  # page-aligned; refuses to close while it is in use
    writer = Writer(inline_below_ns=way)
    writer.submit(1, [[(file, 0, memory)]])
    with pytest.raises(BufferError):
        memory.close()
    writer.flush()
    with pytest.raises(BufferError):
        memory.close()
    assert writer.completions() == [1]
    memory.close()


def test_what_is_refused_is_let_go(file: int) -> None:
    memory = mmap.mmap(-1, SECTOR)
    writer = Writer()
    with pytest.raises(UsageError):
        writer.submit(1, [[(file, 0, memory), (file, 1, memory)]])
    memory.close()
    assert writer.completions() == []
    writer.submit(1, [[(file, 0, filled(1))]])  # the token is free


def test_the_garbage_collector_can_not_take_buffers_from_the_thread() -> None:
    """In a cycle of dead objects its references would be cleared before the engine is stopped."""
    assert not gc.is_tracked(Writer())


def test_writers_are_freed(file: int) -> None:
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for way in WAYS.values():
        for _ in range(10):
            writer = Writer(inline_below_ns=way)
            writer.submit(1, [[(file, 0, filled(1))]])
            del writer
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before


LEAK = """
import os, sys
from kimberlite._fast.append import AlignedBuffer, Writer
from kimberlite.errors import UsageError
fd = os.open(sys.argv[1], os.O_RDWR)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def pages(count):
    return memoryview(AlignedBuffer(4096 * count))
def work(writer, count):
    for token in range(count):
        writer.submit(token, [[(fd, 0, pages(1))], [(fd, 4096, pages(2))]])
        try:
            writer.submit(token + count, [[(fd, 7, pages(1))]])
        except UsageError:
            pass
        if token % 16 == 0:
            writer.flush()
            writer.completions()
            writer.take_latencies()
    writer.flush()
    writer.completions()
    writer.take_latencies()
for below in (0, 2**64 - 1):
    writer = Writer(inline_below_ns=below)
    work(writer, 2000)
    before = resident()
    work(writer, 10000)
    assert resident() - before < 2 << 20, resident() - before
"""


def test_no_memory_is_lost(tmp_path: Path) -> None:
    os.close(make(tmp_path, "file", 8))
    subprocess.run([sys.executable, "-c", LEAK, str(tmp_path / "file")], check=True, timeout=300)


# Refusals


def test_a_token_in_use_is_refused(file: int) -> None:
    writer = Writer(inline_below_ns=INLINE_ALWAYS)
    writer.submit(1, [[(file, 0, filled(1))]])
    with pytest.raises(UsageError, match="token 1"):
        writer.submit(1, [[(file, 0, filled(2))]])
    assert writer.completions() == [1]
    assert os.pread(file, 1, 0) == b"\x01"


@pytest.mark.parametrize(
    "phases",
    [
        [[(0, 0)]],
        [[(0, -SECTOR, b"")]],
        [[(0, 1 << 64, b"")]],
        [[("0", 0, b"")]],
        [[(0, 0, "text")]],
        [[(0, 0, None)]],
        [None],
        None,
        [[None]],
    ],
)
def test_nonsense_is_refused_and_changes_nothing(file: int, phases: Any) -> None:
    writer = Writer()
    with pytest.raises((TypeError, ValueError, OverflowError)):
        writer.submit(1, phases)
    writer.submit(1, [[(file, 0, filled(1))]])
    writer.flush()
    assert writer.completions() == [1]


# The first error


def test_the_first_error_is_final(file: int, way: int) -> None:
    writer = Writer(inline_below_ns=way)
    writer.submit(1, [[(file, 0, filled(1))]])
    writer.flush()
    closed = os.dup(file)
    os.close(closed)
    writer.submit(2, [[(file, SECTOR, filled(2))], [(closed, 7 * SECTOR, filled(2))], [(file, 2 * SECTOR, filled(2))]])
    writer.flush()
    writer.submit(3, [[(file, 3 * SECTOR, filled(3))]])
    writer.flush()
    assert writer.completions() == [1]
    assert readable(writer), "the failure itself wakes the loop: it is not found by chance"
    for _ in range(3):
        with pytest.raises(WriteFailedError) as raised:
            writer.completions()
        details = raised.value.details
        assert (details["errno"], details["fd"], details["offset"]) == (errno.EBADF, closed, 7 * SECTOR)
        assert readable(writer)
    assert os.pread(file, 4 * SECTOR, 0) == b"\x01" * SECTOR + b"\x02" * SECTOR + bytes(2 * SECTOR)


def test_a_write_cut_short_is_continued_and_its_error_reported(file: int, way: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = Writer(inline_below_ns=way)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * SECTOR, hard))
    try:
        writer.submit(1, [[(file, 0, filled(1)), (file, SECTOR, filled(2, 4))]])
        writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(WriteFailedError) as raised:
        writer.completions()
    assert raised.value.details["errno"] == errno.EFBIG
    assert writer.stats()["writes"] == 2
    assert os.pread(file, 6 * SECTOR, 0) == b"\x01" * SECTOR + b"\x02" * (2 * SECTOR) + bytes(3 * SECTOR)


# What the kernel sees

PROGRAM = """
import os, sys
from kimberlite._fast.append import AlignedBuffer, Writer
flags = os.O_RDWR | (0 if {sync_each} else os.O_DSYNC)
a, b = os.open("a", flags), os.open("b", flags)
writer = Writer(sync_each={sync_each}, inline_below_ns={below})
def buffer(sectors=1):
    return memoryview(AlignedBuffer(4096 * sectors))
def collect():
    for token in writer.completions():
        os.write(1, b"ack %d;" % token)
{body}
writer.flush()
collect()
"""

traced = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def trace(tmp_path: Path, body: str, *, sync_each: bool = False, below: int = 0, inject: str = "") -> list[str]:
    """Calls in the order in which they returned: `a+0:4096` for a write, `sync a`, `event`, `ack 1`."""
    for name in ("a", "b"):
        os.close(make(tmp_path, name, 64))
    out = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-qq", "-o", str(out), "-e", "trace=pwritev,fdatasync,write"]
    if inject:
        command += ["-e", f"inject={inject}"]
    program = PROGRAM.format(sync_each=sync_each, below=below, body=body)
    command += [sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    result: list[str] = []
    begun: dict[str, str] = {}
    for line in out.read_text().splitlines():
        thread, call = line.split(None, 1)
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", call)
        if resumed:
            call = begun.pop(thread) + resumed[1]
        name = re.match(r"\w+\(\d+<[^>]*?(\w+)\]?>", call)
        if name is None:
            continue
        if call.startswith("pwritev"):
            offset, size = re.search(r"\], \d+, (\d+)\) += (-?\d+)", call).groups()  # type: ignore[union-attr]
            result.append(f"{name[1]}+{int(offset) // SECTOR}:{int(size) // SECTOR}")
        elif call.startswith("fdatasync"):
            result.append(f"sync {name[1]}")
        elif "eventfd" in call:
            result.append("event")
        else:
            result += [f"ack {token}" for token in re.findall(r"ack (\d+);", call)]
    return result


@traced
@pytest.mark.parametrize("below", WAYS.values(), ids=list(WAYS))
def test_nothing_is_acknowledged_before_it_is_durable(tmp_path: Path, below: int) -> None:
    """Files with O_DSYNC: the write is the sync. Each completion comes after both phases."""
    body = """
for token in range(3):
    writer.submit(token, [[(a, 4096 * token, buffer())], [(b, 0, buffer())]])
    writer.flush()
    collect()
"""
    calls = [call for call in trace(tmp_path, body, below=below) if call != "event"]
    assert calls == [call for token in range(3) for call in (f"a+{token}:1", "b+0:1", f"ack {token}")]


@traced
@pytest.mark.parametrize("below", WAYS.values(), ids=list(WAYS))
def test_without_o_dsync_every_phase_ends_with_a_sync_of_each_file_it_touched(tmp_path: Path, below: int) -> None:
    body = """
writer.submit(1, [[(a, 0, buffer()), (b, 0, buffer()), (a, 8192, buffer())], [], [(b, 4096, buffer())]])
writer.flush()
collect()
"""
    calls = [call for call in trace(tmp_path, body, below=below, sync_each=True) if call != "event"]
    assert calls == ["a+0:1", "b+0:1", "a+2:1", "sync a", "sync b", "b+1:1", "sync b", "ack 1"]


@traced
def test_the_thread_says_so_after_every_group(tmp_path: Path) -> None:
    body = "writer.submit(1, [[(a, 0, buffer())]])"
    assert trace(tmp_path, body) == ["a+0:1", "event", "ack 1"]


@traced
def test_what_waits_is_written_together_phase_by_phase(tmp_path: Path) -> None:
    body = """
writer.submit(0, [[(a, 0, buffer())], [(b, 0, buffer())]])
for token in range(1, 6):
    writer.submit(token, [[(a, 4096 * token, buffer())], [(b, 0, buffer())]])
"""
    calls = trace(tmp_path, body, inject="pwritev:delay_enter=1000000:when=1")
    # The thread took the first alone or with others; all the rest waited and went in one write.
    entries = [call for call in calls if call.startswith("a+")]
    sizes = [int(call.rpartition(":")[2]) for call in entries]
    assert sum(sizes) == 6
    assert len(sizes) <= 2
    for token in range(6):
        entry = calls.index(entries[0 if token < sizes[0] else 1])
        witness = [at for at, call in enumerate(calls) if call == "b+0:1"][token]
        assert entry < witness < calls.index(f"ack {token}")
    assert [call for call in calls if call.startswith("ack")] == [f"ack {token}" for token in range(6)]


@traced
def test_copies_of_the_superblock_are_never_written_two_updates_at_a_time(tmp_path: Path) -> None:
    """Two updates that wait follow one another: mixed, a crash could leave one new copy beside three old ones
    of the update before last, and no two copies that continue each other."""
    body = """
writer.submit(0, [[(b, 0, buffer())]])
for update in range(1, 3):
    writer.submit(update, [[(a, 4096 * 4 * copy, buffer())] for copy in range(4)])
"""
    calls = trace(tmp_path, body, inject="pwritev:delay_enter=1000000:when=1")
    copies = [call for call in calls if call.startswith("a+")]
    assert copies == [f"a+{4 * copy}:1" for copy in range(4)] * 2


@traced
def test_an_interrupted_write_is_made_again_and_no_other_error_is(tmp_path: Path) -> None:
    body = "writer.submit(1, [[(a, 0, buffer())]])"
    assert "ack 1" in trace(tmp_path, body, inject="pwritev:error=EINTR:when=1")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        trace(tmp_path, body, inject="pwritev:error=EIO:when=1")
    assert b"WriteFailedError" in raised.value.stderr
