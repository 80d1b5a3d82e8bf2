"""`inspect`: what is in a data directory, offline and read-only.

No lock is taken and nothing is written, so this also works beside a running replica: what that one
is just writing may then be shown as damaged. It shows what is on the disk and decides nothing;
what a restart makes of it is for storage.recovery to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from kimberlite.cli.common import COUNT, bytes_text, json_option, note, print_json, table
from kimberlite.errors import DataMissingError, SuperblockError
from kimberlite.node.driver import describe_sessions
from kimberlite.storage import birth as births
from kimberlite.storage import checkpoint as checkpoints
from kimberlite.storage import ring
from kimberlite.storage import superblock as superblocks
from kimberlite.storage.disk import FileDisk
from kimberlite.storage.interface import Disk
from kimberlite.storage.journal import Flaw, Record, journal_name, used_records, witness_name
from kimberlite.storage.log_reader import NoRecord, Place, SegmentReader, file_size, journal_numbers
from kimberlite.types import Header, Identity, Message, Operation
from kimberlite.vsr import record as records

DIRECTORY = click.argument("data", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
JOURNAL_COLUMNS = (
    "op",
    "view",
    "operation",
    "position",
    "events",
    "bytes",
    "segment",
    "offset",
    "entry",
    "witness",
    "checksum",
)
COPY_COLUMNS = ("copy", "state", "sequence", "view", "log view", "commit", "checksum")


@click.group(short_help="Look into a data directory, offline and read-only.")
def inspect() -> None:
    """Look into a data directory, offline and read-only.

    Nothing is locked and nothing is changed. Beside a running replica, what it is writing at that
    moment may be shown as damaged.
    """


@contextmanager
def open_data(data: Path) -> Iterator[FileDisk]:
    """The files of a replica, for reading only."""
    disk = FileDisk(data, readonly=True)
    try:
        if not disk.exists(superblocks.NAME):
            raise DataMissingError(f"{data} holds no replica: there is no {superblocks.NAME} in it", path=str(data))
        yield disk
    finally:
        disk.close()


@inspect.command(short_help="Who the replica is and what it has promised.")
@DIRECTORY
@json_option
def superblock(data: Path, as_json: bool) -> None:
    """Show who the replica is and what it has promised.

    All four copies are shown, and what they agree on. Exits with 14 when they do not.
    """
    with open_data(data) as disk:
        copies = superblocks.read_copies(disk, disk.open(superblocks.NAME))
        shown = [describe_copy(index, copy) for index, copy in enumerate(copies)]
        try:
            block = superblocks.choose(copies)
        except SuperblockError:
            print_json({"copies": shown}) if as_json else click.echo(table(COPY_COLUMNS, shown))
            raise
        facts = describe_superblock(block) | describe_identity(births.read(disk, block))
    if as_json:
        print_json({**facts, "copies": shown})
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if name not in ("suffix", "members"):
            click.echo(f"{name.replace('_', ' '):<{width}}  {value}")
    click.echo()
    click.echo(table(COPY_COLUMNS, shown))
    click.echo()
    click.echo(table(("op", "view", "operation", "events", "checksum"), facts["suffix"]))  # type: ignore[arg-type]
    if facts["members"]:
        click.echo()
        click.echo(table(("slot", "role", "incarnation", "peer", "client"), facts["members"]))  # type: ignore[arg-type]


def describe_superblock(block: superblocks.Superblock) -> dict[str, object]:
    state = block.state
    return {
        "cluster": block.cluster.hex(),
        "replica": block.replica,
        "replica_count": block.replica_count,
        "segment_bytes": block.segment_bytes,
        "version": block.version,
        "sequence": block.sequence,
        "view": state.view,
        "log_view": state.log_view,
        "commit": state.commit,
        "base": state.base,
        "suffix_head": state.suffix_head,
        "doubt": state.doubt,
        "checkpoint_op": block.checkpoint.op,
        "checkpoint_bytes": block.checkpoint.size,
        "checkpoint_digest": block.checkpoint.digest.hex(),
        "first_op": block.checkpoint.first_op,
        "first_position": block.checkpoint.first_position,
        "first_segment": block.checkpoint.first_segment,
        "suffix": [
            {
                "op": header.op,
                "view": header.view,
                "operation": operation_name(header),
                "events": header.count,
                "checksum": header.checksum.hex(),
            }
            for header in state.suffix
        ],
    }


def describe_identity(identity: Identity) -> dict[str, object]:
    """Who the replica is, and the record of its cluster, or the draft of one."""
    record = records.decode(identity.record) if identity.record else None
    return {
        "birth": identity.birth.name.lower(),
        "incarnation": identity.incarnation.hex(),
        "life": f"{identity.life:016x}",
        "epoch": record.epoch if record is not None else 0,
        "origin": record.origin.hex() if record is not None else "",
        "bound_to": identity.digest.hex(),
        "members": [
            {
                "slot": member.slot,
                "role": member.role.name.lower(),
                "incarnation": member.incarnation.hex(),
                "peer": address_text(*member.peer),
                "client": address_text(*member.client),
            }
            for member in (record.members if record is not None else ())
        ],
    }


def address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def describe_copy(index: int, copy: superblocks.Superblock | None) -> dict[str, object]:
    if copy is None:
        return {"copy": index, "state": "damaged"}
    return {
        "copy": index,
        "state": "intact",
        "sequence": copy.sequence,
        "view": copy.state.view,
        "log view": copy.state.log_view,
        "commit": copy.state.commit,
        "checksum": copy.checksum.hex(),
    }


@inspect.command(short_help="The entries of the journal, one a line.")
@click.option("--from", "start", type=COUNT, default=0, metavar="OP", help="The first op to show.")
@click.option("--limit", type=COUNT, metavar="K", help="The most entries to show; all when not given.")
@DIRECTORY
@json_option
def journal(data: Path, start: int, limit: int | None, as_json: bool) -> None:
    """Show the entries of the journal, one a line.

    Every entry shown is read and verified; those that only the ring has are shown where they belong. `entry` and
    `witness` (the second record of each entry) are good, damaged, other (an intact one that is not what the other
    says) or none. With --json there is one object a line, with all fields of the entry's header.
    """
    with open_data(data) as disk:
        shown = damaged = size = 0
        if not as_json:
            click.echo(journal_line(dict(zip(JOURNAL_COLUMNS, JOURNAL_COLUMNS, strict=True))))
        for row in journal_rows(ring.shown(disk), start):
            if limit is not None and shown >= limit:
                break
            if as_json:
                print_json(row)
            else:
                click.echo(journal_line(row))
            shown += 1
            damaged += row["entry"] != "good" or row["witness"] != "good"
            size += int(str(row["bytes"] or 0))
    if not as_json:
        note(f"{shown} entries, {bytes_text(size)}; {damaged} with an entry or a witness that is not good")


def journal_rows(disk: Disk, start: int) -> Iterator[dict[str, object]]:
    """What stands at every place of the journal where something was ever written, from op `start` on."""
    number = min(journal_numbers(disk), default=0)  # not 0 when the log was trimmed
    while disk.exists(journal_name(number)) and disk.exists(witness_name(number)):
        with SegmentReader(disk, number, file_size(disk, journal_name(number))) as files:
            place = Place(number)
            for _ in range(used_records(files.image())):
                record, offset = files.at(place)
                header = record.header if isinstance(record, Record) else None
                if header is None or header.op >= start:
                    row, header = journal_row(files, offset, record)
                    yield row
                place.move(header, offset)
            if place.end is not None and files.entry(place.end) is not Flaw.NOTHING:
                # Its write was under way: the entry is written before its witness.
                yield journal_row(files, place.end, NoRecord.MISSING)[0]
        number += 1


def journal_row(
    files: SegmentReader, offset: int | None, record: Record | NoRecord
) -> tuple[dict[str, object], Header | None]:
    """A row, and the header of the entry as its witness tells it, or the entry itself."""
    found = files.entry(offset) if offset is not None else Flaw.UNREADABLE
    entry = "good" if isinstance(found, Message) else "none" if found is Flaw.NOTHING else "damaged"
    header = record.header if isinstance(record, Record) else found.header if isinstance(found, Message) else None
    if isinstance(found, Message) and header is not None and found.header.checksum != header.checksum:
        entry = "other"
    witness = "good" if isinstance(record, Record) else "none" if record is NoRecord.MISSING else "damaged"
    place = {"segment": files.number, "offset": offset, "entry": entry, "witness": witness}
    return {**describe_header(header), **place}, header


def describe_header(header: Header | None) -> dict[str, object]:
    """The fields of an entry's header; None for all when none of its copies can be read."""
    if header is None:
        return dict.fromkeys(("op", "view", "operation", "position", "events", "bytes", "checksum"))
    return {
        "op": header.op,
        "view": header.view,
        "operation": operation_name(header),
        "position": header.position,
        "events": header.count,
        "bytes": header.size,
        "checksum": header.checksum.hex(),
        "parent": header.parent.hex(),
        "commit": header.commit,
        "client": header.client.hex(),
        "session": header.session,
        "request": header.request,
        "replica": header.replica,
        "release": header.release,
        "time": datetime.fromtimestamp(header.timestamp / 1e9, UTC).isoformat(),
    }


