"""Where backups are: a directory, one archive (tar), or S3-compatible object storage.

`Target` is all that the rest knows of it. A file is durable under its name, whole, before a manifest speaks of it;
the manifest replaces the one before at once. One backup at a time into one target: a directory or an archive is
locked; object storage is not.

May import: errors, node.format, storage.trouble, the standard library; boto3 (the extra `s3`) when it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kimberlite.backup import manifest as manifests
from kimberlite.errors import BackupError, UsageError
from kimberlite.node.format import make_directory, sync_directory
from kimberlite.storage.trouble import explain

CHUNK = 1 << 20
SPOOL_BYTES = 8 << 20  # of an object kept in memory before it goes to a temporary file
S3_SCHEME = "s3://"
ARCHIVE_SUFFIX = ".tar"
NEW = ".new"  # suffix of a file that is not whole yet
WRITING = "the backup that was there before still holds"
READING = "use another backup"
_BLOCK = 512  # tar(5)
# What somebody who names no s3://bucket may have meant as a URL: s3:/x, s3:x, S3://x, s3//x, file:///x, host:x.
_LIKE_A_URL = re.compile(r"[a-z][a-z0-9+.-]*:|s3//", re.IGNORECASE)


class Target(Protocol):
    """Files of one backup, flat. Raises BackupError for whatever goes wrong with them."""

    name: str

    def manifest(self) -> bytes | None:
        """The manifest in force; None when there is none."""

    def sizes(self) -> Mapping[str, int]:
        """Bytes of the files that are there and may be kept for the next manifest, by name."""

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Store a file. What `chunks` raises goes through, and then there is no such file."""

    def get(self, name: str) -> Iterator[bytes]:
        """A file, piece by piece."""

    def commit(self, manifest: bytes) -> None:
        """Put a manifest in force; everything stored before is durable."""

    def remove(self, names: Iterable[str]) -> None:
        """Files that the manifest in force does not name."""

    def close(self) -> None: ...


def open_target(where: str, *, archive: bool = False, endpoint_url: str | None = None, write: bool = False) -> Target:
    """The target that a command line names: s3://bucket/prefix, a name with .tar at its end (or `archive`), or a
    directory. write: it may be made, and is locked. Raises UsageError, BackupError."""
    if not where.startswith(S3_SCHEME) and (likeness := _LIKE_A_URL.match(where)):
        raise UsageError(
            f"{where!r} begins with {likeness[0]!r}: object storage is {S3_SCHEME}bucket/prefix; a directory or a file "
            f"of that name is ./{where}",
            argument="where",
        )
    if where.startswith(S3_SCHEME):
        if archive:
            raise UsageError(f"--archive makes one file and {where} is no file; leave it out")
        return ObjectStorage(where, endpoint_url)
    if endpoint_url is not None:
        raise UsageError(f"--endpoint-url is for {S3_SCHEME}bucket/prefix, and {where} is none")
    if archive or where.endswith(ARCHIVE_SUFFIX) or (not write and Path(where).is_file()):
        return Archive(Path(where), write)
    return Directory(Path(where), write)


