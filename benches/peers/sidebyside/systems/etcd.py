"""etcd: three members with default settings, loaded by h2load; also a target of failover."""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import itertools
import json
import os
import signal
import struct
import subprocess
from collections.abc import Sequence
from typing import Any

from sidebyside.failover import BEHIND_MAX
from sidebyside.rows import REPLICAS, SIZE, Measured, Results, Row, concurrency_of, percentiles
from sidebyside.workspace import Workspace, free_ports, need, version_of

DURABLE = "fsync per group commit"
CONNECTIONS = 4  # of h2load, which share the streams
KEYS_PER_READ = 5_000


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class EtcdCluster:
    """A target of failover: each append puts a key of its own through the JSON gateway."""

    system = "etcd"
    durable = DURABLE
    client = "JSON gateway, 1 connection; on a failure or a timeout the client goes to the next member"

    def __init__(self, workspace: Workspace) -> None:
        self.w, self.binary = workspace, need("etcd")
        self.version = version_of([self.binary, "--version"], r"etcd Version: (\S+)")
        ports = free_ports(2 * REPLICAS)
        self.ports, self.peer_ports = ports[:REPLICAS], ports[REPLICAS:]
        self.processes: dict[int, subprocess.Popen[Any]] = {}
        self.numbers = itertools.count(1)

    # Life

    def start(self, i: int, existing: bool = False) -> None:
        cluster = ",".join(f"n{j}=http://127.0.0.1:{p}" for j, p in enumerate(self.peer_ports))
        client = f"http://127.0.0.1:{self.ports[i]}"
        peer = f"http://127.0.0.1:{self.peer_ports[i]}"
        self.processes[i] = self.w.spawn([
            self.binary,
            "--name", f"n{i}",
            "--data-dir", self.w.path(f"n{i}"),
            "--listen-client-urls", client,
            "--advertise-client-urls", client,
            "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer,
            "--initial-cluster", cluster,
            "--initial-cluster-state", "existing" if existing else "new",
            "--quota-backend-bytes", str(8 << 30),
            "--log-level", "error",
        ], f"n{i}")  # fmt: skip

    def start_all(self) -> None:
        for i in range(REPLICAS):
            self.start(i)
        self.leader()

    def kill(self, i: int) -> None:
        self.w.kill(self.processes[i])

    def restart(self, i: int) -> None:
        self.start(i, existing=True)

    def pause(self, i: int) -> None:
        self.processes[i].send_signal(signal.SIGSTOP)

    def resume(self, i: int) -> None:
        self.processes[i].send_signal(signal.SIGCONT)

    # State

    def call(self, i: int, path: str, body: Row, timeout: float = 2.0) -> Row:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.ports[i], timeout=timeout)) as c:
            c.request("POST", path, json.dumps(body))
            return dict(json.loads(c.getresponse().read()))

    def status(self, i: int) -> Row:
        return self.call(i, "/v3/maintenance/status", {})

    def leader_if_ready(self, behind_max: int) -> tuple[int] | None:
        """The leader, when all members agree and none is further behind than that."""
        states = [self.status(i) for i in range(REPLICAS)]
        leaders = {state.get("leader", "0") for state in states}
        indexes = [int(state["raftAppliedIndex"]) for state in states]
        if len(leaders) != 1 or leaders == {"0"} or max(indexes) - min(indexes) > behind_max:
            return None
        ids = [state["header"]["member_id"] for state in states]
        return (ids.index(leaders.pop()),)

    def leader(self, behind_max: int = BEHIND_MAX) -> int:
        return self.w.wait(lambda: self.leader_if_ready(behind_max), "etcd")[0]

    def revision(self) -> int:
        return int(self.status(self.leader())["header"]["revision"])

    # Failover

    def connect(self, i: int, timeout: float) -> EtcdConnection:
        return EtcdConnection(self.ports[i], timeout, self.numbers)

    def missing(self, receipts: Sequence[bytes]) -> int:
        self.leader(behind_max=0)
        return max(len(set(receipts) - self.keys(i)) for i in range(REPLICAS))

    def keys(self, i: int) -> set[bytes]:
        """All that this member has applied, as it says by itself."""
        keys: set[bytes] = set()
        first = b"\0"
        while True:
            part = {"key": base64_text(first), "range_end": base64_text(b"\0"), "limit": str(KEYS_PER_READ)}
            found = self.call(i, "/v3/kv/range", {**part, "keys_only": True, "serializable": True}, timeout=20)
            page = [base64.b64decode(pair["key"]) for pair in found.get("kvs", [])]
            keys.update(page)
            if not found.get("more"):
                return keys
            first = page[-1] + b"\0"


