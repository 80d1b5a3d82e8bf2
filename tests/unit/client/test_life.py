"""Every call returns: on a client that is closed, forked, of another loop, stopped past its deadline."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_replicas import Replicas, background, connected, run

import kimberlite
import kimberlite.sync
from kimberlite._fast import events as event_batches
from kimberlite.client import aio
from kimberlite.errors import KimberliteError, OutcomeUnknownError, UnavailableError, UsageError
from kimberlite.types import Command, Message


def calls(log: Any) -> Iterator[Callable[[], Any]]:
    yield lambda: log.append([b"x"])
    yield lambda: log.append_batch(event_batches.build([b"x"]), 1)
    yield lambda: log.apply([b"x"])
    yield log.status
    yield log.end


# The asyncio client


def test_calls_on_a_client_that_is_not_open_are_refused() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        log = kimberlite.connect(addresses)
        for call in calls(log):
            with pytest.raises(UsageError, match="async with"):
                await call()
        async with log:
            assert await log.append([b"a"]) == 0
            with pytest.raises(UsageError, match="open already"):
                await log.__aenter__()
        for call in calls(log):
            with pytest.raises(UsageError, match="closed"):
                await call()
        with pytest.raises(UsageError, match="closed"):
            await log.__aenter__()
        await log.close()  # once more does nothing
        assert replicas.log == [b"a"]

    run(test)


def test_calls_on_another_event_loop_are_refused_and_send_nothing() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:

            async def one(call: Callable[[], Any]) -> Any:
                return await call()

            for call in (*calls(log), log.close):
                with pytest.raises(UsageError, match="another event loop"):
                    await asyncio.to_thread(lambda call=call: asyncio.run(one(call)))  # type: ignore[misc]
            assert await log.append([b"a"]) == 0
            assert replicas.log == [b"a"]

    run(test)


def test_closing_gives_every_call_its_end() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        log = kimberlite.connect(addresses)
        async with log:
            await log.append([b"a"])
            replicas.silent = True
            arrived = replicas.arrived
            tasks = [asyncio.create_task(log.append([b"under way"]))]
            while replicas.arrived == arrived:
                await asyncio.sleep(0)
            tasks.append(asyncio.create_task(log.append([b"waits"])))
            follow = log.follow(1)
            tasks.append(asyncio.ensure_future(anext(follow)))
            while not replicas.parked:
                await asyncio.sleep(0)
        _, pending = await asyncio.wait(tasks, timeout=20)
        assert not pending
        assert [type(task.exception()) for task in tasks[:2]] == [OutcomeUnknownError, UnavailableError]
        assert isinstance(tasks[2].exception(), KimberliteError)

    run(test)


def test_an_answer_that_has_arrived_counts_although_the_deadline_has_passed() -> None:
    """This process is held up between the sending and the reading of the answer, past the deadline."""

    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            assert log._session is not None
            log._replicas = log._dialer.replicas
            for _ in range(20):
                task = asyncio.create_task(log.append([b"b"], timeout=0.05))
                sent = replicas.requests
                while replicas.requests == sent:
                    await asyncio.sleep(0)
                time.sleep(0.1)  # the answer is in the socket
                log._on_timer()  # the timer comes first, as in some event loops
                assert isinstance(await task, int)

    run(test)


def test_what_never_stops_arriving_does_not_keep_a_deadline_from_being_judged() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])
            replicas.silent = True
            (connection,) = [c for c in replicas.connections[0] if c.is_open]
            noise = Message(log._frame(Command.PONG).header, b"")
            task = asyncio.create_task(log.append([b"b"], timeout=0.1))
            async with asyncio.timeout(20):
                while not task.done():
                    connection.send(noise)
                    await asyncio.sleep(0)
            assert isinstance(task.exception(), OutcomeUnknownError)

    run(test)


# The blocking client


def ends(call: Callable[[], Any], within: float = 20.0) -> Any:
    """What a call on a thread of its own gives or raises; fails when it does not end."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(within)
    assert found, "the call did not return"
    return found[0]


def test_blocking_calls_on_a_client_that_is_not_open_are_refused() -> None:
    with background() as (replicas, addresses):
        log = kimberlite.sync.connect(addresses)
        for call in calls(log):
            with pytest.raises(UsageError, match="not connected"):
                call()
        with log:
            assert log.append([b"a"]) == 0
            with pytest.raises(UsageError, match="open already"):
                log.__enter__()
        for call in (*calls(log), log.__enter__):
            assert isinstance(ends(call), UsageError)
        log.close()
        assert replicas.log == [b"a"]


