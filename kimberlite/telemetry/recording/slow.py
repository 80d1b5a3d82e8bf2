"""Which requests took long, and where their time went: lines of the log, not metrics.

Of an op that is quick nothing is kept: the stages of the core are compared with a threshold, `part`, and only those
above it are remembered until the op is executed, and then the op until its replies. A slow request has a stage that is
above it, for there are fewer stages than parts; a stage that is not remembered was shorter than that, and said as -1.
"""

from __future__ import annotations

from kimberlite.telemetry.log import Log
from kimberlite.telemetry.log.catalogue import UNKNOWN_NS
from kimberlite.vsr.events import Event

NEVER = 1 << 62
PARTS = 16  # of the time from which on a request is slow
OPS_MAX = 256  # that are remembered


class SlowOps:
    """Of one replica. log: None keeps and says nothing. slow_ns: a request that takes as long is slow; 0: none is.

    The handlers of events compare with `part` and `slow` themselves, and call only for what is above.
    """

    def __init__(self, log: Log | None = None, slow_ns: int = 0) -> None:
        self._log = log
        self.slow = slow_ns if log is not None and slow_ns else NEVER
        self.part = self.slow // PARTS
        self.stages: dict[int, dict[str, int]] = {}  # of ops that are not executed yet
        self._executed: dict[int, dict[str, int]] = {}

    def journaled(self, event: Event) -> None:
        """An entry got durable here late."""
        op, took, is_primary = event[1:4]
        if is_primary:
            self._of(op)["journal_ns"] = took
        elif took >= self.slow and self._log is not None:
            self._log.say("slow_write", op=op, took_ns=took)

    def acked(self, event: Event) -> None:
        """A quorum had an op late."""
        self._of(event[1]).update(replicate_ns=event[2], decided_by=event[3])

    def committed(self, event: Event) -> None:
        """An op was executed, which may have been late."""
        op, entered = event[1], event[3]
        stages = self.stages.get(op, {})
        for past in [known for known in self.stages if known <= op]:  # some got durable here after their execution
            del self.stages[past]
        if entered > self.part:
            _bound(self._executed)[op] = {"entered_ns": entered, **stages}

    def replied(self, event: Event) -> None:
        """A request was answered late."""
        op, took = event[1:3]
        stages = self._executed.get(op, {})
        journal, replicate = (stages.get(stage, UNKNOWN_NS) for stage in ("journal_ns", "replicate_ns"))
        entered = min(stages.get("entered_ns", 0), took)
        durable = min(max(journal, replicate, 0), entered)
        if self._log is not None:
            self._log.say(
                "slow_operation",
                op=op,
                took_ns=took,
                queue_ns=took - entered,
                journal_ns=journal,
                replicate_ns=replicate,
                execute_ns=entered - durable,
                decided_by=stages.get("decided_by", -1),
            )

    def _of(self, op: int) -> dict[str, int]:
        return _bound(self.stages).setdefault(op, {})


def _bound(table: dict[int, dict[str, int]]) -> dict[int, dict[str, int]]:
    """With room for one more: the oldest goes."""
    if len(table) >= OPS_MAX:
        del table[next(iter(table))]
    return table
