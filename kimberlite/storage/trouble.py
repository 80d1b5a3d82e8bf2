"""Errors of the file system, in words: which path, whose it is, what to do.

May import: errors.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

from kimberlite.errors import DiskFullError, StorageError

NAME_BYTES_MAX = 255  # of the usual file systems of Linux
PATH_BYTES_MAX = 4095  # PATH_MAX, less its last byte


def storage_error(error: OSError) -> StorageError:
    """That error as one of ours, with its path, whose it is and what to do. Attributes: path, errno."""
    path = _path(error)
    kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(f"{path}: {explain(error)}", path=path, errno=error.errno)


def explain(error: OSError) -> str:
    """The same without the path: `permission denied: it belongs to ...; ...`."""
    what = error.strerror or str(error)
    what = what[:1].lower() + what[1:]
    advise = _ADVICE.get(error.errno or 0)
    return f"{what}: {advise(Path(_path(error)))}" if advise is not None else what


def _path(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else str(error.filename)


def _whose(path: Path) -> str:
    """`it belongs to user:group, mode 0700`; of the nearest directory above where there is no such path."""
    try:
        found = path.lstat()
    except OSError:
        return _whose(path.parent) if path.parent != path else ""
    kind = "directory" if stat.S_ISDIR(found.st_mode) else "file"
    owner = _name(lambda: pwd.getpwuid(found.st_uid).pw_name, found.st_uid)
    group = _name(lambda: grp.getgrgid(found.st_gid).gr_name, found.st_gid)
    return f"the {kind} {path} belongs to {owner}:{group}, mode {stat.S_IMODE(found.st_mode):04o}"


def _name(look: Callable[[], str], number: int) -> str:
    try:
        return look()
    except KeyError:
        return str(number)


def _permission(path: Path) -> str:
    me = _name(lambda: pwd.getpwuid(os.geteuid()).pw_name, os.geteuid())
    return f"{_whose(path)}, and this process runs as {me}: run it as the owner, or change owner or mode"


def _no_directory(path: Path) -> str:
    for part in (path, *path.parents):
        if os.path.exists(part) and not os.path.isdir(part):  # Path.exists raises where it may not look
            return f"{part} is a file ({_whose(part)}): choose another path"
    return "choose another path"


def _too_long(path: Path) -> str:
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > NAME_BYTES_MAX:
        return f"it has a name of {longest} bytes, {NAME_BYTES_MAX} are possible: choose a shorter one"
    return f"it has {len(os.fsencode(path))} bytes, {PATH_BYTES_MAX} are possible: choose a shorter one"


def _missing(path: Path) -> str:
    above = path.parent
    while not os.path.exists(above) and above != above.parent:
        above = above.parent
    return f"{above} is there, and what is below it is not ({_whose(above)}): check the path"


_ADVICE: dict[int, Callable[[Path], str]] = {
    errno.EACCES: _permission,
    errno.EPERM: _permission,
    errno.ENOTDIR: _no_directory,
    errno.EEXIST: _no_directory,
    errno.ENAMETOOLONG: _too_long,
    errno.ENOENT: _missing,
    errno.EISDIR: lambda path: f"{_whose(path)}: give a file",
    errno.ELOOP: lambda path: "symbolic links lead in a circle, or none is allowed there: give the path itself",
    errno.EROFS: lambda path: f"{_whose(path)}: mount it for writing, or choose another path",
    errno.ENOSPC: lambda path: "make room, or choose another file system",
    errno.EDQUOT: lambda path: f"{_whose(path)}: raise the quota, or choose another file system",
    errno.EMFILE: lambda path: "this process has as many files open as it may: raise `ulimit -n`",
    errno.ENFILE: lambda path: "this machine has as many files open as it may: raise fs.file-max",
    errno.EIO: lambda path: "the disk, or the way to it, fails: look into the kernel's log (dmesg)",
    errno.ENODEV: lambda path: "the device has gone: look into the kernel's log (dmesg)",
    errno.ENXIO: lambda path: "there is no such device: check the path",
    errno.ESTALE: lambda path: "the server of this file system has lost it: mount it again",
    errno.EBUSY: lambda path: "something else uses it: end that, or choose another path",
    errno.EFBIG: lambda path: "the file would be larger than allowed: raise `ulimit -f`",
}
