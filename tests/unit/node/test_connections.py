"""The table of clients: routes, deadlines of frames and answers, and a bound for what all hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kimberlite.node import connections as module
from kimberlite.node.connections import Bounds, Client, Connections
from kimberlite.types import Reason


class Connection:
    """What a FrameConnection says of itself."""

    def __init__(self, memory: int = 0) -> None:
        self.is_open = True
        self.peer = "127.0.0.1:1"
        self.is_within_frame = False
        self.received_bytes = self.parsed_bytes = self.put_bytes = self.taken_bytes = 0
        self.memory_bytes = memory
        self.aborted = False
        self.shrunk = 0

    @property
    def queued_bytes(self) -> int:
        return self.put_bytes - self.taken_bytes

    def close(self) -> None:
        self.is_open = False

    def abort(self) -> None:
        self.is_open, self.aborted = False, True

    def shrink(self) -> None:
        self.shrunk += 1


class Table:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, held_elsewhere: int = 0, **bounds: Any) -> None:
        monkeypatch.setattr(module, "LOOK_S", 0.02)
        self.told: list[Reason] = []
        self.ended: list[str] = []
        self.table = Connections(
            Bounds(**bounds),
            dismiss=lambda client, reason: self.told.append(reason),
            ended=lambda why, address: self.ended.append(why),
            held_elsewhere=lambda: held_elsewhere,
        )

    def client(self, identity: bytes = b"a", **options: Any) -> tuple[Client, Any]:
        connection: Any = Connection(**options)
        self.table.add(connection, 10)
        client = self.table.get(connection)
        assert client is not None
        self.table.greeted(client, identity)
        return client, connection


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_route_ends_with_its_connection_and_gives_way_to_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hold = Table(monkeypatch)
        first, one = hold.client(b"a")
        second, two = hold.client(b"a")
        hold.table.use(b"b", second)
        assert [hold.table.routes[key][-1] for key in (b"a", b"b")] == [second, second]
        hold.table.remove(two)
        assert hold.table.routes == {b"a": [first]}
        hold.table.remove(one)
        assert not hold.table.routes and not first.identities
        hold.table.stop()

    run(test)


def test_routes_are_bounded_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hold = Table(monkeypatch)
        client, _ = hold.client()
        for number in range(3 * module.IDENTITIES_MAX):
            hold.table.use(b"%d" % number, client)
        assert len(hold.table.routes) == len(client.identities) == module.IDENTITIES_MAX
        last = [hold.client(b"shared")[0] for _ in range(3 * module.ROUTES_MAX)][-1]
        assert len(hold.table.routes[b"shared"]) == module.ROUTES_MAX
        assert hold.table.routes[b"shared"][-1] is last
        hold.table.stop()

    run(test)


def test_a_frame_has_to_become_whole_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hold = Table(monkeypatch, frame_s=0.2)
        _, slow = hold.client(b"a")
        _, quick = hold.client(b"b")
        slow.is_within_frame = quick.is_within_frame = True
        while slow.is_open:
            slow.received_bytes += 1  # byte by byte
            quick.parsed_bytes += 1
            await asyncio.sleep(0.005)
        assert hold.ended == ["slow_frame"] and hold.told == [Reason.SLOW]
        assert quick.is_open
        hold.table.stop()

    run(test)


def test_an_answer_has_to_be_taken_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hold = Table(monkeypatch, reply_s=1.0)
        _, deaf = hold.client(b"a")
        _, steady = hold.client(b"b")
        deaf.put_bytes = 10_000
        steady.put_bytes = 10_000
        while deaf.is_open:
            deaf.taken_bytes += 1
            steady.put_bytes += 5000  # never empty, but what was sent is taken
            steady.taken_bytes += 5000
            await asyncio.sleep(0.005)
        assert hold.ended == ["slow_reply"] and deaf.aborted
        assert steady.is_open
        hold.table.stop()

    run(test)


def test_who_holds_most_goes_first_when_all_hold_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hold = Table(monkeypatch, memory=1000, held_elsewhere=300)
        sizes = (100, 400, 50, 600)
        connections = [hold.client(b"%d" % size, memory=size)[1] for size in sizes]
        hold.table.memory.grow(1000)  # not only at the next look
        await asyncio.sleep(0)
        assert [connection.is_open for connection in connections] == [True, True, True, False]
        assert hold.ended == ["memory"]
        hold.table.stop()

    run(test)


def test_clients_do_not_pay_for_what_peers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hold = Table(monkeypatch, memory=1000, held_elsewhere=5000)
        _, connection = hold.client(memory=400)
        hold.table.memory.grow(1000)
        await asyncio.sleep(0)
        assert connection.is_open
        hold.table.stop()

    run(test)


def test_an_idle_connection_gives_its_buffers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hold = Table(monkeypatch)
        _, idle = hold.client(b"a")
        _, busy = hold.client(b"b")
        while not idle.shrunk:
            busy.received_bytes += 1
            await asyncio.sleep(0.005)
        assert not busy.shrunk
        hold.table.stop()

    run(test)
