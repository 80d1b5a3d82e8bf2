"""What the kernel offers: each function against a second way to ask."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kimberlite import _sys


def test_allocate_reserves_blocks_and_sets_the_size(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        if _sys.allocate(file.fileno(), 1 << 20):
            info = os.fstat(file.fileno())
            assert info.st_size == 1 << 20
            assert info.st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize("size", [0, -1])
def test_allocate_of_nothing_is_an_error(tmp_path: Path, size: int) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError) as raised:
        _sys.allocate(file.fileno(), size)
    assert raised.value.errno == errno.EINVAL


def test_a_closed_descriptor_is_an_error_everywhere(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)
    for call in (_sys.why_volatile, _sys.direct_alignment, lambda fd: _sys.allocate(fd, 1)):
        with pytest.raises(OSError) as raised:
            call(fd)
        assert raised.value.errno == errno.EBADF


def test_memory_file_systems_are_told_from_disks(tmp_path: Path) -> None:
    kinds = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        kinds[where] = kind
    for where, kind in kinds.items():
        if kind not in ("tmpfs", "ramfs", "overlay", "ext4", "xfs", "btrfs", "proc", "sysfs"):
            continue
        try:
            fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            why = _sys.why_volatile(fd)
        finally:
            os.close(fd)
        # What is mounted over it is what counts: the last line of a place.
        assert bool(why) == (kind in ("tmpfs", "ramfs", "overlay")), (where, kind)
        assert not why or why.startswith(kind)


def test_direct_alignment_is_a_power_of_two_or_impossible_or_unknown(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        alignment = _sys.direct_alignment(file.fileno())
    if alignment is not None:
        assert (alignment.memory == 0) == (alignment.offset == 0)
        for value in alignment:
            assert value & (value - 1) == 0


CHILD = """
import ctypes, signal, sys
from kimberlite import _sys
_sys.end_with_parent(signal.SIGUSR1)
found = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(found))  # PR_GET_PDEATHSIG
sys.exit(0 if found.value == signal.SIGUSR1 else 1)
"""


def test_end_with_parent_sets_the_signal() -> None:
    assert ctypes.sizeof(ctypes.c_int) == 4
    assert subprocess.run([sys.executable, "-c", CHILD], timeout=60).returncode == 0
    with pytest.raises(OSError) as raised:
        _sys.end_with_parent(signal.NSIG + 1000)
    assert raised.value.errno == errno.EINVAL
