"""The machine itself, and the floor: a bare quorum of three processes. See limits.c."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform

from sidebyside.rows import BATCH, Results
from sidebyside.workspace import Workspace, note


def cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def filesystem_of(path: str) -> str:
    best = ("", "unknown")
    with contextlib.suppress(OSError), open("/proc/mounts") as file:
        for line in file:
            _, mount, kind = line.split()[:3]
            inside = os.path.commonpath([mount, path]) == mount
            if inside and len(mount) > len(best[0]):
                best = (mount, kind)
    return best[1]


def bench(args: argparse.Namespace, results: Results) -> None:
    with Workspace(args.dir) as w:
        kind = filesystem_of(w.dir)
        if kind in ("tmpfs", "ramfs", "overlay"):
            note(f"warning: {w.dir} is on {kind}; give --dir on a real disk for durable figures")
        binary = w.compile("limits")
        results.add(
            {
                "system": "machine",
                "workload": "info",
                "cpu": cpu_model(),
                "cpus": os.cpu_count(),
                "kernel": platform.release(),
                "filesystem": kind,
                "probe_fdatasync_ms": w.probe(),
            }
        )
        argv = [binary, w.subdir("data"), str(min(args.seconds, 0.8)), str(BATCH)]
        for line in w.run(argv + args.workloads, 120).splitlines():
            results.add(dict(json.loads(line), version=platform.release(), client="limits.c"))
