"""One connection that asks without end stopped the commits of everybody (185 -> 0.4 a second). It gets its share.

Three kinds of abuse, one abuser on each replica: pipelined reads of entries of 1 MiB, status, requests that are
refused. What others commit meanwhile is compared with what they commit while the same abusers, as nice and at the
same rate, send to a sink.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from lab import Case, Cluster, main

SECONDS = 300
SAMPLE = False
ROUNDS = 3
ROUND_S = 4.0
LEAST = 0.7

ABUSER = """
import os, random, socket, sys, threading, time
from kimberlite._fast import framing
from kimberlite.types import Command, Operation
port, kind, rate, told = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[5]
cluster = bytes.fromhex(sys.argv[4])
os.nice(19)
me = os.urandom(16)
make = lambda **fields: framing.make_header(cluster=cluster, client=me, **fields).raw
hello = make(command=Command.HELLO, count=2)
frames = {
    "read": [make(command=Command.READ, position=random.randrange(30), count=1, session=1, nonce=n) for n in range(64)],
    "status": [make(command=Command.STATUS)] * 64,
    "garbage": [make(command=Command.REQUEST, operation=Operation.APPLY, count=1, nonce=n) for n in range(64)],
}[kind]
sent = 0
def drain(sock):
    try:
        while sock.recv(1 << 20): pass
    except OSError: pass
def write():
    while True:
        time.sleep(0.1)
        with open(told + ".new", "w") as file: file.write(str(sent))
        os.rename(told + ".new", told)
threading.Thread(target=write, daemon=True).start()
began = time.monotonic()
while True:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.settimeout(None)
            sock.sendall(hello)
            threading.Thread(target=drain, args=(sock,), daemon=True).start()
            while True:
                sock.sendall(b"".join(frames))
                sent += len(frames)
                if rate: time.sleep(max(0, began + sent / rate - time.monotonic()))
    except OSError:
        time.sleep(0.05)
"""

SINK = """
import socket, sys, threading
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def drain(sock):
    while sock.recv(1 << 20): pass
while True:
    threading.Thread(target=drain, args=(server.accept()[0],), daemon=True).start()
"""

WRITERS = """
import asyncio, sys, time, kimberlite
async def main():
    done = 0
    end = time.monotonic() + float(sys.argv[2])
    async with kimberlite.connect(sys.argv[1].split(","), timeout=20) as log:
        async def write():
            nonlocal done
            while time.monotonic() < end:
                await log.append([b"x" * 100], timeout=20)
                done += 1
        await asyncio.gather(*(write() for _ in range(4)))
    print(done)
asyncio.run(main())
"""


def commits(case: Case, cluster: Cluster, ports: list[int], kind: str, rate: float) -> tuple[float, float]:
    """Commits of others a second, and frames that the abusers sent a second, each."""
    told = [Path(case.directory / f"sent-{port}") for port in ports]
    abusers = [
        case.own(
            subprocess.Popen(
                [sys.executable, "-P", "-c", ABUSER, str(port), kind, str(rate), cluster.cluster_id, str(path)],
                env=case.environment,
            )
        )
        for port, path in zip(ports, told, strict=True)
    ]
    time.sleep(1)
    before = [int(path.read_text()) if path.exists() else 0 for path in told]
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-P", "-c", WRITERS, ",".join(cluster.addresses), str(ROUND_S)],
        env=case.environment,
        capture_output=True,
        text=True,
    )
    took = time.monotonic() - began
    after = [int(path.read_text()) if path.exists() else 0 for path in told]
    for abuser in abusers:
        abuser.kill()
        abuser.wait()
    for path in told:
        path.unlink(missing_ok=True)
    done = int(run.stdout) if run.returncode == 0 else 0
    return done / ROUND_S, sum(b - a for a, b in zip(before, after, strict=True)) / took / len(ports)


def run(case: Case) -> None:
    cluster = case.cluster(3)
    for _ in range(30):
        cluster.append([b"B" * (1 << 20)])
    sinks = [cluster.ports[-1] + 20 + index for index in range(3)]
    for port in sinks:
        case.own(subprocess.Popen([sys.executable, "-P", "-c", SINK, str(port)], env=case.environment))
    for kind in ("read", "status", "garbage"):
        with_abuse = with_sink = 0.0
        for _ in range(ROUNDS):
            abused, rate = commits(case, cluster, cluster.ports, kind, 0)
            with_abuse += abused
            with_sink += commits(case, cluster, sinks, kind, max(rate, 1))[0]
            case.check(cluster.exit_codes == [None] * 3, f"replicas ended: {cluster.exit_codes}")
        ratio = with_abuse / max(with_sink, 1e-9)
        case.say(
            f"{kind}, {rate:.0f} frames/s: {with_abuse / ROUNDS:.0f} commits/s, with a sink {with_sink / ROUNDS:.0f}: "
            f"{ratio:.2f}"
        )
        case.check(ratio >= LEAST, f"{kind}: {ratio:.2f} of the commits with a sink, {LEAST} wanted")


if __name__ == "__main__":
    main(run)
