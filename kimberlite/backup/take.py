"""Take a backup: from a replica's disk into a target, only what the target does not have.

May import: errors, types, storage, backup. Reads only; the replica is neither stopped nor locked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field

from kimberlite.backup import manifest as manifests
from kimberlite.backup.manifest import CHECKPOINT, ENTRIES, ContentDigest, Digests, File, Manifest
from kimberlite.backup.source import Run, Source, read_superblock
from kimberlite.backup.targets import Target
from kimberlite.errors import BackupError, CheckpointError, DataMissingError
from kimberlite.storage.interface import Disk

CHUNK = 1 << 20
ATTEMPTS = 10  # while the replica goes on with its checkpoints and trims

# Progress(what, bytes in all) is a block that gives a function to advance by bytes: cli.common.ProgressBar.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def no_progress(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda count: None)


@dataclass(slots=True)
class Taken:
    """What was done. Numbers of files and bytes of files; attempts above 1: the replica went on meanwhile.

    uncertain: operations behind the end of the backup that are in this log and not known to be committed.
    """

    manifest: Manifest
    copied: int = 0
    copied_bytes: int = 0
    kept: int = 0
    removed: int = 0
    attempts: int = 1
    uncertain: int = 0


@dataclass(slots=True)
class _Backup:
    disk: Disk
    target: Target
    progress: Progress
    old: Manifest | None
    stored: dict[str, File] = field(default_factory=dict)  # what the target has for certain
    copied: set[str] = field(default_factory=set)


def take(
    disk: Disk,
    target: Target,
    progress: Progress = no_progress,
    applied: Callable[[], int] = lambda: 0,
    check: bool = False,
    uncommitted: bool = False,
) -> Taken:
    """Bring the target to what is committed on this disk now.

    applied: asks the running process which op it has executed; 0 when there is none. The disk alone learns of the last
    commit with the next operation only. check: read what the target has already; damaged files are copied again.
    uncommitted: see Source; for a cluster that is lost.

    Raises BackupError: something committed is not intact here, or the target holds what this log does not continue;
    SuperblockError, FormatVersionError, DataMissingError. Until the new manifest is in force the old one is.
    """
    data = target.manifest()
    old = manifests.decode(data, target.name) if data is not None else None
    backup = _Backup(disk, target, progress, old)
    sizes = target.sizes()
    there = [file for file in (old.files if old is not None else ()) if sizes.get(file.name) == file.bytes]
    with progress("checking", sum(file.bytes for file in there)) if check else no_progress("", 0) as advance:
        for file in there:
            if not check or _is_intact(target, file, advance):
                backup.stored[file.name] = file
    failed = ""
    for attempt in range(1, ATTEMPTS + 1):
        executed = applied()
        block = read_superblock(disk)
        try:
            source = Source(disk, block, executed, uncommitted)
            _compare(source, old, target.name)
            manifest = _copy(backup, source)
            break
        except (BackupError, CheckpointError, DataMissingError, FileNotFoundError) as error:
            # Either the replica went on, and what was looked for has changed, gone or just come; or it is really so,
            # and the same again.
            moved = read_superblock(disk).sequence != block.sequence
            if (moved or str(error) != failed) and attempt < ATTEMPTS:
                failed = str(error)
                continue
            if isinstance(error, FileNotFoundError):
                raise BackupError(
                    f"{error.filename} is missing: take the backup from another replica", file=str(error.filename)
                ) from error
            if isinstance(error, CheckpointError):
                raise BackupError(f"{error}: take the backup from another replica", **error.details) from error
            raise
    target.commit(manifest.encode())
    names = {file.name for file in manifest.files}
    superseded = sorted({*sizes, *backup.copied} - names)
    target.remove(superseded)
    return Taken(
        manifest,
        copied=len(backup.copied & names),
        copied_bytes=sum(file.bytes for file in manifest.files if file.name in backup.copied),
        kept=len(names - backup.copied),
        removed=len(superseded),
        attempts=attempt,
        uncertain=source.uncertain,
    )


def _is_intact(target: Target, file: File, advance: Callable[[int], None]) -> bool:
    digests = Digests()
    try:
        for chunk in target.get(file.name):
            digests.update(chunk)
            advance(len(chunk))
    except BackupError:
        return False  # it can not be read: as good as gone
    return (digests.bytes, digests.xxh3_128, digests.sha256) == (file.bytes, file.xxh3_128, file.sha256)


def _compare(source: Source, old: Manifest | None, where: str) -> None:
    """Raises BackupError unless this log continues the one in the target."""
    if old is None:
        return
    cluster = source.block.cluster.hex()
    if old.cluster != cluster:
        raise BackupError(
            f"{where} holds a backup of cluster {old.cluster}, and this replica is of {cluster}: nothing was changed; "
            "choose another target",
            where=where,
        )
    if old.last_op > source.last_op:
        raise BackupError(
            f"{where} has everything up to op {old.last_op}, and this replica knows of op {source.last_op} only: "
            "nothing was changed; take the backup from another replica",
            where=where,
            op=source.last_op,
        )
    identity = source.identity(old.last_op)
    if identity is not None and old.identity and identity.hex() != old.identity:
        raise BackupError(
            f"{where} has another op {old.last_op} than this replica: they are two histories, and nothing was changed; "
            "choose another target",
            where=where,
            op=old.last_op,
        )


def _copy(backup: _Backup, source: Source) -> Manifest:
    files: list[File] = []
    names = [manifests.entries_name(run.first_op, run.last) for run in source.runs]
    missing = [at for at, name in enumerate(names) if name not in backup.stored]
    block = source.block
    total = sum(source.size(at) for at in missing) + len(source.checkpoint or b"")
    with backup.progress("copying", total) as advance:
        if source.checkpoint is not None:
            named = block.checkpoint
            name = manifests.checkpoint_name(named.op, named.digest)
            if name not in backup.stored:
                digests = Digests()
                backup.target.put(name, _checked_chunks(source.checkpoint, digests, advance))
                _stored(
                    backup,
                    File(name, CHECKPOINT, digests.bytes, digests.xxh3_128, digests.sha256, named.op, named.op),
                )
            files.append(backup.stored[name])
        for at, (run, name) in enumerate(zip(source.runs, names, strict=True)):
            if name not in backup.stored:
                _stored(backup, _copy_run(backup, source, at, run, name, advance))
            files.append(backup.stored[name])
    return Manifest(
        cluster=block.cluster.hex(),
        replica=block.replica,
        replica_count=block.replica_count,
        view=source.view,
        first_op=source.first_op,
        first_position=source.first_position,
        last_op=source.last_op,
        end_position=source.last.position + source.last.count,
        identity=source.last.checksum.hex(),
        files=tuple(files),
    )


def _stored(backup: _Backup, file: File) -> None:
    backup.stored[file.name] = file
    backup.copied.add(file.name)


def _checked_chunks(data: bytes, digests: Digests, advance: Callable[[int], None]) -> Iterator[bytes]:
    for offset in range(0, len(data), CHUNK):
        chunk = data[offset : offset + CHUNK]
        digests.update(chunk)
        advance(len(chunk))
        yield chunk


def _copy_run(backup: _Backup, source: Source, at: int, run: Run, name: str, advance: Callable[[int], None]) -> File:
    digests, content = Digests(), ContentDigest()

    def chunks() -> Generator[bytes, None, None]:
        parts: list[bytes] = []
        size = 0
        for message in source.entries(at, advance):
            content.update(message.header)
            parts += [message.header.raw, bytes(message.body)]
            size += message.header.size
            if size >= CHUNK:
                chunk = b"".join(parts)
                digests.update(chunk)
                yield chunk
                parts, size = [], 0
        chunk = b"".join(parts)
        digests.update(chunk)
        yield chunk

    with closing(chunks()) as stream:  # at once also when it is not read to its end: it has a file open
        backup.target.put(name, stream)
    return File(
        name,
        ENTRIES,
        digests.bytes,
        digests.xxh3_128,
        digests.sha256,
        run.first_op,
        run.last.op,
        content.entries,
        content.events,
        content.hexdigest(),
        run.last.checksum.hex(),
    )
