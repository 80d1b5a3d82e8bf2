"""What Linux offers and Python lacks, through cffi in API mode.

Functions raise OSError with the errno of the call; each is one system call and reads no
state of ours. May import: errors, types.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from kimberlite._sys._native import ffi, lib

_VOLATILE = {
    lib.KM_TMPFS: "tmpfs: its files live in memory and are gone after a power cut",
    lib.KM_RAMFS: "ramfs: its files live in memory and are gone after a power cut",
    lib.KM_OVERLAYFS: "overlayfs: what a sync makes durable depends on the layers below it",
}


class DirectAlignment(NamedTuple):
    """What direct I/O demands, in bytes; both 0 when it is impossible."""

    memory: int
    offset: int


def why_volatile(fd: int) -> str:
    """Why an acknowledged write to this file system may be lost; empty when it is a real disk."""
    kind = lib.km_file_system_type(fd)
    if kind < 0:
        raise OSError(-kind, os.strerror(-kind))
    return str(_VOLATILE.get(kind, ""))


def direct_alignment(fd: int) -> DirectAlignment | None:
    """Alignment for O_DIRECT by statx(2), Linux 6.1; None when the kernel does not say."""
    memory = ffi.new("unsigned int *")
    offset = ffi.new("unsigned int *")
    status = lib.km_direct_io(fd, memory, offset)
    if status in (-errno.ENOTSUP, -errno.EINVAL, -errno.ENOSYS):
        return None
    if status:
        raise OSError(-status, os.strerror(-status))
    return DirectAlignment(memory[0], offset[0])


def allocate(fd: int, size: int) -> bool:
    """Reserve `size` bytes of disk for a file (fallocate(2)); False where that is not supported.

    Raises OSError, ENOSPC among others: then nothing was reserved.
    """
    status = lib.km_allocate(fd, size)
    if status == -errno.EOPNOTSUPP:
        return False
    if status:
        raise OSError(-status, os.strerror(-status))
    return True


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send that signal to this process when its parent ends (prctl(2))."""
    status = lib.km_end_with_parent(signal_number)
    if status:
        raise OSError(-status, os.strerror(-status))
