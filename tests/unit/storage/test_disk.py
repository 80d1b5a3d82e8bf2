"""The production disk on real files: lock, modes, durable creation, direct and buffered reads and writes, failures.

Errors of the kernel are real ones: a file size limit (EFBIG), a closed descriptor (EBADF), or injected by strace
(EIO) in a process of their own.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kimberlite import _sys
from kimberlite._fast.framing import make_header
from kimberlite.config import CONFIG_NAME, from_mapping
from kimberlite.errors import (
    DataExistsError,
    DataLockedError,
    DataMissingError,
    DiskFullError,
    StorageError,
    UnsafeFileSystemError,
    UsageError,
    WriteFailedError,
)
from kimberlite.node.format import format_replica
from kimberlite.storage import disk as storage_disk
from kimberlite.storage.disk import LOCK_NAME, MODES, FileDisk
from kimberlite.storage.handles import Handles
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.journal import journal_name
from kimberlite.storage.store import Store, format_store

SEGMENT_BYTES = 8 << 20
ALWAYS_INLINE_US, NEVER_INLINE_US = 10**9, 0


def file_disk(path: Path, **options: Any) -> FileDisk:
    options.setdefault("unsafe", True)
    return FileDisk(path, **options)


@pytest.fixture(params=["direct", "buffered"])
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Both modes; where the file system of the tests lacks O_DIRECT, what `auto` makes of the first."""
    if request.param == "buffered":
        return "buffered"
    disk = file_disk(tmp_path)
    disk.close()
    return "direct" if disk.mode == "direct" else "auto"


@pytest.fixture
def disk(tmp_path: Path, mode: str) -> Iterator[FileDisk]:
    disk = file_disk(tmp_path, mode=mode)
    yield disk
    disk.close()


def put(disk: FileDisk, file: int, offset: int, data: bytes) -> None:
    buffer = disk.aligned(len(data))
    buffer[:] = data
    disk.submit(1, [[Write(file, offset, buffer)]])
    disk.flush()
    assert disk.completions() == [1]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes and allocations beyond `size` fail with EFBIG (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def descriptors() -> int:
    gc.collect()  # what earlier tests dropped is not closed in the middle of this one
    return len(os.listdir("/proc/self/fd"))


# Opening


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="nowhere") as raised:
        file_disk(tmp_path / "nowhere")
    assert raised.value.details["path"] == str(tmp_path / "nowhere")


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(StorageError, match="not a directory"):
        file_disk(path)
    assert path.read_bytes() == b"x"


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=", ".join(MODES)):
        file_disk(tmp_path, mode="fast")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{}, {"mode": "buffered"}])
def test_r18_a_second_process_is_refused_and_told_who_holds_the_data(tmp_path: Path, option: dict[str, str]) -> None:
    first = file_disk(tmp_path)
    open_files = descriptors()
    with pytest.raises(DataLockedError, match=str(os.getpid())) as raised:
        file_disk(tmp_path, **option)
    assert raised.value.details["pid"] == os.getpid()
    assert descriptors() == open_files
    first.close()
    file_disk(tmp_path).close()


def test_r18_the_lock_holds_against_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from kimberlite.storage.disk import FileDisk\n"
        "try: FileDisk(sys.argv[1], unsafe=True)\n"
        "except Exception as error: sys.exit(error.exit_code)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    disk = file_disk(tmp_path)
    assert subprocess.run(command, timeout=60).returncode == DataLockedError.exit_code
    disk.close()
    assert subprocess.run(command, timeout=60).returncode == 0


def test_a_reader_needs_no_lock_and_changes_nothing(tmp_path: Path) -> None:
    owner = file_disk(tmp_path)
    owner.release(owner.create("a", SECTOR))
    (tmp_path / "b.new").write_bytes(b"in the making")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    reader = file_disk(tmp_path, readonly=True, unsafe=False)
    file = reader.open("a")
    assert reader.read(file, 0, SECTOR) == bytes(SECTOR)
    buffer = reader.aligned(SECTOR)
    buffer[:] = b"x" * SECTOR
    reader.submit(1, [[Write(file, 0, buffer)]])
    reader.flush()
    with pytest.raises(WriteFailedError):
        reader.completions()
    reader.close()
    owner.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_opening_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    before = descriptors()
    for _ in range(3):
        disk = file_disk(tmp_path)
        disk.create(f"file-{len(disk.names())}", SECTOR)
        disk.close()
        disk.close()  # twice does no harm
        del disk
    assert descriptors() == before