def operation_name(header: Header) -> str:
    try:
        return Operation(header.operation).name.lower()
    except ValueError:
        return str(header.operation)


def journal_line(row: dict[str, object]) -> str:
    """A line of fixed columns: rows are printed as they are read."""
    widths = (10, 5, 9, 12, 7, 9, 7, 10, 7, 7, 32)
    values = ("-" if row.get(name) is None else str(row[name]) for name in JOURNAL_COLUMNS)
    return "  ".join(
        value.ljust(width) if name in ("operation", "entry", "witness", "checksum") else value.rjust(width)
        for name, value, width in zip(JOURNAL_COLUMNS, values, widths, strict=True)
    ).rstrip()


@inspect.command(short_help="The state that a restart begins with.")
@DIRECTORY
@json_option
def checkpoint(data: Path, as_json: bool) -> None:
    """Show the checkpoint that the superblock names: the state that a restart begins with.

    Both copies are read and verified, and the client sessions shown. Exits with 14 when the superblock can not
    be read, with 27 when no copy of the checkpoint is good.
    """
    with open_data(data) as disk:
        named = superblocks.choose(superblocks.read_copies(disk, disk.open(superblocks.NAME))).checkpoint
        facts: dict[str, object] = {
            "op": named.op,
            "events": named.positions,
            "bytes": named.size,
            "digest": named.digest.hex(),
            "first_op": named.first_op,
            "first_position": named.first_position,
        }
        if not named.size:
            print_json(facts) if as_json else click.echo("there is no checkpoint yet: a restart begins with op 1")
            return
        facts["copies"] = {copy: checkpoints.check_copy(disk, named, copy) or "good" for copy in checkpoints.COPIES}
        content, _ = checkpoints.read(disk, named)
    sessions = describe_sessions(content.sessions)
    facts |= {"machine_version": content.machine, "snapshot_bytes": len(content.snapshot), "sessions": len(sessions)}
    if as_json:
        print_json({**facts, "sessions": sessions})
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(f"{key}: {state}" for key, state in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name.replace('_', ' '):<{width}}  {text}")
    if sessions:
        click.echo()
        click.echo(table(tuple(sessions[0]), sessions))


