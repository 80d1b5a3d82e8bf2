"""One client session, without I/O: what to send, what is done, when to be called again.

Exactly once: the session is registered through the log; requests are numbered; one is in
flight; it is sent again under the same number until the cluster has answered it, whoever
leads by then. Appends that arrive meanwhile wait and then travel together as one request;
each learns its own position.

Deadlines. An append whose request was never sent fails with UnavailableError: nothing
happened. One whose request may have arrived fails with OutcomeUnknownError; the request
goes on being sent until it is answered, so that what follows stays in order. One that was refused
for lack of disk space is sent again with back-off, for room may be made meanwhile; when it was still
refused at its deadline, it fails with NoSpaceError: nothing happened.

Inputs: append, step, tick, connected, disconnected. Outputs: take_output, next_deadline. Times
are monotonic nanoseconds handed in. The seed gives the jitter; there is no other randomness.
May import: errors, types, _fast.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from kimberlite._fast import events as event_batches
from kimberlite.errors import (
    BusyError,
    EventTooLargeError,
    KimberliteError,
    NoSpaceError,
    OutcomeUnknownError,
    RejectedError,
    SessionEvictedError,
    UnavailableError,
    UsageError,
)
from kimberlite.types import Bytes, ClientId, ClusterId, Command, HeaderFactory, Message, Operation, Reason

MS = 1_000_000
RETRY_FIRST_NS = 100 * MS  # until a round trip has been seen
RETRY_MIN_NS = 50 * MS
RETRY_MAX_NS = 1000 * MS
BACK_OFF_NS = 5 * MS  # after BUSY; doubles
WAITING_MAX = 65_536  # appends
WAITING_BYTES_MAX = 64 << 20
TABLE_ENTRY_BYTES = 4  # what an event costs beside its bytes
TABLE_BYTES = 24

EXPIRED = -1  # handle of an append that was answered at its deadline and only keeps its place

RETRY_LATER = frozenset({Reason.BUSY_PIPELINE, Reason.BUSY_QUEUE, Reason.NOT_READY, Reason.DISK_FULL})
ELSEWHERE = frozenset({Reason.NOT_PRIMARY, Reason.DRAINING})


@dataclass(slots=True)
class Append:
    """An append that waits or is under way."""

    handle: int
    events: Sequence[Bytes] | None  # None: `body` is a batch already
    body: Bytes
    count: int
    size: int  # bytes it adds to a request
    deadline: int | None
    alone: bool = False  # a request that held it with others was above a limit of the cluster


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an append: `position` of its first event, or the error."""

    handle: int
    position: int = -1
    count: int = 0
    error: KimberliteError | None = None


@dataclass(slots=True)
class Request:
    """The one request in flight."""

    message: Message
    appends: list[Append] = field(default_factory=list)
    first_sent_at: int | None = None  # None: never left
    sent_at: int = 0
    attempts: int = 0
    refused: int = 0  # copies that were answered by a REJECT which says that they were never executed
    reason: int = 0  # of the last REJECT
    back_off: int = 0

    @property
    def is_surely_refused(self) -> bool:
        """Every copy was refused: none of them can be in the log, or get there."""
        return self.refused >= self.attempts

    @property
    def lacks_space(self) -> bool:
        """There was no space for it, and no append of it is in the log; a REGISTER carries none."""
        return self.reason == Reason.DISK_FULL and (self.is_surely_refused or not self.appends)


