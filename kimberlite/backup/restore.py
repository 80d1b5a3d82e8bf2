"""Make the data of one replica of a new cluster from a backup, and verify it.

Run once for each replica, from the same backup: each gets the same log. The cluster id is in every header, so every
header is made anew, and with it the hash chain; what an entry does, when, for whom, its op and its events stay.
Everything is written by the code that a replica writes with (storage.store). The superblock has another name until
all of it was read back: what is cut short is no replica.

The restored replicas are members of the new cluster when all of them have met, once (vsr.birth). Its origin is the
identity of the last op: those that were restored from different backups refuse each other, and serve nothing.

The new cluster begins in a view above all of the backup's, with everything in it committed: it was. The replica
that would be the primary of that view does not act as such after a restart: another is elected in the view after it.

May import: errors, types, config, _fast.framing, storage, node.format, node.identity, backup.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kimberlite._fast import framing
from kimberlite.backup import manifest as manifests
from kimberlite.backup.manifest import ContentDigest, Digests, File, Manifest
from kimberlite.backup.source import Source, read_superblock
from kimberlite.backup.take import Progress, no_progress
from kimberlite.backup.targets import Target, missing
from kimberlite.config import CONFIG_NAME, Config
from kimberlite.errors import BackupError, CheckpointError, DataExistsError, DiskFullError, FrameError, UsageError
from kimberlite.node.format import make_directory, sync_directory, write_config
from kimberlite.node.identity import draft_of, unborn
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import superblock
from kimberlite.storage.audit import Audit
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.journal import round_up
from kimberlite.storage.store import Store, format_store
from kimberlite.types import Bytes, ClusterId, Command, Header, Identity, Message, Operation, ViewState, root_header

GROUP_BYTES = 4 << 20  # written at a time
FRAME_MAX = (1 << 32) - 1  # what a header can say: the limit is the segment, and said by name
UNFINISHED = "superblock.restoring"


@dataclass(frozen=True, slots=True)
class Restored:
    """identity: checksum of the header of the last op, the same for every replica that is restored from one backup."""

    manifest: Manifest
    view: int
    identity: str


class UnfinishedDisk(FileDisk):
    """Files of a replica that is none yet: its superblock has another name."""

    def names(self) -> list[str]:
        return [superblock.NAME if name == UNFINISHED else name for name in super().names()]

    def exists(self, name: str) -> bool:
        return super().exists(_hidden(name))

    def create(self, name: str, size: int, zeroed: bool = True) -> int:
        return super().create(_hidden(name), size, zeroed)

    def _open(self, name: str) -> int:
        return super()._open(_hidden(name))

    def remove(self, name: str) -> None:
        super().remove(_hidden(name))

    def rename(self, old: str, new: str) -> None:
        super().rename(_hidden(old), _hidden(new))

    def finish(self) -> None:
        """From now on it is a replica."""
        super().rename(UNFINISHED, superblock.NAME)


def _hidden(name: str) -> str:
    return UNFINISHED if name == superblock.NAME else name


def restore(
    target: Target, config: Config, data: Path, *, same_cluster: bool = False, progress: Progress = no_progress
) -> Restored:
    """Create the replica that `config` describes in `data`, with what is in the backup.

    same_cluster: go on under the id of the cluster that the backup is of. Its replicas must never run again: a client
    or a replica could take one history for the other.

    Raises DataExistsError with nothing changed, UsageError, BackupError (the backup is not intact; then nothing is
    left of what was begun), WriteFailedError, FormatVersionError.
    """
    encoded = target.manifest()
    if encoded is None:
        raise missing(target.name)
    manifest = manifests.decode(encoded, target.name)
    if config.cluster_id.hex() == manifest.cluster and not same_cluster:
        raise UsageError(
            f"the backup is of cluster {manifest.cluster} itself: choose a new id, for example with uuidgen. With "
            "--same-cluster the old replicas must never run again: they and the new ones would take each other's "
            "operations for their own, and acknowledged events would be lost"
        )
    existed = data.exists()
    before = set(os.listdir(data)) if existed else set()
    _refuse_data(data, before)
    make_directory(data)
    disk = UnfinishedDisk(data, mode=config.storage.mode, unsafe=config.storage.unsafe)
    try:
        try:
            restored = _Restore(disk, target, manifest, config, progress).run()
            _verify(data, config, manifest, restored, progress)
            disk.finish()
        finally:
            disk.close()
    except BaseException:
        _take_away(data, before, existed)
        raise
    write_config(config, data / CONFIG_NAME)
    return restored


def _refuse_data(data: Path, names: set[str]) -> None:
    found = sorted(
        name
        for name in names
        if name in (CONFIG_NAME, superblock.NAME, UNFINISHED)
        or name.startswith(("journal-", "witness-", checkpoints.PREFIX))
    )
    if found:
        why = "an interrupted restore" if UNFINISHED in found or superblock.NAME not in found else "a replica"
        raise DataExistsError(
            f"{data} holds {why} already ({', '.join(found[:3])}): nothing was changed; choose another directory, or "
            "remove this one",
            path=str(data),
            files=found,
        )


def _take_away(data: Path, before: set[str], existed: bool) -> None:
    """What a restore that failed has made."""
    with suppress(OSError):
        for name in set(os.listdir(data)) - before:
            (data / name).unlink()
        if existed:
            sync_directory(data)
        else:
            data.rmdir()


class _Restore:
    """Writing one replica."""

    def __init__(
        self, disk: UnfinishedDisk, target: Target, manifest: Manifest, config: Config, progress: Progress
    ) -> None:
        self._disk = disk
        self._target = target
        self._manifest = manifest
        self._config = config
        self._progress = progress
        self._cluster = config.cluster_id
        self._old_cluster: ClusterId = bytes.fromhex(manifest.cluster)
        self._content: checkpoints.Content | None = None
        self._tokens = 0

    def run(self) -> Restored:
        manifest = self._manifest
        total = sum(file.bytes for file in manifest.files)
        with self._progress("restoring", total) as advance:
            if manifest.checkpoint is not None:
                self._content = self._read_checkpoint(manifest.checkpoint, advance)
            before = self._before()
            format_store(
                self._disk,
                framing.make_header,
                cluster=self._cluster,
                replica=self._config.cluster.replica,
                replica_count=self._config.replica_count,
                segment_bytes=self._config.storage.segment_bytes,
                before=before,
                first_position=manifest.first_position,
                identity=Identity(slot=self._config.cluster.replica),
            )
            store = Store(self._disk, framing.make_header)
            store.recover()
            if self._content is not None and self._content.header.op == manifest.first_op - 1:
                self._write_checkpoint(store, before)
            last = before
            group: list[Message] = []
            size = 0
            for message in self._messages(advance):
                renewed = self._renew(message.header, message.body, last.checksum)
                group.append(Message(renewed, message.body))
                size += round_up(renewed.size)
                last = renewed
                if size >= GROUP_BYTES or (self._content is not None and renewed.op == self._content.header.op):
                    self._append(store, group)
                    group, size = [], 0
                    if self._content is not None and renewed.op == self._content.header.op:
                        self._write_checkpoint(store, renewed)
            self._append(store, group)
            view = manifest.view + 1
            self._tokens += 1
            draft = draft_of(self._config, last.checksum)
            store.set_view_state(
                self._tokens,
                ViewState(view, view, commit=last.op, base=last.op, suffix_head=last.op, suffix=(last,)),
                unborn(draft, self._config.cluster.replica, secrets.token_bytes(16)),
            )
            self._settle(store)
        return Restored(manifest, view, last.checksum.hex())

    # The backup

    def _read(self, file: File, advance: Callable[[int], None]) -> Iterator[bytes]:
        """A file's bytes; at its end they have been compared with the manifest."""
        digests = Digests()
        for chunk in self._target.get(file.name):
            digests.update(chunk)
            yield chunk
            advance(len(chunk))
        found = (digests.bytes, digests.xxh3_128, digests.sha256)
        if found != (file.bytes, file.xxh3_128, file.sha256):
            raise self._damaged(
                file, f"{digests.bytes} bytes with other digests than the manifest's {file.bytes} bytes"
            )

    def _damaged(self, file: File, why: str) -> BackupError:
        return BackupError(
            f"{self._target.name}/{file.name} is damaged: {why}; nothing was restored: use another backup",
            where=self._target.name,
            file=file.name,
        )

    def _read_checkpoint(self, file: File, advance: Callable[[int], None]) -> checkpoints.Content:
        data = b"".join(self._read(file, advance))
        try:
            content = checkpoints.decode(data)
        except CheckpointError as error:
            raise self._damaged(file, str(error)) from error
        if content.cluster != self._old_cluster or content.header.op != file.last_op:
            raise self._damaged(file, "it is another checkpoint than the manifest says")
        return content

    def _messages(self, advance: Callable[[int], None]) -> Iterator[Message]:
        """All entries, verified: every checksum, and that each continues the one before."""
        manifest = self._manifest
        position = manifest.first_position
        before: Header | None = None
        if manifest.first_op == 1:
            before = root_header(framing.make_header, self._old_cluster)
        elif self._content is not None and self._content.header.op == manifest.first_op - 1:
            before = self._content.header
        op = manifest.first_op
        for file in manifest.entries:
            content = ContentDigest()
            for message in self._frames(file, advance):
                header = message.header
                known = self._content.header if self._content is not None else None
                if (
                    header.op != op
                    or header.position != position
                    or header.command != Command.PREPARE
                    or (before is not None and header.parent != before.checksum)
                    or (known is not None and known.op == op and known.checksum != header.checksum)
                ):
                    raise self._damaged(file, f"the entry of op {header.op} does not continue op {op - 1}")
                content.update(header)
                yield message
                before, op, position = header, op + 1, position + header.count
            if op != file.last_op + 1 or content.hexdigest() != file.content:
                raise self._damaged(file, f"it ends with op {op - 1}, or holds other entries than the manifest says")
        if position != manifest.end_position:
            raise BackupError(
                f"{self._target.name}: the entries end with position {position}, the manifest with "
                f"{manifest.end_position}; use another backup",
                where=self._target.name,
                file=manifests.NAME,
            )

    def _frames(self, file: File, advance: Callable[[int], None]) -> Iterator[Message]:
        rest = b""
        for chunk in self._read(file, advance):
            data = rest + chunk if rest else chunk
            try:
                frames, consumed, _ = framing.parse(data, 0, len(data), FRAME_MAX, self._old_cluster)
            except FrameError as error:
                raise self._damaged(file, str(error)) from error
            for header, body in frames:
                yield Message(header, body)
            rest = data[consumed:]
        if rest:
            raise self._damaged(file, "it ends within an entry")

    # The new replica

    def _before(self) -> Header:
        """The header, under the new id, of the op before the first one."""
        manifest, content = self._manifest, self._content
        if manifest.first_op == 1:
            return root_header(framing.make_header, self._cluster)
        if content is not None and content.header.op == manifest.first_op - 1:
            # Its entry was trimmed: the header is all there is, with the size and the checksum of its body.
            header = content.header
            return self._renew(header, bytes(header.size - framing.HEADER_SIZE), header.parent)
        # Nothing is known of it, and nobody asks: it is where the new chain begins, the same on every replica.
        return framing.make_header(
            cluster=self._cluster,
            command=Command.PREPARE,
            replica=0,
            operation=Operation.NOOP,
            op=manifest.first_op - 1,
            position=manifest.first_position,
        )

    def _renew(self, header: Header, body: Bytes, parent: bytes) -> Header:
        """The same prepare in the new cluster."""
        return framing.make_header(
            body,
            cluster=self._cluster,
            command=header.command,
            replica=header.view % self._config.replica_count,  # which there leads that view
            epoch=header.epoch,
            operation=header.operation,
            flags=header.flags,
            reason=header.reason,
            view=header.view,
            op=header.op,
            commit=header.commit,
            parent=parent,
            client=header.client,
            session=header.session,
            request=header.request,
            timestamp=header.timestamp,
            position=header.position,
            count=header.count,
            latency_us=header.latency_us,
            context=header.context,
            log_view=header.log_view,
            checkpoint_op=header.checkpoint_op,
            nonce=header.nonce,
            checksum_body=header.checksum_body,
        )

    def _append(self, store: Store, group: list[Message]) -> None:
        if not group:
            return
        largest = max(round_up(message.header.size) for message in group)
        if largest > store.segment_bytes:
            raise UsageError(
                f"an entry of the backup takes {largest} bytes, and a segment has {store.segment_bytes}: restore with "
                f"larger ones, --set storage.segment_bytes={1 << (largest - 1).bit_length()}"
            )
        self._tokens += 1
        store.append(self._tokens, group)
        self._settle(store)

    def _write_checkpoint(self, store: Store, header: Header) -> None:
        content = self._content
        if content is None:
            return
        mark = store.mark(header.op) or replace(store.checkpoint, header=header)
        store.write_checkpoint(mark, content.machine, content.sessions, content.snapshot)
        # Both copies: one that takes the place of the beginning of a log is named by the superblock before the second.
        while not store.is_checkpoint_idle:
            if store.is_checkpoint_stalled:
                raise DiskFullError(
                    f"{self._disk.directory}: there is no space for the copies of the checkpoint of op {header.op}: "
                    "nothing was restored; make room",
                    free=self._disk.free_bytes(),
                )
            self._settle(store)

    def _settle(self, store: Store) -> None:
        """Until all that was submitted is durable."""
        self._disk.flush()
        store.completions()


