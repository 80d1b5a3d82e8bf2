"""Reading: many at once, whatever the replicas do; events, their times, the end; steps that are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_replicas import FIRST_NS, Replicas, background, collected, connected, run
from patience import soon, soon_in_thread

import kimberlite
from kimberlite.client import aio, reading
from kimberlite.client.answers import Event
from kimberlite.client.reading import Events
from kimberlite.errors import PositionError, UnavailableError, UsageError
from kimberlite.net import READ_END

TIMEOUT_S = 1.0
SLACK_S = 0.5  # what a call may take beyond its timeout


def stamped(log: list[bytes], first: int, last: int) -> list[Event]:
    return [Event(log[at], at, FIRST_NS + at) for at in range(first, last)]


async def parked(replicas: Replicas, count: int = 1) -> None:
    while len(replicas.parked) < count:
        await asyncio.sleep(0)


# Events


def test_events_have_their_position_and_their_time() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % n for n in range(50)]
        async with connected(addresses) as log:
            assert [event async for event in log.read()] == stamped(replicas.log, 0, 50)
            assert [event async for event in log.read(9, limit=20)] == stamped(replicas.log, 9, 29)
            source = log.follow(45)
            assert [await anext(source) for _ in range(5)] == stamped(replicas.log, 45, 50)

    run(test)


def test_an_event_does_not_change() -> None:
    event = Event(b"data", 7, 9)
    assert (event.data, event.position, event.timestamp) == (b"data", 7, 9) and not hasattr(event, "__dict__")
    with pytest.raises(AttributeError):
        event.position = 8  # type: ignore[misc]


def test_the_last_events() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            assert [event async for event in log.read(last=3)] == []
            replicas.log = [b"%d" % n for n in range(20)]
            assert [event async for event in log.read(last=9)] == stamped(replicas.log, 11, 20)
            assert await collected(log.read(last=99, raw=True)) == replicas.log
            assert await collected(log.read(last=0, raw=True)) == []
            for wrong in ({"limit": 1}, {"start": 1}):
                with pytest.raises(UsageError, match="last"):
                    log.read(last=1, **wrong)  # type: ignore[call-overload]

    run(test)


def test_the_last_events_when_some_of_them_were_trimmed() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % n for n in range(20)]
        replicas.first = 12
        async with connected(addresses) as log:
            assert await collected(log.read(last=9, raw=True)) == replicas.log[12:]
            with pytest.raises(PositionError, match="begins with position 12") as raised:
                await collected(log.read(11, raw=True))
            assert (raised.value.position, raised.value.first) == (11, 12)

    run(test)


def test_the_end() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            assert await log.end() == 0
            assert await log.append([b"a", b"b"]) == 0
            assert await log.end() == 2
            replicas.behind = {0: 1, 1: 1, 2: 1}  # none has applied what this client was acknowledged
            with pytest.raises(UnavailableError, match=r"the log has 2 events, replica \d 1 by now"):
                await log.end(timeout=TIMEOUT_S)

    run(test)


def test_following_from_the_end_gives_what_is_appended_after_the_call() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"old"])
            source = log.follow("end", raw=True)
            await log.append([b"new", b"newer"])
            assert [await anext(source), await anext(source)] == [b"new", b"newer"]

    run(test)


def test_following_from_an_end_that_is_learned_late_misses_nothing_of_its_client() -> None:
    """The replica that is asked is silent, and the next one tells an end behind what was appended since the call."""

    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"old"])
            replicas.unread = {READ_END: 1}
            source = log.follow("end", raw=True)
            await log.append([b"new", b"newer"])
            assert [await anext(source), await anext(source)] == [b"new", b"newer"]

    run(test)


def test_following_from_beyond_the_end_is_an_error() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"a", b"b"]
        async with connected(addresses) as log:
            with pytest.raises(PositionError, match="0 to 1") as raised:
                await anext(log.follow(3))
            assert (raised.value.position, raised.value.end) == (3, 2)

    run(test)


# Steps


def test_a_step_that_is_cancelled_loses_nothing() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            source = log.follow(raw=True)
            found: list[bytes] = []

            async def write() -> None:
                for number in range(100):
                    await log.append([b"%d" % number])
                    await asyncio.sleep(0.001)

            writing = asyncio.ensure_future(write())
            while len(found) < 100:
                with contextlib.suppress(TimeoutError):
                    found.append(await asyncio.wait_for(anext(source), 0.0015))
            await writing
            assert found == replicas.log

    run(test)


@pytest.mark.parametrize("turns", range(8))
def test_a_step_cancelled_in_the_moment_of_its_answer_loses_nothing(turns: int) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"first"])
            source = log.follow(1, raw=True)
            step = asyncio.ensure_future(anext(source))
            await parked(replicas)
            question = log._reader._watch
            assert question is not None
            await log.append([b"a"])
            while not question.answer.done():
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            step.cancel()
            found = []
            try:
                found.append(await step)
            except asyncio.CancelledError:
                found.append(await anext(source))
            await log.append([b"b"])
            assert [*found, await anext(source)] == [b"a", b"b"]

    run(test)


def test_a_loop_goes_on_where_another_one_was_left() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % n for n in range(30)]
        async with connected(addresses) as log:
            source = log.read(raw=True)
            found = []
            async for event in source:
                found.append(event)
                if len(found) == 10:
                    break
            found.append(await anext(source))
            assert found + await collected(source) == replicas.log

    run(test)


def test_a_step_after_an_error_goes_on() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            source = log.follow(raw=True, timeout=0.5)
            assert await anext(source) == b"a"
            replicas.paused = {0, 1, 2}
            with pytest.raises(UnavailableError, match=r"position 1 could not be read within 0.5 s: replica \d did"):
                await anext(source)
            replicas.paused.clear()
            replicas.log.append(b"b")
            for connections in list(replicas.connections):
                for connection in list(connections):
                    connection.abort()  # what they did not read is lost
            assert await asyncio.wait_for(retried(source), 5) == b"b"

    async def retried(source: Events[bytes]) -> bytes:
        while True:
            try:
                return await anext(source)
            except UnavailableError:
                continue

    run(test)


def test_a_follow_that_is_closed_gives_nothing_more() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"a", b"b"]
        async with connected(addresses) as log:
            source = log.follow(raw=True)
            assert await anext(source) == b"a"
            await source.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(source)
            waiting = log.follow(2, raw=True)
            step = asyncio.ensure_future(waiting.__anext__())
            await parked(replicas)
            await waiting.aclose()
            with pytest.raises(StopAsyncIteration):
                await step

    run(test)


def test_iterators_that_are_dropped_leave_no_question() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            for number in range(20):
                source = log.follow(number % 2 and "end", raw=True)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(source), 0.002)
            del source
            gc.collect()
            async with asyncio.timeout(10):
                while log._reader._asker.open or log._reader._asker._sent or log._reader.starting:
                    await asyncio.sleep(0.01)

    run(test)


# Many at once


def test_followers_share_one_read_and_see_every_event() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:

            async def follow(kind: int) -> list[Any]:
                source: AsyncIterator[Any] = log.follow(raw=True) if kind % 2 else log.follow()
                return [await anext(source) for _ in range(50)]

            following = [asyncio.ensure_future(follow(kind)) for kind in range(16)]
            for number in range(50):
                await parked(replicas)
                assert len(replicas.parked) == 1, "one READ waits for all"
                await log.append([b"%d" % number])
            for kind, task in enumerate(following):
                assert await task == (replicas.log if kind % 2 else stamped(replicas.log, 0, 50))
            assert len(replicas.reads) < 50 * 4, "what several want at the same time is asked for once"

    run(test)


def test_the_same_read_is_asked_for_once_and_the_number_under_way_is_bounded() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % n for n in range(1000)]
        async with connected(addresses) as log:
            replicas.paused = {0, 1, 2}
            readers = [
                asyncio.ensure_future(collected(log.read(start, limit=5, raw=True)))
                for start in range(0, 200, 10)
                for _ in range(3)
            ]
            while len(log._reader._asker.open) < reading.READS_MAX:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert len(log._reader._asker.open) == reading.READS_MAX
            replicas.paused.clear()
            for connections in list(replicas.connections):
                for connection in list(connections):
                    connection.abort()  # asked again on the next connection
            found = await asyncio.gather(*readers)
            assert found == [replicas.log[start : start + 5] for start in range(0, 200, 10) for _ in range(3)]
            assert len(replicas.reads) <= 20 * 2

    run(test)


def test_a_follower_in_a_hurry_does_not_wait_as_long_as_the_others_do() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            patient, hurried = log.follow(raw=True), log.follow(raw=True, timeout=TIMEOUT_S)
            steps = [asyncio.ensure_future(anext(patient))]
            await parked(replicas)
            steps.append(asyncio.ensure_future(anext(hurried)))
            await parked(replicas, 2)
            assert replicas.parked[1][2].timestamp < TIMEOUT_S * 0.4e9
            replicas.parked.pop(0)  # the second READ of a connection takes the place of the first
            await log.append([b"a"])
            assert await asyncio.gather(*steps) == [b"a", b"a"]

    run(test)


def test_who_comes_to_an_end_that_has_moved_does_not_get_what_was_before_it() -> None:
    """One follower waits at an end that the client learns to have moved, before the waiting READ is answered."""

    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            first = log.follow(raw=True)
            steps = [asyncio.ensure_future(anext(first))]
            await parked(replicas)
            replicas.log.append(b"a")  # and nobody has told the READ that waits
            assert await log.end() == 1
            steps.append(asyncio.ensure_future(anext(log.follow(1, raw=True))))
            await parked(replicas, 2)
            replicas.parked.pop(0)  # its place has been taken
            await log.append([b"b"])
            assert await asyncio.wait_for(asyncio.gather(*steps), 5) == [b"a", b"b"]
            assert await anext(first) == b"b"

    run(test)


# Silence


@pytest.mark.parametrize("silent", [{0}, {0, 1}, {0, 2}])
def test_a_silent_replica_costs_a_read_little_and_the_next_one_nothing(silent: set[int]) -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % n for n in range(30)]

        async def attempt() -> float:
            replicas.paused = set()
            async with connected(addresses) as log:
                assert await log.end() == 30
                replicas.paused = silent
                began = time.monotonic()
                assert await collected(log.read(raw=True, timeout=20.0)) == replicas.log
                took = time.monotonic() - began
                replicas.reads.clear()
                assert (await log.status(timeout=20.0))["replica"] not in silent
                assert await log.end() == 30
                assert await collected(log.read(raw=True)) == replicas.log
                assert {replica for replica, *_ in replicas.reads}.isdisjoint(silent)
            return took

        await soon(attempt, TIMEOUT_S)

    run(test)


def test_every_call_ends_within_its_timeout_when_nobody_answers() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            replicas.paused = {0, 1, 2}
            await soon(lambda: attempt(log), TIMEOUT_S + SLACK_S)

    async def attempt(log: aio.Log) -> float:
        calls = [
            anext(log.read(timeout=TIMEOUT_S)),
            anext(log.read(last=1, timeout=TIMEOUT_S)),
            anext(log.follow(1, timeout=TIMEOUT_S)),
            anext(log.follow("end", timeout=TIMEOUT_S)),
            anext(log.read_batches(timeout=TIMEOUT_S)),
            log.end(timeout=TIMEOUT_S),
            log.status(timeout=TIMEOUT_S),
        ]
        began = time.monotonic()
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(ended, UnavailableError) and "replica" in str(ended)
        took = time.monotonic() - began
        assert took > TIMEOUT_S - 0.1
        return took

    run(test)


def test_a_replica_that_was_asked_just_now_is_not_called_unconnected() -> None:
    """One in a hurry waits for a question of one with more time: its deadline comes before anybody is called silent."""

    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            replicas.paused = {0, 1, 2}
            patient = asyncio.ensure_future(anext(log.read(timeout=30.0)))
            await asyncio.sleep(0)
            with pytest.raises(UnavailableError, match=r"replica \d has not answered yet"):
                await anext(log.read(timeout=0.01))
            replicas.paused.clear()
            patient.cancel()

    run(test)


def test_a_follow_with_nothing_new_has_no_timeout() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.parks = False  # as a replica whose READ has waited for long enough
        async with connected(addresses) as log:
            source = log.follow(raw=True, timeout=0.5)
            step = asyncio.ensure_future(anext(source))
            await asyncio.wait([step], timeout=1.2)
            assert not step.done()
            await log.append([b"a"])
            assert await step == b"a"

    run(test)


def test_an_answer_that_is_there_at_the_deadline_counts_however_late_the_process_is() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            source = log.read(raw=True, timeout=TIMEOUT_S)
            step = asyncio.ensure_future(anext(source))
            await asyncio.sleep(0)  # it has been asked
            time.sleep(TIMEOUT_S + 0.2)  # as a process that is stopped
            assert await step == b"a"

    run(test)


def test_an_answer_that_does_not_fit_its_question_is_no_answer() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"%d" % n for n in range(5)]
        for lie in ({"position": 1}, {"count": 4}, {"session": 1}, {"count": 0}):
            replicas.lies = {0: lie}
            async with connected(addresses) as log:
                assert [event.data async for event in log.read()] == replicas.log
                assert any(replica == 0 for replica, *_ in replicas.reads)

    run(test)


# Where it can not be used


def test_a_client_that_is_closed_or_elsewhere_says_so_at_once() -> None:
    def calls(log: kimberlite.Log) -> list[Any]:
        return [log.read, log.follow, log.read_batches, lambda: finish(log.end()), lambda: finish(log.status())]

    def finish(coroutine: Any) -> None:
        with pytest.raises(UsageError) as raised:
            coroutine.send(None)
        raise raised.value

    def refused(log: kimberlite.Log, match: str) -> None:
        for call in calls(log):
            with pytest.raises(UsageError, match=match):
                call()

    async def test(replicas: Replicas, addresses: list[str]) -> None:
        replicas.log = [b"a", b"b"]
        refused(kimberlite.connect(addresses), "not connected")
        async with connected(addresses) as log:
            source = log.read(1, raw=True)
            waiting = asyncio.ensure_future(anext(log.follow(2, raw=True)))
            await parked(replicas)
            thread = threading.Thread(target=lambda: seen.append(outcome()))

            def outcome() -> str:
                try:
                    asyncio.run(elsewhere())
                except UsageError as error:
                    return str(error)
                return "nothing"

            async def elsewhere() -> None:
                await anext(source)

            seen: list[str] = []
            thread.start()
            await asyncio.to_thread(thread.join)
            assert "event loop" in seen[0]
            log._forks += 1
            refused(log, "process")
            log._forks -= 1
            assert await anext(source) == b"b"
        refused(log, "closed")
        with pytest.raises(UsageError, match="closed"):
            await anext(source)
        with pytest.raises(UnavailableError, match="closed"):
            await waiting

    run(test)


# Blocking


def test_the_blocking_client_reads_in_the_same_ways() -> None:
    with background() as (replicas, addresses), kimberlite.sync.connect(addresses) as log:
        log.append([b"%d" % n for n in range(20)])
        assert list(log.read(12)) == stamped(replicas.log, 12, 20)
        assert list(log.read(last=2, raw=True)) == [b"18", b"19"]
        assert log.end() == 20
        fresh = log.follow("end")
        log.append([b"new"])
        assert next(fresh) == Event(b"new", 20, FIRST_NS + 20)
        with pytest.raises(UsageError, match="last"):
            log.read(1, last=1)
    with pytest.raises(UsageError):
        log.read()


def test_blocking_calls_end_within_their_timeout_when_nobody_answers() -> None:
    with background() as (replicas, addresses), kimberlite.sync.connect(addresses) as log:
        log.append([b"a"])
        source = log.follow(1, timeout=TIMEOUT_S)
        replicas.paused = {0, 1, 2}
        for call in (
            lambda: next(log.read(timeout=TIMEOUT_S)),
            lambda: next(source),
            lambda: next(log.read_batches(timeout=TIMEOUT_S)),
            lambda: log.end(timeout=TIMEOUT_S),
            lambda: log.status(timeout=TIMEOUT_S),
        ):

            def attempt(call: Callable[[], object] = call) -> float:
                began = time.monotonic()
                with pytest.raises(UnavailableError, match="did not answer"):
                    call()
                return time.monotonic() - began

            soon_in_thread(attempt, TIMEOUT_S + SLACK_S)


def test_a_thread_that_follows_is_told_when_another_one_closes_the_client() -> None:
    with background() as (replicas, addresses):
        ended: list[BaseException] = []

        def follow(log: kimberlite.sync.Log) -> None:
            try:
                for _ in log.follow():
                    pass
            except BaseException as error:
                ended.append(error)

        with kimberlite.sync.connect(addresses) as log:
            threads = [threading.Thread(target=follow, args=(log,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            while not replicas.parked:
                time.sleep(0.01)
        for thread in threads:
            thread.join(20)
        assert len(ended) == 4 and all(isinstance(error, UnavailableError | UsageError) for error in ended)
