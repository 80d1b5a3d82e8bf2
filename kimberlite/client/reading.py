"""Reading the log: events by position, the end, following what is appended.

Invariants. A read does not end before what its client knows to be in the log, because it was
acknowledged to it or because a replica said so. A step of an iterator that is cancelled, or ends in
an error, loses nothing: the next step goes on at the same event. A step ends within its timeout,
whatever the replicas do: see client.asking.

Any number of reads and follows share a client: what several of them want at the same time is asked for once, at
most READS_MAX pieces are asked for at a time, and all that wait at the end of the log wait for one READ, the only one
that a replica keeps waiting for a connection. An iterator asks one piece ahead. Thread rules: one event loop.
May import: errors, types, _fast, net, client.answers, client.arguments, client.asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Literal, TypeVar, overload

from kimberlite.client import arguments
from kimberlite.client.answers import Event, Judge, Piece, refusal
from kimberlite.client.asking import Asker, Elsewhere, Question
from kimberlite.errors import PositionError, UnavailableError, UsageError, invariant
from kimberlite.net import READ_END, READ_TIMES, READ_WAIT
from kimberlite.net.transport import FrameConnection
from kimberlite.types import Bytes, Command, Message

T = TypeVar("T")

READ_BYTES = 1 << 20
READS_MAX = 8  # of one client at a time: half of what a replica queues for a connection before it ends it
COUNT_MAX = 0xFFFFFFFF
PATIENCE_S = 0.3  # with a replica, before another one is asked as well
WAIT_S = 1.0  # so long a replica waits for new events before it says that there are none
LATE_S = 0.05  # a process that wakes up so late after a deadline, for it was stopped, first looks at what has arrived


class Reading:
    """The public methods of a client that read."""

    _reader: Reader

    @overload
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: Literal[False] = False,
        timeout: float | None = None,
    ) -> Events[Event]: ...
    @overload
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: Literal[True],
        timeout: float | None = None,
    ) -> Events[bytes]: ...
    @overload
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: bool,
        timeout: float | None = None,
    ) -> Events[Event] | Events[bytes]: ...
    def read(
        self,
        start: int = 0,
        *,
        limit: int | None = None,
        last: int | None = None,
        raw: bool = False,
        timeout: float | None = None,
    ) -> Events[Event] | Events[bytes]:
        """Events from `start` to the end of the log, or `limit` of them; or the `last` so many of the log.

        raw: give the bytes alone, not an Event: half the work of the client for small events.
        timeout: seconds that a step may take, the time until the next event is there; the client's when None.
        Iterate it, or step it with `anext`. Raises PositionError when `start` is beyond the end, or before
        `first`: retention took what was there; UnavailableError when the timeout is over.

        The end is that of the replica that answers, and never before what was acknowledged to
        this client or what an earlier read has shown. What other clients were acknowledged is
        there when the primary answers; when it can not be reached, another one may lag behind.
        """
        span = self._span(start, limit, last, False, not raw, timeout)
        return Events(span, Piece.raw) if raw else Events(span, Piece.events)

    @overload
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: Literal[False] = False,
        timeout: float | None = None,
    ) -> Events[Event]: ...
    @overload
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: Literal[True],
        timeout: float | None = None,
    ) -> Events[bytes]: ...
    @overload
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: bool,
        timeout: float | None = None,
    ) -> Events[Event] | Events[bytes]: ...
    def follow(
        self,
        start: int | Literal["end"] = 0,
        *,
        last: int | None = None,
        raw: bool = False,
        timeout: float | None = None,
    ) -> Events[Event] | Events[bytes]:
        """Events from `start` on, for ever: waits for new ones at the end of the log.

        start="end": only what is appended from now on. last: so many events before that, too. timeout: seconds
        without a word of any replica after which a step raises UnavailableError; how long nothing new is appended
        does not matter. To wait for an event for a limited time, as often as you like:
        `await asyncio.wait_for(anext(events), seconds)`.
        """
        span = self._span(start, None, last, True, not raw, timeout)
        return Events(span, Piece.raw) if raw else Events(span, Piece.events)

    def read_batches(
        self,
        *,
        start: int | Literal["end"] = 0,
        limit: int | None = None,
        last: int | None = None,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Events[tuple[int, int, Bytes]]:
        """(position, count, batch body) from `start` on: what `read` and `follow` unpack. For kimberlite.events."""
        return Events(self._span(start, limit, last, follow, False, timeout), Piece.batches)

    def _span(
        self,
        start: int | Literal["end"],
        limit: int | None,
        last: int | None,
        follow: bool,
        timed: bool,
        timeout: float | None,
    ) -> Span:
        self._reader.check_usable()
        seconds = self._reader.seconds(timeout)
        position = None if start == "end" or last is not None else arguments.whole(start, "start")
        if limit is not None:
            limit = arguments.whole(limit, "limit")
        if last is not None:
            last = arguments.whole(last, "last")
            if limit is not None or start not in (0, "end"):
                raise UsageError("`last` stands for a start and a limit of its own: give it alone", argument="last")
        return Span(self._reader, position, limit=limit, last=last or 0, follow=follow, timed=timed, timeout=seconds)

    async def end(self, *, timeout: float | None = None) -> int:
        """The position that the next event will have, which is the number of events ever appended.

        As `read` sees the end: never before what this client knows to be in the log.
        """
        self._reader.check_usable()
        seconds = self._reader.seconds(timeout)
        return await self._reader.once(
            self._reader.ask_end(seconds), seconds, "the end of the log could not be learned"
        )

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """What the primary, or else any replica, says of itself: see docs for the fields."""
        self._reader.check_usable()
        seconds = self._reader.seconds(timeout)
        return await self._reader.once(self._reader.ask_status(seconds), seconds, "no replica told its status")


class Events(AsyncIterator[T]):
    """What `read`, `follow` and `read_batches` give: an iterator, for one task at a time.

    A step that is cancelled (asyncio.wait_for, asyncio.timeout) or raises loses nothing: the next step goes on at
    the same event. `aclose` ends it. A step raises UnavailableError when its timeout is over,
    PositionError, and UsageError when the client is closed, or is another process's or event loop's.
    """

    def __init__(self, span: Span, unpack: Callable[[Piece], Iterator[T]]) -> None:
        self._span = span
        self._unpack = unpack
        self._ready: Iterator[T] = iter(())

    def __aiter__(self) -> AsyncIterator[T]:
        # A generator costs a third less for each event, but a step that is cancelled ends it. That ends a
        # loop over a read, too; a follow may be stepped in any way.
        return self if self._span.follow else self._each()

    async def __anext__(self) -> T:
        while True:
            for item in self._ready:
                return item
            if not await self._fill():
                raise StopAsyncIteration

    async def take(self) -> Iterator[T] | None:
        """What the next step and those after it would give, as far as one answer goes; None at the end."""
        if not await self._fill():
            return None
        ready, self._ready = self._ready, iter(())
        return ready

    async def aclose(self) -> None:
        """End here: no further step gives anything."""
        self._ready = iter(())
        self._span.close()

    def __del__(self) -> None:
        self._span.abandon()

    async def _each(self) -> AsyncIterator[T]:
        while True:
            for item in self._ready:
                yield item
            if not await self._fill():
                return

    async def _fill(self) -> bool:
        piece = await self._span.step()
        if piece is None:
            return False
        self._ready = self._unpack(piece)
        return True


class Span:
    """Where an iterator is in the log, how far it goes, and the question it has asked. It moves on only with
    what it gives out."""

    def __init__(
        self,
        reader: Reader,
        position: int | None,
        *,
        limit: int | None = None,
        last: int = 0,
        follow: bool = False,
        timed: bool = False,
        timeout: float,
    ) -> None:
        """position: None for the end of the log, or for `last` events before it."""
        self.follow = follow
        self._reader = reader
        self._position = position or 0
        self._until = None if limit is None else self._position + limit
        self._limit = limit
        self._last = last
        self._timed = timed
        self._timeout = timeout
        self._is_over = limit == 0
        self._is_under_way = False  # it has given a piece
        self._question: Question[Piece] | None = None
        self._end: Question[int] | None = None
        self.end_max = (
            arguments.POSITION_MAX
        )  # where the first event stands that was acknowledged while the end was asked for
        if position is None:
            self._end = reader.ask_end(timeout)
            reader.starting.add(self)

    async def step(self) -> Piece | None:
        """The next piece of at least one event; None when there is none."""
        reader = self._reader
        reader.check_usable()
        deadline = reader.now() + self._timeout
        if self._end is not None:
            await self._locate(self._end, deadline)
        while not self._is_over:
            position = self._position
            question = self._question or self._ask(position)
            await reader.wait(question, deadline, f"position {position} could not be read within {self._timeout:g} s")
            if question is not self._question:
                continue  # closed meanwhile, or another step has been faster
            try:
                piece = question.answer.result()
            except PositionError as error:
                if not self._last or error.first is None or position >= error.first:
                    raise
                self._position = error.first  # retention took some of the last events
                continue
            finally:
                self._release()
            invariant(
                not piece.length or piece.position == position,
                "events come in their order",
                position=position,
                got=piece.position,
            )
            self._position = position + piece.length
            self._is_over = self._position == self._until or (not self.follow and self._position >= reader.end)
            if piece.length:
                self._ask_ahead()
                return piece
            deadline = reader.now() + self._timeout  # there is nothing new, but a replica that says so
        return None

    def _ask_ahead(self) -> None:
        """From the second piece on, the next one is on its way while the caller is busy with this one."""
        if self._is_under_way and not self._is_over and self._position < self._reader.end:
            self._ask(self._position)
        self._is_under_way = True

    async def _locate(self, question: Question[int], deadline: float) -> None:
        await self._reader.wait(question, deadline, f"the end could not be learned within {self._timeout:g} s")
        if question is not self._end:
            return
        self._end = None
        self._reader.starting.discard(self)
        end = question.answer.result()
        self._position = max(min(end, self.end_max) - self._last, 0)
        if self._limit is not None:
            self._until = self._position + self._limit
        elif not self.follow:
            self._until = end
            self._is_over = self._position == end

    def _ask(self, position: int) -> Question[Piece]:
        reader = self._reader
        if self.follow and reader.knows_end and position == reader.end:
            question = reader.watch(self._timeout)
        else:
            count = 0 if self._until is None else min(self._until - position, COUNT_MAX)
            question = reader.piece(position, count, self._timed, self._timeout)
        question.users += 1
        self._question = question
        return question

    def _release(self) -> None:
        question, self._question = self._question, None
        if question is not None:
            question.users -= 1
            if not question.users:
                question.drop()

    def close(self) -> None:
        self._is_over = True
        self._release()
        if self._end is not None:
            self._end.drop()
            self._end = None
            self._reader.starting.discard(self)

    def abandon(self) -> None:
        """Nobody has the iterator any more. From any thread."""
        if self._question is not None or self._end is not None:
            self._reader.call_in_loop(self.close)


class Reader:
    """What the reads of one client share."""

    def __init__(
        self,
        *,
        connections: Mapping[int, FrameConnection],
        make_frame: Callable[..., Message],
        primary: Callable[[], int | None],
        check_usable: Callable[[], object],
        random: Random,
        names: Sequence[str],
        timeout: float,
    ) -> None:
        """connections, make_frame, primary: see Asker. check_usable: raises UsageError when the client can not be
        used here. names: addresses, for messages. timeout: seconds, the default."""
        self.check_usable = check_usable
        self.end = 0  # so many events are in the log at least
        self.knows_end = False  # a replica has told of it
        self.starting: set[Span] = set()  # they have asked for the end
        self.timeout = timeout
        self._asker = Asker(connections=connections, make_frame=make_frame, primary=primary, random=random)
        self.on_frame = self._asker.on_frame
        self.on_lost = self._asker.on_lost
        self._names = names
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pieces: dict[tuple[int, int, bool], Question[Piece]] = {}
        self._under_way: set[Question[Piece]] = set()
        self._queue: deque[Question[Piece]] = deque()
        self._watch: Question[Piece] | None = None
        self._watch_s = 0.0
        self._watch_at = 0

    # Life

    def seconds(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else arguments.seconds(timeout)

    @property
    def replicas(self) -> frozenset[int]:
        """Those that are connected."""
        return frozenset(self._asker.connections)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def call_in_loop(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
                self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        error = UnavailableError("the client was closed before the answer came")
        for question in list(self._pieces.values()):
            question.fail(error)
        self._asker.close(error)

    def acknowledged(self, position: int, count: int) -> None:
        """The client has been told that its events are in the log."""
        self.learn_end(position + count)
        for span in self.starting:
            span.end_max = min(span.end_max, position)

    def learn_end(self, end: int) -> None:
        self.end = max(self.end, end)
        self.knows_end = True

    async def wait(self, question: Question[Any], deadline: float, problem: str) -> None:
        """Until there is an answer, or raises UnavailableError. Who is cancelled here does not end the question."""
        answer = question.answer
        if not answer.done():
            await asyncio.wait((answer,), timeout=max(deadline - self.now(), 0.0))
        if not answer.done() and self.now() > deadline + LATE_S:
            await asyncio.wait((answer,), timeout=LATE_S)
        if not answer.done():
            raise UnavailableError(f"{problem}: {question.problem}", addresses=self._names)

    async def once(self, question: Question[T], timeout: float, problem: str) -> T:
        """The answer to a question that nobody else has."""
        try:
            await self.wait(question, self.now() + timeout, f"{problem} within {timeout:g} s")
            return question.answer.result()
        finally:
            question.drop()

    # Questions

    def piece(self, position: int, count: int, timed: bool, timeout: float) -> Question[Piece]:
        """Events from `position` on: `count` at most, 0 for no limit. Shared by all who want the same."""
        key = position, count, timed
        question = self._pieces.get(key)
        if question is None or question.answer.done():
            question = self._pieces[key] = self._question(
                Judge(self, position, count, timed=timed),
                timeout,
                position,
                count=count,
                flags=READ_TIMES if timed else 0,
            )
            question.answer.add_done_callback(lambda _: self._on_piece(key, question))
            self._queue.append(question)
            self._ask_queued()
        return question

    def _on_piece(self, key: tuple[int, int, bool], question: Question[Piece]) -> None:
        if self._pieces.get(key) is question:
            del self._pieces[key]
        self._under_way.discard(question)
        self._ask_queued()

    def _ask_queued(self) -> None:
        while self._queue and len(self._under_way) < READS_MAX:
            question = self._queue.popleft()
            if not question.answer.done():
                self._under_way.add(question)
                question.ask()

    def watch(self, timeout: float) -> Question[Piece]:
        """What comes at the end of the log; a piece of 0 events when nothing does for a while. Shared by all."""
        wait = min(WAIT_S, timeout / 3)
        old = self._watch
        if old is not None and not old.answer.done():
            if self._watch_at == self.end and self._watch_s <= wait:
                return old
            # It stands where the end was, or would keep somebody waiting for longer than they want to. A replica
            # keeps one READ waiting: who waited for this one asks again.
            old.settle(Piece(self.end, 0, b""))
        self._watch_at = self.end
        self._watch_s = wait
        self._watch = self._question(
            Judge(self, self.end, 0, timed=True, waits=True),
            timeout,
            self.end,
            waits=wait,
            flags=READ_TIMES | READ_WAIT,
            timestamp=int(wait * 1e9),
        )
        self._watch.ask()
        return self._watch

    def _question(
        self, judge: Judge, timeout: float, position: int, *, waits: float = 0.0, **fields: int
    ) -> Question[Piece]:
        patience = waits + self._patience(timeout)
        return Question(self._asker, judge, patience, Command.READ, position=position, session=READ_BYTES, **fields)

    def ask_end(self, timeout: float) -> Question[int]:
        def judge(replica: int, answer: Message) -> int:
            if answer.header.command != Command.READ_REPLY:
                raise Elsewhere(refusal(replica, answer))
            if answer.header.timestamp < self.end:
                raise Elsewhere(f"the log has {self.end} events, replica {replica} {answer.header.timestamp} by now")
            self.learn_end(answer.header.timestamp)
            return self.end

        question = Question(self._asker, judge, self._patience(timeout), Command.READ, flags=READ_END)
        question.ask()
        return question

    def ask_status(self, timeout: float) -> Question[dict[str, Any]]:
        def judge(replica: int, answer: Message) -> dict[str, Any]:
            if answer.header.command == Command.STATUS_REPLY:
                document = json.loads(bytes(answer.body))
                if isinstance(document, dict):
                    return document
            raise Elsewhere(refusal(replica, answer))

        question = Question(self._asker, judge, self._patience(timeout), Command.STATUS)
        question.ask()
        return question

    def _patience(self, timeout: float) -> float:
        """So that within the timeout every replica is asked."""
        self._loop = asyncio.get_running_loop()
        return min(PATIENCE_S, timeout / (len(self._asker.connections) + 1))
