"""A Node in a program of somebody else froze all objects of that program out of garbage collection. Now it leaves the
program as it is: collector, signal handlers, limits, hooks.
"""

from __future__ import annotations

import json
import subprocess
import sys

from lab import Case, main

SECONDS = 60
SAMPLE = True
PROGRAM = """
import asyncio, gc, json, resource, signal, sys, threading
from pathlib import Path
import kimberlite
from kimberlite.config import CONFIG_NAME, load

def seen():
    return {
        "frozen": gc.get_freeze_count(),
        "collector": [gc.isenabled(), *gc.get_threshold()],
        "signals": [id(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "hooks": [str(hook) for hook in (sys.excepthook, sys.unraisablehook, threading.excepthook)],
        "loop": str(asyncio.get_running_loop().get_exception_handler()),
    }

async def main():
    data = Path(sys.argv[1])
    before = seen()
    async with kimberlite.Node(load(data / CONFIG_NAME), data):
        await asyncio.sleep(0.2)
        during = seen()
    after = seen()
    print(json.dumps({key: [before[key], during[key], after[key]] for key in before}))

asyncio.run(main())
"""


def run(case: Case) -> None:
    cluster = case.cluster(1, start=False)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(cluster.directories[0])],
        env=case.environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    for what, (before, during, after) in json.loads(done.stdout).items():
        case.check(before == during == after, f"{what} of the program: {before}, with a Node {during}, then {after}")


if __name__ == "__main__":
    main(run)