def test_r6_a_volatile_file_system_needs_an_explicit_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sys, "why_volatile", lambda fd: "tmpfs: its files live in memory")
    before = descriptors()
    with pytest.raises(UnsafeFileSystemError, match=r"--set storage\.unsafe=true"):
        FileDisk(tmp_path)
    assert not list(tmp_path.iterdir())
    assert descriptors() == before
    FileDisk(tmp_path, unsafe=True).close()


@pytest.mark.parametrize("alignment", [(0, 0), (512, 2 * SECTOR)], ids=["none", "coarser than a sector"])
def test_r6_buffered_is_chosen_only_where_direct_is_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alignment: tuple[int, int]
) -> None:
    monkeypatch.setattr(_sys, "direct_alignment", lambda fd: _sys.DirectAlignment(*alignment))
    with pytest.raises(UnsafeFileSystemError, match="O_DIRECT"):
        file_disk(tmp_path, mode="direct")
    disk = file_disk(tmp_path, mode="auto")
    assert disk.mode == "buffered"
    disk.close()


# Files


def test_r6_a_directory_in_the_way_says_nothing_of_direct_io(tmp_path: Path) -> None:
    """The root of an ext4 file system has one: lost+found."""
    chosen = file_disk(tmp_path)
    chosen.close()
    (tmp_path / LOCK_NAME).unlink()
    (tmp_path / "a-directory").mkdir()
    disk = file_disk(tmp_path)
    disk.close()
    assert disk.mode == chosen.mode


def test_r4_files_belong_to_their_owner_alone(disk: FileDisk, tmp_path: Path) -> None:
    disk.create("a", SECTOR)
    old = os.umask(0)
    try:
        disk.create("b", SECTOR)
    finally:
        os.umask(old)
    for name in ("a", "b", LOCK_NAME):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_r4_symbolic_links_are_not_followed(tmp_path: Path, disk: FileDisk) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"t" * SECTOR)
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "made.new").symlink_to(target)
    with pytest.raises(StorageError, match="symbolic links") as raised:
        disk.open("link")
    assert raised.value.errno == errno.ELOOP
    disk.create("made", SECTOR)
    assert target.read_bytes() == b"t" * SECTOR
    assert not (tmp_path / "made").is_symlink()


def test_the_lock_is_no_link_either(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / LOCK_NAME).symlink_to(target)
    with pytest.raises(StorageError) as raised:
        file_disk(tmp_path)
    assert raised.value.errno == errno.ELOOP
    assert target.read_bytes() == b"precious"


