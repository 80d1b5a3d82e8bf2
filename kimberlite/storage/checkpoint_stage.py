"""The life of a checkpoint that is being written: its copies one after another, and where the superblock names it.

    OPENING -> WRITING -> OPENING ...     chunk by chunk, one copy after another
    OPENING -> WAITING -> WRITING         the file of a copy is being made
    OPENING, WAITING -> STALLED           there is no space for it; tried again, it is OPENING
    WRITING -> NAMING -> OPENING, DONE    the superblock is written
    WRITING -> DONE                       damaged copies are good again

`ALLOWED` is the same as a table. Any other move is a bug, and ends the process before anything is made of it.

May import: errors, types.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from kimberlite.errors import invariant
from kimberlite.types import Checkpoint


class Stage(Enum):
    OPENING = auto()  # the file of the next copy is to be made
    WAITING = auto()  # that file is being made
    STALLED = auto()  # there was no space for that file
    WRITING = auto()  # a chunk is under way
    NAMING = auto()  # the superblock that names this checkpoint is under way
    DONE = auto()


ALLOWED: dict[Stage, frozenset[Stage]] = {
    Stage.OPENING: frozenset({Stage.WAITING, Stage.STALLED, Stage.WRITING}),
    Stage.WAITING: frozenset({Stage.WAITING, Stage.STALLED, Stage.WRITING}),
    Stage.STALLED: frozenset({Stage.OPENING}),
    Stage.WRITING: frozenset({Stage.OPENING, Stage.NAMING, Stage.DONE}),
    Stage.NAMING: frozenset({Stage.OPENING, Stage.DONE}),
    Stage.DONE: frozenset(),
}


@dataclass(slots=True)
class Copying:
    """Copies of a checkpoint being written.

    names_at: the superblock names it when so many copies are left: none, or all but the first where they replace those
    of a lost checkpoint of the same op. None: never, for damaged copies of the one in force are made good.
    """

    mark: Checkpoint
    data: bytes
    copies: list[str]  # still to be written, the first one under way
    names_at: int | None
    stage: Stage = Stage.OPENING
    file: int = -1  # of the copy that is being written
    offset: int = 0

    def move(self, stage: Stage) -> None:
        if stage not in ALLOWED[self.stage]:
            invariant(False, "a checkpoint goes its way", stage=self.stage.name, next=stage.name, op=self.mark.op)
        self.stage = stage

    @property
    def is_unnamed(self) -> bool:
        """Whether the superblock is still to name it."""
        return self.names_at is not None and len(self.copies) > self.names_at