class EtcdConnection:
    """One HTTP connection. A receipt is the key that was put."""

    VALUE = base64_text(b"v" * SIZE)

    def __init__(self, port: int, timeout: float, numbers: itertools.count[int]) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self.numbers = numbers

    def append(self) -> bytes | None:
        key = b"%012d" % next(self.numbers)
        self.http.request("POST", "/v3/kv/put", json.dumps({"key": base64_text(key), "value": self.VALUE}))
        response = self.http.getresponse()
        response.read()
        return key if response.status == 200 else None

    def close(self) -> None:
        self.http.close()


def protobuf_bytes(field: int, value: bytes) -> bytes:
    length, n = b"", len(value)
    while n > 0x7F:
        length, n = length + bytes([n & 0x7F | 0x80]), n >> 7
    return bytes([field << 3 | 2]) + length + bytes([n]) + value


def grpc_put() -> bytes:
    message = protobuf_bytes(1, b"k") + protobuf_bytes(2, b"v" * SIZE)
    return struct.pack(">BI", 0, len(message)) + message


def h2load(w: Workspace, port: int, connections: int, streams: int, seconds: float) -> Row:
    """Throughput and percentiles of gRPC puts, from h2load's request log."""
    with open(w.path("put.bin"), "wb") as file:
        file.write(grpc_put())
    log = w.path("h2load.log")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(log)
    w.run([
        need("h2load"), "-D", f"{seconds * 1e3:.0f}ms", "--warm-up-time", "1",
        "-c", str(connections), "-m", str(streams), "-t", "1", "-d", w.path("put.bin"),
        "-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file", log,
        f"http://127.0.0.1:{port}/etcdserverpb.KV/Put",
    ], seconds + 30)  # fmt: skip
    done: list[float] = []
    ends: list[int] = []
    errors = 0
    with open(log) as requests:
        for line in requests:
            start, status, micros = (int(x) for x in line.split()[:3])
            if status != 200:
                errors += 1
                continue
            ends.append(start + micros)
            done.append(micros / 1e3)
    figures = percentiles(done)
    return {**figures, "ops_per_s": len(done) / ((max(ends) - min(ends)) / 1e6), "errors": errors}


def bench(args: argparse.Namespace, results: Results) -> None:
    need("h2load")
    with Workspace(args.dir) as w:
        cluster = EtcdCluster(w)
        probe = w.probe()
        cluster.start_all()
        m = Measured(results, "etcd", cluster.version, DURABLE, probe)
        for workload in args.workloads:
            n = concurrency_of(workload)
            if not n:
                continue  # its transactions hold 128 operations, which is another thing
            shapes: list[tuple[int, str | None]] = [(min(n, CONNECTIONS), None)]
            if n > CONNECTIONS and args.variants:
                shapes.append((n, "etcd-connections"))
            for connections, system in shapes:
                streams = max(n // connections, 1)
                before = cluster.revision()
                figures = h2load(w, cluster.ports[cluster.leader()], connections, streams, args.seconds)
                # A gRPC error is HTTP 200 with a trailer that h2load does not
                # read; each put that took effect raised the revision by one.
                missing = figures["n"] - (cluster.revision() - before)
                figures["errors"] += max(missing, 0)
                client = f"h2load gRPC to the leader, {connections} connections x {streams} streams"
                m.row(workload, figures, client, system=system)
