"""A thousand idle clients ended every replica: no descriptor was left for the next segment. Clients get what is left.

The soft limit is raised to the hard one at the start. Under a hard limit of 1,024 the surplus is refused in words;
appends over three segments succeed and the status is answered, under both.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time

from lab import HOST, Case, Cluster, main, make_header

from kimberlite._fast import framing
from kimberlite.types import Command

SECONDS = 240
SAMPLE = False
IDLE = 2000  # on each replica
EVENT = 1 << 20
EVENTS = 26  # more than three segments of 8 MiB


def crowd(cluster: Cluster) -> list[socket.socket]:
    """Idle clients, greeted as far as they are let in."""
    hello = make_header(cluster=cluster.cluster, command=Command.HELLO, client=b"s" * 16, count=2).raw
    sockets = []
    for number in range(IDLE * cluster.size):
        sock = socket.create_connection((HOST, cluster.ports[number % cluster.size]), 10)
        sock.sendall(hello)
        sockets.append(sock)
    return sockets


def told(sockets: list[socket.socket]) -> tuple[int, int, int]:
    """Of all: held, refused in words, closed without a word."""
    held = refused = cut = 0
    waiting = select.poll()
    for sock in sockets:
        waiting.register(sock, select.POLLIN)
    readable = {number for number, _ in waiting.poll(0)}
    for sock in sockets:
        received, is_open = b"", True
        if sock.fileno() in readable:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                while part := sock.recv(1 << 16):
                    received += part
                is_open = False
        commands = [frame[0].command for frame in framing.parse(received, 0, len(received), 1 << 20)[0]]
        if Command.REJECT in commands:
            refused += 1
        elif not is_open or Command.HELLO not in commands:
            cut += 1
        else:
            held += 1
    return held, refused, cut


def try_with(case: Case, prefix: list[str], held_least: int) -> None:
    cluster = case.cluster(3, start=False)
    for index in range(3):
        cluster.start(index, prefix)
    cluster.wait()
    sockets = crowd(cluster)
    time.sleep(3)  # until all that are refused are told
    case.check(cluster.exit_codes == [None] * 3, f"replicas ended: exit codes {cluster.exit_codes}")
    held, refused, cut = told(sockets)
    case.say(f"{' '.join(prefix)}: held {held}, refused in words {refused}, without a word {cut}")
    case.check(held >= held_least and not cut, f"held {held}, refused {refused}, cut off without a word {cut}")
    began = time.monotonic()
    for _ in range(EVENTS):
        cluster.append([b"e" * EVENT], timeout=15)
    done = case.command("status", "--json", "--addresses", ",".join(cluster.addresses))
    case.say(f"{EVENTS} events of 1 MiB in {time.monotonic() - began:.1f} s; status: exit code {done.returncode}")
    case.check(done.returncode == 0, f"status: exit code {done.returncode}: {done.stdout}{done.stderr}")
    for index in range(3):
        case.say(f"replica {index}: {cluster.tells(index).get('connections')}")
    for sock in sockets:
        sock.close()
    for index in range(3):
        cluster.stop(index)


def run(case: Case) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (8000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    shell = ["sh", "-c"]
    try_with(case, [*shell, 'ulimit -Sn 1024; exec "$@"', "sh"], 3 * IDLE)
    try_with(case, [*shell, 'ulimit -n 1024; exec "$@"', "sh"], 3 * 400)


if __name__ == "__main__":
    main(run)
