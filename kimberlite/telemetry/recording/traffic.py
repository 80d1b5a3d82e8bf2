"""Frames, connections, and what clients tell with their requests: what net.transport.Counters asks for."""

from __future__ import annotations

from collections.abc import Sequence

from kimberlite.telemetry.log import Log
from kimberlite.telemetry.recording.handles import Handles
from kimberlite.telemetry.recording.loop import PARSE, Loop
from kimberlite.told import failures_of, latencies_of
from kimberlite.types import ClientFailure, Command, Dropped, Ended, FrameReason, Header, Reason

CHECKSUM_REASONS = (FrameReason.BAD_HEADER_CHECKSUM, FrameReason.BAD_BODY_CHECKSUM)


class Traffic:
    """Counts frames; charges the time that their parsing takes to `loop`."""

    def __init__(self, handles: Handles, loop: Loop, log: Log | None = None) -> None:
        self._log = log
        self._switch = loop.switch
        self.handled = loop.handled
        self._received = handles.by_number("messages_received", Command)
        self._sent = handles.by_number("messages_sent", Command)
        self._received_bytes = handles.counter("network", "received").add
        self._sent_bytes = handles.counter("network", "sent").add
        self._dropped = handles.by_member("messages_dropped", Dropped)
        self._rejected = handles.by_member("requests_rejected", (reason for reason in Reason if reason))
        self._ended = handles.by_member("client_connections_ended", Ended)
        self._client_latency = handles.histogram("client_latency").record_many
        self._client_failed = handles.by_member("client_failures", ClientFailure)
        self._bad_frame = handles.counter("checksum_failures", "network").add

    def receiving(self) -> None:
        self._switch(PARSE)

    def received(self, frames: Sequence[tuple[Header, memoryview]], size: int) -> None:
        counts = self._received
        for header, _ in frames:
            counts[header.command]()
        self._received_bytes(size)

    def message_sent(self, command: int, size: int) -> None:
        self._sent[command]()
        self._sent_bytes(size)

    def message_dropped(self, reason: Dropped) -> None:
        self._dropped[reason].add()

    def request_rejected(self, reason: Reason) -> None:
        self._rejected[reason].add()

    def frame_refused(self, reason: FrameReason) -> None:
        is_foreign = reason == FrameReason.WRONG_CLUSTER
        self._dropped[Dropped.WRONG_CLUSTER if is_foreign else Dropped.MALFORMED].add()
        if reason in CHECKSUM_REASONS:
            self._bad_frame()

    def connection_ended(self, reason: Ended) -> None:
        self._ended[reason].add()

    def client_told(self, request: Header) -> None:
        """Of more than one append; what is told of a single one comes with REPLIED."""
        for latency, count in latencies_of(request):
            self._client_latency([latency] * count)
        for outcome, count in failures_of(request):
            self._client_failed[outcome].add(count)

    def connection_refused(self, address: str, reason: str) -> None:
        if self._log is not None:
            self._log.say("connection_refused", address=address, reason=reason)
