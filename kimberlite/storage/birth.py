"""Who a replica is, on its disk: in its superblock, or, before it is a member of a born cluster, in the file `birth`.

Data of the first release has a superblock of version 2, which knows no identity. As long as its replica is not formed
that superblock stays as it is, so that the first release can be started again: incarnation, life and what the
replica is bound to stand in the file `birth` meanwhile, which is made and updated as a superblock is, of version 3,
and of which only the identity counts. The update of the superblock that forms the replica takes the identity over
(superblock.converted); from then on the file says nothing, and it is removed.

Data that was formatted by a later release has a superblock of version 3 from the beginning, and no such file.

May import: errors, types, storage.
"""

from __future__ import annotations

from dataclasses import replace

from kimberlite.errors import SuperblockError
from kimberlite.storage import superblock
from kimberlite.storage.interface import Disk, Write
from kimberlite.storage.superblock import VERSION, VERSION_UNBORN, Superblock, SuperblockFile
from kimberlite.types import ZERO16, Identity

NAME = "birth"


def make_file(disk: Disk, name: str, block: Superblock) -> None:
    """A superblock of that content in a new file: whole, or not there after a crash. Raises DiskFullError."""
    partial = name + ".new"
    if disk.exists(partial):
        disk.remove(partial)
    file = disk.create(partial, superblock.COPIES * superblock.COPY_BYTES)
    disk.submit(1, superblock.phases(disk, file, superblock.encode(block, 0)))
    disk.flush()
    disk.completions()
    disk.release(file)
    disk.rename(partial, name)


def read(disk: Disk, block: Superblock) -> Identity:
    """The identity of data whose superblock in force is `block`. An empty one: it has none yet. Raises
    SuperblockError."""
    file = open_file(disk, block)
    if file is None:
        return block.identity
    file.close()
    return file.current.identity


def open_file(disk: Disk, block: Superblock) -> SuperblockFile | None:
    """The file `birth` of data whose superblock in force is `block`; None when there is none, or it says nothing any
    more. Raises SuperblockError: what the replica is bound to is not known any more."""
    if block.version != VERSION_UNBORN or not disk.exists(NAME):
        return None
    try:
        return SuperblockFile(disk, NAME)
    except SuperblockError as error:
        raise SuperblockError(
            f"the file `{NAME}`: {error}. It says what this replica is bound to, so that it was not started. No member "
            "of a cluster is lost with it, the log is intact: `kimberlite birth --again`, on this directory, makes a "
            "new one",
            cause=error.cause,
        ) from error


def remove_leftovers(disk: Disk, block: Superblock) -> None:
    """The file says nothing any more once the superblock has the identity."""
    for name in (NAME + ".new", NAME):
        if disk.exists(name) and (name != NAME or block.version != VERSION_UNBORN):
            disk.remove(name)


def discard(disk: Disk) -> None:
    """Remove the file, whatever is left of it: what it said is given up."""
    if disk.exists(NAME):
        disk.remove(NAME)


def write(disk: Disk, file: SuperblockFile, identity: Identity) -> None:
    """Write an identity where it belongs, durably, while no process runs. Raises DiskFullError, WriteFailedError."""
    if file.current.version == VERSION_UNBORN:
        own = BirthFile(disk, file.current)
        block, phases = own.begin(identity)
        confirm = own.confirm
    else:
        repairs = file.repair()
        block, phases = file.update(identity=identity)
        phases, confirm = [*repairs, *phases], file.confirm
    disk.submit(1, phases)
    disk.flush()
    disk.completions()
    confirm(block)


class BirthFile:
    """The identity of one replica whose superblock knows none. One thread uses it."""

    def __init__(self, disk: Disk, block: Superblock) -> None:
        """block: the superblock in force, of version 2. Raises SuperblockError."""
        self._disk = disk
        self._file = open_file(disk, block)
        self._block = replace(block, version=VERSION, parent=ZERO16, checksum=ZERO16, sequence=1)

    @property
    def identity(self) -> Identity:
        """In force; an empty one before the first."""
        return superblock.NOBODY if self._file is None else self._file.current.identity

    def begin(self, identity: Identity) -> tuple[Superblock, list[list[Write]]]:
        """As `update`, at a start: the file is made when there is none, durably, before this returns; nothing may be
        under way on the disk then. Raises DiskFullError."""
        if self._file is None:
            make_file(self._disk, NAME, self._block)
            self._file = SuperblockFile(self._disk, NAME)
        repairs = self._file.repair()
        block, phases = self._file.update(identity=identity)
        return block, [*repairs, *phases]

    def update(self, identity: Identity) -> tuple[Superblock, list[list[Write]]]:
        """Its next content and the writes of that; `confirm` it when they are durable. There must be the file."""
        if self._file is None:
            raise SuperblockError(f"there is no file `{NAME}`: the replica has not begun a life", cause="not_found")
        return self._file.update(identity=identity)

    def confirm(self, block: Superblock) -> None:
        """Raises WriteFailedError when it does not read back."""
        if self._file is not None:
            self._file.confirm(block)

    def close(self) -> None:
        """The superblock has the identity now: let go of the file, and remove it."""
        if self._file is not None:
            self._file.close()
        self._disk.remove(NAME)
