"""`recover`: what is left of a cluster that lost too much to go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from kimberlite.cli.common import json_option, print_json, table
from kimberlite.cli.inspect import open_data

COLUMNS = ("replica", "source", "log_view", "commit", "intact", "op", "damaged", "view")


@click.group(short_help="What is left of a cluster that lost too much.")
def recover() -> None:
    """What is left of a cluster that lost too much.

    As long as a majority runs, nothing has to be recovered: go on with the others, and see docs/cluster.md.
    """


@recover.command(short_help="Compare what is left, offline: which data has most.")
@click.argument(
    "directories",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@json_option
def assess(directories: Sequence[Path], as_json: bool) -> None:
    """Compare what is left, offline: which data has most.

    DIR is the data of every replica that is left, or a copy of it. Nothing is changed. Prints which one is the best,
    what is certain to have been committed, what may have been acknowledged besides, what may be missing, and what to do
    next. No process may run on any of them: that is refused.
    """
    from kimberlite.node.assessing import assess as judge
    from kimberlite.node.assessing import look, sentences

    known = []
    for directory in directories:
        with open_data(directory) as disk:
            disk.refuse_if_in_use()
            known.append(look(disk, str(directory)))
    found = judge(known)
    if as_json:
        rows = [data._asdict() for data in found.known]
        print_json({**found._asdict(), "known": rows, "best": found.best.source, "lost": list(found.lost)})
        return
    click.echo(table(COLUMNS, [data._asdict() for data in found.known]))
    for sentence in sentences(found):
        click.echo(sentence)
