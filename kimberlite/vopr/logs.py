"""What replicas believe of their logs, held against each other and against their disks: I25, I26.

I25: the replicas of one view have one log. Whoever takes an op for a part of the log of a view takes the same for it as
everybody else, whether it is committed or not: a difference shows where it begins, and not only where an op that was
lost is missed.

I26: what a replica believes to be on its disk is there. What a promise takes for known to be here is; what counts as
written is; what it has acknowledged is there, or known to be damaged, never absent. Of silent damage it can not know:
the replica where bits rot is believed.

Looks into the core and at the disk, and changes nothing. May import: types, vsr.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kimberlite.types import Checksum, Header
from kimberlite.vopr.checkers import Violation, has_durable_entry

if TYPE_CHECKING:
    from kimberlite.vopr.nodes import SimNode
    from kimberlite.vopr.world import World
    from kimberlite.vsr.log import Log

BASE_OPS = 4  # below the base of a promise that are looked at: what is below those was the base of an earlier one


@dataclass(slots=True)
class Logs:
    """The logs of all views, as far as any replica has them."""

    _views: dict[int, dict[int, Checksum]] = field(default_factory=dict)

    def on_linked(self, world: World, replica: int, log_view: int, log: Log, first: int) -> None:
        """I25: a replica takes the ops from `first` to `linked` for those of the log of that view."""
        known = self._views.setdefault(log_view, {})
        for op in range(first, log.linked + 1):
            header = log.headers.get(op)
            if header is None:
                continue
            committed = world.checkers.committed.get(op) if op <= log.committed else None
            other = known.setdefault(op, header.checksum)
            if committed is not None and committed.checksum != header.checksum:
                raise Violation(
                    "I25 one log",
                    f"in view {log_view} op {op} is {header.checksum.hex()} on replica {replica}, committed is "
                    f"{committed.checksum.hex()}",
                )
            if other != header.checksum:
                raise Violation(
                    "I25 one log",
                    f"in view {log_view} op {op} is {header.checksum.hex()} on replica {replica}, "
                    f"{other.hex()} on another",
                )


def check_base(world: World, node: SimNode, base: int) -> None:
    """I26: a promise has just become durable. What the disk holds up to its base a start takes for committed."""
    if node.index in world.drawer.copies:
        return
    state = node.driver.core.state
    log = state.log
    for op in range(max(base - BASE_OPS, log.first_op, node.store.checkpoint_op + 1), base + 1):
        header = world.checkers.committed.get(op)
        if header is not None and op not in log.faulty and not world.checkers.holds(world, node.index, header):
            raise Violation(
                "I26 on disk", f"replica {node.index} promises to have what is up to op {base}, not op {op}"
            )


def check_kept(world: World, node: SimNode) -> None:
    """I26: what counts as written is on the disk, and what was acknowledged is there, or known to be damaged."""
    if world.rotten and node.index == world.rot_victim:
        return
    log, files = node.driver.core.state.log, world.files[node.index]
    for op in log.on_disk:
        header = log.headers.get(op)
        if header is not None and not has_durable_entry(files, header):
            raise Violation("I26 on disk", f"op {op} counts as written on replica {node.index}, and is not there")
    acknowledged = world.checkers.acknowledged[node.index]
    for op in range(max(acknowledged, default=0), log.durable, -1):
        header = log.headers.get(op)
        if header is not None and acknowledged.get(op) == header.checksum and _is_absent(log, header):
            raise Violation("I26 on disk", f"replica {node.index} has acknowledged op {op}, and believes it absent")


def _is_absent(log: Log, header: Header) -> bool:
    op = header.op
    return not log.holds(op) and op not in log.faulty and op not in log.writing and op not in log.candidates
