"""What happens between a commit and its reply: the state machine, and the first reply of an op."""

from __future__ import annotations

from collections.abc import Callable

from kimberlite.telemetry.recording.handles import Handles


class Executions:
    """Remembers when ops were executed, until their first reply, or until it is known that there is none.

    replay_to: ops up to here are executed again by this start: see Replica.replay_to. now: gives nanoseconds of the
    clock that `applied` is told of.
    """

    def __init__(self, handles: Handles, now: Callable[[], int]) -> None:
        self.replay_to = 0
        self._now = now
        self._applied_at: dict[int, int] = {}  # op whose execution no reply followed yet -> when it ended
        self.forget = self._applied_at.pop
        """forget(op, None): nobody here waits for the reply of an op any more."""
        self._apply = handles.histogram("apply_latency").record
        self._apply_stage = handles.histogram("commit_stage_latency", "apply").record
        self._reply_stage = handles.histogram("commit_stage_latency", "reply").record

    def applied(self, op: int, began_ns: int) -> None:
        """The state machine has executed `op` since `began_ns`."""
        if op <= self.replay_to:
            return
        self._applied_at[op] = now = self._now()
        self._apply(now - began_ns)
        self._apply_stage(now - began_ns)

    def replied(self, op: int) -> None:
        """A reply to a request of `op` was handed to the network: the first one ends its commit. Replies leave before
        the core's COMMITTED is recorded; what nobody here waited for is forgotten there."""
        applied_at = self._applied_at.pop(op, 0)
        if applied_at:
            self._reply_stage(self._now() - applied_at)
