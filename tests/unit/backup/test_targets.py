"""Every place for backups keeps the same promises: the directory, the archive, and S3 as a real server speaks it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from kimberlite.backup.restore import restore
from kimberlite.backup.take import take
from kimberlite.backup.targets import Archive, Directory, ObjectStorage, Target, open_target
from kimberlite.errors import BackupError, UsageError
from kimberlite.storage.disk import FileDisk

FIRST = "entries-0000000000000001-0000000000000009-00112233445566aa"
SECOND = "checkpoint-0000000000000007-00112233445566bb"
LARGE = 9 << 20  # above the size from which an upload goes in parts


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """An S3 service on a free port of this machine, with a bucket named `bucket`."""
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        with closing(boto3.client("s3", endpoint_url=url)) as client:
            client.create_bucket(Bucket="bucket")
        yield url
        server.stop()


@pytest.fixture(params=["directory", "archive", "s3"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bool], Target]:
    """A function that opens the same place again, to write or not."""
    if request.param == "s3":
        url = request.getfixturevalue("s3_server")
        return lambda write: ObjectStorage(f"s3://bucket/{tmp_path.name}/deep", url)
    if request.param == "archive":
        return lambda write: Archive(tmp_path / "to" / "backup.tar", write)
    return lambda write: Directory(tmp_path / "to" / "backup", write)


def test_files_and_manifests(open_again: Callable[[bool], Target]) -> None:
    large = os.urandom(LARGE)
    with closing(open_again(True)) as target:
        assert target.manifest() is None
        target.put(FIRST, iter([large[: LARGE // 2], b"", large[LARGE // 2 :]]))
        target.put(SECOND, [b"small"])
        target.commit(b"manifest 1")
    with closing(open_again(False)) as target:
        assert target.manifest() == b"manifest 1"
        assert b"".join(target.get(FIRST)) == large
        assert b"".join(target.get(SECOND)) == b"small"
    with closing(open_again(True)) as target:
        sizes = target.sizes()
        assert sizes in ({FIRST: LARGE, SECOND: 5}, {})  # an archive keeps nothing
        target.put(SECOND, [b"other"])
        assert target.manifest() == b"manifest 1"
        target.commit(b"manifest 2")
        target.remove([FIRST])
    with closing(open_again(False)) as target:
        assert target.manifest() == b"manifest 2"
        assert b"".join(target.get(SECOND)) == b"other"
        with pytest.raises(BackupError, match=FIRST):
            b"".join(target.get(FIRST))


def test_a_failure_in_the_middle_of_a_file(open_again: Callable[[bool], Target]) -> None:
    """What the source raises goes through, and the backup before still holds."""

    def chunks() -> Iterator[bytes]:
        yield bytes(1000)
        raise FileNotFoundError("a segment has gone")

    with closing(open_again(True)) as target:
        target.put(SECOND, [b"small"])
        target.commit(b"manifest 1")
    with closing(open_again(True)) as target, pytest.raises(FileNotFoundError):
        target.put(FIRST, chunks())
    with closing(open_again(True)) as target:
        assert FIRST not in target.sizes()
        assert target.manifest() == b"manifest 1"
        assert b"".join(target.get(SECOND)) == b"small"


def test_a_backup_in_each(
    open_again: Callable[[bool], Target], small_replica: Any, new_config: Any, tmp_path: Path
) -> None:
    replica = small_replica()
    for count in (40, 20):
        replica.append(count)
        replica.checkpoint()
        disk = FileDisk(replica.path, readonly=True)
        with closing(open_again(True)) as target:
            taken = take(disk, target)
        disk.close()
    assert taken.kept in (2, 0)
    with closing(open_again(False)) as target:
        restored = restore(target, new_config(), tmp_path / "new")
    assert (restored.manifest.first_op, restored.manifest.last_op) == (1, 60)


@pytest.mark.parametrize("kind", [Directory, Archive])
def test_a_target_that_is_full(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that fails is an error with its number, and what was there before still holds."""
    place = tmp_path / "backup"
    with closing(kind(place, True)) as target:
        target.put(SECOND, [b"small"])
        target.commit(b"manifest 1")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with (
            closing(kind(place, True)) as target,
            pytest.raises(BackupError, match=r"no space.* still holds") as caught,
        ):
            target.put(FIRST, [b"large"])
            target.commit(b"manifest 2")
    assert caught.value.details["errno"] == errno.ENOSPC
    with closing(kind(place, False)) as target:
        assert target.manifest() == b"manifest 1"
        assert b"".join(target.get(SECOND)) == b"small"
    assert not [path.name for path in tmp_path.rglob("*.new")]