def _verify(data: Path, config: Config, manifest: Manifest, restored: Restored, progress: Progress) -> None:
    """Read everything back from the disk. Raises BackupError."""
    disk = UnfinishedDisk(data, mode=config.storage.mode, readonly=True)
    try:
        audit = Audit(disk)
        with progress("verifying", audit.total_bytes) as audit.advance:
            for finding in audit.findings():
                raise _different(data, f"{finding.file}: {finding.text}")
        source = Source(disk, read_superblock(disk))
        if (source.first_op, source.first_position, source.last_op, source.last.checksum.hex()) != (
            manifest.first_op,
            manifest.first_position,
            manifest.last_op,
            restored.identity,
        ):
            raise _different(data, f"it holds ops {source.first_op} to {source.last_op}")
        total = sum(source.size(at) for at in range(len(source.runs)))
        with progress("comparing", total) as advance:
            headers = (message.header for at in range(len(source.runs)) for message in source.entries(at, advance))
            for file in manifest.entries:
                content = ContentDigest()
                for _ in range(file.entries):
                    content.update(next(headers))
                if content.hexdigest() != file.content:
                    raise _different(data, f"ops {file.first_op} to {file.last_op} differ from {file.name}")
            if next(headers, None) is not None:
                raise _different(data, f"there are ops above {manifest.last_op}")
    finally:
        disk.close()


def _different(data: Path, why: str) -> BackupError:
    return BackupError(
        f"{data}: what was written does not read back as it is in the backup ({why}): nothing was restored; "
        "check the disk",
        path=str(data),
    )
