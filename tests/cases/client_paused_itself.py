"""A client that was stopped past its deadline called unknown what was long answered. It reads the answer first."""

from __future__ import annotations

import signal
import subprocess
import time

from lab import Case, main

SECONDS = 120
SAMPLE = True

# The client stops itself in the moment when its request has left: the answer comes while it stands still.
CLIENT = """
import asyncio, os, signal, sys, threading
import kimberlite, kimberlite.sync
from kimberlite.net.transport import FrameConnection

addresses, kind = sys.argv[1].split(","), sys.argv[2]
send = FrameConnection.send
armed = [False]

def stopping(self, message):
    send(self, message)
    if armed[0] and message.header.count:
        armed[0] = False
        os.kill(os.getpid(), signal.SIGSTOP)

FrameConnection.send = stopping

async def rounds():
    async with kimberlite.connect(addresses, timeout=5) as log:
        await log.append([b"warm"])
        for number in range(3):
            armed[0] = True
            try:
                print("ok", await log.append([b"%d" % number], timeout=0.3), flush=True)
            except Exception as error:
                print(type(error).__name__, flush=True)

def blocking():
    with kimberlite.sync.connect(addresses, timeout=5) as log:
        log.append([b"warm"])
        for number in range(3):
            armed[0] = True
            try:
                print("ok", log.append([b"%d" % number], timeout=0.3), flush=True)
            except Exception as error:
                print(type(error).__name__, flush=True)

if kind == "sync":
    blocking()
elif kind == "uvloop":
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(rounds())
else:
    asyncio.run(rounds())
"""


def is_stopped(process: subprocess.Popen[str]) -> bool:
    with open(f"/proc/{process.pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] == "T"


def run(case: Case) -> None:
    cluster = case.cluster(3)
    for kind in ("asyncio", "uvloop", "sync"):
        client = subprocess.Popen(
            [case.python, "-P", "-c", CLIENT, ",".join(cluster.addresses), kind],
            stdout=subprocess.PIPE,
            text=True,
            env=case.environment,
        )
        case.own(client)
        while client.poll() is None:
            if is_stopped(client):
                time.sleep(0.6)  # the answer arrives, the deadline passes
                client.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        lines = client.communicate()[0].split("\n")[:-1]
        case.say(f"{kind}: {lines}")
        case.check(len(lines) == 3, f"{kind}: the client said {lines}")
        wrong = [line for line in lines if not line.startswith("ok")]
        case.check(not wrong, f"{kind}: answers lay in the socket, and the client reported {wrong}")


if __name__ == "__main__":
    main(run)
