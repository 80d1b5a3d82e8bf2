"""What the checkpoints of a run must have in common: I19.

They are made at ops that follow from the log alone, by a reckoning of its own here, and those of one op are the same
bytes on every replica. Only a replica that has lost its checkpoint makes one at another op.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kimberlite.types import Checkpoint, Checksum, Header
from kimberlite.vopr.checkers import Violation


@dataclass(slots=True)
class CheckpointOracle:
    """ops, bytes: of the policy of all replicas."""

    ops: int
    bytes: int
    due: set[int] = field(default_factory=set)
    remade: set[tuple[int, int]] = field(default_factory=set)  # replica and op, in the place of one that was lost
    executed: int = 0  # what is due is known up to here
    _bytes: int = 0  # executed since one was due
    _digests: dict[int, tuple[int, Checksum]] = field(default_factory=dict)  # op -> replica that made it first, content

    def on_executed(self, header: Header) -> None:
        """An op is executed, perhaps not for the first time."""
        if header.op != self.executed + 1:
            return
        self.executed += 1
        self._bytes += header.size
        if self.executed % self.ops == 0 or self._bytes >= self.bytes:
            self.due.add(self.executed)
            self._bytes = 0

    def on_checkpoint(self, replica: int, made: Checkpoint, is_comparable: bool = True) -> None:
        """A checkpoint is durable. is_comparable: those made before the birth of a cluster have no record of it in
        them, and may be of the same op as others that have."""
        if made.op not in self.due and (replica, made.op) not in self.remade:
            below = max((op for op in self.due if op < made.op), default=0)
            raise Violation(
                "I19 checkpoints", f"replica {replica} has a checkpoint of op {made.op}, one was due at op {below}"
            )
        first, digest = self._digests.setdefault(made.op, (replica, made.digest))
        if digest != made.digest and is_comparable:
            raise Violation("I19 checkpoints", f"replicas {first} and {replica} have other checkpoints of op {made.op}")
