"""One event that the state machine of an embedding program raised on ended every replica with "this is a bug, please
report it". Now the error names the class, the operation, the position and what to do, and has an exit code of its own;
with the program corrected everything is there.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from lab import Case, main, until

from kimberlite import sync
from kimberlite.errors import KimberliteError

SECONDS = 90
SAMPLE = True
STATE_MACHINE_FAILED = 53
PROGRAM = """
import asyncio, sys
import kimberlite
from kimberlite import events
from kimberlite.config import CONFIG_NAME, load
from pathlib import Path

class Counter:
    version = 1
    needs_body = True
    total = 0

    def apply(self, batches):
        for batch in batches:
            for event in events.slice(batch.body, 0, batch.count):
                try:
                    self.total += int(event)
                except ValueError:
                    if "corrected" not in sys.argv:
                        raise
        return [str(self.total).encode() for _ in batches]

    def snapshot(self, writer):
        writer.write(str(self.total).encode())

    def restore(self, reader):
        self.total = int(reader.read())

async def main():
    data = Path(sys.argv[1])
    async with kimberlite.Node(load(data / CONFIG_NAME), data, Counter()):
        await asyncio.sleep(600)

asyncio.run(main())
"""


def run(case: Case) -> None:
    cluster = case.cluster(3, "telemetry.enabled=false", start=False)
    program = case.directory / "counter.py"
    program.write_text(PROGRAM)

    def start(*words: str) -> list[subprocess.Popen[bytes]]:
        return [
            case.own(
                subprocess.Popen(
                    [sys.executable, "-P", str(program), str(directory), *words],
                    stderr=Path(f"{directory}.log").open("ab"),
                    env=case.environment,
                )
            )
            for directory in cluster.directories
        ]

    def codes() -> list[int | None]:
        return [process.poll() for process in processes]

    def quorum_ended() -> bool:
        """The third may not have learned that it is committed before the others ended."""
        return codes().count(None) <= 1

    processes = start()
    with sync.connect(cluster.addresses, timeout=20) as log:
        log.append([b"1", b"2"], timeout=20)
        with contextlib.suppress(KimberliteError):
            log.append([b"no number"], timeout=3)
    case.check(until(quorum_ended, 20), f"exit codes {codes()}")
    for index, directory in enumerate(cluster.directories):
        if codes()[index] is None:
            continue
        last = Path(f"{directory}.log").read_text().splitlines()[-1]
        case.say(f"replica {index}: {codes()[index]}: {last[:100]}")
        case.check("bug" not in last, f"it calls that a bug of its own: {last}")
        for word in ("Counter.apply", "ValueError", "no number", "position 2", "at op", "Correct `apply`"):
            case.check(word in last, f"{word!r} is not in {last!r}")
    case.check(set(codes()) <= {STATE_MACHINE_FAILED, None}, f"exit codes {codes()}")

    for words in ((), ("corrected",)):
        for process in processes:
            process.kill()
            process.wait()
        processes = start(*words)
        if not words:
            case.check(until(quorum_ended, 20), f"started again as it was: {codes()}")
    with sync.connect(cluster.addresses, timeout=20) as log:
        position = log.append([b"3"], timeout=20)
    case.check(position == 3, f"the event after it is at {position}")
    case.check(codes() == [None] * 3, f"the corrected program runs: {codes()}")
    case.say(json.dumps({"positions": cluster.tells(0)["positions"]}))


if __name__ == "__main__":
    main(run)
