"""The blocking client: the asyncio client on a thread of its own, under the same names.

    with kimberlite.sync.connect(["h1:7100", ...]) as log:
        position = log.append([b"one", b"two"], timeout=2.0)
        for event in log.read(start=position): ...

Thread rules: any number of threads may use one Log; their appends travel together.
May import: errors, client.aio.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from kimberlite.client import aio
from kimberlite.errors import UsageError
from kimberlite.types import Bytes

T = TypeVar("T")


class Log:
    """See kimberlite.client.aio.Log: the same methods, without await."""

    def __init__(self, log: aio.Log) -> None:
        self._log = log
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Log:
        self._thread = threading.Thread(target=self._loop.run_forever, name="kimberlite-client", daemon=True)
        self._thread.start()
        try:
            self._call(self._log.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._log.__aexit__(None, None, None))
        finally:
            self._stop()

    def _stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._thread is None:
            coroutine.close()
            raise UsageError("the client is not connected: use `with kimberlite.sync.connect(...) as log`")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _awaited(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    def append(self, events: Sequence[Bytes], *, timeout: float | None = None) -> int:
        return self._call(self._awaited(lambda: self._log.append(events, timeout=timeout)))

    def append_batch(self, body: Bytes, count: int, *, timeout: float | None = None) -> int:
        return self._call(self._awaited(lambda: self._log.append_batch(body, count, timeout=timeout)))

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        return self._call(self._log.status(timeout=timeout))

    def read(self, start: int = 0, *, limit: int | None = None, timeout: float | None = None) -> Iterator[bytes]:
        return self._iterate(self._log.read(start, limit=limit, timeout=timeout))

    def follow(self, start: int = 0, *, timeout: float | None = None) -> Iterator[bytes]:
        return self._iterate(self._log.follow(start, timeout=timeout))

    def read_batches(
        self, *, start: int = 0, limit: int | None = None, follow: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[int, int, Bytes]]:
        return self._iterate(self._log.read_batches(start=start, limit=limit, follow=follow, timeout=timeout))

    def _iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Pull from the other thread, one step at a time."""

        async def step() -> tuple[bool, T | None]:
            try:
                return True, await source.__anext__()
            except StopAsyncIteration:
                return False, None

        while True:
            more, item = self._call(step())
            if not more:
                return
            yield item  # type: ignore[misc]


def connect(addresses: Sequence[str], **options: Any) -> Log:
    """A blocking client; options as for kimberlite.connect."""
    return Log(aio.connect(addresses, **options))
