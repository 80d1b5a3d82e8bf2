"""The blocking client: the asyncio client on a thread of its own, under the same names.

    with kimberlite.sync.connect(["h1:7100", ...]) as log:
        position = log.append([b"one", b"two"], timeout=2.0)
        for event in log.read(start=position): ...

Invariant: every call returns, within its timeout and a little: when the client is closed meanwhile by another
thread, when its own thread has ended, in a forked process. Arguments are checked and copied on the calling thread.
Thread rules: any number of threads may use one Log; their appends travel together.
May import: errors, types, client.aio, client.answers, client.arguments, client.reading.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent import futures
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from kimberlite.client import aio, arguments
from kimberlite.client.answers import Event
from kimberlite.client.reading import Events
from kimberlite.errors import KimberliteError, OutcomeUnknownError, UsageError
from kimberlite.types import Bytes

T = TypeVar("T")
GRACE_S = 0.4  # calls end by themselves at their timeout; so much later they are ended from outside


class Log:
    """See kimberlite.client.aio.Log: the same methods, without await."""

    def __init__(self, log: aio.Log) -> None:
        self._log = log
        self._life = aio.Life.NEW
        self._forks = aio.Forks.count
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # over _life and _calls
        self._calls: set[futures.Future[Any]] = set()  # that have not returned

    # Life

    def __enter__(self) -> Log:
        with self._lock:
            if self._life is not aio.Life.NEW:
                already = "open already" if self._life is aio.Life.OPEN else self._life.value
                raise UsageError(f"this client is {already}")
            self._life = aio.Life.OPEN
            self._forks = aio.Forks.count
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="kimberlite-client", daemon=True)
        self._thread.start()
        try:
            self._call(self._log.__aenter__(), self._log._timeout)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls, of all threads, and close all connections: see kimberlite.client.aio.Log.close."""
        if self._forks != aio.Forks.count:
            return
        try:
            if self._life is aio.Life.OPEN:
                self._call(self._log.close(), GRACE_S)
        except KimberliteError:
            pass  # its thread has ended or hangs, or another one closes it as well
        finally:
            self._stop()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread. However it ends, nobody goes on waiting for it."""
        try:
            loop.run_forever()
        finally:
            with self._lock:
                self._life = aio.Life.CLOSED
            try:
                loop.run_until_complete(self._log.close())
                # What was handed over in the last moment is told that the client is closed.
                loop.run_until_complete(_finish_all())
            finally:
                for call in list(self._calls):
                    call.cancel()

    def _stop(self) -> None:
        with self._lock:
            if self._life is aio.Life.NEW:
                return
            self._life = aio.Life.CLOSED
            thread, self._thread = self._thread, None
        loop = self._loop
        if thread is None or loop is None:
            return  # by another thread
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
        thread.join(GRACE_S)
        if not thread.is_alive():
            loop.close()

    # Calls

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run it on the thread of the client and wait. timeout: the one that it has itself; then it is waited for
        that long and a little. None: it ends by itself whenever it does."""
        try:
            call = self._submit(coroutine)
        except BaseException:
            coroutine.close()
            raise
        try:
            return self._result(call, timeout)
        except futures.CancelledError:
            raise UsageError("the client was closed, or its thread has ended, during this call") from None
        finally:
            call.cancel()  # when this thread was interrupted, nobody waits for it any more
            with self._lock:
                self._calls.discard(call)

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> futures.Future[T]:
        if self._forks != aio.Forks.count:
            raise UsageError(
                "this client was opened before the process was forked, and belongs to the parent: connect anew here"
            )
        with self._lock:
            if self._life is not aio.Life.OPEN or self._loop is None:
                what = self._life.value.replace("async with kimberlite.", "with kimberlite.sync.")
                raise UsageError(f"the client is {what}")
            if threading.current_thread() is self._thread:
                raise UsageError(
                    "this client was called on its own thread, by a callback perhaps: it would wait for itself"
                )
            call = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._calls.add(call)
            return call

    def _result(self, call: futures.Future[T], timeout: float | None) -> T:
        try:
            return call.result(timeout)
        except futures.TimeoutError:
            if call.done():  # the error of the call itself is one, too
                return call.result()
        # Its own deadline is as long. This thread may only have looked sooner, after a pause of the process.
        try:
            return call.result(GRACE_S)
        except futures.TimeoutError:
            if call.done():
                return call.result()
            raise OutcomeUnknownError(
                "the client's own thread did not answer in time: whether the call has an effect is unknown"
            ) from None

    def _seconds(self, timeout: float | None) -> float:
        return self._log._timeout if timeout is None else arguments.seconds(timeout)

    def append(self, events: Iterable[Bytes], *, timeout: float | None = None) -> int:
        seconds = self._seconds(timeout)
        return self._call(self._log.append(events, timeout=seconds), seconds)

    def append_batch(self, body: Bytes, count: int, *, timeout: float | None = None) -> int:
        seconds = self._seconds(timeout)
        return self._call(self._log.append_batch(body, count, timeout=seconds), seconds)

    def apply(self, commands: Iterable[Bytes], *, timeout: float | None = None) -> bytes:
        seconds = self._seconds(timeout)
        return self._call(self._log.apply(commands, timeout=seconds), seconds)

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        seconds = self._seconds(timeout)
        return self._call(self._log.status(timeout=seconds), seconds)

    def end(self, *, timeout: float | None = None) -> int:
        seconds = self._seconds(timeout)
        return self._call(self._log.end(timeout=seconds), seconds)

    @overload
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: Literal[False] = False,
        timeout: float | None = None,
    ) -> Iterator[Event]: ...
    @overload
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: Literal[True],
        timeout: float | None = None,
    ) -> Iterator[bytes]: ...
    @overload
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: bool,
        timeout: float | None = None,
    ) -> Iterator[Event] | Iterator[bytes]: ...
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Event] | Iterator[bytes]:
        seconds = self._seconds(timeout)
        if raw:
            return self._iterate(
                lambda: self._log.read(start, limit=limit, last=last, raw=True, timeout=seconds), seconds
            )
        return self._iterate(lambda: self._log.read(start, limit=limit, last=last, timeout=seconds), seconds)

    @overload
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: Literal[False] = False,
        timeout: float | None = None,
    ) -> Iterator[Event]: ...
    @overload
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: Literal[True],
        timeout: float | None = None,
    ) -> Iterator[bytes]: ...
    @overload
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: bool,
        timeout: float | None = None,
    ) -> Iterator[Event] | Iterator[bytes]: ...
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Event] | Iterator[bytes]:
        if raw:
            return self._iterate(lambda: self._log.follow(start, last=last, raw=True, timeout=timeout))
        return self._iterate(lambda: self._log.follow(start, last=last, timeout=timeout))

    def read_batches(
        self,
        *,
        start: int | Literal["end"] = 0,
        limit: int | None = None,
        last: int | None = None,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Iterator[tuple[int, int, Bytes]]:
        seconds = self._seconds(timeout)
        return self._iterate(
            lambda: self._log.read_batches(start=start, limit=limit, last=last, follow=follow, timeout=seconds),
            None if follow else seconds,
        )

    def _iterate(self, make: Callable[[], Events[T]], step: float | None = None) -> Iterator[T]:
        """What is wrong with the arguments is raised here, at the call. step: the timeout of one, when it has one."""

        async def made() -> Events[T]:
            return make()

        return self._items(self._call(made()), step)

    def _items(self, events: Events[T], step: float | None) -> Iterator[T]:
        """Pull from the other thread, one answer at a time."""
        while (items := self._call(events.take(), step)) is not None:
            yield from items


async def _finish_all() -> None:
    """Let the other tasks of this loop have their first step, and end those that wait for anything."""
    await asyncio.sleep(0)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def connect(
    addresses: Sequence[str],
    *,
    cluster: str | None = None,
    only: bool = False,
    timeout: float = aio.TIMEOUT_S,
    request_bytes_max: int = 2 << 20,
    events_max: int = 65_536,
) -> Log:
    """A blocking client; the same arguments as for kimberlite.connect."""
    return Log(
        aio.connect(
            addresses,
            cluster=cluster,
            only=only,
            timeout=timeout,
            request_bytes_max=request_bytes_max,
            events_max=events_max,
        )
    )
