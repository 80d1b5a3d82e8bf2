"""`backup` and `restore`: the log of a replica as files, and a new cluster from them.

What they do is in kimberlite.backup.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import click

from kimberlite import config as configuration
from kimberlite.cli.common import ProgressBar, bytes_text, json_option, note, print_json
from kimberlite.cli.inspect import DIRECTORY, open_data
from kimberlite.cli.probe import fetch_all, fetch_status
from kimberlite.cli.repair_view import opened
from kimberlite.cli.replica import replica_options, settings_option
from kimberlite.errors import BackupError, KimberliteError, UnavailableError
from kimberlite.storage.disk import LOCK_NAME

STATUS_TIMEOUT_S = 2.0

endpoint_option = click.option(
    "--endpoint-url", metavar="URL", help="Of an S3-compatible service that is not AWS; boto3 decides when not given."
)


@click.command(short_help="Copy the log of a replica, while it runs.")
@click.option("--archive", is_flag=True, help="TARGET is one tar file, whatever its name; made anew each time.")
@click.option("--check", is_flag=True, help="Read what is kept as well, and copy again what is damaged of it.")
@click.option(
    "--include-uncommitted",
    "uncommitted",
    is_flag=True,
    help="Of a cluster that is lost: take also what is not known to be committed. No replica may run.",
)
@endpoint_option
@json_option
@DIRECTORY
@click.argument("where", metavar="TARGET")
def backup(
    archive: bool, check: bool, uncommitted: bool, endpoint_url: str | None, as_json: bool, data: Path, where: str
) -> None:
    """Copy the log of a replica, while it runs.

    DIR is the data directory of any replica, on its machine; the process may run or not, and nothing of it is
    locked or changed. Everything that this replica knows to be committed is copied and verified: every checksum, the
    padding, and the chain. Damage of what is committed ends the backup: take it from another replica then. The last
    operations of a replica that does not run may be in its log and not known to be committed: they are left out,
    and it says how many.

    With --include-uncommitted they are taken, as far as they are intact: they may have been acknowledged. That is for
    a cluster that has lost too many replicas to go on (`kimberlite recover assess` says which data to take); it is
    refused while any replica of it answers, and while a process holds DIR.

    TARGET is a directory, a file whose name ends with .tar, or s3://bucket/prefix (needs the extra `s3`). A second
    backup into the same directory or bucket copies only the segments that are new; what the cluster has trimmed
    meanwhile goes. Until the new backup is whole the one before holds.
    """
    from kimberlite.backup.take import take
    from kimberlite.backup.targets import open_target

    if uncommitted:
        refuse_while_it_runs(data)
    with (
        opened(data) if uncommitted else open_data(data) as disk,
        contextlib.closing(open_target(where, archive=archive, endpoint_url=endpoint_url, write=True)) as target,
    ):
        applied = (lambda: 0) if uncommitted else lambda: executed_by_process(data)
        taken = take(disk, target, ProgressBar, applied, check, uncommitted)
    manifest = taken.manifest
    if as_json:
        print_json(
            {
                "target": where,
                "cluster": manifest.cluster,
                "replica": manifest.replica,
                "view": manifest.view,
                "first_op": manifest.first_op,
                "last_op": manifest.last_op,
                "first_position": manifest.first_position,
                "end_position": manifest.end_position,
                "files": len(manifest.files),
                "bytes": sum(file.bytes for file in manifest.files),
                "copied": taken.copied,
                "copied_bytes": taken.copied_bytes,
                "kept": taken.kept,
                "removed": taken.removed,
                "uncertain": taken.uncertain,
            }
        )
    else:
        note(
            f"{events_text(manifest.first_position, manifest.end_position)}, op {manifest.first_op} to "
            f"{manifest.last_op}: {taken.copied} files copied ({bytes_text(taken.copied_bytes)}), {taken.kept} kept, "
            f"{taken.removed} removed"
        )
        if taken.uncertain:
            note(
                f"{taken.uncertain} operations behind op {manifest.last_op} are in this log and not known to be "
                "committed: they are not in the backup; one taken beside the running replica has all acknowledged ones"
            )


def refuse_while_it_runs(data: Path) -> None:
    """Raises BackupError when a replica of the cluster answers: it may know what is committed."""
    config = configuration.load(data / configuration.CONFIG_NAME)
    for address, answer in zip(
        config.cluster.addresses, fetch_all(config.cluster.addresses, STATUS_TIMEOUT_S), strict=True
    ):
        if not isinstance(answer, UnavailableError) and answer.get("cluster") == config.cluster.id:
            raise BackupError(
                f"{address} answers: the cluster is not lost, and knows what is committed. Nothing was done; take the "
                "backup without --include-uncommitted, or stop all replicas first",
                where=address,
            )


def executed_by_process(data: Path) -> int:
    """The op that the process which holds the data has executed; 0 when none answers."""
    try:
        config = configuration.load(data / configuration.CONFIG_NAME)
        holder = int((data / LOCK_NAME).read_text())
        status = fetch_status(config.cluster.addresses[config.cluster.replica], STATUS_TIMEOUT_S)
    except (KimberliteError, OSError, ValueError):
        return 0  # then the disk alone says what is committed
    if (status.get("pid"), status.get("cluster")) != (holder, config.cluster.id):
        return 0
    return int(str(status["applied"]))


def events_text(first: int, end: int) -> str:
    return f"{end - first} events" + (f", positions {first} to {end - 1}" if end > first else "")


@click.command(short_help="Make the data of a new cluster from a backup.")
@replica_options
@click.option(
    "--same-cluster",
    is_flag=True,
    help="Allow the id of the cluster that the backup is of. None of its replicas may ever run again.",
)
@endpoint_option
@settings_option
@json_option
@click.argument("where", metavar="SOURCE")
@click.argument("data", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def restore(
    cluster: str,
    replica: int,
    addresses: tuple[str, ...],
    same_cluster: bool,
    endpoint_url: str | None,
    settings: Sequence[str],
    as_json: bool,
    where: str,
    data: Path,
) -> None:
    """Make the data of one replica of a new cluster from a backup.

    Run it once for each replica of the new cluster, from the same backup, before any of them is started. The new
    cluster has the same events at the same positions, and an id of its own. Everything is verified: the backup
    against its manifest while it is read, the new data by reading all of it back. DIR is no replica before that.

    Refuses, and changes nothing, when DIR holds data already. The identity printed at the end must be the same for
    all replicas of the new cluster.
    """
    from kimberlite.backup.restore import restore as restore_replica
    from kimberlite.backup.targets import open_target

    config = configuration.new_replica(cluster, replica, addresses, settings, "restore")
    with contextlib.closing(open_target(where, endpoint_url=endpoint_url)) as target:
        restored = restore_replica(target, config, data, same_cluster=same_cluster, progress=ProgressBar)
    manifest = restored.manifest
    if as_json:
        print_json(
            {
                "data": str(data.absolute()),
                "cluster": config.cluster.id,
                "replica": replica,
                "view": restored.view,
                "first_op": manifest.first_op,
                "last_op": manifest.last_op,
                "first_position": manifest.first_position,
                "end_position": manifest.end_position,
                "identity": restored.identity,
            }
        )
    else:
        note(
            f"replica {replica} of {config.replica_count} restored in {data}: "
            f"{events_text(manifest.first_position, manifest.end_position)}, op {manifest.first_op} to "
            f"{manifest.last_op}, identity {restored.identity}; when all are, run it with: kimberlite start {data}"
        )
