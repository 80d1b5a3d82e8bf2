"""A file whose blocks fail when told to: a FUSE file system that consists of that one file.

`FaultyFile(mount, size)` serves `mount` (made as an empty regular file) from a process of its own, with the content
in a sparse backing file beside it. A loop device on it is a disk: what a file system above it asks of its disk
arrives here, and fails here with EIO where it was told to. Nothing is cached on the way (FOPEN_DIRECT_IO), so the
backing file is at every moment what is on the disk. A write to a sector that could not be read heals it, as disks
remap bad sectors.

The kernel's protocol (linux/fuse.h, version 7.31 and later) is spoken directly: one inode, eight operations, and no
library to install. Needs root, for mount(2).

Thread rules: one thread uses a FaultyFile. The server is a process, so that no lock of the user's can keep the
kernel waiting for an answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

IN_HEADER = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extensions, padding
OUT_HEADER = struct.Struct("<IiQ")  # len, error, unique
INIT_IN = struct.Struct("<IIII")  # major, minor, max_readahead, flags
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, and what is of no use here
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
# attr_valid, attr_valid_nsec, dummy; ino, size, blocks, three times, three nanoseconds, mode, nlink, uid, gid, rdev,
# blksize, flags
ATTR_OUT = struct.Struct("<QIIQQQQQQIIIIIIIIII")
OPEN_OUT = struct.Struct("<QII")  # handle, flags, padding
READ_IN = struct.Struct("<QQIIQII")  # handle, offset, size, flags, lock owner, flags of the file, padding
WRITE_IN = READ_IN
WRITE_OUT = struct.Struct("<II")
STATFS_OUT = struct.Struct("<QQQQQIIII24x")

GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 3, 4, 14, 15, 16, 17, 18, 20, 25, 26
ACCESS, INTERRUPT, DESTROY, FORGET, BATCH_FORGET, FALLOCATE = 34, 36, 38, 2, 42, 43
WITHOUT_ANSWER = (FORGET, BATCH_FORGET, INTERRUPT)
MAJOR, MINOR = 7, 31
FOPEN_DIRECT_IO = 1
FUSE_BIG_WRITES, FUSE_MAX_PAGES = 1 << 5, 1 << 22
WRITE_BYTES_MAX = 1 << 20
PAGES_MAX = WRITE_BYTES_MAX // 4096
SECTOR = 512
READ_BUFFER = WRITE_BYTES_MAX + 4096


class Server:
    """Answers the kernel. Faults are sectors of the disk, by kind of operation: `read`, `write`."""

    def __init__(self, device: int, backing: int, size: int) -> None:
        self._device = device
        self._backing = backing
        self._size = size
        self._faults: dict[str, set[int]] = {"read": set(), "write": set()}
        self.failed: list[tuple[str, int, int, int]] = []  # kind, offset, length, monotonic nanoseconds
        self.served = {"read": 0, "write": 0}

    def serve_one(self) -> bool:
        """Read one request and answer it. False when the file system was unmounted."""
        try:
            request = os.read(self._device, READ_BUFFER)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # a request that was interrupted
                return True
            raise
        length, opcode, unique, *_ = IN_HEADER.unpack_from(request)
        if opcode in WITHOUT_ANSWER:
            return True
        try:
            answer, status = self._answer(opcode, memoryview(request)[IN_HEADER.size : length]), 0
        except OSError as error:
            answer, status = b"", -(error.errno or errno.EIO)
        with contextlib.suppress(FileNotFoundError):  # interrupted meanwhile
            os.write(self._device, OUT_HEADER.pack(OUT_HEADER.size + len(answer), status, unique) + answer)
        return True

    def _answer(self, opcode: int, body: memoryview) -> bytes:
        if opcode == READ:
            _, offset, size, *_ = READ_IN.unpack_from(body)
            self._check("read", offset, size)
            return os.pread(self._backing, size, offset)
        if opcode == WRITE:
            _, offset, size, *_ = WRITE_IN.unpack_from(body)
            self._check("write", offset, size)
            os.pwrite(self._backing, body[WRITE_IN.size : WRITE_IN.size + size], offset)
            self._faults["read"].difference_update(sectors(offset, offset + size))
            return WRITE_OUT.pack(size, 0)
        if opcode == INIT:
            _, _, readahead, flags = INIT_IN.unpack_from(body)
            wanted = flags & (FUSE_BIG_WRITES | FUSE_MAX_PAGES)
            return INIT_OUT.pack(MAJOR, MINOR, readahead, wanted, 64, 48, WRITE_BYTES_MAX, 1, PAGES_MAX, 0, 0)
        if opcode in (GETATTR, SETATTR):
            return self._attributes()
        if opcode == OPEN:
            return OPEN_OUT.pack(1, FOPEN_DIRECT_IO, 0)
        if opcode == STATFS:
            return STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if opcode in (FSYNC, FLUSH, RELEASE, DESTROY, ACCESS):
            return b""  # the backing file is the disk: what it was given, it has
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def _attributes(self) -> bytes:
        mode = stat.S_IFREG | 0o600
        return ATTR_OUT.pack(3600, 0, 0, 1, self._size, self._size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def fail(self, kind: str, ranges: list[tuple[int, int]]) -> None:
        """From now on operations of this kind fail in these ranges, and nowhere else."""
        self._faults[kind] = {sector for start, end in ranges for sector in sectors(start, end)}

    def bad(self, kind: str) -> list[int]:
        """Numbers of the sectors that fail."""
        return sorted(self._faults[kind])

    def _check(self, kind: str, offset: int, size: int) -> None:
        self.served[kind] += 1
        if not self._faults[kind].isdisjoint(sectors(offset, offset + size)):
            self.failed.append((kind, offset, size, time.monotonic_ns()))
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def sectors(start: int, end: int) -> range:
    return range(start // SECTOR, (end + SECTOR - 1) // SECTOR)


def serve(device: int, backing: int, size: int, control: int) -> None:
    """Answer the kernel and the one who controls the faults, until the file system is unmounted."""
    import selectors

    server = Server(device, backing, size)
    orders = socket.socket(fileno=control)
    lines = orders.makefile("rwb", buffering=0)
    os.set_blocking(device, False)
    with selectors.DefaultSelector() as selector:
        selector.register(device, selectors.EVENT_READ)
        selector.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is orders:
                    line = lines.readline()
                    if not line:
                        selector.unregister(orders)
                        continue
                    order = json.loads(line)
                    for kind, ranges in order.get("faults", {}).items():
                        server.fail(kind, ranges)
                    answer = {
                        "failed": server.failed,
                        "served": server.served,
                        "bad": {kind: server.bad(kind) for kind in server.served},  # sectors
                    }
                    lines.write(json.dumps(answer).encode() + b"\n")
                elif not server.serve_one():
                    return


class FaultyFile:
    """A regular file at `mount`, of `size` bytes, that fails where it is told to. Use as a context manager.

    Raises OSError with what to do when the machine has no FUSE or we are not root.
    """

    def __init__(self, mount: Path, size: int) -> None:
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            raise OSError(errno.EPERM, "needs root and /dev/fuse (modprobe fuse)")
        self.mount = mount
        self.size = size
        mount.touch(mode=0o600)
        self.backing = mount.with_name(mount.name + ".blocks")
        blocks = os.open(self.backing, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        ours, theirs = socket.socketpair()
        try:
            os.ftruncate(blocks, size)
            options = f"fd={device},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0"
            # -i: mount(2) and no helper. The descriptor is the file system.
            command = ["mount", "-i", "-t", "fuse", "-o", options, "kimberlite-faulty", str(mount)]
            subprocess.run(command, pass_fds=[device], check=True, timeout=30)
            numbers = [str(number) for number in (device, blocks, size, theirs.fileno())]
            self._server = subprocess.Popen(
                [sys.executable, __file__, *numbers], pass_fds=[device, blocks, theirs.fileno()]
            )
        finally:
            os.close(device)
            os.close(blocks)
            theirs.close()
        self._orders = ours.makefile("rwb", buffering=0)
        ours.close()

    def order(self, **faults: list[tuple[int, int]]) -> dict[str, Any]:
        """Set the failing ranges, of `read` or of `write`; an empty list ends them. Returns what was served and what
        has failed."""
        self._orders.write(json.dumps({"faults": faults}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._orders.readline())
        return answer

    def failures(self, kind: str) -> list[tuple[int, int, int]]:
        """(offset, length, monotonic nanoseconds) of every operation that was made to fail."""
        return [(offset, length, at) for name, offset, length, at in self.order()["failed"] if name == kind]

    def on_disk(self, offset: int, length: int) -> bytes:
        """What the disk holds, past every cache."""
        with self.backing.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def close(self) -> None:
        """Unmount, and end the server. What uses the file must be gone."""
        subprocess.run(["umount", str(self.mount)], check=False, timeout=30)
        self._orders.close()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            subprocess.run(["umount", "-l", str(self.mount)], check=False, timeout=30)

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    device_fd, backing_fd, file_size, control_fd = map(int, sys.argv[1:])
    serve(device_fd, backing_fd, file_size, control_fd)
