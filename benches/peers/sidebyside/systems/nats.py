"""NATS JetStream: file storage, three replicas, loaded by natspub.c; as shipped, and with every commit synced."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket

from sidebyside.rows import REPLICAS, SIZE, WARMUP, Measured, Results, Row, concurrency_of
from sidebyside.workspace import Workspace, free_ports, need, version_of

WINDOW = 8192  # in place of a batch
ALWAYS_SINCE = (2, 10)


class NatsConnection:
    """As much of the NATS protocol as a request and its answer take."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.file = self.socket.makefile("rb")
        self.file.readline()
        self.socket.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB _INBOX.p 1\r\n')

    def request(self, subject: str, body: Row | None) -> Row:
        payload = json.dumps(body).encode() if body is not None else b""
        head = f"PUB {subject} _INBOX.p {len(payload)}\r\n".encode()
        self.socket.sendall(head + payload + b"\r\n")
        while line := self.file.readline():
            if line.startswith(b"MSG"):
                answer = self.file.read(int(line.split()[-1]))
                self.file.readline()
                return dict(json.loads(answer))
            if line.startswith(b"PING"):
                self.socket.sendall(b"PONG\r\n")
        raise ConnectionError("closed")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class NatsCluster:
    def __init__(self, workspace: Workspace, binary: str, always: bool) -> None:
        self.w, self.binary, self.always = workspace, binary, always
        ports = free_ports(2 * REPLICAS)
        self.ports, self.peer_ports = ports[:REPLICAS], ports[REPLICAS:]

    def start_all(self) -> None:
        routes = ", ".join(f'"nats-route://127.0.0.1:{p}"' for p in self.peer_ports)
        for i in range(REPLICAS):
            sync = "sync_interval: always" if self.always else ""
            with open(self.w.path(f"n{i}.conf"), "w") as file:
                file.write(
                    f"server_name: n{i}\n"
                    f'listen: "127.0.0.1:{self.ports[i]}"\n'
                    f'jetstream {{ store_dir: "{self.w.subdir(f"n{i}")}"\n {sync} }}\n'
                    f'cluster {{ name: c, listen: "127.0.0.1:{self.peer_ports[i]}"\n'
                    f" routes: [{routes}] }}\n"
                )
            self.w.spawn([self.binary, "-c", self.w.path(f"n{i}.conf")], f"n{i}")
        self.w.wait(self.create_stream, "NATS stream", 40)

    def request(self, subject: str, body: Row | None = None) -> Row:
        with contextlib.closing(NatsConnection(self.ports[0])) as connection:
            return connection.request(subject, body)

    def create_stream(self) -> bool:
        stream = {"name": "s", "subjects": ["s.>"], "storage": "file", "num_replicas": REPLICAS}
        return "error" not in self.request("$JS.API.STREAM.CREATE.s", stream)

    def leader_if_ready(self) -> tuple[int] | None:
        cluster = self.request("$JS.API.STREAM.INFO.s")["cluster"]
        others = cluster.get("replicas", [])
        if len(others) == REPLICAS - 1 and all(other.get("current") for other in others):
            return (int(cluster["leader"][1:]),)
        return None

    def leader(self) -> int:
        return self.w.wait(self.leader_if_ready, "NATS stream leader")[0]


def bench(args: argparse.Namespace, results: Results) -> None:
    binary = need("nats-server", "NATS_SERVER")
    version = version_of([binary, "--version"], r"v(\d\S*)")
    modes = [("nats-lazy", False, "lazy: acknowledged before fsync, which is every 2 min")]
    if tuple(int(x) for x in version.split(".")[:2]) >= ALWAYS_SINCE:
        modes.append(("nats-always", True, "fsync per group commit (sync_interval: always)"))
    else:
        results.skip("nats-always", f"{version} has no sync_interval: always; set NATS_SERVER to 2.10 or newer")
    for system, always, durable in modes:
        with Workspace(args.dir) as w:
            publisher = w.compile("natspub")
            cluster = NatsCluster(w, binary, always)
            probe = w.probe()
            cluster.start_all()
            m = Measured(results, system, version, durable, probe)
            for workload in args.workloads:
                window = concurrency_of(workload) or WINDOW
                port = cluster.ports[cluster.leader()]
                argv = [publisher, str(port), "s.a", str(window), str(SIZE), str(WARMUP)]
                figures = json.loads(w.run([*argv, f"{args.seconds:g}"], args.seconds + 40))
                client = f"natspub.c, 1 connection, window {window}, to the stream's leader"
                m.row(workload, figures, client, concurrency=window)