def test_closing_a_blocking_client_ends_the_calls_of_all_threads() -> None:
    with background() as (replicas, addresses):
        log = kimberlite.sync.connect(addresses)
        ended: list[Any] = []

        def work(call: Callable[[], Any]) -> None:
            try:
                ended.append(call())
            except BaseException as error:
                ended.append(error)

        with log:
            log.append([b"a"])
            replicas.silent = True
            waiting = [lambda: log.append([b"b"]), lambda: log.append([b"c"]), lambda: next(iter(log.follow(1)))]
            threads = [threading.Thread(target=work, args=(call,), daemon=True) for call in waiting]
            arrived = replicas.arrived
            for thread in threads:
                thread.start()
            while replicas.arrived == arrived or not replicas.parked:
                time.sleep(0.001)
        for thread in threads:
            thread.join(20)
        assert len(ended) == 3
        assert all(isinstance(error, KimberliteError) for error in ended)


def test_threads_that_go_on_calling_while_the_client_is_closed_all_return() -> None:
    with background() as (_, addresses):
        log = kimberlite.sync.connect(addresses)
        stop = threading.Event()
        errors: list[BaseException] = []

        def work() -> None:
            while not stop.is_set():
                try:
                    log.append([b"x"], timeout=2)
                except BaseException as error:
                    errors.append(error)
                    if isinstance(error, UsageError):
                        return

        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        with log:
            for thread in threads:
                thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join(20)
        stop.set()
        assert not any(thread.is_alive() for thread in threads)
        assert all(isinstance(error, UsageError | OutcomeUnknownError | UnavailableError) for error in errors)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_blocking_client_whose_thread_has_died_says_so() -> None:
    with background() as (replicas, addresses):
        log = kimberlite.sync.connect(addresses)
        with log:
            log.append([b"a"])
            replicas.silent = True
            assert log._loop is not None and log._thread is not None

            def die() -> None:
                raise SystemExit

            waiting = threading.Thread(target=lambda: found.append(ends(lambda: log.append([b"b"]))), daemon=True)
            found: list[Any] = []
            arrived = replicas.arrived
            waiting.start()
            while replicas.arrived == arrived:
                time.sleep(0.001)
            log._loop.call_soon_threadsafe(die)
            waiting.join(20)
            assert [type(one) for one in found] == [OutcomeUnknownError], "it was under way"
            assert isinstance(ends(lambda: log.append([b"c"])), UsageError)


def test_a_blocking_client_whose_thread_hangs_is_not_waited_for_much_longer_than_the_timeout() -> None:
    with background() as (_, addresses):
        log = kimberlite.sync.connect(addresses)
        with log:
            log.append([b"a"])
            loop, thread = log._loop, log._thread
            assert loop is not None and thread is not None
            goes_on = threading.Event()
            loop.call_soon_threadsafe(goes_on.wait)
            try:
                assert isinstance(ends(lambda: log.append([b"b"], timeout=0.1)), OutcomeUnknownError)
                assert ends(log.close) is None
            finally:
                goes_on.set()
        thread.join()
        loop.close()


def in_child(look: Callable[[], str]) -> str:
    """What a forked process saw; it touches nothing else and ends at once."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, look().encode())
        finally:
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], 10)
    said = os.read(reading, 4096).decode() if ready else "nothing"
    os.close(reading)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return said


def raised_by(call: Callable[[], Any]) -> str:
    try:
        return f"it gave {call()!r}"
    except KimberliteError as error:
        return f"{type(error).__name__}: {error}"


def test_a_forked_process_is_refused_and_leaves_the_client_of_its_parent_alone() -> None:
    with background() as (replicas, addresses), kimberlite.sync.connect(addresses) as log:
        log.append([b"a"])
        for call in (*calls(log), lambda: next(iter(log.read()))):
            assert "forked" in in_child(lambda call=call: raised_by(call))  # type: ignore[misc]
        assert in_child(lambda: raised_by(log.close)) == "it gave None"
        assert log.append([b"b"]) == 1
        assert replicas.log == [b"a", b"b"]


def test_a_forked_process_is_refused_by_the_asyncio_client() -> None:
    async def test(replicas: Replicas, addresses: list[str]) -> None:
        async with connected(addresses) as log:
            await log.append([b"a"])

            async def one(call: Callable[[], Any]) -> Any:
                return await call()

            def child(call: Callable[[], Any]) -> str:
                # On a thread: the child's own loop, not the one that it was forked out of.
                return str(ends(lambda: raised_by(lambda: asyncio.run(one(call)))))

            for call in (*calls(log), log.close):
                said = in_child(lambda call=call: child(call))  # type: ignore[misc]
                assert "forked" in said or said == "it gave None", said
            assert await log.append([b"b"]) == 1
            assert replicas.log == [b"a", b"b"]

    run(test)


def test_a_second_client_in_a_forked_process_works() -> None:
    with background() as (replicas, addresses), kimberlite.sync.connect(addresses) as log:
        log.append([b"a"])

        def child() -> str:
            with kimberlite.sync.connect(addresses) as own:
                return str(own.append([b"child"]))

        assert in_child(child) == "1"
        assert log.append([b"b"]) == 2
        assert replicas.log == [b"a", b"child", b"b"]


def test_forks_are_counted_in_the_child_only() -> None:
    before = aio.Forks.count
    assert in_child(lambda: str(aio.Forks.count)) == str(before + 1)
    assert aio.Forks.count == before
