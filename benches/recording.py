"""What recording costs: instructions of one commit with metrics, with `telemetry.record = false`, and without a call.

    python benches/recording.py [--ops 600] [--json]

Three replicas in one process, as in commit.py, and around each of them the calls that a node makes for what comes in,
what goes out, and where the time goes. Counted with valgrind's callgrind, the start taken off: the same whatever else
the machine does. `on` records, `off` has the recorder that does nothing, `none` has none of the calls. Gates:
what is left of recording when it is off is at most 0.2 % of all instructions.

Beside it stands what the processor says of two clusters of processes: `kimberlite bench --ab telemetry.record`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commit
from commit import REPLICAS, OneProcess, OneReplica

from kimberlite._fast import framing
from kimberlite._fast.metrics import Region
from kimberlite.node.driver import Driver
from kimberlite.node.effects import Effects, PlainEffects
from kimberlite.node.measured import MeasuredMachine
from kimberlite.state_machine import EventLog
from kimberlite.telemetry import catalogue
from kimberlite.telemetry.recorder import Recorder
from kimberlite.telemetry.recording.loop import PROTOCOL
from kimberlite.telemetry.silent import SilentRecorder
from kimberlite.types import ClientId, Message

MODES = ("on", "off", "none")
LEFT_MAX = 0.002


class Nobody:
    """What is recorded, when nobody asks."""

    record = bool


class Recorded(OneReplica):
    """A replica with the calls of a node around it: see net.transport, node.node."""

    def __init__(self, mode: str, index: int, directory: Path, now: Callable[[], int]) -> None:
        super().__init__(index, directory, now)
        self.recorder = recorder_of(mode, index)
        machine: Any = EventLog()
        network: Any = self
        if self.recorder is not None:
            if mode == "on":
                machine = MeasuredMachine(machine, self.recorder.executions)
            network = (Effects if mode == "on" else PlainEffects)(network, network, self.recorder)
        old = self.driver
        self.driver = Driver(self.core, old.store, machine, network, self.recorder or Nobody(), now, old._checkpoints)

    def send(self, replica: int, message: Message) -> None:
        if self.recorder is not None:
            self.recorder.traffic.message_sent(message.header.command, message.header.size)
        super().send(replica, message)

    def send_client(self, client: ClientId, message: Message) -> None:
        if self.recorder is not None:
            self.recorder.traffic.message_sent(message.header.command, message.header.size)
        super().send_client(client, message)

    def take(self, frame: bytearray, is_request: bool = False) -> int:
        traffic = self.recorder.traffic if self.recorder is not None else None
        if traffic is not None:
            traffic.receiving()
        frames, _, _ = framing.parse(frame, 0, len(frame), commit.FRAME_MAX, commit.CLUSTER)
        messages = [Message(header, body) for header, body in frames]
        if traffic is not None:
            traffic.received(frames, len(frame))
        if self.recorder is not None:
            self.recorder.loop.switch(PROTOCOL)
        self.driver.on_input(() if is_request else messages, messages if is_request else ())
        if traffic is not None:
            traffic.handled()
        return 0


def recorder_of(mode: str, index: int) -> Recorder | None:
    if mode == "none":
        return None
    if mode == "off":
        return SilentRecorder(index, REPLICAS)
    return Recorder(Region.create(None, catalogue.layout(REPLICAS)), index, REPLICAS)


def carry_out(mode: str, count: int) -> None:
    """Commit so many."""
    with tempfile.TemporaryDirectory() as directory:
        OneProcess(Path(directory), make=lambda *place: Recorded(mode, *place)).ops(count)


def instructions(mode: str, count: int) -> float:
    """Of one op."""

    def carry_out(ops: int) -> str:
        command = [*commit.CALLGRIND, sys.executable, __file__, "--mode", mode, "--fixed", str(ops)]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr

    return commit.counted(carry_out, count // 6, count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--mode", choices=MODES, help="commit so many in this mode and say nothing")
    parser.add_argument("--fixed", type=int, metavar="OPS")
    chosen = parser.parse_args()
    if chosen.mode is not None:
        carry_out(chosen.mode, chosen.fixed)
        return 0
    found = {mode: instructions(mode, chosen.ops) for mode in MODES}
    left = (found["off"] - found["none"]) / found["none"]
    row: dict[str, object] = {f"{mode}_instructions": round(value) for mode, value in found.items()}
    row |= {
        "on_percent": round(100 * (found["on"] - found["none"]) / found["none"], 2),
        "off_percent": round(100 * left, 2),
    }
    print(json.dumps(row) if chosen.json else ", ".join(f"{name} {value}" for name, value in row.items()))
    return int(left > LEFT_MAX)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: {error.stderr}")
