"""The production disk: files of one directory, written by the compiled engine.

Implements storage.interface.Disk. Two modes:

- `direct`: O_DIRECT and O_DSYNC. Nothing of ours is ever in the page cache, and the error
  of a write is reported by that very write.
- `buffered`: through the page cache, fdatasync at the end of each phase; reads drop what is
  cached of the file first, so that they come from the disk. Weaker: after a failed sync the kernel
  reports success for bytes it has lost, which is why any failure is final here.
  Chosen by `auto` only where direct I/O is impossible.

Thread rules: one thread uses a FileDisk; segments are prepared on a background thread.
May import: errors, types, _fast, _sys, storage.interface.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kimberlite import _sys
from kimberlite._fast import append
from kimberlite.errors import (
    DataLockedError,
    DataMissingError,
    DiskFullError,
    KimberliteError,
    StorageError,
    UnsafeFileSystemError,
    UsageError,
    WriteFailedError,
)
from kimberlite.storage.interface import SECTOR, Write
from kimberlite.storage.trouble import storage_error

ZERO_CHUNK = 1 << 18  # a write that commits wait for waits behind one of these at most
ZERO_PAUSE = 9  # times what the chunk took: files made ahead get a tenth of the disk
LOCK_NAME = "lock"
NEW = ".new"  # suffix of a file that is not whole yet
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What the system may have none of for a while: descriptors, threads, memory. As with space, it is tried again later.
NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
SPARE_DESCRIPTORS = 4  # held so that a file can be opened when all others are taken
FREE_AFTER_BYTES = 1 << 20  # what a new file must leave free: metadata of others, and of ours, need some
PID_BYTES = 32
STANDARD_MAX = 2  # the descriptor of standard error
MODES = ("auto", "direct", "buffered")


class FileDisk:
    """Files of `directory`. Raises DataMissingError, DataLockedError, UnsafeFileSystemError.

    unsafe: allow file systems that cannot keep a promise. readonly: no lock is taken and
    nothing is written (offline inspection). inline_threshold_us: see `_fast.append.Writer`.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        mode: str = "auto",
        unsafe: bool = False,
        inline_threshold_us: int = 400,
        readonly: bool = False,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"storage mode {mode!r}: use one of {', '.join(MODES)}")
        self.directory = Path(directory)
        self.readonly = readonly
        self._files: dict[int, str] = {}  # descriptor -> name
        self._preparing: dict[str, _Preparation] = {}
        self.reads = self.read_bytes = 0  # system calls, and what they brought: whole sectors
        self.zeros = Zeros()
        self._spare: list[int] = []  # descriptors held for `_open_descriptor`
        try:
            self._dir = open_above_standard(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DataMissingError(f"{self.directory} does not exist", path=str(self.directory)) from None
        except OSError as error:
            raise storage_error(error) from error
        self._lock = -1
        try:
            why = _sys.why_volatile(self._dir)
            if why and not unsafe and not readonly:
                raise UnsafeFileSystemError(
                    f"{self.directory} is on {why}; use a disk, or --set storage.unsafe=true for a trial "
                    "that may lose everything",
                    path=str(self.directory),
                )
            if not readonly:
                self._lock = self._take_lock()
                self._remove_unfinished()
            self.mode = self._choose_mode(mode)
            self._writer = append.Writer(sync_each=self.mode == "buffered", inline_below_ns=inline_threshold_us * 1000)
            if not readonly:
                self._refill()
        except BaseException:
            self._close_descriptors()
            raise

    def refuse_if_in_use(self) -> None:
        """Raises DataLockedError when a process holds the data at this moment. Nothing is written."""
        try:
            lock = open_above_standard(LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._dir)
        except FileNotFoundError:  # a copy of what no process has been started on
            return
        except OSError as error:
            raise self._of_file(error, LOCK_NAME) from error
        self._refuse_if_held(lock, fcntl.LOCK_SH)
        os.close(lock)

    def _refuse_if_held(self, lock: int, kind: int) -> None:
        """Take that lock. Raises DataLockedError, and closes the file, when another process has it."""
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, PID_BYTES, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise DataLockedError(
                f"{self.directory} is in use by process {holder or 'unknown'}; stop that one first",
                path=str(self.directory),
                pid=int(holder) if holder.isdigit() else None,
            ) from None

    def _take_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            lock = open_above_standard(LOCK_NAME, flags, 0o600, dir_fd=self._dir)
        except OSError as error:
            raise self._of_file(error, LOCK_NAME) from error
        self._refuse_if_held(lock, fcntl.LOCK_EX)
        try:
            # In place and always as long: a restart on a full disk finds its block there.
            os.pwrite(lock, f"{os.getpid()}\n".ljust(PID_BYTES).encode(), 0)
        except OSError as error:
            if error.errno not in NO_SPACE:  # it is there to be read by people: not worth a refusal
                os.close(lock)
                raise
        return lock

    def _remove_unfinished(self) -> None:
        """Files whose creation a crash interrupted: nothing refers to them."""
        for name in self.names():
            if name.endswith(NEW):
                os.unlink(name, dir_fd=self._dir)

    def _choose_mode(self, mode: str) -> str:
        if mode == "buffered":
            return mode
        possible = self._direct_is_possible()
        if mode == "direct" and not possible:
            raise UnsafeFileSystemError(
                f"{self.directory} does not support O_DIRECT with {SECTOR}-byte alignment; use storage.mode=auto",
                path=str(self.directory),
            )
        return "direct" if possible else "buffered"

    def _direct_is_possible(self) -> bool:
        """Ask by doing: open a file with O_DIRECT. Not a directory, which can not be opened so (lost+found)."""
        with os.scandir(self._dir) as entries:
            files = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        name = min(files - {LOCK_NAME}, default=LOCK_NAME)
        try:
            probe = os.open(name, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._dir)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise self._of_file(error, name) from error
        try:
            alignment = _sys.direct_alignment(probe)
        finally:
            os.close(probe)
        return alignment is None or (alignment.offset != 0 and SECTOR % alignment.offset == 0)

    # Files

    def exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._dir, follow_symlinks=False)  # takes no descriptor, as a listing does
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        return sorted(os.listdir(self._dir))

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        """A durable file of zeros; at once when `prepare` has begun it."""
        preparation = self._preparing.pop(name, None)
        try:
            if preparation is not None:
                preparation.finish()  # whatever its size: two must not make the same file
            if preparation is None or preparation.size != size:
                _make_file(self._dir, name, size, self.mode == "direct", self.zeros, None if zeroed else _AT_ONCE)
        except OSError as error:
            raise self._not_made(error, name, size) from error
        # Linked under its name only when whole: a crash leaves no half-made file behind. Opened before that, so that
        # nothing has changed when it can not be.
        if self.exists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        file = -1
        try:
            file = self._open(name + NEW)
            os.rename(name + NEW, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        except (OSError, DiskFullError) as error:  # a directory may need one more block
            if file >= 0:
                self.release(file)
            os.unlink(name + NEW, dir_fd=self._dir)
            raise (self._not_made(error, name, size) if isinstance(error, OSError) else error) from error
        self._files[file] = name
        self._sync_directory(name)
        return file

    def _sync_directory(self, name: str) -> None:
        try:
            os.fsync(self._dir)
        except OSError as error:
            raise self._fatal(error, name, "the sync of its directory failed") from error

    def prepare(self, name: str, size: int, zeroed: bool = True) -> None:
        """Begin to make a file in the background, for a later `create` of the same name and size."""
        if name not in self._preparing and not self.exists(name):
            self._preparing[name] = _Preparation(self._dir, name, size, self.mode == "direct", self.zeros, zeroed)

    def is_prepared(self, name: str) -> bool:
        preparation = self._preparing.get(name)
        return preparation is None or preparation.ended

    def _not_made(self, error: OSError, name: str, size: int) -> KimberliteError:
        """Why a file could not be made: no space, and no descriptor, thread or memory, is one thing, for it passes;
        anything else is a disk not to be trusted."""
        if error.errno in NO_RESOURCES:
            return self._no_resources(error, name, f"a file of {size} bytes could not be made")
        if error.errno not in NO_SPACE:
            return self._fatal(error, name, f"{size} bytes could not be reserved")
        free = self.free_bytes()
        return DiskFullError(
            f"{self.directory / name}: there is no space for a file of {size} bytes, with {free} bytes free "
            f"({os.strerror(error.errno or 0)}); make room",
            file=name,
            size=size,
            free=free,
            errno=error.errno,
        )

    def _no_resources(self, error: OSError, name: str, what: str) -> DiskFullError:
        return DiskFullError(
            f"{self.directory / name}: {what}: {os.strerror(error.errno or 0)}; nothing was changed, and it is tried "
            "again. Give this process more descriptors, threads or memory, or the machine less to do",
            file=name,
            errno=error.errno,
        )

    def _of_file(self, error: OSError, name: str) -> StorageError:
        """Why a file of the directory can not be used: descriptors relative to it leave its path out of errors."""
        error.filename = str(self.directory / name)
        return storage_error(error)

    def _fatal(self, error: OSError, name: str, what: str) -> WriteFailedError:
        return WriteFailedError(
            f"{self.directory / name}: {what}: {os.strerror(error.errno or 0)}; nothing was acknowledged after it. "
            "Check the disk, then restart: the replica repairs itself from its peers",
            file=name,
            offset=0,
            errno=error.errno,
        )

    def open(self, name: str) -> int:
        """Open, after making sure that what is there is durable: decide nothing on less."""
        fd = self._open(name)
        if not self.readonly:
            try:
                os.fsync(fd)
            except OSError as error:
                raise self._fatal(error, name, "a sync failed") from error
        return fd

    def _open(self, name: str) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDONLY if self.readonly else os.O_RDWR)
        if self.mode == "direct":
            flags |= os.O_DIRECT | os.O_DSYNC
        try:
            fd = self._open_descriptor(name, flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in NO_RESOURCES:
                raise self._no_resources(error, name, "it could not be opened") from error
            raise self._of_file(error, name) from error
        self._files[fd] = name
        return fd

    def _open_descriptor(self, name: str, flags: int) -> int:
        """With a descriptor that was held for it, when there are no others."""
        try:
            return open_above_standard(name, flags, dir_fd=self._dir)
        except OSError as error:
            if error.errno not in NO_RESOURCES or not self._spare:
                raise
        os.close(self._spare.pop())
        return open_above_standard(name, flags, dir_fd=self._dir)

    def duplicate(self, file: int) -> int:
        """Another descriptor of an open file, for the caller to close: it outlives this one. Raises DiskFullError."""
        try:
            return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, STANDARD_MAX + 1)
        except OSError as error:
            raise self._no_resources(error, self._files[file], "it could not be read beside other work") from error

    def _refill(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spare) < SPARE_DESCRIPTORS:
                self._spare.append(os.dup(self._dir))

    def release(self, file: int) -> None:
        del self._files[file]
        os.close(file)
        self._refill()

    def size(self, file: int) -> int:
        return os.fstat(file).st_size

    def remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._dir)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._fatal(error, name, "it could not be removed") from error
        self._sync_directory(name)

    def rename(self, old: str, new: str) -> None:
        try:
            os.rename(old, new, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._fatal(error, old, f"it could not be renamed to {new}") from error
        self._sync_directory(new)
        for fd, name in self._files.items():
            if name == old:
                self._files[fd] = new

    def read(self, file: int, offset: int, length: int) -> memoryview:
        start = offset // SECTOR * SECTOR
        span = (offset + length + SECTOR - 1) // SECTOR * SECTOR - start
        buffer = memoryview(append.AlignedBuffer(max(span, SECTOR), False))
        if self.mode == "buffered":
            # All of the file: a page of the cache may hold many sectors (ext4 since Linux 6.16), and the kernel keeps
            # one that is not wholly within the range.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        got = 0
        while got < span:
            count = os.preadv(file, [buffer[got:span]], start + got)
            self.reads += 1
            if count == 0:
                break
            got += count
        self.read_bytes += got
        return buffer[offset - start : max(min(got, offset - start + length), offset - start)].toreadonly()

    def aligned(self, length: int) -> memoryview:
        return memoryview(append.AlignedBuffer(length))

    # Writes

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None:
        self._writer.submit(token, phases)

    def completions(self) -> list[int]:
        try:
            return self._writer.completions()
        except WriteFailedError as error:
            name = self._files.get(error.details.get("fd"), "?")  # type: ignore[call-overload]
            number = error.details.get("errno", 0)
            raise WriteFailedError(
                f"{self.directory / name}: a write at offset {error.details.get('offset')} failed: "
                f"{os.strerror(int(str(number)))}; nothing was acknowledged after it. Check the disk, then restart: "
                "the replica repairs itself from its peers",
                file=name,
                offset=error.details.get("offset"),
                errno=number,
            ) from None

    def fileno(self) -> int:
        """Readable when the disk thread has completed something."""
        return self._writer.fileno()

    def flush(self) -> None:
        self._writer.flush()

    def stats(self) -> append.Stats:
        return self._writer.stats()

    def take_latencies(self) -> list[int]:
        """Nanoseconds from submission to durability, of what completed since the last call."""
        return self._writer.take_latencies()

    def take_sync_latencies(self) -> list[int]:
        """Nanoseconds of the slowest synchronous write of each group since the last call."""
        return self._writer.take_sync_latencies()

    def free_bytes(self) -> int:
        """What the file system has left for us."""
        info = os.fstatvfs(self._dir)
        return info.f_bavail * info.f_frsize

    def close(self) -> None:
        """Everything submitted is durable then. What is closed can only be closed again."""
        if self._dir < 0:
            return
        self._writer.flush()
        for preparation in self._preparing.values():
            with contextlib.suppress(OSError):  # nobody needs the file
                preparation.finish()
        self._preparing.clear()
        self._close_descriptors()
        del self._writer  # its thread and its descriptor go with it now, and not when a collector finds them

    def _close_descriptors(self) -> None:
        for fd in (*self._files, *self._spare, self._lock, self._dir):
            if fd >= 0:
                os.close(fd)
        self._files.clear()
        self._spare.clear()
        self._lock = self._dir = -1


def open_above_standard(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """As os.open with O_CLOEXEC, but never one of the descriptors 0 to 2: in a program that has closed its standard
    error, whatever is written there would go into the file."""
    opened = os.open(path, flags, mode, dir_fd=dir_fd)
    if opened > STANDARD_MAX:
        return opened
    try:
        return fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, STANDARD_MAX + 1)
    finally:
        os.close(opened)


_AT_ONCE = threading.Event()  # the file is needed already: reserve it, write no zeros
_AT_ONCE.set()


class Zeros:
    """What the making of files has written: system calls and bytes. Threads add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.writes = self.bytes = 0

    def add(self, written: int) -> None:
        with self._lock:
            self.writes += 1
            self.bytes += written


class _Preparation:
    """A file of zeros in the making on its own thread."""

    def __init__(self, directory: int, name: str, size: int, direct: bool, zeros: Zeros, zeroed: bool) -> None:
        self.size = size
        self._error: OSError | None = None
        self._needed = threading.Event() if zeroed else _AT_ONCE
        arguments = (directory, name, size, direct, zeros)
        self._thread = threading.Thread(target=self._run, args=arguments, name="km-prepare", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no thread now
            self._error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), name)
            self._needed = _AT_ONCE

    def _run(self, directory: int, name: str, size: int, direct: bool, zeros: Zeros) -> None:
        try:
            _make_file(directory, name, size, direct, zeros, self._needed)
        except OSError as error:
            self._error = error
        except MemoryError:
            self._error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Takes what is left of one chunk. Raises what went wrong."""
        self._needed.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error


def _make_file(
    directory: int, name: str, size: int, direct: bool, zeros: Zeros, needed: threading.Event | None = None
) -> None:
    """name.new: `size` bytes, durably reserved, that read as zeros.

    Zeros are written, so that the first write of a sector need not change metadata: alone it takes twice
    as long otherwise. But they double what goes to the disk, and under a load that fills it that is worse: with
    `needed` they are written in the pauses, and when it is set the rest is left reserved.

    direct: past the page cache, one chunk after another. A flood of dirty pages written back at
    once would hold up the writes that commits wait for.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_DIRECT if direct else 0)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name + NEW, dir_fd=directory)
    # Asked first: an allocation that fails takes all there is for a moment, from everybody.
    info = os.fstatvfs(directory)
    if info.f_bavail * info.f_frsize < size + FREE_AFTER_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    fd = open_above_standard(name + NEW, flags, 0o600, dir_fd=directory)
    try:
        if not _sys.allocate(fd, size):
            needed = None  # only zeros reserve it here
        chunk = memoryview(append.AlignedBuffer(min(ZERO_CHUNK, size)))
        offset = 0
        while offset < size and not (needed is not None and needed.is_set()):
            began = time.monotonic()
            written = os.pwrite(fd, chunk[: size - offset], offset)
            zeros.add(written)
            offset += written
            if needed is not None:
                needed.wait((time.monotonic() - began) * ZERO_PAUSE)
        os.fsync(fd)
        # Out of the page cache: direct reads and writes follow.
        os.posix_fadvise(fd, 0, size, os.POSIX_FADV_DONTNEED)
    except BaseException:
        os.unlink(name + NEW, dir_fd=directory)
        raise
    finally:
        os.close(fd)
    os.fsync(directory)
