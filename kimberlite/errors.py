"""Every error Kimberlite raises, and the exit code the command line gives it.

KimberliteError                    1   root; never raised itself
|-- UsageError                     2   the caller's arguments are wrong
|   |-- ConfigError                2   unknown key, value out of bounds
|   `-- EventTooLargeError         3   an event or a request is above its limit
|-- StorageError                  10   a directory or a file cannot be used
|   |-- DataExistsError           11   format over existing data
|   |-- DataMissingError          12   no data where some was expected
|   |-- DataLockedError           13   another process holds the data
|   |-- SuperblockError           14   no quorum of superblock copies; see its `cause`
|   |-- FormatVersionError        15   written by an unknown release or with an unknown feature
|   |-- UnsafeFileSystemError     16   tmpfs, overlay: an acknowledgement would not be durable
|   |-- WriteFailedError          17   a write or sync failed: the process must end
|   |-- CorruptEntryError         18   an entry on disk fails its checks
|   |-- UnrecoverableError        19   a committed operation is gone from every copy
|   |-- CheckpointError           27   no copy of a checkpoint is intact
|   |-- DiskFullError             28   no space, or no quota, for one more file: nothing was changed
|   `-- BackupError               29   a backup can not be taken, or not be restored
|-- NetworkError                  20   connection-level failures
|   |-- AddressInUseError         21   a listener could not be opened
|   |-- FrameError                22   bytes that are no frame of this protocol
|   |-- WrongClusterError         23   the peer belongs to another cluster
|   |-- UnavailableError          24   no replica could be reached, or none leads
|   `-- ClientVersionError        25   client and replica speak different versions of the client protocol
|-- RejectedError                 30   the cluster answered no: nothing was appended
|   |-- BusyError                 31   a bounded queue is full; retry later
|   |-- SessionEvictedError       32   more clients than sessions; nothing was appended
|   |-- PositionError             33   a read outside what the log holds
|   `-- NoSpaceError              34   the disks of too many replicas are full; reads go on
|-- OutcomeUnknownError           40   (also TimeoutError) the request may or may not be committed
|-- BirthError                    37   a birth can not be changed like that: nothing was
|-- RecordError                   54   a configuration that no cluster can have, or bytes that are none
|-- InvariantError                50   an internal rule was broken: the process must end
|-- ViolationError                51   the simulator found a broken invariant
|   `-- CanaryMissedError          52   the simulator did not find a bug that was planted
|-- MetricsFileError              55   a metrics file is damaged, or of another release
`-- ExtensionError                60   (also ImportError) a compiled module cannot be used
    |-- ExtensionMissingError     61   it is not there, or does not load
    |-- SelfTestError             62   its digests differ from the second implementation's
    |-- KernelUnknownError        63   KIMBERLITE_KERNEL names no kernel
    |-- KernelNotBuiltError       64   the kernel belongs to another processor architecture
    `-- KernelUnsupportedError    65   this processor lacks the kernel's instructions

Messages say what happened, with the numbers, and what to do. Data is in the
attributes given as keyword arguments, so that callers never parse the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class KimberliteError(Exception):
    """Root of all Kimberlite errors. Keyword arguments become attributes: each class declares its own. Those that
    an error was not given are None, or empty."""

    exit_code = 1

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = details
        for name, value in details.items():
            setattr(self, name, value)


class UsageError(KimberliteError):
    """The caller's arguments are wrong; nothing was done."""

    argument: str | None = None
    exit_code = 2


class ConfigError(UsageError):
    """An unknown configuration key, or a value outside its bounds."""

    key: str | None = None
    value: str | float | Sequence[str] | Sequence[int] | None = None
    source: str | None = None  # the file, or what else it stands in
    nearest: str | None = None  # a key that may be meant
    address: str | None = None
    addresses: str | None = None
    cluster: str | None = None
    configured: str | int | None = None
    found: str | int | None = None


class CampaignStateError(UsageError):
    """The file does not hold the progress of the campaign that is to go on: it is of other seeds, another plan, other
    code, or none at all. Attribute: path."""

    path: str = ""


class CampaignInUseError(CampaignStateError):
    """Another process goes on with the campaign of that file. Attributes: path, pid."""

    pid: int | None = None  # of that process


