"""One client session, without I/O: what to send, what is done, when to be called again.

Exactly once: the session is registered through the log; requests are numbered; one is in
flight; it is sent again under the same number until the cluster has answered it, whoever
leads by then. Appends that arrive meanwhile wait and then travel together as one request;
each learns its own position.

Refusals. A request is *surely refused* when every copy of it was answered by a REJECT that says
that this copy will never be executed. What is surely refused for a reason that passes (no primary, a full
queue, no disk space, an evicted session) is sent again with back-off until its deadline: after an
eviction in a new session, under a new identity. A busy replica says how long to wait.
Whom to ask is said by client.routing. Between two attempts are at most RETRY_NS and half as much by chance; more only
where answers usually take longer, up to RETRY_MAX_NS.

Deadlines. An append that was never sent, or was surely refused, fails with what stood in its way:
UnavailableError, BusyError, NoSpaceError, SessionEvictedError; nothing happened. One whose request may have
arrived fails with OutcomeUnknownError; the request goes on being sent until it is answered, so
that what follows stays in order. An append that nobody waits for any more (cancel) is not sent when it
has not left yet.

Inputs: append_batch, cancel, step, tick, connected, disconnected, close. Outputs: take_output, next_deadline.
Times are monotonic nanoseconds handed in. The seed gives the jitter; there is no other randomness.
What became of appends is told to the cluster with the next request: see kimberlite.told.
May import: errors, types, told, _fast, client.appends, client.obstacles, client.routing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from kimberlite._fast import events as event_batches
from kimberlite.client.appends import EXPIRED, Append, Outcome, Request
from kimberlite.client.obstacles import in_the_way
from kimberlite.client.routing import Routing
from kimberlite.errors import (
    BusyError,
    EventTooLargeError,
    KimberliteError,
    OutcomeUnknownError,
    RejectedError,
    UnavailableError,
    UsageError,
)
from kimberlite.told import Telling
from kimberlite.types import (
    FLAG_PREPARED,
    Bytes,
    ClientId,
    ClusterId,
    Command,
    HeaderFactory,
    Message,
    Operation,
    Reason,
    reason_text,
)

HELLO, REPLY, REJECT = Command.HELLO, Command.REPLY, Command.REJECT
MS = 1_000_000
RETRY_FIRST_NS = 100 * MS  # until a round trip has been seen
RETRY_MIN_NS = 50 * MS
RETRY_NS = 100 * MS  # at most, where answers do not take longer
RETRY_MAX_NS = 1000 * MS
BACK_OFF_NS = 5 * MS  # after a refusal that says no time to wait; doubles
BUSY_WAIT_MAX_NS = 5000 * MS  # believed of a replica that says how long to wait
WAITING_MAX = 65_536  # appends
WAITING_BYTES_MAX = 64 << 20

RETRY_LATER = frozenset({Reason.BUSY_PIPELINE, Reason.BUSY_QUEUE, Reason.NOT_READY, Reason.DISK_FULL})
ELSEWHERE = frozenset({Reason.NOT_PRIMARY, Reason.DRAINING})


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
        self.routing = Routing(replica_count)
        self._request_bytes_max = request_bytes_max
        self._events_max = events_max
        self.number = 0  # of the session; 0 while not registered
        self._request_number = 0
        self._next_handle = 1
        self._waiting: dict[int, Append] = {}  # by handle, in the order in which they are sent
        # Of those that wait: what a look at each would say.
        self._waiting_bytes = self._waiting_events = self._waiting_alone = 0
        self._cancelled: set[int] = set()  # handles in the request in flight
        self._evictions = 0  # since the last reply
        self._request: Request | None = None
        self._retry_at: int | None = None
        self._expires_at: int | None = None
        self._round_trip = 0
        self._telling = Telling()
        self._sends: list[tuple[int, Message]] = []
        self._done: list[Outcome] = []

    # Inputs

    def append(self, events: Sequence[Bytes], now: int, deadline: int | None = None) -> int:
        """Append events; returns a handle that comes back in an Outcome.

        Raises EventTooLargeError, BusyError (nothing was accepted), UsageError.
        """
        if not events:
            raise UsageError("an append needs at least one event")
        return self.append_batch(event_batches.build(events), len(events), now, deadline)

    def append_batch(self, body: Bytes, count: int, now: int, deadline: int | None = None, alone: bool = False) -> int:
        """Append a batch body that was built already (kimberlite.events.build). alone: in a request of its own."""
        size = len(body)
        if size > self._request_bytes_max or count > self._events_max:
            self._telling.failed(EventTooLargeError)
            raise EventTooLargeError(
                f"an append of {count} events and {size} bytes is above the limit of "
                f"{self._events_max} events and {self._request_bytes_max} bytes for one request; split it",
                count=count,
                size=size,
                limit=self._request_bytes_max,
            )
        if len(self._waiting) >= WAITING_MAX or self._waiting_bytes + size > WAITING_BYTES_MAX:
            self._telling.failed(BusyError)
            raise BusyError(
                f"{len(self._waiting)} appends ({self._waiting_bytes} bytes) wait already; wait for some of them",
                waiting=len(self._waiting),
            )
        handle = self._next_handle
        self._next_handle += 1
        self._waiting[handle] = Append(handle, body, count, deadline, alone, now)
        self._waiting_bytes += size
        self._waiting_events += count
        self._waiting_alone += alone
        if deadline is not None and (self._expires_at is None or deadline < self._expires_at):
            self._expires_at = deadline
        return handle

    def cancel(self, handle: int) -> None:
        """Nobody waits for that append any more: it is not sent, or not again, when that can still be prevented."""
        append = self._waiting.get(handle)
        if append is not None:
            self._leave(append)
        elif self._request is not None:
            self._cancelled.add(handle)

    def close(self) -> None:
        """Give every append its end: the session is not used any more."""
        request, self._request = self._request, None
        waiting = {append.handle: append for append in self._take_waiting()}
        if request is not None and request.is_surely_refused:
            waiting = {append.handle: append for append in request.appends} | waiting
        elif request is not None:
            self._fail(
                request.appends,
                OutcomeUnknownError(
                    "the client was closed while the append was under way: it may or may not be in the log"
                ),
            )
        self._fail(
            waiting.values(),
            UnavailableError("the client was closed before the append was sent: nothing was appended"),
        )
        self._retry_at = self._expires_at = None

    def flush(self, now: int) -> None:
        """Send what waits, when nothing is in flight. Call after a burst of appends."""
        may_begin = self._retry_at is None or now >= self._retry_at
        if self._request is None and self._waiting and self.routing.connected and may_begin:
            if not self.number:
                self._begin(self._register(), [], now)
            else:
                self._begin(*self._collect(), now)

    def connected(self, replica: int, now: int) -> None:
        """A connection to that replica is ready."""
        self.routing.connected.add(replica)
        if self._request is None:
            self.flush(now)
        elif self._retry_at is None:
            self._send(now)

    def disconnected(self, replica: int, now: int) -> None:
        """The connection is gone: what was sent there may or may not have arrived."""
        routing = self.routing
        routing.connected.discard(replica)
        if self._request is not None and replica == routing.target and not self._request.has_no_session:
            routing.next()
            self._send(now)

    def step(self, message: Message, now: int) -> None:
        """A frame from a replica. Anything that is not about the request in flight is ignored."""
        header = message.header
        if header.command == HELLO:
            self._on_view(header.view, now)
            return
        request = self._request
        if request is None or header.context != request.message.header.checksum:
            return
        if header.command == REPLY:
            self.routing.learn(header.view)
            self._on_reply(message, request, now)
        elif header.command == REJECT:
            self._on_reject(message, request, now)

    def tick(self, now: int) -> None:
        """Deadlines and retries."""
        if self._expires_at is not None and now >= self._expires_at:
            self._expire(now)
        if self._retry_at is not None and now >= self._retry_at:
            self._retry(now)

    def _retry(self, now: int) -> None:
        request = self._request
        if request is None:
            self._retry_at = None
            self.flush(now)
        elif request.has_no_session:
            self._lose_session(request, now)
        elif self._cancelled and request.is_surely_refused:
            self._take_back(request, now)  # and without those that nobody waits for
            self._retry_at = None
            self.flush(now)
        else:
            if request.back_off == 0:
                self.routing.was_silent(now)
            self._send(now)

    # Outputs

    def take_output(self) -> tuple[list[tuple[int, Message]], list[Outcome]]:
        """What to send to which replica, and what is done, since the last call."""
        output = (self._sends, self._done)
        self._sends, self._done = [], []
        return output

    def next_deadline(self) -> int | None:
        """When `tick` must be called; None when only another input can change anything."""
        expires, again = self._expires_at, self._retry_at
        return again if expires is None or (again is not None and again < expires) else expires

    def is_overdue(self, now: int) -> bool:
        """Whether `tick` would end an append for want of time."""
        return self._expires_at is not None and now >= self._expires_at

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
        fits = self._waiting_bytes <= self._request_bytes_max and self._waiting_events <= self._events_max
        appends = self._take_waiting() if fits and not self._waiting_alone else self._take_first()
        count = sum([append.count for append in appends])
        body = appends[0].body if len(appends) == 1 else event_batches.concat([append.body for append in appends])
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
            **self._telling.fields(),
        )
        return Message(header, body), appends

    def _take_waiting(self) -> list[Append]:
        """All that wait."""
        appends = list(self._waiting.values())
        self._waiting.clear()
        self._waiting_bytes = self._waiting_events = self._waiting_alone = 0
        return appends

    def _take_first(self) -> list[Append]:
        """As many of those that wait as fit a request, one at least."""
        appends: list[Append] = []
        size = count = 0
        for append in self._waiting.values():
            size += len(append.body)
            count += append.count
            if appends and (
                append.alone or appends[0].alone or size > self._request_bytes_max or count > self._events_max
            ):
                break
            appends.append(append)
        for append in appends:
            self._leave(append)
        return appends

    def _leave(self, append: Append) -> None:
        """It waits no more."""
        del self._waiting[append.handle]
        self._waiting_bytes -= len(append.body)
        self._waiting_events -= append.count
        self._waiting_alone -= append.alone

    def _begin(self, message: Message, appends: list[Append], now: int) -> None:
        self._request = Request(message, appends)
        self._cancelled.clear()
        self.routing.begin()
        self._send(now)

    def _send(self, now: int) -> None:
        """Send the request in flight to the believed primary, or to whom there is a connection."""
        request = self._request
        if request is None:
            return
        routing = self.routing
        if not routing.can_send:
            routing.next()
        if not routing.can_send:
            self._retry_at = None  # `connected` sends it
            return
        request.attempts += 1
        request.back_off = 0
        request.sent_at = now
        if request.first_sent_at is None:
            request.first_sent_at = now
        self._retry_at = now + self._retry_interval(request.attempts)
        self._sends.append((routing.target, request.message))

    def _retry_interval(self, attempts: int) -> int:
        base = max(4 * self._round_trip, RETRY_MIN_NS) if self._round_trip else RETRY_FIRST_NS
        longest = min(max(2 * self._round_trip, RETRY_NS), RETRY_MAX_NS)
        interval = min(base << min(attempts - 1, 5), longest)
        return interval + int(self._random.random() * interval / 2)

    def _on_view(self, view: int, now: int) -> None:
        """A replica says which view it is in: the request in flight goes to the primary of a newer one at once."""
        request, routing = self._request, self.routing
        if not routing.learn(view) or request is None or request.has_no_session:
            return
        if routing.leader in routing.connected and (routing.leader != routing.target or request.back_off):
            routing.target = routing.leader
            self._send(now)

    # Answers

    def _on_reply(self, message: Message, request: Request, now: int) -> None:
        header = message.header
        self._request = None
        self._retry_at = None
        if request.first_sent_at is not None:
            sample = now - request.sent_at
            self._round_trip = sample if not self._round_trip else self._round_trip + (sample - self._round_trip) // 8
        if header.operation == Operation.REGISTER:
            self.number = header.session
            self._request_number = 0
        else:
            self._evictions = 0
            self._telling.answered([append.called_at for append in request.appends if append.handle != EXPIRED], now)
        position = header.position
        answer = bytes(message.body)
        done, new = self._done, tuple.__new__  # what Outcome(...) does, without a call into Python for each
        for append in request.appends:
            if append.handle != EXPIRED:
                done.append(new(Outcome, (append.handle, position, append.count, None, answer)))
            position += append.count
        self.flush(now)

    def _on_reject(self, message: Message, request: Request, now: int) -> None:
        header = message.header
        reason = request.reason = header.reason
        # What a primary had prepared when it was voted out may yet be committed.
        request.refused += not header.flags & FLAG_PREPARED
        if request.has_no_session or reason == Reason.NO_SESSION:
            self._without_session(request, now)
        elif reason in ELSEWHERE:
            self._go_elsewhere(message, request, now)
        elif reason in RETRY_LATER:
            wait = min(header.count * MS, BUSY_WAIT_MAX_NS)
            request.back_off = wait or BACK_OFF_NS << min(request.attempts, 7)
            jitter = int(self._random.random() * request.back_off)
            self._retry_at = now + (wait + jitter // 2 if wait else request.back_off // 2 + jitter)
            self._not_too_late(request, now)
        else:
            self._request = self._retry_at = None
            if reason == Reason.TOO_LARGE and request.is_surely_refused:
                self._too_large(request)
            else:
                self._refused(request, reason)
            self.flush(now)

    def _go_elsewhere(self, message: Message, request: Request, now: int) -> None:
        """Another replica leads, or none yet."""
        self.routing.learn(message.header.view)
        may_lead = self.routing.choose(message.header.replica, request.attempts, now)
        # Nobody may lead yet: do not run round the replicas faster than they can elect.
        request.back_off = BACK_OFF_NS if may_lead else 4 * BACK_OFF_NS
        self._retry_at = now + request.back_off + int(self._random.random() * BACK_OFF_NS)
        self._not_too_late(request, now)

    def _not_too_late(self, request: Request, now: int) -> None:
        """What is surely refused is not sent so late that its deadline finds it under way, and its outcome unknown. But
        what was answered late once, in an outage, must not keep an append from being tried: half of what is left of its
        time is enough."""
        deadlines = [append.deadline for append in request.appends if append.deadline is not None]
        if deadlines and request.is_surely_refused and self._retry_at is not None:
            deadline = min(deadlines)
            latest = deadline - BACK_OFF_NS - min(4 * self._round_trip, (deadline - now) // 2)
            if self._retry_at > latest and now < deadline:
                self._retry_at = deadline

    def _refused(self, request: Request, reason: int) -> None:
        name = reason_text(reason)
        error = RejectedError(f"the cluster refused the request: {name}; nothing was appended", reason=reason)
        if request.message.header.operation == Operation.REGISTER:
            # It lets nobody in: asking again at once would be answered the same.
            self._fail(self._take_waiting(), error)
        elif request.is_surely_refused:
            self._free_number()
            self._fail(request.appends, error)
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
        self._free_number()
        appends = [append for append in request.appends if append.handle != EXPIRED]
        if len(request.appends) > 1:
            for append in appends:
                append.alone = True
            self._put_back(appends)
            return
        for append in appends:
            self._fail(
                [append],
                EventTooLargeError(
                    f"the cluster refused an append of {append.count} events and {len(append.body)} bytes: an event is "
                    "above its limits.event_bytes_max, or the append above its limits.request_bytes_max or "
                    "limits.events_per_request_max; nothing was appended",
                    count=append.count,
                    size=len(append.body),
                ),
            )

    def _without_session(self, request: Request, now: int) -> None:
        """The session was evicted. What is surely not executed is sent again in a new one. When another copy has no
        answer yet, it may have been executed before the eviction: its answer is waited for as long as for a retry."""
        if request.is_surely_refused:
            self._take_back(request, now)
            self._renew()
            self._evictions += 1
            # One new session evicts another: with more clients than sessions not all begin anew at the same time.
            longest = min(BACK_OFF_NS << self._evictions, RETRY_MAX_NS) if self._evictions > 1 else 0
            self._retry_at = now + int(self._random.random() * longest)
            self.flush(now)
        elif not request.has_no_session:
            request.has_no_session = True
            self._retry_at = now + self._retry_interval(request.attempts)

    def _lose_session(self, request: Request, now: int) -> None:
        """The session was evicted, and nobody says what became of a copy of the request."""
        self._request = None
        self._retry_at = None
        self._fail(
            request.appends,
            OutcomeUnknownError(
                "the session was evicted while this append was retried: it may or may not be in the log"
            ),
        )
        self._renew()
        self.flush(now)

    def _renew(self) -> None:
        """The next request begins a new session, under an identity that no older frame has."""
        self.number = 0
        self._request_number = 0
        self.client_id = self._new_client_id()

    def _fail(self, appends: Iterable[Append], error: KimberliteError) -> None:
        for append in appends:
            if append.handle != EXPIRED:
                # Each its own: an error that is raised keeps where, and that adds up.
                own = type(error)(str(error), **error.details)
                self._telling.failed(type(error))
                self._done.append(Outcome(append.handle, events=append.count, error=own))

    # Deadlines

    def _expire(self, now: int) -> None:
        def late(append: Append) -> bool:
            return append.deadline is not None and now >= append.deadline

        request = self._request
        if request is not None and request.appends and request.is_surely_refused and any(map(late, request.appends)):
            self._take_back(request, now)
        expired = [append for append in self._waiting.values() if late(append)]
        if expired:
            for append in expired:
                self._leave(append)
            self._fail(expired, self._in_the_way(request))
        if self._request is not None:
            expired = [append for append in self._request.appends if late(append)]
            self._fail(
                expired,
                OutcomeUnknownError(
                    "the deadline passed while the append was under way: it may or may not be in the log, or get "
                    "there yet; read the log to find out before it is appended again"
                ),
            )
            for append in expired:
                append.keep_place()
        pending = [append.deadline for append in self._waiting.values() if append.deadline is not None]
        if self._request is not None:
            pending += [append.deadline for append in self._request.appends if append.deadline is not None]
        self._expires_at = min(pending, default=None)

    def _in_the_way(self, request: Request | None) -> KimberliteError:
        """Why an append was not sent before its deadline, or not taken. request: the last one until then."""
        reason = int(Reason.NONE)
        if request is not None and (request.is_surely_refused or not request.appends):
            reason = request.reason
        return in_the_way(reason, self._evictions, bool(self.routing.connected))

    def _take_back(self, request: Request, now: int) -> None:
        """A request that is certainly not in the log, nor on its way there, is taken apart again: its number is
        free, and what is not cancelled goes on waiting."""
        self._put_back(append for append in request.appends if append.handle not in self._cancelled)
        if request.message.header.operation == Operation.APPLY:
            self._free_number()
        self._request = None
        self._cancelled.clear()
        self._retry_at = now + BACK_OFF_NS

    def _free_number(self) -> None:
        """The request in flight was not executed: its number names the next one, and what it told was not heard."""
        self._request_number -= 1
        self._telling.refused()

    def _put_back(self, appends: Iterable[Append]) -> None:
        """To the head of those that wait."""
        first = {append.handle: append for append in appends if append.handle != EXPIRED}
        self._waiting = first | self._waiting
        for append in first.values():
            self._waiting_bytes += len(append.body)
            self._waiting_events += append.count
            self._waiting_alone += append.alone
