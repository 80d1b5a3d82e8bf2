"""A replica whose disk had failed ran on, or hung, when its standard error was closed or a pipe that nobody read:
the error of saying so came instead of its end. Now it ends within a second whatever standard error is, and a file
of its data never gets the number of a closed descriptor.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from typing import Any

from lab import Case, Cluster, main, until

from kimberlite import sync
from kimberlite.errors import KimberliteError

SECONDS = 120
SAMPLE = True
WRITE_FAILED = 17
END_S = 1.0
SLACK_S = 3.0  # for a busy machine


@contextlib.contextmanager
def standard_error(kind: str) -> Iterator[dict[str, Any]]:
    """What to start the replica with."""
    held = []
    if kind == "closed":
        yield {"prefix": ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")}
    elif kind == "a full device":
        yield {"prefix": ("sh", "-c", 'exec "$@" 2>/dev/full', "sh")}
    else:
        read, write = os.pipe()
        held += [write]
        if kind == "a broken pipe":
            os.close(read)
        else:
            held += [read]
            os.set_blocking(write, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(write, bytes(4096))
            os.set_blocking(write, True)
        yield {"stderr": write}
    for descriptor in held:
        os.close(descriptor)


def ends(case: Case, cluster: Cluster, kind: str) -> None:
    with standard_error(kind) as options:
        process = cluster.start(0, **options)
        cluster.wait()
        cluster.append([b"kept"])
        files = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        data = f"{cluster.directories[0]}/"
        case.check(not any(data in name for name in files), f"{kind}: descriptors 0 to 2 are {files}")
        # From here on no write beyond the first 4 KiB of a file succeeds, as on a disk that fails.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        began = time.monotonic()
        with contextlib.suppress(KimberliteError), sync.connect(cluster.addresses, timeout=1.0) as log:
            log.append([b"x" * 100_000], timeout=1.0)
        code = until(process.poll, END_S + SLACK_S)
        case.say(f"standard error {kind}: exit code {code} after {time.monotonic() - began:.1f} s")
        case.check(code == WRITE_FAILED, f"standard error {kind}: exit code {code}, not {WRITE_FAILED}")


def run(case: Case) -> None:
    cluster = case.cluster(1, start=False)
    for kind in ("a full device", "a broken pipe", "closed", "a pipe that nobody reads"):
        ends(case, cluster, kind)
    cluster.start(0)
    cluster.wait()
    with sync.connect(cluster.addresses) as log:
        kept = [bytes(getattr(event, "data", event)) for event in log.read()]
    case.check(kept.count(b"kept") == 4, f"acknowledged events are gone: {kept}")


if __name__ == "__main__":
    main(run)
