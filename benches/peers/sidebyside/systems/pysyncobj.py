"""PySyncObj: three processes of pso_node.py, the load inside of the leader's."""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

from sidebyside.rows import REPLICAS, SIZE, WARMUP, Measured, Results, Row, concurrency_of
from sidebyside.workspace import PEERS, Workspace, free_ports, need_python

MODES = [
    ("pysyncobj-lazy", "lazy", "lazy: memory-mapped journal, never flushed (as shipped)"),
    ("pysyncobj-fsync", "fsync", "msync per group, before each send (patched by pso_node.py)"),
]


class PsoNode:
    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process

    def ask(self, line: str) -> Row:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


def start_cluster(w: Workspace, python: str, durability: str, batching: str) -> tuple[PsoNode, str]:
    """Start three nodes; return the leader and the library's version."""
    ports = free_ports(REPLICAS)
    listed = ",".join(map(str, ports))
    nodes = []
    for i in range(REPLICAS):
        name = f"{batching}{i}"
        argv = [python, str(PEERS / "pso_node.py"), str(i), listed, w.subdir(name), durability, batching]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        nodes.append(PsoNode(w.spawn(argv, name, **pipes)))

    def ready() -> tuple[PsoNode, str] | None:
        answers = [node.ask("leader") for node in nodes]
        leaders = [node for node, answer in zip(nodes, answers, strict=True) if answer["leader"]]
        if len(leaders) == 1 and all(answer["ready"] for answer in answers):
            return leaders[0], answers[0]["version"]
        return None

    return w.wait(ready, "PySyncObj")


def bench(args: argparse.Namespace, results: Results) -> None:
    python = need_python("pysyncobj")
    for system, durability, durable in MODES:
        for batching in ("single", "batch"):
            chosen = [workload for workload in args.workloads if concurrency_of(workload)]
            wanted = [workload for workload in chosen if (workload == "c1") == (batching == "single")]
            if not wanted:
                continue
            with Workspace(args.dir) as w:
                probe = w.probe()
                leader, version = start_cluster(w, python, durability, batching)
                m = Measured(results, system, version, durable, probe)
                for workload in wanted:
                    n = concurrency_of(workload)
                    figures = leader.ask(f"run {n} {SIZE} {WARMUP} {args.seconds:g}")
                    if not figures["n"]:
                        raise RuntimeError(f"{system} {workload}: nothing was answered")
                    settings = "entry by entry" if batching == "single" else "1 ms batches"
                    m.row(workload, figures, f"pso_node.py, in the leader's process, {settings}")
