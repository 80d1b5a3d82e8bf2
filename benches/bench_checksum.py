"""XXH3-128 against the xxhash package, whose wheels choose a vector path at run time as well."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import repeat

import pytest
import xxhash

from kimberlite._fast import checksum

SHORT = (0, 16, 64, 128, 240)
LONG = (4 << 10, 64 << 10, 1 << 20)
BYTES_A_ROUND = 1 << 20


def loop(digest: Callable[[bytes], bytes], message: bytes, times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, times):
            digest(message)

    return run


@pytest.mark.benchmark(group="checksum")
@pytest.mark.parametrize("size", [*SHORT, *LONG])
def test_xxh3_128(gate: Callable[..., None], size: int) -> None:
    message = random.Random(size).randbytes(size)
    times = max(1, BYTES_A_ROUND // (size + 256))
    gate(
        loop(checksum.xxh3_128, message, times),
        loop(xxhash.xxh3_128_digest, message, times),
        # Targets: 1.0 and 0.9 of the package's speed. A call is 40 ns, the clock of a round is worth a tenth of it.
        at_most=1.03 if size in SHORT else 1 / 0.9,
        operations=(times, times),
    )
