"""The telemetry process: `python -m kimberlite.telemetry`, started by the node (telemetry.supervisor).

Everything that it serves it was handed as a descriptor, so that it can not take the region of the replica's next life
for its own. Ends when the node ends in order. When it crashed, the last values are served until the next start of
the same replica takes the address over, or LINGER_S have passed.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from kimberlite import process
from kimberlite.errors import KimberliteError
from kimberlite.telemetry import catalogue, region
from kimberlite.telemetry.pages import Pages
from kimberlite.telemetry.reading import Reader
from kimberlite.telemetry.server import POLL_S, TelemetryServer
from kimberlite.telemetry.sinks import Settings, make
from kimberlite.telemetry.sinks.prometheus import Exposition
from kimberlite.telemetry.sinks.pump import Pumps

SAMPLE_S = 1.0  # how old the resources of a replica may be when it crashes
LINGER_S = 60.0  # four scrapes at the usual interval of 15 s
YIELD_POLL_S = 0.05


def serve(
    descriptor: int, name: Path, listener: socket.socket, parent: int, units: str, sinks: Settings, is_first: bool
) -> None:
    """Serve until there is nobody to serve for. descriptor: of the region's file. name: where the next start puts
    its own. parent: read end of a pipe that the node holds open. sinks: see telemetry.sinks. is_first: this is the
    first process of the replica's life."""
    reader = Reader(region.open_descriptor(descriptor))
    pages = Pages(reader, units, is_first)
    server = TelemetryServer(listener, reader, Exposition(pages).render, pages.drop)
    threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True).start()
    pumps = Pumps(list(make(sinks, pages.about)), pages)
    signal.signal(signal.SIGTERM, _end)  # the replica ends in order, and waits for us: for a moment
    try:
        while not _closed(parent, SAMPLE_S):
            reader.sample_process()
            pumps.tick()
    except _EndedError:
        pumps.finish()
        return
    reader.replica_gone = True
    until = time.monotonic() + LINGER_S
    while not reader.region.ended and not region.is_replaced(name, descriptor) and time.monotonic() < until:
        pumps.tick()
        time.sleep(YIELD_POLL_S)


class _EndedError(Exception):
    """The replica has told us to end."""


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _EndedError


def _closed(descriptor: int, timeout: float) -> bool:
    """Whether the other end of a pipe is closed within a time."""
    readable, _, _ = select.select([descriptor], [], [], timeout)
    return bool(readable) and os.read(descriptor, 1) == b""


def main() -> int:
    process.open_standard_descriptors()
    parser = argparse.ArgumentParser(prog="kimberlite.telemetry", description=__doc__)
    parser.add_argument("--region", type=int, required=True)
    parser.add_argument("--name", type=Path, required=True)
    parser.add_argument("--listener", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--units", choices=catalogue.UNITS, required=True)
    parser.add_argument("--sinks", type=json.loads, required=True)
    parser.add_argument("--first", action="store_true")
    arguments = parser.parse_args()
    process.ignore_stray_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, whose end is ours
    try:
        listener = socket.socket(fileno=arguments.listener)
        told = arguments.units, arguments.sinks, arguments.first
        serve(arguments.region, arguments.name, listener, arguments.parent, *told)
    except (KimberliteError, OSError) as error:
        process.say(f"kimberlite.telemetry: {type(error).__name__}: {error}\n", process.END_S)
        return error.exit_code if isinstance(error, KimberliteError) else 1
    # Connections that are still open would keep their threads, and with them the interpreter's end.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
