"""What clients have asked a primary for, and no prepare holds yet.

A client has one request at a time, and each is held once: in `queue` until the pipeline has room, or in `waiting` until
the primary knows what has been answered before. Both count against the same bounds (CoreConfig.queue_max and
queue_bytes_max). Imports types and vsr.config only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from kimberlite.types import ClientId, Header, Message
from kimberlite.vsr.config import CoreConfig


class Requests:
    """See the module docstring. Beside each request stands when it was received, in nanoseconds."""

    __slots__ = ("bytes", "in_flight", "queue", "waiting")

    def __init__(self) -> None:
        self.queue: deque[tuple[Message, int]] = deque()
        self.waiting: dict[ClientId, tuple[Message, int]] = {}
        self.in_flight: dict[ClientId, int] = {}  # numbers of requests queued or prepared
        self.bytes = 0  # of the bodies of those queued and those that wait

    def __len__(self) -> int:
        return len(self.queue) + len(self.waiting)

    def __bool__(self) -> bool:
        return bool(self.queue or self.waiting)

    def __iter__(self) -> Iterator[Message]:
        for message, _ in (*self.queue, *self.waiting.values()):
            yield message

    def is_full(self, config: CoreConfig, message: Message) -> bool:
        """Whether no place is left for one more."""
        return len(self) >= config.queue_max or self.bytes + len(message.body) > config.queue_bytes_max

    def is_in_flight(self, message: Message) -> bool:
        """A client has one request in flight: another frame of it is the same one again."""
        return message.header.client in self.in_flight

    def put(self, message: Message, now: int) -> None:
        """At the end of the queue."""
        self.in_flight[message.header.client] = message.header.request
        self.queue.append((message, now))
        self.bytes += len(message.body)

    def take_batch(self, config: CoreConfig) -> list[tuple[Message, int]]:
        """As many of the queue as one prepare may hold, at least one."""
        queue = self.queue
        batch: list[tuple[Message, int]] = []
        size = 0
        while queue and len(batch) < config.prepare_requests_max:
            length = len(queue[0][0].body)
            if batch and size + length > config.prepare_bytes_max:
                break
            batch.append(queue.popleft())
            size += length
        self.bytes -= size
        return batch

    def put_back(self, batch: Sequence[tuple[Message, int]]) -> None:
        """What was taken and can not be prepared now."""
        self.queue.extendleft(reversed(batch))
        self.bytes += sum(len(message.body) for message, _ in batch)

    def hold(self, message: Message, now: int) -> None:
        """Until the primary is ready."""
        self.waiting[message.header.client] = message, now
        self.bytes += len(message.body)

    def held(self, client: ClientId) -> Message | None:
        """The request of that client which waits, if one does."""
        held = self.waiting.get(client)
        return held[0] if held is not None else None

    def let_go(self, client: ClientId) -> None:
        """It waits no more."""
        message, _ = self.waiting.pop(client)
        self.bytes -= len(message.body)

    def take_waiting(self) -> list[Message]:
        """All that wait."""
        waiting = [message for message, _ in self.waiting.values()]
        self.waiting.clear()
        self.bytes -= sum(len(message.body) for message in waiting)
        return waiting

    def refused(self) -> list[Message]:
        """All of them, to be refused: none was prepared."""
        for message, _ in self.queue:
            del self.in_flight[message.header.client]
        found = list(self)
        self.queue.clear()
        self.waiting.clear()
        self.bytes = 0
        return found


def is_newer(header: Header, held: Header) -> bool:
    """Whether a request of a client comes after another one of it."""
    return (header.session, header.request) > (held.session, held.request)
