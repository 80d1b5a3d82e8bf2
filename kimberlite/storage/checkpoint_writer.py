"""Writing checkpoints and trims, between the other writes of a store.

A checkpoint is written chunk by chunk, each chunk when the one before is durable; its copies one after another. The
superblock, written last, makes it the one in force, and carries the trim that it allows. Only then is what nothing
refers to any more removed: the files of the checkpoint before, segments below the beginning of the log.

A damaged copy is made good from an intact one in the same way, without the superblock. When no copy is intact any more,
a checkpoint of the same op may take its place. The two have the same file names: the superblock follows the first copy,
and the second is touched only when that is durable, so that at every moment one is left of what there was.

May import: errors, types, storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import xxhash

from kimberlite.errors import CheckpointError, DiskFullError
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage.checkpoint_stage import Copying, Stage
from kimberlite.storage.interface import RETRY_NS, Disk, Write
from kimberlite.storage.journal import segment_number
from kimberlite.storage.submissions import Submissions
from kimberlite.storage.superblock import SuperblockFile
from kimberlite.types import Checkpoint


class CheckpointWriter:
    """The checkpoint of one store and the beginning of its log. One thread uses it.

    segment_of: number of the segment that holds an op of the log, or would hold the next one; of one before it where
    that is not certain.
    """

    def __init__(
        self,
        disk: Disk,
        superblock: SuperblockFile,
        submissions: Submissions,
        segment_of: Callable[[int], int],
    ) -> None:
        self._disk = disk
        self._superblock = superblock
        self._submissions = submissions
        self._segment_of = segment_of
        self._copying: Copying | None = None
        self._next: Copying | None = None  # to be written when that is done
        self._bad_copies: list[str] = []  # found at the start
        named = superblock.current.checkpoint
        self._floor = (named.first_op, named.first_position)  # of the log, as last trimmed
        self._leftovers: list[str] = []  # files that nothing refers to any more
        self._retry_at = 0  # not before that time
        self.is_lost = False  # no copy of the checkpoint is good: it must not be relied on
        self.bytes_written = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written, and no file is left to be removed."""
        return self._copying is None and not self._leftovers

    @property
    def is_stalled(self) -> bool:
        """Whether there was no space for the next copy."""
        return self._copying is not None and self._copying.stage is Stage.STALLED

    # Start

    def read(self) -> checkpoints.Content | None:
        """What is in the checkpoint in force; None when there is none yet, or none that can be read and the whole log
        is there to be executed instead (`is_lost`). Raises CheckpointError when it is not."""
        named = self._superblock.current.checkpoint
        if not named.size:
            return None
        try:
            content, self._bad_copies = checkpoints.read(self._disk, named)
        except CheckpointError as error:
            if named.first_op > 1:
                raise CheckpointError(
                    f"{error}; the log before op {named.first_op} was trimmed, so that it can not be executed "
                    "again: replace this replica",
                    **error.details,
                ) from error
            self.is_lost = True
            return None
        return content

    def clean_up(self, content: checkpoints.Content | None) -> None:
        """After a start: have removed what a crash kept from it, and make copies good that `read` found damaged."""
        current = self._superblock.current.checkpoint
        for name in self._disk.names():
            if name.startswith(checkpoints.PREFIX):
                if name not in [checkpoints.file_name(current.op, copy) for copy in checkpoints.COPIES]:
                    self._leftovers.append(name)
            elif (number := segment_number(name)) is not None and number < current.first_segment:
                self._leftovers.append(name)
        if content is not None and self._bad_copies:
            self._begin(Copying(current, checkpoints.encode(content), self._bad_copies, names_at=None))

    # Checkpoints

    def begin_mark(self, op: int) -> Checkpoint | None:
        """The checkpoint that one of `op` would follow, or replace when it is lost; None when it can not be written
        now."""
        last = self._superblock.last.checkpoint
        is_wanted = op > last.op or (op == last.op and self.is_lost)
        return last if is_wanted and self._copying is None and self._next is None else None

    def write(self, mark: Checkpoint, data: bytes) -> None:
        """A new checkpoint. When the superblock names it, it is durable."""
        mark = replace(mark, size=len(data), digest=xxhash.xxh3_128_digest(data))
        copies = list(checkpoints.COPIES)
        replaces = mark.op == self._superblock.last.checkpoint.op
        copying = Copying(mark, data, copies, names_at=len(copies) - 1 if replaces else 0)
        if self._copying is None or self.is_stalled:
            self._begin(copying)
        else:  # a copy is being made good since the mark
            self._next = copying

    def lose(self, op: int) -> None:
        """No copy of the checkpoint of `op` could be read."""
        is_busy = self._copying is not None and not self.is_stalled
        if not is_busy and op == self._superblock.current.checkpoint.op:
            self.is_lost = True

    def rewrite(self, copy: str, data: bytes) -> bool:
        """A damaged copy again; False when something is being written, or `data` is not what it holds. A checkpoint
        that waits for space waits for this as well."""
        current, waiting = self._superblock.current.checkpoint, self._copying
        is_busy = waiting is not None and not (self.is_stalled and waiting.is_unnamed)
        if is_busy or xxhash.xxh3_128_digest(data) != current.digest:
            return False
        if waiting is not None:
            waiting.move(Stage.OPENING)
            self._next = waiting
        self._begin(Copying(current, data, [copy], names_at=None))
        return True

    def go_on(self) -> None:
        """What was waited for may have come: a file that was being made."""
        if self._copying is not None and self._copying.stage is Stage.WAITING:
            self._write_chunk(self._copying)

    def try_again(self, now: int) -> None:
        """There may be space for what there was none, at `now` (monotonic nanoseconds)."""
        copying = self._copying
        if copying is not None and copying.stage is Stage.STALLED and now >= self._retry_at:
            self._retry_at = now + RETRY_NS
            copying.move(Stage.OPENING)
            self._write_chunk(copying)

    def _begin(self, copying: Copying) -> None:
        self._copying = copying
        self._write_chunk(copying)

    def _write_chunk(self, copying: Copying) -> None:
        if copying.stage is not Stage.WRITING and not self._open_next(copying):
            return
        part = copying.data[copying.offset : copying.offset + checkpoints.CHUNK]
        buffer = self._disk.aligned(len(part))
        buffer[:] = part
        self.bytes_written += len(part)
        writes = [Write(copying.file, copying.offset, buffer)]
        self._submissions.submit([writes], done=lambda: self._chunk_written(copying))
        copying.offset += len(part)

    def _open_next(self, copying: Copying) -> bool:
        """Make the file of the next copy; False while that is under way, or there is no space."""
        name = checkpoints.file_name(copying.mark.op, copying.copies[0])
        if copying.stage is Stage.OPENING and self._disk.exists(name):  # cut short by a crash, or damaged
            self._disk.remove(name)
        if name in self._leftovers:
            self._leftovers.remove(name)
        self._disk.prepare(name, len(copying.data), zeroed=False)
        if not self._disk.is_prepared(name):
            copying.move(Stage.WAITING)
            return False
        try:
            copying.file = self._disk.create(name, len(copying.data), zeroed=False)
        except DiskFullError:
            # Kept for `try_again`. A trim does not wait for it: it may be what makes room.
            copying.move(Stage.STALLED)
            self._commit(self._superblock.last.checkpoint)
            return False
        copying.offset = 0
        copying.move(Stage.WRITING)
        return True

    def _chunk_written(self, copying: Copying) -> None:
        if copying.offset < len(copying.data):
            self._write_chunk(copying)
            return
        self._disk.release(copying.file)
        copying.file = -1
        del copying.copies[0]
        if self._is_due(copying):
            copying.move(Stage.NAMING)
            self._commit(copying.mark, lambda: self._next_copy(copying))
        else:
            self._next_copy(copying)

    def _is_due(self, copying: Copying) -> bool:
        """Whether the superblock is to name what is being written, before anything else."""
        return len(copying.copies) == copying.names_at

    def _next_copy(self, copying: Copying) -> None:
        if copying.copies:
            copying.move(Stage.OPENING)
            self._write_chunk(copying)
            return
        copying.move(Stage.DONE)
        self._copying = None
        self.is_lost = False
        self._commit(self._superblock.last.checkpoint)  # with a trim that came meanwhile
        if self._next is not None:
            following, self._next = self._next, None
            self._begin(following)

    # Trims

    def trim(self, first_op: int, first_position: int) -> None:
        """The log begins with first_op, as soon as a checkpoint does not need what is before."""
        if first_op <= self._floor[0]:
            return
        self._floor = (first_op, first_position)
        if self._copying is None or self.is_stalled:  # else its superblock update does it
            self._commit(self._superblock.last.checkpoint)

    def _commit(self, checkpoint: Checkpoint, then: Callable[[], None] = lambda: None) -> None:
        """Write the superblock with that checkpoint, and with the trim when it no longer needs what goes; `then` when
        it is durable."""
        first_op, first_position = self._floor
        is_kept = checkpoint.op > self._superblock.last.checkpoint.op or not self.is_lost
        if is_kept and checkpoint.first_op < first_op <= checkpoint.op + 1:
            number = self._segment_of(first_op)
            checkpoint = replace(checkpoint, first_op=first_op, first_position=first_position, first_segment=number)
            if number > checkpoint.segment:  # the checkpoint's own entry goes too: what follows begins a segment
                checkpoint = replace(checkpoint, segment=number, entries=0, end=0)
        if checkpoint == self._superblock.last.checkpoint:
            then()
            return

        def done() -> None:
            before = self._superblock.current.checkpoint
            self._superblock.confirm(block)
            if before.size and before.op != checkpoint.op:
                self._leftovers += [checkpoints.file_name(before.op, copy) for copy in checkpoints.COPIES]
            then()

        block, phases = self._superblock.update(checkpoint=checkpoint)
        self._submissions.promise(phases, done=done)

    # Files that nothing refers to any more

    def leave(self, names: Iterable[str]) -> None:
        """Nothing refers to these files any more."""
        self._leftovers += names

    def sweep(self) -> None:
        """Remove one such file: it takes a while."""
        if self._leftovers:
            name = self._leftovers.pop(0)
            if self._disk.exists(name):
                self._disk.remove(name)