class EventTooLargeError(UsageError):
    """An event or a request is above its limit; nothing was sent."""

    limit: int
    count: int | None = None
    size: int | None = None
    index: int | None = None
    exit_code = 3


class StorageError(KimberliteError):
    """A data directory, another directory or a file can not be used. Attributes: path, errno, where there are any."""

    path: str | None = None
    file: str | None = None
    offset: int | None = None
    op: int | None = None
    errno: int | None = None
    exit_code = 10


class DataExistsError(StorageError):
    """`format` was asked to overwrite existing data; nothing was changed."""

    files: Sequence[str] = ()
    exit_code = 11


class DataMissingError(StorageError):
    """No replica data where some was expected."""

    exit_code = 12


class DataLockedError(StorageError):
    """Another process holds the data directory."""

    pid: int | None = None  # of the process that holds it
    exit_code = 13


class SuperblockError(StorageError):
    """The superblock copies do not agree. `cause` is one of
    not_found, fork, quorum_lost, parent_skipped, not_monotonic, view_out_of_bounds."""

    cause: str | None = None
    exit_code = 14


class FormatVersionError(StorageError):
    """The data has a format version, a feature bit or an operation in the log that this release does not know."""

    version: int | None = None
    features: int | None = None
    op: int | None = None  # of the entry with that operation
    operation: int | None = None
    exit_code = 15


class UnsafeFileSystemError(StorageError):
    """The file system cannot make a write durable (tmpfs, overlay)."""

    exit_code = 16


class WriteFailedError(StorageError):
    """A write or sync of the journal or superblock failed. Never retried: after an
    error the kernel may report success for bytes that are not on the disk."""

    fd: int | None = None
    exit_code = 17


class CorruptEntryError(StorageError):
    """A journal entry read back does not pass its checks."""

    position: int | None = None
    cause: str | None = None
    exit_code = 18


class UnrecoverableError(StorageError):
    """A committed operation is gone from every copy, for it is damaged on the only replica of a cluster, which stops
    rather than skip it. Replicas of larger clusters run on, and wait for a copy: `stuck_op` in their status says for
    which. Attribute: op."""

    exit_code = 19


class NotMemberError(StorageError):
    """The cluster knows other data under the number of this replica, a later state of this data, or nobody: what it
    says counts nowhere, and its log and promises were not touched. Attributes: reason (of types.Reason), replicas (who
    said so; of an older image that was told so in an earlier life, none)."""

    replicas: Sequence[int] = ()
    reason: int | None = None
    exit_code = 26


class CheckpointError(StorageError):
    """No copy of the checkpoint is intact, and the log before it is gone; replace this replica."""

    part: str | None = None
    exit_code = 27


class DiskFullError(StorageError):
    """The file system, or the quota, has no space for one more file: nothing was changed. Not fatal: a running
    replica tries again by itself. Attributes: file, size, free (bytes), errno."""

    size: int | None = None
    free: int | None = None
    exit_code = 28


class BackupError(StorageError):
    """A backup can not be taken from this replica into this target, or is not intact and can not be restored.
    What the target held before still holds."""

    where: str | None = None
    commit: int | None = None
    exit_code = 29


class NetworkError(KimberliteError):
    """A connection-level failure."""

    host: str | None = None
    port: int | None = None
    address: str | None = None
    addresses: Sequence[str] = ()
    problems: Mapping[str, str] | None = None  # by address
    exit_code = 20


class AddressInUseError(NetworkError):
    """A listener could not be opened because its address is taken."""

    exit_code = 21


class FrameError(NetworkError):
    """Bytes that are no valid frame. `reason` is a member of types.FrameReason."""

    reason: int
    offset: int | None = None
    frames: Sequence[tuple[Any, memoryview]] = ()  # those before it
    exit_code = 22


class WrongClusterError(NetworkError):
    """The peer belongs to another cluster."""

    cluster: str | None = None
    wanted: str | None = None
    clusters: Sequence[str] = ()
    exit_code = 23


class UnavailableError(NetworkError):
    """No replica could be reached, or none of them leads; nothing was appended. When nobody let the client in,
    `problems` says of each address why."""

    exit_code = 24


