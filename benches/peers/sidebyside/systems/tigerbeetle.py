"""TigerBeetle: transfers, by its own load generator and, where that has no such shape, by its Python client."""

from __future__ import annotations

import argparse
import json
import re
import subprocess

from sidebyside.rows import BATCH, REPLICAS, WARMUP, Measured, Results, Row, concurrency_of
from sidebyside.workspace import PEERS, Skip, Workspace, free_ports, need, need_python, version_of

SESSIONS = 32  # with 48 or more the run does not end


def found_in(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"tigerbeetle benchmark printed no {pattern!r}: {text[-400:]}")
    return match[1]


class TigerBeetleCluster:
    def __init__(self, workspace: Workspace, binary: str) -> None:
        self.w, self.binary = workspace, binary
        self.addresses = ",".join(f"127.0.0.1:{p}" for p in free_ports(REPLICAS))

    def start_all(self) -> None:
        for i in range(REPLICAS):
            data = self.w.path(f"{i}.tigerbeetle")
            shape = ["--cluster=0", f"--replica={i}", f"--replica-count={REPLICAS}"]
            self.w.run([self.binary, "format", *shape, data], 60)
            start = [self.binary, "start", f"--addresses={self.addresses}", "--cache-grid=256MiB"]
            self.w.spawn([*start, data], f"r{i}")

    def load(self, transfers: int, batch: int, clients: int = 1, timeout: float = 60) -> Row:
        """The server's own load generator; latencies come in whole milliseconds."""
        shown = self.w.run([
            self.binary, "benchmark", f"--addresses={self.addresses}", "--query-count=0",
            "--account-count=1000", f"--transfer-count={transfers}",
            f"--transfer-batch-count={batch}", f"--clients={clients}",
        ], timeout)  # fmt: skip
        seconds = float(found_in(r"batches in ([\d.]+) s", shown))
        accepted = float(found_in(r"load accepted = (\d+)", shown))
        figures: Row = {"n": transfers, "ops_per_s": transfers / seconds if seconds > 0.2 else accepted}
        for q in ("50", "99"):
            ms = int(found_in(rf"batch latency p{q} += (\d+) ms", shown))
            figures[f"p{q}_ms"] = ms if ms else None  # 0 says only "below 1"
        return figures

    def through_python(self, python: str, n: int, seconds: float) -> Row:
        """N coroutines of one session, which its client merges into requests."""
        argv = [python, str(PEERS / "tb_client.py"), self.addresses, str(n), str(WARMUP), f"{seconds:g}"]
        return dict(json.loads(self.w.run(argv, seconds + 30).splitlines()[-1]))


def bench(args: argparse.Namespace, results: Results) -> None:
    binary = need("tigerbeetle", "TIGERBEETLE")
    version = version_of([binary, "version"], r"TigerBeetle version (\S+)")
    with Workspace(args.dir) as w:
        cluster = TigerBeetleCluster(w, binary)
        probe = w.probe()
        cluster.start_all()
        rate = cluster.load(100, 1)["ops_per_s"]  # waits for the cluster, and warms it
        m = Measured(results, "tigerbeetle", version, "O_DIRECT|O_DSYNC per commit", probe)
        if "c1" in args.workloads:
            figures = cluster.load(int(rate * args.seconds) or 1, 1)
            m.row("c1", figures, "tigerbeetle benchmark, 1 session")
        python_client(args, results, cluster, m)
        if "c64" in args.workloads and args.variants:
            sessions(args, results, cluster, m)
        if "batch" in args.workloads:
            rate = cluster.load(10 * BATCH, BATCH)["ops_per_s"]
            figures = cluster.load(max(int(rate * args.seconds) // BATCH, 1) * BATCH, BATCH)
            m.row("batch", figures, "tigerbeetle benchmark, 1 session", batch=BATCH)


def python_client(args: argparse.Namespace, results: Results, cluster: TigerBeetleCluster, m: Measured) -> None:
    wanted = [n for workload in args.workloads if (n := concurrency_of(workload)) and (n > 1 or args.variants)]
    if not wanted:
        return
    try:
        python = need_python("tigerbeetle")
    except Skip as reason:
        results.skip("tigerbeetle-python", reason)
        return
    for n in wanted:
        figures = cluster.through_python(python, n, args.seconds)
        client = f"Python client, 1 session, {n} coroutines, which the client merges"
        m.row(f"c{n}", figures, client, system="tigerbeetle-python" if n == 1 else None)


def sessions(args: argparse.Namespace, results: Results, cluster: TigerBeetleCluster, m: Measured) -> None:
    client = f"tigerbeetle benchmark, {SESSIONS} sessions of one transfer"
    try:
        figures = cluster.load(int(150 * args.seconds) or 1, 1, SESSIONS, timeout=20)
        m.row(f"c{SESSIONS}", figures, client, system="tigerbeetle-sessions")
    except subprocess.TimeoutExpired:
        results.skip("tigerbeetle-sessions", f"{client}: did not end within 20 s")
