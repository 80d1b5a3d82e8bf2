"""Errors of the file system came as a bare errno with exit code 1. Now every command that is given a path says which
one it is, whose, and what to do, and ends with the exit code of a StorageError."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab import Case, main

SECONDS = 120
SAMPLE = False

WHO = ("--cluster", "0123456789abcdef0123456789abcdef", "--replica", "0", "--addresses", "127.0.0.1:7100")
STORAGE, BACKUP = 10, 29
COMMANDS = {
    "format": ("format", *WHO, "PATH"),
    "start": ("start", "PATH"),
    "inspect": ("inspect", "superblock", "PATH"),
    "verify": ("verify", "PATH"),
    "backup from": ("backup", "PATH", "TARGET"),
    "backup into": ("backup", "DATA", "PATH"),
    "restore into": ("restore", *WHO, "--same-cluster", "BACKUP", "PATH"),
    "dev": ("dev", "--port", "0", "--dir", "PATH"),
    "append": ("append", "PATH"),
}


def run(case: Case) -> None:
    data, target = case.directory / "data", case.directory / "backup"
    unsafe = [part for setting in case.storage_settings for part in ("--set", setting)]
    case.command("format", *WHO, *unsafe, "--set", "storage.segment_bytes=8388608", str(data), check=True)
    case.command("backup", str(data), str(target), check=True)
    (case.directory / "file").touch()
    paths = {case.directory / "file" / "d": "is a file", case.directory / ("x" * 300): "a name of 300 bytes"}
    prefix = unprivileged()
    if prefix is not None:
        closed = case.directory / "closed"
        closed.mkdir(mode=0o700)
        os.chown(closed, 65534, 65534)
        paths[closed / "d"] = "mode 0700"
    for path, said in paths.items():
        for name, words in COMMANDS.items():
            look(case, prefix or [], name, words, path, said)


def unprivileged() -> list[str] | None:
    """A prefix with which root may not read everything; None where that can not be had."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"] if setpriv and os.geteuid() == 0 else None


def look(case: Case, prefix: list[str], name: str, words: tuple[str, ...], path: Path, said: str) -> None:
    places = {"PATH": path, "DATA": case.directory / "data", "BACKUP": case.directory / "backup"}
    places["TARGET"] = case.directory / "other"
    arguments = [str(places.get(word, word)) for word in words]
    before, case.kimberlite = case.kimberlite, [*prefix, *case.kimberlite]
    done = case.command(*arguments)
    case.kimberlite = before
    wanted = BACKUP if name == "backup into" else STORAGE
    case.check(done.returncode == wanted, f"{name} {path}: exit code {done.returncode}, {done.stderr[-300:]!r}")
    case.check(str(path) in done.stderr and said in done.stderr, f"{name} {path} says {done.stderr[-300:]!r}")


if __name__ == "__main__":
    main(run)
