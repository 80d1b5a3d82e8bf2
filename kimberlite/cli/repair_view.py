"""`repair-view`: take back a view that an older release let a frame write into the superblock.

A view is a promise: not to take part in a lower one any more. It may be lowered where no promise was made to
anybody: in views above those of all other replicas nobody else has ever been, and nothing was decided there. So all
others must be known. log_view, and with it the log, stays.

Offline: the lock of the data is taken. Crash-safe: written as every update of the superblock is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from kimberlite.cli.common import json_option, note, print_json
from kimberlite.cli.inspect import DIRECTORY
from kimberlite.cli.probe import fetch_status
from kimberlite.config import CONFIG_NAME, load
from kimberlite.errors import DataMissingError, SuperblockError, UsageError
from kimberlite.storage import ring
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.superblock import Superblock, SuperblockFile
from kimberlite.types import VIEW_MAX

STATUS_SECONDS = 5.0


class Other(NamedTuple):
    """What another replica says of itself."""

    source: str  # as it was given
    cluster: str
    replica: int
    replica_count: int
    view: int


@click.command("repair-view", short_help="Take back a view that no replica can be in, offline.")
@DIRECTORY
@click.option(
    "--others",
    multiple=True,
    required=True,
    metavar="DIR|ADDRESS ...",
    help="All other replicas: the data directory of each, or the client address where it runs.",
)
@click.argument("more", metavar="", nargs=-1)
@json_option
def repair_view(data: Path, others: Sequence[str], more: Sequence[str], as_json: bool) -> None:
    """Take back a view that no replica can be in.

    An older release entered whatever view a frame named, and wrote it down. Above 2^56 this release does
    not start on it (exit code 14), and far above those of the other replicas nobody hears it. This sets the view in
    DIR to 1 + the highest of all other replicas, and changes nothing else: what the replica has acknowledged stays.

    Refuses when a replica is missing among the others, is of another cluster or does not answer; while a process
    holds DIR; and when the log of DIR is of a view above all others. The view of another replica that is above 2^56
    itself does not count: that of its log does, and no process may hold its directory meanwhile.
    """
    with opened(data) as disk:
        file = SuperblockFile(disk)
        own = file.current
        known = [look(source, own) for source in (*others, *more)]
        check_all(own, known)
        view = 1 + max(other.view for other in known)
        is_changed = own.state.view > view
        if is_changed:
            lower(disk, file, view)
    if as_json:
        views = {str(other.replica): other.view for other in known}
        print_json({"replica": own.replica, "before": own.state.view, "view": view, "others": views})
    elif is_changed:
        note(f"replica {own.replica}: view {own.state.view} is {view} now; run it with: kimberlite start {data}")
    else:
        note(f"replica {own.replica} is in view {own.state.view}, not far above the others: nothing was changed")


@contextlib.contextmanager
def opened(data: Path, *, readonly: bool = False) -> Iterator[FileDisk]:
    """The disk of a replica. Raises DataMissingError, and DataLockedError when a process holds it."""
    if not (data / CONFIG_NAME).exists():
        raise DataMissingError(f"{data} holds no replica: nothing was changed", path=str(data))
    storage = load(data / CONFIG_NAME).storage
    disk = FileDisk(data, mode=storage.mode, unsafe=storage.unsafe, readonly=readonly)
    try:
        yield disk
    finally:
        disk.close()


def look(source: str, own: Superblock) -> Other:
    """What the replica with that directory or address is, and in which view."""
    path = Path(source)
    if not path.is_dir():
        status = fetch_status(source, STATUS_SECONDS)
        numbers = (int(str(status[name])) for name in ("replica", "replica_count", "view"))
        return Other(source, str(status["cluster"]), *numbers)
    with opened(path, readonly=True) as disk:
        block = SuperblockFile(disk).current
    view = block.state.view
    if view > VIEW_MAX:  # it goes nowhere from there either; its log is of a view that it really was in
        with opened(path):
            view = max(block.state.log_view, own.state.log_view)
    return Other(source, block.cluster.hex(), block.replica, block.replica_count, view)


def check_all(own: Superblock, known: Sequence[Other]) -> None:
    """Every other replica of the cluster is known, once. Raises UsageError, SuperblockError."""
    for other in known:
        if (other.cluster, other.replica_count) != (own.cluster.hex(), own.replica_count):
            raise UsageError(
                f"{other.source} is of cluster {other.cluster} with {other.replica_count} replicas, this one of "
                f"{own.cluster.hex()} with {own.replica_count}: nothing was changed"
            )
        if other.view > VIEW_MAX:
            raise UsageError(
                f"{other.source} is in view {other.view} itself: stop it, and name its directory; nothing was changed"
            )
    given = sorted(other.replica for other in known)
    wanted = [index for index in range(own.replica_count) if index != own.replica]
    if given != wanted:
        raise UsageError(
            f"the others of replica {own.replica} are {', '.join(map(str, wanted)) or 'none'}, and "
            f"{', '.join(map(str, given)) or 'none'} were given: a view can only be taken back when all are known; "
            "nothing was changed"
        )
    highest = max((other.view for other in known), default=0)
    if own.state.log_view > highest + 1:
        raise SuperblockError(
            f"the log here is of view {own.state.log_view}, the others are in {highest} at most: the log itself is of "
            "a view that nobody else knows. Nothing was changed; restore the cluster from a backup, or make this "
            "replica anew if all others are intact",
            cause="not_monotonic",
        )


def lower(disk: FileDisk, file: SuperblockFile, view: int) -> None:
    """Write that view, durably. What a crash leaves is the old superblock or the new one."""
    ring.settle(disk, ring.overlaid(disk, file.current.ring, file.current.sequence))
    damaged = file.repair()
    if damaged:
        disk.submit(1, damaged)
    block, phases = file.take_back_view(view)
    disk.submit(2, phases)
    disk.flush()
    disk.completions()
    file.confirm(block)
