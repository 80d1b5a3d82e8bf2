"""Redis: a primary and two replicas that sync every write, XADD and WAIT by respload.c. No consensus."""

from __future__ import annotations

import argparse
import json
import socket

from sidebyside.rows import BATCH, REPLICAS, SIZE, WARMUP, Measured, Results, concurrency_of
from sidebyside.workspace import Workspace, free_ports, need, version_of

WAIT = 1  # replicas besides the primary: two of three hold the entry
DURABLE = "fsync per event-loop turn, WAIT 1; replication is asynchronous, no consensus"


def start(w: Workspace, binary: str, ports: list[int]) -> None:
    for i, port in enumerate(ports):
        settings = {
            "port": port, "bind": "127.0.0.1", "dir": w.subdir(f"n{i}"), "save": "",
            "appendonly": "yes", "appendfsync": "always", "repl-diskless-sync-delay": "0",
            "auto-aof-rewrite-percentage": "0",
        }  # fmt: skip
        if i:
            settings["replicaof"] = f"127.0.0.1 {ports[0]}"
        argv = [binary]
        for key, value in settings.items():
            argv += [f"--{key}", *str(value).split(" ")]
        w.spawn(argv, f"n{i}")

    def replicated() -> bool:
        with socket.create_connection(("127.0.0.1", ports[0]), timeout=2) as s:
            s.sendall(b"INFO replication\r\n")
            return s.recv(65536).decode().count("state=online") == REPLICAS - 1

    w.wait(replicated, "Redis replicas")


def bench(args: argparse.Namespace, results: Results) -> None:
    binary = need("redis-server")
    version = version_of([binary, "--version"], r"v=(\S+)")
    with Workspace(args.dir) as w:
        client = w.compile("respload")
        ports = free_ports(REPLICAS)
        probe = w.probe()
        start(w, binary, ports)
        m = Measured(results, "redis", version, DURABLE, probe)
        for workload in args.workloads:
            n = concurrency_of(workload)
            batch = 1 if n else BATCH
            argv = [client, ports[0], n or 1, batch, SIZE, WAIT, WARMUP, f"{args.seconds:g}"]
            figures = json.loads(w.run([str(a) for a in argv], args.seconds + 40))
            how = f"respload.c, {n or 1} connections of XADD x {batch} then WAIT {WAIT}"
            m.row(workload, figures, how, batch=batch)
