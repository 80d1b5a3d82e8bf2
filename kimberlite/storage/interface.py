"""What storage offers the node and the simulator, and what it asks of a disk.

Two seams. `Disk` is below: files, ordered durable writes, reads; the production
disk is _fast/append, the simulator's tears and loses what was not durable.
`LogStore` is above: what the replica driver calls; storage/store.py implements it,
once, over any Disk, so that the simulator runs the very code of production.

May import: errors, types. Nothing here blocks for a write: completions come later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple, Protocol

from kimberlite.errors import DiskFullError, FormatVersionError
from kimberlite.types import (
    KNOWN_OPERATIONS,
    RELEASE,
    SECTOR,
    SUFFIX_MAX,
    Bytes,
    Checkpoint,
    Checksum,
    EntryState,
    Header,
    Identity,
    Message,
    Recovered,
    RecoveredEntry,
    Room,
    ViewState,
)

__all__ = [
    "RETRY_NS",
    "SECTOR",
    "SUFFIX_MAX",
    "Disk",
    "Extent",
    "EntryState",
    "LogStore",
    "Recovered",
    "RecoveredEntry",
    "Room",
    "ViewState",
    "Write",
    "is_known",
    "unknown_operation",
]

RETRY_NS = 1_000_000_000  # until a file is asked for again for which there was no space


def is_known(header: Header) -> bool:
    """Whether this release knows what the entry of that header does."""
    return header.operation in KNOWN_OPERATIONS


def unknown_operation(header: Header) -> FormatVersionError:
    """What ends a replica whose log has such an entry."""
    return FormatVersionError(
        f"op {header.op} of the log is of operation {header.operation}, which this release ({RELEASE}) does not know: "
        f"release {header.release} wrote it. Nothing was executed or written from that op on; start that release, or a "
        "later one",
        op=header.op,
        operation=header.operation,
    )


class Write(NamedTuple):
    """One write: `buffer` (length a multiple of SECTOR, built by Disk.aligned) at `offset`. SECTOR is the
    alignment of every write: offset, length and memory."""

    file: int
    offset: int
    buffer: Bytes


class Extent(NamedTuple):
    """A segment of the log: its first op, with its event and time (nanoseconds since 1970), and what the
    journal holds from there to its head."""

    first_op: int
    first_position: int
    first_timestamp: int
    bytes_from_here: int


class Disk(Protocol):
    """Files of one data directory. Handles are small integers.

    A submission is a list of phases; the writes of a phase may reach the disk in any
    order, and a phase begins only when the phase before it is durable. Submissions are
    carried out in the order they were submitted, one after another; those that wait may
    be carried out together, phase by phase, if no file is written in two phases of them. A failed write
    is fatal: it is reported by `completions` raising WriteFailedError naming file,
    offset and errno, and nothing submitted later is ever carried out.
    """

    def exists(self, name: str) -> bool: ...
    def names(self) -> list[str]: ...
    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        """A new file (O_EXCL, 0600) that reads as zeros up to `size`, durable, with its directory.

        zeroed: the zeros are written, so that overwriting them changes no metadata; else only reserved,
        which is quicker, for what is written once.

        Raises DiskFullError, with nothing changed, when there is no space or quota for it; any other failure
        is a WriteFailedError, and fatal.
        """

    def prepare(self, name: str, size: int, zeroed: bool = True) -> None:
        """A `create` of that name and size will follow: whoever can may begin, without blocking."""

    def is_prepared(self, name: str) -> bool:
        """Whether `create` would not wait for what `prepare` has begun, be it made or failed."""

    def open(self, name: str) -> int: ...
    def release(self, file: int) -> None:
        """Close the handle of a file that is not needed now; nothing of it may be under way."""

    def size(self, file: int) -> int: ...
    def remove(self, name: str) -> None: ...
    def rename(self, old: str, new: str) -> None:
        """Durable when it returns."""

    def read(self, file: int, offset: int, length: int) -> memoryview:
        """Blocking, from the disk and never from a cache of failed writes. Raises OSError(EIO)."""

    def aligned(self, length: int) -> memoryview:
        """A zeroed writable buffer of `length` bytes (a multiple of SECTOR), SECTOR-aligned."""

    def submit(self, token: int, phases: Sequence[Sequence[Write]]) -> None: ...
    def completions(self) -> list[int]:
        """Tokens whose last phase became durable since the last call, in order of submission."""

    def flush(self) -> None:
        """Block until everything submitted is durable; `completions` still has to be called."""

    def close(self) -> None: ...


class LogStore(Protocol):
    """Journal, witnesses and superblock of one replica.

    Writes are asynchronous and complete in the order submitted; `completions` returns
    tokens. Any write failure raises WriteFailedError out of `completions`: fatal.
    """

    def recover(self) -> Recovered:
        """Read everything back; called once, first."""

    def append(self, token: int, entries: Sequence[Message]) -> None:
        """Write prepares of consecutive ops, the first one above the current head,
        as one group: entries first, then their witnesses.

        They must fit `room`: whoever appends more waits for a new file, and what is left of the store after a
        DiskFullError can not be used.
        """

    def write_back(self, is_quiet: bool) -> None:
        """To be called when all that was to be sent has left: entries that were made durable with one write are
        written where they belong, when that is worth a write. is_quiet: nothing is appended at present."""

    @property
    def room(self) -> Room:
        """What can certainly be appended."""

    def make_room(self, now: int, needed: bool) -> bool:
        """Reserve the next segment when it is time to, in the background; or when it is `needed`, and
        wait for it. Whether there is more room now, or it has become known that there is no space for more.

        A full disk is no failure: it is remembered (`disk_full`), and tried again at intervals of `now`
        (monotonic nanoseconds). Raises WriteFailedError.
        """

    @property
    def disk_full(self) -> DiskFullError | None:
        """Why the next segment could not be reserved; None when it was, or was not needed yet."""

    def repair(self, token: int, entries: Sequence[Message]) -> Sequence[int]:
        """Write prepares in place, each where it is proven that it stands; the ops of those of which that is not
        known, which are left as they are. When it is known of none, nothing completes under the token."""

    def truncate(self, op: int) -> None:
        """Forget what is above `op`, in memory. Only after a superblock update that
        says so is durable; later appends overwrite."""

    def begin_life(self, identity: Identity, bits: int) -> Identity:
        """Write down who begins to run here: once, after `recover`, before anything is sent."""

    def set_view_state(self, token: int, state: ViewState, identity: Identity | None = None) -> None:
        """Write the superblock. identity: not given, it stays. Who is formed by it on data of the first release enters
        VIEW_BORN at least: see storage.superblock.converted."""

    def mark(self, op: int) -> Checkpoint | None:
        """Where a checkpoint of `op`, just executed, would let a restart begin; None when it can not be
        made now: another is being written, the place of its entry is damaged, or it is not above the last (that op
        itself may be, when no copy of the last can be read)."""

    def write_checkpoint(self, mark: Checkpoint, machine: int, sessions: bytes, snapshot: bytes) -> None:
        """Write what was marked, chunk by chunk between the writes of others; when `checkpoint` is it,
        it is durable."""

    def trim(self, first_op: int, first_position: int) -> None:
        """The log begins with first_op from now on (an op at or below one executed). Its space is
        given back when the checkpoint no longer needs what was before."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The durable one, with the beginning of the log."""

    @property
    def checkpoint_op(self) -> int:
        """Op of the checkpoint that a restart can begin with; 0 when there is none, or none that can be read."""

    def extents(self) -> Iterator[Extent]:
        """The segments of the log, oldest first; one read each."""

    @property
    def sequence(self) -> int:
        """Of the superblock in force."""

    @property
    def first_op(self) -> int:
        """The lowest op that can be read."""

    @property
    def first_position(self) -> int:
        """Position of the first event that can be read."""

    def completions(self) -> list[int]: ...

    @property
    def head(self) -> int:
        """Highest op appended (durable or under way)."""

    @property
    def faulty(self) -> Set[int]:
        """Ops known to be damaged on this disk, until repaired."""

    def header(self, op: int) -> Header | None:
        """Header of a journaled op, from the witness when not in memory."""

    def proven_header(self, op: int) -> Header | None:
        """The same, when it goes together with those of its neighbours as far as they are known."""

    def headers(self, first: int, last: int) -> list[Header]:
        """Headers of ops first..last as far as they are readable and contiguous from `last` down."""

    def read(self, op: int, checksum: Checksum | None = None, ahead: int = 0) -> Message | None:
        """The verified entry, or None when it is absent or damaged (then it is marked
        faulty) or has another identity.

        ahead: bytes that may be read at once, when the entries that follow will be asked for next.
        """

    def find(self, position: int) -> int | None:
        """The op that holds event `position`, or None when no journaled op does."""

    def close(self) -> None: ...
