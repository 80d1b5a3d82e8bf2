"""The asyncio and the blocking client against replicas that are fake but speak real frames over loopback."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from typing import Any

import pytest
from fake_replicas import CLUSTER, Replicas, background, collected, connected, run

import kimberlite
from kimberlite._fast import events as event_batches
from kimberlite.client import aio, blocking
from kimberlite.errors import (
    EventTooLargeError,
    OutcomeUnknownError,
    PositionError,
    UnavailableError,
    UsageError,
    WrongClusterError,
)

# Names


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        return {
            name: [str(parameter) for parameter in inspect.signature(member).parameters.values()]
            for name, member in inspect.getmembers(kind)
            if not name.startswith("_") and callable(member)
        }

    assert surface(blocking.Log) == surface(aio.Log)
    assert kimberlite.connect is aio.connect


# Appends


def test_appends_of_one_turn_share_a_request() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            positions = await asyncio.gather(*(log.append([b"%d" % n, b"+"]) for n in range(100)))
            assert positions == list(range(0, 200, 2))
            assert replicas.requests == 1
            assert replicas.log[:3] == [b"0", b"+", b"1"]
            assert await log.append_batch(event_batches.build([b"x", b"y"]), 2) == 200

    run(test)


def test_the_primary_is_found_and_followed() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.view = 2
        async with connected(addresses) as log:
            assert await log.append([b"a"]) == 0
            replicas.view = 4
            assert await log.append([b"b"]) == 1
            replicas.cut(1)  # the primary's connection breaks and comes back
            assert await log.append([b"c"]) == 2

    run(test)


def test_one_address_is_enough_when_it_is_the_primary_s() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.view = 1
        async with connected(addresses[1:2]) as log:
            assert await log.append([b"a"]) == 0

    run(test)


def test_an_append_without_an_answer_ends_in_an_unknown_outcome() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            replicas.silent = True
            with pytest.raises(OutcomeUnknownError) as raised:
                await log.append([b"b"], timeout=0.01)
            assert isinstance(raised.value, TimeoutError)

    run(test)


def test_a_timeout_of_zero_is_zero() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.silent = True
        async with connected(addresses) as log:
            with pytest.raises((UnavailableError, OutcomeUnknownError)):
                await log.append([b"b"], timeout=0)
            with pytest.raises(UnavailableError):
                await log.status(timeout=0)

    run(test)


def test_closing_with_an_append_under_way_tells_its_caller() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            replicas.silent = True
            future = asyncio.ensure_future(log.append([b"b"]))
            for _ in range(3):
                await asyncio.sleep(0)
        with pytest.raises(OutcomeUnknownError):
            await future

    run(test)


def test_what_is_too_large_is_refused_at_once() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses, request_bytes_max=1024) as log:
            with pytest.raises(EventTooLargeError):
                await log.append([b"x" * 2000])

    run(test)


@pytest.mark.parametrize("wrong", ["text", b"bytes", ["text"], [None], [[b"x"]], [], 5, None])
def test_a_wrong_argument_touches_nobody_else_s_append(wrong: Any) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            results = await asyncio.gather(
                log.append([b"before"]), log.append(wrong), log.append([b"after"]), return_exceptions=True
            )
            assert [results[0], results[2]] == [0, 1]
            assert isinstance(results[1], TypeError | UsageError)
            assert await log.append([b"later"]) == 2
            assert replicas.log == [b"before", b"after", b"later"]

    run(test)


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), -1, 1 << 64, "5", True])
def test_a_wrong_timeout_appends_nothing(timeout: Any) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            with pytest.raises((TypeError, UsageError), match="timeout"):
                await log.append([b"a"], timeout=timeout)
            with pytest.raises((TypeError, UsageError), match="timeout"):
                await log.append_batch(event_batches.build([b"a"]), 1, timeout=timeout)
            assert replicas.log == []
        with pytest.raises((TypeError, UsageError), match="timeout"):
            kimberlite.connect(addresses, timeout=timeout)

    run(test)


def test_what_is_changed_after_the_call_changes_nothing() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            events = [b"a", b"b"]
            buffer = bytearray(b"buffer")
            calls = [log.append(events), log.append([buffer]), log.append([b"other"])]
            events.clear()
            events.append(b"X")
            buffer[:] = b"XXXXXX"
            assert await asyncio.gather(*calls) == [0, 2, 3]
            assert replicas.log == [b"a", b"b", b"buffer", b"other"]

    run(test)


def test_append_is_a_coroutine_function() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            assert inspect.iscoroutinefunction(log.append) and inspect.iscoroutinefunction(log.append_batch)
            assert await asyncio.create_task(log.append([b"a"])) == 0
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(log.append([b"%d" % number])) for number in range(3)]
            assert [task.result() for task in tasks] == [1, 2, 3]

    run(test)


def test_a_cancelled_append_that_never_left_is_not_sent() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            replicas.silent = True
            arrived = replicas.arrived
            first = asyncio.create_task(log.append([b"under way"]))
            while replicas.arrived == arrived:
                await asyncio.sleep(0)
            second = asyncio.create_task(log.append([b"never left"]))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait([second])
            replicas.silent = False
            await first
            await log.append([b"b"])
            assert replicas.log == [b"a", b"under way", b"b"]

    run(test)


def test_what_the_state_machine_replied_reaches_its_caller() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            given = await asyncio.gather(
                log.append([b"a"]), log.apply([b"b", b"c"]), log.apply([b"d"]), log.append([b"e"]), log.append([b"f"])
            )
            assert given == [0, b"reply to 2 at 1", b"reply to 1 at 3", 4, 5]
            assert replicas.log == [b"a", b"b", b"c", b"d", b"e", b"f"]
            assert replicas.requests == 4, "a reply is of one call"
            assert inspect.iscoroutinefunction(log.apply)
            for wrong in ("text", [], ["text"]):
                with pytest.raises((TypeError, UsageError)):
                    await log.apply(wrong)  # type: ignore[arg-type]

    run(test)


# Reads


def test_reads_give_exactly_what_was_asked_for() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % n for n in range(50)]
        async with connected(addresses) as log:
            assert await collected(log.read(raw=True)) == replicas.log
            assert await collected(log.read(10, limit=15, raw=True)) == replicas.log[10:25]
            assert await collected(log.read(49, raw=True)) == [b"49"]
            assert await collected(log.read(50, raw=True)) == []
            assert await collected(log.read(0, limit=0, raw=True)) == []
            batches = [piece async for piece in log.read_batches(start=3, limit=10)]
            assert [(position, count) for position, count, _ in batches] == [(3, 7), (10, 3)]

    run(test)


def test_beyond_the_end_is_an_error_only_when_every_replica_says_so() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            with pytest.raises(PositionError, match="empty"):
                await collected(log.read(1, raw=True))
            await log.append([b"a", b"b", b"c"])
            with pytest.raises(PositionError, match="0 to 2") as raised:
                await collected(log.read(9, raw=True))
            assert raised.value.details == {"position": 9, "first": 0, "end": 3}

    run(test)


def test_follow_waits_for_what_is_appended() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            source = log.follow(0, raw=True)
            assert await anext(source) == b"a"
            waiting = asyncio.ensure_future(anext(source))
            while not replicas.parked:
                await asyncio.sleep(0)
            await log.append([b"b"])
            assert await waiting == b"b"

    run(test)


def test_a_read_whose_replica_goes_away_is_asked_of_another() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            source = log.follow(1, raw=True)
            waiting = asyncio.ensure_future(anext(source))
            while not replicas.parked:
                await asyncio.sleep(0)
            index, _, _ = replicas.parked.pop()
            replicas.servers[index].close()
            replicas.cut(index)
            replicas.view = (index + 1) % 3
            while not replicas.parked:
                await asyncio.sleep(0)
            await log.append([b"b"])
            assert await waiting == b"b"

    run(test)


def test_a_read_gives_all_that_its_client_knows_to_be_in_the_log() -> None:
    """The primary goes, the others have not applied what it acknowledged: the read waits for one that has."""

    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a", b"b", b"c"])
            replicas.behind = {1: 0, 2: 2}
            replicas.servers[0].close()
            replicas.cut(0)
            with pytest.raises(UnavailableError, match="the log has at least 3 events, replica"):
                await collected(log.read(timeout=0.5, raw=True))
            reading = asyncio.ensure_future(collected(log.read(2, raw=True)))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(reading), 0.2)
            replicas.behind = {1: 0}
            assert await reading == [b"c"]

    run(test)


def test_a_read_that_goes_on_at_another_replica_does_not_end_before_it_would_have() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % number for number in range(20)]
        replicas.behind = {1: 7, 2: 7}
        async with connected(addresses) as log:
            source = log.read(raw=True)
            found = [await anext(source) for _ in range(7)]  # one answer
            replicas.servers[0].close()
            replicas.cut(0)
            rest = asyncio.ensure_future(collected(source))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(rest), 0.2)
            replicas.behind = {}
            assert found + await rest == replicas.log

    run(test)


def test_the_first_read_waits_for_the_greeting_of_the_primary() -> None:
    """A backup that greets sooner may not have applied yet what another client was just acknowledged."""

    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"a", b"b"]
        replicas.behind = {1: 1, 2: 1}
        replicas.greets_after = {0: 0.05}
        async with connected(addresses) as log:
            assert await collected(log.read(raw=True)) == [b"a", b"b"]

    run(test)


def test_a_primary_that_does_not_greet_is_not_waited_for_for_long() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"a"]
        replicas.greets_after = {0: 60.0}
        async with connected(addresses) as log:
            assert await collected(log.read(raw=True)) == [b"a"]

    run(test)


def test_status_comes_from_the_primary() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.view = 1
        async with connected(addresses) as log:
            await log.append([b"a"])
            assert await log.status() == {"replica": 1}

    run(test)


# Connecting


def test_nobody_there_is_unavailable_and_names_the_addresses() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"

        async def main() -> None:
            with pytest.raises(UnavailableError, match=address):
                async with connected([address], timeout=0.01):
                    raise AssertionError("nobody is there")

        asyncio.run(main())


def test_another_cluster_is_refused() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        with pytest.raises(WrongClusterError) as raised:
            async with connected(addresses, cluster="11" * 16):
                raise AssertionError("connected to another cluster")
        assert raised.value.details["cluster"] == CLUSTER.hex()
        async with connected(addresses, cluster=CLUSTER.hex()) as log:
            await log.append([b"a"])

    run(test)


def test_no_address_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        kimberlite.connect([])


def test_a_client_must_be_entered_first() -> None:
    with pytest.raises(UsageError, match="async with"):
        asyncio.run(kimberlite.connect(["127.0.0.1:1"]).append([b"a"]))
    log = kimberlite.sync.connect(["127.0.0.1:1"])
    with pytest.raises(UsageError, match="with kimberlite"):
        log.append([b"a"])


# Blocking


def test_the_blocking_client_does_the_same() -> None:
    with background() as (replicas, addresses), kimberlite.sync.connect(addresses) as log:
        assert log.append([b"a", b"b"]) == 0
        assert log.apply([b"c"]) == b"reply to 1 at 2"
        assert list(log.read(raw=True)) == [b"a", b"b", b"c"]
        assert list(log.read(1, limit=1, raw=True)) == [b"b"]
        assert [count for _, count, _ in log.read_batches(start=1)] == [2]
        assert next(log.follow(2, raw=True)) == b"c"
        assert log.status() == {"replica": 0}
        with pytest.raises(PositionError):
            list(log.read(99, raw=True))
        assert replicas.log == [b"a", b"b", b"c"]


def test_threads_share_a_blocking_client() -> None:
    with background() as (replicas, addresses), kimberlite.sync.connect(addresses) as log:
        positions: list[int] = []

        def work(number: int) -> None:
            for n in range(20):
                positions.append(log.append([b"%d-%d" % (number, n)]))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(positions) == list(range(160))
        for number in range(8):
            mine = [event for event in replicas.log if event.startswith(b"%d-" % number)]
            assert mine == [b"%d-%d" % (number, n) for n in range(20)]


def test_a_blocking_client_that_can_not_connect_leaves_no_thread() -> None:
    before = threading.active_count()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with (
            pytest.raises(UnavailableError),
            kimberlite.sync.connect([f"127.0.0.1:{sock.getsockname()[1]}"], timeout=0.01),
        ):
            raise AssertionError("nobody is there")
    assert threading.active_count() == before
