"""Errors of the file system, in words: made by the system itself where it can be asked to."""

from __future__ import annotations

import errno
import gc
import getpass
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kimberlite.errors import DiskFullError, StorageError
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.trouble import storage_error


def error_of(action: Callable[[], object]) -> OSError:
    with pytest.raises(OSError) as caught:
        action()
    return caught.value


def told(action: Callable[[], object]) -> str:
    return str(storage_error(error_of(action)))


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "d" / "e"
    text = told(lambda: os.mkdir(path))
    assert text.startswith(
        f"{path}: not a directory: {tmp_path / 'file'} is a file (the file {tmp_path / 'file'} belongs"
    )
    assert text.endswith("choose another path")
    assert "is a file" in told(lambda: os.mkdir(tmp_path / "file"))


def test_name_too_long(tmp_path: Path) -> None:
    assert "a name of 300 bytes, 255 are possible" in told(lambda: (tmp_path / ("x" * 300)).read_bytes())
    assert re.search(r"it has \d+ bytes, 4095 are possible", told(lambda: os.mkdir("d/" * 3000)))


def test_not_there(tmp_path: Path) -> None:
    text = told(lambda: (tmp_path / "a" / "b").read_bytes())
    assert f"{tmp_path} is there, and what is below it is not" in text


def test_a_directory_where_a_file_should_be(tmp_path: Path) -> None:
    assert told(lambda: tmp_path.write_bytes(b"")).endswith("give a file")


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    assert "lead in a circle" in told(lambda: (tmp_path / "link").read_bytes())


def test_the_owner_is_named(tmp_path: Path) -> None:
    path = tmp_path / "closed"
    path.mkdir(mode=0o700)
    text = str(storage_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path / "d"))))
    assert text.startswith(f"{path / 'd'}: permission denied: the directory {path} belongs to ")
    assert "mode 0700" in text
    assert f"this process runs as {getpass.getuser()}" in text


def test_an_owner_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert "belongs to 0:" in str(storage_error(PermissionError(errno.EPERM, "no", "/"))) and tmp_path


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_an_error_of_its_own(number: int, tmp_path: Path) -> None:
    assert isinstance(storage_error(OSError(number, os.strerror(number), str(tmp_path))), DiskFullError)


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_whatever_it_is_there_is_a_message_with_the_path(number: int, tmp_path: Path) -> None:
    for path in (str(tmp_path), os.fsencode(tmp_path)):
        error = storage_error(OSError(number, os.strerror(number), path))
        assert isinstance(error, StorageError)
        assert str(error).startswith(f"{tmp_path}: ")
        assert error.details["errno"] == number


def test_what_is_closed_holds_nothing(tmp_path: Path) -> None:
    """Its thread and its descriptors go when it is closed, not when the collector finds them: it is part of cycles."""
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        disk = FileDisk(tmp_path, unsafe=True)
        itself: list[object] = [disk]
        itself.append(itself)
        disk.create("file", 4096)
        disk.close()
        assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before
        disk.close()
    finally:
        gc.enable()