@inspect.command(short_help="What a replica has counted and measured.")
@DIRECTORY
@json_option
def metrics(data: Path, as_json: bool) -> None:
    """Show what a replica has counted and measured.

    Of the one that runs there, without asking it, or of the last moment of one that crashed. A
    histogram is shown as its count and three quantiles; `-` is not known.
    """
    from kimberlite.telemetry.reading import snapshot

    seen = snapshot(data)
    if as_json:
        print_json(seen)
        return
    rows = seen["metrics"]
    lines = [metric_line(row) for row in rows] if isinstance(rows, list) else []
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        click.echo(f"{name:<{width}}  {value}")
    note(f"replica {seen['replica']}, process {seen['pid']}, which {'runs' if seen['running'] else 'has ended'}")


def metric_line(row: dict[str, object]) -> tuple[str, str]:
    """Name with labels, and the value, of one metric."""
    labels = row["labels"]
    name = str(row["name"])
    if isinstance(labels, dict) and labels:
        name += "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}"
    if "count" not in row:
        return name, value_text(row["value"])
    if not row["count"]:
        return name, f"count {value_text(row['count'])}"
    quantiles = "  ".join(f"{key} {value_text(row[key])}" for key in ("p50", "p99", "p999"))
    return name, f"count {value_text(row['count'])}  {quantiles}"


def value_text(value: object) -> str:
    """A number for people; `-` when it is not known."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