def test_r4_a_new_file_is_zero_allocated_and_synced_with_its_directory(
    disk: FileDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(fd: int) -> None:
        steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def spy_rename(old: str, new: str, **options: Any) -> None:
        steps.append(f"rename {old} {new}")
        rename(old, new, **options)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    size = 3 * SECTOR + (1 << 20)
    file = disk.create("journal", size)
    rename_at = steps.index("rename journal.new journal")
    assert "fsync journal.new" in steps[:rename_at]
    assert steps[rename_at + 1] == f"fsync {tmp_path.name}"
    info = (tmp_path / "journal").stat()
    assert (info.st_size, disk.size(file)) == (size, size)
    assert info.st_blocks * 512 >= size, "no hole: later writes change no metadata"
    assert (tmp_path / "journal").read_bytes() == bytes(size)


def test_r4_creating_over_a_file_is_refused(disk: FileDisk, tmp_path: Path) -> None:
    file = disk.create("a", SECTOR)
    put(disk, file, 0, b"precious".ljust(SECTOR))
    with pytest.raises(FileExistsError):
        disk.create("a", SECTOR)
    assert bytes(disk.read(file, 0, 8)) == b"precious"


def test_files_whose_making_was_interrupted_are_gone_at_the_next_start(tmp_path: Path) -> None:
    for name in ("journal-00000001.new", "superblock.new.new"):
        (tmp_path / name).write_bytes(b"half")
    disk = file_disk(tmp_path)
    assert disk.names() == [LOCK_NAME]
    disk.close()


def test_a_file_that_can_not_be_made_leaves_nothing_behind(disk: FileDisk) -> None:
    before = descriptors()
    with file_size_limit(2 * SECTOR), pytest.raises(WriteFailedError, match="could not be reserved") as raised:
        disk.create("large", 4 * SECTOR)
    assert raised.value.details["errno"] == errno.EFBIG
    assert raised.value.details["file"] == "large"
    assert disk.names() == [LOCK_NAME]
    assert descriptors() == before
    disk.create("large", 4 * SECTOR)


def test_a_file_made_ahead_is_used(disk: FileDisk) -> None:
    disk.prepare("a", 2 * SECTOR)
    disk.prepare("a", 2 * SECTOR)
    assert "a" not in disk.names(), "it exists only when it is created"
    file = disk.create("a", 2 * SECTOR)
    assert disk.read(file, 0, 2 * SECTOR) == bytes(2 * SECTOR)
    disk.prepare("a", 2 * SECTOR)  # there already: nothing to do
    assert disk.names() == ["a", LOCK_NAME]


def test_a_file_that_is_needed_before_it_is_zeroed_is_taken_as_it_is(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_disk, "ZERO_PAUSE", 10**7)  # zeroing would take days
    size = 2 * storage_disk.ZERO_CHUNK + SECTOR
    disk.prepare("a", size)
    file = disk.create("a", size)
    assert os.fstat(file).st_blocks * 512 >= size, "it is reserved"
    put(disk, file, size - SECTOR, b"x" * SECTOR)
    assert disk.read(file, 0, size) == bytes(size - SECTOR) + b"x" * SECTOR


def test_a_file_made_ahead_in_another_size_is_made_again(disk: FileDisk) -> None:
    for round in range(10):
        disk.prepare(f"a{round}", 64 * SECTOR)
        assert disk.size(disk.create(f"a{round}", 2 * SECTOR)) == 2 * SECTOR


def test_what_goes_wrong_ahead_is_reported_when_the_file_is_needed_and_never_at_the_end(tmp_path: Path) -> None:
    disk = file_disk(tmp_path)
    with file_size_limit(2 * SECTOR):
        disk.prepare("needed", 4 * SECTOR)
        disk.prepare("not needed", 4 * SECTOR)
        with pytest.raises(WriteFailedError):
            disk.create("needed", 4 * SECTOR)
        disk.close()
    file_disk(tmp_path).close()  # the lock was let go


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("ahead", [True, False])
def test_no_space_for_a_file_is_no_failure_and_leaves_nothing_behind(
    disk: FileDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, ahead: bool
) -> None:
    def refuse(fd: int, size: int) -> bool:
        raise OSError(number, os.strerror(number))

    before = descriptors()
    monkeypatch.setattr(disk, "free_bytes", lambda: 1 << 40)
    with monkeypatch.context() as patched:
        patched.setattr(_sys, "allocate", refuse)
        if ahead:
            disk.prepare("a", 4 * SECTOR)
            while not disk.is_prepared("a"):
                pass
        with pytest.raises(DiskFullError, match="no space for a file of 16384 bytes") as raised:
            disk.create("a", 4 * SECTOR)
    details = raised.value.details
    assert (details["file"], details["size"], details["errno"]) == ("a", 4 * SECTOR, number)
    assert details["free"] == 1 << 40
    assert disk.names() == [LOCK_NAME]
    assert descriptors() == before
    assert disk.size(disk.create("a", 4 * SECTOR)) == 4 * SECTOR, "there is space again"


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As when everything that a process may have open is open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    taken = []
    highest = max(map(int, os.listdir("/proc/self/fd")))  # one above the limit could not be given back and taken again
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest + 64, soft), hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("ahead", [True, False])
def test_no_descriptor_for_a_file_is_as_no_space(disk: FileDisk, ahead: bool) -> None:
    with no_descriptors():
        if ahead:
            disk.prepare("a", 4 * SECTOR)
            while not disk.is_prepared("a"):
                pass
        with pytest.raises(DiskFullError, match=r"16384 bytes could not be made: Too many open files.* tried again"):
            disk.create("a", 4 * SECTOR)
        assert not disk.exists("a"), "asking takes none"
    assert disk.names() == [LOCK_NAME]
    assert disk.size(disk.create("a", 4 * SECTOR)) == 4 * SECTOR


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM])
def test_what_the_system_has_none_of_for_a_while_is_as_no_space(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: int, size: int) -> bool:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, pytest.raises(DiskFullError) as raised:
        patched.setattr(_sys, "allocate", refuse)
        disk.create("a", 4 * SECTOR)
    assert raised.value.details["errno"] == number
    assert disk.names() == [LOCK_NAME]
    disk.create("a", 4 * SECTOR)


