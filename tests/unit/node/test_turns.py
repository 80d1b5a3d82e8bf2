"""Turns: one after another, at once on an idle replica, a share of the loop's time while something is committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from kimberlite.node.turns import BURST_NS, SHARE, Turns


class Connection:
    """Goes on when it is told to."""

    def __init__(self, waiter: Waiter) -> None:
        self.is_congested = False
        self._waiter = waiter

    def go_on(self) -> None:
        self._waiter.go_on()


class Waiter:
    """Has so much to ask, each taking `cost` nanoseconds."""

    def __init__(self, turns: Turns, name: str, order: list[str], cost: int = 0, wants: int = 1) -> None:
        self.connection = Connection(self)
        self.owed = 0
        self.has_turn = False
        self.turns, self.name, self.order, self.cost, self.wants = turns, name, order, cost, wants

    def go_on(self) -> None:
        served = False
        while self.wants:
            if served or not self.turns.take(self):  # type: ignore[arg-type]
                self.turns.wait(self)  # type: ignore[arg-type]
                return
            served = True
            self.wants -= 1
            self.order.append(self.name)
            self.turns.charge(self.cost)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


def test_those_that_wait_go_one_after_another() -> None:
    async def test() -> None:
        order: list[str] = []
        turns = Turns(lambda: 0)
        greedy, modest = Waiter(turns, "greedy", order, wants=5), Waiter(turns, "modest", order, wants=2)
        greedy.go_on()
        modest.go_on()
        assert order == ["greedy"], "others wait already"
        while greedy.wants or modest.wants:
            await asyncio.sleep(0)
        assert order == ["greedy", "greedy", "modest", "greedy", "modest", "greedy", "greedy"]

    run(test)


def test_while_something_is_committed_there_is_a_share_of_the_time() -> None:
    async def test() -> None:
        for busy in (False, True):
            order: list[str] = []
            op = 0

            def progress(busy: bool = busy) -> int:
                nonlocal op
                op += busy
                return op

            turns = Turns(progress)
            turns.take(Waiter(turns, "first", order))  # type: ignore[arg-type]
            waiter = Waiter(turns, "reader", order, cost=5_000_000, wants=4)
            began = time.monotonic()
            waiter.go_on()
            while waiter.wants:
                await asyncio.sleep(0)
            took = (time.monotonic() - began) * 1e9
            if busy:
                assert took > 3 * 5_000_000 * SHARE - 2 * BURST_NS * SHARE
            else:
                assert len(order) == 4

    run(test)


def test_what_was_taken_without_a_turn_is_paid() -> None:
    async def test() -> None:
        order: list[str] = []
        ops = iter(range(10**6))
        turns = Turns(lambda: next(ops))
        waiter = Waiter(turns, "refused", order)
        waiter.owed = 10 * BURST_NS
        waiter.go_on()
        assert waiter.owed == 0
        other = Waiter(turns, "other", order)
        began = time.monotonic()
        other.go_on()
        while other.wants:
            await asyncio.sleep(0)
        assert (time.monotonic() - began) * 1e9 > 8 * BURST_NS * SHARE

    run(test)


def test_who_does_not_take_an_answer_gets_no_other_and_holds_up_nobody() -> None:
    async def test() -> None:
        order: list[str] = []
        turns = Turns(lambda: 0)
        deaf, other = Waiter(turns, "deaf", order, wants=2), Waiter(turns, "other", order)
        deaf.connection.is_congested = True
        deaf.go_on()
        other.go_on()
        assert order == ["other"]
        deaf.connection.is_congested = False
        turns.on_writable(deaf)  # type: ignore[arg-type]
        while deaf.wants:
            await asyncio.sleep(0)
        assert order == ["other", "deaf", "deaf"]
        deaf.wants = 1
        turns.wait(deaf)  # type: ignore[arg-type]
        turns.forget(deaf)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        assert deaf.wants

    run(test)