class Session:
    """See the module docstring. Thread rules: one thread."""

    def __init__(
        self,
        *,
        make_header: HeaderFactory,
        cluster: ClusterId,
        client_id: ClientId,
        replica_count: int,
        seed: int,
        request_bytes_max: int = 2 << 20,
        events_max: int = 65_536,
        new_client_id: Callable[[], ClientId] | None = None,
    ) -> None:
        """new_client_id: gives the identity of the session after an eviction; from the seed when None."""
        self._make_header = make_header
        self._cluster = cluster
        self._random = Random(seed)
        self._new_client_id = new_client_id or (lambda: self._random.randbytes(16))
        self.client_id = client_id
        self.replica_count = replica_count
        self._request_bytes_max = request_bytes_max
        self._events_max = events_max
        self.number = 0  # of the session; 0 while not registered
        self.view = 0
        self._request_number = 0
        self._next_handle = 1
        self._waiting: deque[Append] = deque()
        self._waiting_bytes = 0
        self._request: Request | None = None
        self._connected: set[int] = set()
        self._target = 0
        self._retry_at: int | None = None
        self._expires_at: int | None = None
        self._round_trip = 0
        self._latency_us = 0
        self._sends: list[tuple[int, Message]] = []
        self._done: list[Outcome] = []

    # Inputs

    def append(self, events: Sequence[Bytes], now: int, deadline: int | None = None) -> int:
        """Append events; returns a handle that comes back in an Outcome.

        Raises EventTooLargeError, BusyError (nothing was accepted), UsageError.
        """
        if not events:
            raise UsageError("an append needs at least one event")
        size = sum(map(len, events)) + TABLE_ENTRY_BYTES * len(events)
        return self._enqueue(Append(0, events, b"", len(events), size, deadline), now)

    def append_batch(self, body: Bytes, count: int, now: int, deadline: int | None = None) -> int:
        """Append a batch body that was built already (kimberlite.events.build)."""
        return self._enqueue(Append(0, None, body, count, len(body), deadline), now)

    def _enqueue(self, append: Append, now: int) -> int:
        if append.size + TABLE_BYTES > self._request_bytes_max + TABLE_BYTES * 4 or append.count > self._events_max:
            raise EventTooLargeError(
                f"an append of {append.count} events and {append.size} bytes is above the limit of "
                f"{self._events_max} events and {self._request_bytes_max} bytes for one request; split it",
                count=append.count,
                size=append.size,
                limit=self._request_bytes_max,
            )
        if len(self._waiting) >= WAITING_MAX or self._waiting_bytes + append.size > WAITING_BYTES_MAX:
            raise BusyError(
                f"{len(self._waiting)} appends ({self._waiting_bytes} bytes) wait already; wait for some of them",
                waiting=len(self._waiting),
            )
        append.handle = self._next_handle
        self._next_handle += 1
        self._waiting.append(append)
        self._waiting_bytes += append.size
        if append.deadline is not None and (self._expires_at is None or append.deadline < self._expires_at):
            self._expires_at = append.deadline
        return append.handle

    def flush(self, now: int) -> None:
        """Send what waits, when nothing is in flight. Call after a burst of appends."""
        if self._request is None and self._waiting:
            if not self.number:
                self._begin(self._register(), [], now)
            else:
                self._begin(*self._collect(), now)

    def connected(self, replica: int, now: int) -> None:
        """A connection to that replica is ready."""
        self._connected.add(replica)
        request = self._request
        if request is not None and (request.first_sent_at is None or self._retry_at is None):
            self._send(now)

    def disconnected(self, replica: int, now: int) -> None:
        """The connection is gone: what was sent there may or may not have arrived."""
        self._connected.discard(replica)
        if self._request is not None and replica == self._target:
            self._target = self._next_target()
            self._send(now)

    def step(self, message: Message, now: int) -> None:
        """A frame from a replica. Anything that is not about the request in flight is ignored."""
        header = message.header
        if header.command == Command.HELLO:
            self._learn_view(header.view)
            return
        request = self._request
        if request is None or header.context != request.message.header.checksum:
            return
        if header.command == Command.REPLY:
            self._learn_view(header.view)
            self._on_reply(message, request, now)
        elif header.command == Command.REJECT:
            self._on_reject(message, request, now)

    def tick(self, now: int) -> None:
        """Deadlines and retries."""
        if self._expires_at is not None and now >= self._expires_at:
            self._expire(now)
        if self._retry_at is not None and now >= self._retry_at:
            if self._request is None:
                self._retry_at = None
                self.flush(now)
                return
            if self._request.back_off == 0:
                self._target = self._next_target()
            self._send(now)

    # Outputs

    def take_output(self) -> tuple[list[tuple[int, Message]], list[Outcome]]:
        """What to send to which replica, and what is done, since the last call."""
        output = (self._sends, self._done)
        self._sends, self._done = [], []
        return output

    def next_deadline(self) -> int | None:
        """When `tick` must be called; None when only another input can change anything."""
        deadlines = [at for at in (self._expires_at, self._retry_at) if at is not None]
        return min(deadlines) if deadlines else None

    @property
    def idle(self) -> bool:
        return self._request is None and not self._waiting

    # Requests

    def _register(self) -> Message:
        return Message(
            self._make_header(
                cluster=self._cluster, command=Command.REQUEST, client=self.client_id, operation=Operation.REGISTER
            )
        )

    def _collect(self) -> tuple[Message, list[Append]]:
        """As many waiting appends as one request holds."""
        appends: list[Append] = []
        size = TABLE_BYTES
        count = 0
        while self._waiting:
            append = self._waiting[0]
            if appends and (append.alone or appends[0].alone):
                break
            if appends and (size + append.size > self._request_bytes_max or count + append.count > self._events_max):
                break
            appends.append(self._waiting.popleft())
            self._waiting_bytes -= append.size
            size += append.size
            count += append.count
        body: Bytes
        if len(appends) == 1 and appends[0].events is None:
            body = appends[0].body
        elif all(append.events is not None for append in appends):
            body = event_batches.build([event for append in appends for event in append.events or ()])
        else:
            body = event_batches.concat(
                [append.body if append.events is None else event_batches.build(append.events) for append in appends]
            )
        self._request_number += 1
        header = self._make_header(
            body,
            cluster=self._cluster,
            command=Command.REQUEST,
            client=self.client_id,
            session=self.number,
            request=self._request_number,
            operation=Operation.APPLY,
            count=count,
            latency_us=self._latency_us,
        )
        return Message(header, body), appends

    def _begin(self, message: Message, appends: list[Append], now: int) -> None:
        self._request = Request(message, appends)
        self._target = self.view % self.replica_count
        self._send(now)

    def _send(self, now: int) -> None:
        """Send the request in flight to the believed primary, or to whom there is a connection."""
        request = self._request
        if request is None:
            return
        if self._target not in self._connected:
            self._target = self._next_target()
        if self._target not in self._connected:
            self._retry_at = None  # `connected` sends it
            return
        request.attempts += 1
        request.back_off = 0
        request.sent_at = now
        if request.first_sent_at is None:
            request.first_sent_at = now
        self._retry_at = now + self._retry_interval(request.attempts)
        self._sends.append((self._target, request.message))

    def _retry_interval(self, attempts: int) -> int:
        base = min(max(4 * self._round_trip, RETRY_MIN_NS), RETRY_MAX_NS) if self._round_trip else RETRY_FIRST_NS
        interval = min(base << min(attempts - 1, 5), RETRY_MAX_NS)
        return interval + int(self._random.random() * interval / 2)

    def _next_target(self) -> int:
        """Round the replicas, those that are connected only, when there are any."""
        for step in range(1, self.replica_count + 1):
            candidate = (self._target + step) % self.replica_count
            if candidate in self._connected:
                return candidate
        return self._target

    def _learn_view(self, view: int) -> None:
        self.view = max(self.view, view)

    # Answers

    def _on_reply(self, message: Message, request: Request, now: int) -> None:
        header = message.header
        self._request = None
        self._retry_at = None
        if request.first_sent_at is not None:
            sample = now - request.sent_at
            self._latency_us = min((now - request.first_sent_at) // 1000, 0xFFFFFFFF)
            self._round_trip = sample if not self._round_trip else self._round_trip + (sample - self._round_trip) // 8
        if header.operation == Operation.REGISTER:
            self.number = header.session
            self._request_number = 0
        position = header.position
        for append in request.appends:
            if append.handle != EXPIRED:
                self._done.append(Outcome(append.handle, position, append.count))
            position += append.count
        self.flush(now)

    def _on_reject(self, message: Message, request: Request, now: int) -> None:
        header = message.header
        reason = request.reason = header.reason
        # A primary that is voted out says NOT_PRIMARY of what it had prepared, too: that may yet be committed.
        request.refused += reason != Reason.NOT_PRIMARY
        if reason in ELSEWHERE:
            if header.view > self.view:
                self.view = header.view
            preferred = self.view % self.replica_count
            came_from = header.replica
            self._target = preferred if preferred != came_from else self._next_target()
            # Nobody may lead yet: do not run round the replicas faster than they can elect.
            request.back_off = BACK_OFF_NS if preferred != came_from else 4 * BACK_OFF_NS
            self._retry_at = now + request.back_off + int(self._random.random() * BACK_OFF_NS)
            return
        if reason in RETRY_LATER:
            request.back_off = BACK_OFF_NS << min(request.attempts, 7)
            self._retry_at = now + request.back_off // 2 + int(self._random.random() * request.back_off)
            deadlines = [append.deadline for append in request.appends if append.deadline is not None]
            if (
                request.lacks_space
                and deadlines
                and self._retry_at + 4 * self._round_trip > min(deadlines) - BACK_OFF_NS
            ):
                # Not so late that its deadline finds it under way: its outcome would be unknown.
                self._retry_at = max(min(deadlines), now)
            return
        self._request = None
        self._retry_at = None
        if reason == Reason.NO_SESSION:
            self._evicted(request)
        elif reason == Reason.TOO_LARGE and request.is_surely_refused:
            self._too_large(request)
        else:
            self._refused(request, reason)
        self.flush(now)

    def _refused(self, request: Request, reason: int) -> None:
        name = Reason(reason).name.lower().replace("_", " ")
        error = RejectedError(f"the cluster refused the request: {name}; nothing was appended", reason=reason)
        if request.message.header.operation == Operation.REGISTER:
            # It lets nobody in: asking again at once would be answered the same.
            waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
            self._fail(waiting, error)
        elif request.is_surely_refused:
            self._fail(request.appends, error)
            self._request_number -= 1  # it was not executed: its number is free
        else:
            # An earlier copy may have been executed elsewhere. Its number must not name other events: they
            # would be answered as its duplicate. So the session ends here.
            self._fail(
                request.appends,
                OutcomeUnknownError(
                    f"the cluster refused a retry of this append: {name}; it may or may not be in the log",
                    reason=reason,
                ),
            )
            self._renew()

    def _too_large(self, request: Request) -> None:
        """The cluster's limits are lower than ours. Which of the appends is above them shows when each
        travels by itself."""
        self._request_number -= 1  # it was not executed: its number is free
        appends = [append for append in request.appends if append.handle != EXPIRED]
        if len(request.appends) > 1:
            for append in appends:
                append.alone = True
            self._waiting.extendleft(reversed(appends))
            self._waiting_bytes += sum(append.size for append in appends)
            return
        for append in appends:
            self._fail(
                [append],
                EventTooLargeError(
                    f"the cluster refused an append of {append.count} events and {append.size} bytes: an event is "
                    "above its limits.event_bytes_max, or the append above its limits.request_bytes_max or "
                    "limits.events_per_request_max; nothing was appended",
                    count=append.count,
                    size=append.size,
                ),
            )

    def _evicted(self, request: Request) -> None:
        """The session is gone. Whether the request in flight was executed cannot be known if another copy
        of it was not answered: it may have been executed before the eviction."""
        if not request.is_surely_refused:
            error: KimberliteError = OutcomeUnknownError(
                "the session was evicted while this append was retried: it may or may not be in the log"
            )
        else:
            error = SessionEvictedError("the session was evicted; nothing was appended, append again")
        self._fail(request.appends, error)
        self._renew()

    def _renew(self) -> None:
        """The next request begins a new session, under an identity that no older frame has."""
        self.number = 0
        self._request_number = 0
        self.client_id = self._new_client_id()

    def _fail(self, appends: Iterable[Append], error: KimberliteError) -> None:
        for append in appends:
            if append.handle != EXPIRED:
                self._done.append(Outcome(append.handle, count=append.count, error=error))

    # Deadlines

    def _expire(self, now: int) -> None:
        def late(append: Append) -> bool:
            return append.deadline is not None and now >= append.deadline

        expired = [append for append in self._waiting if late(append)]
        if expired:
            self._waiting = deque(append for append in self._waiting if not late(append))
            self._waiting_bytes -= sum(append.size for append in expired)
            error: KimberliteError = UnavailableError(
                "no replica took the append before its deadline: nothing was sent; check that a quorum is running"
            )
            if self._request is not None and self._request.lacks_space:
                error = _no_space()
            self._fail(expired, error)
        request = self._request
        if request is not None:
            expired = [append for append in request.appends if late(append)]
            if expired and request.first_sent_at is None:
                error = UnavailableError(
                    "no replica could be reached before the deadline: nothing was sent; check the addresses and that "
                    "the replicas are running"
                )
                self._take_back(request, expired, error, now)
            elif expired and request.lacks_space:
                self._take_back(request, expired, _no_space(), now)
            elif expired:
                # Positions of the others are counted on from the first: keep their places.
                request.appends = [
                    Append(EXPIRED, None, b"", append.count, 0, None) if late(append) else append
                    for append in request.appends
                ]
                self._fail(
                    expired,
                    OutcomeUnknownError(
                        "the deadline passed while the append was under way: it may or may not be in the log; "
                        "read the log to find out"
                    ),
                )
        pending = [append.deadline for append in self._waiting if append.deadline is not None]
        if self._request is not None:
            pending += [append.deadline for append in self._request.appends if append.deadline is not None]
        self._expires_at = min(pending, default=None)

    def _take_back(self, request: Request, expired: Sequence[Append], error: KimberliteError, now: int) -> None:
        """A request that is certainly not in the log, nor on its way there, is taken apart again: its number is
        free, and what is not late goes on waiting."""
        handles = {append.handle for append in expired}
        kept = [append for append in request.appends if append.handle not in handles]
        self._waiting.extendleft(reversed(kept))
        self._waiting_bytes += sum(append.size for append in kept)
        if request.message.header.operation == Operation.APPLY:
            self._request_number -= 1
        self._request = None
        self._retry_at = now + BACK_OFF_NS if kept else None
        self._fail(expired, error)


def _no_space() -> NoSpaceError:
    return NoSpaceError(
        "the cluster refused the append until its deadline, because the disks of too many replicas are full: nothing "
        "was appended; make room, or have the log trimmed, see `kimberlite status`",
        reason=Reason.DISK_FULL,
    )