def test_no_thread_to_make_a_file_ahead_is_as_no_space(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        disk.prepare("a", 4 * SECTOR)
        assert disk.is_prepared("a")
        with pytest.raises(DiskFullError):
            disk.create("a", 4 * SECTOR)
        disk.prepare("a", 4 * SECTOR)
    disk.close()


def test_a_file_can_be_opened_when_all_descriptors_are_taken(disk: FileDisk) -> None:
    disk.release(disk.create("a", SECTOR))
    disk.release(disk.create("b", SECTOR))
    with no_descriptors():
        opened = [disk.open("a") for _ in range(storage_disk.SPARE_DESCRIPTORS)]
        with pytest.raises(DiskFullError, match="b: it could not be opened: Too many open files"):
            disk.open("b")
        disk.release(opened.pop())
        opened.append(disk.open("b"))
        handles = Handles(disk)
        for number in range(3):  # in the place of another, when there is none left
            handles.adopt(number, opened.pop(), None)
        disk.rename("a", journal_name(7))
        handles.journal(7)
        with pytest.raises(FileNotFoundError):
            handles.journal(8)


def test_a_file_that_can_not_be_opened_when_it_is_made_is_not_made(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    with monkeypatch.context() as patched, pytest.raises(DiskFullError, match="Too many open files in system"):
        patched.setattr(disk, "_open_descriptor", refuse)
        disk.create("a", SECTOR)
    assert disk.names() == [LOCK_NAME]


def test_a_file_that_would_fill_the_disk_is_not_even_tried(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(_sys, "allocate", lambda fd, size: asked.append(size))
    with pytest.raises(DiskFullError, match="make room"):
        disk.create("a", disk.free_bytes() // SECTOR * SECTOR)
    assert asked == []


def test_a_directory_without_space_for_one_more_name(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: str, **directories: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(DiskFullError):
        patched.setattr(os, "rename", refuse)
        disk.create("a", SECTOR)
    assert disk.names() == [LOCK_NAME]
    disk.create("a", SECTOR)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_r5_a_failed_sync_of_the_directory_is_final(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whatever the kernel calls it: what the directory said may be lost."""
    disk.release(disk.create("b", SECTOR))
    real = os.fsync

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) and disk.exists("a"):
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    for action in (lambda: disk.create("a", SECTOR), lambda: disk.rename("b", "c"), lambda: disk.remove("c")):
        with pytest.raises(WriteFailedError, match="the sync of its directory failed") as raised:
            action()
        assert raised.value.details["errno"] == number


def test_r5_a_failed_sync_when_a_file_is_opened_is_final(disk: FileDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.release(disk.create("a", SECTOR))

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteFailedError, match="a sync failed"):
        disk.open("a")


def test_a_file_made_ahead_where_space_can_not_be_reserved_is_zeroed_to_its_end(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sys, "allocate", lambda fd, size: False)
    size = 2 * storage_disk.ZERO_CHUNK + SECTOR
    disk.prepare("a", size)
    file = disk.create("a", size)
    assert (disk.size(file), os.fstat(file).st_blocks * 512 >= size) == (size, True)


def test_a_lock_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the process in it is for people: a replica starts without it."""

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        disk = file_disk(tmp_path)
    with pytest.raises(DataLockedError):
        file_disk(tmp_path)
    disk.close()


def test_rename_and_remove(disk: FileDisk) -> None:
    file = disk.create("a", SECTOR)
    disk.rename("a", "b")
    assert (disk.exists("a"), disk.exists("b")) == (False, True)
    put(disk, file, 0, b"b" * SECTOR)
    disk.remove("b")
    assert not disk.exists("b")


# Reads and writes


def test_what_is_written_is_read_at_any_offset_and_length(disk: FileDisk) -> None:
    content = bytes(os.urandom(5 * SECTOR))
    file = disk.create("a", 6 * SECTOR)
    put(disk, file, SECTOR, content)
    whole = bytes(SECTOR) + content
    edges = [0, 1, SECTOR - 1, SECTOR, SECTOR + 1, 3 * SECTOR - 7, 6 * SECTOR - 1, 6 * SECTOR]
    for offset in edges:
        for length in (0, 1, 17, SECTOR, 2 * SECTOR + 3, 6 * SECTOR):
            assert disk.read(file, offset, length) == whole[offset : offset + length], (offset, length)
    view = disk.read(file, 0, SECTOR)
    assert view.readonly


def test_a_read_beyond_the_end_is_short_and_shows_nothing_else(disk: FileDisk) -> None:
    file = disk.create("a", SECTOR)
    put(disk, file, 0, b"\xee" * SECTOR)
    for _ in range(3):  # buffers come back from a pool
        assert disk.read(file, 0, 3 * SECTOR) == b"\xee" * SECTOR
        assert disk.read(file, SECTOR, SECTOR) == b""
        assert disk.read(file, 9 * SECTOR, 5) == b""


def test_aligned_buffers_are_zero_even_when_used_before(disk: FileDisk) -> None:
    for _ in range(4):
        buffer = disk.aligned(2 * SECTOR)
        assert buffer == bytes(2 * SECTOR)
        buffer[:] = b"\xff" * (2 * SECTOR)
        del buffer


@pytest.mark.parametrize("length", [0, -SECTOR, 1, SECTOR + 512])
def test_buffers_are_whole_sectors(disk: FileDisk, length: int) -> None:
    with pytest.raises(UsageError, match="multiple of 4096"):
        disk.aligned(length)


def test_a_write_off_the_grid_is_refused_before_anything_is_written(disk: FileDisk) -> None:
    file = disk.create("a", 4 * SECTOR)
    good = disk.aligned(SECTOR)
    good[:] = b"g" * SECTOR
    for offset, buffer in [(512, good), (0, disk.aligned(2 * SECTOR)[512:-3584]), (0, disk.aligned(SECTOR)[:512])]:
        with pytest.raises(UsageError, match="not aligned"):
            disk.submit(1, [[Write(file, 0, good)], [Write(file, offset, buffer)]])
    disk.flush()
    assert disk.completions() == []
    assert disk.read(file, 0, 4 * SECTOR) == bytes(4 * SECTOR)


# Failures


@pytest.mark.parametrize("inline_us", [ALWAYS_INLINE_US, NEVER_INLINE_US], ids=["inline", "thread"])
def test_r5_a_failed_write_names_file_offset_and_errno_and_is_the_last(
    tmp_path: Path, mode: str, inline_us: int
) -> None:
    disk = file_disk(tmp_path, mode=mode, inline_threshold_us=inline_us)
    file, other = disk.create("journal", 4 * SECTOR), disk.create("witness", SECTOR)
    buffer = disk.aligned(SECTOR)
    buffer[:] = b"x" * SECTOR
    with file_size_limit(2 * SECTOR):
        disk.submit(1, [[Write(file, 0, buffer)]])
        disk.flush()
        disk.submit(2, [[Write(file, 2 * SECTOR, buffer)], [Write(other, 0, buffer)]])
        disk.flush()
    assert disk.completions() == [1], "what was durable before stays acknowledged"
    disk.submit(3, [[Write(file, SECTOR, buffer)]])
    disk.flush()
    for _ in range(3):  # for good: there is no retry
        with pytest.raises(WriteFailedError) as raised:
            disk.completions()
        assert raised.value.details["file"] == "journal"
        assert raised.value.details["offset"] == 2 * SECTOR
        assert raised.value.details["errno"] == errno.EFBIG
        assert str(tmp_path / "journal") in str(raised.value)
        assert raised.value.exit_code == 17
    assert disk.read(file, 0, 4 * SECTOR) == b"x" * SECTOR + bytes(3 * SECTOR)
    assert disk.read(other, 0, SECTOR) == bytes(SECTOR), "the second phase was not begun"
    disk.close()


def test_r5_a_closed_descriptor_is_such_a_failure(tmp_path: Path) -> None:
    disk = file_disk(tmp_path, inline_threshold_us=ALWAYS_INLINE_US)
    file = disk.create("journal", SECTOR)
    os.close(file)
    disk.submit(1, [[Write(file, 0, disk.aligned(SECTOR))]])
    with pytest.raises(WriteFailedError) as raised:
        disk.completions()
    assert (raised.value.details["errno"], raised.value.details["file"]) == (errno.EBADF, "journal")
    disk._files.clear()
    disk.close()


INJECTED = """
import sys
from kimberlite.errors import WriteFailedError
from kimberlite.node.format import format_replica
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.interface import Write
disk = FileDisk(sys.argv[1], mode=sys.argv[2], unsafe=True, inline_threshold_us=int(sys.argv[3]))
file = disk.open("journal")
buffer = disk.aligned(4096)
for token in range(1, 5):
    buffer[:] = bytes([token]) * 4096
    disk.submit(token, [[Write(file, 4096 * token, buffer)]])
    disk.flush()
    try:
        print("durable", disk.completions())
    except WriteFailedError as error:
        print("failed", error.details["file"], error.details["errno"])
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("inline_us", [ALWAYS_INLINE_US, NEVER_INLINE_US], ids=["inline", "thread"])
@pytest.mark.parametrize(("mode", "call"), [("buffered", "fdatasync"), ("buffered", "pwritev"), ("auto", "pwritev")])
def test_r5_an_error_of_the_disk_is_never_followed_by_another_write_or_sync(
    tmp_path: Path, mode: str, call: str, inline_us: int
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    disk = file_disk(data)
    disk.create("journal", 8 * SECTOR)
    disk.close()
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=fdatasync,pwritev"]
    command += ["-e", f"inject={call}:error=EIO:when=2"]
    command += [sys.executable, "-c", INJECTED, str(data), mode, str(inline_us)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == ["durable [1]"] + ["failed journal 5"] * 3, result.stderr
    calls = [line.split(None, 1)[1] for line in trace.read_text().splitlines() if "journal" in line or "(" in line]
    failed = [at for at, line in enumerate(calls) if "EIO" in line]
    assert len(failed) == 1, calls
    assert not [line for line in calls[failed[0] + 1 :] if line.startswith(("fdatasync(", "pwritev("))]


# Under the store, and format


def test_a_store_on_real_files(tmp_path: Path, mode: str, kit: Any) -> None:
    disk = file_disk(tmp_path, mode=mode)
    format_store(disk, make_header, cluster=kit.cluster, replica=1, replica_count=3, segment_bytes=kit.segment)
    disk.close()
    entries = kit.chain([100, 5000, 0, 30000, 40000, 12])
    for at, message in enumerate(entries):
        disk = file_disk(tmp_path, mode=mode)
        store = Store(disk, make_header)
        recovered = store.recover()
        assert (recovered.settled, recovered.head, recovered.faulty) == (at, at, 0)
        store.append(1, [message])
        disk.flush()
        assert store.completions() == [1]
        for expected in entries[: at + 1]:
            read = store.read(expected.header.op)
            assert read is not None
            assert read.body == expected.body
        store.close()


def test_a_new_replica_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: the data directory is an entry of another directory, which is synced too."""
    config = from_mapping(
        {
            "cluster": {"id": "00112233445566778899aabbccddeeff", "replica": 0, "addresses": ["127.0.0.1:7001"]},
            "storage": {"unsafe": True, "segment_bytes": SEGMENT_BYTES},
        }
    )
    synced: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    data = tmp_path / "a" / "b" / "data"
    format_replica(config, data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / CONFIG_NAME).stat().st_mode) == 0o600
    for directory in (data, data.parent, data.parent.parent, tmp_path):
        assert str(directory) in synced
    with pytest.raises(DataExistsError):
        format_replica(config, data)


def test_what_is_read_and_made_is_counted_as_the_system_sees_it(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole sectors, however little of them was asked for; and the zeros of new files, made ahead or not."""
    seen: dict[str, list[int]] = {"read": [], "write": []}
    preadv, pwrite = os.preadv, os.pwrite

    def counted_read(*arguments: Any) -> int:
        seen["read"].append(preadv(*arguments))
        return seen["read"][-1]

    def counted_write(*arguments: Any) -> int:
        seen["write"].append(pwrite(*arguments))
        return seen["write"][-1]

    monkeypatch.setattr(os, "preadv", counted_read)
    monkeypatch.setattr(os, "pwrite", counted_write)
    file = disk.create("one", 1 << 20)
    disk.prepare("two", 1 << 20)
    while not disk.is_prepared("two"):
        pass
    disk.create("two", 1 << 20)
    assert (disk.zeros.writes, disk.zeros.bytes) == (len(seen["write"]), sum(seen["write"])) == (8, 2 << 20)
    disk.read(file, SECTOR - 10, 20)
    disk.read(file, 5 * SECTOR, 64)
    disk.read(file, (1 << 20) - SECTOR, 2 * SECTOR)
    assert (disk.reads, disk.read_bytes) == (len(seen["read"]), sum(seen["read"]))
    assert sum(seen["read"]) == 4 * SECTOR
