"""After a link was cut for 20 s a peer came back 8 s late: the kernel waits longer and longer between its attempts.

Replicas in network namespaces of their own, on one bridge. A replica's port is taken off the bridge, so that packets
vanish, or its link is set down; 20 s later it is put back, and the primary hears the replica within 2 s. Needs root.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from lab import Case, main, until

SECONDS = 200
SAMPLE = False
CUT_S = 20.0
BACK_S = 2.0
PORT = 7100

# Asks the replicas again and again, and writes down what each said last: [time, document].
WATCHER = """
import json, os, socket, sys, time
from kimberlite._fast import framing
from kimberlite.types import Command
out, addresses = sys.argv[1], sys.argv[2:]
hello = framing.make_header(cluster=bytes(16), command=Command.HELLO, client=b"w" * 16, count=2).raw
ask = framing.make_header(cluster=bytes(16), command=Command.STATUS, client=b"w" * 16).raw
seen = {}
def status(host):
    with socket.create_connection((host, 7100), 0.2) as sock:
        sock.settimeout(0.5)
        sock.sendall(hello + ask)
        received = b""
        while True:
            part = sock.recv(1 << 16)
            if not part: return None
            received += part
            for header, body in framing.parse(received, 0, len(received), 1 << 20)[0]:
                if header.command == Command.STATUS_REPLY: return json.loads(bytes(body))
while True:
    for index, host in enumerate(addresses):
        try: document = status(host)
        except OSError: continue
        seen[index] = [time.monotonic(), document]
        with open(out + ".new", "w") as file: json.dump(seen, file)
        os.rename(out + ".new", out)
    time.sleep(0.02)
"""


class Net:
    """Namespaces of replicas and of one observer on a bridge."""

    def __init__(self, count: int) -> None:
        self.mark = secrets.token_hex(2)
        self.hub = f"km-{self.mark}-hub"
        self.names = [f"km-{self.mark}-{index}" for index in range(count)]
        self.hosts = [f"10.77.0.{index + 1}" for index in range(count)]

    def __enter__(self) -> Net:
        self.ip("netns", "add", self.hub)
        self.inside(self.hub, "ip", "link", "add", "name", "br0", "type", "bridge")
        self.inside(self.hub, "ip", "addr", "add", "10.77.0.254/24", "dev", "br0")
        self.inside(self.hub, "ip", "link", "set", "dev", "br0", "up")
        for index, (name, host) in enumerate(zip(self.names, self.hosts, strict=True)):
            self.ip("netns", "add", name)
            port = f"km{self.mark}{index}"
            self.ip(
                "link", "add", "name", port, "netns", self.hub, "type", "veth", "peer", "name", "eth0", "netns", name
            )
            self.inside(self.hub, "ip", "link", "set", "dev", port, "master", "br0", "up")
            self.inside(name, "ip", "addr", "add", f"{host}/24", "dev", "eth0")
            self.inside(name, "ip", "link", "set", "dev", "eth0", "up")
            self.inside(name, "ip", "link", "set", "dev", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self.names, self.hub):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def inside(self, name: str, *command: str) -> None:
        self.ip("netns", "exec", name, *command)

    def cut(self, index: int, how: str) -> None:
        port = f"km{self.mark}{index}"
        self.inside(self.hub, "ip", "link", "set", "dev", port, *(["nomaster"] if how == "lost" else ["down"]))

    def heal(self, index: int) -> None:
        self.inside(self.hub, "ip", "link", "set", "dev", f"km{self.mark}{index}", "master", "br0", "up")


def seen(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def heard_since(path: Path, lead: int, victim: int, healed: float) -> float | None:
    """When the primary has heard of the victim, if that was after the cut."""
    at, said = seen(path)[str(lead)]
    silent = next(peer["last_heard_s"] for peer in said["peers"] if peer["replica"] == victim)
    return at - silent if silent is not None and at - silent > healed else None


def run(case: Case) -> None:
    if os.geteuid():
        case.say("needs root: nothing was tried")
        return
    with Net(3) as net:
        addresses = ",".join(f"{host}:{PORT}" for host in net.hosts)
        cluster = secrets.token_hex(16)
        for index, name in enumerate(net.names):
            directory = str(case.directory / str(index))
            settings = ["telemetry.enabled=false", "storage.segment_bytes=8388608", *case.storage_settings]
            case.command(
                *("format", "--cluster", cluster, "--replica", str(index), "--addresses", addresses),
                *(part for setting in settings for part in ("--set", setting)),
                directory,
                check=True,
            )
            log = (case.directory / f"{index}.log").open("wb")
            case.own(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *case.kimberlite, "start", directory],
                    env=case.environment,
                    stdout=log,
                    stderr=log,
                )
            )
        told = case.directory / "seen"
        watcher = [sys.executable, "-P", "-c", WATCHER, str(told), *net.hosts]
        case.own(subprocess.Popen(["ip", "netns", "exec", net.hub, *watcher], env=case.environment))

        def leading() -> list[int]:
            """Who leads, when all are seen and one of them does."""
            found = [int(index) for index, (_, said) in seen(told).items() if said and said["role"] == "primary"]
            return found if len(seen(told)) == 3 and len(found) == 1 else []

        for how in ("lost", "down"):
            found = until(leading, 40)
            case.check(found, f"nobody leads: {seen(told)}")
            (lead,) = found
            victim = (lead + 1) % 3
            time.sleep(1)
            net.cut(victim, how)
            time.sleep(CUT_S)
            healed = time.monotonic()
            net.heal(victim)
            heard_at = until(partial(heard_since, told, lead, victim, healed), 30, 0.01)
            case.check(heard_at, "the replica was not heard again within 30 s")
            case.say(f"packets {how}: heard {heard_at - healed:.2f} s after the cut")
            case.check(heard_at - healed <= BACK_S, f"packets {how}: back after {heard_at - healed:.1f} s")
            time.sleep(3)


if __name__ == "__main__":
    main(run)
