"""Tasks of clients and nodes end when they are told to, whatever ends in the same moment.

asyncio.wait_for of Python 3.11 drops a cancellation that comes just after its awaitable has
ended; the task then goes on, and whoever waits for its end waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import kimberlite
from kimberlite._fast.framing import make_header
from kimberlite.client.aio import Life
from kimberlite.client.session import Session
from kimberlite.errors import UnavailableError
from kimberlite.net.peers import PeerNetwork

TURNS = range(8)  # how many turns of the loop lie between the end of the attempt and the cancellation


def client_dialler() -> Coroutine[Any, Any, None]:
    dialer = kimberlite.connect(["127.0.0.1:1"])._dialer
    return dialer._dial(dialer._places[0])


def peer_dialler() -> Coroutine[Any, Any, None]:
    network = PeerNetwork(
        index=0,
        addresses=[("127.0.0.1", 1), ("127.0.0.1", 2)],
        listen_on=("127.0.0.1", 1),
        cluster=b"c" * 16,
        make_header=make_header,
        view=lambda: 0,
        on_messages=lambda messages: None,
    )
    return network._dial(1)


@pytest.mark.parametrize("dialler", [client_dialler, peer_dialler])
@pytest.mark.parametrize("turns", TURNS)
def test_a_dialler_ends_when_its_attempt_fails_in_the_same_moment(
    dialler: Callable[[], Coroutine[Any, Any, None]], turns: int
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        attempt: asyncio.Future[Any] = loop.create_future()

        async def create_connection(*arguments: Any, **options: Any) -> Any:
            return await attempt

        loop.create_connection = create_connection  # type: ignore[method-assign]
        task = asyncio.create_task(dialler())
        for _ in range(5):
            await asyncio.sleep(0)
        attempt.set_exception(ConnectionRefusedError())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        if not done:
            task.cancel()  # so that the loop can be closed
        assert done and task.cancelled()

    asyncio.run(run())


class Answering:
    """A client that has one replica, which does not answer."""

    def __init__(self) -> None:
        self.log = kimberlite.connect(["127.0.0.1:1"])
        self.log._loop = asyncio.get_running_loop()
        self.log._life = Life.OPEN
        self.log._session = self.log._usable = Session(
            make_header=make_header, cluster=bytes(16), client_id=bytes(16), replica_count=1, seed=1
        )
        self.connection: Any = Connection()
        self.log._replicas[0] = self.connection
        self.answers = self.log._reader._asker._sent

    def ask(self) -> asyncio.Task[Any]:
        return asyncio.create_task(self.log.status(timeout=60))


class Connection:
    transport = None

    def send(self, message: Any) -> None:
        return None

    def close(self) -> None:
        return None


@pytest.mark.parametrize("turns", TURNS)
def test_a_question_ends_when_its_connection_is_lost_in_the_same_moment(turns: int) -> None:
    async def run() -> None:
        client = Answering()
        task = client.ask()
        for _ in range(3):
            await asyncio.sleep(0)
        assert client.answers
        client.log._on_lost(client.connection)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done and task.cancelled()

    asyncio.run(run())


def test_a_question_under_way_fails_when_the_client_is_closed() -> None:
    """The task that asks has not been cancelled, so it must not look so."""

    async def run() -> None:
        client = Answering()
        task = client.ask()
        for _ in range(3):
            await asyncio.sleep(0)
        await client.log._stop()
        with pytest.raises(UnavailableError, match="closed"):
            await task

    asyncio.run(run())
