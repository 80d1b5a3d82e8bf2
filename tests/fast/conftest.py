"""What the tests of compiled modules share."""

from __future__ import annotations

import subprocess
import sys
from typing import Protocol

import pytest

MEASURE = """
import gc, tracemalloc

def rounds(count):
    for _ in range(count):
        round()
    gc.collect()

rounds(50)
tracemalloc.start()
rounds(50)
before = tracemalloc.get_traced_memory()[0]
rounds({count})
print(tracemalloc.get_traced_memory()[0] - before)
"""


class BytesKept(Protocol):
    def __call__(self, script: str, count: int) -> int: ...


@pytest.fixture
def bytes_kept() -> BytesKept:
    """How many bytes more an interpreter of its own holds after so many calls of the `round` that a script defines."""

    def measure(script: str, count: int) -> int:
        command = [sys.executable, "-P", "-c", script + MEASURE.format(count=count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return measure
