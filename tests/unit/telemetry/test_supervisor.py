"""The port of the telemetry: who may have it, who is ended for it, who is not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimberlite.errors import AddressInUseError
from kimberlite.telemetry import supervisor

HOLDS = "import socket, sys, time; s = socket.socket(fileno=int(sys.argv[1])); time.sleep(60)"


@pytest.fixture
def port() -> Iterator[tuple[int, socket.socket]]:
    """A port, and its listener to be handed to a process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1], listener


def holder(listener: socket.socket, *words: str) -> subprocess.Popen[bytes]:
    """A stopped process that has the listener, and these words in its command line."""
    number = listener.fileno()
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(number), *words], pass_fds=[number])
    listener.close()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # until it is there with its command line
    return process


def test_a_predecessor_that_does_not_yield_is_ended(port: tuple[int, socket.socket], tmp_path: Path) -> None:
    name = str(tmp_path / "region")
    process = holder(port[1], "-m", supervisor.MODULE, "--name", name)
    assert supervisor.leftovers([name]) == [process.pid]
    listener = asyncio.run(supervisor.listen("127.0.0.1", port[0], names=[name]))
    assert listener.getsockname()[1] == port[0]
    assert process.wait(10) == -signal.SIGKILL
    assert supervisor.leftovers([name]) == []
    listener.close()


@pytest.mark.parametrize("words", [(), ("-m", supervisor.MODULE, "--name", "another"), ("--name", "region")])
def test_nobody_else_is(words: tuple[str, ...], port: tuple[int, socket.socket], tmp_path: Path) -> None:
    names = [str(tmp_path / "region"), "region"]
    process = holder(port[1], *words)
    with pytest.raises(AddressInUseError, match="in use"):
        asyncio.run(supervisor.listen("127.0.0.1", port[0], supervisor.YIELD_S + 0.2, names))
    supervisor.kill(process.pid, names)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_a_number_that_is_free_is_nobody(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    supervisor.kill(gone.pid, ["region"])
    assert os.getpid() not in supervisor.leftovers([str(tmp_path)])
