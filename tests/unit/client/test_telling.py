"""What a client says through `logging`: connections lost and found, repetitions, evictions, with reasons. Nothing by
default, nothing while all goes well, and never what is appended."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_replicas import Replicas, connected, run

from kimberlite.errors import OutcomeUnknownError
from kimberlite.types import Command, Operation, Reason

MARKER = b"MARKER-7d1c"


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Every line, with its level. None may hold the marker."""
    lines: list[str] = []
    logger = logging.getLogger("kimberlite")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)
    assert MARKER.decode() not in "".join(lines)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_connections_that_are_lost_and_found(said: list[str]) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([MARKER])
            await until(lambda: len(said) == 3)
            assert sorted(said) == [f"INFO connected to replica {n} at {addresses[n]}" for n in range(3)]
            for _ in range(20):
                await log.append([MARKER])
            assert len(said) == 3, "nothing is said of what goes well"
            replicas.cut(2)
            await until(lambda: len(said) == 5)
            assert said[3].startswith(f"WARNING the connection to replica 2 at {addresses[2]} is lost (")
            assert said[4] == f"INFO connected to replica 2 at {addresses[2]}"
        assert len(said) == 5, "nor of an end"

    run(test)


def test_an_address_that_is_of_no_use_is_told_once(said: list[str]) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.servers[2].close()
        async with connected(addresses):
            await asyncio.sleep(0.3)  # several attempts
        useless = [line for line in said if "of no use" in line]
        assert useless == [f"INFO {addresses[2]} is of no use for now: connection refused: nothing listens there"]

    run(test)


def test_a_request_that_is_repeated(said: list[str]) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([MARKER])
            replicas.view = 1
            await log.append([MARKER])
            assert "INFO request 2 is sent again, to replica 1: it was refused: not primary" in _lower(said)
            replicas.silent = True
            with pytest.raises(OutcomeUnknownError):
                await log.append([MARKER], timeout=1.0)
            assert any("request 3 is sent again" in line and "no answer yet" in line for line in said)

    run(test)


def _lower(lines: list[str]) -> list[str]:
    return [line.replace("_", " ") for line in lines]


def test_a_session_that_is_evicted(said: list[str]) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([MARKER])
            answer, evicted = replicas._request, []

            def refuse_once(index: int, connection: Any, header: Any, body: memoryview) -> None:
                if header.operation == Operation.APPLY and not evicted and index == 0:
                    evicted.append(header.client)
                    replicas._send(index, connection, header, Command.REJECT, reason=Reason.NO_SESSION)
                else:
                    answer(index, connection, header, body)

            replicas._request = refuse_once  # type: ignore[method-assign]
            await log.append([MARKER])
        (line,) = [line for line in said if "session" in line]
        assert line.startswith("WARNING the session has ended, and a new one begins: it was evicted")

    run(test)


def test_nothing_is_printed_unless_the_program_wants_it() -> None:
    """Warnings, too: Python prints those of loggers that have no handler."""
    program = (
        "import logging, kimberlite\nkimberlite.connect\n"
        "logging.getLogger('kimberlite.client').warning('printed')\n"
        "assert not logging.getLogger().handlers\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