@contextlib.contextmanager
def failures(what: str, advice: str = WRITING) -> Iterator[None]:
    """An OSError of a target, as a BackupError."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = what
        raise BackupError(f"{what}: {explain(error)}; {advice}", where=what, errno=error.errno) from error


def missing(where: str) -> BackupError:
    return BackupError(f"{where} holds no backup: there is no {manifests.NAME}", where=where)


class Directory:
    """Files of a directory, 0600; each is made under another name and renamed when it is durable."""

    def __init__(self, path: Path, write: bool) -> None:
        self.name = str(path)
        self._path = path
        self._lock = -1
        if not write:
            if not path.is_dir():
                raise missing(self.name)
            return
        with failures(self.name):
            make_directory(path)
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(self._lock, self.name)
            self._refuse_others()
        except BaseException:
            self.close()
            raise

    def _refuse_others(self) -> None:
        strange = sorted(name for name in os.listdir(self._path) if name != manifests.NAME and not _is_ours(name))
        if strange:
            raise BackupError(
                f"{self._path} holds {strange[0]!r}, which is of no backup: nothing was changed; choose a directory "
                "that is empty or holds a backup",
                where=self.name,
                file=strange[0],
            )

    def manifest(self) -> bytes | None:
        with failures(self.name):
            try:
                return (self._path / manifests.NAME).read_bytes()
            except FileNotFoundError:
                return None

    def sizes(self) -> Mapping[str, int]:
        with failures(self.name):
            return {entry.name: entry.stat().st_size for entry in os.scandir(self._path) if _is_ours(entry.name)}

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self._path / name
        partial = path.with_name(name + NEW)
        try:
            with failures(str(path)):
                file = _open_private(partial)
            with file:
                for chunk in chunks:  # what goes wrong there is not the target's
                    with failures(str(path)):
                        file.write(chunk)
                with failures(str(path)):
                    file.flush()
                    os.fsync(file.fileno())
                    partial.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def get(self, name: str) -> Iterator[bytes]:
        path = self._path / name
        with failures(str(path), READING), path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def commit(self, manifest: bytes) -> None:
        with failures(self.name):
            sync_directory(self._path)
        self.put(manifests.NAME, [manifest])
        with failures(self.name):
            sync_directory(self._path)

    def remove(self, names: Iterable[str]) -> None:
        with failures(self.name):
            for name in names:
                (self._path / name).unlink(missing_ok=True)
            sync_directory(self._path)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Archive:
    """One tar file, with the manifest as its last member. Written anew each time, under another name until it is
    durable and whole; read with `tar` as well."""

    def __init__(self, path: Path, write: bool) -> None:
        self.name = str(path)
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}  # name -> where its bytes are, how many
        self._old: BinaryIO | None = None
        self._new: BinaryIO | None = None
        try:
            with failures(self.name):
                if path.exists():
                    self._old = path.open("rb")
                    self._read_members(self._old)
                if write:
                    make_directory(path.parent)
                    self._new = _open_private(self._partial, truncate=False)
            if self._new is not None:
                _lock(self._new.fileno(), self.name)
                with failures(self.name):
                    # Between the opening and the lock another backup may have put this very file in its place.
                    if not os.path.samestat(os.fstat(self._new.fileno()), self._partial.stat()):
                        raise BackupError(f"{self.name}: another backup into it has just ended", where=self.name)
                    self._new.truncate(0)
        except BaseException:
            for file in (self._old, self._new):
                if file is not None:
                    file.close()
            raise

    @property
    def _partial(self) -> Path:
        return self._path.with_name(self._path.name + NEW)

    def _read_members(self, file: BinaryIO) -> None:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    self._members[member.name] = member.offset_data, member.size
        except tarfile.TarError as error:
            raise BackupError(f"{self._path} is no intact archive: {error}", where=self.name, file=self.name) from error

    def manifest(self) -> bytes | None:
        return b"".join(self.get(manifests.NAME)) if manifests.NAME in self._members else None

    def sizes(self) -> Mapping[str, int]:
        return {}  # the new archive is written from its beginning

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        file = self._writable
        with failures(self.name):
            begin = file.tell()
            file.write(bytes(_BLOCK))  # the header, when the size is known
        size = 0
        for chunk in chunks:
            size += len(chunk)
            with failures(self.name):
                file.write(chunk)
        with failures(self.name):
            file.write(bytes(-size % _BLOCK))
            end = file.tell()
            member = tarfile.TarInfo(name)
            member.size, member.mode = size, 0o600
            file.seek(begin)
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.seek(end)

    @property
    def _writable(self) -> BinaryIO:
        if self._new is None:
            raise BackupError(f"{self._path} was opened for reading", where=self.name)
        return self._new

    def get(self, name: str) -> Iterator[bytes]:
        if self._old is None or name not in self._members:
            raise BackupError(f"{self._path}: there is no {name} in it; {READING}", where=self.name, file=name)
        offset, size = self._members[name]
        while size:
            with failures(self.name, READING):
                self._old.seek(offset)
                chunk = self._old.read(min(size, CHUNK))
            if not chunk:
                raise BackupError(f"{self._path} ends within {name}; {READING}", where=self.name, file=name)
            yield chunk
            offset += len(chunk)
            size -= len(chunk)

    def commit(self, manifest: bytes) -> None:
        self.put(manifests.NAME, [manifest])
        file = self._writable
        with failures(self.name):
            file.write(bytes(2 * _BLOCK))
            file.flush()
            os.fsync(file.fileno())
            self._partial.rename(self._path)
            sync_directory(self._path.parent)
        file.close()
        self._new = None

    def remove(self, names: Iterable[str]) -> None:
        """What the old archive held went with it."""

    def close(self) -> None:
        if self._old is not None:
            self._old.close()
        if self._new is not None:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)
            self._new.close()


class ObjectStorage:
    """Objects below a prefix of a bucket; credentials, region and endpoint as boto3 finds them."""

    def __init__(self, where: str, endpoint_url: str | None) -> None:
        bucket, _, prefix = where.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"{where!r}: give {S3_SCHEME}bucket/prefix")
        try:
            import boto3
            from boto3.exceptions import Boto3Error
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise BackupError(
                f"{where} needs boto3, which is not installed ({error}): pip install 'kimberlite-vsr[s3]'", where=where
            ) from error
        self.name = where
        self._bucket = bucket
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self._errors = (BotoCoreError, ClientError, Boto3Error)
        with self._failures(where):
            retries = Config(retries={"mode": "standard", "max_attempts": 5})
            self._client: Any = boto3.client("s3", endpoint_url=endpoint_url, config=retries)

    @contextlib.contextmanager
    def _failures(self, what: str, advice: str = WRITING) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise BackupError(f"{what}: {error}; {advice}", where=what) from error

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def manifest(self) -> bytes | None:
        with self._failures(self.name):
            try:
                body: bytes = self._client.get_object(**self._at(manifests.NAME))["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None
        return body

    def sizes(self) -> Mapping[str, int]:
        found = {}
        with self._failures(self.name):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"][len(self._prefix) :]
                    if manifests.is_file_name(name):
                        found[name] = item["Size"]
        return found

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            for chunk in chunks:
                with failures(f"the temporary file for {name}"):
                    spool.write(chunk)
            spool.seek(0)
            with self._failures(f"{self.name}/{name}"):
                self._client.upload_fileobj(spool, **self._at(name))  # large ones in parts, visible when all are there

    def get(self, name: str) -> Iterator[bytes]:
        with self._failures(f"{self.name}/{name}", READING):
            body = self._client.get_object(**self._at(name))["Body"]
            yield from body.iter_chunks(CHUNK)

    def commit(self, manifest: bytes) -> None:
        with self._failures(self.name):
            self._client.put_object(**self._at(manifests.NAME), Body=manifest)

    def remove(self, names: Iterable[str]) -> None:
        with self._failures(self.name):
            for name in names:
                self._client.delete_object(**self._at(name))

    def close(self) -> None:
        self._client.close()


def _is_ours(name: str) -> bool:
    """A file of a backup, or what an interrupted one has left."""
    return manifests.is_file_name(name.removesuffix(NEW)) or name == manifests.NAME + NEW


def _open_private(path: Path, truncate: bool = True) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if truncate else 0)
    return os.fdopen(os.open(path, flags, 0o600), "r+b")


def _lock(descriptor: int, name: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BackupError(f"{name}: another backup into it is under way; wait for its end", where=name) from None
