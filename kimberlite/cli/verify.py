"""`verify`: read and check everything in a data directory, offline and read-only.

No lock is taken and nothing is written, so this also works beside a running replica. What is checked, and what is
harmless, is in storage.audit.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kimberlite.cli.common import ProgressBar, bytes_text, json_option, note, print_json
from kimberlite.cli.inspect import DIRECTORY, open_data
from kimberlite.errors import CorruptEntryError
from kimberlite.storage.audit import Audit, Finding


@click.command(short_help="Read and check everything in a data directory.")
@DIRECTORY
@json_option
def verify(data: Path, as_json: bool) -> None:
    """Read and check everything in a data directory, offline and read-only.

    All copies of the superblock, and every entry of the log with its witness: checksums, padding, place, and the
    chain from each entry to the one before. Prints a line for each finding: what it means, file, offset, op,
    cause. A finding is harmless when a restart repairs it from this disk alone, or when a crash has left it behind
    the end of the log; damage is repaired from the other replicas while the replica runs. Beside a running replica
    what changes at that moment is not called damage.

    Exits with 0 when there is no damage, with 18 when there is, with 14 when the superblock is lost. With --json
    there is one object a line, and a last one with the totals.
    """
    damaged = harmless = 0
    first: Finding | None = None
    with open_data(data) as disk:
        audit = Audit(disk)
        with ProgressBar("verifying", audit.total_bytes) as advance:
            audit.advance = advance
            for finding in audit.findings():
                harmless += finding.harmless
                damaged += not finding.harmless
                if first is None and not finding.harmless:
                    first = finding
                if as_json:
                    print_json(asdict(finding))
                else:
                    click.echo(line(finding))
    if as_json:
        print_json(
            {
                "segments": audit.segments,
                "entries": audit.entries,
                "entry_bytes": audit.entry_bytes,
                "damaged": damaged,
                "harmless": harmless,
            }
        )
    else:
        note(
            f"{audit.entries} intact entries, {bytes_text(audit.entry_bytes)}, in {audit.segments} segments; "
            f"{damaged} damaged, {harmless} harmless findings"
        )
    if audit.superblock_error is not None:
        raise audit.superblock_error
    if first is None:
        return
    raise CorruptEntryError(
        f"{data}: {damaged} findings of damage, the first at {place(first)}: {first.text}. A replica that is started "
        "on it repairs itself from its peers, and serves nothing of it before",
        file=first.file,
        offset=first.offset,
        op=first.op,
        cause=first.cause,
    )


def place(finding: Finding) -> str:
    offset = "" if finding.offset is None else f" offset {finding.offset}"
    op = "" if finding.op is None else f" (op {finding.op})"
    return f"{finding.file}{offset}{op}"


def line(finding: Finding) -> str:
    """For people, in columns: findings are printed as they are made."""
    kind = "harmless" if finding.harmless else "DAMAGE"
    return f"{kind:<8}  {finding.cause:<18}  {place(finding):<50}  {finding.text}"