def test_files_are_private(tmp_path: Path) -> None:
    with closing(Directory(tmp_path / "a" / "b", write=True)) as target:
        target.put(SECOND, [b"small"])
        target.commit(b"manifest")
    with closing(Archive(tmp_path / "c.tar", write=True)) as archive:
        archive.commit(b"manifest")
    for path in (tmp_path / "a" / "b").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "c.tar").stat().st_mode) == 0o600


def test_an_archive_is_a_tar_file(tmp_path: Path) -> None:
    with closing(Archive(tmp_path / "c.tar", write=True)) as archive:
        archive.put(FIRST, [b"x" * 512])
        archive.put(SECOND, [b"small"])
        archive.commit(b"manifest")
    with tarfile.open(tmp_path / "c.tar") as archive_file:
        assert archive_file.getnames() == [FIRST, SECOND, "manifest.json"]
        assert [member.size for member in archive_file] == [512, 5, 8]
    data = (tmp_path / "c.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(data[:700])
    with pytest.raises(BackupError, match=r"ends within|no intact archive"):
        Archive(tmp_path / "c.tar", write=False).get(FIRST).__next__()
    (tmp_path / "c.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(BackupError, match="no intact archive"):
        Archive(tmp_path / "c.tar", write=False)


def test_one_backup_at_a_time(tmp_path: Path) -> None:
    with closing(Archive(tmp_path / "c.tar", write=True)) as archive:
        archive.put(SECOND, [b"small"])
        with pytest.raises(BackupError, match="under way"):
            Archive(tmp_path / "c.tar", write=True)
        archive.commit(b"manifest")
    with closing(Archive(tmp_path / "c.tar", write=True)) as archive:
        assert b"".join(archive.get(SECOND)) == b"small"
    assert [path.name for path in tmp_path.iterdir()] == ["c.tar"]


@pytest.mark.parametrize(
    ("where", "options", "what"),
    [
        ("s3://", {}, "give s3://bucket/prefix"),
        ("s3://bucket/a", {"archive": True}, "leave it out"),
        ("directory", {"endpoint_url": "http://127.0.0.1:1"}, "none"),
        *(
            (where, {}, "object storage is s3://bucket/prefix")
            for where in (
                "s3:/bucket/a",
                "s3:bucket",
                "S3://bucket",
                "s3//bucket",
                "file:///tmp/a",
                "host:a",
                "https://x",
            )
        ),
    ],
)
def test_wrong_names(where: str, options: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        open_target(where, **options)


def test_names_of_targets(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with closing(open_target(str(archive), archive=True, write=True)) as target:
        target.commit(b"manifest")
    for where, kind in ((archive, Archive), (tmp_path / "a.tar", Archive), (tmp_path, Directory)):
        with closing(open_target(str(where))) as target:
            assert isinstance(target, kind)


@pytest.mark.parametrize("where", ["./s3:a", "2026-11-30T10:00", "s3", "s3/a", "a/b:c"])
def test_a_directory_may_have_a_colon(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_target(where, write=True)) as target:
        assert isinstance(target, Directory)


def test_storage_that_does_not_answer(s3_server: str) -> None:
    with (
        closing(ObjectStorage("s3://no-such-bucket/a", s3_server)) as target,
        pytest.raises(BackupError, match="bucket"),
    ):
        target.sizes()


def test_without_the_extra(tmp_path: Path) -> None:
    """boto3 is looked for when it is needed, and by nothing else."""
    script = (
        "import sys; sys.modules['boto3'] = None\n"
        "from kimberlite.backup.targets import open_target\n"
        "from kimberlite.errors import BackupError\n"
        f"open_target({str(tmp_path / 'backup')!r}, write=True)\n"
        "try: open_target('s3://bucket/prefix')\n"
        "except BackupError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert "pip install 'kimberlite-vsr[s3]'" in done.stdout, done.stderr