class ClientVersionError(NetworkError):
    """The client and the replicas speak different versions of the client protocol: nothing was sent. Upgrade the one
    that the message names."""

    exit_code = 25


class RejectedError(KimberliteError):
    """The cluster refused the request: it has not been and will not be executed."""

    reason: int | None = None  # a types.Reason
    exit_code = 30


class BusyError(RejectedError):
    """A bounded queue, of the primary or of this client, is full: nothing was appended. Try again later."""

    waiting: int | None = None
    exit_code = 31


class SessionEvictedError(RejectedError):
    """More clients append at a time than the cluster has sessions for, and this one's was evicted again and again until
    the deadline: nothing was appended. Raise limits.sessions_max, or share clients."""

    exit_code = 32


class PositionError(RejectedError):
    """A read outside of what the log holds. Attributes: position, first (lower ones were trimmed), end."""

    position: int
    first: int | None
    end: int | None
    exit_code = 33


class NoSpaceError(RejectedError):
    """Appends are refused because the disks of too many replicas are full: nothing was appended. Reads and status
    go on. Make room, or have the log trimmed: appends are accepted again by themselves."""

    exit_code = 34


class OutcomeUnknownError(KimberliteError, TimeoutError):
    """The deadline passed while the append was under way: it may or may not be in the log, or get there yet. Inside
    one call the client repeats the request, and the cluster executes it once. Calling again is another append: the
    events may then stand twice in the log. Read the log to find out first."""

    reason: int | None = None
    exit_code = 40


class InvariantError(KimberliteError):
    """An internal invariant was broken. The process must end: going on could lose data."""

    exit_code = 50


class StateMachineError(KimberliteError):
    """The state machine that a program gave to its Node raised, or gave what is no reply: the replica must end, for
    a committed operation can not be left out. Correct the program. Attributes: machine (its class), method, op,
    position (of the first event of the operation; None when it is about a snapshot)."""

    machine: str
    method: str
    op: int | None = None
    position: int | None = None
    exit_code = 53


class BirthError(KimberliteError):
    """What a replica is bound to can not be changed like that, for acknowledged events might be lost; nothing was.
    Attribute: replica."""

    replica: int | None = None
    exit_code = 37


class RecordError(KimberliteError):
    """A record of a cluster (members, voters, settings) that none can have, or bytes that are no record. Attribute:
    part, what of it is wrong."""

    part: str | None = None
    exit_code = 54


class MetricsFileError(KimberliteError):
    """A file of metrics is not one, or is damaged. Attributes: path, reason (a _fast.metrics.Refusal)."""

    path: str
    reason: int
    exit_code = 55


class ViolationError(KimberliteError):
    """The simulator found a broken invariant. Attribute: seeds, those that break it."""

    seeds: Sequence[int]
    exit_code = 51


class CanaryMissedError(ViolationError):
    """The simulator did not find a bug that was planted for it. Attribute: names."""

    names: Sequence[str] = ()
    exit_code = 52


class ExtensionError(KimberliteError, ImportError):
    """A compiled module cannot be used. There is no fallback: a slower or a wrong one would go unnoticed."""

    module: str | None = None
    kernel: str | None = None
    length: int | None = None
    exit_code = 60


class ExtensionMissingError(ExtensionError, ModuleNotFoundError):
    """A compiled module is not installed for this interpreter, or does not load."""

    exit_code = 61


class SelfTestError(ExtensionError):
    """Our digests differ from those of the xxhash package. Attributes: kernel, length."""

    exit_code = 62


class KernelUnknownError(ExtensionError):
    """KIMBERLITE_KERNEL names no kernel. Attribute: kernel."""

    exit_code = 63


class KernelNotBuiltError(ExtensionError):
    """KIMBERLITE_KERNEL names a kernel of another processor architecture. Attribute: kernel."""

    exit_code = 64


class KernelUnsupportedError(ExtensionError):
    """KIMBERLITE_KERNEL names a kernel whose instructions this processor or system lacks. Attribute: kernel."""

    exit_code = 65


def invariant(condition: bool, message: str, **values: object) -> None:
    """Raise InvariantError unless `condition`. Stays on in production, unlike `assert`."""
    if not condition:
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise InvariantError(f"invariant broken: {message} ({shown})", **values)
