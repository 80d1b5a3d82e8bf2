"""How long a replica takes to start on the data in a directory, and how much memory it has then.

    python benches/make_log.py DIRECTORY --events 10000000
    python benches/start.py DIRECTORY --times 5

The first start may execute the log from its beginning, when there is no checkpoint yet; it is shown apart. `ready_s` is
from the start of the process to the first status in which the replica leads, with everything executed:
the interpreter's own start is in it. One line of JSON for each start. The replica must be the only one of its cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kimberlite import config
from kimberlite.cli import probe
from kimberlite.errors import UnavailableError

POLL_S = 0.002
WAIT_S = 600.0


def memory(pid: int) -> dict[str, float]:
    """Resident now, and at most so far, in MiB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {
        name: round(int(lines[key].split()[0]) / 1024, 1)
        for name, key in (("rss_mib", "VmRSS"), ("rss_peak_mib", "VmHWM"))
    }


def start(directory: Path, settle_s: float) -> dict[str, object]:
    """One start, a time of rest, and the end."""
    host, port = config.load(directory / config.CONFIG_NAME).client_address
    address = f"{host}:{port}"
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", "kimberlite", "start", str(directory), "--set", "telemetry.enabled=false"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the replica ended with exit code {process.returncode}")
            if time.monotonic() - began > WAIT_S:
                raise SystemExit(f"the replica did not lead within {WAIT_S} s")
            try:
                status = probe.fetch_status(address, 1.0)
            except UnavailableError:
                status = {}
            if status.get("role") == "primary" and status["applied"] == status["op"]:
                break
            time.sleep(POLL_S)
        ready = time.monotonic() - began
        at_once = memory(process.pid)
        time.sleep(settle_s)
        later = memory(process.pid)
        status = probe.fetch_status(address, 5.0)
        storage = status["storage"]
        assert isinstance(storage, dict)
        return {
            "ready_s": round(ready, 3),
            **at_once,
            f"rss_mib_after_{settle_s:g}_s": later["rss_mib"],
            "events": status["positions"],
            "ops": status["op"],
            "checkpoint_op": storage["checkpoint_op"],
            "disk_bytes": sum(path.stat().st_blocks * 512 for path in directory.iterdir()),
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--settle-s", type=float, default=2.0)
    parser.add_argument("--drop-caches", action="store_true", help="before each start; needs root")
    arguments = parser.parse_args()
    for _ in range(arguments.times):
        if arguments.drop_caches:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
        print(json.dumps(start(arguments.directory, arguments.settle_s)), flush=True)


if __name__ == "__main__":
    main()
