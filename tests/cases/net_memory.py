"""Closed connections stayed in memory with their buffers (846 MB for a hundred), readers that never read held 30 MiB.

What connections hold is bounded, ends with them, and the one that holds most goes first; a frame that was begun and an
answer that is not taken have their time. What others append is taken meanwhile.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from pathlib import Path

from lab import HOST, Case, Cluster, Raw, main, make_header, until

from kimberlite.types import Command, Operation

SECONDS = 120
SAMPLE = False
MIB = 1 << 20
FRAME_MS = 3000


def resident(cluster: Cluster, index: int) -> float:
    """MiB of the process."""
    pages = Path(f"/proc/{cluster.process(index).pid}/statm").read_text().split()[1]
    return int(pages) * 4096 / MIB


def announce(cluster: Cluster, index: int, size: int) -> Raw:
    """A client that has begun a frame of 4 MiB less a little, and sent `size` bytes of it."""
    raw = Raw(HOST, cluster.ports[index], 5)
    raw.greet()
    request = {"cluster": cluster.cluster, "command": Command.REQUEST}
    raw.send(make_header(client=secrets.token_bytes(16), operation=Operation.REGISTER, **request))  # for somebody else
    raw.receive()
    header = make_header(bytes(4 * MIB - 256), client=raw.client, operation=Operation.APPLY, count=1, **request)
    raw.socket.sendall(header.raw + bytes(256))
    time.sleep(0.02)  # so that the size is known when the rest comes
    raw.socket.sendall(bytes(size - 256))
    return raw


def closed_after(raw: Raw, seconds: float) -> float | None:
    """When the other side has closed it, after how long."""
    began = time.monotonic()
    raw.socket.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        try:
            while raw.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return None
    return time.monotonic() - began


def run(case: Case) -> None:
    cluster = case.cluster(3)
    _, backup, _ = cluster.roles()
    for _ in range(10):
        cluster.append([b"B" * MIB])
    # Connections that have gone.
    before = resident(cluster, backup)
    for _ in range(100):
        announce(cluster, backup, 300_000).close()
    time.sleep(1)
    kept = resident(cluster, backup) - before
    case.say(f"100 connections that had begun a large frame and have gone: {kept:.0f} MiB kept")
    case.check(kept < 40, f"{kept:.0f} MiB kept of connections that have gone")
    # Readers that never read.
    before = resident(cluster, backup)
    readers = []
    for _ in range(20):
        raw = Raw(HOST, cluster.ports[backup], 5)
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.greet()
        for number in range(31):
            fields = {"cluster": cluster.cluster, "command": Command.READ, "client": raw.client}
            raw.send(make_header(position=number % 10, count=1, session=1, nonce=number, **fields))
        readers.append(raw)
    time.sleep(3)
    each = (resident(cluster, backup) - before) / len(readers)
    case.say(f"readers that never read: {each:.1f} MiB each")
    case.check(each < 4, f"a reader that never reads holds {each:.1f} MiB")
    for raw in readers:
        raw.close()
    # Many that send large frames and never end them, more than the bound for all together.
    cluster.stop(backup)
    small = ["limits.connection_bytes_max=67108864", f"limits.frame_ms={FRAME_MS}"]
    prefix = ["sh", "-c", 'exec "$@" ' + " ".join(f"--set {setting}" for setting in small), "sh"]
    cluster.start(backup, prefix)
    cluster.wait()
    before = resident(cluster, backup)
    many = []
    with contextlib.suppress(OSError):
        for _ in range(60):
            many.append(announce(cluster, backup, 3 * MIB))
    grown = resident(cluster, backup) - before
    case.say(f"60 that have sent 3 of 4 MiB: {grown:.0f} MiB more, with a bound of 64")
    case.check(grown < 160, f"{grown:.0f} MiB more with a bound of 64")
    for raw in many:
        raw.close()
    # A byte now and then.
    raw = announce(cluster, backup, 300)
    took = closed_after(raw, 3 * FRAME_MS / 1000)
    case.check(took is not None, f"a frame that does not become whole is waited for longer than {3 * FRAME_MS} ms")
    case.say(f"a frame that does not become whole: ended after {took:.1f} s, with limits.frame_ms={FRAME_MS}")
    case.check(cluster.exit_codes == [None] * 3, f"replicas ended: {cluster.exit_codes}")
    case.check(until(lambda: cluster.append([b"after"], timeout=5) >= 10, 10), "an append succeeds")


if __name__ == "__main__":
    main(run)
