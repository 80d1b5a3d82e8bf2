"""Faults of one process that leave it running: a clock of its own, a thread that stands still; and a load under them.

May import: the standard library, lab.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from lab import Case

DISK_THREAD = "km-disk"
ON_THE_THREAD = "storage.inline_threshold_us=0"  # or the event loop itself would hang, and that is another fault
SHIFT = Path(__file__).with_name("shift.c")

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WALL = 0x40000000  # of waitpid: threads, too


class Load:
    """Writers that append all the time: when each append was answered, and what failed."""

    def __init__(self, addresses: list[str], writers: int, event: bytes) -> None:
        self.answered: list[float] = [time.monotonic()]
        self.lost: list[str] = []
        self._event = event
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(addresses,), daemon=True) for _ in range(writers)]

    def _write(self, addresses: list[str]) -> None:
        from kimberlite import sync

        with sync.connect(addresses, timeout=20) as log:
            while not self._over.is_set():
                try:
                    log.append([self._event], timeout=20)
                    self.answered.append(time.monotonic())
                except Exception as error:
                    self.lost.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(25)

    def rate(self, seconds: float) -> float:
        """Answers a second, over so many seconds from now on."""
        before, began = len(self.answered), time.monotonic()
        time.sleep(seconds)
        return (len(self.answered) - before) / (time.monotonic() - began)

    def longest_gap(self, begin: float, end: float) -> float:
        """Without an answer, between the two moments."""
        moments = [begin, *(at for at in sorted(self.answered) if begin < at < end), end]
        return max(later - earlier for earlier, later in pairwise(moments))


class ShiftedClock:
    """The clock of processes started with `environment`, set forward or back by whole seconds while they run."""

    def __init__(self, case: Case, name: str) -> None:
        library = case.directory / "shift.so"
        if not library.exists():
            compiler = shutil.which("gcc") or shutil.which("cc")
            if compiler is None:
                raise RuntimeError("no C compiler for tests/cases/shift.c")
            subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIFT), "-ldl"], check=True)
        self._file = case.directory / f"shift-{name}"
        self.environment = {**case.environment, "LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._file)}
        self.set(0)

    def set(self, seconds: int) -> None:
        # In one step: a reader that finds half a number would jump elsewhere.
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._file)


def thread_of(pid: int, name: str) -> int:
    """The thread of a process that has that name."""
    for entry in Path(f"/proc/{pid}/task").iterdir():
        if (entry / "comm").read_text().strip() == name:
            return int(entry.name)
    raise RuntimeError(f"process {pid} has no thread {name}")


@contextlib.contextmanager
def frozen(pid: int, name: str = DISK_THREAD) -> Iterator[None]:
    """Inside, one thread of a process of ours stands still, as in a system call that does not return."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    thread = thread_of(pid, name)
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(request, thread, None, None):
            raise RuntimeError(f"thread {thread} can not be stopped: {os.strerror(ctypes.get_errno())}")
    os.waitpid(thread, WALL)
    try:
        yield
    finally:
        if libc.ptrace(PTRACE_DETACH, thread, None, None):
            with contextlib.suppress(
                ChildProcessError
            ):  # its process has ended: whoever traces it is told, and no other
                os.waitpid(thread, WALL)
